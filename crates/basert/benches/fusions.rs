//! What each row of the fusion table gains on the CPU: decoding and a prompt with all of them, and without one.
//! `cargo bench -p basert --bench fusions [-- MODEL.gguf]`, or SmolLM2 from the tests' data.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use basert::core::KvFormat;
use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{Baked, Device, FUSIONS, Limits, LoadOptions, Plan, StepState};
use basert_cpu::CpuDevice;

const PROMPT: usize = 512;
const ANSWER: usize = 16;
/// Each is measured so often, in turns with the others.
const ROUNDS: usize = 40;

fn main() {
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let path = named.map_or_else(basert_testkit::smollm2, PathBuf::from);
    let device = CpuDevice::new(None).expect("threads");
    let file = Arc::new(ModelFile::open(&path).unwrap_or_else(|error| panic!("{error}")));
    let graph = Arc::new(Graph::open(&file, &[]).unwrap_or_else(|error| panic!("{error}")));
    let pages: Vec<u32> = (0..PROMPT.div_ceil(device.facts().page_tokens) as u32).collect();
    let load = |without: Option<usize>| {
        let fusions: Vec<_> = (0..FUSIONS.len()).filter(|&i| Some(i) != without).map(|i| FUSIONS[i]).collect();
        let plan = Arc::new(Plan::build(graph.clone(), Limits { tokens: PROMPT, wanted: 1 }, &fusions));
        let counts = vec![pages.len(); plan.page_groups.len()];
        let options = LoadOptions { pages: counts, slots: 4, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
        device.load(plan, file.clone(), options).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut plans: Vec<_> = [None].into_iter().chain((0..FUSIONS.len()).map(Some)).map(|i| (i, load(i))).collect();
    // For each plan, what all rounds took: decoding and the prompt.
    let mut seconds = vec![[const { Vec::new() }; 2]; plans.len()];
    for _ in 0..ROUNDS {
        for ((_, baked), seconds) in plans.iter_mut().zip(&mut seconds) {
            seconds[0].push(answer(&mut **baked, &pages));
            seconds[1].push(prompt(&mut **baked, &pages));
        }
    }
    println!("{}, {}", path.display(), device.facts().description);
    println!("Speed without a fusion beside that with all: medians of {ROUNDS} rounds, and half of them");
    println!("without                 decode {ANSWER}                  prefill {PROMPT}");
    for (i, (without, _)) in plans.iter().enumerate() {
        let name = without.map_or("none", |i| FUSIONS[i].name);
        let ratios = [0, 1].map(|kind| {
            let mut ratios: Vec<f64> =
                seconds[0][kind].iter().zip(&seconds[i][kind]).map(|(all, one)| all / one).collect();
            ratios.sort_by(f64::total_cmp);
            let at = |share: usize| ratios[ROUNDS * share / 4];
            format!("{:.3} ({:.3} to {:.3})", at(2), at(1), at(3))
        });
        println!("{name:23} {:26} {}", ratios[0], ratios[1]);
    }
}

/// The seconds of steps of one token each.
fn answer(baked: &mut dyn Baked, pages: &[u32]) -> f64 {
    let mut step = StepState::default();
    let began = Instant::now();
    for position in 0..ANSWER {
        run(baked, &mut step, &[1], position, pages);
    }
    began.elapsed().as_secs_f64()
}

/// The seconds of a step of many tokens.
fn prompt(baked: &mut dyn Baked, pages: &[u32]) -> f64 {
    let began = Instant::now();
    run(baked, &mut StepState::default(), &[1; PROMPT], 0, pages);
    began.elapsed().as_secs_f64()
}

fn run(baked: &mut dyn Baked, step: &mut StepState, tokens: &[u32], position: usize, pages: &[u32]) {
    step.clear();
    step.push(tokens, position, &[pages], 1);
    baked.submit(step).and_then(|()| baked.wait()).unwrap_or_else(|error| panic!("{error}"));
}
