//! Matrix products: y = x·Wᵀ, for one row or many.

use std::mem::MaybeUninit;
use std::ops::Range;

use basert_core::{FORMATS, Format};
pub use basert_graph::Activation;

use crate::dot::{Ahead, FEW, Lanes, expand, expanded_tile, float_tile, quantised_panels};
use crate::isa::dispatch;
use crate::math;
use crate::panel::{Order, PackedMatrix, with_format};
use crate::quantised::{BLOCK, Block, QuantisedRows};
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

/// Rows times panels that are computed before they are brought to the output, at most.
const RESULTS: usize = 64;
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

    let paired = weights.order() == Order::Paired;
    let width = 1 + usize::from(paired);
    let mut results = [MaybeUninit::uninit(); RESULTS];
    // A few rows are multiplied by several panels in a call; many rows by two panels, which are expanded for that.
    let step = if rows <= FEW { RESULTS / FEW / width } else { 2 / width };
    let row_bytes = k * if weights.wants_quantised() { 2 } else { size_of::<f32>() };
    let blocks = rows.div_ceil((INPUT_BYTES / row_bytes).max(2 * TILE));
    let block = rows.div_ceil(blocks.max(1)).next_multiple_of(TILE);
    for first in (0..rows).step_by(block) {
        let rows = first..rows.min(first + block);
        for unit in units.clone().step_by(step) {
            let units = unit..units.end.min(unit + step);
            let columns = units.start * LANES..weights.rows().min(units.end * LANES);
            let bias = bias.map(|bias| &bias[columns.clone()]);
            let panels = width * units.start..width * units.end;
            let product = Product::new(isa, weights, panels, x, rows.len() > FEW, scratch);
            let mut row = rows.start;
            while row < rows.end {
                let count = product.tile(row, row == rows.start, &mut results);
                // SAFETY: the caller's: these columns are ours, and there are `count` rows from `row` on.
                unsafe {
                    let out_row = out.row_ptr(row).add(columns.start);
                    finish(isa, &results, count, bias, epilogue, out_row, out.stride(), columns.len());
                }
                row += count;
            }
        }
    }
}

/// Some panels, ready to be multiplied by tiles of rows.
struct Product<'a> {
    isa: Isa,
    weights: &'a PackedMatrix,
    panels: Range<usize>,
    x: Input<'a>,
    /// The panels, expanded.
    expanded: Option<[*const u8; 2]>,
}

impl<'a> Product<'a> {
    /// Expands the panels, at most two, if there are `many` rows.
    fn new(
        isa: Isa,
        weights: &'a PackedMatrix,
        panels: Range<usize>,
        x: Input<'a>,
        many: bool,
        scratch: &mut Buffer,
    ) -> Product<'a> {
        let mut product = Product { isa, weights, panels, x, expanded: None };
        if let Some(kind) = weights.expanded().filter(|_| many) {
            let first = scratch.as_mut_ptr();
            // SAFETY: scratch has room for two.
            let out = [first, unsafe { first.add(kind.bytes(weights.k())) }];
            for (panel, out) in product.panels.clone().zip(out) {
                with_format!(weights.format(), expand_panel(isa, weights.panel(panel), weights.k(), out), else ());
            }
            product.expanded = Some(out.map(<*mut u8>::cast_const));
        }
        product
    }

    /// Multiplies the panels by the tile that begins with `row`, which is the `first` of several or not, and returns how
    /// many rows that has. Results are those of the first panel, then those of the next one.
    fn tile(&self, row: usize, first: bool, out: &mut [MaybeUninit<Lanes>; RESULTS]) -> usize {
        let out = out.as_mut_ptr().cast();
        match self.x {
            Input::Quantised(x) => {
                let (x, rows) = x.tile(row);
                match self.expanded {
                    Some(panels) if self.panels.len() == 1 => self.expanded::<1>([panels[0]], x, rows, out, first),
                    Some(panels) => self.expanded::<2>(panels, x, rows, out, first),
                    None => with_format!(self.weights.format(), quantised(self, x, rows, out), else ()),
                }
                rows
            }
            Input::Float(x) => {
                let (x, rows) = x.tile(row);
                match self.weights.format() {
                    Format::F32 => self.float::<{ Format::F32 as usize }>(x, rows, out),
                    Format::F16 => self.float::<{ Format::F16 as usize }>(x, rows, out),
                    _ => self.float::<{ Format::BF16 as usize }>(x, rows, out),
                }
                rows
            }
        }
    }

    fn expanded<const P: usize>(
        &self,
        panels: [*const u8; P],
        x: *const Block,
        rows: usize,
        out: *mut Lanes,
        first: bool,
    ) {
        let (isa, k) = (self.isa, self.weights.k());
        // The first tile brings the panels that will be expanded next.
        let bytes = P * self.weights.panel_len();
        let lines = if first { bytes.div_ceil(64).div_ceil(k / BLOCK) } else { 0 };
        let ahead = Ahead { start: self.weights.panel(self.panels.start).wrapping_add(bytes), lines };
        let kind = self.weights.expanded().map(|kind| (kind.group, kind.min));
        // SAFETY: panels and rows are `k` wide, as `linear` checked, and the panels were expanded in this way; `out` has
        // room for two of the largest tiles.
        unsafe {
            match kind {
                Some((32, false)) => expanded_tile::<2, false, P>(isa, panels, k, x, rows, out, ahead),
                Some((32, true)) => expanded_tile::<2, true, P>(isa, panels, k, x, rows, out, ahead),
                Some((_, false)) => expanded_tile::<1, false, P>(isa, panels, k, x, rows, out, ahead),
                Some((_, true)) => expanded_tile::<1, true, P>(isa, panels, k, x, rows, out, ahead),
                None => {}
            }
        }
    }

    fn float<const F: usize>(&self, x: *const f32, rows: usize, out: *mut Lanes) {
        let k = self.weights.k();
        let mut panels = self.panels.clone();
        let mut out = out;
        // SAFETY: panels and rows are `k` wide, as `linear` checked; `out` has room for the tiles of all panels.
        unsafe {
            while panels.len() >= 2 {
                let pair = [self.weights.panel(panels.start), self.weights.panel(panels.start + 1)];
                float_tile::<F, 2>(self.isa, pair, k, x, rows, out);
                out = out.add(2 * rows);
                panels.start += 2;
            }
            if !panels.is_empty() {
                float_tile::<F, 1>(self.isa, [self.weights.panel(panels.start)], k, x, rows, out);
            }
        }
    }
}

fn expand_panel<const F: usize>(isa: Isa, panel: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the panel is `k` wide, and `out` one of the buffers of `Product::new`.
    unsafe { expand::<F>(isa, panel, k / FORMATS[F].elements, out) }
}

fn quantised<const F: usize>(product: &Product<'_>, x: *const Block, rows: usize, out: *mut Lanes) {
    let weights = product.weights;
    let (panel, blocks) = (weights.panel(product.panels.start), weights.k() / FORMATS[F].elements);
    // SAFETY: panels and rows are `k` wide, as `linear` checked; `out` has room for the tiles of all panels.
    unsafe {
        quantised_panels::<F>(product.isa, panel, weights.panel_len(), product.panels.len(), blocks, x, rows, out);
    }
}

dispatch! {
    /// Brings the products of some panels with a tile of `rows` rows to `columns` columns of the output.
    unsafe fn finish(
        results: &[MaybeUninit<Lanes>; RESULTS], rows: usize, bias: Option<&[f32]>, epilogue: Epilogue, out: *mut f32, stride: usize,
        columns: usize
    ) = finish_kernel;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish_kernel<S: Simd>(
    results: &[MaybeUninit<Lanes>; RESULTS],
    rows: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: *mut f32,
    stride: usize,
    columns: usize,
) {
    let panels = if matches!(epilogue, Epilogue::Gated(_)) { 2 } else { 1 };
    for (unit, column) in (0..columns).step_by(LANES).enumerate() {
        let count = LANES.min(columns - column);
        for row in 0..rows {
            let result = |panel: usize| results[(panels * unit + panel) * rows + row].as_ptr().cast();
            // SAFETY: rows of `out` and `bias` have `columns` values, and the results of these panels and rows are there.
            unsafe {
                let out = out.add(row * stride + column);
                let mut y = S::load(result(panels - 1));
                if let Some(bias) = bias {
                    y = S::add(y, load_some::<S>(bias.as_ptr().add(column), count));
                }
                y = match epilogue {
                    Epilogue::Store => y,
                    Epilogue::Add => S::add(load_some::<S>(out, count), y),
                    Epilogue::Gated(activation) => S::mul(activate::<S>(activation, S::load(result(0))), y),
                };
                store_some::<S>(out, count, y);
            }
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
