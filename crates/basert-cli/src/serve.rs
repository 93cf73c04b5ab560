//! `basert serve`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use basert::{DeviceKind, Engine, Options, PrefixFileError};
use basert_hub::DEFAULT_MODEL;
use basert_server::{Config, Server, Source};
use clap::builder::RangedU64ValueParser;

use super::failure::mistake;
use super::log::Lines;
use super::model::{self, DeviceArgs, SpeculationArgs, read_text};
use super::system::{Memory, share_heap};
use super::{count, signals, units};

/// The share of a GPU's memory, after the weights, that the KV caches of all models may take.
const GPU_SHARE: f64 = 0.8;

/// Answers requests over HTTP until a signal stops the server.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert serve
  basert serve smollm2-135m ./other.gguf --port 9000
  basert serve qwen2.5-0.5b --host 0.0.0.0 --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

A model is asked for by the name it has here, a file by its name without the ending; the first one answers requests \
that name none. SIGTERM and SIGINT let requests end within --drain-timeout, SIGUSR1 however long they take; a second \
signal ends the process at once.")]
pub struct Args {
    /// The models: paths, hub ids org/name[:variant], or names that `basert list` shows [default: smollm2-135m]
    #[arg(value_name = "MODEL")]
    models: Vec<OsString>,
    /// A further model; may be repeated
    #[arg(long = "model", value_name = "MODEL")]
    more_models: Vec<OsString>,
    /// Read a model's architecture from this TOML file; may be repeated
    #[arg(long, value_name = "FILE")]
    arch_file: Vec<PathBuf>,
    /// Limit on the tokens of prompt and answer together [default: what the model was trained for, up to 8192]
    #[arg(long, value_name = "TOKENS", value_parser = count(1))]
    max_context: Option<usize>,
    /// Limit on an answer's tokens, whatever a request asks for
    #[arg(long, value_name = "TOKENS", value_parser = count(1))]
    max_tokens: Option<usize>,
    /// Use this Jinja chat template instead of the models' own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Answers generated at the same time, for each model; others wait
    #[arg(long = "continuous-batching", value_name = "N", default_value_t = 16, value_parser = RangedU64ValueParser::<usize>::new().range(1..=Options::MOST_ANSWERS as u64))]
    parallel: usize,
    /// Limit on waiting requests of a client, for each model; further requests are refused
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count(0))]
    queue: usize,
    /// Memory of each model's KV cache, in MiB [default: on the CPU, half of the available memory; on a GPU, enough for
    /// --continuous-batching answers of full context, but at most 80 % of the memory that is free after the weights]
    #[arg(long, value_name = "MIB", value_parser = count(1))]
    kv_memory: Option<usize>,
    /// The part of --kv-memory for cached prefixes, in MiB [default: on the CPU, 4 full contexts; on GPUs, all of it]
    #[arg(long, value_name = "MIB", value_parser = count(0))]
    prefix_memory: Option<usize>,
    /// Share cached prefixes between clients with different keys, who can then find out what others have asked
    #[arg(long)]
    share_prefixes: bool,
    /// Save cached prefixes to this file when the server stops, and load them when it starts; with several models, to
    /// FILE.NAME for each
    #[arg(long, value_name = "FILE")]
    prefix_cache_file: Option<PathBuf>,
    /// About how long, in milliseconds, the prefill of other prompts may delay the next token of a running answer
    #[arg(long, value_name = "MS", default_value_t = 150, value_parser = count(1))]
    step_gap: usize,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// The address to listen on, or a name of this machine such as localhost
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host)]
    host: IpAddr,
    /// The port to listen on; 0 takes a free port
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Accept this API key; may be repeated. Other users of the machine can see it; prefer --api-key-file
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// Accept the API keys in this file, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Accept requests from web pages of this origin, on any port with :*, or of any origin with *; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Without API keys, accept requests to this host name, or to any with *; may be repeated
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Another name for the first model, or with * any name that no model has; may be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Limit on requests a minute for each API key, or for each address if there are no keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate_limit: Option<u32>,
    /// Limit on the size of a request's body, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = count(1))]
    body_limit: usize,
    /// Memory for all requests together, in MiB, beside that of the models; one client may take half of it
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = count(16))]
    request_memory: usize,
    /// Limit on open connections; one address may have half of them
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = count(1))]
    max_connections: usize,
    /// Time limit for receiving a request's head, and again for its body, in seconds
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = count(1))]
    header_timeout: usize,
    /// Seconds after which a client that does not read its answer is disconnected
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = count(1))]
    write_timeout: usize,
    /// Time limit for an answer, in seconds
    #[arg(long, value_name = "S", default_value_t = 3600, value_parser = count(1))]
    request_timeout: usize,
    /// Seconds that running requests have to finish after SIGTERM
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = count(0))]
    drain_timeout: usize,
    /// Seconds of silence after which a keep-alive is sent on a stream
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = count(1))]
    keep_alive: usize,
    /// Unload a model that was not used for this many seconds [default: never]
    #[arg(long, value_name = "S", value_parser = count(1))]
    idle_timeout: Option<usize>,
    /// Keep uploaded files and results of batches in this folder; without it, both are disabled
    #[arg(long, value_name = "FOLDER")]
    files_dir: Option<PathBuf>,
    /// Limit on the size of all files together, in MiB; the files of one client may take half of it
    #[arg(long, value_name = "MIB", default_value_t = 10240, value_parser = count(1))]
    files_limit: usize,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Log")]
struct LogArgs {
    /// The log's format; prompts and answers are never logged
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: LogFormat,
    /// Append the log to this file instead of writing it to stderr
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// Lines of text
    Text,
    /// A JSON object on each line
    Json,
    /// No log
    Off,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    share_heap();
    let log = args.log.begin()?;
    let result = args.serve();
    log.finish();
    result
}

async fn serve(config: Config, sources: Vec<Source>) -> anyhow::Result<()> {
    let drain_timeout = config.drain_timeout;
    let names = sources.iter().map(|source| source.name.clone()).collect::<Vec<_>>().join(", ");
    let server = Server::bind(config, sources).await.map_err(|error| match error {
        basert_server::ServeError::Listen { .. } => anyhow::Error::from(error),
        error => mistake(error.to_string()),
    })?;
    let address = server.address()?;
    server.open_first().await.map_err(anyhow::Error::from_boxed)?;
    // Until here, a signal ends the process at once.
    signals::hear(server.stop(), drain_timeout).context("signals cannot be received")?;
    let mut stderr = Lines::to(io::stderr())?;
    writeln!(stderr, "serving {names} at http://{address}")?;
    server.run().await;
    stderr.finish();
    Ok(())
}

impl LogArgs {
    fn begin(&self) -> anyhow::Result<Lines> {
        let lines = match &self.log_file {
            None => Lines::to(io::stderr())?,
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Lines::to(file.with_context(|| format!("cannot write '{}'", path.display()))?)?
            }
        };
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).with_target(false);
        let log = log.log_internal_errors(false);
        match self.log {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
            LogFormat::Off => {}
        }
        Ok(lines)
    }
}

impl Args {
    fn serve(&self) -> anyhow::Result<()> {
        let config = self.config()?;
        let sources = self.sources()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(serve(config, sources));
        // Work for requests that are no longer answered is not waited for.
        runtime.shutdown_background();
        result
    }

    fn config(&self) -> anyhow::Result<Config> {
        let network = &self.network;
        let seconds = |seconds: usize| Duration::from_secs(seconds as u64);
        let mut api_keys = network.api_key.clone();
        if let Some(path) = &network.api_key_file {
            let text = read_text(path)?;
            api_keys.extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
            if api_keys.is_empty() {
                return Err(mistake(format!("there is no key in '{}'", path.display())));
            }
        }
        if api_keys.iter().any(String::is_empty) {
            return Err(mistake("an API key cannot be empty"));
        }
        Ok(Config {
            address: SocketAddr::new(network.host, network.port),
            api_keys,
            cors: network.cors.clone(),
            hosts: network.allow_host.clone(),
            aliases: network.alias.clone(),
            body_limit: network.body_limit << 20,
            request_memory: network.request_memory << 20,
            connections: network.max_connections,
            header_timeout: seconds(network.header_timeout),
            write_timeout: seconds(network.write_timeout),
            request_timeout: seconds(network.request_timeout),
            drain_timeout: seconds(network.drain_timeout),
            keep_alive: seconds(network.keep_alive),
            rate_limit: network.rate_limit,
            parallel: self.parallel,
            queue: self.queue,
            max_tokens: self.max_tokens,
            step_gap: Duration::from_millis(self.step_gap as u64),
            speculation: self.speculation.speculate,
            share_prefixes: self.share_prefixes,
            idle_timeout: network.idle_timeout.map(seconds),
            files: network.files_dir.clone(),
            files_limit: (network.files_limit as u64) << 20,
        })
    }

    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let chat_template = self.chat_template.as_deref().map(read_text).transpose()?;
        let device = self.device.choose(Options::default()).device;
        let cache_bytes = match self.kv_memory {
            Some(mib) => Some(mib << 20),
            None if device == DeviceKind::Cpu => {
                Memory::now().usable().and_then(|bytes| usize::try_from(bytes / 2).ok())
            }
            None => None,
        };
        if let Some(bytes) = cache_bytes {
            tracing::info!("up to {} for the KV cache of each model", units::bytes(bytes as f64));
        }
        let mut models: Vec<&OsStr> = self.models.iter().chain(&self.more_models).map(OsString::as_os_str).collect();
        if models.is_empty() {
            models.push(OsStr::new(DEFAULT_MODEL));
        }
        let several = models.len() > 1;
        let options = Options {
            max_context: self.max_context,
            arch_files: self.arch_file.clone(),
            chat_template,
            sessions: self.parallel,
            answers: self.parallel.max(Options::ANSWERS),
            cache_bytes,
            cache_share: Some(GPU_SHARE / models.len() as f64),
            mtp: self.speculation.mtp(),
            ..Options::default()
        };
        let draft = self.speculation.draft()?;
        models.into_iter().map(|name| self.source(name, several, draft.clone(), options.clone())).collect()
    }

    fn source(&self, name: &OsStr, several: bool, draft: Option<PathBuf>, options: Options) -> anyhow::Result<Source> {
        let asked = (name != DEFAULT_MODEL).then_some(name);
        let path = model::path(asked)?;
        let given = Path::new(name);
        let name = match given.file_stem() {
            Some(stem) if given.exists() => stem.to_string_lossy().into_owned(),
            _ => name.to_string_lossy().into_owned(),
        };
        let prefixes = self.prefix_cache_file.as_deref();
        let prefixes = prefixes.map(|file| if several { prefix_file_of(file, &name) } else { file.to_owned() });
        let (device, is_cpu) = (self.device.clone(), self.device.is_cpu());
        let prefix_memory = self.prefix_memory.map(|mib| mib << 20);
        let bound = move |engine: &mut Engine| match prefix_memory {
            None if is_cpu => engine.limit_prefixes(4 * engine.context_bytes()),
            None => {}
            Some(bytes) => engine.limit_prefixes(bytes),
        };
        let open = move || {
            let mut model = device.open(&path, options.clone())?;
            if let Some(draft) = &draft {
                model = model.with_draft(device.open(draft, options.clone())?)?;
            }
            bound(&mut model.engine);
            let prefixes = prefixes.as_ref().map(|file| model.prefix_file(file)).transpose()?;
            match prefixes.map(|file| model.engine.load_prefixes(file)) {
                None => {}
                Some(Ok(pages)) => tracing::info!(pages, "cached prefixes loaded"),
                Some(Err(error)) if error.is_replaceable() => {
                    tracing::warn!("{error}; the file will be replaced");
                }
                Some(Err(error @ PrefixFileError::InUse { .. })) => tracing::warn!("{error}; nothing is saved"),
                Some(Err(error)) => return Err(error.into()),
            }
            Ok(model)
        };
        Ok(Source { name, open: Box::new(open) })
    }
}

/// An address, or the one that a host name resolves to, preferably IPv4.
fn host(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let unknown = |why: String| format!("it is neither an address nor a host name that can be resolved: {why}");
    let found: Vec<IpAddr> = match (text, 0).to_socket_addrs() {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => return Err(unknown(error.to_string())),
    };
    let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
    address.copied().ok_or_else(|| unknown("it has no address".to_owned()))
}

/// The prefix file of one model among several: the model's name is appended, percent-encoded where need be.
fn prefix_file_of(file: &Path, model: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".");
    for c in model.chars() {
        match c {
            '/' | '\\' | ':' | '%' => path.push(format!("%{:02X}", u32::from(c))),
            c => path.push(c.to_string()),
        }
    }
    path.into()
}
