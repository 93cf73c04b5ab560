//! Model files, read through memory mappings.
//!
//! [`ModelFile::open`] maps a GGUF file (all its parts) or a Hugging Face folder into memory and gives one view of
//! both: metadata by dotted key, and tensors by name, with row-major shapes and bytes that are slices of the mapping.
//! Nothing large is copied: an array of a quarter of a million token strings is an iterator over the mapping.
//!
//! The parsers ([`gguf::parse`], [`hf::parse_safetensors`]) take byte slices and trust nothing in them: a malformed
//! file is a [`FileError`] that names the file, the field, and what was expected there.
//!
//! ```no_run
//! use basert_files::{ModelFile, Value};
//!
//! let model = ModelFile::open("model.gguf")?;
//! let layers = model.get("llama.block_count").and_then(Value::as_u64);
//! for tensor in model.tensors() {
//!     println!("{} {} {:?}", tensor.name, tensor.format, tensor.shape);
//! }
//! # Ok::<(), basert_files::FileError>(())
//! ```

mod error;
pub mod gguf;
pub mod hf;
mod map;
mod model;
mod tensor;
mod value;
mod write;

pub use error::{FileError, Problem};
pub use map::Mapping;
pub use model::{Kind, ModelFile};
pub use tensor::{Tensor, TensorInfo, TensorSpec};
pub use value::{Array, ArrayIter, Value};
pub use write::TensorWriter;
