//! Matrix products: y = x·Wᵀ, for one row or many.

use std::ops::Range;

use basert_core::Format;
pub use basert_graph::Activation;

use crate::Isa;
use crate::dot::{Lanes, MAX_TILE, float_tile, quantised_tile};
use crate::isa::dispatch;
use crate::math;
use crate::panel::{Order, PackedMatrix, with_format};
use crate::quantised::{INTERLEAVE, QuantisedRows};
use crate::rows::Rows;
use crate::simd::{LANES, Simd};

/// What is multiplied: quantised activations, or floats where [`PackedMatrix::wants_quantised`] says no.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For quantised weights.
    Quantised(QuantisedRows<'a>),
    /// For weights that are floats.
    Float(Rows<'a>),
}

/// What becomes of the product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// It is the output.
    Store,
    /// It is added to the output: a residual connection.
    Add,
    /// The matrix is paired: the output is `activation(gate) · up`.
    Gated(Activation),
}

/// Weights that pass over a tile of rows stay in a part of a core's second-level cache until the next tile.
const WEIGHT_BYTES: usize = 256 << 10;

/// Computes 16 columns of the output for every one of `units`, for all rows of `x`.
///
/// A result does not depend on the number of rows, on how units are divided among workers, or on `isa`.
///
/// # Safety
/// Nobody else reads or writes those columns of `out` (16 for each unit), or writes `x`, at the same time.
///
/// # Panics
/// When shapes do not agree, the input is not of the kind that the weights want, or the epilogue does not go with the
/// order of the weights. A bias goes with [`Order::Stacked`] only.
pub unsafe fn linear(
    isa: Isa,
    weights: &PackedMatrix,
    units: Range<usize>,
    x: Input<'_>,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: Rows<'_>,
) {
    let (rows, k) = match x {
        Input::Quantised(x) => (x.rows(), x.k()),
        Input::Float(x) => (x.rows(), x.cols()),
    };
    assert_eq!((k, rows, weights.rows()), (weights.k(), out.rows(), out.cols()));
    assert_eq!(matches!(x, Input::Quantised(_)), weights.wants_quantised());
    assert_eq!(matches!(epilogue, Epilogue::Gated(_)), weights.order() == Order::Paired);
    assert!(bias.is_none_or(|bias| bias.len() == weights.rows() && weights.order() == Order::Stacked));
    assert!(units.end <= weights.units());

    let paired = usize::from(weights.order() == Order::Paired);
    let unit_bytes = (weights.bytes() / weights.units().max(1)).max(1);
    let step = (WEIGHT_BYTES / unit_bytes).max(1);
    let mut results = [[[0.0; LANES]; MAX_TILE]; 2];
    let [gate, y] = &mut results;
    for first in units.clone().step_by(step) {
        let units = first..units.end.min(first + step);
        let mut row = 0;
        while row < rows {
            let mut count = 0;
            for unit in units.clone() {
                if paired == 1 {
                    tile(isa, weights, 2 * unit, x, row..rows, gate);
                }
                count = tile(isa, weights, (1 + paired) * unit + paired, x, row..rows, y);
                let columns = unit * LANES..weights.rows().min((unit + 1) * LANES);
                let bias = bias.map(|bias| &bias[columns.clone()]);
                let (start, stride) = (out.row_ptr(row), out.stride());
                // SAFETY: the caller's: these columns are ours, and there are `count` rows from `row` on.
                unsafe {
                    let out = start.add(columns.start);
                    finish(isa, &gate[..count], &y[..count], bias, epilogue, out, stride, columns.len());
                }
            }
            row += count;
        }
    }
}

/// Multiplies a panel by as many of the rows as the best kernel takes, and returns how many these were.
fn tile(
    isa: Isa,
    weights: &PackedMatrix,
    panel: usize,
    x: Input<'_>,
    rows: Range<usize>,
    out: &mut [Lanes; MAX_TILE],
) -> usize {
    let (panel, k, out) = (weights.panel(panel), weights.k(), out.as_mut_ptr());
    match x {
        Input::Quantised(x) => {
            with_format!(weights.format(), quantised(isa, panel, k, x, rows, out), else 0)
        }
        Input::Float(x) => match weights.format() {
            Format::F32 => float::<{ Format::F32 as usize }>(isa, panel, k, x, rows, out),
            Format::F16 => float::<{ Format::F16 as usize }>(isa, panel, k, x, rows, out),
            _ => float::<{ Format::BF16 as usize }>(isa, panel, k, x, rows, out),
        },
    }
}

fn quantised<const F: usize>(
    isa: Isa,
    panel: *const u8,
    k: usize,
    x: QuantisedRows<'_>,
    rows: Range<usize>,
    out: *mut Lanes,
) -> usize {
    let blocks = k / basert_core::FORMATS[F].elements;
    let (start, width) = x.group(rows.start);
    // SAFETY: the panel and the rows are `k` wide, as `linear` checked; `out` has room for the largest tile.
    unsafe {
        match width {
            // With fewer registers, larger tiles spill.
            4 if isa == Isa::Avx512 && rows.len() >= 12 => {
                quantised_tile::<F, 3, 4>(isa, panel, blocks, start, out);
                return 12;
            }
            4 if isa == Isa::Avx512 && rows.len() >= 8 => {
                quantised_tile::<F, 2, 4>(isa, panel, blocks, start, out);
                return 8;
            }
            4 => quantised_tile::<F, 1, 4>(isa, panel, blocks, start, out),
            3 => quantised_tile::<F, 1, 3>(isa, panel, blocks, start, out),
            2 => quantised_tile::<F, 1, 2>(isa, panel, blocks, start, out),
            _ => quantised_tile::<F, 1, 1>(isa, panel, blocks, start, out),
        }
    }
    width
}

fn float<const F: usize>(
    isa: Isa,
    panel: *const u8,
    k: usize,
    x: Rows<'_>,
    rows: Range<usize>,
    out: *mut Lanes,
) -> usize {
    let start = x.row_ptr(rows.start);
    // SAFETY: the panel and the rows are `k` wide, as `linear` checked; `out` has room for the largest tile.
    unsafe {
        if rows.len() >= INTERLEAVE {
            float_tile::<F, INTERLEAVE>(isa, panel, k, start, x.stride(), out);
            INTERLEAVE
        } else {
            float_tile::<F, 1>(isa, panel, k, start, x.stride(), out);
            1
        }
    }
}

dispatch! {
    unsafe fn finish(
        gate: &[Lanes], y: &[Lanes], bias: Option<&[f32]>, epilogue: Epilogue, out: *mut f32, stride: usize, columns: usize
    ) = finish_kernel;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish_kernel<S: Simd>(
    gate: &[Lanes],
    y: &[Lanes],
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: *mut f32,
    stride: usize,
    columns: usize,
) {
    for (i, (gate, y)) in gate.iter().zip(y).enumerate() {
        // SAFETY: rows of `out` and `bias` have `columns` values.
        unsafe {
            let out = out.add(i * stride);
            let mut y = S::load(y.as_ptr());
            if let Some(bias) = bias {
                y = S::add(y, load_some::<S>(bias.as_ptr(), columns));
            }
            y = match epilogue {
                Epilogue::Store => y,
                Epilogue::Add => S::add(load_some::<S>(out, columns), y),
                Epilogue::Gated(activation) => S::mul(activate::<S>(activation, S::load(gate.as_ptr())), y),
            };
            store_some::<S>(out, columns, y);
        }
    }
}

/// The first `count` lanes to memory.
#[inline(always)]
pub(crate) unsafe fn store_some<S: Simd>(p: *mut f32, count: usize, x: S::F) {
    // SAFETY: the caller's.
    unsafe {
        if count == LANES {
            S::store(p, x);
        } else {
            std::ptr::copy_nonoverlapping(S::lanes(x).as_ptr(), p, count);
        }
    }
}

/// The first `count` lanes from memory, zeros in the others.
#[inline(always)]
pub(crate) unsafe fn load_some<S: Simd>(p: *const f32, count: usize) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        if count == LANES {
            return S::load(p);
        }
        let mut lanes = [0.0; LANES];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), count);
        S::load(lanes.as_ptr())
    }
}

#[inline(always)]
pub(crate) unsafe fn activate<S: Simd>(activation: Activation, x: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        match activation {
            Activation::Silu => math::silu::<S>(x),
            Activation::GeluTanh => math::gelu_tanh::<S>(x),
        }
    }
}
