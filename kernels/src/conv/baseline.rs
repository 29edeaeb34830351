//! The convolution that a user would write today: explicit im2col and `matrixmultiply::sgemm`.
//!
//! ```text
//! patches[ic, kh, kw][oh, ow]  one copy of the image per tap        y = w * patches
//! ```
//!
//! The yardstick of the studies and a second oracle for the tests, so nothing here is clever: one thread, one image and
//! one group at a time. Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for
//! document processing" (2006).

use super::algorithm::{BackwardDataCall, BackwardWeightsCall, Forward, ForwardCall};
use super::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::activation::apply_one;
use crate::error::Error;
use crate::simd::Isa;
use crate::stages::{Laps, Stage};

/// The speed that is expected of the product, and of a copied element.
const FLOPS_PER_SECOND: f64 = 70e9;
const ELEMENTS_PER_SECOND: f64 = 0.5e9;
/// Patch matrices beyond this are refused: 1 GiB.
const MOST_PATCHES: usize = 1 << 28;

/// The patch matrix of one image and group, `[ic, kh, kw][oh, ow]`, and how to go there and back.
#[derive(Clone, Debug)]
struct Patches {
    spec: Conv2dSpec,
}

impl Patches {
    fn rows(&self) -> usize {
        self.spec.in_channels / self.spec.groups * self.spec.kernel[0] * self.spec.kernel[1]
    }

    fn len(&self, sizes: &Sizes) -> usize {
        self.rows().saturating_mul(sizes.output[0].saturating_mul(sizes.output[1]))
    }

    /// Calls `visit(patch index, image index)` for each element that is not padding.
    fn for_each(&self, sizes: &Sizes, n: usize, group: usize, mut visit: impl FnMut(usize, usize)) {
        let spec = &self.spec;
        let group_in = spec.in_channels / spec.groups;
        let mut patch = 0;
        for g_ic in 0..group_in {
            for kh in 0..spec.kernel[0] {
                for kw in 0..spec.kernel[1] {
                    for oh in 0..sizes.output[0] {
                        for ow in 0..sizes.output[1] {
                            let ih = (oh * spec.stride[0] + kh * spec.dilation[0]).wrapping_sub(spec.padding.top);
                            let iw = (ow * spec.stride[1] + kw * spec.dilation[1]).wrapping_sub(spec.padding.left);
                            if ih < sizes.input[0] && iw < sizes.input[1] {
                                let ic = group * group_in + g_ic;
                                visit(patch, at(spec.layout, spec.in_channels, sizes.input, n, ic, ih, iw));
                            }
                            patch += 1;
                        }
                    }
                }
            }
        }
    }
}

fn at(layout: Layout, channels: usize, size: [usize; 2], n: usize, c: usize, h: usize, w: usize) -> usize {
    match layout {
        Layout::Nchw => ((n * channels + c) * size[0] + h) * size[1] + w,
        Layout::Nhwc => ((n * size[0] + h) * size[1] + w) * channels + c,
    }
}

/// The row and column strides of one group's outputs as a matrix `[oc][pixel]`, and where it starts.
fn output_matrix(spec: &Conv2dSpec, sizes: &Sizes, n: usize, group: usize) -> (usize, isize, isize) {
    let pixels = sizes.output[0] * sizes.output[1];
    let first = group * (spec.out_channels / spec.groups);
    match spec.layout {
        Layout::Nchw => ((n * spec.out_channels + first) * pixels, pixels as isize, 1),
        Layout::Nhwc => (n * pixels * spec.out_channels + first, 1, spec.out_channels as isize),
    }
}

fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes) -> Option<f64> {
    let patches = Patches { spec: *spec }.len(sizes);
    let elements = patches as f64 * (hint.batch * spec.groups) as f64;
    let flops = 2.0 * elements * (spec.out_channels / spec.groups) as f64;
    (patches <= MOST_PATCHES).then(|| flops / FLOPS_PER_SECOND + elements / ELEMENTS_PER_SECOND)
}

/// Forward.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    isa: Isa,
    patches: Patches,
    weights: Vec<f32>,
}

impl Forward for Baseline {
    fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes, _: Isa) -> Option<f64> {
        cost(spec, hint, sizes)
    }

    fn new(spec: &Conv2dSpec, hint: Shape, isa: Isa) -> Result<Self, Error> {
        Ok(Self { isa, patches: Patches { spec: *spec }, weights: vec![0.0; spec.sizes(hint)?.w_len] })
    }

    fn pack(&mut self, weights: &[f32]) {
        self.weights.copy_from_slice(weights);
    }

    fn workspace_len(&self, _: Shape, sizes: &Sizes, _: usize) -> usize {
        self.patches.len(sizes)
    }

    fn forward(&self, call: ForwardCall<'_>) {
        let ForwardCall { shape, sizes, x, bias, residual, y, workspace, .. } = call;
        let (spec, rows) = (&self.patches.spec, self.patches.rows());
        let (channels, pixels) = (spec.out_channels / spec.groups, sizes.output[0] * sizes.output[1]);
        let patches = &mut workspace[..self.patches.len(&sizes)];
        let mut laps = Laps::start();
        for n in 0..shape.batch {
            for group in 0..spec.groups {
                patches.fill(0.0);
                self.patches.for_each(&sizes, n, group, |patch, image| patches[patch] = x[image]);
                laps.lap(Stage::Pack);
                let (start, row_stride, column_stride) = output_matrix(spec, &sizes, n, group);
                // SAFETY: weights are `channels` x `rows`, patches `rows` x `pixels`, and the strides stay in the
                // image.
                unsafe {
                    matrixmultiply::sgemm(
                        channels,
                        rows,
                        pixels,
                        1.0,
                        self.weights[group * channels * rows..].as_ptr(),
                        rows as isize,
                        1,
                        patches.as_ptr(),
                        pixels as isize,
                        1,
                        0.0,
                        y[start..].as_mut_ptr(),
                        row_stride,
                        column_stride,
                    );
                }
                laps.lap(Stage::Product);
                for oc in 0..channels {
                    for pixel in 0..pixels {
                        let at = start + oc * row_stride as usize + pixel * column_stride as usize;
                        let sum = y[at]
                            + bias.map_or(0.0, |bias| bias[group * channels + oc])
                            + residual.map_or(0.0, |residual| residual[at]);
                        y[at] = apply_one(self.isa, spec.activation, sum);
                    }
                }
                laps.lap(Stage::Epilogue);
            }
        }
    }
}

/// The gradient of the input: the product, then col2im.
#[derive(Clone, Debug)]
pub(super) struct BaselineBackwardData {
    patches: Patches,
    weights: Vec<f32>,
}

impl BaselineBackwardData {
    pub fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes) -> Option<f64> {
        cost(spec, hint, sizes)
    }

    pub fn new(spec: &Conv2dSpec) -> Self {
        let patches = Patches { spec: *spec };
        let weights = vec![0.0; patches.rows() * spec.out_channels];
        Self { patches, weights }
    }

    pub fn pack(&mut self, weights: &[f32]) {
        self.weights.copy_from_slice(weights);
    }

    pub fn workspace_len(&self, sizes: &Sizes) -> usize {
        self.patches.len(sizes)
    }

    pub fn run(&self, call: BackwardDataCall<'_>) {
        let BackwardDataCall { shape, sizes, dy, dx, workspace, .. } = call;
        let (spec, rows) = (&self.patches.spec, self.patches.rows());
        let (channels, pixels) = (spec.out_channels / spec.groups, sizes.output[0] * sizes.output[1]);
        let patches = &mut workspace[..self.patches.len(&sizes)];
        let mut laps = Laps::start();
        dx.fill(0.0);
        for n in 0..shape.batch {
            for group in 0..spec.groups {
                let (start, row_stride, column_stride) = output_matrix(spec, &sizes, n, group);
                // SAFETY: as forward, with the weights transposed.
                unsafe {
                    matrixmultiply::sgemm(
                        rows,
                        channels,
                        pixels,
                        1.0,
                        self.weights[group * channels * rows..].as_ptr(),
                        1,
                        rows as isize,
                        dy[start..].as_ptr(),
                        row_stride,
                        column_stride,
                        0.0,
                        patches.as_mut_ptr(),
                        pixels as isize,
                        1,
                    );
                }
                laps.lap(Stage::Product);
                self.patches.for_each(&sizes, n, group, |patch, image| dx[image] += patches[patch]);
                laps.lap(Stage::Epilogue);
            }
        }
    }
}

/// The gradient of the weights: a product with the patch matrix transposed.
#[derive(Clone, Debug)]
pub(super) struct BaselineBackwardWeights {
    patches: Patches,
}

impl BaselineBackwardWeights {
    pub fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes) -> Option<f64> {
        cost(spec, hint, sizes)
    }

    pub fn new(spec: &Conv2dSpec) -> Self {
        Self { patches: Patches { spec: *spec } }
    }

    pub fn workspace_len(&self, sizes: &Sizes) -> usize {
        self.patches.len(sizes)
    }

    pub fn run(&self, call: BackwardWeightsCall<'_>) {
        let BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, .. } = call;
        let (spec, rows) = (&self.patches.spec, self.patches.rows());
        let (channels, pixels) = (spec.out_channels / spec.groups, sizes.output[0] * sizes.output[1]);
        let patches = &mut workspace[..self.patches.len(&sizes)];
        let mut laps = Laps::start();
        dw.fill(0.0);
        for n in 0..shape.batch {
            for group in 0..spec.groups {
                patches.fill(0.0);
                self.patches.for_each(&sizes, n, group, |patch, image| patches[patch] = x[image]);
                laps.lap(Stage::Pack);
                let (start, row_stride, column_stride) = output_matrix(spec, &sizes, n, group);
                // SAFETY: `dy` of the group is `channels` x `pixels`, the patches transposed `pixels` x `rows`.
                unsafe {
                    matrixmultiply::sgemm(
                        channels,
                        pixels,
                        rows,
                        1.0,
                        dy[start..].as_ptr(),
                        row_stride,
                        column_stride,
                        patches.as_ptr(),
                        1,
                        pixels as isize,
                        1.0,
                        dw[group * channels * rows..].as_mut_ptr(),
                        rows as isize,
                        1,
                    );
                }
                laps.lap(Stage::Product);
            }
        }
        // Zeros stand in for padding, and 0 times what is not finite is NaN: those gradients are summed again.
        if dw.iter().any(|gradient| !gradient.is_finite()) {
            self.by_definition(shape, &sizes, x, dy, dw);
        }
    }

    fn by_definition(&self, shape: Shape, sizes: &Sizes, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let (spec, rows) = (&self.patches.spec, self.patches.rows());
        let (channels, pixels) = (spec.out_channels / spec.groups, sizes.output[0] * sizes.output[1]);
        dw.fill(0.0);
        for n in 0..shape.batch {
            for group in 0..spec.groups {
                let (start, row_stride, column_stride) = output_matrix(spec, sizes, n, group);
                self.patches.for_each(sizes, n, group, |patch, image| {
                    for oc in 0..channels {
                        let at = start + oc * row_stride as usize + patch % pixels * column_stride as usize;
                        dw[(group * channels + oc) * rows + patch / pixels] += x[image] * dy[at];
                    }
                });
            }
        }
    }
}
