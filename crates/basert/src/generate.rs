//! Generation of answers, piece by piece.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use basert_engine::{Ask, Costs, Guesser, Sampler, SamplingOptions, Speculation};
use basert_text::{Constraint, Detokenizer, Grammar, GrammarError, Preface, StopTexts, Tokenizer};

use crate::{Error, Session};

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Limit on the answer's tokens.
    pub max_tokens: usize,
    /// Sampling settings that replace the model's defaults ([`crate::Model::sampling`]).
    pub sampling: SamplingOptions,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Continue after the model's end-of-text token.
    pub ignore_end: bool,
    /// A constraint on the answer, which ends when the constraint is complete; none allows any text.
    pub grammar: Option<Grammar>,
    /// Speculative decoding, which does not change the text.
    pub speculation: Speculation,
}

impl Default for Generation {
    fn default() -> Self {
        Generation {
            max_tokens: usize::MAX,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            ignore_end: false,
            grammar: None,
            speculation: Speculation::default(),
        }
    }
}

impl Generation {
    /// Greedy decoding, whose result is the same every time.
    pub fn greedy() -> Generation {
        Generation { sampling: SamplingOptions::greedy(), ..Generation::default() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop text appeared.
    Stop,
    /// The limit on tokens was reached, or the context is full.
    Length,
    /// The caller stopped it.
    Cancelled,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The model's reasoning, if the answer is one of a chat.
    pub reasoning: String,
    /// The tokens, including the one that ended the answer.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the session had not computed before.
    pub computed_tokens: usize,
    /// Time of prefill.
    pub prompt_time: Duration,
    /// Time from the end of prefill to the end of the answer.
    pub answer_time: Duration,
    /// Draft tokens that were proposed.
    pub proposed: usize,
    /// Draft tokens that were accepted.
    pub accepted: usize,
}

/// The pieces of an answer: an iterator of texts, each of whole characters.
pub struct Pieces<'s, 'm> {
    session: &'s mut Session<'m>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    detokenizer: Option<Detokenizer<&'m Tokenizer>>,
    options: Generation,
    stop: StopTexts,
    finished: bool,
    answer: Answer,
    began: Instant,
    /// Sampled tokens that are not yet part of the answer.
    drawn: VecDeque<u32>,
    guesser: Guesser,
    costs: Costs,
    /// The number that identifies the answer for a draft model.
    number: u64,
}

impl<'s, 'm> Pieces<'s, 'm> {
    /// For an answer that begins with `preface`, and shows the names of some control tokens.
    pub(crate) fn new(
        session: &'s mut Session<'m>,
        prompt: &[u32],
        options: &Generation,
        preface: &Preface,
        shown: Vec<u32>,
    ) -> Result<Self, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let sampler = Sampler::new(options.sampling.over(session.model().sampling()), prompt)?;
        let constraint = options.grammar.as_ref().map(|grammar| session.model().constraint_after(grammar, preface));
        let constraint = constraint.transpose()?;
        let began = Instant::now();
        let mut computed_tokens = 0;
        session.sync_in_chunks(prompt, usize::MAX, &mut |computed| {
            computed_tokens = computed;
            true
        })?;
        let answer = Answer {
            text: String::new(),
            reasoning: String::new(),
            tokens: Vec::new(),
            finish: Finish::Cancelled,
            prompt_tokens: prompt.len(),
            computed_tokens,
            prompt_time: began.elapsed(),
            answer_time: Duration::ZERO,
            proposed: 0,
            accepted: 0,
        };
        let (guesser, costs, number) = (
            Guesser::new(options.speculation, session.model().device().chain > 0),
            Costs::default(),
            session.model().number(),
        );
        let drawn = VecDeque::new();
        let detokenizer = Some(Detokenizer::continuing(session.model().tokenizer(), true).showing(shown));
        let (stop, options, began) = (StopTexts::new(&options.stop), options.clone(), Instant::now());
        let finished = false;
        Ok(Pieces {
            session,
            sampler,
            constraint,
            detokenizer,
            options,
            stop,
            finished,
            answer,
            began,
            drawn,
            guesser,
            costs,
            number,
        })
    }

    /// The answer so far.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Ends the answer before the model does.
    pub(crate) fn stop(&mut self) {
        self.answer.finish = Finish::Stop;
        self.finished = true;
    }

    /// The answer so far.
    pub fn into_answer(self) -> Answer {
        self.answer
    }

    /// The next piece of text, for which tokens are generated as needed; none at the end of the answer.
    fn advance(&mut self) -> Result<Option<String>, Error> {
        while !self.finished {
            if self.drawn.is_empty() {
                if self.answer.tokens.len() >= self.options.max_tokens || self.is_full() {
                    return Ok(self.finish(Finish::Length));
                }
                self.draw()?;
            }
            let Some(token) = self.drawn.pop_front() else { continue };
            self.answer.tokens.push(token);
            self.answer.answer_time = self.began.elapsed();
            if self.ends(token) {
                return Ok(self.finish(Finish::Stop));
            }
            let (mut text, mut ready) = (String::new(), String::new());
            if let Some(detokenizer) = &mut self.detokenizer {
                detokenizer.push(token, &mut text);
            }
            self.stop.push(&text, &mut ready);
            if self.stop.came().is_some() {
                self.answer.finish = Finish::Stop;
                self.finished = true;
            }
            if !self.finished && self.drawn.is_empty() && self.is_complete() {
                ready.extend(self.finish(Finish::Stop));
            }
            if !ready.is_empty() {
                return Ok(Some(ready));
            }
        }
        Ok(None)
    }

    /// Whether this token ends the answer.
    fn ends(&self, token: u32) -> bool {
        !self.options.ignore_end && self.session.model().tokenizer().end_of_generation().contains(&token)
    }

    /// Whether all sampled tokens were taken, and the constraint allows no more.
    fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(Constraint::is_finished)
    }

    /// Samples the next token, and further ones for which draft tokens are accepted. The last token is computed only
    /// now, because another one is needed.
    fn draw(&mut self) -> Result<(), Error> {
        let (last, began) = (self.answer.tokens.last().copied(), Instant::now());
        if let Some(last) = last
            && self.guess(last)
        {
            return self.draw_guessed(last);
        }
        let token = match (&mut self.constraint, last) {
            (Some(constraint), _) => constrained(self.session, &mut self.sampler, constraint, last)?,
            (None, Some(last)) => {
                let more = self.options.max_tokens - self.answer.tokens.len() - 1;
                let model = self.session.model();
                model.draw(&mut [(&mut *self.session, &mut self.sampler, last)], more)?[0]
            }
            (None, None) => self.sampler.next(self.session.logits()),
        };
        if last.is_some() {
            self.costs.measure(began.elapsed(), 0);
        }
        self.guesser.is_right(0, token);
        self.drawn.push_back(token);
        Ok(())
    }

    /// Proposes draft tokens, and returns whether there are any to check.
    fn guess(&mut self, last: u32) -> bool {
        let (model, text) = (self.session.model(), self.session.tokens());
        let room = model.context().saturating_sub(text.len() + 1);
        let left = self.options.max_tokens - self.answer.tokens.len() - 1;
        let rows = model.plan().limits.wanted.min(model.plan().limits.tokens) - 1;
        // Nothing cached is evicted for draft tokens; one page is left, as a shared page may have to be copied.
        let free = model.engine().free_tokens(self.session.sequence(), 1).saturating_sub(1);
        let (most, limit) = (self.guesser.wanted(&self.costs, 1), room.min(left).min(rows).min(free));
        match model.draft().filter(|_| !self.guesser.is_off()) {
            Some(mut draft) => {
                // At least one is requested, to measure how often drafts are accepted.
                let (tokens, sampler) = ([text, &[last]].concat(), self.sampler.clone());
                let ask = Ask { number: self.number, salt: 0, tokens, sampler, most: most.max(1).min(limit) };
                draft.guess(vec![ask]).into_iter().for_each(|(_, guesses)| self.guesser.take(guesses));
            }
            None => self.guesser.look_up(text, last, most.min(limit)),
        }
        !self.guesser.guesses().is_empty()
    }

    /// Computes the last token and the draft tokens, and samples as long as the drafts are accepted.
    fn draw_guessed(&mut self, last: u32) -> Result<(), Error> {
        let (began, guessed) = (Instant::now(), self.guesser.guesses().len());
        let before = self.session.tokens().len();
        let tokens = [&[last], self.guesser.guesses()].concat();
        let mut engine = self.session.model().engine();
        if let Err(error) = engine.extend(self.session.sequence_mut(), &tokens) {
            engine.rewind(self.session.sequence_mut(), before);
            return Err(error.into());
        }
        let mut right = 0;
        let result = loop {
            let logits = engine.logits(right);
            let token = match &mut self.constraint {
                Some(constraint) => choose(&mut self.sampler, constraint, logits),
                None => Ok(self.sampler.next(logits)),
            };
            let token = match token {
                Ok(token) => token,
                Err(error) => break Err(error),
            };
            self.drawn.push_back(token);
            if !self.guesser.is_right(right, token) || self.ends(token) || self.is_complete() {
                break Ok(());
            }
            right += 1;
        };
        engine.rewind(self.session.sequence_mut(), before + 1 + right);
        self.guesser.clear();
        self.costs.measure(began.elapsed(), guessed);
        self.answer.proposed += guessed;
        self.answer.accepted += right;
        result
    }

    /// Whether the context is full.
    fn is_full(&self) -> bool {
        let next = self.session.tokens().len() + usize::from(!self.answer.tokens.is_empty());
        next > self.session.model().context()
    }

    /// Ends the answer, and returns the text that was held back until then.
    fn finish(&mut self, finish: Finish) -> Option<String> {
        self.finished = true;
        let (mut text, mut ready) = (String::new(), String::new());
        if let Some(detokenizer) = self.detokenizer.take() {
            detokenizer.finish(&mut text);
        }
        self.stop.push(&text, &mut ready);
        self.answer.finish = if self.stop.came().is_some() { Finish::Stop } else { finish };
        self.stop.flush(&mut ready);
        Some(ready).filter(|text| !text.is_empty())
    }
}

/// Samples a token within the constraint: the first one from the logits of the prompt.
fn constrained(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    constraint: &mut Constraint,
    last: Option<u32>,
) -> Result<u32, Error> {
    let Some(last) = last else { return choose(sampler, constraint, session.logits()) };
    let (model, rows) = (session.model(), &mut [(session, sampler, last)]);
    let mut drawn = model.draw_allowed(rows, || vec![constraint.mask().map(Some).map_err(|e| e.to_string())])?;
    let token = drawn.swap_remove(0)?;
    constraint.accept(token)?;
    Ok(token)
}

/// Samples from the tokens that the constraint allows.
fn choose(sampler: &mut Sampler, constraint: &mut Constraint, logits: &[f32]) -> Result<u32, Error> {
    let token = sampler.next_of(logits, constraint.mask()?);
    let token = token.ok_or_else(|| GrammarError::Step { reason: "no token is allowed next".into() })?;
    constraint.accept(token)?;
    Ok(token)
}

impl Iterator for Pieces<'_, '_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(Some(piece)) => {
                self.answer.text.push_str(&piece);
                Some(Ok(piece))
            }
            Ok(None) => None,
            Err(error) => {
                self.finished = true;
                Some(Err(error))
            }
        }
    }
}
