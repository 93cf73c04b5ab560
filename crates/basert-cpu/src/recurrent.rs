//! Kernels of ops with running states: one token of some columns at a time.

// Where the compiler vectorises, `S` only selects the target features.
#![allow(clippy::extra_unused_type_parameters)]
// Vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::Isa;
use crate::isa::dispatch;
use crate::linear::{load_some, store_some};
use crate::math;
use crate::simd::{LANES, Simd};

/// The most columns of a state of linear attention that are computed together.
pub const COLUMNS: usize = 4 * LANES;

/// What linear attention reads of a token, of one head.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// The query.
    pub q: &'a [f32],
    /// The key.
    pub k: &'a [f32],
    /// The value: as many columns as the state has.
    pub v: &'a [f32],
    /// The logarithm of what is left of the state: one number, or one for each of its rows.
    pub decay: &'a [f32],
    /// Factor of what is added.
    pub beta: f32,
    /// Whether what the state has for the key is subtracted from the value first.
    pub delta: bool,
    /// Factor of the result.
    pub scale: f32,
}

/// Changes `state`, a matrix of a row for each value of the key, by a token, and computes the result `y` of its query.
/// `decays` is scratch memory for a number for each row. See [`basert_graph::LinearAttention`] for the formula.
///
/// # Panics
/// When lengths do not agree, or there are more columns than [`COLUMNS`].
pub fn attend(isa: Isa, token: &Token<'_>, state: &mut [f32], decays: &mut [f32], y: &mut [f32]) {
    let rows = token.k.len();
    assert!(token.q.len() == rows && decays.len() == rows && [1, rows].contains(&token.decay.len()));
    assert!(token.v.len() == y.len() && y.len() <= COLUMNS && state.len() == rows * y.len());
    // SAFETY: just checked, and the machine has `isa`.
    unsafe { attend_token(isa, token, state, decays, y) }
}

/// `sum += a · b`, value by value, each rounded once.
///
/// # Panics
/// When lengths differ.
pub fn multiply_add(isa: Isa, a: &[f32], b: &[f32], sum: &mut [f32]) {
    assert_eq!([a.len(), b.len()], [sum.len(); 2]);
    // SAFETY: the machine has `isa`.
    unsafe { multiply_add_each(isa, a, b, sum) }
}

dispatch! {
    unsafe fn attend_token(token: &Token<'_>, state: &mut [f32], decays: &mut [f32], y: &mut [f32]) = attend_kernel;
    unsafe fn multiply_add_each(a: &[f32], b: &[f32], sum: &mut [f32]) = multiply_add_kernel;
}

#[inline(always)]
unsafe fn multiply_add_kernel<S: Simd>(a: &[f32], b: &[f32], sum: &mut [f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum = a.mul_add(*b, *sum);
    }
}

#[inline(always)]
unsafe fn attend_kernel<S: Simd>(token: &Token<'_>, state: &mut [f32], decays: &mut [f32], y: &mut [f32]) {
    let (rows, columns) = (token.k.len(), y.len());
    let vectors = columns.div_ceil(LANES);
    let count = |i: usize| LANES.min(columns - i * LANES);
    // SAFETY: `attend` has checked that all rows and vectors are inside.
    unsafe {
        for at in (0..rows).step_by(LANES) {
            let some = LANES.min(rows - at);
            let decay = match token.decay {
                [decay] => S::splat(*decay),
                decay => load_some::<S>(decay.as_ptr().add(at), some),
            };
            store_some::<S>(decays.as_mut_ptr().add(at), some, math::exp::<S>(decay));
        }
        let start = state.as_mut_ptr();
        let mut u = [S::splat(0.0); COLUMNS / LANES];
        if token.delta {
            // What the state has for the key, after its decay.
            for row in 0..rows {
                let (decay, k) = (S::splat(decays[row]), S::splat(token.k[row]));
                for i in 0..vectors {
                    let place = start.add(row * columns + i * LANES);
                    let s = S::mul(load_some::<S>(place, count(i)), decay);
                    store_some::<S>(place, count(i), s);
                    u[i] = S::fma(k, s, u[i]);
                }
            }
        }
        let mut sums = [S::splat(0.0); COLUMNS / LANES];
        for i in 0..vectors {
            let v = load_some::<S>(token.v.as_ptr().add(i * LANES), count(i));
            u[i] = S::mul(S::splat(token.beta), S::sub(v, u[i]));
        }
        for row in 0..rows {
            let (q, k) = (S::splat(token.q[row]), S::splat(token.k[row]));
            for i in 0..vectors {
                let place = start.add(row * columns + i * LANES);
                let s = load_some::<S>(place, count(i));
                let s = if token.delta { s } else { S::mul(s, S::splat(decays[row])) };
                let s = S::fma(k, u[i], s);
                store_some::<S>(place, count(i), s);
                sums[i] = S::fma(q, s, sums[i]);
            }
        }
        for i in 0..vectors {
            store_some::<S>(y.as_mut_ptr().add(i * LANES), count(i), S::mul(sums[i], S::splat(token.scale)));
        }
    }
}
