//! Outputs at the border, by definition, for weights that are not all finite.
//!
//! Taps that fall into the padding contribute nothing. The kernels read zeros there, which is the same only as long
//! as the weight is finite. Weights that are not are rare, so the kernels run as always, and the outputs whose window
//! hangs over the image are computed again.

use super::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::simd::Isa;

/// Where element `[n, c, h, w]` of an image stands.
fn at(layout: Layout, channels: usize, [height, width]: [usize; 2], [n, c, h, w]: [usize; 4]) -> usize {
    match layout {
        Layout::Nchw => ((n * channels + c) * height + h) * width + w,
        Layout::Nhwc => ((n * height + h) * width + w) * channels + c,
    }
}

/// The position in the image that a tap of a window reads, if it is one.
fn tap(spec: &Conv2dSpec, axis: usize, out: usize, k: usize, size: usize) -> Option<usize> {
    let before = [spec.padding.top, spec.padding.left][axis];
    let at = (out * spec.stride[axis] + k * spec.dilation[axis]).checked_sub(before)?;
    (at < size).then_some(at)
}

/// Calls `write(index of y, index of its channel, sum)` for each output whose window hangs over the image.
pub(super) fn forward(
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    sizes: &Sizes,
    x: &[f32],
    weights: &[f32],
    mut write: impl FnMut(usize, usize, f32),
) {
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let [kernel_height, kernel_width] = spec.kernel;
    let hangs =
        |axis: usize, out: usize| (0..spec.kernel[axis]).any(|k| tap(spec, axis, out, k, sizes.input[axis]).is_none());
    for n in 0..shape.batch {
        for oh in 0..sizes.output[0] {
            for ow in 0..sizes.output[1] {
                if !hangs(0, oh) && !hangs(1, ow) {
                    continue;
                }
                for oc in 0..spec.out_channels {
                    let mut sum = 0.0f32;
                    for g_ic in 0..group_in {
                        let ic = oc / group_out * group_in + g_ic;
                        for kh in 0..kernel_height {
                            let Some(ih) = tap(spec, 0, oh, kh, sizes.input[0]) else { continue };
                            for kw in 0..kernel_width {
                                let Some(iw) = tap(spec, 1, ow, kw, sizes.input[1]) else { continue };
                                let x = x[at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih, iw])];
                                let w = weights[((oc * group_in + g_ic) * kernel_height + kh) * kernel_width + kw];
                                sum = isa.mul_add(x, w, sum);
                            }
                        }
                    }
                    write(at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow]), oc, sum);
                }
            }
        }
    }
}

/// The pixels whose gradient is computed by definition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pixels {
    /// Those that some tap reaches only from outside of the output.
    Clipped,
    All,
}

/// Calls `write(index of dx, sum)` for each of the pixels.
pub(super) fn backward_data(
    isa: Isa,
    spec: &Conv2dSpec,
    pixels: Pixels,
    shape: Shape,
    sizes: &Sizes,
    dy: &[f32],
    weights: &[f32],
    mut write: impl FnMut(usize, f32),
) {
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let [kernel_height, kernel_width] = spec.kernel;
    // The output whose window has tap `k` on input position `i`, if it is one.
    let out = |axis: usize, i: usize, k: usize| {
        let before = [spec.padding.top, spec.padding.left][axis];
        let distance = (i + before).checked_sub(k * spec.dilation[axis])?;
        (distance % spec.stride[axis] == 0 && distance / spec.stride[axis] < sizes.output[axis])
            .then(|| distance / spec.stride[axis])
    };
    for n in 0..shape.batch {
        for ih in 0..sizes.input[0] {
            for iw in 0..sizes.input[1] {
                let clipped = (0..kernel_height).any(|kh| out(0, ih, kh).is_none())
                    || (0..kernel_width).any(|kw| out(1, iw, kw).is_none());
                if !clipped && pixels == Pixels::Clipped {
                    continue;
                }
                for ic in 0..spec.in_channels {
                    let group = ic / group_in;
                    let mut sum = 0.0f32;
                    for oc in group * group_out..(group + 1) * group_out {
                        for kh in 0..kernel_height {
                            let Some(oh) = out(0, ih, kh) else { continue };
                            for kw in 0..kernel_width {
                                let Some(ow) = out(1, iw, kw) else { continue };
                                let dy = dy[at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow])];
                                let w_at = ((oc * group_in + ic % group_in) * kernel_height + kh) * kernel_width + kw;
                                sum = isa.mul_add(dy, weights[w_at], sum);
                            }
                        }
                    }
                    write(at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih, iw]), sum);
                }
            }
        }
    }
}

/// Computes again what is not finite: zeros stood in for padding, and 0 times what is not finite is NaN.
pub(super) fn repair_weights(
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    sizes: &Sizes,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) {
    for index in 0..dw.len() {
        if !dw[index].is_finite() {
            dw[index] = backward_weight(isa, spec, shape, sizes, x, dy, index);
        }
    }
}

/// The gradient of a weight: one chain over all pixels in order, without those that the tap reads from the padding.
pub(super) fn backward_weight(
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    sizes: &Sizes,
    x: &[f32],
    dy: &[f32],
    index: usize,
) -> f32 {
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let taps = spec.kernel[0] * spec.kernel[1];
    let (oc, ic, kh) = (index / taps / group_in, index / taps % group_in, index % taps / spec.kernel[1]);
    let (kw, ic) = (index % spec.kernel[1], oc / group_out * group_in + ic);
    let mut sum = 0.0f32;
    for n in 0..shape.batch {
        for oh in 0..sizes.output[0] {
            let Some(ih) = tap(spec, 0, oh, kh, sizes.input[0]) else { continue };
            for ow in 0..sizes.output[1] {
                let Some(iw) = tap(spec, 1, ow, kw, sizes.input[1]) else { continue };
                let x = x[at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih, iw])];
                let dy = dy[at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow])];
                sum = isa.mul_add(x, dy, sum);
            }
        }
    }
    sum
}
