//! A file mapped into memory.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

#[cfg(not(miri))]
use memmap2::Mmap;

use crate::{FileError, Problem};

#[cfg(not(miri))]
type Bytes = Mmap;
/// Miri cannot map files.
#[cfg(miri)]
type Bytes = Vec<u8>;

/// A whole file, mapped read-only. Dereferences to its bytes.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    file: File,
    map: Bytes,
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// The file must not be written to or truncated while the mapping lives: the bytes would change under their
    /// readers, and reading a truncated part ends the process with a signal. Replacing it by rename, or deleting it, is
    /// harmless.
    ///
    /// # Errors
    /// When it cannot be opened, or is not a regular file.
    pub fn open(path: &Path) -> Result<Mapping, FileError> {
        let map = || -> Result<(File, Bytes), Problem> {
            // Before it is opened: a pipe that nobody writes to would never be.
            if !fs::metadata(path)?.is_file() {
                return Err(Problem::invalid("the path", "no regular file", "a file"));
            }
            let file = File::open(path)?;
            // SAFETY: the mapping is read-only, so nothing in this process writes through it. That no other process
            // changes the file while it is mapped is the contract stated above, which no program that maps files can
            // check: programs that download models replace files by rename and do not write in place.
            #[cfg(not(miri))]
            let map = unsafe { Mmap::map(&file)? };
            #[cfg(miri)]
            let map = fs::read(path)?;
            Ok((file, map))
        };
        let (file, map) = map().map_err(|problem| problem.of(path))?;
        Ok(Mapping { path: path.to_owned(), file, map })
    }

    /// Fills `bytes` with what the file holds at `offset` now. Unlike the mapping, that may be asked of a file that others
    /// write to or shorten.
    ///
    /// # Errors
    /// When the file ends before, or cannot be read.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset as u64);
        #[cfg(not(unix))]
        {
            let part = offset.checked_add(bytes.len()).and_then(|end| self.map.get(offset..end));
            bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the operating system that `bytes`, a part of this mapping, will be read soon. Only advice: a failure
    /// changes nothing. Returns whether `bytes` lies in this mapping.
    pub fn prefetch(&self, bytes: &[u8]) -> bool {
        self.advise(bytes, |_map, _offset, _len| {
            #[cfg(all(unix, not(miri)))]
            return _map.advise_range(memmap2::Advice::WillNeed, _offset, _len);
            #[cfg(any(not(unix), miri))]
            Ok(())
        })
    }

    /// Tells the operating system that `bytes`, a part of this mapping, is not needed any more: its pages leave this
    /// process's resident memory. Reading them again is allowed, and fetches them from the file.
    /// Returns whether `bytes` lies in this mapping.
    pub fn release(&self, bytes: &[u8]) -> bool {
        self.advise(bytes, |_map, _offset, _len| {
            // SAFETY: the mapping is read-only and backed by a file, so a dropped page has no contents of its own:
            // the next access maps the file's page again, and every reader sees the same bytes as before.
            #[cfg(all(unix, not(miri)))]
            return unsafe { _map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, _offset, _len) };
            #[cfg(any(not(unix), miri))]
            Ok(())
        })
    }

    /// Where `bytes` begin in this mapping, if all of them are a part of it.
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize)?;
        offset.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()).then_some(offset)
    }

    fn advise(&self, bytes: &[u8], advice: impl FnOnce(&Bytes, usize, usize) -> io::Result<()>) -> bool {
        let Some(offset) = self.offset_of(bytes) else { return false };
        if !bytes.is_empty() {
            // The advice is about speed and memory, never about what is read: its failure is not an error.
            let _ = advice(&self.map, offset, bytes.len());
        }
        true
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
