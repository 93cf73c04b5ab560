//! A served model, and the thread that runs it.

mod job;
mod reader;
mod room;
mod worker;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::http::StatusCode;
use basert_engine::{Draft, Engine, EngineError, Pooling, Request, Sampler, Sampling};
pub use basert_text::Event as Part;
use basert_text::{ChatTemplate, Constraint, Dialect, Grammar, GrammarCompiler, GrammarError, Preface, Tokenizer};
use tokio::sync::oneshot;

pub use self::job::{ChatAnswer, Event, Events, Finish, Job, keep, token_bytes};
use self::reader::{Listener, Text, TextReader};
use self::room::Room;
use self::worker::Order;
use crate::config::Config;
use crate::error::ApiError;
use crate::telemetry::Answered;

/// The parts of an opened model that the server needs.
pub struct Loaded {
    /// Computes.
    pub engine: Engine,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template with its source, if it has one.
    pub template: Option<(ChatTemplate, String)>,
    /// The draft model, if there is one.
    pub draft: Option<Draft>,
    /// The default sampling settings.
    pub sampling: Sampling,
    /// How hidden states are pooled to an embedding, or why they are not.
    pub pooling: Result<Pooling, String>,
}

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

/// An open model and its thread, which ends when the last one lets go of this.
pub struct Model {
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    /// How the model writes tool calls and reasoning.
    pub dialect: Arc<Dialect>,
    /// Whether the model may reason before it answers.
    pub reasons: bool,
    /// Compiles constraints; built when first needed, as it indexes the whole vocabulary.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
    /// The control tokens that the dialect needs to see.
    markers: Vec<u32>,
    /// Limit on the tokens of prompt and answer together.
    pub context: usize,
    /// Limit on the answers to a prompt, which are computed together.
    most_answers: usize,
    /// The default sampling settings.
    pub sampling: Sampling,
    /// The default pooling of hidden states to an embedding, or why there is none.
    pub pooling: Result<Pooling, String>,
    /// Bytes of the longest token.
    pub longest_token: usize,
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
    /// Whether it was told to end.
    unloaded: Arc<AtomicBool>,
    answered: Arc<Answered>,
    /// Room for requests, running and waiting.
    room: Arc<Room>,
    config: Arc<Config>,
}

impl Model {
    /// Starts the thread.
    pub fn start(name: &str, loaded: Loaded, config: Arc<Config>) -> std::io::Result<Model> {
        let Loaded { engine, tokenizer, template, draft, sampling, pooling } = loaded;
        let context = engine.context();
        let most_answers = config.parallel.min(engine.limits().wanted).max(1);
        let bytes = |id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
        let longest_token = (0..tokenizer.vocab_size() as u32).map(bytes).max().unwrap_or(0);
        let dialect = Dialect::of_template(template.as_ref().map_or("", |(_, source)| source));
        let reasons = template.as_ref().is_some_and(|(template, _)| dialect.reasons(template));
        let markers = dialect.tokens(&tokenizer);
        let template = template.map(|(template, _)| template);
        let (orders, thread) = worker::start(name, engine, draft, &config)?;
        let room = Room::new(config.parallel + config.queue);
        let (name, answered) = (name.to_owned(), Arc::new(Answered::new(name)));
        Ok(Model {
            name,
            tokenizer,
            template,
            dialect,
            reasons,
            grammars: OnceLock::new(),
            markers,
            context,
            most_answers,
            sampling,
            pooling,
            longest_token,
            orders,
            thread,
            unloaded: Arc::default(),
            answered,
            room,
            config,
        })
    }

    /// What an answer has to be after this prompt, with reasoning before it if the model may. That may take a while.
    pub fn constraint(&self, grammar: &Grammar, prompt: &str, reasons: bool) -> Result<Constraint, GrammarError> {
        let (dialect, prompt) = (self.dialect.clone(), prompt.to_owned());
        self.grammars()?.compile_after(grammar, &Preface::OfDialect { dialect, prompt, reasons })
    }

    /// What an answer has to be that is plain text. That may take a while.
    pub fn plain_constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        self.grammars()?.compile(grammar)
    }

    fn grammars(&self) -> Result<&GrammarCompiler, GrammarError> {
        let compiler = self.grammars.get_or_init(|| GrammarCompiler::new(self.tokenizer.clone()));
        compiler.as_ref().map_err(Clone::clone)
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Cuts off what it does, and waits until its thread is done.
    pub async fn end(&self) {
        self.unloaded.store(true, Ordering::Relaxed);
        let (sender, told) = oneshot::channel();
        if self.orders.send(Order::End(sender)).is_ok() {
            let _ = told.await;
        }
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
    pub fn answers(&self, prompts: usize, n: usize) -> Result<usize, ApiError> {
        if n > self.most_answers {
            let message = format!("{n} answers to a prompt; {} are the most", self.most_answers);
            return Err(ApiError::field("n", message));
        }
        let room = self.config.parallel + self.config.queue;
        prompts.checked_mul(n).filter(|&answers| answers <= room).ok_or_else(|| {
            ApiError::field("n", format!("{n} answers to each of {prompts} prompts; {room} are the most in all"))
        })
    }

    /// Begins to answer.
    pub fn begin(&self, job: Job) -> Result<Events, ApiError> {
        let answers = self.answers(job.prompts.len(), job.n)?;
        let mut places = self.room.enter(job.client, answers).ok_or_else(|| {
            let message = format!("{} requests for {} are waiting already; try again", self.config.queue, self.name);
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("overloaded")
        })?;
        let mut requests = Vec::with_capacity(job.prompts.len());
        let deadline = Instant::now() + self.config.request_timeout;
        let (sender, events) = Events::channel(answers, deadline, self.unloaded.clone());
        let text = Text::new(self, &job);
        let most = job.max_tokens.unwrap_or(usize::MAX).min(self.config.max_tokens.unwrap_or(usize::MAX));
        for (place, prompt) in job.prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ApiError::bad("the prompt has no tokens; there is nothing to continue"));
            }
            // The engine would say the same, but when a stream has begun there is no status to say it with.
            if prompt.len() > self.context {
                return Err(EngineError::ContextFull { tokens: prompt.len(), context: self.context }.into());
            }
            let mut answers = Vec::with_capacity(job.n);
            for choice in place * job.n..(place + 1) * job.n {
                let mut sampling = job.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(choice as u64);
                let sampler = Sampler::new(sampling, prompt).map_err(|error| ApiError::bad(error.to_string()))?;
                let listener = Listener { sender: sender.clone(), deadline, _place: places.pop() };
                let reader = TextReader::new(self, choice, &job, text.clone(), listener);
                answers.push(basert_engine::Answer {
                    sampler,
                    max_tokens: most,
                    logprobs: job.logprobs,
                    reader: Box::new(reader),
                });
            }
            let prompt_logprobs = job.logprobs.filter(|_| job.prompt_logprobs);
            let (client, salt, pooling) = (job.client, job.salt, job.pooling);
            requests.push(Request { client, salt, prompt: prompt.clone(), answers, pooling, prompt_logprobs });
        }
        for request in requests {
            self.orders.send(Order::Answer(request)).map_err(|_| EngineError::Stopped)?;
        }
        Ok(events)
    }
}
