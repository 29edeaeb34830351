//! The pixels of a tile: in runs of neighbours, packed for im2col, or gathered one by one.
//!
//! ```text
//! tile of 32 lanes      | end of a row | whole row .... | start of a row |      three runs
//! packed row k          | source at the runs' pixels + offset[k], run after run |
//! ```

use super::NV;
use crate::conv::slide::Slide;
use crate::simd::Simd;

/// A run of neighbouring results of a tile.
#[derive(Clone, Copy, Default)]
pub(super) struct Run {
    pub lane: usize,
    pub len: usize,
    /// Row and column in the grid.
    pub row: usize,
    pub column: usize,
}

/// The runs of a tile, one after the other.
#[derive(Clone, Copy, Default)]
pub(super) struct Runs {
    /// Where the next one starts; `lane` lanes of the tile are behind it.
    next: Run,
    /// Lanes of the tile.
    pub len: usize,
    pitch: usize,
    columns: usize,
    /// The column where a run of a further row starts.
    restart: usize,
}

impl Runs {
    /// Of the pixels `first .. first + len` of rows that are `pitch` apart, `columns` of which are results.
    #[inline(always)]
    pub fn new(first: usize, len: usize, pitch: usize, columns: usize, first_row: usize) -> Self {
        let next = Run { lane: 0, len: 0, row: first_row + first / pitch, column: first % pitch };
        Self { next, len, pitch, columns, restart: 0 }
    }

    /// Of two vectors of `lanes` lanes, the pixels from `first` on to the end of a row and those below them.
    #[inline(always)]
    pub fn pair(first: usize, lanes: usize, pitch: usize, columns: usize, first_row: usize) -> Self {
        let next = Run { lane: 0, len: 0, row: first_row + first / pitch, column: first % pitch };
        let len = columns - next.column;
        Self { next, len: lanes + len, pitch: columns + lanes - len, columns, restart: next.column }
    }
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        if self.next.column >= self.columns {
            self.next.lane += self.pitch - self.next.column;
            self.next.column = self.restart;
            self.next.row += 1;
        }
        if self.next.lane >= self.len {
            return None;
        }
        let run = Run { len: (self.columns - self.next.column).min(self.len - self.next.lane), ..self.next };
        self.next.lane += run.len;
        self.next.column += run.len;
        Some(run)
    }
}

/// Where the vectors of a tile start in a band, and how many lanes of each lie before the end of a row.
#[derive(Clone, Copy, Default)]
pub(super) struct Vectors {
    pub starts: [usize; NV],
    pub kept: [usize; NV],
    /// Whether one of them goes on in the next row.
    pub is_broken: bool,
    /// Whether the second is below the first, not behind it.
    pub is_pair: bool,
}

impl Vectors {
    /// Of the results `first .. first + len` in rows of `columns` that are `pitch` apart.
    #[inline(always)]
    pub fn broken(first: usize, len: usize, lanes: usize, pitch: usize, columns: usize) -> Self {
        let (mut starts, mut kept) = ([0; NV], [lanes; NV]);
        let (mut row, mut column) = (first / columns, first % columns);
        for v in 0..NV {
            (starts[v], kept[v]) = (row * pitch + column, columns - column);
            column += lanes;
            while column >= columns {
                (row, column) = (row + 1, column - columns);
            }
        }
        Self { starts, kept, is_broken: kept[0] < len, is_pair: false }
    }

    /// Whether the second tile lies `distance` behind the first, in the same row.
    #[inline(always)]
    pub fn follow(first: Self, second: Self, distance: usize) -> bool {
        let apart = [first, second].iter().any(|vectors| vectors.is_broken || vectors.is_pair);
        !apart && second.starts[0] == first.starts[0] + distance
    }
}

/// Packs the patches of a tile: row `k` holds, for each run, the elements at its pixels plus `offsets[k]`.
///
/// Vectors are copied whole. What they write past the end of a run is overwritten by the next run, or by the next
/// row, or lies in the spare tile at the end.
///
/// # Safety
/// - Every element of a run, at every offset, is readable from `source`; so are `NV * LANES` elements from the start of
///   a run, at every offset, unless start and tile together pass `end`.
/// - `to` is writable for `offsets.len() + 1` rows of a tile.
#[inline(always)]
pub(super) unsafe fn pack_tile<S: Simd>(
    simd: S,
    source: *const f32,
    pitch: usize,
    first_row: usize,
    offsets: &[usize],
    runs: Runs,
    to: *mut f32,
    end: usize,
) {
    let tile_pixels = NV * S::LANES;
    let start = |run: Run| (run.row - first_row) * pitch + run.column;
    let roomy = end == usize::MAX || runs.last().map_or(0, start) + tile_pixels <= end;
    for (k, &offset) in offsets.iter().enumerate() {
        // SAFETY: the caller's contract; near the end of the source only the run's own lanes are read.
        unsafe {
            let row = to.add(k * tile_pixels);
            for run in runs {
                let from = source.add(start(run) + offset);
                let to = row.add(run.lane);
                if roomy {
                    simd.store(to, simd.load(from));
                    if run.len > S::LANES {
                        simd.store(to.add(S::LANES), simd.load(from.add(S::LANES)));
                    }
                } else {
                    simd.store(to, simd.load_first(from, run.len));
                    if run.len > S::LANES {
                        simd.store(to.add(S::LANES), simd.load_first(from.add(S::LANES), run.len - S::LANES));
                    }
                }
            }
        }
    }
}

/// Packs the patches of a tile element by element.
///
/// # Safety
/// - `channels` planes of `in_size` are readable from `source`.
/// - `to` is writable for `channels * taps` rows of `tile_pixels`.
pub(super) unsafe fn gather_tile(
    slide: &Slide,
    source: *const f32,
    in_size: [usize; 2],
    runs: Runs,
    channels: usize,
    tile_pixels: usize,
    to: *mut f32,
) {
    let taps = slide.taps.len();
    for channel in 0..channels {
        for (index, tap) in slide.taps.iter().enumerate() {
            let position = |axis: usize, at: usize| slide.position(tap, axis, at, in_size[axis]);
            for run in runs {
                for i in 0..run.len {
                    let value = match (position(0, run.row), position(1, run.column + i)) {
                        // SAFETY: both positions are inside of the image.
                        (Some(ih), Some(iw)) => unsafe { *source.add((channel * in_size[0] + ih) * in_size[1] + iw) },
                        _ => 0.0,
                    };
                    // SAFETY: the run's lanes are inside of the row.
                    unsafe { *to.add((channel * taps + index) * tile_pixels + run.lane + i) = value };
                }
            }
        }
    }
}
