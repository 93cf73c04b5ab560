//! The inner kernels: a panel of 16 weight rows times a few rows of activations.
//!
//! For any number of rows and any instruction set, a result is computed by the same sequence of operations. With `w`
//! and `m` scale and min of a group of weights, `d` the scale of the activations there, and `q`, `c` the codes:
//!
//! ```text
//! for each group in order of k:
//!     i = Σ q·c                       exact, in integers
//!     y = fma(i, w · d, y)            w is exact in f32: an f16 times a small integer
//!     y = fma(m, d · Σ c, y)          formats with mins only
//! ```
//!
//! and for weights that are floats, one sum of products in order of k.
//!
//! A few rows are multiplied by a panel as it is. For more rows, a panel is first *expanded*: its codes unpacked to
//! bytes, its scales multiplied out to `w` and `m`, once for many tiles of rows. So the innermost loop consists of
//! loads and products only. Where products of bytes are first summed in 16 bits, the number that fits depends on the
//! format.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

mod codes;
mod floats;

use std::hint::black_box;
use std::ops::Range;

use basert_core::{Format, Value};

use codes::{Packed, base, expanded, group, operand, start, table};
use floats::{expand_floats_kernel, float_kernel};

use crate::Isa;
use crate::isa::dispatch;
use crate::panel::PanelFormat;
use crate::quantised::{BLOCK, Block};
use crate::simd::{LANES, Simd};

/// Results of one row of activations.
pub(crate) type Lanes = [f32; LANES];

/// The most rows that are multiplied by panels of `format` without expanding them: for so few, expanding costs more
/// than it saves.
pub(crate) fn unexpanded_rows(isa: Isa, format: Format) -> usize {
    match (isa, format.block().elements) {
        (_, 1) => 12,
        (Isa::Avx512, 32) => 24,
        (Isa::Avx512, _) => 12,
        (Isa::Avx2, _) => 5,
        _ => 8,
    }
}

/// A panel after expansion, all of it vectors of 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expanded {
    /// Of floats: f32.
    Floats,
    /// Of a quantised format: for each group of weights its codes, paired if the instruction set has that, then its
    /// scales, then its mins, if the format has them.
    Quantised {
        /// Values of a row in a group: 16 or 32.
        group: usize,
        /// Whether groups have mins. With mins codes are unsigned unless they are paired, without them signed.
        min: bool,
    },
}

impl Expanded {
    /// The expansion of a quantised format.
    pub const fn of(format: &PanelFormat) -> Expanded {
        Expanded::Quantised { group: format.group, min: format.min.is_some() }
    }

    /// Bytes of a panel of `k` columns.
    pub const fn bytes(self, k: usize) -> usize {
        match self {
            Expanded::Floats => k * 64,
            Expanded::Quantised { group, min } => k / group * 64 * (group / 4 + 1 + min as usize),
        }
    }

    /// How many of `k` columns are expanded at a time: two panels of that width stay in L1.
    pub fn chunk(self, k: usize) -> usize {
        let most = match self {
            Expanded::Floats => 192,
            Expanded::Quantised { .. } => 512,
        };
        // A short rest is not split off.
        if k <= most + most / 4 { k } else { most }
    }
}

dispatch! {
    /// Multiplies `panels` panels of format `F`, which lie `panel_len` bytes apart, by a tile at `x`; result of row i and panel p at `out + p · rows + i`.
    ///
    /// # Safety
    /// Panels have `blocks` blocks, the rows as many columns, `out` room for all results.
    pub(crate) unsafe fn quantised_panels[const F: usize](
        panel: *const u8, panel_len: usize, panels: usize, blocks: usize, x: *const Block, rows: usize, out: *mut Lanes
    ) = quantised_kernel::<F>;

    /// Expands some blocks of a panel of format `F`.
    ///
    /// # Safety
    /// `panel` has `blocks` blocks, `out` room for `some` of them and begins at a multiple of 64.
    pub(crate) unsafe fn expand[const F: usize](
        panel: *const u8, blocks: usize, some: Range<usize>, out: *mut u8
    ) = expand_kernel::<F>;

    /// The format whose [`expanded_tile`] also multiplies expanded panels of format `F`.
    ///
    /// # Safety
    /// The machine has the instruction set.
    pub(crate) unsafe fn stand_in[const F: usize]() -> Format = stand_in_kernel::<F>;

    /// Multiplies `P` expanded panels of format `F`, which stands in for itself, `panel_len` bytes apart, by a tile;
    /// the result of row i and panel p is at `out + p · rows + i`, and continues the sum stored there if `begun`.
    ///
    /// # Safety
    /// The panels and rows have `k` columns, `out` room for all results.
    pub(crate) unsafe fn expanded_tile[const F: usize, const P: usize](
        panel: *const u8, panel_len: usize, k: usize, x: *const Block, rows: usize, out: *mut Lanes, begun: bool,
        ahead: Ahead
    ) = expanded_kernel::<F, P>;

    /// Multiplies `P` panels of float format `F`, `k` wide and `panel_len` bytes apart, by a tile; result of row i and
    /// panel p at `out + p · rows + i`. If panels are `EXPANDED` and sums `begun`, the sums stored there are continued.
    ///
    /// # Safety
    /// The panels and rows have `k` columns, `out` room for all results.
    pub(crate) unsafe fn float_tile[const F: usize, const P: usize, const EXPANDED: bool](
        panel: *const u8, panel_len: usize, k: usize, x: *const f32, rows: usize, out: *mut Lanes, begun: bool,
        ahead: Ahead
    ) = float_kernel::<F, P, EXPANDED>;

    /// Expands some columns of a panel of float format `F`.
    ///
    /// # Safety
    /// `panel` has these columns, and `out` room for 16 values of each.
    pub(crate) unsafe fn expand_floats[const F: usize](
        panel: *const u8, columns: Range<usize>, out: *mut f32
    ) = expand_floats_kernel::<F>;
}

/// The memory after the panels that a kernel works on, to be prefetched evenly meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    pub start: *const u8,
    /// Cache lines for each 32 columns.
    pub lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { start: std::ptr::null(), lines: 0 };
}

/// Calls a kernel for all rows of a tile, a constant number at once: `$most`, or the rest.
macro_rules! tiles {
    ($most:expr, $rows:expr, |$at:ident, $width:ident| $call:expr) => {{
        let mut $at = 0;
        while $at < $rows {
            $at += match $rows - $at {
                6.. if $most >= 6 => tiles!(@ 6, $width, $call),
                4.. if $most >= 4 => tiles!(@ 4, $width, $call),
                4 | 2 => tiles!(@ 2, $width, $call),
                3.. => tiles!(@ 3, $width, $call),
                _ => tiles!(@ 1, $width, $call),
            };
        }
    }};
    (@ $n:literal, $width:ident, $call:expr) => {{
        const $width: usize = $n;
        $call;
        $n
    }};
}
use tiles;

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn quantised_kernel<S: Simd, const F: usize>(
    panel: *const u8,
    panel_len: usize,
    panels: usize,
    blocks: usize,
    x: *const Block,
    rows: usize,
    out: *mut Lanes,
) {
    let most = match const { Packed::<F>::sums_are_narrow::<S>() } {
        _ if S::WIDE => 6,
        true => 4,
        false => 3,
    };
    for p in 0..panels {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (panel, out) = (panel.add(p * panel_len), out.add(p * rows));
            tiles!(most, rows, |at, T| {
                quantised_rows::<S, F, T>(panel, blocks, x.add(at), rows, out.add(at));
            });
        }
    }
}

/// Prefetch distances within a panel, in bytes: into L2, and from there into L1.
const AHEAD: usize = 8192;
const SOON: usize = 1024;

/// Some rows of a tile of `width` rows; `x` is the first of them.
#[inline(always)]
unsafe fn quantised_rows<S: Simd, const F: usize, const T: usize>(
    panel: *const u8,
    blocks: usize,
    x: *const Block,
    width: usize,
    out: *mut Lanes,
) {
    let format = const { Packed::<F>::FORMAT };
    let per_block = const { Packed::<F>::FORMAT.elements / BLOCK };
    let groups = const { Packed::<F>::FORMAT.elements / Packed::<F>::FORMAT.group };
    let halves = const { Packed::<F>::FORMAT.group / 16 };
    let together = const { Packed::<F>::together::<S>() };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let table = table::<S, F>();
        let mut ahead = panel.wrapping_add(AHEAD);
        let mut until = ahead;
        let mut x = x;
        let mut y = [S::splat(0.0); T];
        for b in 0..blocks {
            let (codes, scales) = format.offsets(b, blocks);
            let (codes, scales) = (panel.add(codes), panel.add(scales));
            let base = base::<S, F>(scales);
            for g in 0..groups {
                // A few lines at a time: many prefetches at once would fill the core's queue and delay loads.
                until = until.wrapping_add(const { Packed::<F>::FORMAT.bytes() } / groups);
                while ahead < until {
                    S::prefetch_far(ahead);
                    S::prefetch(ahead.wrapping_sub(AHEAD - SOON));
                    ahead = ahead.wrapping_add(64);
                }
                let (scale, min) = group::<S, F>(base, scales, g);
                // The activations of this group: a block, or half of one.
                let at = x.add(g * format.group / BLOCK * width);
                let half = g * format.group / 16 % 2;

                let mut sum = [S::splat_i32(0); T];
                for t in 0..T {
                    let block = at.add(t);
                    sum[t] = start::<S, F>(if halves == 2 { (*block).start } else { (*block).half_starts[half] });
                }
                let mut products = [S::begin(sum[0]); T];
                for step in 0..4 * halves {
                    let weights = operand::<S, F>(codes, g * format.group + 4 * step, table);
                    for t in 0..T {
                        if step.is_multiple_of(together) {
                            products[t] = S::begin(sum[t]);
                        }
                        let four = S::broadcast4(activations(at.add(t), 16 * half + 4 * step));
                        products[t] = match format.value {
                            Value::Integer { .. } => S::dot(products[t], weights, four),
                            _ => S::dot_signed(products[t], weights, four),
                        };
                        if (step + 1).is_multiple_of(together.min(4 * halves)) {
                            sum[t] = S::end(sum[t], products[t]);
                        }
                    }
                }
                for t in 0..T {
                    let block = at.add(t);
                    let scale = S::mul(scale, S::splat((*block).scale));
                    y[t] = S::fma(S::float(sum[t]), scale, y[t]);
                    if format.min.is_some() {
                        let sum = if halves == 2 { (*block).scaled_sum } else { (*block).half_scaled_sums[half] };
                        y[t] = S::fma(min, S::splat(sum), y[t]);
                    }
                }
            }
            x = x.add(per_block * width);
        }
        for t in 0..T {
            S::store(out.add(t).cast(), y[t]);
        }
    }
}

/// The codes of a block of activations from `i` on.
#[inline(always)]
unsafe fn activations(block: *const Block, i: usize) -> *const i8 {
    // SAFETY: guaranteed by the caller.
    unsafe { (&raw const (*block).codes).cast::<i8>().add(i) }
}

#[inline(always)]
unsafe fn expand_kernel<S: Simd, const F: usize>(panel: *const u8, blocks: usize, some: Range<usize>, out: *mut u8) {
    let format = const { Packed::<F>::FORMAT };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let table = table::<S, F>();
        let mut out = out;
        for b in some {
            let (codes, scales) = format.offsets(b, blocks);
            let (codes, scales) = (panel.add(codes), panel.add(scales));
            let base = base::<S, F>(scales);
            for g in 0..const { Packed::<F>::FORMAT.elements / Packed::<F>::FORMAT.group } {
                let (scale, min) = group::<S, F>(base, scales, g);
                for eight in 0..format.group / 8 {
                    let at = g * format.group + 8 * eight;
                    let mut weights = [expanded::<S, F>(codes, at, table), expanded::<S, F>(codes, at + 4, table)];
                    if S::PAIRS {
                        weights = S::pair_columns(weights);
                    }
                    S::store_bytes(out, weights[0]);
                    S::store_bytes(out.add(64), weights[1]);
                    out = out.add(128);
                }
                S::store(out.cast(), scale);
                out = out.add(64);
                if format.min.is_some() {
                    S::store(out.cast(), min);
                    out = out.add(64);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn stand_in_kernel<S: Simd, const F: usize>() -> Format {
    const { Packed::<F>::stand_in::<S>() }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn expanded_kernel<S: Simd, const F: usize, const P: usize>(
    panel: *const u8,
    panel_len: usize,
    k: usize,
    x: *const Block,
    rows: usize,
    out: *mut Lanes,
    begun: bool,
    ahead: Ahead,
) {
    if const { Packed::<F>::stand_in::<S>() as usize != F } {
        unreachable!("another format stands in for this one");
    }
    let panels = std::array::from_fn(|p| panel.wrapping_add(p * panel_len));
    // SAFETY: guaranteed by the caller.
    unsafe {
        if S::WIDE {
            tiles!(6, rows, |at, T| {
                expanded_rows::<S, F, P, T>(panels, k, x.add(at), rows, out, at, begun, ahead);
            });
            return;
        }
        let most = match const { Packed::<F>::at_once::<S>() } {
            _ if S::PAIRS => 4,
            3.. if S::NARROW => 6,
            _ => 3,
        };
        for p in 0..P {
            let (panel, out) = ([panels[p]], out.add(p * rows));
            tiles!(most, rows, |at, T| {
                expanded_rows::<S, F, 1, T>(panel, k, x.add(at), rows, out, at, begun, ahead);
            });
        }
    }
}

/// Some rows, from row `at` on, of a tile of `width` rows; `x` is the first of them.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn expanded_rows<S: Simd, const F: usize, const P: usize, const T: usize>(
    panels: [*const u8; P],
    k: usize,
    x: *const Block,
    width: usize,
    out: *mut Lanes,
    at: usize,
    begun: bool,
    ahead: Ahead,
) {
    let (halves, min) = const { (Packed::<F>::FORMAT.group / 16, Packed::<F>::FORMAT.min.is_some()) };
    let record = const { Expanded::of(&Packed::<F>::FORMAT).bytes(Packed::<F>::FORMAT.group) };
    let unsigned = const { Packed::<F>::expands_unsigned::<S>() };
    // The trip count of the longer loop is opaque to the compiler, which would unroll it and run out of registers.
    let loops = match const { Packed::<F>::at_once::<S>() } {
        once if !S::NARROW => (1, once),
        once @ ..=2 => (black_box(4 * halves / once), once),
        once => (4 * halves / once, black_box(once)),
    };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut panels = panels;
        let mut x = x;
        let mut y = [[S::splat(0.0); P]; T];
        if begun {
            for t in 0..T {
                for p in 0..P {
                    y[t][p] = S::load(out.add(p * width + at + t).cast());
                }
            }
        }
        let mut ahead_line = ahead.start;
        for _ in 0..k / BLOCK {
            for _ in 0..ahead.lines {
                S::prefetch(ahead_line);
                ahead_line = ahead_line.wrapping_add(64);
            }
            for half in 0..2 / halves {
                let mut sum = [[S::splat_i32(0); P]; T];
                for t in 0..T {
                    let block = x.add(t);
                    let from = if halves == 2 { (*block).start } else { (*block).half_starts[half] };
                    sum[t] = [if unsigned { start::<S, F>(from) } else { S::signed_start(from) }; P];
                }
                if S::PAIRS {
                    pairs::<S, P, T>(panels, x, halves, half, &mut sum);
                } else if S::NARROW {
                    narrow::<S, F, P, T>(panels, x, half, loops, &mut sum);
                } else {
                    let mut products = [[S::begin(sum[0][0]); P]; T];
                    for t in 0..T {
                        for p in 0..P {
                            products[t][p] = S::begin(sum[t][p]);
                        }
                    }
                    for step in 0..4 * halves {
                        let mut weights = [S::splat_u8(0); P];
                        for p in 0..P {
                            weights[p] = S::load_bytes(panels[p].add(64 * step));
                        }
                        for t in 0..T {
                            let four = S::broadcast4(activations(x.add(t), 16 * half + 4 * step));
                            for p in 0..P {
                                products[t][p] = match unsigned {
                                    true => S::dot(products[t][p], weights[p], four),
                                    false => S::dot_signed(products[t][p], weights[p], four),
                                };
                            }
                        }
                    }
                    for t in 0..T {
                        for p in 0..P {
                            sum[t][p] = S::end(sum[t][p], products[t][p]);
                        }
                    }
                }
                for p in 0..P {
                    let scale = S::load(panels[p].add(256 * halves).cast());
                    for t in 0..T {
                        let scale = S::mul(scale, S::splat((*x.add(t)).scale));
                        y[t][p] = S::fma(S::float(sum[t][p]), scale, y[t][p]);
                    }
                }
                for p in 0..P {
                    if min {
                        let min = S::load(panels[p].add(256 * halves + 64).cast());
                        for t in 0..T {
                            let block = x.add(t);
                            let sum = if halves == 2 { (*block).scaled_sum } else { (*block).half_scaled_sums[half] };
                            y[t][p] = S::fma(min, S::splat(sum), y[t][p]);
                        }
                    }
                    panels[p] = panels[p].add(record);
                }
            }
            x = x.add(width);
        }
        for t in 0..T {
            for p in 0..P {
                S::store(out.add(p * width + at + t).cast(), y[t][p]);
            }
        }
    }
}

/// Adds a group's products to the sums, `once` columns of four at a time, `times` times: see [`Packed::at_once`].
#[inline(always)]
unsafe fn narrow<S: Simd, const F: usize, const P: usize, const T: usize>(
    panels: [*const u8; P],
    x: *const Block,
    half: usize,
    (times, once): (usize, usize),
    sum: &mut [[S::I; P]; T],
) {
    let unsigned = const { Packed::<F>::expands_unsigned::<S>() };
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut step = 0;
        for _ in 0..times {
            let mut products = [[S::begin(sum[0][0]); P]; T];
            for _ in 0..once {
                for p in 0..P {
                    let weights = S::load_bytes(panels[p].add(64 * step));
                    for t in 0..T {
                        let four = S::broadcast4(activations(x.add(t), 16 * half + 4 * step));
                        products[t][p] = match unsigned {
                            true => S::dot(products[t][p], weights, four),
                            false => S::dot_signed(products[t][p], weights, four),
                        };
                    }
                }
                step += 1;
            }
            for t in 0..T {
                for p in 0..P {
                    sum[t][p] = S::end(sum[t][p], products[t][p]);
                }
            }
        }
    }
}

/// Adds a group's products to the sums, two rows at a time; the last of an odd number is paired with itself.
#[inline(always)]
unsafe fn pairs<S: Simd, const P: usize, const T: usize>(
    panels: [*const u8; P],
    x: *const Block,
    halves: usize,
    half: usize,
    sum: &mut [[S::I; P]; T],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut pairs = [[[S::splat_i32(0); 2]; P]; T];
        for eight in 0..2 * halves {
            let mut weights = [[S::splat_u8(0); 2]; P];
            for p in 0..P {
                let at = panels[p].add(128 * eight);
                weights[p] = [S::load_bytes(at), S::load_bytes(at.add(64))];
            }
            for t in (0..T).step_by(2) {
                let (next, i) = ((t + 1).min(T - 1), 16 * half + 8 * eight);
                let rows = [activations(x.add(t), i), activations(x.add(next), i)];
                for p in 0..P {
                    pairs[t][p] = S::dot_pair(pairs[t][p], weights[p], rows);
                }
            }
        }
        for t in 0..T {
            for p in 0..P {
                sum[t][p] = S::add_i32(sum[t][p], S::unpair(pairs[t / 2 * 2][p])[t % 2]);
            }
        }
    }
}
