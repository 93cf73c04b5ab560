//! Products of queries with a page's keys, and of weights with its values, in `f16`, or in `f32` if they were widened
//! for many queries; for quantised ones see [`page_products_quantised`](crate::page_products_quantised).

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::isa::dispatch;
use crate::kv::{Blocks, PAGE};
use crate::simd::{LANES, Simd};

/// What is prefetched while a page's keys or values are read, at the same rate.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// What is read next, into L1.
    pub soon: Blocks,
    /// What is read after that, into L2, which has more requests in flight.
    pub far: Blocks,
}

impl Ahead {
    /// The codes of block `i`, from `offset` on.
    ///
    /// # Safety
    /// The block exists.
    #[inline(always)]
    pub unsafe fn codes(&self, i: usize, offset: usize) -> Codes {
        // SAFETY: guaranteed by the caller.
        unsafe { Codes { soon: self.soon.codes(i).wrapping_add(offset), far: self.far.codes(i).wrapping_add(offset) } }
    }
}

/// A block of [`Ahead`].
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    pub soon: *const u8,
    pub far: *const u8,
}

impl Codes {
    /// Prefetches the line at `offset`.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    pub unsafe fn ask<S: Simd>(&self, offset: usize) {
        // SAFETY: guaranteed by the caller; addresses need not be valid.
        unsafe {
            S::prefetch_far(self.far.wrapping_add(offset));
            S::prefetch(self.soon.wrapping_add(offset));
        }
    }
}

dispatch! {
    /// `out[i][t] = Σ q[i][d] · key[t][d]` for `Q` queries, interleaved, and some whole vectors of a page's tokens, in
    /// order of d.
    ///
    /// # Safety
    /// `keys` and `ahead` are keys or values in pages that nothing writes, except that `keys` are `f32` if `EXPANDED`;
    /// `q` and `out` have the lengths of the shapes.
    pub(crate) unsafe fn keys_tile[const Q: usize, const EXPANDED: bool](
        q: *const f32, keys: Blocks, tokens: Range<usize>, out: *mut f32, out_stride: usize, ahead: Option<Ahead>
    ) = keys_kernel::<Q, EXPANDED>;

    /// `out[i][d] = Σ p[i][t] · value[t][d]` for `Q` rows of weights, `PAGE` apart, and some of a page's tokens, in order
    /// of t.
    ///
    /// # Safety
    /// As [`keys_tile`].
    pub(crate) unsafe fn values_tile[const Q: usize, const EXPANDED: bool](
        p: *const f32, values: Blocks, tokens: Range<usize>, out: *mut f32, out_stride: usize, ahead: Option<Ahead>
    ) = values_kernel::<Q, EXPANDED>;
}

#[inline(always)]
unsafe fn keys_kernel<S: Simd, const Q: usize, const EXPANDED: bool>(
    q: *const f32,
    keys: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe { columns::<S, Q, true, EXPANDED>(q, 0..keys.dims, keys, PAGE, tokens, out, out_stride, ahead) }
}

#[inline(always)]
unsafe fn values_kernel<S: Simd, const Q: usize, const EXPANDED: bool>(
    p: *const f32,
    values: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe { columns::<S, Q, false, EXPANDED>(p, tokens, values, values.dims, 0..values.dims, out, out_stride, ahead) }
}

/// `Σ a[i][k] · b[k][j]` for `Q` rows of `a` and some of the `n` columns j of the one block of `b`, whole vectors, in
/// order of k. Rows of `a` are interleaved if `b` are keys, otherwise `PAGE` values apart.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<S: Simd, const Q: usize, const KEYS: bool, const EXPANDED: bool>(
    a: *const f32,
    k: Range<usize>,
    b: Blocks,
    n: usize,
    columns: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    let mut at = columns.start;
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (b, ahead) = (b.codes(0).cast_const(), ahead.map(|ahead| ahead.codes(0, 0)));
        while at < columns.end {
            let (k, out) = (k.clone(), out.add(at));
            at += match columns.end - at {
                64.. if S::WIDE => sums::<S, Q, 4, KEYS, EXPANDED>(a, k, b, n, at, out, out_stride, ahead),
                // Two vectors of columns fit the registers beside those of two queries.
                32.. if S::WIDE || Q <= 2 => sums::<S, Q, 2, KEYS, EXPANDED>(a, k, b, n, at, out, out_stride, ahead),
                _ => sums::<S, Q, 1, KEYS, EXPANDED>(a, k, b, n, at, out, out_stride, ahead),
            };
        }
    }
}

/// As [`columns`], for `V` vectors of columns from `at` on, of `b` as it lies in memory; returns how many columns.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn sums<S: Simd, const Q: usize, const V: usize, const KEYS: bool, const EXPANDED: bool>(
    a: *const f32,
    k: Range<usize>,
    b: *const u8,
    n: usize,
    at: usize,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Codes>,
) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; Q];
        for k in k {
            let offset = (k * n + at) * size_of::<u16>();
            let mut columns = [S::splat(0.0); V];
            for v in 0..V {
                columns[v] = match EXPANDED {
                    true => S::load(b.cast::<f32>().add(k * n + at + v * LANES)),
                    false => S::load_f16(b.add(offset).cast::<u16>().add(v * LANES)),
                };
            }
            if let Some(ahead) = ahead {
                for line in (0..V * LANES * size_of::<u16>()).step_by(64) {
                    ahead.ask::<S>(offset + line);
                }
            }
            for q in 0..Q {
                let a = S::splat(*a.add(if KEYS { k * Q + q } else { q * PAGE + k }));
                for v in 0..V {
                    sums[q][v] = S::fma(a, columns[v], sums[q][v]);
                }
            }
        }
        for q in 0..Q {
            for v in 0..V {
                S::store(out.add(q * out_stride + v * LANES), sums[q][v]);
            }
        }
    }
    V * LANES
}
