//! The same products for 3 x 3 taps at a step of 1 or 2 in planes so narrow that each column has a lane of its own.
//!
//! ```text
//! row r of dy      meets rows r, r + 1, r + 2 of x (2 r and on at a step of 2): those that the next row meets again stay
//! ```
//!
//! All nine sums stay in registers over all rows of all images. They have the order of [`products`](super::products).

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
                    let mut x = [source.row::<S, false>(simd, 0, c, &masks), [simd.zero(); 3], [simd.zero(); 3]];
                    if STEP == 1 {
                        x[1] = source.row::<S, false>(simd, 1, c, &masks);
                    }
                    for r in 0..height {
                        if STEP == 2 {
                            x[1] = source.row::<S, false>(simd, 2 * r + 1, c, &masks);
                        }
                        x[2] = source.row::<S, false>(simd, r * STEP + 2, c, &masks);
                        let dy = simd.load_first(dy.add(r * width + c), width - c);
                        for tap in 0..9 {
                            acc[tap] = simd.fma(x[tap / 3][tap % 3], dy, acc[tap]);
                        }
                        x[0] = x[STEP];
                        if STEP == 1 {
                            x[1] = x[2];
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
