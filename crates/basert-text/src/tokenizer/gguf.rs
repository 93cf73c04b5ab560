//! A tokenizer from the metadata of a GGUF file.

use super::byte_pair::{BytePair, Spelling};
use super::charsmap::CharsMap;
use super::longest::Longest;
use super::plamo::Plamo;
use super::pretokenizer::Pretokenizer;
use super::sentence_piece::SentencePiece;
use super::special::SpecialTokens;
use super::unigram::{Unigram, WhiteSpace};
use super::vocabulary::{Kind, Vocabulary};
use super::{END_NAMES, FillInTokens, Model, Tokenizer, end_of_generation, word_piece};
use crate::TokenizerError;

/// What a GGUF file says about its tokenizer: each field is the value of the key `tokenizer.ggml.…` named in its
/// description, absent if the key is.
pub struct GgufVocabulary<'a> {
    /// `model`: `gpt2` (byte-level byte pair encoding), `gemma4` and `whitespace` (byte pair encoding of characters),
    /// `llama` (SentencePiece), `t5` (unigram), `bert` (WordPiece), `rwkv` (longest tokens) or `plamo2`.
    pub model: &'a str,
    /// `pre`: the pre-tokenizer of a `gpt2` model.
    pub pre: Option<&'a str>,
    /// `tokens`, in the order of their ids.
    pub tokens: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
    /// `token_type`, one for each token.
    pub token_types: Option<Box<dyn Iterator<Item = i32> + 'a>>,
    /// `scores`, one for each token; `t5` and `plamo2` need them, and for `llama` the order of the tokens stands in for them.
    pub scores: Option<Box<dyn Iterator<Item = f32> + 'a>>,
    /// `merges`, in the order of their rank; `gpt2` and `gemma4` need them.
    pub merges: Option<Box<dyn Iterator<Item = &'a [u8]> + 'a>>,
    /// `precompiled_charsmap`, for `t5`.
    pub precompiled_charsmap: Option<&'a [u8]>,
    /// `bos_token_id`, or `cls_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`.
    pub eot: Option<u32>,
    /// `eom_token_id`.
    pub eom: Option<u32>,
    /// `eos_token_ids`: further tokens that end an answer.
    pub ends: Vec<u32>,
    /// `seperator_token_id`, as it is written; the end of a text of `bert`.
    pub separator: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `padding_token_id`.
    pub padding: Option<u32>,
    /// `fim_pre_token_id`, `fim_suf_token_id`, `fim_mid_token_id`, `fim_rep_token_id`, `fim_sep_token_id` and
    /// `fim_pad_token_id`; tokens of a known name if they are absent.
    pub fill_in: FillInTokens,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`, for `t5`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `treat_whitespace_as_suffix`, for `t5`.
    pub treat_whitespace_as_suffix: Option<bool>,
    /// `normalizer.lowercase`, for `bert` and `whitespace`.
    pub lowercase: Option<bool>,
    /// `normalizer.strip_accents`, for `bert`.
    pub strip_accents: Option<bool>,
}

impl<'a> GgufVocabulary<'a> {
    /// A vocabulary of a model kind and its tokens; every other field is absent.
    pub fn new(model: &'a str, tokens: impl Iterator<Item = &'a [u8]> + 'a) -> Self {
        Self {
            model,
            tokens: Box::new(tokens),
            pre: None,
            token_types: None,
            scores: None,
            merges: None,
            precompiled_charsmap: None,
            bos: None,
            eos: None,
            eot: None,
            eom: None,
            ends: Vec::new(),
            separator: None,
            unknown: None,
            padding: None,
            fill_in: FillInTokens::default(),
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            treat_whitespace_as_suffix: None,
            lowercase: None,
            strip_accents: None,
        }
    }
}

/// Defaults of each kind of model, for what the file does not say.
#[derive(Default)]
struct Defaults {
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata, in one pass over it. Nothing borrowed is kept.
    ///
    /// Fails, naming the key, if something needed is missing or of the wrong length. What can be done without is done
    /// without, with a warning: ids that no token has, types and merges that are not defined.
    pub fn from_gguf(source: GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        const MODELS: &str = "gpt2, gemma4, whitespace, llama, t5, bert, rwkv or plamo2";
        let pre = match source.model {
            "gpt2" => source.pre.unwrap_or_else(|| {
                tracing::warn!("{}: absent; texts are cut as for 'default', which few models are", key("pre"));
                "default"
            }),
            "gemma4" | "whitespace" => source.model,
            "llama" | "t5" | "bert" | "rwkv" | "plamo2" => "",
            other => return Err(wrong("model", format!("{other:?}"), MODELS)),
        };
        let pretokenizer = (!pre.is_empty()).then(|| Pretokenizer::named(pre, &key("pre"))).transpose()?;
        let spelling = match (source.model, &pretokenizer) {
            (_, Some(pretokenizer)) => pretokenizer.spelling(),
            ("rwkv", None) => Spelling::Escapes,
            ("plamo2", None) => Spelling::Plain,
            _ => Spelling::SpaceMarks,
        };
        let vocabulary = read_tokens(source.tokens, source.token_types, spelling)?;
        let scores = source.scores.map(|scores| read_scores(scores, vocabulary.len())).transpose()?;

        let in_range = |name: &str, id: Option<u32>| {
            let is_token = id.is_none_or(|id| (id as usize) < vocabulary.len());
            if !is_token {
                let (id, len) = (id.unwrap_or_default(), vocabulary.len());
                tracing::warn!("{}: {id}, but there are {len} tokens; it is taken for absent", key(name));
            }
            id.filter(|_| is_token)
        };
        let usual = |id: Option<u32>, kind: Kind| id.filter(|&id| vocabulary.kind(id) == kind);
        let unknown = in_range("unknown_token_id", source.unknown);
        let defaults = match source.model {
            "gpt2" => {
                Defaults { add_bos: pretokenizer.as_ref().is_some_and(Pretokenizer::adds_bos), ..Defaults::default() }
            }
            "gemma4" => Defaults { add_bos: true, ..Defaults::default() },
            "whitespace" | "rwkv" => Defaults::default(),
            "plamo2" => Defaults { add_bos: true, bos: Some(1), eos: Some(2), unknown: Some(0), ..Defaults::default() },
            "llama" => Defaults {
                add_bos: true,
                add_space_prefix: true,
                bos: Some(1),
                eos: Some(2),
                unknown: Some(0),
                ..Defaults::default()
            },
            "t5" => Defaults {
                add_eos: true,
                add_space_prefix: true,
                eos: Some(1),
                unknown: Some(2),
                ..Defaults::default()
            },
            _ => Defaults {
                add_bos: true,
                add_eos: true,
                add_space_prefix: true,
                bos: Some(101),
                eos: in_range("seperator_token_id", source.separator).or(Some(102)),
                unknown: Some(100),
            },
        };
        let bos = in_range("bos_token_id", source.bos).or_else(|| usual(defaults.bos, Kind::Control));
        let eos = in_range("eos_token_id", source.eos).or_else(|| usual(defaults.eos, Kind::Control));
        let unknown = unknown.or_else(|| usual(defaults.unknown, Kind::Unknown));
        let (eot, eom) = (in_range("eot_token_id", source.eot), in_range("eom_token_id", source.eom));
        let given = source.fill_in;
        let fill_in = FillInTokens {
            prefix: in_range("fim_pre_token_id", given.prefix),
            suffix: in_range("fim_suf_token_id", given.suffix),
            middle: in_range("fim_mid_token_id", given.middle),
            repository: in_range("fim_rep_token_id", given.repository),
            file: in_range("fim_sep_token_id", given.file),
            padding: in_range("fim_pad_token_id", given.padding),
        };
        let more = source.ends.into_iter().filter_map(|id| in_range("eos_token_ids", Some(id)));
        let ends: Vec<u32> = [eos, eot, eom].into_iter().flatten().chain(more).collect();
        // Early files of this model say that it is not to be added, and it is lost without.
        let add_bos = source.add_bos.filter(|_| source.model != "gemma4");
        for (add, id, name) in [(add_bos, bos, "bos_token_id"), (source.add_eos, eos, "eos_token_id")] {
            if add == Some(true) && id.is_none() {
                tracing::warn!("{}: absent, though the file says that it is to be added; it is not", key(name));
            }
        }

        let model = match (source.model, pretokenizer) {
            (_, Some(pretokenizer)) => {
                let merges = source.merges.ok_or_else(|| wrong("merges", "absent", "the merges of the model"))?;
                Model::BytePair(Box::new(BytePair::new(
                    &vocabulary,
                    pretokenizer,
                    merges,
                    source.lowercase.unwrap_or(false),
                    &key("merges"),
                )))
            }
            ("llama", None) => {
                let scores = scores.unwrap_or_else(|| {
                    tracing::warn!("{}: absent; tokens are merged in the order of their ids", key("scores"));
                    (0..vocabulary.len()).map(|id| -(id as f32)).collect()
                });
                Model::SentencePiece(Box::new(SentencePiece::new(&vocabulary, &scores)))
            }
            ("t5", None) => {
                let charsmap = match source.precompiled_charsmap {
                    Some(bytes) if !bytes.is_empty() => Some(CharsMap::new(bytes, &key("precompiled_charsmap"))?),
                    _ => None,
                };
                let white_space = WhiteSpace {
                    merge: source.remove_extra_whitespaces.unwrap_or(false),
                    add: source.add_space_prefix.unwrap_or(true),
                    suffix: source.treat_whitespace_as_suffix.unwrap_or(false),
                };
                let scores = scores.ok_or_else(|| wrong("scores", "absent", "a score for each token"))?;
                Model::Unigram(Box::new(Unigram::new(&vocabulary, scores, charsmap, white_space)))
            }
            ("rwkv", None) => Model::Longest(Box::new(Longest::new(&vocabulary))),
            ("plamo2", None) => {
                let scores = scores.ok_or_else(|| wrong("scores", "absent", "a score for each token"))?;
                Model::Plamo(Box::new(Plamo::new(&vocabulary, &scores)))
            }
            _ => {
                let unknown = unknown.ok_or_else(|| wrong("unknown_token_id", "absent", "the id of a token"))?;
                let lowercase = source.lowercase.unwrap_or(true);
                let strip_accents = source.strip_accents.unwrap_or(lowercase);
                Model::HuggingFace(Box::new(word_piece::library(&vocabulary, unknown, lowercase, strip_accents)?))
            }
        };
        Ok(Self {
            special_tokens: SpecialTokens::new(&vocabulary, &key("tokens"))?,
            end_of_generation: end_of_generation(&vocabulary, ends.into_iter()),
            bos,
            eos,
            unknown,
            padding: in_range("padding_token_id", source.padding),
            add_bos: add_bos.unwrap_or(defaults.add_bos) && bos.is_some(),
            add_eos: source.add_eos.unwrap_or(defaults.add_eos) && eos.is_some(),
            add_space_prefix: source.add_space_prefix.unwrap_or(defaults.add_space_prefix),
            fill_in: fill_in.or_named(&vocabulary),
            template_variables: None,
            model,
            vocabulary,
        })
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn wrong(name: &str, found: impl Into<String>, expected: &str) -> TokenizerError {
    TokenizerError::field(key(name), found, expected)
}

fn read_tokens<'a>(
    tokens: impl Iterator<Item = &'a [u8]>,
    types: Option<impl Iterator<Item = i32>>,
    spelling: Spelling,
) -> Result<Vocabulary, TokenizerError> {
    let mut vocabulary = Vocabulary::default();
    let mut bytes = Vec::new();
    let has_types = types.is_some();
    let mut types = types.into_iter().flatten();
    let (mut as_themselves, mut undefined) = (Vec::new(), 0usize);
    for (id, token) in tokens.enumerate() {
        let kind = match types.next() {
            Some(number) => Kind::from_gguf(number),
            None if has_types => return Err(wrong("token_type", format!("{id} numbers"), "one for each token")),
            None => Some(Kind::Normal),
        };
        let text = std::str::from_utf8(token).ok();
        let byte = text.and_then(byte_of).filter(|_| kind == Some(Kind::Byte));
        // Some converters mark tokens that end an answer as text.
        let is_end = text.is_some_and(|text| END_NAMES.contains(&text));
        let kind = if is_end { Some(Kind::Control) } else { kind };
        // A byte token that is not written as `<0x..>` is an ordinary token.
        let kind = kind.filter(|&kind| kind != Kind::Byte || byte.is_some()).unwrap_or_else(|| {
            undefined += 1;
            Kind::Normal
        });
        bytes.clear();
        match (kind, text, byte) {
            (_, _, Some(byte)) => bytes.push(byte),
            (Kind::Normal | Kind::Unused, Some(text), _) => {
                if !spelling.append(text, &mut bytes) {
                    as_themselves.push(id as u32);
                }
            }
            (kind, ..) => {
                if kind == Kind::Normal {
                    as_themselves.push(id as u32);
                }
                bytes.extend_from_slice(token);
            }
        }
        vocabulary.push(&bytes, kind)?;
    }
    if vocabulary.len() == 0 {
        return Err(wrong("tokens", "no tokens", "the vocabulary of the model"));
    }
    if undefined > 0 {
        tracing::warn!("{}: {undefined} that are not defined; they are taken for ordinary tokens", key("token_type"));
    }
    vocabulary.index(&as_themselves);
    Ok(vocabulary)
}

/// The byte that a token such as `<0x0A>` names.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn read_scores(scores: impl Iterator<Item = f32>, len: usize) -> Result<Vec<f32>, TokenizerError> {
    let scores: Vec<f32> = scores.take(len).collect();
    if scores.len() != len {
        return Err(wrong("scores", scores.len().to_string(), &format!("{len} numbers, one for each token")));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(wrong("scores", format!("{} for token {id}", scores[id]), "finite numbers")),
        None => Ok(scores),
    }
}
