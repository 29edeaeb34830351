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
//! One channel of one plane whose tap columns are neighbours is a stack ([`super::stack`]).
//!
//! Each target is one chain of fused multiply-adds over planes, tap rows and tap columns in order, whatever the
//! tile. Rows end with a vector that overlaps its neighbour; where a row is shorter than a vector, the excess is
//! written into the next row, which is written after it.

use super::axis::Tap;
use super::finish::{Finish, limit};
use super::rows::RowLayout;
use super::stack::{Stack, is_dense};
use crate::simd::{Job, Simd};

/// A rectangle of targets of neighbouring channels, and what they are gathered from.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
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

impl<'a> Tile<'a> {
    /// A tile of one channel from one plane as a stack, if it can be one: tap columns are neighbours, and target rows
    /// so many tap rows apart.
    fn stack(&self) -> Option<Stack<'a>> {
        let pitch = self.rows.get(1).map_or(1, |second| second.offset - self.rows[0].offset);
        let suits = self.planes == 1 && pitch.is_multiple_of(self.row_step) && is_dense(self.columns);
        let apart = pitch / self.row_step;
        suits.then(|| Stack {
            x: self.x.wrapping_add(self.rows.first().map_or(0, |first| first.offset) * self.layout.row_len),
            image: None,
            x_row: pitch * self.layout.row_len,
            apart,
            x_target: self.row_step * self.layout.row_len,
            tap_rows: self.rows.len(),
            columns: self.columns,
            weights: self.weights,
            y: self.y,
            y_row: self.y_row,
            size: self.size,
            y_len: if apart == 1 { self.y_len } else { 0 },
            finish: self.finish,
        })
    }
}

/// Computes a tile of `channels` (1, 2 or 4) channels.
///
/// # Safety
/// - The padded rows and the weights are readable as the tile says.
/// - `y` is writable at `channel * y_channel + row * y_row + column` for each target, and below `y_len` of each
///   channel; bias and residual are readable for the same.
#[inline(always)]
pub(super) unsafe fn compute<S: Simd>(simd: S, tile: &Tile<'_>, channels: usize) {
    if let (1, Some(stack)) = (channels, tile.stack()) {
        return simd.call(stack);
    }
    let wide = tile.size[1] > S::LANES;
    match channels {
        1 if wide => simd.call(SweepAny::<1, 4, 2>(tile)),
        1 => simd.call(SweepAny::<1, 4, 1>(tile)),
        2 if wide => simd.call(SweepAny::<2, 2, 2>(tile)),
        2 => simd.call(SweepAny::<2, 4, 1>(tile)),
        _ if wide => simd.call(SweepAny::<4, 1, 2>(tile)),
        _ => simd.call(SweepAny::<4, 2, 1>(tile)),
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

/// A block of `R` rows and `V` vectors.
trait Block<S: Simd> {
    /// # Safety
    /// - As [`compute`]; rows `r .. r + R` and columns from `c` on are targets, except that the last vector may reach
    ///   past the row's end if it is the only one.
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
