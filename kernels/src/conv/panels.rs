//! Output channels in panels, balanced so that none is much narrower than the tile.
//!
//! ```text
//! 64 channels, tiles of 6 rows:   6 6 6 6 6 6 6 6 6 5 5     (eleven panels, instead of ten and one of 4)
//!
//! packed:  panel 0: [k = 0: rows][k = 1: rows] ...   panel 1: ...
//! ```

/// A partition of `channels` into panels of at most `tile_rows`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels {
    channels: usize,
    count: usize,
}

impl Panels {
    pub fn new(channels: usize, tile_rows: usize) -> Self {
        Self { channels, count: channels.div_ceil(tile_rows) }
    }

    /// The number of panels.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first channel of a panel; for `count()`, the number of channels.
    pub fn start(&self, panel: usize) -> usize {
        (self.channels as u128 * panel as u128 / self.count.max(1) as u128) as usize
    }
}
