//! Random seeds.

use std::hash::{BuildHasher, RandomState};

/// A random seed.
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0) >> 32
}
