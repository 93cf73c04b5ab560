//! The paged store of keys and values.

use std::marker::PhantomData;

use crate::Isa;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};

/// Tokens in a page.
pub const PAGE: usize = 64;

/// One layer's view of the page store, all in `f16`.
///
/// For each page and head: keys transposed, `[head_dim][PAGE]`, so that a lane is a token when they meet a query; then
/// values, `[PAGE][head_dim]`, so that a lane is a dimension when they are weighted.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a> {
    start: *mut u16,
    pages: usize,
    page_stride: usize,
    heads: usize,
    head_dim: usize,
    memory: PhantomData<&'a mut [u16]>,
}

// SAFETY: a view gives access only through unsafe functions, whose callers keep writers apart.
unsafe impl Send for KvLayer<'_> {}
// SAFETY: as above.
unsafe impl Sync for KvLayer<'_> {}

impl<'a> KvLayer<'a> {
    /// `f16` values that a layer has in a page.
    pub const fn page_len(heads: usize, head_dim: usize) -> usize {
        2 * heads * head_dim * PAGE
    }

    /// A layer whose part of page i begins at `start + i · page_stride`.
    ///
    /// # Safety
    /// The memory must hold [`page_len`](KvLayer::page_len) values there for each page, live as long as `'a`, and be
    /// reached through views only in that time.
    ///
    /// # Panics
    /// When `head_dim` is not a multiple of 16.
    pub unsafe fn from_raw(
        start: *mut u16,
        pages: usize,
        page_stride: usize,
        heads: usize,
        head_dim: usize,
    ) -> KvLayer<'a> {
        assert!(head_dim.is_multiple_of(LANES), "heads of {head_dim} values are not whole vectors of {LANES}");
        assert!(page_stride >= KvLayer::page_len(heads, head_dim) || pages <= 1);
        KvLayer { start, pages, page_stride, heads, head_dim, memory: PhantomData }
    }

    /// Heads of keys, and of values.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Values of a key, and of a value.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The keys of a head in a page.
    ///
    /// # Panics
    /// When there is no such page or head.
    pub fn keys(&self, page: usize, head: usize) -> *mut u16 {
        assert!(page < self.pages && head < self.heads);
        // SAFETY: in the view's memory.
        unsafe { self.start.add(page * self.page_stride + 2 * head * self.head_dim * PAGE) }
    }

    /// The values of a head in a page.
    ///
    /// # Panics
    /// When there is no such page or head.
    pub fn values(&self, page: usize, head: usize) -> *mut u16 {
        // SAFETY: they follow the keys.
        unsafe { self.keys(page, head).add(self.head_dim * PAGE) }
    }

    /// Puts a token's key and value of one head into `slot` of `page`.
    ///
    /// Tokens of a page share cache lines: a worker should write all those of a page that a step has.
    ///
    /// # Safety
    /// Nobody else reads or writes that slot at the same time.
    ///
    /// # Panics
    /// When there is no such place, or `key` or `value` is not `head_dim` long.
    pub unsafe fn write(&self, isa: Isa, head: usize, page: usize, slot: usize, key: &[f32], value: &[f32]) {
        assert!(slot < PAGE && key.len() == self.head_dim && value.len() == self.head_dim);
        // SAFETY: in the view's memory.
        unsafe {
            let keys = self.keys(page, head).add(slot);
            let values = self.values(page, head).add(slot * self.head_dim);
            write_slot(isa, key, value, keys, values);
        }
    }
}

dispatch! {
    unsafe fn write_slot(key: &[f32], value: &[f32], keys: *mut u16, values: *mut u16) = write_kernel;
}

#[inline(always)]
unsafe fn write_kernel<S: Simd>(key: &[f32], value: &[f32], keys: *mut u16, values: *mut u16) {
    let mut halves = [0; LANES];
    for at in (0..key.len()).step_by(LANES) {
        // SAFETY: `key` and `value` are whole vectors, with room at `keys` and `values`.
        unsafe {
            S::store_f16(halves.as_mut_ptr(), S::load(key.as_ptr().add(at)));
            for (i, half) in halves.into_iter().enumerate() {
                *keys.add((at + i) * PAGE) = half;
            }
            S::store_f16(values.add(at), S::load(value.as_ptr().add(at)));
        }
    }
}
