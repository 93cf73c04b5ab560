//! Every specialisation of a kernel that a model of any family and format asks for compiles for CUDA, without a GPU; and those
//! of ops with running states.
//! `tools/test` fetches the compiler.

use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{Cache, CudaCompiler, GpuDevice, GpuError, Kernel, Recorder, SOURCES};
use basert_graph::Graph;
use basert_plan::{Device, DeviceError, FUSIONS, Limits, LoadOptions, Plan};

use crate::common::recurrent;

/// What the tiny models ask for, steps of all sizes together.
fn kernels() -> Vec<Kernel> {
    let tiny = basert_testkit::tiny();
    let mut all = vec![Kernel::new("check/tiles.metal", "check_tiles", 32)];
    for folder in [tiny.clone(), tiny.join("quantised")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "gguf") {
                let file = Arc::new(ModelFile::open(&path).unwrap());
                let graph = Arc::new(Graph::open(&file, &[]).unwrap());
                all.extend(kernels_of(&file, &graph));
            }
        }
    }
    let (file, graph) = recurrent::model().unwrap();
    all.extend(kernels_of(&file, &graph));
    all.sort_by_cached_key(Kernel::specialisation);
    all.dedup_by_key(|kernel| kernel.specialisation());
    all
}

fn kernels_of(file: &Arc<ModelFile>, graph: &Arc<Graph>) -> Vec<Kernel> {
    let mut all = Vec::new();
    for kv in KvFormat::ALL {
        if graph.caches().all(|cache| cache.head_dim.is_multiple_of(kv.block())) {
            let recorder = Recorder::new("cuda", 132);
            let plan = Arc::new(Plan::build(graph.clone(), Limits { tokens: 64, wanted: 2 }, &FUSIONS));
            let options =
                LoadOptions { pages: vec![64; plan.page_groups.len()], slots: 4, kv, progress: &mut |_, _, _| {} };
            match GpuDevice::new(recorder.clone()).unwrap().load(plan, file.clone(), options) {
                Ok(_) => {}
                Err(error) => assert!(matches!(error, DeviceError::Unsupported { .. }), "{error}"),
            }
            all.extend(recorder.recorded().kernels.iter().cloned());
        }
    }
    all
}

#[test]
fn kernels_compile_for_cuda() {
    let kernels = kernels();
    for (file, text) in SOURCES {
        assert!(
            !text.contains("kernel void") || kernels.iter().any(|k| k.file == *file),
            "{file} is not compiled here"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<&Kernel> = kernels.iter().collect();
    for capability in [(8, 0), (9, 0)] {
        let compiler = CudaCompiler::new(capability, None, Cache::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
        let mut ready = 0;
        let compiled = compiler.compile(&all, &mut |so_far| ready = so_far).unwrap_or_else(|e| panic!("{e}"));
        println!("{ready} kernels for compute capability {capability:?}");
        assert_eq!(ready, all.len());
        assert!(compiled.iter().all(|image| image.starts_with(b"\x7fELF")));
        assert_eq!(compiler.compile(&all[..1], &mut |_| ()).unwrap(), compiled[..1], "what is cached is the same");
    }
}

#[test]
fn what_does_not_compile_is_named_with_the_compilers_words() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = CudaCompiler::new((9, 0), None, Cache::at(folder.path())).unwrap_or_else(|e| panic!("{e}"));
    let kernel = Kernel::new("norm/norm.metal", "row_norm", 32).define("NORM", 0);
    let Err(GpuError::Compile { kernel, log }) = compiler.compile(&[&kernel], &mut |_| ()) else { panic!() };
    assert!(kernel.contains("row_norm") && log.contains("\"WIDTH\" is undefined"), "{kernel}: {log}");
}
