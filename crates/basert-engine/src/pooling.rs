//! Pooling of hidden states to one vector for a text.

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
    count: usize,
}

impl Pooling {
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
        Pool { pooling, sum: Vec::new(), count: 0 }
    }

    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Starts again, with the first token.
    pub fn clear(&mut self) {
        self.sum.clear();
        self.count = 0;
    }

    pub fn add(&mut self, state: &[f32]) {
        if self.pooling == Pooling::First && !self.sum.is_empty() {
            return;
        }
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
        self.count += 1;
    }

    /// The vector.
    pub fn finish(&self) -> Vec<f32> {
        let count = self.count.max(1) as f32;
        self.sum.iter().map(|sum| sum / count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_pooled() {
        let mut pool = Pool::new(Pooling::Mean);
        pool.add(&[1.0, 0.0, 2.0]);
        pool.add(&[5.0, 0.0, 6.0]);
        assert_eq!(pool.finish(), [3.0, 0.0, 4.0]);
        pool.clear();
        pool.add(&[0.0, 0.0]);
        assert_eq!(pool.finish(), [0.0, 0.0]);
        let mut first = Pool::new(Pooling::First);
        first.add(&[0.0, 3.0]);
        first.add(&[9.0, 1.0]);
        assert_eq!(first.finish(), [0.0, 3.0]);
        assert_eq!((Pooling::Mean.wanted(5, false), Pooling::Last.wanted(5, false)), (5, 0));
        assert_eq!((Pooling::Mean.wanted(5, true), Pooling::Last.wanted(5, true)), (5, 1));
    }
}
