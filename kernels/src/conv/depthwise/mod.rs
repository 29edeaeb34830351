//! Depthwise convolution: each output channel sees one input channel.
//!
//! ```text
//! y[n, ic * multiplier + m, oh, ow] = sum over kh, kw of  w[.., kh, kw] * x[n, ic, oh * stride + kh, ...]
//! ```
//!
//! There is no product of matrices in it: nine multiplications per element at 3 x 3, so loads and memory decide.
//! Forward and backward-data are the same gather ([`axis`], [`windows`]), and the gradient of the weights keeps its
//! taps in registers ([`weights`]). In NCHW all of them read planes where they are, padding being masked lanes
//! ([`planes`], [`halves`], [`square`], [`stack`], [`products`]; small ones in blocks of channels, [`narrow`]), and
//! both gradients together read them once ([`both`]). With channels last, channels are the lanes ([`nhwc`]). Groups of
//! several channels, whose planes are read more than once, and what else there is are copied into padded rows first
//! ([`rows`], [`tiles`], [`padded`], [`padded_products`]).
//!
//! The shape of the tile follows Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile
//! devices", AAAI 2020: registers hold the outputs, and each input is loaded once for all the rows that need it.

mod axis;
pub(super) mod both;
mod finish;
mod halves;
mod narrow;
mod nhwc;
mod padded;
mod padded_products;
mod planes;
mod products;
mod rows;
mod small_products;
mod source;
mod square;
mod stack;
mod tiles;
pub(super) mod weights;
pub(super) mod windows;

use super::algorithm::{BackwardDataCall, BackwardWeightsCall, Forward, ForwardCall};
use super::blocking::SLOT_LIMIT;
use super::spec::{Conv2dSpec, Shape, Sizes};
use crate::activation::Activation;
use crate::error::Error;
use crate::simd::Isa;
use weights::WeightGradient;
use windows::{Windows, WindowsCall};

/// The share of the peak that 3 x 3 tiles reach from the first-level cache.
const SHARE: f64 = 0.7;

/// The same for other kernels, which load once per product.
const SHARE_OTHERS: f64 = 0.45;

fn fits(spec: &Conv2dSpec, backward: bool) -> bool {
    spec.in_channels == spec.groups && Windows::fits(spec, backward)
}

fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa) -> f64 {
    let share = if spec.kernel == [3, 3] { SHARE } else { SHARE_OTHERS };
    Windows::seconds(spec, sizes, isa, spec.kernel[0] * spec.kernel[1], share)
}

/// The forward pass.
#[derive(Clone, Debug)]
pub(super) struct Depthwise {
    isa: Isa,
    spec: Conv2dSpec,
    windows: Windows,
}

impl Forward for Depthwise {
    fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        fits(spec, false).then(|| seconds(spec, sizes, isa))
    }

    fn new(spec: &Conv2dSpec, _hint: Shape, isa: Isa) -> Result<Self, Error> {
        Ok(Self { isa, spec: *spec, windows: Windows::forward(spec, isa)? })
    }

    fn pack(&mut self, weights: &[f32]) {
        self.windows.pack(weights);
    }

    fn workspace_len(&self, _shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.windows.workspace_len(sizes.input, sizes.output, slots)
    }

    fn forward(&self, call: ForwardCall<'_>) {
        let seconds = seconds(&self.spec, &call.sizes, self.isa);
        run_forward(&self.windows, self.spec.activation, call, seconds);
    }
}

/// A forward call in the terms of the driver.
pub(super) fn run_forward(windows: &Windows, activation: Activation, call: ForwardCall<'_>, seconds: f64) {
    let call = WindowsCall {
        batch: call.shape.batch,
        source_size: call.sizes.input,
        target_size: call.sizes.output,
        source: call.x,
        bias: call.bias,
        residual: call.residual,
        activation,
        target: call.y,
        workspace: call.workspace,
        slots: call.slots,
        parallelism: call.parallelism,
    };
    windows.run(call, seconds);
}

/// A backward-data call in the terms of the driver.
fn backward_call(call: BackwardDataCall<'_>) -> WindowsCall<'_> {
    WindowsCall {
        batch: call.shape.batch,
        source_size: call.sizes.output,
        target_size: call.sizes.input,
        source: call.dy,
        bias: None,
        residual: None,
        activation: Activation::Identity,
        target: call.dx,
        workspace: call.workspace,
        slots: call.slots,
        parallelism: call.parallelism,
    }
}

/// Runs a backward-data call.
pub(super) fn run_backward_data(windows: &Windows, call: BackwardDataCall<'_>, seconds: f64) {
    windows.run(backward_call(call), seconds);
}

/// The gradient of the input.
#[derive(Clone, Debug)]
pub(super) struct DepthwiseBackwardData {
    isa: Isa,
    spec: Conv2dSpec,
    windows: Windows,
}

impl DepthwiseBackwardData {
    /// The expected seconds of a call on one thread, or `None` where this cannot do the spec.
    pub fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        // All planes that an input's gradient adds up are copied together.
        let planes = spec.out_channels / spec.groups;
        let fits = fits(spec, true) && (planes == 1 || Windows::rows_len(spec, sizes, planes) <= SLOT_LIMIT);
        fits.then(|| seconds(spec, sizes, isa))
    }

    /// Allocates room for packed weights. Only for specs that `cost` accepts.
    pub fn new(spec: &Conv2dSpec, _hint: Shape, isa: Isa) -> Result<Self, Error> {
        Ok(Self { isa, spec: *spec, windows: Windows::backward_data(spec, isa)? })
    }

    /// Packs weights. Allocates nothing.
    pub fn pack(&mut self, weights: &[f32]) {
        self.windows.pack(weights);
    }

    /// Scratch of a call in `f32`s, when at most `slots` tasks run at once.
    pub fn workspace_len(&self, _shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.windows.workspace_len(sizes.output, sizes.input, slots)
    }

    /// Runs.
    pub fn run(&self, call: BackwardDataCall<'_>) {
        let seconds = seconds(&self.spec, &call.sizes, self.isa);
        run_backward_data(&self.windows, call, seconds);
    }
}

/// The gradient of the weights.
#[derive(Clone, Debug)]
pub(super) struct DepthwiseBackwardWeights {
    isa: Isa,
    spec: Conv2dSpec,
    gradient: WeightGradient,
}

impl DepthwiseBackwardWeights {
    /// The expected seconds of a call on one thread, or `None` where this cannot do the spec.
    pub fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        fits(spec, false).then(|| seconds(spec, sizes, isa))
    }

    /// Only for specs that `cost` accepts.
    pub fn new(spec: &Conv2dSpec, _hint: Shape, isa: Isa) -> Result<Self, Error> {
        Ok(Self { isa, spec: *spec, gradient: WeightGradient::new(spec, isa) })
    }

    /// Scratch of a call in `f32`s, when at most `slots` tasks run at once.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.gradient.workspace_len(shape, sizes, slots)
    }

    /// Runs.
    pub fn run(&self, call: BackwardWeightsCall<'_>) {
        let seconds = seconds(&self.spec, &call.sizes, self.isa);
        self.gradient.run(call, seconds);
    }
}
