//! The layers as loops over numbers on a tape.

use super::number::Number;
use super::tape::{Id, Tape};

/// A tensor on the tape, in row-major order.
#[derive(Clone, Debug)]
pub struct Values {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub ids: Vec<Id>,
}

impl Values {
    /// A tensor that comes from nowhere.
    pub fn leaf(tape: &mut Tape, shape: &[usize], elements: &[Number]) -> Self {
        assert_eq!(elements.len(), shape.iter().product::<usize>());
        Self { shape: shape.to_vec(), ids: elements.iter().map(|&element| tape.leaf(element)).collect() }
    }

    fn new(shape: &[usize], ids: Vec<Id>) -> Self {
        debug_assert_eq!(ids.len(), shape.iter().product::<usize>());
        Self { shape: shape.to_vec(), ids }
    }

    /// The same elements in another shape.
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        Self::new(shape, self.ids.clone())
    }

    /// `[batch, all the rest]`
    pub fn flat(&self) -> Self {
        self.reshaped(&[self.shape[0], self.shape[1..].iter().product()])
    }

    /// The last dimension, by which rows are cut.
    fn columns(&self) -> usize {
        *self.shape.last().expect("a dimension")
    }
}

/// A function of each element.
pub fn each(x: &Values, mut function: impl FnMut(Id) -> Id) -> Values {
    Values::new(&x.shape, x.ids.iter().map(|&id| function(id)).collect())
}

/// A function of the elements at the same place in some tensors.
pub fn together(inputs: &[&Values], mut function: impl FnMut(&[Id]) -> Id) -> Values {
    let at = |i: usize| inputs.iter().map(|x| x.ids[i]).collect::<Vec<Id>>();
    Values::new(&inputs[0].shape, (0..inputs[0].ids.len()).map(|i| function(&at(i))).collect())
}

/// `y[o] = bias[o] + sum over i of x[i] weight[o, i]` for each row
pub fn linear(tape: &mut Tape, x: &Values, weight: &[Id], bias: &[Id]) -> Values {
    let (inputs, outputs) = (x.columns(), bias.len());
    let mut ids = Vec::new();
    for row in x.ids.chunks(inputs) {
        for o in 0..outputs {
            let pairs: Vec<_> = row.iter().copied().zip(weight[o * inputs..][..inputs].iter().copied()).collect();
            ids.push(tape.dot(&pairs, Some(bias[o])));
        }
    }
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("a dimension") = outputs;
    Values::new(&shape, ids)
}

/// A square window that moves over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns.
    pub kernel: usize,
    /// Steps of both.
    pub stride: usize,
    /// On all four sides.
    pub padding: usize,
}

impl Window {
    /// How many places there are along an axis.
    pub const fn places(&self, size: usize) -> usize {
        (size + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// The pixels of an image that the window has at a place, each with its place in the window.
    fn pixels(&self, [oh, ow]: [usize; 2], [height, width]: [usize; 2]) -> Vec<(usize, usize)> {
        let mut pixels = Vec::new();
        for kh in 0..self.kernel {
            for kw in 0..self.kernel {
                let ih = (oh * self.stride + kh).checked_sub(self.padding).filter(|&ih| ih < height);
                let iw = (ow * self.stride + kw).checked_sub(self.padding).filter(|&iw| iw < width);
                if let (Some(ih), Some(iw)) = (ih, iw) {
                    pixels.push((ih * width + iw, kh * self.kernel + kw));
                }
            }
        }
        pixels
    }
}

/// A function of what a window sees: of the pixels of all input channels, with their places in the window.
fn windowed(
    x: &Values,
    window: Window,
    out_channels: usize,
    mut function: impl FnMut(&[Id], usize, &[(usize, usize)]) -> Id,
) -> Values {
    let &[batch, channels, height, width] = &x.shape[..] else { unreachable!("images") };
    let (pixels, size) = (height * width, [height, width].map(|size| window.places(size)));
    let mut ids = Vec::new();
    for n in 0..batch {
        for oc in 0..out_channels {
            for oh in 0..size[0] {
                for ow in 0..size[1] {
                    let image = &x.ids[n * channels * pixels..][..channels * pixels];
                    ids.push(function(image, oc, &window.pixels([oh, ow], [height, width])));
                }
            }
        }
    }
    Values::new(&[batch, out_channels, size[0], size[1]], ids)
}

/// `y[oc] = bias[oc] + sum over ic and the window of x[ic] weight[oc, ic]`
pub fn convolution(tape: &mut Tape, x: &Values, window: Window, weight: &[Id], bias: &[Id]) -> Values {
    let (channels, pixels, taps) = (x.shape[1], x.shape[2] * x.shape[3], window.kernel * window.kernel);
    windowed(x, window, bias.len(), |image, oc, seen| {
        let mut pairs = Vec::new();
        for ic in 0..channels {
            pairs.extend(
                seen.iter()
                    .map(|&(pixel, tap)| (image[ic * pixels + pixel], weight[(oc * channels + ic) * taps + tap])),
            );
        }
        tape.dot(&pairs, Some(bias[oc]))
    })
}

/// The largest in each window, of each channel.
pub fn max_pool(tape: &mut Tape, x: &Values, window: Window) -> Values {
    let pixels = x.shape[2] * x.shape[3];
    windowed(x, window, x.shape[1], |image, channel, seen| {
        let seen: Vec<Id> = seen.iter().map(|&(pixel, _)| image[channel * pixels + pixel]).collect();
        tape.largest(&seen, false, true)
    })
}

/// The mean of each window, of each channel. No padding.
pub fn average_pool(tape: &mut Tape, x: &Values, window: Window) -> Values {
    let pixels = x.shape[2] * x.shape[3];
    windowed(x, window, x.shape[1], |image, channel, seen| {
        let seen: Vec<Id> = seen.iter().map(|&(pixel, _)| image[channel * pixels + pixel]).collect();
        mean(tape, &seen)
    })
}

fn mean(tape: &mut Tape, of: &[Id]) -> Id {
    let sum = tape.sum(of);
    tape.scaled(sum, 1.0 / of.len() as f64)
}

/// The mean of each channel of `[batch, channels, height, width]`, which stays an image of one pixel.
pub fn global_average(tape: &mut Tape, x: &Values) -> Values {
    let ids = x.ids.chunks(x.shape[2] * x.shape[3]).map(|pixels| mean(tape, pixels)).collect();
    Values::new(&[x.shape[0], x.shape[1], 1, 1], ids)
}

/// The mean over the positions of `[batch, length, features]`.
pub fn mean_positions(tape: &mut Tape, x: &Values) -> Values {
    let &[batch, length, features] = &x.shape[..] else { unreachable!("sequences") };
    let mut ids = Vec::new();
    for n in 0..batch {
        for feature in 0..features {
            let of: Vec<Id> = (0..length).map(|i| x.ids[(n * length + i) * features + feature]).collect();
            ids.push(mean(tape, &of));
        }
    }
    Values::new(&[batch, features], ids)
}

/// `[batch, channels, height, width]` as `[batch, height * width, channels]`.
pub fn to_sequence(x: &Values) -> Values {
    let &[batch, channels, height, width] = &x.shape[..] else { unreachable!("images") };
    let length = height * width;
    let mut ids = Vec::new();
    for n in 0..batch {
        for i in 0..length {
            ids.extend((0..channels).map(|c| x.ids[(n * channels + c) * length + i]));
        }
    }
    Values::new(&[batch, length, channels], ids)
}

/// One after the other along the second dimension.
pub fn concat(inputs: &[&Values]) -> Values {
    let (mut shape, mut ids) = (inputs[0].shape.clone(), Vec::new());
    shape[1] = inputs.iter().map(|x| x.shape[1]).sum();
    for n in 0..shape[0] {
        for x in inputs {
            let len = x.ids.len() / shape[0];
            ids.extend_from_slice(&x.ids[n * len..][..len]);
        }
    }
    Values::new(&shape, ids)
}

/// `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta` for each row
pub fn layer_norm(tape: &mut Tape, x: &Values, gamma: &[Id], beta: &[Id]) -> Values {
    let mut ids = Vec::new();
    let epsilon = tape.leaf(Number::exact(f64::from(1e-5f32)));
    for row in x.ids.chunks(x.columns()) {
        let mean = mean(tape, row);
        let mean = tape.negated(mean);
        let centred: Vec<Id> = row.iter().map(|&x| tape.sum(&[x, mean])).collect();
        let squares: Vec<_> = centred.iter().map(|&x| (x, x)).collect();
        let variance = tape.dot(&squares, None);
        let variance = tape.scaled(variance, 1.0 / row.len() as f64);
        let variance = tape.sum(&[variance, epsilon]);
        let factor = tape.inverse_root(variance);
        for (at, &x) in centred.iter().enumerate() {
            let normal = tape.product(x, factor);
            ids.push(tape.dot(&[(normal, gamma[at])], Some(beta[at])));
        }
    }
    Values::new(&x.shape, ids)
}

/// `exp(x) / sum of exp` of a row
fn softmax(tape: &mut Tape, row: &[Id]) -> Vec<Id> {
    let exps = exponentials(tape, row);
    let sum = tape.sum(&exps);
    let factor = tape.inverse(sum);
    exps.iter().map(|&x| tape.product(x, factor)).collect()
}

/// `exp(x - the largest)` of a row. The shift falls out of every quotient, so it has no derivative.
fn exponentials(tape: &mut Tape, row: &[Id]) -> Vec<Id> {
    let (shift, size) = shift(tape, row);
    row.iter().map(|&x| tape.exp(x, shift, size)).collect()
}

/// The largest of a row, and how large its numbers, differences and the logarithm of its sum may be.
fn shift(tape: &Tape, row: &[Id]) -> (f64, f64) {
    let values = || row.iter().map(|&x| tape.value(x).value);
    let size = values().fold(0.0, |size: f64, x| size.max(x.abs()));
    (values().fold(f64::NEG_INFINITY, f64::max), 2.0 * size + (row.len() as f64).ln())
}

/// Parameters of an attention, in the order of the layer: `[3 features, features]`, `[3 features]`, `[features,
/// features]`, `[features]`.
pub type AttentionWeights = [Vec<Id>; 4];

/// Attention of `x [batch, n, d]` to `memory [batch, m, d]`, which is `x` itself or another sequence.
pub fn attention(
    tape: &mut Tape,
    [x, memory]: [&Values; 2],
    heads: usize,
    causal: bool,
    [qkv, qkv_bias, proj, proj_bias]: &AttentionWeights,
) -> Values {
    let &[batch, q_len, features] = &x.shape[..] else { unreachable!("sequences") };
    let (kv_len, dim) = (memory.shape[1], features / heads);
    let scale = 1.0 / (dim as f64).sqrt();
    let part = |tape: &mut Tape, x: &Values, at: usize| {
        linear(tape, x, &qkv[at * features * features..][..features * features], &qkv_bias[at * features..][..features])
    };
    let [q, k, v] = [part(tape, x, 0), part(tape, memory, 1), part(tape, memory, 2)];
    let mut out = Vec::new();
    for n in 0..batch {
        for i in 0..q_len {
            for first in (0..features).step_by(dim) {
                let keys = if causal { kv_len.min(i + 1) } else { kv_len };
                let of =
                    |x: &Values, length: usize, i: usize| x.ids[(n * length + i) * features + first..][..dim].to_vec();
                let mut scores = Vec::new();
                for j in 0..keys {
                    let pairs: Vec<_> = of(&q, q_len, i).into_iter().zip(of(&k, kv_len, j)).collect();
                    let score = tape.dot(&pairs, None);
                    scores.push(tape.scaled(score, scale));
                }
                let weights = softmax(tape, &scores);
                for c in 0..dim {
                    let pairs: Vec<_> = (0..keys).map(|j| (weights[j], of(&v, kv_len, j)[c])).collect();
                    out.push(tape.dot(&pairs, None));
                }
            }
        }
    }
    linear(tape, &Values::new(&x.shape, out), proj, proj_bias)
}

/// The mean over rows of `ln(sum of exp(z)) - z[label]`
pub fn cross_entropy(tape: &mut Tape, z: &Values, labels: &[usize]) -> Id {
    let mut losses = Vec::new();
    for (row, &label) in z.ids.chunks(z.columns()).zip(labels) {
        let (shift, _) = shift(tape, row);
        let exps = exponentials(tape, row);
        let sum = tape.sum(&exps);
        let (logarithm, shift, right) = (tape.ln(sum), tape.leaf(Number::exact(shift)), tape.negated(row[label]));
        losses.push(tape.sum(&[logarithm, shift, right]));
    }
    mean(tape, &losses)
}

/// The mean of `(y - target)^2`
pub fn squared_error(tape: &mut Tape, y: &Values, target: &[f32]) -> Id {
    let mut pairs = Vec::new();
    for (&y, &target) in y.ids.iter().zip(target) {
        let target = tape.leaf(Number::exact(-f64::from(target)));
        let difference = tape.sum(&[y, target]);
        pairs.push((difference, difference));
    }
    let sum = tape.dot(&pairs, None);
    tape.scaled(sum, 1.0 / y.ids.len() as f64)
}
