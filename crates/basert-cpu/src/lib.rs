//! The CPU device.
//!
//! Its kernels compute a token's result by one sequence of operations, whatever else is in the step, however many
//! threads there are, and whichever instructions the machine has: weights are repacked so that a lane of a vector is an
//! output ([`PackedMatrix`]), all vectors have 16 lanes ([`simd`]), and no sum is ever split differently.
//!
//! They run inside [`Pool::run`], on views of shared memory ([`Rows`], [`QuantisedRows`]), between barriers.

mod attention;
mod device;
mod dot;
mod elementwise;
mod isa;
mod kv;
mod linear;
pub mod machine;
mod math;
mod memory;
mod neighbours;
mod page_codes;
mod page_product;
mod panel;
mod partials;
mod planes;
mod pool;
mod quantised;
pub mod reference;
mod rows;
pub mod simd;
mod step;
mod tiles;

pub use attention::{Attention, AttentionError, Scratch, Sequence, attend, attend_pages, merge_pages};
pub use device::{CpuDevice, STEP_TOKENS};
pub use elementwise::{BoundNorm, RotaryStyle, add, gate, rms_norm, rms_norm_in_place, rotate, scale, soft_cap};
pub use isa::Isa;
pub use kv::{KvLayer, PAGE};
pub use linear::{Activation, Epilogue, Input, RowBlocks, linear};
pub use memory::{AllocError, Buffer};
pub use panel::{Order, PackError, PackedMatrix, Source};
pub use pool::{Counter, Pool, Worker, WorkerPanicked};
pub use quantised::QuantisedRows;
pub use rows::Rows;
pub use tiles::FloatRows;
