//! What happens to sums before they are written: bias, residual, and the activations that cost next to nothing.

use crate::activation::{Activation, apply};
use crate::simd::Simd;

/// What a channel's sums end with.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// The channel's bias.
    pub bias: Option<*const f32>,
    /// The residual that belongs to the first target.
    pub residual: Option<*const f32>,
    /// Relu and clamp are applied here, others when the target is complete.
    pub activation: Activation,
}

impl Finish {
    pub const NOTHING: Self = Self { bias: None, residual: None, activation: Activation::Identity };

    /// The bias as a vector.
    ///
    /// # Safety
    /// - It is readable.
    #[inline(always)]
    pub unsafe fn bias<S: Simd>(&self, simd: S) -> Option<S::F> {
        // SAFETY: the caller's contract.
        self.bias.map(|bias| simd.splat(unsafe { *bias }))
    }

    /// Finishes and writes the first `n` lanes (all where there are more) to the targets from number `at` on.
    ///
    /// # Safety
    /// - The targets are writable, the residuals of the same numbers readable.
    #[inline(always)]
    pub unsafe fn write<S: Simd>(
        &self,
        simd: S,
        bias: Option<S::F>,
        target: *mut f32,
        at: usize,
        n: usize,
        sums: S::F,
    ) {
        let mut v = if let Some(bias) = bias { simd.add(sums, bias) } else { sums };
        // SAFETY: the caller's contract; whole vectors only where all lanes are targets.
        unsafe {
            if n >= S::LANES {
                if let Some(residual) = self.residual {
                    v = simd.add(v, simd.load(residual.add(at)));
                }
                simd.store(target.add(at), limit(simd, self.activation, v));
            } else {
                if let Some(residual) = self.residual {
                    v = simd.add(v, simd.load_first(residual.add(at), n));
                }
                simd.store_first(target.add(at), n, limit(simd, self.activation, v));
            }
        }
    }
}

/// Relu and clamp; other activations are left for later.
#[inline(always)]
pub(super) fn limit<S: Simd>(simd: S, activation: Activation, v: S::F) -> S::F {
    // Naming the variants keeps the code of the others out of the kernels.
    match activation {
        Activation::Relu => apply(simd, Activation::Relu, v),
        Activation::Clamp { low, high } => apply(simd, Activation::Clamp { low, high }, v),
        _ => v,
    }
}
