//! Random orders for what may run in any order.

/// A sequence of numbers fixed by a seed: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed for a purpose.
    pub fn new(seed: u64, what_for: u64) -> Random {
        let mut random = Random(seed);
        Random(random.next() ^ what_for.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A permutation that takes no memory: a random start and a step that is coprime to the number of elements.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    count: usize,
    first: usize,
    step: usize,
}

impl Order {
    /// One of `count` elements, of which there is at least one.
    pub fn new(count: usize, random: &mut Random) -> Order {
        let first = random.below(count);
        let mut step = random.below(count);
        while greatest_common_divisor(step, count) != 1 {
            step = (step + 1) % count;
        }
        Order { count, first, step }
    }

    /// The element at position `place`.
    pub fn at(&self, place: usize) -> usize {
        ((self.first as u128 + place as u128 * self.step as u128) % self.count as u128) as usize
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if a == 0 { b } else { greatest_common_divisor(b % a, a) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations() {
        for count in [1, 2, 3, 12, 32, 97, 1000] {
            for seed in 0..20 {
                let order = Order::new(count, &mut Random::new(seed, 0));
                let mut all: Vec<usize> = (0..count).map(|i| order.at(i)).collect();
                all.sort_unstable();
                assert!(all.iter().copied().eq(0..count));
            }
        }
    }
}
