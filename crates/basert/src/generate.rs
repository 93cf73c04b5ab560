//! Answers, piece by piece.

use std::time::{Duration, Instant};

use basert_engine::{Sampler, Sampling};
use basert_text::{Constraint, Detokenizer, Grammar, StopTexts, Tokenizer};

use crate::{Error, Session};

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Go on after the model says that the answer is complete.
    pub ignore_end: bool,
    /// What the answer has to be, if not any text. It ends where it is complete.
    pub grammar: Option<Grammar>,
}

impl Default for Generation {
    fn default() -> Self {
        Generation {
            max_tokens: usize::MAX,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_end: false,
            grammar: None,
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model said so, or a stop text came.
    Stop,
    /// It has as many tokens as were allowed, or the context is full.
    Length,
    /// The caller did not ask for more.
    Cancelled,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, those that the session had not computed before.
    pub computed_tokens: usize,
    /// Time to compute them.
    pub prompt_time: Duration,
    /// Time from then to the end.
    pub answer_time: Duration,
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
}

impl<'s, 'm> Pieces<'s, 'm> {
    pub(crate) fn new(session: &'s mut Session<'m>, prompt: &[u32], options: &Generation) -> Result<Self, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let sampler = Sampler::new(options.sampling.clone(), prompt)?;
        let constraint = options.grammar.as_ref().map(|grammar| session.model().constraint(grammar)).transpose()?;
        let began = Instant::now();
        let mut computed_tokens = 0;
        session.sync_in_chunks(prompt, usize::MAX, &mut |computed| {
            computed_tokens = computed;
            true
        })?;
        let answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            finish: Finish::Cancelled,
            prompt_tokens: prompt.len(),
            computed_tokens,
            prompt_time: began.elapsed(),
            answer_time: Duration::ZERO,
        };
        let detokenizer = Some(Detokenizer::continuing(session.model().tokenizer(), true));
        let (stop, options, began) = (StopTexts::new(&options.stop), options.clone(), Instant::now());
        Ok(Pieces { session, sampler, constraint, detokenizer, options, stop, finished: false, answer, began })
    }

    /// What there is of the answer so far.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// What there is of the answer.
    pub fn into_answer(self) -> Answer {
        self.answer
    }

    /// Text that is ready, now or after more tokens; none at the end of the answer.
    fn advance(&mut self) -> Result<Option<String>, Error> {
        while !self.finished {
            if self.answer.tokens.len() >= self.options.max_tokens || self.is_full() {
                return Ok(self.finish(Finish::Length));
            }
            // The token before is computed only now that one more is wanted.
            let last = self.answer.tokens.last().copied();
            let token = match (&mut self.constraint, last) {
                (Some(constraint), _) => constrained(self.session, &mut self.sampler, constraint, last)?,
                (None, Some(last)) => {
                    let more = self.options.max_tokens - self.answer.tokens.len() - 1;
                    let model = self.session.model();
                    model.draw(&mut [(&mut *self.session, &mut self.sampler, last)], more)?[0]
                }
                (None, None) => self.sampler.next(self.session.logits()),
            };
            self.answer.tokens.push(token);
            self.answer.answer_time = self.began.elapsed();
            let ends = self.session.model().tokenizer().end_of_generation().contains(&token);
            if ends && !self.options.ignore_end {
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
            if !self.finished && self.constraint.as_ref().is_some_and(Constraint::is_finished) {
                ready.extend(self.finish(Finish::Stop));
            }
            if !ready.is_empty() {
                return Ok(Some(ready));
            }
        }
        Ok(None)
    }

    /// Whether the context has no room for one more token.
    fn is_full(&self) -> bool {
        let next = self.session.tokens().len() + usize::from(!self.answer.tokens.is_empty());
        next > self.session.model().context()
    }

    /// Ends the answer, and returns the text that was held till then.
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

/// Draws a token among those that may follow the last one; the first token, from the logits of the prompt.
fn constrained(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    constraint: &mut Constraint,
    last: Option<u32>,
) -> Result<u32, Error> {
    let token = match last {
        Some(last) => {
            let (model, rows) = (session.model(), &mut [(session, sampler, last)]);
            let mut drawn =
                model.draw_allowed(rows, || vec![constraint.mask().map(Some).map_err(|e| e.to_string())])?;
            drawn.swap_remove(0)?
        }
        // There is at least one.
        None => sampler.next_of(session.logits(), constraint.mask()?).unwrap_or_default(),
    };
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
