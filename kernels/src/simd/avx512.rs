//! AVX-512 F, VL, DQ and BW: 16 lanes, 32 registers, masks in registers of their own.

use std::arch::x86_64::*;

use super::avx2::transpose_8x8;
use super::{Job, Simd, unaligned};

/// Proof that the CPU has AVX-512 F, VL, DQ and BW, AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// - The CPU has AVX-512 F, VL, DQ and BW, AVX2 and FMA.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY, for each block below without a note of its own: a value of `Avx512` exists only where the CPU has
// the features named there, and these intrinsics need nothing else. Pointers are the caller's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type Narrow = super::avx2::Avx2;

    #[inline(always)]
    fn narrow(self) -> Self::Narrow {
        // SAFETY: whoever has AVX-512 has AVX2 and FMA.
        unsafe { super::avx2::Avx2::new() }
    }

    #[inline(always)]
    fn widen(self, low: __m256, rest: __m512) -> __m512 {
        unsafe { _mm512_insertf32x8::<0>(rest, low) }
    }

    #[inline(always)]
    fn split_power(self, x: __m512) -> (__m512, __m512) {
        let whole = unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) };
        (whole, self.sub(x, whole))
    }

    #[inline(always)]
    fn times_power(self, m: __mmask16, a: __m512, power: __m512) -> __m512 {
        unsafe { _mm512_maskz_scalef_ps(!m, a, power) }
    }

    #[inline(always)]
    fn call<J: Job>(self, job: J) -> J::Output {
        unsafe { outlined(job) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { unaligned::read(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        unsafe { unaligned::write(p, v) }
    }
    #[inline(always)]
    fn mask_first(self, n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, m: __mmask16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(m, p) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, m: __mmask16, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, m, v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        // The instruction returns its second operand unless the first is larger.
        unsafe { _mm512_max_ps(b, a) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    fn not(self, a: __mmask16) -> __mmask16 {
        !a
    }
    #[inline(always)]
    fn bits(self, m: __mmask16) -> u32 {
        m as u32
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn int_to_float(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits_to_int(self, a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn int_to_bits(self, a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn add_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn mul_even(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mul_epu32(a, b) }
    }
    #[inline(always)]
    fn odd_to_even(self, a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi64::<32>(a) }
    }
    #[inline(always)]
    fn join_even(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mask_blend_epi32(0b1010_1010_1010_1010, a, _mm512_slli_epi64::<32>(b)) }
    }
    #[inline(always)]
    fn shl_int<const BITS: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }
    #[inline(always)]
    fn shr_int<const BITS: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<BITS>(a) }
    }
    #[inline(always)]
    fn even_odd(self, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
    #[inline(always)]
    fn interleave(self, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            let high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    }
    #[inline(always)]
    fn groups<const WIDTH: usize>(self, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            match WIDTH {
                8 => (_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b)),
                4 => (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)),
                2 => {
                    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                    let even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
                    let odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
                    let pick = |which| _mm512_castpd_ps(_mm512_permutex2var_pd(a, which, b));
                    (pick(even), pick(odd))
                }
                _ => self.even_odd(a, b),
            }
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(a) }
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
        // Four blocks of 8 x 8: 512-bit shuffles share a port with an FMA unit on Intel's cores, loads do not.
        // The right half of each row first, or it would overwrite the left half of a later one.
        for i in [1isize, 0] {
            for j in 0..2isize {
                // SAFETY: the caller's contract covers all four blocks.
                unsafe {
                    transpose_8x8(
                        from.offset(8 * i * from_stride + 8 * j),
                        from_stride,
                        to.offset(8 * j * to_stride + 8 * i),
                        to_stride,
                    );
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m512) {
        debug_assert!(p.addr().is_multiple_of(size_of::<__m512>()));
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// # Safety
/// - The CPU has AVX-512 F, VL, DQ and BW, AVX2 and FMA.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn outlined<J: Job>(job: J) -> J::Output {
    // SAFETY: the caller vouches for the features.
    job.run(unsafe { Avx512::new() })
}
