//! Many requests on one engine.
//!
//! A task is a timeline whose computed tokens catch up with its wanted ones. Each step takes one token of every answer
//! that is being written, and of prompts as much as fits the time until those answers want their next one. A task is
//! admitted when there are pages for all that it lacks. When pages run out nevertheless, the youngest task gives up its
//! own and waits: its tokens and its sampler stay, so it goes on with the same text.

mod clients;
mod pace;
mod request;

use std::thread;
use std::time::{Duration, Instant};

use self::clients::Clients;
use self::pace::Pace;
pub use self::request::{Answer, Attention, Prompt, Reader, Request, Token};
use crate::engine::choose;
use crate::{Engine, EngineError, Sequence, TokenLogprobs};

/// Requests that wait and requests that are being answered.
pub struct Scheduler {
    /// The most answers at once.
    most: usize,
    pace: Pace,
    clients: Clients,
    waiting: Vec<Task>,
    /// In no particular order.
    running: Vec<Task>,
    /// The number of the next task.
    next: u64,
    preempted: u64,
}

/// A timeline, and the answers that go on from it: several as long as it is their prompt.
struct Task {
    /// Younger tasks have larger numbers.
    number: u64,
    client: u64,
    sequence: Sequence,
    /// Drawn, and not part of the timeline yet.
    drawn: Option<u32>,
    prompt: Prompt,
    answers: Vec<Answer>,
    /// Tokens of the answer.
    made: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// There is nothing to do.
    Idle,
    /// Nobody who waits for something is ready to take it.
    Blocked,
    /// A step.
    Step {
        /// Answers that went on.
        decoded: usize,
        /// Tokens of prompts.
        prompt: usize,
        /// What the device, and drawing tokens, took.
        time: Duration,
    },
}

impl Task {
    fn lacking(&self) -> usize {
        self.sequence.tokens().len() - self.sequence.computed()
    }

    fn attention(&self) -> Attention {
        let of = |attention| move |answer: &Answer| answer.reader.attention() == attention;
        if self.answers.iter().all(of(Attention::Gone)) {
            Attention::Gone
        } else if self.answers.iter().any(of(Attention::Busy)) {
            Attention::Busy
        } else {
            Attention::Ready
        }
    }

    /// Whether a device may draw its tokens without showing logits to anyone.
    fn needs_no_logits(&self) -> bool {
        self.drawn.is_some()
            && self.answers.iter().all(|answer| answer.logprobs.is_none() && answer.sampler.draw_on_device(0).is_some())
    }

    /// Goes on from what is known of its tokens. What was done before it had to wait is not counted as found.
    fn adopt(&mut self, engine: &mut Engine) {
        engine.adopt(&mut self.sequence);
        if self.made == 0 {
            let found = self.sequence.computed();
            self.prompt.cached += found.saturating_sub(self.prompt.done);
            self.prompt.done = self.prompt.done.max(found);
        }
    }

    fn report_prompt(&mut self) {
        let prompt = self.prompt;
        self.answers.iter_mut().for_each(|answer| answer.reader.prompt(prompt));
    }
}

impl Scheduler {
    /// A scheduler of at most `most` answers at once, whose steps take about `gap` at most while answers are written.
    pub fn new(most: usize, gap: Duration) -> Scheduler {
        Scheduler {
            most: most.max(1),
            pace: Pace::new(gap),
            clients: Clients::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            next: 0,
            preempted: 0,
        }
    }

    /// Answers that are being written, or whose prompt is being read.
    pub fn running(&self) -> usize {
        self.running.iter().map(|task| task.answers.len()).sum()
    }

    /// Answers that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|task| task.answers.len()).sum()
    }

    /// How often a task had to give up its pages.
    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    /// Takes a request. If it can never be answered, its readers are told at once.
    pub fn submit(&mut self, engine: &mut Engine, request: Request) {
        let Request { client, prompt: tokens, answers } = request;
        let prompt = Prompt { tokens: tokens.len(), done: 0, cached: 0 };
        let mut sequence = Sequence::default();
        let checked = engine.set(&mut sequence, tokens);
        let task = Task { number: self.number(), client, sequence, drawn: None, prompt, answers, made: 0 };
        let fits = engine.lacking_pages(&task.sequence) <= engine.page_use().total;
        let most = self.most.min(engine.limits().wanted);
        let result = match checked {
            Ok(()) if !fits => Err(EngineError::OutOfPages { pages: engine.page_use().total }),
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

    /// One step of what is most urgent.
    pub fn step(&mut self, engine: &mut Engine) -> Turn {
        self.part_with_those_gone(engine);
        self.admit(engine);
        let rows = self.plan(engine);
        if rows.is_empty() {
            return if self.running.is_empty() && self.waiting.is_empty() { Turn::Idle } else { Turn::Blocked };
        }
        // Those of the step are taken out, and those come back that go on.
        let mut step = Vec::with_capacity(rows.len());
        for (number, count) in rows {
            if let Some(at) = self.running.iter().position(|task| task.number == number) {
                step.push((self.running.swap_remove(at), count));
            }
        }
        let began = Instant::now();
        let decoded = step.iter().filter(|(task, _)| task.drawn.is_some()).count();
        let prompt = step.iter().filter(|(task, _)| task.drawn.is_none()).map(|(_, count)| count).sum();
        for (task, count) in &step {
            self.clients.charge(task.client, *count);
        }
        let on_device = engine.draws_on_device() && step.iter().all(|(task, _)| task.needs_no_logits());
        let result = if on_device { self.draw(engine, &mut step) } else { self.compute(engine, &mut step) };
        match result {
            Ok(()) => {
                let time = began.elapsed();
                self.pace.measure(time, prompt, decoded);
                Turn::Step { decoded, prompt, time }
            }
            Err(error) => {
                for (task, _) in step {
                    self.clients.leave(task.client);
                    end(engine, task, Some(Err(error.clone())));
                }
                Turn::Step { decoded: 0, prompt: 0, time: began.elapsed() }
            }
        }
    }

    /// Answers that nobody reads any more give their pages back.
    fn part_with_those_gone(&mut self, engine: &mut Engine) {
        let clients = &mut self.clients;
        for task in self.running.extract_if(.., leave).chain(self.waiting.extract_if(.., leave)) {
            clients.leave(task.client);
            end(engine, task, None);
        }

        fn leave(task: &mut Task) -> bool {
            task.answers.retain(|answer| answer.reader.attention() != Attention::Gone);
            task.answers.is_empty()
        }
    }

    /// Lets in those that wait, as far as there are pages for what they lack.
    fn admit(&mut self, engine: &mut Engine) {
        let most = self.most.min(engine.limits().wanted);
        loop {
            let ready = self.waiting.iter().enumerate().filter(|(_, task)| task.attention() == Attention::Ready);
            // Those that were let in before come first, then whoever got least.
            let urgency = |(_, task): &(usize, &Task)| (task.made == 0, self.clients.served(task.client), task.number);
            let Some((at, _)) = ready.min_by_key(urgency) else { return };
            if self.running() + self.waiting[at].answers.len() > most {
                return;
            }
            let mut task = self.waiting.swap_remove(at);
            task.adopt(engine);
            while !self.running.is_empty() && !self.has_room(engine, &task) {
                // Pages of those that do not read are of more use here.
                let busy = self.running.iter().filter(|task| task.attention() == Attention::Busy);
                match busy.map(|task| task.number).max() {
                    Some(number) => self.preempt(engine, number),
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

    /// Whether there are pages for what the task lacks, beside what those let in before it lack, and one more for each.
    fn has_room(&self, engine: &Engine, task: &Task) -> bool {
        let tasks = self.running.iter().chain([task]);
        let lacking: usize = tasks.map(|task| engine.lacking_pages(&task.sequence) + task.answers.len()).sum();
        lacking <= engine.available_pages()
    }

    /// What the next step computes: numbers of tasks, and how many tokens of each. There are pages for them.
    fn plan(&mut self, engine: &mut Engine) -> Vec<(u64, usize)> {
        let ready: Vec<&Task> = self.running.iter().filter(|task| task.attention() == Attention::Ready).collect();
        let mut decoding: Vec<u64> = ready.iter().filter(|task| task.drawn.is_some()).map(|task| task.number).collect();
        let mut reading: Vec<(u64, u64)> = ready
            .iter()
            .filter(|task| task.drawn.is_none())
            .map(|task| (self.clients.served(task.client), task.number))
            .collect();
        decoding.sort_unstable();
        reading.sort_unstable();
        let mut rows = Vec::with_capacity(ready.len());
        for number in decoding {
            self.reserve(engine, number, 1, &mut rows);
        }
        let left = engine.limits().tokens - rows.len();
        let mut budget = self.pace.prompt_tokens(rows.len(), left);
        for (_, number) in reading {
            let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { continue };
            // Another one may have computed the same in the meantime.
            task.adopt(engine);
            let count = task.lacking().min(budget);
            if count > 0 && self.reserve(engine, number, count, &mut rows) {
                budget -= count;
            }
        }
        rows
    }

    /// Adds a task to the rows of a step, if there are pages for that; younger ones may have to give up theirs.
    fn reserve(&mut self, engine: &mut Engine, number: u64, count: usize, rows: &mut Vec<(u64, usize)>) -> bool {
        loop {
            let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { return false };
            let Err(error) = engine.reserve(&mut task.sequence, count) else {
                rows.push((number, count));
                return true;
            };
            if self.running.len() == 1 {
                let task = self.running.remove(0);
                self.clients.leave(task.client);
                end(engine, task, Some(Err(error)));
                return false;
            }
            let victims = self.running.iter().map(|task| (task.attention() == Attention::Busy, task.number));
            let victim = victims.max().map_or(number, |(_, victim)| victim);
            self.preempt(engine, victim);
            rows.retain(|row| row.0 != victim);
            if victim == number {
                return false;
            }
        }
    }

    /// The task gives up its pages and waits.
    fn preempt(&mut self, engine: &mut Engine, number: u64) {
        let Some(at) = self.running.iter().position(|task| task.number == number) else { return };
        let mut task = self.running.swap_remove(at);
        engine.release(&mut task.sequence);
        if let Some(token) = task.drawn.take() {
            engine.push(&mut task.sequence, token);
        }
        self.preempted += 1;
        self.waiting.push(task);
    }

    /// A step on a device that draws the tokens.
    fn draw(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
        let left = |task: &Task| task.answers.iter().map(|answer| answer.max_tokens - task.made).min().unwrap_or(1);
        let more = step.iter().map(|(task, _)| left(task).saturating_sub(1)).min().unwrap_or(0);
        let (mut rows, mut readers) = (Vec::with_capacity(step.len()), Vec::with_capacity(step.len()));
        for (task, _) in step.iter_mut() {
            let (Some(token), Some(answer)) = (task.drawn.take(), task.answers.first_mut()) else { continue };
            rows.push((&mut task.sequence, &mut answer.sampler, token));
            readers.push(&mut answer.reader);
        }
        let tokens: Vec<_> = if readers.iter().any(|reader| reader.is_constrained()) {
            engine.draw_allowed(&mut rows, || readers.into_iter().map(|reader| reader.mask()).collect())?
        } else {
            engine.draw(&mut rows, more)?.into_iter().map(Ok).collect()
        };
        for ((task, _), token) in step.drain(..).zip(tokens) {
            self.go_on(engine, task, token.map(|id| Token { id, logprobs: None }));
        }
        Ok(())
    }

    /// A step whose logits are looked at here.
    fn compute(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
        let mut rows = Vec::with_capacity(step.len());
        let mut constrained = Vec::new();
        for (task, count) in step.iter_mut() {
            if let Some(token) = task.drawn.take() {
                engine.push(&mut task.sequence, token);
            }
            let ends = task.lacking() == *count;
            let answers = task.answers.iter_mut().filter(|answer| ends && answer.reader.is_constrained());
            constrained.extend(answers.map(|answer| &mut answer.reader));
            rows.push((&mut task.sequence, *count));
        }
        let mut result = Ok(());
        let mut compute = || result = engine.compute(&mut rows);
        if constrained.is_empty() {
            compute();
        } else {
            thread::scope(|scope| {
                scope.spawn(|| constrained.into_iter().for_each(|reader| drop(reader.mask())));
                compute();
            });
        }
        result?;
        for (mut task, count) in step.drain(..) {
            if task.made == 0 {
                task.prompt.done = task.prompt.done.max(task.sequence.computed());
                task.report_prompt();
                if count > 1 {
                    engine.publish(&task.sequence);
                }
            }
            if task.lacking() > 0 {
                self.running.push(task);
                continue;
            }
            for mut task in self.split(engine, task) {
                let Some(answer) = task.answers.first_mut() else { continue };
                let (logits, allowed) = (task.sequence.logits(), answer.reader.mask());
                let token = choose(&mut answer.sampler, logits, allowed).map(|id| {
                    let logprobs = answer.logprobs.map(|top| TokenLogprobs::of(logits, id, top));
                    Token { id, logprobs }
                });
                self.go_on(engine, task, token);
            }
        }
        Ok(())
    }

    /// A task for each answer.
    fn split(&mut self, engine: &mut Engine, mut task: Task) -> Vec<Task> {
        let others = task.answers.split_off(1.min(task.answers.len()));
        let mut tasks = vec![];
        for answer in others {
            self.clients.enter(task.client);
            let (number, sequence) = (self.number(), engine.fork(&task.sequence));
            let Task { client, prompt, .. } = task;
            tasks.push(Task { number, client, sequence, drawn: None, prompt, answers: vec![answer], made: 0 });
        }
        tasks.insert(0, task);
        tasks
    }

    /// Hands a token to its reader, and keeps the task if there may be more. Without one the answer ends.
    fn go_on(&mut self, engine: &mut Engine, mut task: Task, token: Result<Token, EngineError>) {
        let Some(answer) = task.answers.first_mut() else { return };
        let token = match token {
            Ok(token) => token,
            Err(error) => {
                self.clients.leave(task.client);
                return end(engine, task, Some(Err(error)));
            }
        };
        task.made += 1;
        task.drawn = Some(token.id);
        let wants_more = answer.max_tokens == 0 || answer.reader.token(token);
        let may_have_more = task.made < answer.max_tokens && task.sequence.tokens().len() < engine.context();
        if wants_more && may_have_more {
            return self.running.push(task);
        }
        self.clients.leave(task.client);
        end(engine, task, wants_more.then_some(Ok(())));
    }
}

/// Gives the task's pages back, and tells its readers what there is to tell.
fn end(engine: &mut Engine, mut task: Task, word: Option<Result<(), EngineError>>) {
    engine.close(&mut task.sequence);
    for mut answer in task.answers.into_iter().filter(|_| word.is_some()) {
        answer.reader.end(word.clone().unwrap_or(Ok(())));
    }
}
