//! Rows that lie interleaved, as the kernels of linear ops read them.
//!
//! A kernel multiplies panels of weights by a *tile* of rows at once and reads its input as one stream: element i of all
//! rows of a tile, then element i + 1. A matrix is divided into tiles of six rows; what is left becomes tiles of four and
//! one of at most three. So the layout depends on the number of rows.

use std::marker::PhantomData;

/// Rows of the largest tile. Two panels times six rows are as much as the registers of AVX-512 hold.
pub(crate) const TILE: usize = 6;

/// Rows of the next tile, where so many are left.
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
    // The last six rows may begin within a tile, for eight are two tiles of four; those before do not.
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

// SAFETY: a view gives only pointers, whose users keep writers apart.
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
    pub fn tile(&self, row: usize) -> (*const T, usize) {
        let (first, width) = tile_of(row, self.rows);
        assert!(row == first && row < self.rows);
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

/// A matrix of `f32` activations for weights that are floats.
#[derive(Debug, Clone, Copy)]
pub struct FloatRows<'a>(Tiles<'a, f32>);

impl<'a> FloatRows<'a> {
    /// A view of `memory`, with room for `rows · k` values.
    ///
    /// # Panics
    /// When the memory is too small.
    pub fn new(memory: &'a mut [f32], rows: usize, k: usize) -> FloatRows<'a> {
        assert!(rows.checked_mul(k).is_some_and(|len| len <= memory.len()));
        // SAFETY: just checked; the lifetime is that of the borrow.
        unsafe { FloatRows::from_raw(memory.as_mut_ptr(), rows, k) }
    }

    /// A view of the memory at `start`.
    ///
    /// # Safety
    /// It must hold `rows · k` values, live as long as `'a`, and be reached through views only in that time.
    pub unsafe fn from_raw(start: *mut f32, rows: usize, k: usize) -> FloatRows<'a> {
        // SAFETY: the caller's.
        FloatRows(unsafe { Tiles::from_raw(start, rows, k) })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Values in a row.
    pub fn k(&self) -> usize {
        self.0.width()
    }

    /// See [`Tiles::tile`].
    pub(crate) fn tile(&self, row: usize) -> (*const f32, usize) {
        self.0.tile(row)
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
        let (start, step) = self.0.row(row);
        for (i, x) in x.iter().enumerate() {
            // SAFETY: element i of the row, in the view's memory; the caller's for races.
            unsafe { *start.add(i * step) = *x };
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
