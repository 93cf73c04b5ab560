//! A model that answers requests.
//!
//! Its engine is owned by one thread, on which the scheduler shares it between requests: [`Model::submit`] sends one, and
//! its answers come to listeners. Everything else here is made of that.

use std::ops::Deref;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use basert_engine::{Answer as Wanted, Draft, Engine, EngineError, Pooling, Request as Submitted, Sampler};
use basert_files::ModelFile;
use basert_plan::Plan;
use serde_json::{Map, Value};

use crate::Error;
use crate::answers::{Answer, Answers, Generation};
use crate::chat::{ChatPrompt, Message};
use crate::info::ModelInfo;
use crate::loaded::{Loaded, plan_for};
use crate::options::{Options, Scheduling};
use crate::reader::{Text, TextReader};
use crate::request::{Listener, Request};
use crate::runner::{self, Counts, Observer, Order};

/// An open model, and the thread that runs it. Dropping it ends what it does.
pub struct Model {
    info: ModelInfo,
    context: usize,
    /// Limit on the answers to a prompt, which are computed together.
    most_answers: usize,
    orders: Sender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<Mutex<Counts>>,
}

impl Deref for Model {
    type Target = ModelInfo;

    fn deref(&self) -> &ModelInfo {
        &self.info
    }
}

impl Model {
    /// Opens a GGUF file or a Hugging Face folder. [`Loaded::open`] is the same with more control.
    ///
    /// # Errors
    /// When the files are damaged, the architecture is unknown, or the device cannot hold the model.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Model, Error> {
        Loaded::open(path, options)?.start(&Scheduling::default())
    }

    pub(crate) fn start(
        info: ModelInfo,
        engine: Engine,
        draft: Option<Draft>,
        scheduling: &Scheduling,
        observer: Option<Box<dyn Observer>>,
    ) -> Result<Model, Error> {
        let context = engine.context();
        let most_answers = scheduling.parallel.min(engine.limits().wanted).max(1);
        let counts = Arc::default();
        let name = info.file().path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (orders, thread) = runner::start(&name, engine, draft, scheduling, observer, Arc::clone(&counts))?;
        Ok(Model { info, context, most_answers, orders, thread: Mutex::new(Some(thread)), counts })
    }

    /// The plan of a model file, as [`Model::open`] would make it for the CPU.
    ///
    /// # Errors
    /// When the architecture is unknown, or the file does not fit it.
    pub fn plan_of(file: &ModelFile, options: &Options) -> Result<Plan, Error> {
        plan_for(file, options, options.step_tokens.unwrap_or(basert_cpu::STEP_TOKENS))
    }

    /// Limit on the tokens of a prompt and its answer.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Limit on the answers to a prompt.
    pub fn most_answers(&self) -> usize {
        self.most_answers
    }

    /// What it does and has done so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to answer. `listener` makes the listener of each answer, by its number in the request.
    ///
    /// # Errors
    /// When a prompt is empty or too long, there are too many answers to one, a setting is out of range, or the model
    /// has ended.
    pub fn submit(&self, request: &Request, mut listener: impl FnMut(usize) -> Box<dyn Listener>) -> Result<(), Error> {
        if request.n > self.most_answers {
            return Err(EngineError::TooManyAnswers { answers: request.n, most: self.most_answers }.into());
        }
        if request.prompts.iter().any(Vec::is_empty) {
            return Err(Error::EmptyPrompt);
        }
        let longest = request.prompts.iter().map(Vec::len).max().unwrap_or(0);
        if longest > self.context {
            return Err(EngineError::ContextFull { tokens: longest, context: self.context }.into());
        }
        let text = Text::new(&self.info, request);
        for (place, prompt) in request.prompts.iter().enumerate() {
            let mut answers = Vec::with_capacity(request.n);
            for choice in place * request.n..(place + 1) * request.n {
                let mut sampling = request.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(choice as u64);
                let reader = TextReader::new(&self.info, choice, request, text.clone(), listener(choice));
                answers.push(Wanted {
                    sampler: Sampler::new(sampling, prompt)?,
                    max_tokens: request.max_tokens.unwrap_or(usize::MAX),
                    logprobs: request.logprobs,
                    reader: Box::new(reader),
                });
            }
            let prompt_logprobs = request.logprobs.filter(|_| request.prompt_logprobs);
            let Request { client, salt, pooling, .. } = *request;
            let submitted = Submitted { client, salt, prompt: prompt.clone(), answers, pooling, prompt_logprobs };
            self.orders.send(Order::Answer(submitted)).map_err(|_| EngineError::Stopped)?;
        }
        Ok(())
    }

    /// Begins to answer; the events come from the iterator that is returned. Dropping it ends the answers.
    ///
    /// # Errors
    /// As for [`Model::submit`].
    pub fn answers(&self, request: &Request) -> Result<Answers, Error> {
        let (listener, answers) = Answers::channel(request);
        self.submit(request, |_| Box::new(listener.clone()))?;
        Ok(answers)
    }

    /// A request without prompts, with these options but for the grammar.
    pub fn request(&self, options: &Generation) -> Request {
        options.request(self.sampling())
    }

    /// A request to continue a text of these tokens.
    ///
    /// # Errors
    /// When a setting is out of range, or the grammar cannot be used.
    pub fn text_request(&self, prompt: Vec<u32>, options: &Generation) -> Result<Request, Error> {
        let constraint = options.grammar.as_ref().map(|grammar| self.constraint(grammar)).transpose()?;
        Ok(Request { prompts: vec![prompt], constraint, ..self.request(options) })
    }

    /// A request to answer a chat.
    ///
    /// # Errors
    /// As for [`Model::text_request`].
    pub fn chat_request(&self, prompt: &ChatPrompt, options: &Generation) -> Result<Request, Error> {
        let ChatPrompt { text, tokens, reasons, .. } = prompt;
        let grammar = options.grammar.as_ref();
        let constraint = grammar.map(|grammar| self.chat_constraint(grammar, text, *reasons)).transpose()?;
        let request = Request { prompts: vec![tokens.clone()], constraint, ..self.request(options) };
        Ok(Request { chat: Some(prompt.answer()), ..request })
    }

    /// Answers a prompt of plain text. `each` gets the answer piece by piece and returns whether to go on.
    ///
    /// # Errors
    /// When the prompt is too long, a setting is out of range, or the device fails.
    pub fn generate(
        &self,
        prompt: &str,
        options: &Generation,
        each: impl FnMut(&str) -> bool,
    ) -> Result<Answer, Error> {
        let request = self.text_request(self.text_tokens(prompt)?, options)?;
        self.answers(&request)?.tell(each)
    }

    /// Answers a chat, in which the model may call `tools`, declared in OpenAI's form. `each` gets the content of the
    /// answer piece by piece and returns whether to go on; reasoning and calls are in the answer that is returned.
    ///
    /// # Errors
    /// As for [`Model::generate`]; and when the model has no chat template, or it refuses the messages.
    pub fn chat(
        &self,
        messages: &[Message],
        tools: &[Value],
        variables: Option<&Map<String, Value>>,
        options: &Generation,
        each: impl FnMut(&str) -> bool,
    ) -> Result<Answer, Error> {
        let prompt = self.chat_prompt(messages, tools, variables)?;
        self.answers(&self.chat_request(&prompt, options)?)?.tell(each)
    }

    /// A vector of length 1 for each text of these tokens, pooled from the model's last hidden states. They are computed
    /// together.
    ///
    /// # Errors
    /// When a text is empty or too long, or the device fails.
    pub fn embed(&self, texts: Vec<Vec<u32>>, pooling: Pooling) -> Result<Vec<Vec<f32>>, Error> {
        let request = Request { prompts: texts, pooling: Some(pooling), ..Request::default() };
        self.answers(&request)?.vectors()
    }

    /// Logits of the token that comes after these. What is computed is kept in the prefix cache, so that a longer text
    /// costs only what is new.
    ///
    /// # Errors
    /// When there are too many tokens, or some that the model does not have, or the device fails.
    pub fn logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>, Error> {
        Ok(self.with_engine(move |engine| engine.logits_after(&tokens))??)
    }

    /// Calls `work` with the engine, between two steps, and waits for its result.
    ///
    /// # Errors
    /// When the model has ended.
    pub fn with_engine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, result) = mpsc::sync_channel(1);
        // Who asked may have gone.
        let work = move |engine: &mut Engine| drop(sender.send(work(engine)));
        self.orders.send(Order::Work(Box::new(work))).map_err(|_| EngineError::Stopped)?;
        Ok(result.recv().map_err(|_| EngineError::Stopped)?)
    }

    /// Whether the thread has ended: it was told to, or the device failed badly.
    pub fn has_ended(&self) -> bool {
        self.thread().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends all answers, and waits until the memory of the model is free.
    pub fn end(&self) {
        let thread = self.thread().take();
        // It may have ended by itself.
        let _ = self.orders.send(Order::End);
        if let Some(thread) = thread {
            // Why it panicked was said when it did.
            let _ = thread.join();
        }
    }

    fn thread(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.end();
    }
}
