//! Functions that every device computes to the same bit: sums of products are fused explicitly, nothing else is fused,
//! and each operation is rounded as IEEE 754 says. `kernels/sample/exact.h` has the same.
//!
//! The polynomials are those of Cephes (Moshier, `logf.c` and `expf.c`).

use std::sync::LazyLock;

use multiversion::multiversion;

/// ln x of a positive normal number.
pub(crate) fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // x = m · 2^e with m from √½ to √2.
    let bits = x.to_bits().wrapping_sub(0x3f35_04f3);
    let e = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let p = P.into_iter().fold(0.0f32, |p, c| p.mul_add(f, c));
    let squared = f * f;
    let tail = squared * (p * f);
    let low = e.mul_add(-2.121_944_4e-4, squared.mul_add(-0.5, tail));
    e.mul_add(0.693_359_4, f + low)
}

/// A logit divided by the temperature. The sum turns −0 into 0.
#[inline(always)]
pub(crate) fn scaled(logit: f32, temperature: f32) -> f32 {
    logit / temperature + 0.0
}

/// The weights of all logits less `max`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(crate) fn weights(candidates: &[(f32, u32)], max: f32, weights: &mut [u32]) {
    for (candidate, to) in candidates.iter().zip(weights) {
        *to = weight(candidate.0 - max);
    }
}

/// The sum of the weights of logits divided by the temperature, less `max`: whole numbers, so in any order.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(crate) fn total(logits: &[f32], temperature: f32, max: f32) -> u64 {
    let mut total = 0;
    for logit in logits {
        // NaN has no weight.
        total += u64::from(weight(scaled(*logit, temperature) - max));
    }
    total
}

/// 2^23 · e^x for x ≤ 0, a whole number.
#[inline(always)]
pub(crate) fn weight(x: f32) -> u32 {
    const P: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 0.0f32;
    for c in P {
        p = p.mul_add(r, c);
    }
    let y = (r * r).mul_add(p, r) + 1.0;
    // The result is 0 beyond that.
    if x < -17.0 { 0 } else { ((y * 8_388_608.0) as u32).wrapping_shr(-n as u32) }
}

/// The 23 of the random bits that noise is made of: the larger they are, the larger it is.
pub(crate) fn noise_bits(bits: u32) -> u32 {
    bits >> 9
}

/// −ln(−ln u), where u is uniform in (0, 1) and made of the [`noise_bits`].
pub(crate) fn gumbel(bits: u32) -> f32 {
    let u = (2 * noise_bits(bits) + 1) as f32 * (1.0 / 16_777_216.0);
    -ln(-ln(u))
}

/// No noise is larger.
pub(crate) const MOST_GUMBEL: f32 = 16.7;

/// For each quarter of noise the least bits that make more, and some less.
static LEAST: LazyLock<[u32; 68]> = LazyLock::new(|| {
    std::array::from_fn(|quarters| {
        let u = (-(0.01 - quarters as f64 / 4.0).exp()).exp();
        ((u * 16_777_216.0 - 1.0) / 2.0) as u32
    })
});

/// With fewer than these [`noise_bits`], [`gumbel`] is less than `noise`: more than there are where it always is, none
/// where `noise` is negative or no number.
pub(crate) fn least_bits(noise: f32) -> u32 {
    if noise >= 0.0 { LEAST.get((noise * 4.0) as usize).copied().unwrap_or(u32::MAX) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_accurate() {
        for i in 1..100_000u32 {
            let x = i as f32 / 50_000.0;
            let (found, expected) = (f64::from(ln(x)), f64::from(x).ln());
            assert!((found - expected).abs() <= 2e-7 * expected.abs() + 1e-9, "ln {x}: {found} for {expected}");
            let x = -x * 8.0;
            let (found, expected) = (weight(x) as f64, f64::from(x).exp() * 8_388_608.0);
            assert!((found - expected).abs() <= 1.0 + 3e-7 * expected, "e^{x}: {found} for {expected}");
        }
        for x in [f32::MIN_POSITIVE, 1e-20, 3e10, f32::MAX] {
            assert!((f64::from(ln(x)) / f64::from(x).ln() - 1.0).abs() < 1e-6);
        }
        assert_eq!((weight(0.0), weight(-100.0), weight(f32::NEG_INFINITY)), (8_388_608, 0, 0));
    }

    #[test]
    fn only_what_cannot_reach_is_ruled_out() {
        let mut ruled_out = 0;
        for bits in (0..1 << 23).step_by(7).chain((1 << 23) - 5000..1 << 23).map(|bits: u32| bits << 9 | 77) {
            let found = gumbel(bits);
            let may_reach = |noise| noise_bits(bits) >= least_bits(noise);
            assert!(found < MOST_GUMBEL && may_reach(found) && may_reach(found - 0.1), "{bits}: {found}");
            ruled_out += usize::from(!may_reach(found.max(0.0) + 0.3));
        }
        assert!(ruled_out > 1_000_000, "{ruled_out}");
        assert!(noise_bits(u32::MAX) < least_bits(17.5) && least_bits(f32::NAN) == 0);
    }

    #[test]
    fn noise_is_finite_and_has_its_mean() {
        assert!(gumbel(0).is_finite() && gumbel(u32::MAX).is_finite());
        let n = 1 << 16;
        let mean: f64 = (0..n).map(|i| f64::from(gumbel((i << 16) + 12345))).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_216).abs() < 1e-3, "{mean}");
    }
}
