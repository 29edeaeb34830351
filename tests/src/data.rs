//! What the operands hold: pseudo-random numbers that depend on a seed and a position alone.
//!
//! In the *exact* kinds every product is a multiple of a quantum `q`, and a sum of magnitudes stays within
//! `2^24 q`. Every partial sum, in any order, fused or not, is then a float, so a kernel must give the very
//! number of the reference. The other kinds are compared within a derived bound.

use std::fmt;
use std::str::FromStr;

use crate::case::ConvCase;
use kernels::conv::Sizes;

/// Integers below this are floats, all of them.
pub const EXACT_LIMIT: f64 = 16_777_216.0;

/// What the numbers of a case are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataKind {
    /// Signed integers, as large as stays exact.
    #[default]
    Integers,
    /// Positive integers that tell their position: a swapped tap or channel changes the sum.
    Indexed,
    /// Multiples of 1/8: a conversion to integers does not pass unseen.
    Eighths,
    /// Signed powers of two.
    Powers,
    /// Mostly zeros of both signs.
    Zeros,
    /// Integers, and a NaN or an infinity at one or two places.
    Special,
    /// Uniform in (-1, 1).
    Uniform,
    /// Uniform in (0, 1): errors add up.
    Positive,
    /// Neighbours that cancel.
    Cancelling,
    /// Every exponent that a float can have: products overflow and underflow.
    Wide,
    /// An image of subnormal numbers.
    Subnormal,
    /// An image of numbers near the largest.
    Huge,
}

impl DataKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Integers,
        Self::Indexed,
        Self::Eighths,
        Self::Powers,
        Self::Zeros,
        Self::Special,
        Self::Uniform,
        Self::Positive,
        Self::Cancelling,
        Self::Wide,
        Self::Subnormal,
        Self::Huge,
    ];

    /// The quantum of sums of products, where results are exact.
    pub const fn quantum(self) -> Option<f64> {
        match self {
            Self::Integers | Self::Indexed | Self::Zeros | Self::Special => Some(1.0),
            Self::Eighths => Some(1.0 / 64.0),
            Self::Powers => Some(1.0 / 16.0),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Integers => "int",
            Self::Indexed => "indexed",
            Self::Eighths => "eighths",
            Self::Powers => "powers",
            Self::Zeros => "zeros",
            Self::Special => "special",
            Self::Uniform => "uniform",
            Self::Positive => "positive",
            Self::Cancelling => "cancelling",
            Self::Wide => "wide",
            Self::Subnormal => "subnormal",
            Self::Huge => "huge",
        }
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataKind {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("unknown data kind `{name}`"))
    }
}

/// The `counter`-th random number of a seed: SplitMix64, by position instead of by state
/// (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub fn random(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// So many numbers from -1 to 1, by a linear congruential generator.
pub fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| random()).collect()
}

/// A number below `n` from random bits.
pub(crate) fn below(bits: u64, n: u64) -> u64 {
    ((bits >> 32) * n) >> 32
}

/// Uniform in [0, 1), a multiple of 2^-24.
fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / EXACT_LIMIT as f32
}

/// Which operand is filled: each draws from a stream of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    X = 1,
    Weights,
    Bias,
    Residual,
    Dy,
}

/// The operands of a convolution.
#[derive(Clone, Debug, Default)]
pub struct ConvData {
    /// The input.
    pub x: Vec<f32>,
    /// The weights.
    pub weights: Vec<f32>,
    /// The bias, if the case has one.
    pub bias: Option<Vec<f32>>,
    /// The residual, if the case has one.
    pub residual: Option<Vec<f32>>,
    /// The gradient of the output.
    pub dy: Vec<f32>,
}

impl ConvData {
    /// Draws the operands of a case of these sizes.
    pub fn new(case: &ConvCase, sizes: &Sizes) -> Self {
        let amplitude = amplitude(case, sizes);
        let fill = |operand: Operand, len: usize| {
            let stream = random(case.seed, operand as u64);
            (0..len).map(|i| element(case.data, operand, amplitude, stream, i)).collect::<Vec<f32>>()
        };
        let mut data = Self {
            x: fill(Operand::X, sizes.x_len),
            weights: fill(Operand::Weights, sizes.w_len),
            bias: case.bias.then(|| fill(Operand::Bias, case.spec.out_channels)),
            residual: case.residual.then(|| fill(Operand::Residual, sizes.y_len)),
            dy: fill(Operand::Dy, sizes.y_len),
        };
        if case.data == DataKind::Special {
            let draw = |counter| random(case.seed ^ 0x5bec_1a15, counter);
            for place in 0..1 + below(draw(0), 4) / 3 {
                data.place_special(draw(3 * place + 1), draw(3 * place + 2), draw(3 * place + 3));
            }
        }
        data
    }

    /// Puts a NaN or an infinity into one operand: first, last or anywhere.
    fn place_special(&mut self, which: u64, at: u64, value: u64) {
        let operand = match which % 8 {
            0..3 => &mut self.x,
            3..5 => &mut self.weights,
            5 => self.bias.as_mut().unwrap_or(&mut self.x),
            6 => self.residual.as_mut().unwrap_or(&mut self.x),
            _ => &mut self.dy,
        };
        if operand.is_empty() {
            return;
        }
        let last = operand.len() as u64 - 1;
        let at = match at % 6 {
            0 => 0,
            1 => last,
            _ => below(at, last + 1),
        };
        operand[at as usize] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN][(value % 4) as usize];
    }
}

/// The largest integer whose products may be summed as often as any output of the case sums them.
fn amplitude(case: &ConvCase, sizes: &Sizes) -> u64 {
    let spec = &case.spec;
    let taps = spec.kernel[0].saturating_mul(spec.kernel[1]);
    let channels = spec.in_channels.max(spec.out_channels) / spec.groups.max(1);
    let pixels = case.shape.batch.saturating_mul(sizes.output[0]).saturating_mul(sizes.output[1]);
    // Two more for bias and residual.
    exact_amplitude(channels.saturating_mul(taps).max(pixels).saturating_add(2))
}

/// The largest integer of which so many products may be summed.
pub(crate) fn exact_amplitude(terms: usize) -> u64 {
    ((EXACT_LIMIT as u64 / terms.max(1) as u64).isqrt()).clamp(1, 255)
}

/// Element `i` of an operand.
pub(crate) fn element(kind: DataKind, operand: Operand, amplitude: u64, stream: u64, i: usize) -> f32 {
    let bits = random(stream, i as u64);
    let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
    let signed_integer = || below(bits, 2 * amplitude + 1) as f32 - amplitude as f32;
    match kind {
        DataKind::Integers | DataKind::Special => signed_integer(),
        // A prime step, so that neighbours in every dimension differ.
        DataKind::Indexed => (1 + (i as u64 * 7 + operand as u64) % amplitude.min(31)) as f32,
        DataKind::Eighths => signed_integer() / 8.0,
        DataKind::Powers => sign * f32::powi(2.0, below(bits, 5) as i32 - 2),
        DataKind::Zeros => sign * f32::from(u8::from(below(bits, 8) == 0)),
        DataKind::Uniform => 2.0 * unit(bits) - 1.0,
        DataKind::Positive => unit(bits),
        DataKind::Cancelling => {
            let pair = unit(random(stream, i as u64 / 2));
            if operand != Operand::Weights && i % 2 == 1 { -pair } else { pair }
        }
        DataKind::Wide => {
            // Any sign and exponent but that of infinities and NaNs.
            let any = f32::from_bits(bits as u32);
            if any.is_finite() { any } else { f32::MAX * sign }
        }
        DataKind::Subnormal if operand == Operand::X => f32::from_bits(bits as u32 & 0x807f_ffff),
        DataKind::Huge if operand == Operand::X => sign * f32::MAX * (0.5 + 0.5 * unit(bits)),
        DataKind::Subnormal | DataKind::Huge => 2.0 * unit(bits) - 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kind_leads_back_to_it() {
        for kind in DataKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let case = ConvCase::new(3, 5, [3, 3]).image(9, 7).data(DataKind::Wide).seed(5);
        let sizes = case.spec.sizes(case.shape).unwrap();
        let bits = |data: &ConvData| data.x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let data = ConvData::new(&case, &sizes);
        assert_eq!(bits(&data), bits(&ConvData::new(&case, &sizes)));
        assert_ne!(bits(&data), bits(&ConvData::new(&case.seed(6), &sizes)));
    }
}
