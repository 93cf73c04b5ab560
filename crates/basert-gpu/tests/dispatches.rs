//! The dispatches of a step of each family, as snapshots: a change of their number shows in review.

use std::fmt::Write;

use basert_core::KvFormat;
use basert_gpu::{Dispatch, Recorder};

use crate::common::{GREEDY, load, model, one_token, prompt};

fn dispatches(family: &str) -> String {
    let recorder = Recorder::new("cuda", 132);
    let mut baked = load(&recorder, &model(family), KvFormat::F16).unwrap();
    baked.submit(&one_token(5)).unwrap();
    baked.chain().unwrap();
    baked.wait().unwrap();
    baked.wait().unwrap();

    let mut step = one_token(700);
    step.draws.clear();
    baked.submit(&step).unwrap();
    baked.wait().unwrap();
    baked.submit(&prompt(40)).unwrap();
    baked.draw(&[GREEDY]).unwrap();

    let mut out = String::new();
    let recorded = recorder.recorded();
    assert_eq!(recorded.submitted.len(), 5);
    let steps = [
        "a token drawn",
        "the one after it",
        "a token after 700 others",
        "a prompt of 40 tokens",
        "a draw from its logits",
    ];
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
    for family in ["llama", "llama2", "mistral", "qwen2", "qwen3", "gemma3", "stablelm", "qwen3moe", "gpt-oss"] {
        insta::assert_snapshot!(family, dispatches(family));
    }
}
