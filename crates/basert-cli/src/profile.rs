//! `basert profile`.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use basert::files::ModelFile;
use basert::plan::{Baked, Cost, Device, LoadOptions, Plan, PlanNode, Span, StepShape, StepState, chip};
use basert::{Model, Options, Sampler, Sampling};
use basert_convert::Random;
use indexmap::IndexMap;
use serde_json::{Value, json};

use super::bench::machine::{Machine, Peaks};
use super::failure::mistake;
use super::model::{DeviceArgs, ModelArgs, loading};
use super::{count, units};

/// Shows where the time of a step goes: how long each op takes, and its share of the roofline: the speed that the
/// machine's bandwidth and arithmetic allow.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert profile
  basert profile ./model.gguf -d 4096
  basert profile ./model.gguf -p 512 --ops
  basert profile ./model.gguf --device metal --trace trace.json

Ops of a kind are added up over the layers. While it is profiled, the parts of a step run one after the other: on the CPU \
with all threads waiting for each other between ops, on a GPU kernel by kernel, so what launching one costs may be part of \
its time. The last lines compare their sum with the whole step, and with one that is not profiled. Of all repetitions the fastest is shown, which nobody disturbed. The \
roofline is what `basert plan` bounds an op by, with the peaks of this machine measured in the same run, those of a chip, or \
what a GPU's driver states. \
A trace can be opened in chrome://tracing or ui.perfetto.dev.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens in the step; 1 is a decoding step
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = count(1))]
    prompt: usize,
    /// Tokens of context before the step
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = count(0))]
    depth: usize,
    /// Number of measured repetitions
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = count(1))]
    repetitions: usize,
    /// Number of repetitions before the measured ones (warm-up)
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = count(0))]
    warmup: usize,
    /// Compare with the limits of a chip, such as m4-pro or h100 [default: this machine's, if known or measurable]
    #[arg(long, value_name = "NAME")]
    chip: Option<String>,
    /// List every op instead of adding up the ops of each kind
    #[arg(long)]
    ops: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON, with the time of every kernel
    #[arg(long)]
    json: bool,
    /// Write the step as a trace of events
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let named = args.chip.as_deref().map(chip).transpose().map_err(mistake)?;
    let path = args.model.path()?;
    let file = Arc::new(ModelFile::open(&path).map_err(basert::Error::from)?);
    let device = args.device.device()?;
    let facts = device.facts().clone();
    let step_tokens = Some(args.prompt.max(facts.step_tokens));
    let plan = Arc::new(Model::plan_of(&file, &Options { step_tokens, ..args.model.options() })?);
    // Before the model is loaded, because the buffer that is read takes as much memory as the weights.
    let (peaks, limits) = match (named, facts.bounds) {
        (Some(chip), _) => {
            (Some(Peaks::of(chip.bounds())), Some(format!("the limits of {}, as specified by its maker", chip.name)))
        }
        (None, Some(bounds)) => (Some(Peaks::of(bounds)), Some(Peaks::line(bounds))),
        (None, None) if facts.name == "cpu" => {
            let machine = Machine::for_model(args.device.threads(), &plan)?;
            (Some(machine.peaks()), Some(machine.line()))
        }
        (None, None) => (None, None),
    };

    let measured = measure(args, &*device, &file, &plan)?;
    let shape = StepShape { tokens: args.prompt, wanted: 1, context: args.depth, kv: args.device.kv() };
    let profile = Profile { plan: &plan, shape, peaks, measured };
    if let Some(path) = &args.trace {
        let text = serde_json::to_string(&profile.trace())?;
        fs::write(path, text).with_context(|| format!("cannot write '{}'", path.display()))?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": file.path().display().to_string(),
            "device": facts.name,
            "device_description": facts.description,
            "step": profile.json(),
        });
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?);
    }
    writeln!(out, "{}, on {}: {}", file.path().display(), facts.name, facts.description)?;
    if let Some(limits) = limits {
        writeln!(out, "{limits}")?;
    }
    if facts.name == "simt" {
        writeln!(out, "times on simt say nothing about a GPU: it runs kernels thread by thread on the CPU")?;
    }
    writeln!(out, "a step of {} tokens after {}, {} times\n", args.prompt, args.depth, args.repetitions)?;
    write!(out, "{}\n{}", units::table(&profile.table(args.ops), 1), profile.sums())?;
    Ok(())
}

/// Measurements of a step.
struct Measured {
    /// For each repetition, its spans and the seconds of the whole step.
    profiled: Vec<(Vec<Span>, f64)>,
    /// Seconds of each step that was run without profiling.
    plain: Vec<f64>,
}

/// Loads the model, computes the context, and measures the step with and without profiling in turn.
fn measure(args: &Args, device: &dyn Device, file: &Arc<ModelFile>, plan: &Arc<Plan>) -> anyhow::Result<Measured> {
    let facts = device.facts();
    let pages = (args.depth + args.prompt).div_ceil(facts.page_tokens);
    let fail = |source| basert::Error::Device { file: file.path().display().to_string(), source };
    let counts = vec![pages; plan.page_groups.len()];
    let options = LoadOptions { pages: counts, slots: 1, kv: args.device.kv(), progress: &mut loading() };
    let mut baked = device.load(plan.clone(), file.clone(), options).map_err(fail)?;
    let mut random = Random::new(0, 0);
    let mut tokens = |n: usize| (0..n).map(|_| random.below(plan.graph.vocabulary.max(1)) as u32).collect::<Vec<_>>();
    let pages: Vec<u32> = (0..pages as u32).collect();
    let mut step = StepState::default();
    let context = tokens(args.depth);
    for (i, chunk) in context.chunks(plan.limits.tokens).enumerate() {
        step.clear();
        step.push(chunk, i * plan.limits.tokens, &[&pages], 0);
        step.keep((i > 0).then_some(0), [(chunk.len() - 1, 0)]);
        plain(&mut *baked, &step).map_err(fail)?;
    }
    step.clear();
    step.push(&tokens(args.prompt), args.depth, &[&pages], 1);
    step.keep((args.depth > 0).then_some(0), [(args.prompt - 1, 0)]);
    if facts.chain > 0 && args.prompt == 1 {
        step.draws.extend(Sampler::new(Sampling::default(), &[])?.draw_on_device(0));
    }

    let mut measured = Measured { profiled: Vec::new(), plain: Vec::new() };
    for round in 0..args.warmup + args.repetitions {
        let seconds = plain(&mut *baked, &step).map_err(fail)?;
        let began = Instant::now();
        let spans = baked.profile(&step).map_err(fail)?;
        let whole = began.elapsed().as_secs_f64();
        if round >= args.warmup {
            measured.plain.push(seconds);
            measured.profiled.push((spans, whole));
        }
    }
    Ok(measured)
}

/// The seconds of a step without profiling.
fn plain(baked: &mut dyn Baked, step: &StepState) -> Result<f64, basert::plan::DeviceError> {
    let began = Instant::now();
    baked.submit(step)?;
    baked.wait()?;
    Ok(began.elapsed().as_secs_f64())
}

/// A step's measurements with its plan.
struct Profile<'a> {
    plan: &'a Plan,
    shape: StepShape,
    peaks: Option<Peaks>,
    measured: Measured,
}

/// Ops that are computed together, or all of one kind, or the sampling.
struct Part {
    name: String,
    ops: Range<usize>,
    times: usize,
    seconds: f64,
    cost: Cost,
    /// The least time of the ops, in seconds.
    least: Option<f64>,
}

impl Profile<'_> {
    /// The spans of the fastest repetition.
    fn spans(&self) -> &[Span] {
        let fastest = self.measured.profiled.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        fastest.map_or(&[], |(spans, _)| spans)
    }

    /// The parts of the step, in order.
    fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for span in self.spans() {
            match parts.last_mut().filter(|part| part.ops == span.ops) {
                Some(part) => part.seconds += span.seconds,
                None => parts.push(self.part(span)),
            }
        }
        parts
    }

    fn part(&self, span: &Span) -> Part {
        let ops = || self.plan.nodes.get(span.ops.clone()).into_iter().flatten();
        let mut cost = Cost::default();
        ops().for_each(|node| cost += self.plan.cost(node, self.shape));
        let name = match span.ops.is_empty() {
            true => "draw".to_owned(),
            false => ops().map(PlanNode::name).collect::<Vec<_>>().join(", "),
        };
        // The sum of an empty iterator would be -0.
        let least = self.peaks.map(|peaks| ops().fold(0.0, |sum, node| sum + peaks.least(self.plan, node, self.shape)));
        Part { name, ops: span.ops.clone(), times: 1, seconds: span.seconds, cost, least }
    }

    /// The parts added up by kind, in order of first appearance.
    fn kinds(&self) -> Vec<Part> {
        let mut kinds: IndexMap<String, Part> = IndexMap::new();
        for part in self.parts() {
            match kinds.get_mut(&part.name) {
                Some(kind) => kind.add(&part),
                None => _ = kinds.insert(part.name.clone(), part),
            }
        }
        kinds.into_values().collect()
    }

    fn table(&self, every: bool) -> Vec<Vec<String>> {
        let parts = if every { self.parts() } else { self.kinds() };
        let mut total = Part {
            name: "ops".to_owned(),
            ops: 0..0,
            times: 0,
            seconds: 0.0,
            cost: Cost::default(),
            least: self.peaks.map(|_| 0.0),
        };
        parts.iter().for_each(|part| total.add(part));
        let mut head = vec!["op", "times", "time", "of ops", "weights", "KV", "operations", "GB/s"];
        head.extend(self.peaks.map(|_| "of roofline"));
        head.push("");
        let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
        rows.extend(parts.iter().chain([&total]).map(|part| {
            let mut row = vec![
                part.name.clone(),
                part.times.to_string(),
                microseconds(part.seconds),
                percent(part.seconds / total.seconds),
                units::bytes(part.cost.weights),
                units::bytes(part.cost.cache),
                units::with_prefix(part.cost.flops, "FLOP"),
                format!("{:.1}", part.cost.memory_bytes() / part.seconds / 1e9),
            ];
            row.extend(part.least.map(|least| percent(least / part.seconds)));
            let nodes = self.plan.nodes.get(part.ops.clone()).filter(|_| every).into_iter().flatten();
            let on: Vec<_> = nodes.map(|node| self.plan.describe(node)).filter(|on| !on.is_empty()).collect();
            row.push(on.join("; "));
            row
        }));
        rows
    }

    /// The seconds of the fastest step with profiling, of the fastest without, and the sum of the parts.
    fn wall(&self) -> (f64, f64, f64) {
        let whole = self.measured.profiled.iter().map(|(_, whole)| *whole).fold(f64::INFINITY, f64::min);
        let plain = self.measured.plain.iter().copied().fold(f64::INFINITY, f64::min);
        (whole, plain, self.spans().iter().map(|span| span.seconds).sum())
    }

    fn sums(&self) -> String {
        let (whole, plain, sum) = self.wall();
        let tokens = self.shape.tokens as f64;
        format!(
            "ops take {} of the {} of a profiled step, and {} of the {} of one without profiling ({:.1} tokens/s)\n",
            percent(sum / whole),
            microseconds(whole),
            percent(sum / plain),
            microseconds(plain),
            tokens / plain
        )
    }

    fn json(&self) -> Value {
        let spans = self.spans();
        let part = |part: &Part| {
            let of_part = spans.iter().filter(|span| span.ops == part.ops);
            let kernels = of_part.map(|span| json!({ "kernel": span.kernel, "seconds": span.seconds }));
            json!({
                "ops": [part.ops.start, part.ops.end],
                "op": part.name,
                "seconds": part.seconds,
                "weight_bytes": part.cost.weights,
                "kv_bytes": part.cost.cache,
                "flops": part.cost.flops,
                "seconds_at_least": part.least,
                "kernels": kernels.collect::<Vec<_>>(),
            })
        };
        let (whole, plain, sum) = self.wall();
        json!({
            "tokens": self.shape.tokens,
            "context": self.shape.context,
            "kv_bits": self.shape.kv.bits(),
            "parts": self.parts().iter().map(part).collect::<Vec<_>>(),
            "seconds_of_parts": sum,
            "seconds_profiled": whole,
            "seconds": plain,
        })
    }

    /// The step in Chrome's trace event format.
    fn trace(&self) -> Value {
        let event = |span: &Span| {
            let part = self.part(span);
            json!({
                "name": part.name, "cat": "op", "ph": "X", "pid": 1, "tid": 1, "ts": span.begin * 1e6, "dur": span.seconds * 1e6,
                "args": {
                    "kernel": span.kernel, "ops": [span.ops.start, span.ops.end],
                    "weight_bytes": part.cost.weights, "kv_bytes": part.cost.cache, "flops": part.cost.flops,
                },
            })
        };
        let events: Vec<_> = self.spans().iter().map(event).collect();
        json!({ "traceEvents": events, "displayTimeUnit": "ns" })
    }
}

impl Part {
    fn add(&mut self, other: &Part) {
        self.times += other.times;
        self.seconds += other.seconds;
        self.cost += other.cost;
        self.least = self.least.zip(other.least).map(|(a, b)| a + b);
    }
}

fn microseconds(seconds: f64) -> String {
    format!("{:.1} µs", seconds * 1e6)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}
