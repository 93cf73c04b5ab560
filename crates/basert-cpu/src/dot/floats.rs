//! Panels of floats times a tile of rows.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use basert_core::{FORMATS, Format};

use super::{AHEAD, Ahead, Lanes, SOON, tiles};
use crate::quantised::BLOCK;
use crate::simd::{LANES, Simd};

/// If `EXPANDED`, these columns of the panels are in the core's cache, and `ahead` is read from memory next. Otherwise
/// the panels come from memory themselves.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn float_kernel<S: Simd, const F: usize, const P: usize, const EXPANDED: bool>(
    panel: *const u8,
    panel_len: usize,
    k: usize,
    x: *const f32,
    rows: usize,
    out: *mut Lanes,
    begun: bool,
    ahead: Ahead,
) {
    let panels = std::array::from_fn(|p| panel.wrapping_add(p * panel_len));
    // SAFETY: guaranteed by the caller.
    unsafe {
        // One panel and a row or two give too few independent sums to hide the latency of an addition.
        if S::WIDE || (!EXPANDED && rows <= 2) {
            tiles!(6, rows, |at, T| {
                float_rows::<S, F, P, T, EXPANDED>(panels, k, x.add(at * LANES), rows, out, at, begun, ahead);
            });
            return;
        }
        for p in 0..P {
            tiles!(6, rows, |at, T| {
                let out = out.add(p * rows);
                float_rows::<S, F, 1, T, EXPANDED>([panels[p]], k, x.add(at * LANES), rows, out, at, begun, ahead);
            });
        }
    }
}

/// Expands some columns of a panel.
#[inline(always)]
pub(super) unsafe fn expand_floats_kernel<S: Simd, const F: usize>(
    panel: *const u8,
    columns: Range<usize>,
    out: *mut f32,
) {
    for (i, column) in columns.enumerate() {
        // SAFETY: guaranteed by the caller.
        unsafe { S::store(out.add(i * LANES), weights::<S, F>(panel, column)) };
    }
}

/// A column of a panel.
#[inline(always)]
unsafe fn weights<S: Simd, const F: usize>(panel: *const u8, column: usize) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let at = panel.add(column * const { LANES * FORMATS[F].bytes });
        match const { FORMATS[F].format } {
            Format::F32 => S::load(at.cast()),
            Format::F16 => S::load_f16(at.cast()),
            _ => S::load_bf16(at.cast()),
        }
    }
}

/// Some rows, from row `at` on, of a tile of `width` rows; `x` is the first of them.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn float_rows<S: Simd, const F: usize, const P: usize, const T: usize, const EXPANDED: bool>(
    panels: [*const u8; P],
    k: usize,
    x: *const f32,
    width: usize,
    out: *mut Lanes,
    at: usize,
    begun: bool,
    ahead: Ahead,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut y = [[S::splat(0.0); P]; T];
        if EXPANDED && begun {
            for t in 0..T {
                for p in 0..P {
                    y[t][p] = S::load(out.add(p * width + at + t).cast());
                }
            }
        }
        let mut ahead_line = ahead.start;
        let mut x = x;
        let step = const { LANES * FORMATS[F].bytes };
        for start in (0..k).step_by(LANES) {
            if EXPANDED && start.is_multiple_of(BLOCK) {
                for _ in 0..ahead.lines {
                    S::prefetch(ahead_line);
                    ahead_line = ahead_line.wrapping_add(64);
                }
            }
            for i in start..k.min(start + LANES) {
                // A panel is followed by the panel of the next call.
                let later = |bytes: usize| {
                    let at = i * step + bytes;
                    if at < k * step { at } else { at + (P - 1) * k * step }
                };
                let mut column = [S::splat(0.0); P];
                for p in 0..P {
                    if !EXPANDED && T <= 4 && (i * step).is_multiple_of(64) {
                        S::prefetch_far(panels[p].wrapping_add(later(AHEAD)));
                        S::prefetch(panels[p].wrapping_add(later(SOON)));
                    }
                    column[p] = weights::<S, F>(panels[p], i);
                }
                for t in 0..T {
                    let x = S::splat(*x.add(t * LANES + i - start));
                    for p in 0..P {
                        y[t][p] = S::fma(x, column[p], y[t][p]);
                    }
                }
            }
            x = x.add(width * LANES);
        }
        for t in 0..T {
            for p in 0..P {
                S::store(out.add(p * width + at + t).cast(), y[t][p]);
            }
        }
    }
}
