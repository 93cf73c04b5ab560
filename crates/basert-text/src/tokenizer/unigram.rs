//! Unigram tokenization (T5, XLM-R): of all ways to cut the text into tokens, the one whose scores add up to the most.

use super::charsmap::CharsMap;
use super::prefixes::Prefixes;
use super::sentence_piece::{ByteIds, SPACE_MARK};
use super::vocabulary::{Kind, Vocabulary};
use crate::TokenizerError;

/// How much worse than the worst token an unknown character is, in SentencePiece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// How white space is treated before the text is cut.
#[derive(Clone, Copy)]
pub(crate) struct WhiteSpace {
    /// Runs of spaces count as one, and those at the two ends as none.
    pub merge: bool,
    /// A space is put in front of the text or, with `suffix`, behind it.
    pub add: bool,
    /// Spaces belong to the word before them instead of the word after.
    pub suffix: bool,
}

/// Tokens with their scores.
pub(crate) struct Unigram {
    prefixes: Prefixes,
    scores: Vec<f32>,
    unknown_score: f64,
    byte_ids: ByteIds,
    charsmap: Option<CharsMap>,
    white_space: WhiteSpace,
}

/// The best way to reach a place in the text.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    id: Option<u32>,
}

impl Unigram {
    /// `scores` by id are logarithms of probabilities.
    pub fn new(vocabulary: &Vocabulary, scores: Vec<f32>, charsmap: Option<CharsMap>, white_space: WhiteSpace) -> Self {
        let normal = |&(_, _, kind): &(u32, &[u8], Kind)| kind == Kind::Normal;
        let worst = vocabulary.iter().filter(normal).map(|(id, ..)| scores[id as usize]).fold(f32::INFINITY, f32::min);
        let unknown_score = f64::from(worst) - UNKNOWN_PENALTY;
        let prefixes = Prefixes::new(vocabulary);
        Self { prefixes, scores, unknown_score, byte_ids: ByteIds::new(vocabulary), charsmap, white_space }
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = self.normalize(text);
        let mut best = vec![Best { score: f64::NEG_INFINITY, start: 0, id: None }; text.len() + 1];
        best[0].score = 0.0;
        for (start, character) in text.char_indices() {
            let score = best[start].score;
            let mut offer = |len: usize, id, more: f64| {
                let here = &mut best[start + len];
                if score + more > here.score {
                    *here = Best { score: score + more, start, id };
                }
            };
            let mut character_is_token = false;
            for (len, id) in self.prefixes.of(vocabulary, &text.as_bytes()[start..]) {
                character_is_token |= len == character.len_utf8();
                let is_user_defined = vocabulary.kind(id) == Kind::UserDefined;
                offer(len, Some(id), if is_user_defined { 0.0 } else { f64::from(self.scores[id as usize]) });
            }
            if !character_is_token {
                offer(character.len_utf8(), None, self.unknown_score);
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            pieces.push((start..end, id));
            end = start;
        }
        let mut after_unknown = false;
        for (range, id) in pieces.into_iter().rev() {
            match id {
                Some(id) => {
                    ids.push(id);
                    after_unknown = false;
                }
                None => {
                    let bytes = &text.as_bytes()[range];
                    after_unknown = self.byte_ids.spell(bytes, unknown, after_unknown, ids)?;
                }
            }
        }
        Ok(())
    }

    /// Replaces characters as the model's map says and treats white space.
    fn normalize(&self, text: &str) -> String {
        let mut text = self.charsmap.as_ref().map_or_else(|| text.to_string(), |map| map.apply(text));
        let WhiteSpace { merge, add, suffix } = self.white_space;
        if merge {
            text = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        }
        if add && !text.is_empty() {
            text.insert(if suffix { text.len() } else { 0 }, ' ');
        }
        text.replace(SPACE_MARK, " ")
    }
}
