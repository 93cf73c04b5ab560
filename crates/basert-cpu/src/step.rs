//! A plan bound to the CPU, and how a step runs through it.
//!
//! All workers run through the list of ops together. Within an op they divide rows, columns, heads or pages by shares
//! with work stealing; between ops that depend on each other is a barrier. None of this changes a result: each output
//! has one order of operations on any worker.

mod attention;
mod elementwise;
mod embed;
mod experts;
mod heads;
mod linear;
mod norm;
mod recurrent;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_graph::{Op, Rows as RowClass, ValueId};
use basert_plan::{Baked, DeviceError, Pass, Place, Plan, PlanNode, PlanOp, Span, StepState};

pub(crate) use self::experts::Uses;
pub(crate) use self::heads::RopeTable;
pub(crate) use self::recurrent::state_scratch;
use crate::attention::Scratch;
use crate::contention::{Contention, MEMORY_BOUND_TOKENS};
use crate::device::Binder;
use crate::kv::{KvLayer, PAGE};
use crate::{Buffer, Counter, Isa, PackedMatrix, Pool, Rows, Worker};

/// A value's place, and which tokens it has rows for.
type Output = (Place, RowClass);

/// An op with everything it needs except the step.
pub(crate) trait Kernel: Send + Sync {
    /// This worker's part of the op.
    ///
    /// # Safety
    /// No op that uses the same memory is running, except the other workers' parts of this one, and the counters of
    /// `op` hand out each piece of its work once.
    unsafe fn run(&self, run: &Run, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch);

    /// Whether it uses the memory of prepared inputs.
    fn prepares(&self) -> bool {
        false
    }
}

/// The kernel of a node. Matrices are those of `packed`.
pub(crate) fn bind(
    binder: &Binder,
    node: &PlanNode,
    packed: &[Vec<Arc<PackedMatrix>>],
) -> Result<Box<dyn Kernel>, DeviceError> {
    match &node.op {
        PlanOp::Linear(linear) if linear.experts.is_some() => experts::bind(binder, node, linear, packed),
        PlanOp::Linear(linear) => linear::bind(binder, node, linear, packed),
        PlanOp::RopeStore(op) => heads::bind_rope_store(binder, node, op),
        PlanOp::Gate(gate) => Ok(elementwise::bind(binder, node, elementwise::Function::Gate(*gate))),
        PlanOp::Plain(op) => match *op {
            Op::Embed { weight, scale, by } => embed::bind(binder, node, weight, scale, by),
            Op::Norm(norm) => norm::bind(binder, node, &norm),
            Op::Route(route) => experts::bind_route(binder, node, route),
            Op::Combine { experts, weighted } => Ok(experts::bind_combine(binder, node, experts, weighted)),
            Op::Weigh(experts) => Ok(experts::bind_weigh(binder, node, experts)),
            Op::Temper(how) => Ok(elementwise::bind_temper(binder, node, how)),
            Op::Rope { rope, head_dim } => Ok(heads::bind_rope(binder, node, rope, head_dim)),
            Op::Store(cache) => Ok(heads::bind_store(binder, node, cache)),
            Op::Attention(attention) => attention::bind(binder, node, &attention),
            Op::Conv(how) => recurrent::bind_conv(binder, node, &how),
            Op::LinearAttention(how) => Ok(recurrent::bind_linear_attention(binder, node, how)),
            Op::Affine(how) => elementwise::bind_affine(binder, node, &how),
            Op::Activate(activation) => {
                Ok(elementwise::bind(binder, node, elementwise::Function::Activate(activation)))
            }
            Op::Mul => Ok(elementwise::bind(binder, node, elementwise::Function::Mul)),
            Op::Add => Ok(elementwise::bind(binder, node, elementwise::Function::Add)),
            Op::Scale(factor) => Ok(elementwise::bind(binder, node, elementwise::Function::Scale(factor))),
            Op::SoftCap(cap) => Ok(elementwise::bind(binder, node, elementwise::Function::SoftCap(cap))),
            Op::Slice(first) => Ok(elementwise::bind_slice(binder, node, first)),
            Op::Select => Ok(elementwise::bind_select(binder, node)),
            // Plans have other ops for these.
            Op::Linear { .. } | Op::ClampedSwish => Err(binder.unsupported("an op that plans replace".to_owned())),
        },
    }
}

/// The pages of a group in the KV cache.
#[derive(Clone, Copy)]
pub(crate) struct GroupPlace {
    /// First byte of the first page.
    pub start: usize,
    pub pages: usize,
    pub page_bytes: usize,
}

impl GroupPlace {
    /// The bytes of a page.
    fn page(&self, page: u32) -> Range<usize> {
        let start = self.start + page as usize * self.page_bytes;
        start..start + self.page_bytes
    }
}

/// The place of a layer's keys and values in a page.
#[derive(Clone, Copy)]
pub(crate) struct CachePlace {
    /// Its page group.
    pub group: usize,
    /// Bytes from the start of the page.
    pub offset: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// An op of the bound plan.
pub(crate) struct Bound {
    pub kernel: Box<dyn Kernel>,
    /// Whether all earlier ops must be complete.
    pub barrier: bool,
    /// Divides its work.
    pub work: Counter,
    /// Divides the preparation of its input.
    pub prepare: Counter,
}

/// Memory that all workers use.
pub(crate) struct Shared {
    pub arena: Buffer,
    pub cache: Buffer,
    /// The slots of running states.
    pub states: Buffer,
    /// Inputs of a linear op, normed and quantised.
    pub prepared: (Buffer, Buffer),
    pub partials: Buffer,
}

/// Memory of one worker.
pub(crate) struct WorkerScratch {
    /// A row of any value.
    pub row: Vec<f32>,
    /// A row of the embedding table, as the file has it.
    pub embedding: Vec<u8>,
    /// The input of a linear op with a single row.
    pub row_floats: Vec<f32>,
    pub row_quantised: Buffer,
    /// Panels of weights, expanded.
    pub panels: Buffer,
    /// Which tokens use which experts.
    pub uses: Uses,
    /// None where no op is attention.
    pub attention: Option<Scratch>,
    /// The part of a running state that it works on.
    pub state: Vec<f32>,
}

/// A plan bound to the CPU.
pub(crate) struct CpuBaked {
    pub pool: Arc<Pool>,
    pub isa: Isa,
    pub plan: Arc<Plan>,
    pub file: Arc<ModelFile>,
    pub ops: Vec<Bound>,
    /// The ops after the plan's [`basert_plan::Hidden::after`] ops when hidden states are wanted.
    pub hidden: Vec<Bound>,
    pub shared: Shared,
    /// Pages of each group.
    pub pages: Vec<usize>,
    pub groups: Vec<GroupPlace>,
    pub slots: usize,
    pub kv: KvFormat,
    /// For each group the page, and the place in it, of the keys and values of each token of a step.
    pub places: Vec<Vec<(usize, usize)>>,
    pub ropes: Vec<RopeTable>,
    pub workers: Vec<WorkerScratch>,
    /// The number of workers for memory-bound steps of a few tokens.
    pub contention: Contention,
    /// The step whose results can be read.
    pub last: Pass,
}

impl CpuBaked {
    fn row(&self, value: ValueId, i: usize) -> &[f32] {
        let Place { offset, stride, column, width } = self.plan.places[value.0];
        let first = offset / size_of::<f32>() + i * stride + column;
        &bytemuck::cast_slice(&self.shared.arena)[first..first + width]
    }

    /// Runs a step. Each worker calls `before` ahead of each op: it must separate ops between which the plan has a
    /// barrier.
    fn run(&mut self, step: &StepState, before: impl Fn(usize, &Bound, &Worker) + Sync) -> Result<(), DeviceError> {
        step.check(&self.plan, (&self.pages, self.slots), PAGE)?;
        let of_model = self.plan.model().len();
        let (ops, more) = match step.pass {
            Pass::Logits => (&self.ops[..of_model], &[][..]),
            Pass::Hidden => (&self.ops[..self.plan.hidden.after], &self.hidden[..]),
            Pass::Head => (&self.ops[of_model..], &[][..]),
        };
        // A step of the head that wants nothing leaves what can be read of the step before.
        if step.pass != Pass::Head || !step.wanted.is_empty() {
            self.last = step.pass;
        }
        for op in ops.iter().chain(more) {
            op.work.reset();
            op.prepare.reset();
        }
        self.ropes.iter_mut().for_each(|rope| rope.fill(&step.positions));
        for (group, places) in self.places.iter_mut().enumerate() {
            places.clear();
            for sequence in &step.sequences {
                let pages = &step.page_table(group)[sequence.pages.clone()];
                let positions = step.positions[sequence.rows.clone()].iter().map(|&position| position as usize);
                places.extend(positions.map(|position| (pages[position / PAGE] as usize, position % PAGE)));
            }
        }
        if let (Pass::Head, Some(head)) = (step.pass, self.plan.head) {
            let Place { offset, width, .. } = self.plan.places[head.given.0];
            let given = &mut self.shared.arena[offset..][..step.tokens.len() * width * size_of::<f32>()];
            given.copy_from_slice(bytemuck::cast_slice(&step.given));
        }
        let run = Run {
            isa: self.isa,
            step,
            places: &self.places,
            file: &self.file,
            ropes: &self.ropes,
            arena: self.shared.arena.as_mut_ptr(),
            cache: self.shared.cache.as_mut_ptr(),
            states: self.shared.states.as_mut_ptr().cast(),
            slot_values: self.plan.graph.slot_bytes() / size_of::<f32>(),
            groups: &self.groups,
            kv: self.kv,
            prepared: (self.shared.prepared.0.as_mut_ptr().cast(), self.shared.prepared.1.as_mut_ptr()),
            partials: (self.shared.partials.as_mut_ptr().cast(), self.shared.partials.len() / size_of::<f32>()),
            workers: self.workers.as_mut_ptr(),
            damaged: AtomicU32::new(u32::MAX),
        };
        let memory_bound = step.tokens.len() <= MEMORY_BOUND_TOKENS;
        let start = Instant::now();
        let workers = if memory_bound { self.contention.workers(start) } else { self.pool.threads() };
        let result = self.pool.run_with(workers, |worker| {
            // SAFETY: each worker takes the scratch of its own index, and there are as many as workers.
            let scratch = unsafe { &mut *run.workers.add(worker.index()) };
            for (i, op) in ops.iter().chain(more).enumerate() {
                before(i, op, worker);
                // SAFETY: `before` separates ops that use the same memory, as the plan does, and the counters of an op
                // hand out each piece of its work once.
                unsafe { op.kernel.run(&run, op, worker, scratch) };
            }
        });
        let waited = result.map_err(|error| DeviceError::Failed(error.to_string()))?;
        if memory_bound {
            let now = Instant::now();
            self.contention.ran(now, now - start, waited);
        }
        match run.damaged.load(Ordering::Relaxed) {
            u32::MAX => Ok(()),
            token => Err(DeviceError::Failed(format!(
                "the embedding of token {token} is not finite, or cannot be read: was the model's file written to?"
            ))),
        }
    }
}

impl Baked for CpuBaked {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        self.run(step, |_, op, worker| {
            if op.barrier {
                worker.barrier();
            }
        })
    }

    fn profile(&mut self, step: &StepState) -> Result<Vec<Span>, DeviceError> {
        let plan = self.plan.clone();
        let begins: Vec<_> = plan.model().iter().map(|_| AtomicU64::new(u64::MAX)).collect();
        let start = Instant::now();
        self.run(step, |i, _, worker| {
            worker.barrier();
            // An op begins when the first worker begins it.
            begins[i].fetch_min(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        })?;
        let end = start.elapsed().as_secs_f64();
        let begins: Vec<f64> = begins.into_iter().map(|begin| begin.into_inner() as f64 / 1e9).collect();
        let ends = begins.iter().copied().skip(1).chain([end]);
        let span = |(i, (&begin, end))| {
            let node: &PlanNode = &plan.nodes[i];
            Span { ops: i..i + 1, kernel: node.name(), begin, seconds: end - begin }
        };
        Ok(begins.iter().zip(ends).enumerate().map(span).collect())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn divide(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> Result<(), DeviceError> {
        if count < 2 {
            (0..count).for_each(work);
            return Ok(());
        }
        let counter = Counter::new(self.pool.threads());
        let result = self.pool.run(|worker| worker.chunks(&counter, count, 1).flatten().for_each(work));
        result.map_err(|error| DeviceError::Failed(error.to_string()))
    }

    fn logits(&self, i: usize) -> &[f32] {
        match (self.last, self.plan.head) {
            (Pass::Head, Some(head)) => self.row(head.logits, i),
            _ => self.row(self.plan.logits, i),
        }
    }

    fn for_head(&self, i: usize) -> &[f32] {
        match (self.last, self.plan.head) {
            (Pass::Head, Some(head)) => self.row(head.next, i),
            (_, Some(head)) => self.row(head.hidden, i),
            (_, None) => &[],
        }
    }

    fn hidden(&self, i: usize) -> &[f32] {
        self.row(self.plan.hidden.value, i)
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        let group = self.groups[group];
        self.shared.cache.copy_within(group.page(from), group.page(to).start);
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.groups[group].page_bytes
    }

    fn read_page(&mut self, group: usize, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.shared.cache[self.groups[group].page(page)]);
        Ok(())
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.cache[self.groups[group].page(page)].copy_from_slice(bytes);
        Ok(())
    }

    fn read_slot(&mut self, slot: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.shared.states[slot as usize * bytes.len()..][..bytes.len()]);
        Ok(())
    }

    fn write_slot(&mut self, slot: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.states[slot as usize * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn discard_page(&mut self, group: usize, page: u32) {
        self.shared.cache.discard(self.groups[group].page(page));
    }
}

/// What the workers share during a step.
pub(crate) struct Run<'a> {
    isa: Isa,
    step: &'a StepState,
    file: &'a ModelFile,
    /// See [`CpuBaked::places`].
    places: &'a [Vec<(usize, usize)>],
    ropes: &'a [RopeTable],
    arena: *mut u8,
    cache: *mut u8,
    states: *mut f32,
    /// Values of a slot.
    slot_values: usize,
    groups: &'a [GroupPlace],
    kv: KvFormat,
    /// f32 and quantised.
    prepared: (*mut f32, *mut u8),
    /// With how many values there are.
    partials: (*mut f32, usize),
    workers: *mut WorkerScratch,
    /// A token whose embedding is not finite, or `u32::MAX`.
    damaged: AtomicU32,
}

// SAFETY: the pointers lead to memory that the submitting thread borrows mutably for the whole run; the workers exclude
// data races as `run` says.
unsafe impl Sync for Run<'_> {}

/// Rows in a piece of work of row-wise ops.
const ROWS: usize = 4;

impl Run<'_> {
    fn tokens(&self) -> usize {
        self.step.tokens.len()
    }

    fn count(&self, rows: RowClass) -> usize {
        match rows {
            RowClass::Tokens => self.tokens(),
            RowClass::Wanted => self.step.wanted.len(),
        }
    }

    fn view(&self, place: Place, rows: usize) -> Rows<'_> {
        // SAFETY: the arena has room for the plan's limits, within which the step is.
        unsafe {
            let start = self.arena.add(place.offset).cast::<f32>().add(place.column);
            Rows::from_raw(start, rows, place.width, place.stride)
        }
    }

    fn layer(&self, cache: CachePlace) -> KvLayer<'_> {
        let GroupPlace { start, pages, page_bytes } = self.groups[cache.group];
        // SAFETY: every page has room for all layers of its group, and this one's begins at its offset.
        unsafe {
            let start = self.cache.add(start + cache.offset);
            KvLayer::from_raw(start, pages, page_bytes, self.kv, cache.kv_heads, cache.head_dim)
        }
    }
}
