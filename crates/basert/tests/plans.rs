//! Plans as snapshots: a change in ops, barriers or memory shows in review. (`INSTA_UPDATE=always cargo test` accepts.)

use std::sync::Arc;

use basert::KvFormat;
use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{FUSIONS, Limits, Plan, StepShape};
use basert_testkit::{gemma3, smollm2, tiny};

const LIMITS: Limits = Limits { tokens: 512, wanted: 4 };

fn plan(path: std::path::PathBuf, fusions: &[basert::plan::Fusion]) -> Plan {
    let file = ModelFile::open(path).unwrap();
    Plan::build(Arc::new(Graph::open(&file, &[]).unwrap()), LIMITS, fusions)
}

#[test]
fn tiny_families() {
    let files = std::fs::read_dir(tiny()).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        let family = path.file_stem().unwrap().to_str().unwrap().to_owned();
        insta::assert_snapshot!(family, plan(path, &FUSIONS).to_string());
    }
}

/// Ops and barriers a token: what decides about small models.
#[test]
fn real_models_are_short() {
    for (path, ops, layers) in [(smollm2(), 6, 30), (gemma3(), 8, 18)] {
        let plan = plan(path, &FUSIONS);
        assert_eq!(plan.graph.layers, layers);
        // Embedding, selections and logits come on top.
        assert!(plan.nodes.len() <= ops * layers + 4, "{} ops", plan.nodes.len());
    }
}

/// Values that are alive at the same time do not share memory, whatever is fused.
#[test]
fn live_values_are_apart() {
    for family in ["llama", "qwen2", "gemma3", "stablelm", "qwen3moe", "gpt-oss"] {
        for count in 0..=FUSIONS.len() {
            let plan = plan(tiny().join(format!("{family}.gguf")), &FUSIONS[..count]);
            let bytes = |id: usize| {
                let (place, value) = (plan.places[id], &plan.values[id]);
                let root = plan.root(basert::graph::ValueId(id)).0;
                let rows = LIMITS.rows(plan.values[root.0].rows);
                (root, place.offset..place.offset + rows * place.stride * 4, value.rows)
            };
            // For each op: what it reads has to be what the last writer of that memory left there.
            let mut writer: Vec<(std::ops::Range<usize>, basert::graph::ValueId)> = Vec::new();
            for node in &plan.nodes {
                for read in node.reads() {
                    let (root, range, _) = bytes(read.0);
                    for (other, by) in &writer {
                        let overlaps = other.start < range.end && range.start < other.end;
                        assert!(!overlaps || *by == root, "{family}: {:?} was overwritten", plan.values[read.0].name);
                    }
                }
                let (root, range, _) = bytes(node.out.0);
                assert!(range.end <= plan.arena_bytes);
                writer.retain(|(other, _)| !(other.start < range.end && range.start < other.end));
                writer.push((range, root));
            }
        }
    }
}

/// The parts of a step's cost are those that can be counted by hand.
#[test]
fn costs_are_what_they_are() {
    let plan = plan(smollm2(), &FUSIONS);
    let shape = StepShape { tokens: 1, wanted: 1, context: 0, kv: KvFormat::F16 };
    let (cost, seconds) = plan.step_cost(shape, 1e9, 1e15);
    let matrices: usize = plan.weight_bytes();
    let row = 576 / 32 * 34;
    assert_eq!(cost.weights, (matrices + row) as f64);
    // 30 layers · 3 heads · 64 dimensions · keys and values · 2 bytes, written once and read once.
    assert_eq!(cost.cache, (30 * 3 * 64 * 2 * 2 * 2) as f64);
    let cached = |kv| plan.step_cost(StepShape { kv, ..shape }, 1e9, 1e15).0.cache;
    // Blocks of 32 with a scale of 2 bytes.
    assert_eq!(cached(KvFormat::Q8), cost.cache / 64.0 * 34.0);
    assert_eq!(cached(KvFormat::Q4), cost.cache / 64.0 * 18.0);
    assert!((seconds - cost.memory_bytes() / 1e9).abs() < 1e-9);
    let parameters = 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536) + 49152 * 576;
    assert!(cost.flops >= 2.0 * f64::from(parameters) && cost.flops < 2.05 * f64::from(parameters));
    let (prefill, _) = plan.step_cost(StepShape { tokens: 512, wanted: 0, ..shape }, 1e9, 1e15);
    let last_layer = 2.0 * 512.0 * f64::from(576 * 576 + 3 * 576 * 1536);
    let all = 2.0 * 512.0 * f64::from(parameters - 49152 * 576) - last_layer;
    assert!(prefill.flops > all && prefill.flops < 1.1 * all, "{} of {all}", prefill.flops);
}
