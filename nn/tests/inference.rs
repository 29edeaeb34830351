//! Planned forward passes: the bits of the layers, whatever is fused and wherever values stand.

use kernels::LocalResponse;
use kernels::conv::{Conv1dSpec, Conv2dSpec, ConvTranspose2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use nn::models::{AlexNet, Fcn, GoogLeNet, LeNet5, NiN, Perceptron};
use nn::{
    AdaptiveAvgPool2d, AvgPool2d, Concat, Conv1d, Conv2d, ConvTranspose2d, Error, Flatten, Graph, Layer, Linear,
    LocalResponseNorm, MaxPool2d, Maximum, Network, NodeId, Parallelism, Random, ReLU, Result, Sequential, Sigmoid,
    Sum, Tanh, Tensor, tensor,
};

fn image(shape: &[usize], seed: u64) -> Tensor {
    let random = &mut Random::new(seed);
    let elements = (0..shape.iter().product()).map(|_| random.uniform(-1.0, 1.0)).collect();
    tensor(shape, elements).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A network in both modes gives the same bits for inputs of these shapes, and runs by kernels alone in the second.
fn assert_same(name: &str, layer: impl Layer + 'static, inputs: &[&[usize]]) {
    assert!(run_both_modes(name, layer, inputs).is_planned(), "{name} has no plan");
}

/// Runs a network in both modes for inputs of these shapes, one after the other and again.
fn run_both_modes(name: &str, layer: impl Layer + 'static, inputs: &[&[usize]]) -> Network {
    let mut network = Network::new(layer);
    let expected: Vec<Tensor> =
        inputs.iter().enumerate().map(|(at, shape)| network.forward(&image(shape, at as u64)).unwrap()).collect();
    network.eval();
    for round in 0..2 {
        for (at, shape) in inputs.iter().enumerate() {
            let x = image(shape, at as u64);
            let y = network.forward(&x).unwrap();
            assert_eq!(y.shape(), expected[at].shape(), "{name} {shape:?}");
            assert!(bits(&y) == bits(&expected[at]), "{name} {shape:?}, round {round}");
            let mut written = vec![f32::NAN; y.len()];
            network.forward_into(&x, &mut written).unwrap();
            assert_eq!(written, y.as_slice().unwrap(), "{name} {shape:?}");
        }
    }
    network
}

#[test]
fn the_models_give_the_bits_of_their_layers() -> Result<()> {
    let random = &mut Random::new(2);
    let (channels, classes, width) = (1, 10, 0.125);
    assert_same("perceptron", Perceptron::default().build(random)?, &[&[1, 1, 28, 28], &[7, 1, 28, 28]]);
    assert_same("LeNet-5", LeNet5::default().build(random)?, &[&[1, 1, 28, 28], &[3, 1, 28, 28]]);
    let alexnet = AlexNet { channels, classes, width, dropout: 0.0 }.build(random)?;
    assert_same("AlexNet", alexnet, &[&[1, 1, 64, 70], &[2, 1, 64, 64]]);
    assert_same("NiN", NiN { channels, classes, width }.build(random)?, &[&[1, 1, 64, 64], &[2, 1, 70, 64]]);
    let paper = GoogLeNet { channels, classes, width, batch_norm: false, dropout: 0.0 }.build(random)?;
    assert_same("GoogLeNet", paper, &[&[1, 1, 64, 64], &[3, 1, 64, 48], &[1, 1, 48, 64]]);
    assert_same("FCN", Fcn::default().build(random)?, &[&[1, 1, 28, 28], &[1, 1, 60, 44]]);
    Ok(())
}

fn conv(from: usize, to: usize, random: &mut Random) -> Conv2d {
    Conv2d::new(Conv2dSpec::new(from, to, [3, 3]).padding(Padding::all(1)), random).unwrap()
}

#[test]
fn residuals_and_activations_are_fused_where_nobody_else_needs_them() -> Result<()> {
    let random = &mut Random::new(3);
    // A residual block, whose sum comes first or last; a value that two layers need; two convolutions in one sum.
    for order in [false, true] {
        let mut graph = Graph::new();
        let x = graph.input("x")?;
        let first = graph.add("first", conv(4, 4, random), &[x])?;
        let relu = graph.add("relu", ReLU::default(), &[first])?;
        let second = graph.add("second", conv(4, 4, random), &[relu])?;
        let sum = graph.add("sum", Sum::default(), &if order { [second, x] } else { [x, second] })?;
        let out = graph.add("out", ReLU::default(), &[sum])?;
        let left = graph.add("left", conv(4, 4, random), &[out])?;
        let right = graph.add("right", conv(4, 4, random), &[out])?;
        let both = graph.add("both", Sum::default(), &[left, right])?;
        let tanh = graph.add("tanh", Tanh::default(), &[both])?;
        let twice = graph.add("twice", Sum::default(), &[tanh, tanh])?;
        let three = graph.add("three", Sum::default(), &[twice, out, x])?;
        graph.add("end", Sigmoid::default(), &[three])?;
        assert_same("residuals", graph, &[&[1, 4, 9, 9], &[2, 4, 8, 9]]);
    }
    // Two transposed convolutions meet: the sum of one becomes the residual of the other.
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let up = ConvTranspose2dSpec::new(4, 3, [3, 3]).stride([2, 2]).padding(Padding::all(1));
    let left = graph.add("left", ConvTranspose2d::new(up, random)?, &[x])?;
    let right = graph.add("right", ConvTranspose2d::new(up, random)?, &[x])?;
    let sum = graph.add("sum", Sum::default(), &[left, right])?;
    graph.add("relu", ReLU::default(), &[sum])?;
    assert_same("transposed residuals", graph, &[&[1, 4, 5, 6], &[2, 4, 7, 3]]);
    Ok(())
}

/// A convolution with normalisation behind it, and the running mean and variance of each channel.
fn normalised(epsilon: f32, seed: u64, of: impl Fn(&str, usize, &mut Random) -> f32) -> Result<Graph> {
    let random = &mut Random::new(seed);
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let conv = graph.add("conv", conv(4, 4, random), &[x])?;
    let norm = graph.add("norm", nn::BatchNorm2d::new(4)?.epsilon(epsilon), &[conv])?;
    let sum = graph.add("sum", Sum::default(), &[x, norm])?;
    graph.add("relu", ReLU::default(), &[sum])?;
    graph.visit("", &mut |name, parameter| {
        parameter.update().0.iter_mut().enumerate().for_each(|(at, value)| *value = of(name, at, random));
    });
    graph.visit_buffers("", &mut |name, buffer| {
        buffer.iter_mut().enumerate().for_each(|(at, value)| *value = of(name, at, random));
    });
    Ok(graph)
}

/// The output of a network in the mode for examination, planned and layer by layer.
fn both_ways(graph: Graph, x: &Tensor) -> Result<[Tensor; 2]> {
    let mut graph = graph;
    graph.set_training(false);
    let layers = graph.forward(&[x], Parallelism::Serial)?;
    let mut network = Network::new(graph);
    network.eval();
    assert_eq!(network.time_layers(x)?.len(), 1, "one kernel for all layers");
    Ok([network.forward(x)?, layers])
}

#[test]
fn folded_normalisation_is_exact_where_nothing_rounds() -> Result<()> {
    // Deviations of 1/2, 1, 2 and 4; all else integers.
    let graph = normalised(0.0, 10, |name, at, random| match name {
        "norm.running_var" => [0.25, 1.0, 4.0, 16.0][at],
        _ => random.uniform(-9.0, 9.0).round(),
    })?;
    let x = image(&[2, 4, 7, 6], 3).mapv(|x| (8.0 * x).round()).into_shared();
    let [planned, layers] = both_ways(graph, &x)?;
    assert_eq!(planned, layers);
    Ok(())
}

#[test]
fn folded_normalisation_differs_by_rounding_alone() -> Result<()> {
    let of = |name: &str, _: usize, random: &mut Random| match name {
        "norm.running_var" => random.uniform(0.1, 3.0),
        _ => random.uniform(-1.0, 1.0),
    };
    let x = image(&[2, 4, 7, 6], 3);
    let [planned, layers] = both_ways(normalised(1e-5, 11, of)?, &x)?;
    // Chains of 4 * 9 products; the factor of a channel is at most 1 / sqrt(0.1). Either way rounds each term fewer
    // than 48 times, and the terms of an output are at most so large together.
    let terms = (36.0 + 2.0) * 10f32.sqrt() + 2.0;
    let bound = 2.0 * 48.0 * f32::EPSILON / 2.0 * terms;
    for (planned, layers) in planned.iter().zip(&layers) {
        assert!((planned - layers).abs() <= bound, "{planned} for {layers}");
    }
    Ok(())
}

#[test]
fn normalisation_folds_into_transposed_convolutions_of_groups_too() -> Result<()> {
    let integer = |random: &mut Random| random.uniform(-9.0, 9.0).round();
    let random = &mut Random::new(12);
    let spec = ConvTranspose2dSpec::new(4, 6, [3, 2]).stride([2, 1]).groups(2);
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let up = graph.add("up", ConvTranspose2d::new(spec, random)?, &[x])?;
    let norm = graph.add("norm", nn::BatchNorm2d::new(6)?.epsilon(0.0), &[up])?;
    graph.add("relu", ReLU::default(), &[norm])?;
    graph.visit("", &mut |_, parameter| parameter.update().0.iter_mut().for_each(|value| *value = integer(random)));
    // Deviations of 1/2 to 16, and means: all else integers, so that nothing rounds.
    graph.visit_buffers("", &mut |name, buffer| {
        buffer.iter_mut().enumerate().for_each(|(channel, value)| {
            *value = if name == "norm.running_var" { 4f32.powi(channel as i32 - 1) } else { integer(random) };
        });
    });
    let x = image(&[2, 4, 5, 6], 3).mapv(|x| (8.0 * x).round()).into_shared();
    let [planned, layers] = both_ways(graph, &x)?;
    assert_eq!(planned, layers);
    Ok(())
}

#[test]
fn values_may_be_inputs_outputs_and_parts_at_once() -> Result<()> {
    let random = &mut Random::new(4);
    let line = || Sequential::new();
    assert_same("nothing but a view", line().with(Flatten::default())?, &[&[2, 3, 4]]);
    assert_same("an activation alone", ReLU::default(), &[&[2, 3]]);
    assert_same("a layer alone", Linear::new(6, 4, random)?, &[&[2, 6], &[1, 6], &[0, 6]]);
    assert_same("a view at the end", line().with(conv(2, 3, random))?.with(Flatten::default())?, &[&[1, 2, 5, 5]]);
    let in_place =
        line().with(Flatten::default())?.with(ReLU::default())?.with(Tanh::default())?.with(Sigmoid::default())?;
    assert_same("activations in a row", in_place, &[&[3, 4, 5]]);

    // The input beside its own parts; a part twice; a concat in a concat; a part that others read too.
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let a = graph.add("a", conv(2, 3, random), &[x])?;
    let b = graph.add("b", conv(2, 1, random), &[x])?;
    let inner = graph.add("inner", Concat::default(), &[a, b])?;
    let c = graph.add("c", ReLU::default(), &[x])?;
    let outer = graph.add("outer", Concat::default(), &[inner, c])?;
    let again = graph.add("again", Concat::default(), &[outer, x, outer])?;
    let d = graph.add("d", conv(14, 2, random), &[again])?;
    let e = graph.add("e", ReLU::default(), &[d])?;
    let f = graph.add("f", Tanh::default(), &[d])?;
    let parts: [NodeId; 3] = [e, f, d];
    graph.add("end", Concat::default(), &parts)?;
    assert_same("concats", graph, &[&[1, 2, 6, 5], &[2, 2, 6, 5], &[0, 2, 6, 5]]);

    // A concat as the output, and one whose parts are computed where they belong.
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let a = graph.add("a", conv(2, 3, random), &[x])?;
    let a = graph.add("relu a", ReLU::default(), &[a])?;
    let b = graph.add("b", MaxPool2d::new(Pool2dSpec::new([3, 3]).stride([1, 1]).padding(Padding::all(1)))?, &[x])?;
    let b = graph.add("tanh b", Tanh::default(), &[b])?;
    graph.add("y", Concat::default(), &[a, b])?;
    assert_same("a concat at the end", graph, &[&[1, 2, 6, 5], &[2, 2, 6, 5]]);
    Ok(())
}

#[test]
fn every_layer_has_a_kernel() -> Result<()> {
    let random = &mut Random::new(5);
    let up = ConvTranspose2dSpec::new(3, 2, [4, 4]).stride([2, 2]).padding(Padding::all(1));
    let images = Sequential::new()
        .with(ConvTranspose2d::new(up, random)?)?
        .with(ReLU::default())?
        .with(LocalResponseNorm::new(LocalResponse::default())?)?
        .with(AvgPool2d::new(Pool2dSpec::new([2, 2]))?)?
        .with(MaxPool2d::new(Pool2dSpec::new([3, 3]).stride([2, 2]).ceil_mode(true))?)?
        .with(AdaptiveAvgPool2d::new([2, 3])?)?;
    assert_same("images", images, &[&[1, 3, 8, 9], &[3, 3, 9, 9]]);
    let lines = Sequential::new().with(Conv1d::new(Conv1dSpec::new(2, 5, 3), random)?)?.with(Tanh::default())?;
    assert_same("lines", lines, &[&[1, 2, 20], &[4, 2, 9]]);
    Ok(())
}

#[test]
fn a_layer_without_a_kernel_runs_by_its_forward() -> Result<()> {
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let relu = graph.add("relu", ReLU::default(), &[x])?;
    graph.add("largest", Maximum::default(), &[x, relu])?;
    assert!(!run_both_modes("maximum", graph, &[&[2, 3]]).is_planned());
    Ok(())
}

#[test]
fn weights_that_changed_are_packed_again() -> Result<()> {
    let mut network = Network::new(LeNet5::default().build(&mut Random::new(6))?);
    let x = image(&[2, 1, 28, 28], 1);
    network.eval();
    let before = network.forward(&x)?;
    network.visit(|_, parameter| parameter.update().0.iter_mut().for_each(|weight| *weight *= 0.5));
    let after = network.forward(&x)?;
    assert!(bits(&before) != bits(&after));
    network.train();
    assert!(bits(&network.forward(&x)?) == bits(&after));
    Ok(())
}

#[test]
fn there_is_no_backward_in_eval_mode() -> Result<()> {
    let mut network = Network::new(Linear::new(2, 2, &mut Random::new(7))?);
    let x = image(&[1, 2], 1);
    let y = network.forward(&x)?;
    network.eval();
    assert!(!network.is_training());
    network.forward(&x)?;
    assert_eq!(network.backward(&y), Err(Error::NoForward));
    assert!(network.backward_to_input(&y).is_err());
    network.train();
    network.forward(&x)?;
    network.backward(&y)
}

#[test]
fn what_does_not_fit_is_an_error_that_names_the_layer() -> Result<()> {
    let mut network = Network::new(LeNet5::default().build(&mut Random::new(8))?);
    network.eval();
    for _ in 0..2 {
        let error = network.forward(&image(&[1, 1, 32, 28], 1)).unwrap_err();
        assert_eq!(error.to_string(), "layer 7 (Linear): x: expected shape [batch, 400], given [1, 480]");
        network.forward(&image(&[1, 1, 28, 28], 1))?;
    }
    let mut y = [7.0; 9];
    assert!(matches!(network.forward_into(&image(&[1, 1, 28, 28], 1), &mut y), Err(Error::Shape { .. })));
    assert_eq!(y, [7.0; 9]);
    Ok(())
}

#[test]
fn planned_passes_give_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let model = GoogLeNet { channels: 1, classes: 10, width: 0.5, ..GoogLeNet::default() };
    let mut network = Network::new(model.build(&mut Random::new(9))?);
    network.eval();
    let x = image(&[1, 1, 96, 96], 1);
    network.set_parallelism(Parallelism::Serial);
    let expected = bits(&network.forward(&x)?);
    network.set_parallelism(Parallelism::Current);
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(bits(&pool.install(|| network.forward(&x))?) == expected, "{threads} threads");
    }
    Ok(())
}
