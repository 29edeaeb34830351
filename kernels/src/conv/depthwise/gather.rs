//! Planes of targets straight from the image: any taps, at a column step of 1 or 2.
//!
//! ```text
//!              columns c + tap of a source row: one load, or two and their even and odd lanes at a step of 2
//! source row p   ┌────────────┐        w[p][k]        w[p-1][k]      w[p-2][k]      w[p-3][k]
//!                └────────────┘  ──►   row r + 0      row r + 1      row r + 2      row r + 3    four chains
//! ```
//!
//! Each vector of the source meets all rows of a block that see it, so that loads, which mostly cross cache lines, are
//! fewer than products. No copy is made: lanes whose column is padding are masked, rows that are padding left out.
//!
//! - The gradient of the input at a stride of 2: even and odd columns are two phases, each a gather at a step of 1; both are
//!   computed together and stored as whole rows.
//! - Other strides: all columns are computed (no more work than at a stride of 1), and those that are targets are picked; or
//!   phases are computed one by one and scattered.
//!
//! Each target is one chain of fused multiply-adds over planes, tap rows and tap columns in order.

use super::axis::{Axis, Tap};
use super::finish::Finish;
use super::halves::Halves;
use super::source::Row;
use crate::simd::{Job, Simd};

/// Target rows of a block.
pub(super) const ROWS: usize = 4;

/// Planes whose sum is one plane of targets, or some rows of it.
///
/// Whoever makes one vouches that the source planes are readable, that there are weights for all taps, and that the targets
/// of the rows named, and what `finish` names for them, belong to it.
pub(super) struct Gather<'a> {
    /// `planes` planes, one behind the other.
    pub source: *const f32,
    pub source_size: [usize; 2],
    pub planes: usize,
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    /// `[row phase][column phase][filters][tap row][tap column]`
    pub weights: *const f32,
    pub filters: usize,
    /// The filter of the first plane; the others follow.
    pub filter: usize,
    /// The whole plane, of which rows `begin .. end` are computed.
    pub target: *mut f32,
    pub size: [usize; 2],
    pub begin: usize,
    pub end: usize,
    pub finish: Finish,
}

/// Taps of one axis: neighbours are `pitch` apart.
#[derive(Clone, Copy)]
pub(super) struct Taps {
    /// The source position of the first target's first tap.
    pub first: isize,
    pub pitch: usize,
    pub count: usize,
}

impl Taps {
    pub fn new(axis: &Axis, taps: &[Tap]) -> Self {
        let offset = |k: usize| taps.get(k).map_or(0, |tap| tap.offset);
        let pitch = if taps.len() > 1 { offset(1) - offset(0) } else { 1 };
        debug_assert!(taps.windows(2).all(|pair| pair[1].offset - pair[0].offset == pitch));
        Self { first: axis.origin + offset(0) as isize, pitch, count: taps.len() }
    }

    /// From the first to the last tap.
    fn reach(&self) -> isize {
        (self.count.saturating_sub(1) * self.pitch) as isize
    }
}

impl Job for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, columns, .. } = self;
        let [_, width] = self.size;
        let mut weights = self.weights;
        for row_phase in &rows.phases {
            // The phase's targets below a row of the plane.
            let below = |row: usize| steps(row.saturating_sub(row_phase.first), rows.out_step);
            let row_taps = Taps::new(rows, &row_phase.taps);
            // Rows of a block share source rows where they are as far apart as taps are.
            let spacing = if rows.step == 1 { row_taps.pitch } else { 1 };
            let between = if rows.step == 1 {
                1
            } else if row_taps.pitch == 1 {
                rows.step
            } else {
                0
            };
            let nothing = Phase { taps: Taps { first: 0, pitch: 1, count: 0 }, weights, first: 0 };
            let mut phases = [nothing; 2];
            for (at, column_phase) in columns.phases.iter().enumerate() {
                let taps = Taps::new(columns, &column_phase.taps);
                let phase = Phase {
                    taps,
                    // SAFETY: each phase has its taps of each filter.
                    weights: unsafe { weights.add(self.filter * row_taps.count * taps.count) },
                    first: column_phase.first,
                };
                weights = weights.wrapping_add(self.filters * row_taps.count * taps.count);
                let strip = |phases: [Phase; 2], count: usize, pick: usize| Strip {
                    gather: &self,
                    rows: row_taps,
                    row_first: row_phase.first,
                    begin: below(self.begin),
                    end: below(self.end),
                    spacing,
                    between,
                    phases,
                    count,
                    pick,
                };
                let count = steps(width.saturating_sub(column_phase.first), columns.out_step);
                match (columns.step, columns.out_step) {
                    (1, 2) => {
                        // The phase that has the first column comes first.
                        phases[column_phase.first] = phase;
                        if at == 1 {
                            halves(simd, strip(phases, width.div_ceil(2), 1));
                        }
                    }
                    (2, _) => simd.call(Sweep::<2, 1>(strip([phase, nothing], count, 1))),
                    (step, _) => {
                        let dense = if count == 0 { 0 } else { (count - 1) * step + 1 };
                        simd.call(Sweep::<1, 1>(strip([phase, nothing], dense, step)));
                    }
                }
            }
        }
    }
}

/// Even and odd columns together.
#[inline(always)]
fn halves<S: Simd>(simd: S, strip: Strip<'_>) {
    let [even, odd] = [strip.phases[0].taps, strip.phases[1].taps];
    let neighbours = strip.gather.planes == 1 && strip.rows.pitch == 1 && even.pitch == 1 && odd.pitch == 1;
    match (strip.rows.count, even.count, odd.count) {
        (1, 1, 2) if neighbours => simd.call(Halves::<1, 1, 2>(strip)),
        (1, 2, 1) if neighbours => simd.call(Halves::<1, 2, 1>(strip)),
        (2, 1, 2) if neighbours => simd.call(Halves::<2, 1, 2>(strip)),
        (2, 2, 1) if neighbours => simd.call(Halves::<2, 2, 1>(strip)),
        (2, 2, 3) if neighbours => simd.call(Halves::<2, 2, 3>(strip)),
        (2, 3, 2) if neighbours => simd.call(Halves::<2, 3, 2>(strip)),
        (3, 2, 3) if neighbours => simd.call(Halves::<3, 2, 3>(strip)),
        (3, 3, 2) if neighbours => simd.call(Halves::<3, 3, 2>(strip)),
        _ => simd.call(Sweep::<1, 2>(strip)),
    }
}

/// `n / step`, rounded up. Most steps are 1, and a division takes as long as a dozen products.
#[inline(always)]
fn steps(n: usize, step: usize) -> usize {
    if step == 1 { n } else { n.div_ceil(step) }
}

/// The columns of a phase.
#[derive(Clone, Copy)]
pub(super) struct Phase {
    pub taps: Taps,
    /// The first plane's.
    pub weights: *const f32,
    /// The column of the first target.
    first: usize,
}

/// The rows of a row phase, of one or two column phases.
pub(super) struct Strip<'a> {
    pub gather: &'a Gather<'a>,
    pub rows: Taps,
    /// The row of the phase's first target.
    pub row_first: usize,
    /// Targets of the phase, down.
    pub begin: usize,
    pub end: usize,
    /// Targets of the phase from row to row of a block.
    pub spacing: usize,
    /// Tap rows from row to row of a block; 0 where rows share none.
    pub between: usize,
    pub phases: [Phase; 2],
    /// Columns to compute.
    pub count: usize,
    /// Every so many is a target.
    pub pick: usize,
}

/// Covers a strip, at a column step of `STEP`. Made by [`Gather`] alone, whose contract it carries.
struct Sweep<'a, const STEP: usize, const PHASES: usize>(Strip<'a>);

impl<const STEP: usize, const PHASES: usize> Job for Sweep<'_, STEP, PHASES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strip = &self.0;
        // Vectors from `low` to `high` read nothing but columns of the image.
        let (lanes, width) = (S::LANES as isize, strip.gather.source_size[1] as isize);
        let (mut low, mut high) = (0, isize::MAX);
        for phase in &strip.phases[..PHASES] {
            let (first, last) = (phase.taps.first, phase.taps.first + phase.taps.reach());
            low = low.max(((-first).max(0) as usize).div_ceil(STEP));
            high = high.min((width - last - STEP as isize * lanes).div_euclid(STEP as isize));
        }
        let inside = |c: usize| c >= low && c as isize <= high;
        let (rows, spacing) = if strip.between == 0 { (1, 1) } else { (ROWS, strip.spacing) };
        let mut run = strip.begin;
        while run < strip.end {
            for residue in 0..spacing.min(strip.end - run) {
                let j = run + residue;
                let live = steps(strip.end - j, spacing).min(rows);
                let mut c = 0;
                while c < strip.count {
                    let left = strip.count - c;
                    // SAFETY: rows and columns are targets of the strip; a last, partial vector is moved to the left
                    // where there is room; `inside` says where no lane is padding.
                    unsafe {
                        if STEP * PHASES == 1 && left >= 2 * S::LANES && inside(c) && inside(c + S::LANES) {
                            strip.block::<S, STEP, PHASES, 2, false>(simd, j, live, c);
                            c += 2 * S::LANES;
                            continue;
                        }
                        let at = if left >= S::LANES { c } else { strip.count.saturating_sub(S::LANES) };
                        if inside(at) {
                            strip.block::<S, STEP, PHASES, 1, false>(simd, j, live, at);
                        } else {
                            strip.block::<S, STEP, PHASES, 1, true>(simd, j, live, at);
                        }
                        c += S::LANES;
                    }
                }
            }
            run += rows * spacing;
        }
    }
}

impl Strip<'_> {
    /// `live` rows from target `j` of the phase on, and `V` vectors of columns from `c` on.
    ///
    /// # Safety
    /// - They are targets, at most [`ROWS`]; unless `EDGE`, all lanes read columns of the image.
    #[inline(always)]
    unsafe fn block<S: Simd, const STEP: usize, const PHASES: usize, const V: usize, const EDGE: bool>(
        &self,
        simd: S,
        j: usize,
        live: usize,
        c: usize,
    ) {
        let gather = self.gather;
        let [height, width] = gather.source_size;
        let mut acc = [[[simd.zero(); V]; ROWS]; PHASES];
        for plane in 0..gather.planes {
            let source = gather.source.wrapping_add(plane * height * width);
            // Rows `low .. high` of the block see source row `p`, with their tap rows `p - row * between`.
            let (mut low, mut high) = (0, 0);
            let (mut low_at, mut high_at) = (self.rows.count, 0);
            let mut row = (j * gather.rows.step) as isize + self.rows.first;
            let positions = if self.rows.count == 0 { 0 } else { (live - 1) * self.between + self.rows.count };
            for p in 0..positions {
                if p == high_at && high < live {
                    high += 1;
                    high_at += self.between;
                }
                if p == low_at {
                    low += 1;
                    low_at += self.between;
                }
                if row >= 0 && row < height as isize {
                    let start = source.wrapping_add(row as usize * width);
                    let (row, tap_row) = (Row { start, width }, plane * self.rows.count + p);
                    // SAFETY: the row is one of the plane, and the rows of the block see it.
                    unsafe {
                        match (low, high) {
                            (0, 1) => self.add::<S, STEP, PHASES, V, EDGE, 0, 1>(simd, row, tap_row, c, &mut acc),
                            (0, 2) => self.add::<S, STEP, PHASES, V, EDGE, 0, 2>(simd, row, tap_row, c, &mut acc),
                            (0, 3) => self.add::<S, STEP, PHASES, V, EDGE, 0, 3>(simd, row, tap_row, c, &mut acc),
                            (0, 4) => self.add::<S, STEP, PHASES, V, EDGE, 0, 4>(simd, row, tap_row, c, &mut acc),
                            (1, 2) => self.add::<S, STEP, PHASES, V, EDGE, 1, 2>(simd, row, tap_row, c, &mut acc),
                            (1, 3) => self.add::<S, STEP, PHASES, V, EDGE, 1, 3>(simd, row, tap_row, c, &mut acc),
                            (1, 4) => self.add::<S, STEP, PHASES, V, EDGE, 1, 4>(simd, row, tap_row, c, &mut acc),
                            (2, 3) => self.add::<S, STEP, PHASES, V, EDGE, 2, 3>(simd, row, tap_row, c, &mut acc),
                            (2, 4) => self.add::<S, STEP, PHASES, V, EDGE, 2, 4>(simd, row, tap_row, c, &mut acc),
                            (3, 4) => self.add::<S, STEP, PHASES, V, EDGE, 3, 4>(simd, row, tap_row, c, &mut acc),
                            // With fewer tap rows than between two rows, some source rows are seen by none.
                            _ => {}
                        }
                    }
                }
                row += self.rows.pitch as isize;
            }
        }
        // SAFETY: the maker's promise.
        let bias = unsafe { gather.finish.bias(simd) };
        for q in 0..ROWS {
            if q < live {
                let row = self.row_first + (j + q * self.spacing) * gather.rows.out_step;
                for v in 0..V {
                    let c = c + v * S::LANES;
                    // SAFETY: the row's targets from `c` on.
                    unsafe {
                        if PHASES == 2 {
                            let (low, high) = simd.interleave(acc[0][q][v], acc[PHASES - 1][q][v]);
                            self.write(simd, bias, row, 2 * c, low);
                            self.write(simd, bias, row, 2 * c + S::LANES, high);
                        } else if self.pick == 1 && gather.columns.out_step == 1 {
                            self.write(simd, bias, row, c, acc[0][q][v]);
                        } else {
                            self.scatter(simd, bias, row, c, acc[0][q][v]);
                        }
                    }
                }
            }
        }
    }

    /// Adds the products of a source row to the sums of the rows `LOW .. HIGH` of a block, of which the first sees it with
    /// tap row `tap_row`.
    ///
    /// # Safety
    /// - As [`Strip::block`]; these rows see the source row.
    #[inline(always)]
    unsafe fn add<
        S: Simd,
        const STEP: usize,
        const PHASES: usize,
        const V: usize,
        const EDGE: bool,
        const LOW: usize,
        const HIGH: usize,
    >(
        &self,
        simd: S,
        row: Row,
        tap_row: usize,
        c: usize,
        acc: &mut [[[S::F; V]; ROWS]; PHASES],
    ) {
        for f in 0..PHASES {
            let Phase { taps, weights, .. } = self.phases[f];
            let mut weight = weights.wrapping_add(tap_row * taps.count);
            let back = self.between * taps.count;
            let mut at = (c * STEP) as isize + taps.first;
            let mut k = 0;
            // SAFETY: the caller's contract; weights of the tap rows that the block's rows are at.
            unsafe {
                if STEP == 2 && taps.pitch == 1 {
                    // A pair of taps is the even and the odd lanes of the same columns.
                    while k + 2 <= taps.count {
                        let (even, odd) = row.pair::<S, EDGE>(simd, at);
                        for q in LOW..HIGH {
                            let weight = weight.wrapping_sub(q * back);
                            acc[f][q][0] = simd.fma(simd.splat(*weight), even, acc[f][q][0]);
                            acc[f][q][0] = simd.fma(simd.splat(*weight.add(1)), odd, acc[f][q][0]);
                        }
                        weight = weight.wrapping_add(2);
                        at += 2;
                        k += 2;
                    }
                }
                while k < taps.count {
                    let mut x = [simd.zero(); V];
                    for v in 0..V {
                        let at = at + (v * S::LANES) as isize;
                        x[v] = if STEP == 2 {
                            row.pair::<S, EDGE>(simd, at).0
                        } else {
                            row.vector::<S, EDGE>(simd, at)
                        };
                    }
                    for q in LOW..HIGH {
                        let weight = simd.splat(*weight.wrapping_sub(q * back));
                        for v in 0..V {
                            acc[f][q][v] = simd.fma(weight, x[v], acc[f][q][v]);
                        }
                    }
                    weight = weight.wrapping_add(1);
                    at += taps.pitch as isize;
                    k += 1;
                }
            }
        }
    }

    /// Finishes and writes neighbouring targets, from column `c` of the plane on, as far as the row goes.
    ///
    /// # Safety
    /// - The row is a target.
    #[inline(always)]
    pub unsafe fn write<S: Simd>(&self, simd: S, bias: Option<S::F>, row: usize, c: usize, sums: S::F) {
        let width = self.gather.size[1];
        if c < width {
            // SAFETY: the caller's contract.
            unsafe { self.gather.finish.write(simd, bias, self.gather.target, row * width + c, width - c, sums) };
        }
    }

    /// Finishes and writes the targets among computed columns, from `c` on.
    ///
    /// # Safety
    /// - The row is a target.
    #[inline(always)]
    unsafe fn scatter<S: Simd>(&self, simd: S, bias: Option<S::F>, row: usize, c: usize, sums: S::F) {
        let gather = self.gather;
        let mut lanes = [0.0f32; 16];
        // SAFETY: no vector has more than 16 lanes; the caller's contract.
        unsafe {
            simd.store(lanes.as_mut_ptr(), sums);
            let mut j = c.div_ceil(self.pick);
            while j * self.pick < (c + S::LANES).min(self.count) {
                let at = row * gather.size[1] + self.phases[0].first + j * gather.columns.out_step;
                let sum = simd.splat(lanes[j * self.pick - c]);
                gather.finish.write(simd, bias, gather.target, at, 1, sum);
                j += 1;
            }
        }
    }
}
