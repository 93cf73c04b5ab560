//! Compiling kernels in parallel, or fetching them from the cache.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::nvrtc::Nvrtc;
use crate::{Cache, GpuError, Kernel};

/// Bytes of a worker's stack: more than that of a main thread, since compilers recurse.
const STACK: usize = 16 << 20;

/// Compiles kernels for one kind of CUDA GPU. It needs neither a GPU nor a driver.
pub struct CudaCompiler {
    nvrtc: Nvrtc,
    target: u32,
    cache: Cache,
}

impl CudaCompiler {
    /// A compiler for GPUs of a compute capability such as (9, 0), and for drivers of a major version of CUDA (`None`
    /// for the newest). Results are kept in `cache`.
    ///
    /// # Errors
    /// [`GpuError::Missing`] when NVRTC is not found, or does not know the GPU; the error says how to get one that
    /// does.
    pub fn new(capability: (u32, u32), driver: Option<u32>, cache: Cache) -> Result<CudaCompiler, GpuError> {
        let nvrtc = Nvrtc::find(driver)?;
        let target = nvrtc.target(capability)?;
        Ok(CudaCompiler { nvrtc, target, cache })
    }

    /// The compiler and its version.
    pub fn name(&self) -> String {
        self.nvrtc.name()
    }

    /// The compiled image of each kernel, which a driver loads. Compiles on all cores, and calls `progress` with the
    /// number of finished kernels.
    ///
    /// # Errors
    /// [`GpuError::Compile`] of the first kernel that did not compile.
    pub fn compile(&self, kernels: &[&Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<u8>>, GpuError> {
        let workers = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        let (next, mut compiled) = (AtomicUsize::new(0), vec![Vec::new(); kernels.len()]);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..workers {
                let (sender, next) = (sender.clone(), &next);
                let worker = thread::Builder::new().stack_size(STACK);
                let spawned = worker.spawn_scoped(scope, move || {
                    while let i = next.fetch_add(1, Ordering::Relaxed)
                        && let Some(kernel) = kernels.get(i)
                    {
                        // The receiver is gone after a kernel that does not compile.
                        if sender.send((i, self.one(kernel))).is_err() {
                            break;
                        }
                    }
                });
                spawned.map_err(|e| GpuError::Failed(format!("no thread to compile kernels in: {e}")))?;
            }
            drop(sender);
            for (ready, (i, result)) in (1..).zip(receiver) {
                compiled[i] = result?;
                progress(ready);
            }
            Ok(compiled)
        })
    }

    fn one(&self, kernel: &Kernel) -> Result<Vec<u8>, GpuError> {
        let key = self.nvrtc.key(kernel, self.target)?;
        match self.cache.get(&key) {
            Some(compiled) => Ok(compiled),
            None => {
                let compiled = self.nvrtc.compile(kernel, self.target)?;
                self.cache.put(&key, &compiled);
                Ok(compiled)
            }
        }
    }
}
