//! How direct tiles follow the rows of a band.
//!
//! ```text
//! rows of 7 results, 9 apart, vectors of 4:
//!
//! flat      |a a a a|a a a . . |b b b b| ...        the elements between the rows are computed, too
//! aligned   |a a a a|a a a  |  |b b b b|b b b  |    a part of each row's last vector is empty
//! paired    |a a a a|b b b b|  |a a a  |b b b  |    the last vectors of two rows are a tile (an odd number of vectors)
//! broken    |a a a a|a a a b|b b b b|b b c c| ...   the second vector is read in two pieces (of 16 lanes only)
//! ```

use super::NV;

/// The way of a vector of results through memory, where a tile is more than one run of them, takes as long as so many
/// steps of its sum: 10 ns on Zen 4.
const FINISH_STEPS: usize = 24;

/// Loads of second pieces take one part in so many of a step's time, at most.
const BROKEN_PART: usize = 32;

/// Lanes of vectors that may be read in two pieces. Fewer come with 16 registers on x86-64: two masks and two further
/// loads find no room beside a tile of 6 x 2, and 64 to 12 channels of 14 x 14 take twice as long broken as aligned
/// (AVX2 on Zen 4).
pub(super) const BROKEN_LANES: usize = 16;

/// Products of a sum from which on rows are paired. Of a tile of one vector, 6 chains take four cycles a step, not
/// three, so a pair saves two cycles a step; its results take the way through memory, [`FINISH_STEPS`] steps of six
/// cycles: even at 72, and worth its while at some more. 96 channels of 11 x 11 x 3 in rows of 54 gain 4 % (AVX2 on Zen
/// 4).
const PAIRED_DEPTH: usize = 128;

/// How tiles follow the rows of a band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::conv) enum TileRows {
    /// Through rows that are `pitch` apart, over their ends: every tile is full, but for the last.
    Flat { pitch: usize },
    /// Each row on its own: its results leave the registers in one run. `tiles` to a row.
    Aligned { pitch: usize, tiles: usize },
    /// Two rows at a time, of an odd number of `vectors` each: the last vector of both is one tile.
    Paired { pitch: usize, vectors: usize },
    /// From result to result, whatever lies between the rows: a vector that meets the end of a row is read in two
    /// pieces.
    Broken { pitch: usize },
}

/// A tile's place in a band.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// Where it starts.
    pub flat: usize,
    /// Its lanes, from the first to the last that counts.
    pub len: usize,
    /// Where its second vector starts if that is in the next row; as many of its lanes count as of the first.
    pub second: Option<usize>,
}

impl TileRows {
    /// Whatever takes the fewest steps for rows of results that are `pitch` apart, `[rows, columns]` of them, each a
    /// sum of `depth` products.
    pub fn best(lanes: usize, pitch: usize, grid: [usize; 2], depth: usize) -> Self {
        let flat = Self::Flat { pitch };
        let vectors = grid[1].div_ceil(lanes);
        let pairs =
            lanes < BROKEN_LANES && vectors % NV == 1 && grid[0] > 1 && pitch > grid[1] && depth >= PAIRED_DEPTH;
        let aligned = match pairs {
            true => Self::Paired { pitch, vectors },
            false => Self::Aligned { pitch, tiles: vectors.div_ceil(NV) },
        };
        let choices = [aligned, Self::Broken { pitch }, flat];
        // A vector has two pieces at most.
        let breaks = lanes >= BROKEN_LANES && pitch > grid[1] && grid[1] + 1 >= lanes;
        let possible = |tiles: Self| tiles != choices[1] || breaks;
        let steps = |&tiles: &Self| tiles.steps(lanes, grid, depth);
        choices.into_iter().filter(|&tiles| possible(tiles)).min_by_key(steps).unwrap_or(flat)
    }

    /// Vectors of one channel's results times the steps that each takes.
    pub fn steps(self, lanes: usize, grid: [usize; 2], depth: usize) -> usize {
        let [rows, columns] = grid;
        let (vectors, each) = match self {
            Self::Flat { pitch } => {
                let finish = if pitch == columns { 0 } else { FINISH_STEPS };
                (self.pixels(rows.saturating_mul(columns), columns.max(1)).div_ceil(lanes), depth + finish)
            }
            Self::Aligned { .. } | Self::Paired { .. } => (rows.saturating_mul(columns.div_ceil(lanes)), depth),
            Self::Broken { .. } => (rows.saturating_mul(columns).div_ceil(lanes), depth + depth / BROKEN_PART),
        };
        vectors.saturating_mul(each)
    }

    /// Elements of a band from the first to the last of `pixels` results that tiles run through.
    fn pixels(self, pixels: usize, columns: usize) -> usize {
        match self {
            Self::Flat { pitch } if pitch > columns => {
                (pixels / columns).saturating_sub(1).saturating_mul(pitch).saturating_add(columns)
            }
            _ => pixels,
        }
    }

    /// Tiles of `pixels` results in rows of `columns`: of whole rows, unless there are no gaps.
    pub fn tiles(self, pixels: usize, columns: usize, tile_pixels: usize) -> usize {
        match self {
            Self::Aligned { tiles, .. } => pixels / columns * tiles,
            Self::Paired { vectors, .. } => (pixels / columns * vectors).div_ceil(NV),
            _ => self.pixels(pixels, columns).div_ceil(tile_pixels),
        }
    }

    /// From row to row.
    pub fn pitch(self) -> usize {
        match self {
            Self::Flat { pitch }
            | Self::Aligned { pitch, .. }
            | Self::Paired { pitch, .. }
            | Self::Broken { pitch } => pitch,
        }
    }

    /// The place of a tile of `lanes` lanes a vector in a band of `[rows, columns]` results, whose elements from the
    /// first to the last are `flat_pixels` unless rows are followed one by one.
    #[inline(always)]
    pub(super) fn span(self, tile: usize, lanes: usize, [rows, columns]: [usize; 2], flat_pixels: usize) -> Span {
        let tile_pixels = NV * lanes;
        let in_row = |row: usize, pitch: usize, column: usize| Span {
            flat: row * pitch + column,
            len: (columns - column).min(tile_pixels),
            second: None,
        };
        match self {
            Self::Flat { .. } | Self::Broken { .. } => {
                let flat = tile * tile_pixels;
                Span { flat, len: (flat_pixels - flat).min(tile_pixels), second: None }
            }
            Self::Aligned { pitch, tiles } => in_row(tile / tiles, pitch, tile % tiles * tile_pixels),
            Self::Paired { pitch, vectors } => {
                let (row, tile, whole) = (tile / vectors * NV, tile % vectors, vectors / NV);
                if row + 1 == rows || tile < whole {
                    return in_row(row, pitch, tile * tile_pixels);
                }
                if tile < NV * whole {
                    return in_row(row + 1, pitch, (tile - whole) * tile_pixels);
                }
                let column = whole * tile_pixels;
                let flat = row * pitch + column;
                Span { flat, len: lanes + columns - column, second: Some(flat + pitch) }
            }
        }
    }
}

const _: () = assert!(NV == 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_tiles_meet_every_result_once() {
        for (rows, columns, lanes) in
            [(1usize, 20usize, 8usize), (2, 20, 8), (5, 54, 8), (6, 3, 4), (3, 8, 8), (7, 55, 8)]
        {
            let (pitch, vectors) = (columns + 2, columns.div_ceil(lanes));
            assert_eq!(vectors % 2, 1);
            let paired = TileRows::Paired { pitch, vectors };
            let mut met = vec![0; rows * pitch];
            for tile in 0..paired.tiles(rows * columns, columns, 2 * lanes) {
                let span = paired.span(tile, lanes, [rows, columns], 0);
                match span.second {
                    None => met[span.flat..span.flat + span.len].iter_mut().for_each(|met| *met += 1),
                    Some(second) => {
                        let len = span.len - lanes;
                        met[span.flat..span.flat + len].iter_mut().for_each(|met| *met += 1);
                        met[second..second + len].iter_mut().for_each(|met| *met += 1);
                    }
                }
            }
            for (at, &times) in met.iter().enumerate() {
                assert_eq!(times, usize::from(at % pitch < columns), "{rows} x {columns}, {lanes} lanes: {at}");
            }
        }
    }
}
