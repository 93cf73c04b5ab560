//! Text before and after a model: tokenizers, chat templates, dialects and grammars.
//!
//! - [`Tokenizer`] turns text into ids and ids into text. It is built either from the metadata of a GGUF file
//!   ([`Tokenizer::from_gguf`]) or from the `tokenizer.json` of a Hugging Face folder ([`Tokenizer::from_hf_dir`]).
//! - [`Detokenizer`] turns ids into text one token at a time, only in whole characters.
//! - [`ChatTemplate`] renders a conversation in the form that a model was trained on.
//! - [`Dialect`] is how a model writes tool calls and reasoning; a [`Parser`] parses answers by it.
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
pub use tokenizer::{EncodeOptions, FillIn, FillInTokens, GgufVocabulary, HuggingFaceFiles, Pair, Tokenizer};
