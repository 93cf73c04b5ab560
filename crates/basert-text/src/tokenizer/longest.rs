//! Greedy tokenization (RWKV World): the longest token that the text begins with, again and again.

use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use crate::TokenizerError;

/// The tokens to choose from.
pub(crate) struct Longest(Prefixes);

impl Longest {
    pub fn new(vocabulary: &Vocabulary) -> Self {
        Self(Prefixes::new(vocabulary))
    }

    /// Appends the ids of `text` to `ids`.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        unknown: Option<u32>,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut rest = text.as_bytes();
        while let Some(&byte) = rest.first() {
            let longest = self.0.of(vocabulary, rest).last().or(unknown.map(|id| (1, id)));
            let Some((len, id)) = longest else {
                let reason = format!("the vocabulary has no token for the byte {byte:#04x} and no unknown token");
                return Err(TokenizerError::Encode(reason));
            };
            ids.push(id);
            rest = &rest[len..];
        }
        Ok(())
    }
}
