//! Hugging Face folders: `config.json`, and tensors in safetensors files.

mod config;
mod folder;
mod json;
mod safetensors;
mod write;

pub use json::read as read_json;
pub use safetensors::parse_safetensors;
pub use write::write_folder;

pub(crate) use config::{all, lookup};
pub(crate) use folder::open;
