//! `basert bench`.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use basert::plan::StepShape;
use basert::{Model, Options};
use serde_json::json;

use super::failure::mistake;
use super::model::{self, ModelArgs};
use super::{count, units};

/// Measures how fast a model reads prompts and writes answers, in tokens a second.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert bench
  basert bench ./model.gguf -p 128,512,2048 -n 64 -d 0,4096
  basert bench --json > result.json

A test 'prefill P' computes P tokens at once, 'decode N' one after the other, '@ D' after D tokens of context. Tokens are \
random, and the same every time. GB/s is the weights, keys and values that decoding reads, by the time it takes.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of prompts; 0 for no such test
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "512", value_parser = count(0))]
    prompt: Vec<usize>,
    /// Tokens to write; 0 for no such test
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = count(0))]
    generate: usize,
    /// Tokens of context that come before
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "0", value_parser = count(0))]
    depth: Vec<usize>,
    /// How often each test is measured
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = count(1))]
    repetitions: usize,
    /// How often each test is run before it is measured
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = count(0))]
    warmup: usize,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// Print JSON, with the time of every repetition
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Prefill,
    Decode,
}

/// One test, and how many seconds each of its repetitions took.
struct Test {
    kind: Kind,
    tokens: usize,
    depth: usize,
    seconds: Vec<f64>,
}

impl Test {
    fn name(&self) -> String {
        let kind = if self.kind == Kind::Prefill { "prefill" } else { "decode" };
        let depth = if self.depth == 0 { String::new() } else { format!(" @ {}", self.depth) };
        format!("{kind} {}{depth}", self.tokens)
    }

    /// Mean tokens a second, and the standard deviation.
    fn rate(&self) -> (f64, f64) {
        mean_and_deviation(&self.seconds.iter().map(|seconds| self.tokens as f64 / seconds).collect::<Vec<_>>())
    }

    /// Bytes that have to be read for each token, on average over the test.
    fn bytes_per_token(&self, model: &Model) -> Option<f64> {
        let context = self.depth + self.tokens / 2;
        let kv_value_bytes = model.device().kv_value_bytes;
        let step = StepShape { tokens: 1, wanted: 1, context, kv_value_bytes };
        let (cost, _) = model.plan().step_cost(step, f64::INFINITY, f64::INFINITY);
        (self.kind == Kind::Decode).then(|| cost.memory_bytes())
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let longest = args.prompt.iter().copied().max().unwrap_or(0).max(args.generate);
    let deepest = args.depth.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Err(mistake("there is nothing to measure: -p and -n are both 0"));
    }
    // Two sessions: the depth, and the repetition that goes on from it.
    let options = Options {
        max_context: Some(longest + deepest),
        sessions: 2,
        step_tokens: Options::default().step_tokens,
        ..args.device.choose(args.model.options())
    };
    let model = model::open(&args.model.path()?, options)?;

    let mut tests = Vec::new();
    for &depth in &args.depth {
        let prompts = args.prompt.iter().map(|&tokens| (Kind::Prefill, tokens));
        for (kind, tokens) in prompts.chain([(Kind::Decode, args.generate)]).filter(|(_, tokens)| *tokens > 0) {
            let mut test = Test { kind, tokens, depth, seconds: Vec::new() };
            if io::stderr().is_terminal() {
                write!(io::stderr(), "\r\x1b[Kmeasuring {}", test.name())?;
            }
            measure(&model, &mut test, args)?;
            tests.push(test);
        }
    }
    if io::stderr().is_terminal() {
        write!(io::stderr(), "\r\x1b[K")?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report(&model, &tests))?)?);
    }
    if !args.markdown {
        writeln!(out, "{}", subject(&model))?;
    }
    Ok(write!(out, "{}", table(&model, &tests, args.markdown))?)
}

fn measure(model: &Model, test: &mut Test, args: &Args) -> anyhow::Result<()> {
    let tokens = tokens(test.depth + test.tokens, model.tokenizer().vocab_size());
    let mut context = model.session();
    context.sync(&tokens[..test.depth])?;
    for repetition in 0..args.warmup + args.repetitions {
        let mut session = context.fork();
        let began = Instant::now();
        match test.kind {
            Kind::Prefill => session.sync(&tokens)?,
            Kind::Decode => tokens[test.depth..].iter().try_for_each(|&token| session.step(token))?,
        }
        if repetition >= args.warmup {
            test.seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// Tokens that look random and are the same every time (splitmix64, Steele et al. 2014).
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 0u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (0..count).map(|_| (next() % vocabulary.max(1) as u64) as u32).collect()
}

fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    // Of a single sample nothing is known about the deviation; it is shown as none.
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// What is measured, on what.
fn subject(model: &Model) -> String {
    let (file, device) = (model.file(), model.device());
    let size = units::bytes(file.total_bytes() as f64);
    format!("{}, {size}, on {}: {}", file.path().display(), device.name, device.description)
}

fn table(model: &Model, tests: &[Test], markdown: bool) -> String {
    let mut rows = vec![["test", "tokens/s", "±", "GB/s"].map(str::to_owned).to_vec()];
    rows.extend(tests.iter().map(|test| {
        let (mean, deviation) = test.rate();
        let speed = test.bytes_per_token(model).map(|bytes| format!("{:.1}", bytes * mean / 1e9));
        vec![test.name(), format!("{mean:.1}"), format!("{deviation:.1}"), speed.unwrap_or_default()]
    }));
    if !markdown {
        // The last column is flush left otherwise.
        let widest = rows.iter().filter_map(|row| row.last()).map(String::len).max().unwrap_or(0);
        rows.iter_mut().filter_map(|row| row.last_mut()).for_each(|cell| *cell = format!("{cell:>widest$}"));
        return units::table(&rows, 1);
    }
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let (head, body) = (line(&rows.remove(0)), rows.iter().map(line).collect::<String>());
    format!("{}\n\n{head}| --- | ---: | ---: | ---: |\n{body}", subject(model))
}

fn report(model: &Model, tests: &[Test]) -> serde_json::Value {
    let (file, device) = (model.file(), model.device());
    let tests: Vec<_> = tests
        .iter()
        .map(|test| {
            let (mean, deviation) = test.rate();
            let bytes = test.bytes_per_token(model);
            json!({
                "kind": if test.kind == Kind::Prefill { "prefill" } else { "decode" },
                "tokens": test.tokens,
                "depth": test.depth,
                "tokens_per_second": mean,
                "deviation": deviation,
                "bytes_per_token": bytes,
                "gigabytes_per_second": bytes.map(|bytes| bytes * mean / 1e9),
                "seconds": test.seconds,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": file.path().display().to_string(),
        "architecture": model.plan().graph.family,
        "file_bytes": file.total_bytes(),
        "device": device.name,
        "device_description": device.description,
        "tests": tests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn tokens_are_the_same_every_time_and_in_the_vocabulary() {
        assert_eq!(tokens(100, 50), tokens(100, 50));
        assert!(tokens(100, 50).iter().all(|&token| token < 50));
        assert!(tokens(100, 50).windows(2).any(|pair| pair[0] != pair[1]));
    }
}
