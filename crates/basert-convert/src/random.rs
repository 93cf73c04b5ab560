//! Reproducible random numbers.

/// A stream of random numbers: splitmix64 (Steele et al. 2014). Only integer arithmetic and exact divisions, so a seed
/// gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream with number `stream` of this seed.
    pub fn new(seed: u64, stream: u64) -> Random {
        Random(Random(seed).next_u64() ^ Random(!stream).next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        // The upper half of the product of 64 random bits with `end` (Lemire 2019).
        ((u128::from(self.next_u64()) * end as u128) >> 64) as usize
    }

    /// A nearly normal value of mean 0 and variance 1: the sum of four uniform ones, bounded by ±3.46.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next_u64();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        // Each of them has mean 32767.5 and variance 65536² / 12.
        (sum as f32 - 131_070.0) / 37_837.227
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, stream| Random::new(seed, stream).next_u64();
        assert_eq!(first(1, 2), first(1, 2));
        assert!(first(1, 2) != first(2, 1) && first(1, 2) != first(1, 3) && first(0, 0) != first(1, 1));
        let mut random = Random::new(1, 1);
        assert!((0..1000).all(|_| random.below(7) < 7));
    }

    #[test]
    fn normal_values_have_mean_0_and_variance_1() {
        let mut random = Random::new(3, 4);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
