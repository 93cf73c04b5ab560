//! The inner kernels: a panel of 16 weight rows times a few rows of activations.
//!
//! Whatever the number of rows and the instruction set, one result is computed by one sequence of operations. With
//! `w` and `m` scale and min of a group of weights, `d` the scale of the activations there, and `q`, `c` the codes:
//!
//! ```text
//! for each group in order of k:
//!     i = Σ q·c                       exact, in integers
//!     y = fma(i, w · d, y)            w is exact in f32: an f16 times a small integer
//!     y = fma(m, d · Σ c, y)          formats with mins only
//! ```
//!
//! and for weights that are floats, with four sums of every fourth product: `(y0 + y1) + (y2 + y3)`.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use basert_core::{Base, FORMATS, Format, GroupScales, Plane, Value};

use crate::isa::dispatch;
use crate::panel::PanelFormat;
use crate::quantised::{BLOCK, Block, INTERLEAVE};
use crate::simd::{LANES, Simd};

/// Results of one row of activations.
pub(crate) type Lanes = [f32; LANES];
/// Rows that a kernel of quantised weights takes at most.
pub(crate) const MAX_TILE: usize = 3 * INTERLEAVE;

dispatch! {
    /// Multiplies a panel of format `F` by `C` groups of `W` interleaved rows, at `x`; result of row i at `out + i`.
    ///
    /// # Safety
    /// `panel` has `blocks` blocks, `x` as many columns in each of its groups, `out` room for `C · W` rows.
    pub(crate) unsafe fn quantised_tile[const F: usize, const C: usize, const W: usize](
        panel: *const u8, blocks: usize, x: *const Block, out: *mut Lanes
    ) = quantised_kernel::<F, C, W>;

    /// Multiplies a panel of float format `F`, `k` wide, by `T` rows that are `stride` values apart.
    ///
    /// # Safety
    /// `panel` and the rows have `k` columns, `out` room for `T` rows.
    pub(crate) unsafe fn float_tile[const F: usize, const T: usize](
        panel: *const u8, k: usize, x: *const f32, stride: usize, out: *mut Lanes
    ) = float_kernel::<F, T>;
}

/// Layout of a quantised format, as a constant.
struct Packed<const F: usize>;

impl<const F: usize> Packed<F> {
    const FORMAT: PanelFormat = PanelFormat::of(&FORMATS[F]);
}

#[inline(always)]
unsafe fn quantised_kernel<S: Simd, const F: usize, const C: usize, const W: usize>(
    panel: *const u8,
    blocks: usize,
    x: *const Block,
    out: *mut Lanes,
) {
    let format = const { Packed::<F>::FORMAT };
    let per_block = const { Packed::<F>::FORMAT.elements / BLOCK };
    let halves = const { Packed::<F>::FORMAT.group / 16 };
    let chunk = INTERLEAVE * blocks * per_block;
    // SAFETY: the caller's.
    unsafe {
        let table = match format.value {
            Value::Table(table) => S::load_table(table.as_ptr().cast()),
            _ => S::splat_u8(0),
        };
        let mut codes = panel;
        let mut scales = panel.add(format.codes_len(blocks));
        let mut x = x;
        let mut y = [[S::splat(0.0); W]; C];
        for _ in 0..blocks {
            let base = base::<S, F>(scales);
            for g in 0..const { Packed::<F>::FORMAT.elements / Packed::<F>::FORMAT.group } {
                let (scale, min) = group::<S, F>(base, scales, g);
                // The activations of this group: a block, or half of one.
                let at = x.add(g * format.group / BLOCK * W);
                let half = g * format.group / 16 % 2;

                let mut sum = [[S::splat_i32(0); W]; C];
                for c in 0..C {
                    for w in 0..W {
                        let block = at.add(c * chunk + w);
                        let neg_sum = if halves == 2 { (*block).neg_sum } else { (*block).half_neg_sums[half] };
                        sum[c][w] = start::<S, F>(neg_sum);
                    }
                }
                for h in 0..halves {
                    for step in 0..4 {
                        let element = g * format.group + 16 * h + 4 * step;
                        let weights = operand::<S, F>(codes, element, table);
                        for c in 0..C {
                            for w in 0..W {
                                let block = at.add(c * chunk + w);
                                let four = S::broadcast4(
                                    (&raw const (*block).codes).cast::<i8>().add(16 * (half + h) + 4 * step),
                                );
                                sum[c][w] = match format.value {
                                    Value::Integer { .. } => S::dot(sum[c][w], weights, four),
                                    _ => S::dot_signed(sum[c][w], weights, four),
                                };
                            }
                        }
                    }
                }
                for c in 0..C {
                    for w in 0..W {
                        let block = at.add(c * chunk + w);
                        let scale = S::mul(scale, S::splat((*block).scale));
                        y[c][w] = S::fma(S::float(sum[c][w]), scale, y[c][w]);
                        if format.min.is_some() {
                            let sum = if halves == 2 { (*block).scaled_sum } else { (*block).half_scaled_sums[half] };
                            y[c][w] = S::fma(min, S::splat(sum), y[c][w]);
                        }
                    }
                }
            }
            codes = codes.add(format.code_bytes);
            scales = scales.add(format.scale_bytes);
            x = x.add(per_block * W);
        }
        for c in 0..C {
            for w in 0..W {
                S::store(out.add(c * W + w).cast(), y[c][w]);
            }
        }
    }
}

/// What a group's integer sum starts with: the codes' zero point, taken off for the whole group.
#[inline(always)]
unsafe fn start<S: Simd, const F: usize>(neg_sum: i32) -> S::I {
    // SAFETY: the caller's.
    unsafe {
        match const { Packed::<F>::FORMAT.value } {
            Value::Integer { zero: 0 } => S::splat_i32(0),
            // All zero points are powers of two.
            Value::Integer { zero } => S::shl_i32(S::splat_i32(neg_sum), zero.trailing_zeros()),
            _ => S::signed_start(S::splat_i32(neg_sum)),
        }
    }
}

/// The blocks' own scales and mins.
#[inline(always)]
unsafe fn base<S: Simd, const F: usize>(scales: *const u8) -> (S::F, S::F) {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: the caller's.
    unsafe {
        let scale = match format.base {
            Base::F16(_) => S::load_f16(scales.cast()),
            Base::E8M0(_) => {
                // 2^(e − 127) from its bits, where e = 0 is a subnormal; halved, for the table holds doubled values.
                let bits = S::max_i32(S::shl_i32(S::load_u8(scales), 23), S::splat_i32(0x0040_0000));
                S::mul(S::from_bits(bits), S::splat(0.5))
            }
        };
        let min = match format.min {
            Some((at, sign)) => S::mul(S::load_f16(scales.add(at).cast()), S::splat(sign)),
            None => S::splat(0.0),
        };
        (scale, min)
    }
}

/// Scale and min of group `g` of the blocks.
#[inline(always)]
unsafe fn group<S: Simd, const F: usize>((scale, min): (S::F, S::F), scales: *const u8, g: usize) -> (S::F, S::F) {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: the caller's.
    unsafe {
        let groups = scales.add(format.groups_at);
        match format.scales {
            GroupScales::None => (scale, min),
            GroupScales::Nibbles(_) => {
                let both = S::load_u8(groups.add(g * LANES));
                let (low, high) = (S::and_i32(both, S::splat_i32(15)), S::shr_i32(both, 4));
                (S::mul(scale, S::float(low)), S::mul(min, S::float(high)))
            }
            _ if format.min.is_some() => {
                let groups = groups.add(2 * g * LANES).cast();
                let low = S::float(S::load_i8(groups));
                let high = S::float(S::load_i8(groups.add(LANES)));
                (S::mul(scale, low), S::mul(min, high))
            }
            _ => (S::mul(scale, S::float(S::load_i8(groups.add(g * LANES).cast()))), min),
        }
    }
}

/// The codes of elements `i` to `i + 3` of the blocks: what `dot` or `dot_signed` takes.
#[inline(always)]
unsafe fn operand<S: Simd, const F: usize>(codes: *const u8, i: usize, table: S::B) -> S::B {
    let format = const { Packed::<F>::FORMAT };
    // The plane's bits of a code, `below` bits up.
    let bits = |plane: Plane, below: u32| {
        let byte = plane.offset + i / plane.span * plane.run + i % plane.run;
        let shift = plane.width * ((i % plane.span) / plane.run) as u32;
        // SAFETY: the caller's; four bytes of a row are a vector.
        unsafe {
            let bytes = S::load_bytes(codes.add(byte * LANES));
            if plane.width == 8 {
                return bytes;
            }
            let mask = ((1u32 << plane.width) - 1) << below;
            S::and(S::shift_bits(bytes, below as i32 - shift as i32), S::splat_u8(mask as u8))
        }
    };
    // SAFETY: the caller's.
    unsafe {
        let code = match format.planes {
            [Some(low), Some(high)] => S::or(bits(low, 0), bits(high, low.width)),
            [Some(low), None] => bits(low, 0),
            [None, _] => S::splat_u8(0),
        };
        match format.value {
            Value::Integer { .. } => code,
            Value::Signed8 => S::signed_operand(code),
            Value::Table(_) => S::signed_operand(S::lookup(table, code)),
        }
    }
}

#[inline(always)]
unsafe fn float_kernel<S: Simd, const F: usize, const T: usize>(
    panel: *const u8,
    k: usize,
    x: *const f32,
    stride: usize,
    out: *mut Lanes,
) {
    const CHAINS: usize = 4;
    // SAFETY: the caller's.
    unsafe {
        let mut y = [[S::splat(0.0); CHAINS]; T];
        let weights = |k: usize| match FORMATS[F].format {
            Format::F32 => S::load(panel.cast::<f32>().add(k * LANES)),
            Format::F16 => S::load_f16(panel.cast::<u16>().add(k * LANES)),
            _ => S::load_bf16(panel.cast::<u16>().add(k * LANES)),
        };
        let whole = k - k % CHAINS;
        let mut at = 0;
        while at < whole {
            for chain in 0..CHAINS {
                let weights = weights(at + chain);
                for t in 0..T {
                    let x = S::splat(*x.add(t * stride + at + chain));
                    y[t][chain] = S::fma(x, weights, y[t][chain]);
                }
            }
            at += CHAINS;
        }
        for chain in 0..k - whole {
            let weights = weights(whole + chain);
            for t in 0..T {
                y[t][chain] = S::fma(S::splat(*x.add(t * stride + whole + chain)), weights, y[t][chain]);
            }
        }
        for t in 0..T {
            let sum = S::add(S::add(y[t][0], y[t][1]), S::add(y[t][2], y[t][3]));
            S::store(out.add(t).cast(), sum);
        }
    }
}
