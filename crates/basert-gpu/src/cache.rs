//! Compiled kernels on disk, found by what they were compiled from.
//!
//! Nothing here fails: an entry that is missing, unreadable or damaged is a kernel that is compiled again, and one that
//! cannot be kept is compiled again the next time.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::PathBuf;

pub use basert_system::folders::{CACHE_DIR_VARIABLE, cache as cache_dir};
use sha2::{Digest, Sha256};

const DIGEST: usize = 32;

/// A folder of compiled kernels. An entry is a file of the compiler's output followed by its SHA-256, which loaders of
/// libraries do not mind.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// The name of an entry: a hash of everything that the compiler's output depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheKey(String);

impl CacheKey {
    /// The key of what is compiled from `parts`: source, function, compiler and its version, target, options. Lists
    /// that differ in any part, or in where one ends, have different keys.
    pub fn new<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> CacheKey {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.as_ref().len() as u64).to_le_bytes());
            hash.update(part.as_ref());
        }
        CacheKey(hash.finalize().iter().fold(String::new(), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        }))
    }
}

impl std::fmt::Display for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Cache {
    /// The cache in `$BASERT_CACHE_DIR/kernels`, or else in `~/.cache/basert/kernels`; without a home, one that keeps
    /// nothing.
    pub fn open_default() -> Cache {
        Cache { folder: cache_dir().map(|root| root.join("kernels")) }
    }

    /// The cache in `folder`, which need not exist.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// What was compiled, if it is here and whole.
    pub fn get(&self, key: &CacheKey) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.as_ref()?.join(&key.0)).ok()?;
        let length = bytes.len().checked_sub(DIGEST)?;
        let digest = bytes.split_off(length);
        (digest[..] == Sha256::digest(&bytes)[..]).then_some(bytes)
    }

    /// The file that has what was compiled, for loaders that want one, if it is here and whole.
    pub fn file(&self, key: &CacheKey) -> Option<PathBuf> {
        self.get(key)?;
        Some(self.folder.as_ref()?.join(&key.0))
    }

    /// Where a file beside the entries is or would be, for what others write and check.
    pub fn beside(&self, key: &CacheKey, extension: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.{extension}")))
    }

    /// Keeps what was compiled, if that is possible; a reader sees all of it or nothing.
    pub fn put(&self, key: &CacheKey, compiled: &[u8]) {
        // The next start compiles again what could not be kept.
        let _ = self.folder.as_ref().map(|folder| -> io::Result<()> {
            fs::create_dir_all(folder)?;
            let partial = tempfile::NamedTempFile::new_in(folder)?;
            let mut file = partial.as_file();
            io::Write::write_all(&mut file, compiled)?;
            io::Write::write_all(&mut file, &Sha256::digest(compiled))?;
            partial.persist(folder.join(&key.0))?;
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_until_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new"));
        let key = CacheKey::new(["source", "options"]);
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"compiled");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"compiled"[..]));
        let file = cache.file(&key).unwrap();
        assert!(fs::read(&file).unwrap().starts_with(b"compiled"));

        for damaged in [&b"compiler, and the digest of something else"[..], b"short", b""] {
            fs::write(&file, damaged).unwrap();
            assert_eq!((cache.get(&key), cache.file(&key)), (None, None));
        }
        cache.put(&key, b"again");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"again"[..]));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing but the entry is left");
    }

    #[test]
    fn keys_differ_where_parts_differ() {
        let keys = [&["ab", "c"][..], &["a", "bc"], &["abc"], &["ab", "c", ""], &["c", "ab"]].map(CacheKey::new);
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key));
        }
        assert_eq!(CacheKey::new(["ab", "c"]), CacheKey::new(["ab", "c"]));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("file");
        fs::write(&taken, "").unwrap();
        let key = CacheKey::new(["source"]);
        for cache in [Cache::at(taken.join("kernels")), Cache { folder: None }] {
            cache.put(&key, b"compiled");
            assert_eq!(cache.get(&key), None);
        }
    }
}
