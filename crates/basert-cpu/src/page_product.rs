//! Products of queries with a page's keys, and of weights with its values, in every format that these are stored in.
//!
//! The formats differ in how sixteen lanes are loaded ([`load`]), and in that a quantised block has scales: those of keys,
//! whose lanes are tokens, multiply sums; those of values, whose lanes are dimensions, multiply weights.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use basert_core::KvFormat;

use crate::Isa;
use crate::isa::dispatch;
use crate::kv::{Blocks, PAGE};
use crate::simd::{LANES, Simd};

/// [`keys_tile`] or [`values_tile`] for a number of queries and a format known only now.
///
/// # Safety
/// `b` and what is `ahead` are keys or values of this format in pages that nobody writes; `a` and `out` are as long as the
/// shapes say.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn product<const KEYS: bool>(
    isa: Isa,
    format: KvFormat,
    queries: usize,
    a: *const f32,
    b: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    macro_rules! tile {
        ($queries:literal, $bits:literal) => {
            match KEYS {
                true => keys_tile::<$queries, $bits>(isa, a, b, tokens, out, out_stride, ahead),
                false => values_tile::<$queries, $bits>(isa, a, b, tokens, out, out_stride, ahead),
            }
        };
    }
    macro_rules! of_format {
        ($queries:literal) => {
            match format {
                KvFormat::F16 => tile!($queries, 16),
                KvFormat::Q8 => tile!($queries, 8),
                KvFormat::Q4 => tile!($queries, 4),
            }
        };
    }
    // SAFETY: the caller's.
    unsafe {
        match queries {
            6 => of_format!(6),
            4 => of_format!(4),
            3 => of_format!(3),
            2 => of_format!(2),
            1 => of_format!(1),
            _ => unreachable!("`tiles` makes no tiles of {queries}"),
        }
    }
}

/// What is asked for while a page's keys or values are read, as much of each as is read of these.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// What is read next, for the first-level cache.
    pub soon: Blocks,
    /// What is read after that, for the second-level cache, which has more to come at a time.
    pub far: Blocks,
}

impl Ahead {
    /// The codes of block `i`.
    ///
    /// # Safety
    /// There is such a block.
    #[inline(always)]
    unsafe fn codes(&self, i: usize) -> Codes {
        // SAFETY: the caller's.
        unsafe { Codes { soon: self.soon.codes(i), far: self.far.codes(i) } }
    }
}

/// A block of [`Ahead`].
#[derive(Clone, Copy)]
struct Codes {
    soon: *const u8,
    far: *const u8,
}

dispatch! {
    /// `out[i][t] = Σ q[i][d] · key[t][d]` for `Q` queries, interleaved, and some whole vectors of a page's tokens, in
    /// order of d; where keys are quantised, the sum of each block times its scale, in order of blocks.
    unsafe fn keys_tile[const Q: usize, const BITS: usize](
        q: *const f32, keys: Blocks, tokens: Range<usize>, out: *mut f32, out_stride: usize, ahead: Option<Ahead>
    ) = keys_kernel::<Q, BITS>;

    /// `out[i][d] = Σ p[i][t] · value[t][d]` for `Q` rows of weights, `PAGE` apart, and some of a page's tokens, in order
    /// of t; where values are quantised, weights are multiplied by scales first.
    unsafe fn values_tile[const Q: usize, const BITS: usize](
        p: *const f32, values: Blocks, tokens: Range<usize>, out: *mut f32, out_stride: usize, ahead: Option<Ahead>
    ) = values_kernel::<Q, BITS>;
}

/// Whether there are registers for two vectors of columns beside those of `queries` sums each.
const fn pairs<S: Simd>(queries: usize) -> bool {
    S::WIDE || queries <= 2
}

#[inline(always)]
unsafe fn keys_kernel<S: Simd, const Q: usize, const BITS: usize>(
    q: *const f32,
    keys: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    let mut at = tokens.start;
    // SAFETY: the caller's.
    unsafe {
        while at < tokens.end {
            let out = out.add(at);
            at += match tokens.end - at {
                64.. if S::WIDE => keys_columns::<S, Q, 4, BITS>(q, keys, at, out, out_stride, ahead),
                32.. if const { pairs::<S>(Q) } => keys_columns::<S, Q, 2, BITS>(q, keys, at, out, out_stride, ahead),
                _ => keys_columns::<S, Q, 1, BITS>(q, keys, at, out, out_stride, ahead),
            };
        }
    }
}

/// Scores of the tokens from `at` on, `V` vectors; returns how many.
#[inline(always)]
unsafe fn keys_columns<S: Simd, const Q: usize, const V: usize, const BITS: usize>(
    q: *const f32,
    keys: Blocks,
    at: usize,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let mut scores = [[S::splat(0.0); V]; Q];
        for block in 0..keys.count {
            let (q, codes) = (q.add(block * keys.dims * Q), keys.codes(block));
            let ahead = ahead.map(|ahead| ahead.codes(block));
            let sums = sums::<S, Q, V, BITS, true>(q, 0..keys.dims, codes, PAGE, at, ahead);
            if BITS == 16 {
                scores = sums;
                break;
            }
            for v in 0..V {
                let scale = S::load_f16(keys.scales(block).add(at + v * LANES));
                for q in 0..Q {
                    scores[q][v] = S::fma(sums[q][v], scale, scores[q][v]);
                }
            }
        }
        for q in 0..Q {
            for v in 0..V {
                S::store(out.add(q * out_stride + v * LANES), scores[q][v]);
            }
        }
    }
    V * LANES
}

#[inline(always)]
unsafe fn values_kernel<S: Simd, const Q: usize, const BITS: usize>(
    p: *const f32,
    values: Blocks,
    tokens: Range<usize>,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) {
    let mut scaled = [[0.0f32; PAGE]; Q];
    // SAFETY: the caller's.
    unsafe {
        for block in 0..values.count {
            let (mut p, mut at) = (p, 0);
            if BITS < 16 {
                scale_weights::<S, Q>(p, values.scales(block), &mut scaled);
                p = scaled.as_ptr().cast();
            }
            while at < values.dims {
                let (tokens, out) = (tokens.clone(), out.add(block * values.dims + at));
                at += match values.dims - at {
                    64.. if S::WIDE && BITS == 16 => {
                        values_columns::<S, Q, 4, BITS>(p, tokens, values, block, at, out, out_stride, ahead)
                    }
                    32.. if const { pairs::<S>(Q) } => {
                        values_columns::<S, Q, 2, BITS>(p, tokens, values, block, at, out, out_stride, ahead)
                    }
                    _ => values_columns::<S, Q, 1, BITS>(p, tokens, values, block, at, out, out_stride, ahead),
                };
            }
        }
    }
}

/// Sums of the dimensions from `at` on in a block, `V` vectors; returns how many.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn values_columns<S: Simd, const Q: usize, const V: usize, const BITS: usize>(
    p: *const f32,
    tokens: Range<usize>,
    values: Blocks,
    block: usize,
    at: usize,
    out: *mut f32,
    out_stride: usize,
    ahead: Option<Ahead>,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let ahead = ahead.map(|ahead| ahead.codes(block));
        let sums = sums::<S, Q, V, BITS, false>(p, tokens, values.codes(block), values.dims, at, ahead);
        for q in 0..Q {
            for v in 0..V {
                S::store(out.add(q * out_stride + v * LANES), sums[q][v]);
            }
        }
    }
    V * LANES
}

/// Multiplies the weights of a page's tokens by their scales.
#[inline(always)]
unsafe fn scale_weights<S: Simd, const Q: usize>(p: *const f32, scales: *const u16, scaled: &mut [[f32; PAGE]; Q]) {
    // SAFETY: a page is whole vectors.
    unsafe {
        for at in (0..PAGE).step_by(LANES) {
            let scale = S::load_f16(scales.add(at));
            for (q, scaled) in scaled.iter_mut().enumerate() {
                S::store(scaled.as_mut_ptr().add(at), S::mul(S::load(p.add(q * PAGE + at)), scale));
            }
        }
    }
}

/// `Σ a[i][k] · b[k][j]` for `Q` rows of `a` and `V` vectors of the `n` columns of the codes `b`, from column `at` on, in
/// order of k. Rows of `a` are interleaved where `b` are keys, else `PAGE` values apart.
#[inline(always)]
unsafe fn sums<S: Simd, const Q: usize, const V: usize, const BITS: usize, const KEYS: bool>(
    a: *const f32,
    k: Range<usize>,
    b: *const u8,
    n: usize,
    at: usize,
    ahead: Option<Codes>,
) -> [[S::F; V]; Q] {
    // What shares bytes, where two codes do: two k of keys, two vectors of values.
    let depth = if BITS == 4 && KEYS { 2 } else { 1 };
    let width = if BITS == 4 && !KEYS { 2 } else { 1 };
    let vector = LANES * BITS.div_ceil(8);
    let row_bytes = n / LANES * vector / width;
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; Q];
        for row in k.start / depth..k.end / depth {
            let start = row * row_bytes + at / LANES / width * vector;
            for part in 0..depth {
                let mut columns = [S::splat(0.0); V];
                for v in 0..V {
                    let part = part + (at / LANES + v) % width;
                    columns[v] = load::<S, BITS>(b.add(start + v / width * vector), part);
                }
                if let (0, Some(ahead)) = (part, ahead) {
                    for line in (0..V * vector / width).step_by(64) {
                        S::prefetch_far(ahead.far.wrapping_add(start + line));
                        S::prefetch(ahead.soon.wrapping_add(start + line));
                    }
                }
                let k = row * depth + part;
                for q in 0..Q {
                    let a = S::splat(*a.add(if KEYS { k * Q + q } else { q * PAGE + k }));
                    for v in 0..V {
                        sums[q][v] = S::fma(a, columns[v], sums[q][v]);
                    }
                }
            }
        }
        sums
    }
}

/// Sixteen codes as numbers; of two in a byte, those in the low bits or (`part` is 1) in the high ones.
#[inline(always)]
unsafe fn load<S: Simd, const BITS: usize>(p: *const u8, part: usize) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        match BITS {
            16 => S::load_f16(p.cast()),
            8 => S::float(S::load_i8(p.cast())),
            _ => S::nibbles(S::shr_i32(S::load_u8(p), 4 * part as u32)),
        }
    }
}
