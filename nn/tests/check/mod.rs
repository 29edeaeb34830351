//! Comparing layers with functions in f64, and their gradients with finite differences of those.
#![allow(dead_code)] // Each test takes what it needs.

use nn::{Layer, Parallelism, Random, Tensor, tensor};

/// The rounding unit of f32.
pub const U: f64 = f32::EPSILON as f64 / 2.0;
/// Step of the central differences. A power of two: on eighths they are exact for all that is linear in each operand.
pub const STEP: f64 = 1.0 / 4096.0;
/// What central differences err by else: `STEP^2 / 6` times a third derivative, at most 2 for tanh and less for sigmoid
/// and loss, and roundings of f64 that are a tenth of that.
pub const DIFFERENCE: f64 = 2.5e-8;

/// A layer as a function of its input and its parameters, in f64.
pub type Function<'a> = &'a dyn Fn(&[f64], &[Vec<f64>]) -> Vec<f64>;

/// Distinct numbers a 16th apart around 0, in random order: no two inputs of a maximum are equal, none of ReLU is 0.
pub fn distinct(shape: &[usize], random: &mut Random) -> Tensor {
    let len: usize = shape.iter().product();
    let mut elements: Vec<f32> = (0..len).map(|i| (i as f32 - len as f32 / 2.0 + 0.25) / 16.0).collect();
    random.shuffle(&mut elements);
    tensor(shape, elements).unwrap()
}

/// Eighths between -1 and 1: sums of a few are exact.
pub fn eighths(shape: &[usize], random: &mut Random) -> Tensor {
    let elements = (0..shape.iter().product()).map(|_| random.below(17) as f32 / 8.0 - 1.0).collect();
    tensor(shape, elements).unwrap()
}

pub fn array(tensor: Tensor) -> ndarray::ArrayD<f32> {
    tensor.into_owned()
}

pub fn wide(elements: &[f32]) -> Vec<f64> {
    elements.iter().map(|&element| element as f64).collect()
}

pub fn magnitudes(elements: &[f64]) -> Vec<f64> {
    elements.iter().map(|element| element.abs()).collect()
}

pub fn parameters(layer: &mut dyn Layer, what: fn(&nn::Parameter) -> &[f32]) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    layer.visit("", &mut |_, parameter| all.push(wide(what(parameter))));
    all
}

/// `(L(v + STEP) - L(v - STEP)) / (2 STEP)` for each element `v` of each list.
pub fn differences(lists: &[Vec<f64>], loss: &dyn Fn(&[Vec<f64>]) -> f64) -> Vec<Vec<f64>> {
    let mut lists = lists.to_vec();
    let mut slopes = lists.clone();
    for list in 0..lists.len() {
        for at in 0..lists[list].len() {
            let value = lists[list][at];
            lists[list][at] = value + STEP;
            let above = loss(&lists);
            lists[list][at] = value - STEP;
            let below = loss(&lists);
            lists[list][at] = value;
            slopes[list][at] = (above - below) / (2.0 * STEP);
        }
    }
    slopes
}

/// Fails unless numbers differ by no more than `roundings` units of a bound, and a slack.
fn close(what: &str, roundings: f64, given: &[f64], expected: &[f64], bound: &[f64], slack: f64) {
    assert_eq!(given.len(), expected.len(), "{what}");
    for i in 0..given.len() {
        let tolerance = roundings * U * bound[i] + slack;
        assert!((given[i] - expected[i]).abs() <= tolerance, "{what}[{i}]: {} for {}", given[i], expected[i]);
    }
}

fn dot(weights: &[f64], y: &[f64]) -> f64 {
    weights.iter().zip(y).map(|(weight, y)| weight * y).sum()
}

/// Compares a layer with its function. An output or gradient may err by `roundings` units of the same expression over
/// the magnitudes of all operands, which bounds every partial sum; 0 asks for the exact result.
pub fn check(layer: &mut dyn Layer, x: &Tensor, roundings: f64, function: Function<'_>) {
    // The input first, then the parameters.
    let mut lists = vec![wide(x.as_slice().unwrap())];
    lists.extend(parameters(layer, nn::Parameter::elements));
    let sizes: Vec<Vec<f64>> = lists.iter().map(|list| magnitudes(list)).collect();

    let y = layer.forward(&[x], Parallelism::Current).unwrap();
    let bound = function(&sizes[0], &sizes[1..]);
    close("y", roundings, &wide(y.as_slice().unwrap()), &function(&lists[0], &lists[1..]), &bound, 0.0);

    let dy = eighths(y.shape(), &mut Random::new(99));
    let weights = wide(dy.as_slice().unwrap());
    let slopes = differences(&lists, &|lists| dot(&weights, &function(&lists[0], &lists[1..])));
    let bounds = differences(&sizes, &|lists| dot(&magnitudes(&weights), &function(&lists[0], &lists[1..])));

    let dx = layer.backward(&dy, Parallelism::Current).unwrap().remove(0);
    assert_eq!(dx.shape(), x.shape());
    let mut gradients = vec![wide(dx.as_slice().unwrap())];
    gradients.extend(parameters(layer, nn::Parameter::gradient_elements));
    for (at, gradient) in gradients.iter().enumerate() {
        close(["dx", "dweight", "dbias"][at], roundings, gradient, &slopes[at], &bounds[at], DIFFERENCE);
    }

    // A second pass adds the same again, whether or not the gradient of the input is asked for.
    layer.forward(&[x], Parallelism::Current).unwrap();
    layer.backward_parameters(&dy, Parallelism::Current).unwrap();
    for (twice, once) in parameters(layer, nn::Parameter::gradient_elements).iter().zip(&gradients[1..]) {
        assert!(twice.iter().zip(once).all(|(twice, once)| *twice == 2.0 * once), "{twice:?} twice {once:?}");
    }
}

/// Runs `test(random)` for each of so many seeds, or for `NN_TEST_SEED` alone. A failure says which seed it was.
pub fn for_seeds(name: &str, count: u64, test: impl Fn(&mut Random)) {
    struct Case<'a>(&'a str, u64);
    impl Drop for Case<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("repeat it: NN_TEST_SEED={} cargo test -p nn {}", self.1, self.0);
            }
        }
    }
    let seeds = match std::env::var("NN_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    };
    for seed in seeds {
        let _case = Case(name, seed);
        test(&mut Random::new(seed));
    }
}

/// A number from `low` to `high`, both included.
pub fn between(random: &mut Random, low: usize, high: usize) -> usize {
    low + random.below(high - low + 1)
}

/// A node as a function of its inputs, in f64.
pub type Node<'a> = &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>;

/// Compares a node without parameters, of any number of inputs, with its function: as [`check`] does for layers of one
/// input.
pub fn check_node(layer: &mut dyn Layer, inputs: &[Tensor], roundings: f64, function: Node<'_>) {
    let lists: Vec<Vec<f64>> = inputs.iter().map(|x| wide(x.as_slice().unwrap())).collect();
    let sizes: Vec<Vec<f64>> = lists.iter().map(|list| magnitudes(list)).collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();

    let y = layer.forward(&inputs, Parallelism::Current).unwrap();
    close("y", roundings, &wide(y.as_slice().unwrap()), &function(&lists), &function(&sizes), 0.0);

    let dy = eighths(y.shape(), &mut Random::new(99));
    let weights = wide(dy.as_slice().unwrap());
    let slopes = differences(&lists, &|lists| dot(&weights, &function(lists)));
    let bounds = differences(&sizes, &|lists| dot(&magnitudes(&weights), &function(lists)));
    let gradients = layer.backward(&dy, Parallelism::Current).unwrap();
    assert_eq!(gradients.len(), inputs.len());
    for (at, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.shape(), inputs[at].shape());
        let given = wide(gradient.as_slice().unwrap());
        close(&format!("dx{at}"), roundings, &given, &slopes[at], &magnitudes(&bounds[at]), DIFFERENCE);
    }
}
