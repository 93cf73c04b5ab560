//! A few tokens through whole tiny models, on plain Rust and two threads: small enough for Miri (`tools/miri`), which looks for
//! undefined behaviour and data races in the unsafe code that all instruction sets share.

use std::sync::Arc;

use basert_core::KvFormat;
use basert_cpu::{CpuDevice, Isa};
use basert_files::ModelFile;
use basert_graph::Graph;
use basert_plan::{Device, FUSIONS, Limits, LoadOptions, Plan, StepState};
use basert_reference::Reference;
use basert_testkit::tiny;

const TOKENS: [u32; 4] = [3, 250, 17, 99];

/// The logits after a step of three tokens and one of a single token agree with the oracle's.
fn check(name: &str, kv: KvFormat, bound: f32) {
    let file = Arc::new(ModelFile::open(tiny().join(name)).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let expected = Reference::new(graph.clone(), &file).unwrap().logits(&TOKENS, &[2, 3]).data;
    let limits = Limits { tokens: 3, wanted: 1 };
    let plan = Arc::new(Plan::build(graph.clone(), limits, &FUSIONS));
    let device = CpuDevice::with_isa(Some(2), Isa::Portable).unwrap();
    let options = LoadOptions { pages: vec![1; plan.page_groups.len()], slots: 4, kv, progress: &mut |_, _, _| {} };
    let mut baked = device.load(plan, file, options).unwrap();
    let mut found = Vec::new();
    for (tokens, position) in [(&TOKENS[..3], 0), (&TOKENS[3..], 3)] {
        let mut step = StepState::default();
        step.push(tokens, position, &[[0]], 1);
        baked.submit(&step).unwrap();
        baked.wait().unwrap();
        found.extend_from_slice(baked.logits(0));
    }
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let error = expected.iter().zip(&found).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest;
    assert!(error < bound, "{name}: {error}");
}

#[test]
fn floats() {
    check("qwen3.gguf", KvFormat::F16, 3e-3);
}

#[test]
fn integers() {
    check("quantised/q4_k.gguf", KvFormat::F16, 0.12);
}

#[test]
fn experts() {
    check("gpt-oss.gguf", KvFormat::F16, 3e-3);
}

#[test]
fn quantised_keys_and_values() {
    check("qwen3.gguf", KvFormat::Q8, 0.05);
}
