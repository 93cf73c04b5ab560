//! The scheduler on a device that is easily understood: its cache holds the tokens themselves, and logits are a hash of
//! all tokens that the page table leads to. So a page that is not the sequence's own, or was written over, changes the
//! text. Whatever happens to a request (company, preemption, a cached prefix, pieces of any size), its text has to be
//! that of the hash.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basert_engine::{
    Allowed, Answer, Attention, Draft, Engine, EngineError, Pooling, Prompt, Reader, Request, Sampler, Sampling,
    Scheduler, Sequence, Speculation, Token, TokenLogprobs, Turn,
};
use basert_plan::{Baked, DeviceError, Draw, Facts, Limits, StepState};

const PAGE: usize = 4;
const VOCABULARY: usize = 50;
/// A token that the device cannot compute.
const FAULT: u32 = 49;

thread_local! {
    /// Steps of this test whose tokens were drawn after them.
    static DRAWN_AFTER: Cell<usize> = const { Cell::new(0) };
}

struct Hash {
    cache: Vec<[u32; PAGE]>,
    /// As after a step: rows of logits, or tokens drawn, of each step under way.
    logits: Vec<Vec<f32>>,
    under_way: Vec<Vec<u32>>,
    drawn: Vec<u32>,
    masks: BTreeMap<u32, Vec<u32>>,
    last: StepState,
}

fn logits_after(tokens: impl IntoIterator<Item = u32>) -> Vec<f32> {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for token in tokens {
        state = (state ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }
    let value = |i: u64| {
        let mixed = (state ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 40) as f32 / 4e6
    };
    // The token that faults never comes by itself.
    (0..VOCABULARY as u64).map(|i| if i == u64::from(FAULT) { f32::NEG_INFINITY } else { value(i) }).collect()
}

impl Hash {
    fn run(&mut self, step: &StepState) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        for sequence in &step.sequences {
            let pages = &step.page_table[sequence.pages.clone()];
            for row in sequence.rows.clone() {
                let position = step.positions[row] as usize;
                self.cache[pages[position / PAGE] as usize][position % PAGE] = step.tokens[row];
                if step.wanted.contains(&(row as u32)) {
                    logits.push(logits_after((0..=position).map(|p| self.cache[pages[p / PAGE] as usize][p % PAGE])));
                }
            }
        }
        logits
    }

    fn run_and_draw(&mut self, step: &StepState) -> Vec<u32> {
        let logits = self.run(step);
        logits.iter().map(|logits| greedy().next(logits)).collect()
    }
}

fn greedy() -> Sampler {
    Sampler::new(Sampling::default(), &[]).unwrap()
}

impl Baked for Hash {
    fn submit(&mut self, step: &StepState) -> Result<(), DeviceError> {
        if step.tokens.contains(&FAULT) {
            return Err(DeviceError::Failed("as it was told to".to_owned()));
        }
        self.last = step.clone();
        if step.hidden {
            // Something finite, of the same tokens.
            self.logits = self.run(step);
            self.logits.iter_mut().for_each(|row| row.truncate(FAULT as usize));
        } else if step.draws.is_empty() {
            self.logits = self.run(step);
        } else {
            let drawn = self.run_and_draw(step);
            self.under_way.push(drawn);
        }
        Ok(())
    }

    fn chain(&mut self) -> Result<(), DeviceError> {
        self.last.tokens = self.under_way.last().unwrap().clone();
        self.last.positions.iter_mut().for_each(|position| *position += 1);
        let step = self.last.clone();
        let drawn = self.run_and_draw(&step);
        self.under_way.push(drawn);
        Ok(())
    }

    fn set_mask(&mut self, mask: u32, allowed: &[u32]) -> Result<(), DeviceError> {
        self.masks.insert(mask, allowed.to_vec());
        Ok(())
    }

    fn draw(&mut self, draws: &[Draw]) -> Result<(), DeviceError> {
        let drawn = self.logits.drain(..).zip(draws).map(|(logits, draw)| match draw.mask {
            None => greedy().next(&logits),
            Some(mask) => greedy().next_of(&logits, &self.masks[&mask]).unwrap(),
        });
        self.under_way.push(drawn.collect());
        DRAWN_AFTER.set(DRAWN_AFTER.get() + 1);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if !self.under_way.is_empty() {
            self.drawn = self.under_way.remove(0);
        }
        Ok(())
    }

    fn logits(&self, i: usize) -> &[f32] {
        &self.logits[i]
    }

    fn hidden(&self, i: usize) -> &[f32] {
        &self.logits[i]
    }

    fn drawn(&self) -> &[u32] {
        &self.drawn
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        self.cache[to as usize] = self.cache[from as usize];
    }

    fn page_bytes(&self) -> usize {
        size_of::<[u32; PAGE]>()
    }

    fn read_page(&mut self, page: u32, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let tokens = self.cache[page as usize].map(u32::to_le_bytes);
        bytes.copy_from_slice(tokens.as_flattened());
        Ok(())
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let tokens = bytes.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token));
        self.cache[page as usize].iter_mut().zip(tokens).for_each(|(to, token)| *to = token);
        Ok(())
    }
}

fn engine(pages: usize, context: usize, chain: usize) -> Engine {
    // What no one wrote is no token.
    let cache = vec![[u32::MAX; PAGE]; pages];
    let (masks, last) = (BTreeMap::new(), StepState::default());
    let hash = Hash { cache, logits: vec![], under_way: vec![], drawn: vec![], masks, last };
    let (name, description, layout) = ("hash".to_owned(), String::new(), "hash".to_owned());
    let facts = Facts { name, description, page_tokens: PAGE, layout, step_tokens: 16, chain, bounds: None };
    let limits = Limits { tokens: 16, wanted: 8 };
    Engine::new(Box::new(hash), &facts, limits, pages, context, VOCABULARY).with_prefix_cache()
}

/// What a reader was told.
#[derive(Debug, Default, Clone)]
struct Told {
    tokens: Vec<u32>,
    prompt: Vec<Token>,
    cached: usize,
    vectors: Vec<Vec<f32>>,
    end: Option<Result<(), EngineError>>,
    attention: Option<Attention>,
}

#[derive(Clone)]
struct Note {
    told: Arc<Mutex<Told>>,
    stop_at: usize,
    allowed: Option<Vec<u32>>,
}

impl Note {
    fn new(stop_at: usize) -> Note {
        Note { told: Arc::default(), stop_at, allowed: None }
    }

    fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    fn set(&self, attention: Attention) {
        self.told.lock().unwrap().attention = Some(attention);
    }
}

impl Reader for Note {
    fn attention(&self) -> Attention {
        self.told.lock().unwrap().attention.unwrap_or(Attention::Ready)
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

fn answer(sampling: Sampling, max_tokens: usize, note: &Note) -> Answer {
    let sampler = Sampler::new(sampling, &[]).unwrap();
    Answer { sampler, max_tokens, logprobs: None, reader: Box::new(note.clone()) }
}

fn request(client: u64, prompt: &[u32], sampling: Sampling, max_tokens: usize, note: &Note) -> Request {
    Request {
        client,
        prompt: prompt.to_vec(),
        answers: vec![answer(sampling, max_tokens, note)],
        pooling: None,
        prompt_logprobs: None,
    }
}

/// What the answer has to be, computed without any engine.
fn expected(prompt: &[u32], sampling: Sampling, tokens: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, &[]).unwrap();
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        let token = sampler.next(&logits_after(all.iter().copied()));
        all.push(token);
    }
    all.split_off(prompt.len())
}

fn finish(scheduler: &mut Scheduler, engine: &mut Engine) {
    for _ in 0..10_000 {
        if scheduler.step(engine) == Turn::Idle {
            return;
        }
    }
    panic!("it does not come to an end");
}

fn scheduler() -> Scheduler {
    Scheduler::new(8, Duration::from_millis(100))
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

fn prompt(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (seed * 7 + i * i + i) % 48).collect()
}

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
    notes[0].set(Attention::Gone);
    scheduler.step(&mut engine);
    assert!(engine.page_use().held <= before / 2 + 1);
    notes[1].set(Attention::Gone);
    assert_eq!(scheduler.step(&mut engine), Turn::Idle);
    assert_eq!((engine.page_use().held, notes[0].told().end), (0, None));
}

#[test]
fn who_does_not_read_waits_and_makes_room() {
    let (mut engine, mut scheduler) = (engine(10, 32, 0), scheduler());
    let (slow, quick) = (Note::new(usize::MAX), Note::new(usize::MAX));
    scheduler.submit(&mut engine, request(1, &prompt(1, 12), warm(1), 18, &slow));
    (0..3).for_each(|_| {
        let _ = scheduler.step(&mut engine);
    });
    slow.set(Attention::Busy);
    assert_eq!(scheduler.step(&mut engine), Turn::Blocked);
    scheduler.submit(&mut engine, request(2, &prompt(2, 24), warm(2), 8, &quick));
    while scheduler.step(&mut engine) != Turn::Blocked {}
    assert_eq!(quick.told().tokens, expected(&prompt(2, 24), warm(2), 8));
    slow.set(Attention::Ready);
    finish(&mut scheduler, &mut engine);
    assert_eq!(slow.told().tokens, expected(&prompt(1, 12), warm(1), 18));
}

#[test]
fn several_answers_share_their_prompt() {
    let (mut engine, mut scheduler) = (engine(32, 64, 0), scheduler());
    let notes: Vec<_> = (0..4).map(|_| Note::new(usize::MAX)).collect();
    let answers = (0..).zip(&notes).map(|(seed, note)| answer(warm(seed), 6, note)).collect();
    scheduler.submit(
        &mut engine,
        Request { client: 0, prompt: prompt(3, 15), answers, pooling: None, prompt_logprobs: None },
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

/// A draft that guesses right, as it is the same model, and nothing at all where pages run out.
fn draft(pages: usize) -> Draft {
    Draft::new(engine(pages, 64, 0))
}

/// Whatever is guessed, by whom, however tokens are drawn, among whom, and with too few pages for all.
#[test]
fn texts_are_the_same_with_guesses() {
    let settings = [
        Sampling::default(),
        warm(1),
        Sampling { top_k: 3, presence_penalty: 0.5, ..warm(2) },
        Sampling { top_p: 0.8, min_p: 0.02, repeat_penalty: 1.2, ..warm(3) },
        Sampling { logit_bias: BTreeMap::from([(3, 2.0)]), frequency_penalty: 0.3, ..warm(4) },
    ];
    let speculations = [Speculation::Auto, Speculation::Tokens(1), Speculation::Tokens(5), Speculation::Tokens(16)];
    for (pages, chain) in [(64, 0), (12, 0), (64, 4)] {
        for speculation in speculations {
            for draft in [None, Some(draft(64)), Some(draft(6))] {
                let drafted = draft.is_some();
                let (mut engine, scheduler) = (engine(pages, 40, chain), scheduler());
                let mut scheduler = scheduler.with_speculation(speculation, draft);
                let mut asked = Vec::new();
                for (i, sampling) in (0..).zip(&settings) {
                    // Few tokens that may come make a text that repeats itself.
                    let allowed = (i % 2 == 1).then(|| vec![0b1_0000_0110, 0]);
                    let note = Note { allowed, ..Note::new(if i == 2 { 7 } else { usize::MAX }) };
                    // The device draws greedily only.
                    let sampling = if chain == 0 { sampling.clone() } else { Sampling::default() };
                    scheduler.submit(&mut engine, request(i, &prompt(i as u32, 7), sampling.clone(), 24, &note));
                    asked.push((prompt(i as u32, 7), sampling, note));
                }
                finish(&mut scheduler, &mut engine);
                for (prompt, sampling, note) in asked {
                    let told = note.told();
                    let text = match &note.allowed {
                        None => expected(&prompt, sampling, told.tokens.len()),
                        Some(mask) => expected_among(&prompt, sampling, told.tokens.len(), mask),
                    };
                    assert_eq!(told.tokens, text);
                    assert!(told.tokens.len() == 24.min(note.stop_at));
                }
                let (proposed, accepted) = (scheduler.proposed(), scheduler.accepted());
                assert!(accepted <= proposed);
                if speculation == Speculation::Tokens(5) && pages == 64 {
                    assert!(proposed > 0 && accepted > 0, "{accepted} of {proposed}, {chain}, {drafted}");
                }
                assert!(pages == 64 || scheduler.preempted() > 0);
                assert_eq!((engine.page_use().held, engine.available_pages()), (0, pages));
            }
        }
    }
}

/// What the answer has to be where only some tokens may come.
fn expected_among(prompt: &[u32], sampling: Sampling, tokens: usize, mask: &[u32]) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, &[]).unwrap();
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        let token = sampler.next_of(&logits_after(all.iter().copied()), mask).unwrap();
        all.push(token);
    }
    all.split_off(prompt.len())
}

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
    let length = sum.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    sum.iter().map(|&x| (f64::from(x) / length) as f32).collect()
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
            assert_eq!(engine.embed(&tokens, pooling).unwrap(), pooled(&tokens, pooling));
        }
        let note = Note::new(usize::MAX);
        let faulty = request(1, &[1, FAULT], Sampling::default(), 0, &note);
        scheduler.submit(&mut engine, Request { pooling: Some(Pooling::Last), ..faulty });
        finish(&mut scheduler, &mut engine);
        assert!(matches!(note.told().end, Some(Err(EngineError::Device(_)))));
        assert_eq!(engine.page_use().held, 0);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Submit { client: u64, prompt: u32, length: usize, tokens: usize, answers: usize },
    Leave(usize),
    Pause(usize),
    Resume(usize),
    Steps(usize),
}

fn event() -> impl proptest::strategy::Strategy<Value = Event> {
    use proptest::prelude::*;
    prop_oneof![
        3 => (0u64..3, 0u32..3, 1usize..28, 0usize..20, 1usize..4).prop_map(|(client, prompt, length, tokens, answers)| {
            Event::Submit { client, prompt, length, tokens, answers }
        }),
        1 => (0usize..30).prop_map(Event::Leave),
        1 => (0usize..30).prop_map(Event::Pause),
        1 => (0usize..30).prop_map(Event::Resume),
        4 => (1usize..6).prop_map(Event::Steps),
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_happens_texts_are_right_and_pages_return(
        events in proptest::collection::vec(event(), 1..60), pages in 10usize..30, chain in 0usize..3,
        guesses in 0usize..6, drafted in proptest::bool::ANY,
    ) {
        let (mut engine, scheduler) = (engine(pages, 40, chain), scheduler());
        let speculation = if guesses == 0 { Speculation::Off } else { Speculation::Tokens(guesses) };
        let mut scheduler = scheduler.with_speculation(speculation, drafted.then(|| draft(16)));
        // The device draws greedily only.
        let sampling = |seed| if chain == 0 { warm(seed) } else { Sampling::default() };
        let mut notes: BTreeMap<usize, (Note, Vec<u32>)> = BTreeMap::new();
        let mut left = Vec::new();
        for event in events {
            match event {
                Event::Submit { client, prompt: seed, length, tokens, answers } => {
                    let prompt = prompt(seed, length);
                    let first = notes.len();
                    let mut all = Vec::new();
                    for i in first..first + answers {
                        let note = Note::new(usize::MAX);
                        let text = expected(&prompt, sampling(i as u64), tokens.min(41 - length));
                        all.push(answer(sampling(i as u64), tokens, &note));
                        notes.insert(i, (note, text));
                    }
                    scheduler.submit(&mut engine, Request { client, prompt, answers: all, pooling: None, prompt_logprobs: None });
                }
                Event::Leave(i) => if let Some((note, _)) = notes.get(&i) {
                    note.set(Attention::Gone);
                    left.push(i);
                },
                Event::Pause(i) => if let Some((note, _)) = notes.get(&i).filter(|_| !left.contains(&i)) {
                    note.set(Attention::Busy);
                },
                Event::Resume(i) => if let Some((note, _)) = notes.get(&i).filter(|_| !left.contains(&i)) {
                    note.set(Attention::Ready);
                },
                Event::Steps(n) => (0..n).for_each(|_| {
 let _ = scheduler.step(&mut engine); }),
            }
        }
        notes.iter().filter(|(i, _)| !left.contains(i)).for_each(|(_, (note, _))| note.set(Attention::Ready));
        finish(&mut scheduler, &mut engine);
        for (i, (note, text)) in notes {
            let told = note.told();
            if left.contains(&i) {
                proptest::prop_assert!(text.starts_with(&told.tokens));
            } else {
                proptest::prop_assert_eq!(told.end, Some(Ok(())));
                proptest::prop_assert_eq!(told.tokens, text);
            }
        }
        let pages = engine.page_use();
        proptest::prop_assert_eq!(pages.held, 0);
        proptest::prop_assert_eq!(engine.available_pages(), pages.total);
    }
}
