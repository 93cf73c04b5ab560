//! Matrix products: y = x·Wᵀ, for one row or many.

use std::ops::Range;

use basert_core::{FORMATS, Format};
pub use basert_graph::Activation;

use crate::dot::{Expanded, FEW, Lanes, expand, expanded_tile, float_tile, quantised_tile};
use crate::isa::dispatch;
use crate::math;
use crate::panel::{Order, PackedMatrix, with_format};
use crate::quantised::{Block, QuantisedRows};
use crate::rows::Rows;
use crate::simd::{LANES, Simd};
use crate::tiles::{FloatRows, TILE};
use crate::{Buffer, Isa};

/// What is multiplied: quantised activations, or floats where [`PackedMatrix::wants_quantised`] says no.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For quantised weights.
    Quantised(QuantisedRows<'a>),
    /// For weights that are floats.
    Float(FloatRows<'a>),
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

/// Activations that panels pass over together stay in a part of a core's second-level cache.
const INPUT_BYTES: usize = 256 << 10;

/// Computes 16 columns of the output for every one of `units`, for all rows of `x`.
///
/// A result does not depend on the number of rows, on how units are divided among workers, or on `isa`.
///
/// # Safety
/// Nobody else reads or writes those columns of `out` (16 for each unit), or writes `x`, at the same time.
///
/// # Panics
/// When shapes do not agree, the input is not of the kind that the weights want, the epilogue does not go with the
/// order of the weights, or `scratch` is shorter than [`scratch_bytes`](PackedMatrix::scratch_bytes). A bias goes with
/// [`Order::Stacked`] only.
#[allow(clippy::too_many_arguments)]
pub unsafe fn linear(
    isa: Isa,
    weights: &PackedMatrix,
    units: Range<usize>,
    x: Input<'_>,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: Rows<'_>,
    scratch: &mut Buffer,
) {
    let (rows, k) = match x {
        Input::Quantised(x) => (x.rows(), x.k()),
        Input::Float(x) => (x.rows(), x.k()),
    };
    assert_eq!((k, rows, weights.rows()), (weights.k(), out.rows(), out.cols()));
    assert_eq!(matches!(x, Input::Quantised(_)), weights.wants_quantised());
    assert_eq!(matches!(epilogue, Epilogue::Gated(_)), weights.order() == Order::Paired);
    assert!(bias.is_none_or(|bias| bias.len() == weights.rows() && weights.order() == Order::Stacked));
    assert!(units.end <= weights.units() && scratch.len() >= weights.scratch_bytes());

    // Two panels pass over a tile together: gate and up, or those of two units.
    let paired = weights.order() == Order::Paired;
    let mut results = [[[0.0; LANES]; TILE]; 2];
    let row_bytes = k * if weights.wants_quantised() { 2 } else { size_of::<f32>() };
    let blocks = rows.div_ceil((INPUT_BYTES / row_bytes).max(2 * TILE));
    let block = rows.div_ceil(blocks.max(1)).next_multiple_of(TILE);
    for first in (0..rows).step_by(block) {
        let rows = first..rows.min(first + block);
        for unit in units.clone().step_by(if paired { 1 } else { 2 }) {
            let panels = if paired { 2 * unit..2 * unit + 2 } else { unit..units.end.min(unit + 2) };
            let product = Product::new(isa, weights, panels.clone(), x, rows.len() > FEW, scratch);
            let mut row = rows.start;
            while row < rows.end {
                let count = product.tile(row, &mut results);
                let [gate, y] = &results;
                let finish = |unit: usize, y: &[Lanes]| {
                    let columns = unit * LANES..weights.rows().min((unit + 1) * LANES);
                    let bias = bias.map(|bias| &bias[columns.clone()]);
                    // SAFETY: the caller's: these columns are ours, and there are `count` rows from `row` on.
                    unsafe {
                        let out_row = out.row_ptr(row).add(columns.start);
                        finish(isa, &gate[..count], &y[..count], bias, epilogue, out_row, out.stride(), columns.len());
                    }
                };
                if paired {
                    finish(unit, y);
                } else {
                    panels.clone().zip([gate, y]).for_each(|(unit, y)| finish(unit, y));
                }
                row += count;
            }
        }
    }
}

/// One or two panels, ready to be multiplied by tiles of rows.
struct Product<'a> {
    isa: Isa,
    weights: &'a PackedMatrix,
    panels: [*const u8; 2],
    count: usize,
    x: Input<'a>,
    /// The panels, expanded, and how.
    expanded: Option<([*const u8; 2], Expanded)>,
}

impl<'a> Product<'a> {
    /// Expands the panels if there are `many` rows.
    fn new(
        isa: Isa,
        weights: &'a PackedMatrix,
        panels: Range<usize>,
        x: Input<'a>,
        many: bool,
        scratch: &'a mut Buffer,
    ) -> Product<'a> {
        let count = panels.len();
        let panels = [weights.panel(panels.start), weights.panel(panels.end - 1)];
        let mut product = Product { isa, weights, panels, count, x, expanded: None };
        if let Some(expanded) = weights.expanded().filter(|_| many) {
            let bytes = expanded.bytes(weights.k());
            // SAFETY: scratch has room for two.
            let out = [scratch.as_mut_ptr(), unsafe { scratch.as_mut_ptr().add(bytes) }];
            for (panel, out) in panels.into_iter().zip(out).take(count) {
                with_format!(weights.format(), expand_panel(isa, panel, weights.k(), out), else ());
            }
            product.expanded = Some((out.map(<*mut u8>::cast_const), expanded));
        }
        product
    }

    /// Multiplies the panels by the tile that begins with `row`, and returns how many rows that has.
    fn tile(&self, row: usize, out: &mut [[Lanes; TILE]; 2]) -> usize {
        let k = self.weights.k();
        let [a, b] = out;
        let out = [a.as_mut_ptr(), b.as_mut_ptr()];
        match self.x {
            Input::Quantised(x) => {
                let (x, rows) = x.tile(row);
                match (self.expanded, self.count) {
                    (Some(expanded), 1) => self.expanded::<1>(expanded, x, rows, [out[0]]),
                    (Some(expanded), _) => self.expanded::<2>(expanded, x, rows, out),
                    (None, count) => {
                        for (panel, out) in self.panels.into_iter().zip(out).take(count) {
                            with_format!(self.weights.format(), quantised(self.isa, panel, k, x, rows, out), else ());
                        }
                    }
                }
                rows
            }
            Input::Float(x) => {
                let (x, rows) = x.tile(row);
                match (self.weights.format(), self.count) {
                    (Format::F32, 1) => self.float::<{ Format::F32 as usize }, 1>(x, rows, [out[0]]),
                    (Format::F32, _) => self.float::<{ Format::F32 as usize }, 2>(x, rows, out),
                    (Format::F16, 1) => self.float::<{ Format::F16 as usize }, 1>(x, rows, [out[0]]),
                    (Format::F16, _) => self.float::<{ Format::F16 as usize }, 2>(x, rows, out),
                    (_, 1) => self.float::<{ Format::BF16 as usize }, 1>(x, rows, [out[0]]),
                    _ => self.float::<{ Format::BF16 as usize }, 2>(x, rows, out),
                }
                rows
            }
        }
    }

    fn expanded<const P: usize>(
        &self,
        (panels, kind): ([*const u8; 2], Expanded),
        x: *const Block,
        rows: usize,
        out: [*mut Lanes; P],
    ) {
        let (isa, k) = (self.isa, self.weights.k());
        let panels = std::array::from_fn(|p| panels[p]);
        // SAFETY: panels and rows are `k` wide, as `linear` checked, and the panels were expanded in this way; `out` has
        // room for the largest tile.
        unsafe {
            match (kind.group, kind.min) {
                (32, false) => expanded_tile::<2, false, P>(isa, panels, k, x, rows, out),
                (32, true) => expanded_tile::<2, true, P>(isa, panels, k, x, rows, out),
                (_, false) => expanded_tile::<1, false, P>(isa, panels, k, x, rows, out),
                (_, true) => expanded_tile::<1, true, P>(isa, panels, k, x, rows, out),
            }
        }
    }

    fn float<const F: usize, const P: usize>(&self, x: *const f32, rows: usize, out: [*mut Lanes; P]) {
        let panels = std::array::from_fn(|p| self.panels[p]);
        // SAFETY: panels and rows are `k` wide, as `linear` checked; `out` has room for the largest tile.
        unsafe { float_tile::<F, P>(self.isa, panels, self.weights.k(), x, rows, out) }
    }
}

fn expand_panel<const F: usize>(isa: Isa, panel: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the panel is `k` wide, and `out` one of the buffers of `Product::new`.
    unsafe { expand::<F>(isa, panel, k / FORMATS[F].elements, out) }
}

fn quantised<const F: usize>(isa: Isa, panel: *const u8, k: usize, x: *const Block, rows: usize, out: *mut Lanes) {
    // SAFETY: panel and rows are `k` wide, as `linear` checked; `out` has room for the largest tile.
    unsafe { quantised_tile::<F>(isa, panel, k / FORMATS[F].elements, x, rows, out) }
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
