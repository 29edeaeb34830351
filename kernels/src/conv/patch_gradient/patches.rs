//! What the product's rows are copied from: the image, a tap's pixels of it.

use std::ops::Range;

use super::{Context, PatchGradient};
use crate::conv::band::{copy_run, zero_run};
use crate::conv::pixel_runs::PixelRuns;
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};
use crate::stages::{Laps, Stage};

/// Brings the pixels of a channel together that a single tap meets.
///
/// Whoever makes one vouches that the channel is at `from`, and that `to` has room for the output's pixels.
pub(super) struct Together<'a> {
    pub plan: &'a PatchGradient,
    pub from: *const f32,
    pub to: *mut f32,
    pub input: [usize; 2],
    pub output: [usize; 2],
}

impl Job for Together<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { plan, from, to, input, output } = self;
        let [down, along] = plan.spec.stride;
        let mut laps = Laps::start();
        for row in 0..output[0] {
            // SAFETY: the maker's promise; without padding every output has a pixel.
            unsafe {
                let (from, to) = (from.add(row * down * input[1]), to.add(row * output[1]));
                copy_run(simd, from, along, to, output[1]);
            }
        }
        laps.lap(Stage::Pack);
    }
}

/// Copies row `row` of the patches of a block of pixels, zeros where the tap falls into the padding.
///
/// # Safety
/// - `to` is writable for the pixels; row and pixels exist.
#[inline(always)]
pub(super) unsafe fn copy_patches<S: Simd>(
    simd: S,
    context: &Context<'_>,
    group: usize,
    row: usize,
    pixels: Range<usize>,
    to: *mut f32,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let spec = &plan.spec;
    let taps = plan.taps();
    let (ic, kh, kw) = (group * plan.group_in() + row / taps, row % taps / spec.kernel[1], row % spec.kernel[1]);
    let ([height, width], [stride_h, stride_w]) =
        if cut.flat { ([1, cut.grid[1]], [1, 1]) } else { (context.sizes.input, spec.stride) };
    let (channel, step) = match spec.layout {
        Layout::Nchw => (ic * height * width, 1),
        Layout::Nhwc => (ic, spec.in_channels),
    };
    let image = spec.in_channels * height * width;
    let (tap_h, tap_w, left) = (kh * spec.dilation[0], kw * spec.dilation[1], spec.padding.left);
    // Outputs whose tap lies inside of a row of the image.
    let inside = left.saturating_sub(tap_w).div_ceil(stride_w)..(width + left).saturating_sub(tap_w).div_ceil(stride_w);
    let x = context.x.as_ptr();
    for run in PixelRuns::new(cut.grid, pixels) {
        let ih = (run.oh * stride_h + tap_h).wrapping_sub(spec.padding.top);
        let to = to.wrapping_add(run.at);
        let start = inside.start.clamp(run.ow, run.ow + run.len);
        let end = inside.end.clamp(start, run.ow + run.len);
        // SAFETY: the run is inside of `to`; columns `start .. end` of row `ih` are inside of the image.
        unsafe {
            if ih >= height || start == end {
                zero_run(simd, to, run.len);
                continue;
            }
            if start > run.ow {
                zero_run(simd, to, start - run.ow);
            }
            let iw = start * stride_w + tap_w - left;
            let from = x.add(run.n * image + channel + (ih * width + iw) * step);
            copy_run(simd, from, stride_w * step, to.add(start - run.ow), end - start);
            if end < run.ow + run.len {
                zero_run(simd, to.add(end - run.ow), run.ow + run.len - end);
            }
        }
    }
}
