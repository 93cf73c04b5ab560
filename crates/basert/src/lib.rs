//! Large language models on the machine in front of you.
//!
//! A [`Model`] is opened from a GGUF file or a Hugging Face folder. It has a thread of its own, on which a scheduler
//! shares its engine between requests, so any number of threads may ask it at once. [`Model::generate`] continues a text:
//!
//! ```
//! use std::io::Write;
//!
//! use basert::{Generation, Model, Options};
//!
//! # fn main() -> Result<(), basert::Error> {
//! # let path = basert_testkit::smollm2();
//! let model = Model::open(&path, Options::default())?;
//! let options = Generation { max_tokens: Some(16), ..Generation::greedy() };
//! let answer = model.generate("The capital of France is", &options, |piece| {
//!     print!("{piece}");
//!     std::io::stdout().flush().is_ok()
//! })?;
//! assert!(answer.text.contains("Paris"));
//! # Ok(())
//! # }
//! ```
//!
//! [`Model::chat`] answers messages, with the model's own template:
//!
//! ```
//! use basert::{Generation, Message};
//!
//! # use basert::{Model, Options};
//! # fn main() -> Result<(), basert::Error> {
//! # let path = basert_testkit::smollm2();
//! # let model = Model::open(&path, Options::default())?;
//! let messages = [Message::system("Answer briefly."), Message::user("Name three primary colours.")];
//! let options = Generation { max_tokens: Some(24), ..Generation::default() };
//! let answer = model.chat(&messages, &[], None, &options, |_| true)?;
//! println!("{} ({} tokens, {:?})", answer.text, answer.tokens.len(), answer.finish);
//! # Ok(())
//! # }
//! ```
//!
//! What is below these is a [`Request`]: several prompts, several answers to each, tools, a constraint, log
//! probabilities. [`Model::answers`] gives its [events](Event) one after the other, and [`Model::submit`] sends them to
//! listeners. The folder `examples` has a program for each.

#![forbid(unsafe_code)]

mod answers;
mod chat;
mod device;
mod digest;
mod error;
mod info;
mod loaded;
mod memory;
mod model;
mod options;
mod pooled;
mod pooling;
mod random;
mod rank;
mod reader;
mod request;
mod runner;
mod sampling;
mod scorer;
mod text;

pub use answers::{Answer, Answers, Generation, ToolCall};
pub use basert_core::KvFormat;
pub use basert_engine::{
    Engine, EngineError, PageUse, Pooling, PrefixFile, PrefixFileError, Prompt, Readiness, Sampler, Sampling,
    SamplingOptions, Sequence, Speculation, Token, TokenLogprobs, Turn,
};
pub use basert_plan::{Progress, Stage};
pub use basert_text::{
    CallGrammar, ChatTemplate, Constraint, Detokenizer, EncodeOptions, Event as Part, Grammar, GrammarError, Tokenizer,
};
pub use chat::{ChatPrompt, Message};
pub use device::DeviceKind;
pub use error::Error;
pub use info::ModelInfo;
pub use loaded::Loaded;
pub use model::Model;
pub use options::{Mtp, Options, Scheduling};
pub use request::{BURST, ChatAnswer, Drafts, Event, Finish, Listener, Request};
pub use runner::{Counts, Observer};
pub use scorer::Scorer;
pub use text::tokenizer;

pub use {basert_core as core, basert_files as files, basert_graph as graph, basert_plan as plan};
