//! Texts are the same, whatever is guessed.

use std::collections::BTreeMap;

use basert_engine::{Draft, Sampler, Sampling, Speculation};

use crate::asking::{Note, expected, finish, prompt, request, scheduler, warm};
use crate::device::{engine, engine_of, logits_after};

/// A draft that guesses right, as it is the same model, and nothing at all where pages run out.
pub fn draft(pages: usize) -> Draft {
    Draft::new(engine(pages, 64, 0))
}

/// Whatever is guessed, by whom, however tokens are drawn, among whom, and with too few pages for all.
#[test]
fn texts_are_the_same_with_guesses() {
    let settings = [
        Sampling::default(),
        warm(1),
        Sampling { top_k: 3, presence_penalty: 0.5, ..warm(2) },
        Sampling { top_p: 0.8, min_p: 0.02, repeat_penalty: 1.2, ..warm(3) },
        Sampling { logit_bias: BTreeMap::from([(3, 2.0)]), frequency_penalty: 0.3, ..warm(4) },
    ];
    let speculations = [Speculation::Auto, Speculation::Tokens(1), Speculation::Tokens(5), Speculation::Tokens(16)];
    // Some with running states, and the last ones with a window.
    let caches = [
        (&[64][..], 0, 0),
        (&[12], 0, 0),
        (&[64], 0, 4),
        (&[64], 64, 0),
        (&[12], 64, 0),
        (&[64], 24, 4),
        (&[64, 64], 0, 4),
        (&[12, 64], 0, 0),
        (&[64, 40], 64, 0),
    ];
    for (pages, slots, chain) in caches {
        let is_ample = pages[0] == 64;
        for speculation in speculations {
            for draft in [None, Some(draft(64)), Some(draft(6))] {
                let drafted = draft.is_some();
                let (mut engine, scheduler) = (engine_of(pages, slots, 40, chain), scheduler());
                let mut scheduler = scheduler.with_speculation(speculation, draft);
                let mut asked = Vec::new();
                for (i, sampling) in (0..).zip(&settings) {
                    // Few tokens that may come make a text that repeats itself.
                    let allowed = (i % 2 == 1).then(|| vec![0b1_0000_0110, 0]);
                    let note = Note { allowed, ..Note::new(if i == 2 { 7 } else { usize::MAX }) };
                    // The device draws greedily only.
                    let sampling = if chain == 0 { sampling.clone() } else { Sampling::default() };
                    scheduler.submit(&mut engine, request(i, &prompt(i as u32, 7), sampling.clone(), 24, &note));
                    asked.push((prompt(i as u32, 7), sampling, note));
                }
                finish(&mut scheduler, &mut engine);
                for (prompt, sampling, note) in asked {
                    let told = note.told();
                    let text = match &note.allowed {
                        None => expected(&prompt, sampling, told.tokens.len()),
                        Some(mask) => expected_among(&prompt, sampling, told.tokens.len(), mask),
                    };
                    assert_eq!(told.tokens, text);
                    assert!(told.tokens.len() == 24.min(note.stop_at));
                }
                let (proposed, accepted) = (scheduler.proposed(), scheduler.accepted());
                assert!(accepted <= proposed);
                if speculation == Speculation::Tokens(5) && is_ample {
                    assert!(proposed > 0 && accepted > 0, "{accepted} of {proposed}, {chain}, {drafted}");
                }
                assert!(is_ample || scheduler.preempted() > 0);
                assert_eq!((engine.page_use().held, engine.available_pages()), (0, pages.iter().sum()));
            }
        }
    }
}

/// What the answer has to be where only some tokens may come.
fn expected_among(prompt: &[u32], sampling: Sampling, tokens: usize, mask: &[u32]) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, &[]).unwrap();
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        let token = sampler.next_of(&logits_after(all.iter().copied()), mask).unwrap();
        all.push(token);
    }
    all.split_off(prompt.len())
}
