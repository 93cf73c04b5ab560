//! Lists of dispatches, the simulator, and the compiler of CUDA kernels.

mod common;
#[cfg(not(target_os = "macos"))]
mod cuda_compile;
#[cfg(not(target_os = "macos"))]
mod cuda_device;
mod dispatches;
#[cfg(unix)]
mod simt;
