//! What is asked of the scheduler, and who is told.

use crate::{Allowed, EngineError, Pooling, Sampler, TokenLogprobs};

/// A prompt, and the answers that are wanted to it.
pub struct Request {
    /// Whose it is: steps are shared fairly between clients.
    pub client: u64,
    /// Only requests of the same salt share what is cached of their prompts and answers.
    pub salt: u64,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// One or more; they share what is computed of the prompt.
    pub answers: Vec<Answer>,
    /// Whether they get a vector of the prompt's hidden states instead of tokens.
    pub pooling: Option<Pooling>,
    /// Whether they get the tokens of the prompt with log probabilities first, and of how many of the likeliest tokens at
    /// each place.
    pub prompt_logprobs: Option<usize>,
}

/// An answer that is wanted.
pub struct Answer {
    /// Chooses its tokens.
    pub sampler: Sampler,
    /// The most there may be.
    pub max_tokens: usize,
    /// Whether log probabilities are wanted, and of how many of the likeliest tokens at each place.
    pub logprobs: Option<usize>,
    /// Gets them.
    pub reader: Box<dyn Reader>,
}

/// Whether a reader takes what there is for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// It does.
    Ready,
    /// Not now: its answer waits.
    Busy,
    /// Never more: its answer ends without another word.
    Gone,
}

/// A token of an answer, or of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// If they are wanted.
    pub logprobs: Option<TokenLogprobs>,
}

/// How far a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub tokens: usize,
    /// Of these, those that are computed or found.
    pub done: usize,
    /// Of these, those that were found in the cache.
    pub cached: usize,
}

/// Whoever gets an answer. It is called between steps and must not take long.
pub trait Reader: Send {
    /// Whether it takes another token.
    fn attention(&self) -> Attention;

    /// The prompt is that far; called once at least, before the first token.
    fn prompt(&mut self, prompt: Prompt);

    /// Takes the next token of the prompt, from the second on, where their log probabilities are wanted.
    fn prompt_token(&mut self, _token: Token) {}

    /// Whether only some tokens may come next.
    fn is_constrained(&self) -> bool {
        false
    }

    /// Those that may come next, or why none may, which ends the answer. It is called while the device computes, and may
    /// take as long as that; asked again before it was given a token, it says the same at once.
    fn mask(&mut self) -> Allowed<'_> {
        Ok(None)
    }

    /// Takes a token, and says whether another one is wanted. If not, nothing more is said.
    fn token(&mut self, token: Token) -> bool;

    /// Takes the vector, of length 1, where that is wanted instead of tokens.
    fn embedding(&mut self, _vector: Vec<f32>) {}

    /// There are no more tokens: as many as may be or as fit the context were taken, or something failed.
    fn end(&mut self, result: Result<(), EngineError>);
}
