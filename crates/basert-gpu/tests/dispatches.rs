//! The dispatches of a step of each family, as snapshots: a change of their number shows in review.

use std::fmt::Write;
use std::sync::Arc;

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{Dispatch, GpuDevice, Recorder};
use basert_graph::Graph;
use basert_plan::{Device, Draw, FUSIONS, Limits, LoadOptions, Plan, StepState};

const GREEDY: Draw = Draw {
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
};

fn dispatches(family: &str) -> String {
    let file = Arc::new(ModelFile::open(basert_testkit::tiny().join(format!("{family}.gguf"))).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let recorder = Recorder::new("cuda", 132);
    let plan = Arc::new(Plan::build(graph, Limits { tokens: 64, wanted: 4 }, &FUSIONS));
    let options = LoadOptions { pages: 16, kv: KvFormat::F16, progress: &mut |_, _| {} };
    let mut baked = GpuDevice::new(recorder.clone()).unwrap().load(plan, file, options).unwrap();

    let mut step = StepState::default();
    step.push(&[1], 5, &[0], 1);
    step.draws.push(GREEDY);
    baked.submit(&step).unwrap();
    baked.chain().unwrap();
    baked.wait().unwrap();
    baked.wait().unwrap();

    step.clear();
    step.push(&[1], 700, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 1);
    baked.submit(&step).unwrap();
    baked.wait().unwrap();

    step.clear();
    step.push(&[1; 40], 0, &[0], 1);
    baked.submit(&step).unwrap();

    let mut out = String::new();
    let recorded = recorder.recorded();
    assert_eq!(recorded.submitted.len(), 4);
    let steps = ["a token drawn", "the one after it", "a token after 700 others", "a prompt of 40 tokens"];
    for (step, recording) in steps.into_iter().zip(&recorded.submitted) {
        let dispatches = &recorded.lists[recording.0 as usize];
        writeln!(out, "{step}: {} dispatches", dispatches.len()).unwrap();
        for Dispatch { pipeline, groups: [x, y, z], threads, barrier, .. } in dispatches {
            let mark = if *barrier { '|' } else { ' ' };
            let function = recorded.kernels[pipeline.0 as usize].function;
            writeln!(out, "{mark} {function:17} {x:4} × {y} × {z} of {threads}").unwrap();
        }
        out.push('\n');
    }
    out
}

#[test]
fn dispatches_of_each_family() {
    for family in ["llama", "llama2", "mistral", "qwen2", "qwen3", "gemma3"] {
        insta::assert_snapshot!(family, dispatches(family));
    }
}
