//! The answer does not depend on how it is computed: in one step or many, alone or with others, fresh or continued.
//! Logits are compared to the bit.

use basert::{
    DeviceKind, Engine, Finish, Generation, Grammar, KvFormat, Loaded, Message, Model, Options, Sampling, Scheduling,
    Sequence, Speculation,
};
use basert_testkit::{gemma3, smollm2};

const TEXT: &str = "The lighthouse keeper counted the ships that passed each night, and wrote their names into a \
    ledger that nobody had asked for. Über die Jahre wurde daraus 一本很厚的书. fn main() { println!(\"{}\", 6 * 7); }";

fn open(path: std::path::PathBuf, threads: usize) -> Loaded {
    open_with(KvFormat::F16, path, threads)
}

fn open_with(kv: KvFormat, path: std::path::PathBuf, threads: usize) -> Loaded {
    let (threads, max_context, prefix_cache) = (Some(threads), Some(1024), false);
    Loaded::open(path, Options { kv, threads, max_context, prefix_cache, ..Options::default() }).unwrap()
}

fn prompt(model: &Loaded, repeats: usize) -> Vec<u32> {
    model.text_tokens(&TEXT.repeat(repeats)).unwrap()
}

fn start(model: Loaded) -> Model {
    model.start(&Scheduling { speculation: Speculation::Off, ..Scheduling::default() }).unwrap()
}

/// Brings a sequence up to date with these tokens, of which so many are computed at once. Returns how many were.
fn sync(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> usize {
    let mut computed = 0;
    engine.sync(sequence, tokens);
    let progress = &mut |done| {
        computed = done;
        true
    };
    engine.advance(&mut [sequence], chunk, progress).unwrap();
    computed
}

fn step(engine: &mut Engine, sequence: &mut Sequence, token: u32) {
    engine.push(sequence, token);
    engine.advance(&mut [sequence], usize::MAX, &mut |_| true).unwrap();
}

fn logits_in_chunks(engine: &mut Engine, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut sequence = Sequence::default();
    sync(engine, &mut sequence, tokens, chunk);
    let logits = sequence.logits().to_vec();
    engine.close(&mut sequence);
    logits
}

fn check_chunks(model: &mut Loaded, tokens: &[u32]) {
    let expected = logits_in_chunks(&mut model.engine, tokens, usize::MAX);
    assert_eq!(expected.len(), model.plan().graph.vocabulary);
    for chunk in [1, 2, 3, 7, 16, 33, 64, 100] {
        assert!(logits_in_chunks(&mut model.engine, tokens, chunk) == expected, "in chunks of {chunk}");
    }
}

#[test]
fn a_prompt_in_chunks_of_any_size() {
    let mut model = open(smollm2(), 2);
    let tokens = prompt(&model, 3);
    check_chunks(&mut model, &tokens);
}

/// Beyond the sliding window of 512 tokens.
#[test]
fn a_prompt_in_chunks_of_any_size_with_windows() {
    let mut model = open(gemma3(), 2);
    let tokens = prompt(&model, 12);
    assert!(tokens.len() > 560, "{} tokens", tokens.len());
    let expected = logits_in_chunks(&mut model.engine, &tokens, usize::MAX);
    for chunk in [64, 129] {
        assert!(logits_in_chunks(&mut model.engine, &tokens, chunk) == expected, "in chunks of {chunk}");
    }
}

#[test]
fn any_number_of_threads() {
    let mut models = [1, 2, 3].map(|threads| open(smollm2(), threads));
    let tokens = prompt(&models[0], 2);
    let all = models.each_mut().map(|model| logits_in_chunks(&mut model.engine, &tokens, 50));
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[test]
fn a_batch_with_others() {
    let mut model = open(smollm2(), 2);
    let (tokens, engine) = (prompt(&model, 3), &mut model.engine);
    let prompts: Vec<&[u32]> = vec![&tokens[..5], &tokens[..100], &tokens[20..21], &tokens[7..70], &tokens[1..130]];
    let alone: Vec<_> = prompts.iter().map(|prompt| logits_in_chunks(engine, prompt, usize::MAX)).collect();
    let mut sequences: Vec<_> = prompts.iter().map(|_| Sequence::default()).collect();
    let advance = |engine: &mut Engine, sequences: &mut [Sequence]| {
        engine.advance(&mut sequences.iter_mut().collect::<Vec<_>>(), usize::MAX, &mut |_| true).unwrap();
    };
    sequences.iter_mut().zip(&prompts).for_each(|(sequence, prompt)| engine.sync(sequence, prompt));
    advance(engine, &mut sequences);
    for (i, sequence) in sequences.iter().enumerate() {
        assert!(sequence.logits() == alone[i], "prompt {i}");
    }
    // And decoding together.
    for step in 0..3 {
        sequences.iter_mut().for_each(|sequence| engine.push(sequence, 100 + step));
        advance(engine, &mut sequences);
    }
    for (sequence, prompt) in sequences.iter().zip(&prompts) {
        let longer: Vec<u32> = prompt.iter().copied().chain([100, 101, 102]).collect();
        assert!(sequence.logits() == logits_in_chunks(engine, &longer, usize::MAX));
    }
}

#[test]
fn quantised_keys_and_values() {
    for kv in [KvFormat::Q8, KvFormat::Q4] {
        let [mut one, mut two] = [1, 2].map(|threads| open_with(kv, smollm2(), threads));
        let tokens = prompt(&one, 5);
        let expected = logits_in_chunks(&mut one.engine, &tokens, usize::MAX);
        let unquantised = logits_in_chunks(&mut open(smollm2(), 2).engine, &tokens, usize::MAX);
        assert!(expected != unquantised, "{kv} changes nothing");
        for chunk in [1, 7, 64, 100] {
            assert!(logits_in_chunks(&mut two.engine, &tokens, chunk) == expected, "{kv} in chunks of {chunk}");
        }
        a_fork_goes_its_own_way(two);
    }
}

#[test]
fn a_fork_and_its_origin_go_their_own_ways() {
    a_fork_goes_its_own_way(open(smollm2(), 2));
}

/// With a copy of the page that both would write to.
fn a_fork_goes_its_own_way(mut model: Loaded) {
    let (tokens, engine) = (prompt(&model, 2), &mut model.engine);
    let mut origin = Sequence::default();
    sync(engine, &mut origin, &tokens, usize::MAX);
    let mut fork = engine.fork(&origin);
    step(engine, &mut fork, 11);
    step(engine, &mut origin, 12);
    step(engine, &mut fork, 13);
    let mut after = |tail: &[u32]| logits_in_chunks(engine, &[&tokens, tail].concat(), usize::MAX);
    assert!(origin.logits() == after(&[12]));
    assert!(fork.logits() == after(&[11, 13]));
}

#[test]
fn a_sequence_that_is_synced_to_another_text() {
    let mut model = open(smollm2(), 2);
    let (tokens, engine) = (prompt(&model, 2), &mut model.engine);
    let mut sequence = Sequence::default();
    for end in [90, 40, 41, 120, 64, 65, 63, 120] {
        sync(engine, &mut sequence, &tokens[..end], usize::MAX);
        assert_eq!(sequence.tokens(), &tokens[..end]);
        assert!(sequence.logits() == logits_in_chunks(engine, &tokens[..end], usize::MAX), "{end} tokens");
    }
    let computed = sync(engine, &mut sequence, &tokens[..123], usize::MAX);
    assert_eq!(computed, 3, "what is known is not computed again");
}

#[test]
fn a_seed_gives_the_same_text() {
    let model = start(open(smollm2(), 2));
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 7, ..Sampling::default() };
    let text = |sampling: &Sampling| {
        let options = Generation { max_tokens: Some(24), sampling: sampling.clone().into(), ..Generation::default() };
        model.generate("Once upon a time", &options, |_| true).unwrap().text
    };
    assert_eq!(text(&sampling), text(&sampling));
    assert_ne!(text(&sampling), text(&Sampling { seed: 8, ..sampling.clone() }));
}

#[test]
fn what_is_refused_leaves_the_model_usable() {
    let model = Model::open(smollm2(), Options { max_context: Some(64), sessions: 1, ..Options::default() }).unwrap();
    let error = model.logits(vec![5; 65]).unwrap_err().to_string();
    assert!(error.contains("65 tokens") && error.contains("64"), "{error}");
    let error = model.logits(vec![5, 1_000_000]).unwrap_err().to_string();
    assert!(error.contains("token 1000000"), "{error}");
    let request = model.text_request(vec![], &Generation::default()).unwrap();
    assert!(model.answers(&request).is_err());
    let mut loaded =
        Loaded::open(smollm2(), Options { max_context: Some(64), sessions: 1, ..Options::default() }).unwrap();
    let (mut first, mut second, engine) = (Sequence::default(), Sequence::default(), &mut loaded.engine);
    sync(engine, &mut first, &[5; 64], usize::MAX);
    engine.sync(&mut second, &[6; 3]);
    let error = engine.advance(&mut [&mut second], usize::MAX, &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("pages"), "{error}");
    engine.close(&mut first);
    engine.advance(&mut [&mut second], usize::MAX, &mut |_| true).unwrap();
}

#[test]
fn stop_texts_end_an_answer_wherever_tokens_end() {
    let model = start(open(smollm2(), 2));
    let options = Generation { max_tokens: Some(40), ..Generation::greedy() };
    let whole = model.generate("Count: one, two, three,", &options, |_| true).unwrap().text;
    for (start, len) in [(1, 3), (4, 6), (9, 9)] {
        let stop: String = whole.chars().skip(start).take(len).collect();
        let options = Generation { stop: vec![stop.clone()], ..options.clone() };
        let answer = model.generate("Count: one, two, three,", &options, |_| true).unwrap();
        assert_eq!(answer.text, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(answer.finish, Some(Finish::Stop(stop)));
    }
}

#[test]
fn a_chat_continues_from_what_is_computed() {
    let model = Model::open(smollm2(), Options::default()).unwrap();
    let mut messages = vec![Message::system("Be brief."), Message::user("Name a colour.")];
    let options = Generation { max_tokens: Some(12), ..Generation::greedy() };
    let first = model.chat(&messages, &[], None, &options, |_| true).unwrap();
    assert_eq!(first.cached_tokens, 0);
    messages.push(Message::assistant(&first.text));
    messages.push(Message::user("Another one."));
    let second = model.chat(&messages, &[], None, &options, |_| true).unwrap();
    assert!(second.cached_tokens >= first.prompt_tokens, "{} of {}", second.cached_tokens, first.prompt_tokens);
}

#[test]
fn requests_of_many_threads_are_answered_together() {
    let model = start(open(smollm2(), 2));
    let prompts = ["The capital of France is", "One, two, three,", "Once upon a time", "The sky is"];
    let options = Generation { max_tokens: Some(12), ..Generation::greedy() };
    let alone = prompts.map(|prompt| model.generate(prompt, &options, |_| true).unwrap().text);
    let together = std::thread::scope(|scope| {
        let asked = prompts.map(|prompt| {
            let (model, options) = (&model, &options);
            scope.spawn(move || model.generate(prompt, options, |_| true).unwrap().text)
        });
        asked.map(|answer| answer.join().unwrap())
    });
    assert_eq!(alone, together);
    // Or by one request, several answers to each prompt.
    let prompts = prompts.map(|prompt| model.text_tokens(prompt).unwrap()).to_vec();
    let request = model.text_request(vec![1], &options).unwrap();
    let answers = model.answers(&basert::Request { prompts, n: 2, ..request }).unwrap().wait().unwrap();
    let texts: Vec<_> = answers.iter().map(|answer| answer.text.clone()).collect();
    assert_eq!(texts, alone.iter().flat_map(|text| [text.clone(), text.clone()]).collect::<Vec<_>>());
}

#[test]
fn an_answer_that_nobody_waits_for_ends() {
    let model = start(open(smollm2(), 2));
    let options = Generation { ignore_end: true, ..Generation::greedy() };
    let answer = model.generate("Once", &options, |_| false).unwrap();
    assert_eq!(answer.finish, None);
    let began = std::time::Instant::now();
    while model.counts().running > 0 {
        assert!(began.elapsed().as_secs() < 20, "it goes on");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let request = model.text_request(vec![1, 2, 3], &options).unwrap();
    let answers = model.answers(&request).unwrap();
    model.end();
    assert!(model.has_ended());
    let error = answers.wait().unwrap_err().to_string();
    assert!(error.contains("unloaded"), "{error}");
    assert!(model.generate("Once", &options, |_| true).is_err());
}

/// Steps in the middle of a prompt want no logits at all.
#[test]
fn a_prompt_longer_than_a_step() {
    let mut model = Loaded::open(smollm2(), Options { step_tokens: Some(40), ..Options::default() }).unwrap();
    let mut other = open(smollm2(), 2);
    let tokens = prompt(&model, 3);
    let expected = logits_in_chunks(&mut other.engine, &tokens, usize::MAX);
    assert!(logits_in_chunks(&mut model.engine, &tokens, usize::MAX) == expected);
    let mut last = Vec::new();
    model.engine.score(&tokens, 50, &mut |_, logits| last = logits.to_vec()).unwrap();
    assert!(last == expected);
}

/// Through the whole engine, with chunks, batches and forks, the reference device computes what the oracle does.
#[test]
fn the_reference_is_a_device() {
    let path = basert_testkit::tiny().join("gemma3.gguf");
    let open = |device| {
        let (max_context, threads, prefix_cache) = (Some(200), Some(2), false);
        let options = Options { device, max_context, threads, prefix_cache, ..Options::default() };
        Loaded::open(&path, options).unwrap().engine
    };
    let (reference, cpu) = (&mut open(DeviceKind::Reference), &mut open(DeviceKind::Cpu));
    let tokens: Vec<u32> = (0..150).map(|i| 3 + i * 31 % 250).collect();
    let expected = logits_in_chunks(reference, &tokens, usize::MAX);
    assert_eq!(logits_in_chunks(reference, &tokens, 37), expected);
    let mut origin = Sequence::default();
    sync(reference, &mut origin, &tokens[..149], usize::MAX);
    let mut fork = reference.fork(&origin);
    step(reference, &mut origin, 5);
    step(reference, &mut fork, tokens[149]);
    assert_eq!(fork.logits(), expected);
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (a, b) in expected.iter().zip(logits_in_chunks(cpu, &tokens, usize::MAX)) {
        assert!((a - b).abs() < 2e-2 * largest, "{a} and {b}");
    }
}

/// Pages of closed sequences are used again, whole and in part, and nothing shows but the time that it saves.
#[test]
fn a_cached_prefix_is_as_good_as_a_fresh_one() {
    let mut fresh = open(smollm2(), 2);
    let options = Options { threads: Some(2), max_context: Some(1024), ..Options::default() };
    let mut cached = Loaded::open(smollm2(), options).unwrap().engine;
    let tokens = prompt(&fresh, 4);
    let mut other = tokens.clone();
    other[100] += 1;
    let mut known: Vec<Vec<u32>> = Vec::new();
    for (timeline, from) in [(&tokens, 90), (&tokens, 150), (&other, 130), (&tokens, 64), (&tokens, 151), (&other, 200)]
    {
        let timeline = &timeline[..from];
        let shared = |old: &Vec<u32>| old.iter().zip(&timeline[..from - 1]).take_while(|(a, b)| a == b).count();
        let expected = from - known.iter().map(shared).max().unwrap_or(0);
        let mut sequence = Sequence::default();
        let computed = sync(&mut cached, &mut sequence, timeline, usize::MAX);
        assert_eq!(computed, expected, "of {from} tokens");
        assert!(sequence.logits() == logits_in_chunks(&mut fresh.engine, timeline, usize::MAX), "{from} tokens");
        cached.close(&mut sequence);
        known.push(timeline.to_vec());
    }
}

/// Guesses are free to be wrong: texts are those without them, for every way to draw, within a grammar, up to stop texts.
#[test]
fn guesses_change_no_text() {
    let with = |speculation| Scheduling { speculation, ..Scheduling::default() };
    let same = Loaded::open(smollm2(), Options { threads: Some(1), ..Options::default() }).unwrap();
    let drafted = open(smollm2(), 2).with_draft(same).unwrap();
    let plainly = start(open(smollm2(), 2));
    let ways = [
        (Speculation::Auto, open(smollm2(), 2)),
        (Speculation::Tokens(8), open(smollm2(), 2)),
        (Speculation::Tokens(3), drafted),
    ];
    let ways = ways.map(|(speculation, model)| (speculation, model.start(&with(speculation)).unwrap()));
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
        let options = Generation { max_tokens: Some(16), ..options };
        let expected = plainly.generate(prompt, &options, |_| true).unwrap();
        assert_eq!(expected.drafts.proposed, 0);
        for (speculation, model) in &ways {
            let found = model.generate(prompt, &options, |_| true).unwrap();
            let told = |answer: &basert::Answer| (answer.text.clone(), answer.tokens.clone(), answer.finish.clone());
            assert_eq!(told(&found), told(&expected));
            let basert::Drafts { accepted, proposed } = found.drafts;
            assert!(accepted <= proposed);
            let many =
                prompt == copying && options.sampling.temperature == Some(0.0) && *speculation != Speculation::Auto;
            assert!(!many || accepted > 0, "{accepted} of {proposed}");
        }
    }
    let other = Loaded::open(basert_testkit::tiny().join("llama.gguf"), Options::default()).unwrap();
    let error = open(smollm2(), 1).with_draft(other).err().unwrap().to_string();
    assert!(error.contains("its vocabulary has 288 tokens"), "{error}");
}
