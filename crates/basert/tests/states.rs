//! Models with running states, and models with windows: whatever happens to sequences, logits have the bits of a fresh
//! computation; on a GPU, whose kernels for few and for many tokens round differently, they are close to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use basert::files::ModelFile;
use basert::graph::Graph;
use basert::plan::{FUSIONS, Limits, LoadOptions, Plan};
use basert::{DeviceKind, Engine, KvFormat, Loaded, Options, Sequence};
use proptest::prelude::*;

/// Tokens of the longest text.
const LONGEST: usize = 400;
/// Texts 1, 2 and 3 begin alike for so many tokens, or twice or three times as many.
const ALIKE: usize = 60;

/// The tiny models with running states.
fn hybrids() -> Vec<PathBuf> {
    let files = std::fs::read_dir(basert_testkit::tiny()).unwrap().map(|entry| entry.unwrap().path());
    let has_states = |path: &PathBuf| {
        let file = ModelFile::open(path).unwrap();
        Graph::open(&file, &[]).unwrap().slot_bytes() > 0
    };
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|gguf| gguf == "gguf")).collect();
    found.retain(has_states);
    found.sort();
    assert!(found.len() > 4);
    found
}

/// Tiny models with windows: beside layers that see everything, or in all layers.
const WINDOWED: [&str; 4] = ["gemma3.gguf", "gpt-oss.gguf", "cohere2.gguf", "mistral.gguf"];
/// With running states, too.
const WINDOWED_HYBRIDS: [&str; 2] = ["lara-mini", "lfm3"];

/// An engine with hardly more pages of windows than three sequences need, so that cached ones are evicted all the time.
fn cramped(path: &PathBuf, device: DeviceKind) -> Engine {
    let device = device.open(Some(2)).unwrap();
    let file = Arc::new(ModelFile::open(path).unwrap());
    let graph = Arc::new(Graph::open(&file, &[]).unwrap());
    let (vocabulary, slot_bytes) = (graph.vocabulary, graph.slot_bytes());
    let slots = if slot_bytes > 0 { 30 } else { 0 };
    let plan = Arc::new(Plan::build(graph, Limits { tokens: 64, wanted: 8 }, &FUSIONS));
    let page_tokens = device.facts().page_tokens;
    let one = plan.pages_of(LONGEST + 8, page_tokens);
    let mut pages: Vec<usize> = one.iter().map(|pages| 3 * pages + 1).collect();
    pages[0] *= 2;
    assert!(pages.len() > 1 && one[1] < one[0]);
    let options = LoadOptions { pages: pages.clone(), slots, kv: KvFormat::F16, progress: &mut |_, _, _| {} };
    let baked = device.load(plan.clone(), file, options).unwrap();
    let engine = Engine::new(baked, device.facts(), plan.limits, &plan.reaches(&pages), LONGEST + 8, vocabulary);
    engine.with_slots(slots, slot_bytes).with_prefix_cache()
}

fn options(device: DeviceKind) -> Options {
    let (threads, max_context, step_tokens) = (Some(2), Some(LONGEST + 8), Some(64));
    Options { device, threads, max_context, step_tokens, sessions: 6, prefix_cache: true, ..Options::default() }
}

fn engine(path: &PathBuf, device: DeviceKind) -> Engine {
    Loaded::open(path, options(device)).unwrap().engine
}

/// A text, by its number: texts begin alike, and go their own ways at some point.
fn text(number: usize, length: usize) -> Vec<u32> {
    (0..length)
        .map(|i| if i < ALIKE * number { (i * i + 7 * i) % 250 } else { (31 * number + i * i) % 250 } as u32)
        .collect()
}

#[derive(Debug, Clone)]
enum Event {
    /// A sequence is to have this text, and is computed in chunks of so many tokens, with all others.
    Sync { sequence: usize, text: usize, length: usize, chunk: usize },
    /// It goes on with a token.
    Push { sequence: usize, token: u32 },
    /// It goes on with some tokens, of which all but the first ones, one at least, are taken back.
    Guess { sequence: usize, tokens: usize, right: usize },
    /// It becomes a copy of another one.
    Fork { sequence: usize, of: usize },
    /// It gives up its pages, and takes them back as far as they are there.
    Preempt { sequence: usize },
    /// It ends.
    Close { sequence: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let sequence = 0usize..3;
    prop_oneof![
        4 => (sequence.clone(), 0usize..4, 1..LONGEST, prop_oneof![Just(1000usize), 1usize..70])
            .prop_map(|(sequence, text, length, chunk)| Event::Sync { sequence, text, length, chunk }),
        3 => (sequence.clone(), 0u32..250).prop_map(|(sequence, token)| Event::Push { sequence, token }),
        3 => (sequence.clone(), 1usize..6, 1usize..6)
            .prop_map(|(sequence, tokens, right)| Event::Guess { sequence, tokens, right: right.min(tokens) }),
        1 => (sequence.clone(), sequence.clone()).prop_map(|(sequence, of)| Event::Fork { sequence, of }),
        1 => sequence.clone().prop_map(|sequence| Event::Preempt { sequence }),
        1 => sequence.prop_map(|sequence| Event::Close { sequence }),
    ]
}

/// Logits after texts, computed at once and alone.
struct Fresh {
    engine: Engine,
    known: BTreeMap<Vec<u32>, Vec<f32>>,
    /// The largest difference that logits may have, as a part of the largest of them.
    bound: f32,
}

impl Fresh {
    /// Whether these are the logits after a text.
    fn are(&mut self, tokens: &[u32], logits: &[f32]) -> bool {
        let Fresh { engine, known, bound } = self;
        let expected = known.entry(tokens.to_vec()).or_insert_with(|| {
            let mut sequence = Sequence::default();
            engine.set(&mut sequence, tokens.to_vec()).unwrap();
            engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
            let logits = sequence.logits().to_vec();
            // What it computed is not kept for others.
            engine.rewind(&mut sequence, 0);
            engine.close(&mut sequence);
            logits
        });
        let largest = expected.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
        let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= *bound * largest;
        expected.len() == logits.len() && expected.iter().zip(logits).all(is_close)
    }
}

/// Lets events happen, and compares all logits.
fn happen(
    path: &PathBuf,
    device: DeviceKind,
    open: fn(&PathBuf, DeviceKind) -> Engine,
    events: Vec<Event>,
) -> Result<(), TestCaseError> {
    let mut engine = open(path, device);
    let bound = if device == DeviceKind::Cpu { 0.0 } else { 1e-2 };
    let mut fresh = Fresh { engine: open(path, device), known: BTreeMap::new(), bound };
    let mut sequences = [const { None }; 3].map(|sequence: Option<Sequence>| sequence.unwrap_or_default());
    for event in events {
        match event.clone() {
            Event::Sync { sequence, text: number, length, chunk } => {
                engine.sync(&mut sequences[sequence], &text(number, length));
                let mut all: Vec<_> = sequences.iter_mut().filter(|sequence| !sequence.tokens().is_empty()).collect();
                engine.advance(&mut all, chunk, &mut |_| true).unwrap();
            }
            Event::Push { sequence, token } => {
                let sequence = &mut sequences[sequence];
                if sequence.tokens().len() < LONGEST {
                    engine.push(sequence, token);
                    engine.advance(&mut [sequence], usize::MAX, &mut |_| true).unwrap();
                }
            }
            Event::Guess { sequence, tokens, right } => {
                let sequence = &mut sequences[sequence];
                let before = sequence.tokens().len();
                if before == 0 || before > LONGEST || sequence.computed() < before {
                    continue;
                }
                let guesses: Vec<u32> = (0..tokens as u32).map(|i| (before as u32 + 11 * i) % 250).collect();
                engine.extend(sequence, &guesses).unwrap();
                for row in 0..tokens {
                    let is_right = fresh.are(&sequence.tokens()[..before + row + 1], engine.logits(row));
                    prop_assert!(is_right, "row {} of {:?} by {:?}", row, path, event);
                }
                engine.rewind(sequence, before + right);
                prop_assert_eq!(sequence.computed(), before + right);
            }
            Event::Fork { sequence, of } if sequence != of => {
                engine.close(&mut sequences[sequence]);
                sequences[sequence] = engine.fork(&sequences[of]);
            }
            Event::Fork { .. } => {}
            Event::Preempt { sequence } => {
                let tokens = sequences[sequence].tokens().len();
                engine.release(&mut sequences[sequence]);
                engine.adopt(&mut sequences[sequence]);
                prop_assert!(sequences[sequence].computed() < tokens.max(1));
                engine.advance(&mut [&mut sequences[sequence]], usize::MAX, &mut |_| true).unwrap();
            }
            Event::Close { sequence } => engine.close(&mut sequences[sequence]),
        }
        for sequence in &sequences {
            if !sequence.logits().is_empty() {
                let is_right = fresh.are(sequence.tokens(), sequence.logits());
                prop_assert!(is_right, "{} tokens of {:?} after {:?}", sequence.tokens().len(), path, event);
            }
        }
    }
    sequences.iter_mut().for_each(|sequence| engine.close(sequence));
    prop_assert_eq!(engine.page_use().held, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_logits_are_those_of_a_fresh_run(events in prop::collection::vec(event(), 1..24)) {
        for path in hybrids() {
            happen(&path, DeviceKind::Cpu, engine, events.clone())?;
        }
    }

    #[test]
    fn windows_that_are_given_back_change_nothing(events in prop::collection::vec(event(), 1..32)) {
        for name in WINDOWED.into_iter().chain(WINDOWED_HYBRIDS) {
            happen(&basert_testkit::tiny().join(name), DeviceKind::Cpu, cramped, events.clone())?;
        }
    }
}

/// On the simulated GPU the same, of few events, as it is slow.
#[cfg(unix)]
#[test]
fn on_a_gpu_as_well() {
    let events = vec![
        Event::Sync { sequence: 0, text: 1, length: 70, chunk: 40 },
        Event::Guess { sequence: 0, tokens: 4, right: 1 },
        Event::Sync { sequence: 1, text: 2, length: 66, chunk: 1000 },
        Event::Fork { sequence: 2, of: 1 },
        Event::Push { sequence: 2, token: 5 },
        Event::Push { sequence: 1, token: 6 },
        Event::Preempt { sequence: 0 },
    ];
    happen(&basert_testkit::tiny().join("qwen3-5.gguf"), DeviceKind::Simt, engine, events).unwrap();
}

/// The same of a window, behind which pages are given back and taken by others.
#[cfg(unix)]
#[test]
fn windows_on_a_gpu_as_well() {
    let events = vec![
        Event::Sync { sequence: 0, text: 1, length: 230, chunk: 1000 },
        Event::Guess { sequence: 0, tokens: 3, right: 1 },
        Event::Sync { sequence: 1, text: 2, length: 250, chunk: 1000 },
        Event::Fork { sequence: 2, of: 0 },
        Event::Push { sequence: 2, token: 5 },
        Event::Sync { sequence: 0, text: 1, length: 90, chunk: 1000 },
        Event::Push { sequence: 1, token: 6 },
        Event::Preempt { sequence: 1 },
    ];
    happen(&basert_testkit::tiny().join("gemma3.gguf"), DeviceKind::Simt, cramped, events).unwrap();
}

/// Of a long text only its windows are held, and where a second one parts from it, or goes on after it, it can be taken up.
#[test]
fn pages_behind_windows_are_given_back() {
    for name in WINDOWED {
        let path = basert_testkit::tiny().join(name);
        let mut engine = cramped(&path, DeviceKind::Cpu);
        let (all, before) = (engine.page_use().total, engine.available_pages());
        assert_eq!(all, before);
        let tokens = text(3, 390);
        let mut sequence = Sequence::default();
        engine.sync(&mut sequence, &tokens);
        engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
        assert!(all - engine.available_pages() < 7 + 5, "{path:?}: held {}", all - engine.available_pages());
        engine.close(&mut sequence);
        for (length, more) in [(389, 1), (300, 40), (130, 20), (300, 41)] {
            let next = [&tokens[..length], &vec![more as u32; more]].concat();
            engine.sync(&mut sequence, &next);
            assert_eq!(sequence.computed(), length, "{path:?}");
            engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
            engine.close(&mut sequence);
        }
    }
}

/// A conversation goes on where it was, an answer is made anew, and an edit is computed from the last checkpoint.
#[test]
fn the_next_turn_computes_what_is_new() {
    let path = &hybrids()[0];
    let mut engine = engine(path, DeviceKind::Cpu);
    let mut computed = |tokens: &[u32]| {
        let mut sequence = Sequence::default();
        engine.sync(&mut sequence, tokens);
        let known = sequence.computed();
        engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
        engine.close(&mut sequence);
        tokens.len() - known
    };
    let prompt = text(3, 150);
    assert_eq!(computed(&prompt), 150);
    assert_eq!(computed(&prompt), 1, "the same prompt once more");
    let next = [&prompt[..], &[5; 20]].concat();
    assert_eq!(computed(&next), 20, "a further message");
    let other = [&prompt[..145], &[9; 30]].concat();
    assert_eq!(computed(&other), 175 - 128, "another end, from the last whole page");
}
