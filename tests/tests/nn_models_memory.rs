//! Planned forward passes of the other models allocate nothing either, with one input or two. On its own because it
//! counts for the whole process.

use kernels::conv::{Conv2dSpec, Padding};
use nn::models::{AlexNet, Clip, NiN, Sentiment, Tower, Transformer, VisionTransformer};
use nn::{BatchNorm2d, Conv2d, Graph, Network, Parallelism, Random, ReLU, Result, Sum, Tensor};
use tests::allocations::{Counting, fewest_allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn residual_block(random: &mut Random) -> Result<Graph> {
    let mut conv = || Conv2d::without_bias(Conv2dSpec::new(4, 4, [3, 3]).padding(Padding::all(1)), random);
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let mut y = graph.add("conv1", conv()?, &[x])?;
    y = graph.add("bn1", BatchNorm2d::new(4)?, &[y])?;
    y = graph.add("relu1", ReLU::default(), &[y])?;
    y = graph.add("conv2", conv()?, &[y])?;
    y = graph.add("bn2", BatchNorm2d::new(4)?, &[y])?;
    y = graph.add("sum", Sum::default(), &[y, x])?;
    graph.add("relu2", ReLU::default(), &[y])?;
    Ok(graph)
}

/// A network, and the shapes of the inputs of two calls.
type Case = (&'static str, Network, [Vec<Vec<usize>>; 2]);

fn cases() -> Result<Vec<Case>> {
    let random = &mut Random::new(1);
    let tower = Tower { features: 8, depth: 2, heads: 2 };
    let clip =
        Clip { channels: 1, size: [8, 8], patch: 4, image: tower, context: 5, words: 7, text: tower, features: 6 };
    let vit = VisionTransformer { features: 8, depth: 2, heads: 2, hidden: 16, ..VisionTransformer::digits() };
    let sentiment = Sentiment { words: 9, positions: 6, features: 8, depth: 1, heads: 2, classes: 2, dropout: 0.5 };
    let transformer = Transformer { features: 8, heads: 2, hidden: 12, encoder: 1, decoder: 1, ..Transformer::base() };
    let alexnet = AlexNet { channels: 1, classes: 10, width: 0.05, dropout: 0.5 };
    let image = |batch, size| vec![vec![batch, 1, size, size]];
    Ok(vec![
        ("a residual block", Network::new(residual_block(random)?), [1, 2].map(|batch| vec![vec![batch, 4, 7, 9]])),
        ("AlexNet", Network::new(alexnet.build(random)?), [image(1, 64), image(2, 64)]),
        (
            "NiN",
            Network::new(NiN { channels: 1, classes: 10, width: 0.05 }.build(random)?),
            [image(1, 64), image(2, 64)],
        ),
        ("ViT", Network::new(vit.build(random)?), [image(1, 28), image(2, 28)]),
        ("CLIP", Network::new(clip.build(random)?), [2, 3].map(|batch| vec![vec![batch, 1, 8, 8], vec![batch, 5]])),
        ("Sentiment", Network::new(sentiment.build(random)?), [vec![vec![1, 6]], vec![vec![2, 4]]]),
        (
            "Transformer",
            Network::new(transformer.build(random)?),
            [vec![vec![1, 4, 8], vec![1, 3, 8]], vec![vec![2, 3, 8], vec![2, 5, 8]]],
        ),
        (
            "Transformer with words",
            Network::new(transformer.build_with_words(9, 6, random)?),
            [vec![vec![1, 4], vec![1, 3]], vec![vec![2, 3], vec![2, 5]]],
        ),
    ])
}

#[test]
fn planned_networks_of_all_kinds_allocate_nothing() {
    for (name, mut network, calls) in cases().unwrap() {
        network.eval();
        // Ones are words, too.
        let inputs = calls.map(|shapes| shapes.into_iter().map(|shape| Tensor::from_elem(shape, 1.0)).collect());
        let inputs: [Vec<Tensor>; 2] = inputs;
        let inputs = inputs.each_ref().map(|inputs| inputs.iter().collect::<Vec<&Tensor>>());
        let mut outputs =
            inputs.each_ref().map(|inputs| network.forward_all(inputs).unwrap().iter().copied().collect::<Vec<f32>>());
        network.set_parallelism(Parallelism::Serial);
        let allocations = fewest_allocations(|| {
            for (inputs, y) in inputs.iter().zip(&mut outputs) {
                network.forward_all_into(inputs, y).unwrap();
            }
        });
        // What threads add does not depend on the network, see `nn_memory.rs`.
        assert_eq!(allocations, 0, "{name}");
    }
}
