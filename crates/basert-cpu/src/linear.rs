//! Matrix products: y = x·Wᵀ, for one row or many.

use std::ops::Range;

use basert_core::{FORMATS, Format};
use basert_plan::Gate;

use crate::dot::{
    Ahead, Expanded, Lanes, expand, expand_floats, expanded_tile, float_tile, quantised_panels, stand_in,
    unexpanded_rows,
};
use crate::isa::dispatch;
use crate::math;
use crate::panel::{Order, PackedMatrix, with_format};
use crate::quantised::{BLOCK, Block, QuantisedRows};
use crate::rows::Rows;
use crate::simd::{LANES, Simd};
use crate::tiles::{FloatRows, TILE, tile_of};
use crate::{Buffer, Isa};

/// The input: quantised activations if [`PackedMatrix::wants_quantised`], otherwise floats.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For quantised weights.
    Quantised(QuantisedRows<'a>),
    /// For weights that are floats.
    Float(FloatRows<'a>),
}

impl Input<'_> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        match self {
            Input::Quantised(x) => x.rows(),
            Input::Float(x) => x.rows(),
        }
    }

    /// Values in a row.
    pub fn k(&self) -> usize {
        match self {
            Input::Quantised(x) => x.k(),
            Input::Float(x) => x.k(),
        }
    }

    /// The tile that begins with `row`, from `column` on, which begins a block.
    fn tile(&self, row: usize, column: usize) -> *const u8 {
        match self {
            Input::Quantised(x) => {
                let (tile, width) = x.tile(row);
                tile.wrapping_add(column / BLOCK * width).cast()
            }
            Input::Float(x) => {
                let (tile, width) = x.tile(row);
                tile.wrapping_add(column * width).cast()
            }
        }
    }
}

/// What happens to the product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// It is stored as the output.
    Store,
    /// It is added to the output: a residual connection.
    Add,
    /// The matrix is paired: the output is what the gate makes of both factors.
    Gated(Gate),
}

/// The most results, rows times panels, of a call without expansion, and the most panels.
const RESULTS: usize = 64;
const PANELS: usize = 8;
/// Rows of a block: their activations, in the columns that are expanded at a time, stay in a part of L2 while panels
/// pass over them.
const BLOCK_ROWS: usize = 240;
/// Pairs of panels that pass over the same columns of the rows before the next columns, keeping all their results.
const PAIRS: usize = 4;
/// Tiles of rows over which the prefetch of the next panels is spread: memory does not deliver them in the time of one.
const AHEAD_TILES: usize = 8;

/// Rows in blocks: the rows of a block stay in a part of L2 while panels pass over them.
#[derive(Debug, Clone, Copy)]
pub struct RowBlocks<'a> {
    x: Input<'a>,
    size: usize,
}

impl<'a> RowBlocks<'a> {
    /// The blocks of an input.
    pub fn of(x: Input<'a>) -> RowBlocks<'a> {
        let blocks = x.rows().div_ceil(BLOCK_ROWS).max(1);
        RowBlocks { x, size: x.rows().div_ceil(blocks).max(1).next_multiple_of(TILE) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.x.rows().div_ceil(self.size)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of each block.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The rows of block `i`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn get(&self, i: usize) -> Range<usize> {
        // A block begins with a tile.
        let start = |i: usize| if i < self.len() { tile_of(i * self.size, self.x.rows()).0 } else { self.x.rows() };
        assert!(i < self.len());
        start(i)..start(i + 1)
    }
}

/// Computes 16 columns of the output for every one of `units`, for `rows` of `x`: a [block](RowBlocks). The result of
/// row i goes to row `places[i]` of `out`, or to row i without places.
///
/// A result does not depend on the number of rows, on how units are divided among workers, or on `isa`.
///
/// # Safety
/// Nobody else reads or writes those columns of those rows of `out` (16 for each unit), or writes `x`, at the same time.
///
/// # Panics
/// When shapes do not agree, there are more rows than a block has, the input has the wrong kind for the weights, the
/// epilogue does not match the order of the weights, or `scratch` is shorter than
/// [`scratch_bytes`](PackedMatrix::scratch_bytes). A bias goes with [`Order::Stacked`] only.
#[allow(clippy::too_many_arguments)]
pub unsafe fn linear(
    isa: Isa,
    weights: &PackedMatrix,
    units: Range<usize>,
    x: Input<'_>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: Rows<'_>,
    places: Option<&[u32]>,
    scratch: &mut Buffer,
) {
    let k = x.k();
    assert_eq!((k, x.rows(), weights.rows()), (weights.k(), places.map_or(out.rows(), <[u32]>::len), out.cols()));
    assert!(rows.end <= x.rows() && rows.len() <= BLOCK_ROWS);
    assert!(places.is_none_or(|places| places.iter().all(|&place| (place as usize) < out.rows())));
    assert_eq!(matches!(x, Input::Quantised(_)), weights.wants_quantised());
    assert_eq!(matches!(epilogue, Epilogue::Gated(_)), weights.order() == Order::Paired);
    assert!(bias.is_none_or(|bias| bias.len() == weights.rows() && weights.order() == Order::Stacked));
    assert!(units.end <= weights.units() && scratch.len() >= weights.scratch_bytes());

    let call = Call { isa, weights, x, rows, bias, epilogue, out, places };
    let (results, panels) = scratch.split_at_mut(RESULT_BYTES);
    let results = results.as_mut_ptr().cast::<Lanes>();
    // SAFETY: guaranteed by the caller, and the shapes agree; there is room for all results.
    unsafe {
        if x.rows() <= unexpanded_rows(isa, weights.format()) {
            call.unexpanded(units, results);
        } else {
            call.expanded(units, results, panels);
        }
    }
}

/// Results of a block of rows with a pair of panels, and the bytes of results that a worker keeps.
const PAIR_RESULTS: usize = 2 * BLOCK_ROWS;
const RESULT_BYTES: usize = PAIRS * PAIR_RESULTS * size_of::<Lanes>();

/// Scratch bytes that a worker needs to multiply by rows of `k` weights with this expansion.
pub(crate) fn scratch_bytes(expanded: Expanded, k: usize) -> usize {
    RESULT_BYTES + 2 * expanded.bytes(expanded.chunk(k))
}

/// The arguments of [`linear`].
struct Call<'a> {
    isa: Isa,
    weights: &'a PackedMatrix,
    x: Input<'a>,
    rows: Range<usize>,
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
    out: Rows<'a>,
    places: Option<&'a [u32]>,
}

impl Call<'_> {
    /// Panels of a unit.
    fn width(&self) -> usize {
        if self.weights.order() == Order::Paired { 2 } else { 1 }
    }

    fn tiles(&self) -> TileRows<'_> {
        TileRows { x: self.x, row: self.rows.start, end: self.rows.end }
    }

    fn product(&self, units: &Range<usize>) -> Product<'_> {
        let width = self.width();
        Product { isa: self.isa, weights: self.weights, panels: width * units.start..width * units.end }
    }

    /// Multiplies a few rows by several panels in a call, without expanding these.
    ///
    /// # Safety
    /// As for [`linear`]; `results` has room for those of all rows and [`PANELS`].
    unsafe fn unexpanded(&self, units: Range<usize>, results: *mut Lanes) {
        let step = (RESULTS / self.x.rows().max(1)).clamp(self.width(), PANELS) / self.width();
        for unit in units.clone().step_by(step) {
            let units = unit..units.end.min(unit + step);
            let product = self.product(&units);
            for (row, count) in self.tiles() {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let result = results.add((row - self.rows.start) * product.panels.len());
                    match self.x {
                        Input::Quantised(x) => {
                            let x = x.tile(row).0;
                            with_format!(self.weights.format(), quantised(&product, x, count, result), else ());
                        }
                        Input::Float(x) => product.float(x.tile(row).0, count, result),
                    }
                    self.finish(&units, row, count, result);
                }
            }
        }
    }

    /// Multiplies many rows by two panels in a call, which are expanded for that, some columns at a time. A group of
    /// pairs passes over these columns of all rows before the next ones.
    ///
    /// # Safety
    /// As for [`linear`]; `results` has room for those of all rows and [`PAIRS`], `panels` for two expanded panels.
    unsafe fn expanded(&self, units: Range<usize>, results: *mut Lanes, panels: &mut [u8]) {
        let (k, kind) = (self.x.k(), self.weights.expanded());
        let chunk = kind.chunk(k);
        let multiply = tile_kernel(self.isa, self.weights.format());
        let step = 2 / self.width();
        // If all columns are expanded at once, a pair is finished before the next one.
        let group = step * if chunk < k { PAIRS } else { 1 };
        for first in units.clone().step_by(group) {
            let units = first..units.end.min(first + group);
            for columns in (0..k).step_by(chunk).map(|start| start..k.min(start + chunk)) {
                for (i, unit) in units.clone().step_by(step).enumerate() {
                    let pair = unit..units.end.min(unit + step);
                    let product = self.product(&pair);
                    product.expand(kind, columns.clone(), panels);
                    let (panel, panel_len, begun) = (panels.as_ptr(), kind.bytes(columns.len()), columns.start > 0);
                    let next = match pair.end < units.end {
                        true => (pair.end, columns.clone()),
                        false if columns.end < k => (units.start, columns.end..k.min(columns.end + chunk)),
                        false => (units.end, 0..chunk),
                    };
                    let next = Next::of(&product, self.width() * next.0, next.1, &columns, self.rows.len());
                    for (i_tile, (row, count)) in self.tiles().enumerate() {
                        let (x, ahead) = (self.x.tile(row, columns.start), next.ahead(i_tile));
                        // SAFETY: guaranteed by the caller; panels and rows have these columns, and the panels were expanded.
                        unsafe {
                            let result = results.add(i * PAIR_RESULTS + (row - self.rows.start) * product.panels.len());
                            let (k, panels) = (columns.len(), product.panels.len());
                            multiply(self.isa, panel, panel_len, panels, k, x, count, result, begun, ahead);
                            // Results are written to memory while the next tile is multiplied.
                            if columns.end == self.x.k() {
                                self.finish(&pair, row, count, result);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Stores the results of a tile and some units in the output.
    ///
    /// # Safety
    /// As for [`linear`]; the results are those of `count` rows from `row` on.
    unsafe fn finish(&self, units: &Range<usize>, row: usize, count: usize, results: *const Lanes) {
        let columns = units.start * LANES..self.weights.rows().min(units.end * LANES);
        let bias = self.bias.map(|bias| &bias[columns.clone()]);
        let places = self.places.map(|places| &places[row..row + count]);
        // SAFETY: guaranteed by the caller: these columns are ours.
        unsafe {
            let out = self.out.row_ptr(if places.is_some() { 0 } else { row }).add(columns.start);
            let stride = self.out.stride();
            finish(self.isa, results, count, bias, self.epilogue, out, stride, places, columns.len());
        }
    }
}

/// First row and number of rows of the tiles of some rows.
struct TileRows<'a> {
    x: Input<'a>,
    row: usize,
    end: usize,
}

impl Iterator for TileRows<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let row = self.row;
        if row >= self.end {
            return None;
        }
        let count = match self.x {
            Input::Quantised(x) => x.tile(row).1,
            Input::Float(x) => x.tile(row).1,
        };
        self.row += count;
        Some((row, count))
    }
}

/// The columns of one or two panels that will be expanded next; earlier tiles share prefetching them.
struct Next {
    start: *const u8,
    panels: usize,
    panel_len: usize,
    /// Tiles that prefetch the same panel.
    tiles: usize,
    /// Cache lines of a panel for every 32 columns of a tile, and how many of them a tile prefetches.
    all: usize,
    each: usize,
    /// The number of runs of 32 columns.
    times: usize,
}

impl Next {
    /// Columns of the panels from `panel` on, prefetched while `rows` rows are multiplied by the columns of `product`.
    fn of(product: &Product<'_>, panel: usize, columns: Range<usize>, now: &Range<usize>, rows: usize) -> Next {
        let (weights, panels) = (product.weights, product.panels.len());
        let (k, panel_len) = (weights.k(), weights.panel_len());
        let bytes = |columns: usize| (columns as u64 * panel_len as u64 / k as u64) as usize;
        let tiles = (rows.div_ceil(TILE).min(AHEAD_TILES) / panels).max(1);
        let times = now.len().div_ceil(BLOCK);
        let all = bytes(columns.len()).div_ceil(64).div_ceil(times);
        // There may be no memory after the last panel.
        let start = weights.panel(0).wrapping_add(panel * panel_len + bytes(columns.start));
        Next { start, panels, panel_len, tiles, all, each: all.div_ceil(tiles), times }
    }

    /// What tile `i` prefetches.
    fn ahead(&self, i: usize) -> Ahead {
        let (panel, before) = (i / self.tiles, i % self.tiles * self.each);
        let lines = if panel < self.panels { self.each.min(self.all.saturating_sub(before)) } else { 0 };
        Ahead { start: self.start.wrapping_add(panel * self.panel_len + 64 * self.times * before), lines }
    }
}

/// Some panels to be multiplied by tiles of rows. Results are ordered by panel, then by row.
struct Product<'a> {
    isa: Isa,
    weights: &'a PackedMatrix,
    panels: Range<usize>,
}

impl Product<'_> {
    /// Expands some columns of the panels, at most two.
    fn expand(&self, kind: Expanded, columns: Range<usize>, out: &mut [u8]) {
        let outs = out.chunks_exact_mut(kind.bytes(columns.len()));
        for (panel, out) in self.panels.clone().zip(outs) {
            let columns = columns.clone();
            with_format!(self.weights.format(), expand_panel(self, panel, columns, out), else {
                let expand = match self.weights.format() {
                    Format::F32 => expand_floats::<{ Format::F32 as usize }>,
                    Format::F16 => expand_floats::<{ Format::F16 as usize }>,
                    _ => expand_floats::<{ Format::BF16 as usize }>,
                };
                // SAFETY: the panel is `k` wide, and `out` has room for these columns.
                unsafe { expand(self.isa, self.weights.panel(panel), columns, out.as_mut_ptr().cast()) }
            });
        }
    }

    fn float(&self, x: *const f32, rows: usize, out: *mut Lanes) {
        match self.weights.format() {
            Format::F32 => self.float_of::<{ Format::F32 as usize }>(x, rows, out),
            Format::F16 => self.float_of::<{ Format::F16 as usize }>(x, rows, out),
            _ => self.float_of::<{ Format::BF16 as usize }>(x, rows, out),
        }
    }

    fn float_of<const F: usize>(&self, x: *const f32, rows: usize, out: *mut Lanes) {
        let (k, panel_len) = (self.weights.k(), self.weights.panel_len());
        let mut panels = self.panels.clone();
        let mut out = out;
        // SAFETY: panels and rows are `k` wide, as `linear` checked; `out` has room for the tiles of all panels.
        unsafe {
            while panels.len() >= 2 {
                let panel = self.weights.panel(panels.start);
                float_tile::<F, 2, false>(self.isa, panel, panel_len, k, x, rows, out, false, Ahead::NONE);
                out = out.add(2 * rows);
                panels.start += 2;
            }
            if !panels.is_empty() {
                let panel = self.weights.panel(panels.start);
                float_tile::<F, 1, false>(self.isa, panel, panel_len, k, x, rows, out, false, Ahead::NONE);
            }
        }
    }
}

fn expand_panel<const F: usize>(product: &Product<'_>, panel: usize, columns: Range<usize>, out: &mut [u8]) {
    let (weights, elements) = (product.weights, FORMATS[F].elements);
    let some = columns.start / elements..columns.end / elements;
    // SAFETY: the panel is `k` wide, and `out` has room for these columns.
    unsafe { expand::<F>(product.isa, weights.panel(panel), weights.k() / elements, some, out.as_mut_ptr()) }
}

/// Multiplies expanded panels by a tile. Arguments: start and distance of the panels, their number (one or two) and
/// columns; the tile of [`Block`]s or `f32` and its rows; where results go, whether sums are continued, and what to
/// prefetch.
type TileKernel = unsafe fn(Isa, *const u8, usize, usize, usize, *const u8, usize, *mut Lanes, bool, Ahead);

/// The kernel for panels of a format.
fn tile_kernel(isa: Isa, format: Format) -> TileKernel {
    let stand_in = with_format!(format, stand_in_of(isa), else format);
    with_format!(stand_in, quantised_tile(), else floats_tile())
}

fn stand_in_of<const F: usize>(isa: Isa) -> Format {
    // SAFETY: nothing is prefetched.
    unsafe { stand_in::<F>(isa) }
}

fn quantised_tile<const F: usize>() -> TileKernel {
    |isa, panel, panel_len, panels, k, x, rows, out, begun, ahead| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match panels {
                1 => expanded_tile::<F, 1>(isa, panel, panel_len, k, x.cast(), rows, out, begun, ahead),
                _ => expanded_tile::<F, 2>(isa, panel, panel_len, k, x.cast(), rows, out, begun, ahead),
            }
        }
    }
}

fn floats_tile() -> TileKernel {
    const F32: usize = Format::F32 as usize;
    |isa, panel, panel_len, panels, k, x, rows, out, begun, ahead| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match panels {
                1 => float_tile::<F32, 1, true>(isa, panel, panel_len, k, x.cast(), rows, out, begun, ahead),
                _ => float_tile::<F32, 2, true>(isa, panel, panel_len, k, x.cast(), rows, out, begun, ahead),
            }
        }
    }
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
    /// Stores the products of some panels with a tile of `rows` rows in `columns` columns of the output, in consecutive
    /// rows or in these places.
    unsafe fn finish(
        results: *const Lanes, rows: usize, bias: Option<&[f32]>, epilogue: Epilogue, out: *mut f32, stride: usize,
        places: Option<&[u32]>, columns: usize
    ) = finish_kernel;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish_kernel<S: Simd>(
    results: *const Lanes,
    rows: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: *mut f32,
    stride: usize,
    places: Option<&[u32]>,
    columns: usize,
) {
    let panels = if matches!(epilogue, Epilogue::Gated(_)) { 2 } else { 1 };
    for (unit, column) in (0..columns).step_by(LANES).enumerate() {
        let count = LANES.min(columns - column);
        for row in 0..rows {
            // SAFETY: rows of `out` and `bias` have `columns` values, and the results of these panels and rows are there.
            unsafe {
                let result = |panel: usize| results.add((panels * unit + panel) * rows + row).cast();
                let out = out.add(places.map_or(row, |places| places[row] as usize) * stride + column);
                let mut y = S::load(result(panels - 1));
                if let Some(bias) = bias {
                    y = S::add(y, load_some::<S>(bias.as_ptr().add(column), count));
                }
                y = match epilogue {
                    Epilogue::Store => y,
                    Epilogue::Add => S::add(load_some::<S>(out, count), y),
                    Epilogue::Gated(gate) => math::gated::<S>(gate, S::load(result(0)), y),
                };
                store_some::<S>(out, count, y);
            }
        }
    }
}

/// Stores the first `count` lanes.
#[inline(always)]
pub(crate) unsafe fn store_some<S: Simd>(p: *mut f32, count: usize, x: S::F) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if count == LANES {
            S::store(p, x);
        } else {
            std::ptr::copy_nonoverlapping(S::lanes(x).as_ptr(), p, count);
        }
    }
}

/// Loads the first `count` lanes, with zeros in the others.
#[inline(always)]
pub(crate) unsafe fn load_some<S: Simd>(p: *const f32, count: usize) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if count == LANES {
            return S::load(p);
        }
        let mut lanes = [0.0; LANES];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), count);
        S::load(lanes.as_ptr())
    }
}
