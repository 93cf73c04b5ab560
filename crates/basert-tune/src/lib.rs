//! Choosing kernels by measurements on the machine: variants that are wrong are dropped, the others timed.
//!
//! Every variant is checked against the oracle on the essential rows of the [op table](ops), which show most
//! mistakes. For each rule of a tuning table, the fastest correct variant is chosen. The chosen ones are checked on all
//! rows, each by itself and all together. So a kernel that was never tested on a chip cannot produce wrong text there.

#![forbid(unsafe_code)]

pub mod ops;

use std::ops::Range;
use std::sync::Arc;

use basert_core::{Format, KvFormat};
use basert_cpu::{CpuDevice, Isa};
use basert_gpu::{ColdPool, Family, Gpu, GpuDevice, GpuError, GpuFacts, Limits, Recorder, Tuning, Variant};
use basert_plan::{Device, DeviceError, LoadOptions, Plan, PlanNode, PlanOp, StepShape, StepState};

use self::ops::{COMPARED, Case, Kind, Row};

/// Why kernels could not be checked or chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The GPU is not there, lacks what it needs, or must not be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The CPU device could not start its threads.
    #[error("the cpu device cannot start its threads: {0}")]
    Threads(#[from] std::io::Error),
    /// Kernels could not be checked.
    #[error("kernels cannot be checked: {0}")]
    Check(String),
}

/// How thoroughly to tune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Checks the table that comes with the project on the essential rows. On a GPU on which it was not measured, its
    /// variants are also timed for each other's rules, and others are tried if none of them is correct.
    Short,
    /// Tries all variants that are worth it, and checks the chosen ones on all rows.
    Full,
}

/// A callback that gets messages about the progress.
pub type Tell<'a> = &'a mut dyn FnMut(&str);

/// The result of tuning a GPU.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// The GPU.
    pub facts: GpuFacts,
    /// The tuning table.
    pub tuning: Tuning,
    /// Variants that were wrong or did not compile, and why.
    pub dropped: Vec<(Variant, String)>,
    /// The choice for each rule.
    pub choices: Vec<Choice>,
}

/// The variant chosen for a rule of a table.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The sizes for which the rule holds.
    pub limits: Limits,
    /// The previous variant.
    pub before: Variant,
    /// The chosen variant.
    pub chosen: Variant,
    /// The seconds of the correct variants, fastest first.
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
    /// Layers of models: values of a token, of all query heads, and between gate and down.
    layers: &'static [[usize; 3]],
    pool: usize,
    rounds: usize,
    /// The part of a variant's time in which another one has to do the same to take its place, for each effort. Few
    /// products say little about whole models, by which the tables that come with the project were made.
    gain: [f64; 2],
}

/// Tokens at once: numbers for which there are kernels of their own.
const TOGETHER: [usize; 7] = [1, 2, 4, 8, 16, 32, COMPARED];

/// What products are timed with: blocks of one scale, and of scales in two levels.
const TIMED: [Format; 2] = [Format::Q4_0, Format::Q4_K];

/// What layers are timed with: the same, and blocks without anything to unpack.
const IN_LAYERS: [Format; 3] = [Format::Q4_0, Format::Q4_K, Format::Q8_0];
/// The part of the layers' time in which a variant that is new has to compute them, and that of any one.
const LAYER_GAIN: f64 = 0.99;
const LAYER_LOSS: f64 = 1.01;

const REAL: Sizes = Sizes {
    rows: 8192,
    columns: 4096,
    tokens: 2048,
    context: 4095,
    heads: (32, 8),
    // Those of Qwen3 with 0.6, 4 and 8 billion weights.
    layers: &[[1024, 2048, 3072], [2560, 4096, 9728], [4096, 4096, 12288]],
    pool: 256 << 20,
    rounds: 5,
    gain: [0.8, 0.95],
};
/// Times of the simulation mean nothing, so nothing is chosen by them.
const SIMULATED: Sizes = Sizes {
    rows: 192,
    columns: 256,
    tokens: 40,
    context: 600,
    heads: (4, 2),
    layers: &[],
    pool: 2 << 20,
    rounds: 1,
    gain: [0.0; 2],
};

/// Tunes the GPU that `open` opens. It is opened several times: each check begins with a fresh one, on which nothing
/// has failed.
///
/// # Errors
/// [`GpuError::Missing`] when a kernel has no correct variant: the GPU must not be used.
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
    // That table is right nearly everywhere, and then its variants are not looked at one by one.
    let as_shipped = effort == Effort::Short && tuner.all_right(tell).is_ok();
    if as_shipped && tuner.shipped.knows(&tuner.facts) {
        let Tuner { facts, shipped, dropped, .. } = tuner;
        return Ok(Tuned { facts, tuning: shipped, dropped, choices: Vec::new() });
    }
    tell("compiling");
    tuner.compile_variants(as_shipped)?;
    let mut variants = Vec::new();
    for family in Family::ALL {
        variants.push(if as_shipped { tuner.variants(family).0 } else { tuner.find_right(family, tell)? });
    }
    tell("timing");
    let mut gpu = open()?;
    let mut clock = Clock::new(&mut gpu, tuner.sizes().pool, tuner.sizes().rounds)?;
    let mut choices = tuner.time(&mut clock, &variants);
    let mut tuning = loop {
        let tuning = tuner.choose(&mut clock, &mut choices)?;
        match tuner.find_wrong(&choices, tell) {
            Some(found) => {
                choices.iter_mut().for_each(|choice| choice.times.retain(|(variant, _)| *variant != found.0));
                tuner.dropped.push(found);
            }
            None => break tuning,
        }
    };
    let right = std::mem::replace(&mut tuner.right, tuning.clone());
    if let Err(why) = tuner.all_right(tell) {
        if !as_shipped {
            return Err(tuner.unusable(&why));
        }
        tuning = right;
        choices.iter_mut().for_each(|choice| choice.chosen = choice.before);
    }
    // It is another table now, and its file names the GPU.
    tuning.measured_on.clear();
    let Tuner { facts, dropped, .. } = tuner;
    Ok(Tuned { facts, tuning, dropped, choices })
}

/// Tunes a GPU in the short form on its first use, and saves the result. `tell` gets a line about that, and one for
/// every kernel that was replaced.
///
/// # Errors
/// As for [`tune`].
pub fn first_use<G: Gpu + 'static>(open: &dyn Fn() -> Result<G, GpuError>, tell: Tell<'_>) -> Result<Tuning, Error> {
    let facts = open()?.facts().clone();
    let done = if Tuning::named(facts.tuning).knows(&facts) { "checked" } else { "checked and timed" };
    tell(&format!("the first use of {} ({}): its kernels are {done} once", facts.description, facts.software));
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
        tell(&format!("the result cannot be saved, so this is repeated the next time: {error}"));
    }
    Ok(tuned.tuning)
}

/// Times ops of rows on a GPU.
struct Clock<'a> {
    gpu: &'a mut dyn Gpu,
    pool: ColdPool,
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a mut dyn Gpu, bytes: usize, rounds: usize) -> Result<Clock<'a>, GpuError> {
        let pool = ColdPool::new(gpu, bytes, rounds)?;
        Ok(Clock { gpu, pool })
    }

    /// The seconds of those ops of a row that are `timed`, for so many tokens after a context, with kernels from this
    /// table.
    fn seconds(
        &mut self,
        row: &Row,
        steps: (usize, usize),
        table: &Tuning,
        timed: impl Fn(&Plan, &PlanNode) -> bool,
    ) -> Result<f64, Error> {
        let (plan, _) = row.outline(steps.0)?;
        let seconds = self.pool.seconds(self.gpu, &plan, steps, table, |node| timed(&plan, node));
        seconds.map_err(|error| Error::Check(error.to_string()))
    }
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
    /// The variants of a family: those of the table that comes with the project, and the others.
    fn variants(&self, family: Family) -> (Vec<Variant>, Vec<Variant>) {
        let mut shipped: Vec<Variant> = Vec::new();
        for (_, variant) in self.shipped.rules(family) {
            if !shipped.contains(&variant) {
                shipped.push(variant);
            }
        }
        let mut others = family.candidates(self.facts.tuning);
        others.retain(|variant| !shipped.contains(variant));
        (shipped, others)
    }

    /// Compiles the kernels that these tasks want, for a cache to have them: together, which takes all of the machine's
    /// processors. Where one does not compile, the first check that wants it says so.
    fn compile_ahead(&self, tasks: impl FnOnce(&Recorder, &mut Clock<'_>)) -> Result<(), Error> {
        let recorder = Recorder::new(self.facts.tuning, self.facts.cores);
        let mut gpu = recorder.clone();
        tasks(&recorder, &mut Clock::new(&mut gpu, self.sizes().pool, 0)?);
        let mut kernels = std::mem::take(&mut recorder.recorded().kernels);
        // Two workers would compile the same one side by side.
        kernels.sort();
        kernels.dedup();
        let _ = (self.open)()?.compile(&kernels, &mut |_| {});
        Ok(())
    }

    /// Compiles what all variants are timed with, and checked, unless that is done.
    fn compile_variants(&self, checked: bool) -> Result<(), Error> {
        self.compile_ahead(|recorder, clock| {
            for family in Family::ALL {
                let (shipped, others) = self.variants(family);
                let (kinds, _) = self.checks(family);
                for variant in shipped.into_iter().chain(others.into_iter().filter(|_| self.effort == Effort::Full)) {
                    let table = self.right.clone().with(None, variant);
                    self.load(recorder, &table, |case| !checked && case.essential && kinds.contains(&case.kind));
                    for rule in 0..self.shipped.rules(family).len() {
                        let table = self.right.clone().with(Some(rule), variant);
                        let _ = self.seconds(clock, family, rule, &table);
                    }
                }
            }
        })
    }

    /// Loads rows as a check of them will. What cannot be loaded cannot be loaded when it is checked either.
    fn load(&self, recorder: &Recorder, table: &Tuning, wanted: impl Fn(&Case) -> bool) {
        let device = GpuDevice::with_tuning(recorder.clone(), table.clone());
        for case in self.cases.iter().filter(|case| wanted(case)) {
            let _ = case.load(&device);
        }
    }

    /// Whether all rows come out right with the table as it is; the first that does not is the error. What the table
    /// has for more tokens than rows have is held against few of them.
    fn all_right(&self, tell: Tell<'_>) -> Result<(), String> {
        tell("checking all kernels together");
        let few = |case: &Case| case.essential && case.kind == Kind::Around;
        // The first rule that holds for as many tokens as rows have is theirs.
        let rules = self.right.rules(Family::Gemm).into_iter();
        let beyond = rules.skip_while(|(limits, _)| limits.tokens.is_some_and(|tokens| tokens < ops::AT_ONCE)).skip(1);
        let beyond: Vec<_> = beyond.map(|(_, variant)| self.right.clone().with(None, variant)).collect();
        let compiled = self.compile_ahead(|recorder, _| {
            self.load(recorder, &self.right, |_| true);
            beyond.iter().for_each(|table| self.load(recorder, table, few));
        });
        compiled.map_err(|error| error.to_string())?;
        self.check(&self.right, |_| true, &TOGETHER)?;
        beyond.iter().try_for_each(|table| self.check(table, few, &[COMPARED]))
    }

    /// The variants of a family that are right, those of the table that comes with the project first.
    fn find_right(&mut self, family: Family, tell: Tell<'_>) -> Result<Vec<Variant>, Error> {
        let (shipped, others) = self.variants(family);
        let mut right = Vec::new();
        for (i, variant) in shipped.iter().chain(&others).copied().enumerate() {
            if self.effort == Effort::Short && !right.is_empty() && i >= shipped.len() {
                break;
            }
            tell(&format!("checking {variant}"));
            match self.check_variant(family, variant, true) {
                Ok(()) => right.push(variant),
                Err(why) => {
                    // Where two in a row fail in the same words, it is another kernel that is wrong.
                    let before = self.dropped.last().filter(|(before, _)| before.family() == family);
                    let again = before.is_some_and(|(_, words)| *words == why);
                    self.dropped.push((variant, why));
                    if again && right.is_empty() {
                        break;
                    }
                }
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

    /// A variant among those that were chosen that some row shows to be wrong, and why.
    fn find_wrong(&self, choices: &[Choice], tell: Tell<'_>) -> Option<(Variant, String)> {
        let mut seen = Vec::new();
        for choice in choices.iter().filter(|_| self.effort == Effort::Full) {
            if !seen.contains(&choice.chosen) {
                seen.push(choice.chosen);
                tell(&format!("checking {} with all rows", choice.chosen));
                if let Err(why) = self.check_variant(choice.chosen.family(), choice.chosen, false) {
                    return Some((choice.chosen, why));
                }
            }
        }
        None
    }

    fn unusable(&self, why: &str) -> Error {
        GpuError::Missing(format!("{}: kernels came out wrong, so no result could be trusted: {why}", self.facts.name))
            .into()
    }

    /// The rows that a family's variants have a part in, and how many tokens at once.
    fn checks(&self, family: Family) -> (&'static [Kind], [usize; 2]) {
        let few = self.shipped.few_tokens;
        match family {
            Family::Gemv => (&[Kind::Linear, Kind::Around, Kind::Experts], [1, few]),
            Family::Gemm => (&[Kind::Linear, Kind::Around, Kind::Experts], [16, COMPARED]),
            Family::Decode => (&[Kind::Attention], [1, few]),
        }
    }

    /// Whether a variant is right wherever it would be used, as far as the essential rows show that, or all.
    fn check_variant(&self, family: Family, variant: Variant, essential: bool) -> Result<(), String> {
        let (kinds, at_once) = self.checks(family);
        let wanted = |case: &Case| kinds.contains(&case.kind) && (case.essential || !essential);
        self.check(&self.right.clone().with(None, variant), wanted, &at_once)
    }

    /// Whether these rows come out right, with kernels from this table; the first that does not is the error.
    fn check(&self, tuning: &Tuning, wanted: impl Fn(&Case) -> bool, at_once: &[usize]) -> Result<(), String> {
        let gpu = (self.open)().map_err(|error| error.to_string())?;
        let device = GpuDevice::with_tuning(gpu, tuning.clone());
        for case in self.cases.iter().filter(|case| wanted(case)) {
            case.check(&device, at_once)?;
        }
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        if self.facts.tuning == "simt" { SIMULATED } else { REAL }
    }

    /// The times of right variants for each rule, fastest first, before anything is chosen.
    fn time(&self, clock: &mut Clock<'_>, variants: &[Vec<Variant>]) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (family, variants) in Family::ALL.into_iter().zip(variants) {
            for (rule, (limits, before)) in self.shipped.rules(family).into_iter().enumerate() {
                let mut times = Vec::new();
                for &variant in variants {
                    // One that cannot be timed cannot be chosen.
                    let table = self.right.clone().with(Some(rule), variant);
                    if let Ok(seconds) = self.seconds(clock, family, rule, &table) {
                        times.push((variant, seconds));
                    }
                }
                times.sort_by(|a, b| a.1.total_cmp(&b.1));
                choices.push(Choice { limits, before, chosen: before, times });
            }
        }
        choices
    }

    /// The table with the fastest variant for each rule, where it is clearly faster than what the rule had, and makes
    /// layers of models faster too.
    fn choose(&self, clock: &mut Clock<'_>, choices: &mut [Choice]) -> Result<Tuning, Error> {
        let gain = self.sizes().gain[self.effort as usize];
        let mut faster = Vec::new();
        for choice in choices.iter() {
            let Some(&(fastest, best)) = choice.times.first() else {
                return Err(self.unusable(&format!("there is nothing right in place of {}", choice.before)));
            };
            let had = choice.times.iter().find(|(variant, _)| *variant == choice.before);
            faster.push(had.is_none_or(|(_, seconds)| best <= seconds * gain).then_some((fastest, had.is_none())));
        }
        let rules = || Family::ALL.into_iter().flat_map(|family| 0..self.shipped.rules(family).len());
        self.compile_ahead(|_, clock| {
            for ((rule, choice), faster) in rules().zip(choices.iter()).zip(&faster) {
                if let Some((fastest, false)) = *faster {
                    self.helps_layers(clock, rule, choice.before, fastest);
                }
            }
        })?;
        let mut tuning = self.right.clone();
        for ((rule, choice), faster) in rules().zip(choices.iter_mut()).zip(faster) {
            choice.chosen = match faster {
                Some((fastest, alone)) if alone || self.helps_layers(clock, rule, choice.before, fastest) => fastest,
                _ => choice.before,
            };
            tuning = tuning.with(Some(rule), choice.chosen);
        }
        Ok(tuning)
    }

    /// Whether a variant makes layers of models faster: what a kernel gains by itself, it may cost those before and
    /// after it. One that layers cannot be timed with does not. Attention is no part of these layers, so it is not held
    /// against them.
    fn helps_layers(&self, clock: &mut Clock<'_>, rule: usize, before: Variant, now: Variant) -> bool {
        if now.family() == Family::Decode {
            return true;
        }
        let mut layers = |variant: Variant| {
            self.layers(clock, variant.family(), rule, &self.right.clone().with(Some(rule), variant))
        };
        let (Ok(before), Ok(now)) = (layers(before), layers(now)) else { return false };
        let slower = now.iter().zip(&before).any(|(now, before)| *now > before * LAYER_LOSS);
        !slower && now.iter().sum::<f64>() <= before.iter().sum::<f64>() * LAYER_GAIN
    }

    /// What a rule of a family is timed with: the rows from which and up to which it holds, and tokens after a context.
    fn timed(&self, family: Family, rule: usize) -> (Range<usize>, (usize, usize)) {
        let sizes = self.sizes();
        let rules = self.shipped.rules(family);
        let limits = rules[rule].0;
        // What the rules before leave to this one, as far as they hold for all of its columns.
        let covers = |before: &Limits| before.columns.is_none() || before.columns == limits.columns;
        let before = rules[..rule].iter().filter(|(before, _)| before.tokens == limits.tokens && covers(before));
        let least = before.filter_map(|(before, _)| before.rows).max().unwrap_or(0);
        let by_tokens = rules.iter().any(|(limits, _)| limits.tokens.is_some());
        let steps = match family {
            Family::Decode => (1, sizes.context),
            // One token is the most common of all, where its rules are not others than those of a few.
            Family::Gemv if limits.tokens.is_some() || !by_tokens => (1, 0),
            Family::Gemv => (self.shipped.few_tokens.max(1), 0),
            Family::Gemm => (limits.tokens.unwrap_or(sizes.tokens), 0),
        };
        (least..limits.rows.unwrap_or(usize::MAX), steps)
    }

    /// The formats that something is timed with: the first alone in the short form.
    fn formats<'f>(&self, all: &'f [Format]) -> &'f [Format] {
        if self.effort == Effort::Short { &all[..1] } else { all }
    }

    /// The seconds of ops that a rule is for, with kernels from this table.
    fn seconds(&self, clock: &mut Clock<'_>, family: Family, rule: usize, table: &Tuning) -> Result<f64, Error> {
        let sizes = self.sizes();
        let (rows, steps) = self.timed(family, rule);
        if family == Family::Decode {
            let row = ops::long_attention(sizes.heads.0, sizes.heads.1);
            return clock.seconds(&row, steps, table, |_, node| node.op.signature().reads.is_some());
        }
        let columns = self.shipped.rules(family)[rule].0.columns.unwrap_or(sizes.columns);
        let most = if rows.end == usize::MAX { sizes.rows } else { rows.end };
        let first = |plan: &Plan, node: &PlanNode| {
            let first = plan.nodes.iter().find(|node| matches!(node.op, PlanOp::Linear(_)));
            first.is_some_and(|first| first.out == node.out)
        };
        self.formats(&TIMED)
            .iter()
            .map(|&format| clock.seconds(&ops::product(format, most, columns), steps, table, first))
            .sum()
    }

    /// The seconds of each layer that has a product which a rule is for, with kernels from this table.
    fn layers(&self, clock: &mut Clock<'_>, family: Family, rule: usize, table: &Tuning) -> Result<Vec<f64>, Error> {
        let (rows, steps) = self.timed(family, rule);
        let most_columns = self.shipped.rules(family)[rule].0.columns.unwrap_or(usize::MAX);
        let holds = |of_w: usize, columns: usize| rows.start < of_w && of_w <= rows.end && columns <= most_columns;
        let mut seconds = Vec::new();
        for &[width, heads, wide] in self.sizes().layers {
            let products = [(heads, width), (width, heads), (2 * wide, width), (width, wide)];
            if products.iter().any(|&(of_w, columns)| holds(of_w, columns)) {
                for &format in self.formats(&IN_LAYERS) {
                    seconds.push(clock.seconds(&ops::layer(format, width, heads, wide), steps, table, |_, _| true)?);
                }
            }
        }
        Ok(seconds)
    }
}

/// The result of checking an instruction set of the CPU.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The instruction set.
    pub isa: Isa,
    /// Rows of the op table with wrong results.
    pub wrong: Vec<String>,
    /// Products of each format: one of a single row, with a matrix that fits no cache, and one of many rows.
    pub products: Vec<Timed>,
}

/// A product that was timed.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// The format of the weights.
    pub format: Format,
    /// Bytes of weights.
    pub bytes: f64,
    /// Operations; a multiplication and an addition are two.
    pub operations: f64,
    /// The fastest of several runs.
    pub seconds: f64,
}

/// Checks every instruction set of the machine on the op table, and times products with each, the best one last.
///
/// # Errors
/// When temporary files cannot be written, or threads cannot be started.
pub fn cpu(threads: Option<usize>, effort: Effort, tell: Tell<'_>) -> Result<Vec<Checked>, Error> {
    let rows = ops::table().into_iter().filter(|row| effort == Effort::Full || row.essential);
    let cases = rows.map(|row| row.case()).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::new();
    for isa in Isa::available() {
        tell(&format!("checking {isa}"));
        let device = CpuDevice::with_isa(threads, isa)?;
        let checks = cases.iter().map(|case| case.check(&device, &[1, 7, COMPARED]));
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

/// Times a product, of a single token with a matrix of 64 MiB, which no cache holds, and of many with one of 8 MiB,
/// since that is not about memory.
fn time_product(device: &CpuDevice, format: Format, tokens: usize) -> Result<Timed, Error> {
    const ROUNDS: usize = 3;
    let bytes = if tokens == 1 { 64 << 20 } else { 8 << 20 };
    let failed = |error: DeviceError| Error::Check(error.to_string());
    let columns = 4096;
    let row = format.row_bytes(columns).map_err(|error| Error::Check(error.to_string()))?;
    // Whole blocks, for another matrix is as wide as this one has rows.
    let rows = bytes / row / 256 * 256;
    let (plan, file) = ops::product(format, rows, columns).outline(tokens)?;
    let plan = Arc::new(plan);
    let pages: Vec<u32> = (0..tokens.div_ceil(device.facts().page_tokens) as u32).collect();
    let counts = vec![pages.len(); plan.page_groups.len()];
    let options = LoadOptions { pages: counts, slots: 4, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
    let mut baked = device.load(plan.clone(), file, options).map_err(failed)?;
    let mut step = StepState::default();
    step.push(&vec![0; tokens], 0, &[pages], tokens);
    let first = plan.nodes.iter().position(|node| matches!(node.op, PlanOp::Linear(_))).unwrap_or(0);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let spans = baked.profile(&step).map_err(failed)?;
        best = spans.iter().filter(|span| span.ops.contains(&first)).map(|span| span.seconds).fold(best, f64::min);
    }
    let shape = StepShape { tokens, wanted: tokens, context: 0, kv: KvFormat::F16 };
    let cost = plan.cost(&plan.nodes[first], shape);
    Ok(Timed { format, bytes: cost.weights, operations: cost.flops, seconds: best })
}
