//! GGUF, versions 2 and 3, little-endian: a [reader](parse) and a [writer](Writer).
//!
//! A file is a header, then metadata (key, type, value), then tensor infos (name, dimensions innermost first, type,
//! offset), then from the next multiple of the alignment on the tensors' bytes. Strings are a u64 length and bytes;
//! an array is an element type, a u64 count and the elements. The format is described in `docs/gguf.md` of ggml.

mod cursor;
mod parse;
mod split;
mod write;

pub use cursor::Type;
pub use parse::{Header, architecture, parse};
pub use write::{Field, Writer};

pub(crate) use cursor::Cursor;
pub(crate) use split::{is_later_part, open};

/// What every GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment of tensors unless `general.alignment` states another.
pub const DEFAULT_ALIGNMENT: usize = 32;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;
