//! Number formats of model weights, and of cached keys and values.
//!
//! A weight is a matrix whose rows are cut into *blocks*: a few bytes that stand for a fixed number of values.
//! [`Format`] names every format, [`BlockFormat`] describes one as data (geometry, where scales and codes lie, how a
//! value is decoded), and [`codec`] reads that description: there is one reference decoder and one reference encoder
//! for all formats, and faster implementations elsewhere are checked against them.

#![forbid(unsafe_code)]

pub mod codec;
mod error;
mod format;
mod kv;

pub use error::FormatError;
pub use format::{Base, BlockFormat, Codes, FORMATS, Format, GroupScales, Plane, Value};
pub use kv::KvFormat;
