//! The kernels: small tiles of one or several target channels, gathered from padded rows.
//!
//! ```text
//!            V vectors of columns
//!           ┌────────┬────────┐
//!  R rows   │  acc   │  acc   │    acc[r][v] += w[tap] * padded[r * step + tap row][column + tap shift]
//!           │        │        │
//!           └────────┴────────┘
//! ```
//!
//! Each target is one chain of fused multiply-adds over planes, tap rows and tap columns in order, whatever the
//! tile. Rows end with a vector that overlaps its neighbour; where a row is shorter than a vector, the excess is
//! written into the next row, which is written after it.

use super::axis::{Axis, Phase, Tap};
use super::rows::RowLayout;
use crate::activation::{Activation, apply};
use crate::simd::{Job, Simd};

/// What happens to a sum before it is written.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Finish {
    /// The bias of the tile's first channel.
    pub bias: Option<*const f32>,
    /// The residual that belongs to the tile's first target.
    pub residual: Option<*const f32>,
    /// Relu and clamp are applied here, others when the target is complete.
    pub activation: Activation,
}

impl Finish {
    pub const NOTHING: Self = Self { bias: None, residual: None, activation: Activation::Identity };
}

/// A rectangle of targets of neighbouring channels, and what they are gathered from.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Tile<'a> {
    /// The padded row of the first target row, in plane 0.
    pub x: *const f32,
    pub layout: RowLayout,
    /// Elements from plane to plane.
    pub plane_len: usize,
    pub planes: usize,
    /// Padded rows between target rows.
    pub row_step: usize,
    pub rows: &'a [Tap],
    pub columns: &'a [Tap],
    /// `[plane][tap row][tap column][channel]`
    pub weights: *const f32,
    pub y: *mut f32,
    pub y_row: usize,
    pub y_channel: usize,
    /// Target rows and columns.
    pub size: [usize; 2],
    /// Full vectors may be written below this offset from `y`, even past a row's end.
    pub y_len: usize,
    pub finish: Finish,
}

/// Computes a tile of `channels` (1, 2 or 4) channels. `dense` says that [`is_dense`] holds.
///
/// # Safety
/// - The padded rows and the weights are readable as the tile says.
/// - `y` is writable at `channel * y_channel + row * y_row + column` for each target, and below `y_len` of each
///   channel; bias and residual are readable for the same.
#[inline(always)]
pub(in crate::conv) unsafe fn compute<S: Simd>(simd: S, tile: &Tile<'_>, channels: usize, dense: Option<usize>) {
    let wide = tile.size[1] > S::LANES;
    match (channels, dense) {
        (1, Some(1)) => simd.call(SweepThree::<1>(tile)),
        (1, Some(_)) => simd.call(SweepThree::<2>(tile)),
        (1, None) if wide => simd.call(SweepAny::<1, 4, 2>(tile)),
        (1, None) => simd.call(SweepAny::<1, 4, 1>(tile)),
        (2, _) if wide => simd.call(SweepAny::<2, 2, 2>(tile)),
        (2, _) => simd.call(SweepAny::<2, 4, 1>(tile)),
        _ if wide => simd.call(SweepAny::<4, 1, 2>(tile)),
        _ => simd.call(SweepAny::<4, 2, 1>(tile)),
    }
}

/// A tile of one channel by [`Three`]. Made by [`compute`] alone, whose contract it carries.
struct SweepThree<'a, const STEP: usize>(&'a Tile<'a>);

impl<const STEP: usize> Job for SweepThree<'_, STEP> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: the contract of `compute`.
        unsafe { sweep::<S, _, 4, 1>(simd, self.0, &Three::<S, STEP>::new(simd, self.0)) }
    }
}

/// A tile of `O` channels by [`Any`] in blocks of `R` x `V`. Made by [`compute`] alone, whose contract it carries.
struct SweepAny<'a, const O: usize, const R: usize, const V: usize>(&'a Tile<'a>);

impl<const O: usize, const R: usize, const V: usize> Job for SweepAny<'_, O, R, V> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: the contract of `compute`.
        unsafe { sweep::<S, _, R, V>(simd, self.0, &Any::<O>) }
    }
}

/// The step, if the taps of a phase are 3 x 3 neighbours at a step of 1, or at a step of 2 in their two slots.
pub(in crate::conv) fn is_dense(rows: &Axis, row_phase: &Phase, columns: &Axis, column_phase: &Phase) -> Option<usize> {
    let neighbours = |taps: &[Tap]| taps.len() == 3 && taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1);
    let fits = neighbours(&row_phase.taps) && neighbours(&column_phase.taps) && rows.step == columns.step;
    let starts = columns.step == 1 || column_phase.taps[0].offset == 0;
    (fits && starts && columns.step <= 2).then_some(columns.step)
}

/// A block of `R` rows and `V` vectors.
trait Block<S: Simd> {
    /// # Safety
    /// - As [`compute`]; rows `r .. r + R` and columns from `c` on are targets, except that the last vector may
    ///   reach past the row's end if it is the only one.
    unsafe fn block<const R: usize, const V: usize>(&self, simd: S, tile: &Tile<'_>, r: usize, c: usize);
}

/// Covers a tile by blocks of at most `R` rows and `V` vectors.
///
/// # Safety
/// - As [`compute`].
#[inline(always)]
unsafe fn sweep<S: Simd, B: Block<S>, const R: usize, const V: usize>(simd: S, tile: &Tile<'_>, body: &B) {
    let mut c = 0;
    while c < tile.size[1] {
        let left = tile.size[1] - c;
        // SAFETY: the columns from `c` on are targets; a last, partial vector is moved left where the row has room.
        unsafe {
            if V > 1 && left >= V * S::LANES {
                sweep_rows::<S, B, R, V>(simd, tile, body, c);
                c += V * S::LANES;
            } else {
                let at = if left >= S::LANES { c } else { tile.size[1].saturating_sub(S::LANES) };
                sweep_rows::<S, B, R, 1>(simd, tile, body, at);
                c += S::LANES;
            }
        }
    }
}

/// Covers a strip of columns, from the top down.
///
/// # Safety
/// - As [`Block::block`], for all rows.
#[inline(always)]
unsafe fn sweep_rows<S: Simd, B: Block<S>, const R: usize, const V: usize>(
    simd: S,
    tile: &Tile<'_>,
    body: &B,
    c: usize,
) {
    let mut r = 0;
    // SAFETY: as many rows as are left.
    unsafe {
        while R >= 4 && tile.size[0] - r >= 4 {
            body.block::<4, V>(simd, tile, r, c);
            r += 4;
        }
        while R >= 2 && tile.size[0] - r >= 2 {
            body.block::<2, V>(simd, tile, r, c);
            r += 2;
        }
        while r < tile.size[0] {
            body.block::<1, V>(simd, tile, r, c);
            r += 1;
        }
    }
}

/// Adds bias and residual, clamps and writes the vector of channel `o` at row `r` and column `c`.
///
/// # Safety
/// - As [`Block::block`].
#[inline(always)]
unsafe fn finish<S: Simd>(simd: S, tile: &Tile<'_>, o: usize, r: usize, c: usize, sum: S::F) {
    let at = r * tile.y_row + c;
    let whole = c + S::LANES <= tile.size[1] || at + S::LANES <= tile.y_len;
    let n = tile.size[1] - c;
    let at = o * tile.y_channel + at;
    let mut v = sum;
    // SAFETY: whole vectors only where the tile allows them, else the row's last `n` elements.
    unsafe {
        if let Some(bias) = tile.finish.bias {
            v = simd.add(v, simd.splat(*bias.add(o)));
        }
        if let Some(residual) = tile.finish.residual {
            let p = residual.add(at);
            v = simd.add(v, if whole { simd.load(p) } else { simd.load_first(p, n) });
        }
        v = limit(simd, tile.finish.activation, v);
        if whole {
            simd.store(tile.y.add(at), v);
        } else {
            simd.store_first(tile.y.add(at), n, v);
        }
    }
}

/// Relu and clamp; other activations are left for later.
#[inline(always)]
pub(in crate::conv) fn limit<S: Simd>(simd: S, activation: Activation, v: S::F) -> S::F {
    // Naming the variants keeps the code of the others out of the kernels.
    match activation {
        Activation::Relu => apply(simd, Activation::Relu, v),
        Activation::Clamp { low, high } => apply(simd, Activation::Clamp { low, high }, v),
        _ => v,
    }
}

/// 3 x 3 neighbouring taps in one plane at a step of `STEP`, the weights in registers: each vector of the padded
/// rows is loaded once for all the rows of the block that see it.
struct Three<S: Simd, const STEP: usize> {
    weights: [[S::F; 3]; 3],
}

impl<S: Simd, const STEP: usize> Three<S, STEP> {
    /// # Safety
    /// - Nine weights are readable.
    #[inline(always)]
    unsafe fn new(simd: S, tile: &Tile<'_>) -> Self {
        let mut weights = [[simd.zero(); 3]; 3];
        for kh in 0..3 {
            for kw in 0..3 {
                // SAFETY: nine weights.
                weights[kh][kw] = simd.splat(unsafe { *tile.weights.add(3 * kh + kw) });
            }
        }
        Self { weights }
    }
}

impl<S: Simd, const STEP: usize> Block<S> for Three<S, STEP> {
    #[inline(always)]
    unsafe fn block<const R: usize, const V: usize>(&self, simd: S, tile: &Tile<'_>, r: usize, c: usize) {
        let row_len = tile.layout.row_len;
        // SAFETY: the padded rows hold the positions of all targets of the block, and `SPARE` elements more.
        unsafe {
            let first = tile.rows[0].offset * row_len + tile.columns[0].shift;
            let x = tile.x.add(r * STEP * row_len + first + c);
            let mut acc = [[simd.zero(); V]; R];
            // Nine steps without a condition are unrolled for sure, and then each vector is loaded once.
            for kh in 0..3 {
                for kw in 0..3 {
                    let at = if STEP == 1 { kw } else { kw % 2 * tile.layout.slot_len + kw / 2 };
                    for q in 0..R {
                        for v in 0..V {
                            let x = simd.load(x.add((q * STEP + kh) * row_len + at + v * S::LANES));
                            acc[q][v] = simd.fma(self.weights[kh][kw], x, acc[q][v]);
                        }
                    }
                }
            }
            for q in 0..R {
                for v in 0..V {
                    finish(simd, tile, 0, r + q, c + v * S::LANES, acc[q][v]);
                }
            }
        }
    }
}

/// Any taps and planes, for `O` channels at once: each weight meets `R x V` vectors, each vector `O` weights.
struct Any<const O: usize>;

impl<S: Simd, const O: usize> Block<S> for Any<O> {
    #[inline(always)]
    unsafe fn block<const R: usize, const V: usize>(&self, simd: S, tile: &Tile<'_>, r: usize, c: usize) {
        let (row_len, slot_len) = (tile.layout.row_len, tile.layout.slot_len);
        let row_step = tile.row_step * row_len;
        let mut acc = [[[simd.zero(); V]; R]; O];
        let mut w = tile.weights;
        // SAFETY: the padded rows hold the positions of all targets of the block, and `SPARE` elements more; one
        // weight per plane, tap and channel.
        unsafe {
            for p in 0..tile.planes {
                for kh in tile.rows {
                    let x = tile.x.add(p * tile.plane_len + r * row_step + kh.offset * row_len + c);
                    for kw in tile.columns {
                        let x = x.add(kw.slot * slot_len + kw.shift);
                        let mut vectors = [[simd.zero(); V]; R];
                        for q in 0..R {
                            for v in 0..V {
                                vectors[q][v] = simd.load(x.add(q * row_step + v * S::LANES));
                            }
                        }
                        for o in 0..O {
                            let weight = simd.splat(*w.add(o));
                            for q in 0..R {
                                for v in 0..V {
                                    acc[o][q][v] = simd.fma(weight, vectors[q][v], acc[o][q][v]);
                                }
                            }
                        }
                        w = w.add(O);
                    }
                }
            }
            for o in 0..O {
                for q in 0..R {
                    for v in 0..V {
                        finish(simd, tile, o, r + q, c + v * S::LANES, acc[o][q][v]);
                    }
                }
            }
        }
    }
}
