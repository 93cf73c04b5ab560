//! The CPU device.
//!
//! Its kernels compute a token's result by one sequence of operations, independent of what else is in the step, of the
//! number of threads, and of the machine's instruction set: weights are repacked so that a lane of a vector is an
//! output ([`PackedMatrix`]), all vectors have 16 lanes ([`simd`]), and no sum is ever split differently.
//!
//! They run inside [`Pool::run`], on views of shared memory ([`Rows`], [`QuantisedRows`]), between barriers.

mod attention;
mod contention;
mod device;
mod dot;
mod elementwise;
mod int14;
mod isa;
mod kv;
mod linear;
pub mod machine;
mod math;
mod memory;
mod page_products_float;
mod page_products_quantised;
mod panel;
mod partials;
mod pool;
mod quantised;
mod recurrent;
mod rows;
pub mod simd;
mod step;
mod tiles;

pub use attention::{Attention, AttentionError, Scratch, Sequence, attend, attend_pages, merge_pages};
pub use device::{CpuDevice, STEP_TOKENS};
pub use elementwise::{
    BoundNorm, RotaryStyle, activate, add, gate, mul, rms_norm, rms_norm_in_place, rotate, scale, soft_cap,
};
pub use isa::Isa;
pub use kv::{KvLayer, PAGE};
pub use linear::{Epilogue, Input, RowBlocks, linear};
pub use memory::{AllocError, Buffer};
pub use panel::{Order, PackError, PackedMatrix, Source};
pub use pool::{Counter, Pool, Worker, WorkerPanicked};
pub use quantised::QuantisedRows;
pub use rows::Rows;
pub use tiles::FloatRows;
