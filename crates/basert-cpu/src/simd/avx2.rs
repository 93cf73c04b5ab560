//! AVX2 with FMA and F16C: a vector is two registers. Machines differ in how they multiply bytes.

// The contract of every function here is that of the trait.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::Simd;

/// AVX2, FMA, F16C, with some products of bytes.
pub struct Avx2<P>(PhantomData<P>);

type Two = [__m256i; 2];

/// Products of bytes: see the functions of [`Simd`] that have these names.
#[allow(missing_docs, clippy::missing_safety_doc)]
pub trait Products {
    const NARROW: bool;

    unsafe fn begin(sum: Two) -> Two;
    unsafe fn end(sum: Two, products: Two) -> Two;
    unsafe fn dot(products: Two, codes: Two, x: Two) -> Two;
    unsafe fn signed_operand(x: Two) -> Two;
    unsafe fn signed_start(start: i32) -> Two;
    unsafe fn dot_signed(products: Two, operand: Two, x: Two) -> Two;
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($f:ident($($x:ident),+)) => {
        [$f($($x[0]),+), $f($($x[1]),+)]
    };
}

/// The products of AVX2, which sum to 16 bits.
pub struct Narrow;

impl Products for Narrow {
    const NARROW: bool = true;

    #[inline(always)]
    unsafe fn begin(_sum: Two) -> Two {
        [_mm256_setzero_si256(); 2]
    }
    #[inline(always)]
    unsafe fn end(sum: Two, products: Two) -> Two {
        let ones = [_mm256_set1_epi16(1); 2];
        let wide = both!(_mm256_madd_epi16(products, ones));
        both!(_mm256_add_epi32(sum, wide))
    }
    #[inline(always)]
    unsafe fn dot(products: Two, codes: Two, x: Two) -> Two {
        let two = both!(_mm256_maddubs_epi16(codes, x));
        both!(_mm256_add_epi16(products, two))
    }
    #[inline(always)]
    unsafe fn signed_operand(x: Two) -> Two {
        x
    }
    #[inline(always)]
    unsafe fn signed_start(_start: i32) -> Two {
        [_mm256_setzero_si256(); 2]
    }
    // |w| · (x with the sign of w); −128 is a magnitude too, for it counts as unsigned.
    #[inline(always)]
    unsafe fn dot_signed(products: Two, operand: Two, x: Two) -> Two {
        let magnitude = both!(_mm256_abs_epi8(operand));
        let signed = both!(_mm256_sign_epi8(x, operand));
        Self::dot(products, magnitude, signed)
    }
}

/// The products of AVX-VNNI, whose instructions multiply unsigned by signed bytes, like those of AVX-512.
pub struct Vnni;

impl Products for Vnni {
    const NARROW: bool = false;

    #[inline(always)]
    unsafe fn begin(sum: Two) -> Two {
        sum
    }
    #[inline(always)]
    unsafe fn end(_sum: Two, products: Two) -> Two {
        products
    }
    #[inline(always)]
    unsafe fn dot(products: Two, codes: Two, x: Two) -> Two {
        both!(_mm256_dpbusd_avx_epi32(products, codes, x))
    }
    #[inline(always)]
    unsafe fn signed_operand(x: Two) -> Two {
        [_mm256_xor_si256(x[0], _mm256_set1_epi8(-128)), _mm256_xor_si256(x[1], _mm256_set1_epi8(-128))]
    }
    #[inline(always)]
    unsafe fn signed_start(start: i32) -> Two {
        [_mm256_set1_epi32(start); 2]
    }
    #[inline(always)]
    unsafe fn dot_signed(products: Two, operand: Two, x: Two) -> Two {
        Self::dot(products, operand, x)
    }
}

#[inline(always)]
unsafe fn widen_bf16(p: *const u16) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
}

impl<P: Products> Simd for Avx2<P> {
    const WIDE: bool = false;

    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type H = [__m256i; 2];
    const NARROW: bool = P::NARROW;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [_mm256_set1_ps(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        _mm256_storeu_ps(p, x[0]);
        _mm256_storeu_ps(p.add(8), x[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        [widen_bf16(p), widen_bf16(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
        _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let less = [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])];
        both!(_mm256_blendv_ps(y, x, less))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        both!(_mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    unsafe fn bits(x: Self::F) -> Self::I {
        both!(_mm256_castps_si256(x))
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        both!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [_mm256_set1_epi32(x); 2]
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn and_i32(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    unsafe fn max_i32(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn shl_i32(x: Self::I, n: u32) -> Self::I {
        let n = _mm_cvtsi32_si128(n as i32);
        [_mm256_sll_epi32(x[0], n), _mm256_sll_epi32(x[1], n)]
    }
    #[inline(always)]
    unsafe fn shr_i32(x: Self::I, n: u32) -> Self::I {
        let n = _mm_cvtsi32_si128(n as i32);
        [_mm256_sra_epi32(x[0], n), _mm256_sra_epi32(x[1], n)]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        [_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        [_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        let lowest =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
        // Four bytes of each quarter: the first and third, and the second and fourth.
        let fours = _mm256_unpacklo_epi32(_mm256_shuffle_epi8(x[0], lowest), _mm256_shuffle_epi8(x[1], lowest));
        let (even, odd) = (_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
        _mm_storeu_si128(p.cast(), _mm_unpacklo_epi32(even, odd));
    }
    #[inline(always)]
    unsafe fn sum_i32(x: Self::I) -> i32 {
        let eight = _mm256_add_epi32(x[0], x[1]);
        let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
    #[inline(always)]
    unsafe fn largest_i32(x: Self::I) -> i32 {
        let eight = _mm256_max_epi32(x[0], x[1]);
        let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
        _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
    #[inline(always)]
    unsafe fn store_i32(p: *mut i32, x: Self::I) {
        _mm256_storeu_si256(p.cast(), x[0]);
        _mm256_storeu_si256(p.add(8).cast(), x[1]);
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        [_mm256_load_si256(p.cast()), _mm256_load_si256(p.add(32).cast())]
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        _mm256_store_si256(p.cast(), x[0]);
        _mm256_store_si256(p.add(32).cast(), x[1]);
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::B, b: Self::B) -> Self::B {
        both!(_mm256_sub_epi8(a, b))
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
    unsafe fn load_table(p: *const u8) -> Self::B {
        [_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())); 2]
    }
    #[inline(always)]
    unsafe fn broadcast4(p: *const i8) -> Self::B {
        [_mm256_set1_epi32(p.cast::<i32>().read_unaligned()); 2]
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> Self::B {
        [_mm256_set1_epi8(x as i8); 2]
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        both!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        both!(_mm256_or_si256(a, b))
    }
    // A count of 16 or more, as negative ones are, gives zero.
    #[inline(always)]
    unsafe fn shift_bits(x: Self::B, n: i32) -> Self::B {
        if n == 0 {
            return x;
        }
        let (left, right) = (_mm_cvtsi32_si128(n), _mm_cvtsi32_si128(-n));
        let (left, right) = ([left; 2], [right; 2]);
        let (left, right) = (both!(_mm256_sll_epi16(x, left)), both!(_mm256_srl_epi16(x, right)));
        both!(_mm256_or_si256(left, right))
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        both!(_mm256_shuffle_epi8(table, index))
    }

    #[inline(always)]
    unsafe fn begin(sum: Self::I) -> Self::H {
        P::begin(sum)
    }
    #[inline(always)]
    unsafe fn end(sum: Self::I, products: Self::H) -> Self::I {
        P::end(sum, products)
    }
    #[inline(always)]
    unsafe fn dot(products: Self::H, codes: Self::B, x: Self::B) -> Self::H {
        P::dot(products, codes, x)
    }
    #[inline(always)]
    unsafe fn signed_operand(x: Self::B) -> Self::B {
        P::signed_operand(x)
    }
    #[inline(always)]
    unsafe fn signed_start(start: i32) -> Self::I {
        P::signed_start(start)
    }
    #[inline(always)]
    unsafe fn dot_signed(products: Self::H, operand: Self::B, x: Self::B) -> Self::H {
        P::dot_signed(products, operand, x)
    }
}
