//! Products of queries with a page's quantised keys, and of weights with its quantised values, in integers.
//!
//! Queries and weights become integers of 14 bits in two [planes](crate::int14), and the codes are multiplied by both.
//! So a product is exact except for the rounding to 14 bits, which depends only on the query and the page:
//!
//! ```text
//! scores of a block of keys      Σ unit · scale[t] · Σ (128 · high + low)[d] · code[t][d]
//! sums of a block of values      unit · Σ (128 · high + low)[t] · code[t][d]      of weights times scale[t]
//! ```
//!
//! The unit of weights times scales is the largest scale that the query sees, over 8192, since no weight is larger than
//! one.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::int14::{LARGEST, Planes};
use crate::isa::dispatch;
use crate::kv::{BLOCK, Blocks, PAGE, SCALES};
use crate::page_products_float::{Ahead, Codes};
use crate::partials::Visible;
use crate::quantised::{largest, unit};
use crate::simd::{LANES, Simd};

dispatch! {
    /// Splits the `dim` values of a query, a block at a time.
    ///
    /// # Safety
    /// `out` has room for whole blocks.
    pub(crate) unsafe fn split_query(query: &[f32], out: &mut [Planes<BLOCK>]) = split_kernel;

    /// `out[i][t] = Σ q[i][d] · key[t][d]` for `Q` queries, of all blocks each, and some whole vectors of a page's tokens.
    ///
    /// # Safety
    /// `keys` and `ahead` are keys or values of this format in pages that nothing writes; `q` and `out` have the
    /// lengths of the shapes.
    pub(crate) unsafe fn key_codes[const Q: usize, const BITS: usize](
        q: *const Planes<BLOCK>, keys: Blocks, tokens: Range<usize>, out: *mut f32, out_stride: usize,
        ahead: Option<Ahead>
    ) = keys_kernel::<Q, BITS>;

    /// `out[i][d] = Σ p[i][t] · value[t][d]` for `Q` rows of weights, `PAGE` apart, which are zero for tokens that a
    /// query does not see; `tokens` are those that any query sees.
    ///
    /// # Safety
    /// As [`key_codes`]; `visible` has `Q` entries.
    pub(crate) unsafe fn value_codes[const Q: usize, const BITS: usize](
        p: *const f32, values: Blocks, tokens: Range<usize>, visible: &[Visible], out: *mut f32, out_stride: usize,
        ahead: Option<Ahead>
    ) = values_kernel::<Q, BITS>;
}

#[inline(always)]
unsafe fn split_kernel<S: Simd>(query: &[f32], out: &mut [Planes<BLOCK>]) {
    let mut scaled = [0.0; BLOCK];
    for (x, out) in query.as_chunks::<BLOCK>().0.iter().zip(out) {
        // SAFETY: a block is whole vectors.
        unsafe {
            let largest = largest::<S>(x.as_ptr(), BLOCK);
            let (unit, inverse) = unit(largest, LARGEST);
            for at in (0..BLOCK).step_by(LANES) {
                S::store(scaled.as_mut_ptr().add(at), S::mul(S::load(x.as_ptr().add(at)), S::splat(inverse)));
            }
            out.set::<S>(scaled.as_ptr(), unit);
        }
    }
}

/// Whether four vectors of columns fit the registers beside those of `queries` queries.
const fn four<S: Simd>(queries: usize) -> bool {
    S::WIDE && queries <= 3
}

#[inline(always)]
unsafe fn keys_kernel<S: Simd, const Q: usize, const BITS: usize>(
    q: *const Planes<BLOCK>,
    keys: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if S::WIDE {
            return keys_of::<S, Q, BITS>(q, keys, tokens, out, out_stride, ahead);
        }
        // Only one query fits the registers.
        for i in 0..Q {
            let ahead = if i == 0 { ahead } else { None };
            keys_of::<S, 1, BITS>(
                q.add(i * keys.count),
                keys,
                tokens.clone(),
                out.add(i * out_stride),
                out_stride,
                ahead,
            );
        }
    }
}

#[inline(always)]
unsafe fn keys_of<S: Simd, const Q: usize, const BITS: usize>(
    q: *const Planes<BLOCK>,
    keys: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    let mut at = tokens.start;
    // SAFETY: guaranteed by the caller.
    unsafe {
        while at < tokens.end {
            let out = out.add(at);
            at += match tokens.end - at {
                64.. if const { four::<S>(Q) } => keys_columns::<S, Q, 4, BITS>(q, keys, at, out, out_stride, ahead),
                32.. => keys_columns::<S, Q, 2, BITS>(q, keys, at, out, out_stride, ahead),
                _ => keys_columns::<S, Q, 1, BITS>(q, keys, at, out, out_stride, ahead),
            };
        }
    }
}

/// Scores of the tokens from `at` on, `V` vectors; returns how many.
#[inline(always)]
unsafe fn keys_columns<S: Simd, const Q: usize, const V: usize, const BITS: usize>(
    q: *const Planes<BLOCK>,
    keys: Blocks,
    at: usize,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut scores = [[S::splat(0.0); V]; Q];
        for block in 0..keys.count {
            let mut x = [q.add(block); Q];
            for i in 0..Q {
                x[i] = q.add(i * keys.count + block);
            }
            let codes = keys.codes(block).add(4 * at);
            if let Some(ahead) = ahead {
                let scales = ahead.codes(block, keys.bytes - SCALES + at * size_of::<u16>());
                for line in (0..V * LANES * size_of::<u16>()).step_by(64) {
                    scales.ask::<S>(line);
                }
            }
            let ahead = ahead.map(|ahead| ahead.codes(block, 4 * at));
            let sums = dots::<S, Q, V, BITS, BLOCK, true>(x, 0..BLOCK / 4, codes, ahead);
            for v in 0..V {
                let scale = S::load_f16(keys.scales(block).add(at + v * LANES));
                for i in 0..Q {
                    let scale = S::mul(scale, S::splat((*x[i]).unit));
                    scores[i][v] = S::fma(S::float(sums[i][v]), scale, scores[i][v]);
                }
            }
        }
        for i in 0..Q {
            for v in 0..V {
                S::store(out.add(i * out_stride + v * LANES), scores[i][v]);
            }
        }
    }
    V * LANES
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn values_kernel<S: Simd, const Q: usize, const BITS: usize>(
    p: *const f32,
    values: Blocks,
    tokens: Range<usize>,
    visible: &[Visible],
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    // Whole runs of `dots`; the weights of other tokens are zero.
    let steps = tokens.start / 32 * 8..tokens.end.div_ceil(32) * 8;
    let mut x = [Planes::<PAGE>::ZERO; Q];
    // SAFETY: guaranteed by the caller.
    unsafe {
        for block in 0..values.count {
            weights::<S, Q>(p, values.scales(block), visible, &mut x);
            let (codes, out) = (values.codes(block), out.add(block * BLOCK));
            let ahead = ahead.map(|ahead| ahead.codes(block, 0));
            if let Some(ahead) = ahead {
                for line in (values.bytes - SCALES..values.bytes).step_by(64) {
                    ahead.ask::<S>(line);
                }
            }
            if S::WIDE {
                values_of::<S, Q, BITS>(&x, steps.clone(), codes, out, out_stride, ahead);
                continue;
            }
            for i in 0..Q {
                let ahead = if i == 0 { ahead } else { None };
                let x = std::array::from_ref(&x[i]);
                values_of::<S, 1, BITS>(x, steps.clone(), codes, out.add(i * out_stride), out_stride, ahead);
            }
        }
    }
}

/// Sums of a block.
#[inline(always)]
unsafe fn values_of<S: Simd, const Q: usize, const BITS: usize>(
    x: &[Planes<PAGE>; Q],
    steps: Range<usize>,
    codes: *const u8,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Codes>,
) {
    let mut planes = [&raw const x[0]; Q];
    for i in 0..Q {
        planes[i] = &raw const x[i];
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        let sums = dots::<S, Q, 2, BITS, PAGE, false>(planes, steps, codes, ahead);
        for i in 0..Q {
            for v in 0..2 {
                let sum = S::mul(S::float(sums[i][v]), S::splat(x[i].unit));
                S::store(out.add(i * out_stride + v * LANES), sum);
            }
        }
    }
}

/// The weights of a page's tokens times their scales in a block.
#[inline(always)]
unsafe fn weights<S: Simd, const Q: usize>(
    p: *const f32,
    scales: *const u16,
    visible: &[Visible],
    x: &mut [Planes<PAGE>; Q],
) {
    let (mut relative, mut scaled) = ([0.0; PAGE], [0.0; PAGE]);
    let mut unit_of = 0.0;
    // SAFETY: guaranteed by the caller; a page is whole vectors.
    unsafe {
        for i in 0..Q {
            // In most cases all queries see the whole page.
            if i == 0 || visible[i] != visible[i - 1] {
                for at in (0..PAGE).step_by(LANES) {
                    let scale = visible[i].only::<S>(at, S::load_f16(scales.add(at)), S::splat(0.0));
                    S::store(relative.as_mut_ptr().add(at), scale);
                }
                let (unit, inverse) = unit(largest::<S>(relative.as_ptr(), PAGE), LARGEST);
                for at in (0..PAGE).step_by(LANES) {
                    let to = relative.as_mut_ptr().add(at);
                    S::store(to, S::mul(S::load(to), S::splat(inverse)));
                }
                unit_of = unit;
            }
            for at in (0..PAGE).step_by(LANES) {
                let weight = S::mul(S::load(p.add(i * PAGE + at)), S::load(relative.as_ptr().add(at)));
                S::store(scaled.as_mut_ptr().add(at), weight);
            }
            x[i].set::<S>(scaled.as_ptr(), unit_of);
        }
    }
}

/// `Σ x[i][k] · code[k][j]`, in integers, for `Q` rows of `N` integers and `V` vectors of columns; a step is four k,
/// and the number of steps is a multiple of eight; blocks of keys have eight.
#[inline(always)]
unsafe fn dots<S: Simd, const Q: usize, const V: usize, const BITS: usize, const N: usize, const KEYS: bool>(
    x: [*const Planes<N>; Q],
    steps: Range<usize>,
    codes: *const u8,
    ahead: Option<Codes>,
) -> [[S::I; V]; Q] {
    // What shares bytes, if two codes share one: two steps of keys, two vectors of values.
    let (depth, width) = match (BITS, KEYS) {
        (8, _) => (1, 1),
        (_, true) => (2, 1),
        (_, false) => (1, 2),
    };
    let row_bytes = if KEYS { 4 * PAGE } else { 4 * BLOCK / width };
    // Steps whose products fit into sums of 16 bits: a product is at most 64 · 127, two in a sum, or 64 · 15.
    let once = if BITS == 8 { 2 } else { 8 };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut high = [[S::splat_i32(0); V]; Q];
        let mut low = high;
        for i in 0..Q {
            let sum = (*x[i]).sum;
            // A NaN weight may give any sum.
            let start = sum.wrapping_mul(if BITS == 8 { -128 } else { -8 });
            low[i] = [if BITS == 8 { S::signed_start(start) } else { S::splat_i32(start) }; V];
        }
        for first in steps.step_by(once) {
            let mut products = [[[S::begin(high[0][0]); 2]; V]; Q];
            for i in 0..Q {
                for v in 0..V {
                    products[i][v] = [S::begin(high[i][v]), S::begin(low[i][v])];
                }
            }
            for step in 0..once {
                let (row, part) = ((first + step) / depth, step % depth);
                let mut operands = [S::splat_u8(0); V];
                for v in 0..V {
                    let offset = row * row_bytes + v / width * 64;
                    let bytes = S::load_bytes(codes.add(offset));
                    operands[v] = match (BITS, part + v % width) {
                        (8, _) => S::signed_operand(bytes),
                        (_, 0) => S::and(bytes, S::splat_u8(15)),
                        _ => S::and(S::shift_bits(bytes, -4), S::splat_u8(15)),
                    };
                    if let (0, 0, Some(ahead)) = (part, v % width, ahead) {
                        ahead.ask::<S>(offset);
                    }
                }
                for i in 0..Q {
                    let at = 4 * (first + step);
                    let planes = [(&raw const (*x[i]).high).cast::<i8>(), (&raw const (*x[i]).low).cast::<i8>()];
                    for plane in 0..2 {
                        let four = S::broadcast4(planes[plane].add(at));
                        for v in 0..V {
                            let to = &mut products[i][v][plane];
                            *to = match BITS {
                                8 => S::dot_signed(*to, operands[v], four),
                                _ => S::dot(*to, operands[v], four),
                            };
                        }
                    }
                }
            }
            for i in 0..Q {
                for v in 0..V {
                    high[i][v] = S::end(high[i][v], products[i][v][0]);
                    low[i][v] = S::end(low[i][v], products[i][v][1]);
                }
            }
        }
        for i in 0..Q {
            for v in 0..V {
                low[i][v] = S::add_i32(S::shl_i32(high[i][v], 7), low[i][v]);
            }
        }
        low
    }
}
