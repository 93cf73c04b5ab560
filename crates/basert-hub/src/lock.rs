//! One pull or removal of a model at a time, among all processes of the machine.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::reference::ModelId;

/// Folder of lock files in the store's root.
const FOLDER: &str = ".locks";

/// Held while alive. The operating system releases it when the process ends, however it ends; the empty lock file
/// stays, because removing one that another process has opened would let two in.
pub(crate) struct ModelLock {
    _file: File,
}

impl ModelLock {
    /// Takes the lock, or fails with [`Error::Busy`].
    pub(crate) fn take(root: &Path, id: &ModelId, variant: &str) -> Result<ModelLock> {
        let folder = root.join(FOLDER);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        // `/` cannot occur in the parts, and the file system may ignore case.
        let path = folder.join(format!("{}+{}+{variant}", id.org(), id.name()).to_ascii_lowercase());
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(ModelLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { model: format!("{id}:{variant}") }),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
        }
    }

    /// Takes the lock, after waiting for its holder if need be.
    pub(crate) fn wait(root: &Path, id: &ModelId, variant: &str, progress: &dyn Progress) -> Result<ModelLock> {
        let mut told = false;
        loop {
            match ModelLock::take(root, id, variant) {
                Err(Error::Busy { model }) => {
                    if !std::mem::replace(&mut told, true) {
                        progress.note(&format!("waiting for another pull of `{model}` to finish"));
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                other => return other,
            }
        }
    }
}
