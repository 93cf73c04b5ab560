//! The dispatches of a step of each family, as snapshots: a change of their number shows in review.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use basert_core::KvFormat;
use basert_files::ModelFile;
use basert_gpu::{Binding, Buffer, Dispatch, Gpu, GpuDevice, GpuError, GpuFacts, Kernel, Pipeline, Recording, Ticket};
use basert_graph::Graph;
use basert_plan::{Device, Draw, FUSIONS, Limits, LoadOptions, Plan, StepState};

/// A GPU that does nothing, and writes down what it was to do.
struct Recorder {
    facts: GpuFacts,
    kernels: Vec<Kernel>,
    recorded: Arc<Mutex<String>>,
}

impl Gpu for Recorder {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn allocate(&mut self, _: usize, _: &str) -> Result<Buffer, GpuError> {
        Ok(Buffer(0))
    }

    fn compile(&mut self, kernels: &[Kernel], _: &mut dyn FnMut(usize)) -> Result<Vec<Pipeline>, GpuError> {
        self.kernels = kernels.to_vec();
        Ok((0..kernels.len() as u32).map(Pipeline).collect())
    }

    fn record(&mut self, dispatches: &[Dispatch]) -> Result<Recording, GpuError> {
        let mut out = self.recorded.lock().unwrap();
        writeln!(out, "{} dispatches", dispatches.len()).unwrap();
        for Dispatch { pipeline, groups: [x, y, z], threads, barrier, .. } in dispatches {
            let mark = if *barrier { '|' } else { ' ' };
            let function = self.kernels[pipeline.0 as usize].function;
            writeln!(out, "{mark} {function:17} {x:4} × {y} × {z} of {threads}").unwrap();
        }
        Ok(Recording(0))
    }

    fn write(&mut self, _: Binding, _: &[u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn copy(&mut self, _: Binding, _: Binding, _: usize) -> Result<(), GpuError> {
        Ok(())
    }

    fn submit(&mut self, _: Recording) -> Result<(), GpuError> {
        Ok(())
    }

    fn read(&mut self, _: Binding, _: &mut [u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn fetch(&mut self, _: Binding, _: usize) -> Result<Ticket, GpuError> {
        Ok(Ticket(0))
    }

    fn collect(&mut self, _: Ticket, _: &mut [u8]) -> Result<(), GpuError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
}

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
    let file = Arc::new(ModelFile::open(&basert_testkit::tiny().join(format!("{family}.gguf"))).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let recorded = Arc::default();
    let facts = GpuFacts {
        name: "recorder".to_owned(),
        description: String::new(),
        tuning: "cuda",
        free_memory: None,
        cores: 132,
    };
    let recorder = Recorder { facts, kernels: Vec::new(), recorded: Arc::clone(&recorded) };
    let plan = Arc::new(Plan::build(graph, Limits { tokens: 64, wanted: 4 }, &FUSIONS));
    let options = LoadOptions { pages: 16, kv: KvFormat::F16, progress: &mut |_, _| {} };
    let mut baked = GpuDevice::new(recorder).unwrap().load(plan, file, options).unwrap();
    let say = |text: &str| recorded.lock().unwrap().push_str(text);

    say("a token drawn: ");
    let mut step = StepState::default();
    step.push(&[1], 5, &[0], 1);
    step.draws.push(GREEDY);
    baked.submit(&step).unwrap();
    say("\nthe one after it: ");
    baked.chain().unwrap();
    baked.wait().unwrap();
    baked.wait().unwrap();

    say("\na token after 700 others: ");
    step.clear();
    step.push(&[1], 700, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 1);
    baked.submit(&step).unwrap();
    baked.wait().unwrap();

    say("\na prompt of 40 tokens: ");
    step.clear();
    step.push(&[1; 40], 0, &[0], 1);
    baked.submit(&step).unwrap();
    drop(baked);
    let text = recorded.lock().unwrap().clone();
    text
}

#[test]
fn dispatches_of_each_family() {
    for family in ["llama", "llama2", "mistral", "qwen2", "qwen3", "gemma3"] {
        insta::assert_snapshot!(family, dispatches(family));
    }
}
