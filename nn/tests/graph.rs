//! Backprop through graphs, against gradients found by hand and finite differences in f64.

mod check;

use nn::{
    Error, Flatten, Graph, Layer, Linear, Maximum, Minimum, NodeId, Parallelism, Product, Random, Result, Sequential,
    Sigmoid, Sum, Tensor, tensor,
};

use check::{STEP, U, check_node, differences, distinct, eighths, wide};

const SERIAL: Parallelism<'static> = Parallelism::Serial;

fn row(elements: &[f32]) -> Tensor {
    tensor(&[elements.len()], elements.to_vec()).unwrap()
}

/// A graph of one node over inputs a, b, ...
fn node(layer: impl Layer + 'static, inputs: usize) -> Graph {
    let mut graph = Graph::new();
    let from: Vec<NodeId> = (0..inputs).map(|i| graph.input(&format!("x{i}")).unwrap()).collect();
    graph.add("y", layer, &from).unwrap();
    graph
}

#[test]
fn the_gradients_of_a_sum_times_a_number() -> Result<()> {
    // L = (x + y) z:  dL/dx = dL/dy = z,  dL/dz = x + y
    let mut graph = Graph::new();
    let (x, y, z) = (graph.input("x")?, graph.input("y")?, graph.input("z")?);
    let sum = graph.add("sum", Sum::default(), &[x, y])?;
    graph.add("L", Product::default(), &[sum, z])?;
    let l = graph.forward(&[&row(&[-2.0, 1.0]), &row(&[5.0, 2.0]), &row(&[-4.0, 3.0])], SERIAL)?;
    assert_eq!(l, row(&[-12.0, 9.0]));
    let gradients = graph.backward(&row(&[1.0, 1.0]), SERIAL)?;
    assert_eq!(gradients, [row(&[-4.0, 3.0]), row(&[-4.0, 3.0]), row(&[3.0, 3.0])]);
    assert_eq!(graph.value(sum), Some(&row(&[3.0, 3.0])));
    assert_eq!(graph.gradient(sum), Some(&row(&[-4.0, 3.0])));
    Ok(())
}

#[test]
fn a_value_used_twice_gathers_both_gradients() -> Result<()> {
    // L = x (x + x) = 2 x^2:  dL/dx = 4 x
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let double = graph.add("double", Sum::default(), &[x, x])?;
    graph.add("L", Product::default(), &[x, double])?;
    assert_eq!(graph.forward(&[&row(&[3.0, -1.0])], SERIAL)?, row(&[18.0, 2.0]));
    assert_eq!(graph.backward(&row(&[1.0, 1.0]), SERIAL)?, [row(&[12.0, -4.0])]);
    Ok(())
}

#[test]
fn minimum_and_maximum_give_the_gradient_to_every_input_that_equals_the_result() -> Result<()> {
    let inputs = [row(&[1.0, 2.0, 5.0]), row(&[1.0, 7.0, 4.0]), row(&[3.0, 2.0, 4.0])];
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let dy = row(&[10.0, 20.0, 30.0]);

    let mut minimum = node(Minimum::default(), 3);
    assert_eq!(minimum.forward(&inputs, SERIAL)?, row(&[1.0, 2.0, 4.0]));
    let expected = [row(&[10.0, 20.0, 0.0]), row(&[10.0, 0.0, 30.0]), row(&[0.0, 20.0, 30.0])];
    assert_eq!(minimum.backward(&dy, SERIAL)?, expected);

    let mut maximum = node(Maximum::default(), 3);
    assert_eq!(maximum.forward(&inputs, SERIAL)?, row(&[3.0, 7.0, 5.0]));
    let expected = [row(&[0.0, 0.0, 30.0]), row(&[0.0, 20.0, 0.0]), row(&[10.0, 0.0, 0.0])];
    assert_eq!(maximum.backward(&dy, SERIAL)?, expected);
    Ok(())
}

#[test]
fn minimum_and_maximum_pass_nan_on() -> Result<()> {
    let inputs = [row(&[f32::NAN, 1.0]), row(&[1.0, f32::NAN])];
    for mut graph in [node(Minimum::default(), 2), node(Maximum::default(), 2)] {
        let y = graph.forward(&[&inputs[0], &inputs[1]], SERIAL)?;
        assert!(y.iter().all(|element| element.is_nan()), "{y}");
    }
    Ok(())
}

#[test]
fn a_product_with_a_zero_has_a_gradient() -> Result<()> {
    let mut graph = node(Product::default(), 3);
    graph.forward(&[&row(&[0.0]), &row(&[2.0]), &row(&[3.0])], SERIAL)?;
    assert_eq!(graph.backward(&row(&[1.0]), SERIAL)?, [row(&[6.0]), row(&[0.0]), row(&[0.0])]);
    Ok(())
}

/// Inputs of more than a vector, and not a multiple of one, no two of which are equal anywhere.
fn apart(count: usize) -> Vec<Tensor> {
    let all = distinct(&[count, 67], &mut Random::new(21));
    (0..count).map(|i| row(&all.as_slice().unwrap()[67 * i..][..67])).collect()
}

#[test]
fn nodes_of_arithmetic_have_the_slopes_of_their_functions() {
    let join = |from: f64, with: fn(f64, f64) -> f64| {
        move |inputs: &[Vec<f64>]| -> Vec<f64> {
            (0..inputs[0].len()).map(|i| inputs.iter().map(|x| x[i]).fold(from, with)).collect()
        }
    };
    for count in 1..=4 {
        let random = &mut Random::new(20 + count as u64);
        let small: Vec<Tensor> = (0..count).map(|_| eighths(&[3, 23], random)).collect();
        // Sums and products of so few eighths are exact, and so are the differences of what is linear in each input.
        check_node(&mut node(Sum::default(), count), &small, 0.0, &join(0.0, |a, b| a + b));
        check_node(&mut node(Product::default(), count), &small, 0.0, &join(1.0, |a, b| a * b));
        check_node(&mut node(Minimum::default(), count), &apart(count), 0.0, &join(f64::INFINITY, f64::min));
        check_node(&mut node(Maximum::default(), count), &apart(count), 0.0, &join(f64::NEG_INFINITY, f64::max));
    }
    // Sixteenths of sixteen bits: each factor after the first rounds, and so does each factor of a gradient.
    let thirds: Vec<Tensor> = apart(4).into_iter().map(|x| x.mapv(|x| x / 3.0).into()).collect();
    check_node(&mut node(Product::default(), 4), &thirds, 4.0, &join(1.0, |a, b| a * b));
}

#[test]
fn the_node_of_sigmoid_has_the_slope_of_its_function() {
    let sigmoid = |inputs: &[Vec<f64>]| inputs[0].iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
    // A few units for the function itself, and 1 - y, which loses up to a factor of 9 here, for the gradient.
    check_node(&mut node(Sigmoid::default(), 1), &[distinct(&[67], &mut Random::new(23))], 40.0, &sigmoid);
}

#[test]
fn a_graph_of_all_nodes_has_the_slopes_of_its_function() -> Result<()> {
    // y = sigmoid(max(a b, c) + min(a, b) c)
    let mut graph = Graph::new();
    let (a, b, c) = (graph.input("a")?, graph.input("b")?, graph.input("c")?);
    let product = graph.add("product", Product::default(), &[a, b])?;
    let largest = graph.add("largest", Maximum::default(), &[product, c])?;
    let least = graph.add("least", Minimum::default(), &[a, b])?;
    let weighted = graph.add("weighted", Product::default(), &[least, c])?;
    let sum = graph.add("sum", Sum::default(), &[largest, weighted])?;
    graph.add("y", Sigmoid::default(), &[sum])?;
    let inputs: Vec<Tensor> = apart(3).into_iter().map(|x| x.mapv(|x| x / 4.0).into()).collect();
    // No step of the differences crosses from one side of a maximum or minimum to the other.
    for i in 0..67 {
        let [a, b, c] = [0, 1, 2].map(|k| inputs[k][i]);
        assert!((a * b - c).abs() > 0.001 && (a - b).abs() > 0.001, "{i}: {a} {b} {c}");
    }
    let function = |inputs: &[Vec<f64>]| {
        let y = |i: usize| {
            let [a, b, c] = [0, 1, 2].map(|k| inputs[k][i]);
            1.0 / (1.0 + (-((a * b).max(c) + a.min(b) * c)).exp())
        };
        (0..67).map(y).collect::<Vec<f64>>()
    };
    let lists: Vec<Vec<f64>> = inputs.iter().map(|x| wide(x.as_slice().unwrap())).collect();
    let y = graph.forward(&inputs.iter().collect::<Vec<_>>(), SERIAL)?;
    let slopes = differences(&lists, &|lists| function(lists).iter().sum());
    let gradients = graph.backward(&row(&[1.0; 67]), SERIAL)?;
    // Inputs are below 1.6. Three roundings of terms below 8 change sigmoid by 6 units, which errs by 2.5 itself; its
    // slope, at most 1/4, so by 6; a gradient is at most two such slopes times an input, and rounds three times.
    for (i, y_i) in function(&lists).iter().enumerate() {
        assert!((f64::from(y[i]) - y_i).abs() <= 9.0 * U, "y[{i}]: {} for {y_i}", y[i]);
        for k in 0..3 {
            let (given, slope) = (f64::from(gradients[k][i]), slopes[k][i]);
            // The third derivative along an input is below 3.2^3 / 8.
            let bound = 24.0 * U + STEP * STEP / 6.0 * 4.1;
            assert!((given - slope).abs() <= bound, "dx{k}[{i}]: {given} for {slope}");
        }
    }
    Ok(())
}

#[test]
fn a_perceptron_of_two_layers_obeys_the_chain_rule() -> Result<()> {
    // h = sigmoid(W1 x + b1),  y = sigmoid(w2 h + b2),  L = y
    let (w1, b1) = ([[0.5, -1.0], [2.0, 0.25]], [0.1, -0.2]);
    let (w2, b2) = ([1.5, -0.5], 0.3);
    let x = [0.7f64, -0.4];
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let h = [0, 1].map(|o| sigmoid(w1[o][0] * x[0] + w1[o][1] * x[1] + b1[o]));
    let y = sigmoid(w2[0] * h[0] + w2[1] * h[1] + b2);
    let dz2 = y * (1.0 - y);
    let dw2 = h.map(|h| dz2 * h);
    let dz1 = [0, 1].map(|o| dz2 * w2[o] * h[o] * (1.0 - h[o]));
    let dx = [0, 1].map(|i| dz1[0] * w1[0][i] + dz1[1] * w1[1][i]);

    let array = |rows: &[&[f64]]| {
        let elements = rows.concat().iter().map(|&element| element as f32).collect();
        ndarray::ArrayD::from_shape_vec(vec![rows.len(), rows[0].len()], elements).unwrap()
    };
    let bias = |b: &[f64]| Some(array(&[b]).remove_axis(ndarray::Axis(0)));
    let mut network = Sequential::new()
        .with(Linear::with_weights(array(&[&w1[0], &w1[1]]), bias(&b1))?)?
        .with(Sigmoid::default())?
        .with(Linear::with_weights(array(&[&w2]), bias(&[b2]))?)?
        .with(Sigmoid::default())?;
    let output = network.forward(&[&tensor(&[1, 2], vec![x[0] as f32, x[1] as f32])?], SERIAL)?;
    let d_input = network.backward(&tensor(&[1, 1], vec![1.0])?, SERIAL)?;

    // Every number here is below 1 and comes from less than 16 roundings, data included.
    let close = |given: f32, expected: f64| {
        assert!((given as f64 - expected).abs() <= 16.0 * f32::EPSILON as f64 / 2.0, "{given} for {expected}");
    };
    close(output[[0, 0]], y);
    for i in 0..2 {
        close(d_input[0][[0, i]], dx[i]);
    }
    let expected = [
        ("0.weight", vec![dz1[0] * x[0], dz1[0] * x[1], dz1[1] * x[0], dz1[1] * x[1]]),
        ("0.bias", dz1.to_vec()),
        ("2.weight", dw2.to_vec()),
        ("2.bias", vec![dz2]),
    ];
    let mut at = 0;
    network.visit("", &mut |name, parameter| {
        assert_eq!(name, expected[at].0);
        let gradient = parameter.gradient_elements();
        assert_eq!(gradient.len(), expected[at].1.len());
        for (&given, &expected) in gradient.iter().zip(&expected[at].1) {
            close(given, expected);
        }
        at += 1;
    });
    assert_eq!(at, 4);
    Ok(())
}

#[test]
fn a_graph_with_two_outputs_takes_a_gradient_for_each() -> Result<()> {
    let mut graph = Graph::new();
    let (x, y) = (graph.input("x")?, graph.input("y")?);
    let sum = graph.add("sum", Sum::default(), &[x, y])?;
    let product = graph.add("product", Product::default(), &[x, y])?;
    graph.forward(&[&row(&[2.0]), &row(&[3.0])], SERIAL)?;
    graph.backward_from(&[(sum, &row(&[10.0])), (product, &row(&[1.0]))], true, SERIAL)?;
    assert_eq!(graph.gradient(x), Some(&row(&[13.0])));
    assert_eq!(graph.gradient(y), Some(&row(&[12.0])));
    Ok(())
}

#[test]
fn an_input_that_does_not_matter_has_a_gradient_of_zeros() -> Result<()> {
    let mut graph = Graph::new();
    let (x, _) = (graph.input("x")?, graph.input("unused")?);
    graph.add("y", Sum::default(), &[x])?;
    graph.forward(&[&row(&[1.0]), &row(&[1.0, 2.0])], SERIAL)?;
    assert_eq!(graph.backward(&row(&[5.0]), SERIAL)?, [row(&[5.0]), row(&[0.0, 0.0])]);
    Ok(())
}

#[test]
fn gradients_of_inputs_that_nobody_needs_are_not_computed() -> Result<()> {
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let flat = graph.add("flat", Flatten::default(), &[x])?;
    let linear = Linear::with_weights(ndarray::array![[2.0, 3.0]].into_dyn(), None)?;
    graph.add("linear", linear, &[flat])?;
    graph.forward(&[&tensor(&[1, 1, 2], vec![5.0, 7.0])?], SERIAL)?;
    graph.backward_parameters(&tensor(&[1, 1], vec![1.0])?, SERIAL)?;
    assert_eq!((graph.gradient(flat), graph.gradient(x)), (None, None));
    graph.visit("tower.", &mut |name, parameter| {
        assert_eq!(name, "tower.linear.weight");
        assert_eq!(parameter.gradient_elements(), [5.0, 7.0]);
    });
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() -> Result<()> {
    let mut graph = Graph::new();
    let x = graph.input("x")?;
    let mut larger = Graph::new();
    let foreign = (0..3).map(|i| larger.input(&i.to_string())).last().unwrap()?;
    assert!(matches!(graph.input("x"), Err(Error::Invalid { argument: "name", .. })));
    assert!(matches!(graph.add("y", Sum::default(), &[foreign]), Err(Error::Invalid { argument: "from", .. })));
    assert!(graph.forward(&[], SERIAL).is_err());
    assert!(Graph::new().forward(&[], SERIAL).is_err());
    assert_eq!(graph.backward(&row(&[1.0]), SERIAL), Err(Error::NoForward));

    let empty: &[NodeId] = &[];
    graph.add("nothing", Sum::default(), empty)?;
    assert!(graph.forward(&[&row(&[1.0])], SERIAL).is_err());

    let mut unequal = node(Sum::default(), 2);
    let error = unequal.forward(&[&row(&[1.0]), &row(&[1.0, 2.0])], SERIAL).unwrap_err();
    assert_eq!(error.to_string(), "layer y (Sum): inputs: expected shape [1], that of the first, given [2]");

    let mut sum = node(Sum::default(), 1);
    sum.forward(&[&row(&[1.0])], SERIAL)?;
    assert!(matches!(sum.backward(&row(&[1.0, 2.0]), SERIAL), Err(Error::Shape { .. })));
    let _ = x;
    Ok(())
}

#[test]
fn a_second_backward_needs_a_second_forward() -> Result<()> {
    let mut sigmoid = Sigmoid::default();
    let x = row(&[0.0]);
    sigmoid.forward(&[&x], SERIAL)?;
    assert_eq!(sigmoid.backward(&row(&[1.0]), SERIAL)?, [row(&[0.25])]);
    assert_eq!(sigmoid.backward(&row(&[1.0]), SERIAL), Err(Error::NoForward));
    Ok(())
}

/// A module with two branches: a sum inside of a box, and a layer outside.
fn nested() -> Result<Graph> {
    let mut inner = Graph::new();
    let x = inner.input("x")?;
    let left =
        inner.add("left", Linear::with_weights(ndarray::array![[1.0, 0.0], [0.0, 1.0]].into_dyn(), None)?, &[x])?;
    inner.add("both", Sum::default(), &[left, x])?;
    let mut outer = Graph::new();
    let input = outer.input("in \"put\"")?;
    let block = outer.add("block", inner, &[input])?;
    outer.add("out", Sigmoid::default(), &[block])?;
    Ok(outer)
}

#[test]
fn a_graph_is_drawn_with_its_boxes_and_edges() -> Result<()> {
    let expected = r#"digraph {
    rankdir=TB
    node [shape=box, fontname="sans-serif"]
    n0 [label="in \"put\""]
    subgraph cluster_0 {
        label="block"
        n1 [label="left\nLinear 2->2 without bias"]
        n2 [label="both\nSum"]
    }
    n3 [label="out\nSigmoid"]
    n0 -> n1
    n1 -> n2
    n0 -> n2
    n2 -> n3
}
"#;
    assert_eq!(nested()?.to_dot(), expected);
    Ok(())
}

#[test]
fn a_network_is_listed_as_a_table() -> Result<()> {
    let summary = nn::Network::new(nested()?).summary(&[3, 2])?;
    let expected = "\
layer                                       output shape  parameters  MFLOP
---------------------------------------------------------------------------
block.left (Linear 2->2 without bias)  [3, 2]                 4   0.00
";
    // Columns are as wide as their widest entry; only what they hold is compared.
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let table = summary.to_string();
    let (table, expected): (Vec<&str>, Vec<&str>) = (table.lines().collect(), expected.lines().collect());
    assert_eq!(words(table[0]), words(expected[0]));
    assert_eq!(words(table[2]), words(expected[2]));
    assert_eq!(words(table[3]), words("block.both (Sum) [3, 2] 0 0.00"));
    assert_eq!(words(table.last().unwrap()), words("total 4 0.00"));
    assert!(table.iter().all(|line| line.trim_end().len() <= table[1].len()));
    assert_eq!(summary.flops(), 2.0 * 12.0);
    let error = nn::Network::new(nested()?).summary(&[3, 5]).unwrap_err();
    assert_eq!(error.to_string(), "layer block.left (Linear): x: expected shape [batch, 2], given [3, 5]");
    Ok(())
}
