//! What the rest of this crate sees of a GPU.

use std::sync::Arc;

use basert_files::ModelFile;
use basert_plan::Bounds;

use crate::Kernel;

/// What a GPU is.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuFacts {
    /// The name it is chosen by, such as `cuda:0`.
    pub name: String,
    /// What it is made of, for people.
    pub description: String,
    /// What compiles and runs its kernels: driver or system, and compiler, with their versions.
    pub software: String,
    /// The tuning table that its kernels are chosen from, such as `cuda`.
    pub tuning: &'static str,
    /// Bytes of memory that can still be used, allocated or mapped, where that is known.
    pub free_memory: Option<usize>,
    /// Bytes of the largest buffer.
    pub largest_buffer: usize,
    /// Bytes of memory that the threads of a threadgroup can share.
    pub threadgroup_memory: usize,
    /// Cores (streaming multiprocessors) that threadgroups are spread over.
    pub cores: usize,
    /// What its maker or driver says that bounds every op, where they do.
    pub bounds: Option<Bounds>,
}

/// Memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buffer(pub u32);

/// A compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pipeline(pub u32);

/// A list of dispatches, ready to be submitted any number of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recording(pub u32);

/// Bytes on their way out of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u32);

/// What a kernel argument points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Memory.
    pub buffer: Buffer,
    /// Bytes from its start; a multiple of 16 where it is an argument.
    pub offset: usize,
}

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// What runs.
    pub pipeline: Pipeline,
    /// Its arguments `[[buffer(0)]]`, `[[buffer(1)]]`, …
    pub bindings: Vec<Binding>,
    /// Threadgroups in each direction.
    pub groups: [u32; 3],
    /// Threads of a threadgroup, in whole simdgroups of 32.
    pub threads: u32,
    /// Whether all dispatches before it have to be complete.
    pub barrier: bool,
}

/// A machine that kernels run on. Everything that is submitted is carried out in order.
pub trait Gpu: Send {
    /// What it is.
    fn facts(&self) -> &GpuFacts;

    /// Takes memory, which holds zeros; `what` it is for is said in the error.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, GpuError>;

    /// The same for several, which a device may take as one.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate_all(&mut self, rooms: &[(usize, &str)]) -> Result<Vec<Buffer>, GpuError> {
        rooms.iter().map(|&(bytes, what)| self.allocate(bytes, what)).collect()
    }

    /// Uses parts of a file where they are mapped, for reading, and keeps the file for as long. `None` for what this
    /// device cannot use there: on most, all of it.
    ///
    /// # Errors
    /// When the device failed.
    fn map(&mut self, _file: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        Ok(vec![None; parts.len()])
    }

    /// Compiles kernels, or finds them compiled already, or leaves that to [`Gpu::record`]. `progress` is called with how many are ready.
    ///
    /// # Errors
    /// [`GpuError::Compile`], with the kernel's name and what the compiler said.
    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError>;

    /// Makes a list of dispatches ready.
    ///
    /// # Errors
    /// When the device refuses it, or [`GpuError::Compile`].
    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError>;

    /// Puts bytes into memory, after all that was submitted. They may be reused at once.
    ///
    /// # Errors
    /// When the device failed.
    fn write(&mut self, to: Binding, bytes: &[u8]) -> Result<(), GpuError>;

    /// Copies within the device's memory, after all that was submitted.
    ///
    /// # Errors
    /// When the device failed.
    fn copy(&mut self, from: Binding, to: Binding, bytes: usize) -> Result<(), GpuError>;

    /// Begins a recording.
    ///
    /// # Errors
    /// When the device failed.
    fn submit(&mut self, recording: Recording) -> Result<(), GpuError>;

    /// Carries out a recording's dispatches one after the other, without overlap, and tells the seconds that each of them
    /// took; what launching one costs may be part of that.
    ///
    /// # Errors
    /// When the device failed.
    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError>;

    /// Gets bytes out of memory, after all that was submitted is complete.
    ///
    /// # Errors
    /// When the device failed.
    fn read(&mut self, from: Binding, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Begins to get a few bytes (at most 4096) out of memory, after all that was submitted so far. Nothing that is
    /// submitted before they are collected may change them. No more than sixteen tickets are out at a time.
    ///
    /// # Errors
    /// When the device failed.
    fn fetch(&mut self, from: Binding, bytes: usize) -> Result<Ticket, GpuError>;

    /// Waits for what was fetched, but for nothing that was submitted since.
    ///
    /// # Errors
    /// When the device failed.
    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Waits until all that was submitted is complete.
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
        /// How much was asked for.
        bytes: usize,
        /// What for.
        what: String,
        /// How much there is.
        free: usize,
    },
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile: {log}")]
    Compile {
        /// Its name and what it is specialised for.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// The device failed.
    #[error("{0}")]
    Failed(String),
}
