//! Layers, losses and optimisers against PyTorch. `fixtures/pytorch.py` says how the numbers were made.

mod fixtures;

use kernels::conv::{Accuracy, Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use nn::optim::{Optimizer, Rule};
use nn::{
    Adam, AdamW, Conv2d, Flatten, GradientDescent, Layer, Linear, MaxPool2d, Network, Parallelism, ReLU, Result,
    SCELoss, Sequential, Sgd, Sigmoid, StateDict, Tanh, clip_norm,
};

use fixtures::{array, check, close, elements, fixtures, parameters};

/// The rates of the optimisers.
const DESCENT_RATE: f32 = 0.25;
const ADAM_RATE: f32 = 0.0625;

#[test]
fn linear_layers_agree() -> Result<()> {
    for name in ["linear", "linear_without_bias"] {
        let (weight, bias) = parameters(name);
        // The longest sum is over the inputs: 19 of them, or 8.
        check(name, &mut Linear::with_weights(weight, bias)?, Some(19), [0.0; 2])?;
    }
    Ok(())
}

#[test]
fn convolutions_agree() -> Result<()> {
    let cases = [
        ("conv", Conv2dSpec::new(3, 5, [3, 3]).padding(Padding::all(1))),
        ("conv_strided", Conv2dSpec::new(2, 4, [5, 3]).stride([2, 1]).padding(Padding::symmetric([2, 0]))),
        ("conv_grouped", Conv2dSpec::new(4, 6, [3, 3]).groups(2).dilation([2, 1])),
    ];
    for (name, spec) in cases {
        let (weight, bias) = parameters(name);
        // Stated for the direct algorithms, whose chains are as long as their sums: the longest is over the pixels of
        // a batch of 2 outputs of 6 x 7.
        let spec = spec.accuracy(Accuracy::Direct);
        check(name, &mut Conv2d::with_weights(spec, weight, bias)?, Some(84), [0.0; 2])?;
    }
    Ok(())
}

#[test]
fn max_pooling_agrees() -> Result<()> {
    check("pool", &mut MaxPool2d::new(Pool2dSpec::new([2, 2]))?, None, [0.0; 2])?;
    let overlapping = Pool2dSpec::new([3, 3]).stride([2, 2]).padding(Padding::all(1));
    // A pixel is the largest of up to four windows, whose gradients may cancel: compared with 4, more than their sum.
    let case = fixtures("pool_overlapping");
    let mut pool = MaxPool2d::new(overlapping)?;
    let y = pool.forward(&[&array(&case, "x").into_shared()], Parallelism::Current)?;
    assert_eq!(y.as_slice().unwrap(), elements(&case, "y"));
    let dx = pool.backward(&array(&case, "dy").into_shared(), Parallelism::Current)?.remove(0);
    let expected = elements(&case, "dx");
    close("pool_overlapping.dx", dx.as_slice().unwrap(), &expected, &vec![4.0; expected.len()], 3.0);
    Ok(())
}

#[test]
fn activations_agree() -> Result<()> {
    check("relu", &mut ReLU::default(), None, [0.0; 2])?;
    // 2.5 ULP are at most 5 roundings. In dy y (1 - y), with y below 0.89, that of y weighs 8 times in 1 - y; three
    // more.
    check("sigmoid", &mut Sigmoid::default(), None, [5.0, 5.0 + 40.0 + 3.0])?;
    // 1.8 ULP are at most 3.6 roundings. In dy (1 - y^2), with y below 0.965, that of y weighs 2 * 0.931 / 0.069 = 27
    // times, and that of the sum, relative to 1, up to 15 times.
    check("tanh", &mut Tanh::default(), None, [3.6, 27.0 * 3.6 + 15.0 + 2.0])
}

#[test]
fn the_loss_agrees() -> Result<()> {
    let case = fixtures("loss");
    let labels: Vec<usize> = elements(&case, "labels").iter().map(|&label| label as usize).collect();
    let mut loss = SCELoss::default();
    let mean = loss.forward(&array(&case, "z").into_shared(), &labels, Parallelism::Current)?;
    // What the kernel states: losses below 7, logits less than 4 apart, 10 classes; the mean adds 9 of itself.
    close("mean", &[mean], &elements(&case, "mean"), &[1.0], 4.0 * 7.0 + 4.0 + 10.0 + 9.0 + 9.0 * 7.0);
    let dz = loss.backward()?;
    let expected = elements(&case, "dz");
    let scale = vec![1.0 / labels.len() as f32; expected.len()];
    close("dz", dz.as_slice().unwrap(), &expected, &scale, 2.0 * 4.0 + 10.0 + 12.0);
    Ok(())
}

#[test]
fn a_network_takes_pytorchs_names() -> Result<()> {
    let case = fixtures("network");
    let random = &mut nn::Random::new(0);
    let conv = Conv2dSpec::new(2, 4, [3, 3]).padding(Padding::all(1)).accuracy(Accuracy::Direct);
    let features = Sequential::new()
        .with(Conv2d::new(conv, random)?)?
        .with(ReLU::default())?
        .with(MaxPool2d::new(Pool2dSpec::new([2, 2]))?)?;
    let layers = Sequential::new()
        .with_named("features", features)?
        .with_named("flatten", Flatten::default())?
        .with_named("classifier", Linear::new(36, 5, random)?)?;
    let mut network = Network::new(layers);
    network.load_state_dict(&case.under("state."))?;
    let y = network.forward(&array(&case, "x").into_shared())?;
    // ReLU and maximum pass errors on; the sums are over 18 and 36 products.
    let roundings = (18.0 + 2.0) + (36.0 + 2.0);
    close("y", y.as_slice().unwrap(), &elements(&case, "y"), &elements(&case, "y.scale"), roundings);
    Ok(())
}

/// A network of one weight, as the case begins.
fn weight(case: &StateDict) -> Result<Network> {
    Ok(Network::new(Linear::with_weights(array(case, "weight"), None)?))
}

fn set_gradient(network: &mut Network, gradient: &[f32]) {
    network.visit(|_, parameter| parameter.elements_and_gradient().1.copy_from_slice(gradient));
}

/// Compares the values after each step; `roundings` bounds what a step adds, in units of its scale.
fn check_optimizer<R: Rule>(
    name: &str,
    mut optimizer: Optimizer<R>,
    rate: f32,
    scale: f32,
    roundings: impl Fn(f64) -> f64,
) -> Result<()> {
    let case = fixtures(name);
    let mut network = weight(&case)?;
    let mut total = 0.0;
    for step in 0..3 {
        set_gradient(&mut network, &elements(&case, &format!("gradient.{step}")));
        optimizer.step(&mut network, rate)?;
        total += roundings(step as f64 + 1.0);
        let expected = elements(&case, &format!("after.{step}"));
        let scale = vec![scale; expected.len()];
        network.visit(|_, w| close(&format!("{name}, step {step}"), w.elements(), &expected, &scale, total));
    }
    Ok(())
}

#[test]
fn descent_agrees() -> Result<()> {
    // Values stay below 2 in magnitude, gradients below 2.25 with decay, velocities below 2 * 2.25 and Nesterov's
    // directions below 2 * 4.5. What the kernel states for a step is u (2 + 9 * 0.25 * 9) or less; the error of the
    // velocity before, 4 u * 4.5 a step, comes in again with the rate and twice the momentum.
    let per_step = |step: f64| 2.0 + 9.0 * 0.25 * 9.0 + step * 0.25 * 4.0 * 4.5;
    check_optimizer("descent", GradientDescent::new(), DESCENT_RATE, 1.0, per_step)?;
    check_optimizer("sgd", Sgd::new(0.5).decay(0.125), DESCENT_RATE, 1.0, per_step)?;
    check_optimizer("nesterov", Sgd::new(0.5).decay(0.125).nesterov(), DESCENT_RATE, 1.0, per_step)
}

#[test]
fn adam_agrees() -> Result<()> {
    // Nothing cancels, so relative errors add up: a gradient with decay errs by 4 u, its mean by 4 + 3 u a step, its
    // variance by 8 + 4 u a step, of which the root keeps half. Quotient and product add 9 u. The quotient is below 4,
    // the largest gradient over the least; values are below 2, and rounded three times.
    let per_step = |step: f64| 3.0 * 2.0 + ADAM_RATE as f64 * 4.0 * (7.0 * step + 6.0 * step + 9.0);
    check_optimizer("adam", Adam::new().decay(0.125), ADAM_RATE, 1.0, per_step)?;
    check_optimizer("adamw", AdamW::new().betas([0.8, 0.95]).decay(0.125), ADAM_RATE, 1.0, per_step)
}

#[test]
fn clipping_agrees() -> Result<()> {
    let case = fixtures("clip");
    let mut network = Network::new(Linear::with_weights(array(&case, "gradient"), None)?);
    set_gradient(&mut network, &elements(&case, "gradient"));
    let norm = clip_norm(&mut network, 0.75)? as f32;
    // 36 of the norm, as its kernel states, and one to round it; two more for the factor and its product.
    let expected = elements(&case, "norm");
    close("norm", &[norm], &expected, &expected, 37.0);
    let expected = elements(&case, "after");
    let scale: Vec<f32> = expected.iter().map(|x| x.abs()).collect();
    network.visit(|_, w| close("after", w.gradient_elements(), &expected, &scale, 39.0));
    Ok(())
}
