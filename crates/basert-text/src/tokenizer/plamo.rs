//! PLaMo 2's tokenization: of all ways to cut the text into tokens, the one whose scores add up to the most; characters
//! without a token are spelled in bytes.

use super::prefixes::Prefixes;
use super::sentence_piece::ByteIds;
use super::vocabulary::Vocabulary;
use crate::TokenizerError;

/// The score of a character that is spelled in bytes, in units of 1e-4.
const UNKNOWN: i64 = -10_000_000;

/// Tokens with their scores.
pub(crate) struct Plamo {
    prefixes: Prefixes,
    /// In units of 1e-4.
    scores: Vec<i64>,
    byte_ids: ByteIds,
}

/// The best way from a place in the text to its end.
#[derive(Clone, Copy)]
struct Best {
    score: i64,
    len: usize,
    id: Option<u32>,
}

impl Plamo {
    /// `scores` by id are logarithms of probabilities.
    pub fn new(vocabulary: &Vocabulary, scores: &[f32]) -> Self {
        let scores = scores.iter().map(|score| (score * 1e4).round() as i64).collect();
        Self { prefixes: Prefixes::new(vocabulary), scores, byte_ids: ByteIds::new(vocabulary) }
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        let mut best = vec![Best { score: 0, len: 0, id: None }; text.len() + 1];
        for (start, character) in text.char_indices().rev() {
            let len = character.len_utf8();
            let mut here = Best { score: best[start + len].score + UNKNOWN, len, id: None };
            for (len, id) in self.prefixes.of(vocabulary, &text.as_bytes()[start..]) {
                let score = best[start + len].score + self.scores[id as usize];
                // Of equal ones the longest token is chosen.
                if score >= here.score {
                    here = Best { score, len, id: Some(id) };
                }
            }
            best[start] = here;
        }
        let (mut at, mut after_unknown) = (0, false);
        while at < text.len() {
            let Best { len, id, .. } = best[at];
            match id {
                Some(id) => {
                    ids.push(id);
                    after_unknown = false;
                }
                None => {
                    let bytes = &text.as_bytes()[at..at + len];
                    after_unknown = self.byte_ids.spell(bytes, unknown, after_unknown, ids)?;
                }
            }
            at += len;
        }
        Ok(())
    }
}
