//! A number in f64 that knows by how much arithmetic in f32 may miss it.
//!
//! ```text
//! (a ± e)  ──►  f(a) ± (what e does to f  +  units of rounding for f itself)
//! ```
//!
//! The running error analysis of Wilkinson, "Rounding errors in algebraic processes", 1963. A sum of `n` terms is
//! charged `n + 1` units of the sum of their magnitudes, which covers every order; products and functions are charged a
//! few units more than one rounding, for a kernel may arrange its few operations in another way.

/// The rounding unit of f32.
pub const U: f64 = f32::EPSILON as f64 / 2.0;
/// What a flush to the smallest normal number may hide.
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// Sums of multiples of this are exact in f32, in any order, while their magnitudes stay below `2^24` of it.
const QUANTUM: f64 = 1.0 / 1024.0;

/// A value, and the largest error of the same value in f32. The error may be infinite: then nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Number {
    /// The value.
    pub value: f64,
    /// How far off f32 may be.
    pub error: f64,
}

impl Number {
    /// What f32 has exactly.
    pub const fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// A value with an error that comes from operands, and so many units of rounding of its own.
    pub fn rounded(value: f64, error: f64, units: f64) -> Self {
        let error = error + units * U * value.abs() + TINY;
        // Infinity times 0, or infinity less infinity.
        Self { value, error: if error.is_nan() { f64::INFINITY } else { error } }
    }

    /// The same with another sign.
    pub const fn negated(self) -> Self {
        Self { value: -self.value, error: self.error }
    }

    /// The product, with two units of rounding.
    pub fn times(self, other: Self) -> Self {
        let error = self.value.abs() * other.error + other.value.abs() * self.error + self.error * other.error;
        Self::rounded(self.value * other.value, error, 2.0)
    }

    /// The largest and the smallest that f32 may have.
    pub fn ends(self) -> [f64; 2] {
        [self.value - self.error, self.value + self.error]
    }

    /// A function that rises or falls all the way, with so many units of rounding.
    pub fn through(self, function: impl Fn(f64) -> f64, units: f64) -> Self {
        let value = function(self.value);
        let [low, high] = self.ends().map(|end| (function(end) - value).abs());
        // f64::max would leave a NaN out, which is the infinity of a domain that was left.
        Self::rounded(value, if low.is_nan() || high.is_nan() { f64::INFINITY } else { low.max(high) }, units)
    }
}

/// A sum that gathers term after term.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    value: f64,
    /// The sum of the terms' errors.
    error: f64,
    magnitude: f64,
    terms: usize,
    is_rounded: bool,
}

impl Total {
    /// Adds a term.
    pub fn add(&mut self, term: Number) {
        self.value += term.value;
        self.error += term.error;
        self.magnitude += term.value.abs();
        self.terms += 1;
        self.is_rounded |= term.error != 0.0 || (term.value / QUANTUM).fract() != 0.0;
    }

    /// Adds the product of two factors, which is rounded at most once more than the sum.
    pub fn add_product(&mut self, a: Number, b: Number) {
        let error = a.value.abs() * b.error + b.value.abs() * a.error + a.error * b.error;
        let value = a.value * b.value;
        self.add(Number { value, error: if error.is_nan() { f64::INFINITY } else { error } });
        // Not even where it is exact here: a convolution may go another way to it.
        self.is_rounded = true;
    }

    /// The sum.
    pub fn number(self) -> Number {
        let is_exact = !self.is_rounded && self.magnitude <= QUANTUM * f64::from(1 << 24);
        match (self.terms, is_exact) {
            (0, _) | (_, true) => Number::exact(self.value),
            (1, _) => Number::rounded(self.value, self.error, 1.0),
            (terms, _) => Number::rounded(self.value, self.error + (terms + 1) as f64 * U * self.magnitude, 0.0),
        }
    }
}
