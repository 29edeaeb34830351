//! The planes that columns are added to: an image's channel, padded and split into phases of the stride.

use super::Context;
use crate::conv::band::{copy_run, interleave_runs};
use crate::conv::pixel_runs::PixelRuns;
use crate::conv::spec::Layout;
use crate::simd::Simd;

/// Adds what `count` pixels from `first` on send back through a tap.
///
/// # Safety
/// - `columns` is readable for `count` elements, the plane holds all that the tap reaches.
#[inline(always)]
pub(super) unsafe fn add_row<S: Simd>(
    simd: S,
    context: &Context<'_>,
    plane: *mut f32,
    tap: usize,
    columns: *const f32,
    first: usize,
    count: usize,
) {
    let (spec, cut) = (&context.plan.spec, &context.cut);
    let (kh, kw) = (tap / spec.kernel[1], tap % spec.kernel[1]);
    let column = kw * spec.dilation[1];
    let (phase, shift) = (column % spec.stride[1], column / spec.stride[1]);
    for run in PixelRuns::new(cut.grid, first..first + count) {
        let ih = (run.oh * spec.stride[0] + kh * spec.dilation[0]).wrapping_sub(spec.padding.top);
        if ih < context.sizes.input[0] {
            let at = (ih * spec.stride[1] + phase) * cut.pitch + shift + run.ow;
            debug_assert!(at + run.len <= cut.plane_len);
            // SAFETY: `shift + ow + len` is at most the pitch, which the last output and the last tap set.
            unsafe { add_run(simd, columns.add(run.at), plane.add(at), run.len) };
        }
    }
}

/// `to += from`.
///
/// # Safety
/// - Both are readable for `len` elements, and `to` is writable.
#[inline(always)]
unsafe fn add_run<S: Simd>(simd: S, from: *const f32, to: *mut f32, len: usize) {
    let mut done = 0;
    // SAFETY: no more than `len` elements are touched.
    unsafe {
        while done + S::LANES <= len {
            simd.store(to.add(done), simd.add(simd.load(to.add(done)), simd.load(from.add(done))));
            done += S::LANES;
        }
        if done < len {
            let mask = simd.mask_first(len - done);
            let sum = simd.add(simd.load_masked(to.add(done), mask), simd.load_masked(from.add(done), mask));
            simd.store_masked(to.add(done), mask, sum);
        }
    }
}

/// Writes a plane as channel `channel` of image `n`, without its padding.
///
/// # Safety
/// - The plane is whole; the channel is one of the task's.
#[inline(always)]
pub(super) unsafe fn write_plane<S: Simd>(simd: S, context: &Context<'_>, n: usize, channel: usize, plane: *const f32) {
    let (spec, cut) = (&context.plan.spec, &context.cut);
    let ([height, width], channels) = (context.sizes.input, spec.in_channels);
    let (start, step) = match spec.layout {
        Layout::Nchw => ((n * channels + channel) * height * width, 1),
        Layout::Nhwc => (n * height * width * channels + channel, channels),
    };
    let (stride, left) = (spec.stride[1], spec.padding.left);
    for ih in 0..height {
        if stride == 2 && step == 1 {
            // Columns `left`, `left + 2` .. of the padded row by turns with `left + 1`, `left + 3` ..
            let from = |column: usize| plane.wrapping_add((ih * 2 + column % 2) * cut.pitch + column / 2);
            let to = context.dx.wrapping_add(start + ih * width);
            // SAFETY: the plane's pitch has room for every column of the image, and the channel is the task's; of an
            // image of one column nothing is read from the second place.
            unsafe { interleave_runs(simd, from(left), from(left + 1), to, width) };
            continue;
        }
        for phase in 0..stride {
            // The first column of the phase that lies inside of the image.
            let q = left.saturating_sub(phase).div_ceil(stride);
            let first = q * stride + phase - left;
            if first >= width {
                continue;
            }
            let count = (width - first).div_ceil(stride);
            // SAFETY: the plane's pitch has room for every column of the image, and the channel is the task's.
            unsafe {
                let from = plane.add((ih * stride + phase) * cut.pitch + q);
                let to = context.dx.add(start + (ih * width + first) * step);
                if stride * step == 1 {
                    copy_run(simd, from, 1, to, count);
                } else {
                    for i in 0..count {
                        *to.add(i * stride * step) = *from.add(i);
                    }
                }
            }
        }
    }
}
