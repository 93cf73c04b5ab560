//! From what the user calls a model to an open one.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use basert::hub::{self, DEFAULT_MODEL, Installed, Store};
use basert::plan::Device;
use basert::{ChatPrompt, DeviceKind, KvFormat, Message, Model, Options, Speculation, Stage};
use serde_json::{Map, Value};

use super::failure::mistake;
use super::terminal::visible;
use super::{count, progress, store, units};

/// Which model.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model: a path, a hub id org/name[:variant], or a name that `basert list` shows [default: smollm2-135m]
    pub model: Option<OsString>,
    /// Describe the model's architecture by this TOML file; may be given several times
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}

/// What the model runs on.
#[derive(Clone, clap::Args)]
pub struct DeviceArgs {
    /// What to run on: cpu; metal, the GPU of a Mac; cuda or cuda:N, an NVIDIA GPU; simt, the GPU kernels on the CPU, slowly; reference, the exact
    /// and very slow one that all are checked against [default: a GPU where there is one, or else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Threads of the CPU device [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    #[command(flatten)]
    kv: KvArgs,
}

/// How the KV cache stores keys and values.
#[derive(Clone, clap::Args)]
pub struct KvArgs {
    /// Bits of a cached key or value: 16, or quantised to 8 or 4
    #[arg(long = "kv-bits", value_name = "BITS", default_value = "16")]
    pub format: KvFormat,
}

impl DeviceArgs {
    /// Threads of the CPU device, if they were given.
    pub fn threads(&self) -> Option<usize> {
        self.threads
    }

    /// Whether that is the CPU, as fast as it can be.
    pub fn is_cpu(&self) -> bool {
        self.kind() == DeviceKind::Cpu
    }

    /// Opens a model on it.
    pub fn open(&self, path: &Path, options: Options) -> anyhow::Result<Model> {
        open(&*self.device()?, path, Options { kv: self.kv.format, ..options })
    }

    /// Makes the device ready. A GPU that nobody asked for and that lacks something is left alone, with a note.
    pub fn device(&self) -> anyhow::Result<Box<dyn Device>> {
        match self.kind().open_telling(self.threads, &mut note) {
            Err(error @ basert::Error::Gpu(_)) if self.device.is_none() => {
                note(&format!("running on the CPU, for the GPU cannot be used: {error}"));
                Ok(DeviceKind::Cpu.open(self.threads)?)
            }
            opened => Ok(opened?),
        }
    }

    /// The format of keys and values.
    pub fn kv(&self) -> KvFormat {
        self.kv.format
    }

    fn kind(&self) -> DeviceKind {
        self.device.unwrap_or_else(DeviceKind::best)
    }

    /// The options, with the device, its threads, and its format of keys and values.
    pub fn choose(&self, options: Options) -> Options {
        Options { device: self.kind(), threads: self.threads, kv: self.kv.format, ..options }
    }
}

impl ModelArgs {
    /// Where the model is. The default one is fetched when it is not there yet.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        path(self.model.as_deref())
    }

    /// Options that open it.
    pub fn options(&self) -> Options {
        Options { arch_files: self.arch_file.clone(), sessions: 1, ..Options::default() }
    }
}

/// Says something that is no failure. Where stderr is closed, there is nobody to be told.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "note: {}", visible(line));
}

/// Where the model of this name is. One that is not there yet is fetched: the default one, and on a terminal any other, if
/// the user wants that.
pub fn path(model: Option<&OsStr>) -> anyhow::Result<PathBuf> {
    let store = Store::open_default()?;
    let found = store.resolve(model.unwrap_or(OsStr::new(DEFAULT_MODEL)));
    match (model.map(OsStr::to_string_lossy), found) {
        (_, Ok(found)) => {
            if let Some(changed) = found.installed.as_ref().and_then(Installed::changed) {
                let name = model.map_or(DEFAULT_MODEL.into(), OsStr::to_string_lossy);
                note(&format!("{changed} was changed after it was pulled; `basert verify {name}` checks it"));
            }
            Ok(found.path)
        }
        (None, Err(hub::Error::NotInstalled { .. })) => {
            note(&format!("fetching the default model, {DEFAULT_MODEL}, which is not here yet"));
            Ok(store::fetch(&store, DEFAULT_MODEL)?.path)
        }
        (Some(name), Err(hub::Error::NotInstalled { size, .. }))
            if io::stdin().is_terminal() && io::stderr().is_terminal() && wants(&name, size)? =>
        {
            Ok(store::fetch(&store, &name)?.path)
        }
        (Some(text), Err(_)) if text.contains(char::is_whitespace) && !text.contains('/') => Err(mistake(format!(
            "'{text}' is not the name of a model; a prompt is given with -p, or behind the model to run"
        ))),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Asks whether a model is to be fetched.
fn wants(name: &str, size: Option<u64>) -> io::Result<bool> {
    let size = size.map_or(String::new(), |bytes| format!(" ({})", units::bytes(bytes as f64)));
    write!(io::stderr(), "{name}{size} is not here yet; fetch it now? [Y/n] ")?;
    let mut answer = String::new();
    // The end of the input is no consent.
    let answered = io::stdin().read_line(&mut answer)? > 0;
    Ok(answered && matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// Bars for what takes long when a model is brought to a device, as what it is told about.
pub fn loading() -> impl FnMut(Stage, usize, usize) {
    let mut bars = [progress::LateBar::kernels("compiling kernels"), progress::LateBar::bytes("loading")];
    move |stage, done, total| {
        let [kernels, weights] = &mut bars;
        match stage {
            Stage::Kernels => kernels.set(done, total),
            Stage::Weights => weights.set(done, total),
        }
    }
}

/// Opens a model, with a bar when that takes long.
fn open(device: &dyn Device, path: &Path, options: Options) -> anyhow::Result<Model> {
    let model = Model::open_on(device, path, options, &mut loading())?;
    for warning in model.warnings() {
        note(warning);
    }
    let (context, trained) = (model.context(), model.plan().graph.context);
    if context > trained {
        note(&format!("the model was trained for {trained} tokens of context, not for {context}"));
    }
    Ok(model)
}

/// Tokens that are guessed before they are drawn.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculationArgs {
    /// Guess up to N tokens (at most 16) by what followed in the text before, and compute them together; auto guesses as
    /// many as make it faster. The text is the same
    #[arg(long, value_name = "N|auto|off", default_value_t = Speculation::Auto)]
    pub speculate: Speculation,
    /// Let this smaller model of the same vocabulary guess instead
    #[arg(long, value_name = "MODEL")]
    draft: Option<OsString>,
}

impl SpeculationArgs {
    /// The draft model's file, if there is one.
    pub fn draft(&self) -> anyhow::Result<Option<PathBuf>> {
        if self.draft.is_some() && self.speculate == Speculation::Off {
            return Err(mistake("--draft has nothing to guess with --speculate off"));
        }
        self.draft.as_deref().map(|draft| path(Some(draft))).transpose()
    }
}

/// How a model is run by the commands that answer.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The most tokens that prompt and answer have together [default: what the model was trained for, up to 8192]
    #[arg(long, value_name = "TOKENS", value_parser = count(1))]
    max_context: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    /// Instructions for the whole chat
    #[arg(long, value_name = "TEXT", help_heading = "Chat")]
    pub system: Option<String>,
    /// Use this Jinja template instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    chat_template: Option<PathBuf>,
    /// Ask the model to think before it answers, if its template knows how
    #[arg(long, help_heading = "Chat", overrides_with = "no_think")]
    think: bool,
    /// Ask the model to answer without thinking, if its template knows how
    #[arg(long, help_heading = "Chat", overrides_with = "think")]
    no_think: bool,
    /// Show speeds and the seed even where stderr is no terminal
    #[arg(long)]
    pub stats: bool,
}

impl RunArgs {
    /// Opens the model.
    pub fn open(&self, model: &ModelArgs) -> anyhow::Result<Model> {
        let chat_template = self.chat_template.as_deref().map(read_text).transpose()?;
        let path = model.path()?;
        let prefix_cache = true;
        let options = Options { max_context: self.max_context, chat_template, prefix_cache, ..model.options() };
        let model = self.device.open(&path, options.clone())?;
        Ok(match self.speculation.draft()? {
            Some(draft) => model.with_draft(self.device.open(&draft, options)?)?,
            None => model,
        })
    }

    /// The option of a chat that was given, if any was.
    pub fn of_chat(&self) -> Option<&'static str> {
        [
            (self.system.is_some(), "--system"),
            (self.chat_template.is_some(), "--chat-template"),
            (self.think, "--think"),
            (self.no_think, "--no-think"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// A chat, up to where the answer begins.
    pub fn chat_prompt(&self, model: &Model, messages: &[Message]) -> Result<ChatPrompt, basert::Error> {
        let thinking = (self.think || self.no_think).then_some(self.think);
        let variables: Map<_, _> =
            thinking.map(|think| ("enable_thinking".to_owned(), Value::Bool(think))).into_iter().collect();
        model.chat_prompt(messages, Some(&variables))
    }
}

/// The text of a file that the user named.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).map_err(|error| mistake(format!("cannot read '{}': {error}", path.display())))?;
    String::from_utf8(bytes).map_err(|_| mistake(format!("'{}' is not UTF-8 text", path.display())))
}
