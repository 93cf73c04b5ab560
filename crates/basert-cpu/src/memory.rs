//! Memory for what is read at full speed: packed weights, the arena, the KV cache.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A cache line, and the widest vector.
const ALIGNMENT: usize = 64;
/// What large pages are aligned to, on the systems that have them.
const LARGE_PAGE: usize = 2 << 20;

/// The system did not give the memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {bytes} bytes")]
pub struct AllocError {
    /// What was asked for.
    pub bytes: usize,
}

/// Zeroed bytes on a cache line's boundary. Those of more than a few megabytes ask for large pages, so that streaming
/// through them does not wait for the TLB.
pub struct Buffer {
    bytes: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its bytes.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the system does not give them.
    pub fn zeroed(len: usize) -> Result<Buffer, AllocError> {
        let alignment = if len >= 2 * LARGE_PAGE { LARGE_PAGE } else { ALIGNMENT };
        // Never empty, for the allocator's sake.
        let layout = Layout::from_size_align(len.max(1), alignment).map_err(|_| AllocError { bytes: len })?;
        if alignment == LARGE_PAGE {
            return Buffer::large(layout);
        }
        // SAFETY: the layout is not empty.
        let bytes = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(AllocError { bytes: len })?;
        Ok(Buffer { bytes, layout })
    }

    /// Fresh pages are zero already, and touching them only when they are used lets every thread fault its own.
    #[cfg(unix)]
    fn large(layout: Layout) -> Result<Buffer, AllocError> {
        let error = AllocError { bytes: layout.size() };
        let size = layout.size().checked_add(layout.align()).ok_or(error.clone())?;
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(error);
        }
        let aligned = (start as usize).next_multiple_of(layout.align());
        let (before, after) = (aligned - start as usize, start as usize + size - (aligned + layout.size()));
        let page = page_size();
        let end = (aligned + layout.size()).next_multiple_of(page);
        // SAFETY: both ranges are whole pages of the mapping, outside of what is kept.
        unsafe {
            if before > 0 {
                libc::munmap(start, before);
            }
            if after >= page {
                libc::munmap(end as *mut _, start as usize + size - end);
            }
            #[cfg(target_os = "linux")]
            libc::madvise(aligned as *mut _, layout.size(), libc::MADV_HUGEPAGE);
        }
        NonNull::new(aligned as *mut u8).map(|bytes| Buffer { bytes, layout }).ok_or(error)
    }

    #[cfg(not(unix))]
    fn large(layout: Layout) -> Result<Buffer, AllocError> {
        // SAFETY: the layout is not empty.
        let bytes = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(AllocError { bytes: layout.size() })?;
        Ok(Buffer { bytes, layout })
    }

    /// Where the bytes begin.
    pub fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// Where the bytes begin, to write to.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_ptr()
    }
}

#[cfg(unix)]
fn page_size() -> usize {
    // SAFETY: only asks.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer has so many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.layout.align() == LARGE_PAGE {
            // SAFETY: the mapping of `large`, whose last page is whole.
            unsafe { libc::munmap(self.bytes.as_ptr().cast(), self.layout.size()) };
            return;
        }
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_writable() {
        for len in [0, 1, 100, 1 << 20, (4 << 20) - 1, 4 << 20, (9 << 20) + 12345] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), len.max(1));
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(7);
            assert_eq!(buffer.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 7 * buffer.len() as u64);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Buffer::zeroed(isize::MAX as usize).is_err());
        assert!(Buffer::zeroed(usize::MAX - 64).is_err());
    }
}
