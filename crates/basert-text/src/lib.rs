//! Text at the two ends of a model: what goes in as token ids and what comes out as characters.
//!
//! - [`Tokenizer`] turns text into ids and ids into text. It is built either from the metadata of a GGUF file
//!   ([`Tokenizer::from_gguf`]) or from the `tokenizer.json` of a Hugging Face folder ([`Tokenizer::from_hf_dir`]).
//! - [`Detokenizer`] does the second half one token at a time and never hands out part of a character.
//! - [`ChatTemplate`] writes a conversation the way a model was trained to read it.
//! - [`Dialect`] is how a model writes calls of tools and its reasoning; a [`Parser`] takes an answer apart by it.
//!
//! ```
//! use basert_text::{ChatRequest, ChatTemplate};
//! use serde_json::json;
//!
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
//! )?;
//! let messages = [json!({"role": "user", "content": "Hi"})];
//! let prompt = template.render(&ChatRequest { messages: &messages, add_generation_prompt: true, ..Default::default() })?;
//! assert_eq!(prompt, "<|user|>Hi<|assistant|>");
//! # Ok::<(), basert_text::TemplateError>(())
//! ```

#![forbid(unsafe_code)]

mod detokenizer;
mod dialect;
mod error;
mod grammar;
mod prompt;
mod stack;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use dialect::{CallGrammar, Dialect, DialectError, Event, Parser, ParserOptions};
pub use error::{TemplateError, TokenizerError};
pub use grammar::{Constraint, Grammar, GrammarCompiler, GrammarError, Preface, relaxed};
pub use prompt::{Chat, Ending, Prompt};
pub use stop::StopTexts;
pub use template::{ChatRequest, ChatTemplate};
pub use tokenizer::{EncodeOptions, GgufVocabulary, HuggingFaceFiles, Tokenizer};
