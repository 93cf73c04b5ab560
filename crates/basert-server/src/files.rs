//! Uploaded files in a folder, the content beside a description. Only the server's user can read them, and their total
//! size is limited.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::Client;
use crate::error::ApiError;
use crate::identity;

/// The folder.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// Bytes of all files; those of one client may be half of it.
    limit: u64,
    /// By client.
    used: Mutex<HashMap<u64, u64>>,
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

/// What counts of it, and of other things that are kept here.
#[derive(Deserialize)]
struct Kept {
    owner: u64,
    #[serde(default)]
    bytes: u64,
}

/// Digits of an id, behind its prefix.
const DIGITS: usize = 32;
/// What a file counts beside its content, so that there are not any number of empty ones.
pub const EACH: u64 = 16 << 10;
/// The longest name and purpose of a file, in bytes.
const LONGEST_NAME: usize = 1024;

impl Files {
    /// Makes the folder if there is none. What a server left there that was killed while it wrote is removed.
    pub fn open(folder: PathBuf, limit: u64) -> io::Result<Files> {
        let mut maker = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
        maker.recursive(true).create(&folder)?;
        let files = Files { folder, limit, used: Mutex::default() };
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
        for file in files.all::<Kept>("file-").into_iter().chain(files.all("batch_")) {
            files.add(Client(file.owner), file.bytes + EACH);
        }
        Ok(files)
    }

    fn used(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that a client is about to write.
    pub fn take(&self, Client(owner): Client, bytes: u64) -> Result<(), ApiError> {
        let mut used = self.used();
        let (own, all) = (used.get(&owner).copied().unwrap_or(0), used.values().sum::<u64>());
        let whose = if own.saturating_add(bytes) > self.limit / 2 {
            "your files take"
        } else if all.saturating_add(bytes) > self.limit {
            "files take"
        } else {
            used.insert(owner, own + bytes);
            return Ok(());
        };
        let message = format!("{whose} all the room that there is for them; delete some that are not needed any more");
        Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message))
    }

    /// Counts bytes that are there already.
    pub fn add(&self, Client(owner): Client, bytes: u64) {
        *self.used().entry(owner).or_default() += bytes;
    }

    /// Counts bytes of a client that are not there any more.
    pub fn give(&self, Client(owner): Client, bytes: u64) {
        let mut used = self.used();
        if let Some(own) = used.get_mut(&owner) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                used.remove(&owner);
            }
        }
    }

    /// Where what belongs to an id lies; none if it is not one.
    pub fn path(&self, id: &str, ending: &str) -> Option<PathBuf> {
        let (_, digits) = id.split_once(['-', '_'])?;
        let is_id = digits.len() == DIGITS && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let prefix = id.starts_with("file-") || id.starts_with("batch_");
        (is_id && prefix).then(|| self.folder.join(format!("{id}.{ending}")))
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
        let id = identity::unique("file-");
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
        let id = identity::unique("file-");
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
        let (filename, purpose, created_at) = (filename.to_owned(), purpose.to_owned(), identity::now());
        let description = Description { id, bytes, created_at, filename, purpose, owner: client.0 };
        self.take(client, EACH)?;
        self.write(&description.id, &description).inspect_err(|_| self.give(client, EACH))?;
        Ok(description)
    }

    /// The description of a client's file.
    pub fn get(&self, client: Client, id: &str) -> Result<Description, ApiError> {
        let found = self.read::<Description>(id).filter(|file| file.owner == client.0);
        found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("there is no file '{id}'")))
    }

    /// What is in it.
    pub fn content(&self, client: Client, id: &str) -> Result<File, ApiError> {
        self.get(client, id)?;
        let path = self.path(id, "data").unwrap_or_default();
        File::open(path).map_err(|error| ApiError::internal(format!("the file cannot be read: {error}")))
    }

    /// All files of a client, the oldest first.
    pub fn list(&self, client: Client) -> Vec<Description> {
        let mut files: Vec<Description> =
            self.all("file-").into_iter().filter(|f: &Description| f.owner == client.0).collect();
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        files
    }

    pub fn remove(&self, client: Client, id: &str) -> Result<(), ApiError> {
        let description = self.get(client, id)?;
        for path in ["json", "data"].into_iter().filter_map(|ending| self.path(id, ending)) {
            fs::remove_file(path)
                .map_err(|error| ApiError::internal(format!("the file cannot be removed: {error}")))?;
        }
        self.give(client, description.bytes + EACH);
        Ok(())
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

    /// All that is known of whose ids begin like this.
    pub fn all<T: DeserializeOwned>(&self, prefix: &str) -> Vec<T> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return vec![] };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
        ids.filter(|id| id.starts_with(prefix)).filter_map(|id| self.read(&id)).collect()
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
