//! Files that clients leave here, in a folder: the content beside a description.

use std::fs;
use std::io;
use std::path::PathBuf;

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
}

/// What is known of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    pub id: String,
    pub bytes: usize,
    pub created_at: u64,
    pub filename: String,
    pub purpose: String,
    pub owner: u64,
}

/// Digits of an id, behind its prefix.
const DIGITS: usize = 32;

impl Files {
    /// Makes the folder if there is none.
    pub fn open(folder: PathBuf) -> io::Result<Files> {
        fs::create_dir_all(&folder)?;
        Ok(Files { folder })
    }

    /// Where what belongs to an id lies; none if it is not one.
    fn path(&self, id: &str, ending: &str) -> Option<PathBuf> {
        let (_, digits) = id.split_once(['-', '_'])?;
        let is_id = digits.len() == DIGITS && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let prefix = id.starts_with("file-") || id.starts_with("batch_");
        (is_id && prefix).then(|| self.folder.join(format!("{id}.{ending}")))
    }

    /// Keeps a file. What was written of it is removed again if it cannot be kept.
    pub fn create(
        &self,
        Client(owner): Client,
        filename: &str,
        purpose: &str,
        content: &[u8],
    ) -> Result<Description, ApiError> {
        let id = identity::unique("file-");
        let (filename, purpose, created_at) = (filename.to_owned(), purpose.to_owned(), identity::now());
        let description = Description { id: id.clone(), bytes: content.len(), created_at, filename, purpose, owner };
        let Some(path) = self.path(&id, "data") else { return Err(ApiError::internal("an id that is none")) };
        let written = fs::write(&path, content).map_err(|error| full(&error));
        let kept = written.and_then(|()| self.write(&id, &description));
        if kept.is_err() {
            // What matters is why it failed, not whether this did as well.
            let _ = fs::remove_file(&path);
        }
        kept.map(|()| description)
    }

    /// The description of a client's file.
    pub fn get(&self, client: Client, id: &str) -> Result<Description, ApiError> {
        let found = self.read::<Description>(id).filter(|file| file.owner == client.0);
        found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("there is no file '{id}'")))
    }

    /// What is in it.
    pub fn content(&self, client: Client, id: &str) -> Result<Vec<u8>, ApiError> {
        self.get(client, id)?;
        let path = self.path(id, "data").unwrap_or_default();
        fs::read(path).map_err(|error| ApiError::internal(format!("the file cannot be read: {error}")))
    }

    /// All files of a client, the oldest first.
    pub fn list(&self, client: Client) -> Vec<Description> {
        let mut files: Vec<Description> =
            self.all("file-").into_iter().filter(|f: &Description| f.owner == client.0).collect();
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        files
    }

    pub fn remove(&self, client: Client, id: &str) -> Result<(), ApiError> {
        self.get(client, id)?;
        for path in ["json", "data"].into_iter().filter_map(|ending| self.path(id, ending)) {
            fs::remove_file(path)
                .map_err(|error| ApiError::internal(format!("the file cannot be removed: {error}")))?;
        }
        Ok(())
    }

    /// Writes what is known of something, in one piece.
    pub fn write(&self, id: &str, value: &impl Serialize) -> Result<(), ApiError> {
        let (Some(path), Some(part)) = (self.path(id, "json"), self.path(id, "part")) else {
            return Err(ApiError::internal("an id that is none"));
        };
        let text = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
        fs::write(&part, text).and_then(|()| fs::rename(&part, path)).map_err(|error| full(&error))
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

fn full(error: &io::Error) -> ApiError {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, format!("the file cannot be kept: {error}"))
}
