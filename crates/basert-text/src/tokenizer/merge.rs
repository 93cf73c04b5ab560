//! Merging of adjacent symbols, the step that byte pair encoding and SentencePiece's variant of it share: repeatedly
//! merge the best pair, leftmost first, until none is left.
//!
//! A heap holds the candidates, so that any text of n symbols takes O(n log n).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A stretch of the text: one character or byte at first, one token in the end.
#[derive(Clone, Copy)]
pub(crate) struct Symbol {
    /// The token, or [`Symbol::UNKNOWN`] for a character without one.
    pub id: u32,
    /// Where it starts in the text, in bytes.
    pub start: usize,
    /// Its length in bytes; 0 once it has been merged into its left neighbour.
    pub len: u32,
    previous: usize,
    next: usize,
}

impl Symbol {
    /// The id of a symbol that is no token.
    pub const UNKNOWN: u32 = u32::MAX;
    const NONE: usize = usize::MAX;
}

/// A pair that may be merged; ordered so that the smallest is the one to merge next.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: usize,
    merged_len: u32,
    merged_id: u32,
}

/// The symbols of one text and the buffers to merge them with, reused from text to text.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the last text.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.candidates.clear();
    }

    /// Appends a symbol to the right of those pushed before.
    pub fn push(&mut self, id: u32, start: usize, len: u32) {
        let here = self.symbols.len();
        if let Some(last) = self.symbols.last_mut() {
            last.next = here;
        }
        let previous = here.checked_sub(1).unwrap_or(Symbol::NONE);
        self.symbols.push(Symbol { id, start, len, previous, next: Symbol::NONE });
    }

    /// Merges until no pair is left that `rule` accepts, and yields the remaining symbols from left to right.
    ///
    /// `rule(left, right)` is the priority (0 first) and the token of the merged pair.
    pub fn run(&mut self, rule: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) -> impl Iterator<Item = &Symbol> {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, &rule);
        }
        while let Some(Reverse(candidate)) = self.candidates.pop() {
            let left = self.symbols[candidate.left];
            if left.len == 0 || left.next == Symbol::NONE {
                continue;
            }
            let right = self.symbols[left.next];
            if left.len + right.len != candidate.merged_len {
                continue; // one of the two has been merged with another neighbour in the meantime
            }
            self.symbols[left.next].len = 0;
            if right.next != Symbol::NONE {
                self.symbols[right.next].previous = candidate.left;
            }
            let merged = &mut self.symbols[candidate.left];
            (merged.id, merged.len, merged.next) = (candidate.merged_id, candidate.merged_len, right.next);
            if left.previous != Symbol::NONE {
                self.consider(left.previous, &rule);
            }
            self.consider(candidate.left, &rule);
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    /// Adds the pair that begins at `left` to the candidates, if it is one.
    fn consider(&mut self, left: usize, rule: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let first = &self.symbols[left];
        let Some(second) = self.symbols.get(first.next) else { return };
        if let Some((priority, merged_id)) = rule(first, second) {
            let merged_len = first.len + second.len;
            self.candidates.push(Reverse(Candidate { priority, left, merged_len, merged_id }));
        }
    }
}
