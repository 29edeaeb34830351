//! The operands of a product, and what must come out.

use super::case::{Along, GemmCase};
use crate::data::{DataKind, Operand, below, element, exact_amplitude, random};
use crate::gemm::arrangement::{Arrangement, Place};
use crate::guard::SENTINEL;
use crate::oracle::Expected;

/// A matrix, or a batch of them: by index, and as it lies in memory.
pub(super) struct Matrix {
    /// Where its elements are.
    pub place: Place,
    /// The elements in the order of their indices.
    pub values: Vec<f32>,
    /// The memory; what belongs to nobody is a NaN.
    pub image: Vec<f32>,
}

impl Matrix {
    fn new(arrangement: Arrangement, shape: [usize; 3], value: impl Fn(usize) -> f32) -> Self {
        let place = arrangement.place(shape);
        let same = [arrangement.shared, arrangement.repeated[0], arrangement.repeated[1]];
        let mut image = vec![f32::from_bits(SENTINEL); place.len];
        let values = place
            .indices()
            .map(|index| {
                // All that a stride of 0 repeats is the first.
                let [b, i, j]: [usize; 3] = std::array::from_fn(|axis| if same[axis] { 0 } else { index[axis] });
                let value = value((b * shape[1] + i) * shape[2] + j);
                image[place.at(index)] = value;
                value
            })
            .collect();
        Self { place, values, image }
    }
}

/// Everything that goes into a product.
pub(super) struct Operands {
    pub lhs: Matrix,
    pub rhs: Matrix,
    /// What stands in the output before the call: numbers if the call accumulates, else the sentinel.
    pub out: Matrix,
    /// All residuals of a batch, one under the other.
    pub residual: Option<Matrix>,
    pub bias: Vec<f32>,
}

/// A NaN or an infinity, and where it goes.
struct Special {
    operand: Operand,
    at: usize,
    value: f32,
}

impl Operands {
    /// Draws the operands of a case.
    pub fn new(case: &GemmCase) -> Self {
        let GemmCase { m, n, k, .. } = *case;
        let batch = case.batch.unwrap_or(1);
        let amplitude = exact_amplitude(k + 3);
        let lens = [batch * m * k, batch * k * n, batch * m * n];
        let special = (case.data == DataKind::Special).then(|| special(case, lens));
        let fill = |operand: Operand| {
            let (stream, special) = (random(case.seed, operand as u64), &special);
            move |at: usize| match special {
                Some(special) if special.operand == operand && special.at == at => special.value,
                _ => element(case.data, operand, amplitude, stream, at),
            }
        };
        let before = fill(Operand::Dy);
        let sentinel = |_: usize| f32::from_bits(SENTINEL);
        let shape = [batch, m, n];
        let bias_len = match case.bias {
            Along::None => 0,
            Along::Rows => m,
            Along::Columns => n,
        };
        Self {
            lhs: Matrix::new(case.lhs, [batch, m, k], fill(Operand::X)),
            rhs: Matrix::new(case.rhs, [batch, k, n], fill(Operand::Weights)),
            out: if case.accumulate {
                Matrix::new(case.out, shape, before)
            } else {
                Matrix::new(case.out, shape, sentinel)
            },
            residual: case.residual.map(|lies| Matrix::new(lies, [1, batch * m, n], fill(Operand::Residual))),
            bias: (0..bias_len).map(fill(Operand::Bias)).collect(),
        }
    }
}

/// One special value: first, last or anywhere.
fn special(case: &GemmCase, lens: [usize; 3]) -> Special {
    let draw = |counter| random(case.seed ^ 0x5bec_1a15, counter);
    let (operand, len) = match draw(1) % 8 {
        0..3 => (Operand::X, lens[0]),
        3..6 => (Operand::Weights, lens[1]),
        6 => (Operand::Residual, lens[2]),
        _ => (Operand::Dy, lens[2]),
    };
    let at = match draw(2) % 6 {
        0 => 0,
        1 => len.saturating_sub(1),
        _ => below(draw(2), len as u64) as usize,
    };
    let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN][(draw(3) % 4) as usize];
    Special { operand, at, value }
}

/// The product by its definition in f64, with the sum of the magnitudes of each chain.
pub(super) fn expected(case: &GemmCase, operands: &Operands) -> Expected {
    let GemmCase { m, n, k, .. } = *case;
    let batch = case.batch.unwrap_or(1);
    let (lhs, rhs) = (&operands.lhs.values, &operands.rhs.values);
    let (mut values, mut magnitudes) = (vec![0.0; batch * m * n], vec![0.0; batch * m * n]);
    for row in 0..batch * m {
        for j in 0..n {
            let at = row * n + j;
            let mut add = |term: f64| {
                values[at] += term;
                magnitudes[at] += term.abs();
            };
            if case.accumulate {
                add(operands.out.values[at].into());
            }
            for l in 0..k {
                add(f64::from(lhs[row * k + l]) * f64::from(rhs[(row / m * k + l) * n + j]));
            }
            match case.bias {
                Along::None => {}
                Along::Rows => add(operands.bias[row % m].into()),
                Along::Columns => add(operands.bias[j].into()),
            }
            if let Some(residual) = &operands.residual {
                add(residual.values[at].into());
            }
        }
    }
    let addends = [case.accumulate, case.bias != Along::None, case.residual.is_some()];
    let terms = k + addends.into_iter().filter(|&is_there| is_there).count();
    Expected { values, magnitudes, terms, activation: case.activation }
}
