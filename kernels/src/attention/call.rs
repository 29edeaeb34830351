//! A checked call as pointers and strides, and the buffers that tiles of rows share.

use super::spec::{AttentionSpec, Inputs, Shape};
use crate::tensor::View;

/// Rows of a tile: queries that go through the micro-kernel together, 6 x 2 vectors of 16 registers or 6 x 4 of 32.
pub(super) const MR: usize = 6;

/// Keys of the widest panel of any instruction set: 4 vectors of 16 lanes.
pub(super) const MAX_PANEL: usize = 64;

/// The most keys of a block.
pub(super) const MAX_BLOCK: usize = 256;

/// The distance of a tile's rows of scores: not a power of two, so that they do not share sets of the first-level cache.
pub(super) const SCORE_STRIDE: usize = MAX_BLOCK + 16;

/// The distance of a tile's rows of queries, which are copied so that it is a constant.
pub(super) const QUERY_STRIDE: usize = super::spec::MAX_HEAD_DIM + 16;

/// Keys of a block, which order the sums of a row: the packed keys and the values of a block take up to 256 KiB, half
/// of a second-level cache. A part of the algorithm, so it depends on the dimensions alone.
pub(super) fn block_keys(spec: &AttentionSpec) -> usize {
    match spec.head_dim.max(spec.v_dim) {
        ..=64 => MAX_BLOCK,
        65..=256 => 128,
        _ => 64,
    }
}

/// A view of four dimensions as a pointer and strides.
#[derive(Clone, Copy)]
pub(super) struct Raw<T> {
    pub start: *const T,
    pub strides: [isize; 4],
}

impl<T: Copy> Raw<T> {
    pub fn new(view: &View<'_, T, 4>) -> Self {
        Self { start: view.as_ptr(), strides: view.strides() }
    }

    /// The rows of one head.
    #[inline(always)]
    pub fn head(&self, batch: usize, head: usize) -> Rows<T> {
        let [b, h, row_stride, step] = self.strides;
        Rows { start: self.start.wrapping_offset(batch as isize * b + head as isize * h), row_stride, step }
    }
}

/// A matrix as a pointer and strides.
#[derive(Clone, Copy)]
pub(super) struct Rows<T> {
    pub start: *const T,
    pub row_stride: isize,
    pub step: isize,
}

impl<T> Rows<T> {
    /// The address of an element, or of where it would be.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> *const T {
        self.start.wrapping_offset(row as isize * self.row_stride + column as isize * self.step)
    }
}

/// What is added to scores and hidden from them, beyond causal and window.
#[derive(Clone, Copy)]
pub(super) struct Extras {
    pub bias: Option<Raw<f32>>,
    pub keep: Option<Raw<bool>>,
    pub alibi: Option<*const f32>,
    pub sinks: Option<*const f32>,
}

/// The inputs of a checked call.
pub(super) struct Call<'a> {
    pub spec: AttentionSpec,
    pub shape: Shape,
    pub q: Raw<f32>,
    pub k: Raw<f32>,
    pub v: Raw<f32>,
    pub extras: Extras,
    pub kv_lens: Option<&'a [usize]>,
}

// SAFETY: the pointers come from views that outlive the call; inputs are only read.
unsafe impl Sync for Call<'_> {}

impl<'a> Call<'a> {
    pub fn new(spec: &AttentionSpec, shape: Shape, inputs: &Inputs<'a>) -> Self {
        Self {
            spec: *spec,
            shape,
            q: Raw::new(&inputs.q),
            k: Raw::new(&inputs.k),
            v: Raw::new(&inputs.v),
            extras: Extras {
                bias: inputs.bias.as_ref().map(Raw::new),
                keep: inputs.keep.as_ref().map(Raw::new),
                alibi: inputs.alibi.map(<[f32]>::as_ptr),
                sinks: inputs.sinks.map(<[f32]>::as_ptr),
            },
            kv_lens: inputs.kv_lens,
        }
    }

    /// The keys of a sequence.
    #[inline(always)]
    pub fn keys(&self, batch: usize) -> usize {
        match self.kv_lens {
            Some(lens) => lens[batch],
            None => self.shape.kv_len,
        }
    }

    /// Whether logits are scores times a positive scale, so that the scale can wait until the exponent.
    pub fn plain(&self) -> bool {
        let Extras { bias, keep, alibi, sinks } = self.extras;
        let simple = bias.is_none() && keep.is_none() && alibi.is_none() && sinks.is_none();
        simple && self.spec.softcap.is_none() && self.spec.scale.is_normal() && self.spec.scale > 0.0
    }
}

/// How the rows of a head are cut into tiles: as few as there can be, of heights that differ by one at most.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    rows: usize,
    pub count: usize,
}

impl Tiles {
    pub const fn new(rows: usize) -> Self {
        Self { rows, count: rows.div_ceil(MR) }
    }

    /// The first row of a tile; that of the one after the last is the number of rows.
    #[inline(always)]
    pub fn start(&self, tile: usize) -> usize {
        let (least, taller) = (self.rows / self.count, self.rows % self.count);
        tile * least + tile.min(taller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_and_none_is_too_tall() {
        for rows in 1..100 {
            let tiles = Tiles::new(rows);
            assert_eq!((tiles.start(0), tiles.start(tiles.count)), (0, rows));
            assert!((0..tiles.count).all(|t| (1..=MR).contains(&(tiles.start(t + 1) - tiles.start(t)))));
        }
    }
}
