//! A single tap with a stride: no two columns meet, so each is written where it belongs, zeros around it.
//!
//! ```text
//! columns  a b c | d e f                 dx, stride 2, 6 x 4      a 0 b 0 c 0
//!                                                                 0 0 0 0 0 0
//!                                                                 d 0 e 0 f 0
//!                                                                 0 0 0 0 0 0
//! ```

use super::Context;
use crate::conv::band::{copy_run, interleave_runs, zero_run};
use crate::conv::pixel_runs::PixelRuns;
use crate::simd::Simd;

/// Zeros to interleave with, as many as a piece of a row is written with.
static ZEROS: [f32; PIECE] = [0.0; PIECE];
const PIECE: usize = 64;

/// Writes what `count` output pixels from `first` on send to a channel of image `n`, with the zeros to their right and
/// below them.
///
/// # Safety
/// - `columns` is readable for `count` elements; the pixels are the output's, the channel is one of the task's.
#[inline(always)]
pub(super) unsafe fn spread_row<S: Simd>(
    simd: S,
    context: &Context<'_>,
    [n, channel]: [usize; 2],
    columns: *const f32,
    first: usize,
    count: usize,
) {
    let (spec, grid) = (&context.plan.spec, context.cut.grid);
    let ([height, width], [down, along]) = (context.sizes.input, spec.stride);
    let plane = context.dx.wrapping_add((n * spec.in_channels + channel) * height * width);
    for run in PixelRuns::new(grid, first..first + count) {
        let (row, left) = (run.oh * down, run.ow * along);
        // SAFETY: without padding every output has a pixel, and the strides after the last ones end with the image.
        unsafe {
            let to = plane.add(row * width + left);
            spread_run(simd, columns.add(run.at), along, to, (run.len * along).min(width - left));
            if run.ow + run.len == grid[1] {
                let below = down.min(height - row) - 1;
                zero_run(simd, plane.add((row + 1) * width), below * width);
            }
        }
    }
}

/// Writes `len` elements: those of `from` every `stride`, zeros between them.
///
/// # Safety
/// - `to` is writable for `len` elements, `from` readable for as many of them as the stride makes.
#[inline(always)]
unsafe fn spread_run<S: Simd>(simd: S, from: *const f32, stride: usize, to: *mut f32, len: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        match stride {
            1 => copy_run(simd, from, 1, to, len),
            2 => {
                for done in (0..len).step_by(2 * PIECE) {
                    let len = (len - done).min(2 * PIECE);
                    interleave_runs(simd, from.add(done / 2), ZEROS.as_ptr(), to.add(done), len);
                }
            }
            _ => {
                zero_run(simd, to, len);
                for i in 0..len.div_ceil(stride) {
                    *to.add(i * stride) = *from.add(i);
                }
            }
        }
    }
}
