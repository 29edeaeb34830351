//! Every other CPU, through the crate `wide`: 4 lanes of SSE2, NEON, WebAssembly SIMD or scalar code.
//!
//! `wide`'s `mul_add` is fused only where the target was compiled with FMA (always on AArch64), so on plain
//! x86-64 this implementation rounds twice where the others round once.

use wide::{f32x4, i32x4};

use super::{Job, Simd, unaligned};

/// Needs no proof: every CPU will do.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    type F = f32x4;
    type I = i32x4;
    type M = f32x4;
    type Narrow = Self;

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }

    #[inline(always)]
    fn widen(self, low: Self::F, _rest: Self::F) -> Self::F {
        low
    }

    #[inline(always)]
    fn call<J: Job>(self, job: J) -> J::Output {
        outlined(job)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> f32x4 {
        f32x4::splat(x)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32x4 {
        // SAFETY: the caller's contract; the read is unaligned.
        f32x4::new(unsafe { unaligned::read(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32x4) {
        // SAFETY: the caller's contract; the write is unaligned.
        unsafe { unaligned::write(p, v.to_array()) }
    }
    #[inline(always)]
    fn mask_first(self, n: usize) -> f32x4 {
        let word = |lane: usize| f32::from_bits(if lane < n { u32::MAX } else { 0 });
        f32x4::new([word(0), word(1), word(2), word(3)])
    }
    #[inline(always)]
    unsafe fn load_masked(self, p: *const f32, m: f32x4) -> f32x4 {
        let bits = self.bits(m);
        // SAFETY: only true lanes are read.
        let lane = |l: usize| if bits >> l & 1 == 1 { unsafe { *p.add(l) } } else { 0.0 };
        f32x4::new([lane(0), lane(1), lane(2), lane(3)])
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, m: f32x4, v: f32x4) {
        let (bits, v) = (self.bits(m), v.to_array());
        for l in 0..4 {
            if bits >> l & 1 == 1 {
                // SAFETY: only true lanes are written.
                unsafe { *p.add(l) = v[l] };
            }
        }
    }
    #[inline(always)]
    fn add(self, a: f32x4, b: f32x4) -> f32x4 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x4, b: f32x4) -> f32x4 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x4, b: f32x4) -> f32x4 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x4, b: f32x4) -> f32x4 {
        a / b
    }
    #[inline(always)]
    fn sqrt(self, a: f32x4) -> f32x4 {
        a.sqrt()
    }
    #[inline(always)]
    fn fma(self, a: f32x4, b: f32x4, c: f32x4) -> f32x4 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn max(self, a: f32x4, b: f32x4) -> f32x4 {
        a.fast_max(b)
    }
    #[inline(always)]
    fn lt(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_lt(b)
    }
    #[inline(always)]
    fn le(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_le(b)
    }
    #[inline(always)]
    fn eq(self, a: f32x4, b: f32x4) -> f32x4 {
        a.simd_eq(b)
    }
    #[inline(always)]
    fn and(self, a: f32x4, b: f32x4) -> f32x4 {
        a & b
    }
    #[inline(always)]
    fn or(self, a: f32x4, b: f32x4) -> f32x4 {
        a | b
    }
    #[inline(always)]
    fn not(self, a: f32x4) -> f32x4 {
        !a
    }
    #[inline(always)]
    fn bits(self, m: f32x4) -> u32 {
        m.to_bitmask()
    }
    #[inline(always)]
    fn select(self, m: f32x4, a: f32x4, b: f32x4) -> f32x4 {
        m.bitselect(a, b)
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> i32x4 {
        i32x4::splat(x)
    }
    #[inline(always)]
    fn int_to_float(self, a: i32x4) -> f32x4 {
        a.round_float()
    }
    #[inline(always)]
    fn bits_to_int(self, a: f32x4) -> i32x4 {
        i32x4::new(a.to_array().map(|x| x.to_bits() as i32))
    }
    #[inline(always)]
    fn int_to_bits(self, a: i32x4) -> f32x4 {
        f32x4::new(a.to_array().map(|x| f32::from_bits(x as u32)))
    }
    #[inline(always)]
    fn add_int(self, a: i32x4, b: i32x4) -> i32x4 {
        a + b
    }
    #[inline(always)]
    fn sub_int(self, a: i32x4, b: i32x4) -> i32x4 {
        a - b
    }
    #[inline(always)]
    fn and_int(self, a: i32x4, b: i32x4) -> i32x4 {
        a & b
    }
    #[inline(always)]
    fn or_int(self, a: i32x4, b: i32x4) -> i32x4 {
        a | b
    }
    #[inline(always)]
    fn xor_int(self, a: i32x4, b: i32x4) -> i32x4 {
        a ^ b
    }
    #[inline(always)]
    fn mul_even(self, a: i32x4, b: i32x4) -> i32x4 {
        let (a, b) = (a.to_array(), b.to_array());
        let [p, q] = [0, 2].map(|l: usize| u64::from(a[l] as u32) * u64::from(b[l] as u32));
        i32x4::new([p as i32, (p >> 32) as i32, q as i32, (q >> 32) as i32])
    }
    #[inline(always)]
    fn odd_to_even(self, a: i32x4) -> i32x4 {
        let [_, a1, _, a3] = a.to_array();
        i32x4::new([a1, 0, a3, 0])
    }
    #[inline(always)]
    fn join_even(self, a: i32x4, b: i32x4) -> i32x4 {
        let ([a0, _, a2, _], [b0, _, b2, _]) = (a.to_array(), b.to_array());
        i32x4::new([a0, b0, a2, b2])
    }
    #[inline(always)]
    fn shl_int<const BITS: u32>(self, a: i32x4) -> i32x4 {
        a << BITS
    }
    #[inline(always)]
    fn shr_int<const BITS: u32>(self, a: i32x4) -> i32x4 {
        a >> BITS
    }
    #[inline(always)]
    fn even_odd(self, a: f32x4, b: f32x4) -> (f32x4, f32x4) {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_array(), b.to_array());
        (f32x4::new([a0, a2, b0, b2]), f32x4::new([a1, a3, b1, b3]))
    }
    #[inline(always)]
    fn interleave(self, a: f32x4, b: f32x4) -> (f32x4, f32x4) {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_array(), b.to_array());
        (f32x4::new([a0, b0, a1, b1]), f32x4::new([a2, b2, a3, b3]))
    }
    #[inline(always)]
    fn groups<const WIDTH: usize>(self, a: f32x4, b: f32x4) -> (f32x4, f32x4) {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_array(), b.to_array());
        match WIDTH {
            2 => (f32x4::new([a0, a1, b0, b1]), f32x4::new([a2, a3, b2, b3])),
            _ => self.even_odd(a, b),
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: f32x4) -> f32x4 {
        let [a0, a1, a2, a3] = a.to_array();
        f32x4::new([a1, a0, a3, a2])
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize) {
        for j in 0..4isize {
            for i in 0..4isize {
                // SAFETY: the caller's contract covers the whole block.
                unsafe { *to.offset(j * to_stride + i) = *from.offset(i * from_stride + j) };
            }
        }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: f32x4) {
        debug_assert!(p.addr().is_multiple_of(size_of::<f32x4>()));
        // SAFETY: the caller's contract.
        unsafe { self.store(p, v) }
    }
    #[inline(always)]
    fn fence(self) {}
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
}

#[inline(never)]
fn outlined<J: Job>(job: J) -> J::Output {
    job.run(Portable)
}
