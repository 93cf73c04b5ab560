//! Streaming detokenisation: ids to text, one token at a time.

use std::ops::Deref;

use crate::Tokenizer;

/// Turns a stream of ids into text, only in whole characters.
///
/// A token may end in the middle of a character; its bytes are held back until the character is complete, or invalid:
/// then they become U+FFFD. All calls together append what [`Tokenizer::decode`] returns for all ids.
///
/// `T` is any pointer to a tokenizer: `Detokenizer<&Tokenizer>`, `Detokenizer<Arc<Tokenizer>>`.
#[derive(Clone, Debug)]
pub struct Detokenizer<T> {
    tokenizer: T,
    skip_special: bool,
    /// Control tokens whose names are shown, sorted.
    shown: Vec<u32>,
    /// The next byte is the text's first, and a space in its place is the one that encoding puts there.
    drop_space: bool,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl<T: Deref<Target = Tokenizer>> Detokenizer<T> {
    /// A detokenizer at the beginning of a text.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        let drop_space = tokenizer.adds_space_prefix();
        Self { tokenizer, skip_special, shown: Vec::new(), drop_space, pending: Vec::new() }
    }

    /// A detokenizer for ids that continue others, such as an answer after its prompt: a space at the beginning is part
    /// of the text.
    pub fn continuing(tokenizer: T, skip_special: bool) -> Self {
        Self { drop_space: false, ..Self::new(tokenizer, skip_special) }
    }

    /// Includes the names of these control tokens in the text, such as [`Dialect::tokens`](crate::Dialect::tokens).
    pub fn showing(mut self, mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        self.shown = ids;
        self
    }

    /// Appends the text that is complete with this id.
    pub fn push(&mut self, id: u32, text: &mut String) {
        if self.skip_special && self.tokenizer.is_special(id) && self.shown.binary_search(&id).is_err() {
            return;
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if self.drop_space && !bytes.is_empty() {
            self.drop_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.pending.len();
            if invalid.is_empty() || (at_end && may_become_valid(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
    }

    /// Ends the text: bytes that are held back become U+FFFD.
    pub fn finish(mut self, text: &mut String) {
        if !std::mem::take(&mut self.pending).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Whether bytes that are not UTF-8 are the beginning of a character.
fn may_become_valid(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
