//! The same products for 3 x 3 taps at a step of 1 or 2 in planes so narrow that each column has a lane of its own.
//!
//! ```text
//! row r of x       meets rows r, r - 1, r - 2 of dy, which stay for the next
//!                  at a step of 2: if r is even, rows r / 2 and r / 2 - 1, else row (r - 1) / 2 alone
//! ```
//!
//! Rows of x count from the first that a window meets, padding included.
//!
//! All nine sums stay in registers over all rows of all images; with rows of x kept instead of those of dy, 16 registers
//! were too few, and sums in memory took up to twice the time, by where the stack lay. They have the order of
//! [`products`](super::products).

use super::source::Source;
use crate::simd::{Job, Simd};

/// Makes the lanes of 9 taps from planes of one channel.
///
/// Whoever makes one vouches that `count` planes, `source_step` and `dy_step` apart, are readable, that no row of `dy`
/// is longer than `lanes`, and that `sums` has room.
pub(super) struct SmallProducts<const STEP: usize> {
    pub source: Source<3, STEP>,
    pub source_step: usize,
    pub dy: *const f32,
    pub size: [usize; 2],
    pub dy_step: usize,
    pub count: usize,
    /// `[tap][lane]`
    pub sums: *mut f32,
    pub lanes: usize,
}

impl<const STEP: usize> Job for SmallProducts<STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, source_step, dy, size: [height, width], dy_step, count, sums, lanes } = self;
        debug_assert!(width <= lanes && lanes.is_multiple_of(S::LANES));
        let mut c = 0;
        while c < lanes {
            let mut acc = [simd.zero(); 9];
            let masks = source.masks(simd, c);
            for image in 0..if c < width { count } else { 0 } {
                let source = Source { start: source.start.wrapping_add(image * source_step), ..source };
                let dy = dy.wrapping_add(image * dy_step);
                // SAFETY: the maker's promise.
                unsafe {
                    // Rows of dy from the newest on.
                    let mut d = [simd.zero(); 3];
                    for r in 0..height + 2 / STEP {
                        d = [d[0], d[0], d[1]];
                        if r < height {
                            d[0] = simd.load_first(dy.add(r * width + c), width - c);
                        }
                        if source.has_row(r * STEP) {
                            let x = source.row::<S, false>(simd, r * STEP, c, &masks);
                            if r < height {
                                add(simd, &mut acc, 0, x, d[0]);
                            }
                            if STEP == 1 && r >= 1 && r <= height {
                                add(simd, &mut acc, 1, x, d[1]);
                            }
                            if r >= 2 / STEP {
                                add(simd, &mut acc, 2, x, d[2 / STEP]);
                            }
                        }
                        if STEP == 2 && r < height && source.has_row(2 * r + 1) {
                            let x = source.row::<S, false>(simd, 2 * r + 1, c, &masks);
                            add(simd, &mut acc, 1, x, d[0]);
                        }
                    }
                }
            }
            for tap in 0..9 {
                // SAFETY: the sums have room.
                unsafe { simd.store(sums.add(tap * lanes + c), acc[tap]) };
            }
            c += S::LANES;
        }
    }
}

/// Adds the products of a row of x and one of dy to the taps of row `h`.
#[inline(always)]
fn add<S: Simd>(simd: S, acc: &mut [S::F; 9], h: usize, x: [S::F; 3], d: S::F) {
    for k in 0..3 {
        acc[3 * h + k] = simd.fma(x[k], d, acc[3 * h + k]);
    }
}
