//! Heads for multi-token prediction as drafters: texts are the same to the bit, and a head that predicts what the model
//! will say is believed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basert::core::KvFormat;
use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{FUSIONS, Limits, LoadOptions, Plan};
use basert::{DeviceKind, Loaded, Mtp, Options, Sampler, Sampling, Speculation};
use basert_engine::{Allowed, Answer, Engine, EngineError, Prompt, Reader, Readiness, Request, Scheduler, Token, Turn};
use serde_json::Value;

fn open(path: &Path, device: DeviceKind, mtp: Mtp) -> Engine {
    let options = Options { device, threads: Some(1), max_context: Some(128), mtp, ..Options::default() };
    Loaded::open(path, options).unwrap().engine
}

/// The same of a folder without a tokenizer.
fn engine(path: &Path, device: DeviceKind, with_head: bool) -> Engine {
    let file = Arc::new(ModelFile::open(path).unwrap());
    let graph = Arc::new(Graph::open_for(&file, &[], 128, with_head).unwrap());
    assert_eq!(graph.head.is_some(), with_head);
    let (limits, device) = (Limits { tokens: 32, wanted: 24 }, device.open(Some(2)).unwrap());
    let plan = Arc::new(Plan::build(graph.clone(), limits, &FUSIONS));
    let pages = vec![16; plan.page_groups.len()];
    let slots = if graph.slot_bytes() > 0 { 48 } else { 0 };
    let load = LoadOptions { pages: pages.clone(), slots, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
    let baked = device.load(plan.clone(), file, load).unwrap();
    let engine =
        Engine::new(baked, device.facts(), limits, &plan.reaches(&pages), 128, graph.vocabulary).with_prefix_cache();
    let engine = engine.with_slots(slots, graph.slot_bytes());
    engine.with_head(graph.head.map(|head| graph.values[head.hidden.0].width))
}

/// Takes tokens, of which only some may come.
struct Taker {
    tokens: Arc<Mutex<Vec<u32>>>,
    allowed: Option<Vec<u32>>,
}

impl Reader for Taker {
    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn prompt(&mut self, _prompt: Prompt) {}

    fn is_constrained(&self) -> bool {
        self.allowed.is_some()
    }

    fn mask(&mut self) -> Allowed<'_> {
        Ok(self.allowed.as_deref())
    }

    fn token(&mut self, token: Token) -> bool {
        self.tokens.lock().unwrap().push(token.id);
        true
    }

    fn end(&mut self, result: Result<(), EngineError>) {
        result.unwrap();
    }
}

/// The answers to some prompts in company, each sampled in another way, and how many draft tokens were proposed and accepted.
fn answers(engine: &mut Engine, speculation: Speculation, rounds: usize) -> (Vec<Vec<u32>>, [u64; 2]) {
    let mut scheduler = Scheduler::new(4, Duration::from_millis(100)).with_speculation(speculation, None);
    let warm = Sampling { temperature: 0.9, seed: 5, ..Sampling::default() };
    let ways = [
        (Sampling::default(), None),
        (warm.clone(), None),
        (Sampling { top_k: 20, repeat_penalty: 1.2, ..warm.clone() }, None),
        // Every third token.
        (warm, Some(vec![0x4924_9249; 9])),
    ];
    let mut all = Vec::new();
    for round in 0..rounds as u32 {
        let mut takers = Vec::new();
        for (i, (sampling, allowed)) in (0..).zip(&ways) {
            // Prompts begin alike, so that a later round finds them.
            let prompt: Vec<u32> = (0..20 + 9 * i).map(|at| (at * at + 3 * at + 7 * (at / 16) * i) % 250).collect();
            let sampler = Sampler::new(Sampling { seed: u64::from(round), ..sampling.clone() }, &prompt).unwrap();
            let tokens = Arc::<Mutex<Vec<u32>>>::default();
            takers.push(tokens.clone());
            let reader = Box::new(Taker { tokens, allowed: allowed.clone() });
            let answers = vec![Answer { sampler, max_tokens: 24, logprobs: None, reader }];
            let request = Request { client: 0, salt: 0, prompt, answers, pooling: None, prompt_logprobs: None };
            scheduler.submit(engine, request);
        }
        while scheduler.step(engine) != Turn::Idle {}
        all.extend(takers.into_iter().map(|tokens| tokens.lock().unwrap().clone()));
    }
    assert!(all.iter().all(|answer| answer.len() == 24));
    assert_eq!(engine.page_use().held, 0);
    (all, [scheduler.proposed(), scheduler.accepted()])
}

#[test]
fn draft_tokens_of_a_head_change_no_text() {
    for name in ["qwen3-5.gguf", "qwen3-5-moe", "glm4moe.gguf", "glm4moe-air"] {
        let path = basert_testkit::tiny().join(name);
        let expected = answers(&mut engine(&path, DeviceKind::Cpu, false), Speculation::Off, 2).0;
        let mut proposed = 0;
        for speculation in [Speculation::Off, Speculation::Auto, Speculation::Mtp(None), Speculation::Mtp(Some(3))] {
            let mut engine = engine(&path, DeviceKind::Cpu, true);
            let (found, [drafts, _]) = answers(&mut engine, speculation, 2);
            assert!(found == expected, "{name} {speculation}");
            proposed += drafts;
        }
        assert!(proposed > 0);
    }
}

#[test]
fn they_change_none_on_a_gpu() {
    for name in ["qwen3-5.gguf", "glm4moe-air.gguf"] {
        let path = basert_testkit::tiny().join(name);
        let expected = answers(&mut engine(&path, DeviceKind::Simt, false), Speculation::Off, 1).0;
        let mut engine = engine(&path, DeviceKind::Simt, true);
        let (found, [proposed, _]) = answers(&mut engine, Speculation::Mtp(Some(2)), 1);
        assert!(found == expected, "{name}");
        assert!(proposed > 0);
    }
}

/// A folder with a model whose next token depends on the last one alone, as nothing is added to its embedding, and whose
/// head lets that embedding through.
fn agreeing(name: &str) -> tempfile::TempDir {
    let (folder, from) = (tempfile::tempdir().unwrap(), basert_testkit::tiny().join(name));
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    // Qwen's norms store differences from 1.
    let is_qwen = name.starts_with("qwen");
    let one = |format: &str| if format == "BF16" { 0x3f80u16 } else { 0x3c00 };
    for (tensor, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let numbers = |key: &str| info[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let (shape, range): (Vec<usize>, Vec<usize>) = (numbers("shape"), numbers("data_offsets"));
        let values = &mut bytes[8 + length..][range[0]..range[1]];
        let one = one(info["dtype"].as_str().unwrap());
        let adds = ["o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj"];
        let norms = [
            "model.norm.weight",
            "mtp.norm.weight",
            "shared_head.norm.weight",
            "enorm.weight",
            "language_model.norm.weight",
            "pre_fc_norm_embedding.weight",
        ];
        if adds.iter().any(|end| tensor.ends_with(end)) {
            values.fill(0);
        } else if norms.iter().any(|end| tensor.ends_with(end)) {
            values.as_chunks_mut().0.fill(if is_qwen { [0; 2] } else { one.to_le_bytes() });
        } else if ["mtp.fc.weight", "eh_proj.weight"].iter().any(|end| tensor.ends_with(end)) {
            values.fill(0);
            let values = values.as_chunks_mut().0;
            (0..shape[0]).for_each(|row| values[row * shape[1] + row] = one.to_le_bytes());
        }
    }
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn a_head_that_agrees_with_the_model_is_believed() {
    for name in ["qwen3-5", "qwen3-next", "glm4moe", "glm4moe-air"] {
        let folder = agreeing(name);
        for device in [DeviceKind::Cpu, DeviceKind::Simt] {
            let expected = answers(&mut engine(folder.path(), device, false), Speculation::Off, 1).0;
            let (found, [proposed, accepted]) =
                answers(&mut engine(folder.path(), device, true), Speculation::Mtp(Some(4)), 1);
            assert!(found == expected, "{name} {device:?}");
            println!("{name} {device:?}: {accepted} of {proposed}");
            // Of the answer in which only every third token may come hardly any.
            assert!(accepted * 2 > proposed, "{name} {device:?}: {accepted} of {proposed}");
        }
    }
}

#[test]
fn a_head_is_used_where_it_is_wanted_and_there() {
    let path = basert_testkit::tiny().join("qwen3.gguf");
    let error = Loaded::open(&path, Options { mtp: Mtp::On, ..Options::default() }).err().unwrap().to_string();
    assert!(error.contains("no head for multi-token prediction"), "{error}");
    assert!(!open(&path, DeviceKind::Cpu, Mtp::Auto).has_head());
    let path = basert_testkit::tiny().join("glm4moe.gguf");
    for (device, mtp, has_head) in [
        (DeviceKind::Cpu, Mtp::Off, false),
        (DeviceKind::Cpu, Mtp::Auto, true),
        // Its steps run ahead of the host.
        (DeviceKind::Simt, Mtp::Auto, false),
        (DeviceKind::Simt, Mtp::On, true),
    ] {
        assert_eq!(open(&path, device, mtp).has_head(), has_head, "{device:?} {mtp:?}");
    }
}
