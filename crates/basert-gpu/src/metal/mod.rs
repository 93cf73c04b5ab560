//! Apple GPUs, through Metal.
//!
//! What can be a pure function is one, and is compiled and tested everywhere: what the compiler is given ([`source`]), what
//! a failure means ([`failure`]), and the views of a mapped file (`crate::views`). The rest is thin.

#[cfg(any(test, target_os = "macos"))]
mod failure;
mod source;

#[cfg(target_os = "macos")]
mod compile;
#[cfg(target_os = "macos")]
mod gpu;
#[cfg(target_os = "macos")]
mod residency;

#[cfg(target_os = "macos")]
pub use gpu::MetalGpu;
pub use source::{MetalSource, MetalSystem, Tiles};
