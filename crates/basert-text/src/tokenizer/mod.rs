//! The tokenizer: text to ids and back, wherever the vocabulary comes from.

mod byte_pair;
mod charsmap;
mod control;
mod fill_in;
mod gguf;
mod hugging_face;
mod limits;
mod longest;
mod merge;
mod plamo;
mod prefixes;
mod pretokenizer;
mod sentence_piece;
mod special;
mod unigram;
mod vocabulary;
mod word_piece;

pub(crate) use control::{ControlTexts, MARKERS};
pub use fill_in::{FillIn, FillInTokens};
pub use gguf::GgufVocabulary;
pub use hugging_face::HuggingFaceFiles;

use serde_json::{Map, Value};

use self::byte_pair::BytePair;
use self::hugging_face::HuggingFace;
use self::longest::Longest;
use self::plamo::Plamo;
use self::sentence_piece::SentencePiece;
use self::special::{Piece, SpecialTokens};
use self::unigram::Unigram;
use self::vocabulary::{Kind, Vocabulary};
use crate::{Detokenizer, TokenizerError};

/// Turns text into token ids and ids into text.
///
/// It owns all it needs and can be shared between threads. See [`Tokenizer::from_gguf`] and
/// [`Tokenizer::from_hf_dir`].
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    special_tokens: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Text is encoded with a space in front, which decoding takes away again.
    add_space_prefix: bool,
    end_of_generation: Vec<u32>,
    fill_in: FillInTokens,
    /// What the model's configuration defines for its template; `None` if it has no such thing.
    template_variables: Option<Map<String, Value>>,
}

enum Model {
    BytePair(Box<BytePair>),
    SentencePiece(Box<SentencePiece>),
    Unigram(Box<Unigram>),
    Longest(Box<Longest>),
    Plamo(Box<Plamo>),
    HuggingFace(Box<HuggingFace>),
}

/// Two texts that a model reads together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The ids of both, with the tokens around them.
    pub ids: Vec<u32>,
    /// For each whether it belongs to the second.
    pub is_second: Vec<bool>,
}

/// How a text is to be encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the beginning- and end-of-text tokens where the model expects them. Not wanted for the output of a chat
    /// template, which writes them itself.
    pub add_special: bool,
    /// Take `<|im_end|>` and its like in the text for the tokens of that name. Not wanted for text of unknown origin.
    pub parse_special: bool,
}

impl Tokenizer {
    /// The ids of a text. Fails only if the vocabulary has neither tokens for some character nor an unknown token.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        self.encode_without(text, options, None)
    }

    /// Two texts that a model reads together. Of the second text only as much is kept as `limit`, the most ids, leaves room for. No text becomes a control token.
    ///
    /// # Errors
    /// When the vocabulary cannot spell a text.
    pub fn encode_pair(&self, first: &str, second: &str, limit: usize) -> Result<Pair, TokenizerError> {
        if let Model::HuggingFace(model) = &self.model
            && let Some(pair) = model.encode_pair((first, second), limit)?
        {
            return Ok(pair);
        }
        // As the families of BERT and of RoBERTa do it.
        let between = if matches!(self.model, Model::HuggingFace(_)) { 1 } else { 2 };
        let encode = |text| self.encode(text, EncodeOptions::default());
        let (mut ids, mut second) = (Vec::from_iter(self.bos), encode(second)?);
        ids.extend(encode(first)?);
        ids.extend(std::iter::repeat_n(self.eos, between).flatten());
        second.truncate(limit.saturating_sub(ids.len() + 1));
        let mut is_second = vec![false; ids.len()];
        ids.extend(second);
        ids.extend(self.eos);
        is_second.resize(ids.len(), true);
        Ok(Pair { ids, is_second })
    }

    /// The ids of a text from which a marker is taken out once it has kept what it stands in from being a token.
    pub(crate) fn encode_without(
        &self,
        text: &str,
        options: EncodeOptions,
        marker: Option<char>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if options.add_special && self.add_bos {
            ids.extend(self.bos);
        }
        match &self.model {
            Model::HuggingFace(model) => model.encode(text, options, marker, &mut ids)?,
            model => {
                let mut after_token = true;
                self.special_tokens.split(&self.vocabulary, text, options.parse_special, |piece| {
                    match piece {
                        Piece::Token(id) => ids.push(id),
                        Piece::Text(text) => match marker.filter(|&marker| text.contains(marker)) {
                            Some(marker) => {
                                self.encode_piece(model, &text.replace(marker, ""), after_token, &mut ids)?;
                            }
                            None => self.encode_piece(model, text, after_token, &mut ids)?,
                        },
                    }
                    after_token = matches!(piece, Piece::Token(_));
                    Ok(())
                })?;
            }
        }
        if options.add_special && self.add_eos {
            ids.extend(self.eos);
        }
        Ok(ids)
    }

    /// Encodes text without whole tokens in it; `first` if it begins the text or follows such a token.
    fn encode_piece(&self, model: &Model, text: &str, first: bool, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match model {
            Model::BytePair(model) => model.encode(&self.vocabulary, self.unknown, text, ids),
            Model::SentencePiece(model) => {
                let with_space = (first && self.add_space_prefix).then(|| format!(" {text}"));
                let text = with_space.as_deref().unwrap_or(text);
                model.encode(&self.vocabulary, self.unknown, text, ids)?;
            }
            Model::Unigram(model) => model.encode(&self.vocabulary, self.unknown, text, ids)?,
            Model::Longest(model) => model.encode(&self.vocabulary, self.unknown, text, ids)?,
            Model::Plamo(model) => model.encode(&self.vocabulary, self.unknown, text, ids)?,
            Model::HuggingFace(_) => {}
        }
        Ok(())
    }

    /// The text of a sequence of ids. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary nothing.
    /// With `skip_special`, control tokens leave no trace.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(self, skip_special);
        for &id in ids {
            detokenizer.push(id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes of a token: part of a character, a word with its space, the name of a control token. `None`
    /// for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.get(id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether the token is structure rather than text, such as `<bos>`; such tokens are skipped in decoded text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kind(id).is_special()
    }

    /// Whether the token is a reserved place, which no text has.
    pub(crate) fn is_unused(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Kind::Unused
    }

    /// Whether text is encoded with a space in front that decoding takes away.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// The token at the beginning of a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token at the end of a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token for what the vocabulary cannot spell.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The token that fills up a batch.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// The tokens that end an answer, in ascending order: end of text, of turn, of message.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// The id of the token that is written whole as `text`: a control or user-defined token.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        let is_whole = |kind: Kind| kind.is_special() || kind == Kind::UserDefined;
        self.vocabulary.iter().find(|(_, bytes, kind)| is_whole(*kind) && *bytes == text.as_bytes()).map(|(id, ..)| id)
    }

    /// Whether the token is structure or ends an answer.
    fn is_control(&self, id: u32) -> bool {
        self.is_special(id) || self.end_of_generation.contains(&id)
    }

    /// What control tokens are written as.
    pub(crate) fn control_texts(&self) -> &ControlTexts {
        self.special_tokens.control_texts(&self.vocabulary, |id| self.is_control(id))
    }

    /// A text cut at the control tokens, and others that end an answer, that are written whole in it.
    pub(crate) fn control_pieces<'t>(&self, text: &'t str) -> Vec<Result<u32, &'t str>> {
        let mut pieces = Vec::new();
        let (mut begin, mut at) = (0, 0);
        let split = self.special_tokens.split(&self.vocabulary, text, true, |piece| {
            match piece {
                Piece::Text(piece) => at += piece.len(),
                Piece::Token(id) => {
                    let end = at + self.token_bytes(id).map_or(0, <[u8]>::len);
                    if self.is_control(id) {
                        pieces.extend((begin < at).then(|| Err(&text[begin..at])));
                        pieces.push(Ok(id));
                        begin = end;
                    }
                    at = end;
                }
            }
            Ok(())
        });
        debug_assert!(split.is_ok(), "nothing above fails");
        pieces.extend((begin < text.len()).then(|| Err(&text[begin..])));
        pieces
    }

    /// The control tokens that are written whole in a text, in order.
    pub(crate) fn control_tokens(&self, text: &str) -> Vec<u32> {
        self.control_pieces(text).into_iter().filter_map(Result::ok).collect()
    }

    /// The variables that a chat template is given beside the conversation: `bos_token`, `eos_token` and so on.
    pub fn template_variables(&self) -> Map<String, Value> {
        if let Some(variables) = &self.template_variables {
            return variables.clone();
        }
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        named
            .into_iter()
            .filter_map(|(name, id)| {
                let bytes = self.token_bytes(id?)?;
                Some((name.to_string(), Value::String(String::from_utf8_lossy(bytes).into_owned())))
            })
            .collect()
    }
}

/// Names of tokens that end an answer, as published models call them.
const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|flush|>",
    "<|calls|>",
    "<|tool_response>",
    "<|eot|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|assistant_end|>",
    "<|role_end|>",
    "<|message_sep|>",
    "<seed:eos>",
    "[|endofturn|]",
];

/// The tokens that end an answer: those given, and those with a known name unless the name means something else here.
fn end_of_generation(vocabulary: &Vocabulary, given: impl Iterator<Item = u32>) -> Vec<u32> {
    let spelled = END_NAMES.iter().filter_map(|name| vocabulary.find(name.as_bytes()));
    let mut ids: Vec<u32> = given.chain(spelled).collect();
    let (mut has_return, mut has_call, mut end) = (false, false, None);
    for (id, bytes, kind) in vocabulary.iter().filter(|(.., kind)| !matches!(kind, Kind::Normal | Kind::Byte)) {
        // `</s>` and `<eos>` are also what ordinary vocabularies call a tag.
        let is_end = END_NAMES.iter().any(|name| name.as_bytes() == bytes)
            || (kind == Kind::Control && matches!(bytes, b"</s>" | b"<eos>"));
        if is_end {
            ids.push(id);
        }
        match bytes {
            b"<|return|>" | b"<|flush|>" => has_return = true,
            b"<|call|>" | b"<|calls|>" => has_call = true,
            b"<|end|>" => end = Some(id),
            _ => {}
        }
    }
    // Where an answer ends with <|return|> or <|call|>, <|end|> only ends one of its messages.
    if has_return && has_call {
        ids.retain(|&id| Some(id) != end);
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}
