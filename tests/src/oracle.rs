//! What a convolution must give: a reference in f64, and how far from it a result may be.
//!
//! One loop over all products computes each result in f64 together with `S`, the sum of its terms'
//! magnitudes. From there two oracles judge:
//!
//! - *Exact*: every term is a multiple of `q`, and `S <= 2^24 q`. Partial sums in any order are floats, so the result
//!   must be the reference itself (the sign of a zero aside).
//! - *Bound*: a term passes through at most `n` roundings, so the result is within `gamma_n S` of the truth, `gamma_n =
//!   n u / (1 - n u)`, `u = 2^-24`; products may each underflow by half of the smallest number `eta`. The reference's
//!   own error, `K 2^-53 S`, is added. (N. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., chapter
//!   3.)
//!
//! NaN must meet NaN, and infinity the same infinity. A finite result must be within the bound. An infinite one is
//! accepted where partial sums of that sign can overflow, a NaN where those of both signs can.

use kernels::conv::{Algorithm, Layout, Sizes};
use kernels::reference::{
    WINOGRAD_ROUNDINGS, winograd_shadow, winograd_shadow_backward_data, winograd_shadow_backward_weights,
};
use kernels::{Activation, Error};

use crate::case::ConvCase;
use crate::data::{ConvData, DataKind, EXACT_LIMIT};
use crate::guard::{POISON, SENTINEL};

/// The unit roundoff of f32.
pub const UNIT: f64 = 1.0 / 16_777_216.0;
/// The unit roundoff of f64.
const UNIT_F64: f64 = 1.0 / 9_007_199_254_740_992.0;
/// The smallest positive f32, 2^-149.
const ETA: f64 = 1.401_298_464_324_817e-45;
/// The relative error that an activation may add beside that of its argument, in `UNIT`s: eight units in the last
/// place.
const ACTIVATION_ERROR: f64 = 16.0;
/// An exponential flushes to zero below this.
const ACTIVATION_UNDERFLOW: f64 = f32::MIN_POSITIVE as f64 * 2.0;

/// One result in f64 with its condition.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The values, before the activation.
    pub values: Vec<f64>,
    /// `S`: the sum of the magnitudes of a value's terms.
    pub magnitudes: Vec<f64>,
    /// At most so many terms make up a value.
    pub terms: usize,
    /// What is applied to the values last.
    pub activation: Activation,
}

impl Expected {
    fn zeros(len: usize, terms: usize) -> Self {
        Self { values: vec![0.0; len], magnitudes: vec![0.0; len], terms, activation: Activation::Identity }
    }

    fn add(&mut self, at: usize, term: f64) {
        self.values[at] += term;
        self.magnitudes[at] += term.abs();
    }

    /// The same values from sums of so many terms between Winograd's transforms, bounded as `kernels::reference` says:
    /// by `gamma_n` of the shadow, `n` being less than the terms and [`WINOGRAD_ROUNDINGS`].
    fn by_shadow(&self, shadow: Vec<f64>, terms: usize, data: DataKind) -> Self {
        // A bound of `terms` is for one rounding more.
        let mut terms = terms + WINOGRAD_ROUNDINGS - 1;
        // What is not finite in a tile is computed by definition. No shadow is less than the sum of magnitudes, but its
        // roundings may be fewer.
        if matches!(data, DataKind::Special | DataKind::Wide | DataKind::Huge) {
            terms = terms.max(self.terms);
        }
        let magnitudes = shadow.into_iter().zip(&self.magnitudes);
        // Shadows leave out what is not finite.
        let magnitudes = magnitudes.map(|(shadow, &own)| if own.is_finite() { shadow } else { own }).collect();
        Self { values: self.values.clone(), magnitudes, terms, activation: self.activation }
    }
}

/// All that a convolution must give.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The output.
    pub y: Expected,
    /// The gradient of the input.
    pub dx: Expected,
    /// The gradient of the weights.
    pub dw: Expected,
    /// The gradient of the bias.
    pub db: Expected,
    /// The magnitudes of bias and residual of each output, where there are any.
    addends: Vec<f64>,
}

/// The element strides of `[n, c, h, w]`. An empty image may have sides whose product overflows; nobody uses it.
fn strides(layout: Layout, channels: usize, [height, width]: [usize; 2]) -> [usize; 4] {
    let (row, pixels) = (width.wrapping_mul(channels), height.wrapping_mul(width));
    let image = pixels.wrapping_mul(channels);
    match layout {
        Layout::Nchw => [image, pixels, width, 1],
        Layout::Nhwc => [image, 1, row, channels],
    }
}

/// The outputs along an axis for which a tap, `offset` from the window's start, falls into the image.
fn outputs_of_tap(offset: usize, padding: usize, size: usize, stride: usize, outputs: usize) -> std::ops::Range<usize> {
    // o * stride + offset >= padding, and o * stride + offset < padding + size.
    let first = padding.saturating_sub(offset).div_ceil(stride);
    let end = (padding + size).saturating_sub(offset).div_ceil(stride);
    first.min(outputs)..end.min(outputs)
}

/// Tiles of an image; with dilation those of each phase apart. An axis without taps to share has none but its outputs.
fn tiles(case: &ConvCase, algorithm: Algorithm) -> usize {
    let (spec, shape) = (&case.spec, case.shape);
    let output = spec.output_size([shape.height, shape.width]).unwrap_or_default();
    let along = |axis: usize| {
        let (size, apart) = (output[axis], spec.dilation[axis]);
        let outputs = algorithm.tile().map_or(1, |tile| if spec.kernel[axis] > 1 { tile[axis] } else { 1 });
        let (each, longer) = (size / apart, size % apart);
        longer * (each + 1).div_ceil(outputs) + (apart - longer) * each.div_ceil(outputs)
    };
    along(0) * along(1)
}

impl Reference {
    /// Computes a case by its definition.
    pub fn new(case: &ConvCase, sizes: &Sizes, data: &ConvData) -> Self {
        let spec = &case.spec;
        let [kernel_height, kernel_width] = spec.kernel;
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let [out_height, out_width] = sizes.output;
        let [x_n, x_c, x_h, x_w] = strides(spec.layout, spec.in_channels, sizes.input);
        let [y_n, y_c, y_h, y_w] = strides(spec.layout, spec.out_channels, sizes.output);
        let taps = kernel_height * kernel_width;
        let pixels = case.shape.batch.saturating_mul(out_height).saturating_mul(out_width);
        let addends = usize::from(case.bias) + usize::from(case.residual);
        let mut added = vec![0.0; if addends > 0 { sizes.y_len } else { 0 }];

        let mut y = Expected::zeros(sizes.y_len, group_in * taps + addends);
        y.activation = spec.activation;
        let mut dx = Expected::zeros(sizes.x_len, group_out * taps);
        let mut dw = Expected::zeros(sizes.w_len, pixels);
        let mut db = Expected::zeros(spec.out_channels, pixels);
        for n in 0..case.shape.batch {
            for oc in 0..spec.out_channels {
                for oh in 0..out_height {
                    for ow in 0..out_width {
                        let y_at = n * y_n + oc * y_c + oh * y_h + ow * y_w;
                        db.add(oc, data.dy[y_at].into());
                        if let Some(bias) = &data.bias {
                            y.add(y_at, bias[oc].into());
                        }
                        if let Some(residual) = &data.residual {
                            y.add(y_at, residual[y_at].into());
                        }
                        if addends > 0 {
                            added[y_at] = y.magnitudes[y_at];
                        }
                    }
                }
                for g_ic in 0..group_in {
                    let ic = oc / group_out * group_in + g_ic;
                    for kh in 0..kernel_height {
                        let (top, stride) = (spec.padding.top, spec.stride[0]);
                        let tap_h = kh * spec.dilation[0];
                        for kw in 0..kernel_width {
                            let (left, stride_w) = (spec.padding.left, spec.stride[1]);
                            let tap_w = kw * spec.dilation[1];
                            let w_at = ((oc * group_in + g_ic) * kernel_height + kh) * kernel_width + kw;
                            let w = f64::from(data.weights[w_at]);
                            for oh in outputs_of_tap(tap_h, top, case.shape.height, stride, out_height) {
                                let ih = oh * stride + tap_h - top;
                                for ow in outputs_of_tap(tap_w, left, case.shape.width, stride_w, out_width) {
                                    let iw = ow * stride_w + tap_w - left;
                                    let x_at = n * x_n + ic * x_c + ih * x_h + iw * x_w;
                                    let y_at = n * y_n + oc * y_c + oh * y_h + ow * y_w;
                                    let (x, dy) = (f64::from(data.x[x_at]), f64::from(data.dy[y_at]));
                                    y.add(y_at, x * w);
                                    dx.add(x_at, dy * w);
                                    dw.add(w_at, dy * x);
                                }
                            }
                        }
                    }
                }
            }
        }
        Self { y, dx, dw, db, addends: added }
    }

    /// What a Winograd algorithm must give as `y`: the values of any other, bounded by its shadow.
    ///
    /// # Errors
    /// When the algorithm cannot do the case.
    pub fn winograd_y(&self, case: &ConvCase, data: &ConvData, algorithm: Algorithm) -> Result<Expected, Error> {
        let mut shadow = vec![0.0; self.y.values.len()];
        winograd_shadow(&case.spec, case.shape, algorithm, &data.x, &data.weights, &mut shadow)?;
        // Bias and residual are added as they are.
        for (shadow, addends) in shadow.iter_mut().zip(&self.addends) {
            *shadow += addends;
        }
        let addends = usize::from(case.bias) + usize::from(case.residual);
        Ok(self.y.by_shadow(shadow, case.spec.in_channels / case.spec.groups + addends, case.data))
    }

    /// As [`Reference::winograd_y`], for `dx`.
    ///
    /// # Errors
    /// When the algorithm cannot do the case.
    pub fn winograd_dx(&self, case: &ConvCase, data: &ConvData, algorithm: Algorithm) -> Result<Expected, Error> {
        let mut shadow = vec![0.0; self.dx.values.len()];
        winograd_shadow_backward_data(&case.spec, case.shape, algorithm, &data.dy, &data.weights, &mut shadow)?;
        Ok(self.dx.by_shadow(shadow, case.spec.out_channels / case.spec.groups, case.data))
    }

    /// As [`Reference::winograd_y`], for `dw`.
    ///
    /// # Errors
    /// When the algorithm cannot do the case.
    pub fn winograd_dw(&self, case: &ConvCase, data: &ConvData, algorithm: Algorithm) -> Result<Expected, Error> {
        let mut shadow = vec![0.0; self.dw.values.len()];
        winograd_shadow_backward_weights(&case.spec, case.shape, algorithm, &data.x, &data.dy, &mut shadow)?;
        Ok(self.dw.by_shadow(shadow, case.shape.batch * tiles(case, algorithm), case.data))
    }

    /// Whether so many of the outputs are zero, by integer data, that mistakes may hide among them.
    pub fn is_weak(&self) -> bool {
        let zeros = self.y.values.iter().filter(|&&value| value == 0.0).count();
        zeros * 10 > self.y.values.len() * 7
    }
}

/// An activation in f64.
pub fn activate(activation: Activation, value: f64) -> f64 {
    match activation {
        _ if value.is_nan() => value,
        Activation::Identity => value,
        Activation::Relu => value.max(0.0),
        Activation::Clamp { low, high } => value.max(low.into()).min(high.into()),
        Activation::Sigmoid => 1.0 / (1.0 + (-value).exp()),
        Activation::Tanh => value.tanh(),
        other => panic!("the oracle does not know the activation {other:?}"),
    }
}

/// How results are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Equal to the reference; results whose `S` exceeds `2^24 quantum` are rejected.
    Exact {
        /// Every term is a multiple of it.
        quantum: f64,
    },
    /// Within the bound.
    Bound,
}

/// What comparing found, where nothing was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Results that were judged.
    pub judged: usize,
    /// Results that data meant to be exact were too large for.
    pub rejected: usize,
    /// The largest error, in units of `u S`.
    pub worst: f64,
}

/// Judges results.
///
/// # Errors
/// A sentence about the first result that is wrong.
pub fn compare(name: &str, got: &[f32], expected: &Expected, rule: Rule) -> Result<Comparison, String> {
    if got.len() != expected.values.len() {
        return Err(format!("{name} has {} elements instead of {}", got.len(), expected.values.len()));
    }
    let mut found = Comparison::default();
    for (at, (&got, (&value, &magnitude))) in
        got.iter().zip(expected.values.iter().zip(&expected.magnitudes)).enumerate()
    {
        let wanted = activate(expected.activation, value);
        let wrong = |why: &str| {
            let bits = got.to_bits();
            Err(format!(
                "{name}[{at}] is {got:e} ({bits:#010x}) instead of {wanted:e}: {why} (sum of magnitudes {magnitude:e})"
            ))
        };
        match got.to_bits() {
            SENTINEL => return wrong("it was not written"),
            POISON => return wrong("it holds what the workspace held"),
            _ => {}
        }
        match rule {
            Rule::Exact { quantum } if magnitude.is_finite() && magnitude > EXACT_LIMIT * quantum => {
                found.rejected += 1
            }
            _ => match judge(got, value, wanted, magnitude, expected, rule) {
                Ok(ratio) => {
                    found.judged += 1;
                    found.worst = found.worst.max(ratio);
                }
                Err(why) => return wrong(&why),
            },
        }
    }
    Ok(found)
}

/// The error of one result in units of `u S`, or what is wrong with it.
fn judge(got: f32, value: f64, wanted: f64, magnitude: f64, expected: &Expected, rule: Rule) -> Result<f64, String> {
    let got = f64::from(got);
    if got == wanted || got.is_nan() && wanted.is_nan() {
        return Ok(0.0);
    }
    if wanted.is_nan() {
        return Err("NaN was lost".into());
    }
    // Infinite operands: their sums are infinities that no rounding changes.
    if !value.is_finite() && !wanted.is_finite() {
        return Err("an infinity was lost".into());
    }
    let depth = expected.terms as f64;
    let gamma = (depth + 1.0) * UNIT / (1.0 - (depth + 1.0) * UNIT);
    let pre_tolerance = match rule {
        Rule::Exact { .. } => 0.0,
        Rule::Bound => (gamma + depth * UNIT_F64 * 1.0001) * magnitude + (depth + 1.0) * ETA,
    };
    if !got.is_finite() {
        if !value.is_finite() {
            return Err("only the activation's argument is infinite".into());
        }
        let (up, down) = if rule == Rule::Bound { can_overflow(value, magnitude, depth) } else { (false, false) };
        let accepted = if got.is_nan() {
            up && down
        } else if got > 0.0 {
            up
        } else {
            down
        };
        return if accepted { Ok(0.0) } else { Err("no partial sum can overflow".into()) };
    }
    let tolerance = match expected.activation {
        Activation::Sigmoid | Activation::Tanh => {
            let slope = if expected.activation == Activation::Sigmoid { 0.25 } else { 1.0 };
            let argument_error = if pre_tolerance.is_finite() { slope * pre_tolerance } else { 0.0 };
            argument_error + ACTIVATION_ERROR * UNIT * wanted.abs() + ACTIVATION_UNDERFLOW
        }
        _ => pre_tolerance,
    };
    // An argument that can overflow saturates the activation, or is cut off by it.
    if rule == Rule::Bound {
        let (up, down) = can_overflow(value, magnitude, depth);
        let saturates = |can: bool, infinity: f64| can && got == activate(expected.activation, infinity);
        if saturates(up, f64::INFINITY) || saturates(down, f64::NEG_INFINITY) {
            return Ok(0.0);
        }
    }
    let error = (got - wanted).abs();
    if error > tolerance {
        let times = if tolerance > 0.0 { format!(", {:.3} times the bound", error / tolerance) } else { String::new() };
        return Err(format!("off by {error:e}{times}"));
    }
    let is_plain = matches!(expected.activation, Activation::Identity);
    // Where underflow rules, `u S` is no measure.
    Ok(if is_plain && magnitude > f64::from(f32::MIN_POSITIVE) / UNIT { error / (UNIT * magnitude) } else { 0.0 })
}

/// Whether a partial sum can overflow upwards, and downwards: it is at most the sum of all terms of its sign, which
/// is half of `S` plus or minus the value. Both are known up to the rounding of `S`, in f64 here and in f32 there.
fn can_overflow(value: f64, magnitude: f64, terms: f64) -> (bool, bool) {
    let slack = magnitude * (terms + 2.0) * (UNIT_F64 + UNIT);
    let overflows = |sum: f64| sum + slack >= f64::from(f32::MAX);
    (overflows((magnitude + value) / 2.0), overflows((magnitude - value) / 2.0))
}

/// Whether two results are the same to the last bit; one NaN is as good as another.
///
/// # Errors
/// A sentence about the first difference.
pub fn same_bits(name: &str, got: &[f32], wanted: &[f32]) -> Result<(), String> {
    assert_eq!(got.len(), wanted.len(), "{name}: lengths");
    for (at, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        let is_poison = |x: f32| matches!(x.to_bits(), SENTINEL | POISON);
        let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
        if !same || is_poison(got) {
            let (bits, wanted_bits) = (got.to_bits(), wanted.to_bits());
            return Err(format!("{name}[{at}] is {got:e} ({bits:#010x}) instead of {wanted:e} ({wanted_bits:#010x})"));
        }
    }
    Ok(())
}
