//! The pool of the KV cache's pages, with reference counts.

/// The pages of a device's KV cache.
#[derive(Debug)]
pub struct PagePool {
    uses: Vec<u32>,
    free: Vec<u32>,
    /// Pages that were used since their memory was returned to the system.
    touched: Vec<bool>,
}

impl PagePool {
    /// A pool of `pages` free pages.
    pub fn new(pages: usize) -> PagePool {
        // Pages are popped from the end: low numbers first, so that unneeded memory is never touched.
        PagePool { uses: vec![0; pages], free: (0..pages as u32).rev().collect(), touched: vec![false; pages] }
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
        self.touched[page as usize] = true;
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

    /// Whether a free page was used since its memory was returned to the system.
    pub fn has_touched(&self) -> bool {
        self.free.iter().any(|&page| self.touched[page as usize])
    }

    /// Takes the free pages that were used, whose memory the caller must return to the system.
    pub fn take_touched(&mut self) -> Vec<u32> {
        let PagePool { free, touched, .. } = self;
        free.iter().copied().filter(|&page| std::mem::take(&mut touched[page as usize])).collect()
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
    fn memory_of_free_pages_is_given_back_once() {
        let mut pool = PagePool::new(4);
        let pages = [pool.take().unwrap(), pool.take().unwrap()];
        assert!(!pool.has_touched());
        pool.release(pages[0]);
        assert!(pool.has_touched());
        assert_eq!((pool.take_touched(), pool.has_touched(), pool.take_touched()), (vec![pages[0]], false, vec![]));
    }
}
