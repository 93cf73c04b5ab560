//! A GPU as a [`Device`]: what it is, and how a plan is bound to it.

use std::collections::HashMap;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_plan::{Baked, Device, DeviceError, Facts, LoadOptions, Place, Plan, StepState};

use crate::lower::{AttentionKind, Launch, Lowering, Memory, Shape, tiles};
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::Weights;
use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, Kernel, Pipeline, Recording};

/// Contexts up to this length are not divided.
const WHOLE_CONTEXT: usize = 512;

/// A GPU.
pub struct GpuDevice<G> {
    gpu: Arc<std::sync::Mutex<G>>,
    facts: Facts,
    tuning: Tuning,
    cores: usize,
}

impl<G: Gpu> GpuDevice<G> {
    /// This one.
    pub fn new(gpu: G) -> GpuDevice<G> {
        let found = gpu.facts();
        let facts = Facts { name: found.name.clone(), description: found.description.clone(), page_tokens: PAGE };
        let (tuning, cores) = (Tuning::named(found.tuning), found.cores.max(1));
        GpuDevice { gpu: Arc::new(std::sync::Mutex::new(gpu)), facts, tuning, cores }
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
                    let shape = Shape { tokens, wanted, attention };
                    if shape.is_used() {
                        shapes.insert(shape, lowering.lower(shape)?);
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

impl Shape {
    /// The shape of a step, with `tiles` tiles of queries, none of them at a position beyond `last`.
    fn of(step: &StepState, found: usize, plan: &Plan) -> Shape {
        let class = |rows: usize, limit: usize| classes(limit).into_iter().find(|&c| c >= rows).unwrap_or(limit);
        let tokens = class(step.tokens.len(), plan.limits.tokens);
        let wanted = if step.wanted.is_empty() { 0 } else { class(step.wanted.len(), plan.limits.wanted) };
        let last = step.positions.iter().copied().max().unwrap_or(0) as usize;
        let attention = if Shape::tiled(tokens) && found <= tiles(tokens) {
            AttentionKind::Tiles
        } else if last < WHOLE_CONTEXT {
            AttentionKind::Whole
        } else {
            AttentionKind::Divided
        };
        Shape { tokens, wanted, attention }
    }

    /// Whether so many tokens are worth tiles.
    fn tiled(tokens: usize) -> bool {
        tokens > 16
    }

    /// Whether [`Shape::of`] gives it.
    fn is_used(self) -> bool {
        self.wanted <= self.tokens && (self.attention != AttentionKind::Tiles || Shape::tiled(self.tokens))
    }
}

/// Sizes that steps are rounded up to: powers of two, and the limit.
fn classes(limit: usize) -> Vec<usize> {
    let powers = (0..usize::BITS - 1).map(|n| 1 << n);
    powers.take_while(|&size| size < limit).chain([limit]).collect()
}

impl<G: Gpu + 'static> Device for GpuDevice<G> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn load(&self, plan: Arc<Plan>, file: Arc<ModelFile>, options: LoadOptions) -> Result<Box<dyn Baked>, DeviceError> {
        let LoadOptions { pages, kv, progress } = options;
        let lowered = Lowered::new(&plan, &self.tuning, kv, pages, self.cores, &self.facts.name)?;
        let mut gpu = self.gpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        ] {
            buffers.0[memory as usize] = gpu_ref.allocate(bytes.max(16), what).map_err(fail)?;
        }
        lowered.weights.upload(&plan, &file, gpu_ref, buffers.of(Memory::Weights), progress)?;
        let words = vec![0; lowered.step.words];
        let logits = vec![0.0; plan.limits.wanted * plan.graph.vocabulary];
        let gpu = self.gpu.clone();
        let recordings = HashMap::new();
        let name = name.clone();
        Ok(Box::new(GpuBaked {
            gpu,
            plan,
            lowered,
            pipelines,
            buffers,
            recordings,
            pages,
            words,
            logits,
            name,
            wanted: 0,
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
struct Buffers([Buffer; 6]);

impl Default for Buffers {
    fn default() -> Self {
        Buffers([Buffer(u32::MAX); 6])
    }
}

impl Buffers {
    fn of(&self, memory: Memory) -> Buffer {
        self.0[memory as usize]
    }
}

/// A plan bound to a GPU.
struct GpuBaked<G> {
    gpu: Arc<std::sync::Mutex<G>>,
    plan: Arc<Plan>,
    lowered: Lowered,
    pipelines: Vec<Pipeline>,
    buffers: Buffers,
    recordings: HashMap<Shape, Recording>,
    pages: usize,
    words: Vec<u32>,
    logits: Vec<f32>,
    name: String,
    /// Rows of logits of the step under way.
    wanted: usize,
}

impl<G: Gpu> GpuBaked<G> {
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
        let shape = Shape::of(step, tiles, &self.plan);
        let gpu = self.gpu.clone();
        let mut gpu = gpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fail = |error| of_device(&self.name, error);
        let recording = match self.recordings.get(&shape) {
            Some(&recording) => recording,
            None => self.record(&mut gpu, shape).map_err(fail)?,
        };
        self.recordings.insert(shape, recording);
        let at = Binding { buffer: self.buffers.of(Memory::Step), offset: 0 };
        gpu.write(at, bytemuck::cast_slice(&self.words[..used])).map_err(fail)?;
        self.wanted = step.wanted.len();
        gpu.submit(recording).map_err(fail)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let mut gpu = self.gpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fail = |error| of_device(&self.name, error);
        let Place { offset, stride, column, width } = self.plan.places[self.plan.logits.0];
        for row in 0..self.wanted {
            let at = offset + (row * stride + column) * size_of::<f32>();
            let from = Binding { buffer: self.buffers.of(Memory::Arena), offset: at };
            let to = &mut self.logits[row * width..][..width];
            gpu.read(from, bytemuck::cast_slice_mut(to)).map_err(fail)?;
        }
        gpu.wait().map_err(fail)
    }

    fn logits(&self, i: usize) -> &[f32] {
        let width = self.plan.graph.vocabulary;
        &self.logits[i * width..][..width]
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        let mut gpu = self.gpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = self.lowered.page_bytes;
        let at = |page: u32| Binding { buffer: self.buffers.of(Memory::Cache), offset: page as usize * bytes };
        // What fails here is found again by the next step.
        let _ = gpu.copy(at(from), at(to), bytes);
    }
}
