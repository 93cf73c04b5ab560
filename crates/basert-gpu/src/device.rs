//! A GPU as a [`Device`]: what it is, and how a plan is bound to it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_plan::{Baked, Device, DeviceError, Facts, LoadOptions, Place, Plan, StepState};

use crate::lower::{CHAIN, Launch, Lowering, Memory};
use crate::shape::{AttentionKind, Outcome, Shape, classes};
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::Weights;
use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, Kernel, Pipeline, Recording, Ticket};

/// A GPU.
pub struct GpuDevice<G> {
    gpu: Arc<Mutex<G>>,
    facts: Facts,
    tuning: Tuning,
    cores: usize,
}

impl<G: Gpu> GpuDevice<G> {
    /// This one.
    ///
    /// # Errors
    /// When the machine's own table of tuning is not well-formed.
    pub fn new(gpu: G) -> Result<GpuDevice<G>, GpuError> {
        let found = gpu.facts();
        let (tuning, cores) = (Tuning::of_device(found.tuning)?, found.cores.max(1));
        let facts = Facts {
            name: found.name.clone(),
            description: found.description.clone(),
            page_tokens: PAGE,
            step_tokens: tuning.step_tokens,
            chain: CHAIN,
        };
        Ok(GpuDevice { gpu: Arc::new(Mutex::new(gpu)), facts, tuning, cores })
    }
}

/// All that is known of a plan on a device before anything is allocated: a pure function of the plan.
pub(crate) struct Lowered {
    pub weights: Weights,
    pub step: StepLayout,
    /// The launches of every shape of step.
    pub shapes: HashMap<Shape, Vec<Launch>>,
    pub kernels: Vec<Kernel>,
    pub prepared_bytes: usize,
    pub partial_bytes: usize,
    pub page_bytes: usize,
}

impl Lowered {
    /// Lowers a plan for a device of so many `cores`.
    pub fn new(
        plan: &Plan,
        tuning: &Tuning,
        kv: KvFormat,
        pages: usize,
        cores: usize,
        device: &str,
    ) -> Result<Lowered, DeviceError> {
        let weights = Weights::new(plan, device)?;
        let step = StepLayout::new(plan.limits, pages);
        let mut lowering = Lowering::new(plan, &weights, tuning, (step, kv), cores, device);
        let mut shapes = HashMap::new();
        for tokens in classes(plan.limits.tokens) {
            for wanted in classes(plan.limits.wanted).into_iter().chain([0]) {
                for attention in [AttentionKind::Whole, AttentionKind::Divided, AttentionKind::Tiles] {
                    for outcome in [Outcome::Logits, Outcome::Tokens, Outcome::Chained] {
                        for alone in [false, true] {
                            let shape = Shape { tokens, wanted, attention, outcome, alone };
                            if shape.is_used() && (!alone || kv == KvFormat::F16) {
                                shapes.insert(shape, lowering.lower(shape)?);
                            }
                        }
                    }
                }
            }
        }
        let Lowering { kernels, prepared_bytes, partial_bytes, .. } = &lowering;
        let (kernels, prepared_bytes, partial_bytes) = (kernels.clone(), *prepared_bytes, *partial_bytes);
        let page_bytes = lowering.all_page_bytes();
        Ok(Lowered { weights, step, shapes, kernels, prepared_bytes, partial_bytes, page_bytes })
    }
}

impl<G: Gpu + 'static> Device for GpuDevice<G> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError> {
        let LoadOptions { pages, kv, progress } = options;
        let lowered = Lowered::new(&plan, &self.tuning, kv, pages, self.cores, &self.facts.name)?;
        let mut gpu = lock(&self.gpu);
        let gpu_ref = &mut *gpu;
        let name = &self.facts.name;
        let fail = |error| of_device(name, error);
        let pipelines = gpu_ref.compile(&lowered.kernels, &mut |_| {}).map_err(fail)?;
        let mut buffers = Buffers::default();
        let cache = pages.saturating_mul(lowered.page_bytes);
        for (memory, bytes, what) in [
            (Memory::Weights, lowered.weights.bytes, "weights"),
            (Memory::Cache, cache, "the KV cache"),
            (Memory::Arena, plan.arena_bytes, "intermediate values"),
            (Memory::Step, lowered.step.words * size_of::<u32>(), "the state of a step"),
            (Memory::Prepared, lowered.prepared_bytes, "prepared inputs"),
            (Memory::Partial, lowered.partial_bytes, "partial attention"),
            (Memory::Histories, plan.limits.wanted * plan.graph.vocabulary * size_of::<u16>(), "histories of tokens"),
            (Memory::Drawn, plan.limits.wanted * CHAIN * size_of::<u32>(), "drawn tokens"),
        ] {
            buffers.0[memory as usize] = gpu_ref.allocate(bytes.max(16), what).map_err(fail)?;
        }
        lowered.weights.upload(&plan, &file, gpu_ref, buffers.of(Memory::Weights), progress)?;
        let words = vec![0; lowered.step.words];
        let logits = vec![0.0; plan.limits.wanted * plan.graph.vocabulary];
        Ok(Box::new(GpuBaked {
            gpu: self.gpu.clone(),
            name: name.clone(),
            plan,
            lowered,
            pipelines,
            buffers,
            recordings: HashMap::new(),
            pages,
            kv,
            words,
            last: LastStep::default(),
            under_way: VecDeque::with_capacity(CHAIN),
            logits,
            drawn: Vec::new(),
        }))
    }
}

fn of_device(device: &str, error: GpuError) -> DeviceError {
    match error {
        GpuError::OutOfMemory { bytes, what, .. } => {
            DeviceError::OutOfMemory { device: device.to_owned(), bytes, what }
        }
        error => DeviceError::Failed(error.to_string()),
    }
}

/// The buffer of each [`Memory`].
struct Buffers([Buffer; Memory::COUNT]);

impl Default for Buffers {
    fn default() -> Self {
        Buffers([Buffer(u32::MAX); Memory::COUNT])
    }
}

impl Buffers {
    fn of(&self, memory: Memory) -> Buffer {
        self.0[memory as usize]
    }
}

/// A plan bound to a GPU.
struct GpuBaked<G> {
    gpu: Arc<Mutex<G>>,
    plan: Arc<Plan>,
    lowered: Lowered,
    pipelines: Vec<Pipeline>,
    buffers: Buffers,
    recordings: HashMap<Shape, Recording>,
    pages: usize,
    kv: KvFormat,
    words: Vec<u32>,
    last: LastStep,
    /// The tokens drawn in steps not waited for yet.
    under_way: VecDeque<Ticket>,
    logits: Vec<f32>,
    drawn: Vec<u32>,
    name: String,
}

/// What has to be known of the last step for the next one to follow it.
#[derive(Default)]
struct LastStep {
    shape: Option<Shape>,
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
    /// Submits a step of this shape, which the buffer describes.
    fn begin(&mut self, gpu: &mut G, shape: Shape) -> Result<(), DeviceError> {
        let fail = |error| of_device(&self.name, error);
        let recording = match self.recordings.get(&shape) {
            Some(&recording) => recording,
            None => {
                let recording = self.record(gpu, shape).map_err(fail)?;
                self.recordings.insert(shape, recording);
                recording
            }
        };
        gpu.submit(recording).map_err(fail)?;
        if shape.outcome != Outcome::Logits {
            let offset = self.last.chained % CHAIN * self.plan.limits.wanted * size_of::<u32>();
            let from = Binding { buffer: self.buffers.of(Memory::Drawn), offset };
            self.under_way.push_back(gpu.fetch(from, self.last.wanted * size_of::<u32>()).map_err(fail)?);
        }
        Ok(())
    }

    fn record(&self, gpu: &mut G, shape: Shape) -> Result<Recording, GpuError> {
        let Some(launches) = self.lowered.shapes.get(&shape) else {
            return Err(GpuError::Failed(format!("there are no dispatches for a step like {shape:?}")));
        };
        let dispatches: Vec<_> = launches
            .iter()
            .map(|launch| Dispatch {
                pipeline: self.pipelines[launch.kernel],
                bindings: launch
                    .bindings
                    .iter()
                    .map(|&(memory, offset)| Binding { buffer: self.buffers.of(memory), offset })
                    .collect(),
                groups: launch.groups.map(|n| n as u32),
                threads: self.lowered.kernels[launch.kernel].threads,
                barrier: launch.barrier,
            })
            .collect();
        gpu.record(&dispatches)
    }
}

impl<G: Gpu> Baked for GpuBaked<G> {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        step.check(&self.plan, self.pages, PAGE)?;
        let (used, tiles) = self.lowered.step.encode(step, &mut self.words)?;
        let shape = Shape::of(step, tiles, &self.plan, self.kv);
        if !shape.is_used() {
            return Err(DeviceError::Step("tokens are drawn only for steps all of whose rows want one".to_owned()));
        }
        let position = step.positions.iter().copied().max().unwrap_or(0) as usize;
        self.last = LastStep { shape: Some(shape), wanted: step.wanted.len(), position, chained: 0 };
        let gpu = self.gpu.clone();
        let mut gpu = lock(&gpu);
        let at = Binding { buffer: self.buffers.of(Memory::Step), offset: 0 };
        let written = gpu.write(at, bytemuck::cast_slice(&self.words[..used]));
        written.map_err(|error| of_device(&self.name, error))?;
        self.begin(&mut gpu, shape)
    }

    fn chain(&mut self) -> Result<(), DeviceError> {
        let Some(shape) = self.last.shape.filter(|shape| shape.outcome != Outcome::Logits) else {
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
        let Place { offset, stride, column, width } = self.plan.places[self.plan.logits.0];
        for row in 0..self.last.wanted {
            let at = offset + (row * stride + column) * size_of::<f32>();
            let from = Binding { buffer: self.buffers.of(Memory::Arena), offset: at };
            let to = &mut self.logits[row * width..][..width];
            gpu.read(from, bytemuck::cast_slice_mut(to)).map_err(fail)?;
        }
        gpu.wait().map_err(fail)
    }

    fn drawn(&self) -> &[u32] {
        &self.drawn
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
        &self.logits[i * width..][..width]
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        let bytes = self.lowered.page_bytes;
        let at = |page: u32| Binding { buffer: self.buffers.of(Memory::Cache), offset: page as usize * bytes };
        // What fails here is found again by the next step.
        let _ = lock(&self.gpu).copy(at(from), at(to), bytes);
    }
}
