//! A tokenizer from the files of a Hugging Face folder.
//!
//! Encoding is done by the `tokenizers` library, which defines what such a file means. Decoding is ours, from the bytes
//! of each token, so that it can be done one token at a time and is the same as for a GGUF file.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{
    Encoding, Model as _, ModelWrapper, OffsetType, PostProcessor as _, PreTokenizer, Token, TruncationDirection,
};

use super::special::SpecialTokens;
use super::vocabulary::{Kind, Vocabulary};
use super::{EncodeOptions, FillInTokens, Model, Pair, Tokenizer, byte_pair, end_of_generation, gguf, limits};
use crate::TokenizerError;

/// The contents of the files that describe a tokenizer.
#[derive(Clone, Copy, Default)]
pub struct HuggingFaceFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: the names of the special tokens.
    pub config: Option<&'a [u8]>,
    /// `generation_config.json`: the tokens that end an answer.
    pub generation_config: Option<&'a [u8]>,
}

impl Tokenizer {
    /// Builds a tokenizer from the `tokenizer.json` of a folder, with `tokenizer_config.json` and
    /// `generation_config.json` where they exist.
    pub fn from_hf_dir(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let read = |name: &str| {
            let path = folder.as_ref().join(name);
            std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })
        };
        let read_if_exists = |name: &str| match read(name) {
            Err(TokenizerError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        };
        let tokenizer = read("tokenizer.json")?;
        let config = read_if_exists("tokenizer_config.json")?;
        let generation_config = read_if_exists("generation_config.json")?;
        Self::from_hf_files(HuggingFaceFiles {
            tokenizer: &tokenizer,
            config: config.as_deref(),
            generation_config: generation_config.as_deref(),
        })
    }

    /// Builds a tokenizer from a `tokenizer.json` alone.
    pub fn from_json(tokenizer: &[u8]) -> Result<Self, TokenizerError> {
        Self::from_hf_files(HuggingFaceFiles { tokenizer, ..Default::default() })
    }

    /// Builds a tokenizer from the contents of a folder's files. Fails, naming file and field, if one is wrong.
    pub fn from_hf_files(files: HuggingFaceFiles<'_>) -> Result<Self, TokenizerError> {
        limits::check(files.tokenizer)?;
        let mut library = guarded(|| tokenizers::Tokenizer::from_bytes(files.tokenizer).map_err(|e| e.to_string()))
            .map_err(|found| wrong("tokenizer.json", found, "a tokenizer as the tokenizers library writes it"))?;
        library.with_padding(None);
        library.with_truncation(None).map_err(|error| wrong("truncation", error.to_string(), "null"))?;
        let (vocabulary, add_space_prefix) = read_vocabulary(&library)?;
        let config: Config = read_json(files.config, "tokenizer_config.json")?;
        let generation: GenerationConfig = read_json(files.generation_config, "generation_config.json")?;

        let id_of = |name: &str| config.token(name).and_then(|token| library.token_to_id(token));
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let (unknown, padding) = (id_of("unk_token"), id_of("pad_token"));
        let ends = eos.into_iter().chain(generation.ends());
        let end_of_generation = end_of_generation(&vocabulary, ends.filter(|&id| (id as usize) < vocabulary.len()));
        let special_tokens = SpecialTokens::new(&vocabulary, "tokenizer.json: added_tokens")?;
        let template_variables = Some(config.template_variables());

        let is_control = |id| vocabulary.kind(id).is_special() || end_of_generation.contains(&id);
        let model = HuggingFace::new(library, is_control);
        // The tokens that tokenizer_config.json asks for, unless tokenizer.json adds them by itself.
        let mut ends_of_nothing = Vec::new();
        model.encode("", EncodeOptions { add_special: true, parse_special: true }, None, &mut ends_of_nothing)?;
        let add_bos = config.adds("add_bos_token") && bos.is_some() && ends_of_nothing.first().copied() != bos;
        let add_eos = config.adds("add_eos_token") && eos.is_some() && ends_of_nothing.last().copied() != eos;
        Ok(Self {
            fill_in: FillInTokens::default().or_named(&vocabulary),
            vocabulary,
            model: Model::HuggingFace(Box::new(model)),
            special_tokens,
            bos,
            eos,
            unknown,
            padding,
            add_bos,
            add_eos,
            add_space_prefix,
            end_of_generation,
            template_variables,
        })
    }
}

pub(crate) struct HuggingFace {
    /// The library's tokenizer. Whether special tokens are recognised is a setting of it and not of a call; it is off
    /// only while the lock is held for writing.
    library: RwLock<tokenizers::Tokenizer>,
    /// Control tokens that are also in the model's own vocabulary, where plain text could become one.
    spelled: HashMap<u32, String>,
}

impl HuggingFace {
    pub fn new(library: tokenizers::Tokenizer, is_control: impl Fn(u32) -> bool) -> Self {
        let own = library.get_vocab(false).into_iter();
        let spelled = own.filter(|(_, id)| is_control(*id)).map(|(name, id)| (id, name)).collect();
        Self { library: RwLock::new(library), spelled }
    }

    /// What the contents of a `tokenizer.json` describe.
    pub fn read(json: &Value) -> Result<Self, TokenizerError> {
        let library = guarded(|| tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|e| e.to_string()));
        let library = library.map_err(|found| wrong("tokenizer.ggml.tokens", found, "a vocabulary of WordPiece"))?;
        Ok(Self::new(library, |_| false))
    }

    /// Appends the ids of a text. A marker in it is taken out after whole tokens are found.
    pub fn encode(
        &self,
        text: &str,
        options: EncodeOptions,
        marker: Option<char>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let encode = |library: &tokenizers::Tokenizer| {
            guarded(|| {
                let encoding = if marker.is_none() && self.spelled.is_empty() {
                    library.encode_fast(text, options.add_special)
                } else {
                    self.encode_in_steps(library, text, options.add_special, marker)
                };
                encoding.map_err(|error| error.to_string())
            })
        };
        let encoding = if options.parse_special {
            encode(&self.library.read().unwrap_or_else(PoisonError::into_inner))
        } else {
            let mut library = self.library.write().unwrap_or_else(PoisonError::into_inner);
            library.set_encode_special_tokens(true);
            let encoding = encode(&library);
            library.set_encode_special_tokens(false);
            encoding
        };
        ids.extend_from_slice(encoding.map_err(TokenizerError::Encode)?.get_ids());
        Ok(())
    }

    /// Two texts, as the model was trained to read pairs; none if the file does not say how. Of the second text only as much is kept as `limit` leaves room for.
    pub fn encode_pair(&self, (first, second): (&str, &str), limit: usize) -> Result<Option<Pair>, TokenizerError> {
        let mut library = self.library.write().unwrap_or_else(PoisonError::into_inner);
        let Some(added) = library.get_post_processor().map(|processor| processor.added_tokens(true)) else {
            return Ok(None);
        };
        library.set_encode_special_tokens(true);
        let encoding = guarded(|| {
            let steps = |text| self.encode_in_steps(&library, text, false, None).map_err(|error| error.to_string());
            let (first, mut second) = (steps(first)?, steps(second)?);
            let room = limit.saturating_sub(added + first.len());
            if second.len() > room {
                second.truncate(room, 0, TruncationDirection::Right);
            }
            library.post_process(first, Some(second), true).map_err(|error| error.to_string())
        });
        library.set_encode_special_tokens(false);
        let encoding = encoding.map_err(TokenizerError::Encode)?;
        let is_second = encoding.get_type_ids().iter().map(|&kind| kind > 0).collect();
        Ok(Some(Pair { ids: encoding.get_ids().to_vec(), is_second }))
    }

    /// The library's own steps, with two changes: after the first step, which finds whole tokens, the marker is removed,
    /// and the model's tokens for text are never control tokens.
    fn encode_in_steps(
        &self,
        library: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
        marker: Option<char>,
    ) -> tokenizers::Result<Encoding> {
        let mut pieces = library.get_added_vocabulary().extract_and_normalize(library.get_normalizer(), text);
        if let Some(marker) = marker {
            pieces.normalize(|piece| piece.replace(marker, ""))?;
        }
        if let Some(splitter) = library.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.tokens_of_text(library.get_model(), piece.get()))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        library.post_process(encoding, None, add_special)
    }

    /// The tokens of a piece of text. Where one would be a control token, the piece is split inside it.
    fn tokens_of_text(&self, model: &ModelWrapper, piece: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        let mut left = vec![(0, piece.len())];
        while let Some((begin, end)) = left.pop() {
            let text = &piece[begin..end];
            let found = model.tokenize(text)?;
            let cuts = found.iter().filter_map(|token| {
                let (from, to) = token.offsets;
                let is_spelled = self.spelled.get(&token.id).is_some_and(|name| text.get(from..to) == Some(name));
                let first = text.get(from..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
                (is_spelled && from + first < to).then_some(begin + from + first)
            });
            let mut cuts: Vec<usize> = cuts.collect();
            if cuts.is_empty() {
                let moved =
                    |token: Token| Token { offsets: (begin + token.offsets.0, begin + token.offsets.1), ..token };
                tokens.extend(found.into_iter().map(moved));
                continue;
            }
            cuts.push(end);
            // The first part is the next to be popped.
            let begins = std::iter::once(begin).chain(cuts.iter().copied());
            let parts: Vec<(usize, usize)> = begins.zip(cuts.iter().copied()).collect();
            left.extend(parts.into_iter().rev());
        }
        Ok(tokens)
    }
}

/// Runs code of the library, which panics on some malformed files, and turns a panic into an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the tokenizers library panicked".into()))
}

fn wrong(field: &str, found: impl Into<String>, expected: &str) -> TokenizerError {
    TokenizerError::field(field, found, expected)
}

/// How the decoder of a `tokenizer.json` reads one token.
#[derive(Default)]
struct Decoding {
    /// One printable character for each byte, as in GPT-2.
    byte_characters: bool,
    /// `<0x0A>` is a byte.
    byte_tokens: bool,
    /// What represents a space.
    space_mark: Option<String>,
    /// A token without this in front begins a word.
    continuation: Option<String>,
    /// A space at the beginning of the text is taken away.
    drops_first_space: bool,
}

impl Decoding {
    /// Reads a decoder and, of a sequence, all its parts. What WordPiece's `cleanup` does to punctuation is not done.
    fn add(&mut self, decoder: &Value) -> Result<(), TokenizerError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        match decoder["type"].as_str() {
            Some("Sequence") => {
                return decoder["decoders"].as_array().into_iter().flatten().try_for_each(|part| self.add(part));
            }
            Some("ByteLevel") => self.byte_characters = true,
            Some("ByteFallback") => self.byte_tokens = true,
            Some("Fuse") => {}
            Some("Replace") if decoder["content"] == " " && decoder["pattern"]["String"].is_string() => {
                self.space_mark = Some(text(&decoder["pattern"]["String"]));
            }
            Some("Strip") if decoder["content"] == " " && decoder["start"] == 1 && decoder["stop"] == 0 => {
                self.drops_first_space = true;
            }
            Some("Metaspace") => {
                self.space_mark = Some(text(&decoder["replacement"]));
                self.drops_first_space = decoder["prepend_scheme"] != "never";
            }
            Some("WordPiece") => {
                self.continuation = Some(text(&decoder["prefix"]));
                self.drops_first_space = true;
            }
            _ => {
                let expected = "ByteLevel, Metaspace, WordPiece or a Sequence of Replace (by a space), ByteFallback, Fuse and Strip (of one space)";
                return Err(wrong("tokenizer.json: decoder", decoder.to_string(), expected));
            }
        }
        Ok(())
    }

    fn append_bytes_of(&self, token: &str, bytes: &mut Vec<u8>) {
        match (&self.space_mark, &self.continuation) {
            _ if self.byte_characters => {
                byte_pair::append_bytes_of(token, bytes);
            }
            (Some(mark), _) => bytes.extend_from_slice(token.replace(mark.as_str(), " ").as_bytes()),
            (_, Some(prefix)) => match token.strip_prefix(prefix.as_str()) {
                Some(rest) => bytes.extend_from_slice(rest.as_bytes()),
                None => bytes.extend([b" ", token.as_bytes()].concat()),
            },
            _ => bytes.extend_from_slice(token.as_bytes()),
        }
    }
}

/// The bytes and kinds of all tokens, and whether a space at the beginning of a text is taken away.
fn read_vocabulary(library: &tokenizers::Tokenizer) -> Result<(Vocabulary, bool), TokenizerError> {
    let mut decoding = Decoding::default();
    decoding.add(&serde_json::to_value(library.get_decoder()).unwrap_or_default())?;

    let mut tokens: Vec<(u32, String)> = library.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    let Some(&(last, _)) = tokens.last() else {
        return Err(wrong("tokenizer.json: model.vocab", "no tokens", "the vocabulary of the model"));
    };
    if last as usize > 2 * tokens.len() + 1024 {
        let found = format!("an id of {last} among {} tokens", tokens.len());
        return Err(wrong("tokenizer.json: model.vocab", found, "ids that are hardly more than the tokens"));
    }
    let added = library.get_added_tokens_decoder();
    let mut vocabulary = Vocabulary::default();
    let mut bytes = Vec::new();
    for (id, token) in tokens {
        while vocabulary.len() < id as usize {
            vocabulary.push(&[], Kind::Unused)?;
        }
        if vocabulary.len() > id as usize {
            continue; // a second name for the same id
        }
        bytes.clear();
        let kind = match (added.get(&id), gguf::byte_of(&token)) {
            (Some(added), _) if added.special => Kind::Control,
            (Some(_), _) => Kind::UserDefined,
            (None, Some(byte)) if decoding.byte_tokens => {
                bytes.push(byte);
                Kind::Byte
            }
            _ => Kind::Normal,
        };
        if kind != Kind::Byte {
            decoding.append_bytes_of(&token, &mut bytes);
        }
        vocabulary.push(&bytes, kind)?;
    }
    Ok((vocabulary, decoding.drops_first_space))
}

fn read_json<T: for<'de> Deserialize<'de> + Default>(bytes: Option<&[u8]>, file: &str) -> Result<T, TokenizerError> {
    let Some(bytes) = bytes else { return Ok(T::default()) };
    serde_json::from_slice(bytes)
        .map_err(|error| wrong(file, error.to_string(), "a JSON object as transformers writes it"))
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl Config {
    /// A special token, which is written as a string or as an object with its `content`.
    fn token(&self, name: &str) -> Option<&str> {
        token_text(self.fields.get(name)?)
    }

    fn adds(&self, name: &str) -> bool {
        self.fields.get(name) == Some(&Value::Bool(true))
    }

    /// The special tokens by name, as `transformers` hands them to a template.
    fn template_variables(&self) -> Map<String, Value> {
        let names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let named = names.into_iter().filter_map(|name| Some((name.to_string(), self.token(name)?.into())));
        let extra = self.fields.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
        named.chain(extra.filter_map(|(name, token)| Some((name.clone(), token_text(token)?.into())))).collect()
    }
}

fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// `generation_config.json`.
#[derive(Default, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Value,
}

impl GenerationConfig {
    /// One id or a list of them; -1, which some write for none, is none.
    fn ends(&self) -> impl Iterator<Item = u32> {
        let ids = match &self.eos_token_id {
            Value::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok())
    }
}
