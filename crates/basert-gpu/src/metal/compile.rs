//! Compiling kernels in parallel, or loading them from archives of earlier starts.
//!
//! Metal compiles in two steps: source to a library, which depends only on the source and its options, and a library's
//! function to code for one GPU. Code is kept in an archive for each set of kernels, under a key of everything that it
//! depends on. A program cannot save libraries; those made by `tools/build-metallib` with Xcode are used if they exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObject, ProtocolObject};
use objc2_foundation::{NSArray, NSDictionary, NSError, NSProcessInfo, NSString, NSURL};
use objc2_metal::{
    MTLBinaryArchive, MTLBinaryArchiveDescriptor, MTLCompileOptions, MTLComputePipelineDescriptor,
    MTLComputePipelineState, MTLDevice, MTLFunction, MTLLanguageVersion, MTLLibrary, MTLMathFloatingPointFunctions,
    MTLMathMode, MTLPipelineOption,
};

use super::source::{Math, MetalSource, MetalSystem};
use crate::{Cache, CacheKey, GpuError, Kernel};

pub(super) type Device = Retained<ProtocolObject<dyn MTLDevice>>;
type Archive = Retained<ProtocolObject<dyn MTLBinaryArchive>>;

/// A kernel that is ready to run.
#[derive(Clone)]
pub(super) struct Compiled {
    pub state: Retained<ProtocolObject<dyn MTLComputePipelineState>>,
    function: Retained<ProtocolObject<dyn MTLFunction>>,
    pub kernel: Kernel,
}

/// Compiles kernels for one GPU.
pub(super) struct Compiler {
    device: Device,
    cache: Cache,
    pub system: MetalSystem,
}

impl Compiler {
    pub fn new(device: Device, cache: Cache, system: MetalSystem) -> Compiler {
        Compiler { device, cache, system }
    }

    /// The pipeline of each kernel. Compiles on all cores, and calls `progress` with the number of finished kernels.
    ///
    /// # Errors
    /// [`GpuError::Compile`] of the first kernel that did not compile.
    pub fn compile(&self, kernels: &[&Kernel], progress: &mut dyn FnMut(usize)) -> Result<Vec<Compiled>, GpuError> {
        let sources: Vec<_> = kernels.iter().map(|kernel| MetalSource::new(kernel, self.system)).collect();
        let kept = self.cache.beside(&self.key(&sources), "metalarchive");
        let archived = kept.as_deref().is_some_and(Path::exists);
        let workers = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        let (next, mut compiled) = (AtomicUsize::new(0), vec![None; kernels.len()]);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..workers {
                let (sender, next, sources, kept) = (sender.clone(), &next, &sources, kept.as_deref());
                scope.spawn(move || {
                    let archive = kept.filter(|_| archived).and_then(|path| self.open(path));
                    while let i = next.fetch_add(1, Ordering::Relaxed)
                        && let Some(kernel) = kernels.get(i)
                    {
                        let one = autoreleasepool(|_| self.one(kernel, &sources[i], archive.as_ref()));
                        // The receiver is gone after a kernel that does not compile.
                        if sender.send((i, one)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (ready, (i, result)) in (1..).zip(receiver) {
                compiled[i] = Some(result?);
                progress(ready);
            }
            Ok::<_, GpuError>(())
        })?;
        let compiled: Vec<Compiled> = compiled.into_iter().flatten().collect();
        if let Some(path) = kept.filter(|_| !archived) {
            // What could not be saved is compiled again at the next start.
            let _ = autoreleasepool(|_| self.keep(&compiled, &path));
        }
        Ok(compiled)
    }

    /// The key of the archive for these kernels: their sources, the system, and the GPU.
    fn key(&self, sources: &[MetalSource]) -> CacheKey {
        let sources: BTreeSet<_> = sources.iter().map(|source| source.key().to_string()).collect();
        let (system, gpu) = autoreleasepool(|_| {
            let system = NSProcessInfo::processInfo().operatingSystemVersionString().to_string();
            (system, self.device.architecture().name().to_string())
        });
        CacheKey::new(["metal".to_owned(), system, gpu].into_iter().chain(sources))
    }

    fn one(&self, kernel: &Kernel, source: &MetalSource, archive: Option<&Archive>) -> Result<Compiled, GpuError> {
        let fail = |log: String| GpuError::Compile { kernel: kernel.to_string(), log };
        let said = |error: Retained<NSError>| fail(error.localizedDescription().to_string());
        let built = self.cache.beside(&source.key(), "metallib").filter(|path| path.exists());
        let built = built.and_then(|path| self.device.newLibraryWithURL_error(&url(&path)).ok());
        let library = match built {
            Some(library) => library,
            None => {
                let text = NSString::from_str(&source.text);
                self.device.newLibraryWithSource_options_error(&text, Some(&self.options(source))).map_err(said)?
            }
        };
        let function = library
            .newFunctionWithName(&NSString::from_str(source.function))
            .ok_or_else(|| fail(format!("there is no function {} in it", source.function)))?;
        let descriptor = describe(&function, kernel.threads);
        if let Some(archive) = archive {
            descriptor.setBinaryArchives(Some(&NSArray::from_slice(&[&**archive])));
        }
        let none = MTLPipelineOption::empty();
        let state = self
            .device
            .newComputePipelineStateWithDescriptor_options_reflection_error(&descriptor, none, None)
            .map_err(said)?;
        let (most, lanes) = (state.maxTotalThreadsPerThreadgroup(), state.threadExecutionWidth());
        if most < kernel.threads as usize || lanes != 32 {
            return Err(fail(format!(
                "it can have {most} threads in simdgroups of {lanes}, not {} of 32",
                kernel.threads
            )));
        }
        Ok(Compiled { state, function, kernel: kernel.clone() })
    }

    fn options(&self, source: &MetalSource) -> Retained<MTLCompileOptions> {
        let options = MTLCompileOptions::new();
        let keys: Vec<_> = source.macros.iter().map(|(name, _)| NSString::from_str(name)).collect();
        let values: Vec<_> = source.macros.iter().map(|(_, value)| NSString::from_str(value)).collect();
        let keys: Vec<&NSString> = keys.iter().map(|key| &**key).collect();
        let values: Vec<&NSObject> = values.iter().map(|value| -> &NSObject { value }).collect();
        let macros = NSDictionary::from_slices(&keys, &values);
        // SAFETY: the values are strings, as Metal requires.
        unsafe { options.setPreprocessorMacros(Some(&macros)) };
        options.setLanguageVersion(match source.language {
            (4, _) => MTLLanguageVersion::Version4_0,
            (3, 2) => MTLLanguageVersion::Version3_2,
            _ => MTLLanguageVersion::Version3_1,
        });
        if self.system.macos >= 15 {
            options.setMathMode(match source.math {
                Math::Safe => MTLMathMode::Safe,
                Math::Relaxed => MTLMathMode::Relaxed,
            });
            options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
        } else {
            #[expect(deprecated, reason = "what took its place is not in macOS 14")]
            options.setFastMathEnabled(false);
        }
        options
    }

    fn open(&self, path: &Path) -> Option<Archive> {
        let descriptor = MTLBinaryArchiveDescriptor::new();
        descriptor.setUrl(Some(&url(path)));
        self.device.newBinaryArchiveWithDescriptor_error(&descriptor).ok()
    }

    /// Writes an archive of these kernels, atomically.
    fn keep(&self, compiled: &[Compiled], path: &Path) -> Option<()> {
        let archive = self.device.newBinaryArchiveWithDescriptor_error(&MTLBinaryArchiveDescriptor::new()).ok()?;
        for Compiled { function, kernel, .. } in compiled {
            let descriptor = describe(function, kernel.threads);
            archive.addComputePipelineFunctionsWithDescriptor_error(&descriptor).ok()?;
        }
        let folder = path.parent()?;
        std::fs::create_dir_all(folder).ok()?;
        let partial: PathBuf = tempfile::Builder::new().tempdir_in(folder).ok()?.keep();
        let written = archive.serializeToURL_error(&url(&partial.join("archive"))).ok();
        let kept = written.and_then(|()| std::fs::rename(partial.join("archive"), path).ok());
        let _ = std::fs::remove_dir_all(partial);
        kept
    }
}

fn describe(function: &ProtocolObject<dyn MTLFunction>, threads: u32) -> Retained<MTLComputePipelineDescriptor> {
    let descriptor = MTLComputePipelineDescriptor::new();
    descriptor.setComputeFunction(Some(function));
    descriptor.setMaxTotalThreadsPerThreadgroup(threads as usize);
    // SAFETY: threadgroups are whole simdgroups, of 32 threads on every GPU of Apple's.
    unsafe { descriptor.setThreadGroupSizeIsMultipleOfThreadExecutionWidth(true) };
    descriptor
}

fn url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}
