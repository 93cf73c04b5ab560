//! The head that predicts a further token: its keys and values, and the draft tokens that it samples.
//!
//! Its keys and values lie beside the model's, in the same pages. Those of a token depend on that token and the ones before
//! it alone, as the model's do, so a page that is shared, copied or taken back is right for both. Every step of the model is
//! followed by one of the head over the same tokens. Of the token before the first one it reads what is kept with the
//! sequence. After tokens that another sequence has computed that is not known, and zeros stand for it: draft tokens may
//! be worse for it, and the text is the same.

use basert_plan::Pass;

use super::{Engine, EngineError, Part, Sequence};
use crate::Sampler;

/// What the head reads of the last tokens of a sequence that were computed.
#[derive(Debug, Clone, Default)]
pub(super) struct Carry {
    /// The position of the first of them.
    first: usize,
    /// Their rows, concatenated.
    rows: Vec<f32>,
}

impl Carry {
    /// That of the token at a position, in rows of `width` values.
    fn of(&self, position: usize, width: usize) -> Option<&[f32]> {
        self.rows.chunks_exact(width).nth(position.checked_sub(self.first)?)
    }

    /// Forgets tokens from the position `length` on.
    pub fn truncate(&mut self, length: usize, width: usize) {
        self.rows.truncate(length.saturating_sub(self.first) * width);
    }
}

/// A sequence for which the head is to propose draft tokens.
pub(crate) struct Drafting<'s> {
    /// The sequence, all of whose tokens are computed.
    pub sequence: &'s mut Sequence,
    /// The token after them.
    pub last: u32,
    /// The sampler of the token after that.
    pub sampler: Sampler,
    /// Limit on the draft tokens, for which there must be free pages.
    pub most: usize,
    /// The draft tokens.
    pub drafts: Vec<u32>,
}

impl Engine {
    /// Sets the width of the hidden states that the model's head reads, if the plan has a head. What a device samples by
    /// itself no head could follow, so it gives logits.
    #[must_use]
    pub fn with_head(mut self, width: Option<usize>) -> Engine {
        self.head = width;
        if width.is_some() {
            self.chain.most = 0;
        }
        self
    }

    /// Whether the model has a head that predicts a further token.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Runs the head over the tokens of the model's step that is waited for.
    pub(super) fn follow(&mut self, parts: &mut [Part<'_>]) -> Result<(), EngineError> {
        let Some(width) = self.head else { return Ok(()) };
        self.step.clear();
        self.step.pass = Pass::Head;
        let mut row = 0;
        for Part { sequence, count, wanted } in parts {
            let (from, to) = (sequence.computed, sequence.computed + *count);
            self.step.push(&sequence.tokens[from..to], from, &sequence.tables, 0);
            let before = from.checked_sub(1).and_then(|before| sequence.carry.of(before, width));
            push(&mut self.step.given, before, width);
            row += *count;
            (row - *count..row - 1).for_each(|row| self.step.given.extend_from_slice(self.baked.for_head(row)));
            // The last token, and before it draft tokens that may be taken back.
            let kept = (*wanted).max(1).min(*count);
            let rows = (row - kept..row).flat_map(|row| self.baked.for_head(row)).copied().collect();
            sequence.carry = Carry { first: to - kept, rows };
        }
        self.baked.submit(&self.step)?;
        Ok(self.baked.wait()?)
    }

    /// Proposes draft tokens, each sampled from the head's logits after the one before: all sequences together.
    ///
    /// # Errors
    /// When the pages do not suffice, or the device fails. The sequences stay as they were.
    pub(crate) fn draft(&mut self, rows: &mut [Drafting<'_>]) -> Result<(), EngineError> {
        let Some(width) = self.head else { return Ok(()) };
        self.settle()?;
        let mut given = Vec::with_capacity(rows.len());
        for Drafting { sequence, most, .. } in rows.iter_mut() {
            let last = sequence.computed.checked_sub(1).and_then(|last| sequence.carry.of(last, width));
            *most = if last.is_some() { (*most).min(self.context.saturating_sub(sequence.computed)) } else { 0 };
            given.push(last.map_or(Vec::new(), <[f32]>::to_vec));
            if *most > 0 {
                self.reserve_pages(sequence, *most)?;
            }
        }
        let at_once = self.limits.wanted.min(self.limits.tokens);
        loop {
            self.step.clear();
            self.step.pass = Pass::Head;
            let wants_more = |row: &Drafting<'_>| row.drafts.len() < row.most;
            let going = || rows.iter().zip(&given).filter(|(row, _)| wants_more(row)).take(at_once);
            for (Drafting { sequence, last, drafts, .. }, given) in going() {
                let (token, position) = (*drafts.last().unwrap_or(last), sequence.computed + drafts.len());
                self.step.push(&[token], position, &sequence.tables, 1);
                self.step.given.extend_from_slice(given);
            }
            if self.step.tokens.is_empty() {
                return Ok(());
            }
            self.baked.submit(&self.step)?;
            self.baked.wait()?;
            let going = rows.iter_mut().zip(&mut given).filter(|(row, _)| wants_more(row)).take(at_once);
            let mut going: Vec<_> =
                going.enumerate().map(|(i, to)| (to, self.baked.logits(i), self.baked.for_head(i))).collect();
            self.each(&mut going, |((row, given), logits, for_head)| {
                row.drafts.push(row.sampler.next(logits));
                given.copy_from_slice(for_head);
            })?;
        }
    }
}

/// Adds a row, or zeros if there is none.
fn push(rows: &mut Vec<f32>, row: Option<&[f32]>, width: usize) {
    match row {
        Some(row) => rows.extend_from_slice(row),
        None => rows.resize(rows.len() + width, 0.0),
    }
}
