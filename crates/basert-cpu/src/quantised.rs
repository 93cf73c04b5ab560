//! Activations as small integers.

use crate::isa::dispatch;
use crate::simd::{LANES, Simd};
use crate::tiles::Tiles;

/// Values that share a scale.
pub const BLOCK: usize = 32;

/// 32 values of a row with everything that a kernel needs, in one cache line.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// In [-127, 127].
    pub codes: [i8; BLOCK],
    /// Value of code 1; NaN if a value was not finite.
    pub scale: f32,
    /// −128 times the sum of the codes, and that of each half: see [`Simd::signed_start`].
    pub start: i32,
    pub half_starts: [i32; 2],
    /// `scale` times the sum of the codes, and that of each half.
    pub scaled_sum: f32,
    pub half_scaled_sums: [f32; 2],
    _pad: u32,
}

/// A matrix of activations, each row quantised to 8 bits in blocks of 32 values.
///
/// A block's scale is its largest magnitude over 127. Rows lie interleaved by block.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedRows<'a>(Tiles<'a, Block>);

impl<'a> QuantisedRows<'a> {
    /// The size of such a matrix in bytes; it is aligned to 64.
    pub const fn bytes(rows: usize, k: usize) -> usize {
        rows.saturating_mul(k.div_ceil(BLOCK)).saturating_mul(size_of::<Block>())
    }

    /// A view of `memory`.
    ///
    /// # Panics
    /// When the memory is too small or not aligned to 64 bytes, or `k` is not a multiple of 32.
    pub fn new(memory: &'a mut [u8], rows: usize, k: usize) -> QuantisedRows<'a> {
        assert!(memory.len() >= QuantisedRows::bytes(rows, k));
        // SAFETY: just checked; the lifetime is that of the borrow.
        unsafe { QuantisedRows::from_raw(memory.as_mut_ptr(), rows, k) }
    }

    /// A view of the memory at `start`.
    ///
    /// # Safety
    /// It must have [`bytes`](QuantisedRows::bytes) bytes, live as long as `'a`, and be reached through views only in
    /// that time.
    ///
    /// # Panics
    /// When it is not aligned to 64 bytes, or `k` is not a multiple of 32.
    pub unsafe fn from_raw(start: *mut u8, rows: usize, k: usize) -> QuantisedRows<'a> {
        assert_eq!(k % BLOCK, 0, "rows of {k} values are not whole blocks of {BLOCK}");
        // SAFETY: guaranteed by the caller.
        QuantisedRows(unsafe { Tiles::from_raw(start.cast(), rows, k / BLOCK) })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Values in a row.
    pub fn k(&self) -> usize {
        self.0.width() * BLOCK
    }

    /// See [`Tiles::tile`].
    pub(crate) fn tile(&self, row: usize) -> (*const Block, usize) {
        self.0.tile(row)
    }

    /// Quantises `x` into `row`.
    ///
    /// # Safety
    /// Nobody else reads or writes that row at the same time.
    ///
    /// # Panics
    /// When there is no such row, or `x` is not as long.
    pub unsafe fn write(&self, isa: crate::Isa, row: usize, x: &[f32]) {
        assert_eq!(x.len(), self.k());
        let (start, step) = self.0.row(row);
        // SAFETY: `start` and `step` are those of the row, which has as many blocks as `x`.
        unsafe { quantise(isa, x, start, step) }
    }

    /// Dequantises `row` into `x`.
    ///
    /// # Safety
    /// Nobody writes that row at the same time.
    ///
    /// # Panics
    /// When there is no such row, or `x` is not as long.
    pub unsafe fn read(&self, row: usize, x: &mut [f32]) {
        assert_eq!(x.len(), self.k());
        let (start, step) = self.0.row(row);
        for (b, x) in x.chunks_exact_mut(BLOCK).enumerate() {
            // SAFETY: a block of the row, in the view's memory; the caller excludes races.
            let block = unsafe { start.add(b * step).read() };
            for (x, code) in x.iter_mut().zip(block.codes) {
                *x = block.scale * f32::from(code);
            }
        }
    }
}

dispatch! {
    unsafe fn quantise(x: &[f32], out: *mut Block, step: usize) = quantise_kernel;
}

/// The largest magnitude of some whole vectors. Magnitudes compare as integers, with infinity and NaN above all.
#[inline(always)]
pub(crate) unsafe fn largest<S: Simd>(x: *const f32, len: usize) -> f32 {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut largest = S::splat_i32(0);
        for at in (0..len).step_by(LANES) {
            largest = S::max_i32(largest, S::and_i32(S::bits(S::load(x.add(at))), S::splat_i32(0x7fff_ffff)));
        }
        f32::from_bits(S::largest_i32(largest) as u32)
    }
}

/// The value of code 1, and the factor from values to codes, such that the `largest` value becomes `code`. NaN and zero
/// if it is not finite.
#[inline(always)]
pub(crate) fn unit(largest: f32, code: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < TINY {
        (0.0, 0.0)
    } else {
        (largest / code, code / largest)
    }
}

/// Below this the reciprocal of a unit could overflow; such values become zeros.
const TINY: f32 = 1e-34;

#[inline(always)]
unsafe fn quantise_kernel<S: Simd>(x: &[f32], out: *mut Block, step: usize) {
    // SAFETY: `x` has whole blocks, `out` one every `step` blocks for each.
    unsafe {
        for (b, x) in x.chunks_exact(BLOCK).enumerate() {
            let block = &mut *out.add(b * step);
            let halves = [S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES))];
            let (scale, inverse) = unit(largest::<S>(x.as_ptr(), BLOCK), 127.0);
            let mut sums = [0i32; 2];
            for half in 0..2 {
                let scaled = if scale.is_nan() { S::splat(0.0) } else { S::mul(halves[half], S::splat(inverse)) };
                let codes = S::round(scaled);
                S::store_i8(block.codes.as_mut_ptr().add(half * LANES), codes);
                sums[half] = S::sum_i32(codes);
                block.half_starts[half] = -128 * sums[half];
                block.half_scaled_sums[half] = scale * sums[half] as f32;
            }
            block.scale = scale;
            block.start = -128 * (sums[0] + sums[1]);
            block.scaled_sum = scale * (sums[0] + sums[1]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, Isa};

    fn sample(k: usize, seed: usize) -> Vec<f32> {
        (0..k).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0) * (1.0 + (i / 32) as f32)).collect()
    }

    #[test]
    fn every_row_reads_back_within_half_a_code_on_every_isa() {
        for rows in [1, 2, 3, 4, 7, 9, 12, 23] {
            let k = 96;
            let mut first: Option<Vec<u8>> = None;
            for isa in Isa::available() {
                let mut memory = Buffer::zeroed(QuantisedRows::bytes(rows, k)).unwrap();
                let view = QuantisedRows::new(&mut memory, rows, k);
                for row in 0..rows {
                    // SAFETY: there is only one thread.
                    unsafe { view.write(isa, row, &sample(k, row)) };
                }
                for row in 0..rows {
                    let mut back = vec![0.0; k];
                    // SAFETY: there is only one thread.
                    unsafe { view.read(row, &mut back) };
                    for (block, (x, y)) in sample(k, row).chunks(32).zip(back.chunks(32)).enumerate() {
                        let bound = x.iter().fold(0.0, |a: f32, b| a.max(b.abs())) / 127.0 * 0.5001;
                        for (x, y) in x.iter().zip(y) {
                            assert!((x - y).abs() <= bound, "{isa} row {row} block {block}: {x} {y}");
                        }
                    }
                }
                let bytes = memory.to_vec();
                assert_eq!(first.get_or_insert_with(|| bytes.clone()), &bytes, "{isa}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_its_block_only() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
                let mut memory = Buffer::zeroed(QuantisedRows::bytes(1, 96)).unwrap();
                let view = QuantisedRows::new(&mut memory, 1, 96);
                let mut x = sample(96, 1);
                x[40] = bad;
                let mut back = vec![0.0; 96];
                // SAFETY: there is only one thread.
                unsafe {
                    view.write(isa, 0, &x);
                    view.read(0, &mut back);
                }
                assert!(back[32..64].iter().all(|x| x.is_nan()), "{isa}");
                assert!(back[..32].iter().chain(&back[64..]).all(|x| x.is_finite()), "{isa}");
            }
            let mut memory = Buffer::zeroed(QuantisedRows::bytes(1, 32)).unwrap();
            let view = QuantisedRows::new(&mut memory, 1, 32);
            let mut back = vec![1.0; 32];
            // SAFETY: there is only one thread.
            unsafe {
                view.write(isa, 0, &[1e-38; 32]);
                view.read(0, &mut back);
            }
            assert!(back.iter().all(|&x| x == 0.0));
        }
    }
}
