//! A GPU as a [`Device`]: what it is, and how a plan is bound to it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_graph::ValueId;
use basert_plan::{
    Baked, Device, DeviceError, Draw, Facts, Fit, LoadOptions, Place, Plan, Span, Stage, StepState, largest,
};

use crate::cache::CacheKey;
use crate::lower::{CHAIN, CacheLayout, Launch, Lowering, Memory};
use crate::shape::{AttentionKind, Outcome, Shape, classes};
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::{BringError, Resident, Weights};
use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};

/// A GPU.
pub struct GpuDevice<G> {
    gpu: Arc<Mutex<G>>,
    facts: Facts,
    tuning: Tuning,
    cores: usize,
}

impl<G: Gpu> GpuDevice<G> {
    /// This one, with the table that was measured on it, or the one that comes with the project.
    ///
    /// # Errors
    /// When the measured table is not well-formed.
    pub fn new(gpu: G) -> Result<GpuDevice<G>, GpuError> {
        let tuning = Tuning::of_device(gpu.facts())?;
        Ok(GpuDevice::with_tuning(gpu, tuning))
    }

    /// This one, with kernels chosen from this table.
    pub fn with_tuning(gpu: G, tuning: Tuning) -> GpuDevice<G> {
        let found = gpu.facts();
        let cores = found.cores.max(1);
        let facts = Facts {
            name: found.name.clone(),
            description: found.description.clone(),
            page_tokens: PAGE,
            layout: layout(found, &tuning),
            step_tokens: tuning.step_tokens,
            chain: CHAIN,
            bounds: found.bounds,
            free_memory: found.free_memory,
        };
        GpuDevice { gpu: Arc::new(Mutex::new(gpu)), facts, tuning, cores }
    }
}

/// Sums have the order that kernels give them, and what kernels there are depends on the device and its tuning.
fn layout(facts: &GpuFacts, tuning: &Tuning) -> String {
    let depends_on = [facts.description.clone(), format!("{tuning:?}")];
    format!("{} 2 {}", facts.tuning, CacheKey::new(depends_on))
}

/// All that is known of a plan on a device before anything is allocated: a pure function of the plan.
pub(crate) struct Lowered {
    pub weights: Weights,
    pub step: StepLayout,
    /// The launches of every shape of step.
    pub shapes: BTreeMap<Shape, Vec<Launch>>,
    pub kernels: Vec<Kernel>,
    pub prepared_bytes: usize,
    pub partial_bytes: usize,
    pub cache: CacheLayout,
}

impl Lowered {
    /// Lowers a plan for a device of so many `cores`.
    pub fn new(
        plan: &Plan,
        tuning: &Tuning,
        kv: KvFormat,
        pages: &[usize],
        cores: usize,
        device: &str,
    ) -> Result<Lowered, DeviceError> {
        let weights = Weights::new(plan, device)?;
        let (step, cache) = (StepLayout::new(plan, pages[0]), CacheLayout::new(plan, kv, pages));
        let mut lowering = Lowering::new(plan, &weights, tuning, (step, &cache), cores, device);
        let mut shapes = BTreeMap::new();
        let mut outcomes = vec![Outcome::Logits, Outcome::Hidden, Outcome::Tokens];
        if plan.graph.slot_bytes() == 0 {
            outcomes.push(Outcome::Chained);
        }
        if plan.head.is_some() {
            outcomes.push(Outcome::Head);
        }
        for tokens in classes(plan.limits.tokens) {
            for wanted in classes(plan.limits.wanted).into_iter().chain([0]) {
                for attention in AttentionKind::ALL {
                    for &outcome in &outcomes {
                        for alone in [false, true] {
                            let shape = Shape { tokens, wanted, attention, outcome, alone };
                            if shape.is_used(plan) && (!alone || kv == KvFormat::F16) {
                                shapes.insert(shape, lowering.lower(shape)?);
                            }
                        }
                    }
                }
            }
        }
        for wanted in classes(plan.limits.wanted) {
            let shape = Shape::drawn(wanted);
            shapes.insert(shape, lowering.lower(shape)?);
        }
        let Lowering { kernels, prepared_bytes, partial_bytes, .. } = &lowering;
        let (kernels, prepared_bytes, partial_bytes) = (kernels.clone(), *prepared_bytes, *partial_bytes);
        Ok(Lowered { weights, step, shapes, kernels, prepared_bytes, partial_bytes, cache })
    }

    /// The memory that is needed beside the weights, the KV cache first.
    fn rooms(&self, plan: &Plan, slots: usize) -> [(Memory, usize, &'static str); Memory::COUNT - 1] {
        let wanted = plan.limits.wanted;
        [
            (Memory::Cache, self.cache.bytes, "the KV cache"),
            (Memory::Arena, plan.arena_bytes, "intermediate values"),
            (Memory::Step, self.step.words * size_of::<u32>(), "the state of a step"),
            (Memory::Prepared, self.prepared_bytes, "prepared inputs"),
            (Memory::Partial, self.partial_bytes, "partial attention"),
            (Memory::Histories, wanted * plan.graph.vocabulary * size_of::<u16>(), "histories of tokens"),
            (Memory::Drawn, wanted * CHAIN * size_of::<u32>(), "drawn tokens"),
            (Memory::Slots, slots.saturating_mul(plan.graph.slot_bytes()), "running states"),
        ]
    }

    /// Refuses what the device has no room for, before any of it is taken. `fixed` is what is needed beside the KV cache.
    fn check_memory(&self, plan: &Plan, pages: &[usize], fixed: usize, facts: &GpuFacts) -> Result<(), DeviceError> {
        let needed = fixed.saturating_add(self.cache.bytes);
        let Some(free) = facts.free_memory.filter(|&free| free < needed) else { return Ok(()) };
        let formats = KvFormat::ALL.into_iter().skip_while(|&other| other != self.cache.kv);
        let whole = |kv: &KvFormat| {
            *kv == KvFormat::F16 || plan.graph.caches().all(|cache| cache.head_dim.is_multiple_of(kv.block()))
        };
        let fit = |kv| {
            let bytes = |most: usize| {
                let fewer: Vec<usize> = pages.iter().map(|&pages| pages.min(most)).collect();
                plan.cache_bytes(&fewer, kv, PAGE)
            };
            let room = free.saturating_sub(fixed);
            Fit { kv, pages: largest(pages[0], |most| bytes(most) <= room) }
        };
        let fits = formats.filter(whole).map(fit).collect();
        Err(DeviceError::TooLarge { device: facts.name.clone(), needed, free, fits })
    }
}

impl<G: Gpu + 'static> Device for GpuDevice<G> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError> {
        let LoadOptions { pages, slots, kv, progress } = options;
        let lowered = Lowered::new(&plan, &self.tuning, kv, &pages, self.cores, &self.facts.name)?;
        let mut gpu = lock(&self.gpu);
        let gpu_ref = &mut *gpu;
        let name = &self.facts.name;
        let rooms = lowered.rooms(&plan, slots);
        let fixed = rooms[1..].iter().fold(lowered.weights.bytes, |sum, &(_, bytes, _)| sum.saturating_add(bytes));
        lowered.check_memory(&plan, &pages, fixed, gpu_ref.facts())?;

        let fail = |error| of_device(name, error);
        let kernels = lowered.kernels.len();
        let mut compiled = |ready| progress(Stage::Kernels, ready, kernels);
        let pipelines = gpu_ref.compile(&lowered.kernels, &mut compiled).map_err(fail)?;
        let weights = lowered.weights.bring(&plan, &file, gpu_ref, progress).map_err(|error| match error {
            BringError::Weights(error) => error,
            BringError::Gpu(error) => fail(error),
        })?;
        let sizes = rooms.map(|(_, bytes, what)| (bytes.max(16), what));
        let taken = gpu_ref.allocate_all(&sizes).map_err(fail)?;
        let mut buffers = Buffers { weights, others: [Buffer(u32::MAX); Memory::COUNT] };
        for ((memory, ..), buffer) in rooms.into_iter().zip(taken) {
            buffers.others[memory as usize] = buffer;
        }
        let words = vec![0; lowered.step.words];
        let width = plan.graph.vocabulary.max(plan.values[plan.hidden.value.0].width);
        let rows = vec![0.0; plan.limits.wanted * width];
        let width = plan.head.map_or(0, |head| plan.values[head.hidden.0].width);
        let for_head = vec![0.0; plan.limits.tokens.max(plan.limits.wanted) * width];
        Ok(Box::new(GpuBaked {
            gpu: self.gpu.clone(),
            name: name.clone(),
            plan,
            lowered,
            pipelines,
            buffers,
            recordings: BTreeMap::new(),
            pages,
            slots,
            words,
            last: LastStep::default(),
            under_way: VecDeque::with_capacity(CHAIN),
            rows,
            for_head,
            drawn: Vec::new(),
        }))
    }
}

pub(crate) fn of_device(device: &str, error: GpuError) -> DeviceError {
    match error {
        GpuError::OutOfMemory { bytes, what, .. } => {
            DeviceError::OutOfMemory { device: device.to_owned(), bytes, what }
        }
        error => DeviceError::Failed(error.to_string()),
    }
}

/// Where each [`Memory`] is.
struct Buffers {
    weights: Resident,
    others: [Buffer; Memory::COUNT],
}

impl Buffers {
    /// The buffer of a memory that has one.
    fn of(&self, memory: Memory) -> Buffer {
        self.others[memory as usize]
    }

    /// A place in any memory.
    fn at(&self, memory: Memory, offset: usize) -> Result<Binding, GpuError> {
        match memory {
            Memory::Weights => {
                self.weights.at(offset).ok_or_else(|| GpuError::Failed(format!("no weights are at {offset}")))
            }
            _ => Ok(Binding { buffer: self.of(memory), offset }),
        }
    }
}

/// A plan bound to a GPU.
struct GpuBaked<G> {
    gpu: Arc<Mutex<G>>,
    plan: Arc<Plan>,
    lowered: Lowered,
    pipelines: Vec<Pipeline>,
    buffers: Buffers,
    recordings: BTreeMap<Shape, Recording>,
    /// Pages of each group.
    pages: Vec<usize>,
    slots: usize,
    words: Vec<u32>,
    last: LastStep,
    /// The tokens drawn in steps not waited for yet.
    under_way: VecDeque<Ticket>,
    /// Of the step waited for: logits, or hidden states.
    rows: Vec<f32>,
    /// What the head can read of it.
    for_head: Vec<f32>,
    drawn: Vec<u32>,
    name: String,
}

/// What has to be known of the last step for the next one to follow it.
#[derive(Default)]
struct LastStep {
    shape: Option<Shape>,
    tokens: usize,
    /// Rows whose logits were wanted.
    wanted: usize,
    /// Its largest position.
    position: usize,
    /// Steps chained since the buffer was written.
    chained: usize,
}

/// What a panic left of a device is as good as before: its memory is not ours.
fn lock<G>(gpu: &Mutex<G>) -> MutexGuard<'_, G> {
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<G: Gpu> GpuBaked<G> {
    /// Puts a step into the device's buffer, and gives its shape.
    fn write(&mut self, gpu: &mut G, step: &StepState) -> Result<Shape, DeviceError> {
        step.check(&self.plan, (&self.pages, self.slots), PAGE)?;
        let (used, tiles) = self.lowered.step.encode(step, &mut self.words)?;
        let shape = Shape::of(step, tiles, &self.plan, self.lowered.cache.kv);
        if !shape.is_used(&self.plan) {
            return Err(DeviceError::Step("tokens are drawn only for steps all of whose rows want one".to_owned()));
        }
        let position = step.positions.iter().copied().max().unwrap_or(0) as usize;
        let (tokens, wanted) = (step.tokens.len(), step.wanted.len());
        self.last = LastStep { shape: Some(shape), tokens, wanted, position, chained: 0 };
        self.write_step(gpu, 0..used)?;
        if let (Outcome::Head, Some(head)) = (shape.outcome, self.plan.head) {
            let at = Binding { buffer: self.buffers.of(Memory::Arena), offset: self.plan.places[head.given.0].offset };
            let given = gpu.write(at, bytemuck::cast_slice(&step.given));
            given.map_err(|error| of_device(&self.name, error))?;
        }
        Ok(shape)
    }

    /// The list of dispatches of this shape, recorded when it is first needed.
    fn recording(&mut self, gpu: &mut G, shape: Shape) -> Result<Recording, GpuError> {
        if let Some(&recording) = self.recordings.get(&shape) {
            return Ok(recording);
        }
        let recording = self.record(gpu, shape)?;
        self.recordings.insert(shape, recording);
        Ok(recording)
    }

    /// Submits a step of this shape, which the buffer describes.
    fn begin(&mut self, gpu: &mut G, shape: Shape) -> Result<(), DeviceError> {
        let recording = self.recording(gpu, shape).map_err(|error| of_device(&self.name, error))?;
        let fail = |error| of_device(&self.name, error);
        gpu.submit(recording).map_err(fail)?;
        if shape.outcome.draws() {
            let offset = self.last.chained % CHAIN * self.plan.limits.wanted * size_of::<u32>();
            let from = Binding { buffer: self.buffers.of(Memory::Drawn), offset };
            self.under_way.push_back(gpu.fetch(from, self.last.wanted * size_of::<u32>()).map_err(fail)?);
        }
        Ok(())
    }

    /// Brings these words of the step's buffer to the device.
    fn write_step(&self, gpu: &mut G, range: Range<usize>) -> Result<(), DeviceError> {
        let at = Binding { buffer: self.buffers.of(Memory::Step), offset: range.start * size_of::<u32>() };
        let written = gpu.write(at, bytemuck::cast_slice(&self.words[range]));
        written.map_err(|error| of_device(&self.name, error))
    }

    fn page(&self, group: usize, page: u32) -> Binding {
        Binding { buffer: self.buffers.of(Memory::Cache), offset: self.lowered.cache.page(group, page) }
    }

    fn slot(&self, slot: u32) -> Binding {
        Binding { buffer: self.buffers.of(Memory::Slots), offset: slot as usize * self.plan.graph.slot_bytes() }
    }

    fn record(&self, gpu: &mut G, shape: Shape) -> Result<Recording, GpuError> {
        let Some(launches) = self.lowered.shapes.get(&shape) else {
            return Err(GpuError::Failed(format!("there are no dispatches for a step like {shape:?}")));
        };
        let dispatch = |launch: &Launch| {
            let bindings = launch.bindings.iter().map(|&(memory, offset)| self.buffers.at(memory, offset));
            Ok(Dispatch {
                pipeline: self.pipelines[launch.kernel],
                bindings: bindings.collect::<Result<_, GpuError>>()?,
                groups: launch.groups.map(|n| n as u32),
                threads: self.lowered.kernels[launch.kernel].threads,
                barrier: launch.barrier,
            })
        };
        gpu.record(&launches.iter().map(dispatch).collect::<Result<Vec<_>, GpuError>>()?)
    }
}

impl<G: Gpu> Baked for GpuBaked<G> {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        let gpu = self.gpu.clone();
        let mut gpu = lock(&gpu);
        let shape = self.write(&mut gpu, step)?;
        self.begin(&mut gpu, shape)
    }

    fn profile(&mut self, step: &StepState) -> Result<Vec<Span>, DeviceError> {
        let gpu = self.gpu.clone();
        let mut gpu = lock(&gpu);
        let shape = self.write(&mut gpu, step)?;
        let timed = self.recording(&mut gpu, shape).and_then(|recording| gpu.time(recording));
        let seconds = timed.map_err(|error| of_device(&self.name, error))?;
        let launches = self.lowered.shapes.get(&shape).map_or(&[][..], Vec::as_slice);
        let mut end = 0.0;
        let span = |(launch, seconds): (&Launch, f64)| {
            let begin = end;
            end += seconds;
            Span {
                ops: launch.ops.clone(),
                kernel: self.lowered.kernels[launch.kernel].function.to_owned(),
                begin,
                seconds,
            }
        };
        Ok(launches.iter().zip(seconds).map(span).collect())
    }

    fn chain(&mut self) -> Result<(), DeviceError> {
        if self.plan.graph.slot_bytes() > 0 {
            // The slots of the next step are not known on the device.
            return Err(DeviceError::Step("a step of a model with running states has to be described".to_owned()));
        }
        let draws = |shape: &Shape| [Outcome::Tokens, Outcome::Chained].contains(&shape.outcome);
        let Some(shape) = self.last.shape.filter(draws) else {
            return Err(DeviceError::Step("no tokens were drawn that a step could go on with".to_owned()));
        };
        if self.under_way.len() == CHAIN {
            return Err(DeviceError::Step(format!("{CHAIN} steps are under way already")));
        }
        self.last.position += 1;
        self.last.chained += 1;
        let gpu = self.gpu.clone();
        self.begin(&mut lock(&gpu), shape.chained(self.last.position))
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let gpu = self.gpu.clone();
        let mut gpu = lock(&gpu);
        let fail = |error| of_device(&self.name, error);
        if let Some(ticket) = self.under_way.pop_front() {
            self.drawn.resize(self.last.wanted, 0);
            return gpu.collect(ticket, bytemuck::cast_slice_mut(&mut self.drawn)).map_err(fail);
        }
        let LastStep { shape, tokens, wanted, .. } = self.last;
        let (value, for_head) = match (shape.map(|shape| shape.outcome), self.plan.head) {
            (Some(Outcome::Hidden), _) => (self.plan.hidden.value, None),
            (Some(Outcome::Head), Some(head)) => (head.logits, Some((head.next, wanted))),
            (_, head) => (self.plan.logits, head.map(|head| (head.hidden, tokens))),
        };
        let arena = self.buffers.of(Memory::Arena);
        let mut read = |value: ValueId, rows: usize, to: &mut [f32]| {
            let Place { offset, stride, column, width } = self.plan.places[value.0];
            // Rows that follow each other are read at once.
            let (rows, width) = if stride == width { (rows.min(1), rows * width) } else { (rows, width) };
            for (row, to) in to.chunks_exact_mut(width.max(1)).take(rows).enumerate() {
                let offset = offset + (row * stride + column) * size_of::<f32>();
                gpu.read(Binding { buffer: arena, offset }, bytemuck::cast_slice_mut(to))?;
            }
            Ok(())
        };
        read(value, wanted, &mut self.rows).map_err(fail)?;
        if let Some((value, rows)) = for_head {
            read(value, rows, &mut self.for_head).map_err(fail)?;
        }
        gpu.wait().map_err(fail)
    }

    fn drawn(&self) -> &[u32] {
        &self.drawn
    }

    fn set_mask(&mut self, mask: u32, allowed: &[u32]) -> Result<(), DeviceError> {
        let range = self.lowered.step.encode_mask(mask, allowed, &mut self.words)?;
        self.write_step(&mut lock(&self.gpu), range)
    }

    fn draw(&mut self, draws: &[Draw]) -> Result<(), DeviceError> {
        let logits = |shape: &Shape| shape.outcome == Outcome::Logits && shape.wanted > 0;
        let Some(Shape { wanted, .. }) = self.last.shape.filter(logits) else {
            return Err(DeviceError::Step("there are no logits that tokens could be drawn from".to_owned()));
        };
        Draw::check(draws, self.last.wanted, self.plan.limits)?;
        let range = self.lowered.step.encode_draws(draws, &mut self.words);
        let shape = Shape::drawn(wanted);
        self.last.shape = Some(shape);
        let gpu = self.gpu.clone();
        let mut gpu = lock(&gpu);
        self.write_step(&mut gpu, range)?;
        self.begin(&mut gpu, shape)
    }

    fn set_history(&mut self, history: u32, counts: &[u16]) -> Result<(), DeviceError> {
        let vocabulary = self.plan.graph.vocabulary;
        if counts.len() != vocabulary || history as usize >= self.plan.limits.wanted {
            return Err(DeviceError::Step(format!("history {history} of {} tokens", counts.len())));
        }
        let offset = history as usize * vocabulary * size_of::<u16>();
        let to = Binding { buffer: self.buffers.of(Memory::Histories), offset };
        lock(&self.gpu).write(to, bytemuck::cast_slice(counts)).map_err(|error| of_device(&self.name, error))
    }

    fn logits(&self, i: usize) -> &[f32] {
        let width = self.plan.graph.vocabulary;
        &self.rows[i * width..][..width]
    }

    fn hidden(&self, i: usize) -> &[f32] {
        let width = self.plan.values[self.plan.hidden.value.0].width;
        &self.rows[i * width..][..width]
    }

    fn for_head(&self, i: usize) -> &[f32] {
        let width = self.plan.head.map_or(0, |head| self.plan.values[head.hidden.0].width);
        &self.for_head[i * width..][..width]
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) {
        // What fails here is found again by the next step.
        let bytes = self.lowered.cache.page_bytes(group);
        let _ = lock(&self.gpu).copy(self.page(group, from), self.page(group, to), bytes);
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.lowered.cache.page_bytes(group)
    }

    fn read_page(&mut self, group: usize, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let mut gpu = lock(&self.gpu);
        let read = gpu.read(self.page(group, page), bytes).and_then(|()| gpu.wait());
        read.map_err(|error| of_device(&self.name, error))
    }

    fn read_slot(&mut self, slot: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let mut gpu = lock(&self.gpu);
        let read = gpu.read(self.slot(slot), bytes).and_then(|()| gpu.wait());
        read.map_err(|error| of_device(&self.name, error))
    }

    fn write_slot(&mut self, slot: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        lock(&self.gpu).write(self.slot(slot), bytes).map_err(|error| of_device(&self.name, error))
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        lock(&self.gpu).write(self.page(group, page), bytes).map_err(|error| of_device(&self.name, error))
    }
}
