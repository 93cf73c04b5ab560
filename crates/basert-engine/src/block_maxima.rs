//! The largest logit of each block of a vocabulary, so that the sampler can skip blocks: few have a token that may be
//! chosen.

use multiversion::multiversion;

/// Tokens of a block.
pub(crate) const BLOCK: usize = 64;

/// The largest logit of each block, −∞ where there is no number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Maxima(Vec<f32>);

impl Maxima {
    /// Computes the maxima of these logits.
    pub fn find(&mut self, logits: &[f32]) {
        self.0.resize(logits.len().div_ceil(BLOCK), 0.0);
        find(logits, &mut self.0);
    }

    /// The largest of all.
    pub fn largest(&self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// The n-th largest, so that at least `n` logits are as large; −∞ where there are fewer.
    pub fn nth(&self, n: usize) -> f32 {
        if n > self.0.len() {
            return f32::NEG_INFINITY;
        }
        let mut maxima = self.0.clone();
        *maxima.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
    }

    /// The first token with the largest logit, if one is more than −∞.
    pub fn first(&self, logits: &[f32]) -> Option<u32> {
        let largest = self.largest();
        let (first, block, _) = self.blocks(logits).find(|&(_, _, highest)| highest == largest)?;
        let token = (first..).zip(block).find(|&(_, &logit)| logit == largest)?.0;
        (largest > f32::NEG_INFINITY).then_some(token)
    }

    /// The blocks of the logits that these are of: the first token, the logits and the largest.
    pub fn blocks<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (u32, &'a [f32], f32)> {
        (0..)
            .step_by(BLOCK)
            .zip(logits.chunks(BLOCK))
            .zip(&self.0)
            .map(|((first, block), &highest)| (first, block, highest))
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
#[allow(clippy::needless_range_loop)]
fn find(logits: &[f32], maxima: &mut [f32]) {
    for (block, highest) in logits.chunks(BLOCK).zip(maxima) {
        let (vectors, rest) = block.as_chunks::<16>();
        let mut lanes = [f32::NEG_INFINITY; 16];
        for vector in vectors {
            for i in 0..16 {
                lanes[i] = if vector[i] > lanes[i] { vector[i] } else { lanes[i] };
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
            }
        }
        *highest = rest.iter().copied().fold(lanes[0], f32::max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_blocks_and_the_first_of_equals_is_found() {
        for (len, at) in [(1, 0), (64, 63), (65, 64), (1000, 130), (1000, 999)] {
            let mut logits: Vec<f32> = (0..len).map(|i| -((i * 7919 % 1000) as f32) - 1.0).collect();
            logits[at] = 0.5;
            if at + 3 < len {
                logits[at + 3] = 0.5;
            }
            if at > 0 {
                logits[at - 1] = f32::NAN;
            }
            let mut maxima = Maxima(vec![7.0; 3]);
            maxima.find(&logits);
            assert_eq!((maxima.largest(), maxima.first(&logits)), (0.5, Some(at as u32)));
            let textbook = logits.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert!(maxima.blocks(&logits).map(|(_, _, highest)| highest).eq(textbook));
            let mut sorted: Vec<f32> = maxima.blocks(&logits).map(|(_, _, highest)| highest).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert!((1..).zip(sorted).all(|(n, highest)| maxima.nth(n) == highest));
            assert_eq!(maxima.nth(len), if len == 1 { 0.5 } else { f32::NEG_INFINITY });
            assert_eq!(maxima.blocks(&logits).map(|(_, block, _)| block).collect::<Vec<_>>().concat().len(), len);
        }
        for nothing in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
            let mut maxima = Maxima::default();
            maxima.find(nothing);
            assert_eq!(maxima.first(nothing), None);
        }
    }
}
