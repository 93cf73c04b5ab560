//! Computations on whole texts: logits of every position, or of the last.

use super::{Engine, EngineError, Part, Sequence};

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
}
