//! Byte-level byte pair encoding: GPT-2's, and that of most models since.
//!
//! A text is cut into words by a pre-tokenizer, a word into bytes, and the bytes are merged in the order in which the
//! merges were learned. Published vocabularies write each byte as a printable character (`Ġ` is a space); here tokens
//! are kept as the bytes themselves and texts need no rewriting.

use std::borrow::Cow;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::merge::{Merger, Symbol};
use super::pretokenizer::Pretokenizer;
use super::vocabulary::Vocabulary;
use crate::TokenizerError;

/// One learned merge; its place in the list is its rank.
struct Merge {
    left: u32,
    right: u32,
    merged: u32,
}

/// Merges and the pre-tokenizer that goes with them.
pub(crate) struct BytePair {
    pretokenizer: Pretokenizer,
    merges: Vec<Merge>,
    ranks: HashTable<u32>,
    hasher: DefaultHashBuilder,
    byte_ids: [u32; 256],
}

impl BytePair {
    /// Reads merges of the form `left right`, in the order of their rank.
    pub fn new<'a>(
        vocabulary: &Vocabulary,
        pretokenizer: Pretokenizer,
        merges: impl Iterator<Item = &'a [u8]>,
        field: &str,
    ) -> Result<Self, TokenizerError> {
        let byte_ids = std::array::from_fn(|byte| vocabulary.find(&[byte as u8]).unwrap_or(Symbol::UNKNOWN));
        let mut model = Self {
            pretokenizer,
            merges: Vec::with_capacity(vocabulary.len()), // most tokens are made by one merge
            ranks: HashTable::with_capacity(vocabulary.len()),
            hasher: Default::default(),
            byte_ids,
        };
        let mut pair = Vec::new();
        for (rank, merge) in merges.enumerate() {
            model.add(vocabulary, merge, &mut pair).map_err(|found| {
                let text = String::from_utf8_lossy(merge);
                TokenizerError::field(
                    field,
                    format!("merge {rank} is {text:?}, and {found}"),
                    "two tokens of the vocabulary whose concatenation is a token, with a space between",
                )
            })?;
        }
        Ok(model)
    }

    fn add(&mut self, vocabulary: &Vocabulary, merge: &[u8], pair: &mut Vec<u8>) -> Result<(), String> {
        let text = std::str::from_utf8(merge).map_err(|_| "that is not UTF-8".to_string())?;
        let (left, right) = text.split_once(' ').ok_or("there is no space in it")?;
        pair.clear();
        append_bytes_of(left, pair);
        let middle = pair.len();
        append_bytes_of(right, pair);
        let find = |bytes, name| vocabulary.find(bytes).ok_or_else(|| format!("{name:?} is not a token"));
        let (left, right) = (find(&pair[..middle], left)?, find(&pair[middle..], right)?);
        let merged = find(pair, "the concatenation")?;
        let rank = u32::try_from(self.merges.len()).map_err(|_| "there are too many merges".to_string())?;
        self.merges.push(Merge { left, right, merged });
        let Self { merges, ranks, hasher, .. } = self;
        let hash = |&rank: &u32| hasher.hash_one((merges[rank as usize].left, merges[rank as usize].right));
        let is_same = |&rank: &u32| merges[rank as usize].left == left && merges[rank as usize].right == right;
        // Of a merge that is listed twice the first rank counts.
        ranks.entry(hash(&rank), is_same, hash).or_insert(rank);
        Ok(())
    }

    /// Appends the ids of `text` to `ids`. A byte that is no token leaves nothing, as in the reference library.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, ids: &mut Vec<u32>) {
        let text = if self.pretokenizer.composes() { super::pretokenizer::compose(text) } else { Cow::Borrowed(text) };
        let mut merger = Merger::default();
        self.pretokenizer.split(&text, &mut |word| {
            if self.pretokenizer.keeps_whole_words()
                && let Some(id) = vocabulary.find(word.as_bytes())
            {
                ids.push(id);
                return;
            }
            merger.clear();
            for (at, &byte) in word.as_bytes().iter().enumerate() {
                match self.byte_ids[byte as usize] {
                    Symbol::UNKNOWN => {}
                    id => merger.push(id, at, 1),
                }
            }
            ids.extend(merger.run(|left, right| self.find(left.id, right.id)).map(|symbol| symbol.id));
        });
    }

    /// Rank and result of merging two tokens.
    fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let is_pair = |&rank: &u32| {
            let merge = &self.merges[rank as usize];
            merge.left == left && merge.right == right
        };
        let &rank = self.ranks.find(self.hasher.hash_one((left, right)), is_pair)?;
        Some((rank, self.merges[rank as usize].merged))
    }
}

/// Appends the bytes that a token stands for, given in GPT-2's printable characters. A text with any other character
/// stands for itself.
pub(crate) fn append_bytes_of(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        match BYTE_OF.get(character as usize) {
            Some(&byte) if byte != NO_BYTE => bytes.push(byte as u8),
            _ => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

const NO_BYTE: u16 = u16::MAX;

/// The byte that a character stands for. Printable Latin-1 characters stand for themselves; the other bytes, in order,
/// are written as the characters from U+0100.
const BYTE_OF: [u16; 0x144] = {
    let mut table = [NO_BYTE; 0x144];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[byte] = byte as u16;
        } else {
            table[next] = byte as u16;
            next += 1;
        }
        byte += 1;
    }
    table
};
