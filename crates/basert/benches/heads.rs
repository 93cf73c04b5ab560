//! What drafting with a model's head for multi-token prediction costs: the time of a step of decoding with so many draft tokens
//! for each answer, whether or not they are accepted.
//! `cargo bench -p basert --bench heads -- MODEL.gguf [DEVICE]`, of a model with a head, such as `basert synth --arch qwen35`
//! makes.

use std::path::Path;
use std::time::{Duration, Instant};

use basert::{DeviceKind, Loaded, Mtp, Options, Sampler, Sampling, Speculation};
use basert_engine::{Answer, EngineError, Prompt, Reader, Readiness, Request, Scheduler, Token, Turn};

const PROMPT: u32 = 256;
const ANSWER: usize = 32;

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
    println!("ms of a step, median, with answers together; prefill of {PROMPT} tokens in ms; accepted draft tokens");
    println!("{:10} {:>8} {:>10} {:>10} {:>10}", "drafts", "answers", "step", "prefill", "accepted");
    for speculation in [None, Some(0), Some(1), Some(2), Some(3), Some(4)] {
        let mtp = if speculation.is_some() { Mtp::On } else { Mtp::Off };
        let options = Options { device, mtp, max_context: Some(1024), sessions: 8, ..Options::default() };
        let model = Loaded::open(Path::new(&path), options).unwrap_or_else(|error| panic!("{error}"));
        let mut engine = model.engine;
        for answers in [1, 4] {
            let drafts = speculation.unwrap_or(0);
            let speculation = if drafts == 0 { Speculation::Off } else { Speculation::Mtp(Some(drafts)) };
            let mut scheduler = Scheduler::new(8, Duration::from_secs(1)).with_speculation(speculation, None);
            for i in 0..answers {
                let prompt = (0..PROMPT).map(|at| 300 + (at * at + 31 * at * i + 7 * answers) % 20_000).collect();
                let sampler = Sampler::new(Sampling::default(), &[]).unwrap_or_else(|error| panic!("{error}"));
                let answer = Answer { sampler, max_tokens: ANSWER, logprobs: None, reader: Box::new(Taker) };
                let (answers, pooling, prompt_logprobs) = (vec![answer], None, None);
                scheduler
                    .submit(&mut engine, Request { client: 0, salt: 0, prompt, answers, pooling, prompt_logprobs });
            }
            let (mut steps, mut prefill) = (Vec::new(), 0.0);
            loop {
                let began = Instant::now();
                match scheduler.step(&mut engine) {
                    Turn::Idle => break,
                    Turn::Blocked => {}
                    Turn::Step { prompt: 0, .. } => steps.push(began.elapsed().as_secs_f64() * 1e3),
                    Turn::Step { .. } => prefill += began.elapsed().as_secs_f64() * 1e3,
                }
            }
            steps.sort_by(f64::total_cmp);
            let step = steps.get(steps.len() / 2).copied().unwrap_or(0.0);
            let name = if mtp == Mtp::Off { "no head".to_owned() } else { drafts.to_string() };
            let (prefill, accepted) = (prefill / f64::from(answers), scheduler.accepted());
            println!("{name:10} {answers:8} {step:10.1} {prefill:10.1} {accepted:10}");
        }
    }
}
