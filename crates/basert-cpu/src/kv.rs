//! The paged store of keys and values.

use std::marker::PhantomData;

use basert_core::KvFormat;

use crate::Isa;
use crate::isa::dispatch;
use crate::simd::{LANES, Simd};

/// Tokens in a page.
pub const PAGE: usize = 64;

/// The largest supported head: whole vectors, and whole blocks of every format.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// Values that share a scale in the quantised formats.
pub(crate) const BLOCK: usize = 32;

/// One layer's view of the page store.
///
/// For each page and head: keys transposed, so that a lane is a token when they are multiplied by a query; then values,
/// so that a lane is a dimension when they are weighted. In `f16`, keys are `[head_dim][PAGE]` and values
/// `[PAGE][head_dim]`.
///
/// In the quantised formats, each block of 32 dimensions is contiguous: its codes, and then the `f16` scales of the
/// page's tokens. Four codes that are multiplied by neighbouring bytes are adjacent, as integer dot products need them:
/// four dimensions of keys, `[32 / 4][PAGE][4]`, four tokens of values, `[PAGE / 4][32][4]`. Two codes of four bits
/// share a byte, and always belong to the same token, so that tokens can be written concurrently: dimensions i and i +
/// 4 of eight for keys, i and i + 16 for values, the first in the low bits.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a> {
    /// The keys of the first head in the first page.
    first: Blocks,
    pages: usize,
    page_stride: usize,
    heads: usize,
    format: KvFormat,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: a view gives access only through unsafe functions, whose callers exclude data races.
unsafe impl Send for KvLayer<'_> {}
// SAFETY: as above.
unsafe impl Sync for KvLayer<'_> {}

/// The keys or the values of a head in a page: blocks of equal length, each with some of the dimensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub start: *mut u8,
    /// How many.
    pub count: usize,
    /// Dimensions of one.
    pub dims: usize,
    /// Bytes of one.
    pub bytes: usize,
}

impl Blocks {
    /// The codes of block `i`.
    ///
    /// # Safety
    /// The block exists, here and below.
    #[inline(always)]
    pub unsafe fn codes(&self, i: usize) -> *mut u8 {
        // SAFETY: guaranteed by the caller.
        unsafe { self.start.add(i * self.bytes) }
    }

    /// The scales of block `i`, one for each token.
    #[inline(always)]
    pub unsafe fn scales(&self, i: usize) -> *mut u16 {
        // SAFETY: guaranteed by the caller; they are what a quantised block ends with.
        unsafe { self.start.add((i + 1) * self.bytes - SCALES).cast() }
    }
}

/// Bytes of a block's scales.
pub(crate) const SCALES: usize = PAGE * size_of::<u16>();

impl<'a> KvLayer<'a> {
    /// Values that are stored for a head of `head_dim`: zeros fill it up to whole vectors, and to whole blocks of the format.
    pub fn stored_dim(format: KvFormat, head_dim: usize) -> usize {
        head_dim.next_multiple_of(LANES.max(format.block()))
    }

    /// Bytes that a layer has in a page.
    pub fn page_bytes(format: KvFormat, heads: usize, head_dim: usize) -> usize {
        2 * heads * PAGE * format.bytes(KvLayer::stored_dim(format, head_dim))
    }

    /// A layer whose part of page i begins at `start + i · page_stride`.
    ///
    /// # Safety
    /// The memory must hold [`page_bytes`](KvLayer::page_bytes) bytes there for each page, live as long as `'a`, and be
    /// reached through views only in that time.
    ///
    /// # Panics
    /// When a page does not begin at a multiple of 2, of 64 where it is quantised.
    pub unsafe fn from_raw(
        start: *mut u8,
        pages: usize,
        page_stride: usize,
        format: KvFormat,
        heads: usize,
        head_dim: usize,
    ) -> KvLayer<'a> {
        let head_dim = KvLayer::stored_dim(format, head_dim);
        assert!(page_stride >= KvLayer::page_bytes(format, heads, head_dim) || pages <= 1);
        let (dims, align) = if format == KvFormat::F16 { (head_dim, 2) } else { (BLOCK, 64) };
        assert!(start.addr().is_multiple_of(align) && (page_stride.is_multiple_of(align) || pages <= 1));
        let first = Blocks { start, count: head_dim / dims.max(1), dims, bytes: PAGE * format.bytes(dims) };
        KvLayer { first, pages, page_stride, heads, format, memory: PhantomData }
    }

    /// Heads of keys, and of values.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Values that are stored of a key, and of a value: see [`stored_dim`](KvLayer::stored_dim).
    pub fn head_dim(&self) -> usize {
        self.first.count * self.first.dims
    }

    /// How they are stored.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// The keys of a head in a page.
    ///
    /// # Panics
    /// When there is no such page or head.
    pub(crate) fn keys(&self, page: usize, head: usize) -> Blocks {
        assert!(page < self.pages && head < self.heads);
        let before = page * self.page_stride + 2 * head * self.first.count * self.first.bytes;
        // SAFETY: in the view's memory.
        Blocks { start: unsafe { self.first.start.add(before) }, ..self.first }
    }

    /// The values of a head in a page.
    ///
    /// # Panics
    /// When there is no such page or head.
    pub(crate) fn values(&self, page: usize, head: usize) -> Blocks {
        let keys = self.keys(page, head);
        // SAFETY: they follow the keys.
        Blocks { start: unsafe { keys.codes(keys.count) }, ..keys }
    }

    /// Stores a token's key and value of one head in `slot` of `page`.
    ///
    /// Tokens of a page share cache lines: one worker should write all tokens of a step in a page.
    ///
    /// # Safety
    /// Nobody else reads or writes that slot at the same time.
    ///
    /// # Panics
    /// When there is no such place, or `key` or `value` is longer than `head_dim`.
    pub unsafe fn write(&self, isa: Isa, head: usize, page: usize, slot: usize, key: &[f32], value: &[f32]) {
        let (mut full_key, mut full_value) = ([0.0; MAX_HEAD_DIM], [0.0; MAX_HEAD_DIM]);
        let (key, value) =
            (filled_up(key, &mut full_key, self.head_dim()), filled_up(value, &mut full_value, self.head_dim()));
        assert!(slot < PAGE && key.len() == self.head_dim() && value.len() == self.head_dim());
        let (keys, values) = (self.keys(page, head), self.values(page, head));
        // SAFETY: in the view's memory.
        unsafe {
            match self.format {
                KvFormat::F16 => write_f16(isa, key, value, keys, values, slot),
                KvFormat::Q8 => write_quantised::<8>(isa, key, value, keys, values, slot),
                KvFormat::Q4 => write_quantised::<4>(isa, key, value, keys, values, slot),
            }
        }
    }
}

/// The values of a head, with zeros behind them where it is stored with more.
pub(crate) fn filled_up<'a>(head: &'a [f32], full: &'a mut [f32; MAX_HEAD_DIM], dim: usize) -> &'a [f32] {
    if head.len() == dim {
        return head;
    }
    full[..head.len()].copy_from_slice(head);
    &full[..dim]
}

dispatch! {
    unsafe fn write_f16(key: &[f32], value: &[f32], keys: Blocks, values: Blocks, slot: usize) = f16_kernel;

    unsafe fn write_quantised[const BITS: usize](
        key: &[f32], value: &[f32], keys: Blocks, values: Blocks, slot: usize
    ) = quantised_kernel::<BITS>;
}

#[inline(always)]
unsafe fn f16_kernel<S: Simd>(key: &[f32], value: &[f32], keys: Blocks, values: Blocks, slot: usize) {
    let mut halves = [0; LANES];
    // SAFETY: `key` and `value` are whole vectors, and the one block has room for them.
    unsafe {
        let (keys, values) = (keys.codes(0).cast::<u16>(), values.codes(0).cast::<u16>());
        for at in (0..key.len()).step_by(LANES) {
            S::store_f16(halves.as_mut_ptr(), S::load(key.as_ptr().add(at)));
            for (i, half) in halves.into_iter().enumerate() {
                *keys.add((at + i) * PAGE + slot) = half;
            }
            S::store_f16(values.add(slot * value.len() + at), S::load(value.as_ptr().add(at)));
        }
    }
}

#[inline(always)]
unsafe fn quantised_kernel<S: Simd, const BITS: usize>(
    key: &[f32],
    value: &[f32],
    keys: Blocks,
    values: Blocks,
    slot: usize,
) {
    let (key, value) = (key.as_chunks::<BLOCK>().0, value.as_chunks::<BLOCK>().0);
    for (i, (key, value)) in key.iter().zip(value).enumerate() {
        // SAFETY: a block has room for the codes and scales of `PAGE` tokens.
        unsafe {
            let codes = quantise::<S, BITS>(key, keys.scales(i).add(slot));
            let to = keys.codes(i).add(4 * slot);
            for at in 0..BLOCK * BITS / 8 {
                let code = if BITS == 8 {
                    codes[at]
                } else {
                    codes[at / 4 * 8 + at % 4] | codes[at / 4 * 8 + at % 4 + 4] << 4
                };
                *to.add(at / 4 * 4 * PAGE + at % 4) = code;
            }
            let codes = quantise::<S, BITS>(value, values.scales(i).add(slot));
            let to = values.codes(i).add(slot / 4 * BLOCK * BITS / 2 + slot % 4);
            for at in 0..BLOCK * BITS / 8 {
                *to.add(4 * at) = if BITS == 8 { codes[at] } else { codes[at] | codes[at + BLOCK / 2] << 4 };
            }
        }
    }
}

/// Codes of a block, a byte each, and its scale to `scale`.
#[inline(always)]
unsafe fn quantise<S: Simd, const BITS: usize>(x: &[f32; BLOCK], scale: *mut u16) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    let mut half = [0; LANES];
    // SAFETY: a block is two vectors.
    unsafe {
        let x = [S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES))];
        let zero = S::splat(0.0);
        let highest = S::largest(S::max(x[0], x[1]));
        let lowest = -S::largest(S::max(S::sub(zero, x[0]), S::sub(zero, x[1])));
        let extreme = if highest >= -lowest { highest } else { lowest };
        let (unit, low, high) =
            if BITS == 8 { (extreme.abs() / 127.0, -127.0, 127.0) } else { (extreme / -8.0, -8.0, 7.0) };
        S::store_f16(half.as_mut_ptr(), S::splat(unit));
        *scale = half[0];
        // A scale of zero would make NaNs of the values.
        let divisor = if half[0] & 0x7fff == 0 { S::splat(f32::INFINITY) } else { S::load_f16(half.as_ptr()) };
        for (v, &x) in x.iter().enumerate() {
            let value = S::min(S::max(S::div(x, divisor), S::splat(low)), S::splat(high));
            let code = S::add_i32(S::round(away::<S>(value)), S::splat_i32(if BITS == 8 { 0 } else { 8 }));
            S::store_i8(codes.as_mut_ptr().add(v * LANES).cast(), code);
        }
    }
    codes
}

/// The nearest whole number, ties away from zero.
#[inline(always)]
unsafe fn away<S: Simd>(x: S::F) -> S::F {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let nearest = S::float(S::round(x));
        let one = S::select_less(x, S::splat(0.0), S::splat(-1.0), S::splat(1.0));
        let missing = S::mul(S::sub(x, nearest), one);
        S::select_less(missing, S::splat(0.5), nearest, S::add(nearest, one))
    }
}
