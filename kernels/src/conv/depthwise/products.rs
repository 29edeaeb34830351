//! Products of a plane of the gradient and the plane that it came from, summed for each tap, straight from both.
//!
//! ```text
//!   a row of dy   |0 1 2 ... 15|16 17 ...      column ow goes to lane ow % 16 of each tap
//!
//!   row r     of dy  ──┐
//!   row r + 1 of dy  ──┤   a vector of x, loaded once, meets up to three rows of dy
//!   row r + 2 of dy  ──┘   and adds to as many of the 3 x 3 taps whose lanes are in registers
//! ```
//!
//! Larger kernels are covered by tiles of 3 x 3 taps, one after the other over a band of rows that stays in the
//! first-level cache. Each lane of a tap is one chain over blocks of rows, blocks of columns and rows in order,
//! whatever the band. Lanes whose column is padding are masked, rows that are padding left out.

use super::axis::{Axis, Taps};
use super::source::inside;
use super::weights::LANES;
use crate::simd::{Job, Simd};

/// Rows of `dy` whose windows share the vectors that they read.
pub(super) const ROW_BLOCK: usize = 4;

/// Elements of `x` and `dy` in a band: 24 KiB of the first-level cache.
const BAND_LEN: usize = 6144;

/// Taps of a tile, down and along.
const TILE: usize = 3;

/// Adds a plane's products to the lanes of all taps, for a column step of 1 or 2.
///
/// Whoever makes one vouches that both planes are readable and that there are 16 lanes for each tap.
pub(super) struct Products<'a> {
    pub x: *const f32,
    pub size: [usize; 2],
    pub dy: *const f32,
    pub dy_size: [usize; 2],
    /// Those of the forward pass.
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    /// `[tap row][tap column][lane]`
    pub lanes: *mut f32,
}

/// [`Products`] at a column step of `STEP`.
pub(super) struct Tiles<'a, const STEP: usize>(pub Products<'a>);

impl<const STEP: usize> Job for Tiles<'_, STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Products { rows, columns, size, dy_size: [height, width], .. } = self.0;
        let row_taps = Taps::new(rows, &rows.phases[0].taps);
        let column_taps = Taps::new(columns, &columns.phases[0].taps);
        // Tap rows share rows of x, and a pair of tap columns is the even and odd lanes of one, only where neighbours.
        let down = if row_taps.pitch == 1 && rows.step == STEP { TILE } else { 1 };
        let along = if STEP == 1 || column_taps.pitch == 1 { TILE } else { 1 };
        let one = row_taps.count <= down && column_taps.count <= along;
        // Whole blocks of rows in all bands but the last, so that the order of a sum does not depend on the band.
        let band = if one || height * (rows.step * size[1] + width) <= BAND_LEN {
            height
        } else {
            (BAND_LEN / (rows.step * size[1] + width)).next_multiple_of(ROW_BLOCK).max(ROW_BLOCK)
        };
        // Loops whose step is a variable begin with a division; these do not.
        let mut lane = 0;
        while lane < LANES.min(width) {
            let mut first = 0;
            while first < height {
                let rows = [first, height.min(first + band)];
                let mut kh = 0;
                while kh < row_taps.count {
                    let mut kw = 0;
                    while kw < column_taps.count {
                        let tile = Tile { products: &self.0, taps: [row_taps, column_taps], kh, kw, rows, lane };
                        let (left, right) = ((row_taps.count - kh).min(down), (column_taps.count - kw).min(along));
                        // SAFETY: the maker's promise; the tile's taps and rows exist.
                        unsafe {
                            match (left, right) {
                                (1, 1) => tile.run::<S, STEP, 1, 1>(simd),
                                (1, 2) => tile.run::<S, STEP, 1, 2>(simd),
                                (1, _) => tile.run::<S, STEP, 1, 3>(simd),
                                (2, 1) => tile.run::<S, STEP, 2, 1>(simd),
                                (2, 2) => tile.run::<S, STEP, 2, 2>(simd),
                                (2, _) => tile.run::<S, STEP, 2, 3>(simd),
                                (_, 1) => tile.run::<S, STEP, 3, 1>(simd),
                                (_, 2) => tile.run::<S, STEP, 3, 2>(simd),
                                _ => tile.run::<S, STEP, 3, 3>(simd),
                            }
                        }
                        kw += along;
                    }
                    kh += down;
                }
                first += band;
            }
            lane += S::LANES;
        }
    }
}

/// Some taps, from `[kh, kw]` on, over rows `rows[0] .. rows[1]` of `dy`, and over the columns of a vector of lanes.
struct Tile<'a> {
    products: &'a Products<'a>,
    taps: [Taps; 2],
    kh: usize,
    kw: usize,
    rows: [usize; 2],
    lane: usize,
}

impl Tile<'_> {
    /// # Safety
    /// - The planes are readable, the `H` x `K` taps have lanes.
    #[inline(always)]
    unsafe fn run<S: Simd, const STEP: usize, const H: usize, const K: usize>(&self, simd: S) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut acc = self.lanes().load(simd);
            let [mut r, end] = self.rows;
            while r + ROW_BLOCK <= end {
                self.block::<S, STEP, H, K, ROW_BLOCK>(simd, r, &mut acc);
                r += ROW_BLOCK;
            }
            while r < end {
                self.block::<S, STEP, H, K, 1>(simd, r, &mut acc);
                r += 1;
            }
            self.lanes().store(simd, &acc);
        }
    }

    /// Where the lanes of the taps are.
    #[inline(always)]
    fn lanes(&self) -> TapLanes {
        let columns = self.taps[1].count;
        let first = self.kh * columns + self.kw;
        TapLanes { start: self.products.lanes.wrapping_add(first * LANES + self.lane), columns }
    }

    /// The rows `r .. r + R`.
    ///
    /// # Safety
    /// - As [`Tile::run`].
    #[inline(always)]
    unsafe fn block<S: Simd, const STEP: usize, const H: usize, const K: usize, const R: usize>(
        &self,
        simd: S,
        r: usize,
        acc: &mut [[S::F; K]; H],
    ) {
        let &Products { x, size, dy, dy_size: [_, width], rows, .. } = self.products;
        let first_row = (r * rows.step + self.kh * self.taps[0].pitch) as isize + self.taps[0].first;
        let first_column = self.taps[1].first + (self.kw * self.taps[1].pitch) as isize;
        // A tile of one tap row meets one row of x for each of dy; others meet all that lie between.
        let stride = if H == 1 { rows.step } else { 1 };
        let pitch = self.taps[1].pitch;
        let mut c = self.lane;
        while c < width {
            let at = (c * STEP) as isize + first_column;
            let see = Sight { x, size, row: first_row, pitch, stride, at };
            // With 16 registers masks and rows that may be missing have no room beside the taps, and most columns need
            // neither.
            let steps = if const { S::REGISTERS < 32 } { see.inside::<S, STEP, K>(R, H, width - c) } else { 0 };
            // SAFETY: columns of dy, and lanes that are columns of x; the tile's lanes.
            unsafe {
                if steps > 0 {
                    self.lanes().store(simd, acc);
                    simd.call(Run::<STEP, H, K, R> {
                        x: x.offset(first_row * size[1] as isize + at),
                        x_stride: stride * size[1],
                        pitch,
                        dy: dy.add(r * width + c),
                        width,
                        steps,
                        lanes: self.lanes(),
                    });
                    *acc = self.lanes().load(simd);
                    c += steps * LANES;
                    continue;
                }
                let masks = masks::<S, STEP, K>(simd, size[1], at, pitch);
                let mut d = [simd.zero(); R];
                for q in 0..R {
                    let from = dy.add((r + q) * width + c);
                    d[q] = if c + S::LANES <= width { simd.load(from) } else { simd.load_first(from, width - c) };
                }
                see.add_all::<S, STEP, H, K, R>(simd, &masks, &d, acc);
            }
            c += LANES;
        }
    }
}

/// A vector of the lanes of some taps.
#[derive(Clone, Copy)]
struct TapLanes {
    /// Those of the first.
    start: *mut f32,
    /// Taps of a row of them.
    columns: usize,
}

impl TapLanes {
    /// # Safety
    /// - The `H` x `K` taps have lanes.
    #[inline(always)]
    unsafe fn load<S: Simd, const H: usize, const K: usize>(self, simd: S) -> [[S::F; K]; H] {
        let mut acc = [[simd.zero(); K]; H];
        for h in 0..H {
            for k in 0..K {
                // SAFETY: the caller's contract.
                acc[h][k] = unsafe { simd.load(self.start.add((h * self.columns + k) * LANES)) };
            }
        }
        acc
    }

    /// # Safety
    /// - As for [`TapLanes::load`].
    #[inline(always)]
    unsafe fn store<S: Simd, const H: usize, const K: usize>(self, simd: S, acc: &[[S::F; K]; H]) {
        for h in 0..H {
            for k in 0..K {
                // SAFETY: the caller's contract.
                unsafe { simd.store(self.start.add((h * self.columns + k) * LANES), acc[h][k]) };
            }
        }
    }
}

/// The rows of a block over some steps of columns, all of whose products lie inside of the planes. A function of its
/// own, which holds nothing but the taps.
///
/// Whoever makes one vouches that all rows and columns are readable, and the lanes of `H` x `K` taps writable.
struct Run<const STEP: usize, const H: usize, const K: usize, const R: usize> {
    /// What the first tap meets first.
    x: *const f32,
    x_stride: usize,
    pitch: usize,
    dy: *const f32,
    width: usize,
    steps: usize,
    lanes: TapLanes,
}

impl<const STEP: usize, const H: usize, const K: usize, const R: usize> Job for Run<STEP, H, K, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, x_stride, pitch, dy, width, steps, lanes } = self;
        // SAFETY: the maker's promise.
        unsafe {
            let mut acc = lanes.load(simd);
            for step in 0..steps {
                let mut d = [simd.zero(); R];
                for q in 0..R {
                    d[q] = simd.load(dy.add(q * width + step * LANES));
                }
                for i in 0..rows_met(R, H, STEP) {
                    let row = x.add(i * x_stride + step * LANES * STEP);
                    let x = columns::<S, STEP, K>(simd, row, pitch, None);
                    add_row::<S, STEP, H, K, R>(simd, i, &x, &d, &mut acc);
                }
            }
            lanes.store(simd, &acc);
        }
    }
}

/// Rows of `x` that `height` rows of `dy` and so many tap rows meet.
#[inline(always)]
const fn rows_met(height: usize, tap_rows: usize, step: usize) -> usize {
    (height - 1) * if tap_rows == 1 { 1 } else { step } + tap_rows
}

/// Adds the products of row number `i` of `x` to the taps that meet it.
#[inline(always)]
fn add_row<S: Simd, const STEP: usize, const H: usize, const K: usize, const R: usize>(
    simd: S,
    i: usize,
    x: &[S::F; K],
    d: &[S::F; R],
    acc: &mut [[S::F; K]; H],
) {
    let step = if H == 1 { 1 } else { STEP };
    for q in 0..R {
        if i >= q * step && i - q * step < H {
            for k in 0..K {
                acc[i - q * step][k] = simd.fma(d[q], x[k], acc[i - q * step][k]);
            }
        }
    }
}

/// What a block sees of a plane of `x`.
struct Sight {
    x: *const f32,
    size: [usize; 2],
    /// The first row, and the distance to the next.
    row: isize,
    stride: usize,
    /// The first column of the first tap, and the distance to the next.
    at: isize,
    pitch: usize,
}

impl Sight {
    /// For how many steps of columns all that `height` rows of `dy` and `tap_rows` taps meet lies inside of `x`, and
    /// whole vectors inside of the `left` columns of `dy`.
    #[inline(always)]
    fn inside<S: Simd, const STEP: usize, const K: usize>(&self, height: usize, tap_rows: usize, left: usize) -> usize {
        let len = if STEP == 1 { (K - 1) * self.pitch + S::LANES } else { K.next_multiple_of(2) - 2 + 2 * S::LANES };
        let last_row = self.row + ((rows_met(height, tap_rows, STEP) - 1) * self.stride) as isize;
        let end = self.at.unsigned_abs() + len;
        if self.row < 0 || last_row >= self.size[0] as isize || self.at < 0 || end > self.size[1] || left < S::LANES {
            return 0;
        }
        ((self.size[1] - end) / (LANES * STEP)).min((left - S::LANES) / LANES) + 1
    }

    /// Adds the products of all rows.
    ///
    /// # Safety
    /// - As for [`Sight::add`].
    #[inline(always)]
    unsafe fn add_all<S: Simd, const STEP: usize, const H: usize, const K: usize, const R: usize>(
        &self,
        simd: S,
        masks: &[[S::M; STEP]; K],
        d: &[S::F; R],
        acc: &mut [[S::F; K]; H],
    ) {
        // SAFETY: passed on.
        unsafe {
            // Written out, so that numbers of accumulators are constants for sure.
            self.add::<S, STEP, H, K, R>(simd, 0, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 1, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 2, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 3, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 4, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 5, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 6, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 7, masks, d, acc);
            self.add::<S, STEP, H, K, R>(simd, 8, masks, d, acc);
        }
    }

    /// Adds the products of row number `i`, if there is one, to the taps that meet it.
    ///
    /// # Safety
    /// - The plane is readable; the masks are those of the columns.
    #[inline(always)]
    unsafe fn add<S: Simd, const STEP: usize, const H: usize, const K: usize, const R: usize>(
        &self,
        simd: S,
        i: usize,
        masks: &[[S::M; STEP]; K],
        d: &[S::F; R],
        acc: &mut [[S::F; K]; H],
    ) {
        let row = self.row + (i * self.stride) as isize;
        if i >= rows_met(R, H, STEP) || row < 0 || row >= self.size[0] as isize {
            return;
        }
        // SAFETY: the row is one of the plane.
        let x = unsafe {
            let row = self.x.add(row as usize * self.size[1]).wrapping_offset(self.at);
            columns::<S, STEP, K>(simd, row, self.pitch, Some(masks))
        };
        add_row::<S, STEP, H, K, R>(simd, i, &x, d, acc);
    }
}

/// The lanes that are columns of a row, of each vector that [`columns`] reads.
#[inline(always)]
fn masks<S: Simd, const STEP: usize, const K: usize>(
    simd: S,
    width: usize,
    at: isize,
    pitch: usize,
) -> [[S::M; STEP]; K] {
    let mut masks = [[simd.mask_first(S::LANES); STEP]; K];
    for k in 0..K {
        for half in 0..STEP {
            masks[k][half] = inside(simd, width, at + (k * pitch + half * S::LANES) as isize);
        }
    }
    masks
}

/// What `K` taps read for a vector of columns, from `start` on.
///
/// # Safety
/// - The masked lanes, or all, are columns of the row; at a step of 2 with more than one tap, taps are neighbours.
#[inline(always)]
unsafe fn columns<S: Simd, const STEP: usize, const K: usize>(
    simd: S,
    start: *const f32,
    pitch: usize,
    masks: Option<&[[S::M; STEP]; K]>,
) -> [S::F; K] {
    let mut x = [simd.zero(); K];
    // SAFETY: the caller's contract.
    unsafe {
        if STEP == 1 {
            for k in 0..K {
                x[k] = load(simd, start.wrapping_add(k * pitch), masks.map(|masks| masks[k][0]));
            }
            return x;
        }
        for k in (0..K).step_by(2) {
            let a = load(simd, start.wrapping_add(k), masks.map(|masks| masks[k][0]));
            let b = load(simd, start.wrapping_add(k + S::LANES), masks.map(|masks| masks[k][STEP - 1]));
            let (even, odd) = simd.even_odd(a, b);
            x[k] = even;
            if k + 1 < K {
                x[k + 1] = odd;
            }
        }
    }
    x
}

/// The lanes of the mask, or all.
///
/// # Safety
/// - They are readable.
#[inline(always)]
unsafe fn load<S: Simd>(simd: S, from: *const f32, mask: Option<S::M>) -> S::F {
    // SAFETY: passed on.
    unsafe {
        match mask {
            Some(mask) => simd.load_masked(from, mask),
            None => simd.load(from),
        }
    }
}
