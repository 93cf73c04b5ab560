//! Answers in company, with too few pages, cached, failing.

use basert_engine::{EngineError, Readiness, Request, Sampling, Turn};

use crate::asking::{Note, answer, expected, finish, prompt, request, scheduler, warm};
use crate::device::{FAULT, engine, engine_of};

#[test]
fn answers_are_the_same_alone_together_and_cached() {
    for chain in [0, 4] {
        let (mut engine, mut scheduler) = (engine(64, 64, chain), scheduler());
        for round in 0..2 {
            let asked: Vec<_> = (0..10)
                .map(|i| {
                    let sampling = if i % 2 == 0 { Sampling::default() } else { warm(u64::from(i)) };
                    (prompt(i % 4, 3 + i as usize * 2), sampling, Note::new(usize::MAX))
                })
                .collect();
            for (client, (prompt, sampling, note)) in (0..).zip(&asked) {
                scheduler.submit(&mut engine, request(client, prompt, sampling.clone(), 12, note));
            }
            finish(&mut scheduler, &mut engine);
            for (prompt, sampling, note) in asked {
                // The device draws greedily only.
                if chain == 0 || sampling.temperature == 0.0 {
                    assert_eq!(note.told().tokens, expected(&prompt, sampling, 12));
                }
                assert_eq!(note.told().end, Some(Ok(())));
                assert!(round == 0 || note.told().cached == prompt.len() - 1, "{} cached", note.told().cached);
            }
            assert_eq!(engine.page_use().held, 0);
        }
    }
}

/// Four answers that need 8 pages each, where there are 10.
#[test]
fn a_preempted_answer_goes_on_with_the_same_text() {
    let (mut engine, mut scheduler) = (engine(10, 32, 0), scheduler());
    let asked: Vec<_> = (0..4).map(|i| (prompt(i, 6), Note::new(usize::MAX))).collect();
    for (client, (prompt, note)) in (0..).zip(&asked) {
        scheduler.submit(&mut engine, request(client, prompt, warm(client), 24, note));
    }
    finish(&mut scheduler, &mut engine);
    assert!(scheduler.preempted() > 0);
    for (seed, (prompt, note)) in (0..).zip(asked) {
        assert_eq!(note.told().tokens, expected(&prompt, warm(seed), 24));
    }
    assert_eq!(engine.page_use().held, 0);
}

#[test]
fn who_leaves_gives_the_pages_back_within_one_step() {
    let (mut engine, mut scheduler) = (engine(32, 64, 0), scheduler());
    let notes = [Note::new(usize::MAX), Note::new(usize::MAX)];
    for (client, note) in (0..).zip(&notes) {
        scheduler.submit(&mut engine, request(client, &prompt(client as u32, 9), warm(1), 40, note));
    }
    (0..5).for_each(|_| {
        let _ = scheduler.step(&mut engine);
    });
    let before = engine.page_use().held;
    notes[0].set(Readiness::Gone);
    scheduler.step(&mut engine);
    assert!(engine.page_use().held <= before / 2 + 1);
    notes[1].set(Readiness::Gone);
    assert_eq!(scheduler.step(&mut engine), Turn::Idle);
    assert_eq!((engine.page_use().held, notes[0].told().end), (0, None));
}

#[test]
fn several_answers_share_their_prompt() {
    let (mut engine, mut scheduler) = (engine(32, 64, 0), scheduler());
    let notes: Vec<_> = (0..4).map(|_| Note::new(usize::MAX)).collect();
    let answers = (0..).zip(&notes).map(|(seed, note)| answer(warm(seed), 6, note)).collect();
    scheduler.submit(
        &mut engine,
        Request { client: 0, salt: 0, prompt: prompt(3, 15), answers, pooling: None, prompt_logprobs: None },
    );
    let Turn::Step { prompt: tokens, .. } = scheduler.step(&mut engine) else { panic!("no step") };
    assert_eq!((tokens, scheduler.running()), (15, 4));
    finish(&mut scheduler, &mut engine);
    for (seed, note) in (0..).zip(notes) {
        assert_eq!(note.told().tokens, expected(&prompt(3, 15), warm(seed), 6));
    }
}

#[test]
fn a_prompt_that_another_one_begins_with_is_read_once() {
    let (mut engine, mut scheduler) = (engine(64, 64, 0), scheduler());
    let notes = [Note::new(usize::MAX), Note::new(usize::MAX)];
    let long = prompt(5, 40);
    for note in &notes {
        scheduler.submit(&mut engine, request(0, &long, Sampling::default(), 4, note));
    }
    finish(&mut scheduler, &mut engine);
    assert_eq!(notes[0].told().tokens, notes[1].told().tokens);
    // All but what both have in their last step.
    assert_eq!((notes[0].told().cached, notes[1].told().cached), (0, 32));
}

#[test]
fn a_failure_ends_the_requests_of_its_step_only() {
    let (mut engine, mut scheduler) = (engine(32, 64, 0), scheduler());
    let (good, bad, later) = (Note::new(5), Note::new(5), Note::new(5));
    scheduler.submit(&mut engine, request(0, &[1, 2, FAULT], Sampling::default(), 9, &bad));
    scheduler.step(&mut engine);
    assert!(matches!(bad.told().end, Some(Err(EngineError::Device(_)))));
    for note in [&good, &later] {
        scheduler.submit(&mut engine, request(0, &[1, 2, 3], Sampling::default(), 9, note));
        finish(&mut scheduler, &mut engine);
        assert_eq!(note.told().tokens, expected(&[1, 2, 3], Sampling::default(), 5));
    }
    assert_eq!(engine.page_use().held, 0);
}

#[test]
fn what_can_never_be_answered_is_refused_at_once() {
    let (mut engine, mut scheduler) = (engine(8, 24, 0), scheduler());
    for (tokens, part) in [(vec![1; 25], "25 tokens"), (vec![1, 99], "token 99")] {
        let note = Note::new(usize::MAX);
        scheduler.submit(&mut engine, request(0, &tokens, warm(1), 1, &note));
        let error = note.told().end.unwrap().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // As long as the context: one token follows, and more as far as there is room.
    for (length, tokens) in [(24, 1), (22, 3)] {
        let note = Note::new(usize::MAX);
        scheduler.submit(&mut engine, request(0, &prompt(1, length), warm(1), 9, &note));
        finish(&mut scheduler, &mut engine);
        assert_eq!(note.told().tokens, expected(&prompt(1, length), warm(1), tokens));
    }
}

/// A prompt that is many times as long as all windows there is room for passes through, and the ends of other texts stay.
#[test]
fn a_long_prompt_leaves_the_windows_of_other_texts() {
    let (mut engine, mut scheduler) = (engine_of(&[100, 24], 0, 160, 0), scheduler());
    let mut ask = |prompt: &[u32], tokens: usize| {
        let note = Note::new(usize::MAX);
        scheduler.submit(&mut engine, request(0, prompt, Sampling::default(), tokens, &note));
        finish(&mut scheduler, &mut engine);
        let told = note.told();
        assert_eq!(told.tokens, expected(prompt, Sampling::default(), tokens));
        told
    };
    let first = prompt(1, 30);
    let answer = ask(&first, 3).tokens;
    ask(&prompt(2, 150), 1);
    let next = [&first[..], &answer, &[4, 5, 6]].concat();
    assert_eq!(ask(&next, 2).cached, 32, "all but the last token of the answer");
    ask(&prompt(3, 150), 1);
    assert_eq!(ask(&[&first[..], &[7, 8]].concat(), 2).cached, 30, "another answer to the first prompt");
}
