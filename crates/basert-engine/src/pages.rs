//! Which pages of the KV cache are in use, and by how many sequences.

/// The pages of a device's KV cache, with reference counts.
#[derive(Debug)]
pub struct PagePool {
    uses: Vec<u32>,
    free: Vec<u32>,
}

impl PagePool {
    /// All `pages` are free.
    pub fn new(pages: usize) -> PagePool {
        // Taken from the end: low numbers first, so that memory not needed is never touched.
        PagePool { uses: vec![0; pages], free: (0..pages as u32).rev().collect() }
    }

    /// Pages that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.uses.len()
    }

    /// A free page, which then has one user.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.uses[page as usize] = 1;
        Some(page)
    }

    /// One more user of a page in use.
    pub fn share(&mut self, page: u32) {
        self.uses[page as usize] += 1;
    }

    /// One user less; the last one frees the page.
    pub fn release(&mut self, page: u32) {
        let uses = &mut self.uses[page as usize];
        *uses = uses.saturating_sub(1);
        if *uses == 0 {
            self.free.push(page);
        }
    }

    /// Whether more than one sequence uses the page.
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
}
