//! NEON: a vector is four registers. Machines differ in how they multiply bytes.

// The contract of every function here is that of the trait.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::{Simd, wide_products};

/// NEON, with some products of bytes.
pub struct Neon<P>(PhantomData<P>);

/// Products of signed bytes.
pub trait Products {
    /// Whether there is `smmla`.
    const PAIRS: bool = false;

    /// Adds the dot products of four neighbouring bytes.
    #[allow(clippy::missing_safety_doc, reason = "that of `Simd`")]
    unsafe fn dot(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t;
}

/// The instructions of every AArch64 machine.
pub struct Basic;

impl Products for Basic {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        let (a, b) = (vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
        let high = vpaddlq_s16(vmull_high_s8(a, b));
        vaddq_s32(acc, vpaddq_s32(low, high))
    }
}

/// With the instructions of `dotprod`.
pub struct Dotprod;

impl Products for Dotprod {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        sdot(acc, a, b)
    }
}

/// With the instructions of `dotprod` and `i8mm`.
pub struct I8mm;

impl Products for I8mm {
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        sdot(acc, a, b)
    }
}

/// Applies an intrinsic to all quarters.
macro_rules! each {
    ($($f:ident)::+($($x:ident),+)) => {
        [$($f)::+($($x[0]),+), $($f)::+($($x[1]),+), $($f)::+($($x[2]),+), $($f)::+($($x[3]),+)]
    };
}

// The intrinsics of these instructions are not stable yet.

/// Adds the dot products of four neighbouring signed bytes.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b, options(pure, nomem, nostack, preserves_flags));
    acc
}

/// Adds the products of two rows of eight signed bytes with two others: lane 2i + j is that of row i of `a` with row j
/// of `b`.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b, options(pure, nomem, nostack, preserves_flags));
    acc
}

/// Widens four `f16`.
#[inline(always)]
unsafe fn widen(x: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) wide, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    wide
}

/// Rounds to four `f16`.
#[inline(always)]
unsafe fn narrow(x: float32x4_t) -> uint16x4_t {
    let half: uint16x4_t;
    asm!("fcvtn {0:v}.4h, {1:v}.4s", lateout(vreg) half, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    half
}

#[inline(always)]
unsafe fn less(a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
    vbslq_f32(vcltq_f32(a, b), x, y)
}

#[inline(always)]
unsafe fn fused(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    vfmaq_f32(c, a, b)
}

impl<P: Products> Simd for Neon<P> {
    const WIDE: bool = false;
    const PAIRS: bool = P::PAIRS;

    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    wide_products!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [vdupq_n_f32(x); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        vst1q_f32(p, x[0]);
        vst1q_f32(p.add(4), x[1]);
        vst1q_f32(p.add(8), x[2]);
        vst1q_f32(p.add(12), x[3]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        [widen(vld1_u16(p)), widen(vld1_u16(p.add(4))), widen(vld1_u16(p.add(8))), widen(vld1_u16(p.add(12)))]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        let quarter = |p: *const u16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)));
        [quarter(p), quarter(p.add(4)), quarter(p.add(8)), quarter(p.add(12))]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        vst1_u16(p, narrow(x[0]));
        vst1_u16(p.add(4), narrow(x[1]));
        vst1_u16(p.add(8), narrow(x[2]));
        vst1_u16(p.add(12), narrow(x[3]));
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each!(vaddq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each!(vsubq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(vmulq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each!(vdivq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(fused(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each!(vminq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        each!(less(a, b, x, y))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        each!(vcvtnq_s32_f32(x))
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        each!(vcvtq_f32_s32(x))
    }
    #[inline(always)]
    unsafe fn bits(x: Self::F) -> Self::I {
        each!(vreinterpretq_s32_f32(x))
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        each!(vreinterpretq_f32_s32(x))
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [vdupq_n_s32(x); 4]
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        each!(vaddq_s32(a, b))
    }
    #[inline(always)]
    unsafe fn and_i32(a: Self::I, b: Self::I) -> Self::I {
        each!(vandq_s32(a, b))
    }
    #[inline(always)]
    unsafe fn max_i32(a: Self::I, b: Self::I) -> Self::I {
        each!(vmaxq_s32(a, b))
    }
    #[inline(always)]
    unsafe fn shl_i32(x: Self::I, n: u32) -> Self::I {
        let n = vdupq_n_s32(n as i32);
        x.map(|x| vshlq_s32(x, n))
    }
    #[inline(always)]
    unsafe fn shr_i32(x: Self::I, n: u32) -> Self::I {
        let n = vdupq_n_s32(-(n as i32));
        x.map(|x| vshlq_s32(x, n))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        let bytes = vld1q_u8(p);
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
        [
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
            vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
            vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high))),
        ]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        let bytes = vld1q_s8(p);
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_s16(vget_high_s16(low)),
            vmovl_s16(vget_low_s16(high)),
            vmovl_s16(vget_high_s16(high)),
        ]
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
        let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
        vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    #[inline(always)]
    unsafe fn store_i32(p: *mut i32, x: Self::I) {
        vst1q_s32(p, x[0]);
        vst1q_s32(p.add(4), x[1]);
        vst1q_s32(p.add(8), x[2]);
        vst1q_s32(p.add(12), x[3]);
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))]
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        vst1q_u8(p, x[0]);
        vst1q_u8(p.add(16), x[1]);
        vst1q_u8(p.add(32), x[2]);
        vst1q_u8(p.add(48), x[3]);
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
        each!(vsubq_u8(a, b))
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> Self::B {
        [vld1q_u8(p); 4]
    }
    #[inline(always)]
    unsafe fn broadcast4(p: *const i8) -> Self::B {
        [vreinterpretq_u8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned())); 4]
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> Self::B {
        [vdupq_n_u8(x); 4]
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        each!(vandq_u8(a, b))
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        each!(vorrq_u8(a, b))
    }
    #[inline(always)]
    unsafe fn shift_bits(x: Self::B, n: i32) -> Self::B {
        let n = vdupq_n_s8(n as i8);
        x.map(|x| vshlq_u8(x, n))
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        each!(vqtbl1q_u8(table, index))
    }

    // Codes up to 127 are the same as signed bytes.
    #[inline(always)]
    unsafe fn dot(acc: Self::I, codes: Self::B, x: Self::B) -> Self::I {
        each!(P::dot(acc, codes, x))
    }
    #[inline(always)]
    unsafe fn signed_operand(x: Self::B) -> Self::B {
        x
    }
    #[inline(always)]
    unsafe fn signed_start(_start: i32) -> Self::I {
        [vdupq_n_s32(0); 4]
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, operand: Self::B, x: Self::B) -> Self::I {
        Self::dot(acc, operand, x)
    }

    // A register holds eight columns of two weight rows, and what they are multiplied by, of two rows of activations.
    #[inline(always)]
    unsafe fn pair_columns([a, b]: [Self::B; 2]) -> [Self::B; 2] {
        let zip = |i: usize| {
            let (a, b) = (vreinterpretq_u32_u8(a[i]), vreinterpretq_u32_u8(b[i]));
            [vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))]
        };
        let ([a, b], [c, d], [e, f], [g, h]) = (zip(0), zip(1), zip(2), zip(3));
        [[a, b, c, d], [e, f, g, h]]
    }
    #[inline(always)]
    unsafe fn dot_pair([low, high]: [Self::I; 2], weights: [Self::B; 2], x: [*const i8; 2]) -> [Self::I; 2] {
        let x = vreinterpretq_u8_s8(vcombine_s8(vld1_s8(x[0]), vld1_s8(x[1])));
        let x = [x; 4];
        let [a, b] = weights;
        [each!(smmla(low, a, x)), each!(smmla(high, b, x))]
    }
    #[inline(always)]
    unsafe fn unpair([low, high]: [Self::I; 2]) -> [Self::I; 2] {
        let first = |x: Self::I, i: usize| vuzp1q_s32(x[i], x[i + 1]);
        let second = |x: Self::I, i: usize| vuzp2q_s32(x[i], x[i + 1]);
        [
            [first(low, 0), first(low, 2), first(high, 0), first(high, 2)],
            [second(low, 0), second(low, 2), second(high, 0), second(high, 2)],
        ]
    }
}
