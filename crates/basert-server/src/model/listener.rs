//! The events of answers, on their way from a model's thread to the request that waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::StatusCode;
use basert::{BURST, EngineError, Event, Listener, Prompt, Readiness, Token};
use tokio::sync::mpsc;

use super::room::Place;
use crate::error::ApiError;
use crate::telemetry::Answered;
use crate::work;

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

/// The model's side of [`Events`], for one answer.
pub struct Sender {
    pub sender: mpsc::Sender<Result<Event, EngineError>>,
    /// The time after which the client no longer waits for them.
    pub deadline: Instant,
    /// So many events of all answers have to have room.
    pub burst: usize,
    /// Free for other answers when this one is over, whether or not all of it was read.
    pub _place: Option<Place>,
    pub answered: Arc<Answered>,
    /// Whether it counts the prompt, for all answers to it.
    pub counts_prompt: bool,
    pub prompt: Option<Prompt>,
    /// When the request came, and then when the last token did.
    pub last: Instant,
    /// Whether there was a token.
    pub has_begun: bool,
}

impl Sender {
    fn measure_prompt(&self) {
        if let Some(prompt) = self.prompt.filter(|_| self.counts_prompt) {
            self.answered.prompt(prompt.tokens, prompt.cached);
        }
    }
}

impl Listener for Sender {
    fn readiness(&self) -> Readiness {
        if self.sender.is_closed() || Instant::now() >= self.deadline {
            Readiness::Gone
        } else if self.sender.capacity() < self.burst {
            Readiness::Busy
        } else {
            Readiness::Ready
        }
    }

    fn event(&mut self, event: Result<Event, EngineError>) {
        match &event {
            Ok(Event::Prompt { prompt, .. }) => self.prompt = Some(*prompt),
            Ok(Event::Embedding { .. }) => self.measure_prompt(),
            _ => {}
        }
        // There is room, or nobody listens.
        let _ = self.sender.try_send(event);
    }

    fn token(&mut self) {
        let time = std::mem::replace(&mut self.last, Instant::now()).elapsed();
        if self.has_begun {
            self.answered.next(time);
        } else {
            self.answered.first(time);
            self.measure_prompt();
        }
        self.has_begun = true;
        self.answered.generated(1);
    }
}

/// The events of a request's answers. Dropping it ends the answers.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Result<Event, EngineError>>,
    /// Number of answers that have not ended.
    left: usize,
    deadline: Instant,
    /// Whether the model was told to end: then what it did not come to was not its failure.
    unloaded: Arc<AtomicBool>,
}

impl Events {
    /// Room for the events of so many answers, and some more, so that a reader need not wait for each.
    pub fn channel(
        answers: usize,
        deadline: Instant,
        unloaded: Arc<AtomicBool>,
    ) -> (mpsc::Sender<Result<Event, EngineError>>, Events) {
        let (sender, receiver) = mpsc::channel(BURST * answers + 64);
        (sender, Events { receiver, left: answers, deadline, unloaded })
    }

    /// The next event; none after all answers have ended.
    ///
    /// # Errors
    /// When an answer failed, after which there is none either.
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let event = tokio::time::timeout_at(self.deadline.into(), self.receiver.recv()).await;
        let event = match event {
            Ok(Some(event)) => event.map_err(ApiError::from),
            Ok(None) if self.unloaded.load(Ordering::Relaxed) => Err(EngineError::Stopped.into()),
            Ok(None) if Instant::now() < self.deadline => {
                Err(ApiError::internal("the model failed and has to be loaded again"))
            }
            // Perhaps it was ended before anybody looked here.
            _ => {
                let message = "the answer took longer than the server allows";
                Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, message))
            }
        };
        match &event {
            Ok(Event::End { .. }) => self.left -= 1,
            Ok(_) => {}
            Err(_) => {
                self.left = 0;
                self.receiver.close();
            }
        }
        event.map(Some)
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
            assert_eq!(events.next().await.unwrap_err().status, status);
            assert_eq!(events.next().await, Ok(None));
        }
    }
}
