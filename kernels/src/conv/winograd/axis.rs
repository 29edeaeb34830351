//! One axis of a tile: which bilinear algorithm it has, and its matrices.
//!
//! Strides are phases. The even and the odd inputs of an axis of stride 2 are two images of stride 1, the even and the
//! odd taps two short filters, and the outputs the sum of both convolutions; each has a tile `F(m, r)` of its own, and
//! where a phase has one tap, as many products as outputs:
//!
//! ```text
//! inputs   0   1   2   3   4   5   6           3 taps, F(2): 2 outputs from 5 inputs
//! even     d0      d2      d4        w0 w2     F(2,2), 3 products
//! odd          d1      d3            w1        2 products                             5 instead of 6
//! ```
//!
//! The gradient of the input is the other way around: both phases see the same gradients of outputs, and each makes
//! every other pixel. So strides are a matter of one axis, like tiles, and everything else stays as it is.
//!
//! | stride 2 | products of an output, for | |
//! | --- | --- | --- |
//! | 3 taps, m = 2 | 2.5 for 3 | F(2,2) and 1 tap |
//! | 3 taps, m = 4 | 2.25 for 3 | F(4,2) and 1 tap |
//! | 4 taps, m = 2 | 3 for 4 | F(2,2) twice |
//! | 4 taps, m = 4 | 2.5 for 4 | F(4,2) twice |
//! | 5 taps, m = 2 | 3.5 for 5 | F(2,3) and F(2,2) |
//! | 5 taps, m = 4 | 2.75 for 5 | F(4,3) and F(4,2) |
//! | 7 taps, m = 2 | 4.5 for 7 | F(2,4) and F(2,3) |
//!
//! An axis for which there is no tile is direct: as many products of an output as it has taps, each of an input that
//! the transform only copies. So a 3x9 kernel has F(4,3) down the image, and stays as it is along it:
//!
//! ```text
//! y[i] = sum over the taps t of w[t] d[i + t]            G = Bᵀ = the identity, Aᵀ = a row of ones
//! ```
//!
//! Their errors are in `docs/convolution.md`.

use super::points::{MOST, Piece};

/// One axis of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Taps of the filter.
    pub taps: usize,
    /// Outputs of a tile.
    pub outputs: usize,
    /// Inputs from tile to tile.
    pub step: usize,
    /// Pixels from tap to tap: those between belong to other tiles.
    pub apart: usize,
    pub(super) form: Form,
}

/// What an axis is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One piece.
    Whole,
    /// One output, and a product for each tap.
    Direct,
    /// Stride 2: the sum of a piece with the even inputs and taps and one with the odd ones.
    Phases,
    /// The gradient of that: a piece with the even taps and one with the odd ones make every other output, those with
    /// the odd taps first or not. Taps are counted from the end of the forward filter.
    Interleaved { odd_first: bool },
}

impl Axis {
    /// The tile of `outputs` for a filter of `taps`; where there is none, the axis is direct, unless it is too long.
    pub fn forward(taps: usize, stride: usize, outputs: usize) -> Option<Self> {
        match (stride, taps, outputs) {
            (_, 1, _) => Some(Self { taps, outputs: 1, step: stride, apart: 1, form: Form::Whole }),
            (1, 3, 2 | 4 | 6) | (1, 5, 2 | 4) | (1, 7, 2) => {
                Some(Self { taps, outputs, step: outputs, apart: 1, form: Form::Whole })
            }
            (2, 3..=5, 2 | 4) | (2, 7, 2) => {
                Some(Self { taps, outputs, step: 2 * outputs, apart: 1, form: Form::Phases })
            }
            (_, 2..=MOST, _) => Some(Self { taps, outputs: 1, step: stride, apart: 1, form: Form::Direct }),
            _ => None,
        }
    }

    /// The tile of the gradient of the input. With zeros between the forward outputs' gradients, it is a convolution of
    /// stride 1; `before` is the padding in front of those.
    pub fn gradient(taps: usize, stride: usize, outputs: usize, before: usize) -> Option<Self> {
        if stride == 1 {
            return Self::forward(taps, stride, outputs);
        }
        let odd_first = before % 2 == 1;
        match (stride, taps, outputs, odd_first) {
            (2, 3, 2 | 4, _) | (2, 4 | 5, 2 | 4, false) | (2, 7, 2, true) => {
                let form = Form::Interleaved { odd_first };
                Some(Self { taps, outputs: 2 * outputs, step: outputs, apart: 1, form })
            }
            _ => None,
        }
    }

    /// Whether the axis needs fewer products than outputs have taps.
    pub const fn saves(&self) -> bool {
        self.taps > 1 && !matches!(self.form, Form::Direct)
    }

    /// Outputs of each piece.
    pub(super) const fn phase_outputs(&self) -> usize {
        match self.form {
            Form::Interleaved { .. } => self.outputs / 2,
            _ => self.outputs,
        }
    }

    /// The pieces: one, or that of the even taps and that of the odd ones.
    const fn pieces(&self) -> [Piece; 2] {
        let outputs = self.phase_outputs();
        match self.form {
            Form::Whole => [Piece { taps: self.taps, outputs }, Piece { taps: 0, outputs }],
            _ => [Piece { taps: self.taps.div_ceil(2), outputs }, Piece { taps: self.taps / 2, outputs }],
        }
    }

    /// Products of a tile.
    pub const fn points(&self) -> usize {
        if let Form::Direct = self.form {
            return self.taps;
        }
        let [even, odd] = self.pieces();
        even.points() + odd.points()
    }

    /// Inputs of a tile.
    pub const fn inputs(&self) -> usize {
        let (m, [even, odd]) = (self.phase_outputs(), self.pieces());
        match self.form {
            Form::Whole | Form::Direct => m + self.taps - 1,
            Form::Phases => 2 * (m - 1) + self.taps,
            Form::Interleaved { odd_first } => {
                let last = if odd_first || even.taps > odd.taps { even.taps - 1 } else { odd.taps };
                m + last
            }
        }
    }

    /// The piece that a point belongs to, and its number there.
    fn piece(&self, point: usize) -> (usize, Piece, usize) {
        let [even, odd] = self.pieces();
        match point.checked_sub(even.points()) {
            None => (0, even, point),
            Some(point) => (1, odd, point),
        }
    }

    /// Element `[point][tap]` of `G`.
    pub fn weight(&self, point: usize, tap: usize) -> f64 {
        if self.form == Form::Direct {
            return f64::from(u8::from(point == tap));
        }
        let (phase, piece, point) = self.piece(point);
        match self.form {
            Form::Whole => piece.weight(point, tap),
            _ if tap % 2 == phase => piece.weight(point, tap / 2),
            _ => 0.0,
        }
    }

    /// Row `point` of `Bᵀ`.
    pub fn input(&self, point: usize) -> [f64; MOST] {
        let mut row = [0.0; MOST];
        if self.form == Form::Direct {
            row[point] = 1.0;
            return row;
        }
        let (phase, piece, point) = self.piece(point);
        let own = piece.input(point);
        let (first, step) = match self.form {
            Form::Whole | Form::Direct => (0, 1),
            Form::Phases => (phase, 2),
            Form::Interleaved { odd_first } => (if odd_first { 0 } else { phase }, 1),
        };
        for i in 0..piece.inputs() {
            row[first + i * step] = own[i];
        }
        row
    }

    /// Element `[output][point]` of `Aᵀ`.
    pub fn output(&self, output: usize, point: usize) -> f64 {
        if self.form == Form::Direct {
            return 1.0;
        }
        let (phase, piece, point) = self.piece(point);
        match self.form {
            Form::Interleaved { .. } if self.phase(output) == phase => piece.output(output / 2, point),
            Form::Interleaved { .. } => 0.0,
            _ => piece.output(output, point),
        }
    }

    /// The piece that makes an output, of those that make every other.
    const fn phase(&self, output: usize) -> usize {
        match self.form {
            Form::Interleaved { odd_first } => (output + odd_first as usize) % 2,
            _ => 0,
        }
    }

    /// Products of an output in a direct convolution.
    fn terms(&self, output: usize) -> usize {
        match self.form {
            Form::Interleaved { .. } => self.pieces()[self.phase(output)].taps,
            _ => self.taps,
        }
    }

    /// The largest share of `|Aᵀ| (|G| |w| . |Bᵀ| |d|)` in the products of an output, all of the same magnitude.
    pub fn amplification(&self) -> f64 {
        let term = |output: usize, point: usize| {
            let weights: f64 = (0..self.taps).map(|tap| self.weight(point, tap).abs()).sum();
            let inputs: f64 = self.input(point).iter().map(|b| b.abs()).sum();
            self.output(output, point).abs() * weights * inputs
        };
        let sum = |output: usize| (0..self.points()).map(|point| term(output, point)).sum::<f64>();
        (0..self.outputs).map(|output| sum(output) / self.terms(output) as f64).fold(0.0, f64::max)
    }

    /// [`Axis::amplification`] of the weights' gradient: the largest share of `|Gᵀ| (|A| |dy| . |Bᵀ| |d|)` in the
    /// `outputs` products that a tile adds to a tap.
    pub fn gradient_amplification(&self) -> f64 {
        let term = |tap: usize, point: usize| {
            let outputs: f64 = (0..self.outputs).map(|output| self.output(output, point).abs()).sum();
            let inputs: f64 = self.input(point).iter().map(|b| b.abs()).sum();
            self.weight(point, tap).abs() * outputs * inputs
        };
        let sum = |tap: usize| (0..self.points()).map(|point| term(tap, point)).sum::<f64>();
        (0..self.taps).map(sum).fold(0.0, f64::max) / self.outputs as f64
    }

    /// The rms error over a direct convolution's of 64 channels, as measured; those of two axes multiply.
    pub fn error(&self) -> f64 {
        match (self.form, self.taps, self.phase_outputs()) {
            (_, 1, _) | (Form::Direct, ..) => 1.0,
            (Form::Whole, 3, 2) => 0.8,
            (Form::Whole, 3, 4) => 1.45,
            (Form::Whole, 3, _) => 3.0,
            (Form::Whole, 5, 2) => 1.37,
            (Form::Whole, ..) => 2.35,
            (Form::Phases, _, 2) => 0.75,
            (Form::Phases, ..) => 1.09,
            (Form::Interleaved { .. }, _, 2) => 0.92,
            (Form::Interleaved { .. }, ..) => 1.35,
        }
    }
}
