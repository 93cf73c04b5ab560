//! Functions of 16 lanes, with the same result on every instruction set.
//!
//! Polynomials are those of the Cephes library (S. Moshier): errors of a few units in the last place.

use basert_graph::Activation;
use basert_plan::Gate;

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

/// The sum of coefficient · x^k, highest power first.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::F, coefficients: [f32; N]) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut p = S::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            p = S::fma(p, x, S::splat(*coefficient));
        }
        p
    }
}

/// x · Φ(x) = ½x(1 + erf(x / √2)).
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let half = S::mul(x, S::splat(0.5));
        let e = erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
        S::fma(half, e, half)
    }
}

/// The error function.
#[inline(always)]
unsafe fn erf<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let square = S::mul(x, x);
        let near = [
            7.853_861_4e-5,
            -8.010_193_6e-4,
            5.188_327_7e-3,
            -2.685_381_2e-2,
            1.128_358_5e-1,
            -3.761_262_6e-1,
            std::f32::consts::FRAC_2_SQRT_PI,
        ];
        let small = S::mul(x, polynomial::<S, 7>(square, near));
        // 1 − erfc, with erfc |x| = e^(−x²) · q · P(q²), q = 1 / |x|, and another P beyond 2.
        let magnitude = S::max(one, S::from_bits(S::and_i32(S::bits(x), S::splat_i32(0x7fff_ffff))));
        let q = S::div(one, magnitude);
        let y = S::mul(q, q);
        let middle = [
            2.326_82e-2,
            -1.387_039_4e-1,
            3.687_424_7e-1,
            -5.824_733e-1,
            6.210_004_6e-1,
            -4.944_515_3e-1,
            3.404_88e-1,
            -2.741_127e-1,
            5.638_259_4e-1,
        ];
        let far =
            [-10.477_664, 12.977_2, -7.495_519, 2.921_019, -1.015_265_3, 4.218_463_4e-1, -2.820_767_4e-1, 5.641_895e-1];
        let p = S::select_less(magnitude, S::splat(2.0), polynomial::<S, 9>(y, middle), polynomial::<S, 8>(y, far));
        let tail = S::mul(S::mul(exp::<S>(S::sub(zero, S::mul(magnitude, magnitude))), q), p);
        let large = S::sub(one, tail);
        let large = S::select_less(x, zero, S::sub(zero, large), large);
        S::select_less(square, one, small, large)
    }
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + e), with e = e^−|x|. The logarithm is 2 artanh(e / (2 + e)), of which the argument is
/// at most ⅓, as its series.
#[inline(always)]
unsafe fn softplus<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let magnitude = S::from_bits(S::and_i32(S::bits(x), S::splat_i32(0x7fff_ffff)));
        let negative = S::sub(S::splat(0.0), magnitude);
        let e = exp_negative::<S>(negative);
        let z = S::div(e, S::add(e, S::splat(2.0)));
        let series = [2.0 / 15.0, 2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0];
        S::fma(polynomial::<S, 8>(S::mul(z, z), series), z, S::max(x, S::splat(0.0)))
    }
}

/// An activation of each lane.
#[inline(always)]
pub(crate) unsafe fn activate<S: Simd>(activation: Activation, x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        match activation {
            Activation::Silu => silu::<S>(x),
            Activation::Gelu => gelu::<S>(x),
            Activation::GeluTanh => gelu_tanh::<S>(x),
            Activation::GeluSigmoid => swish::<S>(x, 1.702),
            // The larger of the two zeros is not the same everywhere; with another added, both are positive.
            Activation::Relu => S::add(S::max(zero, x), zero),
            Activation::ReluSquared => {
                let positive = S::max(zero, x);
                S::mul(positive, positive)
            }
            Activation::Sigmoid => S::div(one, S::add(one, exp::<S>(S::sub(zero, x)))),
            Activation::Tanh => tanh::<S>(x),
            Activation::Softplus => softplus::<S>(x),
            Activation::Xielu { above, below, slope, eps } => {
                let linear = S::mul(x, S::splat(slope));
                let positive = S::fma(S::mul(x, x), S::splat(above), linear);
                let grown = S::sub(S::sub(exp::<S>(S::min(S::splat(eps), x)), one), x);
                let negative = S::fma(grown, S::splat(below), linear);
                S::select_less(zero, x, positive, negative)
            }
        }
    }
}

/// What a gate makes of its factors.
#[inline(always)]
pub(crate) unsafe fn gated<S: Simd>(gate: Gate, g: S::F, u: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match gate {
            Gate::Product(activation) => S::mul(activate::<S>(activation, g), u),
            Gate::ClampedSwish => {
                let u = S::max(S::splat(-7.0), S::min(S::splat(7.0), u));
                let g = swish::<S>(S::min(S::splat(7.0), g), 1.702);
                S::fma(g, u, g)
            }
        }
    }
}
