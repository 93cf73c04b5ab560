//! Views of the matrices between kernels.
//!
//! A step's intermediates lie in one arena that all workers read and write concurrently, each its own part. So a view
//! is a pointer with a shape; only making references from it is unsafe.

use std::marker::PhantomData;
use std::ops::Range;

/// An `f32` matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view gives references only through unsafe functions, whose callers exclude data races.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// A matrix that fills `values`.
    ///
    /// # Panics
    /// When the length is not `rows · cols`.
    pub fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Rows<'a> {
        assert_eq!(Some(values.len()), rows.checked_mul(cols));
        Rows { start: values.as_mut_ptr(), rows, cols, stride: cols, memory: PhantomData }
    }

    /// A matrix whose rows begin `stride` values apart.
    ///
    /// # Safety
    /// The memory must hold it and live as long as `'a`, and be reached through views only in that time.
    pub unsafe fn from_raw(start: *mut f32, rows: usize, cols: usize, stride: usize) -> Rows<'a> {
        assert!(cols <= stride || rows <= 1);
        Rows { start, rows, cols, stride, memory: PhantomData }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from the start of a row to that of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// When there are no such columns.
    pub fn columns(&self, range: Range<usize>) -> Rows<'a> {
        assert!(range.start <= range.end && range.end <= self.cols);
        // SAFETY: the view's memory has that many columns, if it has a row.
        let start = if self.rows == 0 { self.start } else { unsafe { self.start.add(range.start) } };
        Rows { start, cols: range.len(), ..*self }
    }

    /// Where row `i` begins.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_ptr(&self, i: usize) -> *mut f32 {
        assert!(i < self.rows);
        // SAFETY: the row is in the view's memory.
        unsafe { self.start.add(i * self.stride) }
    }

    /// Row `i`.
    ///
    /// # Safety
    /// Nobody writes it while the reference lives.
    pub unsafe fn row(&self, i: usize) -> &'a [f32] {
        // SAFETY: the row is in the view's memory; the caller excludes aliasing.
        unsafe { std::slice::from_raw_parts(self.row_ptr(i), self.cols) }
    }

    /// Row `i`, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes it while the reference lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, i: usize) -> &'a mut [f32] {
        // SAFETY: the row is in the view's memory; the caller excludes aliasing.
        unsafe { std::slice::from_raw_parts_mut(self.row_ptr(i), self.cols) }
    }

    /// Row `i`, to write, holding what that of `x` has; nothing is copied where the two are the same.
    ///
    /// # Safety
    /// Nobody else reads or writes it while the reference lives, and the row of `x` is the same memory or apart from it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_from(&self, x: &Rows<'_>, i: usize) -> &'a mut [f32] {
        // SAFETY: guaranteed by the caller; where they are the same memory, that is not read through `x`.
        unsafe {
            if self.row_ptr(i) != x.row_ptr(i) {
                self.row_mut(i).copy_from_slice(x.row(i));
            }
            self.row_mut(i)
        }
    }
}
