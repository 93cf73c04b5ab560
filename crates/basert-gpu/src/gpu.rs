//! The interface of a GPU to the rest of this crate.

use std::sync::Arc;

use basert_files::ModelFile;
use basert_plan::Bounds;

use crate::Kernel;

/// The properties of a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuFacts {
    /// The name that selects it, such as `cuda:0`.
    pub name: String,
    /// A description for people.
    pub description: String,
    /// What compiles and runs its kernels: driver or system, and compiler, with their versions.
    pub software: String,
    /// The name of its tuning table, such as `cuda`.
    pub tuning: &'static str,
    /// Bytes of free memory, to be allocated or mapped, if known.
    pub free_memory: Option<usize>,
    /// Bytes of the largest buffer.
    pub largest_buffer: usize,
    /// Bytes of threadgroup memory.
    pub threadgroup_memory: usize,
    /// Cores (streaming multiprocessors) that threadgroups are spread over.
    pub cores: usize,
    /// Peak bandwidth and FLOP/s as its maker or driver states them, if known.
    pub bounds: Option<Bounds>,
}

/// A buffer in a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buffer(pub u32);

/// A compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pipeline(pub u32);

/// A list of dispatches, ready to be submitted any number of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recording(pub u32);

/// A pending read of a few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u32);

/// What a kernel argument points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Memory.
    pub buffer: Buffer,
    /// Bytes from its start; a multiple of 16 for arguments of kernels.
    pub offset: usize,
}

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// The compiled kernel.
    pub pipeline: Pipeline,
    /// Its arguments `[[buffer(0)]]`, `[[buffer(1)]]`, …
    pub bindings: Vec<Binding>,
    /// Threadgroups in each direction.
    pub groups: [u32; 3],
    /// Threads of a threadgroup, in whole simdgroups of 32.
    pub threads: u32,
    /// Whether all earlier dispatches must be complete.
    pub barrier: bool,
}

/// A device that runs kernels. Submissions are executed in order.
pub trait Gpu: Send {
    /// What it is.
    fn facts(&self) -> &GpuFacts;

    /// Allocates zeroed memory; `what` names its purpose in the error.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError>;

    /// The same for several buffers, which a device may allocate as one.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate_all(&mut self, rooms: &[(usize, &str)]) -> Result<Vec<Buffer>, GpuError> {
        rooms.iter().map(|&(bytes, what)| self.allocate(bytes, what)).collect()
    }

    /// Makes parts of a file readable where they are mapped, and keeps the file alive. `None` for parts that this
    /// device cannot use in place: on most devices, all of them.
    ///
    /// # Errors
    /// When the device failed.
    fn map(&mut self, _file: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        Ok(vec![None; parts.len()])
    }

    /// Compiles kernels, or finds them in the cache, or leaves that to [`Gpu::record`]. `progress` is called with the
    /// number of kernels that are ready.
    ///
    /// # Errors
    /// [`GpuError::Compile`], with the kernel's name and the compiler's log.
    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError>;

    /// Prepares a list of dispatches for submission.
    ///
    /// # Errors
    /// When the device refuses it, or [`GpuError::Compile`].
    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError>;

    /// Writes bytes to memory, after all earlier submissions. `bytes` may be reused at once.
    ///
    /// # Errors
    /// When the device failed.
    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError>;

    /// Copies within the device's memory, after all earlier submissions.
    ///
    /// # Errors
    /// When the device failed.
    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError>;

    /// Submits a recording.
    ///
    /// # Errors
    /// When the device failed.
    fn submit(&mut self, recording: Recording) -> Result<(), GpuError>;

    /// Executes a recording's dispatches in order, without overlap, and returns the seconds of each, which may include
    /// the cost of launching it.
    ///
    /// # Errors
    /// When the device failed.
    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError>;

    /// Reads bytes from memory, after all submissions are complete.
    ///
    /// # Errors
    /// When the device failed.
    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Begins to read a few bytes (at most 4096) from memory, after all earlier submissions. Nothing that is submitted
    /// before they are collected may change them. At most sixteen tickets can be in use.
    ///
    /// # Errors
    /// When the device failed.
    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError>;

    /// Waits for a fetch, but not for later submissions.
    ///
    /// # Errors
    /// When the device failed.
    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Waits until all submissions are complete.
    ///
    /// # Errors
    /// When the device failed.
    fn wait(&mut self) -> Result<(), GpuError>;
}

/// Why a GPU could not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GpuError {
    /// There is no such device, or no driver for it.
    #[error("{0}")]
    Missing(String),
    /// Not enough memory.
    #[error("cannot get {bytes} bytes for {what}; {free} bytes are free")]
    OutOfMemory {
        /// The size of the allocation in bytes.
        bytes: usize,
        /// Its purpose.
        what: String,
        /// The free bytes.
        free: usize,
    },
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile: {log}")]
    Compile {
        /// Its name and macros.
        kernel: String,
        /// The compiler's log.
        log: String,
    },
    /// The device failed.
    #[error("{0}")]
    Failed(String),
}
