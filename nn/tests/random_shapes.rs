//! The layers of which other tests have fixed shapes, on shapes drawn from seeds, against double for-loops in f64:
//! outputs, and gradients against finite differences.

mod check;
#[path = "check/sequence.rs"]
mod sequence;

use kernels::activation::gated::Gated;
use kernels::{Activation, reference};
use nn::{
    Dropout, Embedding, Flatten, GELU, Layer, Linear, MultiHeadAttention, Parallelism, Random, ReLU, SCELoss, SiLU,
    Sigmoid, Tanh, Tensor, tensor,
};

use check::{DIFFERENCE, U, array, between, check, differences, distinct, eighths, for_seeds, wide};
use sequence::{SHARE, compare, project, stir};

const SEEDS: u64 = 30;

/// A shape of one to four dimensions.
fn any_shape(random: &mut Random) -> Vec<usize> {
    (0..between(random, 1, 4)).map(|_| between(random, 1, 4)).collect()
}

/// Numbers between -2 and 2, an odd number of 16ths: none is 0, where ReLU has no derivative.
fn sixteenths(shape: &[usize], random: &mut Random) -> Tensor {
    let elements = (0..shape.iter().product()).map(|_| (2 * random.below(32)) as f32 / 16.0 - 31.0 / 16.0).collect();
    tensor(shape, elements).unwrap()
}

#[test]
fn a_linear_layer_over_rows_of_any_kind_is_that_of_the_loops() {
    for_seeds("a_linear_layer_over_rows_of_any_kind", SEEDS, |random| {
        let [inputs, outputs] = [0; 2].map(|_| between(random, 1, 20));
        let weight = array(eighths(&[outputs, inputs], random));
        let bias = (random.below(2) == 0).then(|| array(eighths(&[outputs], random)));
        let mut layer = Linear::with_weights(weight, bias).unwrap();
        let rows: Vec<usize> = (0..between(random, 1, 3)).map(|_| between(random, 1, 4)).collect();
        let x = eighths(&[&rows[..], &[inputs]].concat(), random);
        let count: usize = rows.iter().product();
        assert_eq!(layer.output_shape(&[x.shape().to_vec()]).unwrap(), [&rows[..], &[outputs]].concat());
        let longest = inputs.max(outputs).max(count) as f64 + 2.0;
        check(&mut layer, &x, longest, &|x, parameters| {
            let mut y = vec![0.0; count * outputs];
            for n in 0..count {
                for o in 0..outputs {
                    y[n * outputs + o] = parameters.get(1).map_or(0.0, |bias| bias[o]);
                    for i in 0..inputs {
                        y[n * outputs + o] += x[n * inputs + i] * parameters[0][o * inputs + i];
                    }
                }
            }
            y
        });
    });
}

#[test]
fn activations_of_any_shape_are_those_of_the_loops() {
    for_seeds("activations_of_any_shape", SEEDS, |random| {
        let function = |activation: Activation| {
            move |x: &[f64], _: &[Vec<f64>]| {
                let mut y = vec![0.0; x.len()];
                reference::activation_forward(activation, x, &mut y).unwrap();
                y
            }
        };
        let x = sixteenths(&any_shape(random), random);
        check(&mut ReLU::default(), &x, 0.0, &function(Activation::Relu));
        // A few units for the function itself, and 1 - y, which loses up to a factor of 9 below 2.
        check(&mut Sigmoid::default(), &x, 40.0, &function(Activation::Sigmoid));
        // 1 - y^2 loses up to a factor of 20.
        check(&mut Tanh::default(), &x, 80.0, &function(Activation::Tanh));
        let gated = |gate: Gated| {
            move |x: &[f64], _: &[Vec<f64>]| {
                let mut y = vec![0.0; x.len()];
                reference::gated_forward(gate, x, &mut y).unwrap();
                y
            }
        };
        compare(&mut GELU::default(), &x, SHARE, &gated(Gated::Gelu));
        compare(&mut GELU::tanh(), &x, SHARE, &gated(Gated::GeluTanh));
        compare(&mut GELU::quick(), &x, SHARE, &gated(Gated::GeluQuick));
        compare(&mut SiLU::default(), &x, SHARE, &gated(Gated::Silu));
    });
}

#[test]
fn flatten_leaves_every_number_in_its_place() {
    for_seeds("flatten_leaves", SEEDS, |random| {
        let x = distinct(&any_shape(random), random);
        let y = Flatten::default().forward(&[&x], Parallelism::Serial).unwrap();
        assert_eq!(y.shape(), [x.shape()[0], x.len() / x.shape()[0]]);
        check(&mut Flatten::default(), &x, 0.0, &|x, _| x.to_vec());
    });
}

#[test]
fn the_loss_of_any_rows_and_its_gradient_are_those_of_the_formula() {
    for_seeds("the_loss_of_any_rows", SEEDS, |random| {
        let classes = between(random, 1, 40);
        let shape: Vec<usize> = (0..between(random, 1, 2)).map(|_| between(random, 1, 6)).collect();
        let rows: usize = shape.iter().product();
        let z = sixteenths(&[&shape[..], &[classes]].concat(), random);
        let labels: Vec<usize> = (0..rows).map(|_| random.below(classes)).collect();
        let mut loss = SCELoss::default();
        let mean = loss.forward(&z, &labels, Parallelism::Current).unwrap() as f64;
        let dz = loss.backward().unwrap();
        assert_eq!(dz.shape(), z.shape());
        let z = wide(z.as_slice().unwrap());
        let losses = |z: &[f64]| -> Vec<f64> {
            let rows = z.chunks(classes).zip(&labels);
            rows.map(|(row, &label)| row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[label]).collect()
        };
        let formula = |z: &[f64]| losses(z).iter().sum::<f64>() / rows as f64;
        // What the kernel states: logits are at most 4 apart; the mean adds its own.
        let (classes, exact) = (classes as f64, formula(&z));
        let largest = losses(&z).into_iter().fold(0.0, f64::max);
        let bound = U * (4.0 * largest + 4.0 + classes + 9.0 + (rows as f64 / 64.0 + 8.0) * largest);
        assert!((mean - exact).abs() <= bound, "{mean} for {exact}");
        let slopes = differences(&[z], &|lists| formula(&lists[0])).remove(0);
        let bound = U * (2.0 * 4.0 + classes + 12.0) / rows as f64 + DIFFERENCE;
        for (&given, expected) in dz.iter().zip(&slopes) {
            assert!((given as f64 - expected).abs() <= bound, "{given} for {expected}");
        }
    });
}

#[test]
fn rotary_attention_of_any_shape_is_that_of_the_loops() {
    for_seeds("rotary_attention_of_any_shape", 12, |random| {
        let (heads, dim) = (between(random, 1, 3), 2 * between(random, 1, 3));
        let (batch, length, causal) = (between(random, 1, 2), between(random, 1, 5), random.below(2) == 0);
        let features = heads * dim;
        let positions = length + random.below(3);
        let layer = MultiHeadAttention::new(features, heads, random).unwrap().causal(causal).unwrap();
        let mut layer = layer.rotary(positions).unwrap();
        stir(&mut layer, random);
        let x = eighths(&[batch, length, features], random);
        // Feature i of a head and feature i + dim / 2 are a point, turned by an angle that grows with the position.
        let turned = |head: &[f64], position: usize| {
            let mut new = head.to_vec();
            for i in 0..dim / 2 {
                let (sin, cos) = (position as f64 / 10_000f64.powf(2.0 * i as f64 / dim as f64)).sin_cos();
                let (a, b) = (head[i], head[i + dim / 2]);
                (new[i], new[i + dim / 2]) = (a * cos - b * sin, a * sin + b * cos);
            }
            new
        };
        compare(&mut layer, &x, 1e-4, &|x, parameters| {
            let qkv = project(x, &parameters[0], &parameters[1]);
            let mut out = vec![0.0; batch * length * features];
            for n in 0..batch {
                for h in 0..heads {
                    let part =
                        |i: usize, part: usize| &qkv[((n * length + i) * 3 + part) * features + h * dim..][..dim];
                    for i in 0..length {
                        let (q, seen) = (turned(part(i, 0), i), if causal { i + 1 } else { length });
                        let score = |j: usize| {
                            let k = turned(part(j, 1), j);
                            (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()).exp()
                        };
                        let sum: f64 = (0..seen).map(score).sum();
                        for c in 0..dim {
                            out[(n * length + i) * features + h * dim + c] =
                                (0..seen).map(|j| score(j) / sum * part(j, 2)[c]).sum();
                        }
                    }
                }
            }
            project(&out, &parameters[2], &parameters[3])
        });
    });
}

#[test]
fn embeddings_of_any_shape_are_rows_of_their_table() {
    for_seeds("embeddings_of_any_shape", SEEDS, |random| {
        let (words, features, shape) = (between(random, 1, 9), between(random, 1, 20), any_shape(random));
        let table = eighths(&[words, features], random);
        let mut layer = Embedding::with_weights(array(table.clone())).unwrap();
        let indices: Vec<usize> = (0..shape.iter().product()).map(|_| random.below(words)).collect();
        let x = tensor(&shape, indices.iter().map(|&word| word as f32).collect()).unwrap();
        let y = layer.forward(&[&x], Parallelism::Current).unwrap();
        assert_eq!(y.shape(), [&shape[..], &[features]].concat());
        let dy = eighths(y.shape(), random);
        layer.backward(&dy, Parallelism::Current).unwrap();
        let (y, dy) = (y.as_slice().unwrap(), dy.as_slice().unwrap());
        // Sums of up to 256 eighths: exact.
        let mut gradient = vec![0.0; words * features];
        for (at, word) in indices.iter().enumerate() {
            for feature in 0..features {
                assert_eq!(y[at * features + feature], table[[*word, feature]]);
                gradient[word * features + feature] += dy[at * features + feature];
            }
        }
        layer.visit("", &mut |_, parameter| assert_eq!(parameter.gradient_elements(), gradient));
    });
}

#[test]
fn dropout_of_any_shape_scales_what_it_keeps() {
    for_seeds("dropout_of_any_shape", SEEDS, |random| {
        let rate = random.below(8) as f32 / 8.0;
        let shape = [&any_shape(random)[..], &[64]].concat();
        // Numbers that are not 0: what is 0 behind the layer was left out.
        let x = sixteenths(&shape, random);
        let mut layer = Dropout::new(rate, random).unwrap();
        let y = layer.forward(&[&x], Parallelism::Current).unwrap();
        let dy = sixteenths(&shape, random);
        let dx = layer.backward(&dy, Parallelism::Current).unwrap().remove(0);
        assert_eq!((y.shape(), dx.shape()), (&shape[..], &shape[..]));
        let factor = 1.0 / (1.0 - rate as f64);
        for ((x, y), (dy, dx)) in x.iter().zip(&y).zip(dy.iter().zip(&dx)) {
            let is_kept = *y != 0.0;
            // The factor is rounded, and so is the product.
            for (before, behind) in [(x, y), (dy, dx)] {
                let expected = if is_kept { *before as f64 * factor } else { 0.0 };
                assert!((*behind as f64 - expected).abs() <= 2.0 * U * expected.abs(), "{behind} for {expected}");
            }
        }
        // Six deviations of a binomial count.
        let (len, rate) = (y.len() as f64, rate as f64);
        let kept = y.iter().filter(|&&y| y != 0.0).count() as f64;
        assert!((kept - len * (1.0 - rate)).abs() <= 6.0 * (len * rate * (1.0 - rate)).sqrt(), "{kept} of {len}");
        layer.set_training(false);
        assert_eq!(layer.forward(&[&x], Parallelism::Serial).unwrap(), x);
    });
}
