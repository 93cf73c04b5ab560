//! Tokens that a text begins with.

use super::vocabulary::{Kind, Vocabulary};

/// The tokens that text may be cut into, in the order of their bytes: those that share a prefix are neighbours.
pub(super) struct Prefixes(Vec<u32>);

impl Prefixes {
    /// All tokens but control tokens, which plain text never becomes, and those of bytes.
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let is_text = |kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let mut sorted: Vec<u32> = (0..vocabulary.len() as u32).filter(|&id| is_text(vocabulary.kind(id))).collect();
        sorted.sort_by_key(|&id| vocabulary.get(id));
        Self(sorted)
    }

    /// Every token that `text` begins with: its length and id, the shortest first.
    pub fn of(&self, vocabulary: &Vocabulary, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        let byte_at = |id: u32, at: usize| vocabulary.get(id).and_then(|bytes| bytes.get(at)).copied();
        let mut candidates = self.0.as_slice();
        text.iter()
            .enumerate()
            .map_while(move |(at, &byte)| {
                let from = candidates.partition_point(|&id| byte_at(id, at) < Some(byte));
                let to = candidates.partition_point(|&id| byte_at(id, at) <= Some(byte));
                candidates = &candidates[from..to];
                let &first = candidates.first()?;
                let len = at + 1;
                Some((vocabulary.get(first).map(<[u8]>::len) == Some(len)).then_some((len, first)))
            })
            .flatten()
    }
}
