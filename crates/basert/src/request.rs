//! Requests to a model, and the events of their answers.

use basert_engine::{EngineError, Pooling, Prompt, Readiness, Sampling, Token};
use basert_text::{Constraint, Event as Part};
use serde_json::Value;

/// A request: prompts to answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The client, between which steps are shared fairly.
    pub client: u64,
    /// Only requests with the same salt share cached prefixes.
    pub salt: u64,
    /// The prompts, each of which gets its own answers.
    pub prompts: Vec<Vec<u32>>,
    /// Number of answers to each prompt.
    pub n: usize,
    /// How tokens are sampled. The seed of each further answer is one more.
    pub sampling: Sampling,
    /// Limit on each answer's tokens; none means the rest of the context.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer and are not part of it.
    pub stop: Vec<String>,
    /// The constraint on each answer, which ends when the constraint is complete.
    pub constraint: Option<Constraint>,
    /// How answers are parsed; none means plain text.
    pub chat: Option<ChatAnswer>,
    /// Whether the tokens of answers are wanted beside their text.
    pub tokens: bool,
    /// If set, tokens are wanted with log probabilities, and with this many of the likeliest ones at each position.
    pub logprobs: Option<usize>,
    /// Whether those of the prompt are wanted, too.
    pub prompt_logprobs: bool,
    /// Continue after the model's end-of-text token.
    pub ignore_end: bool,
    /// Further tokens that end an answer in any case.
    pub ends: Vec<u32>,
    /// If set, embeddings are wanted instead of answers.
    pub pooling: Option<Pooling>,
    /// Whether they are left as they are, and not brought to length 1. Scores always are.
    pub is_raw: bool,
}

impl Default for Request {
    /// No prompts, with one answer to each.
    fn default() -> Request {
        Request {
            client: 0,
            salt: 0,
            prompts: Vec::new(),
            n: 1,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            constraint: None,
            chat: None,
            tokens: false,
            logprobs: None,
            prompt_logprobs: false,
            ignore_end: false,
            ends: Vec::new(),
            pooling: None,
            is_raw: false,
        }
    }
}

/// What is needed to parse reasoning and tool calls in an answer.
#[derive(Debug, Clone, Default)]
pub struct ChatAnswer {
    /// The text of the prompt.
    pub prompt: String,
    /// The tools that may be called.
    pub tools: Vec<Value>,
    /// Whether the answer ends after a call.
    pub one_call: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// This stop text appeared.
    Stop(String),
    /// The limit on tokens was reached, the context is full, or a tool call is incomplete.
    Length,
    /// The model called tools, and waits for their results.
    Calls,
}

/// Numbers of draft tokens of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Those that were checked.
    pub proposed: usize,
    /// Those of them that became tokens of the answer.
    pub accepted: usize,
}

/// An event of an answer, which is identified by its number in the request: the answers to the first prompt come first.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The progress of prefill.
    Prompt {
        /// The answer.
        choice: usize,
        /// Tokens of its prompt.
        prompt: Prompt,
    },
    /// The embedding that was wanted instead.
    Embedding {
        /// The prompt.
        choice: usize,
        /// A vector of length 1; or the scores of a model that gives scores.
        vector: Vec<f32>,
    },
    /// It goes on, by tokens if these are wanted. Those of the prompt may come first, all at once and without parts; the
    /// first of them has no probability.
    Piece {
        /// The answer.
        choice: usize,
        /// Text, reasoning and calls.
        parts: Vec<Part>,
        /// Tokens.
        tokens: Vec<Token>,
    },
    /// The answer is complete.
    End {
        /// The answer.
        choice: usize,
        /// Why it ended.
        finish: Finish,
        /// Number of all its tokens.
        tokens: usize,
        /// Number of its reasoning tokens.
        reasoning: usize,
        /// Its draft tokens.
        drafts: Drafts,
    },
}

/// Gets the events of an answer, on the model's thread between steps: it must return quickly.
pub trait Listener: Send {
    /// Whether it can take more events: those of one token, of each answer that it hears of.
    fn readiness(&self) -> Readiness;

    /// Gets an event, or why the answer failed, which is the last one.
    fn event(&mut self, event: Result<Event, EngineError>);

    /// Called at each token, before the events that it causes, if any.
    fn token(&mut self) {}
}

/// Events that one token of an answer may cause.
pub const BURST: usize = 4;
