//! The file format of cached prefixes.
//!
//! ```text
//! magic            8 bytes
//! version          u32
//! length           u32, of what follows
//! belongs          JSON: what the pages are valid for
//! checksum         u64
//! records, each:
//!   parent         u32: the number of the record of the page before, from 1; 0 for the first page of a prefix
//!   salt           u64: only sequences of the same salt may use it; 0 but for the first page of a prefix
//!   tokens         u32, how many; 0 in the last record, which has nothing more but its checksum
//!   token          u32, each
//!   is wanted      u8: 1 if the pages of windows are worth more than others, else 0
//!   is there       u8 for each page group: 1 if there is a page, else 0; the first group has one
//!   page           of each group that has one, bytes as the device has them, as many as it says
//!   checkpoints    u32, how many
//!   checkpoint, each:
//!     position     u32: after how many tokens of the page
//!     slot         running states as the device has them, as many bytes as it says
//!   checksum       u64
//! ```
//!
//! Numbers are little-endian. A checksum is XXH3 of everything since the one before, which is its seed: records are
//! whole, in order, and of this file. A page with few tokens is written whole.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use basert_plan::DeviceError;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::pages::NONE;
use crate::prefix::Kept;

const MAGIC: [u8; 8] = *b"basertPX";
const VERSION: u32 = 4;
/// Five milliseconds apart.
const LOCK_ATTEMPTS: usize = 40;
/// Limit on the bytes of the `belongs` header.
const MOST_HEADER: usize = 1 << 16;

/// A file of cached prefixes, and the model that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixFile {
    /// The file's path. It is written to another file beside it, whose name ends in `.partial`, and then renamed.
    pub path: PathBuf,
    /// A digest of everything that keys and values depend on except the device and the format.
    pub model: String,
    /// The format of keys and values.
    pub kv: String,
}

/// What pages are valid for: all fields must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Belongs {
    /// The program's version: other kernels may give other last bits.
    pub program: String,
    pub model: String,
    pub kv: String,
    /// See [`basert_plan::Facts::layout`].
    pub layout: String,
    pub page_tokens: usize,
    /// Of each page group.
    pub page_bytes: Vec<usize>,
    pub slot_bytes: usize,
}

/// The beginning of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub parent: u32,
    pub salt: u64,
    /// For each page group whether there is a page.
    pub pages: Vec<bool>,
    pub is_wanted: bool,
}

/// Why cached prefixes were not loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum PrefixFileError {
    /// The file cannot be read.
    #[error("cached prefixes cannot be read from '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cached prefixes cannot be written to '{}': {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is of another kind, and must not be lost.
    #[error("'{}' is not a file of cached prefixes, and is not overwritten", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// Another process uses the file.
    #[error("the cached prefixes in '{}' are not used: another process uses them", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file belongs to another model, version or device.
    #[error("the cached prefixes in '{}' are not used: their {what} is {found}, and here it is {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The value in the file.
        found: String,
        /// The required value.
        expected: String,
    },
    /// The file is damaged.
    #[error("the cached prefixes in '{}' are not used: the file is damaged, {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl PrefixFileError {
    /// Whether the file is one of cached prefixes, which may be overwritten.
    pub fn is_replaceable(&self) -> bool {
        matches!(self, PrefixFileError::Foreign { .. } | PrefixFileError::Damaged { .. })
    }
}

impl Belongs {
    pub fn new(
        file: &PrefixFile,
        layout: &str,
        page_tokens: usize,
        page_bytes: Vec<usize>,
        slot_bytes: usize,
    ) -> Belongs {
        Belongs {
            program: concat!("basert ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: file.model.clone(),
            kv: file.kv.clone(),
            layout: layout.to_owned(),
            page_tokens,
            page_bytes,
            slot_bytes,
        }
    }

    /// The first field in which `found` differs.
    fn difference(&self, found: &Belongs) -> Option<(&'static str, String, String)> {
        let pairs = [
            ("program", &found.program, &self.program),
            ("model", &found.model, &self.model),
            ("format of keys and values", &found.kv, &self.kv),
            ("page layout", &found.layout, &self.layout),
        ];
        let texts = pairs.map(|(what, found, expected)| (what, found.clone(), expected.clone()));
        let sizes = [
            ("number of tokens in a page", found.page_tokens.to_string(), self.page_tokens.to_string()),
            ("number of bytes in a page", format!("{:?}", found.page_bytes), format!("{:?}", self.page_bytes)),
            ("number of bytes of running states", found.slot_bytes.to_string(), self.slot_bytes.to_string()),
        ];
        texts.into_iter().chain(sizes).find(|(_, found, expected)| found != expected)
    }
}

/// A file beside the one at `path`.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

fn partial(path: &Path) -> PathBuf {
    beside(path, ".partial")
}

/// Creates a file that only its owner may read, because it has prompts and answers.
fn create_new(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Creates a file, after removing what may have been left under its name; a link is not followed.
fn replace(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => create_new(path),
    }
}

/// Opens and locks a file, so that no other process of basert uses it while it is open. It is created if it does not
/// exist.
pub(crate) fn lock(path: &Path) -> Result<File, PrefixFileError> {
    let failed = |source| PrefixFileError::Read { path: path.to_owned(), source };
    let file = match fs::metadata(path) {
        // Opening a pipe would block.
        Ok(found) if !found.is_file() => return Err(PrefixFileError::Other { path: path.to_owned() }),
        Ok(_) => File::open(path).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create_new(path).map_err(|source| PrefixFileError::Write { path: path.to_owned(), source })?
        }
        Err(source) => return Err(failed(source)),
    };
    // A process that is just being started holds the locks of its parent for a moment, and one that ends its own.
    for attempt in 0..LOCK_ATTEMPTS {
        if attempt > 0 {
            thread::sleep(Duration::from_millis(5));
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            // Not every file system supports locks.
            Err(TryLockError::Error(_)) | Ok(()) => return Ok(file),
        }
    }
    Err(PrefixFileError::InUse { path: path.to_owned() })
}

/// Checks that a file can be written, so that an error shows now rather than when saving.
pub(crate) fn check_writable(path: &Path) -> Result<(), PrefixFileError> {
    let probe = beside(path, ".probe");
    let result = replace(&probe).and_then(|_| fs::remove_file(&probe));
    result.map_err(|source| PrefixFileError::Write { path: path.to_owned(), source })
}

/// Writes a file beside the existing one, and replaces that when the new one is complete and synced to disk.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3,
    partial: Partial,
}

/// A temporary file, removed on drop unless it was renamed.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl Writer {
    pub fn create(path: &Path, belongs: &Belongs) -> io::Result<Writer> {
        let file = BufWriter::new(replace(&partial(path))?);
        let partial = Partial(Some(partial(path)));
        let mut writer = Writer { path: path.to_owned(), file, hash: Xxh3::new(), partial };
        let belongs = serde_json::to_vec(belongs)?;
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&(belongs.len() as u32).to_le_bytes())?;
        writer.put(&belongs)?;
        writer.checksum()?;
        Ok(writer)
    }

    /// Begins a record. Its [pages](Writer::page) follow, and its [checkpoints](Writer::checkpoints).
    pub fn record(&mut self, kept: &Kept<'_>) -> io::Result<()> {
        let Kept { parent, salt, tokens, pages, is_wanted, .. } = kept;
        self.put(&parent.to_le_bytes())?;
        self.put(&salt.to_le_bytes())?;
        self.put(&(tokens.len() as u32).to_le_bytes())?;
        tokens.iter().try_for_each(|token| self.put(&token.to_le_bytes()))?;
        self.put(&[u8::from(*is_wanted)])?;
        pages.iter().try_for_each(|&page| self.put(&[u8::from(page != NONE)]))
    }

    pub fn page(&mut self, page: &[u8]) -> io::Result<()> {
        self.put(page)
    }

    /// Says how many checkpoints follow.
    pub fn checkpoints(&mut self, count: usize) -> io::Result<()> {
        self.put(&(count as u32).to_le_bytes())
    }

    pub fn checkpoint(&mut self, position: usize, slot: &[u8]) -> io::Result<()> {
        self.put(&(position as u32).to_le_bytes())?;
        self.put(slot)
    }

    pub fn end_record(&mut self) -> io::Result<()> {
        self.checksum()
    }

    /// Replaces the existing file, and returns the new one, locked as the old one was ([`lock`]).
    pub fn finish(mut self) -> io::Result<File> {
        self.put(&[0; 16])?;
        self.checksum()?;
        let Writer { path, file, partial: mut unfinished, .. } = self;
        let file = file.into_inner()?;
        file.sync_all()?;
        // No other process has it yet; an error means that there are no locks.
        let _ = file.try_lock();
        fs::rename(partial(&path), &path)?;
        unfinished.0 = None;
        // The rename is durable when the folder is synced, which not every system supports.
        #[cfg(unix)]
        File::open(path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(file)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn checksum(&mut self) -> io::Result<()> {
        let sum = self.hash.digest();
        self.hash = Xxh3::with_seed(sum);
        self.file.write_all(&sum.to_le_bytes())
    }
}

/// Reads a file, whose contents are not trusted.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    hash: Xxh3,
    page_tokens: usize,
    groups: usize,
    /// The most checkpoints of the record: one for each token.
    most: usize,
    records: usize,
}

impl Reader {
    /// A reader of the file at `path`; none if the file is empty.
    pub fn open(path: &Path, file: &File, belongs: &Belongs) -> Result<Option<Reader>, PrefixFileError> {
        let failed = |source| PrefixFileError::Read { path: path.to_owned(), source };
        if file.metadata().map_err(failed)?.len() == 0 {
            return Ok(None);
        }
        let file = BufReader::new(file.try_clone().map_err(failed)?);
        let (page_tokens, groups) = (belongs.page_tokens, belongs.page_bytes.len());
        let hash = Xxh3::new();
        let mut reader = Reader { path: path.to_owned(), file, hash, page_tokens, groups, most: 0, records: 0 };
        let mut magic = [0; MAGIC.len()];
        match reader.get(&mut magic) {
            Err(PrefixFileError::Damaged { path, .. }) => return Err(PrefixFileError::Other { path }),
            Ok(()) if magic != MAGIC => return Err(PrefixFileError::Other { path: reader.path }),
            result => result?,
        }
        let version = reader.number()?;
        if version != VERSION {
            return Err(reader.foreign(("version", version.to_string(), VERSION.to_string())));
        }
        let length = reader.number()? as usize;
        if length > MOST_HEADER {
            return Err(reader.damaged(format!("its header would have {length} bytes")));
        }
        let mut header = vec![0; length];
        reader.get(&mut header)?;
        reader.checksum()?;
        let found: Belongs =
            serde_json::from_slice(&header).map_err(|error| reader.damaged(format!("in its header: {error}")))?;
        match belongs.difference(&found) {
            Some(difference) => Err(reader.foreign(difference)),
            None => Ok(Some(reader)),
        }
    }

    /// Reads the beginning of the next record; none after the last record, which must end the file.
    pub fn record(&mut self, tokens: &mut Vec<u32>) -> Result<Option<Record>, PrefixFileError> {
        let (parent, salt) = (self.number()?, u64::from(self.number()?) | u64::from(self.number()?) << 32);
        let count = self.number()? as usize;
        if count > self.page_tokens {
            return Err(self.damaged(format!("{count} tokens in a page")));
        }
        tokens.clear();
        for _ in 0..count {
            tokens.push(self.number()?);
        }
        self.most = count;
        if count > 0 {
            let is_wanted = self.flag()?;
            let pages = (0..self.groups).map(|_| self.flag()).collect::<Result<Vec<_>, _>>()?;
            if pages.first() != Some(&true) {
                return Err(self.damaged("a record has no page of all layers".to_owned()));
            }
            return Ok(Some(Record { parent, salt, pages, is_wanted }));
        }
        self.end_record()?;
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(None),
            Ok(_) => Err(self.damaged("there are bytes after its end".to_owned())),
            Err(source) => Err(PrefixFileError::Read { path: self.path.clone(), source }),
        }
    }

    /// Reads a page of a record.
    pub fn page(&mut self, page: &mut [u8]) -> Result<(), PrefixFileError> {
        self.get(page)
    }

    /// Reads how many checkpoints a record has.
    pub fn checkpoints(&mut self) -> Result<usize, PrefixFileError> {
        let count = self.number()? as usize;
        if count > self.most {
            return Err(self.damaged(format!("{count} checkpoints of {} tokens", self.most)));
        }
        Ok(count)
    }

    /// Reads a checkpoint of a record, and returns its position.
    pub fn checkpoint(&mut self, slot: &mut [u8]) -> Result<usize, PrefixFileError> {
        let position = self.number()? as usize;
        self.get(slot)?;
        Ok(position)
    }

    /// Called after the last checkpoint of a record.
    pub fn end_record(&mut self) -> Result<(), PrefixFileError> {
        self.checksum()?;
        self.records += 1;
        Ok(())
    }

    pub fn damaged(&self, what: String) -> PrefixFileError {
        PrefixFileError::Damaged { path: self.path.clone(), what }
    }

    fn foreign(&self, (what, found, expected): (&'static str, String, String)) -> PrefixFileError {
        PrefixFileError::Foreign { path: self.path.clone(), what, found, expected }
    }

    fn get(&mut self, bytes: &mut [u8]) -> Result<(), PrefixFileError> {
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.damaged("it ends too early".to_owned()),
            _ => PrefixFileError::Read { path: self.path.clone(), source },
        })?;
        self.hash.update(bytes);
        Ok(())
    }

    fn flag(&mut self) -> Result<bool, PrefixFileError> {
        let mut byte = [0];
        self.get(&mut byte)?;
        match byte {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.damaged(format!("{other} where 0 or 1 should be"))),
        }
    }

    fn number(&mut self) -> Result<u32, PrefixFileError> {
        let mut bytes = [0; 4];
        self.get(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn checksum(&mut self) -> Result<(), PrefixFileError> {
        let sum = self.hash.digest();
        let mut bytes = [0; 8];
        self.get(&mut bytes)?;
        self.hash = Xxh3::with_seed(sum);
        if u64::from_le_bytes(bytes) == sum {
            return Ok(());
        }
        Err(self.damaged(format!("the checksum of record {} is wrong", self.records)))
    }
}
