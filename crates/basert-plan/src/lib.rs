//! How a model is computed.
//!
//! [`Plan::build`] takes a graph, applies the fusion table ([`FUSIONS`]), packs weights that are multiplied by the same
//! input, gives every intermediate value a place in one arena, and sets the barriers between ops. A plan is plain data:
//! it can be printed, compared and costed on a machine that could never run it. A [`Device`] binds it to memory and
//! threads.

#![forbid(unsafe_code)]

mod arena;
mod chips;
mod cost;
mod device;
mod display;
mod fuse;
mod pages;
mod plan;

pub use basert_graph::Reach;
pub use chips::{Bounds, Chip, Launching, chip, chip_of_device, chips};
pub use cost::{Cost, StepShape};
pub use device::{
    Baked, Device, DeviceError, Draw, Facts, Fit, LoadOptions, Progress, SequenceRows, Span, Stage, StepState,
    first_allowed,
};
pub use fuse::{FUSIONS, Fusion};
pub use pages::{PageGroup, largest};
pub use plan::{
    Gate, Hidden, Limits, Linear, Matrix, MatrixId, Order, Place, Plan, PlanNode, PlanOp, PlanValue, RopeStore,
};
