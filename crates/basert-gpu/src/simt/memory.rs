//! Memory that kernels read and write.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// What every buffer is aligned to.
const ALIGNMENT: usize = 16;

/// Bytes, zeros at first. It hands out their address only: kernels change them from several threads.
pub struct Allocation {
    begin: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is an address, and nothing more.
unsafe impl Send for Allocation {}

impl Allocation {
    /// `None` when the system does not give them.
    pub fn zeroed(bytes: usize) -> Option<Allocation> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|begin| Allocation { begin, layout })
    }

    pub fn begin(&self) -> *mut u8 {
        self.begin.as_ptr()
    }

    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.begin.as_ptr(), self.layout) };
    }
}

/// Bytes that the system could still give, where it says so.
pub fn available() -> Option<usize> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
