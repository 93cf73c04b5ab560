//! Lowers a plan to the dispatches of a step: which kernels, with which macros, over which memory.

mod linear;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use basert_core::KvFormat;
use basert_graph::{Activation, CacheId, Norm, Pairs, Rows, ValueId};
use basert_plan::{DeviceError, Place, Plan, PlanOp, PlannedOp};

use crate::Kernel;
use crate::shape::{AttentionKind, Outcome, Shape, tiles};
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::{Placed, Vector, Weights};

/// Threadgroup memory of every chip, in bytes.
pub const THREADGROUP_BYTES: usize = 32 << 10;
/// The most parts of a divided context.
const MOST_PARTS: usize = 64;
/// Threadgroups that search a row of logits for its maximum.
const LARGEST_PARTS: usize = 32;
/// Simdgroups of a threadgroup in attention over tiles of queries.
const PREFILL_SIMDGROUPS: usize = crate::step::QUERY_TILE / 16;

/// A part of the device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// Weights.
    Weights,
    /// Intermediate values.
    Arena,
    /// Keys and values.
    Cache,
    /// What varies from step to step.
    Step,
    /// Inputs of a linear op, normed or rounded.
    Prepared,
    /// Parts of attention over a divided context.
    Partial,
    /// Token histories, for penalties.
    Histories,
    /// The tokens sampled in the last steps.
    Drawn,
}

impl Memory {
    /// The number of memories.
    pub const COUNT: usize = 8;
}

/// Steps whose sampled tokens are kept.
pub const CHAIN: usize = 8;

/// A dispatch whose memory is not bound to buffers yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Index into [`Lowering::kernels`].
    pub kernel: usize,
    /// Its arguments: the memory, and the offset in bytes.
    pub bindings: Vec<(Memory, usize)>,
    /// Threadgroups in each direction.
    pub groups: [usize; 3],
    /// Whether all earlier launches must be complete.
    pub barrier: bool,
    /// The ops of the plan that it computes, entirely or in part.
    pub ops: Range<usize>,
}

/// Lowers one plan for steps of any shape, and collects the kernels.
pub struct Lowering<'p> {
    plan: &'p Plan,
    weights: &'p Weights,
    tuning: &'p Tuning,
    step: StepLayout,
    kv: KvFormat,
    cores: usize,
    device: &'p str,
    /// Whether the step has one row, and its logits are wanted: then a selection is its own input.
    single: bool,
    /// The kernels of everything lowered so far.
    pub kernels: Vec<Kernel>,
    known: BTreeMap<Kernel, usize>,
    /// Bytes of [`Memory::Prepared`] that they need.
    pub prepared_bytes: usize,
    /// Bytes of [`Memory::Partial`] that they need.
    pub partial_bytes: usize,
}

/// Bytes of a page, for all these layers.
pub fn page_bytes(caches: &[basert_graph::Cache], kv: KvFormat) -> usize {
    caches.iter().map(|cache| 2 * cache.kv_heads * kv.bytes(cache.head_dim) * PAGE).sum()
}

/// The launches of one op so far.
struct Op {
    launches: Vec<Launch>,
    barrier: bool,
}

impl<'p> Lowering<'p> {
    /// For a device with `cores` cores.
    pub(crate) fn new(
        plan: &'p Plan,
        weights: &'p Weights,
        tuning: &'p Tuning,
        (step, kv): (StepLayout, KvFormat),
        cores: usize,
        device: &'p str,
    ) -> Lowering<'p> {
        let (kernels, known) = (Vec::new(), BTreeMap::new());
        Lowering {
            plan,
            weights,
            tuning,
            step,
            kv,
            cores,
            device,
            single: false,
            kernels,
            known,
            prepared_bytes: 0,
            partial_bytes: 0,
        }
    }

    /// The launches of a step of this shape.
    ///
    /// # Errors
    /// When there is no kernel for an op.
    pub fn lower(&mut self, shape: Shape) -> Result<Vec<Launch>, DeviceError> {
        let mut all = Vec::new();
        self.single = shape.tokens == 1 && shape.wanted == 1;
        if shape.outcome == Outcome::Chained {
            let kernel = Kernel::new("sample/advance.metal", "advance", 64).define("PAGE", PAGE);
            let bindings = vec![(Memory::Drawn, 0), (Memory::Step, 0)];
            let kernel = self.draws(kernel);
            all.push(self.launch_of(kernel, bindings, [1, 1, 1]));
        }
        // The plan does not know of prepared inputs.
        let mut prepared_in_use = false;
        let mut rope = None;
        let (ops, last) = match (shape.outcome, &self.plan.hidden) {
            (Outcome::Hidden, hidden) => (&self.plan.ops[..hidden.after], hidden.op.as_ref()),
            (Outcome::Drawn, _) => (&[][..], None),
            _ => (&self.plan.ops[..], None),
        };
        let ops = ops.iter().map(|PlannedOp { op, barrier }| (op, barrier)).chain(last.map(|op| (op, &true)));
        for (i, (op, barrier)) in ops.enumerate() {
            if self.rows(op, shape).0 == 0 || self.selected(op.out()).is_some() {
                continue;
            }
            if shape.alone && self.rotates_for_attention(i) {
                rope = Some((op, *barrier));
                continue;
            }
            let ops = i - usize::from(rope.is_some())..i + 1;
            let mut lowered = Op { launches: Vec::new(), barrier: true };
            let mut barrier = *barrier;
            if let Some((rope, before)) = rope.take() {
                self.attention(op, Some(rope), shape, &mut lowered)?;
                barrier |= before;
            } else {
                self.op(op, shape, &mut lowered)?;
            }
            lowered.launches.iter_mut().for_each(|launch| launch.ops = ops.clone());
            let uses = |launch: &Launch| launch.bindings.iter().any(|(memory, _)| *memory == Memory::Prepared);
            let prepares = lowered.launches.iter().any(uses);
            if let Some(first) = lowered.launches.first_mut() {
                first.barrier = barrier || (prepares && prepared_in_use);
                prepared_in_use = prepares || (prepared_in_use && !first.barrier);
            }
            all.extend(lowered.launches);
        }
        // The next step on the device waits for the tokens.
        if let (Outcome::Chained, Some(first)) = (shape.outcome, all.get_mut(1)) {
            first.barrier = true;
        }
        if shape.outcome.draws() && shape.wanted > 0 {
            self.partial_bytes = self.partial_bytes.max(shape.wanted * LARGEST_PARTS * size_of::<u64>());
            let kernel = |lowering: &Self, path, entry, threads| {
                let kernel = Kernel { exact: true, ..Kernel::new(path, entry, threads) };
                kernel
                    .define("VOCABULARY", lowering.plan.graph.vocabulary)
                    .define("LOGITS_STRIDE", lowering.place(lowering.plan.logits).stride)
                    .define("LARGEST_PARTS", LARGEST_PARTS)
            };
            let (logits, histories, partial) =
                (self.at(self.plan.logits), (Memory::Histories, 0), (Memory::Partial, 0));
            let largest = kernel(self, "sample/largest.metal", "largest", 256);
            let bindings = vec![logits, histories, partial, (Memory::Step, 0)];
            all.push(self.launch_of(largest, bindings, [LARGEST_PARTS, shape.wanted, 1]));
            let sample = self.draws(kernel(self, "sample/sample.metal", "sample", 1024));
            let bindings = vec![logits, histories, (Memory::Drawn, 0), partial, (Memory::Step, 0)];
            all.push(self.launch_of(sample, bindings, [shape.wanted, 1, 1]));
        }
        Ok(all)
    }

    /// The kernel with the macros that describe how sampled tokens are stored.
    fn draws(&self, kernel: Kernel) -> Kernel {
        kernel.define("WANTED_LIMIT", self.plan.limits.wanted).define("CHAIN", CHAIN)
    }

    fn launch_of(&mut self, kernel: Kernel, bindings: Vec<(Memory, usize)>, groups: [usize; 3]) -> Launch {
        Launch { kernel: self.kernel(kernel), bindings, groups, barrier: true, ops: 0..0 }
    }

    /// Whether only the following attention reads the result of the op at `i`, so that one kernel can compute both.
    fn rotates_for_attention(&self, i: usize) -> bool {
        let op = |i: usize| self.plan.ops.get(i).map(|planned| &planned.op);
        let (Some(&PlanOp::RopeCache { cache, out, .. }), Some(next)) = (op(i), op(i + 1)) else { return false };
        let readers = self.plan.ops.iter().filter(|planned| planned.op.reads().contains(&out)).count();
        matches!(*next, PlanOp::Attention { q, cache: of, .. } if q == out && of == cache) && readers == 1
    }

    /// The most rows of an op, and the word of the step's buffer with the actual number.
    fn rows(&self, op: &PlanOp, shape: Shape) -> (usize, &'static str) {
        match self.plan.values[op.out().0].rows {
            Rows::Tokens => (shape.tokens, "STEP_COUNT_TOKENS"),
            Rows::Wanted => (shape.wanted, "STEP_COUNT_WANTED"),
        }
    }

    fn unsupported(&self, what: String) -> DeviceError {
        DeviceError::Unsupported { device: self.device.to_owned(), what }
    }

    fn place(&self, value: ValueId) -> Place {
        let place = self.plan.places[value.0];
        let (root, column) = self.plan.root(value);
        match self.selected(root) {
            Some(x) => {
                let of_x = self.place(x);
                Place { column: of_x.column + column, width: place.width, ..of_x }
            }
            None => place,
        }
    }

    /// The value that replaces a selection, if nothing needs to be selected. Logits and hidden states keep their places
    /// in the plan.
    fn selected(&self, value: ValueId) -> Option<ValueId> {
        let is_read = [self.plan.logits, self.plan.hidden.value].iter().any(|&read| self.plan.root(read).0 == value);
        if !self.single || is_read {
            return None;
        }
        self.plan.ops.iter().find_map(|op| match op.op {
            PlanOp::Select { x, out } if out == value => Some(x),
            _ => None,
        })
    }

    fn at(&self, value: ValueId) -> (Memory, usize) {
        let place = self.place(value);
        (Memory::Arena, place.offset + place.column * size_of::<f32>())
    }

    fn kernel(&mut self, kernel: Kernel) -> usize {
        let next = self.kernels.len();
        let index = *self.known.entry(kernel.clone()).or_insert(next);
        if index == next {
            self.kernels.push(self.step.define(kernel));
        }
        index
    }

    fn launch(&mut self, op: &mut Op, kernel: Kernel, bindings: Vec<(Memory, usize)>, groups: [usize; 3]) {
        let kernel = self.kernel(kernel);
        op.launches.push(Launch { kernel, bindings, groups, barrier: op.barrier, ops: 0..0 });
    }

    fn op(&mut self, op: &PlanOp, shape: Shape, out: &mut Op) -> Result<(), DeviceError> {
        let (rows, count) = self.rows(op, shape);
        match *op {
            PlanOp::Embed { weight, scale, out: value } => {
                let Some(Placed { layout, offset, .. }) = self.weights.embedding(weight) else {
                    return Err(self.unsupported("an embedding without a matrix".to_owned()));
                };
                let basert_graph::Weight { rows: tokens, columns, .. } = self.plan.graph.weights[weight.0];
                let kernel = Kernel::new("elementwise/embed.metal", "embed", 128)
                    .define("COLUMNS", columns)
                    .define("ROWS_OF_W", tokens)
                    .define("OUT_STRIDE", self.place(value).stride)
                    .define("SCALE", Float(scale));
                let bindings = vec![(Memory::Weights, *offset), self.at(value), (Memory::Step, 0)];
                let kernel = layout.define(kernel);
                self.launch(out, kernel, bindings, [rows, 1, 1]);
            }
            PlanOp::Norm { x, norm, residual, out: value } => {
                let place = self.place(value);
                let kernel = self.norm_kernel(x, Some(norm), count).define("OUT_STRIDE", place.stride);
                let kernel = kernel.define("ADD", u32::from(residual.is_some())).define("OUTPUT", "OUTPUT_FLOATS");
                let bindings = self.norm_bindings(x, Some(norm), self.at(value));
                self.launch(out, kernel, bindings, [rows, 1, 1]);
            }
            PlanOp::Linear { experts: None, .. } => self.linear(op, (rows, count), out),
            PlanOp::Linear { experts: Some(experts), .. } => self.experts(op, experts, (rows, count), out)?,
            PlanOp::Route { x, used, normalised, out: value } => {
                let simdgroups = 4;
                let kernel = Kernel::new("moe/route.metal", "route", simdgroups as u32 * 32)
                    .define("EXPERTS", self.place(x).width)
                    .define("USED", used)
                    .define("NORMALISED", u32::from(normalised))
                    .define("X_STRIDE", self.place(x).stride)
                    .define("OUT_STRIDE", self.place(value).stride)
                    .define("COUNT", count);
                let bindings = vec![self.at(x), self.at(value), (Memory::Step, 0)];
                self.launch(out, kernel, bindings, [rows.div_ceil(simdgroups), 1, 1]);
            }
            PlanOp::Combine { x, experts, residual, out: value } => {
                let (place, threads) = (self.place(value), 256);
                let kernel = Kernel::new("moe/combine.metal", "combine", threads)
                    .define("WIDTH", place.width)
                    .define("USED", experts.used)
                    .define("X_STRIDE", self.place(x).stride)
                    .define("ROUTE_STRIDE", self.place(experts.route).stride)
                    .define("OUT_STRIDE", place.stride)
                    .define("COUNT", count)
                    .define("ADD", u32::from(residual.is_some()));
                let bindings = vec![self.at(x), self.at(experts.route), self.at(value), (Memory::Step, 0)];
                self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
            }
            PlanOp::RopeCache { .. } => self.rope_cache(op, rows, out)?,
            PlanOp::Attention { .. } => self.attention(op, None, shape, out)?,
            PlanOp::Gate { gate, up, activation, out: value } => {
                let function = match activation {
                    Activation::Silu => "FUNCTION_SILU",
                    Activation::GeluTanh => "FUNCTION_GELU",
                    Activation::ClampedSwish => "FUNCTION_CLAMPED_SWISH",
                };
                self.elementwise(function, gate, up, value, None, (rows, count), out);
            }
            PlanOp::Add { a, b, out: value } => {
                self.elementwise("FUNCTION_ADD", a, b, value, None, (rows, count), out);
            }
            PlanOp::Select { x, out: value } => {
                self.elementwise("FUNCTION_SELECT", x, x, value, None, (rows, count), out);
            }
            PlanOp::SoftCap { x, cap, out: value } => {
                self.elementwise("FUNCTION_SOFT_CAP", x, x, value, Some(cap), (rows, count), out);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn elementwise(
        &mut self,
        function: &str,
        a: ValueId,
        b: ValueId,
        value: ValueId,
        cap: Option<f32>,
        (rows, count): (usize, &str),
        out: &mut Op,
    ) {
        let (place, threads) = (self.place(value), 256);
        let mut kernel = Kernel::new("elementwise/elementwise.metal", "elementwise", threads)
            .define("FUNCTION", function)
            .define("WIDTH", place.width)
            .define("A_STRIDE", self.place(a).stride)
            .define("B_STRIDE", self.place(b).stride)
            .define("OUT_STRIDE", place.stride)
            .define("COUNT", count);
        if let Some(cap) = cap {
            kernel = kernel.define("CAP", Float(cap));
        }
        let bindings = vec![self.at(a), self.at(b), self.at(value), (Memory::Step, 0)];
        self.launch(out, kernel, bindings, [place.width.div_ceil(threads as usize), rows, 1]);
    }

    /// The kernel that norms or copies rows of `x`, without the macros of its output.
    fn norm_kernel(&self, x: ValueId, norm: Option<Norm>, count: &str) -> Kernel {
        let place = self.place(x);
        let threads = place.width.div_ceil(8).next_multiple_of(32).clamp(32, 512) as u32;
        let kernel = Kernel::new("norm/norm.metal", "row_norm", threads)
            .define("WIDTH", place.width)
            .define("X_STRIDE", place.stride)
            .define("COUNT", count)
            .define("NORM", u32::from(norm.is_some()))
            .define("CENTRED", u32::from(norm.is_some_and(|norm| norm.centred)))
            .define("HAS_BIAS", u32::from(norm.is_some_and(|norm| norm.bias.is_some())));
        norm.map_or(kernel.clone(), |norm| kernel.define("NORM_EPS", Float(norm.eps)))
    }

    /// Its arguments.
    fn norm_bindings(&self, x: ValueId, norm: Option<Norm>, to: (Memory, usize)) -> Vec<(Memory, usize)> {
        let bias =
            norm.and_then(|norm| norm.bias).map_or((Memory::Weights, 0), |bias| self.vector(Vector::Plain(bias)));
        vec![self.at(x), self.norm_at(norm), to, bias, (Memory::Step, 0)]
    }

    /// The place of a vector; an arbitrary place if there is none and none is read.
    fn vector(&self, vector: Vector) -> (Memory, usize) {
        (Memory::Weights, self.weights.vector_at(vector).unwrap_or(0))
    }

    /// The same for a norm's weights.
    fn norm_at(&self, norm: Option<Norm>) -> (Memory, usize) {
        norm.map_or((Memory::Weights, 0), |norm| self.vector(Vector::Norm(norm)))
    }

    /// The KV cache of a layer, and the kernel with the macros of its layout.
    fn cache(&self, id: CacheId, kernel: Kernel) -> Result<((Memory, usize), Kernel), DeviceError> {
        let cache = &self.plan.graph.caches[id.0];
        if !cache.head_dim.is_multiple_of(16) || cache.head_dim > 256 {
            return Err(self.unsupported(format!("heads of {} values, not a multiple of 16 up to 256", cache.head_dim)));
        }
        if self.kv != KvFormat::F16 && !cache.head_dim.is_multiple_of(self.kv.block()) {
            let what = format!("{} keys and values of heads of {} values, not whole blocks", self.kv, cache.head_dim);
            return Err(self.unsupported(what));
        }
        let before = page_bytes(&self.plan.graph.caches[..id.0], self.kv);
        let kernel = kernel
            .define("KV_HEADS", cache.kv_heads)
            .define("HEAD_DIM", cache.head_dim)
            .define("KV_BITS", self.kv.bits())
            .define("PAGE", PAGE)
            .define("PAGE_BYTES", format!("{}ul", page_bytes(&self.plan.graph.caches, self.kv)));
        Ok(((Memory::Cache, before), kernel))
    }

    fn rope_cache(&mut self, op: &PlanOp, rows: usize, out: &mut Op) -> Result<(), DeviceError> {
        let PlanOp::RopeCache { q, cache, out: value, .. } = *op else { return Ok(()) };
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.caches[cache.0];
        let heads = self.place(q).width / head_dim;
        let simdgroups = 4;
        let kernel = Kernel::new("rope/rope_cache.metal", "rope_cache", simdgroups * 32)
            .define("Q_HEADS", heads)
            .define("Q_STRIDE", self.place(q).stride)
            .define("OUT_STRIDE", self.place(value).stride);
        let kernel = self.rope(op, kernel);
        let (cache, kernel) = self.cache(cache, kernel)?;
        let after = [self.at(value), cache, (Memory::Step, 0)];
        let bindings = [self.at(q)].into_iter().chain(self.rope_arguments(op)).chain(after).collect();
        let groups = [(heads + 2 * kv_heads).div_ceil(simdgroups as usize), rows, 1];
        self.launch(out, kernel, bindings, groups);
        Ok(())
    }

    /// The kernel with the macros of the rotation.
    fn rope(&self, op: &PlanOp, kernel: Kernel) -> Kernel {
        let PlanOp::RopeCache { k, v, q_norm, k_norm, rope, .. } = *op else { return kernel };
        let table = &self.plan.graph.ropes[rope.0];
        let kernel = kernel
            .define("ROTATED", 2 * table.frequencies.len())
            .define("INTERLEAVED", u32::from(table.pairs == Pairs::Interleaved))
            .define("K_STRIDE", self.place(k).stride)
            .define("V_STRIDE", self.place(v).stride)
            .define("Q_NORM", u32::from(q_norm.is_some()))
            .define("K_NORM", u32::from(k_norm.is_some()));
        let kernel = q_norm.map_or(kernel.clone(), |norm| kernel.define("Q_EPS", Float(norm.eps)));
        k_norm.map_or(kernel.clone(), |norm| kernel.define("K_EPS", Float(norm.eps)))
    }

    /// What a rotation reads besides the queries: keys, values, the norms of heads, frequencies. Arbitrary places if
    /// `op` is no rotation.
    fn rope_arguments(&self, op: &PlanOp) -> [(Memory, usize); 5] {
        let PlanOp::RopeCache { k, v, q_norm, k_norm, rope, .. } = *op else { return [(Memory::Weights, 0); 5] };
        let frequencies = self.vector(Vector::Frequencies(rope));
        [self.at(k), self.at(v), self.norm_at(q_norm), self.norm_at(k_norm), frequencies]
    }

    fn attention(&mut self, op: &PlanOp, rope: Option<&PlanOp>, shape: Shape, out: &mut Op) -> Result<(), DeviceError> {
        let PlanOp::Attention { mut q, cache, heads, scale, window, cap, sinks, out: value } = *op else {
            return Ok(());
        };
        let of_rope = self.rope_arguments(rope.unwrap_or(op));
        if let Some(PlanOp::RopeCache { q: plain, .. }) = rope {
            q = *plain;
        }
        let basert_graph::Cache { kv_heads, head_dim } = self.plan.graph.caches[cache.0];
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.unsupported(format!("{heads} query heads over {kv_heads} heads of keys")));
        }
        let (choice, group) = (self.tuning.decode, heads / kv_heads);
        let divided = shape.attention == AttentionKind::Divided;
        let tiled = if divided && choice.tiles { decode_tiles(group, head_dim, choice.simdgroups / 2) } else { None };
        // Sets of heads of equal size, with at most as many values as a simdgroup should hold; tiles hold all.
        let sets = if tiled.is_some() { 1 } else { group.div_ceil((choice.values / head_dim).max(1)) };
        let at_once = group.div_ceil(sets);
        let sets = kv_heads * group.div_ceil(at_once);
        // Enough threadgroups for every core, if rows and heads are too few, but no more than run at once.
        let wanted = choice.groups_per_core * self.cores / (shape.tokens * sets);
        let parts = if divided { wanted.clamp(2, MOST_PARTS) } else { 1 };
        let has_sinks = sinks.is_some();
        let common = |kernel: Kernel| {
            kernel
                .define("Q_HEADS", heads)
                .define("SCALE", Float(scale))
                .define("WINDOW", window.unwrap_or(0))
                .define("CAP_SCORES", u32::from(cap.is_some()))
                .define("CAP", Float(cap.unwrap_or(0.0)))
                .define("SINKS", u32::from(has_sinks))
                .define("Q_STRIDE", self.place(q).stride)
                .define("OUT_STRIDE", self.place(value).stride)
        };
        let sinks = sinks.map_or((Memory::Weights, 0), |sinks| self.vector(Vector::Plain(sinks)));
        let (query, to, step, partial) = (self.at(q), self.at(value), (Memory::Step, 0), (Memory::Partial, 0));
        if shape.attention == AttentionKind::Tiles {
            let kernel = Kernel::new("attention/prefill.metal", "attention_prefill", PREFILL_SIMDGROUPS as u32 * 32);
            let (block, stages) = blocks_of_keys(head_dim, self.tuning.threadgroup_bytes);
            let kernel = common(kernel).define("BLOCK", block).define("STAGES", stages);
            let (cache, kernel) = self.cache(cache, kernel)?;
            let bindings = vec![query, cache, to, step, sinks];
            self.launch(out, kernel, bindings, [heads, tiles(shape.tokens), 1]);
            return Ok(());
        }
        let simdgroups = tiled.unwrap_or(choice.simdgroups);
        let kernel = Kernel::new("attention/decode.metal", "attention_decode", simdgroups as u32 * 32);
        let kernel = common(kernel)
            .define("HEADS", at_once)
            .define("ON_TILES", u32::from(tiled.is_some()))
            .define("LEAST_SPLIT", choice.least_split)
            .define("ROPE", u32::from(rope.is_some()));
        let kernel = rope.map_or(kernel.clone(), |rope| self.rope(rope, kernel));
        let (cache_at, kernel) = self.cache(cache, kernel)?;
        let bindings = [query, cache_at, to, partial, step].into_iter().chain(of_rope).chain([sinks]).collect();
        self.launch(out, kernel, bindings, [sets, shape.tokens, parts]);
        if parts > 1 {
            let bytes = parts * shape.tokens * heads * (head_dim + 3) * size_of::<f32>();
            self.partial_bytes = self.partial_bytes.max(bytes);
            out.barrier = true;
            let threads = head_dim.min(128).next_multiple_of(32) as u32;
            let combine = Kernel::new("attention/combine.metal", "attention_combine", threads)
                .define("Q_HEADS", heads)
                .define("HEAD_DIM", head_dim)
                .define("OUT_STRIDE", self.place(value).stride)
                .define("SINKS", u32::from(has_sinks))
                .define("MOST_PARTS", MOST_PARTS);
            self.launch(out, combine, vec![partial, to, step, sinks], [heads, shape.tokens, 1]);
        }
        Ok(())
    }
}

/// Tokens whose keys, or values, pass through threadgroup memory together in attention of tiles, and how many such parts there is
/// room for: two, or three where there is more memory, for one of them to be read while another is written.
fn blocks_of_keys(head_dim: usize, threadgroup_bytes: usize) -> (usize, usize) {
    const LEAST: usize = 16;
    let stages = |block: usize| (threadgroup_bytes / (block * head_dim * size_of::<half::f16>())).min(4);
    let wanted = threadgroup_bytes / (16 << 10);
    // Where both products are as deep as each other, NVRTC 13.0 gives queries and weights the same registers.
    let fits = |&block: &usize| block != head_dim && stages(block) >= wanted;
    let block = [PAGE, PAGE / 2].into_iter().find(fits).unwrap_or(LEAST);
    (block, stages(block))
}

/// Simdgroups of attention of single tokens on tiles, as many of these as threadgroup memory has room for; none where heads are
/// not what it takes.
fn decode_tiles(group: usize, head_dim: usize, most: usize) -> Option<usize> {
    const TILE: usize = 16;
    // Sums in floats, queries in halves, weights in halves, and what is rotated in place.
    let bytes = |simdgroups: usize| {
        simdgroups * (group * (head_dim + 2) * 4 + TILE * TILE * 2) + TILE * head_dim * 2 + (group + 2) * head_dim * 4
    };
    let takes = (2..=TILE).contains(&group) && head_dim.is_multiple_of(64);
    (1..=most).rev().find(|&simdgroups| takes && bytes(simdgroups) <= THREADGROUP_BYTES)
}

/// An f32 that C++ parses back exactly.
struct Float(f32);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e}f", self.0)
    }
}
