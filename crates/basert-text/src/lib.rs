//! Text at the two ends of a model: what goes in as token ids and what comes out as characters.
//!
//! - [`Tokenizer`] turns text into ids and ids into text. It is built either from the metadata of a GGUF file
//!   ([`Tokenizer::from_gguf`]) or from the `tokenizer.json` of a Hugging Face folder ([`Tokenizer::from_hf_dir`]).
//! - [`Detokenizer`] does the second half one token at a time and never hands out part of a character.
//! - [`ChatTemplate`] writes a conversation the way a model was trained to read it.

mod detokenizer;
mod error;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use error::{TemplateError, TokenizerError};
pub use template::{ChatRequest, ChatTemplate};
pub use tokenizer::{EncodeOptions, GgufVocabulary, HuggingFaceFiles, Tokenizer};
