//! Large language models on the machine in front of you.
//!
//! A [`Model`] is opened from a GGUF file or a Hugging Face folder. [`Model::generate`] answers a prompt. For more
//! control, a [`Session`] is one timeline of tokens: [`Session::sync`] makes it what it should be, computing only what
//! is new, and its logits say what may follow.
//!
//! ```
//! use basert::{Generation, Model, Options};
//!
//! # fn main() -> Result<(), basert::Error> {
//! # let path = basert_testkit::smollm2();
//! let model = Model::open(&path, Options::default())?;
//! let options = Generation { max_tokens: 16, ..Generation::default() };
//! let answer = model.generate("The capital of France is", &options, |piece| {
//!     print!("{piece}");
//!     true
//! })?;
//! assert!(answer.text.contains("Paris"));
//! # Ok(())
//! # }
//! ```
//!
//! Chat goes through the model's own template:
//!
//! ```
//! # use basert::{Generation, Message, Model, Options};
//! # fn main() -> Result<(), basert::Error> {
//! # let path = basert_testkit::smollm2();
//! # let model = Model::open(&path, Options::default())?;
//! let messages = [Message::user("Name three primary colours.")];
//! let prompt = model.chat_tokens(&messages, None)?;
//! let mut session = model.session();
//! for piece in session.generate(&prompt, &Generation { max_tokens: 24, ..Generation::default() })? {
//!     print!("{}", piece?);
//! }
//! # Ok(())
//! # }
//! ```

mod chat;
mod device;
mod digest;
mod error;
mod generate;
mod memory;
mod model;
pub mod ops;
mod session;
mod text;
pub mod tune;

pub use basert_core::KvFormat;
pub use basert_engine::{Allowed, Engine, Pooling, PrefixFile, PrefixFileError, Sampler, Sampling, Speculation};
pub use basert_text::{
    ChatRequest, ChatTemplate, Constraint, Detokenizer, EncodeOptions, Grammar, GrammarError, Tokenizer,
};
pub use chat::Message;
pub use device::DeviceKind;
pub use error::Error;
pub use generate::{Answer, Finish, Generation, Pieces};
pub use model::{Model, Options, Progress, Stage};
pub use session::Session;

pub use {basert_core as core, basert_files as files, basert_graph as graph, basert_hub as hub, basert_plan as plan};
