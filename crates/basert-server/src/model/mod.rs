//! A served model: who may ask it, and for how long.

mod listener;
mod room;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::StatusCode;
/// A request of a client is one of HTTP; what a model is asked is a job.
pub use basert::Request as Job;
use basert::{BURST, Loaded, Pooling, Scheduling};
pub use basert::{ChatAnswer, Event, Finish, Part};

use self::listener::Sender;
pub use self::listener::{Events, keep, token_bytes};
use self::room::Room;
use crate::config::Config;
use crate::error::ApiError;
use crate::telemetry::{Answered, ModelGauges};

/// A model that can be opened.
pub struct Source {
    /// The model's name in requests.
    pub name: String,
    /// Opens it.
    pub open: Box<dyn Fn() -> Result<Loaded, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An open model under its name.
pub struct Model {
    pub name: String,
    model: Arc<basert::Model>,
    /// The default pooling of hidden states to an embedding, or why there is none.
    pub pooling: Result<Pooling, String>,
    /// Whether it was told to end.
    unloaded: Arc<AtomicBool>,
    answered: Arc<Answered>,
    /// Room for requests, running and waiting.
    room: Arc<Room>,
    config: Arc<Config>,
}

impl Deref for Model {
    type Target = basert::Model;

    fn deref(&self) -> &basert::Model {
        &self.model
    }
}

impl Model {
    /// Starts its thread.
    pub fn start(name: &str, loaded: Loaded, config: Arc<Config>) -> Result<Model, basert::Error> {
        let pooling = loaded.pooling().map_err(|error| error.to_string());
        let Config { parallel, step_gap, speculation, .. } = *config;
        let scheduling = Scheduling { parallel, step_gap, speculation };
        let model = loaded.start_observed(&scheduling, Some(Box::new(ModelGauges::new(name))))?;
        Ok(Model {
            name: name.to_owned(),
            model: Arc::new(model),
            pooling,
            unloaded: Arc::default(),
            answered: Arc::new(Answered::new(name)),
            room: Room::new(config.parallel + config.queue),
            config,
        })
    }

    /// Cuts off what it does, and waits until its thread is done.
    pub async fn end(&self) {
        self.unloaded.store(true, Ordering::Relaxed);
        let model = self.model.clone();
        // Nothing in it panics; if it did, the model would have ended.
        let _ = tokio::task::spawn_blocking(move || model.end()).await;
    }

    /// Running and waiting answers.
    pub fn in_flight(&self) -> usize {
        self.room.taken()
    }

    /// Whether there are none.
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0
    }

    /// How many answers there are to so many prompts, with `n` to each. To be asked before anything is made of them.
    ///
    /// # Errors
    /// When there are more than can ever run.
    pub fn number_of_answers(&self, prompts: usize, n: usize) -> Result<usize, ApiError> {
        if n > self.most_answers() {
            let message = format!("{n} answers to a prompt; {} are the most", self.most_answers());
            return Err(ApiError::field("n", message));
        }
        let room = self.config.parallel + self.config.queue;
        prompts.checked_mul(n).filter(|&answers| answers <= room).ok_or_else(|| {
            ApiError::field("n", format!("{n} answers to each of {prompts} prompts; {room} are the most in all"))
        })
    }

    /// Begins to answer.
    pub fn begin(&self, mut job: Job) -> Result<Events, ApiError> {
        let answers = self.number_of_answers(job.prompts.len(), job.n)?;
        let mut places = self.room.enter(job.client, answers).ok_or_else(|| {
            let message = format!("{} requests for {} are waiting already; try again", self.config.queue, self.name);
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("overloaded")
        })?;
        job.max_tokens = job.max_tokens.into_iter().chain(self.config.max_tokens).min();
        let deadline = Instant::now() + self.config.request_timeout;
        let (sender, events) = Events::channel(answers, deadline, self.unloaded.clone());
        self.submit(&job, |choice| {
            Box::new(Sender {
                sender: sender.clone(),
                deadline,
                burst: BURST * answers,
                _place: places.pop(),
                answered: self.answered.clone(),
                counts_prompt: choice.is_multiple_of(job.n),
                prompt: None,
                last: Instant::now(),
                has_begun: false,
            })
        })?;
        Ok(events)
    }
}
