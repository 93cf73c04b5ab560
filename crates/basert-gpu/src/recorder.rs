//! A GPU that does nothing and records its calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basert_files::ModelFile;

use crate::lower::THREADGROUP_BYTES;
use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};

/// The calls of a [`Recorder`].
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The kernels to be compiled, whose indices are their pipelines.
    pub kernels: Vec<Kernel>,
    /// The lists of dispatches, whose indices are their recordings.
    pub lists: Vec<Vec<Dispatch>>,
    /// The recordings that were submitted.
    pub submitted: Vec<Recording>,
    /// All calls, in order.
    pub calls: Vec<Call>,
    /// The number of buffers.
    pub buffers: u32,
}

/// A call of a method of [`Gpu`], except for queries of its properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Gpu::allocate`], with the bytes.
    Allocate(usize),
    /// [`Gpu::map`], with the number of parts.
    Map(usize),
    /// [`Gpu::compile`], with the number of kernels.
    Compile(usize),
    /// [`Gpu::record`], with the number of dispatches.
    Record(usize),
    /// [`Gpu::write`], with the bytes.
    Write(usize),
    /// [`Gpu::copy`], with the bytes.
    Copy(usize),
    /// [`Gpu::submit`].
    Submit(Recording),
    /// [`Gpu::time`].
    Time(Recording),
    /// [`Gpu::read`], with the bytes.
    Read(usize),
    /// [`Gpu::fetch`], with the bytes.
    Fetch(usize),
    /// [`Gpu::collect`], with the bytes.
    Collect(usize),
    /// [`Gpu::wait`].
    Wait,
}

/// A GPU without memory or arithmetic, to see what a GPU would be asked to do. Clones share the recorded calls.
#[derive(Debug, Clone)]
pub struct Recorder {
    facts: GpuFacts,
    recorded: Arc<Mutex<Recorded>>,
}

impl Recorder {
    /// A recorder with `cores` cores, whose kernels are chosen from this tuning table.
    pub fn new(tuning: &'static str, cores: usize) -> Recorder {
        let facts = GpuFacts {
            name: "recorder".to_owned(),
            description: "does nothing".to_owned(),
            software: "nothing".to_owned(),
            tuning,
            free_memory: None,
            largest_buffer: usize::MAX,
            threadgroup_memory: THREADGROUP_BYTES,
            cores,
            bounds: None,
        };
        Recorder { facts, recorded: Arc::default() }
    }

    /// The same, with this number of bytes of free memory.
    #[must_use]
    pub fn with_memory(mut self, free: usize) -> Recorder {
        self.facts.free_memory = Some(free);
        self
    }

    /// The calls so far.
    pub fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu for Recorder {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: usize, _: &str) -> Result<Buffer, GpuError> {
        let mut recorded = self.recorded();
        recorded.calls.push(Call::Allocate(bytes));
        recorded.buffers += 1;
        Ok(Buffer(recorded.buffers - 1))
    }

    fn map(&mut self, _: &Arc<ModelFile>, parts: &[&[u8]]) -> Result<Vec<Option<Binding>>, GpuError> {
        self.recorded().calls.push(Call::Map(parts.len()));
        Ok(vec![None; parts.len()])
    }

    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        let mut recorded = self.recorded();
        recorded.calls.push(Call::Compile(kernels.len()));
        let first = recorded.kernels.len() as u32;
        recorded.kernels.extend_from_slice(kernels);
        progress(kernels.len());
        Ok((first..).map(Pipeline).take(kernels.len()).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        let mut recorded = self.recorded();
        recorded.calls.push(Call::Record(dispatches.len()));
        recorded.lists.push(dispatches.to_vec());
        Ok(Recording(recorded.lists.len() as u32 - 1))
    }

    fn write(&mut self, _: Binding, bytes: &[u8]) -> Result<(), GpuError> {
        self.recorded().calls.push(Call::Write(bytes.len()));
        Ok(())
    }

    fn copy(&mut self, _: Binding, _: Binding, bytes: usize) -> Result<(), GpuError> {
        self.recorded().calls.push(Call::Copy(bytes));
        Ok(())
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        let mut recorded = self.recorded();
        recorded.calls.push(Call::Submit(recording));
        recorded.submitted.push(recording);
        Ok(())
    }

    fn time(&mut self, recording: Recording) -> Result<Vec<f64>, GpuError> {
        let mut recorded = self.recorded();
        recorded.calls.push(Call::Time(recording));
        Ok(vec![0.0; recorded.lists[recording.0 as usize].len()])
    }

    fn read(&mut self, _: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.recorded().calls.push(Call::Read(bytes.len()));
        bytes.fill(0);
        Ok(())
    }

    fn fetch(&mut self, _: Binding, bytes: usize) -> Result<Ticket, GpuError> {
        self.recorded().calls.push(Call::Fetch(bytes));
        Ok(Ticket(0))
    }

    fn collect(&mut self, _: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.recorded().calls.push(Call::Collect(bytes.len()));
        bytes.fill(0);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        self.recorded().calls.push(Call::Wait);
        Ok(())
    }
}
