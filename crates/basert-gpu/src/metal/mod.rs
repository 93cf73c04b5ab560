//! Apple GPUs, through Metal.
//!
//! Pure functions are separate, and are compiled and tested everywhere: the compiler's input ([`source`]), the meaning
//! of failures ([`failure`]), and the views of a mapped file (`crate::views`). The rest is thin.

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
