//! Heads for multi-token prediction against logits of modules of `transformers`.

use std::sync::Arc;

use basert::core::KvFormat;
use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{Device, FUSIONS, Fusion, Limits, LoadOptions, Pass, Plan, StepState};
use basert_cpu::{CpuDevice, Isa};
use basert_reference::{Reference, ReferenceDevice};
use basert_testkit::tiny;

use crate::golden::{Golden, difference, floats, gguf_twins, hugging_face};
use crate::gpu;

/// A model with a head, and the head's logits: those that follow each token of the prompt but the first, and those that
/// follow the likeliest token of the last of them.
struct Headed {
    name: String,
    file: Arc<ModelFile>,
    graph: Arc<Graph>,
    prompt: Vec<u32>,
    logits: Vec<f32>,
}

fn headed() -> Vec<Headed> {
    let with_head = |golden: Golden| {
        let folder = golden.name.split_once(['/', '.']).map_or(&*golden.name, |(folder, _)| folder);
        let logits = tiny().join(folder).join("head.f32");
        // The same weights under another configuration.
        let is_first = !golden.name.contains('/') || golden.name.ends_with("/config.json");
        (logits.exists() && is_first).then(|| {
            let graph = Arc::new(Graph::open_for(&golden.file, &[], usize::MAX, true).unwrap());
            assert!(graph.head.is_some(), "{}", golden.name);
            assert!(golden.graph.head.is_none() && golden.graph.states.len() + 1 == graph.states.len());
            let Golden { name, file, prompt, .. } = golden;
            // A folder made for the test is gone.
            Headed { name, file, graph, prompt, logits: floats(&logits) }
        })
    };
    let found: Vec<_> = hugging_face().into_iter().chain(gguf_twins()).filter_map(with_head).collect();
    assert_eq!(found.len(), 10, "{:?}", found.iter().map(|headed| &headed.name).collect::<Vec<_>>());
    found
}

/// The largest logit's token.
fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

impl Headed {
    /// The head's logits on a device: the model and then the head go through the prompt in steps of so many tokens, and then
    /// the head goes on by itself.
    fn on(&self, device: &dyn Device, kv: KvFormat, most: usize, fusions: &[Fusion]) -> Vec<f32> {
        let limits = Limits { tokens: most, wanted: most };
        let plan = Arc::new(Plan::build(self.graph.clone(), limits, fusions));
        let head = plan.head.unwrap();
        let options = LoadOptions { pages: vec![2], slots: 2, kv, progress: &mut |_, _, _| {} };
        let mut baked = device.load(plan.clone(), self.file.clone(), options).unwrap();
        let (pages, mut all) = ([1, 0], Vec::new());
        let mut before = vec![0.0; plan.values[head.hidden.0].width];
        for (i, tokens) in self.prompt.chunks(most).enumerate() {
            let (mut step, first) = (StepState::default(), i * most);
            step.push(tokens, first, &[pages], tokens.len());
            step.keep((i > 0).then_some(0), [(tokens.len() - 1, 0)]);
            baked.submit(&step).unwrap();
            baked.wait().unwrap();
            let model = baked.logits(tokens.len() - 1).to_vec();
            let mut step = StepState { pass: Pass::Head, ..StepState::default() };
            step.given = std::mem::take(&mut before);
            (0..tokens.len() - 1).for_each(|row| step.given.extend_from_slice(baked.for_head(row)));
            before = baked.for_head(tokens.len() - 1).to_vec();
            step.push(tokens, first, &[pages], 0);
            baked.submit(&step).unwrap();
            baked.wait().unwrap();
            assert!(baked.logits(tokens.len() - 1) == model, "{}: the model's logits can still be read", self.name);
            step.wanted = (0..tokens.len() as u32).collect();
            baked.submit(&step).unwrap();
            baked.wait().unwrap();
            (0..tokens.len()).for_each(|row| all.extend_from_slice(baked.logits(row)));
            if first + tokens.len() == self.prompt.len() {
                before = baked.for_head(tokens.len() - 1).to_vec();
            }
        }
        let vocabulary = self.graph.vocabulary;
        let mut step = StepState { pass: Pass::Head, given: before, ..StepState::default() };
        step.push(
            &[likeliest(&self.logits[self.logits.len() - 2 * vocabulary..][..vocabulary])],
            self.prompt.len(),
            &[pages],
            1,
        );
        baked.submit(&step).unwrap();
        baked.wait().unwrap();
        all.extend_from_slice(baked.logits(0));
        // What follows the first token has nothing to go by.
        all.split_off(vocabulary)
    }

    fn error(&self, logits: &[f32]) -> f32 {
        difference(&self.name, &self.logits, logits)
    }
}

#[test]
fn the_oracle_agrees_with_transformers() {
    for headed in headed() {
        let reference = Reference::new(headed.graph.clone(), &headed.file).unwrap();
        let wanted: Vec<usize> = (1..headed.prompt.len()).collect();
        let logits = reference.head_logits(&headed.prompt, &wanted).unwrap();
        let error = difference(&headed.name, &headed.logits[..logits.data.len()], &logits.data);
        let by_itself = headed.error(&headed.on(&ReferenceDevice::default(), KvFormat::F16, 48, &[]));
        println!("{:25} {error:.1e} {by_itself:.1e}", headed.name);
        assert!(error < 1e-4 && by_itself < 1e-4, "{}: {error} {by_itself}", headed.name);
    }
}

/// On the CPU to the bit, however the prompt is cut, with every instruction set, and without each fusion.
#[test]
fn devices_agree_with_transformers() {
    for headed in headed() {
        let on = |isa, threads, most, fusions: &[Fusion]| {
            headed.on(&CpuDevice::with_isa(Some(threads), isa).unwrap(), KvFormat::F16, most, fusions)
        };
        let expected = on(Isa::detect(), 2, 32, &FUSIONS);
        let error = headed.error(&expected);
        println!("{:25} cpu {error:.1e}", headed.name);
        assert!(error < 3e-3, "{}: {error}", headed.name);
        assert!(on(Isa::detect(), 1, 7, &[]) == expected, "{}: unfused, in steps of 7 tokens", headed.name);
        for isa in Isa::available() {
            assert!(on(isa, 1, 1, &FUSIONS) == expected, "{}: {isa}", headed.name);
        }
        for Fusion { name, .. } in FUSIONS {
            let others: Vec<_> = FUSIONS.into_iter().filter(|other| other.name != name).collect();
            assert!(on(Isa::detect(), 1, 32, &others) == expected, "{}: {name}", headed.name);
        }
        // Thread by thread, a model takes seconds.
        let sizes = if headed.name.ends_with(".gguf") { &[1, 32][..] } else { &[] };
        for &most in sizes {
            let error = headed.error(&headed.on(&*gpu::device(), KvFormat::F16, most, &FUSIONS));
            println!("{:25} gpu {most:2} tokens {error:.1e}", headed.name);
            assert!(error < 6e-3, "{} on a GPU, {most} tokens: {error}", headed.name);
        }
    }
}

/// The head adds no copy of the embedding or of the output.
#[test]
fn the_output_is_shared() {
    for headed in headed() {
        let limits = Limits { tokens: 8, wanted: 8 };
        let plan = Plan::build(headed.graph.clone(), limits, &FUSIONS);
        let rows = |plan: &Plan| plan.matrices.iter().filter(|matrix| matrix.rows == plan.graph.vocabulary).count();
        assert_eq!(rows(&plan), 1, "{}", headed.name);
    }
}
