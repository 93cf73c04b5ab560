//! WordPiece (BERT): a word is spelled by the longest tokens that fit, from left to right.
//!
//! A GGUF file writes a token that begins a word with a space in front, and one that goes on with nothing. The
//! `tokenizers` library, which defines the model, wants it the other way round.

use serde_json::{Map, Value, json};

use super::hugging_face::HuggingFace;
use super::vocabulary::Vocabulary;
use crate::TokenizerError;

/// The library's tokenizer for a vocabulary.
pub(super) fn library(
    vocabulary: &Vocabulary,
    unknown: u32,
    lowercase: bool,
    strip_accents: bool,
) -> Result<HuggingFace, TokenizerError> {
    let (mut names, mut special) = (Map::new(), Vec::new());
    for (id, bytes, kind) in vocabulary.iter() {
        let text = String::from_utf8_lossy(bytes);
        let name = match text.strip_prefix(' ') {
            _ if kind.is_special() || id == unknown => {
                special.push(json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false}));
                text.into_owned()
            }
            Some(word) => word.to_owned(),
            None => format!("##{text}"),
        };
        names.entry(name).or_insert(id.into());
    }
    let unknown = String::from_utf8_lossy(vocabulary.get(unknown).unwrap_or_default());
    HuggingFace::read(&json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": strip_accents, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": Value::Object(names)},
    }))
}
