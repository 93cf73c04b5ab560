//! Writes every kernel that the tiny models of the tests need, of all families and formats, to a folder, each as
//! Apple's compiler would get it: `cargo run -p basert-gpu --example kernels FOLDER`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{GpuDevice, Recorder};
use basert_graph::Graph;
use basert_plan::{Device, FUSIONS, Limits, LoadOptions, Plan};

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
            let recorder = Recorder::new("cuda", 40);
            let device = GpuDevice::new(recorder.clone())?;
            let limits = Limits { tokens: 64, wanted: 2 };
            let plan = Arc::new(Plan::build(graph.clone(), limits, &FUSIONS));
            device.load(plan, file.clone(), LoadOptions { pages: 64, kv, progress: &mut |_, _| {} })?;
            for kernel in &recorder.recorded().kernels {
                let path = folder.join(format!("{}-{:016x}.metal", kernel.function, kernel.fingerprint()));
                let text = format!("{}#line 1 \"{}\"\n{}", kernel.defines(), kernel.file, kernel.source());
                std::fs::write(path, text)?;
            }
        }
    }
    Ok(())
}
