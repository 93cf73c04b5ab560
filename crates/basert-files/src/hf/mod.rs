//! Hugging Face folders: `config.json`, and tensors in safetensors files.

mod config;
mod folder;
mod safetensors;
mod write;

pub use safetensors::parse_safetensors;
pub use write::write_folder;

pub(crate) use config::{all, lookup};
pub(crate) use folder::open;
