//! `basert plan`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use basert::files::ModelFile;
use basert::graph::Rows;
use basert::plan::{Chip, Cost, Launching, Plan, PlanNode, StepShape, chip};
use basert::{KvFormat, Model, Mtp, Options};
use basert_gpu::{Launches, MetalSource, MetalSystem, Tiles, kernels_on, launches_on};
use indexmap::IndexMap;
use serde_json::json;

use super::failure::mistake;
use super::model::{KvArgs, ModelArgs};
use super::{count, units};

/// Shows a model's execution plan: each op with its output, operands, bytes and operations; and the best speed that a
/// chip allows. The model is not run, and need not fit this machine.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  basert plan smollm2-135m
  basert plan ./model.gguf --summary --chip m4-pro --chip h100
  basert plan ./model.gguf -m 512 --summary --chip this
  basert plan ./model.gguf --context 8192 --summary --bandwidth 273 --rate 8.6

A bar before an op is a barrier: all ops before it have to be complete. Weights, keys and values come from memory; \
intermediate values are taken to stay in caches. An op takes as long as its bytes or its operations do at least, \
whichever is longer, and a step as long as its ops together. For Apple's chips the barriers between the dispatches of \
their kernels and the step's command buffer are added. The arithmetic of 'this' is the integer dot product that quantised weights use.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the step
    #[arg(short = 'm', long, value_name = "TOKENS", default_value_t = 1, value_parser = count(1))]
    tokens: usize,
    /// Tokens of context before them
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = count(0))]
    context: usize,
    /// Say what a sequence of so many tokens takes [default: the model's context, up to 8192]
    #[arg(long, value_name = "TOKENS", value_parser = count(1))]
    max_context: Option<usize>,
    #[command(flatten)]
    kv: KvArgs,
    /// Bound the speed by that of a chip, such as m4-pro or h100, or `this` machine as measured now; may be repeated
    #[arg(long, value_name = "NAME|this")]
    chip: Vec<String>,
    /// Bound the speed by a memory bandwidth in GB/s
    #[arg(long, value_name = "GB/s", value_parser = positive)]
    bandwidth: Option<f64>,
    /// Bound the speed by a rate of arithmetic in TFLOP/s
    #[arg(long, alias = "flops", value_name = "TFLOP/s", value_parser = positive)]
    rate: Option<f64>,
    /// Add up the ops of each kind instead of listing all
    #[arg(long)]
    summary: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the kernels that Apple's chips would run to this folder, with the options for Metal's compiler
    #[arg(long, value_name = "FOLDER", requires = "chip")]
    kernels: Option<PathBuf>,
    /// The version of macOS to write these kernels for
    #[arg(long, value_name = "N", default_value_t = 26, value_parser = clap::value_parser!(u32).range(14..), requires = "kernels")]
    macos: u32,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let chips = chips(args)?;
    let file = ModelFile::open(args.model.path()?).map_err(basert::Error::from)?;
    let options = Options { max_context: args.max_context, ..args.model.options() };
    let step_tokens = Some(args.tokens.max(basert_cpu::STEP_TOKENS));
    let plan = Model::plan_of(&file, &Options { step_tokens, ..options.clone() })?;
    let step = StepShape { tokens: args.tokens, wanted: 1, context: args.context, kv: args.kv.format };
    let chips: Vec<_> = chips.into_iter().map(|chip| (chip.clone(), Bound::new(&plan, step, &chip))).collect();
    if let Some(folder) = &args.kernels {
        write_kernels(&plan, args, &chips, folder)?;
    }
    let head = head_bytes(&file, &args.model.options(), step.kv);
    let mut out = io::stdout().lock();
    if args.json {
        let mut report = report(&plan, step, &chips);
        report["head"] =
            json!(head.map(|(weights, keys)| json!({ "weight_bytes": weights, "kv_bytes_per_token": keys })));
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?);
    }
    let title = plan.to_string();
    writeln!(out, "{}", title.lines().next().unwrap_or_default())?;
    writeln!(out, "a step of {} tokens after {}, with one row of logits", step.tokens, step.context)?;
    writeln!(out, "{}", memory(&plan, &options, args.kv.format))?;
    if let Some((weights, keys)) = head {
        let (weights, keys) = (units::bytes(weights as f64), units::bytes(keys as f64));
        writeln!(out, "with its head for multi-token prediction {weights} of weights more, and {keys} for each token")?;
    }
    writeln!(out)?;
    let rows = if args.summary { summary(&plan, step) } else { all(&plan, step) };
    write!(out, "{}", units::table(&rows, if args.summary { 1 } else { 2 }))?;
    if !chips.is_empty() {
        write!(out, "\n{}", units::table(&bounds(step, &chips), 1))?;
        if let Some(assumptions) = assumptions(&chips) {
            write!(out, "\n{assumptions}")?;
        }
    }
    Ok(())
}

/// What a sequence of full length takes.
fn memory(plan: &Plan, options: &Options, kv: KvFormat) -> String {
    let context = options.max_context.unwrap_or(plan.graph.context.min(Options::DEFAULT_CONTEXT));
    let pages = plan.pages_of(context, basert_cpu::PAGE);
    let keys = units::bytes(plan.cache_bytes(&pages, kv, basert_cpu::PAGE) as f64);
    let states = match plan.graph.slot_bytes() {
        0 => String::new(),
        bytes => format!(", and {} of running states", units::bytes(bytes as f64)),
    };
    format!("a sequence of {context} tokens takes {keys} of keys and values{states}")
}

/// What the model's head takes, if it has one: bytes of weights, and of a token's keys and values.
pub fn head_bytes(file: &ModelFile, options: &Options, kv: KvFormat) -> Option<(usize, usize)> {
    let plan = Model::plan_of(file, &Options { mtp: Mtp::On, ..options.clone() }).ok()?;
    plan.graph.head_bytes(kv)
}

fn write_kernels(plan: &Plan, args: &Args, chips: &[(Chip, Bound)], folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make '{}'", folder.display()))?;
    for (chip, _) in chips {
        let tensors = args.macos >= 26 && chip.family.is_some_and(|family| family >= 10);
        let tiles = if tensors { Tiles::TensorUnits } else { Tiles::Simdgroups };
        for kernel in kernels_on(chip, plan, args.kv.format)? {
            let source = MetalSource::new(&kernel, MetalSystem { macos: args.macos, tiles });
            source.write_to(folder, kernel.file).with_context(|| format!("cannot write to '{}'", folder.display()))?;
        }
    }
    Ok(())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

/// The chips to bound the speed by. `--bandwidth` and `--rate` replace the chips' own.
fn chips(args: &Args) -> anyhow::Result<Vec<Chip>> {
    let named = args.chip.iter().map(|name| if name == "this" { this_machine() } else { chip(name).map_err(mistake) });
    let mut chips = named.collect::<anyhow::Result<Vec<_>>>()?;
    if chips.is_empty() && (args.bandwidth.is_some() || args.rate.is_some()) {
        chips.push(Chip {
            name: "as given".to_owned(),
            bandwidth: f64::INFINITY,
            rate: f64::INFINITY,
            cores: 1,
            family: None,
            launching: None,
        });
    }
    for chip in &mut chips {
        chip.bandwidth = args.bandwidth.unwrap_or(chip.bandwidth);
        chip.rate = args.rate.unwrap_or(chip.rate);
    }
    Ok(chips)
}

fn this_machine() -> anyhow::Result<Chip> {
    let machine = basert_cpu::machine::Machine::measure()?;
    Ok(Chip {
        name: "this".to_owned(),
        bandwidth: machine.bandwidth / 1e9,
        rate: machine.rate / 1e12,
        cores: 1,
        family: None,
        launching: None,
    })
}

fn cells(cost: Cost) -> [String; 3] {
    [units::bytes(cost.weights), units::bytes(cost.cache), units::with_prefix(cost.flops, "FLOP")]
}

fn total(plan: &Plan, step: StepShape) -> Cost {
    plan.step_cost(step, f64::INFINITY, f64::INFINITY).0
}

/// Rows and columns of the node's output.
fn shape(plan: &Plan, node: &PlanNode, step: StepShape) -> [usize; 2] {
    let out = &plan.values[node.out.0];
    [if out.rows == Rows::Tokens { step.tokens } else { step.wanted }, out.width]
}

fn all(plan: &Plan, step: StepShape) -> Vec<Vec<String>> {
    let mut rows = vec![["", "op", "output", "weights", "KV", "operations", ""].map(str::to_owned).to_vec()];
    for node in &plan.nodes {
        let [weights, cache, flops] = cells(plan.cost(node, step));
        let [m, n] = shape(plan, node, step);
        let bar = if node.barrier { "|" } else { "" };
        let shape = format!("{m}×{n}");
        rows.push(vec![bar.to_owned(), node.name(), shape, weights, cache, flops, plan.describe(node)]);
    }
    let [weights, cache, flops] = cells(total(plan, step));
    rows.push(vec![String::new(), "total".to_owned(), String::new(), weights, cache, flops, String::new()]);
    rows
}

/// For each kind of op, in order of first appearance, how many there are and what they cost.
fn kinds(plan: &Plan, step: StepShape) -> IndexMap<String, (usize, Cost)> {
    let mut kinds: IndexMap<_, (usize, Cost)> = IndexMap::new();
    for node in &plan.nodes {
        let (times, cost) = kinds.entry(node.name()).or_default();
        *times += 1;
        *cost += plan.cost(node, step);
    }
    kinds
}

fn summary(plan: &Plan, step: StepShape) -> Vec<Vec<String>> {
    let row = |name: &str, times: usize, cost: Cost| {
        let [weights, cache, flops] = cells(cost);
        vec![name.to_owned(), times.to_string(), weights, cache, flops, String::new()]
    };
    let mut rows = vec![["op", "times", "weights", "KV", "operations", ""].map(str::to_owned).to_vec()];
    rows.extend(kinds(plan, step).iter().map(|(name, &(times, cost))| row(name, times, cost)));
    rows.push(row("total", plan.nodes.len(), total(plan, step)));
    rows
}

/// The bounds of a step on a chip.
struct Bound {
    /// The least time of the step, in seconds.
    seconds: f64,
    /// The dispatches, if the cost of launching them is known.
    launches: Option<Launches>,
}

impl Bound {
    fn new(plan: &Plan, step: StepShape, chip: &Chip) -> Bound {
        // A plan without kernels is bounded by its bytes and operations alone.
        let launches = launches_on(chip, plan, step).ok().flatten();
        let moving = plan.step_cost(step, chip.bandwidth * 1e9, chip.rate * 1e12).1;
        let launching = launches.map_or(0.0, |launches| chip.launch_microseconds(launches.barriers) / 1e6);
        Bound { seconds: moving + launching, launches }
    }
}

fn bounds(step: StepShape, chips: &[(Chip, Bound)]) -> Vec<Vec<String>> {
    let columns = ["chip", "GB/s", "TFLOP/s", "dispatches", "barriers", "step at least", "tokens/s at most", ""];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    let number = |x: f64| if x.is_finite() { format!("{x:.3}") } else { "any".to_owned() };
    let count = |n: Option<usize>| n.map_or("-".to_owned(), |n| n.to_string());
    rows.extend(chips.iter().map(|(chip, Bound { seconds, launches })| {
        vec![
            chip.name.clone(),
            number(chip.bandwidth),
            number(chip.rate),
            count(launches.map(|launches| launches.dispatches)),
            count(launches.map(|launches| launches.barriers)),
            format!("{:.3} ms", seconds * 1e3),
            format!("{:.1}", step.tokens as f64 / seconds),
            String::new(),
        ]
    }));
    rows
}

/// The assumptions of bounds that include launches.
fn assumptions(chips: &[(Chip, Bound)]) -> Option<String> {
    let launching = chips.iter().filter(|(_, bound)| bound.launches.is_some());
    let Launching { barrier, submission } = launching.filter_map(|(chip, _)| chip.launching).next()?;
    Some(format!(
        "Predictions, not measurements: the chip's full bandwidth, weights and cache read once, {barrier} µs for each barrier \
         and {submission} µs for the step's command buffer, and nothing beside.\n"
    ))
}

fn report(plan: &Plan, step: StepShape, chips: &[(Chip, Bound)]) -> serde_json::Value {
    let cost = |cost: Cost| {
        json!({
            "weight_bytes": cost.weights, "kv_bytes": cost.cache, "value_bytes": cost.values, "flops": cost.flops,
        })
    };
    let ops: Vec<_> = plan
        .nodes
        .iter()
        .map(|node| {
            json!({
                "op": node.name(),
                "barrier": node.barrier,
                "output": shape(plan, node, step),
                "on": plan.describe(node),
                "cost": cost(plan.cost(node, step)),
            })
        })
        .collect();
    let bounds: Vec<_> = chips
        .iter()
        .map(|(chip, Bound { seconds, launches })| {
            json!({
                "chip": chip.name,
                "gigabytes_per_second": chip.bandwidth,
                "teraflops_per_second": chip.rate,
                "dispatches": launches.map(|launches| launches.dispatches),
                "barriers": launches.map(|launches| launches.barriers),
                "seconds_at_least": seconds,
                "tokens_per_second_at_most": step.tokens as f64 / seconds,
            })
        })
        .collect();
    json!({
        "architecture": plan.graph.family,
        "tokens": step.tokens,
        "context": step.context,
        "arena_bytes": plan.arena_bytes,
        "kv_bytes_per_token": plan.cache_bytes(&vec![1; plan.page_groups.len()], step.kv, 1),
        "state_bytes": plan.graph.slot_bytes(),
        "ops": ops,
        "total": cost(total(plan, step)),
        "bounds": bounds,
    })
}
