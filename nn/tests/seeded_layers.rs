//! Layers on shapes drawn from seeds, against double for-loops in f64: outputs, and gradients against finite
//! differences.

mod check;

use kernels::conv::{Accuracy, Conv1dSpec, Conv2dSpec, ConvTranspose2dSpec, Layout, Padding, Shape};
use kernels::pool::Pool2dSpec;
use kernels::{LocalResponse, reference};
use nn::{
    AdaptiveAvgPool2d, AvgPool2d, ClipLoss, Concat, Conv1d, Conv2d, ConvTranspose2d, CosineLogits, Error, Layer,
    LocalResponseNorm, MSELoss, MaxPool2d, Parallelism, Random, Result, Tensor, tensor,
};

use check::{DIFFERENCE, U, array, between, check, differences, distinct, eighths, for_seeds, wide};

const SEEDS: u64 = 40;

#[test]
fn a_convolution_of_any_kind_is_that_of_the_loops() {
    for_seeds("a_convolution_of_any_kind", SEEDS, |random| {
        let groups = between(random, 1, 3);
        let [group_in, group_out] = [0; 2].map(|_| between(random, 1, 3));
        let kernel = [0; 2].map(|_| between(random, 1, 3));
        let dilation = [0; 2].map(|_| between(random, 1, 2));
        let [top, bottom, left, right] = [0; 4].map(|_| random.below(3));
        let padding = Padding { top, bottom, left, right };
        let spec = Conv2dSpec::new(groups * group_in, groups * group_out, kernel)
            .stride([0; 2].map(|_| between(random, 1, 3)))
            .padding(padding)
            .dilation(dilation)
            .groups(groups)
            .accuracy(Accuracy::Direct);
        let [height, width] = [0; 2].map(|_| between(random, 5, 8));
        let shape = Shape::new(between(random, 1, 2), height, width);
        let sizes = spec.sizes(shape).unwrap();
        let weight = eighths(&[spec.out_channels, group_in, kernel[0], kernel[1]], random);
        let bias = (random.below(2) == 0).then(|| array(eighths(&[spec.out_channels], random)));
        let mut layer = Conv2d::with_weights(spec, array(weight), bias).unwrap();
        let x = eighths(&[shape.batch, spec.in_channels, height, width], random);
        let taps = kernel[0] * kernel[1];
        let longest = (taps * group_in.max(group_out)).max(shape.batch * sizes.output[0] * sizes.output[1]);
        check(&mut layer, &x, longest as f64 + 2.0, &|x, parameters| {
            let mut y = vec![0.0; sizes.y_len];
            let bias = parameters.get(1).map(Vec::as_slice);
            reference::conv2d_forward(&spec, shape, x, &parameters[0], bias, None, &mut y).unwrap();
            y
        });
        assert_eq!(layer.flops(&[x.shape().to_vec()]).unwrap(), 2.0 * (sizes.y_len * taps * group_in) as f64);
    });
}

#[test]
fn a_convolution_of_lines_is_that_of_the_loops() {
    for_seeds("a_convolution_of_lines", SEEDS, |random| {
        let groups = between(random, 1, 2);
        let [group_in, group_out] = [0; 2].map(|_| between(random, 1, 4));
        let spec = Conv1dSpec {
            accuracy: Accuracy::Direct,
            stride: between(random, 1, 3),
            padding: [0; 2].map(|_| random.below(3)),
            dilation: between(random, 1, 2),
            groups,
            ..Conv1dSpec::new(groups * group_in, groups * group_out, between(random, 1, 5))
        };
        let (batch, length) = (between(random, 1, 3), between(random, 9, 20));
        let weight = eighths(&[spec.out_channels, group_in, spec.kernel], random);
        let bias = (random.below(2) == 0).then(|| array(eighths(&[spec.out_channels], random)));
        let mut layer = Conv1d::with_weights(spec, array(weight), bias).unwrap();
        let x = eighths(&[batch, spec.in_channels, length], random);
        let outputs =
            (length + spec.padding[0] + spec.padding[1] - spec.dilation * (spec.kernel - 1) - 1) / spec.stride + 1;
        assert_eq!(layer.output_shape(&[x.shape().to_vec()]).unwrap(), [batch, spec.out_channels, outputs]);
        let longest = (spec.kernel * group_in.max(group_out)).max(batch * outputs);
        check(&mut layer, &x, longest as f64 + 2.0, &|x, parameters| {
            let mut y = vec![0.0; batch * spec.out_channels * outputs];
            for n in 0..batch {
                for oc in 0..spec.out_channels {
                    for o in 0..outputs {
                        let mut sum = parameters.get(1).map_or(0.0, |bias| bias[oc]);
                        for ic in 0..group_in {
                            for k in 0..spec.kernel {
                                let at = (o * spec.stride + k * spec.dilation).checked_sub(spec.padding[0]);
                                if let Some(at) = at.filter(|&at| at < length) {
                                    let channel = oc / group_out * group_in + ic;
                                    let weight = parameters[0][(oc * group_in + ic) * spec.kernel + k];
                                    sum += weight * x[(n * spec.in_channels + channel) * length + at];
                                }
                            }
                        }
                        y[(n * spec.out_channels + oc) * outputs + o] = sum;
                    }
                }
            }
            y
        });
    });
}

#[test]
fn a_transposed_convolution_is_that_of_the_loops() {
    for_seeds("a_transposed_convolution", SEEDS, |random| {
        let groups = between(random, 1, 2);
        let [group_in, group_out] = [0; 2].map(|_| between(random, 1, 3));
        let kernel = [0; 2].map(|_| between(random, 2, 4));
        let stride = [0; 2].map(|_| between(random, 1, 3));
        let [top, bottom, left, right] = [0; 4].map(|_| random.below(2));
        let spec = ConvTranspose2dSpec::new(groups * group_in, groups * group_out, kernel)
            .stride(stride)
            .padding(Padding { top, bottom, left, right })
            .output_padding([0, 1].map(|axis: usize| random.below(stride[axis])))
            .groups(groups);
        let [height, width] = [0; 2].map(|_| between(random, 2, 4));
        let shape = Shape::new(between(random, 1, 2), height, width);
        let sizes = spec.sizes(shape).unwrap();
        let weight = eighths(&[spec.in_channels, group_out, kernel[0], kernel[1]], random);
        let bias = (random.below(2) == 0).then(|| array(eighths(&[spec.out_channels], random)));
        let mut layer = ConvTranspose2d::with_weights(spec, array(weight), bias).unwrap();
        let x = eighths(&[shape.batch, spec.in_channels, height, width], random);
        // Winograd may be chosen: its error is bounded by a few times that of the sums.
        let longest =
            (kernel[0] * kernel[1] * group_in.max(group_out)).max(shape.batch * sizes.output[0] * sizes.output[1]);
        check(&mut layer, &x, 20.0 * longest as f64, &|x, parameters| {
            let mut y = vec![0.0; sizes.y_len];
            let bias = parameters.get(1).map(Vec::as_slice);
            reference::conv_transpose2d_forward(&spec, shape, x, &parameters[0], bias, &mut y).unwrap();
            y
        });
    });
}

#[test]
fn poolings_are_those_of_the_loops() {
    for_seeds("poolings", SEEDS, |random| {
        let kernel = [0; 2].map(|_| between(random, 1, 4));
        let [top, bottom] = [0; 2].map(|_| random.below(kernel[0] / 2 + 1));
        let [left, right] = [0; 2].map(|_| random.below(kernel[1] / 2 + 1));
        let spec = Pool2dSpec::new(kernel)
            .stride([0; 2].map(|_| between(random, 1, 3)))
            .padding(Padding { top, bottom, left, right })
            .ceil_mode(random.below(2) == 0)
            .count_include_pad(random.below(2) == 0);
        let [height, width] = [0; 2].map(|_| between(random, 4, 9));
        let (shape, channels) = (Shape::new(between(random, 1, 2), height, width), between(random, 1, 3));
        let x = distinct(&[shape.batch, channels, height, width], random);
        let sizes = spec.sizes(shape, channels).unwrap();
        let shape_of_y = [shape.batch, channels, sizes.output[0], sizes.output[1]];

        let mut max = MaxPool2d::new(spec).unwrap();
        assert_eq!(max.output_shape(&[x.shape().to_vec()]).unwrap(), shape_of_y);
        // An element of dx is a sum over the windows that meet in it.
        check(&mut max, &x, (kernel[0] * kernel[1]) as f64, &|x, _| {
            let mut y = vec![0.0; sizes.y_len];
            reference::max_pool2d_forward(&spec, shape, channels, x, &mut y).unwrap();
            y
        });
        let mut average = AvgPool2d::new(spec).unwrap();
        assert_eq!(average.output_shape(&[x.shape().to_vec()]).unwrap(), shape_of_y);
        check(&mut average, &x, (kernel[0] * kernel[1]) as f64 + 1.0, &|x, _| {
            let mut y = vec![0.0; sizes.y_len];
            reference::average_pool2d_forward(&spec, shape, channels, x, &mut y).unwrap();
            y
        });
    });
}

#[test]
fn adaptive_pooling_is_that_of_the_loops() {
    for_seeds("adaptive_pooling", SEEDS, |random| {
        let output = [0; 2].map(|_| between(random, 1, 6));
        let [height, width] = [0; 2].map(|_| between(random, 1, 9));
        let (shape, channels) = (Shape::new(between(random, 1, 2), height, width), between(random, 1, 3));
        let x = eighths(&[shape.batch, channels, height, width], random);
        let mut layer = AdaptiveAvgPool2d::new(output).unwrap();
        let y_shape = [shape.batch, channels, output[0], output[1]];
        assert_eq!(layer.output_shape(&[x.shape().to_vec()]).unwrap(), y_shape);
        check(&mut layer, &x, (height * width + output[0] * output[1]) as f64 + 1.0, &|x, _| {
            let mut y = vec![0.0; y_shape.iter().product()];
            reference::adaptive_average_pool2d_forward(output, Layout::Nchw, shape, channels, x, &mut y).unwrap();
            y
        });
    });
}

#[test]
fn local_response_normalisation_is_that_of_the_loops() {
    for_seeds("local_response_normalisation", SEEDS, |random| {
        let norm = LocalResponse {
            size: between(random, 1, 6),
            alpha: random.uniform(0.1, 2.0),
            beta: random.uniform(0.5, 1.0),
            k: random.uniform(1.0, 2.0),
        };
        let shape = [between(random, 1, 2), between(random, 1, 7), between(random, 1, 3) * between(random, 1, 3)];
        let x = distinct(&shape, random);
        let mut layer = LocalResponseNorm::new(norm).unwrap();
        let y = layer.forward(&[&x], Parallelism::Current).unwrap();
        let function = |x: &[f64]| {
            let mut y = vec![0.0; x.len()];
            reference::local_response_forward(&norm, shape, x, &mut y).unwrap();
            y
        };
        let x = wide(x.as_slice().unwrap());
        let exact = function(&x);
        // Inputs are below 10: s is at most 2 + 2 * 100, its logarithm below 5.4.
        let roundings = norm.beta as f64 * (norm.size as f64 + 3.0 + 4.0 * 5.4) + 8.0;
        for (given, &expected) in y.iter().zip(&exact) {
            assert!((*given as f64 - expected).abs() <= roundings * U * expected.abs(), "{given} for {expected}");
        }
        let dy = eighths(&shape, random);
        let dx = layer.backward(&dy, Parallelism::Current).unwrap().remove(0);
        let dy = wide(dy.as_slice().unwrap());
        let dot = |lists: &[Vec<f64>]| function(&lists[0]).iter().zip(&dy).map(|(y, dy)| y * dy).sum();
        let slopes = differences(&[x], &dot).remove(0);
        // Damping is at most 1, and the sum over windows of |dy y / s| times 2 alpha beta |x| / size at most 2 beta
        // size: x^2 alpha / size < s for a channel in its own window, and |x y| likewise for two.
        let size = norm.size as f64;
        let bound = U * (roundings + (2.0 * size + 12.0) * 2.0 * norm.beta as f64 * size);
        for (given, expected) in dx.iter().zip(&slopes) {
            assert!((*given as f64 - expected).abs() <= bound + 1e-6, "{given} for {expected}");
        }
        assert_eq!(
            layer.backward(&tensor(&shape, vec![0.0; dx.len()]).unwrap(), Parallelism::Serial),
            Err(Error::NoForward)
        );
    });
}

#[test]
fn branches_are_joined_and_parted() {
    for_seeds("branches", SEEDS, |random| {
        let (batch, pixels) = (between(random, 0, 3), between(random, 1, 4));
        let channels: Vec<usize> = (0..between(random, 1, 4)).map(|_| between(random, 1, 5)).collect();
        let parts: Vec<Tensor> = channels.iter().map(|&c| eighths(&[batch, c, pixels], random)).collect();
        let mut concat = Concat::default();
        let y = concat.forward(&parts.iter().collect::<Vec<_>>(), Parallelism::Serial).unwrap();
        let all: usize = channels.iter().sum();
        assert_eq!(y.shape(), [batch, all, pixels]);
        let (mut first, mut part) = (0, 0);
        for c in 0..all {
            if c == first + channels[part] {
                (first, part) = (c, part + 1);
            }
            for n in 0..batch {
                for pixel in 0..pixels {
                    assert_eq!(y[[n, c, pixel]], parts[part][[n, c - first, pixel]]);
                }
            }
        }
        // The gradient of a part is the part of the gradient.
        assert_eq!(concat.backward(&y, Parallelism::Serial).unwrap(), parts);
    });
    let (a, b) = (tensor(&[1, 2], vec![0.0; 2]).unwrap(), tensor(&[2, 1], vec![0.0; 2]).unwrap());
    let error = Concat::default().forward(&[&a, &b], Parallelism::Serial).unwrap_err();
    assert_eq!(error.to_string(), "inputs: expected shape [1, 2] but for the channels, as the first, given [2, 1]");
    assert!(Concat::default().forward(&[], Parallelism::Serial).is_err());
}

#[test]
fn the_squared_error_and_its_gradient_are_those_of_the_formula() {
    for_seeds("the_squared_error", SEEDS, |random| {
        let shape = [between(random, 1, 5), between(random, 1, 70)];
        let (y, target) = (eighths(&shape, random), eighths(&shape, random));
        let mut loss = MSELoss::default();
        let mean = loss.forward(&y, &target, Parallelism::Current).unwrap() as f64;
        let dy = loss.backward().unwrap();
        let (mut gradient, len) = (vec![0.0; y.len()], y.len() as f64);
        let (y, target) = (wide(y.as_slice().unwrap()), wide(target.as_slice().unwrap()));
        let exact = reference::mean_squared_error(&y, &target, &mut gradient).unwrap();
        assert!((mean - exact).abs() <= U * (len / 64.0 + 12.0) * exact, "{mean} for {exact}");
        let formula =
            |lists: &[Vec<f64>]| reference::mean_squared_error(&lists[0], &target, &mut vec![0.0; y.len()]).unwrap();
        let slopes = differences(std::slice::from_ref(&y), &formula).remove(0);
        for ((given, expected), slope) in dy.iter().zip(&gradient).zip(&slopes) {
            assert!((*given as f64 - expected).abs() <= 4.0 * U * expected.abs(), "{given} for {expected}");
            assert!((expected - slope).abs() <= DIFFERENCE);
        }
        assert_eq!(loss.backward(), Err(Error::NoForward));
    });
    let empty = tensor(&[0], Vec::new()).unwrap();
    assert!(MSELoss::default().forward(&empty, &empty, Parallelism::Serial).is_err());
}

/// CLIP's loss as its paper writes it: images, texts, the logarithm of the scale.
fn clip(batch: usize, features: usize, lists: &[Vec<f64>]) -> f64 {
    let unit = |rows: &[f64]| -> Vec<f64> {
        let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        rows.chunks(features).flat_map(|row| row.iter().map(|x| x / length(row)).collect::<Vec<_>>()).collect()
    };
    let (i, t, factor) = (unit(&lists[0]), unit(&lists[1]), lists[2][0].exp());
    let z =
        |n: usize, m: usize| factor * (0..features).map(|at| i[n * features + at] * t[m * features + at]).sum::<f64>();
    let mut sum = 0.0;
    for n in 0..batch {
        let rows: f64 = (0..batch).map(|m| z(n, m).exp()).sum();
        let columns: f64 = (0..batch).map(|m| z(m, n).exp()).sum();
        sum += rows.ln() + columns.ln() - 2.0 * z(n, n);
    }
    sum / (2 * batch) as f64
}

#[test]
fn the_contrastive_loss_and_its_gradients_are_those_of_the_formula() {
    for_seeds("the_contrastive_loss", SEEDS, |random| {
        let [batch, features] = [between(random, 1, 6), between(random, 2, 9)];
        // No row is near zero, so that lengths are above 1.
        let mut rows = || {
            let mut x = eighths(&[batch, features], random);
            x.iter_mut().for_each(|x| *x += if *x < 0.0 { -1.0 } else { 1.0 });
            x
        };
        let (images, texts) = (rows(), rows());
        let (mut cosines, mut loss) = (CosineLogits::new(), ClipLoss::default());
        let z = cosines.forward(&[&images, &texts], Parallelism::Current).unwrap();
        let value = loss.forward(&z, Parallelism::Current).unwrap() as f64;
        let gradients = cosines.backward(&loss.backward().unwrap(), Parallelism::Current).unwrap();
        let (mut scale, mut d_scale) = (Vec::new(), Vec::new());
        cosines.visit("", &mut |_, parameter| {
            (scale, d_scale) = (wide(parameter.elements()), wide(parameter.gradient_elements()));
        });
        let lists = [wide(images.as_slice().unwrap()), wide(texts.as_slice().unwrap()), scale];
        let exact = clip(batch, features, &lists);
        // Cosines err by their features' roundings and logits by e^s times that; the losses by as much, twice.
        let factor = 1.0 / 0.07;
        let logit = U * factor * (2.0 * 16.0 + features as f64 + 4.0);
        let bound = 2.0 * logit + U * (4.0 * exact + 4.0 * factor + batch as f64 + 20.0);
        assert!((value - exact).abs() <= bound, "{value} for {exact}");
        let slopes = differences(&lists, &|lists| clip(batch, features, lists));
        // A probability errs by twice what its logits do; each reaches features of at most unit length, times e^s, and
        // the scale through logits of at most e^s. The differences' own error is STEP^2 / 6 of a third
        // derivative of e^(3 s).
        let own = 1.0 / 4096f64.powi(2) / 6.0 * factor.powi(3);
        let bound = 4.0 * factor * (logit + U * (features as f64 + 40.0)) + own;
        let [d_images, d_texts] = [0, 1].map(|at: usize| wide(gradients[at].as_slice().unwrap()));
        let given = [d_images, d_texts, d_scale];
        for (list, (given, slopes)) in given.iter().zip(&slopes).enumerate() {
            for (given, slope) in given.iter().zip(slopes) {
                assert!((given - slope).abs() <= bound, "{}: {given} for {slope}", ["images", "texts", "scale"][list]);
            }
        }
        assert_eq!(loss.backward(), Err(Error::NoForward));
        assert_eq!(cosines.backward(&z, Parallelism::Serial), Err(Error::NoForward));
        let other = tensor(&[batch, features + 1], vec![1.0; batch * (features + 1)]).unwrap();
        assert!(cosines.forward(&[&images, &other], Parallelism::Serial).is_err());
        assert!(loss.forward(&other, Parallelism::Serial).is_err() || batch == features + 1);
    });
}

/// Forward and backward of layers that are large enough for several threads: all bits.
fn bits(parallelism: Parallelism<'_>) -> Result<Vec<u32>> {
    let random = &mut Random::new(3);
    let up = ConvTranspose2dSpec::new(16, 16, [4, 4]).stride([2, 2]).padding(Padding::all(1));
    let mut layers: Vec<(Box<dyn Layer>, Vec<usize>)> = vec![
        (Box::new(Conv1d::new(Conv1dSpec::new(24, 24, 5), random)?), vec![4, 24, 500]),
        (Box::new(ConvTranspose2d::new(up, random)?), vec![4, 16, 30, 30]),
        (Box::new(AvgPool2d::new(Pool2dSpec::new([3, 3]).stride([2, 2]))?), vec![4, 32, 61, 59]),
        (Box::new(MaxPool2d::new(Pool2dSpec::new([3, 3]).stride([2, 2]).ceil_mode(true))?), vec![4, 32, 61, 59]),
        (Box::new(AdaptiveAvgPool2d::new([7, 5])?), vec![4, 64, 61, 59]),
        (Box::new(AdaptiveAvgPool2d::global()), vec![4, 64, 61, 59]),
        (Box::new(LocalResponseNorm::new(LocalResponse::default())?), vec![4, 32, 61, 59]),
    ];
    let mut all = Vec::new();
    let mut add = |x: &[f32]| all.extend(x.iter().map(|x| x.to_bits()));
    for (layer, shape) in &mut layers {
        let x = distinct(shape, random);
        let y = layer.forward(&[&x], parallelism)?;
        add(y.as_slice().unwrap());
        let dy = eighths(y.shape(), random);
        add(layer.backward(&dy, parallelism)?[0].as_slice().unwrap());
        layer.visit("", &mut |_, parameter| add(parameter.gradient_elements()));
    }
    let (images, texts) = (distinct(&[300, 64], random), distinct(&[300, 64], random));
    let (mut cosines, mut loss) = (CosineLogits::new(), ClipLoss::default());
    let z = cosines.forward(&[&images, &texts], parallelism)?;
    add(&[loss.forward(&z, parallelism)?]);
    for gradient in cosines.backward(&loss.backward()?, parallelism)? {
        add(gradient.as_slice().unwrap());
    }
    cosines.visit("", &mut |_, parameter| add(parameter.gradient_elements()));
    Ok(all)
}

#[test]
fn layers_give_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let expected = bits(Parallelism::Serial)?;
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| bits(Parallelism::Current))? == expected, "{threads} threads");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let random = &mut Random::new(1);
    let image = tensor(&[1, 2, 4, 4], vec![0.0; 32])?;
    let mut line = Conv1d::new(Conv1dSpec::new(2, 2, 3), random)?;
    assert!(line.forward(&[&image], Parallelism::Serial).is_err());
    assert!(Conv1d::new(Conv1dSpec { groups: 3, ..Conv1dSpec::new(2, 2, 3) }, random).is_err());
    assert!(Conv1d::with_weights(Conv1dSpec::new(2, 2, 3), ndarray::ArrayD::zeros(vec![2, 2, 4]), None).is_err());
    assert!(line.backward(&tensor(&[1, 2, 2], vec![0.0; 4])?, Parallelism::Serial).is_err());
    let spec = ConvTranspose2dSpec::new(3, 2, [2, 2]);
    let mut up = ConvTranspose2d::new(spec, random)?;
    assert!(up.forward(&[&image], Parallelism::Serial).is_err());
    assert!(ConvTranspose2d::new(spec.groups(2), random).is_err());
    assert!(ConvTranspose2d::new(spec.layout(Layout::Nhwc), random).is_err());
    assert!(AvgPool2d::new(Pool2dSpec::new([2, 2]).dilation([2, 1])).is_err());
    assert!(AdaptiveAvgPool2d::new([0, 1]).is_err());
    assert!(LocalResponseNorm::new(LocalResponse { size: 0, ..LocalResponse::default() }).is_err());
    assert!(LocalResponseNorm::new(LocalResponse { k: 0.0, ..LocalResponse::default() }).is_err());
    let mut pool = AdaptiveAvgPool2d::global();
    assert!(pool.forward(&[&tensor(&[1, 2, 0, 4], Vec::new())?], Parallelism::Serial).is_err());
    assert!(pool.forward(&[&image], Parallelism::Serial).is_ok());
    Ok(())
}
