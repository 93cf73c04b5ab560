//! Sampling of the next tokens: on the device, in chains of steps that run ahead of the host or within masks that are
//! computed meanwhile; or on the host if the device does not sample.

use std::panic::resume_unwind;
use std::thread;

use basert_plan::{Draw, first_allowed};

use super::{Engine, EngineError, Part, Sequence};
use crate::Sampler;

/// A sequence that samples, its sampler, and the token to add to it first.
pub type Drawing<'a> = (&'a mut Sequence, &'a mut Sampler, u32);

/// The mask of allowed tokens, bit t % 32 of word t / 32 for token t. `None` allows all tokens; an error says why no
/// token is allowed.
pub type Allowed<'m> = Result<Option<&'m [u32]>, String>;

/// Tokens for which a chain reserves pages when it begins, if there are plenty.
const CHAIN_TOKENS: usize = 64;

/// A chain: steps that the device runs one after the other, each with the tokens sampled in the one before.
#[derive(Default)]
pub(super) struct Chain {
    /// Limit on the steps under way; 0 if the device does not sample.
    pub(super) most: usize,
    /// The number of the first row.
    first: u64,
    /// Steps under way.
    ahead: usize,
    /// The input tokens of the oldest step under way, and how its rows sample. Without `draws`, the device's state is
    /// not valid.
    tokens: Vec<u32>,
    draws: Vec<Draw>,
}

impl Chain {
    /// No steps yet, of at most `most`.
    pub(super) fn of(most: usize) -> Chain {
        Chain { most, ..Chain::default() }
    }

    /// The row of the chain that goes on with this token of the sequence, sampled as before.
    fn row_of(&self, sequence: &Sequence, sampler: &Sampler, token: u32) -> Option<usize> {
        let row = usize::try_from(sequence.chain.checked_sub(self.first)?).ok()?;
        let draw = self.draws.get(row)?;
        let goes_on = self.tokens.get(row) == Some(&token);
        (goes_on && sampler.draw_on_device(row as u32).as_ref() == Some(draw)).then_some(row)
    }

    /// That of each of these rows, if all have one.
    fn rows_of(&self, rows: &[Drawing<'_>]) -> Option<Vec<usize>> {
        rows.iter().map(|(sequence, sampler, token)| self.row_of(sequence, sampler, *token)).collect()
    }
}

impl Engine {
    /// Adds a token to each sequence, all earlier tokens of which must be computed, and samples the next one. About
    /// `more` further calls with the sampled tokens are expected: a device may run ahead of them. If what it computed
    /// ahead is not for all of these rows, it is lost; for some of the rows it was computed for it is not.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn draw(&mut self, rows: &mut [Drawing<'_>], more: usize) -> Result<Vec<u32>, EngineError> {
        let Some(draws) = self.push_tokens(rows) else { return self.draw_here(rows) };
        let tokens = self.draw_pushed(rows, draws, more);
        self.after_draw(rows, tokens)
    }

    /// The same, of the tokens that were added.
    fn draw_pushed(
        &mut self,
        rows: &mut [Drawing<'_>],
        draws: Vec<Draw>,
        more: usize,
    ) -> Result<Vec<u32>, EngineError> {
        let places = match self.chain.rows_of(rows) {
            Some(places) if self.chain.ahead > 0 => places,
            _ => {
                self.lay_out(rows)?;
                self.step.draws.clone_from(&draws);
                self.baked.submit(&self.step)?;
                self.begin_chain(rows, draws);
                (0..rows.len()).collect()
            }
        };
        let ahead = if rows.len() == self.chain.draws.len() { self.chain.most.min(1 + more) } else { 0 };
        while self.chain.ahead < ahead {
            let next = self.chain.ahead + 1;
            if !rows.iter().all(|(sequence, ..)| self.has_pages(sequence, next)) {
                break;
            }
            self.baked.chain()?;
            self.chain.ahead = next;
        }
        self.finish_step(rows)?;
        let tokens: Vec<u32> = places.into_iter().map(|place| self.chain.tokens[place]).collect();
        rows.iter_mut().zip(&tokens).for_each(|((_, sampler, _), &token)| sampler.accept(token));
        Ok(tokens)
    }

    /// Whether the token after this one is on its way already: then [`Engine::draw`] should be called for the sequence,
    /// alone or with others of which the same is true, before anything else is computed.
    pub fn is_ahead_of(&self, sequence: &Sequence, sampler: &Sampler, token: u32) -> bool {
        self.chain.ahead > 0 && self.chain.row_of(sequence, sampler, token).is_some()
    }

    /// Runs a step as [`Engine::run`] does, and samples on the device from each wanted row, by these samplers and within
    /// masks as in [`Engine::draw_allowed`]. [`Sampler::draw_on_device`] must be able to say how.
    ///
    /// # Errors
    /// As for [`Engine::run`].
    pub fn run_and_draw<'m>(
        &mut self,
        parts: &mut [Part<'_>],
        samplers: &mut [&mut Sampler],
        masks: impl FnOnce() -> Vec<Allowed<'m>> + Send,
    ) -> Result<Vec<Result<u32, EngineError>>, EngineError> {
        let masks = self.begin_and_draw(parts, samplers, masks);
        let masks = self.finish(parts, masks)?;
        let drawn = samplers.iter_mut().zip(self.baked.drawn()).zip(masks);
        let accept = |((sampler, &token), mask): ((&mut &mut Sampler, &u32), Result<_, _>)| {
            mask?;
            if token & Draw::NOT_A_NUMBER != 0 {
                return Err(EngineError::NotNumbers);
            }
            sampler.accept(token);
            Ok(token)
        };
        Ok(drawn.map(accept).collect())
    }

    fn begin_and_draw<'m>(
        &mut self,
        parts: &[Part<'_>],
        samplers: &[&mut Sampler],
        masks: impl FnOnce() -> Vec<Allowed<'m>> + Send,
    ) -> Result<Vec<Result<(), EngineError>>, EngineError> {
        self.begin(parts, false)?;
        // Histories of the chain are replaced.
        self.chain.draws.clear();
        let mut draws = Vec::with_capacity(samplers.len());
        for (history, sampler) in (0..).zip(samplers.iter()) {
            if sampler.has_penalties() {
                self.baked.set_history(history, &sampler.history(self.vocabulary))?;
            }
            draws.extend(sampler.draw_on_device(history));
        }
        let masks = self.draw_within(&mut draws, masks())?;
        self.baked.wait()?;
        Ok(masks)
    }

    /// Like [`Engine::draw`], but each row samples within a mask: `masks` returns one for each row, and is called while
    /// the device computes. A row whose mask allows no token gets an error of its own.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn draw_allowed<'m>(
        &mut self,
        rows: &mut [Drawing<'_>],
        masks: impl FnOnce() -> Vec<Allowed<'m>> + Send,
    ) -> Result<Vec<Result<u32, EngineError>>, EngineError> {
        let Some(mut draws) = self.push_tokens(rows) else { return self.draw_allowed_here(rows, masks) };
        let masks = self.lay_out(rows).and_then(|()| {
            self.baked.submit(&self.step)?;
            self.begin_chain(rows, draws.clone());
            let masks = self.draw_within(&mut draws, masks())?;
            self.finish_step(rows)?;
            Ok(masks)
        });
        let masks = self.after_draw(rows, masks)?;
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

    /// Begins to sample from the rows of the submitted step, within masks. A row whose mask allows no token gets an error.
    fn draw_within(
        &mut self,
        draws: &mut [Draw],
        masks: Vec<Allowed<'_>>,
    ) -> Result<Vec<Result<(), EngineError>>, EngineError> {
        let mut found = Vec::with_capacity(draws.len());
        for ((number, draw), mask) in (0..).zip(draws.iter_mut()).zip(masks) {
            let mask = not_empty(mask, self.vocabulary);
            if let Ok(Some(mask)) = mask {
                self.baked.set_mask(number, mask)?;
                draw.mask = Some(number);
            }
            found.push(mask.map(drop));
        }
        self.baked.draw(draws)?;
        Ok(found)
    }

    /// Adds the rows' tokens to their sequences. Returns how the device samples the next ones, if it can.
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
        self.chain.tokens.extend(self.baked.drawn().iter().map(|token| token & !Draw::NOT_A_NUMBER));
        self.chain.draws.iter_mut().for_each(|draw| draw.index += 1);
        for (sequence, ..) in rows {
            sequence.computed += 1;
            self.states_computed(sequence);
        }
        Ok(())
    }

    /// After an error, states may have been written over.
    fn after_draw<T>(&mut self, rows: &mut [Drawing<'_>], result: Result<T, EngineError>) -> Result<T, EngineError> {
        if result.is_err() {
            rows.iter_mut().for_each(|(sequence, ..)| self.states_lost(sequence));
        }
        result
    }

    /// Prepares the first step of a chain. If it continues the last chain, the device has the rows' histories already.
    fn lay_out(&mut self, rows: &mut [Drawing<'_>]) -> Result<(), EngineError> {
        let all = self.chain.rows_of(rows).filter(|places| places.iter().copied().eq(0..self.chain.draws.len()));
        let follows = self.chain.ahead == 0 && all.is_some();
        if !follows {
            self.settle()?;
            self.chain.draws.clear();
        }
        self.step.clear();
        for (i, (sequence, sampler, _)) in rows.iter_mut().enumerate() {
            self.check(sequence)?;
            self.reserve(sequence, 1, false)?;
            self.reserve_ahead(sequence, CHAIN_TOKENS);
            self.step.push(&sequence.tokens[sequence.computed..], sequence.computed, &sequence.tables, 1);
            Engine::keep_states(&mut self.step, sequence);
            if !follows && sampler.has_penalties() {
                self.baked.set_history(i as u32, &sampler.history(self.vocabulary))?;
            }
        }
        Ok(())
    }

    /// Records a chain whose first step was submitted.
    fn begin_chain(&mut self, rows: &mut [Drawing<'_>], draws: Vec<Draw>) {
        // The number of rows is within the limit.
        self.chain.first += self.limits.wanted as u64;
        (self.chain.ahead, self.chain.draws) = (1, draws);
        self.chain.tokens.clear();
        (self.chain.first..).zip(rows).for_each(|(number, (sequence, ..))| sequence.chain = number);
    }

    /// [`Engine::draw`] for devices that do not sample.
    fn draw_here(&mut self, rows: &mut [Drawing<'_>]) -> Result<Vec<u32>, EngineError> {
        self.catch_up(rows)?;
        Ok(rows.iter_mut().map(|(sequence, sampler, _)| sampler.next(&sequence.logits)).collect())
    }

    /// [`Engine::draw_allowed`] for devices that do not sample.
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

    /// Computes the rows' uncomputed tokens.
    fn catch_up(&mut self, rows: &mut [Drawing<'_>]) -> Result<(), EngineError> {
        let mut sequences: Vec<_> = rows.iter_mut().map(|(sequence, ..)| &mut **sequence).collect();
        self.advance(&mut sequences, usize::MAX, &mut |_| true)
    }

    /// Waits for the steps of a chain whose results are not needed.
    pub(super) fn settle(&mut self) -> Result<(), EngineError> {
        while self.chain.ahead > 0 {
            self.chain.ahead -= 1;
            self.chain.draws.clear();
            self.baked.wait()?;
        }
        Ok(())
    }
}

/// The mask, if it allows a token of the vocabulary.
fn not_empty(allowed: Allowed<'_>, vocabulary: usize) -> Result<Option<&[u32]>, EngineError> {
    match allowed {
        Ok(Some(mask)) if first_allowed(mask, vocabulary).is_none() => Err(EngineError::nothing_allowed()),
        allowed => allowed.map_err(EngineError::Constraint),
    }
}

/// Samples from these logits, within the mask.
pub(crate) fn choose(sampler: &mut Sampler, logits: &[f32], allowed: Allowed<'_>) -> Result<u32, EngineError> {
    match allowed.map_err(EngineError::Constraint)? {
        None => Ok(sampler.next(logits)),
        Some(mask) => sampler.next_of(logits, mask).ok_or_else(EngineError::nothing_allowed),
    }
}

impl EngineError {
    fn nothing_allowed() -> EngineError {
        EngineError::Constraint("no token is allowed next".to_owned())
    }
}
