//! `basert doctor`.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use basert::DeviceKind;
use basert::plan::Device;
use basert_cpu::{CpuDevice, Isa};
#[cfg(not(target_os = "macos"))]
use basert_gpu::CudaGpu;
#[cfg(target_os = "macos")]
use basert_gpu::MetalGpu;
use basert_gpu::{CACHE_DIR_VARIABLE, GpuError, GpuFacts, Tuning, cache_dir};
#[cfg(unix)]
use basert_gpu::{Gpu, SimtGpu, SimtOptions};
use basert_hub::{DEFAULT_MODEL, MODELS_DIR_VARIABLE, Store};
use serde_json::{Value, json};

use super::system::{self, Memory};
use super::units;

/// Checks this machine: devices that can run models, what is missing, and how to install it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert doctor
  basert doctor --device cuda
  basert doctor --json

Nothing is changed. The exit code is 0 when this machine can run a model on the device asked for, or on the one that would \
be taken where none is asked for, and 1 when it cannot.")]
pub struct Args {
    /// The device that has to work: cpu, metal, cuda, cuda:N or simt [default: a GPU if there is one, else the CPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceKind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The state of what was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Missing, and optional.
    Absent,
    /// Broken or unsuitable.
    Bad,
}

/// The result of one check.
struct Finding {
    topic: String,
    state: State,
    /// The description.
    what: String,
    /// A command, or other advice, that would help.
    remedy: Option<String>,
    /// The same as JSON.
    facts: Value,
}

impl Finding {
    fn new(topic: impl Into<String>, state: State, what: impl Into<String>) -> Finding {
        Finding { topic: topic.into(), state, what: what.into(), remedy: None, facts: Value::Null }
    }

    fn with(self, facts: Value) -> Finding {
        Finding { facts, ..self }
    }

    fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding { remedy: Some(remedy.into()), ..self }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut findings = vec![cpu(), memory()];
    findings.extend(gpus());
    findings.extend(simulated());
    findings.extend([models(), cache(), default_model()]);
    let device = args.device.unwrap_or_else(DeviceKind::best).to_string();
    // A GPU that is only the default, and does not work, is skipped.
    let works = |name: &str| findings.iter().any(|finding| finding.topic == name && finding.state == State::Good);
    let runs = if works(&device) || args.device.is_some() { device.as_str() } else { "cpu" };
    let can = works(runs);

    let mut out = io::stdout().lock();
    if args.json {
        let findings: Vec<_> = findings.iter().map(Finding::json).collect();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": system::name(),
            "architecture": env::consts::ARCH,
            "device": runs,
            "can_run": can,
            "findings": findings,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "basert {} on {}, {}\n", env!("CARGO_PKG_VERSION"), system::name(), env::consts::ARCH)?;
        let rows: Vec<_> = findings.iter().flat_map(Finding::rows).collect();
        write!(out, "{}", units::table(&rows, 3))?;
        if can {
            writeln!(out, "\nmodels run on {runs}")?;
        }
    }
    if can { Ok(()) } else { bail!("this machine cannot run a model on {runs}") }
}

impl Finding {
    /// The table's line, and one with the remedy if there is one.
    fn rows(&self) -> Vec<Vec<String>> {
        let state = match self.state {
            State::Good => "ok",
            State::Absent => "-",
            State::Bad => "!!",
        };
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let remedy = self.remedy.as_ref().map(|remedy| row(["", "", &format!("→ {remedy}")]));
        [row([state, &self.topic, &self.what])].into_iter().chain(remedy).collect()
    }

    fn json(&self) -> Value {
        let state = match self.state {
            State::Good => "good",
            State::Absent => "absent",
            State::Bad => "bad",
        };
        json!({ "topic": self.topic, "state": state, "what": self.what, "remedy": self.remedy, "facts": self.facts })
    }
}

fn cpu() -> Finding {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    match CpuDevice::new(None) {
        Ok(device) => {
            let name = system::processor().map_or(String::new(), |name| format!("{name}: "));
            let what = format!("{name}{} (of {})", device.facts().description, names.join(", "));
            let facts = json!({
                "processor": system::processor(),
                "threads": device.pool().threads(),
                "instructions": Isa::detect().name(),
                "available_instructions": names,
            });
            Finding::new("cpu", State::Good, what).with(facts)
        }
        Err(error) => Finding::new("cpu", State::Bad, format!("threads cannot be started: {error}"))
            .remedy("allow this process more threads (`ulimit -u`, or the limits of its container)"),
    }
}

fn memory() -> Finding {
    let memory = Memory::now();
    let said = |bytes: u64, what: &str| format!("{}{what}", units::bytes(bytes as f64));
    let parts = [
        memory.total.map(|bytes| said(bytes, "")),
        memory.available.map(|bytes| said(bytes, " available")),
        memory.limit.map(|bytes| said(bytes, " at most for this process (control group)")),
    ];
    let what = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let facts = json!({
        "total_bytes": memory.total, "available_bytes": memory.available, "limit_bytes": memory.limit,
    });
    if what.is_empty() {
        return Finding::new("memory", State::Absent, "not reported by the system").with(facts);
    }
    Finding::new("memory", State::Good, what).with(facts)
}

/// The result of opening a GPU.
fn gpu(name: &str, opened: Result<GpuFacts, GpuError>) -> Finding {
    match opened.and_then(|facts| Ok((Tuning::measured(&facts)?.is_some(), facts))) {
        Ok((tuned, facts)) => {
            let bytes = |bytes: usize| units::bytes(bytes as f64);
            let free = facts.free_memory.map_or(String::new(), |free| format!(", {} free", bytes(free)));
            let largest = match facts.largest_buffer {
                usize::MAX => String::new(),
                largest => format!(", buffers of up to {}", bytes(largest)),
            };
            let shared = format!("{} for a threadgroup", bytes(facts.threadgroup_memory));
            let tuning = if tuned { "tuned" } else { "not tuned yet" };
            let what = format!("{}{free}{largest}, {shared}; {}; {tuning}", facts.description, facts.software);
            Finding::new(facts.name.clone(), State::Good, what).with(json!({
                "description": facts.description,
                "software": facts.software,
                "free_bytes": facts.free_memory,
                "largest_buffer_bytes": (facts.largest_buffer != usize::MAX).then_some(facts.largest_buffer),
                "threadgroup_bytes": facts.threadgroup_memory,
                "cores": facts.cores,
                "tuning": facts.tuning,
                "tuned": tuned,
            }))
        }
        Err(error) => Finding::new(name, State::Bad, error.to_string()),
    }
}

/// The GPU of a Mac.
#[cfg(target_os = "macos")]
fn gpus() -> Vec<Finding> {
    vec![gpu("metal", MetalGpu::open().map(|gpu| gpu.facts().clone()))]
}

/// NVIDIA GPUs, and the compiler of their kernels.
#[cfg(not(target_os = "macos"))]
fn gpus() -> Vec<Finding> {
    let open = |number| CudaGpu::open(number).map(|gpu| gpu.facts().clone());
    let count = CudaGpu::count();
    let mut findings: Vec<_> = (0..count).map(|number| gpu(&format!("cuda:{number}"), open(number))).collect();
    if count == 0 {
        let why = open(0).err().map_or("none found".to_owned(), |error| error.to_string());
        findings.push(Finding::new("cuda:0", State::Absent, why));
    }
    findings.push(match CudaGpu::compiler() {
        Ok(found) => Finding::new("nvrtc", State::Good, found),
        Err(error) => Finding::new("nvrtc", if count == 0 { State::Absent } else { State::Bad }, error.to_string()),
    });
    findings
}

/// The simulated GPU, and the compiler of its kernels.
#[cfg(unix)]
fn simulated() -> Option<Finding> {
    let found = gpu("simt", SimtGpu::new(SimtOptions::default()).map(|gpu| gpu.facts().clone()));
    // Only needed for writing kernels.
    let absent = found.state == State::Bad;
    Some(if absent { Finding { state: State::Absent, ..found } } else { found })
}

#[cfg(not(unix))]
fn simulated() -> Option<Finding> {
    None
}

/// Checks whether files can be created in a folder, which may not exist yet.
fn folder(topic: &str, folder: Option<PathBuf>, variable: &str) -> Finding {
    let Some(folder) = folder else {
        return Finding::new(topic, State::Bad, "there is no home folder")
            .remedy(format!("set ${variable} to a writable folder"));
    };
    let exists = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let writable = exists.is_dir() && tempfile::tempfile_in(exists).is_ok();
    let facts = json!({ "path": folder, "exists": folder.is_dir(), "writable": writable });
    let (path, missing) = (folder.display(), if exists == folder { "" } else { ", not created yet" });
    if writable {
        return Finding::new(topic, State::Good, format!("{path}{missing}")).with(facts);
    }
    let what = format!("{path}{missing}: {} is not writable", exists.display());
    Finding::new(topic, State::Bad, what)
        .remedy(format!("make {} writable, or set ${variable} to another folder", exists.display()))
        .with(facts)
}

fn models() -> Finding {
    let store = Store::open_default().ok();
    let found = folder("models", store.as_ref().map(|store| store.root().to_owned()), MODELS_DIR_VARIABLE);
    let installed = store.and_then(|store| store.list().ok()).unwrap_or_default();
    let bytes: u64 = installed.iter().map(|model| model.size).sum();
    let what = match installed.len() {
        0 => found.what,
        n => format!("{}, {n} installed, {}", found.what, units::bytes(bytes as f64)),
    };
    Finding { what, ..found }
}

fn cache() -> Finding {
    folder("cache", cache_dir(), CACHE_DIR_VARIABLE)
}

fn default_model() -> Finding {
    let found = Store::open_default().and_then(|store| store.resolve(DEFAULT_MODEL));
    match found {
        Ok(found) => Finding::new("default model", State::Good, format!("{DEFAULT_MODEL}, {}", found.path.display())),
        Err(_) => Finding::new("default model", State::Absent, format!("{DEFAULT_MODEL} is not installed yet"))
            .remedy(format!("basert pull {DEFAULT_MODEL}")),
    }
}
