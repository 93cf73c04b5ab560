//! Byte pair encoding: GPT-2's, and that of most models since.
//!
//! A pre-tokenizer splits the text into words, each word is split into bytes, and the bytes are merged in the order in
//! which the merges were learned. Published vocabularies write each byte as a printable character (`Ġ` is a space); here
//! tokens are stored as bytes, and texts need no rewriting. Other vocabularies (Gemma's) start from characters instead of
//! bytes, and fall back to byte tokens for a character that has no token.

use std::borrow::Cow;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::merge::{Merger, Symbol};
use super::pretokenizer::Pretokenizer;
use super::sentence_piece::{ByteIds, SPACE_MARK};
use super::vocabulary::Vocabulary;

/// How a file writes the bytes of an ordinary token, and thus what a word is split into before merging.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One printable character for each byte.
    ByteCharacters,
    /// As text, but a space is `▁`.
    SpaceMarks,
    /// As text.
    Plain,
    /// As Python writes bytes: `\xe3`, `\n`.
    Escapes,
}

impl Spelling {
    /// Appends the bytes of a token. Returns false if the token does not follow this spelling; its bytes are then its text.
    pub fn append(self, token: &str, bytes: &mut Vec<u8>) -> bool {
        match self {
            Self::ByteCharacters => append_bytes_of(token, bytes),
            Self::SpaceMarks => {
                for (index, word) in token.split(SPACE_MARK).enumerate() {
                    if index > 0 {
                        bytes.push(b' ');
                    }
                    bytes.extend_from_slice(word.as_bytes());
                }
                !token.contains(' ')
            }
            Self::Plain => {
                bytes.extend_from_slice(token.as_bytes());
                true
            }
            Self::Escapes => append_unescaped(token, bytes),
        }
    }
}

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
    spelling: Spelling,
    byte_ids: ByteIds,
    lowercase: bool,
}

impl BytePair {
    /// Reads merges of the form `left right`, in the order of their rank. Merges of strings that are not tokens can never
    /// apply: they are skipped, with a warning.
    pub fn new<'a>(
        vocabulary: &Vocabulary,
        pretokenizer: Pretokenizer,
        merges: impl Iterator<Item = &'a [u8]>,
        lowercase: bool,
        field: &str,
    ) -> Self {
        let spelling = pretokenizer.spelling();
        let byte_ids = match spelling {
            Spelling::ByteCharacters => ByteIds::spelled(vocabulary),
            _ => ByteIds::new(vocabulary),
        };
        let mut model = Self {
            pretokenizer,
            merges: Vec::with_capacity(vocabulary.len()), // most tokens are made by one merge
            ranks: HashTable::with_capacity(vocabulary.len()),
            hasher: Default::default(),
            spelling,
            byte_ids,
            lowercase,
        };
        let mut pair = Vec::new();
        let (mut unknown, mut example) = (0usize, None);
        for merge in merges {
            if model.add(vocabulary, merge, &mut pair).is_none() {
                unknown += 1;
                example.get_or_insert(merge);
            }
        }
        if let Some(merge) = example {
            let merge = String::from_utf8_lossy(merge);
            tracing::warn!("{field}: {unknown} merges, such as {merge:?}, are not of tokens; they are left out");
        }
        model
    }

    /// Adds a merge, if its two parts and their concatenation are tokens.
    fn add(&mut self, vocabulary: &Vocabulary, merge: &[u8], pair: &mut Vec<u8>) -> Option<()> {
        let (left, right) = std::str::from_utf8(merge).ok()?.split_once(' ')?;
        pair.clear();
        self.spelling.append(left, pair);
        let middle = pair.len();
        self.spelling.append(right, pair);
        let (left, right) = (vocabulary.find(&pair[..middle])?, vocabulary.find(&pair[middle..])?);
        let merged = vocabulary.find(pair)?;
        let rank = u32::try_from(self.merges.len()).ok()?;
        self.merges.push(Merge { left, right, merged });
        let Self { merges, ranks, hasher, .. } = self;
        let hash = |&rank: &u32| hasher.hash_one((merges[rank as usize].left, merges[rank as usize].right));
        let is_same = |&rank: &u32| merges[rank as usize].left == left && merges[rank as usize].right == right;
        // If a merge is listed twice, its first rank counts.
        ranks.entry(hash(&rank), is_same, hash).or_insert(rank);
        Some(())
    }

    /// Appends the ids of `text` to `ids`. Text without a token, not even for its bytes, becomes the unknown token or, if
    /// there is none, nothing, as in the reference library.
    pub fn encode(&self, vocabulary: &Vocabulary, unknown: Option<u32>, text: &str, ids: &mut Vec<u32>) {
        let text = if self.pretokenizer.composes() { super::pretokenizer::compose(text) } else { Cow::Borrowed(text) };
        let text = if self.lowercase { Cow::Owned(text.to_lowercase()) } else { text };
        let mut merger = Merger::default();
        self.pretokenizer.split(&text, &mut |word| {
            if self.pretokenizer.keeps_whole_words()
                && let Some(id) = vocabulary.find(word.as_bytes())
            {
                ids.push(id);
                return;
            }
            merger.clear();
            match self.spelling {
                Spelling::ByteCharacters => {
                    for (at, &byte) in word.as_bytes().iter().enumerate() {
                        if let Some(id) = self.byte_ids.get(byte) {
                            merger.push(id, at, 1);
                        }
                    }
                }
                _ => {
                    for (at, character) in word.char_indices() {
                        let len = character.len_utf8();
                        let id = vocabulary.find(&word.as_bytes()[at..at + len]).unwrap_or(Symbol::UNKNOWN);
                        merger.push(id, at, len as u32);
                    }
                }
            }
            let mut after_unknown = false;
            for symbol in merger.run(|left, right| self.find(left.id, right.id)) {
                if symbol.id == Symbol::UNKNOWN {
                    let bytes = &word.as_bytes()[symbol.start..symbol.start + symbol.len as usize];
                    after_unknown = self.byte_ids.spell(bytes, unknown, after_unknown, ids).unwrap_or(after_unknown);
                } else {
                    ids.push(symbol.id);
                    after_unknown = false;
                }
            }
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

/// Appends the bytes of a token written in GPT-2's printable characters. Returns false if it has any other character;
/// its bytes are then its text.
pub(crate) fn append_bytes_of(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for character in token.chars() {
        match BYTE_OF.get(character as usize) {
            Some(&byte) if byte != NO_BYTE => bytes.push(byte as u8),
            _ => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return false;
            }
        }
    }
    true
}

/// Appends the bytes of a token written like a Python bytes literal. Returns false if an escape is invalid; its bytes
/// are then its text.
fn append_unescaped(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    let mut rest = token;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        match c {
            't' => bytes.push(b'\t'),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            'x' => match rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &rest[2..];
                }
                None => {
                    bytes.truncate(start);
                    bytes.extend_from_slice(token.as_bytes());
                    return false;
                }
            },
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    true
}

const NO_BYTE: u16 = u16::MAX;

/// The byte that a character represents. Printable Latin-1 characters represent themselves; the remaining bytes, in
/// order, are written as the characters from U+0100.
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
