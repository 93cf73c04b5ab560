//! Log probabilities of prompts, and vectors of their hidden states.

use basert_engine::{EngineError, Pooling, Request, Sampling, Token, TokenLogprobs};

use crate::asking::{Note, answer, expected, finish, prompt, request, scheduler};
use crate::device::{FAULT, engine, logits_after};

/// Beside answers and vectors, in pieces of any size, and each once though others take the pages in between.
#[test]
fn prompts_have_log_probabilities_whatever_happens_meanwhile() {
    for chain in [0, 4] {
        let (mut engine, mut scheduler) = (engine(14, 40, chain), scheduler());
        let mut asked = Vec::new();
        for i in 0..6u32 {
            let notes = [(); 4].map(|()| Note::new(usize::MAX));
            let tokens = prompt(i / 2, 8 + 4 * i as usize);
            let scored = Request {
                prompt_logprobs: Some(3),
                answers: notes[..2].iter().map(|note| answer(Sampling::default(), i as usize, note)).collect(),
                ..request(1, &tokens, Sampling::default(), 0, &notes[0])
            };
            scheduler.submit(&mut engine, scored);
            let vector = request(3, &tokens, Sampling::default(), 0, &notes[2]);
            scheduler.submit(&mut engine, Request { pooling: Some(Pooling::Mean), ..vector });
            scheduler.submit(&mut engine, request(2, &prompt(i, 6), Sampling::default(), 20, &notes[3]));
            asked.push((i, tokens, notes));
        }
        finish(&mut scheduler, &mut engine);
        assert!(scheduler.preempted() > 0);
        for (i, tokens, notes) in asked {
            let token = |end: usize| Token {
                id: tokens[end],
                was_drafted: false,
                logprobs: Some(TokenLogprobs::of(&logits_after(tokens[..end].iter().copied()), tokens[end], 3)),
            };
            for note in &notes[..2] {
                assert_eq!(note.told().prompt, (1..tokens.len()).map(token).collect::<Vec<_>>(), "{i} {chain}");
                assert_eq!(note.told().tokens, expected(&tokens, Sampling::default(), i as usize));
                assert_eq!(note.told().end, Some(Ok(())));
            }
            assert_eq!(notes[2].told().vectors, [pooled(&tokens, Pooling::Mean)]);
            assert_eq!(notes[3].told().tokens, expected(&prompt(i, 6), Sampling::default(), 20));
        }
        assert_eq!(engine.page_use().held, 0);
    }
}

/// The vector of a prompt, computed without any engine.
fn pooled(prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let first = if pooling == Pooling::Mean { 1 } else { prompt.len() };
    let mut sum = vec![0f32; FAULT as usize];
    for end in first..=prompt.len() {
        sum.iter_mut().zip(logits_after(prompt[..end].iter().copied())).for_each(|(sum, x)| *sum += x);
    }
    let count = (prompt.len() + 1 - first) as f32;
    sum.iter().map(|x| x / count).collect()
}

/// Beside answers, in pieces of any size, after others gave up their pages for them or took theirs.
#[test]
fn vectors_are_those_of_the_prompt_whatever_happens_meanwhile() {
    for chain in [0, 4] {
        let (mut engine, mut scheduler) = (engine(12, 40, chain), scheduler());
        let mut asked = Vec::new();
        for i in 0..6 {
            let pooling = if i % 2 == 0 { Pooling::Mean } else { Pooling::Last };
            let (vector, text) = (Note::new(usize::MAX), Note::new(usize::MAX));
            let tokens = prompt(i / 2, 10 + 5 * i as usize);
            let wanted = Request { pooling: Some(pooling), ..request(1, &tokens, Sampling::default(), 0, &vector) };
            scheduler.submit(&mut engine, wanted);
            scheduler.submit(&mut engine, request(2, &prompt(i, 6), Sampling::default(), 20, &text));
            asked.push((i, tokens, pooling, vector, text));
        }
        finish(&mut scheduler, &mut engine);
        assert!(scheduler.preempted() > 0);
        for (i, tokens, pooling, vector, text) in asked {
            assert_eq!((vector.told().end, vector.told().tokens), (Some(Ok(())), vec![]));
            assert_eq!(vector.told().vectors, [pooled(&tokens, pooling)], "{i}");
            assert_eq!(text.told().tokens, expected(&prompt(i, 6), Sampling::default(), 20));
        }
        let note = Note::new(usize::MAX);
        let faulty = request(1, &[1, FAULT], Sampling::default(), 0, &note);
        scheduler.submit(&mut engine, Request { pooling: Some(Pooling::Last), ..faulty });
        finish(&mut scheduler, &mut engine);
        assert!(matches!(note.told().end, Some(Err(EngineError::Device(_)))));
        assert_eq!(engine.page_use().held, 0);
    }
}
