//! Sequences, the KV cache, sampling and scheduling: what lies between a device and text.
//!
//! A [`Sequence`] is a timeline of tokens. The [`Engine`] owns the device and the pages of the KV cache, and brings
//! sequences up to date: [`Engine::advance`] takes any number of them, divides their uncomputed tokens into steps, and
//! leaves each with the logits of its last token. Prefill and decoding are the same operation. A [`Sampler`] samples
//! the next token from logits. A [`Scheduler`] shares the engine between many requests.
//!
//! Pages of closed sequences can be cached ([`Engine::with_prefix_cache`]): a page is found by exactly the tokens from
//! which it was computed. They can be saved to a file ([`Engine::save_prefixes`]) for another process.

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
pub use philox::Philox;
pub use pooling::Pooling;
pub use prefix_file::{PrefixFile, PrefixFileError};
pub use sampler::Sampler;
pub use sampling::{Sampling, SamplingError, SamplingOptions};
pub use schedule::{Answer, Prompt, Reader, Readiness, Request, Scheduler, Token, Turn};
pub use speculate::{Costs, Guesser, Speculation};
