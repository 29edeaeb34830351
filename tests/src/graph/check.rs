//! A case trained twice, and all numbers compared.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use nn::optim::{Optimizer, Rule as Update};
use nn::{Adam, AdamW, Layer, MSELoss, Network, Parallelism, Random, SCELoss, Sgd, Tensor, tensor};
use rayon::ThreadPool;

use super::case::{Case, Loss, Op, Rule};
use super::layers::{self, Values};
use super::number::{Number, U};
use super::tape::{Id, Tape};

/// The rate of all optimisers, and what they multiply weights, momenta and means by. Sums of few powers of two: f32
/// has them as they are.
const RATE: f64 = 1.0 / 16.0;
const MOMENTUM: f64 = 0.75;
const DECAY: f64 = 0.125;

/// A bound that is more than this share of the largest number beside it would let mistakes pass.
const VAGUE: f64 = 0.01;

/// How many numbers were compared, and how many of them with a bound that says little.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// All.
    pub compared: usize,
    /// Those with a vague bound: roundings decided which of two was larger, or a variance was all but 0.
    pub vague: usize,
}

/// A mistake in the training in f64, to check the check: each must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The gradient of a maximum goes to the first of equals alone.
    FirstOfEqual,
    /// A value that is taken twice by a sum has the gradient of one use.
    OneUse,
    /// Later positions are seen.
    LaterPositions,
    /// A sequence attends to itself instead of to another.
    NoMemory,
    /// Pixels become positions without being moved.
    UnmovedPixels,
    /// What is normalised is scaled, but not shifted.
    NoShift,
    /// Weights do not decay.
    NoDecay,
    /// There is no velocity.
    NoMomentum,
}

impl Fault {
    /// Every mistake.
    pub const ALL: [Self; 8] = [
        Self::FirstOfEqual,
        Self::OneUse,
        Self::LaterPositions,
        Self::NoMemory,
        Self::UnmovedPixels,
        Self::NoShift,
        Self::NoDecay,
        Self::NoMomentum,
    ];
}

/// Every array of a training, by its name.
type Record = BTreeMap<String, Vec<f32>>;

/// Trains a case in f32 and in f64.
///
/// # Errors
/// What is wrong, or differs by more than it may.
pub fn check(case: &Case) -> Result<Report, String> {
    check_with(case, None)
}

/// [`check`], with a mistake.
///
/// # Errors
/// As [`check`], and what the mistake changes.
pub fn check_with(case: &Case, fault: Option<Fault>) -> Result<Report, String> {
    let run = |parallelism| trained(case, parallelism).map_err(|error| error.to_string());
    let record = run(Parallelism::Serial)?;
    for pool in pools() {
        let threads = pool.current_num_threads();
        if let Some(name) = first_difference(&record, &pool.install(|| run(Parallelism::Current))?) {
            return Err(format!("{name} has other bits on {threads} threads"));
        }
    }
    compare(case, &record, fault)
}

fn pools() -> &'static [ThreadPool] {
    static POOLS: OnceLock<Vec<ThreadPool>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        [1, 2, 3].map(pool).into()
    })
}

fn bits(of: &[f32]) -> impl Iterator<Item = u32> {
    of.iter().map(|x| x.to_bits())
}

fn first_difference<'a>(a: &'a Record, b: &Record) -> Option<&'a String> {
    a.iter().find(|&(name, a)| b.get(name).is_none_or(|b| !bits(a).eq(bits(b)))).map(|(name, _)| name)
}

/// The steps that are taken: the second of momentum has a velocity to go on with. Behind a step of Adam nothing is sure
/// where a gradient is near 0.
const fn steps(case: &Case) -> usize {
    match case.rule {
        Rule::Momentum | Rule::Nesterov => 2,
        Rule::Adam | Rule::AdamW => 1,
    }
}

fn inputs(case: &Case) -> Vec<(Vec<usize>, Vec<f32>)> {
    let random = &mut Random::new(case.seed);
    let mut number = || match case.eighths {
        true => random.below(17) as f32 / 8.0 - 1.0,
        false => random.uniform(-1.0, 1.0),
    };
    case.inputs()
        .map(|node| (node.shape.clone(), (0..node.shape.iter().product()).map(|_| number()).collect()))
        .collect()
}

enum Optimizers {
    Descent(Sgd),
    Adam(Adam),
    AdamW(AdamW),
}

impl Optimizers {
    fn of(rule: Rule) -> Self {
        let sgd = Sgd::new(MOMENTUM as f32).decay(DECAY as f32);
        match rule {
            Rule::Momentum => Self::Descent(sgd),
            Rule::Nesterov => Self::Descent(sgd.nesterov()),
            Rule::Adam => Self::Adam(Adam::new().decay(DECAY)),
            Rule::AdamW => Self::AdamW(AdamW::new().decay(DECAY)),
        }
    }

    fn step(&mut self, network: &mut Network) -> nn::Result<()> {
        fn step<R: Update>(optimizer: &mut Optimizer<R>, network: &mut Network) -> nn::Result<()> {
            optimizer.step(network, RATE as f32)
        }
        match self {
            Self::Descent(sgd) => step(sgd, network),
            Self::Adam(adam) => step(adam, network),
            Self::AdamW(adam) => step(adam, network),
        }
    }
}

/// What `nn` makes of a case. A network and its graph alone, which keeps every value, go through the same steps.
fn trained(case: &Case, parallelism: Parallelism<'static>) -> nn::Result<Record> {
    let ((mut graph, ids), (layers, _)) = (case.build()?, case.build()?);
    let mut network = Network::new(layers);
    network.set_parallelism(parallelism);
    let mut record = Record::new();
    let mut put = |name: String, elements: &[f32]| assert!(record.insert(name, elements.to_vec()).is_none());
    let tensors = inputs(case).into_iter().map(|(shape, x)| tensor(&shape, x)).collect::<nn::Result<Vec<_>>>()?;
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    let mut optimizer = Optimizers::of(case.rule);
    let elements = |x: &Tensor| x.iter().copied().collect::<Vec<f32>>();
    for step in 0..steps(case) {
        network.train();
        let y = network.forward_all(&tensors)?;
        let alone = graph.forward(&tensors, parallelism)?;
        assert_eq!((alone.shape(), bits(&elements(&alone)).eq(bits(&elements(&y)))), (y.shape(), true), "graph alone");
        let (loss, dy) = match &case.loss {
            Loss::CrossEntropy(labels) => {
                let mut loss = SCELoss::default();
                (loss.forward(&y, labels, parallelism)?, loss.backward()?)
            }
            Loss::SquaredError(target) => {
                let mut loss = MSELoss::default();
                (loss.forward(&y, &tensor(y.shape(), target.clone())?, parallelism)?, loss.backward()?)
            }
        };
        put(format!("loss.{step}"), &[loss]);
        let gradients = graph.backward(&dy, parallelism)?;
        // With the gradient of an input, or without: the same for the parameters.
        if case.seed & 2 == 0 {
            network.backward(&dy)?;
        } else {
            let of_inputs = network.backward_to_inputs(&dy)?;
            assert_eq!(of_inputs.len(), gradients.len(), "inputs of the graph");
            for (own, known) in of_inputs.iter().zip(&gradients) {
                assert!(bits(&elements(own)).eq(bits(&elements(known))), "inputs of the graph");
            }
        }
        for (at, (node, &id)) in case.nodes.iter().zip(&ids).enumerate() {
            let value = graph.value(id).expect("a value");
            assert_eq!(value.shape(), node.shape, "n{at}");
            put(format!("n{at}.{step}"), &elements(value));
            // What the output does not depend on has none; but every node matters.
            put(format!("n{at}.gradient.{step}"), &elements(graph.gradient(id).expect("a gradient")));
        }
        let mut own = Vec::new();
        graph.visit("", &mut |_, parameter| own.push(parameter.gradient_elements().to_vec()));
        let mut own = own.into_iter();
        network.visit(|name, parameter| {
            let gradient = parameter.gradient_elements();
            assert!(bits(gradient).eq(bits(&own.next().expect("as many"))), "{name} of the graph alone");
            put(format!("{name}.gradient.{step}"), gradient);
        });
        optimizer.step(&mut network)?;
        let mut updated = Vec::new();
        network.visit(|name, parameter| {
            put(format!("{name}.{step}"), parameter.elements());
            updated.push(parameter.elements().to_vec());
        });
        let mut updated = updated.iter();
        graph.visit("", &mut |_, parameter| {
            parameter.update().0.copy_from_slice(updated.next().expect("as many"));
            parameter.zero_gradient();
        });
        // The planned pass sees the new weights.
        network.eval();
        let (planned, layers) = (network.forward_all(&tensors)?, graph.forward(&tensors, parallelism)?);
        assert!(bits(&elements(&planned)).eq(bits(&elements(&layers))), "the planned forward pass after step {step}");
    }
    Ok(record)
}

/// The values of a case's nodes on a tape, for parameters by name.
fn write(case: &Case, tape: &mut Tape, parameters: &BTreeMap<String, Vec<Id>>, fault: Option<Fault>) -> Vec<Values> {
    let is = |other: Fault| fault == Some(other);
    let mut inputs = inputs(case).into_iter();
    let mut values: Vec<Values> = Vec::new();
    for (at, node) in case.nodes.iter().enumerate() {
        let from: Vec<&Values> = node.from.iter().map(|&from| &values[from]).collect();
        let of = |name: &str| parameters[&format!("n{at}.{name}")].as_slice();
        let value = match node.op {
            None => {
                let (shape, x) = inputs.next().expect("as many");
                let x: Vec<Number> = x.iter().map(|&x| Number::exact(f64::from(x))).collect();
                Values::leaf(tape, &shape, &x)
            }
            Some(Op::Sum) if is(Fault::OneUse) => layers::together(&from, |terms| {
                let again = |tape: &mut Tape, at: usize| match terms[..at].contains(&terms[at]) {
                    true => tape.leaf(tape.value(terms[at])),
                    false => terms[at],
                };
                let terms: Vec<Id> = (0..terms.len()).map(|at| again(tape, at)).collect();
                tape.sum(&terms)
            }),
            Some(Op::Sum) => layers::together(&from, |terms| tape.sum(terms)),
            Some(Op::Product) => layers::together(&from, |factors| tape.product(factors[0], factors[1])),
            Some(Op::Maximum) => {
                layers::together(&from, |candidates| tape.largest(candidates, false, is(Fault::FirstOfEqual)))
            }
            Some(Op::Minimum) => layers::together(&from, |candidates| {
                // One number that is negated twice would be two.
                let mut negated: Vec<(Id, Id)> = Vec::new();
                for &id in candidates {
                    let known = negated.iter().find(|(known, _)| *known == id).map(|(_, negated)| *negated);
                    let negative = known.unwrap_or_else(|| tape.negated(id));
                    negated.push((id, negative));
                }
                let negated: Vec<Id> = negated.into_iter().map(|(_, negated)| negated).collect();
                let largest = tape.largest(&negated, false, false);
                tape.negated(largest)
            }),
            Some(Op::Relu) => layers::each(from[0], |x| tape.largest(&[x], true, false)),
            Some(Op::Sigmoid) => layers::each(from[0], |x| tape.sigmoid(x)),
            Some(Op::Tanh) => layers::each(from[0], |x| tape.tanh(x)),
            Some(Op::Silu) => layers::each(from[0], |x| {
                let gate = tape.sigmoid(x);
                tape.product(x, gate)
            }),
            Some(Op::Linear(_)) => layers::linear(tape, from[0], of("weight"), of("bias")),
            Some(Op::Convolution(_, window)) => layers::convolution(tape, from[0], window, of("weight"), of("bias")),
            Some(Op::MaxPool(window)) => layers::max_pool(tape, from[0], window),
            Some(Op::AveragePool(window)) => layers::average_pool(tape, from[0], window),
            Some(Op::GlobalAverage) => layers::global_average(tape, from[0]),
            Some(Op::MeanPositions) => layers::mean_positions(tape, from[0]),
            Some(Op::ToSequence) if is(Fault::UnmovedPixels) => from[0].reshaped(&node.shape),
            Some(Op::ToSequence) => layers::to_sequence(from[0]),
            Some(Op::Attention(heads, causal)) => {
                let names = ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"];
                let weights = names.map(|name| of(name).to_vec());
                let memory = if is(Fault::NoMemory) { from[0] } else { from[from.len() - 1] };
                layers::attention(tape, [from[0], memory], heads, causal && !is(Fault::LaterPositions), &weights)
            }
            Some(Op::LayerNorm) if is(Fault::NoShift) => {
                let zeros: Vec<Id> = of("bias").iter().map(|_| tape.leaf(Number::exact(0.0))).collect();
                layers::layer_norm(tape, from[0], of("weight"), &zeros)
            }
            Some(Op::LayerNorm) => layers::layer_norm(tape, from[0], of("weight"), of("bias")),
            Some(Op::Concat) => layers::concat(&from),
            Some(Op::Flatten) => from[0].flat(),
        };
        values.push(value);
    }
    values
}

/// A parameter in f64: its elements, and their velocities.
type Learned = BTreeMap<String, Vec<(Number, Number)>>;

/// Trains a case on tapes, and compares.
fn compare(case: &Case, record: &Record, fault: Option<Fault>) -> Result<Report, String> {
    let mut report = Report::default();
    let mut learned = Learned::new();
    case.build().map_err(|error| error.to_string())?.0.visit("", &mut |name, parameter| {
        let start = |&value: &f32| (Number::exact(f64::from(value)), Number::exact(0.0));
        learned.insert(name.to_string(), parameter.elements().iter().map(start).collect());
    });
    for step in 0..steps(case) {
        let mut tape = Tape::default();
        let parameters: BTreeMap<String, Vec<Id>> = learned
            .iter()
            .map(|(name, of)| (name.clone(), of.iter().map(|&(value, _)| tape.leaf(value)).collect()))
            .collect();
        let values = write(case, &mut tape, &parameters, fault);
        let y = &values[values.len() - 1];
        let loss = match &case.loss {
            Loss::CrossEntropy(labels) => layers::cross_entropy(&mut tape, y, labels),
            Loss::SquaredError(target) => layers::squared_error(&mut tape, y, target),
        };
        let gradients = tape.backward(&[(loss, Number::exact(1.0))]);
        report.judge(&format!("loss.{step}"), &[tape.value(loss)], record)?;
        for (at, value) in values.iter().enumerate() {
            let of: Vec<Number> = value.ids.iter().map(|&id| tape.value(id)).collect();
            report.judge(&format!("n{at}.{step}"), &of, record)?;
        }
        for (name, ids) in &parameters {
            let of: Vec<Number> = ids.iter().map(|&id| gradients.of(id)).collect();
            report.judge(&format!("{name}.gradient.{step}"), &of, record)?;
        }
        for (at, node) in case.nodes.iter().enumerate().filter(|(_, node)| node.op.is_none()) {
            let of: Vec<Number> = values[at].ids.iter().map(|&id| gradients.of(id)).collect();
            debug_assert_eq!(of.len(), node.shape.iter().product::<usize>());
            report.judge(&format!("n{at}.gradient.{step}"), &of, record)?;
        }
        for (name, of) in &mut learned {
            for (learned, &id) in of.iter_mut().zip(&parameters[name]) {
                *learned = update(case.rule, *learned, gradients.of(id), fault);
            }
            let of: Vec<Number> = of.iter().map(|&(value, _)| value).collect();
            report.judge(&format!("{name}.{step}"), &of, record)?;
        }
    }
    Ok(report)
}

/// A sum of products, with the roundings of its terms.
fn total(terms: &[(f64, Number)]) -> Number {
    let error: f64 = terms.iter().map(|(factor, x)| factor.abs() * x.error).sum();
    let size: f64 = terms.iter().map(|(factor, x)| factor.abs() * x.value.abs()).sum();
    let value: f64 = terms.iter().map(|(factor, x)| factor * x.value).sum();
    Number::rounded(value, error + 2.0 * terms.len() as f64 * U * size, 0.0)
}

/// A value and its velocity after a step of the rule, as its publication has it.
fn update(rule: Rule, (w, velocity): (Number, Number), g: Number, fault: Option<Fault>) -> (Number, Number) {
    let decay = if fault == Some(Fault::NoDecay) { 0.0 } else { DECAY };
    let momentum = if fault == Some(Fault::NoMomentum) { 0.0 } else { MOMENTUM };
    let decayed = total(&[(1.0, g), (decay, w)]);
    match rule {
        Rule::Momentum => {
            let velocity = total(&[(momentum, velocity), (1.0, decayed)]);
            (total(&[(1.0, w), (-RATE, velocity)]), velocity)
        }
        Rule::Nesterov => {
            let velocity = total(&[(momentum, velocity), (1.0, decayed)]);
            (total(&[(1.0, w), (-RATE, total(&[(1.0, decayed), (momentum, velocity)]))]), velocity)
        }
        // In the first step mean and variance, freed of their start, are g and its square. The quotient rises with g;
        // some dozen roundings lie on its way.
        Rule::Adam => {
            let direction = decayed.through(|g| g / (g.abs() + 1e-8), 24.0);
            (total(&[(1.0, w), (-RATE, direction)]), velocity)
        }
        Rule::AdamW => {
            let direction = g.through(|g| g / (g.abs() + 1e-8), 24.0);
            (total(&[(1.0 - RATE * decay, w), (-RATE, direction)]), velocity)
        }
    }
}

impl Report {
    /// Compares an array of the record.
    fn judge(&mut self, name: &str, expected: &[Number], record: &Record) -> Result<(), String> {
        let given = record.get(name).ok_or_else(|| format!("{name} is missing"))?;
        if given.len() != expected.len() {
            return Err(format!("{name} has {} elements, not {}", given.len(), expected.len()));
        }
        let most = expected.iter().fold(0.0, |most: f64, x| most.max(x.value.abs()));
        for (at, (&given, x)) in given.iter().zip(expected).enumerate() {
            let error = (f64::from(given) - x.value).abs();
            if !given.is_finite() || error > x.error {
                return Err(format!(
                    "{name}[{at}] is {given}, not {}: off by {error:e}, may be by {:e}",
                    x.value, x.error
                ));
            }
            self.compared += 1;
            self.vague += usize::from(x.error > VAGUE * most && x.error > 1e-6);
        }
        Ok(())
    }
}
