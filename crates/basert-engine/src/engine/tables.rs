//! Page tables of sequences: which pages they need, take and give back.
//!
//! A sequence has a table for each page group, all equally long and indexed by position. A layer with a window does not
//! see what is far behind, so its group gives those pages back before each step: to the prefix cache, where they stay
//! until the room is needed. Nothing is given back that tokens not computed yet will see, nor what those of the last page
//! saw: tokens that are taken back, and steps that the device runs ahead, lie after the last computed token.

use basert_plan::PageGroup;

use super::{Engine, EngineError, PageUse, Sequence};
use crate::pages::{Group, NONE, reusable};
use crate::prefix::PrefixTree;

impl Engine {
    /// Reserves pages that belong to the sequence alone for its next `count` tokens, and slots for its running states:
    /// after each token, if these tokens may be taken back.
    ///
    /// # Errors
    /// When there are not enough.
    pub fn reserve(&mut self, sequence: &mut Sequence, count: usize, may_rewind: bool) -> Result<(), EngineError> {
        self.reserve_pages(sequence, count)?;
        self.reserve_slots(sequence, count, may_rewind)
    }

    /// The same of pages alone.
    pub(super) fn reserve_pages(&mut self, sequence: &mut Sequence, count: usize) -> Result<(), EngineError> {
        self.part_with_unseen(sequence);
        let first = sequence.computed / self.page_tokens;
        let end = (sequence.computed + count).div_ceil(self.page_tokens);
        sequence.lengthen(self.groups.len(), end);
        for group in 0..self.groups.len() {
            self.own_page(sequence, group, first)?;
            for i in first..end {
                if sequence.tables[group][i] == NONE {
                    let page = self.take_page(group).ok_or_else(|| self.none_left(group))?;
                    sequence.tables[group][i] = page;
                }
            }
        }
        Ok(())
    }

    /// Makes a page of a sequence, if it has one there, one that it alone uses.
    fn own_page(&mut self, sequence: &mut Sequence, group: usize, i: usize) -> Result<(), EngineError> {
        let page = sequence.tables[group].get(i).copied().unwrap_or(NONE);
        if page == NONE || !self.groups[group].pool.is_shared(page) {
            return Ok(());
        }
        if let Some(own) = self.take_page(group) {
            if self.groups[group].bytes > 0 {
                self.baked.copy_page(group, page, own);
            }
            self.groups[group].release(page);
            sequence.tables[group][i] = own;
            return Ok(());
        }
        let (groups, slots) = (&mut self.groups, &mut self.slots.pool);
        let forgotten = self.cache.as_mut().is_some_and(|cache| cache.forget(group, page, groups, slots));
        if forgotten && !self.groups[group].pool.is_shared(page) { Ok(()) } else { Err(self.none_left(group)) }
    }

    fn none_left(&self, group: usize) -> EngineError {
        EngineError::OutOfPages { pages: self.groups[group].pool.total() }
    }

    /// Takes a free page, for which a cached one may be evicted.
    fn take_page(&mut self, group: usize) -> Option<u32> {
        if self.groups[group].pool.available() == 0
            && let Some(cache) = &mut self.cache
        {
            cache.evict(group, &mut self.groups, &mut self.slots.pool);
        }
        self.groups[group].pool.take()
    }

    /// Gives pages back that the sequence does not need any more.
    fn part_with_unseen(&mut self, sequence: &mut Sequence) {
        let from = sequence.computed.saturating_sub(self.page_tokens);
        let needed = self.groups.iter().map(|group| group.needed(from, self.page_tokens).start);
        let unseen: Vec<usize> = needed.zip(&sequence.tables).map(|(start, table)| start.min(table.len())).collect();
        let is_held = |(table, &end): (&Vec<u32>, &usize)| table[..end].iter().any(|&page| page != NONE);
        if !sequence.tables.iter().zip(&unseen).any(is_held) {
            return;
        }
        self.publish(sequence);
        for ((table, end), group) in sequence.tables.iter_mut().zip(unseen).zip(&mut self.groups) {
            table[..end].iter_mut().for_each(|page| group.release(std::mem::replace(page, NONE)));
        }
    }

    /// Frees the pages of a sequence from index `from` on.
    pub(super) fn release_pages(&mut self, sequence: &mut Sequence, from: usize) {
        for (table, group) in sequence.tables.iter_mut().zip(&mut self.groups) {
            table.drain(from.min(table.len())..).for_each(|page| group.release(page));
        }
    }

    /// The most tokens, at most `length`, after which the sequence can go on with the pages that it has.
    pub(super) fn reusable(&self, sequence: &Sequence, length: usize) -> usize {
        let has = |group: usize, i: usize| sequence.page(group, i) != NONE;
        reusable(&self.groups, self.page_tokens, length, has)
    }

    /// Reserves pages for steps that the device may run ahead, of up to `tokens` tokens, as long as there are plenty.
    pub(super) fn reserve_ahead(&mut self, sequence: &mut Sequence, tokens: usize) {
        let last = (sequence.computed + tokens).min(self.context).div_ceil(self.page_tokens);
        let plenty =
            |engine: &Engine| engine.groups.iter().all(|group| group.pool.available() > group.pool.total() / 8);
        while sequence.table_len() < last && plenty(self) {
            let i = sequence.table_len();
            sequence.lengthen(self.groups.len(), i + 1);
            for (table, group) in sequence.tables.iter_mut().zip(&mut self.groups) {
                table[i] = group.pool.take().unwrap_or(NONE);
            }
        }
    }

    /// Whether the sequence has pages for its next `tokens` tokens.
    pub(super) fn has_pages(&self, sequence: &Sequence, tokens: usize) -> bool {
        let end = sequence.computed + tokens;
        let mut pages = sequence.computed / self.page_tokens..end.div_ceil(self.page_tokens);
        end <= self.context && pages.all(|i| (0..self.groups.len()).all(|group| sequence.page(group, i) != NONE))
    }

    /// How many more tokens the sequence can compute, and take back, without evictions, if a page and a slot are left to
    /// each of `others`.
    pub fn free_tokens(&self, sequence: &Sequence, others: usize) -> usize {
        let pages = |group: usize| {
            let own = (sequence.computed / self.page_tokens..).take_while(|&i| sequence.page(group, i) != NONE).count();
            own + self.groups[group].pool.available().saturating_sub(others)
        };
        let pages = (0..self.groups.len()).map(pages).min().unwrap_or(0);
        let before = sequence.computed % self.page_tokens;
        let tokens = (pages * self.page_tokens).saturating_sub(before);
        if self.has_states() { tokens.min(self.slots.pool.available().saturating_sub(others)) } else { tokens }
    }

    /// The most pages of a group that a sequence of so many tokens, of which so many are not computed, holds at once.
    fn most_pages(&self, group: usize, tokens: usize, lacking: usize) -> usize {
        PageGroup::most(self.groups[group].reach, tokens, lacking.min(self.limits.tokens), self.page_tokens)
    }

    /// Whether the KV cache is large enough to compute the sequence to its end.
    pub fn fits(&self, sequence: &Sequence) -> Result<(), EngineError> {
        let tokens = sequence.tokens.len();
        let beyond = |&group: &usize| self.most_pages(group, tokens, tokens) > self.groups[group].pool.total();
        (0..self.groups.len()).find(beyond).map_or(Ok(()), |group| Err(self.none_left(group)))
    }

    /// Whether there are pages, free or in the prefix cache alone, to compute all these sequences to their ends, and so
    /// many more for each.
    pub fn has_room<'s>(&self, sequences: impl Iterator<Item = (&'s Sequence, usize)> + Clone) -> bool {
        (0..self.groups.len()).all(|group| {
            let lacking = |(sequence, more): (&Sequence, usize)| {
                let held = (0..sequence.table_len()).filter(|&i| sequence.page(group, i) != NONE).count();
                let tokens = sequence.tokens.len();
                self.most_pages(group, tokens, tokens - sequence.computed).saturating_sub(held) + more
            };
            let evictable = self.cache.as_ref().map_or(0, |cache| cache.evictable(group, &self.groups));
            sequences.clone().map(lacking).sum::<usize>() <= self.groups[group].pool.available() + evictable
        })
    }

    /// Bytes of the KV cache of one sequence of full context.
    pub fn context_bytes(&self) -> usize {
        let groups = self.groups.iter().enumerate();
        groups.map(|(number, group)| self.most_pages(number, self.context, self.context) * group.bytes).sum()
    }

    /// The use of the pages of all groups.
    pub fn page_use(&self) -> PageUse {
        let (mut total, mut free, mut cached) = (0, 0, 0);
        for (number, group) in self.groups.iter().enumerate() {
            total += group.pool.total();
            free += group.pool.available();
            cached += self.cache.as_ref().map_or(0, |cache| cache.alone(number, &self.groups));
        }
        PageUse { total, held: total - free - cached, cached }
    }

    /// Pages of all groups that are free or can be evicted from the prefix cache.
    pub fn available_pages(&self) -> usize {
        let of_group = |number: usize| {
            let evictable = self.cache.as_ref().map_or(0, |cache| cache.evictable(number, &self.groups));
            self.groups[number].pool.available() + evictable
        };
        (0..self.groups.len()).map(of_group).sum()
    }

    /// Evicts what the prefix cache alone holds beyond its limit.
    pub(super) fn bound_prefixes(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        let bytes = |cache: &PrefixTree, groups: &[Group]| {
            let of_group = |(number, group): (usize, &Group)| cache.alone(number, groups) * group.bytes;
            groups.iter().enumerate().map(of_group).sum::<usize>()
        };
        while bytes(cache, &self.groups) > self.most_prefix_bytes {
            if !cache.evict_any(&mut self.groups, &mut self.slots.pool) {
                return;
            }
        }
    }

    /// Whether there is memory to [return to the system](Engine::give_back).
    pub fn can_give_back(&self) -> bool {
        self.groups.iter().any(|group| group.pool.has_unreturned())
    }

    /// Returns the memory of pages that have been free since the last call to the system, if the device supports this; it
    /// is allocated again when they are used.
    pub fn give_back(&mut self) {
        for (number, group) in self.groups.iter_mut().enumerate() {
            for page in group.pool.take_rested() {
                self.baked.discard_page(number, page);
            }
        }
    }
}

impl Sequence {
    /// The page of a group at an index into its table.
    pub(super) fn page(&self, group: usize, i: usize) -> u32 {
        self.tables.get(group).and_then(|table| table.get(i)).copied().unwrap_or(NONE)
    }

    /// The length of its page tables.
    pub(super) fn table_len(&self) -> usize {
        self.tables.first().map_or(0, Vec::len)
    }

    /// Makes page tables, one of each group, at least this long.
    fn lengthen(&mut self, groups: usize, length: usize) {
        self.tables.resize(groups, Vec::new());
        for table in &mut self.tables {
            table.resize(length.max(table.len()), NONE);
        }
    }
}
