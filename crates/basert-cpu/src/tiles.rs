//! Rows interleaved in tiles, as the kernels of linear ops read them.
//!
//! A kernel multiplies panels of weights by a *tile* of rows at once and reads its input as one stream: block i of all
//! rows of a tile, then block i + 1. A matrix is divided into tiles of six rows; the rest becomes tiles of four and one
//! of at most three. So the layout depends on the number of rows.

use std::marker::PhantomData;

use crate::simd::LANES;

/// Rows of the largest tile. The sums of two panels times six rows fill the registers of AVX-512.
pub(crate) const TILE: usize = 6;

/// Rows of the next tile when `left` rows are left.
pub(crate) fn tile_width(left: usize) -> usize {
    match left {
        8 => 4,
        TILE.. => TILE,
        4.. => 4,
        _ => left,
    }
}

/// First row and number of rows of the tile that has row `row`, of `rows`.
pub(crate) fn tile_of(row: usize, rows: usize) -> (usize, usize) {
    // Tiles begin at multiples of six, except near the end: eight rows are two tiles of four.
    let mut first = (row / TILE).saturating_sub(1) * TILE;
    loop {
        let width = tile_width(rows - first);
        if row < first + width {
            return (first, width);
        }
        first += width;
    }
}

/// A matrix of interleaved rows, of `width` elements each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: a view gives only pointers, whose users exclude data races.
unsafe impl<T: Send> Send for Tiles<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Tiles<'_, T> {}

impl<T> Tiles<'_, T> {
    /// A view of the memory at `start`.
    ///
    /// # Safety
    /// It must have `rows · width` elements, live as long as `'a`, and be reached through views only in that time.
    ///
    /// # Panics
    /// When it is not aligned.
    pub unsafe fn from_raw(start: *mut T, rows: usize, width: usize) -> Self {
        assert!(start.is_aligned());
        Tiles { start, rows, width, memory: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where the tile that begins with `row` lies, and how many rows it has.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn tile(&self, row: usize) -> (*const T, usize) {
        assert!(row < self.rows);
        let width = tile_width(self.rows - row);
        debug_assert_eq!(tile_of(row, self.rows), (row, width));
        // SAFETY: the row is in the view's memory.
        (unsafe { self.start.add(row * self.width) }, width)
    }

    /// First element of `row`, and how many elements lie from one to the next.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> (*mut T, usize) {
        assert!(row < self.rows);
        let (first, width) = tile_of(row, self.rows);
        // SAFETY: the row is in the view's memory.
        (unsafe { self.start.add(first * self.width + row - first) }, width)
    }
}

/// A matrix of `f32` activations for weights that are floats, in blocks of 16 values; the last block of a row may be
/// partial.
#[derive(Debug, Clone, Copy)]
pub struct FloatRows<'a> {
    tiles: Tiles<'a, [f32; LANES]>,
    k: usize,
}

impl<'a> FloatRows<'a> {
    /// The length of such a matrix, in values.
    pub const fn len(rows: usize, k: usize) -> usize {
        rows.saturating_mul(k.div_ceil(LANES)).saturating_mul(LANES)
    }

    /// A view of `memory`.
    ///
    /// # Panics
    /// When the memory is too small.
    pub fn new(memory: &'a mut [f32], rows: usize, k: usize) -> FloatRows<'a> {
        assert!(memory.len() >= FloatRows::len(rows, k));
        // SAFETY: just checked; the lifetime is that of the borrow.
        unsafe { FloatRows::from_raw(memory.as_mut_ptr(), rows, k) }
    }

    /// A view of the memory at `start`.
    ///
    /// # Safety
    /// It must have [`len`](FloatRows::len) values, live as long as `'a`, and be reached through views only in that time.
    pub unsafe fn from_raw(start: *mut f32, rows: usize, k: usize) -> FloatRows<'a> {
        // SAFETY: guaranteed by the caller.
        FloatRows { tiles: unsafe { Tiles::from_raw(start.cast(), rows, k.div_ceil(LANES)) }, k }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.tiles.rows()
    }

    /// Values in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// See [`Tiles::tile`].
    pub(crate) fn tile(&self, row: usize) -> (*const f32, usize) {
        let (tile, width) = self.tiles.tile(row);
        (tile.cast(), width)
    }

    /// Copies `x` into `row`.
    ///
    /// # Safety
    /// Nobody else reads or writes that row at the same time.
    ///
    /// # Panics
    /// When there is no such row, or `x` is not as long.
    pub unsafe fn write(&self, row: usize, x: &[f32]) {
        assert_eq!(x.len(), self.k());
        let (start, step) = self.tiles.row(row);
        let (blocks, rest) = x.as_chunks::<LANES>();
        // SAFETY: blocks of the row, in the view's memory, of which the last is there if it is not full; the caller excludes
        // races.
        unsafe {
            blocks.iter().enumerate().for_each(|(i, block)| *start.add(i * step) = *block);
            if !rest.is_empty() {
                (&mut *start.add(blocks.len() * step))[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_each_other() {
        for rows in 1..100 {
            let mut row = 0;
            while row < rows {
                let (first, width) = tile_of(row, rows);
                assert_eq!(first, row);
                assert!([1, 2, 3, 4, TILE].contains(&width));
                (row..row + width).for_each(|row| assert_eq!(tile_of(row, rows), (first, width)));
                row += width;
            }
            assert_eq!(row, rows);
        }
    }
}
