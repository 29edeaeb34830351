//! Normalisation, gates, embeddings, positions and attention: outputs against loops in f64, gradients against finite
//! differences of those, and what only happens in training.

mod check;

use kernels::activation::gated::Gated;
use kernels::attention::{AttentionSpec, Causal, Inputs};
use kernels::reference::{self, Sharing};
use kernels::{View, ViewMut};
use nn::{
    BatchNorm2d, Dropout, Embedding, Error, GELU, GroupNorm, Layer, LayerNorm, LearnedPositions, MultiHeadAttention,
    Network, Parallelism, Random, Result, RmsNorm, Sequential, SiLU, SinusoidalPositions, Tensor, TransformerBlock,
    tensor,
};

use check::{Function, between, differences, distinct, eighths, for_seeds, wide};

const SEEDS: u64 = 20;

/// Compares a layer with a function of its input and its parameters: values and gradients may err by so much of the
/// largest that there is.
fn compare(layer: &mut dyn Layer, x: &Tensor, share: f64, function: Function<'_>) {
    let close = |what: &str, given: &[f64], expected: &[f64], share: f64| {
        assert_eq!(given.len(), expected.len(), "{what}");
        let most = expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        for i in 0..given.len() {
            assert!((given[i] - expected[i]).abs() <= share * most, "{what}[{i}]: {} for {}", given[i], expected[i]);
        }
    };
    let mut lists = vec![wide(x.as_slice().unwrap())];
    layer.visit("", &mut |_, parameter| {
        parameter.zero_gradient();
        lists.push(wide(parameter.elements()));
    });
    let y = layer.forward(&[x], Parallelism::Current).unwrap();
    assert_eq!(y.shape(), layer.output_shape(&[x.shape().to_vec()]).unwrap());
    close("y", &wide(y.as_slice().unwrap()), &function(&lists[0], &lists[1..]), share);

    let dy = eighths(y.shape(), &mut Random::new(99));
    let weights = wide(dy.as_slice().unwrap());
    let dot = |lists: &[Vec<f64>]| function(&lists[0], &lists[1..]).iter().zip(&weights).map(|(y, w)| y * w).sum();
    let slopes = differences(&lists, &dot);
    let mut gradients = vec![wide(layer.backward(&dy, Parallelism::Current).unwrap()[0].as_slice().unwrap())];
    layer.visit("", &mut |_, parameter| gradients.push(wide(parameter.gradient_elements())));
    for (at, (gradient, slopes)) in gradients.iter().zip(&slopes).enumerate() {
        // Differences of normalised values have third derivatives of some hundreds: STEP^2 / 6 of that.
        close(if at == 0 { "dx" } else { "a parameter's gradient" }, gradient, slopes, share.max(1e-5));
    }
    let again = layer.backward(&dy, Parallelism::Serial).unwrap_err();
    assert!(again == Error::NoForward || matches!(&again, Error::In { source, .. } if **source == Error::NoForward));
}

/// Gives a layer's parameters other values than those that it starts with.
fn stir(layer: &mut dyn Layer, random: &mut Random) {
    layer.visit("", &mut |_, parameter| {
        parameter.update().0.iter_mut().for_each(|value| *value += random.uniform(-0.5, 0.5));
    });
}

/// A few hundred roundings: sums of some dozen numbers, normalised by deviations above a tenth of the largest.
const SHARE: f64 = 3e-5;

#[test]
fn normalisation_is_that_of_the_loops() {
    for_seeds("normalisation", SEEDS, |random| {
        let (batch, channels, pixels) = (between(random, 2, 3), 2 * between(random, 1, 3), between(random, 2, 6));
        let x = distinct(&[batch, channels, pixels], random);
        let rows = batch * channels;
        let len = rows * pixels;
        let norm = |sharing: &Sharing, x: &[f64], parameters: &[Vec<f64>]| {
            let zeros = vec![0.0; sharing.parameters];
            let (gamma, beta) = (&parameters[0], parameters.get(1).unwrap_or(&zeros));
            let mut y = vec![0.0; sharing.len];
            reference::norm_forward(sharing, x, gamma, beta, f64::from(1e-5f32), &mut y).unwrap();
            y
        };
        let (row, column) = (|i: usize| i / pixels, |i: usize| i % pixels);
        let rowwise =
            |is_centred| Sharing { len, sets: rows, parameters: pixels, set: &row, parameter: &column, is_centred };

        let mut layer = LayerNorm::new(pixels).unwrap();
        stir(&mut layer, random);
        compare(&mut layer, &x, SHARE, &|x, parameters| norm(&rowwise(true), x, parameters));
        let mut rms = RmsNorm::new(pixels).unwrap();
        stir(&mut rms, random);
        compare(&mut rms, &x, SHARE, &|x, parameters| norm(&rowwise(false), x, parameters));

        let groups = [1, 2, channels][random.below(3)];
        let set = |i: usize| i / (channels / groups * pixels);
        let channel = |i: usize| i / pixels % channels;
        let sharing = Sharing {
            len,
            sets: batch * groups,
            parameters: channels,
            set: &set,
            parameter: &channel,
            is_centred: true,
        };
        let mut group = GroupNorm::new(groups, channels).unwrap();
        stir(&mut group, random);
        compare(&mut group, &x, SHARE, &|x, parameters| norm(&sharing, x, parameters));

        let images = x.clone().into_shape_with_order(ndarray::IxDyn(&[batch, channels, 1, pixels])).unwrap();
        let sharing =
            Sharing { len, sets: channels, parameters: channels, set: &channel, parameter: &channel, is_centred: true };
        let mut norm_of_batch = BatchNorm2d::new(channels).unwrap();
        stir(&mut norm_of_batch, random);
        compare(&mut norm_of_batch, &images, SHARE, &|x, parameters| norm(&sharing, x, parameters));
    });
}

#[test]
fn batch_normalisation_keeps_what_training_saw_for_the_examination() -> Result<()> {
    let mut network = Network::new(Sequential::new().with(BatchNorm2d::new(1)?.momentum(0.5))?);
    let x = tensor(&[2, 1, 1, 1], vec![2.0, 6.0])?;
    network.forward(&x)?;
    let mut kept = Vec::new();
    network.visit_buffers(|name, buffer| kept.push((name.to_string(), buffer.iter().copied().collect::<Vec<f32>>())));
    // Half of 0 and of a mean of 4; half of 1 and of a sample variance of 8.
    assert_eq!(kept, [("0.running_mean".to_string(), vec![2.0]), ("0.running_var".to_string(), vec![4.5])]);
    network.eval();
    let y = network.forward(&tensor(&[1, 1, 1, 2], vec![2.0, 8.0])?)?;
    assert!(y[[0, 0, 0, 0]].abs() < 1e-6 && (y[[0, 0, 0, 1]] - 6.0 / 4.50001f32.sqrt()).abs() < 1e-5, "{y}");
    // The layer by itself, in the same mode, gives the same bits.
    let mut alone = BatchNorm2d::new(1)?;
    alone.visit_buffers("", &mut |name, buffer| buffer.fill(if name == "running_mean" { 2.0 } else { 4.5 }));
    alone.set_training(false);
    assert_eq!(alone.forward(&[&tensor(&[1, 1, 1, 2], vec![2.0, 8.0])?], Parallelism::Serial)?, y);
    // A single element has no variance, and leaves what was kept alone.
    network.train();
    network.forward(&tensor(&[1, 1, 1, 1], vec![7.0])?)?;
    network.visit_buffers(|_, buffer| assert!(buffer.iter().all(|value| value.is_finite())));
    Ok(())
}

#[test]
fn gates_are_those_of_the_loops() {
    let x = distinct(&[67], &mut Random::new(8));
    let function = |gate: Gated| {
        move |x: &[f64], _: &[Vec<f64>]| {
            let mut y = vec![0.0; x.len()];
            reference::gated_forward(gate, x, &mut y).unwrap();
            y
        }
    };
    compare(&mut GELU::default(), &x, SHARE, &function(Gated::Gelu));
    compare(&mut GELU::tanh(), &x, SHARE, &function(Gated::GeluTanh));
    compare(&mut GELU::quick(), &x, SHARE, &function(Gated::GeluQuick));
    compare(&mut SiLU::default(), &x, SHARE, &function(Gated::Silu));
}

#[test]
fn dropout_leaves_out_in_training_alone_and_the_same_for_a_seed() -> Result<()> {
    let mut dropout = Dropout::new(0.25, &mut Random::new(1))?;
    let x = Tensor::ones(vec![100, 100]);
    let y = dropout.forward(&[&x], Parallelism::Current)?;
    let kept = y.iter().filter(|&&y| y != 0.0).count();
    assert!(y.iter().all(|&y| y == 0.0 || (y - 4.0 / 3.0).abs() < 1e-6));
    // Five standard deviations of a binomial count: sqrt(1e4 * 0.25 * 0.75) is 43.
    assert!((7_283..=7_717).contains(&kept), "{kept}");
    // What was left out gets no gradient, what was kept as much more.
    assert_eq!(dropout.backward(&x, Parallelism::Serial)?[0], y);
    assert_ne!(dropout.forward(&[&x], Parallelism::Serial)?, y);
    assert_eq!(Dropout::new(0.25, &mut Random::new(1))?.forward(&[&x], Parallelism::Serial)?, y);
    dropout.set_training(false);
    assert_eq!(dropout.forward(&[&x], Parallelism::Serial)?, x);
    assert_eq!(dropout.backward(&y, Parallelism::Serial)?[0], y);
    assert!(Dropout::new(1.5, &mut Random::new(1)).is_err());

    let mut network = Network::new(Sequential::new().with(Dropout::new(0.5, &mut Random::new(2))?)?);
    network.eval();
    assert_eq!(network.forward(&x)?, x);
    Ok(())
}

#[test]
fn words_and_positions_are_looked_up_and_learn() -> Result<()> {
    let table = ndarray::array![[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]].into_dyn();
    let mut words = Embedding::with_weights(table)?;
    let x = tensor(&[2, 2], vec![2.0, 0.0, 2.0, 2.0])?;
    let y = words.forward(&[&x], Parallelism::Current)?;
    assert_eq!(y, tensor(&[2, 2, 2], vec![4.0, 5.0, 0.0, 1.0, 4.0, 5.0, 4.0, 5.0])?);
    words.backward(&tensor(&[2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])?, Parallelism::Current)?;
    words.visit("", &mut |name, parameter| {
        assert_eq!(name, "weight");
        assert_eq!(parameter.gradient_elements(), [3.0, 4.0, 0.0, 0.0, 13.0, 16.0]);
    });
    for wrong in [3.0, -1.0, 0.5, f32::NAN] {
        assert!(words.forward(&[&tensor(&[1], vec![wrong])?], Parallelism::Serial).is_err(), "{wrong}");
    }

    for_seeds("words_and_positions", 5, |random| {
        let (batch, length, features) = (between(random, 1, 3), between(random, 1, 4), between(random, 1, 5));
        let x = eighths(&[batch, length, features], random);
        let mut learned = LearnedPositions::new(6, features, random).unwrap();
        let add = |x: &[f64], positions: &[f64]| -> Vec<f64> {
            (0..x.len()).map(|i| x[i] + positions[i % (length * features)]).collect()
        };
        compare(&mut learned, &x, SHARE, &|x, parameters| add(x, &parameters[0]));
        let mut waves = SinusoidalPositions::new(6, features).unwrap();
        let wave = |i: usize| {
            let (position, feature) = ((i / features) as f64, i % features);
            let angle = position / 10_000f64.powf((feature / 2 * 2) as f64 / features as f64);
            if feature % 2 == 0 { angle.sin() } else { angle.cos() }
        };
        let all: Vec<f64> = (0..6 * features).map(wave).collect();
        compare(&mut waves, &x, SHARE, &|x, _| add(x, &all));
        assert!(waves.forward(&[&Tensor::zeros(vec![1, 7, features])], Parallelism::Serial).is_err());
        assert!(learned.forward(&[&Tensor::zeros(vec![1, 2, features + 1])], Parallelism::Serial).is_err());
    });
    Ok(())
}

/// `x weightᵀ + bias` of rows.
fn project(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let features = weight.len() / bias.len();
    let dot = |row: &[f64], o: usize| -> f64 { (0..features).map(|i| row[i] * weight[o * features + i]).sum() };
    x.chunks(features).flat_map(|row| (0..bias.len()).map(|o| bias[o] + dot(row, o)).collect::<Vec<_>>()).collect()
}

/// Attention with several heads in f64; parameters in the order of the layer.
fn attention(x: &[f64], parameters: &[Vec<f64>], [batch, length, heads, dim]: [usize; 4], causal: bool) -> Vec<f64> {
    let features = heads * dim;
    let qkv = project(x, &parameters[0], &parameters[1]);
    let spec = AttentionSpec::new(heads, dim).causal(if causal { Causal::TopLeft } else { Causal::None });
    let (shape, row) = ([batch, heads, length, dim], 3 * features as isize);
    let strides = [row * length as isize, dim as isize, row, 1];
    let part = |at: usize| View::strided(&qkv, at * features, shape, strides).unwrap();
    let mut out = vec![0.0; batch * length * features];
    let row = features as isize;
    let to = [row * length as isize, dim as isize, row, 1];
    let mut view = ViewMut::strided(&mut out, 0, shape, to).unwrap();
    let inputs = Inputs::new(part(0), part(1), part(2));
    reference::attention_forward(&spec, &inputs, &mut view, &mut vec![0.0; batch * heads * length]).unwrap();
    project(&out, &parameters[2], &parameters[3])
}

#[test]
fn attention_is_that_of_the_loops() {
    for_seeds("attention_is", SEEDS, |random| {
        let [heads, dim] = [between(random, 1, 3), between(random, 1, 4)];
        let (batch, length, causal) = (between(random, 1, 2), between(random, 1, 6), random.below(2) == 0);
        let mut layer = MultiHeadAttention::new(heads * dim, heads, random).unwrap().causal(causal).unwrap();
        stir(&mut layer, random);
        let x = eighths(&[batch, length, heads * dim], random);
        compare(&mut layer, &x, 1e-4, &|x, parameters| attention(x, parameters, [batch, length, heads, dim], causal));
    });
}

#[test]
fn a_block_is_that_of_the_loops() {
    for_seeds("a_block_is", 6, |random| {
        let (batch, length, heads, dim) = (between(random, 1, 2), between(random, 2, 4), 2, between(random, 1, 3));
        let features = heads * dim;
        let causal = random.below(2) == 0;
        let block = TransformerBlock { hidden: 5, causal, ..TransformerBlock::encoder(features, heads) };
        let mut layer = block.build(random).unwrap();
        let mut names = Vec::new();
        layer.visit("", &mut |name, _| names.push(name.to_string()));
        let expected = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.2"];
        assert_eq!(names, expected.map(|name| [format!("{name}.weight"), format!("{name}.bias")]).concat());
        stir(&mut layer, random);
        let x = distinct(&[batch, length, features], random);
        let (row, column) = (|i: usize| i / features, |i: usize| i % features);
        let norm = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            let (len, sets) = (x.len(), x.len() / features);
            let sharing = Sharing { len, sets, parameters: features, set: &row, parameter: &column, is_centred: true };
            let mut y = vec![0.0; len];
            reference::norm_forward(&sharing, x, gamma, beta, f64::from(1e-5f32), &mut y).unwrap();
            y
        };
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
        // Normalised values with small deviations lose more.
        compare(&mut layer, &x, 1e-3, &|x, p| {
            let normed = norm(x, &p[0], &p[1]);
            let seen = add(x, &attention(&normed, &p[2..6], [batch, length, heads, dim], causal));
            let hidden = project(&norm(&seen, &p[6], &p[7]), &p[8], &p[9]);
            let mut gated = vec![0.0; hidden.len()];
            reference::gated_forward(Gated::Gelu, &hidden, &mut gated).unwrap();
            add(&seen, &project(&gated, &p[10], &p[11]))
        });
    });
}

#[test]
fn a_planned_block_gives_the_bits_of_its_layers_on_any_number_of_threads() -> Result<()> {
    let layers = || -> Result<Network> {
        let random = &mut Random::new(3);
        let line = Sequential::new()
            .with(Embedding::new(50, 64, random)?)?
            .with(SinusoidalPositions::new(40, 64)?)?
            .with(TransformerBlock::decoder(64, 4).build(random)?)?
            .with(TransformerBlock::encoder(64, 4).build(random)?)?
            .with(LearnedPositions::new(40, 64, random)?)?
            .with(RmsNorm::new(64)?)?
            .with(SiLU::default())?;
        Ok(Network::new(line))
    };
    let words = |batch: usize, length: usize| {
        tensor(&[batch, length], (0..batch * length).map(|i| (i * 7 % 50) as f32).collect())
    };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let run = |threads: usize| -> Result<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut network = layers()?;
            let mut all = Vec::new();
            for (batch, length) in [(8, 40), (1, 3), (0, 5)] {
                let x = words(batch, length)?;
                network.train();
                let y = network.forward(&x)?;
                network.backward(&y)?;
                network.eval();
                let planned = network.forward(&x)?;
                assert!(bits(planned.as_slice().unwrap()) == bits(y.as_slice().unwrap()), "{batch} x {length}");
                all.extend(bits(y.as_slice().unwrap()));
            }
            network.visit(|_, parameter| all.extend(bits(parameter.gradient_elements())));
            Ok(all)
        })
    };
    let expected = run(1)?;
    for threads in [2, 3] {
        assert!(run(threads)? == expected, "{threads} threads");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let random = &mut Random::new(4);
    assert!(MultiHeadAttention::new(10, 3, random).is_err());
    assert!(MultiHeadAttention::new(10, 0, random).is_err());
    assert!(GroupNorm::new(3, 4).is_err());
    assert!(GroupNorm::new(0, 4).is_err());
    assert!(LayerNorm::new(0).is_err());
    assert!(BatchNorm2d::new(0).is_err());
    assert!(Embedding::new(0, 3, random).is_err());
    let x = Tensor::zeros(vec![2, 3, 4]);
    assert!(LayerNorm::new(3)?.forward(&[&x], Parallelism::Serial).is_err());
    assert!(GroupNorm::new(2, 4)?.forward(&[&x], Parallelism::Serial).is_err());
    assert!(BatchNorm2d::new(3)?.forward(&[&x], Parallelism::Serial).is_err());
    let error = MultiHeadAttention::new(8, 2, random)?.forward(&[&x], Parallelism::Serial).unwrap_err();
    assert_eq!(error.to_string(), "x: expected shape [batch, length, 8], given [2, 3, 4]");
    Ok(())
}
