//! Plain Rust: a vector is an array.

// The contract of every function here is that of the trait.
#![allow(unsafe_op_in_unsafe_fn)]

use std::array::from_fn;

use half::{bf16, f16};

use super::{LANES, Simd, wide_products};

/// Only the baseline instructions of the target.
pub struct Portable;

impl Simd for Portable {
    const WIDE: bool = false;
    // No faster, but so the tests of every machine cover this path.
    const PAIRS: bool = true;

    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 4 * LANES];

    wide_products!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        p.cast::<Self::F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        p.cast::<Self::F>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        p.cast::<[u16; LANES]>().read_unaligned().map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        p.cast::<[u16; LANES]>().read_unaligned().map(|x| bf16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        p.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits()))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn bits(x: Self::F) -> Self::I {
        x.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn and_i32(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn max_i32(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn shl_i32(x: Self::I, n: u32) -> Self::I {
        x.map(|x| x << n)
    }
    #[inline(always)]
    unsafe fn shr_i32(x: Self::I, n: u32) -> Self::I {
        x.map(|x| x >> n)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        p.cast::<[u8; LANES]>().read().map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        p.cast::<[i8; LANES]>().read().map(i32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        p.cast::<[i8; LANES]>().write(x.map(|x| x as i8))
    }
    #[inline(always)]
    unsafe fn store_i32(p: *mut i32, x: Self::I) {
        p.cast::<Self::I>().write_unaligned(x)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        p.cast::<Self::B>().read()
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        p.cast::<Self::B>().write(x)
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        from_fn(|i| *p.add(i % 16))
    }
    #[inline(always)]
    unsafe fn broadcast4(p: *const i8) -> Self::B {
        from_fn(|i| *p.add(i % 4) as u8)
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> Self::B {
        [x; 4 * LANES]
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shift_bits(x: Self::B, n: i32) -> Self::B {
        x.map(|x| if n < 0 { x >> -n } else { x << n })
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        index.map(|i| table[usize::from(i & 15)])
    }

    #[inline(always)]
    unsafe fn dot(acc: Self::I, codes: Self::B, x: Self::B) -> Self::I {
        from_fn(|i| acc[i] + (4 * i..4 * i + 4).map(|j| i32::from(codes[j]) * i32::from(x[j] as i8)).sum::<i32>())
    }
    #[inline(always)]
    unsafe fn signed_operand(x: Self::B) -> Self::B {
        x
    }
    #[inline(always)]
    unsafe fn signed_start(_start: i32) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, operand: Self::B, x: Self::B) -> Self::I {
        let dot4 =
            |i: usize| (4 * i..4 * i + 4).map(|j| i32::from(operand[j] as i8) * i32::from(x[j] as i8)).sum::<i32>();
        from_fn(|i| acc[i] + dot4(i))
    }
}
