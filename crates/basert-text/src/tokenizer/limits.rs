//! Checks of a `tokenizer.json` before the `tokenizers` library reads it: numbers and chains with which a small file
//! would take gigabytes, or encoding would never end.
//!
//! What remains can be slow but terminates: regular expressions that backtrack (each attempt is limited), and unigram
//! vocabularies with very long pieces.

use serde::Deserialize;
use serde_json::Value;

use crate::TokenizerError;

/// How many times its length a text may become. Published files need a factor of 18, that of Unicode's NFKC.
const MOST_GROWTH: usize = 64;

/// The longest word that WordPiece may look at; the time grows with its square. Published files have 100.
const MOST_CHARS_PER_WORD: u64 = 1000;

/// The parts of a `tokenizer.json` that are looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Option<ModelPart>,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(default)]
    max_input_chars_per_word: Value,
}

/// Fails if a `tokenizer.json` asks for more than any published one.
pub(super) fn check(tokenizer: &[u8]) -> Result<(), TokenizerError> {
    let file: File = serde_json::from_slice(tokenizer).map_err(|error| {
        TokenizerError::field("tokenizer.json", error.to_string(), "a tokenizer as the tokenizers library writes it")
    })?;
    let word = file.model.map_or(Value::Null, |model| model.max_input_chars_per_word);
    if word.as_u64().is_some_and(|chars| chars > MOST_CHARS_PER_WORD) {
        let expected = format!("up to {MOST_CHARS_PER_WORD}");
        return Err(TokenizerError::field(
            "tokenizer.json: model.max_input_chars_per_word",
            word.to_string(),
            expected,
        ));
    }
    for (field, part) in [("normalizer", &file.normalizer), ("pre_tokenizer", &file.pre_tokenizer)] {
        let growth = growth(part)?;
        if growth > MOST_GROWTH {
            let found = format!("steps that may make a text {growth} times as long");
            return Err(TokenizerError::field(
                format!("tokenizer.json: {field}"),
                found,
                format!("up to {MOST_GROWTH}"),
            ));
        }
    }
    Ok(())
}

/// How many times its length a text may become through a step, or through all steps of a sequence.
fn growth(step: &Value) -> Result<usize, TokenizerError> {
    let steps = ["normalizers", "pretokenizers"].into_iter().filter_map(|name| step[name].as_array()).flatten();
    let mut product = steps.map(growth).try_fold(1, |product: usize, growth| Ok(product.saturating_mul(growth?)))?;
    if let Some(charsmap) = step["precompiled_charsmap"].as_str() {
        check_charsmap(charsmap)?;
        product = product.saturating_mul(18);
    }
    if step["type"] == "ByteLevel" {
        product = product.saturating_mul(2);
    }
    if let (Some(content), pattern) = (step["content"].as_str(), &step["pattern"]) {
        // What an expression matches may be a single character.
        let shortest = pattern["String"].as_str().map_or(1, |text| text.chars().count().max(1));
        product = product.saturating_mul(content.chars().count().div_ceil(shortest).max(1));
    }
    Ok(product)
}

/// Checks the length that a charsmap in base64 begins with, for which the library reserves memory unseen.
fn check_charsmap(base64: &str) -> Result<(), TokenizerError> {
    let digit = |character: u8| match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let head = base64.bytes().take(6).fold(0u64, |bits, character| bits << 6 | u64::from(digit(character)));
    let len = u32::swap_bytes((head >> 4) as u32) as usize;
    if base64.len() < 6 || len > base64.len() / 4 * 3 {
        let found = format!("an array of {len} bytes in {} characters of base64", base64.len());
        return Err(TokenizerError::field("tokenizer.json: precompiled_charsmap", found, "an array that fits"));
    }
    Ok(())
}
