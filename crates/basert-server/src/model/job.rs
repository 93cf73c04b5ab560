//! Jobs for a model, and the events of their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::StatusCode;
use basert_engine::{EngineError, Pooling, Prompt, Sampling, Token};
use basert_text::{Constraint, Event as Part};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::work;

/// A job: prompts to answer.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The client.
    pub client: u64,
    /// Only jobs with the same salt share cached prefixes.
    pub salt: u64,
    /// The prompts, each of which gets its own answers.
    pub prompts: Vec<Vec<u32>>,
    /// Number of answers to each prompt.
    pub n: usize,
    pub sampling: Sampling,
    /// Limit on each answer's tokens.
    pub max_tokens: Option<usize>,
    /// Stop texts.
    pub stop: Vec<String>,
    /// The constraint on each answer.
    pub constraint: Option<Constraint>,
    /// How answers are parsed; none means plain text.
    pub chat: Option<ChatAnswer>,
    /// If set, log probabilities are wanted, with this many tokens at each position.
    pub logprobs: Option<usize>,
    /// Whether those of the prompt are wanted, too.
    pub prompt_logprobs: bool,
    /// Continue after the model's end-of-text token.
    pub ignore_end: bool,
    /// Further tokens that end an answer in any case.
    pub ends: Vec<u32>,
    /// If set, embeddings are wanted instead of answers.
    pub pooling: Option<Pooling>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// This stop text appeared.
    Stop(String),
    /// The limit on tokens was reached, or a tool call is incomplete.
    Length,
    /// The model called tools, and waits for their results.
    Calls,
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

/// One of the likeliest tokens, and its log probability.
type Likely = (u32, f32);

/// The bytes of a token with this many of the likeliest ones.
pub fn token_bytes(top: usize) -> usize {
    size_of::<Token>() + top * size_of::<Likely>()
}

/// Adds tokens to those of an answer that is sent as a whole. What they take of memory counts until it is sent.
pub fn keep(kept: &mut Vec<Token>, more: Vec<Token>) -> Result<(), ApiError> {
    let before = kept.capacity();
    let likely = more.iter().flat_map(|token| &token.logprobs).map(|logprobs| logprobs.top.capacity()).sum::<usize>();
    kept.extend(more);
    work::hold((kept.capacity() - before) * size_of::<Token>() + likely * size_of::<Likely>())
}

/// An event of an answer, which is identified by its index in the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The progress of prefill.
    Prompt { choice: usize, prompt: Prompt },
    /// The embedding that was wanted instead.
    Embedding { choice: usize, vector: Vec<f32> },
    /// It goes on, by tokens if their log probabilities are wanted. Those of the prompt may come first, all at once and
    /// without parts; the first of them has no probability.
    Piece { choice: usize, parts: Vec<Part>, tokens: Vec<Token> },
    /// The answer is complete, with its numbers of all tokens and of reasoning tokens.
    End { choice: usize, finish: Finish, tokens: usize, reasoning: usize },
    /// The answer failed.
    Failed { error: ApiError },
}

/// The events of a job's answers. Dropping it ends the answers.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    /// Number of answers that have not ended.
    left: usize,
    deadline: Instant,
    /// Whether the model was told to end: then what it did not come to was not its failure.
    unloaded: Arc<AtomicBool>,
}

/// Events that one answer may cause between two looks at whether there is room.
pub const BURST: usize = 4;

impl Events {
    /// Room for the events of so many answers, and some more, so that a reader need not wait for each.
    pub fn channel(answers: usize, deadline: Instant, unloaded: Arc<AtomicBool>) -> (mpsc::Sender<Event>, Events) {
        let (sender, receiver) = mpsc::channel(BURST * answers + 64);
        (sender, Events { receiver, left: answers, deadline, unloaded })
    }

    /// The next event; none after all answers have ended, or one failed.
    pub async fn next(&mut self) -> Option<Event> {
        if self.left == 0 {
            return None;
        }
        let event = tokio::time::timeout_at(self.deadline.into(), self.receiver.recv()).await;
        let failed = |status, message: &str| Event::Failed { error: ApiError::new(status, message) };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) if self.unloaded.load(Ordering::Relaxed) => Event::Failed { error: EngineError::Stopped.into() },
            Ok(None) if Instant::now() < self.deadline => {
                failed(StatusCode::INTERNAL_SERVER_ERROR, "the model failed and has to be loaded again")
            }
            // Perhaps it was ended before anybody looked here.
            _ => failed(StatusCode::GATEWAY_TIMEOUT, "the answer took longer than the server allows"),
        };
        match &event {
            Event::End { .. } => self.left -= 1,
            Event::Failed { .. } => {
                self.left = 0;
                self.receiver.close();
            }
            _ => {}
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_a_model_did_not_come_to_failed_only_if_the_model_did() {
        for (unloaded, status) in [(true, StatusCode::SERVICE_UNAVAILABLE), (false, StatusCode::INTERNAL_SERVER_ERROR)]
        {
            let deadline = Instant::now() + Duration::from_secs(60);
            let (sender, mut events) = Events::channel(1, deadline, Arc::new(AtomicBool::new(unloaded)));
            drop(sender);
            let Some(Event::Failed { error }) = events.next().await else { panic!("it has to fail") };
            assert_eq!(error.status, status);
            assert_eq!(events.next().await, None);
        }
    }
}
