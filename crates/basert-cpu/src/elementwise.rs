//! Kernels on one row at a time: norms, rotary positions, activations.
//!
//! Sums run in four vectors of 16 lanes, vector i of a row into number i mod 4; these are added as
//! `(s0 + s1) + (s2 + s3)`, and the lanes halves onto halves.

// Where the compiler vectorises, `S` only selects the target features.
#![allow(clippy::extra_unused_type_parameters)]
// Vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use basert_graph::Activation;
use basert_plan::Gate;

use crate::Isa;
use crate::isa::dispatch;
use crate::linear::{load_some, store_some};
use crate::math;
use crate::simd::{LANES, Simd};

/// Which values of a head a rotation pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryStyle {
    /// Value i with value i + n/2 of the n rotated ones (GPT-NeoX, Hugging Face).
    Halves,
    /// Value 2i with value 2i + 1 (the original RoFormer, GGUF's llama).
    Pairs,
}

/// `out = x / √(mean x² + eps) · weight`.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!((x.len(), x.len()), (weight.len(), out.len()));
    // SAFETY: just checked.
    unsafe { norm(isa, x.as_ptr(), weight.as_ptr(), x.len(), eps, out.as_mut_ptr()) }
}

/// [`rms_norm`] onto `x` itself: the norm of a head of queries or keys.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len());
    // SAFETY: just checked; a vector is read before it is written.
    unsafe { norm(isa, x.as_ptr(), weight.as_ptr(), x.len(), eps, x.as_mut_ptr()) }
}

/// A norm with its weights at hand.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundNorm {
    /// Whether the mean is subtracted first: LayerNorm.
    pub centred: bool,
    /// Values that are normed together.
    pub group: usize,
    /// One for each value of a group, or of a row.
    pub weight: Vec<f32>,
    /// Added to the result; as long as the weight.
    pub bias: Option<Vec<f32>>,
    /// Added to the mean square.
    pub eps: f32,
}

impl BoundNorm {
    /// `out = norm(x)`, group by group.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn apply(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        let groups = x.chunks_exact(self.group).zip(out.chunks_exact_mut(self.group));
        for (i, (x, out)) in groups.enumerate() {
            let own =
                if self.weight.len() == self.group { 0..self.group } else { i * self.group..(i + 1) * self.group };
            let weight = &self.weight[own.clone()];
            if self.centred {
                // SAFETY: the machine has `isa`.
                let mean = unsafe { sum(isa, x) } / x.len() as f32;
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x - mean);
                rms_norm_in_place(isa, out, weight, self.eps);
            } else {
                rms_norm(isa, x, weight, self.eps, out);
            }
            if let Some(bias) = &self.bias {
                add(isa, out, &bias[own]);
            }
        }
    }

    /// `x = norm(x)` for the norm of a head, which is not centred and has no bias.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn apply_to_head(&self, isa: Isa, x: &mut [f32]) {
        rms_norm_in_place(isa, x, &self.weight, self.eps);
    }
}

/// `x += y`.
///
/// # Panics
/// When lengths differ.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    // SAFETY: the machine has `isa`.
    unsafe { add_each(isa, x, y) }
}

/// `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    // SAFETY: the machine has `isa`.
    unsafe { scale_each(isa, x, factor) }
}

/// `x = weight · x + bias`.
///
/// # Panics
/// When lengths differ.
pub fn affine(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32]) {
    assert_eq!([weight.len(), bias.len()], [x.len(); 2]);
    // SAFETY: the machine has `isa`.
    unsafe { affine_each(isa, x, weight, bias) }
}

/// `x = cap · tanh(x / cap)`.
pub fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    // SAFETY: the machine has `isa`.
    unsafe { cap_each(isa, x, cap) }
}

/// `x *= y`.
///
/// # Panics
/// When lengths differ.
pub fn mul(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    // SAFETY: the machine has `isa`.
    unsafe { mul_each(isa, x, y) }
}

/// `x = activation(x)`.
pub fn activate(isa: Isa, activation: Activation, x: &mut [f32]) {
    // SAFETY: the machine has `isa`.
    unsafe { activate_each(isa, activation, x) }
}

/// `g = gate(g, u)`.
///
/// # Panics
/// When lengths differ.
pub fn gate(isa: Isa, gate: Gate, g: &mut [f32], u: &[f32]) {
    assert_eq!(g.len(), u.len());
    // SAFETY: the machine has `isa`.
    unsafe { gate_each(isa, gate, g, u) }
}

/// Rotates the first `2 · cos.len()` values of a head by the angles whose cosines and sines are given.
///
/// # Panics
/// When `cos` and `sin` differ in length or the head is shorter.
pub fn rotate(isa: Isa, head: &mut [f32], cos: &[f32], sin: &[f32], style: RotaryStyle) {
    assert_eq!(cos.len(), sin.len());
    assert!(2 * cos.len() <= head.len());
    // SAFETY: the machine has `isa`.
    unsafe { rotate_head(isa, head, cos, sin, style) }
}

dispatch! {
    unsafe fn norm(x: *const f32, weight: *const f32, len: usize, eps: f32, out: *mut f32) = norm_kernel;
    unsafe fn sum(x: &[f32]) -> f32 = sum_kernel;
    unsafe fn add_each(x: &mut [f32], y: &[f32]) = add_kernel;
    unsafe fn scale_each(x: &mut [f32], factor: f32) = scale_kernel;
    unsafe fn affine_each(x: &mut [f32], weight: &[f32], bias: &[f32]) = affine_kernel;
    unsafe fn cap_each(x: &mut [f32], cap: f32) = cap_kernel;
    unsafe fn mul_each(x: &mut [f32], y: &[f32]) = mul_kernel;
    unsafe fn activate_each(activation: Activation, x: &mut [f32]) = activate_kernel;
    unsafe fn gate_each(gate: Gate, g: &mut [f32], u: &[f32]) = gate_kernel;
    unsafe fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], style: RotaryStyle) = rotate_kernel;
}

/// Start and number of lanes of each vector of a row of `len` values. They are not passed to a closure: if the compiler
/// did not inline it, it would lack the target features of `S`.
#[inline(always)]
fn vectors(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(LANES).map(move |at| (at, LANES.min(len - at)))
}

#[inline(always)]
unsafe fn norm_kernel<S: Simd>(x: *const f32, weight: *const f32, len: usize, eps: f32, out: *mut f32) {
    // SAFETY: all three have `len` values.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let fours = len / (4 * LANES);
        for four in 0..fours {
            for i in 0..4 {
                let x = S::load(x.add((4 * four + i) * LANES));
                sums[i] = S::fma(x, x, sums[i]);
            }
        }
        let rest = fours * 4 * LANES;
        for (i, (at, count)) in vectors(len - rest).enumerate() {
            let x = load_some::<S>(x.add(rest + at), count);
            sums[i] = S::fma(x, x, sums[i]);
        }
        let sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
        let factor = S::splat(1.0 / (sum / len as f32 + eps).sqrt());
        for (at, count) in vectors(len) {
            let y = S::mul(load_some::<S>(x.add(at), count), factor);
            store_some::<S>(out.add(at), count, S::mul(y, load_some::<S>(weight.add(at), count)));
        }
    }
}

#[inline(always)]
unsafe fn sum_kernel<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: the vectors are those of `x`.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for (at, count) in vectors(x.len()) {
            sums[at / LANES % 4] = S::add(sums[at / LANES % 4], load_some::<S>(x.as_ptr().add(at), count));
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

#[inline(always)]
unsafe fn add_kernel<S: Simd>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
unsafe fn scale_kernel<S: Simd>(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
unsafe fn affine_kernel<S: Simd>(x: &mut [f32], weight: &[f32], bias: &[f32]) {
    for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
        *x = x.mul_add(*w, *b);
    }
}

#[inline(always)]
unsafe fn cap_kernel<S: Simd>(x: &mut [f32], cap: f32) {
    let p = x.as_mut_ptr();
    for (at, count) in vectors(x.len()) {
        // SAFETY: the vectors are those of `x`.
        unsafe {
            let x = load_some::<S>(p.add(at), count);
            store_some::<S>(p.add(at), count, math::soft_cap::<S>(x, cap));
        }
    }
}

#[inline(always)]
unsafe fn mul_kernel<S: Simd>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

#[inline(always)]
unsafe fn activate_kernel<S: Simd>(activation: Activation, x: &mut [f32]) {
    let p = x.as_mut_ptr();
    for (at, count) in vectors(x.len()) {
        // SAFETY: the vectors are those of `x`.
        unsafe {
            let y = math::activate::<S>(activation, load_some::<S>(p.add(at), count));
            store_some::<S>(p.add(at), count, y);
        }
    }
}

#[inline(always)]
unsafe fn gate_kernel<S: Simd>(gate: Gate, g: &mut [f32], u: &[f32]) {
    let (g, u, len) = (g.as_mut_ptr(), u.as_ptr(), u.len());
    for (at, count) in vectors(len) {
        // SAFETY: the vectors are those of `g` and `u`, which are equally long.
        unsafe {
            let y = math::gated::<S>(gate, load_some::<S>(g.add(at), count), load_some::<S>(u.add(at), count));
            store_some::<S>(g.add(at), count, y);
        }
    }
}

#[inline(always)]
unsafe fn rotate_kernel<S: Simd>(head: &mut [f32], cos: &[f32], sin: &[f32], style: RotaryStyle) {
    let rotated = &mut head[..2 * cos.len()];
    let turn = |a: &mut f32, b: &mut f32, c: f32, s: f32| {
        (*a, *b) = (a.mul_add(c, -(*b * s)), b.mul_add(c, *a * s));
    };
    match style {
        RotaryStyle::Halves => {
            let (low, high) = rotated.split_at_mut(cos.len());
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                turn(a, b, *c, *s);
            }
        }
        RotaryStyle::Pairs => {
            for (([a, b], c), s) in rotated.as_chunks_mut().0.iter_mut().zip(cos).zip(sin) {
                turn(a, b, *c, *s);
            }
        }
    }
}
