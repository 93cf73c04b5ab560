//! Hidden states and embeddings against `transformers`.

use basert::plan::{FUSIONS, Limits, Plan};
use basert::{Model, Options, Pooling};
use basert_cpu::CpuDevice;
use basert_reference::Reference;
use basert_testkit::tiny;

use crate::golden::{Golden, difference, floats, gguf_twins};
use crate::gpu;

/// The models, each with the hidden states of its prompt's tokens.
fn goldens() -> Vec<(Golden, Vec<f32>)> {
    let states = |golden: &Golden| floats(&tiny().join(golden.name.trim_end_matches(".gguf")).join("states.f32"));
    let generating = gguf_twins().into_iter().filter(|golden| golden.graph.generates);
    generating.map(|golden| (states(&golden), golden)).map(|(states, golden)| (golden, states)).collect()
}

#[test]
fn the_oracle_agrees_with_transformers() {
    for (golden, states) in goldens() {
        let all: Vec<usize> = (0..golden.prompt.len()).collect();
        let reference = Reference::new(golden.graph.clone(), &golden.file).unwrap();
        let error = difference(&golden.name, &states, &reference.hidden(&golden.prompt, &all).data);
        println!("{:20} {error:.1e}", golden.name);
        assert!(error < 1e-4, "{}: {error}", golden.name);
    }
}

/// With a plan's norm fused into the logits or not, in steps of one token and of several.
#[test]
fn devices_agree_with_transformers() {
    for (golden, states) in goldens() {
        for (device, most) in
            [(&CpuDevice::new(Some(2)).unwrap() as &dyn basert::plan::Device, 32), (&*gpu::device(), 4)]
        {
            if device.facts().name != "cpu" && !golden.graph.is_causal() {
                continue;
            }
            for tokens in [1, most] {
                let found = golden.states_on(device, Limits { tokens, wanted: tokens });
                let error = difference(&golden.name, &states, &found);
                println!("{:20} {:10} {tokens} tokens {error:.1e}", golden.name, device.facts().name);
                assert!(error < 3e-3, "{} on {}, {tokens} tokens: {error}", golden.name, device.facts().name);
            }
        }
    }
}

/// A plan has them whatever was fused, and says so in its own words.
#[test]
fn plans_find_the_hidden_state() {
    let mut fused_norms = 0;
    for (golden, _) in goldens() {
        let limits = Limits { tokens: 8, wanted: 8 };
        let fused = Plan::build(golden.graph.clone(), limits, &FUSIONS);
        let unfused = Plan::build(golden.graph.clone(), limits, &[]);
        assert!(unfused.hidden.node.is_none(), "{}", golden.name);
        fused_norms += usize::from(fused.hidden.node.is_some());
        for plan in [fused, unfused] {
            assert_eq!(plan.values[plan.hidden.value.0].width, golden.graph.values[golden.graph.hidden().0].width);
            assert!(plan.hidden.after < plan.nodes.len());
        }
    }
    assert!(fused_norms > 10, "only {fused_norms} have their last norm in the product that computes logits");
}

/// The mean and the last of what `transformers` computes, of length 1.
#[test]
fn embeddings_are_pooled_hidden_states() {
    for (golden, states) in goldens() {
        let options = Options { threads: Some(1), max_context: Some(64), ..Options::default() };
        let model = Model::open(golden.file.path(), options).unwrap();
        let width = states.len() / golden.prompt.len();
        let mean = (0..width).map(|i| states.iter().skip(i).step_by(width).map(|&x| f64::from(x)).sum()).collect();
        let last = states[states.len() - width..].iter().map(|&x| f64::from(x)).collect();
        for (pooling, vector) in [(Pooling::Mean, mean), (Pooling::Last, last)] {
            let vector: Vec<f64> = vector;
            let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
            let expected: Vec<f32> = vector.iter().map(|x| (x / length) as f32).collect();
            let found = model.embed(vec![golden.prompt.clone()], pooling).unwrap().swap_remove(0);
            let error = difference(&golden.name, &expected, &found);
            assert!(error < 3e-3, "{} {pooling:?}: {error}", golden.name);
        }
    }
}
