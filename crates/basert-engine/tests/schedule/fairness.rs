//! What one client asks for, or does not read, is not at the expense of others.

use std::time::Duration;

use basert_engine::{Readiness, Request, Scheduler, Speculation, Turn};

use crate::asking::{Note, answer, expected, finish, prompt, request, scheduler, warm};
use crate::device::engine;

#[test]
fn who_does_not_read_waits_and_makes_room() {
    let (mut engine, mut scheduler) = (engine(10, 32, 0), scheduler());
    let (slow, quick) = (Note::new(usize::MAX), Note::new(usize::MAX));
    scheduler.submit(&mut engine, request(1, &prompt(1, 12), warm(1), 18, &slow));
    (0..3).for_each(|_| {
        let _ = scheduler.step(&mut engine);
    });
    slow.set(Readiness::Busy);
    assert_eq!(scheduler.step(&mut engine), Turn::Blocked);
    scheduler.submit(&mut engine, request(2, &prompt(2, 24), warm(2), 8, &quick));
    while scheduler.step(&mut engine) != Turn::Blocked {}
    assert_eq!(quick.told().tokens, expected(&prompt(2, 24), warm(2), 8));
    slow.set(Readiness::Ready);
    finish(&mut scheduler, &mut engine);
    assert_eq!(slow.told().tokens, expected(&prompt(1, 12), warm(1), 18));
}

#[test]
fn clients_share_a_device_by_what_they_get_and_not_by_what_they_ask() {
    let (mut engine, mut scheduler) = (engine(256, 64, 0), Scheduler::new(2, Duration::from_millis(100)));
    let greedy: Vec<_> = (0..12).map(|_| Note::new(usize::MAX)).collect();
    for (i, note) in (0..).zip(&greedy) {
        scheduler.submit(&mut engine, request(1, &prompt(i, 20), warm(1), 20, note));
    }
    scheduler.step(&mut engine);
    let modest = Note::new(usize::MAX);
    scheduler.submit(&mut engine, request(2, &prompt(40, 20), warm(1), 20, &modest));
    while modest.told().end.is_none() {
        scheduler.step(&mut engine);
    }
    let done = greedy.iter().filter(|note| note.told().end.is_some()).count();
    assert!(done <= 4, "{done} of the other client's requests came first");
}

/// However many of them there are, by whom, and whether their answers have begun.
#[test]
fn answers_that_nobody_reads_take_no_place() {
    for (requests, n) in [(1, 8), (8, 1), (20, 1)] {
        let (mut engine, mut scheduler) = (engine(64, 64, 0), scheduler());
        let stalled: Vec<Note> = (0..requests * n).map(|_| Note::new(usize::MAX)).collect();
        for notes in stalled.chunks(n) {
            let answers = (0..).zip(notes).map(|(seed, note)| answer(warm(seed), 30, note)).collect();
            let prompt = prompt(1, 9);
            scheduler.submit(
                &mut engine,
                Request { client: 1, salt: 0, prompt, answers, pooling: None, prompt_logprobs: None },
            );
        }
        for _ in 0..4 {
            scheduler.step(&mut engine);
        }
        stalled.iter().for_each(|note| note.set(Readiness::Busy));
        // Of the same client, too.
        for client in [1, 2] {
            let note = Note::new(usize::MAX);
            scheduler.submit(&mut engine, request(client, &prompt(2, 24), warm(2), 8, &note));
            while scheduler.step(&mut engine) != Turn::Blocked {}
            assert_eq!(note.told().tokens, expected(&prompt(2, 24), warm(2), 8), "{requests} with {n} answers");
        }
        stalled.iter().for_each(|note| note.set(Readiness::Ready));
        finish(&mut scheduler, &mut engine);
        for (i, note) in stalled.iter().enumerate() {
            assert_eq!(note.told().tokens, expected(&prompt(1, 9), warm((i % n) as u64), 30));
        }
        assert_eq!(engine.page_use().held, 0);
    }
}

/// Long answers of one client have all places, or all pages, when another one comes.
#[test]
fn who_comes_later_does_not_wait_for_long_answers_of_others() {
    for pages in [200, 24] {
        let (mut engine, mut scheduler) = (engine(pages, 64, 0), scheduler());
        let long: Vec<Note> = (0..12).map(|_| Note::new(usize::MAX)).collect();
        for (seed, note) in (0..).zip(&long) {
            scheduler.submit(&mut engine, request(1, &prompt(1, 5), warm(seed), 50, note));
        }
        for _ in 0..6 {
            scheduler.step(&mut engine);
        }
        for n in [1, 3, 4] {
            let notes: Vec<Note> = (0..n).map(|_| Note::new(usize::MAX)).collect();
            let answers = (0..).zip(&notes).map(|(seed, note)| answer(warm(seed), 6, note)).collect();
            let prompt = prompt(2 + n, 9);
            let request =
                Request { client: 2, salt: 0, prompt: prompt.clone(), answers, pooling: None, prompt_logprobs: None };
            scheduler.submit(&mut engine, request);
            let steps = (0..200).take_while(|_| {
                scheduler.step(&mut engine);
                notes.iter().any(|note| note.told().end.is_none())
            });
            assert!(steps.count() < 80, "{n} answers had to wait, with {pages} pages");
            for (seed, note) in (0..).zip(notes) {
                assert_eq!(note.told().tokens, expected(&prompt, warm(seed), 6));
            }
            assert!(long.iter().any(|note| note.told().end.is_none()));
        }
        finish(&mut scheduler, &mut engine);
        for (seed, note) in (0..).zip(long) {
            assert_eq!(note.told().tokens, expected(&prompt(1, 5), warm(seed), 50));
        }
    }
}

/// What is cached of others' prompts is not found, and not told of, with another salt.
#[test]
fn prompts_of_another_salt_share_nothing_that_is_cached() {
    let (mut engine, mut scheduler) = (engine(64, 64, 0), scheduler().with_speculation(Speculation::Tokens(3), None));
    for (salt, cached) in [(1, 0), (2, 0), (1, 23), (2, 23), (0, 0)] {
        let note = Note::new(usize::MAX);
        let asked = request(salt, &prompt(3, 24), warm(1), 6, &note);
        scheduler.submit(&mut engine, Request { salt, ..asked });
        finish(&mut scheduler, &mut engine);
        assert_eq!((note.told().cached, note.told().tokens), (cached, expected(&prompt(3, 24), warm(1), 6)), "{salt}");
    }
}

#[test]
fn no_more_is_cached_than_may_be() {
    let page = size_of::<[u32; 4]>();
    let (mut engine, mut scheduler) = (engine(64, 64, 0), scheduler());
    engine.limit_prefixes(5 * page + 3);
    for seed in 0..6 {
        let note = Note::new(usize::MAX);
        scheduler.submit(&mut engine, request(1, &prompt(seed, 9), warm(1), 4, &note));
        finish(&mut scheduler, &mut engine);
        assert!(engine.page_use().cached <= 5);
    }
    assert!(engine.can_give_back());
    scheduler.give_back(&mut engine);
    assert!(engine.can_give_back());
    scheduler.give_back(&mut engine);
    assert!(!engine.can_give_back());
    // What was used last is still known.
    let note = Note::new(usize::MAX);
    scheduler.submit(&mut engine, request(1, &prompt(5, 9), warm(1), 4, &note));
    finish(&mut scheduler, &mut engine);
    assert_eq!((note.told().cached, note.told().tokens), (8, expected(&prompt(5, 9), warm(1), 4)));
}
