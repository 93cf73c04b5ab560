//! Pooling of hidden states to one vector for a text.

use basert_plan::Limits;

/// How hidden states are pooled to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The hidden state of the last token, which attends to all others.
    Last,
    /// The hidden state of the first token, if it attends to all others.
    First,
}

/// Pools hidden states, given in order.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pooling: Pooling,
    sum: Vec<f32>,
}

impl Pooling {
    /// Limit on the tokens of a text in a step.
    pub(crate) fn most(self, limits: Limits) -> usize {
        match self {
            Pooling::Mean | Pooling::First => limits.tokens.min(limits.wanted),
            Pooling::Last => limits.tokens,
        }
    }

    /// Of so many tokens, the last of the text where that `ends`: of how many of the last of them the states are
    /// needed.
    pub(crate) fn wanted(self, tokens: usize, ends: bool) -> usize {
        match self {
            Pooling::Mean | Pooling::First => tokens,
            Pooling::Last => usize::from(ends),
        }
    }
}

impl Pool {
    pub fn new(pooling: Pooling) -> Pool {
        Pool { pooling, sum: Vec::new() }
    }

    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Starts again, with the first token.
    pub fn clear(&mut self) {
        self.sum.clear();
    }

    pub fn add(&mut self, state: &[f32]) {
        if self.pooling == Pooling::First && !self.sum.is_empty() {
            return;
        }
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
    }

    /// The vector, of length 1: a mean and a sum differ in length only.
    pub fn finish(&self) -> Vec<f32> {
        let length = self.sum.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        self.sum.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one_and_the_direction_of_the_mean() {
        let mut pool = Pool::new(Pooling::Mean);
        pool.add(&[1.0, 0.0, 2.0]);
        pool.add(&[5.0, 0.0, 6.0]);
        assert_eq!(pool.finish(), [0.6, 0.0, 0.8]);
        pool.clear();
        pool.add(&[0.0, 0.0]);
        assert_eq!(pool.finish(), [0.0, 0.0]);
        let mut first = Pool::new(Pooling::First);
        first.add(&[0.0, 3.0]);
        first.add(&[9.0, 1.0]);
        assert_eq!(first.finish(), [0.0, 1.0]);
        assert_eq!((Pooling::Mean.wanted(5, false), Pooling::Last.wanted(5, false)), (5, 0));
        assert_eq!((Pooling::Mean.wanted(5, true), Pooling::Last.wanted(5, true)), (5, 1));
    }
}
