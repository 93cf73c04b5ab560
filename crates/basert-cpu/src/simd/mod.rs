//! Sixteen lanes, the same on every machine.
//!
//! Kernels are written once, generic over [`Simd`]: a vector is always 16 `f32`, 16 `i32` or 64 bytes, in the registers
//! of the machine (one of AVX-512, two of AVX2, four of NEON, an array in plain Rust). Every operation is either exact
//! or rounds as IEEE 754 says, so a kernel gives the same bits on all of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::{Avx2, Narrow, Vnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::{Basic, Dotprod, I8mm, Neon};
pub use portable::Portable;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Vectors of 16 lanes and the operations that kernels need.
///
/// # Safety
/// Calling any function requires that the machine has the instructions of the implementation, and, to be fast, that the
/// caller is compiled with them (see `dispatch!`). Pointers must be valid for the access, and need no alignment unless
/// stated.
#[allow(missing_docs, clippy::missing_safety_doc)]
pub trait Simd {
    /// Whether a vector is one register, of which there are 32.
    const WIDE: bool;

    /// Whether instructions multiply two rows of activations at once: kernels for many rows then use `dot_pair`.
    const PAIRS: bool = false;

    /// 16 `f32`.
    type F: Copy;
    /// 16 `i32`.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;
    /// The accumulator of products of bytes, before they are added to an `I`: another `I`, or, if `NARROW`, 16 bits for
    /// every two products.
    type H: Copy;
    const NARROW: bool = false;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// Widens 16 `f16`.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Widens 16 `bf16`.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Rounds to nearest even `f16`.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger lane; which one when either is NaN is not defined.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller lane; which one when either is NaN is not defined.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Lanes of `x` where `a < b`, else those of `y`.
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Nearest integer, ties to even. The lanes must be in the range of `i32`.
    unsafe fn round(x: Self::F) -> Self::I;
    /// Rounds to nearest `f32`.
    unsafe fn float(x: Self::I) -> Self::F;
    unsafe fn bits(x: Self::F) -> Self::I;
    unsafe fn from_bits(x: Self::I) -> Self::F;

    unsafe fn splat_i32(x: i32) -> Self::I;
    /// Wrapping sum.
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn and_i32(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn max_i32(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts each lane left by `n` < 32.
    unsafe fn shl_i32(x: Self::I, n: u32) -> Self::I;
    /// Shifts each lane right by `n` < 32, filling with the sign.
    unsafe fn shr_i32(x: Self::I, n: u32) -> Self::I;
    unsafe fn load_u8(p: *const u8) -> Self::I;
    unsafe fn load_i8(p: *const i8) -> Self::I;
    /// Stores the low byte of each lane.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    unsafe fn store_i32(p: *mut i32, x: Self::I);

    /// Loads 64 bytes from an address that is a multiple of 64.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// Stores 64 bytes at an address that is a multiple of 64.
    unsafe fn store_bytes(p: *mut u8, x: Self::B);
    /// Wrapping difference of bytes.
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B;
    /// Repeats the 16 bytes at `p` four times.
    unsafe fn load_table(p: *const u8) -> Self::B;
    /// Repeats the four bytes at `p` in every lane.
    unsafe fn broadcast4(p: *const i8) -> Self::B;
    unsafe fn splat_u8(x: u8) -> Self::B;
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Moves the bits of each byte left by `n`, or right by `-n`; |n| < 8. The bits shifted in from outside of the byte
    /// are not defined.
    unsafe fn shift_bits(x: Self::B, n: i32) -> Self::B;
    /// `table[index]` for every byte; indices are below 16, the table is one of `load_table`.
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B;

    /// Begins to add products to `sum`.
    unsafe fn begin(sum: Self::I) -> Self::H;
    /// `sum`, with the products that were added since `begin`. If `NARROW`, the sum of two neighbouring products must
    /// not exceed 32,767.
    unsafe fn end(sum: Self::I, products: Self::H) -> Self::I;
    /// Adds for each lane the products of its four bytes of `codes`, all in [0, 127], and of `x`, in [-127, 127].
    unsafe fn dot(products: Self::H, codes: Self::B, x: Self::B) -> Self::H;
    /// The operand of `dot_signed` for the signed bytes `x`.
    unsafe fn signed_operand(x: Self::B) -> Self::B;
    /// The initial value of a sum of `dot_signed`, given −128 times the sum of all its x.
    unsafe fn signed_start(start: i32) -> Self::I;
    /// As `dot`, for signed bytes through `signed_operand` and a sum begun with `signed_start`.
    unsafe fn dot_signed(products: Self::H, operand: Self::B, x: Self::B) -> Self::H;

    /// The operand of `dot_pair` for eight columns, of which the first four and the last four are `signed_operand`s.
    /// These three functions are called only if `PAIRS`.
    #[inline(always)]
    unsafe fn pair_columns(columns: [Self::B; 2]) -> [Self::B; 2] {
        columns
    }
    /// Adds as `dot_signed`, for eight columns and two rows of activations, with 8 codes each at `x`.
    #[inline(always)]
    unsafe fn dot_pair(mut acc: [Self::I; 2], weights: [Self::B; 2], x: [*const i8; 2]) -> [Self::I; 2] {
        for (i, weights) in weights.into_iter().enumerate() {
            for (acc, x) in acc.iter_mut().zip(x) {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let products = Self::dot_signed(Self::begin(*acc), weights, Self::broadcast4(x.add(4 * i)));
                    *acc = Self::end(*acc, products);
                }
            }
        }
        acc
    }
    /// The sums of each of the two rows, from one of `dot_pair` that began with zeros.
    #[inline(always)]
    unsafe fn unpair(acc: [Self::I; 2]) -> [Self::I; 2] {
        acc
    }

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn lanes(x: Self::F) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        lanes
    }

    /// Prefetches a cache line that will be read soon into L1. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// Prefetches a cache line that will be read later into L2, which has more requests in flight. The address need not
    /// be valid.
    #[inline(always)]
    unsafe fn prefetch_far(_p: *const u8) {}

    /// The wrapping sum of the lanes.
    #[inline(always)]
    unsafe fn sum_i32(x: Self::I) -> i32 {
        let mut lanes = [0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { Self::store_i32(lanes.as_mut_ptr(), x) };
        lanes.into_iter().fold(0, i32::wrapping_add)
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest_i32(x: Self::I) -> i32 {
        let mut lanes = [0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { Self::store_i32(lanes.as_mut_ptr(), x) };
        lanes.into_iter().fold(i32::MIN, i32::max)
    }

    /// The sum of the lanes, halves onto halves.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        // SAFETY: guaranteed by the caller.
        fold(unsafe { Self::lanes(x) }, |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        // SAFETY: guaranteed by the caller.
        fold(unsafe { Self::lanes(x) }, |a, b| if a > b { a } else { b })
    }
}

/// Products whose accumulator is an `I`.
macro_rules! wide_products {
    () => {
        type H = Self::I;

        #[inline(always)]
        unsafe fn begin(sum: Self::I) -> Self::I {
            sum
        }
        #[inline(always)]
        unsafe fn end(_sum: Self::I, products: Self::I) -> Self::I {
            products
        }
    };
}
use wide_products;

#[inline(always)]
fn fold(mut x: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            x[i] = op(x[i], x[i + width]);
        }
        width /= 2;
    }
    x[0]
}
