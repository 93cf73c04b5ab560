//! A model, ready to be used.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use basert_core::KvFormat;
use basert_engine::{Allowed, Draft, Drawing, Engine, EngineError, Pooling, PrefixFile, Sampler, Sampling};
use basert_files::{Kind, ModelFile};
use basert_graph::{Architecture, Graph};
use basert_plan::{Device, FUSIONS, Facts, Limits, LoadOptions, Plan};
use basert_text::{
    Chat, ChatTemplate, Constraint, Dialect, EncodeOptions, Grammar, GrammarCompiler, GrammarError, Preface, Tokenizer,
};
use serde_json::{Map, Value};

use crate::chat::ChatPrompt;
use crate::generate::{Answer, Generation};
use crate::{DeviceKind, Error, Message, Session, digest, memory, pooling, sampling, text};

pub use basert_plan::{Progress, Stage};

/// Options for opening a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// The device.
    pub device: DeviceKind,
    /// Number of threads of the CPU device; none means one for each core.
    pub threads: Option<usize>,
    /// Limit on a session's tokens; none means what the model was trained for, but at most
    /// [`Options::DEFAULT_CONTEXT`].
    pub max_context: Option<usize>,
    /// How the KV cache stores keys and values.
    pub kv: KvFormat,
    /// Number of sessions of full length that the KV cache has room for. Its memory is allocated as it is used.
    pub sessions: usize,
    /// Limit on the answers that are decoded together: the rows of logits of a step.
    pub answers: usize,
    /// Limit on the bytes of the KV cache, which then has room for fewer sessions, but for at least one.
    pub cache_bytes: Option<usize>,
    /// The share of the device's memory that is free after the weights which the KV cache may take, if
    /// [`Options::cache_bytes`] is none; it has room for one session in any case.
    pub cache_share: Option<f64>,
    /// Whether the KV cache of closed sessions is kept, for others that begin with the same tokens, until the room is
    /// needed. In models with sliding windows it also has what lies behind them, without which a session that goes back
    /// is computed from its beginning.
    pub prefix_cache: bool,
    /// Limit on the tokens of a step; none means what suits the device.
    pub step_tokens: Option<usize>,
    /// Further architecture files, which take precedence over the built-in ones.
    pub arch_files: Vec<PathBuf>,
    /// The source of a chat template to use instead of the model's own.
    pub chat_template: Option<String>,
}

impl Options {
    /// The largest context that is used by default.
    pub const DEFAULT_CONTEXT: usize = 8192;
    /// The default of [`Options::answers`].
    pub const ANSWERS: usize = 64;
    /// The most that [`Options::answers`] can be: logits of all of them have to fit the memory.
    pub const MOST_ANSWERS: usize = 512;
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: DeviceKind::default(),
            threads: None,
            max_context: None,
            kv: KvFormat::default(),
            sessions: 4,
            answers: Options::ANSWERS,
            cache_bytes: None,
            cache_share: None,
            prefix_cache: false,
            step_tokens: None,
            arch_files: Vec::new(),
            chat_template: None,
        }
    }
}

/// An open model: its weights on a device, its tokenizer, its chat template.
pub struct Model {
    file: Arc<ModelFile>,
    plan: Arc<Plan>,
    facts: Facts,
    kv: KvFormat,
    tokenizer: Arc<Tokenizer>,
    /// Built when first needed.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
    /// With its source.
    template: Option<(ChatTemplate, String)>,
    engine: Mutex<Engine>,
    /// The draft model.
    draft: Option<Mutex<Draft>>,
    /// Number of answers begun so far.
    answers: AtomicU64,
    context: usize,
    sampling: Sampling,
    warnings: Vec<String>,
}

impl Model {
    /// Opens a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// When the files are damaged, the architecture is unknown, or the device cannot hold the model.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Model, Error> {
        Model::open_with_progress(path, options, &mut |_, _, _| {})
    }

    /// Opens a model, with a progress callback.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_with_progress(
        path: impl AsRef<Path>,
        options: Options,
        progress: Progress<'_>,
    ) -> Result<Model, Error> {
        let device = options.device.open(options.threads)?;
        Model::open_on(&*device, path, options, progress)
    }

    /// Opens a model on a device that is open already, with a progress callback. The options' settings of devices are
    /// ignored.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_on(
        device: &dyn Device,
        path: impl AsRef<Path>,
        options: Options,
        progress: Progress<'_>,
    ) -> Result<Model, Error> {
        let file = Arc::new(ModelFile::open(path.as_ref())?);
        let name = file.path().display().to_string();
        let facts = device.facts().clone();
        let step_tokens = options.step_tokens.unwrap_or(facts.step_tokens);
        let plan = Arc::new(Model::plan_for(&file, &options, step_tokens)?);

        let trained = plan.graph.context;
        let context = options.max_context.unwrap_or(trained.min(Options::DEFAULT_CONTEXT)).max(1);
        let room = memory::Room::of(&plan, &options, context, &facts);
        let memory::Room { pages, slots } = room.map_err(|what| Error::Model { file: name.clone(), what })?;
        // The tokenizer is built while the weights are packed.
        let (tokenizer, baked) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| text::tokenizer(&file));
            let load = LoadOptions { pages: pages.clone(), slots, kv: options.kv, progress };
            let baked = device.load(plan.clone(), file.clone(), load);
            let tokenizer = tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (tokenizer, baked)
        });
        let tokenizer = Arc::new(tokenizer?);
        let baked = baked.map_err(|source| {
            let (file, per_session) = (name.clone(), options.sessions.max(1));
            match memory::advice(&source, facts.page_tokens, per_session, context) {
                Some(advice) => Error::TooLarge { file, source, advice },
                None => Error::Device { file, source },
            }
        })?;
        // Folders add tokens without adding rows, and such tokens are refused where a prompt has one. A GGUF file that
        // has fewer rows than tokens is damaged.
        let (tokens, rows) = (tokenizer.vocab_size(), plan.graph.vocabulary);
        if tokens > rows && file.kind() == Kind::Gguf {
            let what = format!("the tokenizer has {tokens} tokens and the output only {rows}");
            return Err(Error::Model { file: name, what });
        } else if tokens > rows {
            tracing::warn!("{name}: the last {} of the tokenizer's {tokens} tokens have no row", tokens - rows);
        }
        let source = match options.chat_template {
            Some(source) => Some(source),
            None => text::template_source(&file)?,
        };
        let template = source.map(|source| Ok::<_, Error>((text::template(&source, &tokenizer, &name)?, source)));
        let template = template.transpose()?;
        let engine = Engine::new(baked, &facts, plan.limits, &plan.reaches(&pages), context, plan.graph.vocabulary);
        let engine = engine.with_slots(slots, plan.graph.slot_bytes());
        let engine = engine.of_kind(plan.graph.generates, plan.graph.is_causal());
        let engine = if options.prefix_cache { engine.with_prefix_cache() } else { engine };
        let (sampling, warnings) = sampling::of_model(&file);
        let (engine, grammars, answers) = (Mutex::new(engine), OnceLock::new(), AtomicU64::new(0));
        Ok(Model {
            file,
            plan,
            facts,
            kv: options.kv,
            tokenizer,
            grammars,
            template,
            engine,
            draft: None,
            answers,
            context,
            sampling,
            warnings,
        })
    }

    /// Adds a smaller model that proposes the draft tokens of speculative decoding ([`Generation::speculation`]).
    ///
    /// # Errors
    /// When the two vocabularies differ.
    pub fn with_draft(self, draft: Model) -> Result<Model, Error> {
        let (ours, theirs) = (&self.tokenizer, &draft.tokenizer);
        let differs = |id: &u32| ours.token_bytes(*id) != theirs.token_bytes(*id);
        let sizes = (self.plan.graph.vocabulary, draft.plan.graph.vocabulary);
        let what = match (0..ours.vocab_size() as u32).find(differs) {
            _ if sizes.0 != sizes.1 => format!(
                "its vocabulary has {} tokens, and that of {} has {}",
                sizes.1,
                self.file.path().display(),
                sizes.0
            ),
            Some(token) => format!("its token {token} differs from that of {}", self.file.path().display()),
            None => return Ok(Model { draft: Some(Mutex::new(Draft::new(draft.into_parts().0))), ..self }),
        };
        let file = draft.file.path().display().to_string();
        Err(Error::Model { file, what: format!("it cannot be the draft model: {what}") })
    }

    /// Removes and returns the draft model, for callers that run the engine themselves.
    pub fn take_draft(&mut self) -> Option<Draft> {
        self.draft.take().map(|draft| draft.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn draft(&self) -> Option<MutexGuard<'_, Draft>> {
        Some(self.draft.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A unique number for an answer.
    pub(crate) fn number(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed)
    }

    /// The plan of a model file, as [`Model::open`] would make it for the CPU.
    ///
    /// # Errors
    /// When the architecture is unknown, or the file does not fit it.
    pub fn plan_of(file: &ModelFile, options: &Options) -> Result<Plan, Error> {
        Model::plan_for(file, options, options.step_tokens.unwrap_or(basert_cpu::STEP_TOKENS))
    }

    pub(crate) fn plan_for(file: &ModelFile, options: &Options, step_tokens: usize) -> Result<Plan, Error> {
        let extra = options.arch_files.iter().map(|path| Architecture::open(path));
        let extra = extra.collect::<Result<Vec<_>, _>>()?;
        let context = options.max_context.unwrap_or(Options::DEFAULT_CONTEXT);
        let graph = Graph::open_for(file, &extra, context)?;
        let tokens = match graph.is_causal() {
            true => step_tokens,
            // A text is computed in one step.
            false => step_tokens.max(context.min(graph.context)),
        };
        // Hidden states are as many as tokens, and logits are large.
        let wanted = if graph.generates { options.answers.min(Options::MOST_ANSWERS) } else { tokens };
        let limits = Limits { tokens: tokens.max(1), wanted: wanted.max(1) };
        Ok(Plan::build(Arc::new(graph), limits, &FUSIONS))
    }

    /// Describes a file of cached prefixes of this model, for [`Engine::load_prefixes`]. All of the model's files are
    /// read, to identify the model by their contents.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn prefix_file(&self, path: impl Into<PathBuf>) -> Result<PrefixFile, Error> {
        let model = digest::of(&self.file, &self.plan.graph)?;
        Ok(PrefixFile { path: path.into(), model, kv: self.kv.to_string() })
    }

    /// Takes the model apart, for callers that run the engine themselves: the engine, the tokenizer, and the chat
    /// template with its source, if there is one.
    pub fn into_parts(self) -> (Engine, Arc<Tokenizer>, Option<(ChatTemplate, String)>) {
        (self.engine.into_inner().unwrap_or_else(PoisonError::into_inner), self.tokenizer, self.template)
    }

    /// The model's files.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The execution plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The facts of the device.
    pub fn device(&self) -> &Facts {
        &self.facts
    }

    /// How its KV cache stores keys and values.
    pub fn kv(&self) -> KvFormat {
        self.kv
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref().map(|(template, _)| template)
    }

    /// The default sampling settings: those that the model's files recommend, and basert's defaults for the others.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Warnings about faults in the model's files that are ignored.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Limit on a session's tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of a plain text, after the beginning-of-text token if the model expects one.
    ///
    /// # Errors
    /// When the vocabulary cannot spell the text.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.tokens(text, EncodeOptions { add_special: true, parse_special: true })
    }

    /// Tokens of a chat, up to where the answer begins, or continues if the last message is the assistant's.
    /// `variables`, such as `enable_thinking`, are passed to the template. Text of the messages never becomes a control
    /// token.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the messages.
    pub fn chat_tokens(&self, messages: &[Message], variables: Option<&Map<String, Value>>) -> Result<Vec<u32>, Error> {
        Ok(self.chat_prompt(messages, variables)?.tokens)
    }

    /// The prompt of a chat, for [`Session::answer`]. `variables`, such as `enable_thinking`, are passed to the
    /// template.
    ///
    /// # Errors
    /// As for [`Model::chat_tokens`].
    pub fn chat_prompt(
        &self,
        messages: &[Message],
        variables: Option<&Map<String, Value>>,
    ) -> Result<ChatPrompt, Error> {
        let file = || self.file.path().display().to_string();
        let (template, source) = self.template.as_ref().ok_or_else(|| Error::NoTemplate { file: file() })?;
        let dialect = Dialect::of_template(source);
        let messages: Vec<_> = messages.iter().map(|message| message.0.clone()).collect();
        let chat = Chat { messages: &messages, variables, ..Chat::default() };
        let prompt = dialect.prompt(template, &self.tokenizer, &chat);
        let prompt = prompt.map_err(|source| Error::Template { file: file(), source })?;
        let tokens = prompt.tokens(&self.tokenizer).map_err(|source| Error::Tokenizer { file: file(), source })?;
        let asked = variables.and_then(|variables| variables.get("enable_thinking")).and_then(Value::as_bool);
        let reasons = dialect.reasons(template) && asked.unwrap_or(true);
        Ok(ChatPrompt { text: prompt.text, tokens, dialect, reasons })
    }

    /// The constraint that a grammar puts on an answer. The first call indexes the vocabulary.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or has something that is not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        self.constraint_after(grammar, &Preface::None)
    }

    pub(crate) fn constraint_after(&self, grammar: &Grammar, preface: &Preface) -> Result<Constraint, GrammarError> {
        let compiler = self.grammars.get_or_init(|| GrammarCompiler::new(Arc::clone(&self.tokenizer)));
        compiler.as_ref().map_err(Clone::clone)?.compile_after(grammar, preface)
    }

    fn tokens(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, Error> {
        let failed = |source| Error::Tokenizer { file: self.file.path().display().to_string(), source };
        self.tokenizer.encode(text, options).map_err(failed)
    }

    /// A new, empty session.
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    /// Brings several sessions up to date together, in as few steps as possible. Each result is the same, to the bit,
    /// as if the session had been alone.
    ///
    /// # Errors
    /// When a session is too long, the cache is full, or the device fails.
    pub fn advance(&self, sessions: &mut [&mut Session<'_>]) -> Result<(), Error> {
        let mut sequences: Vec<_> = sessions.iter_mut().map(|session| session.sequence_mut()).collect();
        Ok(self.engine().advance(&mut sequences, usize::MAX, &mut |_| true)?)
    }

    /// Adds a token to each session, all earlier tokens of which must be computed, and samples the next ones together.
    /// About `more` further calls with the sampled tokens are expected: a device may run ahead of them.
    ///
    /// # Errors
    /// As for [`Model::advance`].
    pub fn draw(&self, rows: &mut [(&mut Session<'_>, &mut Sampler, u32)], more: usize) -> Result<Vec<u32>, Error> {
        Ok(self.engine().draw(&mut sequences(rows), more)?)
    }

    /// Like [`Model::draw`], but each session samples within a mask: `masks` returns one for each session, and is
    /// called while the device computes. A session whose mask allows no token gets an error of its own.
    ///
    /// # Errors
    /// As for [`Model::advance`].
    pub fn draw_allowed<'a>(
        &self,
        rows: &mut [(&mut Session<'_>, &mut Sampler, u32)],
        masks: impl FnOnce() -> Vec<Allowed<'a>> + Send,
    ) -> Result<Vec<Result<u32, EngineError>>, Error> {
        Ok(self.engine().draw_allowed(&mut sequences(rows), masks)?)
    }

    /// Calls `each` with every position of `tokens` from `from` on, and the logits of what follows it.
    ///
    /// # Errors
    /// As for [`Model::advance`].
    pub fn score(&self, tokens: &[u32], from: usize, each: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError> {
        self.engine().score(tokens, from, each)
    }

    /// How the model was trained to pool hidden states, if its files say so; else the mean.
    ///
    /// # Errors
    /// When its pooling is not supported, or the model was trained for something else than embeddings.
    pub fn pooling(&self) -> Result<Pooling, Error> {
        let file = || self.file.path().display().to_string();
        pooling::of(&self.file).map_err(|what| Error::Model { file: file(), what })
    }

    /// A vector of length 1 for a text of these tokens, pooled from the model's last hidden states.
    ///
    /// # Errors
    /// As for [`Model::advance`].
    pub fn embed(&self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, EngineError> {
        self.engine().embed(tokens, pooling)
    }

    /// Answers a prompt of plain text. `each` gets the answer piece by piece and returns whether to go on.
    ///
    /// # Errors
    /// When the prompt is too long, a setting is out of range, or the device fails.
    pub fn generate(
        &self,
        prompt: &str,
        options: &Generation,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<Answer, Error> {
        let prompt = self.text_tokens(prompt)?;
        let mut session = self.session();
        let mut pieces = session.generate(&prompt, options)?;
        for piece in pieces.by_ref() {
            if !each(&piece?) {
                break;
            }
        }
        Ok(pieces.into_answer())
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        // After a panic during a step, sequences are as they were before that step.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions that sample, as rows for the engine.
fn sequences<'a>(rows: &'a mut [(&mut Session<'_>, &mut Sampler, u32)]) -> Vec<Drawing<'a>> {
    rows.iter_mut().map(|(session, sampler, token)| (session.sequence_mut(), &mut **sampler, *token)).collect()
}
