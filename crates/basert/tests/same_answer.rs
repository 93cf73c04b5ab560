//! The answer does not depend on how it is computed: in one step or many, alone or with others, fresh or continued.
//! Logits are compared to the bit.

use basert::{DeviceKind, Generation, Grammar, KvFormat, Message, Model, Options, Sampling, Speculation};
use basert_testkit::{gemma3, smollm2};

const TEXT: &str = "The lighthouse keeper counted the ships that passed each night, and wrote their names into a \
    ledger that nobody had asked for. Über die Jahre wurde daraus 一本很厚的书. fn main() { println!(\"{}\", 6 * 7); }";

fn open(path: std::path::PathBuf, threads: usize) -> Model {
    open_with(KvFormat::F16, path, threads)
}

fn open_with(kv: KvFormat, path: std::path::PathBuf, threads: usize) -> Model {
    let options = Options { kv, threads: Some(threads), max_context: Some(1024), ..Options::default() };
    Model::open(path, options).unwrap()
}

fn prompt(model: &Model, repeats: usize) -> Vec<u32> {
    model.text_tokens(&TEXT.repeat(repeats)).unwrap()
}

fn logits_in_chunks(model: &Model, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut session = model.session();
    session.sync_in_chunks(tokens, chunk, &mut |_| true).unwrap();
    session.logits().to_vec()
}

fn check_chunks(model: &Model, tokens: &[u32]) {
    let expected = logits_in_chunks(model, tokens, usize::MAX);
    assert_eq!(expected.len(), model.plan().graph.vocabulary);
    for chunk in [1, 2, 3, 7, 16, 33, 64, 100] {
        assert!(logits_in_chunks(model, tokens, chunk) == expected, "in chunks of {chunk}");
    }
}

#[test]
fn a_prompt_in_chunks_of_any_size() {
    let model = open(smollm2(), 2);
    check_chunks(&model, &prompt(&model, 3));
}

/// Beyond the sliding window of 512 tokens.
#[test]
fn a_prompt_in_chunks_of_any_size_with_windows() {
    let model = open(gemma3(), 2);
    let tokens = prompt(&model, 12);
    assert!(tokens.len() > 560, "{} tokens", tokens.len());
    let expected = logits_in_chunks(&model, &tokens, usize::MAX);
    for chunk in [64, 129] {
        assert!(logits_in_chunks(&model, &tokens, chunk) == expected, "in chunks of {chunk}");
    }
}

#[test]
fn any_number_of_threads() {
    let models = [1, 2, 3].map(|threads| open(smollm2(), threads));
    let tokens = prompt(&models[0], 2);
    let all = models.each_ref().map(|model| logits_in_chunks(model, &tokens, 50));
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[test]
fn a_batch_with_others() {
    let model = open(smollm2(), 2);
    let tokens = prompt(&model, 3);
    let prompts: Vec<&[u32]> = vec![&tokens[..5], &tokens[..100], &tokens[20..21], &tokens[7..70], &tokens[1..130]];
    let alone: Vec<_> = prompts.iter().map(|prompt| logits_in_chunks(&model, prompt, usize::MAX)).collect();
    let mut sessions: Vec<_> = prompts.iter().map(|_| model.session()).collect();
    sessions.iter_mut().zip(&prompts).for_each(|(session, prompt)| session.set(prompt));
    model.advance(&mut sessions.iter_mut().collect::<Vec<_>>()).unwrap();
    for (i, session) in sessions.iter().enumerate() {
        assert!(session.logits() == alone[i], "prompt {i}");
    }
    // And decoding together.
    for step in 0..3 {
        for (session, prompt) in sessions.iter_mut().zip(&prompts) {
            let mut longer = prompt.to_vec();
            longer.extend((0..=step).map(|i| 100 + i));
            session.set(&longer);
        }
        model.advance(&mut sessions.iter_mut().collect::<Vec<_>>()).unwrap();
    }
    for (session, prompt) in sessions.iter().zip(&prompts) {
        let longer: Vec<u32> = prompt.iter().copied().chain([100, 101, 102]).collect();
        assert!(session.logits() == logits_in_chunks(&model, &longer, usize::MAX));
    }
}

#[test]
fn quantised_keys_and_values() {
    for kv in [KvFormat::Q8, KvFormat::Q4] {
        let models = [1, 2].map(|threads| open_with(kv, smollm2(), threads));
        let tokens = prompt(&models[0], 5);
        let expected = logits_in_chunks(&models[0], &tokens, usize::MAX);
        assert!(expected != logits_in_chunks(&open(smollm2(), 2), &tokens, usize::MAX), "{kv} changes nothing");
        for chunk in [1, 7, 64, 100] {
            assert!(logits_in_chunks(&models[1], &tokens, chunk) == expected, "{kv} in chunks of {chunk}");
        }
        a_fork_goes_its_own_way(&models[1]);
    }
}

#[test]
fn a_fork_and_its_origin_go_their_own_ways() {
    a_fork_goes_its_own_way(&open(smollm2(), 2));
}

/// With a copy of the page that both would write to.
fn a_fork_goes_its_own_way(model: &Model) {
    let tokens = prompt(model, 2);
    let mut origin = model.session();
    origin.sync(&tokens).unwrap();
    let mut fork = origin.fork();
    fork.step(11).unwrap();
    origin.step(12).unwrap();
    fork.step(13).unwrap();
    let after = |tail: &[u32]| {
        let tokens: Vec<u32> = tokens.iter().chain(tail).copied().collect();
        logits_in_chunks(model, &tokens, usize::MAX)
    };
    assert!(origin.logits() == after(&[12]));
    assert!(fork.logits() == after(&[11, 13]));
}

#[test]
fn a_session_that_is_synced_to_another_text() {
    let model = open(smollm2(), 2);
    let tokens = prompt(&model, 2);
    let mut session = model.session();
    for end in [90, 40, 41, 120, 64, 65, 63, 120] {
        session.sync(&tokens[..end]).unwrap();
        assert_eq!(session.tokens(), &tokens[..end]);
        assert!(session.logits() == logits_in_chunks(&model, &tokens[..end], usize::MAX), "{end} tokens");
    }
    let mut computed = 0;
    let longer = &tokens[..123];
    session
        .sync_in_chunks(longer, usize::MAX, &mut |n| {
            computed = n;
            true
        })
        .unwrap();
    assert_eq!(computed, 3, "what is known is not computed again");
}

#[test]
fn a_seed_gives_the_same_text() {
    let model = open(smollm2(), 2);
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 7, ..Sampling::default() };
    let text = |sampling: &Sampling| {
        let options = Generation { max_tokens: 24, sampling: sampling.clone().into(), ..Generation::default() };
        model.generate("Once upon a time", &options, |_| true).unwrap().text
    };
    assert_eq!(text(&sampling), text(&sampling));
    assert_ne!(text(&sampling), text(&Sampling { seed: 8, ..sampling.clone() }));
}

#[test]
fn what_is_refused_leaves_the_model_usable() {
    let model = Model::open(smollm2(), Options { max_context: Some(64), sessions: 1, ..Options::default() }).unwrap();
    let mut session = model.session();
    let error = session.sync(&[5; 65]).unwrap_err().to_string();
    assert!(error.contains("65 tokens") && error.contains("64"), "{error}");
    let error = session.sync(&[5, 1_000_000]).unwrap_err().to_string();
    assert!(error.contains("token 1000000"), "{error}");
    assert!(session.generate(&[], &Generation::default()).is_err());
    session.sync(&[5; 64]).unwrap();
    let mut other = model.session();
    let error = other.sync(&[6; 3]).unwrap_err().to_string();
    assert!(error.contains("pages"), "{error}");
    drop(session);
    other.sync(&[6; 3]).unwrap();
}

#[test]
fn stop_texts_end_an_answer_wherever_tokens_end() {
    let model = open(smollm2(), 2);
    let options = Generation { max_tokens: 40, ..Generation::greedy() };
    let whole = model.generate("Count: one, two, three,", &options, |_| true).unwrap().text;
    for (start, len) in [(1, 3), (4, 6), (9, 9)] {
        let stop: String = whole.chars().skip(start).take(len).collect();
        let options = Generation { stop: vec![stop.clone()], ..options.clone() };
        let answer = model.generate("Count: one, two, three,", &options, |_| true).unwrap();
        assert_eq!(answer.text, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(answer.finish, basert::Finish::Stop);
    }
}

#[test]
fn a_chat_continues_from_what_is_computed() {
    let model = open(smollm2(), 2);
    let mut messages = vec![Message::system("Be brief."), Message::user("Name a colour.")];
    let mut session = model.session();
    let options = Generation { max_tokens: 12, ..Generation::greedy() };
    let first = model.chat_tokens(&messages, None).unwrap();
    let mut pieces = session.generate(&first, &options).unwrap();
    pieces.by_ref().for_each(drop);
    let answer = pieces.into_answer();
    messages.push(Message::assistant(&answer.text));
    messages.push(Message::user("Another one."));
    let second = model.chat_tokens(&messages, None).unwrap();
    assert!(second.starts_with(&first));
    let pieces = session.generate(&second, &options).unwrap();
    assert!(pieces.answer().computed_tokens < second.len() - first.len());
}

/// Steps in the middle of a prompt want no logits at all.
#[test]
fn a_prompt_longer_than_a_step() {
    let model = Model::open(smollm2(), Options { step_tokens: Some(40), ..Options::default() }).unwrap();
    let other = open(smollm2(), 2);
    let tokens = prompt(&model, 3);
    let expected = logits_in_chunks(&other, &tokens, usize::MAX);
    assert!(logits_in_chunks(&model, &tokens, usize::MAX) == expected);
    let mut last = Vec::new();
    model.score(&tokens, 50, &mut |_, logits| last = logits.to_vec()).unwrap();
    assert!(last == expected);
}

/// Through the whole engine, with chunks, batches and forks, the reference device computes what the oracle does.
#[test]
fn the_reference_is_a_device() {
    let path = basert_testkit::tiny().join("gemma3.gguf");
    let open = |device| {
        let options = Options { device, max_context: Some(200), threads: Some(2), ..Options::default() };
        Model::open(&path, options).unwrap()
    };
    let (reference, cpu) = (open(DeviceKind::Reference), open(DeviceKind::Cpu));
    let tokens: Vec<u32> = (0..150).map(|i| 3 + i * 31 % 250).collect();
    let expected = logits_in_chunks(&reference, &tokens, usize::MAX);
    assert_eq!(logits_in_chunks(&reference, &tokens, 37), expected);
    let mut origin = reference.session();
    origin.sync(&tokens[..149]).unwrap();
    let mut fork = origin.fork();
    origin.step(5).unwrap();
    fork.step(tokens[149]).unwrap();
    assert_eq!(fork.logits(), expected);
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (a, b) in expected.iter().zip(logits_in_chunks(&cpu, &tokens, usize::MAX)) {
        assert!((a - b).abs() < 2e-2 * largest, "{a} and {b}");
    }
}

/// Pages of closed sessions are used again, whole and in part, and nothing shows but the time that it saves.
#[test]
fn a_cached_prefix_is_as_good_as_a_fresh_one() {
    let fresh = open(smollm2(), 2);
    let options = Options { threads: Some(2), max_context: Some(1024), prefix_cache: true, ..Options::default() };
    let cached = Model::open(smollm2(), options).unwrap();
    let tokens = prompt(&fresh, 4);
    let mut other = tokens.clone();
    other[100] += 1;
    let mut known: Vec<Vec<u32>> = Vec::new();
    for (timeline, from) in [(&tokens, 90), (&tokens, 150), (&other, 130), (&tokens, 64), (&tokens, 151), (&other, 200)]
    {
        let timeline = &timeline[..from];
        let shared = |old: &Vec<u32>| old.iter().zip(&timeline[..from - 1]).take_while(|(a, b)| a == b).count();
        let expected = from - known.iter().map(shared).max().unwrap_or(0);
        let (mut session, mut computed) = (cached.session(), 0);
        let progress = &mut |done| {
            computed = done;
            true
        };
        session.sync_in_chunks(timeline, usize::MAX, progress).unwrap();
        assert_eq!(computed, expected, "of {from} tokens");
        assert!(session.logits() == logits_in_chunks(&fresh, timeline, usize::MAX), "{from} tokens");
        known.push(timeline.to_vec());
    }
}

/// Guesses are free to be wrong: texts are those without them, for every way to draw, within a grammar, up to stop texts.
#[test]
fn guesses_change_no_text() {
    let model = open(smollm2(), 2);
    let same = Model::open(smollm2(), Options { threads: Some(1), prefix_cache: true, ..Options::default() }).unwrap();
    let drafted = open(smollm2(), 2).with_draft(same).unwrap();
    let (copying, plain) = ("one two three one two three one two three one two", "The capital of France is");
    let warm = Sampling { temperature: 0.8, top_p: 0.95, seed: 3, ..Sampling::default() };
    let cases = [
        (copying, Generation::greedy()),
        (plain, Generation::greedy()),
        (copying, Generation { sampling: warm.clone().into(), ..Generation::default() }),
        (
            plain,
            Generation {
                sampling: Sampling { repeat_penalty: 1.1, top_k: 20, ..warm }.into(),
                ..Generation::default()
            },
        ),
        (copying, Generation { stop: vec!["ee on".to_owned()], ..Generation::greedy() }),
        (
            copying,
            Generation { grammar: Some(Grammar::Regex("( (one|two|three)){6}".to_owned())), ..Generation::greedy() },
        ),
    ];
    for (prompt, options) in cases {
        let options = Generation { max_tokens: 16, ..options };
        let expected = model.generate(prompt, &options, |_| true).unwrap();
        assert_eq!(expected.proposed, 0);
        let ways = [(Speculation::Auto, &model), (Speculation::Tokens(8), &model), (Speculation::Tokens(3), &drafted)];
        for (speculation, model) in ways {
            let options = Generation { speculation, ..options.clone() };
            let found = model.generate(prompt, &options, |_| true).unwrap();
            assert_eq!((&found.text, &found.tokens, found.finish), (&expected.text, &expected.tokens, expected.finish));
            assert!(found.accepted <= found.proposed);
            let many =
                prompt == copying && options.sampling.temperature == Some(0.0) && speculation != Speculation::Auto;
            assert!(!many || found.accepted > 0, "{} of {}", found.accepted, found.proposed);
        }
    }
    let other = Model::open(basert_testkit::tiny().join("llama.gguf"), Options::default()).unwrap();
    let error = open(smollm2(), 1).with_draft(other).err().unwrap().to_string();
    assert!(error.contains("its vocabulary has 288 tokens"), "{error}");
}
