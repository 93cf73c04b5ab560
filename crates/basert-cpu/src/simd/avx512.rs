//! AVX-512 with VNNI: a vector is one register.

// The contract of every function here is that of the trait.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Simd, wide_products};

/// AVX-512 F, BW, VL, DQ, VNNI.
pub struct Avx512;

/// Widens 16 `f16`. The intrinsic loads first and then converts from register to register, which takes twice the vector
/// port operations.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen(p: *const u16) -> __m512 {
    let wide: __m512;
    asm!("vcvtph2ps {}, ymmword ptr [{}]", lateout(zmm_reg) wide, in(reg) p, options(pure, readonly, nostack, preserves_flags));
    wide
}

impl Simd for Avx512 {
    const WIDE: bool = true;

    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    wide_products!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        widen(p)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        _mm512_cvtps_epi32(x)
    }
    #[inline(always)]
    unsafe fn float(x: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(x)
    }
    #[inline(always)]
    unsafe fn bits(x: __m512) -> __m512i {
        _mm512_castps_si512(x)
    }
    #[inline(always)]
    unsafe fn from_bits(x: __m512i) -> __m512 {
        _mm512_castsi512_ps(x)
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn and_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn max_i32(a: __m512i, b: __m512i) -> __m512i {
        _mm512_max_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn shl_i32(x: __m512i, n: u32) -> __m512i {
        _mm512_sll_epi32(x, _mm_cvtsi32_si128(n as i32))
    }
    #[inline(always)]
    unsafe fn shr_i32(x: __m512i, n: u32) -> __m512i {
        _mm512_sra_epi32(x, _mm_cvtsi32_si128(n as i32))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512i {
        _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512i {
        _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m512i) {
        _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x))
    }
    #[inline(always)]
    unsafe fn store_i32(p: *mut i32, x: __m512i) {
        _mm512_storeu_si512(p.cast(), x)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m512i {
        _mm512_load_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: __m512i) {
        _mm512_store_si512(p.cast(), x)
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: __m512i, b: __m512i) -> __m512i {
        _mm512_sub_epi8(a, b)
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
    #[inline(always)]
    unsafe fn sum_i32(x: __m512i) -> i32 {
        _mm512_reduce_add_epi32(x)
    }
    #[inline(always)]
    unsafe fn largest_i32(x: __m512i) -> i32 {
        _mm512_reduce_max_epi32(x)
    }
    #[inline(always)]
    unsafe fn load_table(p: *const u8) -> __m512i {
        _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn broadcast4(p: *const i8) -> __m512i {
        _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> __m512i {
        _mm512_set1_epi8(x as i8)
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    // One operation even where `n` is known only at run time.
    #[inline(always)]
    unsafe fn shift_bits(x: __m512i, n: i32) -> __m512i {
        _mm512_rolv_epi32(x, _mm512_set1_epi32(n & 31))
    }
    #[inline(always)]
    unsafe fn lookup(table: __m512i, index: __m512i) -> __m512i {
        _mm512_shuffle_epi8(table, index)
    }

    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(acc, codes, x)
    }
    // The instruction multiplies unsigned by signed bytes: add 128 to the weights, and subtract 128·Σx at the start.
    #[inline(always)]
    unsafe fn signed_operand(x: __m512i) -> __m512i {
        _mm512_xor_si512(x, _mm512_set1_epi8(-128))
    }
    #[inline(always)]
    unsafe fn signed_start(start: i32) -> __m512i {
        _mm512_set1_epi32(start)
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: __m512i, operand: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(acc, operand, x)
    }
}
