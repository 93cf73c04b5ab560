//! Choosing kernels by what they do on the machine at hand: variants that are wrong there are dropped, the others timed.
//!
//! A variant is right when every row of the [op table](crate::ops) that it has a part in comes out as the oracle computes
//! it. A table of tuning keeps its rules; for each of them the fastest right variant is chosen. What remains is held against
//! the rows once more as a whole. So a kernel that nobody could test on a chip cannot produce wrong text there.

use std::sync::Arc;

use basert_core::{Format, KvFormat};
use basert_cpu::{CpuDevice, Isa};
use basert_gpu::{ColdPool, Family, Gpu, GpuDevice, GpuError, GpuFacts, Limits, Recorder, Tuning, Variant};
use basert_plan::{Device, DeviceError, LoadOptions, PlanOp, StepShape, StepState};

use crate::Error;
use crate::ops::{self, COMPARED, Case, Kind};

/// How much work is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The variants of the table that comes with the project, held against the essential rows. Others are looked at where
    /// none of those is right.
    Short,
    /// All variants that are worth trying, held against all rows.
    Full,
}

/// Told what is being done.
pub type Tell<'a> = &'a mut dyn FnMut(&str);

/// What came of tuning a GPU.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// What was tuned.
    pub facts: GpuFacts,
    /// The table.
    pub tuning: Tuning,
    /// Variants that were wrong or did not compile, and why.
    pub dropped: Vec<(Variant, String)>,
    /// What was chosen for each rule.
    pub choices: Vec<Choice>,
}

/// What was chosen for a rule of a table.
#[derive(Debug, Clone)]
pub struct Choice {
    /// When the rule holds.
    pub limits: Limits,
    /// What the table had chosen before.
    pub before: Variant,
    /// What it chooses now.
    pub chosen: Variant,
    /// The seconds of the variants that are right, fastest first.
    pub times: Vec<(Variant, f64)>,
}

/// A GPU's memory and sizes of products, where less will do than for a real one.
struct Sizes {
    rows: usize,
    columns: usize,
    tokens: usize,
    context: usize,
    /// Query heads, and heads of keys.
    heads: (usize, usize),
    pool: usize,
    rounds: usize,
    /// The part of a variant's time in which another one has to do the same to take its place: less than measurements
    /// differ by would do.
    gain: f64,
}

const REAL: Sizes = Sizes {
    rows: 8192,
    columns: 4096,
    tokens: 512,
    context: 4095,
    heads: (32, 8),
    pool: 256 << 20,
    rounds: 5,
    gain: 0.97,
};
/// Times of the simulation mean nothing, so nothing is chosen by them.
const SIMULATED: Sizes =
    Sizes { rows: 192, columns: 256, tokens: 40, context: 600, heads: (4, 2), pool: 2 << 20, rounds: 1, gain: 0.0 };

/// Tunes the GPU that `open` opens, as often as is needed: each check begins with a fresh one, that nothing has failed on.
///
/// # Errors
/// [`GpuError::Missing`] when a kernel is wrong that there is no right variant of: the GPU is not to be used.
pub fn tune<G: Gpu + 'static>(
    open: &dyn Fn() -> Result<G, GpuError>,
    effort: Effort,
    tell: Tell<'_>,
) -> Result<Tuned, Error> {
    let facts = open()?.facts().clone();
    let shipped = Tuning::named(facts.tuning);
    let rows = ops::table().into_iter().filter(|row| effort == Effort::Full || row.essential);
    let cases = rows.map(|row| row.case()).collect::<Result<Vec<_>, _>>()?;
    let right = shipped.clone();
    let mut tuner = Tuner { open, effort, facts, shipped, right, cases, dropped: Vec::new() };
    let mut variants = Vec::new();
    for family in Family::ALL {
        variants.push(tuner.find_right(family, tell)?);
    }
    tell("timing");
    let (tuning, choices) = tuner.choose(&variants)?;
    tell("checking all kernels together");
    let few = tuning.few_tokens;
    tuner.check(&tuning, |_| true, &[1, few, COMPARED]).map_err(|why| tuner.unusable(&why))?;
    let Tuner { facts, dropped, .. } = tuner;
    Ok(Tuned { facts, tuning, dropped, choices })
}

/// Tunes a GPU that is used for the first time in the short way, and keeps the result. `tell` gets a line about that, and one
/// for every kernel that had to be replaced.
///
/// # Errors
/// As for [`tune`].
pub fn first_use<G: Gpu + 'static>(open: &dyn Fn() -> Result<G, GpuError>, tell: Tell<'_>) -> Result<Tuning, Error> {
    let facts = open()?.facts().clone();
    tell(&format!(
        "the first use of {} ({}): its kernels are checked and timed once",
        facts.description, facts.software
    ));
    let tuned = tune(open, Effort::Short, &mut |_| {})?;
    for (variant, why) in &tuned.dropped {
        tell(&format!("{variant} is not used: {why}"));
    }
    for Choice { before, chosen, .. } in &tuned.choices {
        if tuned.dropped.iter().any(|(variant, _)| variant == before) {
            tell(&format!("{chosen} is used instead of {before}"));
        }
    }
    if let Err(error) = tuned.tuning.keep(&tuned.facts) {
        tell(&format!("the result cannot be kept, so this is done again the next time: {error}"));
    }
    Ok(tuned.tuning)
}

struct Tuner<'a, G> {
    open: &'a dyn Fn() -> Result<G, GpuError>,
    effort: Effort,
    facts: GpuFacts,
    /// The table that comes with the project.
    shipped: Tuning,
    /// The same, with another variant for each of those that were found wrong so far.
    right: Tuning,
    cases: Vec<Case>,
    dropped: Vec<(Variant, String)>,
}

impl<G: Gpu + 'static> Tuner<'_, G> {
    /// The variants of a family that are right, those of the table that comes with the project first.
    fn find_right(&mut self, family: Family, tell: Tell<'_>) -> Result<Vec<Variant>, Error> {
        let mut shipped: Vec<Variant> = Vec::new();
        for (_, variant) in self.shipped.rules(family) {
            if !shipped.contains(&variant) {
                shipped.push(variant);
            }
        }
        let others = family.candidates(self.facts.tuning).into_iter().filter(|variant| !shipped.contains(variant));
        let mut right = Vec::new();
        for variant in shipped.iter().copied().chain(others) {
            if self.effort == Effort::Short && !right.is_empty() && !shipped.contains(&variant) {
                break;
            }
            tell(&format!("checking {variant}"));
            match self.check_variant(family, variant) {
                Ok(()) => right.push(variant),
                Err(why) => self.dropped.push((variant, why)),
            }
        }
        let Some(&first) = right.first() else {
            let why = self.dropped.last().map_or("", |(_, why)| why);
            return Err(self.unusable(&format!("no variant of {family:?} is right: {why}")));
        };
        // Models that the next family is checked with have products of this one too.
        for (rule, (_, variant)) in self.shipped.rules(family).into_iter().enumerate() {
            if !right.contains(&variant) {
                self.right = self.right.clone().with(Some(rule), first);
            }
        }
        Ok(right)
    }

    fn unusable(&self, why: &str) -> Error {
        GpuError::Missing(format!("{}: kernels came out wrong, so no result could be trusted: {why}", self.facts.name))
            .into()
    }

    /// Whether a variant is right wherever it would be used.
    fn check_variant(&self, family: Family, variant: Variant) -> Result<(), String> {
        let few = self.shipped.few_tokens;
        let (kinds, at_once): (&[Kind], &[usize]) = match family {
            Family::Gemv => (&[Kind::Linear, Kind::Around, Kind::Experts], &[1, few]),
            Family::Gemm => (&[Kind::Linear, Kind::Around, Kind::Experts], &[16, COMPARED]),
            Family::Decode => (&[Kind::Attention], &[1, few]),
        };
        self.check(&self.right.clone().with(None, variant), |kind| kinds.contains(&kind), at_once)
    }

    /// Whether the rows of these kinds come out right, with kernels from this table; the first that does not is the error.
    fn check(&self, tuning: &Tuning, kinds: impl Fn(Kind) -> bool, at_once: &[usize]) -> Result<(), String> {
        let mut gpu = (self.open)().map_err(|error| error.to_string())?;
        let checks = || {
            let cases = self.cases.iter().filter(|case| kinds(case.kind));
            cases.flat_map(|case| at_once.iter().map(move |&tokens| (case, tokens)))
        };
        // All kernels are compiled at once, which takes all of the machine's processors. Where one does not compile, the
        // first row that wants it says so.
        let recorder = Recorder::new(self.facts.tuning, self.facts.cores);
        let device = GpuDevice::with_tuning(recorder.clone(), tuning.clone());
        for (case, tokens) in checks() {
            let _ = case.load(&device, tokens);
        }
        let _ = gpu.compile(&recorder.recorded().kernels, &mut |_| {});
        let device = GpuDevice::with_tuning(gpu, tuning.clone());
        for (case, tokens) in checks() {
            case.check(&device, tokens)?;
        }
        Ok(())
    }

    /// The table with the fastest right variant for each rule, where it is clearly faster than what the rule had.
    fn choose(&self, variants: &[Vec<Variant>]) -> Result<(Tuning, Vec<Choice>), Error> {
        let sizes = if self.facts.tuning == "simt" { SIMULATED } else { REAL };
        let mut gpu = (self.open)()?;
        let mut pool = ColdPool::new(&mut gpu, sizes.pool, sizes.rounds)?;
        let (mut tuning, mut choices) = (self.right.clone(), Vec::new());
        for (family, variants) in Family::ALL.into_iter().zip(variants) {
            for (rule, (limits, before)) in self.shipped.rules(family).into_iter().enumerate() {
                let mut times = Vec::new();
                for &variant in variants {
                    // One that cannot be timed cannot be chosen.
                    let table = self.right.clone().with(Some(rule), variant);
                    if let Ok(seconds) = self.seconds(&mut gpu, &mut pool, &sizes, family, limits, &table) {
                        times.push((variant, seconds));
                    }
                }
                times.sort_by(|a, b| a.1.total_cmp(&b.1));
                let Some(&(fastest, best)) = times.first() else {
                    return Err(self.unusable(&format!("no variant of {family:?} could be timed")));
                };
                let had = times.iter().find(|(variant, _)| *variant == before);
                let chosen = if had.is_some_and(|(_, seconds)| best > seconds * sizes.gain) { before } else { fastest };
                tuning = tuning.with(Some(rule), chosen);
                choices.push(Choice { limits, before, chosen, times });
            }
        }
        Ok((tuning, choices))
    }

    /// The seconds of ops that a rule is for, with kernels from this table.
    fn seconds(
        &self,
        gpu: &mut G,
        pool: &mut ColdPool,
        sizes: &Sizes,
        family: Family,
        limits: Limits,
        table: &Tuning,
    ) -> Result<f64, Error> {
        let (rows, columns) = (limits.rows.unwrap_or(sizes.rows), limits.columns.unwrap_or(sizes.columns));
        let product = || ops::product(Format::Q4_0, rows, columns);
        let by_tokens = table.rules(family).iter().any(|(limits, _)| limits.tokens.is_some());
        let (row, tokens, context) = match family {
            Family::Decode => (ops::long_attention(sizes.heads.0, sizes.heads.1), 1, sizes.context),
            // One token is the most common of all, where its rules are not others than those of a few.
            Family::Gemv if limits.tokens.is_some() || !by_tokens => (product(), 1, 0),
            Family::Gemv => (product(), table.few_tokens.max(1), 0),
            Family::Gemm => (product(), limits.tokens.unwrap_or(sizes.tokens), 0),
        };
        let (plan, _) = row.outline(tokens)?;
        let first = plan.ops.iter().position(|planned| matches!(planned.op, PlanOp::Linear { .. }));
        let out = first.map(|i| plan.ops[i].op.out());
        let timed = |op: &PlanOp| match family {
            Family::Decode => matches!(op, PlanOp::Attention { .. }),
            _ => Some(op.out()) == out,
        };
        let seconds = pool.seconds(gpu, &plan, (tokens, context), table, timed);
        seconds.map_err(|error| Error::Check(error.to_string()))
    }
}

/// What came of checking an instruction set of the CPU.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Which.
    pub isa: Isa,
    /// Rows of the op table that came out wrong.
    pub wrong: Vec<String>,
    /// Products with a matrix that no cache holds: of each format one of a single row, and one of many.
    pub products: Vec<Timed>,
}

/// A product that was timed.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// Of the weights.
    pub format: Format,
    /// Bytes of weights.
    pub bytes: f64,
    /// Operations; a multiplication and an addition are two.
    pub operations: f64,
    /// The fastest of several runs.
    pub seconds: f64,
}

/// Holds every instruction set of the machine against the op table, and times products with it, best last.
///
/// # Errors
/// When there is no room for temporary files, or threads cannot be started.
pub fn cpu(threads: Option<usize>, effort: Effort, tell: Tell<'_>) -> Result<Vec<Checked>, Error> {
    let rows = ops::table().into_iter().filter(|row| effort == Effort::Full || row.essential);
    let cases = rows.map(|row| row.case()).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::new();
    for isa in Isa::available() {
        tell(&format!("checking {isa}"));
        let device = CpuDevice::with_isa(threads, isa)?;
        let checks = cases.iter().flat_map(|case| [1, 7, COMPARED].map(|tokens| case.check(&device, tokens)));
        let wrong = checks.filter_map(Result::err).collect();
        let mut products = Vec::new();
        for format in [Format::Q4_0, Format::Q8_0, Format::F16] {
            for tokens in [1, 64] {
                products.push(time_product(&device, format, tokens)?);
            }
        }
        all.push(Checked { isa, wrong, products });
    }
    Ok(all)
}

/// Times a product with a matrix of 64 MiB.
fn time_product(device: &CpuDevice, format: Format, tokens: usize) -> Result<Timed, Error> {
    const ROUNDS: usize = 3;
    let failed = |error: DeviceError| Error::Check(error.to_string());
    let columns = 4096;
    let row = format.row_bytes(columns).map_err(|error| Error::Check(error.to_string()))?;
    // Whole blocks, for another matrix is as wide as this one has rows.
    let rows = (64 << 20) / row / 256 * 256;
    let (plan, file) = ops::product(format, rows, columns).outline(tokens)?;
    let plan = Arc::new(plan);
    let options = LoadOptions { pages: 1, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
    let mut baked = device.load(plan.clone(), file, options).map_err(failed)?;
    let mut step = StepState::default();
    step.push(&vec![0; tokens], 0, &[0], 1);
    let first = plan.ops.iter().position(|planned| matches!(planned.op, PlanOp::Linear { .. })).unwrap_or(0);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let spans = baked.profile(&step).map_err(failed)?;
        best = spans.iter().filter(|span| span.ops.contains(&first)).map(|span| span.seconds).fold(best, f64::min);
    }
    let shape = StepShape { tokens, wanted: 1, context: 0, kv: KvFormat::F16 };
    let cost = plan.cost(&plan.ops[first].op, shape);
    Ok(Timed { format, bytes: cost.weights, operations: cost.flops, seconds: best })
}
