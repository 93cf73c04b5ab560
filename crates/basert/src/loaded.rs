//! Opening a model: its weights on a device, its tokenizer, its chat template.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basert_engine::{Draft, Engine, PrefixFile};
use basert_files::{Kind, ModelFile};
use basert_graph::{Architecture, Graph};
use basert_plan::{Device, FUSIONS, Limits, LoadOptions, Plan, Progress};
use basert_text::Tokenizer;

use crate::info::ModelInfo;
use crate::options::{Mtp, Options, Scheduling};
use crate::runner::Observer;
use crate::{Error, Model, digest, memory, text};

/// A model that is open, whose engine nobody runs yet: [`Loaded::start`] makes it answer requests. Meanwhile the engine
/// can be used and prepared directly.
pub struct Loaded {
    /// Computes.
    pub engine: Engine,
    draft: Option<Draft>,
    info: ModelInfo,
}

impl Deref for Loaded {
    type Target = ModelInfo;

    fn deref(&self) -> &ModelInfo {
        &self.info
    }
}

impl Loaded {
    /// Opens a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// When the files are damaged, the architecture is unknown, or the device cannot hold the model.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Loaded, Error> {
        let device = options.device.open(options.threads)?;
        Loaded::open_on(&*device, path, options, &mut |_, _, _| {})
    }

    /// Opens a model on a device that is open already, with a progress callback. The options' settings of devices are
    /// ignored.
    ///
    /// # Errors
    /// As for [`Loaded::open`].
    pub fn open_on(
        device: &dyn Device,
        path: impl AsRef<Path>,
        options: Options,
        progress: Progress<'_>,
    ) -> Result<Loaded, Error> {
        let file = Arc::new(ModelFile::open(path.as_ref())?);
        let name = file.path().display().to_string();
        let facts = device.facts().clone();
        let step_tokens = options.step_tokens.unwrap_or(facts.step_tokens);
        let mtp = if options.mtp == Mtp::Auto && facts.chain > 0 { Mtp::Off } else { options.mtp };
        let options = Options { mtp, ..options };
        let plan = Arc::new(plan_for(&file, &options, step_tokens)?);

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
        let engine = Engine::new(baked, &facts, plan.limits, &plan.reaches(&pages), context, plan.graph.tokens());
        let engine = engine.with_slots(slots, plan.graph.slot_bytes());
        let engine = engine.of_kind(plan.graph.generates, plan.graph.is_causal());
        let engine = engine.with_head(plan.graph.head.map(|head| plan.graph.values[head.hidden.0].width));
        let engine = if options.prefix_cache { engine.with_prefix_cache() } else { engine };
        let info = ModelInfo::new(file, plan, (facts, options.kv), tokenizer, template);
        let info = info.map_err(|error| Error::Model { file: name, what: error.to_string() })?;
        Ok(Loaded { engine, draft: None, info })
    }

    /// Adds a smaller model that proposes the draft tokens of speculative decoding.
    ///
    /// # Errors
    /// When the two vocabularies differ.
    pub fn with_draft(self, draft: Loaded) -> Result<Loaded, Error> {
        let (ours, theirs) = (self.tokenizer(), draft.tokenizer());
        let differs = |id: &u32| ours.token_bytes(*id) != theirs.token_bytes(*id);
        let sizes = (self.plan().graph.vocabulary, draft.plan().graph.vocabulary);
        let what = match (0..ours.vocab_size() as u32).find(differs) {
            _ if sizes.0 != sizes.1 => {
                format!("its vocabulary has {} tokens, and that of {} has {}", sizes.1, self.name(), sizes.0)
            }
            Some(token) => format!("its token {token} differs from that of {}", self.name()),
            None => return Ok(Loaded { draft: Some(Draft::new(draft.engine)), ..self }),
        };
        Err(Error::Model { file: draft.name(), what: format!("it cannot be the draft model: {what}") })
    }

    /// Replaces the tokenizer.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: Tokenizer) -> Loaded {
        Loaded { info: self.info.with_tokenizer(Arc::new(tokenizer)), ..self }
    }

    /// Describes a file of cached prefixes of this model, for [`Engine::load_prefixes`]. All of the model's files are
    /// read, to identify the model by their contents.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn prefix_file(&self, path: impl Into<PathBuf>) -> Result<PrefixFile, Error> {
        let model = digest::of(&self.info.file, &self.info.plan.graph)?;
        Ok(PrefixFile { path: path.into(), model, kv: self.info.kv.to_string() })
    }

    /// Starts the thread that answers requests.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(self, scheduling: &Scheduling) -> Result<Model, Error> {
        self.start_observed(scheduling, None)
    }

    /// The same, with an observer of what it does.
    ///
    /// # Errors
    /// As for [`Loaded::start`].
    pub fn start_observed(self, scheduling: &Scheduling, observer: Option<Box<dyn Observer>>) -> Result<Model, Error> {
        Model::start(self.info, self.engine, self.draft, scheduling, observer)
    }
}

/// The plan of a model file with steps of so many tokens.
pub(crate) fn plan_for(file: &ModelFile, options: &Options, step_tokens: usize) -> Result<Plan, Error> {
    let extra = options.arch_files.iter().map(|path| Architecture::open(path));
    let extra = extra.collect::<Result<Vec<_>, _>>()?;
    let context = options.max_context.unwrap_or(Options::DEFAULT_CONTEXT);
    let name = || file.path().display().to_string();
    let graph = match (Graph::open_for(file, &extra, context, options.mtp != Mtp::Off), options.mtp) {
        (Ok(graph), Mtp::On) if graph.head.is_none() => {
            let what = "it has no head for multi-token prediction".to_owned();
            return Err(Error::Model { file: name(), what });
        }
        (Err(error), Mtp::Auto) => {
            // The model may be whole all the same.
            let graph = Graph::open_for(file, &extra, context, false)?;
            tracing::warn!("{}: its head for multi-token prediction is not used: {error}", name());
            graph
        }
        (graph, _) => graph?,
    };
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
