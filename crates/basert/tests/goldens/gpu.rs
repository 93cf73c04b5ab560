//! The GPU kernels: on the CPU, thread by thread, or on the GPU that `BASERT_TEST_GPU` names.

use basert::DeviceKind;
use basert::core::KvFormat;
use basert::plan::{Device, FUSIONS, Limits};

use crate::golden::{Golden, gguf_twins, hugging_face, quantised};

pub fn device() -> Box<dyn Device> {
    let name = std::env::var("BASERT_TEST_GPU").unwrap_or_else(|_| "simt".to_owned());
    name.parse::<DeviceKind>().unwrap().open(None).unwrap()
}

fn check(golden: &Golden, device: &dyn Device, kv: KvFormat, tokens: usize, bound: f32) {
    // Tokens that see later ones are computed with all of these.
    if !golden.graph.is_causal() && tokens < 32 {
        return;
    }
    let tokens = if golden.graph.is_causal() { tokens } else { golden.prompt.len() };
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
    for golden in hugging_face().into_iter().chain(quantised()) {
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
    for golden in gguf_twins().into_iter().chain(quantised()) {
        check(&golden, &*device, KvFormat::F16, 32, 6e-3);
    }
}

#[test]
fn quantised_keys_and_values_are_close() {
    let device = device();
    for golden in gguf_twins().into_iter().filter(|golden| !golden.chooses()) {
        let whole_blocks = golden.graph.caches().all(|cache| cache.head_dim.is_multiple_of(32));
        for (kv, bound) in [(KvFormat::Q8, 0.05), (KvFormat::Q4, 0.5)] {
            for tokens in [4, 32] {
                if whole_blocks {
                    check(&golden, &*device, kv, tokens, bound);
                }
            }
        }
    }
}
