//! The pools of the KV cache's pages, with reference counts, and which pages a sequence needs.

use std::ops::Range;

use basert_plan::{PageGroup, Reach, StepState};

/// No page: what a page table has where pages were given back.
pub(crate) const NONE: u32 = StepState::NONE;

/// The pages of the layers that see equally far back.
#[derive(Debug)]
pub(crate) struct Group {
    pub reach: Reach,
    pub pool: PagePool,
    /// Bytes of a page.
    pub bytes: usize,
}

impl Group {
    /// The pages that a sequence needs to go on from `position`, as indices into its table.
    pub fn needed(&self, position: usize, page_tokens: usize) -> Range<usize> {
        PageGroup::needed(self.reach, position, page_tokens)
    }

    /// Adds a user to a page, if it is one.
    pub fn share(&mut self, page: u32) {
        if page != NONE {
            self.pool.share(page);
        }
    }

    /// Removes a user of a page, if it is one.
    pub fn release(&mut self, page: u32) {
        if page != NONE {
            self.pool.release(page);
        }
    }
}

/// The largest number of tokens, at most `length`, after which a sequence can go on: every page that its next tokens see
/// is there. `has` says whether the page at an index into the table of a group is.
pub(crate) fn reusable(
    groups: &[Group],
    page_tokens: usize,
    mut length: usize,
    has: impl Fn(usize, usize) -> bool,
) -> usize {
    let missing = |length| {
        let groups = groups.iter().enumerate();
        groups.filter_map(|(number, group)| group.needed(length, page_tokens).find(|&i| !has(number, i))).min()
    };
    // Who goes on from a later token of that page, or of a page after it that needs it, needs it as well.
    while let Some(page) = missing(length) {
        length = page * page_tokens;
    }
    length
}

/// The pages of a group.
#[derive(Debug)]
pub struct PagePool {
    uses: Vec<u32>,
    free: Vec<u32>,
    memory: Vec<Memory>,
}

/// The memory of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// The system's.
    Returned,
    /// Used since the last look for pages that nobody needs.
    Used,
    /// Free at the last look, and since then.
    Rested,
}

impl PagePool {
    /// A pool of `pages` free pages.
    pub fn new(pages: usize) -> PagePool {
        // Pages are popped from the end: low numbers first, so that unneeded memory is never touched.
        PagePool {
            uses: vec![0; pages],
            free: (0..pages as u32).rev().collect(),
            memory: vec![Memory::Returned; pages],
        }
    }

    /// The number of free pages.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// The number of all pages.
    pub fn total(&self) -> usize {
        self.uses.len()
    }

    /// Takes a free page, which then has one user.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.uses[page as usize] = 1;
        self.memory[page as usize] = Memory::Used;
        Some(page)
    }

    /// Adds a user to a page in use.
    pub fn share(&mut self, page: u32) {
        self.uses[page as usize] += 1;
    }

    /// Removes a user of a page; removing the last one frees it.
    pub fn release(&mut self, page: u32) {
        let uses = &mut self.uses[page as usize];
        *uses = uses.saturating_sub(1);
        if *uses == 0 {
            self.free.push(page);
        }
    }

    /// Whether a free page has memory that was not returned to the system.
    pub fn has_unreturned(&self) -> bool {
        self.free.iter().any(|&page| self.memory[page as usize] != Memory::Returned)
    }

    /// Takes the pages that have been free since the last call, whose memory the caller must return to the system.
    pub fn take_rested(&mut self) -> Vec<u32> {
        let PagePool { free, memory, .. } = self;
        let mut rests = |&page: &u32| {
            let memory = &mut memory[page as usize];
            let has_rested = *memory == Memory::Rested;
            *memory = if *memory == Memory::Used { Memory::Rested } else { Memory::Returned };
            has_rested
        };
        free.iter().copied().filter(|page| rests(page)).collect()
    }

    /// Whether the page has more than one user.
    pub fn is_shared(&self, page: u32) -> bool {
        self.uses[page as usize] > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_goes_on_where_its_windows_are() {
        let group = |reach| Group { reach, pool: PagePool::new(0), bytes: 0 };
        let groups = [group(Reach::All), group(Reach::Window(6))];
        let goes_on = |length, kept: &[usize]| {
            reusable(&groups, 4, length, |group, page| if group == 0 { page < 7 } else { kept.contains(&page) })
        };
        assert_eq!(goes_on(26, &[5, 6]), 26);
        assert_eq!(goes_on(24, &[5, 6]), 0, "the token at 24 sees that at 19");
        assert_eq!(goes_on(26, &[4, 5]), 24);
        assert_eq!(goes_on(26, &[1, 2, 4, 6]), 12, "page 3 is missing");
        assert_eq!(goes_on(5, &[0, 1]), 5);
        assert_eq!(goes_on(40, &[4, 5, 6]), 28, "no layer has more");
        assert_eq!(goes_on(26, &[]), 0);
    }

    #[test]
    fn a_page_is_free_when_its_last_user_leaves() {
        let mut pool = PagePool::new(2);
        let page = pool.take().unwrap();
        assert_eq!(page, 0);
        pool.share(page);
        assert!(pool.is_shared(page));
        pool.release(page);
        assert_eq!((pool.available(), pool.is_shared(page)), (1, false));
        pool.release(page);
        assert_eq!(pool.available(), 2);
        assert!(pool.take().is_some() && pool.take().is_some() && pool.take().is_none());
    }

    #[test]
    fn memory_of_pages_that_stay_free_is_given_back_once() {
        let mut pool = PagePool::new(4);
        let pages = [pool.take().unwrap(), pool.take().unwrap()];
        assert_eq!((pool.has_unreturned(), pool.take_rested(), pool.take_rested()), (false, vec![], vec![]));
        pool.release(pages[0]);
        // What is used again and again is not given back.
        for _ in 0..3 {
            assert_eq!((pool.has_unreturned(), pool.take_rested()), (true, vec![]));
            let page = pool.take().unwrap();
            assert_eq!(page, pages[0]);
            pool.release(page);
        }
        assert_eq!((pool.take_rested(), pool.has_unreturned()), (vec![], true));
        assert_eq!((pool.take_rested(), pool.has_unreturned()), (vec![pages[0]], false));
        assert_eq!(pool.take_rested(), Vec::<u32>::new());
    }
}
