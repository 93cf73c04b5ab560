//! Writes every kernel that the tiny models of the tests need, of all families and formats, to a folder, each as
//! Apple's compiler would get it: `cargo run -p basert-gpu --example kernels FOLDER`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{Binding, Buffer, Dispatch, Gpu, GpuDevice, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};
use basert_graph::Graph;
use basert_plan::{Device, FUSIONS, Limits, LoadOptions, Plan};

/// A GPU that compiles nothing, and writes down what it would.
struct Writer {
    facts: GpuFacts,
    folder: PathBuf,
}

impl Gpu for Writer {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, _: usize, _: &str) -> Result<Buffer, GpuError> {
        Ok(Buffer(0))
    }

    fn compile(&mut self, kernels: &[Kernel], _: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        for kernel in kernels {
            let file = self.folder.join(format!("{}-{:016x}.metal", kernel.function, kernel.fingerprint()));
            let text = format!("{}#line 1 \"{}\"\n{}", kernel.defines(), kernel.file, kernel.source());
            std::fs::write(file, text).map_err(|e| GpuError::Failed(e.to_string()))?;
        }
        Ok(kernels.iter().map(|_| Pipeline(0)).collect())
    }

    fn record(&mut self, _: &[Dispatch]) -> Result<Recording, GpuError> {
        Ok(Recording(0))
    }

    fn write(&mut self, _: Binding, _: &[u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn copy(&mut self, _: Binding, _: Binding, _: usize) -> Result<(), GpuError> {
        Ok(())
    }

    fn submit(&mut self, _: Recording) -> Result<(), GpuError> {
        Ok(())
    }

    fn read(&mut self, _: Binding, _: &mut [u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn fetch(&mut self, _: Binding, _: usize) -> Result<Ticket, GpuError> {
        Ok(Ticket(0))
    }

    fn collect(&mut self, _: Ticket, _: &mut [u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}

fn models(folder: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let paths =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("which folder do the kernels go to?")?);
    std::fs::create_dir_all(&folder)?;
    let tiny = basert_testkit::tiny();
    for path in models(&tiny)?.into_iter().chain(models(&tiny.join("quantised"))?) {
        let file = Arc::new(ModelFile::open(&path)?);
        let graph = Arc::new(Graph::open(&file, &[])?);
        for kv in [KvFormat::F16, KvFormat::Q8, KvFormat::Q4] {
            if graph.caches.iter().any(|cache| kv != KvFormat::F16 && !cache.head_dim.is_multiple_of(32)) {
                continue;
            }
            let facts = GpuFacts {
                name: "kernels".to_owned(),
                description: String::new(),
                tuning: "cuda",
                free_memory: None,
                cores: 40,
            };
            let device = GpuDevice::new(Writer { facts, folder: folder.clone() })?;
            let limits = Limits { tokens: 64, wanted: 2 };
            let plan = Arc::new(Plan::build(graph.clone(), limits, &FUSIONS));
            device.load(plan, file.clone(), LoadOptions { pages: 64, kv, progress: &mut |_, _| {} })?;
        }
    }
    Ok(())
}
