//! A plan bound to the CPU, and how a step runs through it.
//!
//! All workers run through the list of ops together. Within an op they divide rows, columns, heads or pages by shares
//! with work stealing; between ops that depend on each other is a barrier. None of this changes a result: each output
//! has one order of operations on any worker.

mod attention;
mod experts;
mod rope;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use basert_core::{KvFormat, codec};
use basert_files::ModelFile;
use basert_graph::{Activation, Rows as RowClass, ValueId};
use basert_plan::{Baked, DeviceError, Place, Plan, PlannedOp, Span, StepState};

pub(crate) use self::experts::{BoundExperts, Uses};
pub(crate) use self::rope::RopeTable;
use crate::attention::{Attention, Scratch};
use crate::contention::{Contention, MEMORY_BOUND_TOKENS};
use crate::dot::unexpanded_rows;
use crate::elementwise::BoundNorm;
use crate::kv::{KvLayer, PAGE};
use crate::tiles::TILE;
use crate::{
    Buffer, Counter, Epilogue, FloatRows, Input, Isa, PackedMatrix, Pool, QuantisedRows, RowBlocks, Rows, Worker,
};
use crate::{elementwise, linear};

/// A value's place, and which tokens it has rows for.
type Output = (Place, RowClass);

/// An op with everything it needs except the step.
pub(crate) enum Kernel {
    Embed {
        tensor: String,
        scale: f32,
        out: Place,
    },
    Norm {
        x: Place,
        norm: BoundNorm,
        add: bool,
        out: Output,
    },
    Linear(BoundLinear),
    Experts(BoundExperts),
    Route {
        x: Place,
        normalised: bool,
        out: Output,
    },
    Combine {
        x: Place,
        route: Place,
        add: bool,
        out: Output,
    },
    RopeCache {
        q: Place,
        k: Place,
        v: Place,
        q_norm: Option<BoundNorm>,
        k_norm: Option<BoundNorm>,
        rope: usize,
        cache: CachePlace,
        out: Place,
    },
    Attention {
        q: Place,
        attention: Attention,
        sinks: Option<Vec<f32>>,
        cache: CachePlace,
        out: Place,
    },
    Gate {
        gate: Place,
        up: Place,
        activation: Activation,
        out: Output,
    },
    Add {
        a: Place,
        b: Place,
        out: Output,
    },
    Select {
        x: Place,
        out: Place,
    },
    SoftCap {
        x: Place,
        cap: f32,
        out: Output,
    },
}

/// A linear op: matrices whose outputs are concatenated, with their biases and columns of the output.
pub(crate) struct BoundLinear {
    pub x: Place,
    pub norm: Option<BoundNorm>,
    pub parts: Vec<(PackedMatrix, Option<Vec<f32>>, Range<usize>)>,
    pub epilogue: Epilogue,
    pub out: Output,
}

/// The place of a layer's keys and values in a page.
#[derive(Clone, Copy)]
pub(crate) struct CachePlace {
    /// Bytes from the start of the page.
    pub offset: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// An op of the bound plan.
pub(crate) struct Bound {
    pub kernel: Kernel,
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
    /// Inputs of a linear op, normed and quantised.
    pub prepared: (Buffer, Buffer),
    pub partials: Buffer,
}

/// Memory of one worker.
pub(crate) struct WorkerScratch {
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
    pub pages: usize,
    /// Bytes of a page, all layers together.
    pub page_bytes: usize,
    pub kv: KvFormat,
    /// Page, and place in it, of the keys and values of each token of a step.
    pub slots: Vec<(usize, usize)>,
    pub ropes: Vec<RopeTable>,
    pub workers: Vec<WorkerScratch>,
    /// The number of workers for memory-bound steps of a few tokens.
    pub contention: Contention,
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
        step.check(&self.plan, self.pages, PAGE)?;
        let (ops, more) = match step.hidden {
            true => (&self.ops[..self.plan.hidden.after], &self.hidden[..]),
            false => (&self.ops[..], &[][..]),
        };
        for op in ops.iter().chain(more) {
            op.work.reset();
            op.prepare.reset();
        }
        self.ropes.iter_mut().for_each(|rope| rope.fill(&step.positions));
        self.slots.clear();
        for sequence in &step.sequences {
            let pages = &step.page_table[sequence.pages.clone()];
            let positions = step.positions[sequence.rows.clone()].iter().map(|&position| position as usize);
            self.slots.extend(positions.map(|position| (pages[position / PAGE] as usize, position % PAGE)));
        }
        let run = Run {
            isa: self.isa,
            step,
            slots: &self.slots,
            file: &self.file,
            ropes: &self.ropes,
            arena: self.shared.arena.as_mut_ptr(),
            cache: self.shared.cache.as_mut_ptr(),
            pages: self.pages,
            page_bytes: self.page_bytes,
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
                unsafe { run.execute(op, worker, scratch) };
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
        let begins: Vec<_> = plan.ops.iter().map(|_| AtomicU64::new(u64::MAX)).collect();
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
            let op: &PlannedOp = &plan.ops[i];
            Span { ops: i..i + 1, kernel: op.op.name(), begin, seconds: end - begin }
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
        self.row(self.plan.logits, i)
    }

    fn hidden(&self, i: usize) -> &[f32] {
        self.row(self.plan.hidden.value, i)
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        let bytes = self.page_bytes;
        let from = from as usize * bytes;
        self.shared.cache.copy_within(from..from + bytes, to as usize * bytes);
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn read_page(&mut self, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.shared.cache[page as usize * self.page_bytes..][..self.page_bytes]);
        Ok(())
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.cache[page as usize * self.page_bytes..][..self.page_bytes].copy_from_slice(bytes);
        Ok(())
    }

    fn discard_page(&mut self, page: u32) {
        let from = page as usize * self.page_bytes;
        self.shared.cache.discard(from..from + self.page_bytes);
    }
}

/// What the workers share during a step.
struct Run<'a> {
    isa: Isa,
    step: &'a StepState,
    file: &'a ModelFile,
    /// See [`CpuBaked::slots`].
    slots: &'a [(usize, usize)],
    ropes: &'a [RopeTable],
    arena: *mut u8,
    cache: *mut u8,
    pages: usize,
    page_bytes: usize,
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

/// Values in a piece of work of element-wise ops.
const COLUMNS: usize = 4096;
/// Rows in a piece of work of row-wise ops.
const ROWS: usize = 4;
/// Up to this number of values, every worker prepares the input of a linear op for itself instead of waiting for
/// others.
const OWN_INPUT: usize = 8192;

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
        // SAFETY: every page has room for all layers, and this one's begins at its offset.
        unsafe {
            let start = self.cache.add(cache.offset);
            KvLayer::from_raw(start, self.pages, self.page_bytes, self.kv, cache.kv_heads, cache.head_dim)
        }
    }

    /// This worker's part of an op.
    ///
    /// # Safety
    /// No op that uses the same memory is running, except the other workers' parts of this one.
    unsafe fn execute(&self, op: &Bound, worker: &Worker, scratch: &mut WorkerScratch) {
        // SAFETY: guaranteed by the caller, and each piece of work is handed out once.
        unsafe {
            match op.kernel {
                Kernel::Embed { ref tensor, scale, out } => {
                    self.embed(op, worker, tensor, (scale, out), &mut scratch.embedding)
                }
                Kernel::Norm { x, ref norm, add, out } => {
                    let (x, out) = (self.view(x, self.count(out.1)), self.view(out.0, self.count(out.1)));
                    for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
                        if add {
                            let scratch = &mut scratch.row[..out.cols()];
                            norm.apply(self.isa, x.row(row), scratch);
                            elementwise::add(self.isa, out.row_mut(row), scratch);
                        } else {
                            norm.apply(self.isa, x.row(row), out.row_mut(row));
                        }
                    }
                }
                Kernel::Linear(ref bound) => self.linear(op, bound, worker, scratch),
                Kernel::Experts(ref bound) => self.experts(op, bound, worker, scratch),
                Kernel::Route { x, normalised, out } => {
                    let (x, out) = (self.view(x, self.count(out.1)), self.view(out.0, self.count(out.1)));
                    for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
                        experts::route(x.row(row), normalised, out.row_mut(row));
                    }
                }
                Kernel::Combine { x, route, add, out } => {
                    let rows = self.count(out.1);
                    let (x, route, out) = (self.view(x, rows), self.view(route, rows), self.view(out.0, rows));
                    for row in worker.chunks(&op.work, rows, 1).flatten() {
                        let sums = &mut scratch.row[..out.cols()];
                        experts::combine(x.row(row), route.row(row), sums);
                        let out = out.row_mut(row);
                        if add { elementwise::add(self.isa, out, sums) } else { out.copy_from_slice(sums) }
                    }
                }
                Kernel::RopeCache { .. } => self.rope_cache(op, worker),
                Kernel::Attention { q, ref attention, ref sinks, cache, out } => {
                    if let Some(scratch) = &mut scratch.attention {
                        let sinks = sinks.as_deref();
                        self.attention(op, worker, scratch, attention, sinks, self.layer(cache), (q, out));
                    }
                }
                Kernel::Gate { gate, up, activation, out } => self.columns(op, worker, out, |range, row| {
                    let up = self.view(up, row + 1).columns(range.clone()).row(row);
                    let out = self.copied(gate, out, range, row);
                    elementwise::gate(self.isa, activation, out, up);
                }),
                Kernel::Add { a, b, out } => self.columns(op, worker, out, |range, row| {
                    let b = self.view(b, row + 1).columns(range.clone()).row(row);
                    elementwise::add(self.isa, self.copied(a, out, range, row), b);
                }),
                Kernel::SoftCap { x, cap, out } => self.columns(op, worker, out, |range, row| {
                    elementwise::soft_cap(self.isa, self.copied(x, out, range, row), cap);
                }),
                Kernel::Select { x, out } => {
                    let (x, out) = (self.view(x, self.tokens()), self.view(out, self.step.wanted.len()));
                    for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
                        out.row_mut(row).copy_from_slice(x.row(self.step.wanted[row] as usize));
                    }
                }
            }
        }
    }

    /// Calls `f` for parts of rows, each once.
    unsafe fn columns(&self, op: &Bound, worker: &Worker, out: Output, f: impl Fn(Range<usize>, usize)) {
        let parts = out.0.width.div_ceil(COLUMNS);
        for part in worker.chunks(&op.work, parts * self.count(out.1), 1).flatten() {
            let (row, first) = (part / parts, part % parts * COLUMNS);
            f(first..out.0.width.min(first + COLUMNS), row);
        }
    }

    /// Columns of a row of `out`, holding what `x` has there.
    ///
    /// # Safety
    /// Nobody else uses them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn copied(&self, x: Place, out: Output, range: Range<usize>, row: usize) -> &mut [f32] {
        let (from, to) = (self.view(x, row + 1), self.view(out.0, row + 1));
        // SAFETY: guaranteed by the caller; and where the two are the same memory, nothing is copied.
        unsafe {
            if from.row_ptr(row) == to.row_ptr(row) {
                return to.columns(range).row_mut(row);
            }
            let out = to.columns(range.clone()).row_mut(row);
            out.copy_from_slice(from.columns(range).row(row));
            out
        }
    }

    /// Rows are read from the file and not from its mapping: a file that was written to or shortened since it was opened
    /// is an error of the step, where a mapping of it would end the process.
    unsafe fn embed(&self, op: &Bound, worker: &Worker, tensor: &str, (scale, out): (f32, Place), scratch: &mut [u8]) {
        let out = self.view(out, self.tokens());
        for row in worker.chunks(&op.work, out.rows(), ROWS).flatten() {
            let token = self.step.tokens[row];
            // SAFETY: guaranteed by the caller.
            let values = unsafe { out.row_mut(row) };
            let decoded = self.file.tensor(tensor).and_then(|tensor| {
                let len = tensor.format.row_bytes(values.len()).ok()?;
                let bytes = scratch.get_mut(..len)?;
                self.file.read(tensor.name, token as usize * len, bytes).ok()?;
                codec::decode(tensor.format, bytes, values).ok()
            });
            if decoded.is_none() || values.iter().any(|x| !x.is_finite()) {
                self.damaged.store(token, Ordering::Relaxed);
            }
            if scale != 1.0 {
                elementwise::scale(self.isa, values, scale);
            }
        }
    }

    unsafe fn linear(&self, op: &Bound, bound: &BoundLinear, worker: &Worker, scratch: &mut WorkerScratch) {
        let rows = self.count(bound.out.1);
        if rows == 0 {
            return;
        }
        let (x, out) = (self.view(bound.x, rows), self.view(bound.out.0, rows));
        let any = |quantised| bound.parts.iter().any(|(matrix, ..)| matrix.wants_quantised() == quantised);
        let (quantised, float) = (any(true), any(false));
        let own = rows == 1 && x.cols() <= OWN_INPUT;
        let memory =
            if own { (scratch.row_floats.as_mut_ptr(), scratch.row_quantised.as_mut_ptr()) } else { self.prepared };
        // SAFETY: prepared inputs have room for the widest; a worker's own are its own.
        let floats = float.then(|| unsafe { FloatRows::from_raw(memory.0, rows, x.cols()) });
        // SAFETY: as above.
        let codes = quantised.then(|| unsafe { QuantisedRows::from_raw(memory.1, rows, x.cols()) });
        let mut prepare = |row: usize| {
            // SAFETY: each row is prepared by one worker, or by each for itself.
            unsafe {
                let mut values = x.row(row);
                if let Some(norm) = &bound.norm {
                    norm.apply(self.isa, values, &mut scratch.row[..x.cols()]);
                    values = &scratch.row[..x.cols()];
                }
                if let Some(codes) = codes {
                    codes.write(self.isa, row, values);
                }
                if let Some(floats) = floats {
                    floats.write(row, values);
                }
            }
        };
        if own {
            prepare(0);
        } else {
            worker.chunks(&op.prepare, rows, TILE).flatten().for_each(prepare);
            worker.barrier();
        }

        let (codes, floats) = (codes.map(Input::Quantised), floats.map(Input::Float));
        let Some(blocks) = floats.or(codes).map(RowBlocks::of) else { return };
        let units: usize = bound.parts.iter().map(|(matrix, ..)| matrix.units()).sum();
        // Many rows are multiplied by two panels at a time.
        let many = bound.parts.iter().any(|(matrix, ..)| rows > unexpanded_rows(self.isa, matrix.format()));
        let step = if many { 2 } else { 1 };
        for (block, units) in worker.products(&op.work, blocks.len(), units, step) {
            let mut first = 0;
            for (matrix, bias, columns) in &bound.parts {
                let start = units.start.max(first) - first;
                let end = units.end.min(first + matrix.units()).saturating_sub(first);
                first += matrix.units();
                let Some(input) = (if matrix.wants_quantised() { codes } else { floats }) else { continue };
                if start < end {
                    let (rows, out) = (blocks.get(block), out.columns(columns.clone()));
                    // SAFETY: the columns of a unit, in the rows of a block, are computed by the worker that took it.
                    unsafe {
                        let (bias, panels) = (bias.as_deref(), &mut scratch.panels);
                        linear(self.isa, matrix, start..end, input, rows, bias, bound.epilogue, out, None, panels);
                    }
                }
            }
        }
    }
}
