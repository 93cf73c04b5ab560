//! The engine: a device, its pages, and the steps that bring sequences up to date.

use basert_plan::{Baked, DeviceError, Limits, StepState};

use crate::PagePool;

/// A timeline of tokens, and the pages that hold the keys and values of those computed so far.
///
/// It belongs to the engine that made it, and has to be given back to it ([`Engine::close`]).
#[derive(Debug, Default)]
pub struct Sequence {
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    pages: Vec<u32>,
    logits: Vec<f32>,
}

impl Sequence {
    /// Its tokens, computed or not.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Logits of what follows the last token, after [`Engine::advance`]; empty before, and for no tokens.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Why a sequence could not be brought up to date.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// It is longer than the cache allows.
    #[error("{tokens} tokens do not fit the context of {context}; shorten the prompt or raise --max-context")]
    ContextFull {
        /// Its length.
        tokens: usize,
        /// The most there can be.
        context: usize,
    },
    /// Other sequences use the rest of the cache.
    #[error("all {pages} pages of the KV cache are in use")]
    OutOfPages {
        /// Pages there are.
        pages: usize,
    },
    /// It asks for a token that the vocabulary does not have.
    #[error("token {token} is not one of the {vocabulary} of the vocabulary")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The size of the vocabulary.
        vocabulary: usize,
    },
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Owns the device and the KV cache.
pub struct Engine {
    baked: Box<dyn Baked>,
    pool: PagePool,
    page_tokens: usize,
    context: usize,
    vocabulary: usize,
    limits: Limits,
    step: StepState,
}

impl Engine {
    /// An engine over a loaded plan with `pages` pages of `page_tokens` tokens, for sequences of up to `context`.
    pub fn new(
        baked: Box<dyn Baked>,
        limits: Limits,
        (pages, page_tokens): (usize, usize),
        context: usize,
        vocabulary: usize,
    ) -> Engine {
        let step = StepState::default();
        Engine { baked, pool: PagePool::new(pages), page_tokens, context, vocabulary, limits, step }
    }

    /// The most tokens a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Makes `tokens` the sequence's timeline. What it has computed of a common prefix is kept.
    pub fn sync(&mut self, sequence: &mut Sequence, tokens: &[u32]) {
        let common = sequence.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let unchanged = common == tokens.len() && common == sequence.tokens.len();
        sequence.tokens.truncate(common);
        sequence.tokens.extend_from_slice(&tokens[common..]);
        if unchanged && !sequence.logits.is_empty() {
            return;
        }
        // The last token is computed again, if need be, for its logits.
        let keep = common.min(sequence.computed).min(tokens.len().saturating_sub(1));
        sequence.computed = keep;
        sequence.logits.clear();
        for page in sequence.pages.drain(keep.div_ceil(self.page_tokens)..) {
            self.pool.release(page);
        }
    }

    /// Adds a token to the timeline.
    pub fn push(&mut self, sequence: &mut Sequence, token: u32) {
        sequence.tokens.push(token);
        sequence.logits.clear();
    }

    /// Another sequence with the same timeline. Pages are shared until one of the two writes to them.
    pub fn fork(&mut self, sequence: &Sequence) -> Sequence {
        sequence.pages.iter().for_each(|&page| self.pool.share(page));
        Sequence {
            tokens: sequence.tokens.clone(),
            computed: sequence.computed,
            pages: sequence.pages.clone(),
            logits: sequence.logits.clone(),
        }
    }

    /// Gives the sequence's pages back.
    pub fn close(&mut self, sequence: &mut Sequence) {
        sequence.pages.drain(..).for_each(|page| self.pool.release(page));
        *sequence = Sequence::default();
    }

    /// Computes what the sequences lack, all of them together, in steps of at most `chunk` tokens (and no more than
    /// the plan allows). `progress` is called after each step with the tokens computed so far; when it returns false,
    /// the sequences are left as far as they are.
    ///
    /// # Errors
    /// When a sequence is too long, the pages do not suffice, or the device fails. The sequences stay usable.
    pub fn advance(
        &mut self,
        sequences: &mut [&mut Sequence],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), EngineError> {
        for sequence in sequences.iter_mut() {
            self.check(sequence)?;
        }
        let mut done = 0;
        loop {
            let plan = self.plan_step(sequences, chunk.clamp(1, self.limits.tokens))?;
            if plan.is_empty() {
                return Ok(());
            }
            self.baked.submit(&self.step)?;
            self.baked.wait()?;
            let mut row = 0;
            for (i, count, wanted) in plan {
                let sequence = &mut *sequences[i];
                sequence.computed += count;
                if wanted {
                    sequence.logits.clear();
                    sequence.logits.extend_from_slice(self.baked.logits(row));
                    row += 1;
                }
            }
            done += self.step.tokens.len();
            if !progress(done) {
                return Ok(());
            }
        }
    }

    /// Logits that follow each token of `tokens` from position `from` on, computed in a sequence of their own.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn score(
        &mut self,
        tokens: &[u32],
        from: usize,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let mut sequence = Sequence { tokens: tokens.to_vec(), ..Sequence::default() };
        let result = self.score_sequence(&mut sequence, from, each);
        self.close(&mut sequence);
        result
    }

    fn score_sequence(
        &mut self,
        sequence: &mut Sequence,
        from: usize,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(sequence)?;
        while sequence.computed < sequence.tokens.len() {
            let start = sequence.computed;
            let count = match from.min(sequence.tokens.len()).checked_sub(start) {
                Some(before @ 1..) => before.min(self.limits.tokens),
                _ => (sequence.tokens.len() - start).min(self.limits.tokens).min(self.limits.wanted),
            };
            let wanted = if start < from { 0 } else { count };
            self.make_room(sequence, count)?;
            self.step.clear();
            self.step.push(&sequence.tokens[start..start + count], start, &sequence.pages, wanted);
            self.baked.submit(&self.step)?;
            self.baked.wait()?;
            (0..wanted).for_each(|row| each(start + row, self.baked.logits(row)));
            sequence.computed += count;
        }
        Ok(())
    }

    fn check(&self, sequence: &Sequence) -> Result<(), EngineError> {
        let tokens = sequence.tokens.len();
        if tokens > self.context {
            return Err(EngineError::ContextFull { tokens, context: self.context });
        }
        let unknown = sequence.tokens[sequence.computed..].iter().find(|&&token| token as usize >= self.vocabulary);
        match unknown {
            Some(&token) => Err(EngineError::UnknownToken { token, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    /// Fills the step with what the sequences lack, in order. Returns each one's index, how many of its tokens the
    /// step has, and whether its logits come out of it.
    fn plan_step(
        &mut self,
        sequences: &mut [&mut Sequence],
        budget: usize,
    ) -> Result<Vec<(usize, usize, bool)>, EngineError> {
        self.step.clear();
        let mut plan = Vec::with_capacity(sequences.len());
        for (i, sequence) in sequences.iter_mut().enumerate() {
            let lacking = sequence.tokens.len() - sequence.computed;
            let room = budget - self.step.tokens.len();
            let count = lacking.min(room);
            let wanted = count == lacking;
            if count == 0 || (wanted && self.step.wanted.len() == self.limits.wanted) {
                continue;
            }
            self.make_room(sequence, count)?;
            let tokens = &sequence.tokens[sequence.computed..sequence.computed + count];
            self.step.push(tokens, sequence.computed, &sequence.pages, usize::from(wanted));
            plan.push((i, count, wanted));
        }
        Ok(plan)
    }

    /// Sees to it that the sequence's next `count` tokens have pages that are its own.
    fn make_room(&mut self, sequence: &mut Sequence, count: usize) -> Result<(), EngineError> {
        let first = sequence.computed / self.page_tokens;
        let needed = (sequence.computed + count).div_ceil(self.page_tokens);
        let none_left = EngineError::OutOfPages { pages: self.pool.total() };
        if let Some(page) = sequence.pages.get_mut(first)
            && self.pool.is_shared(*page)
        {
            let own = self.pool.take().ok_or(none_left.clone())?;
            self.baked.copy_page(*page, own);
            self.pool.release(*page);
            *page = own;
        }
        while sequence.pages.len() < needed {
            sequence.pages.push(self.pool.take().ok_or(none_left.clone())?);
        }
        Ok(())
    }
}
