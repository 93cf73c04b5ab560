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

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// What it runs on.
    pub device: DeviceKind,
    /// Threads of the CPU device; as many as there are cores where this is none.
    pub threads: Option<usize>,
    /// The most tokens a session can have; where this is none, what the model was trained for, but at most
    /// [`Options::DEFAULT_CONTEXT`].
    pub max_context: Option<usize>,
    /// How the KV cache stores keys and values.
    pub kv: KvFormat,
    /// Sessions of that length which the KV cache has room for. Its memory is taken as it is used.
    pub sessions: usize,
    /// The most bytes of the KV cache, which then has room for less, but for one session at least.
    pub cache_bytes: Option<usize>,
    /// What part of the memory that a device says is free beside the weights the KV cache may take, where [`Options::cache_bytes`]
    /// is none; there is room for one session in any case.
    pub cache_share: Option<f64>,
    /// Whether what closed sessions have computed is kept for others that begin with the same tokens, as long as nobody
    /// needs the room.
    pub prefix_cache: bool,
    /// The most tokens that are computed at once; as many as suit the device where this is none.
    pub step_tokens: Option<usize>,
    /// Further architecture files, which come before the built-in ones.
    pub arch_files: Vec<PathBuf>,
    /// The source of a chat template to be used instead of the model's own.
    pub chat_template: Option<String>,
}

impl Options {
    /// The most context that is taken without being asked for.
    pub const DEFAULT_CONTEXT: usize = 8192;
    /// The most rows of logits of a step.
    const WANTED: usize = 64;
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: DeviceKind::default(),
            threads: None,
            max_context: None,
            kv: KvFormat::default(),
            sessions: 4,
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
    /// Made when it is first needed.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
    /// With its source.
    template: Option<(ChatTemplate, String)>,
    engine: Mutex<Engine>,
    /// A smaller model that guesses for it.
    draft: Option<Mutex<Draft>>,
    /// Answers that were begun.
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

    /// Opens a model, and tells how far that is.
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

    /// Opens a model on a device that is open already, and tells how far that is. What the options say of devices counts
    /// for nothing.
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
        let pages =
            Model::pages(&plan, &options, context, &facts).map_err(|what| Error::Model { file: name.clone(), what })?;
        // The tokenizer is built while the weights are packed.
        let (tokenizer, baked) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| text::tokenizer(&file));
            let baked = device.load(plan.clone(), file.clone(), LoadOptions { pages, kv: options.kv, progress });
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
        let engine = Engine::new(baked, &facts, plan.limits, pages, context, plan.graph.vocabulary);
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

    /// Lets a smaller model guess tokens, where they are to be guessed ([`Generation::speculation`]).
    ///
    /// # Errors
    /// When their tokens are not the same.
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
            Some(token) => format!("its token {token} is not that of {}", self.file.path().display()),
            None => return Ok(Model { draft: Some(Mutex::new(Draft::new(draft.into_parts().0))), ..self }),
        };
        let file = draft.file.path().display().to_string();
        Err(Error::Model { file, what: format!("it cannot guess for another model: {what}") })
    }

    /// Takes the draft model away again, for those who run the engine themselves.
    pub fn take_draft(&mut self) -> Option<Draft> {
        self.draft.take().map(|draft| draft.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn draft(&self) -> Option<MutexGuard<'_, Draft>> {
        Some(self.draft.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number that no other answer has.
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

    fn plan_for(file: &ModelFile, options: &Options, step_tokens: usize) -> Result<Plan, Error> {
        let extra = options.arch_files.iter().map(|path| Architecture::open(path));
        let extra = extra.collect::<Result<Vec<_>, _>>()?;
        let graph = Graph::open(file, &extra)?;
        let limits = Limits { tokens: step_tokens.max(1), wanted: Options::WANTED };
        Ok(Plan::build(Arc::new(graph), limits, &FUSIONS))
    }

    /// Pages of the KV cache, as many as there is memory for.
    fn pages(plan: &Plan, options: &Options, context: usize, facts: &Facts) -> Result<usize, String> {
        let page_tokens = facts.page_tokens;
        let stored = |cache: &basert_graph::Cache| cache.head_dim.next_multiple_of(options.kv.block());
        let values = |cache| options.kv.bytes(stored(cache)).saturating_mul(2 * cache.kv_heads);
        let page_bytes = plan.graph.caches.iter().map(values).sum::<usize>().saturating_mul(page_tokens).max(1);
        let one = context.div_ceil(page_tokens);
        let wanted = one.saturating_mul(options.sessions.max(1));
        let Some(bytes) = options.cache_bytes else {
            let Some((share, free)) = options.cache_share.zip(facts.free_memory) else { return Ok(wanted) };
            let left = free.saturating_sub(plan.weight_bytes() + plan.arena_bytes);
            return Ok(wanted.min((left as f64 * share) as usize / page_bytes).max(one));
        };
        if bytes / page_bytes < one {
            let needed = one.saturating_mul(page_bytes);
            return Err(format!(
                "keys and values of {context} tokens take {needed} bytes, more than the {bytes} there are for them; \
                 a smaller --max-context or --kv-bits would do"
            ));
        }
        Ok(wanted.min(bytes / page_bytes))
    }

    /// Where its cached prefixes are kept, for [`Engine::load_prefixes`]. All of its files are read for that, to know them
    /// again by their contents.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn prefix_file(&self, path: impl Into<PathBuf>) -> Result<PrefixFile, Error> {
        let model = digest::of(&self.file, &self.plan.graph)?;
        Ok(PrefixFile { path: path.into(), model, kv: self.kv.to_string() })
    }

    /// Takes it apart, for those who run the engine themselves: the engine, the tokenizer, and the chat template with its
    /// source, if there is one.
    pub fn into_parts(self) -> (Engine, Arc<Tokenizer>, Option<(ChatTemplate, String)>) {
        (self.engine.into_inner().unwrap_or_else(PoisonError::into_inner), self.tokenizer, self.template)
    }

    /// The files.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// How it is computed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it is computed on.
    pub fn device(&self) -> &Facts {
        &self.facts
    }

    /// How its KV cache stores keys and values.
    pub fn kv(&self) -> KvFormat {
        self.kv
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref().map(|(template, _)| template)
    }

    /// How its tokens are drawn where nobody says otherwise: as its files recommend, and as usual where they do not.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// What in its files is wrong and ignored, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The most tokens a session can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of a plain text, with those at the beginning that the model expects.
    ///
    /// # Errors
    /// When the vocabulary cannot spell the text.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.tokens(text, EncodeOptions { add_special: true, parse_special: true })
    }

    /// Tokens of a chat, up to where the answer begins, or where it goes on if the last message is the assistant's.
    /// `variables` go to the template, such as `enable_thinking`. What the messages say never becomes a control token.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the messages.
    pub fn chat_tokens(&self, messages: &[Message], variables: Option<&Map<String, Value>>) -> Result<Vec<u32>, Error> {
        Ok(self.chat_prompt(messages, variables)?.tokens)
    }

    /// A chat up to where the answer begins, for [`Session::answer`]. `variables` go to the template, such as
    /// `enable_thinking`.
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

    /// What an answer that follows a grammar may be. The first call arranges the vocabulary for it.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or asks for something that cannot be honoured.
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

    /// Adds a token to each session, of which all before is computed, and draws the next ones together. About `more`
    /// further calls with what was drawn are expected: a device may run ahead of them.
    ///
    /// # Errors
    /// As for [`Model::advance`].
    pub fn draw(&self, rows: &mut [(&mut Session<'_>, &mut Sampler, u32)], more: usize) -> Result<Vec<u32>, Error> {
        Ok(self.engine().draw(&mut sequences(rows), more)?)
    }

    /// Like [`Model::draw`], but each session draws among the tokens that it is allowed: `masks` finds out which, one for
    /// each, while the device computes. A session that is allowed none has an error of its own.
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

    /// How the model was trained to pool hidden states, where its files say so; the mean otherwise.
    ///
    /// # Errors
    /// When it was trained for vectors that cannot be made, or for something else than vectors.
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
        // A panic while the engine was held leaves sequences as they were before the step.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions that draw, as the engine sees them.
fn sequences<'a>(rows: &'a mut [(&mut Session<'_>, &mut Sampler, u32)]) -> Vec<Drawing<'a>> {
    rows.iter_mut().map(|(session, sampler, token)| (session.sequence_mut(), &mut **sampler, *token)).collect()
}
