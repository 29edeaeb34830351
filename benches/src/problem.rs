//! A layer with its data and a plan: first checked against the definition, then timed.
//!
//! Every plan is checked twice: with the numbers that are timed, within the rounding error that the definition
//! allows, and with small integers, whose sums are exact, so that not one product may be missing.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Options, Sizes};
use kernels::study::{Stage, stages};
use kernels::{Error, Isa, Parallelism, Workspace};

use crate::failure::Failure;
use crate::options::Pass;
use crate::sample::{Definition, Expected};
use crate::shapes::Layer;
use crate::split_mix::SplitMix;
use crate::timing::{self, Budget, Timing};

/// The numbers of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// Uniform in [-1, 1): the general case, without subnormal numbers.
    Real,
    /// -3 to 3.
    Integer,
}

/// So many zeros, if memory has room for them.
pub(crate) fn zeros(len: usize) -> Result<Vec<f32>, Failure> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| Failure::study(format!("{} bytes could not be had", 4.0 * len as f64)))?;
    buffer.resize(len, 0.0);
    Ok(buffer)
}

fn random(len: usize, numbers: Numbers, seed: u64) -> Result<Vec<f32>, Failure> {
    let mut buffer = zeros(len)?;
    let mut generator = SplitMix(seed);
    for x in &mut buffer {
        let bits = generator.next() >> 40;
        *x = match numbers {
            Numbers::Real => (bits as f32 - 8_388_608.0) / 8_388_608.0,
            Numbers::Integer => (bits % 7) as f32 - 3.0,
        };
    }
    Ok(buffer)
}

/// A result that starts where a cache line starts, as the tensors of other libraries do.
struct Lines {
    elements: Workspace,
    len: usize,
}

impl Lines {
    fn new(len: usize) -> Result<Self, Failure> {
        Ok(Self { elements: Workspace::with_len(len)?, len })
    }
}

impl Deref for Lines {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.elements[..self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.elements[..self.len]
    }
}

/// Input, weights, bias and the gradient of the output.
struct Data {
    x: Vec<f32>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

impl Data {
    fn new(sizes: &Sizes, out_channels: usize, pass: Pass, numbers: Numbers) -> Result<Self, Failure> {
        let dy_len = if pass == Pass::Backward { sizes.y_len } else { 0 };
        Ok(Self {
            x: random(sizes.x_len, numbers, 1)?,
            weights: random(sizes.w_len, numbers, 2)?,
            bias: random(out_channels, numbers, 3)?,
            dy: random(dy_len, numbers, 4)?,
        })
    }
}

/// A result by name, and what some of its elements should be.
struct Truth {
    result: &'static str,
    expected: Vec<Expected>,
}

/// Products that the definition may sum up for one result: some ten milliseconds.
const MOST_PRODUCTS: usize = 6_000_000;

/// Elements of a result that are checked: all, or as many as can be afforded, the first and the last among them.
fn sample(len: usize, products_each: usize) -> Vec<usize> {
    let affordable = (MOST_PRODUCTS / products_each.max(1)).max(32);
    if len <= affordable {
        return (0..len).collect();
    }
    let mut generator = SplitMix(len as u64);
    let mut indices: Vec<usize> = (2..affordable).map(|_| (generator.next() % len as u64) as usize).collect();
    indices.extend([0, len - 1]);
    indices
}

enum Plan {
    Forward(Box<Conv2d>),
    Backward(Box<Conv2dBackward>),
}

/// A layer and a direction, with data, and the truth about a sample of the results.
pub struct Problem {
    layer: Layer,
    pass: Pass,
    sizes: Sizes,
    real: Data,
    integer: Data,
    real_truth: Vec<Truth>,
    integer_truth: Vec<Truth>,
}

/// What a check found.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// Elements that were compared.
    pub elements: usize,
    /// The largest error, as a share of what rounding allows.
    pub worst: f64,
}

/// A plan that has been checked and timed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The algorithm that runs, where the plan says so.
    pub chosen: Option<String>,
    /// What runs: the algorithm twice, or that of the input's gradient and that of the weights'.
    pub ran: [Algorithm; 2],
    /// How long a call takes.
    pub timing: Timing,
    /// The best seconds of each gradient in a call of its own, if that was asked for.
    pub gradients: Option<[f64; 2]>,
    /// Where its time goes, if that was asked for.
    pub stages: Option<StageSeconds>,
    /// How long it takes to make the plan: the choice, and packing the weights.
    pub seconds_prepare: f64,
    /// Scratch memory of a call.
    pub workspace_bytes: usize,
    /// What the check found.
    pub checked: Checked,
}

/// The gradients whose algorithms are chosen apart, in the order of their results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// That of the input.
    Data,
    /// Those of weights and bias.
    Weights,
}

/// Why there is no outcome.
pub enum Refusal {
    /// The algorithm cannot do this layer.
    Unsuitable(Error),
    /// It can, and something went wrong.
    Failed(Failure),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsuitable(error) => error.fmt(f),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl<F: Into<Failure>> From<F> for Refusal {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

impl Problem {
    /// Makes up data and works out what a sample of the results should be.
    ///
    /// # Errors
    /// When memory runs short.
    pub fn new(layer: Layer, pass: Pass) -> Result<Self, Failure> {
        let sizes = layer.spec.sizes(layer.shape)?;
        let real = Data::new(&sizes, layer.spec.out_channels, pass, Numbers::Real)?;
        let integer = Data::new(&sizes, layer.spec.out_channels, pass, Numbers::Integer)?;
        let mut problem = Self { layer, pass, sizes, real, integer, real_truth: Vec::new(), integer_truth: Vec::new() };
        problem.real_truth = problem.truth(&problem.real)?;
        problem.integer_truth = problem.truth(&problem.integer)?;
        Ok(problem)
    }

    /// Floating-point operations of a call, as a direct convolution would make them.
    pub fn operations(&self) -> f64 {
        let forward = self.layer.spec.flops(self.layer.shape).unwrap_or(0.0);
        match self.pass {
            Pass::Forward => forward,
            Pass::Backward => 2.0 * forward,
        }
    }

    /// Bytes that a call reads and writes at the least: every argument once.
    pub fn bytes(&self) -> f64 {
        let Sizes { x_len, y_len, w_len, .. } = self.sizes;
        let bias = self.layer.spec.out_channels;
        let elements = match self.pass {
            Pass::Forward => x_len + w_len + bias + y_len,
            Pass::Backward => 2 * x_len + 2 * w_len + bias + y_len,
        };
        elements as f64 * size_of::<f32>() as f64
    }

    fn truth(&self, data: &Data) -> Result<Vec<Truth>, Failure> {
        let spec = &self.layer.spec;
        let definition = Definition::new(*spec, self.layer.shape)?;
        let Sizes { x_len, y_len, w_len, output, .. } = self.sizes;
        let taps = spec.kernel[0] * spec.kernel[1];
        let pixels = self.layer.shape.batch * output[0] * output[1];
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let all = |indices: Vec<usize>, at: &dyn Fn(usize) -> Expected| indices.into_iter().map(at).collect();
        Ok(match self.pass {
            Pass::Forward => vec![Truth {
                result: "y",
                expected: all(sample(y_len, taps * group_in), &|i| {
                    definition.forward(i, &data.x, &data.weights, &data.bias)
                }),
            }],
            Pass::Backward => vec![
                Truth {
                    result: "dx",
                    expected: all(sample(x_len, taps * group_out), &|i| {
                        definition.backward_data(i, &data.dy, &data.weights)
                    }),
                },
                Truth {
                    result: "dw",
                    expected: all(sample(w_len, pixels), &|i| definition.backward_weights(i, &data.x, &data.dy)),
                },
                Truth {
                    result: "db",
                    expected: all(sample(spec.out_channels, pixels), &|i| definition.backward_bias(i, &data.dy)),
                },
            ],
        })
    }

    fn plan(&self, isa: Isa, algorithm: Algorithm) -> Result<Plan, Error> {
        let Layer { spec, shape, .. } = self.layer;
        let options = Options { isa: Some(isa), algorithm, ..Options::default() };
        let (weights, bias) = (&self.real.weights, Some(self.real.bias.as_slice()));
        Ok(match self.pass {
            Pass::Forward => Plan::Forward(Box::new(Conv2d::with_options(spec, weights, bias, shape, options)?)),
            Pass::Backward => Plan::Backward(Box::new(Conv2dBackward::with_options(spec, weights, shape, options)?)),
        })
    }

    fn results(&self) -> Result<Vec<Lines>, Failure> {
        let Sizes { x_len, y_len, w_len, .. } = self.sizes;
        let lens = match self.pass {
            Pass::Forward => vec![y_len],
            Pass::Backward => vec![x_len, w_len, self.layer.spec.out_channels],
        };
        lens.into_iter().map(Lines::new).collect()
    }

    fn call(
        &self,
        plan: &Plan,
        data: &Data,
        results: &mut [Lines],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let shape = self.layer.shape;
        match (plan, results) {
            (Plan::Forward(plan), [y]) => plan.forward(shape, &data.x, None, y, workspace, parallelism),
            (Plan::Backward(plan), [dx, dw, db]) => {
                plan.both(shape, &data.x, &data.dy, dx, dw, Some(db), workspace, parallelism)
            }
            _ => unreachable!("`results` makes one buffer for each result of the pass"),
        }
    }

    /// Makes a plan and checks it.
    ///
    /// # Errors
    /// [`Refusal::Unsuitable`] when the algorithm cannot do the layer.
    pub fn prepare(&self, isa: Isa, algorithm: Algorithm, parallelism: Parallelism) -> Result<Prepared<'_>, Refusal> {
        let start = Instant::now();
        let mut plan = self.plan(isa, algorithm).map_err(Refusal::Unsuitable)?;
        let seconds_prepare = start.elapsed().as_secs_f64();
        let slots = parallelism.threads();
        let ran;
        let (chosen, workspace_len) = match &plan {
            Plan::Forward(plan) => {
                ran = [plan.algorithm(); 2];
                (plan.algorithm().to_string(), plan.workspace_len(self.layer.shape, slots)?)
            }
            Plan::Backward(plan) => {
                // That of the input's gradient, and that of the weights'.
                ran = plan.algorithms();
                let [data, weights] = ran;
                (format!("{data}+{weights}"), plan.workspace_len(self.layer.shape, slots)?)
            }
        };
        let mut workspace = Workspace::with_len(workspace_len)?;
        let mut results = self.results()?;

        let mut checked = Checked { elements: 0, worst: 0.0 };
        // The real numbers last: they are timed.
        for numbers in [Numbers::Integer, Numbers::Real] {
            let (data, truth) = match numbers {
                Numbers::Integer => (&self.integer, &self.integer_truth),
                Numbers::Real => (&self.real, &self.real_truth),
            };
            match &mut plan {
                Plan::Forward(plan) => plan.set_weights(&data.weights, Some(&data.bias), Parallelism::Serial)?,
                Plan::Backward(plan) => plan.set_weights(&data.weights, Parallelism::Serial)?,
            }
            for result in &mut results {
                // What a kernel forgets to write will not pass for a number.
                result.fill(f32::NAN);
            }
            self.call(&plan, data, &mut results, &mut workspace, parallelism)?;
            for (truth, result) in truth.iter().zip(&results) {
                // The gradient of the bias is a sum whatever the others are.
                let ([algorithm, weights], spec) = (ran, &self.layer.spec);
                let amplification = match truth.result {
                    "dw" => weights.weights_amplification(spec),
                    "db" => 1.0,
                    _ => algorithm.amplification(spec),
                };
                let found = compare(truth, result, numbers, amplification).map_err(Failure::Study)?;
                checked.elements += found.elements;
                checked.worst = checked.worst.max(found.worst);
            }
        }
        let chosen = Some(chosen);
        let workspace_bytes = workspace_len * size_of::<f32>();
        Ok(Prepared { problem: self, plan, results, workspace, chosen, ran, seconds_prepare, workspace_bytes, checked })
    }

    /// Makes a plan, checks it and times it: its calls, and if asked for their stages, and gradients apart.
    ///
    /// # Errors
    /// Those of [`Problem::prepare`].
    pub fn study(
        &self,
        isa: Isa,
        algorithm: Algorithm,
        parallelism: Parallelism,
        budget: Budget,
        stages: bool,
        apart: bool,
    ) -> Result<Outcome, Refusal> {
        let mut prepared = self.prepare(isa, algorithm, parallelism)?;
        let timing = timing::time(budget, || prepared.call(parallelism))?;
        let stages = if stages { Some(prepared.stages(parallelism)?) } else { None };
        let gradients = match (apart, self.pass) {
            (true, Pass::Backward) => {
                let mut seconds = |gradient| {
                    let timing = timing::time(budget, || prepared.gradient(gradient, parallelism));
                    timing.map(|timing| timing.seconds_min)
                };
                Some([seconds(Gradient::Data)?, seconds(Gradient::Weights)?])
            }
            _ => None,
        };
        let Prepared { chosen, ran, seconds_prepare, workspace_bytes, checked, .. } = prepared;
        Ok(Outcome { chosen, ran, timing, gradients, stages, seconds_prepare, workspace_bytes, checked })
    }
}

/// A plan that has been checked, with all that a call needs.
pub struct Prepared<'p> {
    problem: &'p Problem,
    plan: Plan,
    results: Vec<Lines>,
    workspace: Workspace,
    chosen: Option<String>,
    ran: [Algorithm; 2],
    seconds_prepare: f64,
    workspace_bytes: usize,
    checked: Checked,
}

impl Prepared<'_> {
    /// One call, as it is timed.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn call(&mut self, parallelism: Parallelism) -> Result<(), Error> {
        let Self { problem, plan, results, workspace, .. } = self;
        problem.call(plan, &problem.real, results, workspace, parallelism)
    }

    /// One call for a gradient alone, in a backward pass.
    fn gradient(&mut self, gradient: Gradient, parallelism: Parallelism) -> Result<(), Error> {
        let Self { problem, plan, results, workspace, .. } = self;
        let (shape, Data { x, dy, .. }) = (problem.layer.shape, &problem.real);
        match (plan, results.as_mut_slice(), gradient) {
            (Plan::Backward(plan), [dx, ..], Gradient::Data) => plan.data(shape, dy, dx, workspace, parallelism),
            (Plan::Backward(plan), [_, dw, db], Gradient::Weights) => {
                plan.weights(shape, x, dy, dw, Some(db), workspace, parallelism)
            }
            _ => unreachable!("gradients are those of a backward pass"),
        }
    }

    /// The seconds of a call in each stage, summed over the threads: the mean of some calls.
    fn stages(&mut self, parallelism: Parallelism) -> Result<StageSeconds, Error> {
        let (result, seconds) = stages(|| (0..STAGE_CALLS).try_for_each(|_| self.call(parallelism)));
        result.map(|()| seconds.map(|seconds| seconds / STAGE_CALLS as f64))
    }
}

/// Calls whose stages are measured.
const STAGE_CALLS: usize = 10;

/// Seconds of each stage, in the order of [`Stage::ALL`].
pub type StageSeconds = [f64; Stage::ALL.len()];

/// Compares a result with the truth: exactly where integers allow it, else within the rounding error, which the
/// algorithm may amplify.
fn compare(truth: &Truth, result: &[f32], numbers: Numbers, amplification: f64) -> Result<Checked, String> {
    let mut worst = 0.0f64;
    // An amplified error is that of a whole tile: its largest sums count.
    let largest = truth.expected.iter().map(Expected::tolerance).fold(0.0, f64::max);
    let bound = |own: &Expected| if amplification == 1.0 { own.tolerance() } else { amplification * largest };
    for expected in &truth.expected {
        let given = f64::from(result[expected.index]);
        let exact = numbers == Numbers::Integer && amplification == 1.0 && expected.is_exact();
        let tolerance = if exact { 0.0 } else { bound(expected) };
        let error = (given - expected.value).abs();
        // Written so that NaN fails.
        if error.is_nan() || error > tolerance {
            return Err(format!(
                "{}[{}] is {given}, but should be {} (within {tolerance:e})",
                truth.result, expected.index, expected.value
            ));
        }
        if tolerance > 0.0 {
            worst = worst.max(error / tolerance);
        }
    }
    Ok(Checked { elements: truth.expected.len(), worst })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::shapes;

    const BRIEF: Budget = Budget { time: Duration::ZERO, least_calls: 1 };

    #[test]
    fn a_small_layer_is_checked_in_every_element_and_timed_in_both_directions() {
        let layer = shapes::named("lenet5.c3").unwrap();
        let sizes = layer.spec.sizes(layer.shape).unwrap();
        for (pass, elements) in
            [(Pass::Forward, sizes.y_len), (Pass::Backward, sizes.x_len + sizes.w_len + layer.spec.out_channels)]
        {
            let problem = Problem::new(layer.clone(), pass).unwrap();
            let Ok(outcome) = problem.study(Isa::Portable, Algorithm::Auto, Parallelism::Serial, BRIEF, true, true)
            else {
                panic!("{} {}", layer.name, pass.name());
            };
            assert_eq!(outcome.checked.elements, 2 * elements);
            assert!(outcome.checked.worst > 0.0 && outcome.checked.worst < 1.0);
            assert_eq!(outcome.gradients.is_some(), pass == Pass::Backward);
        }
    }

    #[test]
    fn a_wrong_or_missing_element_is_found() {
        let exact = Expected { index: 1, value: 3.0, magnitude: 5.0, terms: 2 };
        let truth = Truth { result: "y", expected: vec![exact] };
        assert!(compare(&truth, &[0.0, 3.0], Numbers::Integer, 1.0).is_ok());
        assert!(compare(&truth, &[0.0, 3.000_000_2], Numbers::Real, 1.0).is_ok());
        let message = compare(&truth, &[0.0, 3.000_000_2], Numbers::Integer, 1.0).unwrap_err();
        assert!(message.starts_with("y[1] is 3.0000002"), "{message}");
        assert!(compare(&truth, &[0.0, 3.001], Numbers::Real, 1.0).is_err());
        assert!(compare(&truth, &[0.0, f32::NAN], Numbers::Real, 1.0).is_err());
    }

    #[test]
    fn a_sample_of_a_large_result_holds_its_ends() {
        let indices = sample(10_000_000, 1000);
        assert!(indices.len() < 10_000 && indices.iter().all(|&index| index < 10_000_000));
        assert!(indices.contains(&0) && indices.contains(&9_999_999));
        assert_eq!(sample(5, 1000), [0, 1, 2, 3, 4]);
    }
}
