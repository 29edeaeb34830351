//! Automatic differentiation, one number after the other.
//!
//! ```text
//! forward    every number that is computed is written on the tape, with its derivative by each number it came from
//! backward   from the end of the tape to its beginning:  gradient[from] += gradient[number] * derivative
//! ```
//!
//! No layer has a backward pass here: all gradients come out of the derivatives of a dozen functions of one or two
//! numbers. Nothing is shared with `nn` or `kernels`.

use super::number::{Number, Total};

/// A number on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// All numbers of a computation, in the order of computing.
#[derive(Default)]
pub struct Tape {
    values: Vec<Number>,
    /// Which numbers each came from, and the derivatives; those of number `i` end at `ends[i]`.
    from: Vec<(Id, Number)>,
    ends: Vec<usize>,
}

impl Tape {
    /// A number that comes from nowhere.
    pub fn leaf(&mut self, value: Number) -> Id {
        self.push(value, [])
    }

    fn push(&mut self, value: Number, from: impl IntoIterator<Item = (Id, Number)>) -> Id {
        self.values.push(value);
        self.from.extend(from);
        self.ends.push(self.from.len());
        Id(self.values.len() - 1)
    }

    /// The value of a number.
    pub fn value(&self, id: Id) -> Number {
        self.values[id.0]
    }

    /// The sum of some numbers.
    pub fn sum(&mut self, terms: &[Id]) -> Id {
        let mut total = Total::default();
        terms.iter().for_each(|&term| total.add(self.value(term)));
        self.push(total.number(), terms.iter().map(|&term| (term, Number::exact(1.0))))
    }

    /// The sum of products of pairs, and of a further term.
    pub fn dot(&mut self, pairs: &[(Id, Id)], bias: Option<Id>) -> Id {
        let (mut total, mut from) = (Total::default(), Vec::with_capacity(2 * pairs.len() + 1));
        for &(a, b) in pairs {
            let (x, y) = (self.value(a), self.value(b));
            total.add_product(x, y);
            from.extend([(a, y), (b, x)]);
        }
        if let Some(bias) = bias {
            total.add(self.value(bias));
            from.push((bias, Number::exact(1.0)));
        }
        self.push(total.number(), from)
    }

    /// The product of two numbers.
    pub fn product(&mut self, a: Id, b: Id) -> Id {
        let (x, y) = (self.value(a), self.value(b));
        self.push(x.times(y), [(a, y), (b, x)])
    }

    /// A number times a constant, which f32 rounds.
    pub fn scaled(&mut self, a: Id, factor: f64) -> Id {
        let factor = Number::rounded(factor, 0.0, 1.0);
        self.push(self.value(a).times(factor), [(a, factor)])
    }

    /// The same with another sign.
    pub fn negated(&mut self, a: Id) -> Id {
        self.push(self.value(a).negated(), [(a, Number::exact(-1.0))])
    }

    /// `e` to the power of `a - shift`. In f32 the exponent is a difference of numbers as large as `size`, rounded up
    /// to four times; the function errs by 1.1 ULP.
    pub fn exp(&mut self, a: Id, shift: f64, size: f64) -> Id {
        let x = self.value(a);
        let exponent = Number::rounded(x.value - shift, x.error + 4.0 * super::number::U * size, 0.0);
        let y = exponent.through(f64::exp, 3.0);
        self.push(y, [(a, y)])
    }

    /// The natural logarithm.
    pub fn ln(&mut self, a: Id) -> Id {
        let x = self.value(a);
        self.push(x.through(f64::ln, 3.0), [(a, x.through(|x| 1.0 / x, 2.0))])
    }

    /// `1 / a`, of a positive number.
    pub fn inverse(&mut self, a: Id) -> Id {
        let x = self.value(a);
        let of = |f: fn(f64) -> f64| move |x: f64| if x > 0.0 { f(x) } else { f64::NAN };
        self.push(x.through(of(|x| 1.0 / x), 2.0), [(a, x.through(of(|x| -1.0 / (x * x)), 4.0))])
    }

    /// `1 / sqrt(a)`, of a positive number.
    pub fn inverse_root(&mut self, a: Id) -> Id {
        let x = self.value(a);
        let of = |f: fn(f64) -> f64| move |x: f64| if x > 0.0 { f(x) } else { f64::NAN };
        self.push(x.through(of(|x| x.powf(-0.5)), 4.0), [(a, x.through(of(|x| -0.5 * x.powf(-1.5)), 8.0))])
    }

    /// `1 / (1 + exp(-a))`: at most 2.5 ULP.
    pub fn sigmoid(&mut self, a: Id) -> Id {
        let y = self.value(a).through(|x| 1.0 / (1.0 + (-x).exp()), 5.0);
        let rest = Number::rounded(1.0 - y.value, y.error, 1.0);
        self.push(y, [(a, y.times(rest))])
    }

    /// The hyperbolic tangent: at most 1.8 ULP.
    pub fn tanh(&mut self, a: Id) -> Id {
        let y = self.value(a).through(f64::tanh, 4.0);
        let square = y.times(y);
        // 1 - y^2 is rounded in units of 1.
        let slope = Number::rounded(1.0 - square.value, square.error + super::number::U, 1.0);
        self.push(y, [(a, slope)])
    }

    /// The largest of some numbers, or 0 if that is a candidate and larger. The gradient goes to all that equal it, as
    /// nodes of arithmetic have it, or to the first alone, as pooling has it; to none where 0 wins or is equal, as for
    /// ReLU. Where roundings decide, a derivative errs by 1.
    pub fn largest(&mut self, candidates: &[Id], zero: bool, first_alone: bool) -> Id {
        let numbers: Vec<Number> = candidates.iter().map(|&id| self.value(id)).collect();
        let mut all = numbers.clone();
        all.extend(zero.then_some(Number::exact(0.0)));
        let most = all.iter().fold(f64::NEG_INFINITY, |most, x| most.max(x.value));
        let error = all.iter().fold(0.0, |error: f64, x| error.max(x.error));
        let (mut from, mut is_taken) = (Vec::with_capacity(candidates.len()), false);
        for (at, (&id, &x)) in candidates.iter().zip(&numbers).enumerate() {
            let others =
                || all.iter().enumerate().filter(|&(other, _)| other != at && candidates.get(other) != Some(&id));
            let is_exact = |y: &Number| x.error == 0.0 && y.error == 0.0;
            let is_apart = |y: &Number| (x.value - y.value).abs() > x.error + y.error;
            let is_sure = others().all(|(_, y)| is_exact(y) || is_apart(y))
                || others().any(|(_, y)| y.value - y.error > x.value + x.error);
            let loses_to_zero = zero && x.value <= 0.0;
            let wins = x.value == most && !loses_to_zero && !(first_alone && is_taken);
            is_taken |= wins;
            from.push((id, Number { value: f64::from(u8::from(wins)), error: if is_sure { 0.0 } else { 1.0 } }));
        }
        self.push(Number { value: most, error }, from)
    }

    /// The gradient of every number, given those of some.
    pub fn backward(&self, of: &[(Id, Number)]) -> Gradients {
        let mut totals = vec![Total::default(); self.values.len()];
        for &(id, gradient) in of {
            totals[id.0].add(gradient);
        }
        let mut gradients = vec![Number::default(); self.values.len()];
        for at in (0..self.values.len()).rev() {
            gradients[at] = totals[at].number();
            let start = if at == 0 { 0 } else { self.ends[at - 1] };
            for &(from, derivative) in &self.from[start..self.ends[at]] {
                totals[from.0].add_product(gradients[at], derivative);
            }
        }
        Gradients(gradients)
    }
}

/// The gradient of each number on a tape.
pub struct Gradients(Vec<Number>);

impl Gradients {
    /// That of a number.
    pub fn of(&self, id: Id) -> Number {
        self.0[id.0]
    }
}
