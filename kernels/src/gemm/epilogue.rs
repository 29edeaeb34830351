//! What is done to an output when its chain is complete: `y = activation(chain + bias + residual)`.

use super::expect;
use super::tile::Matrix;
use crate::activation::{self, Activation};
use crate::error::{Error, check_len};
use crate::simd::Simd;
use crate::tensor::View;

/// A vector that is added to each column, or to each row, of the output.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// Nothing is added.
    #[default]
    None,
    /// Element `i` is added to every output of row `i`.
    Rows(&'a [f32]),
    /// Element `j` is added to every output of column `j`.
    Columns(&'a [f32]),
}

/// What follows the product: `out = activation(lhs * rhs + bias + residual)`, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// A vector that is added along rows or columns.
    pub bias: Bias<'a>,
    /// A matrix of the output's shape that is added.
    pub residual: Option<View<'a, f32, 2>>,
    /// The function that is applied last. ReLU and clamp keep NaN.
    pub activation: Activation,
}

impl Epilogue<'_> {
    /// Fails unless bias and residual fit `batch` outputs of `m` x `n`.
    pub(super) fn check(&self, batch: usize, [m, n]: [usize; 2]) -> Result<(), Error> {
        let rows = batch.checked_mul(m).ok_or(Error::Overflow { argument: "out" })?;
        let (expected, given) = match self.bias {
            Bias::None => (0, 0),
            Bias::Rows(bias) => (m, bias.len()),
            Bias::Columns(bias) => (n, bias.len()),
        };
        check_len("bias", expected, given)?;
        match self.residual {
            Some(residual) => expect("residual", [rows, n], residual.shape()),
            None => Ok(()),
        }
    }
}

/// An epilogue as pointers, after the checks. A null pointer stands for what there is not.
#[derive(Clone, Copy)]
pub(super) struct RawEpilogue {
    pub row_bias: *const f32,
    pub column_bias: *const f32,
    pub residual: Matrix,
    pub activation: Activation,
}

impl RawEpilogue {
    pub fn new(epilogue: &Epilogue<'_>) -> Self {
        let null = std::ptr::null();
        let (row_bias, column_bias) = match epilogue.bias {
            Bias::None => (null, null),
            Bias::Rows(bias) => (bias.as_ptr(), null),
            Bias::Columns(bias) => (null, bias.as_ptr()),
        };
        let residual = epilogue
            .residual
            .map_or(Matrix { start: null, row_stride: 0, column_stride: 0 }, |view| Matrix::new(&view));
        Self { row_bias, column_bias, residual, activation: epilogue.activation }
    }

    /// Whether outputs stay as they are.
    pub fn is_nothing(&self) -> bool {
        self.row_bias.is_null()
            && self.column_bias.is_null()
            && self.residual.start.is_null()
            && self.activation == Activation::Identity
    }

    /// The same for the transposed output.
    pub fn transposed(self) -> Self {
        Self {
            row_bias: self.column_bias,
            column_bias: self.row_bias,
            residual: self.residual.transposed(),
            activation: self.activation,
        }
    }

    /// The same for outputs whose residual starts at row `row`.
    pub fn starting_at_row(mut self, row: usize) -> Self {
        self.residual.start = if self.residual.start.is_null() { std::ptr::null() } else { self.residual.at(row, 0) };
        self
    }

    /// Finishes the tile of `rows` x `columns` outputs that stands in `tile` and belongs at `[row, column]`.
    ///
    /// # Safety
    /// - The pointers hold what the checks promised, for every row and column of the tile.
    /// - `tile` holds `rows` rows, `tile_stride` apart, of `columns` floats, and `tile_stride >= columns`
    ///   rounded up to whole vectors.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(
        &self,
        simd: S,
        tile: *mut f32,
        tile_stride: usize,
        [row, column]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) {
        for i in 0..rows {
            for j in (0..columns).step_by(S::LANES) {
                let left = columns - j;
                // SAFETY: rows and columns below `rows` and `columns` are inside of the tile, of the bias, and of
                // the residual; loads from the latter two touch only the `left` lanes that exist.
                unsafe {
                    let at = tile.add(i * tile_stride + j);
                    let mut x = simd.load(at);
                    if !self.row_bias.is_null() {
                        x = simd.add(x, simd.splat(*self.row_bias.add(row + i)));
                    }
                    if !self.column_bias.is_null() {
                        x = simd.add(x, simd.load_first(self.column_bias.add(column + j), left));
                    }
                    if !self.residual.start.is_null() {
                        let from = self.residual.at(row + i, column + j);
                        x = simd.add(x, load_strided(simd, from, self.residual.column_stride, left));
                    }
                    x = activation::apply(simd, self.activation, x);
                    simd.store(at, x);
                }
            }
        }
    }
}

/// Reads `min(n, LANES)` floats that stand `stride` apart; the other lanes are +0.
///
/// # Safety
/// - They are readable.
#[inline(always)]
pub(super) unsafe fn load_strided<S: Simd>(simd: S, from: *const f32, stride: isize, n: usize) -> S::F {
    // SAFETY: the caller's contract; the buffer holds a vector of every instruction set.
    unsafe {
        if stride == 1 {
            return simd.load_first(from, n);
        }
        let mut lanes = [0.0f32; 16];
        for lane in 0..n.min(S::LANES) {
            lanes[lane] = *from.offset(lane as isize * stride);
        }
        simd.load(lanes.as_ptr())
    }
}
