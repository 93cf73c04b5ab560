//! Functions of 16 lanes, with the same result on every instruction set.
//!
//! Polynomials are those of the Cephes library (S. Moshier): errors of a few units in the last place.

use crate::simd::Simd;

/// e^x. Zero below -87.33, infinity above 88.37. NaN gives NaN. Exactly 1 for 0.
///
/// # Safety
/// See [`Simd`], here and below.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let highest = S::splat(88.37);
        // The constant first: then NaN passes.
        let y = exp_negative::<S>(S::min(highest, x));
        S::select_less(highest, x, S::splat(f32::INFINITY), y)
    }
}

/// [`exp`] for arguments up to 88.37.
#[inline(always)]
pub(crate) unsafe fn exp_negative<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let lowest = S::splat(-87.33);
        let clamped = S::max(lowest, x);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let n_f = S::float(n);
        let r = S::fma(n_f, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n_f, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        let y = S::add(S::fma(S::mul(p, r), r, r), S::splat(1.0));
        let power = S::from_bits(S::shl_i32(S::add_i32(n, S::splat_i32(127)), 23));
        S::select_less(x, lowest, S::splat(0.0), S::mul(y, power))
    }
}

/// tanh x.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let magnitude = S::from_bits(S::and_i32(S::bits(x), S::splat_i32(0x7fff_ffff)));
        let e = exp::<S>(S::add(magnitude, magnitude));
        let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
        let large = S::select_less(x, S::splat(0.0), S::sub(S::splat(0.0), large), large);
        let z = S::mul(x, x);
        let mut p = S::splat(-5.704_988_7e-3);
        for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = S::fma(p, z, S::splat(coefficient));
        }
        let small = S::fma(S::mul(p, z), x, x);
        S::select_less(magnitude, S::splat(0.625), small, large)
    }
}

/// x · σ(x).
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// x · σ(slope · x).
#[inline(always)]
pub(crate) unsafe fn swish<S: Simd>(x: S::F, slope: f32) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-slope))))) }
}

/// The tanh form of GELU, ½x(1 + tanh u) with u = √(2/π)(x + 0.044715x³), which is x · σ(2u).
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let inner = S::fma(S::mul(S::mul(x, x), S::splat(0.044715)), x, x);
        // -2√(2/π)
        S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(inner, S::splat(-1.595_769)))))
    }
}

/// cap · tanh(x / cap).
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe { S::mul(tanh::<S>(S::mul(x, S::splat(1.0 / cap))), S::splat(cap)) }
}
