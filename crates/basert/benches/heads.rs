//! What drafting with a model's head for multi-token prediction costs: the time of a step of decoding with so many draft tokens
//! for each answer, whether or not they are accepted.
//! `cargo bench -p basert --bench heads -- MODEL.gguf [DEVICE]`, of a model with a head, such as `basert synth --arch qwen35`
//! makes.

use std::path::Path;
use std::time::{Duration, Instant};

use basert::{DeviceKind, Engine, Loaded, Mtp, Options, Sampler, Sampling, Speculation};
use basert_engine::{Answer, EngineError, Prompt, Reader, Readiness, Request, Scheduler, Token, Turn};

const PROMPT: u32 = 64;
const ANSWER: usize = 12;
/// Each is measured so often, in turns with the others.
const ROUNDS: usize = 3;

struct Taker;

impl Reader for Taker {
    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn prompt(&mut self, _prompt: Prompt) {}

    fn token(&mut self, _token: Token) -> bool {
        true
    }

    fn end(&mut self, _result: Result<(), EngineError>) {}
}

fn main() {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let path = named.next().unwrap_or_else(|| panic!("which model?"));
    let device = named.next().map_or(DeviceKind::Cpu, |name| name.parse().unwrap_or_else(|error| panic!("{error}")));
    let open = |mtp| {
        let options = Options { device, mtp, max_context: Some(1024), sessions: 8, ..Options::default() };
        Loaded::open(Path::new(&path), options).unwrap_or_else(|error| panic!("{error}")).engine
    };
    let mut engines = [open(Mtp::Off), open(Mtp::On)];
    // Without the head, and with it and so many draft tokens.
    let ways: Vec<_> = [(0, 0)].into_iter().chain((0..=4).map(|drafts| (1, drafts))).collect();
    println!(
        "A step of decoding in ms, the least and the median of {ROUNDS} rounds, and what share of draft tokens was accepted"
    );
    for answers in [1, 4] {
        let mut found = vec![(Vec::new(), 0, 0); ways.len()];
        for _ in 0..ROUNDS {
            for (&(engine, drafts), (steps, proposed, accepted)) in ways.iter().zip(&mut found) {
                let scheduler = run(&mut engines[engine], drafts, answers, steps);
                (*proposed, *accepted) = (*proposed + scheduler.proposed(), *accepted + scheduler.accepted());
            }
        }
        for ((engine, drafts), (mut steps, proposed, accepted)) in ways.iter().zip(found) {
            steps.sort_by(f64::total_cmp);
            let way = if *engine == 0 { "no head".to_owned() } else { format!("{drafts} drafts") };
            let share = accepted as f64 / proposed.max(1) as f64;
            println!("{answers} answers, {way:10} {:8.1} {:8.1} {share:6.2}", steps[0], steps[steps.len() / 2]);
        }
    }
}

/// Answers some prompts, and notes how long steps of decoding took.
fn run(engine: &mut Engine, drafts: usize, answers: u32, steps: &mut Vec<f64>) -> Scheduler {
    let speculation = if drafts == 0 { Speculation::Off } else { Speculation::Mtp(Some(drafts)) };
    let mut scheduler = Scheduler::new(8, Duration::from_secs(1)).with_speculation(speculation, None);
    for i in 0..answers {
        let prompt = (0..PROMPT).map(|at| 300 + (at * at + 31 * at * i + 7 * answers) % 20_000).collect();
        let sampler = Sampler::new(Sampling::default(), &[]).unwrap_or_else(|error| panic!("{error}"));
        // The last steps have fewer draft tokens, as no more are wanted.
        let max_tokens = ANSWER + drafts + 1;
        let answer = Answer { sampler, max_tokens, logprobs: None, reader: Box::new(Taker) };
        let (answers, pooling, prompt_logprobs) = (vec![answer], None, None);
        scheduler.submit(engine, Request { client: 0, salt: 0, prompt, answers, pooling, prompt_logprobs });
    }
    let measured = steps.len() + ANSWER;
    loop {
        let began = Instant::now();
        match scheduler.step(engine) {
            Turn::Idle => return scheduler,
            Turn::Step { prompt: 0, .. } if steps.len() < measured => steps.push(began.elapsed().as_secs_f64() * 1e3),
            Turn::Blocked | Turn::Step { .. } => {}
        }
    }
}
