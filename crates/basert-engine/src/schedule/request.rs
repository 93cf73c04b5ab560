//! Requests to the scheduler, and the callbacks that get their results.

use crate::{Allowed, EngineError, Pooling, Sampler, TokenLogprobs};

/// A prompt, and the answers wanted for it.
pub struct Request {
    /// The client, between which steps are shared fairly.
    pub client: u64,
    /// Only requests with the same salt share cached prefixes.
    pub salt: u64,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// One or more answers, which share the prompt's KV cache.
    pub answers: Vec<Answer>,
    /// If set, readers get the hidden states of the prompt, pooled in this way, instead of tokens.
    pub pooling: Option<Pooling>,
    /// If set, readers first get the prompt's tokens with log probabilities, and with this many of the likeliest tokens
    /// at each position.
    pub prompt_logprobs: Option<usize>,
}

/// A wanted answer.
pub struct Answer {
    /// The sampler of its tokens.
    pub sampler: Sampler,
    /// Limit on its tokens.
    pub max_tokens: usize,
    /// If set, log probabilities are wanted, with this many of the likeliest tokens at each position.
    pub logprobs: Option<usize>,
    /// Gets the tokens.
    pub reader: Box<dyn Reader>,
}

/// Whether a reader can take more tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// Not now: the answer waits.
    Busy,
    /// The reader is gone: the answer ends without a further call.
    Gone,
}

/// A token of an answer, or of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token's id.
    pub id: u32,
    /// Log probabilities, if wanted.
    pub logprobs: Option<TokenLogprobs>,
    /// Whether a draft token was the same.
    pub was_drafted: bool,
}

/// The progress of a prompt's prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Tokens that are computed or were cached.
    pub done: usize,
    /// Tokens that were cached.
    pub cached: usize,
}

/// Callbacks that get an answer. They are called between steps and must return quickly.
pub trait Reader: Send {
    /// Whether the reader can take another token.
    fn readiness(&self) -> Readiness;

    /// Gets the progress of the prompt; called at least once, before the first token.
    fn prompt(&mut self, prompt: Prompt);

    /// Gets the next token of the prompt, from the second on, if their log probabilities are wanted.
    fn prompt_token(&mut self, _token: Token) {}

    /// Whether the next token is constrained.
    fn is_constrained(&self) -> bool {
        false
    }

    /// The mask of the next token, or why no token is allowed, which ends the answer. It is called while the device
    /// computes, and may take as long as that; a second call before the next token must return the same at once.
    fn mask(&mut self) -> Allowed<'_> {
        Ok(None)
    }

    /// Called when so many draft tokens were checked, before the tokens that come of it.
    fn drafted(&mut self, _proposed: usize) {}

    /// Gets a token, and returns whether another one is wanted. If not, there are no further calls.
    fn token(&mut self, token: Token) -> bool;

    /// Gets the pooled hidden states, if that is wanted instead of tokens.
    fn embedding(&mut self, _vector: Vec<f32>) {}

    /// Called when there are no more tokens: the limit was reached, the context is full, or there was an error.
    fn end(&mut self, result: Result<(), EngineError>);
}
