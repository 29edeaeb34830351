//! One small trait over the vector registers of a CPU, and the run-time choice between its implementations.
//!
//! A kernel body is written once, generic over [`Simd`]. [`dispatch`] is the single place where it is
//! instantiated for every instruction set:
//!
//! ```text
//!                         ┌─ Avx512    16 lanes, 32 registers
//! dispatch(isa, job) ─────┼─ Avx2       8 lanes, 16 registers, FMA
//!                         └─ Portable   4 lanes, `wide` (SSE2, NEON, WebAssembly or scalar code)
//! ```
//!
//! The value `simd: S` that a body receives proves that the CPU has the instructions, so arithmetic is
//! safe; only loads and stores, which take pointers, are not. Every method is `#[inline(always)]`, and so
//! must be every generic function that takes a `simd`: it has to end up inside the feature-enabled function
//! in `dispatch`, or its instructions become function calls. For the same reason no closure made inside a
//! body may be handed to another thread: threads outside, dispatch inside each task.

#[cfg(target_arch = "x86_64")]
#[cfg_attr(kernels_avx512_only, allow(dead_code, unused_imports))]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[cfg_attr(kernels_avx2_only, allow(dead_code, unused_imports))]
mod avx512;
mod cpu;
mod dispatch;
pub(crate) mod each;
pub(crate) mod math;
pub(crate) mod output;
#[cfg_attr(any(kernels_avx2_only, kernels_avx512_only), allow(dead_code, unused_imports))]
mod portable;
pub(crate) mod reduce;
mod unaligned;

pub(crate) use cpu::{Cpu, cpu};
pub use dispatch::Isa;
pub(crate) use dispatch::{Job, dispatch};

/// The vector registers of one instruction set.
///
/// `F` holds `LANES` floats, `I` as many 32-bit integers, `M` one truth value a lane.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Vector registers; decides which tiles fit.
    const REGISTERS: usize;
    /// Floats.
    type F: Copy;
    /// 32-bit integers.
    type I: Copy;
    /// Truth values.
    type M: Copy;

    /// Vectors of half as many lanes, for what would leave the upper half of these empty; the same ones where there are
    /// no narrower that pay.
    type Narrow: Simd;

    /// The proof that these have their instructions too.
    fn narrow(self) -> Self::Narrow;

    /// The lanes of a narrow vector, and above them those of `rest`.
    fn widen(self, low: <Self::Narrow as Simd>::F, rest: Self::F) -> Self::F;

    /// Runs a job in a function of its own that is compiled for this instruction set.
    ///
    /// What is inlined into one function is optimised as a whole, in more than linear time, so a body with dozens of
    /// tiles inside takes minutes to compile. A call costs a few nanoseconds; a tile runs for hundreds. A small job
    /// that is called once may be inlined all the same: Rust 1.95 passes `inline(never)` on only where the function
    /// that calls, before anything is inlined, has the same features.
    fn call<J: Job>(self, job: J) -> J::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;

    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// - `p .. p + LANES` is readable.
    unsafe fn load(self, p: *const f32) -> Self::F;

    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// - `p .. p + LANES` is writable.
    unsafe fn store(self, p: *mut f32, v: Self::F);

    /// The first `n` lanes true; all of them when `n >= LANES`.
    fn mask_first(self, n: usize) -> Self::M;

    /// Reads the lanes whose mask is true and sets the others to +0. Memory behind false lanes is not touched.
    ///
    /// # Safety
    /// - `p + lane` is readable for each true lane.
    unsafe fn load_masked(self, p: *const f32, m: Self::M) -> Self::F;

    /// Writes the lanes whose mask is true. Memory behind false lanes is not touched.
    ///
    /// # Safety
    /// - `p + lane` is writable for each true lane.
    unsafe fn store_masked(self, p: *mut f32, m: Self::M, v: Self::F);

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`, correctly rounded.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `a * b + c` in one rounding (portable: in two, unless compiled with FMA).
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; when either is NaN, or both are zero, which of the two comes out is up to the instruction set.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `b` where it is larger than `a`, else `a`: so too where either is NaN, or both are zero.
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        self.select(self.lt(a, b), b, a)
    }

    /// `a < b`, false when either is NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a <= b`, false when either is NaN.
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`, false when either is NaN.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// Both.
    fn and(self, a: Self::M, b: Self::M) -> Self::M;
    /// Either.
    fn or(self, a: Self::M, b: Self::M) -> Self::M;
    /// Neither nor.
    fn not(self, a: Self::M) -> Self::M;
    /// Lane `l` of the mask as bit `l`.
    fn bits(self, m: Self::M) -> u32;
    /// `a` where the mask is true, `b` elsewhere.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;

    /// All lanes `x`.
    fn splat_int(self, x: i32) -> Self::I;
    /// As a float, rounded to nearest.
    fn int_to_float(self, a: Self::I) -> Self::F;
    /// The same bits.
    fn bits_to_int(self, a: Self::F) -> Self::I;
    /// The same bits.
    fn int_to_bits(self, a: Self::I) -> Self::F;
    /// `a + b`, wrapping.
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// The 64-bit products of the unsigned integers in the even lanes: the lower half in the same lane, the upper in
    /// the next.
    fn mul_even(self, a: Self::I, b: Self::I) -> Self::I;
    /// `[a1, 0, a3, 0, ..]`
    fn odd_to_even(self, a: Self::I) -> Self::I;
    /// `[a0, b0, a2, b2, ..]`
    fn join_even(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shifts left by `BITS`.
    fn shl_int<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Shifts right by `BITS`, copies of the sign coming in.
    fn shr_int<const BITS: u32>(self, a: Self::I) -> Self::I;

    /// The even and the odd elements of the `2 * LANES` floats `a ++ b`.
    fn even_odd(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// The `2 * LANES` floats `a0, b0, a1, b1, ...` in order: what [`Simd::even_odd`] takes apart.
    fn interleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// The even and the odd groups of `WIDTH` neighbours of the `2 * LANES` floats `a ++ b`; `WIDTH` is a power of two,
    /// half of the lanes at most.
    fn groups<const WIDTH: usize>(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// Each pair of neighbours exchanged: `[a1, a0, a3, a2, ..]`.
    fn swap_pairs(self, a: Self::F) -> Self::F;

    /// Transposes a block of `LANES` x `LANES` floats: `to[j * to_stride + i] = from[i * from_stride + j]`.
    /// Rows of `to` may overlap, if `to_stride` is less than `LANES`: a later row overwrites what an earlier one has
    /// too much.
    ///
    /// # Safety
    /// - `LANES` rows of `LANES` floats are readable, `from_stride` apart.
    /// - `LANES` rows of `LANES` floats are writable, `to_stride` apart, and none of them overlaps what is read.
    unsafe fn transpose(self, from: *const f32, from_stride: isize, to: *mut f32, to_stride: isize);

    /// Writes `LANES` floats past the caches, where memory is not read first. [`Simd::fence`] must follow, before
    /// another thread is told of them.
    ///
    /// # Safety
    /// - `p .. p + LANES` is writable; `p` is a multiple of the vector's bytes.
    unsafe fn stream(self, p: *mut f32, v: Self::F);

    /// Ends a run of [`Simd::stream`].
    fn fence(self);

    /// Asks for the cache line of `p`. Any address is fine.
    fn prefetch(self, p: *const f32);

    /// A number, at most 2^22 and none whose power of 2 is too small to be normal, as the nearest whole one and the
    /// rest: the first in a form that only [`Simd::times_power`] knows.
    #[inline(always)]
    fn split_power(self, x: Self::F) -> (Self::F, Self::F) {
        // Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the low bits.
        let round = self.splat(12_582_912.0);
        let power = self.add(x, round);
        (power, self.sub(x, self.sub(power, round)))
    }

    /// `a` times 2 to the whole power where the mask is false, +0 where it is true. NaN for the power of NaN.
    #[inline(always)]
    fn times_power(self, m: Self::M, a: Self::F, power: Self::F) -> Self::F {
        // A product, not a sum of integers: whatever the power is for NaN, the product with NaN is NaN.
        let biased = self.add_int(self.bits_to_int(power), self.splat_int(127));
        let power = self.int_to_bits(self.shl_int::<23>(biased));
        self.select(m, self.zero(), self.mul(a, power))
    }

    /// All lanes +0.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// Lanes that hold NaN.
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        self.not(self.eq(a, a))
    }

    /// Reads the first `n` lanes (all when `n >= LANES`) and sets the others to +0.
    ///
    /// # Safety
    /// - `p .. p + min(n, LANES)` is readable.
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::F {
        // SAFETY: passed on.
        unsafe { self.load_masked(p, self.mask_first(n)) }
    }

    /// Writes the first `n` lanes (all when `n >= LANES`).
    ///
    /// # Safety
    /// - `p .. p + min(n, LANES)` is writable.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize, v: Self::F) {
        // SAFETY: passed on.
        unsafe { self.store_masked(p, self.mask_first(n), v) }
    }
}

#[cfg(test)]
mod tests;
