//! The vocabulary: the bytes and the kind of every token.
//!
//! All bytes lie one after the other in a single arena; an id is found from its bytes through a hash table that holds
//! only ids. A quarter of a million tokens take about six megabytes and a few milliseconds to build.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use crate::TokenizerError;

/// The longest token accepted, in bytes. The longest in published vocabularies are runs of a few hundred spaces.
const LONGEST_TOKEN: usize = 4096;

/// What a token is for; the numbers are those of GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for what the vocabulary cannot spell.
    Unknown = 2,
    /// Structure, not text: `<bos>`, `<|im_end|>`. Invisible in decoded text when special tokens are skipped.
    Control = 3,
    /// Text that is always one token, wherever it occurs.
    UserDefined = 4,
    /// A reserved place.
    Unused = 5,
    /// One byte, for text that has no token of its own.
    Byte = 6,
}

impl Kind {
    /// The kind of a number, where it is one that is defined.
    pub fn from_gguf(number: i32) -> Option<Self> {
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte]
            .into_iter()
            .find(|&kind| kind as i32 == number)
    }

    /// Whether the token is structure rather than text.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }

    /// Whether merging may produce the token. Control tokens are only ever matched whole.
    fn is_spelled(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

/// Ids, their bytes and their kinds.
#[derive(Default)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    by_bytes: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest: usize,
}

impl Vocabulary {
    /// Appends the token with the next id.
    pub fn push(&mut self, bytes: &[u8], kind: Kind) -> Result<(), TokenizerError> {
        let id = self.len();
        if bytes.len() > LONGEST_TOKEN {
            return Err(TokenizerError::field(
                format!("token {id}"),
                format!("{} bytes long", bytes.len()),
                format!("at most {LONGEST_TOKEN}"),
            ));
        }
        if kind.is_spelled() {
            self.longest = self.longest.max(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| TokenizerError::field(format!("token {id}"), "past 4 GiB of text", "a smaller vocabulary"))?;
        self.ends.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    /// Makes [`Vocabulary::find`] work for the tokens that a text spells, once all are pushed.
    ///
    /// If several tokens have the same bytes, an ordinary one is preferred to a user-defined one, which is matched before
    /// the text is split, and to one of `as_themselves` (ids in ascending order), which does not follow the file's
    /// spelling, so that merges never produce it. Among equals, the first is found.
    pub fn index(&mut self, as_themselves: &[u32]) {
        let mut by_bytes = HashTable::with_capacity(self.len());
        let hash = |id: &u32| self.hasher.hash_one(self.get(*id).unwrap_or_default());
        let choice = |id: u32| match self.kind(id) {
            Kind::Normal => usize::from(as_themselves.binary_search(&id).is_ok()),
            _ => 2,
        };
        for turn in 0..3 {
            for id in 0..self.len() as u32 {
                let bytes = self.get(id).unwrap_or_default();
                if !bytes.is_empty() && self.kind(id).is_spelled() && choice(id) == turn {
                    let same = |other: &u32| self.get(*other) == Some(bytes);
                    if let Entry::Vacant(place) = by_bytes.entry(self.hasher.hash_one(bytes), same, hash) {
                        place.insert(id);
                    }
                }
            }
        }
        self.by_bytes = by_bytes;
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; `None` if there is no such id.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// The token's kind; ids outside the vocabulary count as unused.
    pub fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    /// The id of the token that a text spells exactly so.
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        self.by_bytes.find(self.hasher.hash_one(bytes), |&id| self.get(id) == Some(bytes)).copied()
    }

    /// Every id with its bytes and kind, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8], Kind)> {
        (0..self.len() as u32).map(|id| (id, self.get(id).unwrap_or_default(), self.kind(id)))
    }
}
