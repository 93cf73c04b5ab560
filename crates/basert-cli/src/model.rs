//! Resolves the model that the user names, and opens it.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use basert::plan::Device;
use basert::{ChatPrompt, DeviceKind, KvFormat, Loaded, Message, Model, Mtp, Options, Scheduling, Speculation, Stage};
use basert_hub::{DEFAULT_MODEL, Installed, Store};
use serde_json::{Map, Value};

use super::failure::mistake;
use super::stdin::text_of;
use super::terminal::visible;
use super::{count, progress, store, units};

/// The choice of the model.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model: a path, a hub id org/name[:variant], or a name that `basert list` shows [default: smollm2-135m]
    pub model: Option<OsString>,
    /// Read the model's architecture from this TOML file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}

/// The choice of the device.
#[derive(Clone, clap::Args)]
pub struct DeviceArgs {
    /// The device: cpu; metal, the GPU of a Mac; cuda or cuda:N, an NVIDIA GPU; simt, the GPU kernels simulated on the
    /// CPU (slow); reference, the oracle that all devices are checked against (very slow) [default: a GPU if there is
    /// one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Number of threads of the CPU device [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    #[command(flatten)]
    kv: KvArgs,
}

/// How the KV cache stores keys and values.
#[derive(Clone, clap::Args)]
pub struct KvArgs {
    /// Bits of each cached key and value: 16, or 8 or 4 (quantised)
    #[arg(long = "kv-bits", value_name = "BITS", default_value = "16")]
    pub format: KvFormat,
}

impl DeviceArgs {
    /// The number of threads of the CPU device, if it was given.
    pub fn threads(&self) -> Option<usize> {
        self.threads
    }

    /// Whether this is the CPU device.
    pub fn is_cpu(&self) -> bool {
        self.kind() == DeviceKind::Cpu
    }

    /// Opens a model on it.
    pub fn open(&self, path: &Path, options: Options) -> anyhow::Result<Loaded> {
        open(&*self.device()?, path, Options { kv: self.kv.format, ..options })
    }

    /// Opens the device. If the GPU was only the default and cannot be used, prints a note and opens the CPU.
    pub fn device(&self) -> anyhow::Result<Box<dyn Device>> {
        match self.kind().open_telling(self.threads, &mut note) {
            Err(error @ basert::Error::Gpu(_)) if self.device.is_none() => {
                note(&format!("running on the CPU, because the GPU cannot be used: {error}"));
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
    /// The model's path. The default model is downloaded if it is not installed.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        path(self.model.as_deref())
    }

    /// Options to open it with.
    pub fn options(&self) -> Options {
        Options { arch_files: self.arch_file.clone(), sessions: 1, ..Options::default() }
    }
}

/// Prints a note to stderr; if stderr is closed, the note is lost.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "note: {}", visible(line));
}

/// The path of the model of this name. If it is not installed, it is downloaded: the default model always, any other
/// on a terminal, if the user agrees.
pub fn path(model: Option<&OsStr>) -> anyhow::Result<PathBuf> {
    let store = Store::open_default()?;
    let found = store.resolve(model.unwrap_or(OsStr::new(DEFAULT_MODEL)));
    match (model.map(OsStr::to_string_lossy), found) {
        (_, Ok(found)) => {
            if let Some(changed) = found.installed.as_ref().and_then(Installed::changed) {
                let name = model.map_or(DEFAULT_MODEL.into(), OsStr::to_string_lossy);
                note(&format!("{changed} was changed after the model was pulled; `basert verify {name}` checks it"));
            }
            Ok(found.path)
        }
        (None, Err(basert_hub::Error::NotInstalled { .. })) => {
            note(&format!("downloading the default model, {DEFAULT_MODEL}, which is not installed yet"));
            Ok(store::fetch(&store, DEFAULT_MODEL)?.path)
        }
        (Some(name), Err(basert_hub::Error::NotInstalled { size, .. }))
            if io::stdin().is_terminal() && io::stderr().is_terminal() && wants(&name, size)? =>
        {
            Ok(store::fetch(&store, &name)?.path)
        }
        (Some(text), Err(_)) if text.contains(char::is_whitespace) && !text.contains('/') => Err(mistake(format!(
            "'{text}' is not the name of a model; give a prompt with -p, or to `run` after the model"
        ))),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Asks whether to download a model.
fn wants(name: &str, size: Option<u64>) -> io::Result<bool> {
    let size = size.map_or(String::new(), |bytes| format!(" ({})", units::bytes(bytes as f64)));
    write!(io::stderr(), "{name}{size} is not installed yet; download it now? [Y/n] ")?;
    let mut answer = String::new();
    // The end of input means no.
    let answered = io::stdin().read_line(&mut answer)? > 0;
    Ok(answered && matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// A progress callback that shows bars for the slow stages of loading a model.
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

/// Opens a model, with a progress bar if that takes long.
fn open(device: &dyn Device, path: &Path, options: Options) -> anyhow::Result<Loaded> {
    let model = Loaded::open_on(device, path, options, &mut loading())?;
    for warning in model.warnings() {
        note(warning);
    }
    let (context, trained) = (model.engine.context(), model.plan().graph.context);
    if context > trained {
        note(&format!("the model was trained for a context of {trained} tokens, not of {context}"));
    }
    Ok(model)
}

/// Speculative decoding.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculationArgs {
    /// Speculate: propose up to N draft tokens (at most 16) by prompt lookup and check them in one step; auto adapts N
    /// to what is fastest; mtp and mtp=N have the model's head for multi-token prediction propose them. The text is the same
    #[arg(long, value_name = "N|auto|mtp|off", default_value_t = Speculation::Auto)]
    pub speculate: Speculation,
    /// Let this smaller model with the same vocabulary propose the draft tokens
    #[arg(long, value_name = "MODEL")]
    draft: Option<OsString>,
}

impl SpeculationArgs {
    /// The draft model's file, if there is one.
    pub fn draft(&self) -> anyhow::Result<Option<PathBuf>> {
        if self.draft.is_some() && self.speculate == Speculation::Off {
            return Err(mistake("--draft has no effect with --speculate off"));
        }
        if self.draft.is_some() && matches!(self.speculate, Speculation::Mtp(_)) {
            return Err(mistake("draft tokens come from --draft or from --speculate mtp, not from both"));
        }
        self.draft.as_deref().map(|draft| path(Some(draft))).transpose()
    }

    /// Whether the model's head is loaded.
    pub fn mtp(&self) -> Mtp {
        match self.speculate {
            Speculation::Mtp(_) => Mtp::On,
            Speculation::Auto if self.draft.is_none() => Mtp::Auto,
            _ => Mtp::Off,
        }
    }
}

/// Options of the commands that generate answers.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Limit on the tokens of prompt and answer together [default: what the model was trained for, up to 8192]
    #[arg(long, value_name = "TOKENS", value_parser = count(1))]
    max_context: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    /// The system message
    #[arg(long, value_name = "TEXT", help_heading = "Chat")]
    pub system: Option<String>,
    /// Use this Jinja chat template instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    chat_template: Option<PathBuf>,
    /// Ask the model to reason before it answers, if its template supports this
    #[arg(long, help_heading = "Chat", overrides_with = "no_think")]
    think: bool,
    /// Ask the model to answer without reasoning, if its template supports this
    #[arg(long, help_heading = "Chat", overrides_with = "think")]
    no_think: bool,
    /// Show speeds and the seed even if stderr is not a terminal
    #[arg(long)]
    pub stats: bool,
}

impl RunArgs {
    /// Opens the model.
    pub fn open(&self, model: &ModelArgs) -> anyhow::Result<Model> {
        let chat_template = self.chat_template.as_deref().map(read_text).transpose()?;
        let path = model.path()?;
        let (max_context, mtp) = (self.max_context, self.speculation.mtp());
        let options = Options { max_context, mtp, chat_template, ..model.options() };
        let model = self.device.open(&path, options.clone())?;
        let model = match self.speculation.draft()? {
            Some(draft) => model.with_draft(self.device.open(&draft, options)?)?,
            None => model,
        };
        let speculation = self.speculation.speculate;
        Ok(model.start(&Scheduling { speculation, ..Scheduling::default() })?)
    }

    /// The first chat-only option that was given, if any.
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

    /// The prompt of a chat, up to where the answer begins.
    pub fn chat_prompt(&self, model: &Model, messages: &[Message]) -> Result<ChatPrompt, basert::Error> {
        let thinking = (self.think || self.no_think).then_some(self.think);
        let variables: Map<_, _> =
            thinking.map(|think| ("enable_thinking".to_owned(), Value::Bool(think))).into_iter().collect();
        model.chat_prompt(messages, &[], Some(&variables))
    }
}

/// Reads a file that the user named as text.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let file = std::fs::File::open(path).and_then(|file| file.metadata().map(|found| (file, found.is_dir())));
    let cannot = |error: std::io::Error| mistake(format!("cannot read '{}': {error}", path.display()));
    match file.map_err(cannot)? {
        (_, true) => Err(cannot(std::io::ErrorKind::IsADirectory.into())),
        (file, false) => text_of(file, &format!("'{}'", path.display())),
    }
}
