//! The weights of the dense algorithms, packed: panels of rows, one element of each row beside the other.
//!
//! ```text
//! row 0   w00 w01 w02 ...                 k = 0         k = 1
//! row 1   w10 w11 w12 ...    ──►          w00 w10 w20   w01 w11 w21   ...
//! row 2   w20 w21 w22 ...
//! ```
//!
//! A row is an output channel of the slide, its elements `(ic, tap)` in order. Where neither they nor the rows are
//! neighbours in memory, weights are copied one by one.

use std::ops::Range;

use super::slide::Tap;
use crate::gemm::tile::{MAX_HEIGHT, Matrix};
use crate::gemm::{pack_strip, pack_transposed};
use crate::parallel::Parallelism;
use crate::simd::{Job, Simd};

/// A packed weight on one thread, to tell whether threads are worth waking.
const PACK_SECONDS: f64 = 0.5e-9;

/// Who packs so many weights.
pub(super) fn packers(parallelism: Parallelism<'_>, weights: usize) -> Parallelism<'_> {
    parallelism.for_seconds(weights as f64 * PACK_SECONDS)
}

/// Where the weights of a slide are.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub values: &'a [f32],
    /// From one group, one output channel and one input channel of the slide to the next.
    pub group: usize,
    pub output: usize,
    pub input: usize,
}

/// Packs some rows of a group: `to[k * height + i]` is element `k` of row `rows.start + i`, zero for `i >= rows.len()`.
pub(super) struct PackRows<'a> {
    pub source: Source<'a>,
    pub group: usize,
    pub rows: Range<usize>,
    pub in_channels: usize,
    pub taps: &'a [Tap],
    pub height: usize,
    /// Room for the panel, which this job alone writes.
    pub to: *mut f32,
}

impl Job for PackRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, group, rows, in_channels, taps, height, to } = self;
        let depth = in_channels * taps.len();
        if rows.is_empty() || depth == 0 {
            return;
        }
        let first = &source.values[group * source.group + rows.start * source.output..];
        let reach = taps.iter().map(|tap| tap.filter_index).max().unwrap_or(0);
        assert!((rows.len() - 1) * source.output + (in_channels - 1) * source.input + reach < first.len());
        let in_order = taps.iter().enumerate().all(|(at, tap)| tap.filter_index == at);
        let column_stride = if in_order && taps.len() == source.input { 1 } else { source.input };
        let matrix =
            Matrix { start: first.as_ptr(), row_stride: source.output as isize, column_stride: column_stride as isize };
        // SAFETY: the elements of all rows are within the weights, as was just asserted, and the panel has room for
        // `height` rows.
        unsafe {
            if column_stride == 1 || (taps.len() == 1 && reach == 0) {
                if height <= MAX_HEIGHT && height == rows.len() {
                    // Rows that follow may be read with these, where they are neighbours.
                    let readable = match source.output {
                        1 => first.len() - (in_channels - 1) * source.input,
                        _ => height,
                    };
                    return pack_strip(simd, matrix, readable, [0, height], 0..depth, to);
                }
                if column_stride == 1 {
                    return pack_transposed(simd, matrix.transposed(), 0..depth, [0, rows.len()], height, to);
                }
            }
            for ic in 0..in_channels {
                for (at, tap) in taps.iter().enumerate() {
                    let from = first.as_ptr().add(ic * source.input + tap.filter_index);
                    let to = to.add((ic * taps.len() + at) * height);
                    if source.output == 1 {
                        to.copy_from_nonoverlapping(from, rows.len());
                    } else {
                        for i in 0..rows.len() {
                            *to.add(i) = *from.add(i * source.output);
                        }
                    }
                    for i in rows.len()..height {
                        *to.add(i) = 0.0;
                    }
                }
            }
        }
    }
}

/// Packs a strip of the rows `(ic, tap)` of one group's weights, transposed: `to[oc * height + i]` is that of row
/// `row + i`, which is number `ic * taps + taps - 1 - tap`.
pub(super) struct PackColumns<'a> {
    /// `[out_channels][in_channels][taps]`
    pub weights: &'a [f32],
    pub in_channels: usize,
    pub taps: usize,
    pub row: usize,
    pub height: usize,
    /// Room for the strip, which this job alone writes.
    pub to: *mut f32,
}

impl Job for PackColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { weights, in_channels, taps, row, height, to } = self;
        let all = in_channels * taps;
        let out_channels = weights.len() / all;
        assert!(row + height <= all);
        // SAFETY: the rows are among those of each output channel, as was just asserted, and the strip has room for
        // them.
        unsafe {
            if taps == 1 && height <= MAX_HEIGHT {
                let matrix = Matrix { start: weights.as_ptr(), row_stride: 1, column_stride: all as isize };
                return pack_strip(simd, matrix, all, [row, height], 0..out_channels, to);
            }
            for i in 0..height {
                let (ic, tap) = ((row + i) / taps, taps - 1 - (row + i) % taps);
                let from = weights.as_ptr().add(ic * taps + tap);
                for oc in 0..out_channels {
                    *to.add(oc * height + i) = *from.add(oc * all);
                }
            }
        }
    }
}
