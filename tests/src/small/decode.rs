//! From bytes to a small kernel.
//!
//! ```text
//! byte   0        1       2..8   8      9     10    11..
//!        version  kernel  sizes  flags  data  size  seed (4 bytes), then what only some kernels have
//! ```
//!
//! As for convolutions: a byte picks from a table of edges, reads past the end give 0, every string of bytes of a
//! known version is a valid case, sizes are halved at random until the work is small, and tables are frozen with the
//! version.

use kernels::Activation;
use kernels::activation::gated::Gated;
use kernels::conv::{Layout, Padding, Shape};
use kernels::norm::{batch, group};
use kernels::pool::Pool2dSpec;
use kernels::rotary::{self, Pairing};

use super::call::Values;
use super::case::{Kernel, SmallCase};
use crate::data::random;
use crate::decode::Bytes;
use crate::norm::Norm;

/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 0;
/// As many bytes as a case can use.
pub const MAX_LEN: usize = 28;

/// Elements of an operand of nearly all cases, and of few: enough for several threads.
const WORK: [usize; 2] = [1 << 11, 1 << 16];

const EDGES: [usize; 32] = [
    1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 15, 16, 17, 21, 24, 31, 32, 33, 40, 47, 63, 64, 65, 67, 96, 127, 129, 130,
    257, 300,
];
const LONG: [usize; 16] = [63, 64, 65, 129, 255, 257, 511, 513, 1000, 1025, 2049, 4099, 16_383, 16_385, 33_000, 50_021];
const FEW: [usize; 8] = [0, 1, 1, 2, 2, 3, 4, 5];
const KERNELS: [usize; 8] = [1, 2, 2, 3, 3, 4, 5, 7];
const STRIDES: [usize; 8] = [1, 1, 2, 2, 2, 3, 4, 9];
const DILATIONS: [usize; 8] = [1, 1, 1, 1, 1, 2, 2, 3];

/// The bytes of the `number`-th random case.
pub fn random_bytes(number: u64) -> [u8; MAX_LEN] {
    let mut bytes = std::array::from_fn(|i| (random(number, i as u64) >> 24) as u8);
    bytes[0] = VERSION;
    bytes
}

/// What every kernel is made from.
struct Parts {
    sizes: [u8; 6],
    flags: u8,
    limit: usize,
    seed: u64,
}

impl Parts {
    /// A size by its byte.
    fn size(&self, at: usize, table: &[usize]) -> usize {
        table[usize::from(self.sizes[at]) & (table.len() - 1)]
    }

    /// Sizes whose product stays within the limit.
    fn shape<const N: usize>(&self, mut sizes: [usize; N]) -> [usize; N] {
        for step in 0.. {
            if sizes.iter().product::<usize>() <= self.limit {
                break;
            }
            let one = &mut sizes[random(self.seed, step) as usize % N];
            *one = (*one / 2).max(1);
        }
        sizes
    }

    /// A length: nothing, an edge, or a long one.
    fn len(&self) -> usize {
        let table: &[usize] = if self.sizes[0] & 3 == 0 { &LONG } else { &EDGES };
        let [len] = self.shape([self.size(1, table) * (1 + usize::from(self.sizes[2] & 3))]);
        if self.sizes[0] >> 2 == 0 { 0 } else { len }
    }

    /// Rows and columns: a few long rows, many short ones, or anything.
    fn rows(&self) -> [usize; 2] {
        match self.sizes[2] & 3 {
            0 => self.shape([self.size(0, &FEW).max(1), self.size(1, &LONG)]),
            1 => self.shape([self.size(0, &LONG), self.size(1, &FEW).max(1)]),
            _ => self.shape([self.size(0, &EDGES), self.size(1, &EDGES)]),
        }
    }

    fn layout(&self) -> Layout {
        if self.flags & 1 == 0 { Layout::Nchw } else { Layout::Nhwc }
    }

    fn activation(&self) -> Activation {
        match self.flags >> 4 & 7 {
            0 => Activation::Identity,
            1 | 2 => Activation::Relu,
            3 => Activation::Clamp { low: 0.0, high: 6.0 },
            4 => Activation::Clamp { low: -1.5, high: -0.5 },
            5 | 6 => Activation::Sigmoid,
            _ => Activation::Tanh,
        }
    }

    /// Channels and images.
    fn image(&self) -> (Shape, usize) {
        let sizes = [self.size(0, &FEW), self.size(1, &EDGES), self.size(2, &EDGES), self.size(3, &EDGES)];
        let [batch, channels, height, width] = self.shape(sizes);
        (Shape::new(batch, height, width), channels)
    }
}

/// A valid case, or `None` for an unknown version.
pub fn small(data: &[u8]) -> Option<SmallCase> {
    let mut bytes = Bytes::new(data);
    if bytes.byte() != VERSION {
        return None;
    }
    let kind = bytes.byte();
    let sizes = std::array::from_fn(|_| bytes.byte());
    let (flags, data, size) = (bytes.byte(), bytes.byte(), bytes.byte());
    let limit = WORK[usize::from(size & 31 == 31)];
    let parts = Parts { sizes, flags, limit, seed: u64::from(bytes.word()) };
    let data = Values::ALL[usize::from(data) & 3];
    Some(SmallCase { kernel: kernel(kind, &parts, &mut bytes), data, seed: parts.seed, isa: None, threads: None })
}

fn kernel(kind: u8, parts: &Parts, bytes: &mut Bytes) -> Kernel {
    let flag = |bit: u8| parts.flags >> bit & 1 == 1;
    match kind & 31 {
        0..3 => {
            // Work, not elements: a layer multiplies.
            let [batch, i, o] = parts.shape([parts.size(0, &EDGES), parts.size(1, &EDGES), parts.size(2, &EDGES)]);
            let batch = if flag(1) { batch } else { batch * usize::from(parts.size(3, &FEW) > 0) };
            Kernel::Linear([batch, i, o], parts.activation(), flag(2))
        }
        3..7 => {
            let (spec, shape, channels) = pool(parts, bytes, true);
            Kernel::MaxPool(spec, shape, channels)
        }
        7..10 => {
            let (spec, shape, channels) = pool(parts, bytes, false);
            Kernel::AveragePool(spec, shape, channels)
        }
        10 => {
            let (shape, channels) = parts.image();
            let output = [parts.size(4, &EDGES) % 9 + 1, parts.size(5, &EDGES) % 9 + 1];
            Kernel::AdaptivePool(output, parts.layout(), shape, channels)
        }
        11 | 12 => Kernel::Activation(parts.activation(), parts.len()),
        13 | 14 => Kernel::Gated(Gated::ALL[usize::from(parts.flags >> 4 & 3)], parts.len()),
        15 => Kernel::Dropout(
            [0.0, 0.1, 0.5, 0.25, 0.75, 0.9, 0.999, 1.0][usize::from(parts.flags >> 4 & 7)],
            parts.len(),
        ),
        16 | 17 => {
            let [rows, columns] = parts.rows();
            Kernel::Softmax([rows, columns, 1], true, flag(1))
        }
        18 | 19 => {
            let sizes = [parts.size(0, &FEW), parts.size(1, &EDGES), parts.size(2, &EDGES)];
            Kernel::Softmax(parts.shape(sizes), false, flag(1))
        }
        20 | 21 => Kernel::CrossEntropy(parts.rows()),
        22 => Kernel::MeanSquare(parts.len().max(1)),
        23 | 24 => Kernel::Norm(Norm::Layer(parts.rows()), flag(1) && flag(2)),
        25 => Kernel::Norm(Norm::Rms(parts.rows()), flag(1) && flag(2)),
        26 => {
            let (groups, each) = (1 + parts.size(1, &FEW), 1 + parts.size(2, &FEW));
            let [batch, channels, pixels] =
                parts.shape([parts.size(0, &FEW).max(1), groups * each, parts.size(3, &EDGES)]);
            let groups = if channels.is_multiple_of(groups) { groups } else { 1 };
            Kernel::Norm(Norm::Group(group::Shape { batch, channels, pixels, groups }), flag(1) && flag(2))
        }
        27 | 28 => {
            let sizes = [parts.size(0, &FEW).max(1), parts.size(1, &EDGES), parts.size(2, &EDGES)];
            let [batch, channels, pixels] = parts.shape(sizes);
            let shape = batch::Shape { batch, channels, pixels, layout: parts.layout() };
            Kernel::Norm(Norm::Batch(shape), flag(1) && flag(2))
        }
        29 => {
            let sizes = [parts.size(0, &FEW), parts.size(1, &EDGES), parts.size(2, &FEW).max(1), parts.size(3, &EDGES)];
            let [outer, length, inner, head_dim] = parts.shape(sizes);
            let shape = rotary::Shape { outer, length, inner, head_dim };
            let dim = if flag(2) { head_dim } else { parts.size(4, &EDGES).min(head_dim) } & !1;
            let pairing = if flag(1) { Pairing::Half } else { Pairing::Interleaved };
            Kernel::Rotary(pairing, dim, shape, parts.size(5, &EDGES) - 1)
        }
        _ => {
            let [rows, columns] = parts.rows();
            let [count, _] = parts.shape([parts.size(3, &EDGES), columns]);
            Kernel::Embedding([rows, columns], count)
        }
    }
}

/// A window that fits its image. Averages are not dilated.
fn pool(parts: &Parts, bytes: &mut Bytes, dilated: bool) -> (Pool2dSpec, Shape, usize) {
    let (mut shape, channels) = parts.image();
    let mut pair = |table: &[usize]| [bytes.pick(table), bytes.pick(table)];
    let (kernel, stride) = (pair(&KERNELS), pair(&STRIDES));
    let drawn = pair(&DILATIONS);
    let dilation = if dilated { drawn } else { [1, 1] };
    // Small square windows have kernels of their own.
    let square = parts.flags & 0x0c == 0x0c;
    let (kernel, stride, dilation) =
        if square { ([2 + kernel[0] % 2; 2], [1 + stride[0] % 2; 2], [1, 1]) } else { (kernel, stride, dilation) };
    let window = [0, 1].map(|axis| (kernel[axis] - 1) * dilation[axis] + 1);
    let mut padding = |axis: usize| usize::from(bytes.byte()) % (window[axis] / 2 + 1);
    let padding = Padding { top: padding(0), bottom: padding(0), left: padding(1), right: padding(1) };
    let spec = Pool2dSpec::new(kernel)
        .stride(stride)
        .dilation(dilation)
        .padding(padding)
        .layout(parts.layout())
        .ceil_mode(parts.flags >> 4 & 1 == 1)
        .count_include_pad(parts.flags >> 5 & 1 == 1);
    shape.height = shape.height.max(window[0].saturating_sub(padding.top + padding.bottom)).max(1);
    shape.width = shape.width.max(window[1].saturating_sub(padding.left + padding.right)).max(1);
    (spec, shape, channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_a_case_whose_line_leads_back_to_it() {
        for number in 0..20_000u64 {
            let bytes = random_bytes(number);
            let case = small(&bytes[..number as usize % (MAX_LEN + 1)]).unwrap();
            assert_eq!(case.to_string().parse(), Ok(case), "{case}");
        }
        assert_eq!(small(&[VERSION + 1]), None);
    }
}
