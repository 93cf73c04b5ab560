//! What an Apple chip would execute, computed without one: the dispatches of a step, and the kernels.

use basert_core::KvFormat;
use basert_plan::{Chip, DeviceError, Plan, StepShape};

use crate::Kernel;
use crate::device::Lowered;
use crate::lower::{CacheLayout, Lowering};
use crate::shape::Shape;
use crate::step::StepLayout;
use crate::tuning::Tuning;
use crate::weights::Weights;

/// The dispatches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launches {
    /// The number of dispatches.
    pub dispatches: usize,
    /// Those with a barrier before them.
    pub barriers: usize,
}

/// The tuning table of a family of Apple GPUs.
pub fn apple_tuning(family: u32) -> &'static str {
    if family >= 10 { "apple10" } else { "apple" }
}

/// The dispatches of a decoding step of one sequence, or of a prompt, on an Apple chip; `None` for other chips.
///
/// # Errors
/// When there is no kernel for an op.
pub fn launches_on(chip: &Chip, plan: &Plan, step: StepShape) -> Result<Option<Launches>, DeviceError> {
    let Some(family) = chip.family else { return Ok(None) };
    let tuning = Tuning::named(apple_tuning(family));
    let weights = Weights::new(plan, &chip.name)?;
    let (layout, cache) = (StepLayout::new(plan, 1), CacheLayout::new(plan, step.kv, &one_page(plan)));
    let shape = Shape::of_one_sequence(step, plan);
    let launches = Lowering::new(plan, &weights, &tuning, (layout, &cache), chip.cores, &chip.name).lower(shape)?;
    let barriers = launches.iter().skip(1).filter(|launch| launch.barrier).count();
    Ok(Some(Launches { dispatches: launches.len(), barriers }))
}

/// All kernels that a plan needs on an Apple chip, with keys and values in this format; `None` for other chips.
///
/// # Errors
/// When there is no kernel for an op.
pub fn kernels_on(chip: &Chip, plan: &Plan, kv: KvFormat) -> Result<Vec<Kernel>, DeviceError> {
    let Some(family) = chip.family else { return Ok(Vec::new()) };
    // Kernels do not depend on the number of pages.
    Ok(Lowered::new(plan, &Tuning::named(apple_tuning(family)), kv, &one_page(plan), chip.cores, &chip.name)?.kernels)
}

/// A page of each group.
fn one_page(plan: &Plan) -> Vec<usize> {
    vec![1; plan.page_groups.len()]
}
