//! How direct tiles follow the rows of a band.
//!
//! ```text
//! rows of 7 results, 9 apart, vectors of 4:
//!
//! flat      |a a a a|a a a . . |b b b b| ...        the elements between the rows are computed, too
//! aligned   |a a a a|a a a  |  |b b b b|b b b  |    a part of each row's last vector is empty
//! broken    |a a a a|a a a b|b b b b|b b c c| ...   the second vector is read in two pieces (of 16 lanes only)
//! ```

use super::NV;

/// The way of a vector of results through memory, where a tile is more than one run of them, takes as long as so many
/// steps of its sum: 10 ns on Zen 4.
const FINISH_STEPS: usize = 24;

/// Loads of second pieces take one part in so many of a step's time, at most.
const BROKEN_PART: usize = 32;

/// Lanes of vectors that may be read in two pieces. Fewer come with 16 registers on x86-64: two masks and two further
/// loads find no room beside a tile of 6 x 2, and 64 to 12 channels of 14 x 14 take twice as long broken as aligned (AVX2
/// on Zen 4).
pub(super) const BROKEN_LANES: usize = 16;

/// How tiles follow the rows of a band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::conv) enum TileRows {
    /// Through rows that are `pitch` apart, over their ends: every tile is full, but for the last.
    Flat { pitch: usize },
    /// Each row on its own: its results leave the registers in one run. `tiles` to a row.
    Aligned { pitch: usize, tiles: usize },
    /// From result to result, whatever lies between the rows: a vector that meets the end of a row is read in two
    /// pieces.
    Broken { pitch: usize },
}

impl TileRows {
    /// Whatever takes the fewest steps for rows of results that are `pitch` apart, `[rows, columns]` of them, each a
    /// sum of `depth` products.
    pub fn best(lanes: usize, pitch: usize, grid: [usize; 2], depth: usize) -> Self {
        let flat = Self::Flat { pitch };
        let choices = [Self::Aligned { pitch, tiles: grid[1].div_ceil(NV * lanes) }, Self::Broken { pitch }, flat];
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
            Self::Aligned { .. } => (rows.saturating_mul(columns.div_ceil(lanes)), depth),
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
            _ => self.pixels(pixels, columns).div_ceil(tile_pixels),
        }
    }
}
