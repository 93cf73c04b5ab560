//! The GPU kernels: on the CPU, thread by thread, or on the GPU that `BASERT_TEST_GPU` names.

use std::sync::Arc;

use basert::core::KvFormat;
use basert::plan::{Device, FUSIONS, Facts, Limits, LoadOptions, Plan};
use basert::{DeviceKind, Sampler, Sampling};
use basert_convert::Random;
use basert_engine::{Engine, Sequence};

use crate::golden::{Golden, all, gguf_twins, quantised};

pub fn device() -> Box<dyn Device> {
    let name = std::env::var("BASERT_TEST_GPU").unwrap_or_else(|_| "simt".to_owned());
    name.parse::<DeviceKind>().unwrap().open(None).unwrap()
}

fn check(golden: &Golden, device: &dyn Device, kv: KvFormat, tokens: usize, bound: f32) {
    let error = golden.error(&golden.on(device, kv, Limits { tokens, wanted: tokens }, &FUSIONS));
    println!("{:30} {kv} {tokens:3} tokens {error:.1e}", golden.name);
    assert!(error < bound, "{}, {kv}, {tokens} tokens at once: {error}", golden.name);
}

/// Few tokens at once: only keys and values are rounded; but on GPUs with integer products, the inputs of quantised
/// weights are bytes, as on the CPU.
#[test]
fn few_rows_agree_with_transformers() {
    let device = device();
    let bytes = device.facts().name.starts_with("cuda");
    for golden in all() {
        let bound = if bytes && golden.has_quantised_weights() { 0.12 } else { 3e-3 };
        check(&golden, &*device, KvFormat::F16, 4, bound);
    }
}

/// One after the other: heads are rotated where they meet their keys.
#[test]
fn single_rows_agree_with_transformers() {
    let device = device();
    let bytes = device.facts().name.starts_with("cuda");
    for golden in gguf_twins().into_iter().chain(quantised().into_iter().step_by(5)) {
        let bound = if bytes && golden.has_quantised_weights() { 0.12 } else { 3e-3 };
        check(&golden, &*device, KvFormat::F16, 1, bound);
    }
}

/// All tokens at once: activations are halves too.
#[test]
fn many_rows_agree_with_transformers() {
    let device = device();
    for golden in all() {
        check(&golden, &*device, KvFormat::F16, 32, 6e-3);
    }
}

#[test]
fn quantised_keys_and_values_are_close() {
    let device = device();
    for golden in gguf_twins().into_iter().filter(|golden| !golden.chooses()) {
        let whole_blocks = golden.graph.caches.iter().all(|cache| cache.head_dim.is_multiple_of(32));
        for (kv, bound) in [(KvFormat::Q8, 0.05), (KvFormat::Q4, 0.5)] {
            for tokens in [4, 32] {
                if whole_blocks {
                    check(&golden, &*device, kv, tokens, bound);
                }
            }
        }
    }
}

/// An engine over a golden's model, which draws tokens as these facts say: on the device, or from logits on the CPU.
fn engine(golden: &Golden, device: &dyn Device, facts: &Facts) -> Engine {
    let limits = Limits { tokens: 4, wanted: 4 };
    let plan = Arc::new(Plan::build(golden.graph.clone(), limits, &FUSIONS));
    let options = LoadOptions { pages: 16, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
    let baked = device.load(plan, golden.file.clone(), options).unwrap();
    Engine::new(baked, facts, limits, 16, 256, golden.graph.vocabulary)
}

/// The tokens that follow each of these prompts, all of them drawn together.
fn drawn(engine: &mut Engine, prompts: &[&[u32]], sampling: &[Sampling], tokens: usize) -> Vec<Vec<u32>> {
    let mut sequences: Vec<_> = prompts.iter().map(|_| Sequence::default()).collect();
    let mut samplers: Vec<_> =
        prompts.iter().zip(sampling).map(|(prompt, s)| Sampler::new(s.clone(), prompt).unwrap()).collect();
    let mut last = Vec::new();
    for (sequence, prompt) in sequences.iter_mut().zip(prompts) {
        let (token, before) = prompt.split_last().unwrap();
        engine.sync(sequence, before);
        engine.advance(&mut [sequence], usize::MAX, &mut |_| true).unwrap();
        last.push(*token);
    }
    let mut all = vec![Vec::new(); prompts.len()];
    for more in (0..tokens).rev() {
        let rows = sequences.iter_mut().zip(&mut samplers).zip(&last);
        let mut rows: Vec<_> = rows.map(|((sequence, sampler), &token)| (sequence, sampler, token)).collect();
        last = engine.draw(&mut rows, more).unwrap();
        all.iter_mut().zip(&last).for_each(|(all, &token)| all.push(token));
    }
    sequences.iter_mut().for_each(|sequence| engine.close(sequence));
    all
}

fn any_sampling(random: &mut Random) -> Sampling {
    let mut pick = |choices: &[f32]| choices[random.below(choices.len())];
    Sampling {
        temperature: pick(&[0.0, 0.3, 0.7, 1.0, 1.5, 5.0]),
        top_k: pick(&[0.0, 0.0, 1.0, 2.0, 5.0, 40.0, 1e6]) as usize,
        top_p: pick(&[1.0, 1.0, 0.99, 0.9, 0.5, 0.1, 0.001]),
        min_p: pick(&[0.0, 0.0, 0.01, 0.1, 0.5, 1.0]),
        repeat_penalty: pick(&[1.0, 1.0, 1.1, 1.5, 0.8]),
        presence_penalty: pick(&[0.0, 0.0, 0.5, -0.5, 2.0]),
        frequency_penalty: pick(&[0.0, 0.0, 0.3, -0.3]),
        seed: random.below(usize::MAX) as u64,
        ..Sampling::default()
    }
}

/// Whatever the settings, the device draws what the engine's sampler draws from the same logits; several sequences
/// together, and steps ahead of being asked.
#[test]
fn the_device_draws_what_the_sampler_draws() {
    let device = device();
    let goldens = gguf_twins();
    let golden = goldens.iter().find(|golden| golden.name == "qwen3.gguf").unwrap();
    let on_device = device.facts().clone();
    assert!(on_device.chain > 1);
    let on_cpu = Facts { chain: 0, ..on_device.clone() };
    let mut engines = [on_device, on_cpu].map(|facts| engine(golden, &*device, &facts));
    let mut random = Random::new(7, 0);
    let mut different = std::collections::BTreeSet::new();
    // A thousand settings; fewer where each draw takes a thousand threads in turn.
    let rounds = if device.facts().name == "simt" { 12 } else { 250 };
    for round in 0..rounds {
        let prompts: Vec<&[u32]> = (0..4).map(|i| &golden.prompt[..golden.prompt.len() - i]).collect();
        let sampling: Vec<_> = (0..4).map(|_| any_sampling(&mut random)).collect();
        let [device, cpu] = engines.each_mut().map(|engine| drawn(engine, &prompts, &sampling, 3));
        assert_eq!(device, cpu, "round {round}: {sampling:?}");
        different.extend(device.into_iter().flatten());
    }
    assert!(different.len() > 10, "only {} different tokens", different.len());
}
