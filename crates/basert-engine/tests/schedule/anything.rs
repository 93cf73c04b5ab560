//! Anything that may happen, in any order.

use std::collections::BTreeMap;

use basert_engine::{Readiness, Request, Sampling, Speculation};

use crate::asking::{Note, answer, expected, finish, prompt, scheduler, warm};
use crate::device::{engine_of, with_head};
use crate::guesses::draft;

#[derive(Debug, Clone)]
enum Event {
    Submit { client: u64, prompt: u32, length: usize, tokens: usize, answers: usize },
    Leave(usize),
    Pause(usize),
    Resume(usize),
    Steps(usize),
}

fn event() -> impl proptest::strategy::Strategy<Value = Event> {
    use proptest::prelude::*;
    prop_oneof![
        3 => (0u64..3, 0u32..3, 1usize..28, 0usize..20, 1usize..4).prop_map(|(client, prompt, length, tokens, answers)| {
            Event::Submit { client, prompt, length, tokens, answers }
        }),
        1 => (0usize..30).prop_map(Event::Leave),
        1 => (0usize..30).prop_map(Event::Pause),
        1 => (0usize..30).prop_map(Event::Resume),
        4 => (1usize..6).prop_map(Event::Steps),
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_happens_texts_are_right_and_pages_return(
        events in proptest::collection::vec(event(), 1..60), pages in 10usize..30, chain in 0usize..3,
        guesses in 0usize..6, drafted in proptest::bool::ANY, head in proptest::bool::ANY,
        // Of a model with running states, or one without.
        slots in proptest::prop_oneof![proptest::strategy::Just(0), 10usize..30],
        // With a window, or without.
        windowed in proptest::prop_oneof![proptest::strategy::Just(0), 8usize..30],
    ) {
        let groups = if windowed == 0 { &[pages][..] } else { &[pages, windowed] };
        let engine = engine_of(groups, slots, 40, chain);
        let (mut engine, scheduler) = (if head { with_head(engine) } else { engine }, scheduler());
        let speculation = if guesses == 0 { Speculation::Off } else { Speculation::Tokens(guesses) };
        let mut scheduler = scheduler.with_speculation(speculation, drafted.then(|| draft(16)));
        // The device draws greedily only.
        let sampling = |seed| if chain == 0 { warm(seed) } else { Sampling::default() };
        let mut notes: BTreeMap<usize, (Note, Vec<u32>)> = BTreeMap::new();
        let mut left = Vec::new();
        for event in events {
            match event {
                Event::Submit { client, prompt: seed, length, tokens, answers } => {
                    let prompt = prompt(seed, length);
                    let first = notes.len();
                    let mut all = Vec::new();
                    for i in first..first + answers {
                        let note = Note::new(usize::MAX);
                        let text = expected(&prompt, sampling(i as u64), tokens.min(41 - length));
                        all.push(answer(sampling(i as u64), tokens, &note));
                        notes.insert(i, (note, text));
                    }
                    scheduler.submit(&mut engine, Request { client, salt: 0, prompt, answers: all, pooling: None, prompt_logprobs: None });
                }
                Event::Leave(i) => if let Some((note, _)) = notes.get(&i) {
                    note.set(Readiness::Gone);
                    left.push(i);
                },
                Event::Pause(i) => if let Some((note, _)) = notes.get(&i).filter(|_| !left.contains(&i)) {
                    note.set(Readiness::Busy);
                },
                Event::Resume(i) => if let Some((note, _)) = notes.get(&i).filter(|_| !left.contains(&i)) {
                    note.set(Readiness::Ready);
                },
                Event::Steps(n) => (0..n).for_each(|_| {
 let _ = scheduler.step(&mut engine); }),
            }
        }
        notes.iter().filter(|(i, _)| !left.contains(i)).for_each(|(_, (note, _))| note.set(Readiness::Ready));
        finish(&mut scheduler, &mut engine);
        for (i, (note, text)) in notes {
            let told = note.told();
            if left.contains(&i) {
                proptest::prop_assert!(text.starts_with(&told.tokens));
            } else {
                proptest::prop_assert_eq!(told.end, Some(Ok(())));
                proptest::prop_assert_eq!(told.tokens, text);
            }
        }
        let pages = engine.page_use();
        proptest::prop_assert_eq!(pages.held, 0);
        proptest::prop_assert_eq!(engine.available_pages(), pages.total);
        if slots > 0 {
            proptest::prop_assert_eq!(engine.available_slots(), slots);
        }
    }
}
