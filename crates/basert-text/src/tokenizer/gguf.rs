//! A tokenizer from the metadata of a GGUF file.

use super::byte_pair::{self, BytePair};
use super::charsmap::CharsMap;
use super::pretokenizer::Pretokenizer;
use super::sentence_piece::{SPACE_MARK, SentencePiece};
use super::special::SpecialTokens;
use super::unigram::{Unigram, WhiteSpace};
use super::vocabulary::{Kind, Vocabulary};
use super::{Model, Tokenizer, end_of_generation};
use crate::TokenizerError;

/// What a GGUF file says about its tokenizer: each field is the value of the key `tokenizer.ggml.…` named in its
/// description, absent if the key is.
pub struct GgufVocabulary<'a> {
    /// `model`: `gpt2` (byte-level byte pair encoding), `llama` (SentencePiece) or `t5` (unigram).
    pub model: &'a str,
    /// `pre`: the pre-tokenizer of a `gpt2` model.
    pub pre: Option<&'a str>,
    /// `tokens`, in the order of their ids.
    pub tokens: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
    /// `token_type`, one for each token.
    pub token_types: Option<Box<dyn Iterator<Item = i32> + 'a>>,
    /// `scores`, one for each token; `llama` and `t5` need them.
    pub scores: Option<Box<dyn Iterator<Item = f32> + 'a>>,
    /// `merges`, in the order of their rank; `gpt2` needs them.
    pub merges: Option<Box<dyn Iterator<Item = &'a [u8]> + 'a>>,
    /// `precompiled_charsmap`, for `t5`.
    pub precompiled_charsmap: Option<&'a [u8]>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`.
    pub eot: Option<u32>,
    /// `eom_token_id`.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `padding_token_id`.
    pub padding: Option<u32>,
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
            unknown: None,
            padding: None,
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            treat_whitespace_as_suffix: None,
        }
    }
}

/// What differs between the kinds of models where the file does not say.
struct Defaults {
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata, in one pass over it. Nothing borrowed is kept.
    ///
    /// Fails, naming the key, if something needed is missing, of the wrong length, out of range or contradictory.
    pub fn from_gguf(source: GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let spelling = match source.model {
            "gpt2" => Spelling::ByteCharacters,
            "llama" | "t5" => Spelling::SpaceMarks,
            other => return Err(wrong("model", format!("{other:?}"), "gpt2, llama or t5")),
        };
        let vocabulary = read_tokens(source.tokens, source.token_types, spelling)?;
        let scores = source.scores.map(|scores| read_scores(scores, vocabulary.len())).transpose()?;
        let scores_for = || scores.ok_or_else(|| wrong("scores", "absent", "a score for each token"));
        let (model, defaults) = match source.model {
            "gpt2" => {
                let pretokenizer = Pretokenizer::named(source.pre.unwrap_or("default"), &key("pre"))?;
                let add_bos = pretokenizer.adds_bos();
                let merges = source.merges.ok_or_else(|| wrong("merges", "absent", "the merges of the model"))?;
                let model = BytePair::new(&vocabulary, pretokenizer, merges, &key("merges"))?;
                let defaults = Defaults { add_bos, add_eos: false, add_space_prefix: false, unknown: None };
                (Model::BytePair(Box::new(model)), defaults)
            }
            "llama" => {
                let model = SentencePiece::new(&vocabulary, &scores_for()?);
                let defaults = Defaults { add_bos: true, add_eos: false, add_space_prefix: true, unknown: Some(0) };
                (Model::SentencePiece(Box::new(model)), defaults)
            }
            _ => {
                let charsmap = match source.precompiled_charsmap {
                    Some(bytes) if !bytes.is_empty() => Some(CharsMap::new(bytes, &key("precompiled_charsmap"))?),
                    _ => None,
                };
                let white_space = WhiteSpace {
                    merge: source.remove_extra_whitespaces.unwrap_or(false),
                    add: source.add_space_prefix.unwrap_or(true),
                    suffix: source.treat_whitespace_as_suffix.unwrap_or(false),
                };
                let model = Unigram::new(&vocabulary, scores_for()?, charsmap, white_space);
                let defaults = Defaults { add_bos: false, add_eos: true, add_space_prefix: true, unknown: Some(2) };
                (Model::Unigram(Box::new(model)), defaults)
            }
        };
        let in_range = |name: &str, id: Option<u32>| match id {
            Some(id) if id as usize >= vocabulary.len() => {
                let expected = format!("an id below {}, the number of tokens", vocabulary.len());
                Err(wrong(name, id.to_string(), &expected))
            }
            id => Ok(id),
        };
        let bos = in_range("bos_token_id", source.bos)?;
        let eos = in_range("eos_token_id", source.eos)?;
        let ends = [eos, in_range("eot_token_id", source.eot)?, in_range("eom_token_id", source.eom)?];
        let add_bos = source.add_bos.unwrap_or(defaults.add_bos && bos.is_some());
        let add_eos = source.add_eos.unwrap_or(defaults.add_eos && eos.is_some());
        for (add, id, name) in [(add_bos, bos, "bos_token_id"), (add_eos, eos, "eos_token_id")] {
            if add && id.is_none() {
                return Err(wrong(name, "absent", "the id of the token that the file says is to be added"));
            }
        }
        let default_unknown = defaults.unknown.filter(|&id| vocabulary.kind(id) == Kind::Unknown);
        Ok(Self {
            special_tokens: SpecialTokens::new(&vocabulary, &key("tokens"))?,
            end_of_generation: end_of_generation(&vocabulary, ends.into_iter().flatten()),
            bos,
            eos,
            unknown: in_range("unknown_token_id", source.unknown)?.or(default_unknown),
            padding: in_range("padding_token_id", source.padding)?,
            add_bos,
            add_eos,
            add_space_prefix: source.add_space_prefix.unwrap_or(defaults.add_space_prefix),
            template_variables: None,
            model,
            vocabulary,
        })
    }
}

/// How a GGUF file writes the bytes of an ordinary token.
#[derive(Clone, Copy)]
enum Spelling {
    /// One printable character for each byte.
    ByteCharacters,
    /// As text, but a space is `▁`.
    SpaceMarks,
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
    for (id, token) in tokens.enumerate() {
        let kind = match types.next() {
            Some(number) => Kind::from_gguf(number)
                .ok_or_else(|| wrong("token_type", format!("{number} for token {id}"), "a number from 1 to 6"))?,
            None if has_types => return Err(wrong("token_type", format!("{id} numbers"), "one for each token")),
            None => Kind::Normal,
        };
        let text = std::str::from_utf8(token).map_err(|_| {
            wrong("tokens", format!("token {id} is {:?}", String::from_utf8_lossy(token)), "text in UTF-8")
        })?;
        bytes.clear();
        match (kind, spelling) {
            (Kind::Byte, _) => bytes.push(byte_of(text).ok_or_else(|| {
                wrong("tokens", format!("token {id} is {text:?} but of the type of bytes"), "<0x00> to <0xFF>")
            })?),
            (Kind::Normal | Kind::Unused, Spelling::ByteCharacters) => byte_pair::append_bytes_of(text, &mut bytes),
            (Kind::Normal | Kind::Unused, Spelling::SpaceMarks) => {
                for (index, word) in text.split(SPACE_MARK).enumerate() {
                    if index > 0 {
                        bytes.push(b' ');
                    }
                    bytes.extend_from_slice(word.as_bytes());
                }
            }
            _ => bytes.extend_from_slice(token),
        }
        vocabulary.push(&bytes, kind)?;
    }
    if vocabulary.len() == 0 {
        return Err(wrong("tokens", "no tokens", "the vocabulary of the model"));
    }
    if types.next().is_some() {
        return Err(wrong("token_type", "more numbers than tokens", "one for each token"));
    }
    vocabulary.index(&key("tokens"))?;
    Ok(vocabulary)
}

/// The byte that a token such as `<0x0A>` names.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn read_scores(scores: impl Iterator<Item = f32>, len: usize) -> Result<Vec<f32>, TokenizerError> {
    let scores: Vec<f32> = scores.take(len + 1).collect();
    if scores.len() != len {
        let found = if scores.len() > len { "more than that".into() } else { scores.len().to_string() };
        return Err(wrong("scores", found, &format!("{len} numbers, one for each token")));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(wrong("scores", format!("{} for token {id}", scores[id]), "finite numbers")),
        None => Ok(scores),
    }
}
