//! Layers against double for-loops in f64: outputs, and gradients against finite differences of those loops.

mod check;

use kernels::conv::{Accuracy, Conv2dSpec, Padding, Shape};
use kernels::pool::Pool2dSpec;
use kernels::{Activation, reference};
use nn::{
    Conv2d, Error, Flatten, Layer, Linear, MaxPool2d, Network, Parallelism, Random, ReLU, Result, SCELoss, Sequential,
    Sgd, Sigmoid, Tanh, tensor,
};

use check::{DIFFERENCE, U, array, check, differences, distinct, eighths, wide};

fn check_conv(spec: Conv2dSpec, batch: usize, [height, width]: [usize; 2], with_bias: bool) {
    let random = &mut Random::new(5);
    // Stated for the direct algorithms, whose chains are as long as their sums.
    let spec = spec.accuracy(Accuracy::Direct);
    let shape = Shape::new(batch, height, width);
    let sizes = spec.sizes(shape).unwrap();
    let group_in = spec.in_channels / spec.groups;
    let weight = eighths(&[spec.out_channels, group_in, spec.kernel[0], spec.kernel[1]], random);
    let bias = with_bias.then(|| array(eighths(&[spec.out_channels], random)));
    let mut layer = Conv2d::with_weights(spec, array(weight), bias).unwrap();
    let x = eighths(&[batch, spec.in_channels, height, width], random);
    let taps = spec.kernel[0] * spec.kernel[1];
    let longest = (taps * group_in).max(taps * spec.out_channels).max(batch * sizes.output[0] * sizes.output[1]);
    check(&mut layer, &x, longest as f64 + 2.0, &|x, parameters| {
        let mut y = vec![0.0; sizes.y_len];
        let bias = parameters.get(1).map(Vec::as_slice);
        reference::conv2d_forward(&spec, shape, x, &parameters[0], bias, None, &mut y).unwrap();
        y
    });
}

#[test]
fn a_convolution_is_that_of_the_loops() {
    check_conv(Conv2dSpec::new(1, 3, [3, 3]), 2, [6, 5], true);
    check_conv(Conv2dSpec::new(2, 4, [5, 5]).padding(Padding::all(2)), 2, [6, 7], true);
    let padding = Padding { top: 0, bottom: 2, left: 1, right: 0 };
    check_conv(Conv2dSpec::new(3, 2, [2, 3]).stride([2, 1]).padding(padding), 3, [7, 6], false);
    check_conv(Conv2dSpec::new(4, 6, [3, 3]).groups(2).dilation([2, 1]), 1, [8, 5], true);
    check_conv(Conv2dSpec::new(3, 6, [3, 3]).groups(3).padding(Padding::all(1)), 2, [5, 5], true);
}

#[test]
fn the_convolution_of_the_lecture() -> Result<()> {
    let filter = ndarray::array![[[[1.0, 2.0], [3.0, 4.0]]]].into_dyn();
    let mut conv = Conv2d::with_weights(Conv2dSpec::new(1, 1, [2, 2]), filter, None)?;
    let image = tensor(&[1, 1, 3, 3], vec![12.0, 3.0, 19.0, 25.0, 10.0, 1.0, 9.0, 7.0, 17.0])?;
    let expected = tensor(&[1, 1, 2, 2], vec![133.0, 75.0, 100.0, 101.0])?;
    assert_eq!(conv.forward(&[&image], Parallelism::Current)?, expected);
    Ok(())
}

#[test]
fn a_linear_layer_is_that_of_the_loops() {
    for (batch, inputs, outputs, with_bias) in [(1, 1, 1, true), (3, 5, 4, true), (7, 33, 18, false)] {
        let random = &mut Random::new(6);
        let weight = array(eighths(&[outputs, inputs], random));
        let bias = with_bias.then(|| array(eighths(&[outputs], random)));
        let mut layer = Linear::with_weights(weight, bias).unwrap();
        let x = eighths(&[batch, inputs], random);
        let longest = inputs.max(outputs).max(batch) as f64 + 2.0;
        check(&mut layer, &x, longest, &|x, parameters| {
            let mut y = vec![0.0; batch * outputs];
            for n in 0..batch {
                for o in 0..outputs {
                    y[n * outputs + o] = parameters.get(1).map_or(0.0, |bias| bias[o]);
                    for i in 0..inputs {
                        y[n * outputs + o] += x[n * inputs + i] * parameters[0][o * inputs + i];
                    }
                }
            }
            y
        });
    }
}

#[test]
fn max_pooling_is_that_of_the_loops() {
    let specs = [
        Pool2dSpec::new([2, 2]),
        Pool2dSpec::new([3, 2]).stride([1, 2]),
        Pool2dSpec::new([3, 3]).stride([2, 2]).padding(Padding::all(1)),
    ];
    for spec in specs {
        let (shape, channels) = (Shape::new(2, 7, 6), 3);
        let x = distinct(&[2, channels, 7, 6], &mut Random::new(7));
        let sizes = spec.sizes(shape, channels).unwrap();
        check(&mut MaxPool2d::new(spec).unwrap(), &x, 0.0, &|x, _| {
            let mut y = vec![0.0; sizes.y_len];
            reference::max_pool2d_forward(&spec, shape, channels, x, &mut y).unwrap();
            y
        });
    }
}

#[test]
fn the_activations_are_those_of_the_loops() {
    let function = |activation: Activation| {
        move |x: &[f64], _: &[Vec<f64>]| {
            let mut y = vec![0.0; x.len()];
            reference::activation_forward(activation, x, &mut y).unwrap();
            y
        }
    };
    // 67 elements between -2 and 2: more than a vector, and not a multiple of one.
    let x = distinct(&[67], &mut Random::new(8));
    check(&mut ReLU::default(), &x, 0.0, &function(Activation::Relu));
    // A few units for the function itself, and 1 - y, which loses up to a factor of 9 here, for the gradient.
    check(&mut Sigmoid::default(), &x, 40.0, &function(Activation::Sigmoid));
    // 1 - y^2 loses up to a factor of 20.
    check(&mut Tanh::default(), &x, 80.0, &function(Activation::Tanh));
}

#[test]
fn flatten_moves_nothing() {
    let x = distinct(&[2, 3, 2, 4], &mut Random::new(9));
    check(&mut Flatten::default(), &x, 0.0, &|x, _| x.to_vec());
    let y = Flatten::default().forward(&[&x], Parallelism::Serial).unwrap();
    assert_eq!(y.shape(), [2, 24]);
}

#[test]
fn an_input_in_another_order_of_memory_gives_the_same() -> Result<()> {
    let random = &mut Random::new(10);
    let mut linear = Linear::new(3, 4, random)?;
    let x = eighths(&[5, 3], random);
    let columns = x.t().as_standard_layout().into_owned().into_shared().reversed_axes();
    assert!(!columns.is_standard_layout());
    let y = linear.forward(&[&x], Parallelism::Serial)?;
    assert_eq!(linear.forward(&[&columns], Parallelism::Serial)?, y);
    Ok(())
}

#[test]
fn the_loss_and_its_gradient_are_those_of_the_formula() -> Result<()> {
    let (batch, classes, labels) = (4, 10, [3, 0, 9, 3]);
    let z = distinct(&[batch, classes], &mut Random::new(11));
    let mut loss = SCELoss::default();
    let mean = loss.forward(&z, &labels, Parallelism::Current)? as f64;
    let dz = loss.backward()?;
    let z = wide(z.as_slice().unwrap());
    let formula = |z: &[f64]| {
        let mut sum = 0.0;
        for n in 0..batch {
            let row = &z[n * classes..][..classes];
            sum += row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[labels[n]];
        }
        sum / batch as f64
    };
    // The errors that the kernel states, for logits at most 2.5 apart and losses below 5.
    assert!((mean - formula(&z)).abs() <= 60.0 * U, "{mean}");
    let slopes = differences(&[z], &|lists| formula(&lists[0])).remove(0);
    for (given, expected) in dz.iter().zip(&slopes) {
        assert!((*given as f64 - expected).abs() <= 30.0 * U / batch as f64 + DIFFERENCE, "{given} for {expected}");
    }
    assert_eq!(loss.backward(), Err(Error::NoForward));
    Ok(())
}

#[test]
fn descent_with_momentum_follows_its_formula() -> Result<()> {
    let weight = ndarray::array![[2.0]].into_dyn();
    let mut network = Network::new(Linear::with_weights(weight, None)?);
    let mut sgd = Sgd::new(0.5).decay(0.25);
    let x = tensor(&[1, 1], vec![4.0])?;
    let (mut w, mut v) = (2.0f32, 0.0f32);
    for _ in 0..3 {
        network.forward(&x)?;
        network.backward(&tensor(&[1, 1], vec![1.0])?)?;
        sgd.step(&mut network, 0.125)?;
        v = 0.5 * v + (4.0 + 0.25 * w);
        w -= 0.125 * v;
        network.visit(|_, parameter| assert_eq!(parameter.elements(), [w]));
    }
    // The layer computes with the new weight.
    assert_eq!(network.forward(&x)?[[0, 0]], 4.0 * w);
    let mut other = Network::new(Linear::new(2, 2, &mut Random::new(0))?);
    assert!(matches!(sgd.step(&mut other, 0.1), Err(Error::Invalid { argument: "network", .. })));
    Ok(())
}

fn small_network(random: &mut Random) -> Result<Network> {
    let layers = Sequential::new()
        .with(Conv2d::new(Conv2dSpec::new(1, 6, [5, 5]).padding(Padding::all(2)), random)?)?
        .with(ReLU::default())?
        .with(MaxPool2d::new(Pool2dSpec::new([2, 2]))?)?
        .with(Conv2d::new(Conv2dSpec::new(6, 16, [5, 5]), random)?)?
        .with(Tanh::default())?
        .with(Flatten::default())?
        .with(Linear::new(16 * 10 * 10, 40, random)?)?
        .with(Sigmoid::default())?
        .with(Linear::new(40, 10, random)?)?;
    Ok(Network::new(layers))
}

/// The bits of all weights after some steps of training.
fn trained(parallelism: Parallelism<'static>) -> Result<Vec<u32>> {
    let random = &mut Random::new(12);
    let mut network = small_network(random)?;
    network.set_parallelism(parallelism);
    let (mut loss, mut sgd) = (SCELoss::default(), Sgd::new(0.9));
    for _ in 0..2 {
        let x = distinct(&[13, 1, 28, 28], random);
        let labels: Vec<usize> = (0..13).map(|_| random.below(10)).collect();
        let z = network.forward(&x)?;
        loss.forward(&z, &labels, parallelism)?;
        network.backward(&loss.backward()?)?;
        sgd.step(&mut network, 0.01)?;
    }
    let mut bits = Vec::new();
    network.visit(|_, parameter| bits.extend(parameter.elements().iter().map(|element| element.to_bits())));
    Ok(bits)
}

#[test]
fn training_gives_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let expected = trained(Parallelism::Serial)?;
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| trained(Parallelism::Current))? == expected, "{threads} threads");
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors_that_name_the_layer() -> Result<()> {
    let mut network = small_network(&mut Random::new(13))?;
    let error = network.forward(&tensor(&[1, 2, 28, 28], vec![0.0; 2 * 784])?).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 0 (Conv2d): x: expected shape [batch, 1, height, width], given [1, 2, 28, 28]"
    );
    let error = network.forward(&tensor(&[1, 1, 30, 28], vec![0.0; 840])?).unwrap_err();
    assert_eq!(error.to_string(), "layer 6 (Linear): x: expected shape [batch, 1600], given [1, 1760]");
    let error = network.forward(&tensor(&[1, 1, 4, 4], vec![0.0; 16])?).unwrap_err();
    assert!(error.to_string().starts_with("layer 3 (Conv2d): height: expected at least 5"), "{error}");

    network.forward(&tensor(&[1, 1, 28, 28], vec![0.0; 784])?)?;
    assert!(matches!(network.backward(&tensor(&[1, 9], vec![0.0; 9])?), Err(Error::Shape { .. })));

    let random = &mut Random::new(14);
    assert!(Linear::new(usize::MAX, 2, random).is_err());
    assert!(Linear::new(0, 2, random).is_err());
    assert!(Conv2d::new(Conv2dSpec::new(3, 4, [3, 3]).groups(2), random).is_err());
    assert!(Conv2d::new(Conv2dSpec::new(1, 1, [3, 3]).layout(kernels::conv::Layout::Nhwc), random).is_err());
    assert!(Conv2d::new(Conv2dSpec::new(1, 1, [3, 3]).activation(Activation::Relu), random).is_err());
    assert!(MaxPool2d::new(Pool2dSpec::new([0, 2])).is_err());
    assert!(ReLU::default().forward(&[], Parallelism::Serial).is_err());
    assert!(Flatten::default().forward(&[&tensor(&[], vec![1.0])?], Parallelism::Serial).is_err());
    let z = tensor(&[1, 2], vec![0.0, 0.0])?;
    assert!(SCELoss::default().forward(&z, &[2], Parallelism::Serial).is_err());
    assert!(SCELoss::default().forward(&z, &[], Parallelism::Serial).is_err());
    assert!(nn::classify(&tensor(&[2], vec![0.0, 0.0])?).is_err());
    assert!(tensor(&[2, 2], vec![0.0; 3]).is_err());
    Ok(())
}

#[test]
fn a_batch_without_images_passes_through() -> Result<()> {
    let mut network = small_network(&mut Random::new(15))?;
    let y = network.forward(&tensor(&[0, 1, 28, 28], Vec::new())?)?;
    assert_eq!(y.shape(), [0, 10]);
    network.backward(&y)
}
