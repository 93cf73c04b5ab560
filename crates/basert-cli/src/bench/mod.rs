//! `basert bench`.

pub mod machine;
mod peer;
mod report;
mod workload;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use basert::files::ModelFile;
use basert::{Model, Options};

use super::count;
use super::failure::mistake;
use super::model::{self, ModelArgs};
use machine::Machine;
use peer::Peer;
use report::Report;
use workload::{Engine, Kind, Ours, Test};

/// Measures the speed of prefill and decoding, in tokens a second.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert bench
  basert bench ./model.gguf -p 128,512,2048 -n 64 -d 0,4096 -b 1,8
  basert bench ./model.gguf --compare llama-cpp-python
  basert bench --machine
  basert bench --json > result.json

A test 'prefill P' computes P tokens at once, 'decode N' one after the other, '×B' in B sequences together, '@ D' after \
D tokens of context. Tokens are random, and the same every time. GB/s is the weights, keys and values that decoding \
reads, by the time it takes. The share of the peak is that of the read bandwidth for decoding, with a working set of the \
model's size, and that of the arithmetic for prefill, both measured in the same run. A comparison measures both engines \
in turn on the same file with as many threads, llama.cpp otherwise with its defaults; the ratio is above 1 where basert \
is faster.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prefill tests; 0 for none
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "512", value_parser = count(0))]
    prompt: Vec<usize>,
    /// Tokens of the decoding tests; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = count(0))]
    generate: usize,
    /// Tokens of context before them
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "0", value_parser = count(0))]
    depth: Vec<usize>,
    /// Sequences that are decoded together
    #[arg(short = 'b', long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = count(1))]
    sequences: Vec<usize>,
    /// Number of measured repetitions of each test
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = count(1))]
    repetitions: usize,
    /// Number of repetitions before the measured ones (warm-up)
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = count(0))]
    warmup: usize,
    /// Measure another engine in turn with this one
    #[arg(long, value_name = "ENGINE")]
    compare: Option<PeerName>,
    /// The Python interpreter in which the other engine is installed
    #[arg(long, value_name = "PATH", default_value = "python3", requires = "compare")]
    python: PathBuf,
    /// Measure the machine's peak bandwidth and arithmetic, without a model
    #[arg(long, conflicts_with_all = ["model", "compare"])]
    machine: bool,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// Print JSON, with the time of every repetition
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PeerName {
    LlamaCppPython,
}

impl Args {
    fn tests(&self) -> Vec<Test> {
        let of_depth = |&depth| {
            let prompts = self.prompt.iter().map(move |&tokens| Test::new(Kind::Prefill, tokens, depth, 1));
            let answers = self.sequences.iter().map(move |&n| Test::new(Kind::Decode, self.generate, depth, n));
            prompts.chain(answers)
        };
        self.depth.iter().flat_map(of_depth).filter(|test| test.tokens > 0).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.machine {
        return machine::run(args.device.threads(), args.json, args.markdown);
    }
    let mut tests = args.tests();
    let Some(longest) = tests.iter().map(|test| test.depth + test.tokens).max() else {
        return Err(mistake("there is nothing to measure: -p and -n are both 0"));
    };
    let mut peer = args.compare.map(|PeerName::LlamaCppPython| Peer::start(&args.python)).transpose()?;
    let most = tests.iter().map(|test| test.sequences).max().unwrap_or(1);
    // Two for each sequence: the context, and the repetition that continues it.
    let options = Options {
        max_context: Some(longest),
        sessions: 2 * most,
        answers: most.max(Options::ANSWERS),
        prefix_cache: false,
        ..args.device.choose(args.model.options())
    };
    let path = args.model.path()?;
    // Before the model is loaded, because the buffer that is read takes as much memory as the weights.
    let machine = match args.device.is_cpu() {
        true => {
            let plan = Model::plan_of(&ModelFile::open(&path).map_err(basert::Error::from)?, &options)?;
            Some(Machine::for_model(args.device.threads(), &plan)?)
        }
        false => None,
    };
    let mut model = args.device.open(&path, options)?;
    if let Some(peer) = &mut peer {
        peer.load(model.file().path(), machine.as_ref().map_or(1, |machine| machine.threads))?;
    }

    let vocabulary = model.tokenizer().vocab_size();
    let mut ours = Ours::new(&mut model.engine);
    for test in &mut tests {
        if io::stderr().is_terminal() {
            write!(io::stderr(), "\r\x1b[Kmeasuring {}", test.name())?;
        }
        let peer = peer.as_mut().map(|peer| peer as &mut dyn Engine);
        test.run(vocabulary, &mut ours, peer, (args.warmup, args.repetitions))?;
    }
    if io::stderr().is_terminal() {
        write!(io::stderr(), "\r\x1b[K")?;
    }
    let peer = peer.as_ref().map(Peer::name);
    let report = Report { model: &model, tests: &tests, machine: machine.as_ref(), peer };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report.json())?)?);
    }
    let separator = if args.markdown { "\n\n" } else { "\n" };
    for line in report.subject() {
        write!(out, "{line}{separator}")?;
    }
    Ok(write!(out, "{}", report.table(args.markdown))?)
}
