//! Memory for data that is read at full speed: packed weights, the arena, the KV cache.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// A cache line, and the widest vector.
const ALIGNMENT: usize = 64;
/// The alignment of large pages, on systems that have them.
const LARGE_PAGE: usize = 2 << 20;

/// The system refused the allocation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {bytes} bytes")]
pub struct AllocError {
    /// The requested size.
    pub bytes: usize,
}

/// Zeroed bytes, aligned to a cache line. A buffer of more than a few megabytes requests large pages, so that streaming
/// through it does not wait for the TLB; small buffers can be split off a large one, and share its pages.
pub struct Buffer {
    bytes: NonNull<u8>,
    len: usize,
    allocation: Arc<Allocation>,
}

// SAFETY: its bytes are its own.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

/// The allocation, which is freed with the last buffer in it.
struct Allocation {
    bytes: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it does nothing with the bytes but free them.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the system does not give them.
    pub fn zeroed(len: usize) -> Result<Buffer, AllocError> {
        let alignment = if len >= 2 * LARGE_PAGE { LARGE_PAGE } else { ALIGNMENT };
        // Never empty, for the allocator's sake.
        let layout = Layout::from_size_align(len.max(1), alignment).map_err(|_| AllocError { bytes: len })?;
        let bytes = if alignment == LARGE_PAGE { Buffer::large(layout)? } else { Buffer::small(layout)? };
        Ok(Buffer { bytes, len: layout.size(), allocation: Arc::new(Allocation { bytes, layout }) })
    }

    /// The first `len` bytes as a buffer of their own; this one keeps what comes after them, from the next cache line on.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn split_to(&mut self, len: usize) -> Buffer {
        assert!(len <= self.len);
        let first = Buffer { bytes: self.bytes, len, allocation: self.allocation.clone() };
        let taken = len.next_multiple_of(ALIGNMENT).min(self.len);
        // SAFETY: within the allocation, or just at its end.
        self.bytes = unsafe { self.bytes.add(taken) };
        self.len -= taken;
        first
    }

    fn small(layout: Layout) -> Result<NonNull<u8>, AllocError> {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(AllocError { bytes: layout.size() })
    }

    /// Fresh pages are zero already, and touching them only when they are used lets every thread fault its own. (Miri
    /// does not know these calls.)
    #[cfg(all(unix, not(miri)))]
    fn large(layout: Layout) -> Result<NonNull<u8>, AllocError> {
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
        NonNull::new(aligned as *mut u8).ok_or(error)
    }

    #[cfg(any(not(unix), miri))]
    fn large(layout: Layout) -> Result<NonNull<u8>, AllocError> {
        Buffer::small(layout)
    }

    /// Gives memory within these bytes back to the system where that is possible; what they are then is not said.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn discard(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(all(unix, not(miri)))]
        if self.allocation.layout.align() == LARGE_PAGE {
            let (page, start) = (page_size(), self.bytes.as_ptr() as usize);
            let from = (start + range.start).next_multiple_of(page);
            let to = (start + range.end) / page * page;
            if from < to {
                // What is dropped is zeros when it is touched again; elsewhere it may also be what it was.
                let advice = if cfg!(target_os = "linux") { libc::MADV_DONTNEED } else { libc::MADV_FREE };
                // SAFETY: whole pages of the mapping of `large`, of which only this buffer has bytes; any bytes are initialised.
                unsafe { libc::madvise(from as *mut _, to - from, advice) };
            }
        }
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

#[cfg(all(unix, not(miri)))]
fn page_size() -> usize {
    // SAFETY: only asks.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer has so many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.len) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        #[cfg(all(unix, not(miri)))]
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
    fn parts_are_apart_and_outlive_the_whole() {
        for len in [1 << 10, 5 << 20] {
            let mut rest = Buffer::zeroed(len).unwrap();
            let mut parts: Vec<Buffer> = [100, 0, 64, 300].iter().map(|&len| rest.split_to(len)).collect();
            assert_eq!(rest.len(), len - 128 - 64 - 320);
            rest.fill(9);
            drop(rest);
            for (i, part) in parts.iter_mut().enumerate() {
                assert_eq!(part.as_ptr() as usize % ALIGNMENT, 0);
                assert!(part.iter().all(|&byte| byte == 0));
                part.fill(i as u8 + 1);
            }
            assert_eq!(
                parts.iter().flat_map(|part| part.iter()).map(|&b| usize::from(b)).sum::<usize>(),
                100 + 3 * 64 + 4 * 300
            );
        }
    }

    #[test]
    fn what_is_discarded_can_be_written_again_and_nothing_else_changes() {
        for len in [1 << 10, 5 << 20] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            buffer.fill(7);
            buffer.discard(100..len - 100);
            let bytes = |buffer: &Buffer| (buffer[..100].to_vec(), buffer[len - 100..].to_vec());
            assert_eq!(bytes(&buffer), (vec![7; 100], vec![7; 100]));
            #[cfg(target_os = "linux")]
            assert!(
                len < 2 * LARGE_PAGE
                    || buffer.iter().map(|&byte| usize::from(byte)).sum::<usize>() <= 7 * 2 * page_size()
            );
            buffer.fill(9);
            assert!(buffer.iter().all(|&byte| byte == 9));
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Buffer::zeroed(isize::MAX as usize).is_err());
        assert!(Buffer::zeroed(usize::MAX - 64).is_err());
    }
}
