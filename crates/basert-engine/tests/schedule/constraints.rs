//! Answers of which only some tokens may come, and rows that a device draws.

use basert_engine::{Engine, EngineError, Sampler, Sampling, Sequence};

use crate::asking::{Note, expected, finish, prompt, request, scheduler};
use crate::device::{DRAWN_AFTER, engine, greedy, logits_after};

/// What the answer has to be where only these tokens may come.
fn expected_of(prompt: &[u32], mask: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    (0..tokens).for_each(|_| all.push(greedy().next_of(&logits_after(all.iter().copied()), mask).unwrap()));
    all.split_off(prompt.len())
}

#[test]
fn a_constraint_is_kept_and_an_impossible_one_ends_the_answer() {
    for chain in [0, 4] {
        let (mut engine, mut scheduler) = (engine(32, 64, chain), scheduler());
        let masked = |mask: Vec<u32>| Note { allowed: Some(mask), ..Note::new(usize::MAX) };
        let (even, one) = (masked(vec![0x5555_5555]), masked(vec![0, 1 << 9]));
        // Without any token, and with such as there are not.
        let (none, beyond) = (masked(vec![0, 0]), masked(vec![0, 1 << 31]));
        let free = Note::new(usize::MAX);
        for note in [&even, &none, &free, &beyond, &one] {
            scheduler.submit(&mut engine, request(0, &prompt(1, 5), Sampling::default(), 10, note));
        }
        finish(&mut scheduler, &mut engine);
        assert_eq!(even.told().tokens, expected_of(&prompt(1, 5), &[0x5555_5555], 10));
        assert_eq!(one.told().tokens, [41; 10]);
        assert_eq!(free.told().tokens, expected(&prompt(1, 5), Sampling::default(), 10));
        for note in [&none, &beyond] {
            assert!(matches!(note.told().end, Some(Err(EngineError::Constraint(_)))));
        }
        assert_eq!((engine.page_use().held, DRAWN_AFTER.get() > 0), (0, chain > 0));
    }
}

/// A sequence of a prompt, computed but for the last token.
fn begun(engine: &mut Engine, prompt: &[u32]) -> (Sequence, Sampler, u32) {
    let (token, before) = prompt.split_last().unwrap();
    let mut sequence = Sequence::default();
    engine.sync(&mut sequence, before);
    engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
    (sequence, greedy(), *token)
}

#[test]
fn a_row_that_may_draw_nothing_leaves_the_others_as_they_are() {
    for chain in [0, 4] {
        let mut engine = engine(32, 64, chain);
        let ((mut first, mut a, x), (mut second, mut b, y)) =
            (begun(&mut engine, &prompt(1, 5)), begun(&mut engine, &prompt(2, 7)));
        let mut rows = [(&mut first, &mut a, x), (&mut second, &mut b, y)];
        let drawn = engine.draw_allowed(&mut rows, || vec![Err("so it is".to_owned()), Ok(None)]).unwrap();
        let right = expected(&prompt(2, 7), Sampling::default(), 2);
        assert_eq!(drawn, [Err(EngineError::Constraint("so it is".to_owned())), Ok(right[0])]);
        assert_eq!(engine.draw(&mut [(&mut second, &mut b, right[0])], 3).unwrap(), [right[1]]);
        [first, second].iter_mut().for_each(|sequence| engine.close(sequence));
        assert_eq!(engine.page_use().held, 0);
    }
}

#[test]
fn rows_that_change_places_are_not_taken_for_each_other() {
    let after = |prompt: &[u32]| expected(prompt, Sampling::default(), 2);
    let one = prompt(0, 5);
    // After which the same token comes, and then another one.
    let other = (0..2000).map(|i| prompt(i % 48, 4 + i as usize / 48)).find(|other| {
        let (one, other) = (after(&one), after(other));
        one[0] == other[0] && one[1] != other[1]
    });
    let other = other.unwrap();
    let mut engine = engine(64, 64, 4);
    let ((mut first, mut a, x), (mut second, mut b, y)) = (begun(&mut engine, &one), begun(&mut engine, &other));
    let drawn = engine.draw(&mut [(&mut first, &mut a, x), (&mut second, &mut b, y)], 3).unwrap();
    assert_eq!(drawn, [after(&one)[0]; 2]);
    let drawn = engine.draw(&mut [(&mut second, &mut b, drawn[0]), (&mut first, &mut a, drawn[0])], 3).unwrap();
    assert_eq!(drawn, [after(&other)[1], after(&one)[1]]);
}
