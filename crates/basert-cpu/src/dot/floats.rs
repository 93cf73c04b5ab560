//! Panels of floats times a tile of rows.

// Row and vector numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use basert_core::{FORMATS, Format};

use super::{AHEAD, Lanes, SOON, tiles};
use crate::simd::{LANES, Simd};

#[inline(always)]
pub(super) unsafe fn float_kernel<S: Simd, const F: usize, const P: usize>(
    panels: [*const u8; P],
    k: usize,
    x: *const f32,
    rows: usize,
    out: *mut Lanes,
) {
    // SAFETY: the caller's.
    unsafe {
        if S::WIDE {
            tiles!(6, rows, |at, T| {
                float_rows::<S, F, P, T>(panels, k, x.add(at), rows, out, at);
            });
            return;
        }
        for p in 0..P {
            tiles!(6, rows, |at, T| {
                float_rows::<S, F, 1, T>([panels[p]], k, x.add(at), rows, out.add(p * rows), at);
            });
        }
    }
}

/// Some rows, from row `at` on, of a tile of `width` rows; `x` is the first of them.
#[inline(always)]
unsafe fn float_rows<S: Simd, const F: usize, const P: usize, const T: usize>(
    panels: [*const u8; P],
    k: usize,
    x: *const f32,
    width: usize,
    out: *mut Lanes,
    at: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut y = [[S::splat(0.0); P]; T];
        let mut x = x;
        let step = const { LANES * FORMATS[F].bytes };
        for i in 0..k {
            // Past its end, a panel is followed by that of the next call.
            let ahead = |bytes: usize| {
                let at = i * step + bytes;
                if at < k * step { at } else { at + (P - 1) * k * step }
            };
            let mut weights = [S::splat(0.0); P];
            for p in 0..P {
                if T <= 4 && (i * step).is_multiple_of(64) {
                    S::prefetch_far(panels[p].wrapping_add(ahead(AHEAD)));
                    S::prefetch(panels[p].wrapping_add(ahead(SOON)));
                }
                weights[p] = match FORMATS[F].format {
                    Format::F32 => S::load(panels[p].add(i * step).cast()),
                    Format::F16 => S::load_f16(panels[p].add(i * step).cast()),
                    _ => S::load_bf16(panels[p].add(i * step).cast()),
                };
            }
            for t in 0..T {
                let x = S::splat(*x.add(t));
                for p in 0..P {
                    y[t][p] = S::fma(x, weights[p], y[t][p]);
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
