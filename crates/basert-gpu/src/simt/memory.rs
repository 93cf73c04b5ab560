//! Memory that kernels read and write.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use basert_files::ModelFile;

/// The alignment of every buffer.
const ALIGNMENT: usize = 16;

/// Zeroed bytes, or those of a file. It exposes only their address: kernels change them from several threads.
pub struct Allocation {
    begin: NonNull<u8>,
    bytes: usize,
    owner: Owner,
}

/// The owner of the bytes.
enum Owner {
    Allocated(Layout),
    Mapped { _file: Arc<ModelFile> },
}

// SAFETY: it is only an address; it owns the bytes, or keeps their file alive.
unsafe impl Send for Allocation {}

impl Allocation {
    /// `None` when the system cannot allocate them.
    pub fn zeroed(bytes: usize) -> Option<Allocation> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout is not empty.
        let begin = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Allocation { begin, bytes: layout.size(), owner: Owner::Allocated(layout) })
    }

    /// A part of a file, where it is mapped. Nothing may be written there.
    pub fn mapped(file: &Arc<ModelFile>, part: &[u8]) -> Allocation {
        let begin = NonNull::from(part).cast();
        Allocation { begin, bytes: part.len(), owner: Owner::Mapped { _file: file.clone() } }
    }

    pub fn begin(&self) -> *mut u8 {
        self.begin.as_ptr()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped { .. })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: it was allocated with this layout.
            Owner::Allocated(layout) => unsafe { dealloc(self.begin.as_ptr(), *layout) },
            Owner::Mapped { .. } => {}
        }
    }
}

/// Bytes of available memory, if the system reports them.
pub fn available() -> Option<usize> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
