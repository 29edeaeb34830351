//! Normalisation, gates, embeddings, positions and attention: outputs against loops in f64, gradients against finite
//! differences of those, and what only happens in training.

mod check;
#[path = "check/sequence.rs"]
mod sequence;

use kernels::activation::gated::Gated;
use kernels::attention::{AttentionSpec, Inputs};
use kernels::conv::Conv2dSpec;
use kernels::reference::{self, Sharing};
use kernels::{View, ViewMut};
use nn::{
    BatchNorm2d, ClassToken, Conv2d, Dropout, Embedding, Error, GELU, GroupNorm, Layer, LayerNorm, LearnedPositions,
    MeanPositions, MultiHeadAttention, Network, Parallelism, Pick, Projection, Random, Result, RmsNorm, Sequential,
    SiLU, SinusoidalPositions, Tensor, ToSequence, TransformerBlock, tensor,
};

use check::{between, distinct, eighths, for_seeds, wide};
use sequence::{SHARE, attention, compare, project, stir};

const SEEDS: u64 = 20;

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

        // Frozen: by moments that are constants, some of them far from the images' own.
        let mut frozen = BatchNorm2d::new(channels).unwrap();
        stir(&mut frozen, random);
        let [means, variances] = [0; 2].map(|_| (0..channels).map(|c| 0.25 + c as f32 / 8.0).collect::<Vec<f32>>());
        frozen.visit_buffers("", &mut |name, buffer| {
            let kept = if name == "running_mean" { &means } else { &variances };
            buffer.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        });
        frozen.set_training(false);
        let moments = [&means, &variances].map(|kept| kept.iter().map(|&kept| f64::from(kept)).collect::<Vec<f64>>());
        compare(&mut frozen, &images, SHARE, &|x, parameters| {
            let mut y = vec![0.0; len];
            let (moments, parameters) = ([&*moments[0], &*moments[1]], [&*parameters[0], &*parameters[1]]);
            let epsilon = f64::from(1e-5f32);
            reference::norm_inference_forward(&sharing, x, moments, parameters, epsilon, &mut y).unwrap();
            y
        });
    });
}

#[test]
fn a_convolution_learns_through_a_frozen_batch_norm_that_keeps_what_it_knows() -> Result<()> {
    let spec = Conv2dSpec::new(1, 2, [1, 1]);
    let weight = ndarray::array![[[[2.0]]], [[[-1.0]]]].into_dyn();
    let mut graph = Sequential::new().with(Conv2d::with_weights(spec, weight, None)?)?.with(BatchNorm2d::new(2)?)?;
    // Scaled by 1 / sqrt(4), and by 1 / sqrt(0.25), epsilon aside.
    graph.visit_buffers("", &mut |name, buffer| {
        let kept = if name.ends_with("running_mean") { [1.0, 0.0] } else { [4.0, 0.25] };
        buffer.iter_mut().zip(kept).for_each(|(to, from)| *to = from);
    });
    graph.set_training(false);
    let x = tensor(&[1, 1, 1, 2], vec![3.0, 5.0])?;
    graph.forward(&[&x], Parallelism::Serial)?;
    let dx = graph.backward(&tensor(&[1, 2, 1, 2], vec![1.0, 10.0, 100.0, 1000.0])?, Parallelism::Serial)?;
    let close = |given: f32, expected: f32| assert!((given / expected - 1.0).abs() < 1e-4, "{given} for {expected}");
    // 2 / 2 * dy of the first channel - 1 / 0.5 * dy of the second.
    close(dx[0][[0, 0, 0, 0]], 1.0 - 200.0);
    close(dx[0][[0, 0, 0, 1]], 10.0 - 2000.0);
    let mut gradients = Vec::new();
    graph.visit("", &mut |_, parameter| gradients.push(parameter.gradient_elements().to_vec()));
    // dweight = sum of x dy, scaled; of the norm, sums of dy x^ and of dy: x^ is 2.5 and 4.5, then -6 and -10.
    close(gradients[0][0], (3.0 + 50.0) / 2.0);
    close(gradients[0][1], (300.0 + 5000.0) * 2.0);
    close(gradients[1][0], 2.5 + 45.0);
    close(gradients[1][1], -600.0 - 10_000.0);
    assert_eq!(gradients[2], [11.0, 1100.0]);
    graph.visit_buffers("", &mut |name, buffer| {
        let kept = if name.ends_with("running_mean") { [1.0, 0.0] } else { [4.0, 0.25] };
        assert!(buffer.iter().eq(&kept), "{name}: {buffer}");
    });
    Ok(())
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
fn attention_to_a_memory_is_that_of_the_loops() {
    for_seeds("attention_to_a_memory", SEEDS, |random| {
        let [heads, dim] = [between(random, 1, 3), between(random, 1, 4)];
        let (batch, q_len, kv_len, d) =
            (between(random, 1, 2), between(random, 1, 5), between(random, 1, 6), heads * dim);
        let mut layer = MultiHeadAttention::new(d, heads, random).unwrap().pytorch_names();
        stir(&mut layer, random);
        // One input holds both sequences, for a function of one input.
        let x = eighths(&[batch * (q_len + kv_len), d], random);
        let mut both = Both { layer, sizes: [batch, q_len, kv_len, d] };
        compare(&mut both, &x, 1e-4, &|x, parameters| {
            let (x, memory) = x.split_at(batch * q_len * d);
            let (weight, bias) = (&parameters[0], &parameters[1]);
            let part = |x: &[f64], at: usize| project(x, &weight[at * d * d..][..d * d], &bias[at * d..][..d]);
            let [q, k, v] = [part(x, 0), part(memory, 1), part(memory, 2)];
            let view = |x, length: usize| {
                let (row, dim) = (d as isize, dim as isize);
                View::strided(x, 0, [batch, heads, length, dim as usize], [row * length as isize, dim, row, 1]).unwrap()
            };
            let inputs = Inputs::new(view(&q, q_len), view(&k, kv_len), view(&v, kv_len));
            let mut out = vec![0.0; q.len()];
            let (row, dim) = (d as isize, dim as isize);
            let strides = [row * q_len as isize, dim, row, 1];
            let mut to = ViewMut::strided(&mut out, 0, [batch, heads, q_len, dim as usize], strides).unwrap();
            let spec = AttentionSpec::new(heads, dim as usize);
            reference::attention_forward(&spec, &inputs, &mut to, &mut vec![0.0; batch * heads * q_len]).unwrap();
            project(&out, &parameters[2], &parameters[3])
        });
        let mut names = Vec::new();
        both.visit("", &mut |name, _| names.push(name.to_string()));
        assert_eq!(names, ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]);
    });
}

/// A layer of two inputs as one of one, which holds both sequences.
struct Both {
    layer: MultiHeadAttention,
    /// batch, queries, keys, features
    sizes: [usize; 4],
}

impl Layer for Both {
    fn kind(&self) -> &'static str {
        "Both"
    }

    fn output_shape(&self, _: &[Vec<usize>]) -> Result<Vec<usize>> {
        let [batch, q_len, _, features] = self.sizes;
        Ok(vec![batch, q_len, features])
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let [batch, q_len, kv_len, features] = self.sizes;
        let (x, memory) = inputs[0].as_slice().unwrap().split_at(batch * q_len * features);
        let x = tensor(&[batch, q_len, features], x.to_vec())?;
        let memory = tensor(&[batch, kv_len, features], memory.to_vec())?;
        self.layer.forward(&[&x, &memory], parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let [batch, q_len, kv_len, features] = self.sizes;
        let gradients = self.layer.backward(d_output, parallelism)?;
        let all = gradients.iter().flat_map(|gradient| gradient.iter().copied()).collect();
        Ok(vec![tensor(&[batch * (q_len + kv_len), features], all)?])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut nn::Parameter)) {
        self.layer.visit(prefix, visitor);
    }
}

#[test]
fn rotary_positions_turn_queries_and_keys_and_show_in_the_weights() -> Result<()> {
    let random = &mut Random::new(6);
    let (heads, dim, length) = (2, 4, 5);
    let features = heads * dim;
    let mut layer = MultiHeadAttention::new(features, heads, random)?.rotary(length)?;
    stir(&mut layer, random);
    let x = eighths(&[1, length, features], random);
    let turned = |q: &[f64], row: usize| {
        let mut head = q.to_vec();
        for i in 0..dim / 2 {
            let (sin, cos) = (row as f64 / 10_000f64.powf(2.0 * i as f64 / dim as f64)).sin_cos();
            let (a, b) = (q[i], q[i + dim / 2]);
            (head[i], head[i + dim / 2]) = (a * cos - b * sin, a * sin + b * cos);
        }
        head
    };
    let weights = |x: &[f64], parameters: &[Vec<f64>]| {
        let qkv = project(x, &parameters[0], &parameters[1]);
        let head = |row: usize, part: usize, h: usize| &qkv[row * 3 * features + part * features + h * dim..][..dim];
        let mut weights = Vec::new();
        for h in 0..heads {
            for i in 0..length {
                let q = turned(head(i, 0, h), i);
                let score = |j: usize| {
                    let k = turned(head(j, 1, h), j);
                    (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()).exp()
                };
                let sum: f64 = (0..length).map(score).sum();
                weights.extend((0..length).map(|j| score(j) / sum));
            }
        }
        weights
    };
    compare(&mut layer, &x, 1e-4, &|x, parameters| {
        let qkv = project(x, &parameters[0], &parameters[1]);
        let weights = weights(x, parameters);
        let mut out = vec![0.0; length * features];
        for (at, out) in out.iter_mut().enumerate() {
            let (i, h) = (at / features, at % features / dim);
            let value = |j: usize| qkv[j * 3 * features + 2 * features + at % features];
            *out = (0..length).map(|j| weights[(h * length + i) * length + j] * value(j)).sum();
        }
        project(&out, &parameters[2], &parameters[3])
    });
    let (mut parameters, mut shown) = (Vec::new(), None);
    layer.visit("", &mut |_, parameter| parameters.push(wide(parameter.elements())));
    assert_eq!(layer.weights(Parallelism::Serial), Err(Error::NoForward));
    layer.forward(&[&x], Parallelism::Serial)?;
    layer.visit_attention("a.b.", &mut |name, attention| {
        shown = Some((name.to_string(), attention.weights(Parallelism::Serial)));
    });
    let (name, given) = shown.unwrap();
    assert_eq!(name, "a.b");
    for (given, exact) in given?.iter().zip(weights(&wide(x.as_slice().unwrap()), &parameters)) {
        assert!((f64::from(*given) - exact).abs() < 1e-5, "{given} for {exact}");
    }
    // A memory has other positions.
    assert!(layer.forward(&[&x, &x], Parallelism::Serial).is_err());
    // There are angles for five positions.
    assert!(layer.forward(&[&eighths(&[1, 6, features], random)], Parallelism::Serial).is_err());
    Ok(())
}

#[test]
fn sequences_come_from_images_and_become_vectors() {
    for_seeds("sequences_come", SEEDS, |random| {
        let (batch, channels, h, w) = (between(random, 1, 3), between(random, 1, 4), between(random, 1, 3), 2);
        let (length, features) = (h * w, channels);
        compare(&mut ToSequence::default(), &eighths(&[batch, channels, h, w], random), SHARE, &|x, _| {
            (0..x.len())
                .map(|i| x[(i / (length * channels) * channels + i % channels) * length + i / channels % length])
                .collect()
        });
        let x = eighths(&[batch, length, features], random);
        let mut token = ClassToken::new(features, 3, random).unwrap();
        stir(&mut token, random);
        compare(&mut token, &x, SHARE, &|x, parameters| {
            x.chunks(length * features).flat_map(|x| [&parameters[0], x].concat()).collect()
        });
        let mut positions = LearnedPositions::new(8, features, random).unwrap().as_parameter(3);
        positions.visit("pos.", &mut |name, parameter| {
            assert_eq!((name, parameter.value().shape()), ("pos", &[1, 8, features][..]));
        });
        compare(&mut positions, &x, SHARE, &|x, parameters| {
            (0..x.len()).map(|i| x[i] + parameters[0][i % (length * features)]).collect()
        });
        compare(&mut Pick::first(), &x, SHARE, &|x, _| {
            x.chunks(length * features).flat_map(|x| x[..features].to_vec()).collect()
        });
        compare(&mut MeanPositions::default(), &x, SHARE, &|x, _| {
            let mean = |x: &[f64], at: usize| x.iter().skip(at).step_by(features).sum::<f64>() / length as f64;
            x.chunks(length * features).flat_map(|x| (0..features).map(|at| mean(x, at)).collect::<Vec<_>>()).collect()
        });
        let rows = eighths(&[batch, features], random);
        compare(&mut Projection::new(features, 3, random).unwrap(), &rows, SHARE, &|x, parameters| {
            let dot = |row: &[f64], o: usize| (0..features).map(|i| row[i] * parameters[0][i * 3 + o]).sum();
            x.chunks(features).flat_map(|row| (0..3).map(|o| dot(row, o)).collect::<Vec<f64>>()).collect()
        });
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
    assert!(ClassToken::new(0, 1, random).is_err());
    assert!(Projection::new(3, 0, random).is_err());
    assert!(MultiHeadAttention::new(6, 2, random)?.rotary(4).is_err());
    let (x, words) = (Tensor::zeros(vec![2, 3, 4]), Tensor::zeros(vec![2, 2]));
    assert!(Pick::first().forward(&[&x, &words], Parallelism::Serial).is_err());
    assert!(Pick::largest().forward(&[&x, &words], Parallelism::Serial).is_err());
    assert!(Pick::first().forward(&[&Tensor::zeros(vec![2, 0, 4])], Parallelism::Serial).is_err());
    assert!(MeanPositions::default().forward(&[&Tensor::zeros(vec![2, 0, 4])], Parallelism::Serial).is_err());
    assert!(MultiHeadAttention::new(4, 2, random)?.forward(&[&x, &words], Parallelism::Serial).is_err());
    assert!(MultiHeadAttention::new(4, 2, random)?.forward(&[&x, &x, &x], Parallelism::Serial).is_err());
    let x = Tensor::zeros(vec![2, 3, 4]);
    assert!(LayerNorm::new(3)?.forward(&[&x], Parallelism::Serial).is_err());
    assert!(GroupNorm::new(2, 4)?.forward(&[&x], Parallelism::Serial).is_err());
    assert!(BatchNorm2d::new(3)?.forward(&[&x], Parallelism::Serial).is_err());
    let error = MultiHeadAttention::new(8, 2, random)?.forward(&[&x], Parallelism::Serial).unwrap_err();
    assert_eq!(error.to_string(), "x: expected shape [batch, length, 8], given [2, 3, 4]");
    Ok(())
}
