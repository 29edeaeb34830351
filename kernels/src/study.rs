//! Loops that show what a machine can do at most, for studies that report speed as a share of it.
//!
//! ```text
//! fma_loop    acc[c] = acc[c] * a + b      CHAINS accumulators, nothing but registers
//! read_loop   acc[c] = acc[c] + data[..]   every element once, nothing is written
//! ```
//!
//! Neither reads a clock: the caller does, around as many calls, on as many threads, as it likes.

use std::hint::black_box;

use crate::error::Error;
use crate::simd::{Isa, Job, Simd, dispatch};
pub use crate::stages::Stage;
#[cfg(feature = "stages")]
pub use crate::stages::stages;

/// Independent chains in flight. Two units with a latency of four cycles need 8; multiplication and addition
/// apart (the portable path) need 12; and 12 accumulators with two operands fit into 16 registers.
const CHAINS: usize = 12;

/// Fused multiply-adds of every chain in one round.
const UNROLL: usize = 4;

struct FmaLoop {
    rounds: usize,
}

impl Job for FmaLoop {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        // The fixed point of x -> x * a + b is 1, far from subnormal numbers and from infinity.
        let (a, b) = (simd.splat(black_box(0.75)), simd.splat(black_box(0.25)));
        let mut acc = [simd.zero(); CHAINS];
        for c in 0..CHAINS {
            acc[c] = simd.splat(black_box(c as f32));
        }
        for _ in 0..self.rounds {
            for _ in 0..UNROLL {
                for c in 0..CHAINS {
                    acc[c] = simd.fma(acc[c], a, b);
                }
            }
        }
        let mut sum = simd.zero();
        for c in 0..CHAINS {
            sum = simd.add(sum, acc[c]);
        }
        black_box(simd.bits(simd.eq(sum, sum)));
        2.0 * (self.rounds * UNROLL * CHAINS * S::LANES) as f64
    }
}

struct ReadLoop<'a> {
    data: &'a [f32],
}

impl Job for ReadLoop<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut acc = [simd.zero(); CHAINS];
        let step = CHAINS * S::LANES;
        let blocks = self.data.len() / step;
        for block in 0..blocks {
            for c in 0..CHAINS {
                // SAFETY: `blocks * step` elements exist, and block `block` is one of them.
                let v = unsafe { simd.load(self.data.as_ptr().add(block * step + c * S::LANES)) };
                acc[c] = simd.add(acc[c], v);
            }
        }
        let mut sum = simd.zero();
        for c in 0..CHAINS {
            sum = simd.add(sum, acc[c]);
        }
        let mut tail = 0.0;
        for &x in &self.data[blocks * step..] {
            tail += x;
        }
        black_box((simd.bits(simd.eq(sum, sum)), tail));
    }
}

/// Runs independent chains of fused multiply-adds and returns how many floating-point operations that were
/// (two for each lane of each fused multiply-add). Their number over the seconds that the call took is the
/// most that any kernel on this instruction set could reach on one thread.
///
/// ```
/// use kernels::{Isa, study::fma_loop};
/// let start = std::time::Instant::now();
/// let operations = fma_loop(Isa::choose()?, 1000)?;
/// let peak = operations / start.elapsed().as_secs_f64();
/// assert!(peak > 0.0);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Isa`] when the CPU lacks the instruction set.
pub fn fma_loop(isa: Isa, rounds: usize) -> Result<f64, Error> {
    Ok(dispatch(isa.check("isa")?, FmaLoop { rounds }))
}

/// Reads every element once, as fast as loads and additions go. The slice's bytes over the seconds that the
/// call took is the read bandwidth of whichever cache, or memory, holds the slice.
///
/// # Errors
/// [`Error::Isa`] when the CPU lacks the instruction set.
pub fn read_loop(isa: Isa, data: &[f32]) -> Result<(), Error> {
    dispatch(isa.check("isa")?, ReadLoop { data });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_on_every_instruction_set() {
        for isa in Isa::available() {
            assert_eq!(fma_loop(isa, 3), Ok((2 * 3 * UNROLL * CHAINS * isa.lanes()) as f64));
            assert_eq!(read_loop(isa, &[1.0; 1001]), Ok(()));
            assert_eq!(read_loop(isa, &[]), Ok(()));
        }
    }

    #[test]
    fn an_instruction_set_that_the_cpu_lacks_is_refused() {
        for isa in Isa::ALL {
            assert_eq!(fma_loop(isa, 1).is_ok(), isa.is_available());
            assert_eq!(read_loop(isa, &[]).is_ok(), isa.is_available());
        }
    }
}
