//! What lies between a device and text.
//!
//! A [`Sequence`] is a timeline of tokens. The [`Engine`] owns the device and the pages of the KV cache, and brings
//! sequences up to date: [`Engine::advance`] takes any number of them, cuts what they lack into steps, and leaves each
//! with the logits of its last token. There is no prefill and no decode: computed tokens catch up with wanted ones.
//! A [`Sampler`] turns logits into the next token.

mod engine;
mod exact;
mod pages;
mod philox;
mod sampler;

pub use engine::{Drawing, Engine, EngineError, Sequence};
pub use pages::PagePool;
pub use philox::Philox;
pub use sampler::{Sampler, Sampling, SamplingError};
