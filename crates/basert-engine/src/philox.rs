//! Philox4x32-10, a counter-based random number generator: the n-th number is a function of the seed and n.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

use multiversion::multiversion;

/// The generator of a seed, whose numbers can be computed in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Philox {
        Philox { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The four numbers of this counter.
    pub fn at(&self, counter: [u32; 4]) -> [u32; 4] {
        let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, self.key);
        for _ in 0..10 {
            let (p, q) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
            (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
            (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
        }
        [a, b, c, d]
    }

    /// The numbers of the counters from `[first, index, 0, 0]` to `[first + 15, index, 0, 0]`: the first number of each
    /// counter, then the second of each, and so on. Returns the largest.
    pub fn block(&self, first: u32, index: u32, numbers: &mut [[u32; 16]; 4]) -> u32 {
        sixteen(self.key, first, index, numbers)
    }
}

/// Sixteen counters at once, in step, so that the compiler makes vectors of them: lanes of 64 bits, for the products,
/// of which only the low half counts. Two vectors of AVX-512, since a product takes longer than until the next may
/// begin.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
#[allow(clippy::needless_range_loop)]
fn sixteen([mut k0, mut k1]: [u32; 2], first: u32, index: u32, numbers: &mut [[u32; 16]; 4]) -> u32 {
    const LOW: u64 = u32::MAX as u64;
    let mut a: [u64; 16] = std::array::from_fn(|i| u64::from(first) + i as u64);
    let (mut b, mut c, mut d) = ([u64::from(index); 16], [0u64; 16], [0u64; 16]);
    for _ in 0..10 {
        for i in 0..16 {
            let (p, q) = ((a[i] & LOW) * 0xD251_1F53, (c[i] & LOW) * 0xCD9E_8D57);
            a[i] = (q >> 32) ^ b[i] ^ u64::from(k0);
            b[i] = q;
            c[i] = (p >> 32) ^ d[i] ^ u64::from(k1);
            d[i] = p;
        }
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    let mut largest = [0; 16];
    for i in 0..16 {
        let of = [a[i] as u32, b[i] as u32, c[i] as u32, d[i] as u32];
        for word in 0..4 {
            numbers[word][i] = of[word];
            largest[i] = largest[i].max(of[word]);
        }
    }
    largest.into_iter().fold(0, u32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_single_numbers() {
        for (seed, first, index) in [(0, 0, 0), (0x299f_31d0_a409_3822, 77, 3), (u64::MAX, u32::MAX - 15, u32::MAX)] {
            let random = Philox::new(seed);
            let single: Vec<_> = (0..16).map(|i| random.at([first + i, index, 0, 0])).collect();
            let mut numbers = [[0; 16]; 4];
            let largest = random.block(first, index, &mut numbers);
            assert!((0..16).all(|i| numbers.map(|words| words[i]) == single[i]));
            assert_eq!(Some(&largest), single.iter().flatten().max());
        }
    }

    /// The known answers that come with the authors' library (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        for (seed, counter, expected) in [
            (0, [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (u64::MAX, [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                0x299f_31d0_a409_3822,
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(Philox::new(seed).at(counter), expected);
        }
    }
}
