//! Small products of matrices that are read where they are: strips and tiles, without a plan.
//!
//! A plan, and the loops around loops that follow one, take as long as a tile: some 50 ns of the 700 of 32 x 32 x 32
//! and of the 200 of 16 x 16 x 16 on one thread of Zen 4 with AVX-512.

use super::ahead::Ahead;
use super::blocking::Blocking;
use super::epilogue::Finish;
use super::lhs::{ContiguousRows, RowsAhead};
use super::pack::Strips;
use super::plan::Operand;
use super::rectangle::{Product, element};
use super::rhs::Later;
use super::tile::{
    Ends, IN_PLACE, Matrix, NV, Panels, TileBuffer, WIDE, max_height, max_wide_height, tiles_of, wide_tiles_of,
};
use crate::simd::{Isa, Job, Simd, dispatch};

/// Outputs, as multiples of the elements that an operand may have.
const MOST_OUTPUTS: usize = 4;

/// A product that is small, and the operands, whose rows are contiguous, as those of the output are.
pub(super) struct Small<'a> {
    product: &'a Product,
    lhs: Matrix,
    rhs: Matrix,
}

/// The product, if it is one of these.
pub(super) fn suiting<'a>(product: &'a Product, blocking: &Blocking) -> Option<Small<'a>> {
    let (Operand::Matrix(lhs), Operand::Matrix(rhs)) = (product.lhs, product.rhs) else { return None };
    let fits = |a: usize, b: usize| a.saturating_mul(b) <= blocking.in_place;
    let run = lhs.column_stride == 1 && rhs.column_stride == 1 && product.column_stride == 1;
    // An output of more is worth threads, however shallow the product is.
    let few = fits(product.m.div_ceil(MOST_OUTPUTS), product.n);
    (run && few && fits(product.m, product.k) && fits(product.k, product.n)).then_some(Small { product, lhs, rhs })
}

/// Runs a product that [`suiting`] has found.
///
/// # Safety
/// - The product's pointers are valid for its dimensions and strides, and its output overlaps no operand.
pub(super) unsafe fn run(small: Small<'_>, isa: Isa) {
    dispatch(isa, small);
}

impl Job for Small<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { product, lhs, rhs } = self;
        let Product { m, n, k, .. } = *product;
        let strips = Strips::new(m, max_height(S::REGISTERS, if n <= S::LANES { 1 } else { NV }));
        let mut ahead = Ahead::NONE;
        let mut buffer = TileBuffer::uninit();
        let buffer = buffer.as_mut_ptr().cast::<f32>();
        for strip in 0..strips.count {
            let (row, height) = (strips.start(strip), strips.height(strip));
            let rows = ContiguousRows { start: lhs.at(row, 0), row_stride: lhs.row_stride };
            let mut column = 0;
            while column < n {
                let vectors = (n - column).div_ceil(S::LANES);
                let wide = vectors >= WIDE && height <= max_wide_height(S::REGISTERS);
                let nv = if wide { WIDE } else { vectors.min(NV) };
                let width = nv * S::LANES;
                // Tiles that are whole, or one that is not.
                let count = ((n - column) / width).max(1);
                let rhs = Panels {
                    start: rhs.at(0, column),
                    row_stride: rhs.row_stride,
                    step: width,
                    count,
                    pack_to: std::ptr::null_mut(),
                    later: [Later::nothing(std::ptr::null()); 2],
                };
                let to = element(product, product.out, row, column);
                let ends = Ends {
                    from: if product.accumulate { to } else { std::ptr::null() },
                    from_stride: product.row_stride,
                    to,
                    to_stride: product.row_stride,
                    columns: width.min(n - column),
                    finish: (!product.epilogue.is_nothing()).then_some(Finish {
                        epilogue: &product.epilogue,
                        row,
                        column,
                        column_stride: 1,
                        buffer,
                    }),
                };
                // SAFETY: the product is valid, and so are its strips and tiles; the buffer holds the largest tile.
                unsafe {
                    if wide {
                        wide_tiles_of(simd, height, RowsAhead::alone(rows), rhs, k, ends, &mut ahead);
                    } else {
                        let size = [height, nv];
                        tiles_of::<S, _, IN_PLACE>(simd, size, RowsAhead::alone(rows), rhs, k, ends, &mut ahead);
                    }
                }
                column += count * width;
            }
        }
    }
}
