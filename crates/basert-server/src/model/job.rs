//! What a model is asked, and what comes of it.

use std::time::Instant;

use axum::http::StatusCode;
use basert_engine::{Pooling, Prompt, Sampling};
use basert_text::{Constraint, Event as Part};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::ApiError;

/// Prompts to be answered.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Whose it is.
    pub client: u64,
    /// Only those of the same salt share what is cached.
    pub salt: u64,
    /// Each one gets its own answers.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each.
    pub n: usize,
    pub sampling: Sampling,
    /// The most tokens of each answer.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// What each answer has to be.
    pub constraint: Option<Constraint>,
    /// How answers are taken apart; they are plain text where this is none.
    pub chat: Option<ChatAnswer>,
    /// Whether log probabilities are wanted, and of how many tokens in each place.
    pub logprobs: Option<usize>,
    /// Whether those of the prompt are wanted too.
    pub prompt_logprobs: bool,
    /// Go on after the model says that the answer is complete.
    pub ignore_end: bool,
    /// Whether vectors are wanted instead of answers.
    pub pooling: Option<Pooling>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    End,
    /// This stop text came.
    Stop(String),
    /// There are as many tokens as may be, or a call of a tool is not whole.
    Length,
    /// It calls tools, and wants to know what they say.
    Calls,
}

/// What has to be known to find reasoning and calls of tools in an answer.
#[derive(Debug, Clone, Default)]
pub struct ChatAnswer {
    /// The text of the prompt.
    pub prompt: String,
    /// The tools that may be called.
    pub tools: Vec<Value>,
    /// Whether the answer ends after a call.
    pub one_call: bool,
}

/// A token by itself, with its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    pub id: u32,
    /// What it stands for, which may be a part of a character.
    pub bytes: Vec<u8>,
    /// Not a number for the first token of a prompt, which nothing predicts.
    pub logprob: f32,
    /// The likeliest ones in its place.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

impl TokenText {
    /// What a token takes of memory until its answer is sent, with so many of the likeliest ones, in bytes: its text,
    /// its place in JSON with what is around it, and JSON's text.
    pub fn size(top: usize) -> usize {
        (top + 1) * 512
    }
}

/// Something that happened to an answer, which goes by its number among all of the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is that far.
    Prompt { choice: usize, prompt: Prompt },
    /// The vector that was wanted instead.
    Embedding { choice: usize, vector: Vec<f32> },
    /// It goes on. Tokens of the prompt come first, without parts, where their log probabilities are wanted.
    Piece { choice: usize, parts: Vec<Part>, tokens: Vec<TokenText> },
    /// The answer is complete, with its numbers of all tokens and of reasoning tokens.
    End { choice: usize, finish: Finish, tokens: usize, reasoning: usize },
    /// It will not be complete.
    Failed { error: ApiError },
}

/// What happens to the answers of a job. Dropping it ends them.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    /// Answers that did not end yet.
    left: usize,
    deadline: Instant,
}

/// Events that one answer may cause between two looks at whether there is room.
pub const BURST: usize = 4;

impl Events {
    /// Room for the events of so many answers, and some more, so that a reader need not wait for each.
    pub fn channel(answers: usize, deadline: Instant) -> (mpsc::Sender<Event>, Events) {
        let (sender, receiver) = mpsc::channel(BURST * answers + 64);
        (sender, Events { receiver, left: answers, deadline })
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
