//! Writes every specialisation of a kernel that the tiny models of the tests need, of all families and formats, and a model of
//! the ops with running states, to a folder, each as Apple's compiler would get it on chips without and with tensor units: `cargo run -p basert-gpu
//! --example kernels FOLDER`.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{Kernel, MetalSource, MetalSystem, Tiles, kernels_on};
use basert_graph::Graph;
use basert_plan::{DeviceError, FUSIONS, Limits, Plan, chip};

#[path = "../tests/common/recurrent.rs"]
mod recurrent;

fn models(folder: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let paths =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("which folder do the kernels go to?")?);
    std::fs::create_dir_all(&folder)?;
    let systems = [("m4-pro", Tiles::Simdgroups), ("m5-pro", Tiles::TensorUnits)];
    for (name, tiles) in systems {
        let system = MetalSystem { macos: 26, tiles };
        let check = Kernel::new("check/tiles.metal", "check_tiles", 32);
        MetalSource::new(&check, system).write_to(&folder, check.file)?;
        let (chip, tiny, mut written) = (chip(name)?, basert_testkit::tiny(), BTreeSet::new());
        let paths = models(&tiny)?.into_iter().chain(models(&tiny.join("quantised"))?);
        let open = |path: PathBuf| Ok(Arc::new(Graph::open(&ModelFile::open(&path)?, &[])?));
        let mut graphs = paths.map(open).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        graphs.push(recurrent::model()?.1);
        for graph in graphs {
            let plan = Plan::build(graph.clone(), Limits { tokens: 64, wanted: 2 }, &FUSIONS);
            for kv in [KvFormat::F16, KvFormat::Q8, KvFormat::Q4] {
                if graph.caches().any(|cache| kv != KvFormat::F16 && !cache.head_dim.is_multiple_of(32)) {
                    continue;
                }
                // Encoders are for the CPU.
                let kernels = match kernels_on(&chip, &plan, kv) {
                    Err(DeviceError::Unsupported { .. }) => continue,
                    kernels => kernels?,
                };
                for kernel in kernels {
                    if written.insert(kernel.specialisation()) {
                        MetalSource::new(&kernel, system).write_to(&folder, kernel.file)?;
                    }
                }
            }
        }
    }
    Ok(())
}
