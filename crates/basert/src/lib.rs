//! Large language models on the machine in front of you.
//!
//! A [`Model`] is opened from a GGUF file or a Hugging Face folder. [`Model::generate`] answers a prompt. For more
//! control, a [`Session`] is one timeline of tokens: [`Session::sync`] sets the timeline and computes only its new
//! tokens, and [`Session::logits`] are those of the next token.
//!
//! ```
//! use std::io::Write;
//!
//! use basert::{Generation, Model, Options};
//!
//! # fn main() -> Result<(), basert::Error> {
//! # let path = basert_testkit::smollm2();
//! let model = Model::open(&path, Options::default())?;
//! let options = Generation { max_tokens: 16, ..Generation::greedy() };
//! let answer = model.generate("The capital of France is", &options, |piece| {
//!     print!("{piece}");
//!     std::io::stdout().flush().is_ok()
//! })?;
//! assert!(answer.text.contains("Paris"));
//! # Ok(())
//! # }
//! ```
//!
//! Chats are rendered with the model's own template:
//!
//! ```
//! use std::io::Write;
//!
//! use basert::{Event, Generation, Message};
//!
//! # use basert::{Model, Options};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = basert_testkit::smollm2();
//! # let model = Model::open(&path, Options::default())?;
//! let messages = [Message::user("Name three primary colours.")];
//! let prompt = model.chat_prompt(&messages, None)?;
//! let mut session = model.session();
//! for part in session.answer(&prompt, &Generation { max_tokens: 24, ..Generation::default() })? {
//!     // Reasoning is a part, too; only the content is printed.
//!     if let Event::Content(text) = part? {
//!         print!("{text}");
//!         std::io::stdout().flush()?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod chat;
mod device;
mod digest;
mod error;
mod generate;
mod memory;
mod model;
pub mod ops;
mod pooling;
mod sampling;
mod scorer;
mod session;
mod text;
pub mod tune;

pub use basert_core::KvFormat;
pub use basert_engine::{
    Allowed, Engine, Pooling, PrefixFile, PrefixFileError, Sampler, Sampling, SamplingOptions, Speculation,
};
pub use basert_text::{
    ChatRequest, ChatTemplate, Constraint, Detokenizer, EncodeOptions, Event, Grammar, GrammarError, Tokenizer,
};
pub use chat::{ChatPrompt, Message, Parts};
pub use device::DeviceKind;
pub use error::Error;
pub use generate::{Answer, Finish, Generation, Pieces};
pub use model::{Model, Mtp, Options, Progress, Stage};
pub use scorer::Scorer;
pub use session::Session;
pub use text::tokenizer;

pub use {basert_core as core, basert_files as files, basert_graph as graph, basert_hub as hub, basert_plan as plan};
