//! The scheduler: many requests on one engine.
//!
//! A task is a timeline whose computed tokens catch up with its wanted ones. Each step computes one token of every
//! decoding answer, and as much prefill as fits the time until those answers need their next token. A device that samples
//! may run a few steps ahead of the readers while there is nothing but decoding; what it computed is used before anything
//! else is. A task is admitted
//! when there are pages for all its uncomputed tokens. If places or pages run out nevertheless, a task is preempted: it
//! gives up its pages and waits, but keeps its tokens and its sampler, so it continues with the same text. Tasks whose
//! reader does not read are preempted first, then the youngest one of the client with the most tasks.

mod clients;
mod pace;
mod request;
mod step;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::clients::Clients;
use self::pace::Pace;
pub use self::request::{Answer, Prompt, Reader, Readiness, Request, Token};
use crate::engine::Drafting;
use crate::pooling::Pool;
use crate::speculate::{Costs, Guesser};
use crate::{Ask, Draft, Engine, EngineError, Pooling, Sequence, Speculation, TokenLogprobs};

/// Waiting and running requests.
pub struct Scheduler {
    /// Limit on the running answers.
    most: usize,
    pace: Pace,
    clients: Clients,
    waiting: Vec<Task>,
    /// In no particular order.
    running: Vec<Task>,
    /// The next task's number.
    next: u64,
    preempted: u64,
    speculation: Speculation,
    /// The draft model; without one, draft tokens come from the model's head, or else from prompt lookup.
    draft: Option<Draft>,
    costs: Costs,
    proposed: u64,
    accepted: u64,
}

/// A timeline, and the answers that continue it: several while it is their common prompt.
struct Task {
    /// Younger tasks have larger numbers.
    number: u64,
    client: u64,
    sequence: Sequence,
    /// Sampled, and not part of the timeline yet.
    drawn: Option<u32>,
    prompt: Prompt,
    answers: Vec<Answer>,
    /// The pool of hidden states, if an embedding is wanted instead of an answer.
    pool: Option<Pool>,
    /// Whether log probabilities of the prompt are wanted.
    prompt_logprobs: Option<usize>,
    /// Draft tokens after the sampled one.
    guesser: Guesser,
    /// Number of tokens of the answer.
    made: usize,
}

/// The result of a turn of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// There are no tasks.
    Idle,
    /// No task's reader is ready for output.
    Blocked,
    /// A step was run.
    Step {
        /// Answers that got a token.
        decoded: usize,
        /// Tokens of prefill.
        prompt: usize,
        /// Time of the device and of sampling.
        time: Duration,
    },
}

impl Task {
    fn lacking(&self) -> usize {
        self.sequence.tokens().len() - self.sequence.computed()
    }

    fn readiness(&self) -> Readiness {
        let of = |readiness| move |answer: &Answer| answer.reader.readiness() == readiness;
        if self.answers.iter().all(of(Readiness::Gone)) {
            Readiness::Gone
        } else if self.answers.iter().any(of(Readiness::Busy)) {
            Readiness::Busy
        } else {
            Readiness::Ready
        }
    }

    /// Whether the device may sample, because no logits are needed on the host.
    fn needs_no_logits(&self) -> bool {
        self.guesser.guesses().is_empty()
            && !self.is_scored()
            && matches!(&self.answers[..], [answer] if answer.logprobs.is_none() && answer.sampler.draw_on_device(0).is_some())
    }

    /// Whether it is decoding, and the device may sample.
    fn continues_on_device(&self) -> bool {
        self.drawn.is_some() && self.needs_no_logits()
    }

    /// Whether a step with this number of its tokens computes all of them.
    fn ends(&self, count: usize) -> bool {
        self.lacking() + usize::from(self.drawn.is_some()) + self.guesser.guesses().len() == count
    }

    /// Whether its next token is on its way already.
    fn is_ahead(&self, engine: &Engine) -> bool {
        let (Some(token), Some(answer)) = (self.drawn, self.answers.first()) else { return false };
        engine.is_ahead_of(&self.sequence, &answer.sampler, token)
    }

    fn pooling(&self) -> Option<Pooling> {
        self.pool.as_ref().map(Pool::pooling)
    }

    /// Whether logits of all tokens of the prompt are wanted.
    fn is_scored(&self) -> bool {
        self.prompt_logprobs.is_some() && self.made == 0
    }

    /// Takes cached pages for its tokens, unless hidden states or logits of all of them are wanted. Tokens computed
    /// before a preemption are not counted as cached.
    fn adopt(&mut self, engine: &mut Engine) {
        if self.pooling() == Some(Pooling::Mean) || self.is_scored() {
            return;
        }
        engine.adopt(&mut self.sequence);
        if self.made == 0 {
            let found = self.sequence.computed();
            self.prompt.cached += found.saturating_sub(self.prompt.done);
            self.prompt.done = self.prompt.done.max(found);
        }
    }

    /// Called when the last `count` tokens of the prompt were computed, with logits from `row` on: readers get the log
    /// probabilities of the tokens after them, unless they had them before a preemption.
    fn score(&mut self, engine: &Engine, count: usize, row: usize) {
        let Some(top) = self.prompt_logprobs.filter(|_| self.is_scored()) else { return };
        let first = self.sequence.computed() - count;
        for place in self.prompt.done.max(first)..self.sequence.computed() {
            let Some(&id) = self.sequence.tokens().get(place + 1) else { return };
            let logprobs = TokenLogprobs::of(engine.logits(row + place - first), id, top);
            let token = Token { id, logprobs: Some(logprobs), was_drafted: false };
            self.answers.iter_mut().for_each(|answer| answer.reader.prompt_token(token.clone()));
        }
    }

    /// Called when `count` tokens of the prompt were computed: reports the progress to readers, and publishes full
    /// pages.
    fn read(&mut self, engine: &mut Engine, count: usize) {
        self.prompt.done = self.prompt.done.max(self.sequence.computed());
        let prompt = self.prompt;
        self.answers.iter_mut().for_each(|answer| answer.reader.prompt(prompt));
        if count > 1 {
            engine.publish(&mut self.sequence);
        }
    }
}

impl Scheduler {
    /// A scheduler of at most `most` running answers, whose steps take about `gap` at most while answers are decoded.
    pub fn new(most: usize, gap: Duration) -> Scheduler {
        Scheduler {
            most: most.max(1),
            pace: Pace::new(gap),
            clients: Clients::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            next: 0,
            preempted: 0,
            speculation: Speculation::Off,
            draft: None,
            costs: Costs::default(),
            proposed: 0,
            accepted: 0,
        }
    }

    /// Enables speculative decoding, by a draft model, or else by the model's head, or else by prompt lookup. On a device that
    /// samples, it is used only with a fixed number of draft tokens.
    pub fn with_speculation(mut self, speculation: Speculation, draft: Option<Draft>) -> Scheduler {
        (self.speculation, self.draft) = (speculation, draft);
        self
    }

    /// Running answers, in prefill or decoding.
    pub fn running(&self) -> usize {
        self.running.iter().map(|task| task.answers.len()).sum()
    }

    /// Waiting answers.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|task| task.answers.len()).sum()
    }

    /// Number of preemptions.
    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    /// Number of draft tokens proposed.
    pub fn proposed(&self) -> u64 {
        self.proposed
    }

    /// Number of draft tokens accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Takes a request. If it can never be answered, its readers get the error at once.
    pub fn submit(&mut self, engine: &mut Engine, request: Request) {
        let Request { client, salt, prompt: tokens, answers, pooling, prompt_logprobs } = request;
        let pool = pooling.map(Pool::new);
        let prompt = Prompt { tokens: tokens.len(), done: 0, cached: 0 };
        let mut sequence = Sequence::of_salt(salt);
        let checked = engine.set(&mut sequence, tokens);
        let (number, guesser) = (self.number(), Guesser::new(self.speculation, engine.draws_on_device()));
        let task =
            Task { number, client, sequence, drawn: None, prompt, answers, pool, prompt_logprobs, guesser, made: 0 };
        let wants_logits = task.pool.is_none();
        let fits = engine.fits(&task.sequence);
        let most = self.most.min(engine.limits().wanted);
        let result = match checked {
            Ok(()) if wants_logits && !engine.generates() => Err(EngineError::NoLogits),
            Ok(()) if fits.is_err() => fits,
            Ok(()) if task.answers.len() > most => {
                Err(EngineError::TooManyAnswers { answers: task.answers.len(), most })
            }
            checked => checked,
        };
        match result {
            Ok(()) => {
                self.clients.enter(client);
                self.waiting.push(task);
            }
            Err(error) => end(engine, task, Some(Err(error))),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Ends everything with this error.
    pub fn fail(&mut self, engine: &mut Engine, error: &EngineError) {
        for task in self.running.drain(..).chain(self.waiting.drain(..)) {
            self.clients.leave(task.client);
            end(engine, task, Some(Err(error.clone())));
        }
    }

    /// Returns memory that was not used since the last call to the system.
    pub fn give_back(&mut self, engine: &mut Engine) {
        engine.give_back();
        let is_idle = self.running.is_empty();
        self.draft.iter_mut().for_each(|draft| draft.give_back(is_idle));
    }

    /// Runs one step over the most urgent tasks.
    pub fn step(&mut self, engine: &mut Engine) -> Turn {
        self.part_with_those_gone(engine);
        self.admit(engine);
        let began = Instant::now();
        let mut rows = self.ahead(engine);
        if rows.is_empty() {
            rows = self.plan(engine);
        }
        if rows.is_empty() {
            return if self.running.is_empty() && self.waiting.is_empty() { Turn::Idle } else { Turn::Blocked };
        }
        // Tasks of the step are taken out of the list, and put back if they continue.
        let mut step = Vec::with_capacity(rows.len());
        for (number, count) in rows {
            if let Some(at) = self.running.iter().position(|task| task.number == number) {
                step.push((self.running.swap_remove(at), count));
            }
        }
        let decoded = step.iter().filter(|(task, _)| task.drawn.is_some()).count();
        let prompt = step.iter().filter(|(task, _)| task.drawn.is_none()).map(|(_, count)| count).sum();
        let guesses = step.iter().map(|(task, _)| task.guesser.guesses().len()).sum();
        for (task, count) in &step {
            self.clients.charge(task.client, if task.drawn.is_some() { 1 } else { *count });
        }
        // A step gives either logits or hidden states, so tasks that want the one and the other take turns.
        let (mut pooled, mut step): (Vec<_>, Vec<_>) = step.into_iter().partition(|(task, _)| task.pool.is_some());
        let on_device =
            engine.draws_on_device() && !step.is_empty() && step.iter().all(|(task, _)| task.continues_on_device());
        let alone = pooled.is_empty() && self.running.iter().all(|task| task.readiness() != Readiness::Ready);
        let answered = match on_device {
            true => self.draw(engine, &mut step, alone),
            false => self.compute(engine, &mut step),
        };
        let results = [(answered, step), (self.embed(engine, &mut pooled), pooled)];
        let mut failed = false;
        for (result, tasks) in results {
            let Err(error) = result else { continue };
            failed = true;
            for (task, _) in tasks {
                self.clients.leave(task.client);
                end(engine, task, Some(Err(error.clone())));
            }
        }
        let time = began.elapsed();
        if failed {
            return Turn::Step { decoded: 0, prompt: 0, time };
        }
        self.pace.measure(time, prompt, decoded);
        if prompt == 0 {
            self.costs.measure(time, guesses);
        }
        Turn::Step { decoded, prompt, time }
    }

    /// Ends answers whose reader is gone, and frees their pages.
    fn part_with_those_gone(&mut self, engine: &mut Engine) {
        let clients = &mut self.clients;
        for task in self.running.extract_if(.., leave).chain(self.waiting.extract_if(.., leave)) {
            clients.leave(task.client);
            end(engine, task, None);
        }

        fn leave(task: &mut Task) -> bool {
            task.answers.retain(|answer| answer.reader.readiness() != Readiness::Gone);
            task.answers.is_empty()
        }
    }

    /// Admits waiting tasks, as far as there are places for them and pages for their uncomputed tokens.
    fn admit(&mut self, engine: &mut Engine) {
        let most = self.most.min(engine.limits().wanted);
        loop {
            let held = self.held();
            let ready = self.waiting.iter().enumerate().filter(|(_, task)| task.readiness() == Readiness::Ready);
            // Clients with the fewest running answers come first, then preempted tasks, then clients that were served
            // least, then older tasks.
            let urgency = |(_, task): &(usize, &Task)| {
                let held = held.get(&task.client).copied().unwrap_or(0);
                (held, task.made == 0, self.clients.served(task.client), task.number)
            };
            let Some((at, _)) = ready.min_by_key(urgency) else { return };
            let Some(victims) = self.places(&self.waiting[at], most) else { return };
            let mut task = self.waiting.swap_remove(at);
            victims.into_iter().for_each(|number| self.preempt(engine, number));
            task.adopt(engine);
            while !self.running.is_empty() && !self.has_room(engine, &task) {
                match self.victim(&task, &[]) {
                    Some(victim) => self.preempt(engine, victim.number),
                    None => {
                        engine.release(&mut task.sequence);
                        self.waiting.push(task);
                        return;
                    }
                }
            }
            self.running.push(task);
        }
    }

    /// Admitted answers of each client.
    fn held(&self) -> BTreeMap<u64, usize> {
        let mut held = BTreeMap::new();
        self.running.iter().for_each(|task| *held.entry(task.client).or_default() += task.answers.len());
        held
    }

    /// The tasks to preempt so that the task finds enough places, of `most` in all.
    fn places(&self, task: &Task, most: usize) -> Option<Vec<u64>> {
        let (mut running, mut victims) = (self.running(), Vec::new());
        while running + task.answers.len() > most {
            let victim = self.victim(task, &victims)?;
            running -= victim.answers.len();
            victims.push(victim.number);
        }
        Some(victims)
    }

    /// The next task to preempt for the task, beside those in `gone`: one whose reader does not read, or else the
    /// youngest one of the client with the most, if that client is not left with fewer than the task's client.
    fn victim(&self, task: &Task, gone: &[u64]) -> Option<&Task> {
        let left = || self.running.iter().filter(|task| !gone.contains(&task.number));
        let busy = left().filter(|task| task.readiness() == Readiness::Busy).max_by_key(|task| task.number);
        let held = |client| left().filter(|task| task.client == client).map(|task| task.answers.len()).sum::<usize>();
        let greedy = || {
            let victim = left().max_by_key(|task| (held(task.client), task.number))?;
            let fair = held(task.client) + task.answers.len() + victim.answers.len() <= held(victim.client);
            (victim.client != task.client && fair).then_some(victim)
        };
        busy.or_else(greedy)
    }

    /// Whether there are pages for the task's uncomputed tokens, beside those of the tasks admitted before, and one
    /// more for each.
    fn has_room(&self, engine: &Engine, task: &Task) -> bool {
        let tasks = self.running.iter().chain([task]).map(|task| (&task.sequence, task.answers.len()));
        engine.has_room(tasks) && task.answers.len() <= engine.available_slots()
    }

    /// The tasks whose next tokens the device computes already, which nothing else should come before.
    fn ahead(&self, engine: &Engine) -> Vec<(u64, usize)> {
        let ahead = self.running.iter().filter(|task| task.readiness() == Readiness::Ready && task.is_ahead(engine));
        let mut rows: Vec<_> = ahead.map(|task| (task.number, 1)).collect();
        rows.sort_unstable();
        rows
    }

    /// Plans the next step: the numbers of its tasks, and how many tokens of each, with pages reserved.
    fn plan(&mut self, engine: &mut Engine) -> Vec<(u64, usize)> {
        let ready: Vec<&Task> = self.running.iter().filter(|task| task.readiness() == Readiness::Ready).collect();
        let mut decoding: Vec<u64> = ready.iter().filter(|task| task.drawn.is_some()).map(|task| task.number).collect();
        let mut reading: Vec<(u64, u64)> = ready
            .iter()
            .filter(|task| task.drawn.is_none())
            .map(|task| (self.clients.served(task.client), task.number))
            .collect();
        decoding.sort_unstable();
        reading.sort_unstable();
        let mut rows = Vec::with_capacity(ready.len());
        let spare = engine.limits().wanted.min(engine.limits().tokens).saturating_sub(ready.len());
        self.guess(engine, &decoding, spare);
        for number in decoding {
            let guesses = self.affordable_guesses(engine, number);
            self.reserve(engine, number, 1 + guesses, &mut rows);
        }
        let left = engine.limits().tokens - rows.iter().map(|(_, count)| count).sum::<usize>();
        let mut budget = self.pace.prompt_tokens(rows.len(), left);
        let mut states = engine.limits().wanted;
        // The rows of logits that are left, if each prompt needs one.
        let used = rows.iter().map(|(_, count)| count).sum::<usize>() + reading.len();
        let mut logits = engine.limits().wanted.saturating_sub(used);
        for (_, number) in reading {
            let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { continue };
            // Another task may have computed the same tokens in the meantime.
            task.adopt(engine);
            let (mut count, mut wanted) = (task.lacking().min(budget), 0);
            if let Some(pooling) = task.pooling() {
                count = count.min(if pooling == Pooling::Mean { states } else { count });
                wanted = pooling.wanted(count, count == task.lacking());
            }
            let is_scored = task.is_scored();
            if is_scored {
                count = count.min(1 + logits);
            }
            // Where tokens depend on later ones, a text is computed at once, in a later step if need be.
            let is_whole = engine.is_causal() || count == task.lacking();
            if count > 0 && is_whole && wanted <= states && self.reserve(engine, number, count, &mut rows) {
                budget -= count;
                states -= wanted;
                logits -= if is_scored { count - 1 } else { 0 };
            }
        }
        rows
    }

    /// Proposes draft tokens for answers, at most `spare` in all.
    fn guess(&mut self, engine: &mut Engine, decoding: &[u64], mut spare: usize) {
        let (mut asks, mut drafting) = (Vec::new(), Vec::new());
        let (by_model, by_head) = (self.draft.is_some(), self.draft.is_none() && engine.has_head());
        let others = self.running.len();
        for task in self.running.iter_mut().filter(|task| decoding.contains(&task.number)) {
            let (Some(last), Some(answer)) = (task.drawn, task.answers.first()) else { continue };
            let room = engine.context().saturating_sub(task.sequence.tokens().len() + 1);
            let left = answer.max_tokens.saturating_sub(task.made + 1);
            let limit = room.min(left).min(spare);
            let Task { number, sequence, guesser, .. } = task;
            if by_model || by_head {
                let sampler = answer.sampler.clone();
                let most = guesser.asked(&self.costs, decoding.len()).min(limit);
                if by_model && !guesser.is_off() {
                    let tokens = [sequence.tokens(), &[last]].concat();
                    asks.push(Ask { number: *number, salt: sequence.salt(), tokens, sampler, most });
                } else if by_head {
                    // Nothing is evicted for draft tokens.
                    let most = most.min(engine.free_tokens(sequence, others).saturating_sub(1));
                    if most > 0 {
                        drafting.push((Drafting { sequence, last, sampler, most, drafts: Vec::new() }, guesser));
                    }
                }
                spare -= most;
            } else {
                let most = guesser.wanted(&self.costs, decoding.len());
                guesser.look_up(sequence.tokens(), last, most.min(limit));
                spare -= guesser.guesses().len();
            }
        }
        let (mut rows, guessers): (Vec<_>, Vec<_>) = drafting.into_iter().unzip();
        // The text does not depend on draft tokens, so if the head fails there are none.
        let drafted = engine.draft(&mut rows).is_ok();
        for (row, guesser) in rows.into_iter().zip(guessers) {
            guesser.take(if drafted { row.drafts } else { Vec::new() });
        }
        let Some(draft) = self.draft.as_mut().filter(|_| !asks.is_empty()) else { return };
        for (number, guesses) in draft.guess(asks) {
            if let Some(task) = self.running.iter_mut().find(|task| task.number == number) {
                task.guesser.take(guesses);
            }
        }
    }

    /// How many draft tokens of a task can be checked without preempting an answer or evicting cached pages.
    fn affordable_guesses(&mut self, engine: &Engine, number: u64) -> usize {
        let others = self.running.len();
        let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { return 0 };
        let guesses = task.guesser.guesses().len();
        if engine.free_tokens(&task.sequence, others) > guesses {
            return guesses;
        }
        task.guesser.clear();
        0
    }

    /// Adds a task to the rows of a step if there are pages for it, for which others may be preempted.
    fn reserve(&mut self, engine: &mut Engine, number: u64, count: usize, rows: &mut Vec<(u64, usize)>) -> bool {
        loop {
            let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { return false };
            // Draft tokens may be taken back.
            let may_rewind = task.drawn.is_some() && count > 1;
            let Err(error) = engine.reserve(&mut task.sequence, count, may_rewind) else {
                rows.push((number, count));
                return true;
            };
            if self.running.len() == 1 {
                let task = self.running.remove(0);
                self.clients.leave(task.client);
                end(engine, task, Some(Err(error)));
                return false;
            }
            let held = self.held();
            let victims = self.running.iter().map(|task| {
                (task.readiness() == Readiness::Busy, held.get(&task.client).copied().unwrap_or(0), task.number)
            });
            let victim = victims.max().map_or(number, |(_, _, victim)| victim);
            self.preempt(engine, victim);
            rows.retain(|row| row.0 != victim);
            if victim == number {
                return false;
            }
        }
    }

    /// Preempts the task: it gives up its pages and waits.
    fn preempt(&mut self, engine: &mut Engine, number: u64) {
        let Some(at) = self.running.iter().position(|task| task.number == number) else { return };
        let mut task = self.running.swap_remove(at);
        engine.release(&mut task.sequence);
        task.pool.iter_mut().for_each(Pool::clear);
        task.guesser.clear();
        if let Some(token) = task.drawn.take() {
            engine.push(&mut task.sequence, token);
        }
        self.preempted += 1;
        self.waiting.push(task);
    }
}

/// Frees the task's pages, and tells its readers the result, if there is one.
fn end(engine: &mut Engine, task: Task, told: Option<Result<(), EngineError>>) {
    let Task { mut sequence, answers, .. } = task;
    engine.close(&mut sequence);
    let Some(result) = told else { return };
    answers.into_iter().for_each(|mut answer| answer.reader.end(result.clone()));
}
