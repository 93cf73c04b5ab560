//! GPU devices: kernels written once, in Metal Shading Language (`kernels/`), and the machines that they run on.
//!
//! A plan is lowered to a flat list of dispatches of kernels, each specialised by macros for the model at hand. A
//! [`Gpu`] compiles them and carries them out; [`Kernel`] is what its compiler gets. Apple's gets the source as it is;
//! the other compilers get it with the kernel's declaration put in their terms ([`Signature`]), and a header that spells
//! Metal's standard library for them.

mod cache;
mod check;
mod cold;
mod count;
#[cfg(not(target_os = "macos"))]
mod cuda;
mod device;
mod gpu;
mod kernel;
mod layout;
mod lower;
mod metal;
mod recorder;
mod shape;
mod signature;
#[cfg(unix)]
mod simt;
mod step;
mod tuning;
mod views;
mod weights;

pub use cache::{CACHE_DIR_VARIABLE, Cache, CacheKey, cache_dir};
pub use check::tiles_are_right;
pub use cold::ColdPool;
pub use count::{Launches, apple_tuning, kernels_on, launches_on};
#[cfg(not(target_os = "macos"))]
pub use cuda::{CudaCompiler, CudaGpu, CudaOptions};
pub use device::GpuDevice;
pub use gpu::{Binding, Buffer, Dispatch, Gpu, GpuError, GpuFacts, Pipeline, Recording, Ticket};
pub use kernel::{Kernel, SOURCES, SOURCES_VARIABLE};
#[cfg(target_os = "macos")]
pub use metal::MetalGpu;
pub use metal::{MetalSource, MetalSystem, Tiles};
pub use recorder::{Call, Recorded, Recorder};
pub use signature::{Argument, Signature};
#[cfg(unix)]
pub use simt::{SimtGpu, SimtOptions};
pub use tuning::{Decode, Family, Gemm, Gemv, Limits, Tuning, Variant};
