//! Numbers as 14-bit integers in two planes of bytes, for integer dot products.

use crate::simd::{LANES, Simd};

/// The integer that the largest magnitude becomes.
pub(crate) const LARGEST: f32 = 8192.0;

/// `N` numbers with a common unit: each is `unit · (128 · high + low)`, where the integer is in [-8192, 8192], so the
/// planes are in [-64, 64].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes<const N: usize> {
    pub high: [i8; N],
    pub low: [i8; N],
    /// NaN if a number was not finite.
    pub unit: f32,
    /// Sum of the integers.
    pub sum: i32,
}

impl<const N: usize> Planes<N> {
    pub const ZERO: Planes<N> = Planes { high: [0; N], low: [0; N], unit: 0.0, sum: 0 };

    /// Stores the nearest integers to `N` numbers at `x`, which are in [-8192, 8192], or zeros if `unit` is NaN.
    ///
    /// # Safety
    /// As for [`Simd`]; `N` is whole vectors.
    #[inline(always)]
    pub unsafe fn set<S: Simd>(&mut self, x: *const f32, unit: f32) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (half, mask) = (S::splat_i32(64), S::splat_i32(127));
            let mut sum = S::splat_i32(0);
            for at in (0..N).step_by(LANES) {
                let integer = S::round(if unit.is_nan() { S::splat(0.0) } else { S::load(x.add(at)) });
                let shifted = S::add_i32(integer, half);
                S::store_i8(self.high.as_mut_ptr().add(at), S::shr_i32(shifted, 7));
                let low = S::add_i32(S::and_i32(shifted, mask), S::splat_i32(-64));
                S::store_i8(self.low.as_mut_ptr().add(at), low);
                sum = S::add_i32(sum, integer);
            }
            self.unit = unit;
            self.sum = S::sum_i32(sum);
        }
    }
}
