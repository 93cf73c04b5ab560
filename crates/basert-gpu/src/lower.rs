//! Lowers a plan to the dispatches of a step: which kernels, with which macros, over which memory.

mod after;
mod attention;
mod experts;
mod heads;
mod linear;
mod recurrent;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use basert_core::KvFormat;
use basert_graph::{Op, Rows, ValueId};
use basert_plan::{DeviceError, Linear, Place, Plan, PlanNode, PlanOp, RopeStore};

use crate::Kernel;
use crate::shape::{Outcome, Shape};
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::{Vector, Weights};
use after::After;
use values::Function;

/// Threadgroup memory of every chip, in bytes.
pub const THREADGROUP_BYTES: usize = 32 << 10;
/// Threadgroups that search a row of logits for its maximum.
const LARGEST_PARTS: usize = 128;

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
    /// Running states.
    Slots,
}

impl Memory {
    /// The number of memories.
    pub const COUNT: usize = 9;
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
    cache: &'p CacheLayout,
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

/// Where the pages of each group lie in the KV cache.
#[derive(Debug, Clone)]
pub struct CacheLayout {
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// For each group the first byte of its first page, and the bytes of a page.
    groups: Vec<(usize, usize)>,
    /// Bytes of all pages.
    pub bytes: usize,
}

impl CacheLayout {
    /// Of so many pages of each of the plan's groups.
    pub fn new(plan: &Plan, kv: KvFormat, pages: &[usize]) -> CacheLayout {
        let before = |group| plan.cache_bytes(&pages[..group], kv, PAGE);
        let groups = (0..pages.len()).map(|group| (before(group), plan.page_bytes(group, kv, PAGE)));
        CacheLayout { kv, groups: groups.collect(), bytes: before(pages.len()) }
    }

    /// Bytes of a page of a group.
    pub fn page_bytes(&self, group: usize) -> usize {
        self.groups[group].1
    }

    /// The first byte of a page.
    pub fn page(&self, group: usize, page: u32) -> usize {
        let (first, bytes) = self.groups[group];
        first + page as usize * bytes
    }
}

/// The launches of one node so far.
struct Lowered {
    launches: Vec<Launch>,
    barrier: bool,
    /// What becomes of its result.
    after: After,
}

impl<'p> Lowering<'p> {
    /// For a device with `cores` cores.
    pub(crate) fn new(
        plan: &'p Plan,
        weights: &'p Weights,
        tuning: &'p Tuning,
        (step, cache): (StepLayout, &'p CacheLayout),
        cores: usize,
        device: &'p str,
    ) -> Lowering<'p> {
        let (kernels, known) = (Vec::new(), BTreeMap::new());
        Lowering {
            plan,
            weights,
            tuning,
            step,
            cache,
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
            let kernel = self.step.of_all_groups(kernel);
            let bindings = vec![(Memory::Drawn, 0), (Memory::Step, 0)];
            let kernel = self.draws(kernel);
            all.push(self.launch_of(kernel, bindings, [1, 1, 1]));
        }
        // The plan does not know of prepared inputs.
        let mut prepared_in_use = false;
        let mut rope = None;
        let of_model = self.plan.model().len();
        let (first, nodes, last) = match (shape.outcome, &self.plan.hidden) {
            (Outcome::Hidden, hidden) => (0, &self.plan.nodes[..hidden.after], hidden.node.as_ref()),
            (Outcome::Head, _) => (of_model, &self.plan.nodes[of_model..], None),
            (Outcome::Drawn, _) => (0, &[][..], None),
            _ => (0, self.plan.model(), None),
        };
        // What is left out may have separated what comes before and after it.
        let mut owed = false;
        // The nodes before this one are computed.
        let mut done = 0;
        for (place, node) in nodes.iter().chain(last).enumerate() {
            if place < done {
                continue;
            }
            if self.rows(node, shape).0 == 0 || self.selected(node.out).is_some() {
                owed |= node.barrier;
                continue;
            }
            if shape.alone && self.rotates_for_attention(first + place) {
                rope = Some(node);
                continue;
            }
            let (applied, after, out) = self.after(nodes.get(place..).unwrap_or_default())?;
            done = place + 1 + applied;
            let ops = first + place - usize::from(rope.is_some())..first + done;
            let mut lowered = Lowered { launches: Vec::new(), barrier: true, after };
            let mut barrier = node.barrier || std::mem::take(&mut owed);
            let followers = nodes.get(place + 1..done).unwrap_or_default();
            // What they waited for, this does; and what waited for them comes after this.
            if followers.iter().any(|node| node.barrier) {
                (barrier, owed) = (true, true);
            }
            let node = &PlanNode { out: out.unwrap_or(node.out), ..node.clone() };
            match (&node.op, rope.take()) {
                (PlanOp::Plain(Op::Attention(attention)), rope) => {
                    self.attention(node, attention, rope, shape, &mut lowered)?;
                    barrier |= rope.is_some_and(|rope| rope.barrier);
                }
                _ => self.node(node, shape, &mut lowered)?,
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

    /// Whether only the following attention reads the result of the node at `i`, so that one kernel can compute both.
    fn rotates_for_attention(&self, i: usize) -> bool {
        let (Some(node), Some(next)) = (self.plan.nodes.get(i), self.plan.nodes.get(i + 1)) else { return false };
        let PlanOp::RopeStore(RopeStore { cache, .. }) = node.op else { return false };
        let readers = self.plan.nodes.iter().filter(|other| other.reads().any(|read| read == node.out)).count();
        readers == 1 && next.inputs[..] == [node.out] && next.op.signature().reads == Some(cache)
    }

    /// The most rows of a node, and the word of the step's buffer with the actual number.
    fn rows(&self, node: &PlanNode, shape: Shape) -> (usize, &'static str) {
        match self.plan.values[node.out.0].rows {
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
        let of_head = self.plan.head.map(|head| [head.hidden, head.logits, head.next]);
        let read = [self.plan.logits, self.plan.hidden.value].into_iter().chain(of_head.into_iter().flatten());
        let is_read = read.into_iter().any(|read| self.plan.root(read).0 == value);
        if !self.single || is_read {
            return None;
        }
        self.plan.selected_from(value)
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

    fn launch(&mut self, out: &mut Lowered, kernel: Kernel, bindings: Vec<(Memory, usize)>, groups: [usize; 3]) {
        let kernel = self.kernel(kernel);
        out.launches.push(Launch { kernel, bindings, groups, barrier: out.barrier, ops: 0..0 });
    }

    /// Any node but attention.
    fn node(&mut self, node: &PlanNode, shape: Shape, out: &mut Lowered) -> Result<(), DeviceError> {
        let rows = self.rows(node, shape);
        match &node.op {
            PlanOp::Linear(Linear { experts: Some(experts), matrices, gate, .. }) => {
                self.experts(node, matrices, *experts, *gate, rows, out)
            }
            PlanOp::Linear(linear) => self.linear(node, linear, rows, out),
            PlanOp::RopeStore(op) => self.rope_store(node, op, rows.0, out),
            PlanOp::Gate(gate) => self.elementwise(node, Function::Gate(*gate), rows, out),
            PlanOp::Plain(op) => match *op {
                Op::Embed { weight, scale, by } => self.embed(node, weight, scale, by, rows.0, out),
                Op::Norm(norm) => self.norm(node, &norm, rows, out),
                Op::Route(route) => self.route(node, &route, rows, out),
                Op::Combine { experts, weighted } => self.combine(node, experts, weighted, rows, out),
                Op::Weigh(experts) => self.weigh(node, experts, rows, out),
                Op::Temper(how) => self.elementwise(node, Function::Temper(how), rows, out),
                Op::Rope { rope, head_dim } => self.rope(node, rope, head_dim, rows.0, out),
                Op::Store(cache) => self.store(node, cache, rows.0, out),
                Op::Activate(activation) => self.elementwise(node, Function::Activate(activation), rows, out),
                Op::Mul => self.elementwise(node, Function::Mul, rows, out),
                Op::Add => self.elementwise(node, Function::Add, rows, out),
                Op::Scale(factor) => self.elementwise(node, Function::Scale(factor), rows, out),
                Op::SoftCap(cap) => self.elementwise(node, Function::SoftCap(cap), rows, out),
                Op::Slice(first) => self.elementwise(node, Function::Slice(first), rows, out),
                Op::Select => self.elementwise(node, Function::Select, rows, out),
                Op::Conv(how) => self.conv(node, &how, shape, out),
                Op::LinearAttention(how) => self.linear_attention(node, &how, shape, out),
                Op::Affine(how) => self.affine(node, &how, rows, out),
                // Attention is lowered before, and plans have other ops for the others.
                Op::Attention(_) | Op::Linear { .. } | Op::ClampedSwish => {
                    Err(self.unsupported(format!("{} as it stands in a graph", op.signature().name)))
                }
            },
        }
    }

    /// The place of a vector; an arbitrary place if there is none to be read.
    fn vector(&self, vector: Option<Vector>) -> Result<(Memory, usize), DeviceError> {
        let Some(vector) = vector else { return Ok((Memory::Weights, 0)) };
        let missing = || DeviceError::Failed(format!("{vector:?} has no place among the weights"));
        Ok((Memory::Weights, self.weights.vector_at(vector).ok_or_else(missing)?))
    }
}

/// An f32 that C++ parses back exactly.
struct Float(f32);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e}f", self.0)
    }
}
