//! Computations on whole texts: logits of every position, embeddings.

use super::{Engine, EngineError, Part, Sequence};
use crate::Pooling;
use crate::pooling::Pool;

impl Engine {
    /// Logits after each token of `tokens` from position `from` on, computed in a temporary sequence.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn score(
        &mut self,
        tokens: &[u32],
        from: usize,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_logits()?;
        self.alone(tokens, |engine, sequence| engine.score_sequence(sequence, from, each))
    }

    /// Logits after the last of these tokens, computed in a temporary sequence as far as they are not cached; empty for no
    /// tokens.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn logits_after(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.alone(tokens, |engine, sequence| {
            engine.adopt(sequence);
            engine.advance(&mut [&mut *sequence], usize::MAX, &mut |_| true)?;
            Ok(sequence.logits().to_vec())
        })
    }

    /// The embedding of a text: a vector of length 1, pooled from the tokens' hidden states; empty for no tokens.
    ///
    /// # Errors
    /// As for [`Engine::advance`].
    pub fn embed(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, EngineError> {
        self.alone(tokens, |engine, sequence| engine.pool_sequence(sequence, pooling))
    }

    /// Calls a function with a sequence of these tokens, which is closed afterwards.
    fn alone<T>(
        &mut self,
        tokens: &[u32],
        work: impl FnOnce(&mut Engine, &mut Sequence) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut sequence = Sequence::default();
        let result = self.set(&mut sequence, tokens.to_vec()).and_then(|()| work(self, &mut sequence));
        self.close(&mut sequence);
        result
    }

    fn score_sequence(
        &mut self,
        sequence: &mut Sequence,
        from: usize,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        while sequence.computed < sequence.tokens.len() {
            let start = sequence.computed;
            let count = match from.min(sequence.tokens.len()).checked_sub(start) {
                Some(before @ 1..) => before.min(self.limits.tokens),
                _ => (sequence.tokens.len() - start).min(self.limits.tokens).min(self.limits.wanted),
            };
            let wanted = if start < from { 0 } else { count };
            self.reserve(sequence, count, false)?;
            self.run(&mut [Part { sequence, count, wanted }], false)?;
            (0..wanted).for_each(|row| each(start + row, self.logits(row)));
        }
        Ok(())
    }

    fn pool_sequence(&mut self, sequence: &mut Sequence, pooling: Pooling) -> Result<Vec<f32>, EngineError> {
        if pooling == Pooling::Last {
            self.adopt(sequence);
        }
        let mut pool = Pool::new(pooling);
        while sequence.computed < sequence.tokens.len() {
            let lacking = sequence.tokens.len() - sequence.computed;
            let count = lacking.min(pooling.most(self.limits));
            let wanted = pooling.wanted(count, count == lacking);
            self.reserve(sequence, count, false)?;
            self.run(&mut [Part { sequence, count, wanted }], true)?;
            (0..wanted).for_each(|row| pool.add(self.hidden(row)));
        }
        Ok(pool.finish())
    }
}
