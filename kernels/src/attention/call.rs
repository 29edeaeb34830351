//! A checked call as pointers and strides, and the buffers that tiles of rows share.

use super::dropout::Dropout;
use super::inputs::Inputs;
use super::pack::copy_rows;
use super::spec::{AttentionSpec, Shape};
use crate::tensor::View;

/// Rows of a tile: queries that go through the micro-kernel together, 6 x 2 vectors of 16 registers or 6 x 4 of 32.
pub(super) const MR: usize = 6;

/// Keys of the widest panel of any instruction set: 4 vectors of 16 lanes.
pub(super) const MAX_PANEL: usize = 64;

/// The most keys of a block.
pub(super) const MAX_BLOCK: usize = 512;

/// The distance of a tile's rows of scores: an odd number of cache lines, so that they do not share sets of the
/// first-level cache.
pub(super) const SCORE_STRIDE: usize = MAX_BLOCK + 16;

/// The distance of a tile's rows of queries, which are copied so that it is a constant.
pub(super) const QUERY_STRIDE: usize = super::spec::MAX_HEAD_DIM + 16;

/// Keys of a block, which order the sums of a row: the packed keys and the values of a block take up to 256 KiB, a
/// quarter of a second-level cache. A part of the algorithm, so it depends on the dimensions alone.
pub(super) fn block_keys(spec: &AttentionSpec) -> usize {
    match spec.head_dim.max(spec.v_dim) {
        ..=64 => MAX_BLOCK,
        65..=128 => MAX_BLOCK / 2,
        129..=256 => MAX_BLOCK / 4,
        _ => MAX_BLOCK / 8,
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
    /// The rows from `row` on.
    #[inline(always)]
    pub fn from(self, row: usize) -> Self {
        Self { start: self.at(row, 0), ..self }
    }

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
    pub dropout: Option<Dropout>,
    pub pages: Option<Pages>,
    /// Floats of all inputs: large ones are asked for early.
    pub floats: usize,
}

/// Which rows of `k` and `v` the keys of a sequence are, where these lie in pages.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    table: *const usize,
    strides: [isize; 2],
    /// Keys of a page.
    pub rows: usize,
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
            // A probability of 0 leaves nothing out.
            dropout: inputs.dropout.filter(|dropout| dropout.probability > 0.0),
            pages: inputs.pages.map(|table| Pages {
                table: table.as_ptr(),
                strides: table.strides(),
                rows: inputs.k.shape()[2],
            }),
            floats: super::ahead::floats(&inputs.q, &inputs.k),
        }
    }

    /// A call whose memory nobody knows yet, for those who ask how much scratch memory the shape needs at most.
    pub fn unknown(spec: &AttentionSpec, shape: Shape) -> Self {
        let nothing = Raw { start: std::ptr::null(), strides: [0; 4] };
        let extras = Extras { bias: None, keep: None, alibi: None, sinks: None };
        let (q, k, v) = (nothing, nothing, nothing);
        Self { spec: *spec, shape, q, k, v, extras, kv_lens: None, dropout: None, pages: None, floats: 0 }
    }

    /// How likely a weight is not left out.
    pub fn stays(&self) -> f32 {
        self.dropout.map_or(1.0, |dropout| dropout.stays() as f32)
    }

    /// Whether blocks of so many keys have to be gathered, because they lie on more than one page.
    pub fn gathers(&self, block: usize) -> bool {
        self.pages.is_some_and(|pages| pages.rows == 0 || !pages.rows.is_multiple_of(block))
    }

    /// Whether a block is some whole pages of rows whose elements are neighbours, a multiple of 8 keys each: those can
    /// be met page by page.
    pub fn short_pages(&self, block: usize) -> bool {
        let fits = |rows: usize| rows.is_multiple_of(8) && rows > 0 && rows < block && block.is_multiple_of(rows);
        self.k.strides[3] == 1 && self.v.strides[3] == 1 && self.pages.is_some_and(|pages| fits(pages.rows))
    }

    /// The `count` rows from key `start` on of a head of `k` or `v`. `to` holds them if they have to be gathered, or if
    /// `packed` and their elements are not neighbours.
    ///
    /// # Safety
    /// - The keys are within the sequence and within a block that starts at a multiple of `block`.
    /// - `to` has room for `count * dim` elements where it is needed.
    #[inline(always)]
    pub unsafe fn rows(
        &self,
        of: &Raw<f32>,
        [batch, head]: [usize; 2],
        [start, count, block]: [usize; 3],
        dim: usize,
        to: *mut f32,
        packed: bool,
    ) -> Rows<f32> {
        let rows = match self.pages {
            None => of.head(batch, head).from(start),
            Some(_) if self.gathers(block) => {
                // SAFETY: the caller's contract.
                unsafe { self.gather(of, [batch, head], [start, count], dim, to) };
                return Rows { start: to, row_stride: dim as isize, step: 1 };
            }
            // SAFETY: the caller's contract; the table has been checked.
            Some(pages) => unsafe { of.head(pages.page(batch, start), head).from(start % pages.rows) },
        };
        // SAFETY: the caller's contract.
        if packed && rows.step != 1 { unsafe { copy_rows(rows, count, dim, to) } } else { rows }
    }

    /// Copies rows from the pages they lie on.
    ///
    /// # Safety
    /// - That of [`Call::rows`].
    unsafe fn gather(
        &self,
        of: &Raw<f32>,
        [batch, head]: [usize; 2],
        [start, count]: [usize; 2],
        dim: usize,
        to: *mut f32,
    ) {
        let Some(pages) = self.pages else { return };
        let mut done = 0;
        while done < count {
            let key = start + done;
            let here = (pages.rows - key % pages.rows).min(count - done);
            // SAFETY: the caller's contract; the table has been checked, and the rows end with the page.
            unsafe {
                let rows = of.head(pages.page(batch, key), head).from(key % pages.rows);
                copy_rows(rows, here, dim, to.add(done * dim));
            }
            done += here;
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

impl Pages {
    /// The page of a key.
    ///
    /// # Safety
    /// - The key is within the sequence of a checked call.
    #[inline(always)]
    unsafe fn page(&self, batch: usize, key: usize) -> usize {
        let [by_batch, by_page] = self.strides;
        let at = batch as isize * by_batch + (key / self.rows) as isize * by_page;
        // SAFETY: the table has a page for each key of the sequence.
        unsafe { *self.table.wrapping_offset(at) }
    }
}

/// How the rows of a head are cut into tiles: as few as there can be, of heights that differ by one at most.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub count: usize,
    least: usize,
    /// Tiles that have one row more than the least.
    taller: usize,
}

impl Tiles {
    pub const fn new(rows: usize) -> Self {
        let count = rows.div_ceil(MR);
        if count == 0 {
            return Self { count, least: 0, taller: 0 };
        }
        Self { count, least: rows / count, taller: rows % count }
    }

    /// The first row of a tile; that of the one after the last is the number of rows.
    #[inline(always)]
    pub fn start(&self, tile: usize) -> usize {
        tile * self.least + tile.min(self.taller)
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
