//! Channels last, one channel in and out per group: channels are the lanes.
//!
//! ```text
//! channel   0 1 2 ... 7
//! pixel     x x x ... x   *  w[tap]   ──► acc of each of COLUMNS neighbouring targets
//! ```
//!
//! No copy is made, and taps that fall into the padding are left out: rows of taps for a whole row of targets,
//! columns of taps only near the borders. Each target is one chain over the taps in order.

use super::axis::{Axis, Phase, Tap};
use super::finish::limit;
use crate::activation::Activation;
use crate::simd::{Job, Simd};

/// Neighbouring targets that share each weight: independent chains that hide the latency of both FMA units.
const COLUMNS: usize = 8;

/// What all tasks of a call see.
pub(in crate::conv) struct ChannelLanes<'a> {
    pub channels: usize,
    /// Elements from pixel to pixel, in source and target, and from tap to tap.
    pub pixel_step: usize,
    pub tap_step: usize,
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    /// `[row phase][column phase][tap row][tap column]`, each of some channels
    pub weights: *const f32,
    pub source: *const f32,
    pub source_size: [usize; 2],
    pub target: *mut f32,
    pub target_size: [usize; 2],
    pub bias: Option<*const f32>,
    pub residual: Option<*const f32>,
    pub activation: Activation,
}

// SAFETY: tasks write to the target rows of their own units; all else is only read.
unsafe impl Sync for ChannelLanes<'_> {}

/// Target rows, counted through all images: `begin .. end`.
pub(in crate::conv) struct TargetRows<'a> {
    pub lanes: &'a ChannelLanes<'a>,
    pub begin: usize,
    pub end: usize,
}

impl Job for TargetRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { lanes, begin, end } = self;
        let height = lanes.target_size[0];
        for unit in begin..end {
            let (n, oh) = (unit / height, unit % height);
            // SAFETY: an image and a row of the target; no unit is run twice.
            unsafe { row(simd, lanes, n, oh) };
        }
    }
}

/// The columns of a phase whose taps all lie inside of an image: `begin .. end`.
#[inline(always)]
fn interior(axis: &Axis, phase: &Phase, count: usize, len: usize) -> (usize, usize) {
    let (Some(first), Some(last)) = (phase.taps.first(), phase.taps.last()) else { return (0, count) };
    let before = (-(axis.origin + first.offset as isize)).max(0) as usize;
    // The largest target whose last tap is below `len`.
    let room = len as isize - (axis.origin + last.offset as isize);
    let end = if room > 0 { (room as usize).div_ceil(axis.step) } else { 0 };
    let end = end.min(count);
    (before.div_ceil(axis.step).min(end), end)
}

/// One row of targets, all channels.
///
/// # Safety
/// - Image and row exist.
#[inline(always)]
pub(super) unsafe fn row<S: Simd>(simd: S, lanes: &ChannelLanes<'_>, n: usize, oh: usize) {
    let (rows, columns, channels, pixel) = (lanes.rows, lanes.columns, lanes.channels, lanes.pixel_step);
    let [height, width] = lanes.source_size;
    let [target_height, target_width] = lanes.target_size;
    let mut weights = lanes.weights;
    for row_phase in &rows.phases {
        let mine = oh >= row_phase.first && (oh - row_phase.first).is_multiple_of(rows.out_step);
        for column_phase in &columns.phases {
            let phase_weights = weights;
            // SAFETY: each phase has its taps.
            weights = unsafe { weights.add(row_phase.taps.len() * column_phase.taps.len() * lanes.tap_step) };
            if !mine {
                continue;
            }
            let j = (oh - row_phase.first) / rows.out_step;
            let count = columns.count(column_phase, target_width);
            let (begin, end) = interior(columns, column_phase, count, width);
            let mut c = 0;
            while c < channels {
                // A last, partial vector is moved to the left where there is room.
                let at = if c + S::LANES <= channels { c } else { channels.saturating_sub(S::LANES) };
                let run = Run {
                    lanes,
                    taps: [&row_phase.taps, &column_phase.taps],
                    weights: phase_weights.wrapping_add(at),
                    x: lanes.source.wrapping_add(n * height * width * pixel + at),
                    first_row: (j * rows.step) as isize + rows.origin,
                    y: ((n * target_height + oh) * target_width + column_phase.first) * pixel + at,
                    channel: at,
                    mask: simd.mask_first(channels - at),
                    whole: channels >= S::LANES,
                };
                let mut column = 0;
                // SAFETY: columns of this row of targets; blocks only where all taps are inside.
                unsafe {
                    while column < begin {
                        run.columns::<1>(simd, column, true);
                        column += 1;
                    }
                    while column + COLUMNS <= end {
                        run.columns::<COLUMNS>(simd, column, false);
                        column += COLUMNS;
                    }
                    while column + 3 <= end {
                        run.columns::<3>(simd, column, false);
                        column += 3;
                    }
                    while column < end {
                        run.columns::<1>(simd, column, false);
                        column += 1;
                    }
                    while column < count {
                        run.columns::<1>(simd, column, true);
                        column += 1;
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// A vector of channels along a row of targets.
struct Run<'a, S: Simd> {
    lanes: &'a ChannelLanes<'a>,
    taps: [&'a [Tap]; 2],
    weights: *const f32,
    /// The channels of the image's first pixel.
    x: *const f32,
    /// The source row of offset 0.
    first_row: isize,
    /// The place of the first target's channels.
    y: usize,
    channel: usize,
    mask: S::M,
    /// Whether all lanes are channels.
    whole: bool,
}

impl<S: Simd> Run<'_, S> {
    /// # Safety
    /// - The lanes of the mask are readable.
    #[inline(always)]
    unsafe fn load(&self, simd: S, p: *const f32) -> S::F {
        // SAFETY: the caller's contract.
        unsafe { if self.whole { simd.load(p) } else { simd.load_masked(p, self.mask) } }
    }

    /// The `Q` targets from `column` on.
    ///
    /// # Safety
    /// - They exist; unless `border`, all their tap columns are inside of the image.
    #[inline(always)]
    unsafe fn columns<const Q: usize>(&self, simd: S, column: usize, border: bool) {
        let lanes = self.lanes;
        let pixel = lanes.pixel_step;
        let [height, width] = lanes.source_size;
        let [tap_rows, tap_columns] = self.taps;
        let step = lanes.columns.step * pixel;
        let first_column = (column * lanes.columns.step) as isize + lanes.columns.origin;
        let mut acc = [simd.zero(); Q];
        // SAFETY: taps outside of the image are left out, so all loads are of its pixels.
        unsafe {
            for (i, kh) in tap_rows.iter().enumerate() {
                let ih = self.first_row + kh.offset as isize;
                if ih < 0 || ih >= height as isize {
                    continue;
                }
                for (k, kw) in tap_columns.iter().enumerate() {
                    let iw = first_column + kw.offset as isize;
                    if border && (iw < 0 || iw >= width as isize) {
                        continue;
                    }
                    let x = self.x.add((ih as usize * width + iw as usize) * pixel);
                    let w = self.load(simd, self.weights.add((i * tap_columns.len() + k) * lanes.tap_step));
                    for q in 0..Q {
                        acc[q] = simd.fma(w, self.load(simd, x.add(q * step)), acc[q]);
                    }
                }
            }
            for q in 0..Q {
                let at = self.y + (column + q) * lanes.columns.out_step * pixel;
                let mut v = acc[q];
                if let Some(bias) = lanes.bias {
                    v = simd.add(v, self.load(simd, bias.add(self.channel)));
                }
                if let Some(residual) = lanes.residual {
                    v = simd.add(v, self.load(simd, residual.add(at)));
                }
                v = limit(simd, lanes.activation, v);
                if self.whole {
                    simd.store(lanes.target.add(at), v);
                } else {
                    simd.store_masked(lanes.target.add(at), self.mask, v);
                }
            }
        }
    }
}
