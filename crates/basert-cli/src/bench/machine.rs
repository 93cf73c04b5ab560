//! The machine's measured peaks, and the share of them that a test reaches.

use std::io::{self, Write};

use basert::plan::{Bounds, Linear, Plan, PlanNode, PlanOp, StepShape};
use basert::{KvFormat, ModelInfo};
use basert_cpu::machine::{self, MeasureError};
use basert_cpu::{Isa, Pool};
use serde_json::{Value, json};

use super::report;
use super::workload::{Kind, Test};
use crate::units;

/// Sizes of the working sets, in bytes: from one that fits a core's own cache to one that fits none.
const WORKING_SETS: [usize; 7] =
    [1_000_000, 8_000_000, 32_000_000, 64_000_000, 128_000_000, 256_000_000, 1_000_000_000];

/// Peak rates that bound ops.
#[derive(Debug, Clone, Copy)]
pub struct Peaks {
    /// Bytes read from memory a second.
    pub bandwidth: f64,
    /// Operations of integer dot products a second.
    pub integers: f64,
    /// Floating-point operations a second.
    pub floats: f64,
}

impl Peaks {
    /// The peaks of a GPU.
    pub fn of(bounds: Bounds) -> Peaks {
        Peaks { bandwidth: bounds.bandwidth, integers: bounds.rate, floats: bounds.rate }
    }

    /// A line that describes the peaks of a GPU.
    pub fn line(bounds: Bounds) -> String {
        format!("the GPU, as specified by its maker: reads {}; {}", rate_of(bounds.bandwidth), flops(bounds.rate))
    }

    /// The peak rate of an op's arithmetic.
    fn rate(&self, plan: &Plan, node: &PlanNode) -> f64 {
        if is_integer(plan, node) { self.integers } else { self.floats }
    }

    /// The least time of an op, in seconds.
    pub fn least(&self, plan: &Plan, node: &PlanNode, step: StepShape) -> f64 {
        plan.cost(node, step).seconds(self.bandwidth, self.rate(plan, node))
    }
}

/// Measured peaks of a number of threads.
pub struct Machine {
    pub threads: usize,
    isa: Isa,
    /// Working sets in bytes, and the bytes a second read from each.
    reads: Vec<(usize, f64)>,
    /// Integer operations a second.
    dots: f64,
    /// Floating-point operations a second.
    floats: f64,
}

impl Machine {
    /// Measures each working set and kind of arithmetic for a quarter of a second.
    fn measure(threads: Option<usize>, working_sets: &[usize]) -> Result<Machine, MeasureError> {
        let (pool, isa) = (Pool::new(threads)?, Isa::detect());
        let rates = machine::read_rates(&pool, isa, working_sets)?;
        Ok(Machine {
            threads: pool.threads(),
            isa,
            reads: working_sets.iter().copied().zip(rates).collect(),
            dots: machine::rate(&pool, isa)?,
            floats: machine::float_rate(&pool, isa)?,
        })
    }

    /// Measures what bounds a model: reading a working set as large as its weights, and arithmetic.
    pub fn for_model(threads: Option<usize>, plan: &Plan) -> Result<Machine, MeasureError> {
        let step = StepShape { tokens: 1, wanted: 1, context: 0, kv: KvFormat::default() };
        let weights = plan.step_cost(step, f64::INFINITY, f64::INFINITY).0.weights as usize;
        // Larger working sets come from memory, too.
        Machine::measure(threads, &[weights.min(WORKING_SETS[WORKING_SETS.len() - 1])])
    }

    /// The peaks for the model that this was measured for.
    pub fn peaks(&self) -> Peaks {
        let bandwidth = self.reads.first().map_or(f64::INFINITY, |&(_, rate)| rate);
        Peaks { bandwidth, integers: self.dots, floats: self.floats }
    }

    /// A line that describes these peaks.
    pub fn line(&self) -> String {
        let reads =
            self.reads.iter().map(|&(bytes, rate)| format!("{} of {}", rate_of(rate), units::bytes(bytes as f64)));
        let reads = reads.collect::<Vec<_>>().join(", ");
        let (dots, floats) = (operations(self.dots), flops(self.floats));
        format!("the machine, measured now with {} threads: reads {reads}; {dots} of integers, {floats}", self.threads)
    }

    pub fn json(&self) -> Value {
        let reads: Vec<_> =
            self.reads.iter().map(|(bytes, rate)| json!({ "bytes": bytes, "bytes_per_second": rate })).collect();
        json!({
            "threads": self.threads,
            "instructions": self.isa.name(),
            "reads": reads,
            "integer_operations_per_second": self.dots,
            "float_operations_per_second": self.floats,
        })
    }

    /// The share of the peak that a test of `seconds` reaches: of the bandwidth for decoding, of the arithmetic for
    /// prefill. It is 1 if the test takes only as long as reading or computing at those rates.
    pub fn share(&self, test: &Test, model: &ModelInfo, seconds: f64) -> f64 {
        let least = match test.kind {
            Kind::Decode => {
                bytes_per_token(test, model) * (test.tokens * test.sequences) as f64 / self.peaks().bandwidth
            }
            Kind::Prefill => {
                let (step, plan) = (shape(test, model, test.tokens, test.depth), model.plan());
                let seconds = |node: &PlanNode| plan.cost(node, step).flops / self.peaks().rate(plan, node);
                plan.nodes.iter().map(seconds).sum()
            }
        };
        least / seconds
    }
}

/// Whether the op is computed by integer dot products, as all ops with quantised weights are.
fn is_integer(plan: &Plan, node: &PlanNode) -> bool {
    match &node.op {
        PlanOp::Linear(Linear { matrices, .. }) => matrices.iter().any(|id| !plan.matrices[id.0].format.is_float()),
        _ => false,
    }
}

fn shape(test: &Test, model: &ModelInfo, tokens: usize, context: usize) -> StepShape {
    let wanted = if test.kind == Kind::Decode { tokens } else { 1 };
    StepShape { tokens, wanted, context, kv: model.kv() }
}

/// Bytes read for each token, on average over the test. Sequences share the reads of weights.
pub fn bytes_per_token(test: &Test, model: &ModelInfo) -> f64 {
    let context = test.depth + test.tokens / 2;
    let cost = |tokens| model.plan().step_cost(shape(test, model, tokens, context), f64::INFINITY, f64::INFINITY).0;
    cost(test.sequences).weights / test.sequences as f64 + cost(1).cache
}

fn rate_of(bytes: f64) -> String {
    units::with_prefix(bytes, "B/s")
}

fn operations(rate: f64) -> String {
    units::with_prefix(rate, "OP/s")
}

fn flops(rate: f64) -> String {
    units::with_prefix(rate, "FLOP/s")
}

/// Runs `basert bench --machine`: with one thread, and with all.
pub fn run(threads: Option<usize>, json: bool, markdown: bool) -> anyhow::Result<()> {
    let all = Machine::measure(threads, &WORKING_SETS)?;
    let mut machines = vec![all];
    if machines[0].threads > 1 {
        machines.insert(0, Machine::measure(Some(1), &WORKING_SETS)?);
    }
    let mut out = io::stdout().lock();
    if json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": machines.iter().map(Machine::json).collect::<Vec<_>>(),
        });
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?);
    }
    let row = |name: String, cell: &dyn Fn(&Machine) -> String| -> Vec<String> {
        [name].into_iter().chain(machines.iter().map(cell)).collect()
    };
    let mut rows = vec![row(format!("peaks, {}", machines[0].isa), &|machine| match machine.threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    })];
    for (i, bytes) in WORKING_SETS.into_iter().enumerate() {
        rows.push(row(format!("read {}", units::bytes(bytes as f64)), &|machine| rate_of(machine.reads[i].1)));
    }
    rows.push(row("integer dot products".to_owned(), &|machine| operations(machine.dots)));
    rows.push(row("f32 multiply-adds".to_owned(), &|machine| flops(machine.floats)));
    Ok(write!(out, "{}", report::layout(rows, markdown))?)
}
