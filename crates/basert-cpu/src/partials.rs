//! Partials of attention, as [`attention`](crate::attention) describes them: weights from scores, and merging.

// Query numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::isa::dispatch;
use crate::kv::PAGE;
use crate::math;
use crate::simd::{LANES, Simd};
use crate::tiles::TILE;

/// Some tokens of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Visible {
    pub start: usize,
    pub end: usize,
    /// Factor of the distance from the query, negative where a token comes before it, which is added to scores.
    pub slope: f32,
    /// The distance of the page's first token.
    pub distance: f32,
}

impl Visible {
    /// Lanes of `x`, for the tokens from `at` on, with `hidden` in the lanes of tokens that are not visible.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub unsafe fn only<S: Simd>(self, at: usize, x: S::F, hidden: S::F) -> S::F {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let token = S::add(S::load(LANE_NUMBERS.as_ptr()), S::splat(at as f32));
            let (first, end) = (S::splat(self.start as f32), S::splat(self.end as f32));
            S::select_less(token, first, hidden, S::select_less(token, end, x, hidden))
        }
    }
}

/// Length of a partial: o, m, l.
pub(crate) fn partial_len(head_dim: usize) -> usize {
    head_dim + 2
}

/// Resets a merged partial to no tokens.
pub(crate) fn clear(merged: &mut [f32], dim: usize) {
    merged.fill(0.0);
    for merged in merged.chunks_exact_mut(partial_len(dim)) {
        merged[dim] = f32::NEG_INFINITY;
    }
}

dispatch! {
    /// Turns dot products into weights for a tile of queries, zero for tokens that are not visible; stores the largest
    /// score and the sum after the `dim` values of each query's partial.
    pub(crate) unsafe fn softmax(
        scores: &mut [f32], visible: &[Visible], scale: f32, soft_cap: Option<f32>, out: &mut [f32], dim: usize
    ) = softmax_kernel;

    /// Merges a page's partials of some queries into their merged partials.
    pub(crate) unsafe fn merge(merged: &mut [f32], page: &[f32], dim: usize) = merge_kernel;

    /// Divides the merged sums, stored contiguously, by their weights, and stores the first `taken` values of each contiguously.
    pub(crate) unsafe fn finish(
        merged: &[f32], dim: usize, taken: usize, sinks: Option<&[f32]>, out: *mut f32
    ) = finish_kernel;
}

const LANE_NUMBERS: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// All queries take each step before the next one, so that their latencies overlap.
#[inline(always)]
unsafe fn softmax_kernel<S: Simd>(
    scores: &mut [f32],
    visible: &[Visible],
    scale: f32,
    soft_cap: Option<f32>,
    out: &mut [f32],
    dim: usize,
) {
    let scores = &mut scores.as_chunks_mut::<PAGE>().0[..visible.len()];
    let mut largest = [0.0; TILE];
    // SAFETY: a page is whole vectors.
    unsafe {
        let hidden = S::splat(f32::NEG_INFINITY);
        for (i, (scores, visible)) in scores.iter_mut().zip(visible).enumerate() {
            let all = (visible.start, visible.end) == (0, PAGE);
            let mut m = hidden;
            for at in (0..PAGE).step_by(LANES) {
                let mut score = S::mul(S::load(scores.as_ptr().add(at)), S::splat(scale));
                if let Some(cap) = soft_cap {
                    score = math::soft_cap::<S>(score, cap);
                }
                if visible.slope != 0.0 {
                    let lanes = S::add(S::splat(visible.distance + at as f32), S::load(LANE_NUMBERS.as_ptr()));
                    // Later tokens are at a distance as earlier ones are.
                    let lanes = S::min(lanes, S::sub(S::splat(0.0), lanes));
                    score = S::fma(S::splat(visible.slope), lanes, score);
                }
                if !all {
                    score = visible.only::<S>(at, score, hidden);
                }
                S::store(scores.as_mut_ptr().add(at), score);
                m = S::max(m, score);
            }
            largest[i] = S::largest(m);
        }
        for (i, scores) in scores.iter_mut().enumerate() {
            // If nothing is visible, the difference of infinities would be NaN.
            let m = S::splat(if largest[i] > f32::NEG_INFINITY { largest[i] } else { 0.0 });
            for at in (0..PAGE).step_by(LANES) {
                let score = S::load(scores.as_ptr().add(at));
                S::store(scores.as_mut_ptr().add(at), math::exp_negative::<S>(S::sub(score, m)));
            }
        }
        for (i, scores) in scores.iter().enumerate() {
            let p = |v: usize| S::load(scores.as_ptr().add(v * LANES));
            out[i * partial_len(dim) + dim] = largest[i];
            out[i * partial_len(dim) + dim + 1] = S::sum(S::add(S::add(p(0), p(1)), S::add(p(2), p(3))));
        }
    }
}

#[inline(always)]
unsafe fn merge_kernel<S: Simd>(merged: &mut [f32], page: &[f32], dim: usize) {
    let len = partial_len(dim);
    let count = page.len() / len;
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..count {
        let (m, m_page) = (merged[i * len + dim], page[i * len + dim]);
        let largest = if m > m_page { m } else { m_page };
        merged[i * len + dim] = largest;
        // If nothing has been seen yet, infinities would give NaN.
        let finite = largest > f32::NEG_INFINITY;
        (old[i], new[i]) = if finite { (m - largest, m_page - largest) } else { (0.0, 0.0) };
    }
    // SAFETY: a tile has at most as many queries as a vector has lanes; both have `dim` values per query, which are
    // whole vectors, and two more.
    unsafe {
        let a = S::lanes(math::exp_negative::<S>(S::load(old.as_ptr())));
        let b = S::lanes(math::exp_negative::<S>(S::load(new.as_ptr())));
        for i in 0..count {
            let (to, from) = (merged.as_mut_ptr().add(i * len), page.as_ptr().add(i * len));
            for at in (0..dim).step_by(LANES) {
                let old = S::mul(S::load(to.add(at)), S::splat(a[i]));
                S::store(to.add(at), S::fma(S::load(from.add(at)), S::splat(b[i]), old));
            }
            *to.add(dim + 1) = (*from.add(dim + 1)).mul_add(b[i], *to.add(dim + 1) * a[i]);
        }
    }
}

#[inline(always)]
unsafe fn finish_kernel<S: Simd>(merged: &[f32], dim: usize, taken: usize, sinks: Option<&[f32]>, out: *mut f32) {
    for (i, merged) in merged.chunks_exact(partial_len(dim)).enumerate() {
        // SAFETY: `merged` has `dim` values, which are whole vectors; the caller guarantees `out`.
        unsafe {
            let mut inverse = S::splat(1.0 / merged[dim + 1]);
            if let Some(sinks) = sinks {
                // The additional score: o · a / (l · a + b).
                let (m, sink) = (S::splat(merged[dim]), S::splat(sinks[i]));
                let largest = S::max(m, sink);
                let a = math::exp_negative::<S>(S::sub(m, largest));
                let b = math::exp_negative::<S>(S::sub(sink, largest));
                inverse = S::div(a, S::fma(S::splat(merged[dim + 1]), a, b));
            }
            for at in (0..taken).step_by(LANES) {
                let (out, x) = (out.add(i * taken + at), S::mul(S::load(merged.as_ptr().add(at)), inverse));
                match taken - at {
                    count @ 0..LANES => S::lanes(x)[..count].iter().enumerate().for_each(|(i, x)| *out.add(i) = *x),
                    _ => S::store(out, x),
                }
            }
        }
    }
}
