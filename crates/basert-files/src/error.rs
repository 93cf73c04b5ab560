use std::io;
use std::path::{Path, PathBuf};

/// Why a model file could not be read: which file, and what is wrong in it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with the contents of a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operating system reported an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file ends too early.
    #[error("the file ends inside {field}: it takes {needed} bytes at offset {offset}, and {available} are left")]
    Truncated {
        /// What was being read.
        field: String,
        /// Where it begins.
        offset: u64,
        /// Bytes it takes.
        needed: u64,
        /// Bytes from there to the end of the file.
        available: u64,
    },
    /// A field holds an invalid value.
    #[error("{field} is {found}; expected {expected}")]
    Invalid {
        /// The field or tensor.
        field: String,
        /// What it holds.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A name that must be unique is not.
    #[error("{field} appears more than once")]
    Duplicate {
        /// The metadata key or tensor.
        field: String,
    },
    /// A required item is missing.
    #[error("{what} is missing: {hint}")]
    Missing {
        /// The file, field or tensor.
        what: String,
        /// What needs it, or what to do.
        hint: String,
    },
    /// A valid file of a kind that this library does not read.
    #[error("{what} is not supported; {supported}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What can be read instead.
        supported: String,
    },
}

impl Problem {
    pub(crate) fn invalid(field: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Problem {
        Problem::Invalid { field: field.into(), found: found.into(), expected: expected.into() }
    }

    pub(crate) fn missing(what: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem::Missing { what: what.into(), hint: hint.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, supported: impl Into<String>) -> Problem {
        Problem::Unsupported { what: what.into(), supported: supported.into() }
    }

    pub(crate) fn json(what: impl Into<String>, error: &serde_json::Error) -> Problem {
        Problem::invalid(what, format!("not what it should be ({error})"), "JSON of the documented shape")
    }

    /// This problem, of the file at `path`.
    pub(crate) fn of(self, path: &Path) -> FileError {
        FileError { path: path.to_owned(), problem: self }
    }
}
