//! From bytes to a convolution: what fuzzing, replay and random tests all draw their cases from.
//!
//! ```text
//! byte   0        1          2..        then
//!        version  structure  the dimensions, one byte each     flags  activation  data  size  seed (4 bytes)
//!                 15 = raw   the dimensions, two bytes each
//! ```
//!
//! A byte picks from a table of edges (neighbours of vector widths, of tiles, of powers of two); the structure
//! picks the tables. Reads past the end give 0. Every string of bytes of a known version is a valid convolution:
//! images grow until the kernel fits, and dimensions are halved until the work is small, at random, so that
//! single ones stay large. Tables have a power of two of entries and are frozen with the version: a change
//! of any of them is a new version, so that old inputs keep their meaning.

use kernels::Activation;
use kernels::conv::{Layout, Padding};

use crate::case::ConvCase;
use crate::data::{DataKind, random};

/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 0;
/// As many bytes as a case can use.
pub const MAX_LEN: usize = 42;

/// The structure that stores dimensions as they are.
const RAW: u8 = 15;

/// No operand of a decoded case is longer, and no pass multiplies more often.
pub const MAX_WORK: u64 = 1 << 15;
/// The work of most cases: small ones find the same mistakes sooner.
const SMALL_WORK: u64 = 1 << 12;

const BATCHES: [usize; 8] = [1, 1, 1, 1, 2, 2, 3, 5];
const CHANNELS: [usize; 16] = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 33, 64];
const WIDE: [usize; 16] = [48, 49, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257, 320, 512, 513];
const FEW: [usize; 8] = [1, 1, 2, 2, 3, 3, 4, 5];
const GROUPS: [usize; 8] = [2, 2, 3, 3, 4, 5, 8, 17];
const SIZES: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 23, 33];
const LONG: [usize; 16] = [31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129, 255, 257, 511, 1025, 1603];
const KERNELS: [usize; 16] = [1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 7, 8, 9, 11, 13];
const STRIDES: [usize; 8] = [1, 1, 1, 2, 2, 3, 4, 7];
const BIG_STRIDES: [usize; 8] = [2, 2, 2, 3, 3, 4, 5, 16];
const PADDINGS: [usize; 16] = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 7];
const BIG_PADDINGS: [usize; 8] = [3, 5, 8, 9, 16, 17, 29, 100];
const DILATIONS: [usize; 8] = [1, 2, 2, 2, 3, 4, 5, 9];
const BIG_DILATIONS: [usize; 8] = [2, 3, 5, 8, 17, 18, 40, 100];

pub(crate) const EXACT: [DataKind; 8] = [
    DataKind::Integers,
    DataKind::Integers,
    DataKind::Indexed,
    DataKind::Eighths,
    DataKind::Powers,
    DataKind::Special,
    DataKind::Special,
    DataKind::Zeros,
];
pub(crate) const BOUND: [DataKind; 8] = [
    DataKind::Uniform,
    DataKind::Uniform,
    DataKind::Positive,
    DataKind::Cancelling,
    DataKind::Wide,
    DataKind::Wide,
    DataKind::Subnormal,
    DataKind::Huge,
];

/// Which kinds of data a case may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// Those whose results are exact.
    Exact,
    /// Those with a bound.
    Bound,
    /// Three exact ones to one with a bound.
    Any,
}

/// Reads bytes in order, and zeros after them.
#[derive(Clone, Debug)]
pub struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// Starts at the first byte.
    pub const fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((&byte, rest)) => {
                self.rest = rest;
                byte
            }
            None => 0,
        }
    }

    /// The next two bytes, the low one first.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// The next four bytes, the low one first.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// An entry of a table, by the next byte. The table has a power of two of entries.
    pub fn pick<T: Copy>(&mut self, table: &[T]) -> T {
        debug_assert!(table.len().is_power_of_two());
        table[usize::from(self.byte()) & (table.len() - 1)]
    }
}

/// The bytes of the `number`-th random case.
pub fn random_bytes(number: u64) -> [u8; MAX_LEN] {
    let mut bytes: [u8; MAX_LEN] = std::array::from_fn(|i| (random(number, i as u64) >> 24) as u8);
    bytes[0] = VERSION;
    // Raw dimensions would nearly all be too large, and end as the same few small ones.
    bytes[1] %= RAW;
    bytes
}

/// The activation that the low four bits of a byte stand for.
pub(crate) fn activation(byte: u8) -> Activation {
    match byte & 15 {
        0..9 => Activation::Identity,
        9..12 => Activation::Relu,
        12 => Activation::Clamp { low: 0.0, high: 6.0 },
        13 => Activation::Clamp { low: -100.0, high: -0.5 },
        14 => Activation::Sigmoid,
        _ => Activation::Tanh,
    }
}

/// A valid case, or `None` for an unknown version.
pub fn conv(data: &[u8], kinds: Kinds) -> Option<ConvCase> {
    let mut bytes = Bytes::new(data);
    if bytes.byte() != VERSION {
        return None;
    }
    let mut case = dimensions(&mut bytes);
    let flags = bytes.byte();
    case.spec.layout = if flags & 1 == 0 { Layout::Nchw } else { Layout::Nhwc };
    case.bias = flags & 2 != 0;
    case.residual = flags & 12 == 12;
    case.spec.activation = activation(bytes.byte());
    let kind = bytes.byte();
    case.data = match kinds {
        Kinds::Exact => EXACT[usize::from(kind & 7)],
        Kinds::Bound => BOUND[usize::from(kind & 7)],
        Kinds::Any if kind & 0x30 == 0x30 => BOUND[usize::from(kind & 7)],
        Kinds::Any => EXACT[usize::from(kind & 7)],
    };
    let work = if bytes.byte() & 7 == 7 { MAX_WORK } else { SMALL_WORK };
    case.seed = u64::from(bytes.word());
    shrink_to(&mut case, work);
    Some(case)
}

/// Structure and dimensions, whatever their size.
fn dimensions(bytes: &mut Bytes) -> ConvCase {
    let structure = bytes.byte() & 15;
    if structure == RAW {
        let mut next = || usize::from(bytes.short());
        let (batch, in_channels, out_channels) = (next(), next(), next());
        let (height, width, kernel) = (next(), next(), [next(), next()]);
        return ConvCase::new(in_channels, out_channels, kernel)
            .batch(batch)
            .image(height, width)
            .stride(next(), next())
            .padding(next(), next(), next(), next())
            .dilation(next(), next())
            .groups(next());
    }
    let batch = bytes.pick(&BATCHES);
    let (group_in, group_out) = (bytes.pick(&CHANNELS), bytes.pick(&CHANNELS));
    let mut case = ConvCase::new(group_in, group_out, [bytes.pick(&KERNELS), bytes.pick(&KERNELS)])
        .batch(batch)
        .image(bytes.pick(&SIZES), bytes.pick(&SIZES));
    let mut stride = [bytes.pick(&STRIDES), bytes.pick(&STRIDES)];
    let mut padding: [usize; 4] = std::array::from_fn(|_| bytes.pick(&PADDINGS));
    let mut dilation = [1, 1];
    let mut groups = 1;
    // What the structure changes is drawn from bytes of its own, so that a change of structure alone keeps the rest.
    let mut extra: [u8; 4] = std::array::from_fn(|_| bytes.byte());
    let mut pick = |table: &[usize]| {
        extra.rotate_left(1);
        table[usize::from(extra[3]) & (table.len() - 1)]
    };
    match structure {
        // Anything, with dilation.
        0 => dilation = [pick(&STRIDES), pick(&STRIDES)],
        // Pointwise.
        1 => {
            case.spec.kernel = [1, 1];
            case.spec.in_channels = pick(&WIDE);
        }
        // Depthwise, with multipliers.
        2 | 3 => {
            groups = if structure == 2 { pick(&CHANNELS) } else { pick(&WIDE) };
            case.spec.in_channels = 1;
            case.spec.out_channels = [1, 1, 2, 3][pick(&[0, 1, 2, 3])];
        }
        // Grouped.
        4 | 5 => {
            groups = pick(&GROUPS);
            case.spec.in_channels = pick(&FEW);
            case.spec.out_channels = if structure == 4 { pick(&FEW) } else { group_out };
        }
        // A first layer.
        6 => {
            case.spec.in_channels = pick(&FEW);
            case.spec.out_channels = pick(&CHANNELS);
        }
        // The common 3x3, at odd sizes, and what else has tiles.
        7 => {
            let number = pick(&[0, 1, 2, 3, 4, 5, 6, 7]);
            let [taps, step, before] =
                [[3, 1, 1], [3, 1, 1], [3, 2, 1], [3, 2, 0], [4, 2, 1], [5, 2, 2], [5, 1, 2], [7, 2, 3]][number];
            case.spec.kernel = [taps; 2];
            stride = [step; 2];
            padding = [before; 4];
        }
        // Strides that skip parts of the image.
        8 => stride = [pick(&BIG_STRIDES), pick(&BIG_STRIDES)],
        // Dilations, some larger than the image.
        9 => {
            dilation = [pick(&DILATIONS), pick(&BIG_DILATIONS)];
            padding[pick(&[0, 1, 2, 3])] = pick(&BIG_PADDINGS);
        }
        // Outputs made of padding alone.
        10 => {
            padding[pick(&[0, 1, 2, 3])] = pick(&BIG_PADDINGS);
            padding[pick(&[0, 1, 2, 3])] = pick(&BIG_PADDINGS);
        }
        // The kernel is the image.
        11 => {
            case.spec.kernel = [case.shape.height, case.shape.width];
            padding = [0; 4];
        }
        // One long row or column, a kernel along it.
        12 => {
            let (long, flip) = (pick(&LONG), pick(&[0, 1]) == 1);
            let along = case.spec.kernel[0];
            case.spec.kernel = if flip { [along, 1] } else { [1, along] };
            case = if flip { case.image(long, 1) } else { case.image(1, long) };
            case.spec.in_channels = pick(&FEW);
        }
        // Many channels, a small image.
        13 => {
            case.spec.in_channels = pick(&WIDE);
            case.spec.out_channels = pick(&WIDE);
            case = case.image(pick(&FEW), pick(&FEW));
        }
        // Nothing: no image, or images without rows or columns.
        _ => match pick(&[0, 1, 2, 3]) {
            0 | 1 => case.shape.batch = 0,
            2 => case.shape.height = 0,
            _ => case.shape.width = 0,
        },
    }
    case.spec.in_channels *= groups;
    case.spec.out_channels *= groups;
    case.groups(groups)
        .stride(stride[0], stride[1])
        .padding(padding[0], padding[1], padding[2], padding[3])
        .dilation(dilation[0], dilation[1])
}

/// Makes a case valid, and halves dimensions until neither work nor memory exceeds the limit.
fn shrink_to(case: &mut ConvCase, work: u64) {
    for step in 0.. {
        make_valid(case);
        if is_within(case, work) {
            break;
        }
        let groups = case.spec.groups;
        let (mut group_in, mut group_out) = (case.spec.in_channels / groups, case.spec.out_channels / groups);
        let mut groups = groups;
        {
            let Padding { top, bottom, left, right } = &mut case.spec.padding;
            let [kernel_height, kernel_width] = &mut case.spec.kernel;
            let [dilation_height, dilation_width] = &mut case.spec.dilation;
            let dimensions: [&mut usize; 14] = [
                &mut case.shape.batch,
                &mut case.shape.height,
                &mut case.shape.width,
                kernel_height,
                kernel_width,
                dilation_height,
                dilation_width,
                &mut group_in,
                &mut group_out,
                &mut groups,
                top,
                bottom,
                left,
                right,
            ];
            let one = random(case.seed, step) as usize % dimensions.len();
            for (index, dimension) in dimensions.into_iter().enumerate() {
                // Paddings may vanish, all else ends at 1 (or at the 0 that it was).
                let least = usize::from(index < 10 && *dimension > 0);
                if index == one {
                    *dimension = (*dimension / 2).max(least);
                }
            }
        }
        case.spec.groups = groups;
        case.spec.in_channels = group_in * groups;
        case.spec.out_channels = group_out * groups;
    }
}

/// Raises what may not be 0, makes channels a multiple of the groups, and images as large as the kernel.
fn make_valid(case: &mut ConvCase) {
    let spec = &mut case.spec;
    spec.groups = spec.groups.max(1);
    for channels in [&mut spec.in_channels, &mut spec.out_channels] {
        *channels = (*channels).max(1).next_multiple_of(spec.groups);
    }
    let Padding { top, bottom, left, right } = spec.padding;
    let shape = &mut case.shape;
    for (axis, (size, padding)) in
        [(&mut shape.height, top + bottom), (&mut shape.width, left + right)].into_iter().enumerate()
    {
        for dimension in [&mut spec.kernel[axis], &mut spec.stride[axis], &mut spec.dilation[axis]] {
            *dimension = (*dimension).max(1);
        }
        let window = (spec.kernel[axis] - 1) * spec.dilation[axis] + 1;
        *size = (*size).max(window.saturating_sub(padding));
    }
}

fn is_within(case: &ConvCase, work: u64) -> bool {
    let Ok(sizes) = case.spec.sizes(case.shape) else { return false };
    let memory = sizes.x_len.max(sizes.y_len).max(sizes.w_len) as u64;
    case.macs().is_some_and(|macs| macs <= work) && memory <= MAX_WORK
}

/// The bytes of a case, for seed corpora: raw dimensions, which decoding leaves alone where they are small enough.
/// Activations and kinds of data that the bytes cannot say are replaced by the first.
pub fn encode(case: &ConvCase) -> Vec<u8> {
    let spec = &case.spec;
    let Padding { top, bottom, left, right } = spec.padding;
    let dimensions = [
        case.shape.batch,
        spec.in_channels,
        spec.out_channels,
        case.shape.height,
        case.shape.width,
        spec.kernel[0],
        spec.kernel[1],
        spec.stride[0],
        spec.stride[1],
        top,
        bottom,
        left,
        right,
        spec.dilation[0],
        spec.dilation[1],
        spec.groups,
    ];
    let mut bytes = vec![VERSION, RAW];
    for dimension in dimensions {
        bytes.extend(u16::try_from(dimension).unwrap_or(u16::MAX).to_le_bytes());
    }
    let layout = u8::from(spec.layout == Layout::Nhwc);
    bytes.push(layout | (u8::from(case.bias) << 1) | (u8::from(case.residual) * 12));
    bytes.push(match spec.activation {
        Activation::Relu => 9,
        Activation::Clamp { .. } => 12,
        Activation::Sigmoid => 14,
        Activation::Tanh => 15,
        _ => 0,
    });
    let kind = |table: [DataKind; 8]| table.iter().position(|&kind| kind == case.data);
    let exact = kind(EXACT).map(|at| at as u8);
    bytes.push(exact.or(kind(BOUND).map(|at| 0x30 | at as u8)).unwrap_or(0));
    bytes.push(7);
    bytes.extend((case.seed as u32).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_a_valid_convolution_of_little_work() {
        for number in 0..20_000u64 {
            let mut bytes = random_bytes(number);
            if number % 4 == 0 {
                bytes[1] = (random(number, 99) >> 20) as u8;
            }
            let case = conv(&bytes[..(number % 60).min(MAX_LEN as u64) as usize], Kinds::Any).unwrap();
            assert!(is_within(&case, MAX_WORK), "{case}");
        }
    }

    #[test]
    fn an_unknown_version_is_no_case() {
        assert_eq!(conv(&[VERSION + 1], Kinds::Any), None);
    }

    #[test]
    fn the_empty_input_is_a_case() {
        assert!(conv(&[], Kinds::Any).is_some());
    }

    #[test]
    fn an_encoded_case_is_decoded_to_itself() {
        let case = ConvCase::new(6, 9, [3, 2])
            .batch(2)
            .image(5, 7)
            .stride(2, 1)
            .padding(1, 0, 2, 3)
            .dilation(1, 2)
            .groups(3)
            .nhwc()
            .with_bias()
            .with_residual()
            .relu()
            .seed(77);
        for case in [case, case.data(DataKind::Wide), case.batch(0), case.data(DataKind::Special)] {
            assert_eq!(conv(&encode(&case), Kinds::Any), Some(case));
            assert!(encode(&case).len() <= MAX_LEN);
        }
    }

    #[test]
    fn the_edges_that_matter_are_all_reached() {
        let mut seen = [false; 12];
        for number in 0..3_000 {
            let case = conv(&random_bytes(number), Kinds::Any).unwrap();
            let (spec, shape, sizes) = (case.spec, case.shape, case.spec.sizes(case.shape).unwrap());
            let Padding { top, right, .. } = spec.padding;
            for (at, reached) in [
                shape.batch == 0,
                shape.batch > 1,
                sizes.x_len == 0 && sizes.y_len > 0,
                spec.groups > 1 && spec.stride[0] > 1,
                spec.groups > 1 && spec.groups == spec.in_channels,
                spec.dilation[1] > shape.width,
                spec.stride[0] > spec.kernel[0] && sizes.output[0] > 1,
                top >= spec.kernel[0] && right >= spec.kernel[1],
                sizes.output == [1, 1] && spec.kernel[0] > 1,
                spec.in_channels > 200,
                shape.width > 1_000,
                spec.kernel[0] % 2 == 0 && spec.layout == Layout::Nhwc,
            ]
            .into_iter()
            .enumerate()
            {
                seen[at] |= reached;
            }
        }
        assert_eq!(seen, [true; 12]);
    }
}
