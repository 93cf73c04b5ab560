//! Uploaded files in a folder, the content beside a description. Only the server's user can read them, and their total
//! size is limited.
//!
//! What each client has there is also known in memory, by its age: a page of a list is read, and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Bound::{Excluded, Unbounded};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::Client;
use crate::clock;
use crate::error::ApiError;
use crate::random;

/// The folder.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// Bytes of all files; those of one client may be half of it.
    limit: u64,
    /// By client.
    owned: Mutex<HashMap<u64, Owned>>,
}

/// What a client has in the folder.
#[derive(Debug, Default)]
struct Owned {
    bytes: u64,
    files: BTreeSet<Aged>,
    batches: BTreeSet<Aged>,
}

/// When a file or batch was made, in seconds since 1970, and the number in its id.
type Aged = (u64, u128);

/// What there is a list of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Batch,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Kind::File => "file-",
            Kind::Batch => "batch_",
        }
    }

    fn of(self, owned: &mut Owned) -> &mut BTreeSet<Aged> {
        match self {
            Kind::File => &mut owned.files,
            Kind::Batch => &mut owned.batches,
        }
    }
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The id that it begins after.
    pub after: Option<String>,
    pub limit: usize,
    pub oldest_first: bool,
}

/// What is known of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    pub id: String,
    pub bytes: u64,
    pub created_at: u64,
    pub filename: String,
    pub purpose: String,
    pub owner: u64,
}

/// What counts of a description, and of a batch.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    File { owner: u64, bytes: u64, created_at: u64 },
    Batch { owner: u64, told: Told },
}

#[derive(Deserialize)]
struct Told {
    created_at: u64,
}

/// Digits of an id, behind its prefix.
const DIGITS: usize = 32;
/// What a file counts beside its content, so that there are not any number of empty ones.
pub const EACH: u64 = 16 << 10;
/// The mark that work is under way: a server that finds it follows one that crashed.
const RUNNING: &str = "running";
/// The longest name and purpose of a file, in bytes.
const LONGEST_NAME: usize = 1024;

impl Files {
    /// Makes the folder if there is none. What a server left there that was killed while it wrote is removed.
    pub fn open(folder: PathBuf, limit: u64) -> io::Result<Files> {
        let mut maker = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
        maker.recursive(true).create(&folder)?;
        let files = Files { folder, limit, owned: Mutex::default() };
        for entry in fs::read_dir(&files.folder)?.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let Some((id, ending)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            if files.path(id, ending).is_none() {
                continue;
            }
            close(&path)?;
            if ending == "part" || (ending == "data" && files.read::<Description>(id).is_none()) {
                fs::remove_file(path)?;
            }
        }
        for kind in [Kind::File, Kind::Batch] {
            for (id, kept) in files.all::<Kept>(kind) {
                let (owner, bytes, created_at) = match kept {
                    Kept::File { owner, bytes, created_at } => (owner, bytes, created_at),
                    Kept::Batch { owner, told } => (owner, 0, told.created_at),
                };
                files.add(Client(owner), bytes + EACH);
                files.enlist(Client(owner), kind, &id, created_at);
            }
        }
        Ok(files)
    }

    fn owned(&self) -> MutexGuard<'_, HashMap<u64, Owned>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that a client is about to write.
    pub fn take(&self, Client(owner): Client, bytes: u64) -> Result<(), ApiError> {
        let mut owned = self.owned();
        let (own, all) =
            (owned.get(&owner).map_or(0, |own| own.bytes), owned.values().map(|own| own.bytes).sum::<u64>());
        let whose = if own.saturating_add(bytes) > self.limit / 2 {
            "your files take"
        } else if all.saturating_add(bytes) > self.limit {
            "files take"
        } else {
            owned.entry(owner).or_default().bytes += bytes;
            return Ok(());
        };
        let message = format!("{whose} all the room that there is for them; delete some that are not needed any more");
        Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message))
    }

    /// Counts bytes that are there already.
    pub fn add(&self, Client(owner): Client, bytes: u64) {
        self.owned().entry(owner).or_default().bytes += bytes;
    }

    /// Counts bytes of a client that are not there any more.
    pub fn give(&self, Client(owner): Client, bytes: u64) {
        let mut owned = self.owned();
        if let Some(own) = owned.get_mut(&owner) {
            own.bytes = own.bytes.saturating_sub(bytes);
            if own.bytes == 0 {
                owned.remove(&owner);
            }
        }
    }

    /// Puts what was written into the list of its kind.
    pub fn enlist(&self, Client(owner): Client, kind: Kind, id: &str, created_at: u64) {
        if let Some(number) = number(kind, id) {
            kind.of(self.owned().entry(owner).or_default()).insert((created_at, number));
        }
    }

    /// The numbers of a client's files or batches from the beginning of a page on.
    fn numbers(&self, Client(owner): Client, kind: Kind, page: &Page) -> Result<Vec<u128>, ApiError> {
        let mut owned = self.owned();
        let empty = &mut Owned::default();
        let all = kind.of(owned.get_mut(&owner).unwrap_or(empty));
        let after = page.after.as_deref().map(|id| {
            let number = number(kind, id);
            let known = all.iter().find(|(_, other)| Some(*other) == number).copied();
            known.ok_or_else(|| ApiError::field("after", format!("'{id}' is not in this list")))
        });
        let after = after.transpose()?;
        Ok(if page.oldest_first {
            all.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|one| one.1).collect()
        } else {
            all.range((Unbounded, after.map_or(Unbounded, Excluded))).rev().map(|one| one.1).collect()
        })
    }

    /// A page of a client's files or batches, of those that are `wanted`, and whether there are more.
    pub fn page<T: DeserializeOwned>(
        &self,
        client: Client,
        kind: Kind,
        page: &Page,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<(Vec<T>, bool), ApiError> {
        let ids = self.numbers(client, kind, page)?.into_iter().map(|number| format!("{}{number:032x}", kind.prefix()));
        // What was removed in the meantime is left out.
        let mut found = ids.filter_map(|id| self.read(&id)).filter(wanted);
        let page = found.by_ref().take(page.limit).collect();
        Ok((page, found.next().is_some()))
    }

    /// Where what belongs to an id lies; none if it is not one.
    pub fn path(&self, id: &str, ending: &str) -> Option<PathBuf> {
        let is_id = [Kind::File, Kind::Batch].into_iter().any(|kind| number(kind, id).is_some());
        is_id.then(|| self.folder.join(format!("{id}.{ending}")))
    }

    /// A file of that ending, to be written at its end.
    pub fn append(&self, id: &str, ending: &str) -> Result<File, ApiError> {
        let path = self.path(id, ending).ok_or_else(|| ApiError::internal("an id that is none"))?;
        private().append(true).open(path).map_err(|error| full(&error))
    }

    /// Keeps a file. What was written of it is removed again if it cannot be kept.
    pub fn create(
        &self,
        client: Client,
        filename: &str,
        purpose: &str,
        content: &[u8],
    ) -> Result<Description, ApiError> {
        self.take(client, content.len() as u64)?;
        let id = random::id("file-");
        let written =
            self.append(&id, "data").and_then(|mut file| file.write_all(content).map_err(|error| full(&error)));
        let kept = written.and_then(|()| self.describe(client, id.clone(), filename, purpose, content.len() as u64));
        if kept.is_err() {
            self.give(client, content.len() as u64);
            // What matters is why it failed, not whether this did as well.
            let _ = self.path(&id, "data").map(fs::remove_file);
        }
        kept
    }

    /// Keeps what was appended to something as a file of its own. Its bytes are counted already.
    pub fn adopt(&self, client: Client, from: &Path, filename: &str, purpose: &str) -> Result<Description, ApiError> {
        let id = random::id("file-");
        let to = self.path(&id, "data").ok_or_else(|| ApiError::internal("an id that is none"))?;
        let bytes = fs::metadata(from).map_err(|error| full(&error))?.len();
        fs::rename(from, &to).map_err(|error| full(&error))?;
        let kept = self.describe(client, id, filename, purpose, bytes);
        if kept.is_err() {
            let _ = fs::rename(to, from);
        }
        kept
    }

    fn describe(
        &self,
        client: Client,
        id: String,
        filename: &str,
        purpose: &str,
        bytes: u64,
    ) -> Result<Description, ApiError> {
        for (field, text) in [("file", filename), ("purpose", purpose)] {
            if text.len() > LONGEST_NAME {
                return Err(ApiError::field(field, format!("a name of more than {LONGEST_NAME} bytes")));
            }
        }
        let (filename, purpose, created_at) = (filename.to_owned(), purpose.to_owned(), clock::now());
        let description = Description { id, bytes, created_at, filename, purpose, owner: client.0 };
        self.take(client, EACH)?;
        self.write(&description.id, &description).inspect_err(|_| self.give(client, EACH))?;
        self.enlist(client, Kind::File, &description.id, created_at);
        Ok(description)
    }

    /// The description of a client's file.
    pub fn get(&self, client: Client, id: &str) -> Result<Description, ApiError> {
        self.read::<Description>(id).filter(|file| file.owner == client.0).ok_or_else(|| no_file(id))
    }

    /// What is in it.
    pub fn content(&self, client: Client, id: &str) -> Result<File, ApiError> {
        self.get(client, id)?;
        File::open(self.path(id, "data").unwrap_or_default()).map_err(|error| lost(id, "read", &error))
    }

    /// Removes a client's file.
    pub fn remove(&self, client: Client, id: &str) -> Result<(), ApiError> {
        let description = self.get(client, id)?;
        let path = |ending| self.path(id, ending).unwrap_or_default();
        // Of several requests to remove it, one finds the description.
        fs::remove_file(path("json")).map_err(|error| lost(id, "removed", &error))?;
        if let (Some(own), Some(number)) = (self.owned().get_mut(&client.0), number(Kind::File, id)) {
            own.files.remove(&(description.created_at, number));
        }
        self.give(client, description.bytes + EACH);
        remove_if_there(&path("data")).map_err(|error| lost(id, "removed", &error))
    }

    /// Leaves a mark that work on these files is under way, or takes it away.
    pub fn set_running(&self, running: bool) -> io::Result<()> {
        let mark = self.folder.join(RUNNING);
        match running {
            true => private().write(true).open(mark).map(drop),
            false => remove_if_there(&mark),
        }
    }

    /// Whether the mark is there.
    pub fn was_running(&self) -> bool {
        self.folder.join(RUNNING).exists()
    }

    /// Writes what is known of something, in one piece.
    pub fn write(&self, id: &str, value: &impl Serialize) -> Result<(), ApiError> {
        let (Some(path), Some(part)) = (self.path(id, "json"), self.path(id, "part")) else {
            return Err(ApiError::internal("an id that is none"));
        };
        let text = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
        let file = private().write(true).truncate(true).open(&part);
        file.and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&part, path))
            .map_err(|error| full(&error))
    }

    /// What is known of something.
    pub fn read<T: DeserializeOwned>(&self, id: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(id, "json")?).ok()?).ok()
    }

    /// All that is known of a kind, of all clients, by id.
    pub fn all<T: DeserializeOwned>(&self, kind: Kind) -> impl Iterator<Item = (String, T)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
        let ids = ids.filter(move |id| number(kind, id).is_some());
        ids.filter_map(|id| self.read(&id).map(|known| (id, known)))
    }
}

/// The number in an id of this kind.
fn number(kind: Kind, id: &str) -> Option<u128> {
    let digits = id.strip_prefix(kind.prefix())?;
    let is_number = digits.len() == DIGITS && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    is_number.then(|| u128::from_str_radix(digits, 16).ok())?
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn no_file(id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no file '{id}'"))
}

/// The error that a file cannot be used, which may have been removed since its description was read.
fn lost(id: &str, what: &str, error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::NotFound => no_file(id),
        _ => ApiError::internal(format!("the file cannot be {what}: {error}")),
    }
}

/// How a file is made that nobody else can read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Lets nobody else read a file that is there.
fn close(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let _ = path;
    Ok(())
}

fn full(error: &io::Error) -> ApiError {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, format!("the file cannot be kept: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_take_no_more_room_than_they_may() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Files::open(folder.path().join("files"), 20 * EACH).unwrap();
        let files = open();
        let content = vec![b'x'; 4 * EACH as usize];
        let status = |kept: Result<Description, ApiError>| kept.map(drop).map_err(|error| error.status.as_u16());
        let first = files.create(Client(1), "a", "b", &content).unwrap();
        files.create(Client(1), "a", "b", &content).unwrap();
        // The next server knows of them.
        let files = open();
        assert_eq!(status(files.create(Client(1), "a", "b", &content)), Err(507));
        assert_eq!(status(files.create(Client(2), "a", "b", &content)), Ok(()));
        assert_eq!(status(files.create(Client(2), &"x".repeat(2000), "b", b"")), Err(400));
        assert_eq!(status(files.create(Client(2), "a", "b", &content)), Ok(()));
        assert_eq!(status(files.create(Client(3), "a", "b", b"")), Err(507));
        files.remove(Client(1), &first.id).unwrap();
        assert_eq!(status(files.create(Client(1), "a", "b", &content)), Ok(()));
    }

    #[test]
    fn of_several_who_remove_a_file_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path().join("files"), 1 << 30).unwrap();
        for _ in 0..100 {
            let id = files.create(Client(1), "a", "b", b"text").unwrap().id;
            let status = |result: Result<(), ApiError>| result.map_or_else(|error| error.status.as_u16(), |()| 200);
            let mut statuses: Vec<u16> = std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(|| status(files.remove(Client(1), &id))));
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 404, 404, 404]);
            assert_eq!(files.content(Client(1), &id).unwrap_err().status, 404);
        }
        assert!(files.owned().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_them_and_what_was_left_half_is_removed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("files");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = Files::open(inner.clone(), 1 << 20).unwrap().create(Client(1), "a", "b", b"text").unwrap();
        for (name, content) in [("file-d", "data"), ("batch_e", "part")] {
            fs::write(inner.join(format!("{name}{}.{content}", "0".repeat(31))), "x").unwrap();
        }
        fs::write(inner.join("notes.txt"), "not ours").unwrap();
        let old = inner.join(format!("{}.data", file.id));
        fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
        drop(Files::open(inner.clone(), 1 << 20).unwrap());
        assert_eq!(mode(&inner), 0o700);
        assert_eq!((mode(&old), mode(&inner.join(format!("{}.json", file.id)))), (0o600, 0o600));
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 3);
    }
}
