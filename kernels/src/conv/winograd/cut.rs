//! How a call is cut into blocks of tiles, and where their data lie.
//!
//! ```text
//! block:  images x rows x columns of tiles, counted one after the other
//! v:      [frequency][16 in channels][tile][16]             rows of a product: tiles
//! m:      [frequency][panel of out channels][tile][panel]
//! ```
//!
//! Frequencies are an odd number of cache lines apart: a transform writes them all at once, and powers of two would
//! send them to the same sets of the cache.

use super::input::{rows_len, seen_rows};
use super::{Axis, Winograd};
use crate::conv::blocking::MOST_THREADS;
use crate::gemm::tile::NV;
use crate::parts::balanced;
use crate::simd::{Cpu, Isa, cpu};
use crate::workspace::{LINE, round_up};

/// Channels that lie side by side in `v`.
pub(super) const GROUP: usize = 16;

/// How a call is cut.
pub(super) struct Cut {
    /// Tiles of an image, down and along.
    pub tiles: [usize; 2],
    /// Images of a block, and its tiles down and along.
    pub block: [usize; 3],
    /// Blocks across the images, down and along.
    pub blocks: [usize; 3],
    /// Panels of output channels that are multiplied before they are transformed.
    pub out_panels: usize,
    /// Columns of a panel.
    pub panel: usize,
    /// From group to group of `v`, and from panel to panel of `m`.
    pub v_group: usize,
    pub m_panel: usize,
    /// From frequency to frequency.
    pub v_plane: usize,
    pub m_plane: usize,
    pub frequencies: usize,
    /// Tiles side by side that are transformed at once.
    pub chunk: usize,
    /// Floats of the pixels that a chunk of tiles sees, for a vector of channels.
    pub rows_len: usize,
    /// Floats of a chunk of tiles of half-transformed products, for a vector of channels.
    pub halves_len: usize,
    /// Floats of a row of tiles of finished pixels, for a vector of channels.
    pub finished_len: usize,
    /// Threads share the steps of a block.
    pub shared: bool,
}

/// Floats of `v` and `m` of a block: most of a core's second-level cache.
fn block_floats() -> usize {
    match cpu() {
        Cpu::Zen3 | Cpu::Zen4 | Cpu::Other => 256 * 1024,
        Cpu::SapphireRapids => 448 * 1024,
    }
}

/// Tiles of a block, at least where there are as many (each weight is read once per block), and at most.
const BLOCK_TILES: std::ops::RangeInclusive<usize> = 28..=224;
/// Output channels whose products are computed before they are transformed.
const OUT_BLOCK: usize = 64;
/// Floats of a chunk of tiles before and after the first half of a transform: a half of L1 each.
const CHUNK: usize = 3 * 1024;
/// Blocks of fewer tiles are not cut to give every thread as many.
const EVEN_TILES: usize = 48;

/// Images, rows and columns of a block of at most `most` tiles: whole rows first, then whole images. So all blocks one
/// after the other hold the tiles of the batch in order, whatever `most` is.
pub(super) fn block_of(tiles: [usize; 2], batch: usize, most: usize) -> [usize; 3] {
    let columns = balanced(tiles[1], most);
    let rows = if columns < tiles[1] { 1 } else { balanced(tiles[0], most / columns) };
    let whole = rows >= tiles[0] && columns >= tiles[1];
    let images = if whole { balanced(batch, most / (rows * columns).max(1)) } else { 1 };
    [images, rows, columns]
}

/// How many of the `columns` tiles of a row are transformed at once.
pub(super) fn chunk([down, along]: [Axis; 2], columns: usize, lanes: usize) -> usize {
    let per_tile = seen_rows(down) * along.step * lanes;
    let overlap = seen_rows(down) * along.inputs().saturating_sub(along.step) * lanes;
    balanced(columns, (CHUNK.saturating_sub(overlap) / per_tile).max(1))
}

/// The length, a whole number of cache lines, as an odd number of them.
pub(super) fn odd_lines(len: usize) -> usize {
    if (len / LINE).is_multiple_of(2) { len + LINE } else { len }
}

impl Cut {
    pub fn new(plan: &Winograd, batch: usize, out_size: [usize; 2], slots: usize) -> Self {
        let lanes = plan.isa.lanes();
        let panel = NV * lanes;
        let [down, along] = plan.axes;
        let tiles = [out_size[0].div_ceil(down.outputs), out_size[1].div_ceil(along.outputs)];
        let frequencies = down.points() * along.points();
        let groups = plan.in_channels.div_ceil(GROUP);
        let most = Self::most_tiles(plan.axes, [plan.in_channels, plan.out_channels], plan.isa);

        let [mut images, mut rows, columns] = block_of(tiles, batch, most);
        let count = |images: usize, rows: usize| {
            batch.div_ceil(images) * tiles[0].div_ceil(rows) * tiles[1].div_ceil(columns) * plan.groups
        };
        // Even work for all threads: smaller blocks where that is enough, else shared steps.
        let uneven = |images: usize, rows: usize| {
            slots > 1 && count(images, rows) < 4 * slots.min(MOST_THREADS) && !count(images, rows).is_multiple_of(slots)
        };
        while uneven(images, rows) && images * rows * columns >= EVEN_TILES && images * rows > 1 {
            if images > 1 {
                images = balanced(batch, images - 1);
            } else {
                rows = balanced(tiles[0], rows - 1);
            }
        }
        let shared = uneven(images, rows);
        let block_tiles = images * rows * columns;

        let out_panels = plan.out_channels.div_ceil(panel);
        let out_panels = if shared { out_panels } else { balanced(out_panels, OUT_BLOCK.div_ceil(panel)) };
        let (v_group, m_panel) = (block_tiles * GROUP, block_tiles * panel);

        let chunk = chunk(plan.axes, columns, lanes);
        Self {
            tiles,
            block: [images, rows, columns],
            blocks: [batch.div_ceil(images), tiles[0].div_ceil(rows), tiles[1].div_ceil(columns)],
            out_panels,
            panel,
            v_group,
            m_panel,
            v_plane: odd_lines(groups * v_group),
            m_plane: odd_lines(round_up(out_panels * m_panel)),
            frequencies,
            chunk,
            rows_len: round_up(rows_len(plan.axes, chunk, lanes)),
            halves_len: round_up(chunk * down.outputs * along.points() * lanes),
            // A block of finished pixels is read whole.
            finished_len: round_up((down.outputs * columns * along.outputs + lanes) * lanes),
            shared,
        }
    }

    /// Tiles of a block, at most.
    pub fn most_tiles(axes: [Axis; 2], [in_channels, out_channels]: [usize; 2], isa: Isa) -> usize {
        let panel = NV * isa.lanes();
        let out_floats = out_channels.next_multiple_of(panel).min(OUT_BLOCK.next_multiple_of(panel));
        let channels = in_channels.next_multiple_of(GROUP) + out_floats;
        let most = block_floats() / (axes[0].points() * axes[1].points() * channels);
        most.clamp(*BLOCK_TILES.start(), *BLOCK_TILES.end())
    }

    /// Floats of `v` and of `m`.
    pub fn products(&self) -> usize {
        self.frequencies * (self.v_plane + self.m_plane)
    }

    /// Floats of what a task needs for the transforms alone.
    pub fn transform_scratch(&self) -> usize {
        // Pixels before and after the first half of the input transform; half-transformed products and finished pixels.
        (2 * self.rows_len).max(self.halves_len + self.finished_len)
    }

    /// Blocks of a call.
    pub fn count(&self, groups: usize) -> usize {
        self.blocks.iter().product::<usize>() * groups
    }

    /// A block of a call with `batch` images.
    pub fn at(&self, groups: usize, batch: usize, index: usize) -> Block {
        let [_, down, along] = self.blocks;
        let (row, column) = (index / along % down * self.block[1], index % along * self.block[2]);
        let rest = index / along / down;
        let image = rest / groups * self.block[0];
        Block {
            image,
            images: self.block[0].min(batch - image),
            group: rest % groups,
            row,
            column,
            rows: self.block[1].min(self.tiles[0] - row),
            columns: self.block[2].min(self.tiles[1] - column),
        }
    }
}

/// A block of tiles of some images and one group.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// The first image, and how many there are.
    pub image: usize,
    pub images: usize,
    pub group: usize,
    /// Its first tile in each image, and how many there are.
    pub row: usize,
    pub column: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Block {
    /// Tiles of the block.
    pub fn tiles(&self) -> usize {
        self.images * self.rows * self.columns
    }
}
