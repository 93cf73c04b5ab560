//! Texts are the same, whatever is guessed.

use std::collections::BTreeMap;

use basert_engine::{Draft, Sampler, Sampling, Speculation};

use crate::asking::{Note, answer, expected, finish, prompt, request, scheduler, warm};
use crate::device::{UNKNOWN, engine, engine_of, logits_after, with_head};

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
    // The last ones with running states.
    for (pages, slots, chain) in [(64, 0, 0), (12, 0, 0), (64, 0, 4), (64, 64, 0), (12, 64, 0), (64, 24, 4)] {
        for speculation in speculations {
            for (draft, head) in [(None, false), (Some(draft(64)), false), (Some(draft(6)), false), (None, true)] {
                let drafted = draft.is_some();
                let engine = engine_of(pages, slots, 40, chain);
                let (mut engine, scheduler) = (if head { with_head(engine) } else { engine }, scheduler());
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
                if speculation == Speculation::Tokens(5) && pages == 64 {
                    assert!(proposed > 0 && accepted > 0, "{accepted} of {proposed}, {chain}, {drafted}, {head}");
                }
                assert!(pages == 64 || scheduler.preempted() > 0);
                assert_eq!((engine.page_use().held, engine.available_pages()), (0, pages));
            }
        }
    }
}

/// A head is given the right tokens and hidden states, whatever becomes of its sequence: one that is never wrong proposes
/// nothing that is not accepted.
#[test]
fn a_head_that_is_never_wrong_is_always_right() {
    for (slots, tokens) in [(0, 1), (0, 4), (64, 1), (64, 4), (64, 16)] {
        let mut engine = with_head(engine_of(64, slots, 60, 0));
        let mut scheduler = scheduler().with_speculation(Speculation::Mtp(Some(tokens)), None);
        UNKNOWN.set(0);
        let ask = |seed: u32, length: usize| (prompt(seed, length), Note::new(usize::MAX));
        // Prompts that take several steps, and end with a page or not; then a common one of several answers.
        let asked: Vec<_> =
            [(1, 1), (2, 7), (3, 8), (4, 16), (5, 21), (6, 32)].map(|(seed, length)| ask(seed, length)).into();
        for (i, (prompt, note)) in (0..).zip(&asked) {
            scheduler.submit(&mut engine, request(i, prompt, warm(i), 20, note));
        }
        finish(&mut scheduler, &mut engine);
        assert_eq!(UNKNOWN.get(), 0, "{slots} {tokens}");
        let (shared, notes) = (prompt(7, 10), [Note::new(usize::MAX), Note::new(usize::MAX)]);
        let mut several = request(9, &shared, warm(9), 20, &notes[0]);
        several.answers.push(answer(warm(10), 20, &notes[1]));
        scheduler.submit(&mut engine, several);
        finish(&mut scheduler, &mut engine);
        assert_eq!(UNKNOWN.get(), 0, "{slots} {tokens}: an answer that shares its prompt knows what comes before it");
        // The same again: of what others have computed, the last hidden state is not known.
        let again = Note::new(usize::MAX);
        scheduler.submit(&mut engine, request(4, &asked[4].0, warm(4), 20, &again));
        finish(&mut scheduler, &mut engine);
        assert!(again.told().cached > 0 && UNKNOWN.get() > 0);
        for (i, (prompt, note)) in (0..).zip(&asked) {
            assert_eq!(note.told().tokens, expected(prompt, warm(i), 20));
        }
        assert_eq!(again.told().tokens, asked[4].1.told().tokens);
        for (seed, note) in (9..).zip(&notes) {
            assert_eq!(note.told().tokens, expected(&shared, warm(seed), 20));
        }
        let (proposed, accepted) = (scheduler.proposed(), scheduler.accepted());
        assert!(proposed > 0 && accepted == proposed, "{slots} {tokens}: {accepted} of {proposed}");
    }
}

/// Drafting costs nothing here, so with as many as pay off there are drafts after the first steps.
#[test]
fn a_head_is_used_as_far_as_it_pays() {
    let mut engine = with_head(engine_of(64, 0, 60, 0));
    let mut scheduler = scheduler().with_speculation(Speculation::Auto, None);
    let note = Note::new(usize::MAX);
    scheduler.submit(&mut engine, request(1, &prompt(1, 5), warm(1), 40, &note));
    finish(&mut scheduler, &mut engine);
    assert_eq!(note.told().tokens, expected(&prompt(1, 5), warm(1), 40));
    assert!(scheduler.accepted() > 0 && scheduler.accepted() == scheduler.proposed());
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
