//! Errors of tokenizers and templates, which name what was found and what is expected.

use std::path::PathBuf;

/// Why a tokenizer could not be built or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A field of the model file's metadata, or of one of the JSON files, is missing or wrong.
    #[error("{field}: {found}; expected {expected}")]
    Field {
        /// The metadata key, or the file and the key in it.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text could not be encoded.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

impl TokenizerError {
    pub(crate) fn field(field: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Field { field: field.into(), found: found.into(), expected: expected.into() }
    }
}

/// Why a chat template could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template does not parse: line {line}: {reason}")]
    Parse {
        /// Line of the template, from 1.
        line: usize,
        /// What the parser expected.
        reason: String,
    },
    /// The template failed while it was rendered; includes `raise_exception` and exceeded limits.
    #[error("the chat template failed: line {line}: {reason}")]
    Render {
        /// Line of the template, from 1.
        line: usize,
        /// What went wrong.
        reason: String,
    },
    /// The conversation does not have the form that a chat template expects.
    #[error("{field}: {found}; expected {expected}")]
    Request {
        /// Which part of the request.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
}
