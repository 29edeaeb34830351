//! What every algorithm offers to the plans: can it do this spec and at what cost, how much workspace, run.

use std::fmt;

use super::spec::{Accuracy, Conv2dSpec, Shape, Sizes};
use super::winograd::{Axis, Direction, Winograd};
use crate::parallel::Parallelism;
use crate::simd::Isa;

/// How a convolution is computed.
///
/// The sums of `Direct`, `Im2col` and `Baseline` run in the order of `ic, kh, kw`; `Direct` and `Im2col` give the same
/// bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Whatever the cost model finds fastest.
    #[default]
    Auto,
    /// Products straight from a padded copy of a few rows.
    Direct,
    /// Products from packed patches; the patch matrix is never stored as a whole.
    Im2col,
    /// One input channel per group.
    Depthwise,
    /// Few channels per group.
    Grouped,
    /// Gradients only, each a product of matrices: the input's adds columns where their windows stand, in the order of
    /// the output's pixels; the weights' adds up to eight pieces of the batch's pixels in a fixed tree.
    Gemm,
    /// Winograd's F(2,3), F(2,5) or F(2,7) along each axis of more than one tap; at stride 2, tiles of 2 outputs for 3,
    /// 4, 5 or 7 taps, as sums over phases. Here and below, one of the axes may be direct: another length of up to 11
    /// taps, or another stride.
    Winograd2,
    /// F(2,3) down the columns, F(4,3) along the rows, or what stands for them at stride 2.
    Winograd2x4,
    /// F(4,3) or F(4,5); at stride 2, tiles of 4 outputs for 3, 4 or 5 taps.
    Winograd4,
    /// F(6,3), at stride 1 only.
    Winograd6,
    /// Explicit im2col and `matrixmultiply`: what a user would write today. Needs the feature `baseline`.
    Baseline,
}

impl Algorithm {
    /// Every algorithm but `Auto`.
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::Im2col,
        Self::Depthwise,
        Self::Grouped,
        Self::Gemm,
        Self::Winograd2,
        Self::Winograd2x4,
        Self::Winograd4,
        Self::Winograd6,
        Self::Baseline,
    ];

    /// How much larger the bound of a spec's rounding error is than a direct convolution's, for data of the same
    /// magnitude everywhere: 1, or what a Winograd tile makes of it, forward or for the gradient of the input.
    /// ([`reference`](crate::reference) has the bound for any data.)
    ///
    /// ```
    /// use kernels::conv::{Algorithm, Conv2dSpec};
    /// let spec = Conv2dSpec::new(64, 64, [3, 3]);
    /// assert_eq!(Algorithm::Direct.amplification(&spec), 1.0);
    /// assert!(Algorithm::Winograd4.amplification(&spec) < 70.0);
    /// ```
    pub fn amplification(self, spec: &Conv2dSpec) -> f64 {
        let share = |direction| {
            let axes = Winograd::axes(spec, direction, self)?;
            Some(axes.iter().map(Axis::amplification).product::<f64>())
        };
        [Direction::Forward, Direction::BackwardData].into_iter().filter_map(share).fold(1.0, f64::max)
    }

    /// [`Algorithm::amplification`] of the gradient of the weights.
    ///
    /// ```
    /// use kernels::conv::{Algorithm, Conv2dSpec};
    /// let spec = Conv2dSpec::new(64, 64, [3, 3]);
    /// assert_eq!(Algorithm::Direct.weights_amplification(&spec), 1.0);
    /// assert!(Algorithm::Winograd2.weights_amplification(&spec) < Algorithm::Winograd4.weights_amplification(&spec));
    /// ```
    pub fn weights_amplification(self, spec: &Conv2dSpec) -> f64 {
        Winograd::axes(spec, Direction::Forward, self)
            .map_or(1.0, |axes| axes.iter().map(Axis::gradient_amplification).product())
    }

    /// [`Algorithm::is_allowed`] for the gradient of the weights, whose tiles have other errors (see
    /// `docs/convolution.md`): F(2,3) and strides of 2 have a direct convolution's once a batch holds many tiles,
    /// F(2,3) x F(4,3) exceeds it. `out_size` is that of the output.
    pub fn is_allowed_for_weights(self, spec: &Conv2dSpec, batch: usize, out_size: [usize; 2]) -> bool {
        let taps = spec.kernel[0].max(spec.kernel[1]);
        if self.tile().is_none() || spec.accuracy == Accuracy::Fastest {
            return true;
        }
        if spec.accuracy == Accuracy::Fast {
            return taps < 7 && self.is_allowed(spec);
        }
        let [rows, columns] = out_size.map(|size| size.div_ceil(2));
        let small = self == Self::Winograd2 || spec.stride == [2, 2];
        taps < 5 && small && batch.saturating_mul(rows.saturating_mul(columns)) >= 256
    }

    /// [`Algorithm::is_allowed`] for the gradient of the input, which at stride 2 has fewer products, and errors of its
    /// own.
    pub fn is_allowed_for_data(self, spec: &Conv2dSpec) -> bool {
        self.is_allowed_in(spec, Direction::BackwardData)
    }

    /// Outputs of a Winograd tile, down and along, unless the algorithm is another.
    pub fn tile(self) -> Option<[usize; 2]> {
        match self {
            Self::Winograd2 => Some([2, 2]),
            Self::Winograd2x4 => Some([2, 4]),
            Self::Winograd4 => Some([4, 4]),
            Self::Winograd6 => Some([6, 6]),
            _ => None,
        }
    }

    /// Whether the error of a spec's convolution is one that its accuracy allows: `Auto` chooses among these for the
    /// forward pass.
    pub fn is_allowed(self, spec: &Conv2dSpec) -> bool {
        self.is_allowed_in(spec, Direction::Forward)
    }

    fn is_allowed_in(self, spec: &Conv2dSpec, direction: Direction) -> bool {
        let Some(axes) = Winograd::axes(spec, direction, self) else { return true };
        // Few channels make short sums: a direct convolution's error is small beside that of the transforms.
        let short = match Winograd::channels(spec, direction)[0] {
            64.. => 1.0,
            16.. => 1.15,
            _ => 2.0,
        };
        let error = axes.iter().map(Axis::error).product::<f64>() * short;
        let least = match error {
            ..=1.25 => Accuracy::Direct,
            ..=2.5 => Accuracy::Fast,
            ..=12.0 => Accuracy::Fastest,
            _ => return false,
        };
        spec.accuracy >= least
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Im2col => "im2col",
            Self::Depthwise => "depthwise",
            Self::Grouped => "grouped",
            Self::Gemm => "gemm",
            Self::Winograd2 => "winograd2",
            Self::Winograd2x4 => "winograd2x4",
            Self::Winograd4 => "winograd4",
            Self::Winograd6 => "winograd6",
            Self::Baseline => "baseline",
        })
    }
}

/// The expected seconds of each algorithm on one thread, `None` where it cannot do the spec.
pub(super) type Costs = [(Algorithm, Option<f64>); Algorithm::ALL.len()];

/// A forward call whose arguments have been checked against the spec.
pub(super) struct ForwardCall<'a> {
    pub shape: Shape,
    pub sizes: Sizes,
    pub x: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub y: &'a mut [f32],
    /// At least `workspace_len(shape, sizes, slots)` elements, with any contents.
    pub workspace: &'a mut [f32],
    /// At most so many tasks run at once.
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

/// A backward-data call whose arguments have been checked against the spec.
pub(super) struct BackwardDataCall<'a> {
    pub shape: Shape,
    pub sizes: Sizes,
    pub dy: &'a [f32],
    pub dx: &'a mut [f32],
    pub workspace: &'a mut [f32],
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

/// A backward-weights call whose arguments have been checked against the spec. The bias gradient is a pass of its own.
pub(super) struct BackwardWeightsCall<'a> {
    pub shape: Shape,
    pub sizes: Sizes,
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub dw: &'a mut [f32],
    pub workspace: &'a mut [f32],
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

/// A forward algorithm with its packed weights.
pub(super) trait Forward: Sized {
    /// The expected seconds of a call on one thread, or `None` where the algorithm cannot do the spec.
    fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64>;
    /// Allocates room for packed weights. Only for specs that `cost` accepts.
    fn new(spec: &Conv2dSpec, hint: Shape, isa: Isa) -> Result<Self, crate::Error>;
    /// Packs weights. Allocates nothing.
    fn pack(&mut self, weights: &[f32]);
    /// Scratch of a call in `f32`s, when at most `slots` tasks run at once.
    fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize;
    /// Runs. Finite weights are taken for granted: zeros may stand in for padding.
    fn forward(&self, call: ForwardCall<'_>);
}
