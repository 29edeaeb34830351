//! The backward plan: gradients of the input, the weights and the bias.

use std::fmt;

use super::algorithm::{Algorithm, BackwardDataCall, BackwardWeightsCall, Costs};
#[cfg(feature = "baseline")]
use super::baseline::{BaselineBackwardData, BaselineBackwardWeights};
use super::bias_gradient::bias_gradient;
use super::border::{self, Pixels};
use super::columns::Columns;
use super::dense::{DenseBackwardData, Form};
use super::depthwise::both::{self, BothCall};
use super::depthwise::{DepthwiseBackwardData, DepthwiseBackwardWeights};
use super::engine::{Call, Post};
use super::finish::finish;
use super::grouped::{GroupedBackwardData, GroupedBackwardWeights};
use super::patch_gradient::PatchGradient;
use super::plan::{Options, choose, describe, keep, slots};
use super::spec::{Conv2dSpec, Shape, Sizes};
use super::weight_gradient::WeightGradient;
use super::winograd::{Direction, Winograd, WinogradWeights};
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::simd::Isa;

#[derive(Clone)]
enum Data {
    Dense(Form, DenseBackwardData),
    Depthwise(DepthwiseBackwardData),
    Grouped(GroupedBackwardData),
    Gemm(Columns),
    Winograd(Algorithm, Winograd),
    #[cfg(feature = "baseline")]
    Baseline(BaselineBackwardData),
}

#[derive(Clone)]
enum Weights {
    Dense(WeightGradient),
    Depthwise(DepthwiseBackwardWeights),
    Grouped(GroupedBackwardWeights),
    Gemm(PatchGradient),
    Winograd(Algorithm, WinogradWeights),
    #[cfg(feature = "baseline")]
    Baseline(BaselineBackwardWeights),
}

/// The gradients of a convolution. `dy` is always the gradient before the activation.
///
/// ```
/// use kernels::{Parallelism, conv::{Conv2dBackward, Conv2dSpec, Shape}};
/// // One tap: y = 3 x, so dx = 3 dy, dw = sum of x dy, db = sum of dy.
/// let (spec, shape) = (Conv2dSpec::new(1, 1, [1, 1]), Shape::new(1, 1, 2));
/// let backward = Conv2dBackward::new(spec, &[3.0], shape)?;
/// let mut workspace = vec![0.0; backward.workspace_len(shape, 1)?];
/// let (x, dy) = ([5.0, 7.0], [1.0, 10.0]);
/// let (mut dx, mut dw, mut db) = ([0.0; 2], [0.0], [0.0]);
/// let serial = Parallelism::Serial;
/// backward.both(shape, &x, &dy, &mut dx, &mut dw, Some(&mut db), &mut workspace, serial)?;
/// assert_eq!((dx, dw, db), ([3.0, 30.0], [75.0], [11.0]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Numerical error
/// As for [`Conv2d`](super::Conv2d), with the length of the sums: `out_channels / groups * taps` for the input's
/// gradient, `batch * output pixels` for the others. Winograd's algorithms have bounds of their own, in
/// [`reference`](crate::reference).
#[derive(Clone)]
pub struct Conv2dBackward {
    spec: Conv2dSpec,
    isa: Isa,
    weights: Vec<f32>,
    /// Whether zeros may stand in for padding.
    finite: bool,
    data: Data,
    gradient: Weights,
    costs: [Costs; 2],
    /// Images, and `[height, width]` of the output, that algorithms were chosen for.
    hint: (usize, [usize; 2]),
}

impl Conv2dBackward {
    /// Chooses algorithms for inputs like `hint` and packs the weights.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for weights of another length.
    pub fn new(spec: Conv2dSpec, weights: &[f32], hint: Shape) -> Result<Self, Error> {
        Self::with_options(spec, weights, hint, Options::default())
    }

    /// As [`Conv2dBackward::new`], with some of the choices made by the caller.
    ///
    /// # Errors
    /// Also [`Error::Isa`] for an instruction set that the CPU lacks, and [`Error::Invalid`] for an algorithm that
    /// cannot do the spec.
    pub fn with_options(spec: Conv2dSpec, weights: &[f32], hint: Shape, options: Options) -> Result<Self, Error> {
        let sizes = spec.sizes(hint)?;
        check_len("weights", sizes.w_len, weights.len())?;
        let (isa, blocking) = options.resolve()?;
        let costs = [data_cost, weights_cost]
            .map(|cost| Algorithm::ALL.map(|algorithm| (algorithm, cost(&spec, algorithm, hint, &sizes, isa))));
        let asked = options.algorithm;
        let data = match choose("algorithm", &spec, asked, &costs[0], |algorithm| algorithm.is_allowed_for_data(&spec))?
        {
            Algorithm::Depthwise => Data::Depthwise(DepthwiseBackwardData::new(&spec, hint, isa)?),
            Algorithm::Grouped => Data::Grouped(GroupedBackwardData::new(&spec, hint, isa)?),
            Algorithm::Gemm => Data::Gemm(Columns::new(&spec, isa, blocking)?),
            #[cfg(feature = "baseline")]
            Algorithm::Baseline => Data::Baseline(BaselineBackwardData::new(&spec)),
            algorithm if algorithm.tile().is_some() => {
                let axes =
                    Winograd::axes(&spec, Direction::BackwardData, algorithm).expect("the cost says that it can");
                Data::Winograd(algorithm, Winograd::new(&spec, Direction::BackwardData, axes, isa)?)
            }
            algorithm => {
                let form = if algorithm == Algorithm::Im2col { Form::Im2col } else { Form::Direct };
                Data::Dense(form, DenseBackwardData::new(&spec, form, hint, &sizes, isa, blocking)?)
            }
        };
        let is_allowed = |algorithm: Algorithm| algorithm.is_allowed_for_weights(&spec, hint.batch, sizes.output);
        let gradient = match choose("algorithm", &spec, asked, &costs[1], is_allowed)? {
            Algorithm::Depthwise => Weights::Depthwise(DepthwiseBackwardWeights::new(&spec, hint, isa)?),
            Algorithm::Grouped => Weights::Grouped(GroupedBackwardWeights::new(&spec, hint, isa)?),
            Algorithm::Gemm => Weights::Gemm(PatchGradient::new(&spec, isa, blocking)),
            #[cfg(feature = "baseline")]
            Algorithm::Baseline => Weights::Baseline(BaselineBackwardWeights::new(&spec)),
            algorithm if algorithm.tile().is_some() => {
                let axes = Winograd::axes(&spec, Direction::Forward, algorithm).expect("the cost says that it can");
                Weights::Winograd(algorithm, WinogradWeights::new(&spec, axes, isa))
            }
            _ => Weights::Dense(WeightGradient::new(&spec, isa, blocking)),
        };
        let room = vec![0.0; weights.len()];
        let hint = (hint.batch, sizes.output);
        let mut plan = Self { spec, isa, weights: room, finite: true, data, gradient, costs, hint };
        plan.pack(weights, Parallelism::Serial);
        Ok(plan)
    }

    /// Replaces the weights and packs them again, without allocating.
    ///
    /// # Errors
    /// [`Error::Length`] for weights of another length.
    pub fn set_weights(&mut self, weights: &[f32], parallelism: Parallelism<'_>) -> Result<(), Error> {
        check_len("weights", self.weights.len(), weights.len())?;
        self.pack(weights, parallelism);
        Ok(())
    }

    fn pack(&mut self, weights: &[f32], parallelism: Parallelism<'_>) {
        self.finite = keep(weights, &mut self.weights, parallelism);
        match &mut self.data {
            Data::Dense(_, kernel) => kernel.pack(weights, parallelism),
            Data::Depthwise(kernel) => kernel.pack(weights),
            Data::Grouped(kernel) => kernel.pack(weights),
            Data::Gemm(kernel) => kernel.pack(weights, parallelism),
            Data::Winograd(_, kernel) => kernel.pack(weights, parallelism),
            #[cfg(feature = "baseline")]
            Data::Baseline(kernel) => kernel.pack(weights),
        }
    }

    /// The spec of the forward convolution.
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// The algorithms that run: for the gradient of the input, and for that of the weights.
    pub fn algorithms(&self) -> [Algorithm; 2] {
        let data = match &self.data {
            Data::Dense(Form::Direct, _) => Algorithm::Direct,
            Data::Dense(Form::Im2col, _) => Algorithm::Im2col,
            Data::Depthwise(_) => Algorithm::Depthwise,
            Data::Grouped(_) => Algorithm::Grouped,
            Data::Gemm(_) => Algorithm::Gemm,
            Data::Winograd(algorithm, _) => *algorithm,
            #[cfg(feature = "baseline")]
            Data::Baseline(_) => Algorithm::Baseline,
        };
        let weights = match &self.gradient {
            Weights::Dense(_) => Algorithm::Direct,
            Weights::Depthwise(_) => Algorithm::Depthwise,
            Weights::Grouped(_) => Algorithm::Grouped,
            Weights::Gemm(_) => Algorithm::Gemm,
            Weights::Winograd(algorithm, _) => *algorithm,
            #[cfg(feature = "baseline")]
            Weights::Baseline(_) => Algorithm::Baseline,
        };
        [data, weights]
    }

    /// What runs, on which instruction set, and why not the others.
    pub fn describe(&self) -> String {
        let ([data, weights], spec) = (self.algorithms(), &self.spec);
        let [data_costs, weights_costs] = &self.costs;
        let data_allowed = |algorithm: Algorithm| algorithm.is_allowed_for_data(spec);
        let (batch, output) = self.hint;
        let weights_allowed = |algorithm: Algorithm| algorithm.is_allowed_for_weights(spec, batch, output);
        format!(
            "gradient of the input of {}\ngradient of the weights of {}",
            describe(spec, data, "", self.isa, data_costs, data_allowed),
            describe(spec, weights, "", self.isa, weights_costs, weights_allowed),
        )
    }

    /// The scratch memory that any of the calls needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Invalid`] for no slots.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        let sizes = self.spec.sizes(shape)?;
        // What is cut for many slots may need less than what one slot takes alone.
        let scratch = |slots| self.data_scratch(shape, &sizes, slots).max(self.weights_scratch(shape, &sizes, slots));
        Ok(scratch(slots).max(scratch(1)))
    }

    fn data_scratch(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        if sizes.x_len == 0 {
            return 0;
        }
        match &self.data {
            Data::Dense(_, kernel) => kernel.workspace_len(shape, sizes, slots),
            Data::Depthwise(kernel) => kernel.workspace_len(shape, sizes, slots),
            Data::Grouped(kernel) => kernel.workspace_len(shape, sizes, slots),
            Data::Gemm(kernel) => kernel.workspace_len(shape, sizes, slots),
            Data::Winograd(_, kernel) => kernel.workspace_len(shape.batch, sizes.input, slots),
            #[cfg(feature = "baseline")]
            Data::Baseline(kernel) => kernel.workspace_len(sizes),
        }
    }

    fn weights_scratch(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        if sizes.y_len == 0 {
            return 0;
        }
        match &self.gradient {
            Weights::Dense(kernel) => kernel.workspace_len(shape, sizes, slots),
            Weights::Depthwise(kernel) => kernel.workspace_len(shape, sizes, slots),
            Weights::Grouped(kernel) => kernel.workspace_len(shape, sizes, slots),
            Weights::Gemm(kernel) => kernel.workspace_len(shape, sizes, slots),
            Weights::Winograd(_, kernel) => kernel.workspace_len(shape, sizes, slots),
            #[cfg(feature = "baseline")]
            Weights::Baseline(kernel) => kernel.workspace_len(sizes),
        }
    }

    /// The gradient of the input. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length or a workspace that is too
    /// short for one slot. Outputs are untouched then.
    pub fn data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        self.data_then(shape, dy, dx, Post::default(), workspace, parallelism)
    }

    /// [`Conv2dBackward::data`], followed by what a transposed convolution ends with.
    pub(super) fn data_then(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        post: Post<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        check_len("dy", sizes.y_len, dy.len())?;
        check_len("dx", sizes.x_len, dx.len())?;
        let slots = slots(parallelism, workspace, |slots| self.data_scratch(shape, &sizes, slots))?;
        if dx.is_empty() {
            return Ok(());
        }
        let fused = self.finite
            && match &self.data {
                Data::Dense(_, kernel) => kernel.writes_everything(),
                Data::Winograd(..) => true,
                _ => false,
            };
        let in_kernel = if fused { post } else { Post::default() };
        self.run_data(BackwardDataCall { shape, sizes, dy, dx: &mut *dx, workspace, slots, parallelism }, in_kernel);
        if !fused {
            let pixels = sizes.input[0] * sizes.input[1];
            finish(self.isa, self.spec.layout, [shape.batch, pixels], post, dx, parallelism);
        }
        Ok(())
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    fn run_data(&self, call: BackwardDataCall<'_>, post: Post<'_>) {
        let BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism } = call;
        // The next lines need `dx` again.
        let dx = &mut *dx;
        let dense = |workspace, dx| Call {
            batch: shape.batch,
            input: dy,
            in_size: sizes.output,
            output: dx,
            out_size: sizes.input,
            post,
            workspace,
            slots,
            parallelism,
        };
        match &self.data {
            Data::Dense(_, kernel) => kernel.run(dense(workspace, dx)),
            Data::Winograd(_, kernel) => kernel.run(dense(workspace, dx), &self.weights),
            Data::Depthwise(kernel) => {
                kernel.run(BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism });
            }
            Data::Grouped(kernel) => {
                kernel.run(BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism });
            }
            Data::Gemm(kernel) => {
                // No zero stands in for padding, so nothing is to be repaired.
                let call = BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism };
                return kernel.run(call, &self.weights);
            }
            #[cfg(feature = "baseline")]
            Data::Baseline(kernel) => {
                kernel.run(BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism });
            }
        }
        self.repair_data(shape, &sizes, dy, dx);
    }

    /// Computes again what weights that are not finite made of zeros that stand in for padding.
    fn repair_data(&self, shape: Shape, sizes: &Sizes, dy: &[f32], dx: &mut [f32]) {
        if !self.finite {
            let (spec, weights) = (&self.spec, &self.weights);
            border::backward_data(self.isa, spec, Pixels::Clipped, shape, sizes, dy, weights, |at, sum| dx[at] = sum);
        }
    }

    /// The gradients of the weights and, if asked for, of the bias. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Conv2dBackward::data`].
    pub fn weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.check_weights(shape, x, dy, dw, db.as_deref())?;
        let slots = slots(parallelism, workspace, |slots| self.weights_scratch(shape, &sizes, slots))?;
        self.run_weights(BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism });
        self.run_bias(shape, &sizes, dy, db, parallelism);
        Ok(())
    }

    fn check_weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &[f32],
        db: Option<&[f32]>,
    ) -> Result<Sizes, Error> {
        let sizes = self.spec.sizes(shape)?;
        check_len("x", sizes.x_len, x.len())?;
        check_len("dy", sizes.y_len, dy.len())?;
        check_len("dw", sizes.w_len, dw.len())?;
        check_len("db", self.spec.out_channels, db.map_or(self.spec.out_channels, <[f32]>::len))?;
        Ok(sizes)
    }

    fn run_weights(&self, call: BackwardWeightsCall<'_>) {
        if call.dy.is_empty() {
            // The sum over an empty batch.
            call.dw.fill(0.0);
            return;
        }
        match &self.gradient {
            Weights::Dense(kernel) => kernel.run(call),
            Weights::Depthwise(kernel) => kernel.run(call),
            Weights::Grouped(kernel) => kernel.run(call),
            Weights::Gemm(kernel) => kernel.run(call),
            Weights::Winograd(_, kernel) => kernel.run(call),
            #[cfg(feature = "baseline")]
            Weights::Baseline(kernel) => kernel.run(call),
        }
    }

    fn run_bias(&self, shape: Shape, sizes: &Sizes, dy: &[f32], db: Option<&mut [f32]>, parallelism: Parallelism) {
        if let Some(db) = db {
            let pixels = sizes.output[0] * sizes.output[1];
            bias_gradient(self.isa, self.spec.layout, shape.batch, pixels, dy, db, parallelism);
        }
    }

    /// All gradients in one call, the same bits as from [`Conv2dBackward::data`] and [`Conv2dBackward::weights`].
    ///
    /// # Errors
    /// Those of [`Conv2dBackward::data`].
    pub fn both(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.check_weights(shape, x, dy, dw, db.as_deref())?;
        check_len("dx", sizes.x_len, dx.len())?;
        let data_slots = slots(parallelism, workspace, |slots| self.data_scratch(shape, &sizes, slots))?;
        let weights_slots = slots(parallelism, workspace, |slots| self.weights_scratch(shape, &sizes, slots))?;
        if let (Data::Depthwise(data), Weights::Depthwise(gradient)) = (&self.data, &self.gradient)
            && !dx.is_empty()
            && !dy.is_empty()
            && both::is_possible(data, gradient, shape, &sizes)
        {
            let slots = weights_slots;
            let weights = BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism };
            both::run(data, gradient, BothCall { dx: &mut *dx, db, weights });
            self.repair_data(shape, &sizes, dy, dx);
            return Ok(());
        }
        if !dx.is_empty() {
            let workspace = &mut *workspace;
            let call = BackwardDataCall { shape, sizes, dy, dx, workspace, slots: data_slots, parallelism };
            self.run_data(call, Post::default());
        }
        let slots = weights_slots;
        self.run_weights(BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism });
        self.run_bias(shape, &sizes, dy, db, parallelism);
        Ok(())
    }
}

impl fmt::Debug for Conv2dBackward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conv2dBackward({})", self.describe())
    }
}

/// The expected seconds of the input's gradient on one thread, or `None` where an algorithm cannot do the spec.
fn data_cost(spec: &Conv2dSpec, algorithm: Algorithm, hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
    match algorithm {
        Algorithm::Direct => Some(DenseBackwardData::cost(spec, Form::Direct, hint, sizes, isa)),
        Algorithm::Im2col => Some(DenseBackwardData::cost(spec, Form::Im2col, hint, sizes, isa)),
        Algorithm::Depthwise => DepthwiseBackwardData::cost(spec, hint, sizes, isa),
        Algorithm::Grouped => GroupedBackwardData::cost(spec, hint, sizes, isa),
        Algorithm::Gemm => Some(Columns::cost(spec, hint, sizes, isa)),
        Algorithm::Winograd2 | Algorithm::Winograd2x4 | Algorithm::Winograd4 | Algorithm::Winograd6 => {
            Winograd::cost(spec, Direction::BackwardData, algorithm, hint.batch, sizes.input, isa)
        }
        #[cfg(feature = "baseline")]
        Algorithm::Baseline => BaselineBackwardData::cost(spec, hint, sizes),
        #[cfg(not(feature = "baseline"))]
        Algorithm::Baseline => None,
        Algorithm::Auto => None,
    }
}

/// The expected seconds of the weights' gradient on one thread, or `None` where an algorithm cannot do the spec. The
/// dense form reads the image in place, so it is the same for direct and im2col.
fn weights_cost(spec: &Conv2dSpec, algorithm: Algorithm, hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
    match algorithm {
        Algorithm::Direct | Algorithm::Im2col => Some(WeightGradient::cost(spec, hint, sizes, isa)),
        Algorithm::Winograd2 | Algorithm::Winograd2x4 | Algorithm::Winograd4 | Algorithm::Winograd6 => {
            WinogradWeights::cost(spec, algorithm, hint, sizes, isa)
        }
        Algorithm::Depthwise => DepthwiseBackwardWeights::cost(spec, hint, sizes, isa),
        Algorithm::Grouped => GroupedBackwardWeights::cost(spec, hint, sizes, isa),
        Algorithm::Gemm => Some(PatchGradient::cost(spec, hint, sizes, isa)),
        #[cfg(feature = "baseline")]
        Algorithm::Baseline => BaselineBackwardWeights::cost(spec, hint, sizes),
        #[cfg(not(feature = "baseline"))]
        Algorithm::Baseline => None,
        Algorithm::Auto => None,
    }
}
