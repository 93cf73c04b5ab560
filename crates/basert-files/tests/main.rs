//! Reading and writing of model files.

mod folders;
mod gguf;
mod malformed_gguf;
