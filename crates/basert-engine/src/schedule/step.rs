//! Running a step, and handing its tokens to readers.

use std::ops::Range;
use std::thread;

use super::{Answer, Scheduler, Task, Token, end};
use crate::engine::choose;
use crate::schedule::Readiness;
use crate::speculate::Guesser;
use crate::{Engine, EngineError, Part, TokenLogprobs};

/// What becomes of an answer after a token.
enum Fate {
    Continues,
    /// Its reader wants no more, and gets no further call.
    Refused,
    /// Its reader is told that there is no more, or why.
    Ended(Result<(), EngineError>),
}

impl Task {
    /// The row of logits from which the next token is sampled, of the task's rows: the first, or the last if the prompt
    /// is scored.
    fn row(&self, rows: &Range<usize>) -> usize {
        if self.is_scored() { rows.end - 1 } else { rows.start }
    }

    /// Gives a token to the reader of its first answer, after `length` others.
    fn hand(&mut self, token: Token, length: usize, context: usize) -> Fate {
        let Some(answer) = self.answers.first_mut() else { return Fate::Continues };
        self.made += 1;
        self.drawn = Some(token.id);
        let wants_more = answer.max_tokens == 0 || answer.reader.token(token);
        let may_have_more = self.made < answer.max_tokens && length < context;
        match (wants_more, may_have_more) {
            (false, _) => Fate::Refused,
            (true, false) => Fate::Ended(Ok(())),
            (true, true) => Fate::Continues,
        }
    }
}

impl Answer {
    /// Samples the next token.
    fn draw(&mut self, logits: &[f32]) -> Result<Token, EngineError> {
        let id = choose(&mut self.sampler, logits, self.reader.mask())?;
        if logits.get(id as usize).is_some_and(|logit| logit.is_nan()) {
            return Err(EngineError::NotNumbers);
        }
        let logprobs = self.logprobs.map(|top| TokenLogprobs::of(logits, id, top));
        Ok(Token { id, logprobs, was_drafted: false })
    }
}

/// Runs a step, and samples on the device the next token of each part whose answers are given: one, if any.
fn run_and_draw(
    engine: &mut Engine,
    parts: &mut [Part<'_>],
    answered: Vec<&mut [Answer]>,
) -> Result<Vec<Option<Result<Token, EngineError>>>, EngineError> {
    let wanted: Vec<bool> = answered.iter().map(|answers| !answers.is_empty()).collect();
    let answers = answered.into_iter().flatten().map(|Answer { sampler, reader, .. }| (sampler, reader));
    let (mut samplers, readers): (Vec<_>, Vec<_>) = answers.unzip();
    let masks = || readers.into_iter().map(|reader| reader.mask()).collect();
    let mut drawn = engine.run_and_draw(parts, &mut samplers, masks)?.into_iter();
    let token = |drawn: Result<u32, EngineError>| drawn.map(|id| Token { id, logprobs: None, was_drafted: false });
    Ok(wanted.into_iter().map(|wanted| if wanted { drawn.next().map(token) } else { None }).collect())
}

/// Runs a step, while readers of these answers compute their masks.
fn run_with_masks(
    engine: &mut Engine,
    parts: &mut [Part<'_>],
    answered: Vec<&mut [Answer]>,
) -> Result<(), EngineError> {
    let constrained: Vec<_> = answered
        .into_iter()
        .flatten()
        .map(|answer| &mut answer.reader)
        .filter(|reader| reader.is_constrained())
        .collect();
    if constrained.is_empty() {
        return engine.run(parts, false);
    }
    thread::scope(|scope| {
        // Readers keep their masks until the next token.
        scope.spawn(|| constrained.into_iter().for_each(|reader| drop(reader.mask())));
        engine.run(parts, false)
    })
}

/// Samples the next token of each task that is fully computed, from the rows that each wanted: sampling from a whole
/// vocabulary takes long enough to be divided among threads.
fn draw_first(
    engine: &Engine,
    step: &mut [(Task, usize)],
    rows: &[Range<usize>],
) -> Result<Vec<Option<Result<Token, EngineError>>>, EngineError> {
    let mut draws = Vec::with_capacity(step.len());
    for ((task, _), rows) in step.iter_mut().zip(rows) {
        let row = (task.lacking() == 0).then(|| task.row(rows));
        let answer = task.answers.first_mut().zip(row);
        draws.push((answer.map(|(answer, row)| (answer, engine.logits(row))), None));
    }
    engine.each(&mut draws, |(answer, token)| *token = answer.as_mut().map(|(answer, logits)| answer.draw(logits)))?;
    Ok(draws.into_iter().map(|(_, token)| token).collect())
}

impl Scheduler {
    /// Runs a step of decoding with sampling on the device.
    /// It may run ahead if there is nothing but these tasks, `alone`.
    pub(super) fn draw(
        &mut self,
        engine: &mut Engine,
        step: &mut Vec<(Task, usize)>,
        alone: bool,
    ) -> Result<(), EngineError> {
        let left = |task: &Task| task.answers.iter().map(|answer| answer.max_tokens - task.made).min().unwrap_or(1);
        let more = step.iter().map(|(task, _)| left(task).saturating_sub(1)).min().unwrap_or(0);
        let guesses = step.iter().any(|(task, _)| !task.guesser.is_off());
        let more = if alone && !guesses { more.min(self.pace.steps_ahead()) } else { 0 };
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
        for ((mut task, _), token) in step.drain(..).zip(tokens) {
            let length = task.sequence.tokens().len();
            let fate = match token {
                Ok(id) => task.hand(Token { id, logprobs: None, was_drafted: false }, length, engine.context()),
                Err(error) => Fate::Ended(Err(error)),
            };
            self.settle(engine, task, fate);
        }
        Ok(())
    }

    /// Runs any step that gives logits, with sampling on the device if nobody needs these.
    pub(super) fn compute(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
        if step.is_empty() {
            return Ok(());
        }
        let needs_none = |task: &Task, count| task.needs_no_logits() || !(task.ends(count) || task.is_scored());
        let on_device = engine.draws_on_device() && step.iter().all(|(task, count)| needs_none(task, *count));
        let (mut parts, mut answered) = (Vec::with_capacity(step.len()), Vec::new());
        for (task, count) in step.iter_mut() {
            let (is_scored, ends) = (task.is_scored(), task.ends(*count));
            let Task { sequence, drawn, guesser, answers, .. } = task;
            for token in drawn.take().into_iter().chain(guesser.guesses().iter().copied()) {
                engine.push(sequence, token);
            }
            let wanted = match ends {
                _ if is_scored => *count,
                true => 1 + guesser.guesses().len(),
                false => 0,
            };
            parts.push(Part { sequence, count: *count, wanted });
            answered.push(if ends { &mut answers[..] } else { &mut [] });
        }
        let mut next = 0;
        let rows_of = |part: &Part| {
            next += part.wanted;
            next - part.wanted..next
        };
        let rows: Vec<Range<usize>> = parts.iter().map(rows_of).collect();
        let first_tokens = if on_device && next > 0 {
            run_and_draw(engine, &mut parts, answered)?
        } else {
            run_with_masks(engine, &mut parts, answered)?;
            draw_first(engine, step, &rows)?
        };
        for (((mut task, count), rows), mut token) in step.drain(..).zip(rows).zip(first_tokens) {
            task.score(engine, count, rows.start);
            let row = task.row(&rows);
            if task.made == 0 {
                task.read(engine, count);
            }
            if task.lacking() > 0 {
                self.running.push(task);
                continue;
            }
            for task in self.split(engine, task) {
                self.answer(engine, task, row, token.take());
            }
        }
        Ok(())
    }

    /// Takes the next token of an answer, sampled from a row of logits if it was not already, and further tokens from
    /// the next rows as long as draft tokens are accepted.
    fn answer(
        &mut self,
        engine: &mut Engine,
        mut task: Task,
        row: usize,
        mut drawn: Option<Result<Token, EngineError>>,
    ) {
        let guessed = task.guesser.guesses().len();
        let computed = task.sequence.computed() - guessed;
        if let Some(answer) = task.answers.first_mut().filter(|_| guessed > 0) {
            answer.reader.drafted(guessed);
        }
        let mut right = 0;
        let fate = loop {
            let Some(answer) = task.answers.first_mut() else { return };
            let mut token = match drawn.take().unwrap_or_else(|| answer.draw(engine.logits(row + right))) {
                Ok(token) => token,
                Err(error) => break Fate::Ended(Err(error)),
            };
            let is_right = task.guesser.is_right(right, token.id);
            token.was_drafted = is_right;
            // A reader takes one token, and further ones only if it can.
            match task.hand(token, computed + right, engine.context()) {
                Fate::Continues if is_right && task.readiness() == Readiness::Ready => right += 1,
                fate => break fate,
            }
        };
        engine.rewind(&mut task.sequence, computed + right);
        task.guesser.clear();
        self.proposed += guessed as u64;
        self.accepted += right as u64;
        self.clients.charge(task.client, right);
        self.settle(engine, task, fate);
    }

    /// Runs a step of tasks that want embeddings.
    pub(super) fn embed(&mut self, engine: &mut Engine, step: &mut Vec<(Task, usize)>) -> Result<(), EngineError> {
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

    /// Splits a task whose prompt is computed into one for each answer.
    fn split(&mut self, engine: &mut Engine, mut task: Task) -> Vec<Task> {
        let others = task.answers.split_off(1.min(task.answers.len()));
        let mut tasks = vec![];
        for answer in others {
            self.clients.enter(task.client);
            let (number, sequence) = (self.number(), engine.fork(&task.sequence));
            let guesser = Guesser::new(self.speculation, engine.draws_on_device());
            let Task { client, prompt, .. } = task;
            let (answers, pool, prompt_logprobs) = (vec![answer], None, None);
            tasks.push(Task {
                number,
                client,
                sequence,
                drawn: None,
                prompt,
                answers,
                pool,
                prompt_logprobs,
                guesser,
                made: 0,
            });
        }
        tasks.insert(0, task);
        tasks
    }

    /// Keeps the task if its answer continues, else ends it.
    fn settle(&mut self, engine: &mut Engine, task: Task, fate: Fate) {
        let told = match fate {
            Fate::Continues => return self.running.push(task),
            Fate::Refused => None,
            Fate::Ended(result) => Some(result),
        };
        self.clients.leave(task.client);
        end(engine, task, told);
    }
}
