//! What lies between a device and text.
//!
//! A [`Sequence`] is a timeline of tokens. The [`Engine`] owns the device and the pages of the KV cache, and brings
//! sequences up to date: [`Engine::advance`] takes any number of them, cuts what they lack into steps, and leaves each
//! with the logits of its last token. There is no prefill and no decode: computed tokens catch up with wanted ones.
//! A [`Sampler`] turns logits into the next token. A [`Scheduler`] shares the engine between many requests.
//!
//! Pages of sequences that were closed can be kept ([`Engine::with_prefix_cache`]): they are found again by exactly the
//! tokens that they were computed from, and in a file ([`Engine::save_prefixes`]) also by another process.

#![forbid(unsafe_code)]

mod bit_exact;
mod block_maxima;
mod draft;
mod engine;
mod logprobs;
mod pages;
mod philox;
mod pooling;
mod prefix;
mod prefix_file;
mod sampler;
mod sampling;
mod schedule;
mod speculate;

pub use draft::{Ask, Draft};
pub use engine::{Allowed, Drawing, Engine, EngineError, PageUse, Part, Sequence};
pub use logprobs::TokenLogprobs;
pub use pages::PagePool;
pub use philox::Philox;
pub use pooling::Pooling;
pub use prefix_file::{PrefixFile, PrefixFileError};
pub use sampler::Sampler;
pub use sampling::{Sampling, SamplingError, SamplingOptions};
pub use schedule::{Answer, Attention, Prompt, Reader, Request, Scheduler, Token, Turn};
pub use speculate::{Costs, Guesser, Speculation};
