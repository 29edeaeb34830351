//! A few rows of lhs against a rhs whose columns are contiguous, as in `y = x Wᵀ`: nothing is packed.
//!
//! ```text
//!             LANES columns of rhs, in memory one behind the other
//!            ┌───────────────┐
//!          k │ │ │ │ │ │ │ │ │   a square of LANES x LANES is transposed into L1, where its rows are vectors;
//!            ├─┴─┴─┴─┴─┴─┴─┴─┤   the square that follows deeper may begin within it
//!            │ │ │ │ │ │ │ │ │
//!            └─┴─┴─┴─┴─┴─┴─┴─┘
//!   rows ──  ┌───────────────┐
//!            │ acc[row]      │   one vector of chains a row
//!            └───────────────┘
//! ```
//!
//! Every element of rhs is met once, so a packed copy would be written and read for nothing. 120 x 1 x 400 on one
//! thread of Zen 4 with AVX-512 takes two thirds of the time that packing took, 512 x 4 x 512 half. Vectors along `k`
//! would spare the transposition, and cut each output's chain in 16.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::epilogue::{Finish, RawEpilogue};
use super::plan::Operand;
use super::rectangle::{Product, element};
use super::tile::{MAX_WIDTH, Matrix, TileBuffer};
use crate::parallel::Parallelism;
use crate::parts::share;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::workspace::{LINE, Line};

/// The most rows that are few: with 8, transposing is a third of the work.
const MOST: usize = 8;

/// The least columns, and the least depth: a square of the longest vectors.
const LEAST: usize = 16;

/// The product, or the same one transposed, if it has few rows and contiguous columns of rhs.
pub(super) fn suiting(product: &Product) -> Option<Product> {
    if product.m.min(product.n) > MOST {
        return None;
    }
    let mut turned = *product;
    turned.turn();
    [*product, turned].into_iter().find(|product| {
        let runs = matches!(product.rhs, Operand::Matrix(rhs) if rhs.row_stride == 1);
        runs && (1..=MOST).contains(&product.m)
            && matches!(product.lhs, Operand::Matrix(_))
            && product.n >= LEAST
            && product.k >= LEAST
    })
}

/// Runs a product that [`suiting`] has found.
///
/// # Safety
/// - The product's pointers are valid for its dimensions and strides, and its output overlaps no operand.
pub(super) unsafe fn run(product: &Product, isa: Isa, parallelism: Parallelism<'_>) {
    let (threads, lines) = (parallelism.threads(), product.n.div_ceil(LINE));
    let tasks = threads.min(lines);
    parallelism.for_each(tasks, threads, &|task, _| {
        let own = share(lines, tasks, task);
        let columns = own.start * LINE..product.n.min(own.end * LINE);
        dispatch(isa, FewRows { product, columns });
    });
}

/// Some columns of the output.
///
/// Whoever makes one vouches that the product's pointers are valid, that it suits, and that no other task writes these
/// columns.
struct FewRows<'a> {
    product: &'a Product,
    columns: Range<usize>,
}

impl Job for FewRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        debug_assert!(self.product.k >= S::LANES && self.product.n >= S::LANES);
        match self.product.m {
            1 => simd.call(Rows::<1>(self)),
            2 => simd.call(Rows::<2>(self)),
            3 => simd.call(Rows::<3>(self)),
            4 => simd.call(Rows::<4>(self)),
            5 => simd.call(Rows::<5>(self)),
            6 => simd.call(Rows::<6>(self)),
            7 => simd.call(Rows::<7>(self)),
            _ => simd.call(Rows::<MOST>(self)),
        }
    }
}

/// [`FewRows`] of as many.
struct Rows<'a, const ROWS: usize>(FewRows<'a>);

impl<const ROWS: usize> Job for Rows<'_, ROWS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let FewRows { product, columns } = self.0;
        let (Operand::Matrix(lhs), Operand::Matrix(rhs)) = (product.lhs, product.rhs) else {
            unreachable!("only matrices suit")
        };
        let mut buffer = TileBuffer::uninit();
        let buffer = buffer.as_mut_ptr().cast::<f32>();
        let mut column = columns.start;
        while column < columns.end {
            let count = S::LANES.min(columns.end - column);
            // Where fewer columns are left than lanes, the first lanes are columns that are done.
            let first = column.min(product.n - S::LANES);
            let skipped = column - first;
            let out = element(product, product.out, 0, column);
            // SAFETY: the maker's promise; a vector of columns from `first` on is inside of rhs, and so is the tile
            // inside of the output; a row of the buffer has room for two vectors, the second of which
            // stands behind the last column.
            unsafe {
                let mut acc = [simd.zero(); ROWS];
                for i in 0..ROWS {
                    let row = buffer.add(i * MAX_WIDTH);
                    simd.store(row, simd.zero());
                    simd.store(row.add(S::LANES), simd.zero());
                    if product.accumulate {
                        for j in 0..count {
                            *row.add(skipped + j) = *element(product, out, i, j);
                        }
                    }
                    acc[i] = simd.load(row);
                }
                multiply(simd, &mut acc, lhs, rhs.at(0, first), rhs.column_stride, product.k);
                for i in 0..ROWS {
                    simd.store(buffer.add(i * MAX_WIDTH), acc[i]);
                }
                let epilogue: &RawEpilogue = &product.epilogue;
                let column_stride = product.column_stride;
                let finish = Finish { epilogue, row: 0, column, column_stride, buffer: buffer.add(skipped) };
                simd.call(finish.tile([ROWS, count], out, product.row_stride));
            }
            column += count;
        }
    }
}

/// Continues the chains of `LANES` columns, the first of which starts at `rhs`, `stride` apart.
///
/// # Safety
/// - `depth >= LANES` elements of each column and of each row of lhs are readable.
#[inline(always)]
unsafe fn multiply<S: Simd, const ROWS: usize>(
    simd: S,
    acc: &mut [S::F; ROWS],
    lhs: Matrix,
    rhs: *const f32,
    stride: isize,
    depth: usize,
) {
    let mut square = MaybeUninit::<[Line; LEAST * LEAST / LINE]>::uninit();
    let square = square.as_mut_ptr().cast::<f32>();
    let mut k = 0;
    while k < depth {
        let first = k.min(depth - S::LANES);
        // SAFETY: the caller's contract; the square has room for one of the longest vectors.
        unsafe {
            simd.transpose(rhs.add(first), stride, square, S::LANES as isize);
            for step in k - first..S::LANES {
                let column = simd.load(square.add(step * S::LANES));
                for i in 0..ROWS {
                    acc[i] = simd.fma(simd.splat(*lhs.at(i, first + step)), column, acc[i]);
                }
            }
        }
        k = first + S::LANES;
    }
}
