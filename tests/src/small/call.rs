//! A call of a kernel: what goes in, what must come out, and how far from it a result may be.

use std::fmt;
use std::str::FromStr;

use kernels::{Error, Execution};

use crate::data::{below, random};
use crate::guard::{POISON, SENTINEL};

/// Runs a kernel on inputs, outputs and a workspace.
pub(super) type Run =
    dyn Fn(&[&[f32]], &mut [&mut [f32]], &mut [f32], Execution<'_>) -> Result<(), Error> + Send + Sync;

/// A call of a kernel.
pub(super) struct Call {
    pub name: &'static str,
    pub inputs: Vec<(&'static str, Vec<f32>)>,
    pub outputs: Vec<Output>,
    /// Floats of workspace on 1, 2 and 3 threads.
    pub workspace: [usize; 3],
    /// Whether slices of another length have to be refused: not so where any length will do.
    pub is_shaped: bool,
    pub run: Box<Run>,
}

/// What must come out.
pub struct Output {
    /// What it is called.
    pub name: &'static str,
    /// What stands in it before, if the call reads it.
    pub before: Option<Vec<f32>>,
    /// The results in f64.
    pub exact: Vec<f64>,
    /// How far from it each may be; infinity admits everything.
    pub bound: Vec<f64>,
    /// Whether it is a return value, which has no length that could be wrong.
    pub is_returned: bool,
}

impl Call {
    pub fn new(
        name: &'static str,
        inputs: Vec<(&'static str, Vec<f32>)>,
        outputs: Vec<Output>,
        run: impl Fn(&[&[f32]], &mut [&mut [f32]], &mut [f32], Execution<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        Self { name, inputs, outputs, workspace: [0; 3], is_shaped: true, run: Box::new(run) }
    }

    /// The same with a workspace.
    pub fn workspace(mut self, len: usize) -> Self {
        self.workspace = [len; 3];
        self
    }

    /// The same of a call that takes slices of any length.
    pub fn of_any_length(mut self) -> Self {
        self.is_shaped = false;
        self
    }
}

impl Output {
    /// Results that may differ by `bound(i)`. Where that is not finite there is a NaN or an infinity to be met.
    pub fn within(name: &'static str, exact: Vec<f64>, bound: impl Fn(usize) -> f64) -> Self {
        let finite = |bound: f64| if bound.is_finite() { bound } else { 0.0 };
        let bound = (0..exact.len()).map(|i| finite(bound(i))).collect();
        Self { name, before: None, exact, bound, is_returned: false }
    }

    /// Results that have to be these.
    pub fn exactly(name: &'static str, exact: &[f32]) -> Self {
        Self::within(name, wide(exact), |_| 0.0)
    }

    /// The same over what stands there before.
    pub fn over(mut self, before: Vec<f32>) -> Self {
        self.before = Some(before);
        self
    }

    /// The same as a return value.
    pub fn returned(mut self) -> Self {
        self.is_returned = true;
        self
    }

    /// The same where nothing is said about some results.
    pub fn except(mut self, is_free: impl Fn(usize) -> bool) -> Self {
        (0..self.bound.len()).filter(|&i| is_free(i)).for_each(|i| self.bound[i] = f64::INFINITY);
        self
    }

    /// Whether all results are right.
    ///
    /// # Errors
    /// A sentence about the first that is not.
    pub fn judge(&self, got: &[f32]) -> Result<(), String> {
        for (at, &got) in got.iter().enumerate() {
            let (exact, bound, name) = (self.exact[at], self.bound[at], self.name);
            match got.to_bits() {
                SENTINEL => return Err(format!("{name}[{at}] was not written")),
                POISON => return Err(format!("{name}[{at}] holds what the workspace held")),
                _ => {}
            }
            let (value, error) = (f64::from(got), (f64::from(got) - exact).abs());
            let is_right = value == exact || value.is_nan() && exact.is_nan() || error <= bound;
            if !is_right && bound < f64::INFINITY {
                let times = if bound > 0.0 { format!(", {:.3} times the bound", error / bound) } else { String::new() };
                return Err(format!("{name}[{at}] is {got:e} instead of {exact:e}: off by {error:e}{times}"));
            }
        }
        Ok(())
    }
}

/// What the operands hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Small integers: many are equal, and sums of products are exact.
    #[default]
    Integers,
    /// Uniform in (-1, 1).
    Uniform,
    /// Uniform, far from 0: what cancels.
    Shifted,
    /// Integers, and a few NaN, infinities and zeros of both signs.
    Special,
}

impl Values {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Integers, Self::Uniform, Self::Shifted, Self::Special];

    const fn name(self) -> &'static str {
        match self {
            Self::Integers => "int",
            Self::Uniform => "uniform",
            Self::Shifted => "shifted",
            Self::Special => "special",
        }
    }

    /// Whether sums of a few thousand products are exact.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Integers | Self::Special)
    }

    /// So many numbers of an operand.
    pub fn draw(self, seed: u64, operand: u64, len: usize) -> Vec<f32> {
        let stream = random(seed, operand);
        let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let integer = |bits: u64| below(bits, 9) as f32 - 4.0;
        (0..len)
            .map(|i| {
                let bits = random(stream, i as u64);
                match self {
                    Self::Integers => integer(bits),
                    Self::Uniform => unit(bits),
                    Self::Shifted => unit(bits) + 30.0,
                    Self::Special if bits & 0x1f == 0 => {
                        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][(bits >> 5 & 3) as usize]
                    }
                    Self::Special => integer(bits),
                }
            })
            .collect()
    }

    /// The same without NaN and infinities, for what has to be finite.
    pub fn finite(self) -> Self {
        if self == Self::Special { Self::Integers } else { self }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Values {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|values| values.name() == name).ok_or_else(|| format!("unknown data `{name}`"))
    }
}

/// In f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// The magnitudes, in f64.
pub(super) fn absolute(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value).abs()).collect()
}

/// As f32.
pub(super) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
