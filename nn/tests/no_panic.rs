//! Shapes that nobody should give: every layer and every model answers with an error, or with what it promises, and
//! never panics. A failure prints the layer and the shapes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kernels::LocalResponse;
use kernels::conv::{Conv1dSpec, Conv2dSpec, ConvTranspose2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use nn::data::{Augment, Images, Warp};
use nn::models::{
    AlexNet, Clip, Fcn, GoogLeNet, LeNet5, NiN, Perceptron, Sentiment, Tower, Transformer, VisionTransformer,
};
use nn::{
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, ClassToken, Concat, Conv1d, Conv2d, ConvTranspose2d, CosineLogits,
    Dropout, Embedding, Flatten, GELU, GroupNorm, Layer, LayerNorm, LearnedPositions, Linear, LocalResponseNorm,
    MaxPool2d, Maximum, MeanPositions, Minimum, MultiHeadAttention, Network, Pick, Product, Projection, Random, ReLU,
    Result, RmsNorm, SiLU, Sigmoid, SinusoidalPositions, Sum, Tanh, Tensor, ToSequence, tensor,
};

type Boxed = Box<dyn FnMut(&mut Random) -> Result<Network>>;

/// Every layer and every model, small, by name.
fn all() -> Vec<(&'static str, Boxed)> {
    fn of<L: Layer + 'static>(
        name: &'static str,
        make: impl Fn(&mut Random) -> Result<L> + 'static,
    ) -> (&'static str, Boxed) {
        (name, Box::new(move |random| Ok(Network::new(make(random)?))))
    }
    let width = 0.1;
    let tower = Tower { features: 4, depth: 1, heads: 2 };
    let clip =
        Clip { channels: 3, size: [8, 8], patch: 4, image: tower, context: 5, words: 7, text: tower, features: 3 };
    let vit = VisionTransformer {
        channels: 3,
        size: [8, 8],
        patch: 4,
        features: 4,
        depth: 1,
        heads: 2,
        hidden: 5,
        classes: 3,
        dropout: 0.1,
    };
    let sentiment = Sentiment { words: 7, positions: 5, features: 4, depth: 1, heads: 2, classes: 2, dropout: 0.1 };
    let transformer =
        Transformer { features: 4, heads: 2, hidden: 5, encoder: 1, decoder: 1, dropout: 0.1, ..Transformer::base() };
    let (with_words, with_vectors) = (transformer.clone(), transformer);
    vec![
        of("Linear", |random| Linear::new(4, 3, random)),
        of("Projection", |random| Projection::new(4, 3, random)),
        of("Conv1d", |random| Conv1d::new(Conv1dSpec::new(3, 2, 3), random)),
        of("Conv2d", |random| Conv2d::new(Conv2dSpec::new(3, 2, [3, 3]).padding(Padding::all(1)), random)),
        of("ConvTranspose2d", |random| {
            ConvTranspose2d::new(ConvTranspose2dSpec::new(3, 2, [2, 2]).stride([2, 2]), random)
        }),
        of("MaxPool2d", |_| MaxPool2d::new(Pool2dSpec::new([2, 2]).ceil_mode(true))),
        of("AvgPool2d", |_| AvgPool2d::new(Pool2dSpec::new([3, 3]).padding(Padding::all(1)))),
        of("AdaptiveAvgPool2d", |_| AdaptiveAvgPool2d::new([2, 3])),
        of("BatchNorm2d", |_| BatchNorm2d::new(3)),
        of("LayerNorm", |_| LayerNorm::new(4)),
        of("RmsNorm", |_| RmsNorm::new(4)),
        of("GroupNorm", |_| GroupNorm::new(3, 3)),
        of("LocalResponseNorm", |_| LocalResponseNorm::new(LocalResponse::default())),
        of("ReLU", |_| Ok(ReLU::default())),
        of("Sigmoid", |_| Ok(Sigmoid::default())),
        of("Tanh", |_| Ok(Tanh::default())),
        of("GELU", |_| Ok(GELU::default())),
        of("SiLU", |_| Ok(SiLU::default())),
        of("Dropout", |random| Dropout::new(0.5, random)),
        of("Flatten", |_| Ok(Flatten::default())),
        of("Concat", |_| Ok(Concat::default())),
        of("Sum", |_| Ok(Sum::default())),
        of("Product", |_| Ok(Product::default())),
        of("Minimum", |_| Ok(Minimum::default())),
        of("Maximum", |_| Ok(Maximum::default())),
        of("Embedding", |random| Embedding::new(7, 4, random)),
        of("LearnedPositions", |random| LearnedPositions::new(5, 4, random)),
        of("SinusoidalPositions", |_| SinusoidalPositions::new(5, 4)),
        of("ToSequence", |_| Ok(ToSequence::default())),
        of("ClassToken", |random| ClassToken::new(4, 3, random)),
        of("Pick::first", |_| Ok(Pick::first())),
        of("Pick::largest", |_| Ok(Pick::largest())),
        of("MeanPositions", |_| Ok(MeanPositions::default())),
        of("CosineLogits", |_| Ok(CosineLogits::new())),
        of("MultiHeadAttention", |random| MultiHeadAttention::new(4, 2, random)),
        of("rotary attention", |random| MultiHeadAttention::new(4, 2, random)?.causal(true)?.rotary(5)),
        of("Perceptron", move |random| Perceptron { inputs: 12, width, ..Perceptron::default() }.build(random)),
        of("LeNet5", move |random| LeNet5 { width, ..LeNet5::default() }.build(random)),
        of("AlexNet", move |random| AlexNet { channels: 3, classes: 3, width: 0.05, dropout: 0.5 }.build(random)),
        of("NiN", move |random| NiN { channels: 3, classes: 3, width: 0.05 }.build(random)),
        of("GoogLeNet", move |random| {
            GoogLeNet { channels: 3, classes: 3, width: 0.05, ..GoogLeNet::default() }.build(random)
        }),
        of("Fcn", move |random| Fcn { width, ..Fcn::default() }.build(random)),
        of("VisionTransformer", move |random| vit.build(random)),
        of("Clip", move |random| clip.build(random)),
        of("Sentiment", move |random| sentiment.build(random)),
        of("Transformer", move |random| with_vectors.build(random)),
        of("Transformer with words", move |random| with_words.build_with_words(7, 5, random)),
    ]
}

/// A size that layers know, or that they do not, or one whose multiples are no numbers any more.
fn size(random: &mut Random) -> usize {
    const SIZES: [usize; 16] =
        [0, 1, 2, 3, 3, 4, 4, 5, 7, 8, 1 << 31, 1 << 33, 1 << 62, isize::MAX as usize, usize::MAX - 1, usize::MAX];
    SIZES[random.below(SIZES.len())]
}

fn shape(random: &mut Random) -> Vec<usize> {
    (0..random.below(6)).map(|_| size(random)).collect()
}

/// Runs what must not panic, and says of what layer and what shapes it was if it does.
fn guarded<R>(name: &str, shapes: &[Vec<usize>], run: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| panic!("{name} panicked for {shapes:?}"))
}

#[test]
fn summaries_of_any_shapes_do_not_panic() -> Result<()> {
    for (name, mut make) in all() {
        let random = &mut Random::new(1);
        let mut network = make(random)?;
        for _ in 0..600 {
            let shapes: Vec<Vec<usize>> = (0..random.below(4)).map(|_| shape(random)).collect();
            let inputs: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            guarded(name, &shapes, || drop(network.summary_all(&inputs)));
        }
    }
    Ok(())
}

/// A tensor that there can be: few elements, or none under large sizes.
fn input(random: &mut Random) -> Tensor {
    loop {
        let shape: Vec<usize> = (0..random.below(6)).map(|_| random.below(9)).collect();
        let count: usize = shape.iter().product();
        if count <= 600 {
            // Words' numbers, and others.
            let values = (0..count).map(|_| (random.below(17) as f32 - 1.0) * 0.5).collect();
            return tensor(&shape, values).unwrap();
        }
    }
}

#[test]
fn inputs_of_any_shape_are_run_or_refused() -> Result<()> {
    for (name, mut make) in all() {
        let random = &mut Random::new(2);
        let mut network = make(random)?;
        network.set_parallelism(nn::Parallelism::Serial);
        for round in 0..120 {
            if round % 2 == 0 {
                network.eval()
            } else {
                network.train()
            }
            let first = input(random);
            // Of one shape, as sums need them, or of any.
            let mut inputs = vec![first.clone()];
            for _ in 0..random.below(3) {
                inputs.push(if random.below(2) == 0 { first.clone() } else { input(random) });
            }
            let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape().to_vec()).collect();
            guarded(name, &shapes, || {
                let given: Vec<Vec<usize>> = shapes.clone();
                let given: Vec<&[usize]> = given.iter().map(Vec::as_slice).collect();
                let promised = network.summary_all(&given);
                let y = network.forward_all(&inputs.iter().collect::<Vec<_>>());
                if let (Ok(y), Ok(promised)) = (&y, &promised)
                    && let Some(row) = promised.rows.last()
                {
                    assert_eq!(y.shape(), row.shape, "{name}");
                }
                assert!(y.is_err() || promised.is_ok(), "{name}: runs what has no shape");
                if round % 2 == 1
                    && let Ok(y) = &y
                {
                    let _ = network.backward(&input(random));
                    let _ = network.backward(y);
                }
            });
        }
    }
    Ok(())
}

#[test]
fn weights_without_elements_are_refused() {
    assert!(Embedding::with_weights(ndarray::ArrayD::zeros(vec![3, 0])).is_err());
    assert!(Linear::with_weights(ndarray::ArrayD::zeros(vec![3, 0]), None).is_err());
    assert!(Linear::with_weights(ndarray::ArrayD::zeros(vec![0, 3]), None).is_err());
}

#[test]
fn a_buffer_that_was_replaced_by_a_shorter_one_is_refused_in_both_modes() -> Result<()> {
    let random = &mut Random::new(3);
    let conv = Conv2d::without_bias(Conv2dSpec::new(1, 3, [1, 1]), random)?;
    let mut network = Network::new(nn::Sequential::new().with(conv)?.with(BatchNorm2d::new(3)?)?);
    network.visit_buffers(|_, buffer| *buffer = ndarray::ArrayD::zeros(vec![2]));
    let x = tensor(&[1, 1, 2, 2], vec![1.0; 4])?;
    assert!(network.forward(&x).is_err());
    network.eval();
    assert!(network.forward(&x).is_err());
    Ok(())
}

#[test]
fn windows_larger_than_memory_are_refused() -> Result<()> {
    let images = Images::new(vec![0.5; 4], [2, 2], vec![1])?;
    let huge = [usize::MAX / 2, 1 << 40];
    let warp = Warp { size: huge, turn: 0.0, scale: 0.0, shear: 0.0, shift: 0.0, normalise: (0.0, 1.0) };
    assert!(warp.batch(&images, &[0], None).is_err());
    let shift = usize::MAX / 4;
    for crop in [[usize::MAX / 4, usize::MAX / 4], [1 << 40, 1 << 40], [1 << 31, 1 << 30]] {
        assert!(Augment { crop, shift, ..Augment::none([2, 2]) }.batch(&images, &[0], None).is_err(), "{crop:?}");
    }
    Ok(())
}

#[test]
fn another_number_of_inputs_is_an_error_everywhere() -> Result<()> {
    let mut network = Network::new(LeNet5::default().build(&mut Random::new(4))?);
    let image: &[usize] = &[1, 1, 28, 28];
    for inputs in [&[][..], &[image, image]] {
        let error = network.summary_all(inputs).unwrap_err().to_string();
        assert_eq!(error, format!("inputs: expected 1 tensors, given {}", inputs.len()));
    }
    Ok(())
}
