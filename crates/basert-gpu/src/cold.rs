//! Times ops on memory that no cache holds: runs their launches over many copies of weights and KV cache.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use basert_core::KvFormat;
use basert_plan::{DeviceError, Plan, PlanNode, StepState};

use crate::device::of_device;
use crate::lower::{CacheLayout, Launch, Lowering, Memory};
use crate::shape::Shape;
use crate::step::{PAGE, StepLayout};
use crate::tuning::Tuning;
use crate::weights::Weights;
use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, Pipeline};

/// Memory from which weights, keys and values are read while ops are timed. It is all zeros, for which no kernel takes
/// less time.
pub struct ColdPool {
    buffer: Buffer,
    bytes: usize,
    rounds: usize,
    /// The other memories of kernels, as large as any plan so far has needed.
    others: [(Buffer, usize); OTHERS.len()],
}

const OTHERS: [Memory; 4] = [Memory::Step, Memory::Arena, Memory::Prepared, Memory::Partial];

impl ColdPool {
    /// Of `bytes` bytes, which should exceed the caches; the fastest of `rounds` rounds counts.
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub fn new(gpu: &mut dyn Gpu, bytes: usize, rounds: usize) -> Result<ColdPool, GpuError> {
        let buffer = gpu.allocate(bytes, "cold weights")?;
        Ok(ColdPool { buffer, bytes, rounds, others: [(buffer, 0); OTHERS.len()] })
    }

    /// The seconds of the ops of `kind` in a plan, in a step of `tokens` tokens after `context` tokens, with kernels
    /// from this table.
    ///
    /// # Errors
    /// When there is no kernel for an op, the plan does not fit the pool, or the device fails.
    pub fn seconds(
        &mut self,
        gpu: &mut dyn Gpu,
        plan: &Plan,
        (tokens, context): (usize, usize),
        tuning: &Tuning,
        kind: impl Fn(&PlanNode) -> bool,
    ) -> Result<f64, DeviceError> {
        let (name, cores) = (gpu.facts().name.clone(), gpu.facts().cores.max(1));
        let fail = |error| of_device(&name, error);
        let weights = Weights::new(plan, &name)?;
        let pages = (context + tokens).div_ceil(PAGE);
        let mut step = StepState::default();
        // As many logits as possible are wanted, so that ops do not compute fewer rows than there are tokens.
        let wanted = tokens.min(plan.limits.wanted);
        step.push(&vec![0; tokens], context, &[(0..pages as u32).collect::<Vec<_>>()], wanted);
        let of_groups = vec![pages; plan.page_groups.len()];
        step.check(plan, (&of_groups, 0), PAGE)?;
        let layout = StepLayout::new(plan, pages);
        let mut words = vec![0; layout.words];
        let (used, tiles) = layout.encode(&step, &mut words)?;
        let shape = Shape::of(&step, tiles, plan, KvFormat::F16);
        let cache = CacheLayout::new(plan, KvFormat::F16, &of_groups);
        let mut lowering = Lowering::new(plan, &weights, tuning, (layout, &cache), cores, &name);
        let mut launches = lowering.lower(shape)?;
        launches.retain(|launch| plan.nodes[launch.ops.clone()].iter().any(&kind));
        // Kernels of other ops are not compiled.
        let needed: BTreeSet<usize> = launches.iter().map(|launch| launch.kernel).collect();
        let kernels: Vec<_> = needed.iter().map(|&kernel| lowering.kernels[kernel].clone()).collect();

        let copy = (weights.bytes + cache.bytes).next_multiple_of(256).max(256);
        let copies = self.bytes / copy;
        if copies == 0 {
            return Err(DeviceError::Failed(format!("{copy} bytes do not fit into {}", self.bytes)));
        }
        let sizes =
            [layout.words * size_of::<u32>(), plan.arena_bytes, lowering.prepared_bytes, lowering.partial_bytes];
        for ((buffer, room), size) in self.others.iter_mut().zip(sizes) {
            if *room < size.max(16) {
                (*buffer, *room) = (gpu.allocate(size.max(16), "timing").map_err(fail)?, size.max(16));
            }
        }
        let step_at = Binding { buffer: self.others[0].0, offset: 0 };
        gpu.write(step_at, bytemuck::cast_slice(&words[..used])).map_err(fail)?;
        let compiled = gpu.compile(&kernels, &mut |_| {}).map_err(fail)?;
        let pipelines: BTreeMap<usize, Pipeline> = needed.into_iter().zip(compiled).collect();
        let place = |copy_at: usize, (memory, offset): (Memory, usize)| match memory {
            Memory::Weights => Binding { buffer: self.buffer, offset: copy_at + offset },
            Memory::Cache => {
                Binding { buffer: self.buffer, offset: copy_at + weights.bytes.next_multiple_of(256) + offset }
            }
            other => {
                let at = OTHERS.iter().position(|memory| *memory == other).unwrap_or(0);
                Binding { buffer: self.others[at].0, offset }
            }
        };
        let dispatch = |launch: &Launch, copy_at: usize| Dispatch {
            pipeline: pipelines[&launch.kernel],
            bindings: launch.bindings.iter().map(|&binding| place(copy_at, binding)).collect(),
            groups: launch.groups.map(|n| n as u32),
            threads: lowering.kernels[launch.kernel].threads,
            barrier: true,
        };
        let all: Vec<_> = (0..copies)
            .flat_map(|i| launches.iter().map(move |launch| (launch, i * copy)))
            .map(|(l, at)| dispatch(l, at))
            .collect();
        let recording = gpu.record(&all).map_err(fail)?;
        let mut best = f64::INFINITY;
        // The first round does not count.
        for round in 0..=self.rounds {
            let began = Instant::now();
            gpu.submit(recording).and_then(|()| gpu.wait()).map_err(fail)?;
            if round > 0 {
                best = best.min(began.elapsed().as_secs_f64());
            }
        }
        Ok(best / copies as f64)
    }
}
