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
const ANSWER: usize = 64;
/// Each is measured so often, in turns with the others; the fastest counts.
const ROUNDS: usize = 7;

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
        let options = LoadOptions { pages: pages.len(), kv: KvFormat::F16, progress: &mut |_, _, _| {} };
        device.load(plan, file.clone(), options).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut plans: Vec<_> = [None].into_iter().chain((0..FUSIONS.len()).map(Some)).map(|i| (i, load(i))).collect();
    let mut best = vec![[f64::INFINITY; 2]; plans.len()];
    for _ in 0..ROUNDS {
        for ((_, baked), best) in plans.iter_mut().zip(&mut best) {
            let seconds = [answer(&mut **baked, &pages), prompt(&mut **baked, &pages)];
            best.iter_mut().zip(seconds).for_each(|(best, seconds)| *best = best.min(seconds));
        }
    }
    println!("{}, {}", path.display(), device.facts().description);
    println!("without                 decode {ANSWER}, tokens/s   ratio   prefill {PROMPT}   ratio");
    for ((without, _), seconds) in plans.iter().zip(&best) {
        let name = without.map_or("none", |i| FUSIONS[i].name);
        let [decode, prefill] = [ANSWER as f64 / seconds[0], PROMPT as f64 / seconds[1]];
        let [of_decode, of_prefill] = [best[0][0] / seconds[0], best[0][1] / seconds[1]];
        println!("{name:24} {decode:18.1} {of_decode:7.3} {prefill:13.1} {of_prefill:7.3}");
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
    step.push(tokens, position, pages, 1);
    baked.submit(step).and_then(|()| baked.wait()).unwrap_or_else(|error| panic!("{error}"));
}
