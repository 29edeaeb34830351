//! The gradient of max pooling over windows of 2 x 2 that stand side by side: in registers.
//!
//! A vector of windows compares its four taps with its maxima; the first that is equal receives the gradient, and the
//! others
//! 0. Each element of `dx` is written once.
//!
//! ```text
//! x   a0 b0 a1 b1 ...  ──► a0 a1 ..   b0 b1 ..  ┐  == y ?   ┌  dy or 0  ──►  dx ─────────
//!     c0 d0 c1 d1 ...  ──► c0 c1 ..   d0 d1 ..  ┘           └                   ─────────
//! ```

use super::max_backward::find_one;
use super::max_meet::Plane;
use super::spec::{Axis, Geometry};
use crate::simd::Simd;
use crate::simd::each::{load, store};

/// Whether these are the windows, and all of them are in the image.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let beside = |axis: &Axis| {
        let Axis { kernel, stride, dilation, before, .. } = *axis;
        (kernel, stride, dilation, before) == (2, 2, 1, 0) && 2 * axis.output <= axis.size
    };
    beside(&geometry.rows) && beside(&geometry.columns)
}

/// Writes all of `dx`, the rows of the plane's band. The windows [suit](suits).
#[inline(always)]
pub(super) fn run<S: Simd>(plane: &Plane<'_>, simd: S, dx: &mut [f32]) {
    let Plane { geometry, band, x, y, dy } = *plane;
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let (written, behind) = dx.split_at_mut((band.last - band.first) * 2 * columns.size);
    behind.fill(0.0);
    for (i, dx) in written.chunks_exact_mut(2 * columns.size).enumerate() {
        let oh = band.first + i;
        let at = (band.plane * rows.output + oh) * columns.output;
        let (y, dy) = (&y[at..][..columns.output], &dy[at..][..columns.output]);
        let x_rows = &x[2 * oh * columns.size..][..2 * columns.size];
        for ow in (0..columns.output).step_by(S::LANES) {
            // SAFETY: so many windows are left, of two columns each in both rows.
            let unknown = unsafe { windows(simd, columns, [x_rows, y, dy], ow, dx) };
            if unknown {
                for ow in ow..columns.output.min(ow + S::LANES) {
                    let [upper, lower] = [2 * ow, 2 * ow + columns.size];
                    for tap in [upper, upper + 1, lower, lower + 1] {
                        dx[tap] = 0.0;
                    }
                    if let Some(found) = find_one(geometry, x, y[ow], oh, ow) {
                        dx[found - 2 * oh * columns.size] += dy[ow];
                    }
                }
            }
        }
        for row in dx.chunks_exact_mut(columns.size) {
            row[2 * columns.output..].fill(0.0);
        }
    }
}

/// Writes the gradients of a vector of windows from `ow` on; whether one of the maxima is NaN, and they are not right.
///
/// # Safety
/// - `ow` is less than the number of windows; `x` and `dx` have two rows, `y` and `dy` one value for each window.
#[inline(always)]
unsafe fn windows<S: Simd>(simd: S, columns: &Axis, [x, y, dy]: [&[f32]; 3], ow: usize, dx: &mut [f32]) -> bool {
    let count = S::LANES.min(columns.output - ow);
    debug_assert!(
        x.len() == 2 * columns.size && dx.len() == x.len() && y.len() == columns.output && dy.len() == y.len()
    );
    let low = S::LANES.min(2 * count);
    let high = 2 * count - low;
    // SAFETY: the caller's contract.
    unsafe {
        let value = load(simd, y.as_ptr().add(ow), count);
        // As a sum that begins with +0.
        let gradient = simd.add(simd.zero(), load(simd, dy.as_ptr().add(ow), count));
        let mut free = simd.mask_first(count);
        for row in 0..2 {
            let at = row * columns.size + 2 * ow;
            let from = x.as_ptr().add(at);
            let second = if high == 0 { simd.zero() } else { load(simd, from.add(S::LANES), high) };
            let (even, odd) = simd.even_odd(load(simd, from, low), second);
            let first = simd.and(free, simd.eq(even, value));
            free = simd.and(free, simd.not(first));
            let second = simd.and(free, simd.eq(odd, value));
            free = simd.and(free, simd.not(second));
            let zero = simd.zero();
            let (a, b) = simd.interleave(simd.select(first, gradient, zero), simd.select(second, gradient, zero));
            let to = dx.as_mut_ptr().add(at);
            store(simd, to, low, a);
            if high != 0 {
                store(simd, to.add(S::LANES), high, b);
            }
        }
        // Whoever has not found its maximum has NaN.
        simd.bits(free) != 0
    }
}
