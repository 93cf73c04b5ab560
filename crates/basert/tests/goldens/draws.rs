//! Tokens that a GPU draws, against the engine's sampler on the same logits: on the CPU, thread by thread, or on the GPU
//! that `BASERT_TEST_GPU` names.

use std::collections::BTreeSet;
use std::sync::Arc;

use basert::core::KvFormat;
use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{Device, FUSIONS, Facts, Limits, LoadOptions, Plan};
use basert::{DeviceKind, Finish, Generation, Grammar, Model, Options, Sampler, Sampling};
use basert_convert::Random;
use basert_engine::{Allowed, Engine, EngineError, Part, Sequence};
use basert_testkit::tiny;
use basert_tune::ops::Row;
use serde_json::{Value, json};

use crate::golden::gguf_twins;
use crate::gpu::device;

/// Sequences that draw together.
const ROWS: usize = 4;

/// Engines over a model: one whose device draws tokens, and one that draws them from its logits.
fn engines(file: Arc<ModelFile>, graph: Arc<Graph>, device: &dyn Device) -> [Engine; 2] {
    let limits = Limits { tokens: ROWS, wanted: ROWS };
    let plan = Arc::new(Plan::build(graph.clone(), limits, &FUSIONS));
    let (on_device, pages) = (device.facts().clone(), vec![16; plan.page_groups.len()]);
    assert!(on_device.chain > 1);
    let on_cpu = Facts { chain: 0, ..on_device.clone() };
    [on_device, on_cpu].map(|facts| {
        let options = LoadOptions { pages: pages.clone(), slots: 4, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
        let baked = device.load(plan.clone(), file.clone(), options).unwrap();
        Engine::new(baked, &facts, limits, &plan.reaches(&pages), 256, graph.vocabulary)
    })
}

/// What a row may draw, as its mask or the reason why there is none; all where there is neither.
type Mask = Result<Option<Vec<u32>>, String>;

fn allowed(mask: &Mask) -> Allowed<'_> {
    mask.as_ref().map(Option::as_deref).map_err(Clone::clone)
}

/// The tokens that follow each of these prompts, all of them drawn together, in as many steps as there are masks. In a step
/// without any, the device need not wait for them.
fn drawn(
    engine: &mut Engine,
    prompts: &[&[u32]],
    sampling: &[Sampling],
    masks: &[Vec<Mask>],
) -> Vec<Vec<Result<u32, EngineError>>> {
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
    let mut all = Vec::new();
    for (i, masks) in masks.iter().enumerate() {
        let rows = sequences.iter_mut().zip(&mut samplers).zip(&last);
        let mut rows: Vec<_> = rows.map(|((sequence, sampler), &token)| (sequence, sampler, token)).collect();
        let tokens = if masks.is_empty() {
            engine.draw(&mut rows, 3 - i % 4).unwrap().into_iter().map(Ok).collect()
        } else {
            engine.draw_allowed(&mut rows, || masks.iter().map(allowed).collect()).unwrap()
        };
        last = tokens.iter().map(|token| *token.as_ref().unwrap_or(&0)).collect();
        all.push(tokens);
    }
    sequences.iter_mut().for_each(|sequence| engine.close(sequence));
    all
}

fn any_sampling(random: &mut Random) -> Sampling {
    let mut pick = |choices: &[f32]| choices[random.below(choices.len())];
    Sampling {
        temperature: pick(&[0.0, 0.3, 0.7, 1.0, 1.5, 5.0, 1e-4]),
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

/// Masks of all kinds, as long as the vocabulary, shorter, and longer.
fn any_mask(random: &mut Random, vocabulary: usize) -> Mask {
    let (words, kind) = (vocabulary.div_ceil(32), random.below(10));
    let mut bits = |words: usize, one_in: usize| -> Vec<u32> {
        (0..words).map(|_| (0..32).filter(|_| random.below(one_in) == 0).fold(0, |word, bit| word | 1 << bit)).collect()
    };
    let mask = match kind {
        0..3 => return Ok(None),
        3 => bits(words, 1),
        4 => bits(words, 2),
        5 => bits(words, 200),
        6 => bits(words / 3, 10),
        7 => bits(words + 3, 30),
        8 => {
            let only = random.below(vocabulary);
            (0..words).map(|word| u32::from(word == only / 32) << (only % 32)).collect()
        }
        _ if random.below(2) == 0 => return Err("nothing fits".to_owned()),
        // What it allows is beyond the vocabulary.
        _ => (0..words).map(|word| if word == words - 1 { 1 << 31 } else { 0 }).collect(),
    };
    Ok(Some(mask))
}

/// Logits of all kinds: likely and unlikely tokens, ties, impossible ones, none that is possible.
fn any_logits(random: &mut Random, vocabulary: usize) -> Vec<Vec<f32>> {
    // Twice that is infinite.
    let infinite = 3e38;
    let mut row = |kind: usize| -> Vec<f32> {
        let mut value = || match kind % 8 {
            0 => 1.5 * random.normal(),
            1 => (2.0 * random.normal()).round(),
            2 => 20.0 * random.normal(),
            3 if random.below(3) > 0 => -infinite,
            4 => 1.0,
            5 => 1e30 * random.normal(),
            6 => -infinite,
            7 if random.below(400) == 0 => infinite,
            _ => random.normal(),
        };
        (0..vocabulary).map(|_| value()).collect()
    };
    (0..32).map(&mut row).collect()
}

/// A thousand settings.
const ROUNDS: usize = 1000 / ROWS;

/// Whatever the settings, several sequences together, and steps ahead of being asked.
#[test]
fn a_gpu_draws_what_the_sampler_draws() {
    let device = device();
    let goldens = gguf_twins();
    let golden = goldens.iter().find(|golden| golden.name == "qwen3.gguf").unwrap();
    let mut engines = engines(golden.file.clone(), golden.graph.clone(), &*device);
    let mut random = Random::new(7, 0);
    let mut different = BTreeSet::new();
    // Fewer where each thread of each step takes its turn.
    let rounds = if device.facts().name == "simt" { 6 } else { ROUNDS };
    for round in 0..rounds {
        let prompts: Vec<&[u32]> = (0..ROWS).map(|i| &golden.prompt[..golden.prompt.len() - i]).collect();
        let sampling: Vec<_> = (0..ROWS).map(|_| any_sampling(&mut random)).collect();
        let [device, cpu] = engines.each_mut().map(|engine| drawn(engine, &prompts, &sampling, &vec![vec![]; 3]));
        assert_eq!(device, cpu, "round {round}: {sampling:?}");
        different.extend(device.into_iter().flatten().flatten());
    }
    assert!(different.len() > 10, "only {} different tokens", different.len());
}

/// Steps that run ahead go on in the next page of every group, while what is behind the window is given back, and taken by
/// others.
#[test]
fn a_gpu_draws_the_same_where_windows_give_back_pages() {
    let device = device();
    let file = Arc::new(ModelFile::open(tiny().join("gemma3.gguf")).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let prompts: Vec<Vec<u32>> = [187, 125].map(|length| (0..length).map(|i| (i * i + length) % 250).collect()).into();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let sampling = [5, 6].map(|seed| Sampling { temperature: 1.0, seed, ..Sampling::default() });
    let [ahead, cpu] = engines(file, graph, &*device)
        .each_mut()
        .map(|engine| (drawn(engine, &prompts, &sampling, &vec![vec![]; 12]), engine.page_use().held));
    assert_eq!(ahead, cpu);
    let different: BTreeSet<_> = ahead.0.into_iter().flatten().flatten().collect();
    assert!(different.len() > 5, "only {} different tokens", different.len());
}

/// The same whatever the logits, with masks for some steps and some of the rows in these.
#[test]
fn a_gpu_draws_what_the_sampler_draws_from_any_logits_among_what_is_allowed() {
    // No multiple of 32, and more than are listed where candidates are close.
    const VOCABULARY: usize = 1403;
    let device = device();
    let mut random = Random::new(8, 0);
    let (file, graph) = Row::of_logits(&any_logits(&mut random, VOCABULARY)).model().unwrap();
    let mut engines = engines(file, graph, &*device);
    let (mut different, mut refused) = (BTreeSet::new(), 0);
    for round in 0..ROUNDS {
        let prompts: Vec<_> = (0..ROWS).map(|_| [0; 2].map(|_| random.below(VOCABULARY) as u32)).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[..]).collect();
        let sampling: Vec<_> = (0..ROWS).map(|_| any_sampling(&mut random)).collect();
        let mut masks = || {
            let rows = if random.below(3) == 0 { 0 } else { ROWS };
            (0..rows).map(|_| any_mask(&mut random, VOCABULARY)).collect()
        };
        let steps = if round % 8 == 0 { 4 } else { 1 };
        let masks: Vec<Vec<Mask>> = (0..steps).map(|_| masks()).collect();
        let [device, cpu] = engines.each_mut().map(|engine| drawn(engine, &prompts, &sampling, &masks));
        assert_eq!(device, cpu, "round {round}: {prompts:?} {sampling:?} {masks:?}");
        for token in device.into_iter().flatten() {
            refused += usize::from(token.is_err());
            different.extend(token);
        }
    }
    assert!(different.len() > 50 && refused > 10, "{} different tokens, {refused} refused", different.len());
}

/// Of a damaged model, which a device reports as the host does.
#[test]
fn what_is_no_number_is_not_drawn() {
    const VOCABULARY: usize = 600;
    let device = device();
    // Twice the last one is −∞.
    for (value, temperature) in [f32::NAN, 1.0, -3e38].into_iter().flat_map(|value| [(value, 0.0), (value, 1.0)]) {
        let row = match value.is_nan() {
            true => Row::of_no_numbers(VOCABULARY),
            false => Row::of_logits(&vec![vec![value; VOCABULARY]; 32]),
        };
        let (file, graph) = row.model().unwrap();
        let [mut engine, _] = engines(file, graph, &*device);
        let mut sequence = Sequence::default();
        engine.sync(&mut sequence, &[0]);
        engine.reserve(&mut sequence, 1, false).unwrap();
        let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() }, &[]).unwrap();
        let mut parts = [Part { sequence: &mut sequence, count: 1, wanted: 1 }];
        let drawn = engine.run_and_draw(&mut parts, &mut [&mut sampler], || vec![Ok(None)]).unwrap();
        let is_right = match drawn[..] {
            [Err(EngineError::NotNumbers)] => value.is_nan(),
            [Ok(token)] => !value.is_nan() && (token == 0 || (value == 1.0 && temperature > 0.0)),
            _ => false,
        };
        assert!(is_right, "{value} {temperature}: {drawn:?}");
        engine.close(&mut sequence);
    }
}

#[test]
fn a_gpu_answers_by_a_schema_as_the_cpu_does() {
    let name = std::env::var("BASERT_TEST_GPU").unwrap_or_else(|_| "simt".to_owned());
    let models = ["cpu", &name].map(|device| {
        let device = device.parse::<DeviceKind>().unwrap();
        let options = Options { device, max_context: Some(256), sessions: 1, ..Options::default() };
        Model::open(tiny().join("llama.gguf"), options).unwrap()
    });
    let name = json!({"enum": ["Paris", "Rome", "Oslo"]});
    let city = json!({
        "type": "object",
        "properties": {"city": name, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
        "additionalProperties": false,
    });
    for (schema, temperature, max_tokens) in [(&city, 0.0, 40), (&name, 1.0, 40)] {
        let options = Generation {
            max_tokens: Some(max_tokens),
            sampling: Sampling { temperature, seed: 5, repeat_penalty: 1.3, ..Sampling::default() }.into(),
            grammar: Some(Grammar::JsonSchema(schema.clone())),
            ..Generation::default()
        };
        let [cpu, gpu] = models.each_ref().map(|model| model.generate("As JSON: ", &options, |_| true).unwrap());
        assert_eq!((&gpu.text, &gpu.tokens), (&cpu.text, &cpu.tokens));
        let ends = schema == &name;
        assert_eq!(gpu.finish, Some(if ends { Finish::End } else { Finish::Length }), "{:?}", gpu.text);
        let value = serde_json::from_str::<Value>(&gpu.text).ok();
        assert_eq!(value.is_some_and(|value| ["Paris", "Rome", "Oslo"].contains(&value.as_str().unwrap())), ends);
    }
}
