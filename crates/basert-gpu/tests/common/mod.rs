//! What the tests with a recorder in place of a GPU share; none of them uses all of it.
#![allow(dead_code)]

pub mod recurrent;

use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{GpuDevice, Recorder};
use basert_graph::Graph;
use basert_plan::{Baked, Device, DeviceError, Draw, FUSIONS, Limits, LoadOptions, Plan, StepState};

/// The families that there are tiny models of.
pub fn families() -> Vec<String> {
    let files = std::fs::read_dir(basert_testkit::tiny()).unwrap().map(|entry| entry.unwrap().path());
    let models = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    models.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

pub const GREEDY: Draw = Draw {
    temperature: 0.0,
    top_k: 0,
    top_p: Draw::PARTS,
    log_min_p: f32::NEG_INFINITY,
    repeat_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seed: 0,
    index: 0,
    history: None,
    mask: None,
};

/// The tiny model of a family, and its plan.
pub fn model(family: &str) -> (Arc<ModelFile>, Arc<Plan>) {
    let file = Arc::new(ModelFile::open(basert_testkit::tiny().join(format!("{family}.gguf"))).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let plan = Arc::new(Plan::build(graph, Limits { tokens: 64, wanted: 4 }, &FUSIONS));
    (file, plan)
}

/// A model on a recorder.
pub fn load(
    recorder: &Recorder,
    model: &(Arc<ModelFile>, Arc<Plan>),
    kv: KvFormat,
) -> Result<Box<dyn Baked>, DeviceError> {
    load_pages(recorder, model, kv, 16)
}

/// The same, with a cache of so many pages.
pub fn load_pages(
    recorder: &Recorder,
    (file, plan): &(Arc<ModelFile>, Arc<Plan>),
    kv: KvFormat,
    pages: usize,
) -> Result<Box<dyn Baked>, DeviceError> {
    let pages = vec![pages; plan.page_groups.len()];
    let options = LoadOptions { pages, slots: 4, kv, progress: &mut |_, _, _| {} };
    GpuDevice::new(recorder.clone()).unwrap().load(plan.clone(), file.clone(), options)
}

/// A step that draws a token after so many others.
pub fn one_token(position: usize) -> StepState {
    let mut step = StepState::default();
    let pages: Vec<u32> = (0..=position as u32 / 64).collect();
    step.push(&[1], position, &[pages], 1);
    step.draws.push(GREEDY);
    step
}

/// A step of a prompt, whose last token's logits are wanted.
pub fn prompt(tokens: usize) -> StepState {
    let mut step = StepState::default();
    step.push(&vec![1; tokens], 0, &[[0]], 1);
    step
}
