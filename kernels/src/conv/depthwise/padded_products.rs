//! The same products from padded copies: for groups of several channels, whose copies are used more than once, for
//! channels last, and for column steps beyond 2.
//!
//! A band of rows is copied, then each tap row adds the products of its taps, or 3 x 3 neighbours all nine at once.

use super::axis::Tap;
use super::products::ROW_BLOCK;
use super::rows::{RowLayout, SPARE, fill};
use super::weights::{LANES, Shared, WeightGradient};
use crate::conv::spec::Layout;
use crate::simd::Simd;
use crate::stages::{Laps, Stage};

impl Shared<'_> {
    /// The lanes of every tap of a group, from padded copies of its planes.
    ///
    /// # Safety
    /// - Images and group exist; `padded` is a slot's scratch memory, zero everywhere, `lanes` the lanes in it.
    #[inline(always)]
    pub(super) unsafe fn padded_products<S: Simd>(
        &self,
        simd: S,
        group: usize,
        images: std::ops::Range<usize>,
        padded: *mut f32,
        lanes: *mut f32,
        laps: &mut Laps,
    ) {
        let (gradient, frame) = (self.gradient, &self.frame);
        let (planes, outs, taps) = (gradient.planes, gradient.outs, gradient.taps);
        let [height, width] = self.output;
        // SAFETY: the caller's contract; bands are within the call's sizes.
        unsafe {
            let dy_rows = padded.add(planes * frame.plane_len + SPARE);
            for n in images {
                for band in 0..frame.bands {
                    let first = band * frame.band;
                    let count = frame.band.min(height - first);
                    for p in 0..planes {
                        let (rows, columns) = (&gradient.rows, &gradient.columns);
                        let to = padded.add(p * frame.plane_len);
                        let clear = frame.bands > 1;
                        let channel = self.x_channel(n, group * planes + p);
                        let positions = rows.positions(count);
                        fill(simd, channel, rows, columns, frame.row_layout, to, first * rows.step, positions, clear);
                    }
                    laps.lap(Stage::Pack);
                    for o in 0..outs {
                        let channel = self.dy_channel(n, group * outs + o);
                        let mut dy = Rows { start: channel.start.add(first * channel.strides[0]), row: width };
                        if gradient.layout == Layout::Nhwc {
                            let identity = &gradient.identity;
                            let to = dy_rows.add(o * frame.band.min(height) * frame.dy_layout.row_len);
                            fill(simd, channel, identity, identity, frame.dy_layout, to, first, count, false);
                            dy = Rows { start: to, row: frame.dy_layout.row_len };
                            laps.lap(Stage::Pack);
                        }
                        for p in 0..planes {
                            let x = padded.add(p * frame.plane_len);
                            let lanes = lanes.add((o * planes + p) * taps * LANES);
                            add_products(simd, gradient, frame.row_layout, x, dy, [count, width], lanes);
                        }
                        laps.lap(Stage::Product);
                    }
                }
            }
        }
    }
}

/// Rows of `dy`.
#[derive(Clone, Copy)]
struct Rows {
    start: *const f32,
    row: usize,
}

/// Adds the products of a band to the lanes of all taps of one pair of channels.
///
/// # Safety
/// - `x` holds the padded rows of `size[0]` rows of `dy`, which have `size[1]` columns.
/// - `lanes` holds 16 floats for each tap.
#[inline(always)]
unsafe fn add_products<S: Simd>(
    simd: S,
    gradient: &WeightGradient,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    lanes: *mut f32,
) {
    let (rows, columns) = (&gradient.rows.phases[0].taps, &gradient.columns.phases[0].taps);
    let step = gradient.rows.step;
    let mut lane = 0;
    while lane < LANES.min(size[1]) {
        // SAFETY: passed on; lanes from `lane` on, those of the columns `lane % 16`.
        unsafe {
            let lanes = lanes.add(lane);
            if gradient.dense {
                if step == 1 {
                    three::<S, 1>(simd, layout, x, dy, size, lane, lanes);
                } else {
                    three::<S, 2>(simd, layout, x, dy, size, lane, lanes);
                }
            } else {
                for (i, kh) in rows.iter().enumerate() {
                    let x = x.add(kh.offset * layout.row_len);
                    let mut done = 0;
                    while done < columns.len() {
                        let lanes = lanes.add((i * columns.len() + done) * LANES);
                        let taps = &columns[done..];
                        let row_step = step * layout.row_len;
                        done += match taps.len() {
                            1 => some::<S, 1>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            2 => some::<S, 2>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            3 => some::<S, 3>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            4 => some::<S, 4>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            5 => some::<S, 5>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            6 => some::<S, 6>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            7 => some::<S, 7>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            _ => some::<S, 8>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                        };
                    }
                }
            }
        }
        lane += S::LANES;
    }
}

/// Adds the products of the first `K` taps of a tap row to their lanes. Returns `K`.
///
/// # Safety
/// - As [`add_products`], `x` and `lanes` being moved to the tap row.
#[inline(always)]
unsafe fn some<S: Simd, const K: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    row_step: usize,
    dy: Rows,
    size: [usize; 2],
    taps: &[Tap],
    lane: usize,
    lanes: *mut f32,
) -> usize {
    let mut offsets = [0; K];
    let mut acc = [simd.zero(); K];
    // SAFETY: the padded rows hold the positions of all columns, and `SPARE` elements more.
    unsafe {
        for k in 0..K {
            offsets[k] = taps[k].slot * layout.slot_len + taps[k].shift;
            acc[k] = simd.load(lanes.add(k * LANES));
        }
        for r in 0..size[0] {
            let (x, dy) = (x.add(r * row_step), dy.start.add(r * dy.row));
            let mut c = lane;
            while c < size[1] {
                let d = load_columns(simd, dy.add(c), size[1] - c);
                for k in 0..K {
                    acc[k] = simd.fma(d, simd.load(x.add(offsets[k] + c)), acc[k]);
                }
                c += LANES;
            }
        }
        for k in 0..K {
            simd.store(lanes.add(k * LANES), acc[k]);
        }
    }
    K
}

/// A vector of which `n` columns are left in the row.
///
/// # Safety
/// - `min(n, LANES)` floats are readable.
#[inline(always)]
unsafe fn load_columns<S: Simd>(simd: S, p: *const f32, n: usize) -> S::F {
    // SAFETY: the caller's contract.
    unsafe { if n >= S::LANES { simd.load(p) } else { simd.load_first(p, n) } }
}

/// Adds the products of 3 x 3 neighbouring taps to their lanes.
///
/// # Safety
/// - As [`add_products`].
#[inline(always)]
unsafe fn three<S: Simd, const STEP: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    lane: usize,
    lanes: *mut f32,
) {
    let mut acc = [[simd.zero(); 3]; 3];
    // SAFETY: the padded rows hold the positions of all columns, and `SPARE` elements more; nine taps have lanes.
    unsafe {
        for kh in 0..3 {
            for kw in 0..3 {
                acc[kh][kw] = simd.load(lanes.add((3 * kh + kw) * LANES));
            }
        }
        let mut r = 0;
        while r + ROW_BLOCK <= size[0] {
            three_rows::<S, STEP, ROW_BLOCK>(simd, layout, x, dy, size, r, lane, &mut acc);
            r += ROW_BLOCK;
        }
        while r < size[0] {
            three_rows::<S, STEP, 1>(simd, layout, x, dy, size, r, lane, &mut acc);
            r += 1;
        }
        for kh in 0..3 {
            for kw in 0..3 {
                simd.store(lanes.add((3 * kh + kw) * LANES), acc[kh][kw]);
            }
        }
    }
}

/// The rows `r .. r + R` of [`three`].
///
/// # Safety
/// - As [`add_products`].
#[inline(always)]
unsafe fn three_rows<S: Simd, const STEP: usize, const R: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    r: usize,
    lane: usize,
    acc: &mut [[S::F; 3]; 3],
) {
    let mut c = lane;
    // SAFETY: the caller's contract.
    unsafe {
        let x = x.add(r * STEP * layout.row_len);
        let dy_start = dy.start.add(r * dy.row);
        while c < size[1] {
            let mut d = [simd.zero(); R];
            for q in 0..R {
                d[q] = load_columns(simd, dy_start.add(q * dy.row + c), size[1] - c);
            }
            for i in 0..(R - 1) * STEP + 3 {
                for kw in 0..3 {
                    let at = if STEP == 1 { kw } else { kw % 2 * layout.slot_len + kw / 2 };
                    let x = simd.load(x.add(i * layout.row_len + at + c));
                    for q in 0..R {
                        if i >= q * STEP && i - q * STEP < 3 {
                            acc[i - q * STEP][kw] = simd.fma(d[q], x, acc[i - q * STEP][kw]);
                        }
                    }
                }
            }
            c += LANES;
        }
    }
}
