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
pub use self::request::{Answer, Attention, Mask, Prompt, Reader, Request, Token};
use crate::pooling::Pool;
use crate::{Engine, EngineError, Part, Pooling, Sequence, TokenLogprobs};

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
    /// Of the hidden states so far, where they are wanted instead of an answer.
    pool: Option<Pool>,
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
            && self.answers.iter().all(|answer| {
                answer.logprobs.is_none()
                    && !answer.reader.is_constrained()
                    && answer.sampler.draw_on_device(0).is_some()
            })
    }

    fn pooling(&self) -> Option<Pooling> {
        self.pool.as_ref().map(Pool::pooling)
    }

    /// Goes on from what is known of its tokens, unless hidden states of all of them are wanted. What was done before it
    /// had to wait is not counted as found.
    fn adopt(&mut self, engine: &mut Engine) {
        if self.pooling() == Some(Pooling::Mean) {
            return;
        }
        engine.adopt(&mut self.sequence);
        if self.made == 0 {
            let found = self.sequence.computed();
            self.prompt.cached += found.saturating_sub(self.prompt.done);
            self.prompt.done = self.prompt.done.max(found);
        }
    }

    /// So many tokens of the prompt were computed: readers are told, and others can go on from there.
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
        let Request { client, prompt: tokens, answers, pooling } = request;
        let pool = pooling.map(Pool::new);
        let prompt = Prompt { tokens: tokens.len(), done: 0, cached: 0 };
        let mut sequence = Sequence::default();
        let checked = engine.set(&mut sequence, tokens);
        let task = Task { number: self.number(), client, sequence, drawn: None, prompt, answers, pool, made: 0 };
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
        // A step of the device gives logits or hidden states, so those who want the one and the other have theirs in turn.
        let (mut pooled, mut step): (Vec<_>, Vec<_>) = step.into_iter().partition(|(task, _)| task.pool.is_some());
        let on_device =
            engine.draws_on_device() && !step.is_empty() && step.iter().all(|(task, _)| task.needs_no_logits());
        let answered = match on_device {
            true => self.draw(engine, &mut step),
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
        Turn::Step { decoded, prompt, time }
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
        let mut states = engine.limits().wanted;
        for (_, number) in reading {
            let Some(task) = self.running.iter_mut().find(|task| task.number == number) else { continue };
            // Another one may have computed the same in the meantime.
            task.adopt(engine);
            let (mut count, mut wanted) = (task.lacking().min(budget), 0);
            if let Some(pooling) = task.pooling() {
                count = count.min(if pooling == Pooling::Mean { states } else { count });
                wanted = pooling.wanted(count, count == task.lacking());
            }
            if count > 0 && wanted <= states && self.reserve(engine, number, count, &mut rows) {
                budget -= count;
                states -= wanted;
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
        task.pool.iter_mut().for_each(Pool::clear);
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
        let mut rows: Vec<_> = step
            .iter_mut()
            .filter_map(|(task, _)| {
                let token = task.drawn.take()?;
                Some((&mut task.sequence, &mut task.answers.first_mut()?.sampler, token))
            })
            .collect();
        let tokens = engine.draw(&mut rows, more)?;
        for ((task, _), id) in step.drain(..).zip(tokens) {
            self.go_on(engine, task, Token { id, logprobs: None });
        }
        Ok(())
    }

    /// A step whose logits are looked at here.
    fn compute(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
        if step.is_empty() {
            return Ok(());
        }
        let mut masks = Vec::new();
        let mut parts = Vec::with_capacity(step.len());
        let mut constrained = Vec::new();
        for (task, count) in step.iter_mut() {
            if let Some(token) = task.drawn.take() {
                engine.push(&mut task.sequence, token);
            }
            let (count, ends) = (*count, task.lacking() == *count);
            let answers = task.answers.iter_mut().filter(|answer| ends && answer.reader.is_constrained());
            constrained.extend(answers.map(|answer| (task.number, answer)));
            parts.push(Part { sequence: &mut task.sequence, count, wanted: usize::from(ends) });
        }
        let mut result = Ok(());
        let mut compute = || result = engine.run(&mut parts, false);
        if constrained.is_empty() {
            compute();
        } else {
            thread::scope(|scope| {
                let constrained = scope
                    .spawn(|| constrained.into_iter().map(|(number, answer)| (number, answer.reader.mask())).collect());
                compute();
                masks = constrained.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
        result?;
        let mut masks = masks.into_iter().peekable();
        let mut rows = 0..;
        for (mut task, count) in step.drain(..) {
            if task.made == 0 {
                task.read(engine, count);
            }
            if task.lacking() > 0 {
                self.running.push(task);
                continue;
            }
            let (number, row) = (task.number, rows.next().unwrap_or_default());
            for mut task in self.split(engine, task) {
                let Some(answer) = task.answers.first_mut() else { continue };
                let constrained = answer.reader.is_constrained();
                let mask = masks.next_if(|mask| constrained && mask.0 == number).map(|mask| mask.1);
                match choose(answer, engine.logits(row), mask.unwrap_or(Ok(None))) {
                    Ok(token) => self.go_on(engine, task, token),
                    Err(error) => {
                        self.clients.leave(task.client);
                        end(engine, task, Some(Err(error)));
                    }
                }
            }
        }
        Ok(())
    }

    /// A step of those who want a vector of hidden states.
    fn embed(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
        if step.is_empty() {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(step.len());
        for (task, count) in step.iter_mut() {
            let wanted = task.pooling().map_or(0, |pooling| pooling.wanted(*count, *count == task.lacking()));
            parts.push(Part { sequence: &mut task.sequence, count: *count, wanted });
        }
        engine.run(&mut parts, true)?;
        let wanted: Vec<usize> = parts.iter().map(|part| part.wanted).collect();
        let mut rows = 0..;
        for ((mut task, count), wanted) in step.drain(..).zip(wanted) {
            task.read(engine, count);
            let vector = task.pool.as_mut().map(|pool| {
                rows.by_ref().take(wanted).for_each(|row| pool.add(engine.hidden(row)));
                pool.finish()
            });
            match vector {
                Some(vector) if task.lacking() == 0 => {
                    task.answers.iter_mut().for_each(|answer| answer.reader.embedding(vector.clone()));
                    self.clients.leave(task.client);
                    end(engine, task, Some(Ok(())));
                }
                _ => self.running.push(task),
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
            let answers = vec![answer];
            tasks.push(Task { number, client, sequence, drawn: None, prompt, answers, pool: None, made: 0 });
        }
        tasks.insert(0, task);
        tasks
    }

    /// Hands a token to its reader, and keeps the task if there may be more.
    fn go_on(&mut self, engine: &mut Engine, mut task: Task, token: Token) {
        let Some(answer) = task.answers.first_mut() else { return };
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

/// The next token of an answer.
fn choose(answer: &mut Answer, logits: &[f32], mask: Result<Option<Mask>, String>) -> Result<Token, EngineError> {
    let id = match mask.map_err(EngineError::Constraint)? {
        None => answer.sampler.next(logits),
        Some(mask) => {
            let none = || EngineError::Constraint("no token may come next".to_owned());
            answer.sampler.next_of(logits, &mask).ok_or_else(none)?
        }
    };
    let logprobs = answer.logprobs.map(|top| TokenLogprobs::of(logits, id, top));
    Ok(Token { id, logprobs })
}
