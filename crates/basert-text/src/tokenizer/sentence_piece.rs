//! SentencePiece's byte pair encoding (Llama 2, Gemma): characters are merged into whatever token has the best score.
//!
//! SentencePiece writes a space as `▁` (U+2581) and takes a `▁` in the text for a space. Here both are a space, in
//! tokens as in texts.

use super::merge::{Merger, Symbol};
use super::vocabulary::{Kind, Vocabulary};
use crate::TokenizerError;

/// How SentencePiece writes a space.
pub(crate) const SPACE_MARK: char = '\u{2581}';

/// The scores of the tokens and the tokens of single bytes.
pub(crate) struct SentencePiece {
    /// By id; the lower, the sooner a pair is merged into this token.
    priorities: Vec<u32>,
    byte_ids: ByteIds,
}

impl SentencePiece {
    /// `scores` by id; higher is merged sooner.
    pub fn new(vocabulary: &Vocabulary, scores: &[f32]) -> Self {
        let priorities = scores.iter().map(|&score| priority(score)).collect();
        Self { priorities, byte_ids: ByteIds::new(vocabulary) }
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = text.replace(SPACE_MARK, " ");
        let mut merger = Merger::default();
        for (start, character) in text.char_indices() {
            let len = character.len_utf8();
            let id = vocabulary.find(&text.as_bytes()[start..start + len]).unwrap_or(Symbol::UNKNOWN);
            merger.push(id, start, len as u32);
        }
        let bytes_of = |symbol: &Symbol| &text.as_bytes()[symbol.start..symbol.start + symbol.len as usize];
        let symbols = merger.run(|left, right| {
            let merged = &text.as_bytes()[left.start..right.start + right.len as usize];
            let id = vocabulary.find(merged)?;
            Some((*self.priorities.get(id as usize)?, id))
        });
        let mut after_unknown = false;
        for symbol in symbols {
            match symbol.id {
                Symbol::UNKNOWN => {
                    after_unknown = self.byte_ids.spell(bytes_of(symbol), unknown, after_unknown, ids)?
                }
                id => {
                    ids.push(id);
                    after_unknown = false;
                }
            }
        }
        Ok(())
    }
}

/// A number that orders scores the other way round: the highest score gets the lowest.
fn priority(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits() as i32; // + 0.0 makes both zeros one
    // Flips the magnitude of negative numbers, so that integers compare as the numbers do.
    let ascending = bits ^ (((bits >> 31) as u32) >> 1) as i32;
    !(ascending as u32 ^ 0x8000_0000)
}

/// The tokens of single bytes, with which a text is spelled that has no tokens of its own.
pub(crate) struct ByteIds([u32; 256]);

impl ByteIds {
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let mut ids = [Symbol::UNKNOWN; 256];
        for (id, bytes, kind) in vocabulary.iter() {
            if let (&[byte], Kind::Byte) = (bytes, kind) {
                ids[byte as usize] = id;
            }
        }
        Self(ids)
    }

    /// Ordinary tokens of one byte each.
    pub fn spelled(vocabulary: &Vocabulary) -> Self {
        Self(std::array::from_fn(|byte| vocabulary.find(&[byte as u8]).unwrap_or(Symbol::UNKNOWN)))
    }

    /// The token of a byte, if there is one.
    pub fn get(&self, byte: u8) -> Option<u32> {
        Some(self.0[byte as usize]).filter(|&id| id != Symbol::UNKNOWN)
    }

    /// Appends a token for each byte or, if they do not all exist, the unknown token unless it was the last. Says
    /// whether it was the unknown token.
    pub fn spell(
        &self,
        bytes: &[u8],
        unknown: Option<u32>,
        after_unknown: bool,
        ids: &mut Vec<u32>,
    ) -> Result<bool, TokenizerError> {
        if bytes.iter().all(|&byte| self.0[byte as usize] != Symbol::UNKNOWN) {
            ids.extend(bytes.iter().map(|&byte| self.0[byte as usize]));
            return Ok(false);
        }
        let unknown = unknown.ok_or_else(|| {
            TokenizerError::Encode(format!(
                "the vocabulary has no token for {:?} and no unknown token",
                String::from_utf8_lossy(bytes)
            ))
        })?;
        if !after_unknown {
            ids.push(unknown);
        }
        Ok(true)
    }
}
