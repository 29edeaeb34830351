//! Where the tiles of an axis lie.
//!
//! Taps that are `apart` pixels from each other see every `apart`th pixel. So a dilated axis is as many convolutions of
//! neighbouring taps, its phases, whose images interleave:
//!
//! ```text
//! outputs, taps 3 apart, m = 2      0 1 2 3 4 5 6 7 8 9 ..
//! tiles of phase 0                  ●     ●     ○     ○
//!          phase 1                    ●     ●     ○     ○
//!          phase 2                      ●     ●     ○
//! ```
//!
//! Down an image, the tiles of a phase follow each other: each has seen rows of the next. Along it, the tiles of all
//! phases that lie between each other are neighbours, a cell (`●`), whose outputs are a run of pixels.

use super::axis::Axis;

/// The tiles of an axis of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Pixels from tap to tap.
    pub apart: usize,
    /// Phases that have an output: the tiles of a cell.
    pub phases: usize,
    /// Tiles of a phase: the cells.
    pub tiles: usize,
}

impl Tiling {
    /// For so many outputs.
    pub fn new(axis: Axis, outputs: usize) -> Self {
        let apart = axis.apart;
        Self { apart, phases: apart.min(outputs).max(1), tiles: outputs.div_ceil(apart).div_ceil(axis.outputs) }
    }

    /// Tiles of all phases.
    pub fn all(&self) -> usize {
        self.phases * self.tiles
    }

    /// The first pixel of a tile, counted down the image, for tiles that are `step` pixels of a phase apart.
    pub fn down(&self, tile: usize, step: usize) -> usize {
        tile % self.tiles * step * self.apart + tile / self.tiles
    }

    /// The same for a tile counted along the image.
    pub fn along(&self, tile: usize, step: usize) -> usize {
        tile / self.phases * step * self.apart + tile % self.phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_belongs_to_one_tile() {
        for (taps, m) in [(1, 1), (3, 2), (3, 4), (3, 6), (5, 4)] {
            for apart in [1, 2, 3, 7, 40] {
                for outputs in [1, 2, 5, 6, 33, 64] {
                    let axis = Axis { apart, ..Axis::forward(taps, 1, m).unwrap() };
                    let tiling = Tiling::new(axis, outputs);
                    let starts: [fn(&Tiling, usize, usize) -> usize; 2] = [Tiling::down, Tiling::along];
                    for start in starts {
                        let mut count = vec![0; outputs];
                        for tile in 0..tiling.all() {
                            for i in 0..m {
                                let at = start(&tiling, tile, m) + i * apart;
                                if at < outputs {
                                    count[at] += 1;
                                }
                            }
                        }
                        assert!(count.iter().all(|&count| count == 1), "{tiling:?}, {outputs} outputs: {count:?}");
                    }
                }
            }
        }
    }
}
