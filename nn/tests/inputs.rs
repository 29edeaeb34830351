//! Networks of several inputs: all gradients, and outputs in memory that is there.

use nn::models::Transformer;
use nn::{Graph, Layer, MultiHeadAttention, Network, Parallelism, Product, Random, Result, Sum, Tensor, tensor};

fn random_tensor(shape: &[usize], seed: u64) -> Tensor {
    let random = &mut Random::new(seed);
    tensor(shape, (0..shape.iter().product()).map(|_| random.uniform(-1.0, 1.0)).collect()).unwrap()
}

#[test]
fn each_input_gets_its_gradient_in_order() -> Result<()> {
    // L = (x + y) z
    let mut graph = Graph::new();
    let (x, y, z) = (graph.input("x")?, graph.input("y")?, graph.input("z")?);
    let sum = graph.add("sum", Sum::default(), &[x, y])?;
    graph.add("L", Product::default(), &[sum, z])?;
    let mut network = Network::new(graph);
    let values = [-2.0, 5.0, -4.0].map(|value| tensor(&[1], vec![value]).unwrap());
    let one = tensor(&[1], vec![1.0])?;
    network.forward_all(&values.each_ref())?;
    let gradients = network.backward_to_inputs(&one)?;
    assert_eq!(gradients.iter().map(|gradient| gradient[[0]]).collect::<Vec<_>>(), [-4.0, -4.0, 3.0]);

    // Which of them the short form would give is not for the network to guess.
    network.forward_all(&values.each_ref())?;
    let error = network.backward_to_input(&one).unwrap_err();
    assert_eq!(error.to_string(), "network: expected one that has taken 1 input, given 3");
    assert_eq!(network.backward_to_inputs(&one)?.len(), 3);
    assert!(network.backward_to_inputs(&one).is_err(), "one backward for a forward");
    Ok(())
}

#[test]
fn source_and_target_of_a_transformer_get_the_gradients_of_its_graph() -> Result<()> {
    let small = Transformer { features: 4, heads: 2, hidden: 6, encoder: 1, decoder: 1, ..Transformer::base() };
    let inputs = [random_tensor(&[1, 3, 4], 2), random_tensor(&[1, 2, 4], 3)];
    let dy = random_tensor(&[1, 2, 4], 4);
    let mut graph = small.build(&mut Random::new(1))?;
    graph.forward(&inputs.each_ref(), Parallelism::Serial)?;
    let expected = graph.backward(&dy, Parallelism::Serial)?;

    let mut network = Network::new(small.build(&mut Random::new(1))?);
    network.forward_all(&inputs.each_ref())?;
    let gradients = network.backward_to_inputs(&dy)?;
    assert_eq!(gradients, expected);
    assert_eq!([gradients[0].shape(), gradients[1].shape()], [inputs[0].shape(), inputs[1].shape()]);
    assert!(gradients.iter().all(|gradient| gradient.iter().any(|&g| g != 0.0)));
    Ok(())
}

#[test]
fn outputs_are_written_for_several_inputs_in_both_modes() -> Result<()> {
    let small = Transformer { features: 4, heads: 2, hidden: 6, encoder: 1, decoder: 1, ..Transformer::base() };
    let mut network = Network::new(small.build(&mut Random::new(5))?);
    let (source, target) = (random_tensor(&[2, 3, 4], 6), random_tensor(&[2, 2, 4], 7));
    // One that is not in row-major order.
    let turned = random_tensor(&[2, 4, 3], 8).permuted_axes(vec![0, 2, 1]);
    for source in [source, turned] {
        network.train();
        let expected = network.forward_all(&[&source, &target])?;
        for train in [true, false] {
            if train {
                network.train()
            } else {
                network.eval()
            }
            let mut y = vec![f32::NAN; expected.len()];
            network.forward_all_into(&[&source, &target], &mut y)?;
            assert!(y.iter().zip(&expected).all(|(y, expected)| y.to_bits() == expected.to_bits()), "train: {train}");
            assert!(network.forward_all_into(&[&source, &target], &mut y[1..]).is_err());
            assert!(network.forward_all_into(&[&source], &mut y).is_err());
        }
    }
    Ok(())
}

#[test]
fn a_layer_alone_may_take_one_input_and_then_two() -> Result<()> {
    let mut network = Network::new(MultiHeadAttention::new(4, 2, &mut Random::new(9))?);
    let (x, memory) = (random_tensor(&[1, 3, 4], 1), random_tensor(&[1, 5, 4], 2));
    let expected = [network.forward(&x)?, network.forward_all(&[&x, &memory])?];
    assert_eq!(network.backward_to_inputs(&expected[1])?.len(), 2);
    network.eval();
    for _ in 0..2 {
        assert_eq!(network.forward(&x)?, expected[0]);
        assert_eq!(network.forward_all(&[&x, &memory])?, expected[1]);
    }
    assert_eq!(network.summary_all(&[x.shape(), memory.shape()])?.rows.len(), 1);
    Ok(())
}
