//! Requests, what their readers were told, and what that has to be.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use basert_engine::{
    Allowed, Answer, Engine, EngineError, Prompt, Reader, Readiness, Request, Sampler, Sampling, Scheduler, Token, Turn,
};

use crate::device::logits_after;

/// What a reader was told.
#[derive(Debug, Default, Clone)]
pub struct Told {
    pub tokens: Vec<u32>,
    pub prompt: Vec<Token>,
    pub cached: usize,
    pub vectors: Vec<Vec<f32>>,
    pub end: Option<Result<(), EngineError>>,
    readiness: Option<Readiness>,
}

#[derive(Clone)]
pub struct Note {
    pub told: Arc<Mutex<Told>>,
    pub stop_at: usize,
    pub allowed: Option<Vec<u32>>,
}

impl Note {
    pub fn new(stop_at: usize) -> Note {
        Note { told: Arc::default(), stop_at, allowed: None }
    }

    pub fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    pub fn set(&self, readiness: Readiness) {
        self.told.lock().unwrap().readiness = Some(readiness);
    }
}

impl Reader for Note {
    fn readiness(&self) -> Readiness {
        self.told.lock().unwrap().readiness.unwrap_or(Readiness::Ready)
    }

    fn prompt(&mut self, prompt: Prompt) {
        assert!(prompt.cached <= prompt.done && prompt.done <= prompt.tokens);
        self.told.lock().unwrap().cached = prompt.cached;
    }

    fn is_constrained(&self) -> bool {
        self.allowed.is_some()
    }

    fn mask(&mut self) -> Allowed<'_> {
        Ok(self.allowed.as_deref())
    }

    fn token(&mut self, token: Token) -> bool {
        let mut told = self.told.lock().unwrap();
        assert!(told.end.is_none());
        told.tokens.push(token.id);
        told.tokens.len() < self.stop_at
    }

    fn prompt_token(&mut self, token: Token) {
        let mut told = self.told.lock().unwrap();
        assert!(told.tokens.is_empty());
        told.prompt.push(token);
    }

    fn embedding(&mut self, vector: Vec<f32>) {
        self.told.lock().unwrap().vectors.push(vector);
    }

    fn end(&mut self, result: Result<(), EngineError>) {
        let before = self.told.lock().unwrap().end.replace(result);
        assert!(before.is_none(), "ended twice");
    }
}

pub fn answer(sampling: Sampling, max_tokens: usize, note: &Note) -> Answer {
    let sampler = Sampler::new(sampling, &[]).unwrap();
    Answer { sampler, max_tokens, logprobs: None, reader: Box::new(note.clone()) }
}

pub fn request(client: u64, prompt: &[u32], sampling: Sampling, max_tokens: usize, note: &Note) -> Request {
    Request {
        client,
        salt: 0,
        prompt: prompt.to_vec(),
        answers: vec![answer(sampling, max_tokens, note)],
        pooling: None,
        prompt_logprobs: None,
    }
}

/// What the answer has to be, computed without any engine.
pub fn expected(prompt: &[u32], sampling: Sampling, tokens: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, &[]).unwrap();
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        let token = sampler.next(&logits_after(all.iter().copied()));
        all.push(token);
    }
    all.split_off(prompt.len())
}

pub fn finish(scheduler: &mut Scheduler, engine: &mut Engine) {
    for _ in 0..10_000 {
        if scheduler.step(engine) == Turn::Idle {
            return;
        }
    }
    panic!("it does not come to an end");
}

pub fn scheduler() -> Scheduler {
    Scheduler::new(8, Duration::from_millis(100))
}

pub fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

pub fn prompt(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (seed * 7 + i * i + i) % 48).collect()
}
