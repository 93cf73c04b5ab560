//! What a chip of Apple's would be given, without one: how many dispatches a step is, and which kernels.

use basert_core::KvFormat;
use basert_plan::{Chip, DeviceError, Plan, StepShape};

use crate::Kernel;
use crate::device::Lowered;
use crate::lower::Lowering;
use crate::shape::Shape;
use crate::step::StepLayout;
use crate::tuning::Tuning;
use crate::weights::Weights;

/// The dispatches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launches {
    /// All of them.
    pub dispatches: usize,
    /// Those that wait for the ones before.
    pub barriers: usize,
}

/// The table that kernels for Apple's GPUs of a family are chosen from.
pub fn apple_tuning(family: u32) -> &'static str {
    if family >= 10 { "apple10" } else { "apple" }
}

/// The dispatches of a step of one sequence that draws a token, or of a prompt, on a chip of Apple's; none for other chips.
///
/// # Errors
/// When there is no kernel for an op.
pub fn launches_on(chip: &Chip, plan: &Plan, step: StepShape) -> Result<Option<Launches>, DeviceError> {
    let Some(family) = chip.family else { return Ok(None) };
    let tuning = Tuning::named(apple_tuning(family));
    let weights = Weights::new(plan, &chip.name)?;
    let layout = StepLayout::new(plan.limits, 1, plan.graph.vocabulary);
    let shape = Shape::of_one_sequence(step, plan);
    let launches = Lowering::new(plan, &weights, &tuning, (layout, step.kv), chip.cores, &chip.name).lower(shape)?;
    let barriers = launches.iter().skip(1).filter(|launch| launch.barrier).count();
    Ok(Some(Launches { dispatches: launches.len(), barriers }))
}

/// All kernels that a plan needs on a chip of Apple's, with keys and values in this format; none for other chips.
///
/// # Errors
/// When there is no kernel for an op.
pub fn kernels_on(chip: &Chip, plan: &Plan, kv: KvFormat) -> Result<Vec<Kernel>, DeviceError> {
    let Some(family) = chip.family else { return Ok(Vec::new()) };
    // Kernels do not depend on how many pages there are.
    Ok(Lowered::new(plan, &Tuning::named(apple_tuning(family)), kv, 1, chip.cores, &chip.name)?.kernels)
}
