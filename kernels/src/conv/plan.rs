//! The forward plan: a spec with packed weights and the algorithm that suits them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::algorithm::{Algorithm, Costs, Forward, ForwardCall};
#[cfg(feature = "baseline")]
use super::baseline::Baseline;
use super::blocking::Blocking;
use super::border;
use super::dense::{Dense, Form, Lanes};
use super::depthwise::Depthwise;
use super::engine::{Call, Post};
use super::grouped::Grouped;
use super::spec::{Conv2dSpec, Shape, Sizes};
use super::winograd::{Direction, Winograd};
use crate::activation::apply_one;
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::parts::Parts;
use crate::simd::Isa;

/// What studies and tests set by hand; the default chooses everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The instruction set; `None` takes [`Isa::choose`].
    pub isa: Option<Isa>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Block sizes of the dense algorithms; `None` takes those of the CPU. They never change a bit.
    pub blocking: Option<Blocking>,
}

impl Options {
    /// These options for a forward pass beside a gradient: `Auto` instead of an algorithm that only gradients have.
    ///
    /// ```
    /// use kernels::conv::{Algorithm, Options};
    /// let options = Options { algorithm: Algorithm::Gemm, ..Options::default() };
    /// assert_eq!(options.forward().algorithm, Algorithm::Auto);
    /// ```
    pub fn forward(self) -> Self {
        match self.algorithm {
            Algorithm::Gemm => Self { algorithm: Algorithm::Auto, ..self },
            _ => self,
        }
    }

    /// The instruction set and the block sizes, checked.
    pub(super) fn resolve(&self) -> Result<(Isa, Blocking), Error> {
        let isa = match self.isa {
            Some(isa) => isa.check("isa")?,
            None => Isa::choose()?,
        };
        let blocking = self.blocking.unwrap_or(Blocking::default_for(isa));
        Ok((isa, blocking.check()?))
    }
}

/// A forward algorithm with its packed weights.
#[derive(Clone)]
enum Kernel {
    Dense(Form, Dense),
    Depthwise(Depthwise),
    Grouped(Grouped),
    Winograd(Algorithm, Winograd),
    #[cfg(feature = "baseline")]
    Baseline(Baseline),
}

/// Copies weights of the same length, at the speed of memory. Whether no number is infinite or NaN.
pub(super) fn keep(from: &[f32], to: &mut [f32], parallelism: Parallelism<'_>) -> bool {
    const PART: usize = 16 * 1024;
    const SECONDS_PER_WEIGHT: f64 = 0.5e-9;
    let finite = AtomicBool::new(true);
    let parallelism = parallelism.for_seconds(from.len() as f64 * SECONDS_PER_WEIGHT);
    let parts = Parts::new(to, PART);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let to = unsafe { parts.take(index) };
        let from = &from[index * PART..][..to.len()];
        // No branch for each of them.
        if !from.iter().fold(true, |finite, weight| finite & weight.is_finite()) {
            finite.store(false, Ordering::Relaxed);
        }
        to.copy_from_slice(from);
    });
    finite.into_inner()
}

/// A convolution with its weights: made once, run often, from any thread.
///
/// ```
/// use kernels::{Parallelism, conv::{Conv2d, Conv2dSpec, Shape}};
/// let spec = Conv2dSpec::new(1, 1, [2, 2]);
/// let shape = Shape::new(1, 3, 3);
/// let conv = Conv2d::new(spec, &[1.0, 2.0, 3.0, 4.0], None, shape)?;
/// let image = [12.0, 3.0, 19.0, 25.0, 10.0, 1.0, 9.0, 7.0, 17.0];
/// let mut workspace = vec![0.0; conv.workspace_len(shape, 1)?];
/// let mut output = [0.0; 4];
/// conv.forward(shape, &image, None, &mut output, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(output, [133.0, 75.0, 100.0, 101.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Numerical error
/// An output sums `k = in_channels / groups * taps` products; then bias and residual are added. With `gamma(n) = n u /
/// (1 - n u)` and `u = 2^-24`, it errs, before the activation and where no product underflows,
///
/// - with [`Algorithm::Winograd2`] and its like, by at most `gamma(in_channels / groups + WINOGRAD_ROUNDINGS + 2)`
///   times the sum of its shadow ([`reference::winograd_shadow`](crate::reference::winograd_shadow)) and the addends'
///   absolute values. F(2,3) alone is exact on integers, as long as all that it computes on the way, quarters of
///   integers, has room in 24 bits.
/// - with every other algorithm, which sums in some order, by at most `gamma(k + 2)` times the sum of the products' and
///   addends' absolute values. On integers whose partial sums stay below `2^24` it is exact.
///
/// Which algorithm runs is up to [`Conv2dSpec::accuracy`]; the default may choose Winograd's where it is faster.
/// Whoever needs the second bound, or exact integers, asks for one of the other algorithms with [`Options::algorithm`].
/// [`Conv2d::algorithm`] says which one runs.
#[derive(Clone)]
pub struct Conv2d {
    spec: Conv2dSpec,
    isa: Isa,
    weights: Vec<f32>,
    /// Whether zeros may stand in for padding.
    finite: bool,
    bias: Option<Vec<f32>>,
    kernel: Kernel,
    /// The cost of each algorithm that was weighed, in seconds.
    costs: Costs,
}

impl Conv2d {
    /// Chooses an algorithm for inputs like `hint` and packs the weights, `[out_channels][in_channels / groups][kernel
    /// height][kernel width]`. Calls may have other sizes; the algorithm stays.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for weights or a bias of another length.
    pub fn new(spec: Conv2dSpec, weights: &[f32], bias: Option<&[f32]>, hint: Shape) -> Result<Self, Error> {
        Self::with_options(spec, weights, bias, hint, Options::default())
    }

    /// As [`Conv2d::new`], with some of the choices made by the caller.
    ///
    /// # Errors
    /// Also [`Error::Isa`] for an instruction set that the CPU lacks, and [`Error::Invalid`] for an algorithm that
    /// cannot do the spec.
    pub fn with_options(
        spec: Conv2dSpec,
        weights: &[f32],
        bias: Option<&[f32]>,
        hint: Shape,
        options: Options,
    ) -> Result<Self, Error> {
        let sizes = spec.sizes(hint)?;
        check_len("weights", sizes.w_len, weights.len())?;
        check_len("bias", spec.out_channels, bias.map_or(spec.out_channels, <[f32]>::len))?;
        let (isa, blocking) = options.resolve()?;
        let costs = Algorithm::ALL.map(|algorithm| (algorithm, cost(&spec, algorithm, hint, &sizes, isa)));
        let algorithm = choose("algorithm", &spec, options.algorithm, &costs, |algorithm| algorithm.is_allowed(&spec))?;
        let kernel = match algorithm {
            Algorithm::Depthwise => Kernel::Depthwise(Depthwise::new(&spec, hint, isa)?),
            Algorithm::Grouped => Kernel::Grouped(Grouped::new(&spec, hint, isa)?),
            #[cfg(feature = "baseline")]
            Algorithm::Baseline => Kernel::Baseline(Baseline::new(&spec, hint, isa)?),
            algorithm if algorithm.tile().is_some() => {
                let axes = Winograd::axes(&spec, Direction::Forward, algorithm).expect("the cost says that it can");
                Kernel::Winograd(algorithm, Winograd::new(&spec, Direction::Forward, axes, isa)?)
            }
            _ => {
                let form = if algorithm == Algorithm::Im2col { Form::Im2col } else { Form::Direct };
                Kernel::Dense(form, Dense::new(&spec, form, hint, &sizes, isa, blocking)?)
            }
        };
        let (room, bias) = (vec![0.0; weights.len()], bias.map(<[f32]>::to_vec));
        let mut plan = Self { spec, isa, weights: room, finite: true, bias, kernel, costs };
        plan.pack(weights, Parallelism::Serial);
        Ok(plan)
    }

    /// Replaces weights and bias and packs them again, without allocating. A plan keeps having a bias, or none.
    ///
    /// # Errors
    /// [`Error::Length`] for weights or a bias of another length than before.
    pub fn set_weights(
        &mut self,
        weights: &[f32],
        bias: Option<&[f32]>,
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        check_len("weights", self.weights.len(), weights.len())?;
        check_len("bias", self.bias.as_ref().map_or(0, Vec::len), bias.map_or(0, <[f32]>::len))?;
        if let (Some(to), Some(from)) = (&mut self.bias, bias) {
            to.copy_from_slice(from);
        }
        self.pack(weights, parallelism);
        Ok(())
    }

    fn pack(&mut self, weights: &[f32], parallelism: Parallelism<'_>) {
        self.finite = keep(weights, &mut self.weights, parallelism);
        match &mut self.kernel {
            Kernel::Dense(_, kernel) => kernel.pack(weights, parallelism),
            Kernel::Depthwise(kernel) => kernel.pack(weights),
            Kernel::Grouped(kernel) => kernel.pack(weights),
            Kernel::Winograd(_, kernel) => kernel.pack(weights, parallelism),
            #[cfg(feature = "baseline")]
            Kernel::Baseline(kernel) => kernel.pack(weights),
        }
    }

    /// The spec.
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// The weights, as they were given.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The algorithm that runs.
    pub fn algorithm(&self) -> Algorithm {
        match &self.kernel {
            Kernel::Dense(Form::Direct, _) => Algorithm::Direct,
            Kernel::Dense(Form::Im2col, _) => Algorithm::Im2col,
            Kernel::Depthwise(_) => Algorithm::Depthwise,
            Kernel::Grouped(_) => Algorithm::Grouped,
            Kernel::Winograd(algorithm, _) => *algorithm,
            #[cfg(feature = "baseline")]
            Kernel::Baseline(_) => Algorithm::Baseline,
        }
    }

    /// The instruction set that runs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What runs, on which instruction set, and why not the others.
    pub fn describe(&self) -> String {
        let lanes = match &self.kernel {
            Kernel::Dense(_, kernel) => match kernel.lanes() {
                Lanes::Pixels => ", pixels in the lanes",
                Lanes::Channels => ", output channels in the lanes",
            },
            _ => "",
        };
        let is_allowed = |algorithm: Algorithm| algorithm.is_allowed(&self.spec);
        describe(&self.spec, self.algorithm(), lanes, self.isa, &self.costs, is_allowed)
    }

    /// The scratch memory that a call needs when at most `slots` tasks run at once, in `f32`s. A call that is given
    /// less than for all of its threads runs fewer tasks at once; less than for one slot is an error.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Invalid`] for no slots.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        // What is cut for many slots may need less than what one slot takes alone.
        let sizes = self.spec.sizes(shape)?;
        Ok(self.scratch_len(shape, &sizes, slots).max(self.scratch_len(shape, &sizes, 1)))
    }

    fn scratch_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        if sizes.y_len == 0 {
            return 0;
        }
        match &self.kernel {
            Kernel::Dense(_, kernel) => kernel.workspace_len(shape, sizes, slots),
            Kernel::Depthwise(kernel) => kernel.workspace_len(shape, sizes, slots),
            Kernel::Grouped(kernel) => kernel.workspace_len(shape, sizes, slots),
            Kernel::Winograd(_, kernel) => kernel.workspace_len(shape.batch, sizes.output, slots),
            #[cfg(feature = "baseline")]
            Kernel::Baseline(kernel) => kernel.workspace_len(shape, sizes, slots),
        }
    }

    /// Fails as a call would that is given this workspace.
    pub(super) fn check_workspace(
        &self,
        shape: Shape,
        workspace: &[f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        slots(parallelism, workspace, |slots| self.scratch_len(shape, &sizes, slots)).map(drop)
    }

    /// `y = activation(x * w + bias + residual)`. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length or a workspace that is too
    /// short for one slot. `y` is untouched then.
    pub fn forward(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        check_len("x", sizes.x_len, x.len())?;
        check_len("residual", sizes.y_len, residual.map_or(sizes.y_len, <[f32]>::len))?;
        check_len("y", sizes.y_len, y.len())?;
        let slots = slots(parallelism, workspace, |slots| self.scratch_len(shape, &sizes, slots))?;
        if y.is_empty() {
            return Ok(());
        }
        let bias = self.bias.as_deref();
        let dense = |workspace, y| Call {
            batch: shape.batch,
            input: x,
            in_size: sizes.input,
            output: y,
            out_size: sizes.output,
            post: Post { bias, residual, activation: self.spec.activation },
            workspace,
            slots,
            parallelism,
        };
        let call = ForwardCall { shape, sizes, x, bias, residual, y, workspace, slots, parallelism };
        match &self.kernel {
            Kernel::Dense(_, kernel) => kernel.run(dense(call.workspace, call.y)),
            Kernel::Winograd(_, kernel) => kernel.run(dense(call.workspace, call.y), &self.weights),
            Kernel::Depthwise(kernel) => kernel.forward(call),
            Kernel::Grouped(kernel) => kernel.forward(call),
            #[cfg(feature = "baseline")]
            Kernel::Baseline(kernel) => kernel.forward(call),
        }
        if !self.finite {
            border::forward(self.isa, &self.spec, shape, &sizes, x, &self.weights, |index, oc, sum| {
                let sum = sum + bias.map_or(0.0, |bias| bias[oc]) + residual.map_or(0.0, |residual| residual[index]);
                y[index] = apply_one(self.isa, self.spec.activation, sum);
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Conv2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conv2d({})", self.describe())
    }
}

/// The expected seconds of an algorithm on one thread, or `None` where it cannot do the spec.
fn cost(spec: &Conv2dSpec, algorithm: Algorithm, hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
    match algorithm {
        Algorithm::Direct => Some(Dense::cost(spec, Form::Direct, hint, sizes, isa)),
        Algorithm::Im2col => Some(Dense::cost(spec, Form::Im2col, hint, sizes, isa)),
        Algorithm::Depthwise => Depthwise::cost(spec, hint, sizes, isa),
        Algorithm::Grouped => Grouped::cost(spec, hint, sizes, isa),
        Algorithm::Winograd2 | Algorithm::Winograd2x4 | Algorithm::Winograd4 | Algorithm::Winograd6 => {
            Winograd::cost(spec, Direction::Forward, algorithm, hint.batch, sizes.output, isa)
        }
        #[cfg(feature = "baseline")]
        Algorithm::Baseline => Baseline::cost(spec, hint, sizes, isa),
        #[cfg(not(feature = "baseline"))]
        Algorithm::Baseline => None,
        // Its products are those of gradients.
        Algorithm::Gemm | Algorithm::Auto => None,
    }
}

/// The algorithm asked for, or the cheapest of those that are allowed.
pub(super) fn choose(
    argument: &'static str,
    spec: &Conv2dSpec,
    asked: Algorithm,
    costs: &Costs,
    is_allowed: impl Fn(Algorithm) -> bool,
) -> Result<Algorithm, Error> {
    let possible = || costs.iter().filter_map(|&(algorithm, cost)| cost.map(|cost| (algorithm, cost)));
    if asked == Algorithm::Auto {
        // The yardstick is never chosen.
        let candidates =
            possible().filter(|(algorithm, _)| *algorithm != Algorithm::Baseline && is_allowed(*algorithm));
        let best = candidates.min_by(|a, b| a.1.total_cmp(&b.1));
        return best.map(|(algorithm, _)| algorithm).ok_or_else(|| Error::invalid(argument, "a possible spec", spec));
    }
    if possible().any(|(algorithm, _)| algorithm == asked) {
        return Ok(asked);
    }
    let names: Vec<String> = possible().map(|(algorithm, _)| algorithm.to_string()).collect();
    Err(Error::invalid(argument, format!("one of {} for {spec}", names.join(", ")), asked))
}

/// What runs, and why not the others: they are slower, not possible, or excluded, which is said where their time alone
/// would not tell.
pub(super) fn describe(
    spec: &Conv2dSpec,
    chosen: Algorithm,
    lanes: &str,
    isa: Isa,
    costs: &Costs,
    is_allowed: impl Fn(Algorithm) -> bool,
) -> String {
    let mut text = format!("{spec}: {chosen}{lanes}, on {isa}; expected on one thread:");
    let least = costs.iter().find(|(algorithm, _)| *algorithm == chosen).and_then(|&(_, cost)| cost);
    for &(algorithm, cost) in costs {
        match cost {
            Some(seconds) => text += &format!(" {algorithm} {:.3} ms", seconds * 1e3),
            None => text += &format!(" {algorithm} not possible"),
        }
        if algorithm != chosen && cost.is_some_and(|cost| least.is_some_and(|least| cost < least)) {
            let reason = if algorithm == Algorithm::Baseline {
                "a yardstick, never chosen".to_string()
            } else if is_allowed(algorithm) {
                "another was asked for".to_string()
            } else {
                format!("less accurate than {:?} allows", spec.accuracy)
            };
            text += &format!(" ({reason})");
        }
        text.push(',');
    }
    text.pop();
    text
}

/// How many tasks may run at once: one a thread, as far as the workspace goes.
pub(super) fn slots(parallelism: Parallelism, workspace: &[f32], len: impl Fn(usize) -> usize) -> Result<usize, Error> {
    (1..=parallelism.threads().max(1)).rev().find(|&slots| len(slots) <= workspace.len()).ok_or_else(|| Error::Length {
        argument: "workspace",
        expected: len(1),
        given: workspace.len(),
    })
}
