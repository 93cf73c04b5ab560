//! The tokens that follow: drawn on the device, in steps that follow each other without being asked for or within masks
//! that are made meanwhile; or here, where the device draws none.

use std::panic::resume_unwind;
use std::thread;

use basert_plan::{Draw, first_allowed};

use super::{Engine, EngineError, Sequence};
use crate::Sampler;

/// A sequence that draws: with what, and the token that it goes on with.
pub type Drawing<'a> = (&'a mut Sequence, &'a mut Sampler, u32);

/// The mask of the tokens that may be drawn, bit t % 32 of word t / 32 for token t; all may where there is none, and none
/// may for a reason.
pub type Allowed<'m> = Result<Option<&'m [u32]>, String>;

/// Tokens that a chain takes pages for when it begins, if there are plenty.
const CHAIN_TOKENS: usize = 64;

/// Steps that follow each other on the device, each with the tokens drawn in the one before.
#[derive(Default)]
pub(super) struct Chain {
    /// How many can be under way; 0 where the device draws no tokens.
    pub(super) most: usize,
    /// The number of its first row.
    first: u64,
    /// Steps under way.
    ahead: usize,
    /// The tokens that the next of them to be waited for began with, and how it draws. Without draws, what the device
    /// has is of no use.
    tokens: Vec<u32>,
    draws: Vec<Draw>,
}

impl Chain {
    /// None yet, of at most so many steps.
    pub(super) fn of(most: usize) -> Chain {
        Chain { most, ..Chain::default() }
    }

    /// Whether these rows, drawn like that, are what comes next.
    fn is_followed_by(&self, rows: &[Drawing<'_>], draws: &[Draw]) -> bool {
        self.draws == draws
            && (self.first..).zip(rows).all(|(number, (sequence, ..))| sequence.chain == number)
            && rows.iter().map(|(_, _, token)| token).eq(&self.tokens)
    }
}

impl Engine {
    /// Adds a token to each sequence, of which all before is computed, and draws the next one as its sampler says. About
    /// `more` further calls with the tokens drawn are expected: a device may run ahead of them.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn draw(&mut self, rows: &mut [Drawing<'_>], more: usize) -> Result<Vec<u32>, EngineError> {
        let Some(draws) = self.push_tokens(rows) else { return self.draw_here(rows) };
        if self.chain.ahead == 0 || !self.chain.is_followed_by(rows, &draws) {
            self.lay_out(rows, &draws)?;
            self.step.draws.clone_from(&draws);
            self.baked.submit(&self.step)?;
            self.begin_chain(rows, draws);
        }
        while self.chain.ahead < self.chain.most.min(1 + more) && self.has_room(rows, self.chain.ahead + 1) {
            self.baked.chain()?;
            self.chain.ahead += 1;
        }
        self.finish_step(rows)?;
        for ((_, sampler, _), &token) in rows.iter_mut().zip(&self.chain.tokens) {
            sampler.accept(token);
        }
        Ok(self.chain.tokens.clone())
    }

    /// Like [`Engine::draw`], but each row draws among the tokens that it is allowed: `masks` finds out which, one
    /// for each row, while the device computes. A row that is allowed none has an error of its own.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn draw_allowed<'m>(
        &mut self,
        rows: &mut [Drawing<'_>],
        masks: impl FnOnce() -> Vec<Allowed<'m>> + Send,
    ) -> Result<Vec<Result<u32, EngineError>>, EngineError> {
        let Some(mut draws) = self.push_tokens(rows) else { return self.draw_allowed_here(rows, masks) };
        self.lay_out(rows, &draws)?;
        self.baked.submit(&self.step)?;
        self.begin_chain(rows, draws.clone());
        let masks: Vec<_> = masks().into_iter().map(|allowed| not_empty(allowed, self.vocabulary)).collect();
        for ((number, draw), mask) in (0..).zip(&mut draws).zip(&masks) {
            if let Ok(Some(mask)) = mask {
                self.baked.set_mask(number, mask)?;
                draw.mask = Some(number);
            }
        }
        self.baked.draw(&draws)?;
        self.finish_step(rows)?;
        let drawn = rows.iter_mut().zip(&self.chain.tokens).zip(masks);
        let accept = |(((sequence, sampler, _), &token), mask): ((&mut Drawing<'_>, &u32), Result<_, _>)| match mask {
            Ok(_) => {
                sampler.accept(token);
                Ok(token)
            }
            Err(error) => {
                sequence.chain = 0;
                Err(error)
            }
        };
        Ok(drawn.map(accept).collect())
    }

    /// Adds the tokens that rows go on with. Returns how the device draws the next ones, if it does.
    fn push_tokens(&self, rows: &mut [Drawing<'_>]) -> Option<Vec<Draw>> {
        for (sequence, _, token) in rows.iter_mut() {
            sequence.tokens.push(*token);
            sequence.logits.clear();
        }
        if self.chain.most == 0 || rows.len() > self.limits.wanted.min(self.limits.tokens) {
            return None;
        }
        (0..).zip(rows.iter()).map(|(i, (_, sampler, _))| sampler.draw_on_device(i)).collect()
    }

    /// Waits for the oldest step of the chain.
    fn finish_step(&mut self, rows: &mut [Drawing<'_>]) -> Result<(), EngineError> {
        self.chain.ahead -= 1;
        self.baked.wait()?;
        self.chain.tokens.clear();
        self.chain.tokens.extend_from_slice(self.baked.drawn());
        self.chain.draws.iter_mut().for_each(|draw| draw.index += 1);
        rows.iter_mut().for_each(|(sequence, ..)| sequence.computed += 1);
        Ok(())
    }

    /// Whether each sequence can have `tokens` more without another page.
    fn has_room(&self, rows: &[Drawing<'_>], tokens: usize) -> bool {
        rows.iter().all(|(sequence, ..)| {
            let end = sequence.computed + tokens;
            end <= self.context && end <= sequence.pages.len() * self.page_tokens
        })
    }

    /// Makes ready the first step of a chain. Where it follows the last one, the device has the rows' histories.
    fn lay_out(&mut self, rows: &mut [Drawing<'_>], draws: &[Draw]) -> Result<(), EngineError> {
        let follows = self.chain.ahead == 0 && self.chain.is_followed_by(rows, draws);
        if !follows {
            self.settle()?;
            self.chain.draws.clear();
        }
        self.step.clear();
        for (i, (sequence, sampler, _)) in rows.iter_mut().enumerate() {
            self.check(sequence)?;
            self.reserve(sequence, 1)?;
            let last = (sequence.computed + CHAIN_TOKENS).min(self.context).div_ceil(self.page_tokens);
            while sequence.pages.len() < last && self.pool.available() > self.pool.total() / 8 {
                sequence.pages.extend(self.pool.take());
            }
            self.step.push(&sequence.tokens[sequence.computed..], sequence.computed, &sequence.pages, 1);
            if !follows && sampler.has_penalties() {
                self.baked.set_history(i as u32, &sampler.history(self.vocabulary))?;
            }
        }
        Ok(())
    }

    /// Takes note of a chain whose first step was submitted.
    fn begin_chain(&mut self, rows: &mut [Drawing<'_>], draws: Vec<Draw>) {
        // There are no more rows than that.
        self.chain.first += self.limits.wanted as u64;
        (self.chain.ahead, self.chain.draws) = (1, draws);
        self.chain.tokens.clear();
        (self.chain.first..).zip(rows).for_each(|(number, (sequence, ..))| sequence.chain = number);
    }

    /// [`Engine::draw`] where the device draws no tokens.
    fn draw_here(&mut self, rows: &mut [Drawing<'_>]) -> Result<Vec<u32>, EngineError> {
        self.catch_up(rows)?;
        Ok(rows.iter_mut().map(|(sequence, sampler, _)| sampler.next(&sequence.logits)).collect())
    }

    /// [`Engine::draw_allowed`] where the device draws no tokens.
    fn draw_allowed_here<'m>(
        &mut self,
        rows: &mut [Drawing<'_>],
        masks: impl FnOnce() -> Vec<Allowed<'m>> + Send,
    ) -> Result<Vec<Result<u32, EngineError>>, EngineError> {
        let masks = thread::scope(|scope| {
            let masks = scope.spawn(masks);
            self.catch_up(rows)?;
            Ok::<_, EngineError>(masks.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        let rows = rows.iter_mut().zip(masks);
        Ok(rows.map(|((sequence, sampler, _), allowed)| choose(sampler, &sequence.logits, allowed)).collect())
    }

    /// Computes what the rows lack.
    fn catch_up(&mut self, rows: &mut [Drawing<'_>]) -> Result<(), EngineError> {
        let mut sequences: Vec<_> = rows.iter_mut().map(|(sequence, ..)| &mut **sequence).collect();
        self.advance(&mut sequences, usize::MAX, &mut |_| true)
    }

    /// Waits for the steps of a chain that nobody will ask for.
    pub(super) fn settle(&mut self) -> Result<(), EngineError> {
        while self.chain.ahead > 0 {
            self.chain.ahead -= 1;
            self.chain.draws.clear();
            self.baked.wait()?;
        }
        Ok(())
    }
}

/// The mask, if one of its tokens is of the vocabulary.
fn not_empty(allowed: Allowed<'_>, vocabulary: usize) -> Result<Option<&[u32]>, EngineError> {
    match allowed {
        Ok(Some(mask)) if first_allowed(mask, vocabulary).is_none() => Err(EngineError::nothing_allowed()),
        allowed => allowed.map_err(EngineError::Constraint),
    }
}

/// The token that follows these logits, among those allowed.
pub(crate) fn choose(sampler: &mut Sampler, logits: &[f32], allowed: Allowed<'_>) -> Result<u32, EngineError> {
    match allowed.map_err(EngineError::Constraint)? {
        None => Ok(sampler.next(logits)),
        Some(mask) => sampler.next_of(logits, mask).ok_or_else(EngineError::nothing_allowed),
    }
}

impl EngineError {
    fn nothing_allowed() -> EngineError {
        EngineError::Constraint("no token may come next".to_owned())
    }
}
