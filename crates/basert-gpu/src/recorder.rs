//! A GPU that does nothing, and remembers what it was to do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Binding, Buffer, Dispatch, Gpu, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};

/// What a [`Recorder`] was asked for.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The kernels to be compiled, whose indices are their pipelines.
    pub kernels: Vec<Kernel>,
    /// The lists of dispatches, whose indices are their recordings.
    pub lists: Vec<Vec<Dispatch>>,
    /// The recordings that were submitted.
    pub submitted: Vec<Recording>,
}

/// A GPU without memory or arithmetic, for those who want to know what one would be asked to do. Copies share what they
/// remember.
#[derive(Debug, Clone)]
pub struct Recorder {
    facts: GpuFacts,
    recorded: Arc<Mutex<Recorded>>,
}

impl Recorder {
    /// One of so many cores, for which kernels are chosen from this tuning table.
    pub fn new(tuning: &'static str, cores: usize) -> Recorder {
        let (name, description) = ("recorder".to_owned(), "does nothing".to_owned());
        let facts = GpuFacts { name, description, tuning, free_memory: None, cores };
        Recorder { facts, recorded: Arc::default() }
    }

    /// What it was asked for so far.
    pub fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu for Recorder {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, _: usize, _: &str) -> Result<Buffer, GpuError> {
        Ok(Buffer(0))
    }

    fn compile(&mut self, kernels: &[Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        let mut recorded = self.recorded();
        let first = recorded.kernels.len() as u32;
        recorded.kernels.extend_from_slice(kernels);
        progress(kernels.len());
        Ok((first..).map(Pipeline).take(kernels.len()).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        let mut recorded = self.recorded();
        recorded.lists.push(dispatches.to_vec());
        Ok(Recording(recorded.lists.len() as u32 - 1))
    }

    fn write(&mut self, _: Binding, _: &[u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn copy(&mut self, _: Binding, _: Binding, _: usize) -> Result<(), GpuError> {
        Ok(())
    }

    fn submit(&mut self, recording: Recording) -> Result<(), GpuError> {
        self.recorded().submitted.push(recording);
        Ok(())
    }

    fn read(&mut self, _: Binding, bytes: &mut [u8]) -> Result<(), GpuError> {
        bytes.fill(0);
        Ok(())
    }

    fn fetch(&mut self, _: Binding, _: usize) -> Result<Ticket, GpuError> {
        Ok(Ticket(0))
    }

    fn collect(&mut self, _: Ticket, bytes: &mut [u8]) -> Result<(), GpuError> {
        bytes.fill(0);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}
