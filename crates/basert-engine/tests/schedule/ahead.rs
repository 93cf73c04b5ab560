//! A device that runs ahead of the readers.

use basert_engine::{Engine, Readiness, Sampling, Scheduler, Turn};

use crate::asking::{Note, expected, prompt, request, scheduler};
use crate::device::{DRAWN_AFTER, STEPS, engine};

/// Runs so many steps, or all that there are, each of which has to be one of the device.
fn run(scheduler: &mut Scheduler, engine: &mut Engine, steps: usize) {
    for _ in 0..steps {
        if scheduler.step(engine) == Turn::Idle {
            return;
        }
    }
}

#[test]
fn nothing_computed_ahead_is_lost_when_requests_come_and_go() {
    let (mut engine, mut scheduler) = (engine(64, 64, 4), scheduler());
    let notes: Vec<_> = (0..4).map(|_| Note::new(usize::MAX)).collect();
    let submit = |scheduler: &mut Scheduler, engine: &mut Engine, i: usize| {
        let (prompt, tokens) = (prompt(i as u32, 5 + i), 20 + 3 * i);
        scheduler.submit(engine, request(i as u64, &prompt, Sampling::default(), tokens, &notes[i]));
    };
    // Three that begin together, one that leaves, and one that comes while the device is ahead.
    (0..3).for_each(|i| submit(&mut scheduler, &mut engine, i));
    run(&mut scheduler, &mut engine, 6);
    let (ahead, taken) = (STEPS.get(), notes[0].told().tokens.len());
    assert!(ahead > taken, "{ahead} steps for {taken} tokens");
    notes[1].set(Readiness::Gone);
    run(&mut scheduler, &mut engine, 2);
    submit(&mut scheduler, &mut engine, 3);
    let mut turns = 8;
    while scheduler.step(&mut engine) != Turn::Idle {
        turns += 1;
    }
    assert_eq!(STEPS.get(), turns);
    for i in [0, 2, 3] {
        assert_eq!(notes[i].told().tokens, expected(&prompt(i as u32, 5 + i), Sampling::default(), 20 + 3 * i));
    }
    assert_eq!(engine.page_use().held, 0);
}

#[test]
fn a_reader_that_pauses_gets_the_same_text() {
    let (mut engine, mut scheduler) = (engine(64, 64, 4), scheduler());
    let notes = [Note::new(usize::MAX), Note::new(usize::MAX)];
    for (client, note) in (0..).zip(&notes) {
        scheduler.submit(&mut engine, request(client, &prompt(client as u32, 6), Sampling::default(), 30, note));
    }
    for turn in 0..200 {
        notes[turn % 2].set(if turn % 5 == 0 { Readiness::Busy } else { Readiness::Ready });
        scheduler.step(&mut engine);
    }
    for (seed, note) in (0..).zip(notes) {
        assert_eq!(note.told().tokens, expected(&prompt(seed, 6), Sampling::default(), 30));
    }
}

#[test]
fn the_device_draws_in_steps_with_prompts_too() {
    let (mut engine, mut scheduler) = (engine(64, 64, 4), scheduler());
    let notes: Vec<_> = (0..6).map(|_| Note::new(usize::MAX)).collect();
    for (i, note) in notes.iter().enumerate() {
        let prompt = prompt(i as u32, 4 + 3 * i);
        scheduler.submit(&mut engine, request(i as u64, &prompt, Sampling::default(), 8, note));
        scheduler.step(&mut engine);
        assert_eq!(DRAWN_AFTER.get(), i + 1, "each prompt takes one step");
    }
    run(&mut scheduler, &mut engine, usize::MAX);
    for (i, note) in notes.iter().enumerate() {
        assert_eq!(note.told().tokens, expected(&prompt(i as u32, 4 + 3 * i), Sampling::default(), 8));
    }
}
