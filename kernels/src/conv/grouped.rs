//! Grouped convolution with few channels per group.
//!
//! A product of matrices with 2 to 8 rows and as many channels would leave most registers of the general engine
//! empty. Here the planes of a group are copied into padded rows together, and tiles of up to four output channels
//! share each vector that they load. Everything but the block of channels is the depthwise kernels' (see
//! [`depthwise`](super::depthwise)).

use super::algorithm::{BackwardDataCall, BackwardWeightsCall, Forward, ForwardCall};
use super::blocking::SLOT_LIMIT;
use super::depthwise::weights::WeightGradient;
use super::depthwise::windows::Windows;
use super::depthwise::{run_backward_data, run_forward};
use super::spec::{Conv2dSpec, Shape, Sizes};
use crate::error::Error;
use crate::simd::Isa;

/// The share of the peak that tiles of four channels reach (measured on Zen 4: 0.7 with 3 source channels a group).
const SHARE: f64 = 0.7;

/// The same with more source channels than their rows stay in L1 for: 0.28 with 16.
const SHARE_MANY: f64 = 0.35;

/// Source channels of a group that count as many.
const MANY: usize = 8;

/// The share of the peak of the weights' gradient, which loads once per product.
const SHARE_WEIGHTS: f64 = 0.45;

/// The share of the peak of the input's gradient where more than [`FEW`] channels are summed: 35 to 40 GFLOP/s of 192
/// on Zen 4, from 8 channels of 3x3 taps to 32 of 5x5.
const SHARE_DATA: f64 = 0.2;

/// Channels whose planes stay in the first-level cache together.
const FEW: usize = 4;

/// Channels per group beyond this fill the registers of the general engine.
const MAX_CHANNELS: usize = 32;

fn fits(spec: &Conv2dSpec, sizes: &Sizes, backward: bool) -> bool {
    let channels = spec.in_channels.max(spec.out_channels) / spec.groups;
    channels <= MAX_CHANNELS && Windows::fits(spec, backward) && rows_len(spec, sizes) <= SLOT_LIMIT
}

/// [`Windows::rows_len`] of whichever channels of a group are more.
fn rows_len(spec: &Conv2dSpec, sizes: &Sizes) -> usize {
    Windows::rows_len(spec, sizes, spec.in_channels.max(spec.out_channels) / spec.groups)
}

/// With fewer than four target channels a group, vectors are shared by fewer products.
fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa, targets: usize, share: f64) -> f64 {
    let sources = spec.in_channels / spec.groups;
    let share = if sources >= MANY { share.min(SHARE_MANY) } else { share };
    let share = if targets < 4 { share * 0.7 } else { share };
    Windows::seconds(spec, sizes, isa, spec.kernel[0] * spec.kernel[1] * sources, share)
}

/// The forward pass.
#[derive(Clone, Debug)]
pub(super) struct Grouped {
    isa: Isa,
    spec: Conv2dSpec,
    windows: Windows,
}

impl Grouped {
    fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa) -> f64 {
        seconds(spec, sizes, isa, spec.out_channels / spec.groups, SHARE)
    }
}

impl Forward for Grouped {
    fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        fits(spec, sizes, false).then(|| Self::seconds(spec, sizes, isa))
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
        let seconds = Self::seconds(&self.spec, &call.sizes, self.isa);
        run_forward(&self.windows, self.spec.activation, call, seconds);
    }
}

/// The gradient of the input.
#[derive(Clone, Debug)]
pub(super) struct GroupedBackwardData {
    isa: Isa,
    spec: Conv2dSpec,
    windows: Windows,
}

impl GroupedBackwardData {
    fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa) -> f64 {
        let share = if spec.out_channels / spec.groups > FEW { SHARE_DATA } else { SHARE };
        seconds(spec, sizes, isa, spec.in_channels / spec.groups, share)
    }

    /// The expected seconds of a call on one thread, or `None` where this cannot do the spec.
    pub fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        fits(spec, sizes, true).then(|| Self::seconds(spec, sizes, isa))
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
        let seconds = Self::seconds(&self.spec, &call.sizes, self.isa);
        run_backward_data(&self.windows, call, seconds);
    }
}

/// The gradient of the weights.
#[derive(Clone, Debug)]
pub(super) struct GroupedBackwardWeights {
    isa: Isa,
    spec: Conv2dSpec,
    gradient: WeightGradient,
}

impl GroupedBackwardWeights {
    /// The expected seconds of a call on one thread, or `None` where this cannot do the spec.
    pub fn cost(spec: &Conv2dSpec, _hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        let slot_len = || rows_len(spec, sizes).saturating_add(WeightGradient::lanes_len(spec));
        (fits(spec, sizes, false) && slot_len() <= SLOT_LIMIT).then(|| seconds(spec, sizes, isa, 4, SHARE_WEIGHTS))
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
        let seconds = seconds(&self.spec, &call.sizes, self.isa, 4, SHARE_WEIGHTS);
        self.gradient.run(call, seconds);
    }
}
