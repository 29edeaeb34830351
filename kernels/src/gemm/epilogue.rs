//! What is done to an output when its chain is complete: `y = activation(chain + bias + residual)`.

use super::ahead::Rows;
use super::expect;
use super::tile::{MAX_WIDTH, Matrix};
use crate::activation::{self, Activation};
use crate::error::{Error, check_len};
use crate::simd::{Job, Simd};
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
pub(crate) struct RawEpilogue {
    pub row_bias: *const f32,
    pub column_bias: *const f32,
    pub residual: Matrix,
    pub activation: Activation,
}

impl RawEpilogue {
    /// Outputs stay as they are.
    pub const NOTHING: Self = Self {
        row_bias: std::ptr::null(),
        column_bias: std::ptr::null(),
        residual: Matrix { start: std::ptr::null(), row_stride: 0, column_stride: 0 },
        activation: Activation::Identity,
    };

    pub fn new(epilogue: &Epilogue<'_>) -> Self {
        let mut raw = Self { activation: epilogue.activation, ..Self::NOTHING };
        match epilogue.bias {
            Bias::None => {}
            Bias::Rows(bias) => raw.row_bias = bias.as_ptr(),
            Bias::Columns(bias) => raw.column_bias = bias.as_ptr(),
        }
        if let Some(residual) = &epilogue.residual {
            raw.residual = Matrix::new(residual);
        }
        raw
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
}

/// What finishes a row of tiles on their way to the output: each stands in a buffer, in L1, for a moment.
///
/// ```text
/// registers ──► buffer ──► + bias, + residual, activation ──► output
/// ```
///
/// Whoever makes one vouches that
/// - the epilogue holds what the checks promised, for every row and column of the tiles that it finishes;
/// - `MAX_HEIGHT * MAX_WIDTH` floats are writable at `buffer`.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub(super) epilogue: &'a RawEpilogue,
    /// Where the next tile starts.
    pub(super) row: usize,
    pub(super) column: usize,
    /// From column to column of the output.
    pub(super) column_stride: isize,
    /// Rows of a tile stand `MAX_WIDTH` apart here.
    pub(super) buffer: *mut f32,
}

impl<'a> Finish<'a> {
    /// What will be read of the residual for the next tile.
    #[inline(always)]
    pub fn residual(&self, size: [usize; 2]) -> Rows {
        let residual = &self.epilogue.residual;
        if residual.start.is_null() || residual.column_stride != 1 {
            return Rows::NONE;
        }
        Rows { start: residual.at(self.row, self.column), stride: residual.row_stride, size }
    }

    /// The work on the next tile, which goes to `to`.
    #[inline(always)]
    pub fn tile(self, size: [usize; 2], to: *mut f32, row_stride: isize) -> FinishTile<'a> {
        FinishTile { finish: self, size, to, row_stride }
    }
}

/// Finishes one tile. A function of its own, for tiles of every size.
///
/// Whoever makes one vouches that the tile stands in the buffer, as whole vectors, and that `size` rows and columns are
/// writable at `to`.
pub(crate) struct FinishTile<'a> {
    finish: Finish<'a>,
    size: [usize; 2],
    to: *mut f32,
    row_stride: isize,
}

impl Job for FinishTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: the maker's promise.
        unsafe {
            match self.finish.epilogue.activation {
                Activation::Identity => self.each(simd, |x| x),
                activation => self.each(simd, |x| activation::apply(simd, activation, x)),
            }
        }
    }
}

impl FinishTile<'_> {
    /// # Safety
    /// - The promise of the maker.
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, simd: S, activation: impl Fn(S::F) -> S::F) {
        let &Self { finish: Finish { epilogue, row, column, column_stride, buffer }, size: [rows, columns], .. } = self;
        let RawEpilogue { row_bias, column_bias, residual, .. } = *epilogue;
        for j in (0..columns).step_by(S::LANES) {
            let left = columns - j;
            // SAFETY: rows and columns below `size` are inside of the tile, of the bias, of the residual and of the
            // output; of the latter three only the `left` lanes that exist are touched.
            unsafe {
                // What adds nothing to any number, not even to -0.
                let mut bias = simd.splat(-0.0);
                if !column_bias.is_null() {
                    bias = simd.load_first(column_bias.add(column + j), left);
                }
                for i in 0..rows {
                    let tile = buffer.add(i * MAX_WIDTH + j);
                    let mut x = simd.load(tile);
                    if !row_bias.is_null() {
                        x = simd.add(x, simd.splat(*row_bias.add(row + i)));
                    }
                    x = simd.add(x, bias);
                    if !residual.start.is_null() {
                        let from = residual.at(row + i, column + j);
                        let rest = match residual.column_stride {
                            1 if left >= S::LANES => simd.load(from),
                            stride => load_strided(simd, from, stride, left),
                        };
                        x = simd.add(x, rest);
                    }
                    x = activation(x);
                    let to = self.to.offset(i as isize * self.row_stride + j as isize * column_stride);
                    match column_stride {
                        1 if left >= S::LANES => simd.store(to, x),
                        1 => simd.store_first(to, left, x),
                        _ => {
                            simd.store(tile, x);
                            for lane in 0..left.min(S::LANES) {
                                *to.offset(lane as isize * column_stride) = *tile.add(lane);
                            }
                        }
                    }
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
