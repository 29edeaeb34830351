//! AVX2 and FMA: 8 lanes, 16 registers.

use std::arch::x86_64::*;

use super::{Job, Simd, unaligned};

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// - The CPU has AVX2 and FMA.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// A window of eight words into this table, starting at `8 - n`, has its first `n` words set.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

// SAFETY, for each block below without a note of its own: a value of `Avx2` exists only where the CPU has
// AVX2 and FMA, and these intrinsics need nothing else. Pointers are the caller's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type F = __m256;
    type I = __m256i;
    type M = __m256i;
    type Narrow = Self;

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }

    #[inline(always)]
    fn widen(self, low: __m256, _rest: __m256) -> __m256 {
        low
    }

    #[inline(always)]
    fn call<J: Job>(self, job: J) -> J::Output {
        unsafe { outlined(job) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        unsafe { unaligned::read(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        unsafe { unaligned::write(p, v) }
    }
    #[inline(always)]
    fn mask_first(self, n: usize) -> __m256i {
        // SAFETY: `8 - min(n, 8)` is 0..=8, and eight words from there on are inside of the table.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n.min(8)).cast()) }
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, m: __m256i) -> __m256 {
        unsafe { _mm256_maskload_ps(p, m) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, m: __m256i, v: __m256) {
        unsafe { _mm256_maskstore_ps(p, m, v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn larger(self, a: __m256, b: __m256) -> __m256 {
        // The instruction returns its second operand unless the first is larger.
        unsafe { _mm256_max_ps(b, a) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) }
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn not(self, a: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, _mm256_set1_epi32(-1)) }
    }
    #[inline(always)]
    fn bits(self, m: __m256i) -> u32 {
        unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(m)) as u32 }
    }
    #[inline(always)]
    fn select(self, m: __m256i, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m)) }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn int_to_float(self, a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits_to_int(self, a: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn int_to_bits(self, a: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn add_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn xor_int(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn mul_even(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mul_epu32(a, b) }
    }
    #[inline(always)]
    fn odd_to_even(self, a: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi64::<32>(a) }
    }
    #[inline(always)]
    fn join_even(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_blend_epi32::<0b1010_1010>(a, _mm256_slli_epi64::<32>(b)) }
    }
    #[inline(always)]
    fn shl_int<const BITS: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn shr_int<const BITS: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn even_odd(self, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            // Each 128-bit half takes its own pairs, so the middle quarters come out swapped.
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
            let sort = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v)));
            (sort(even), sort(odd))
        }
    }
    #[inline(always)]
    fn interleave(self, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            // Each 128-bit half takes its own pairs: quarters 0 and 2 of the result in one, 1 and 3 in the other.
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }
    #[inline(always)]
    fn groups<const WIDTH: usize>(self, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            match WIDTH {
                4 => (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)),
                2 => {
                    let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                    let sort = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(v));
                    (sort(_mm256_unpacklo_pd(a, b)), sort(_mm256_unpackhi_pd(a, b)))
                }
                _ => self.even_odd(a, b),
            }
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m256) -> __m256 {
        unsafe { _mm256_permute_ps::<0b10_11_00_01>(a) }
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
        unsafe { transpose_8x8(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m256) {
        debug_assert!(p.addr().is_multiple_of(size_of::<__m256>()));
        unsafe { _mm256_stream_ps(p, v) }
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

/// Four floats, and four others, as one vector. No closure of its caller's: an unoptimised one would lose the features.
///
/// # Safety
/// - The CPU has AVX2; four floats are readable at `low` and at `high`.
#[inline(always)]
unsafe fn joined(low: *const f32, high: *const f32) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high)) }
}

/// Transposes 8 x 8 floats. The 128-bit halves are joined by loads, which are cheaper than shuffles.
///
/// # Safety
/// - The CPU has AVX2; eight rows of eight floats are readable and writable at the strides given.
#[inline(always)]
pub(super) unsafe fn transpose_8x8(from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
    // SAFETY: the caller's contract covers every row read and written.
    unsafe {
        for half in 0..2 {
            let mut rows = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let low = from.offset(i as isize * from_stride + 4 * half);
                rows[i] = joined(low, low.offset(4 * from_stride));
            }
            let [r0, r1, r2, r3] = rows;
            let (t0, t1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (t2, t3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            let columns = [
                _mm256_shuffle_ps::<0b01_00_01_00>(t0, t2),
                _mm256_shuffle_ps::<0b11_10_11_10>(t0, t2),
                _mm256_shuffle_ps::<0b01_00_01_00>(t1, t3),
                _mm256_shuffle_ps::<0b11_10_11_10>(t1, t3),
            ];
            for j in 0..4 {
                _mm256_storeu_ps(to.offset((4 * half + j as isize) * to_stride), columns[j]);
            }
        }
    }
}

/// # Safety
/// - The CPU has AVX2 and FMA.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn outlined<J: Job>(job: J) -> J::Output {
    // SAFETY: the caller vouches for the features.
    job.run(unsafe { Avx2::new() })
}
