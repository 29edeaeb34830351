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

use super::blocks::{Blocks, Tile};
use super::input::{rows_len, seen_rows};
use super::{Axis, Tiling, Winograd};
use crate::conv::blocking::SLOT_LIMIT;
use crate::conv::dense::PEAK_FLOPS;
use crate::gemm::tile::NV;
use crate::parts::balanced;
use crate::simd::{Cpu, Isa, cpu};
use crate::workspace::{LINE, round_up};

/// Channels that lie side by side in `v`.
pub(super) const GROUP: usize = 16;

/// How a call is cut.
pub(super) struct Cut {
    /// Tiles down and along the outputs.
    pub tilings: [Tiling; 2],
    pub blocks: Blocks,
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
    /// Cells of tiles side by side that are transformed at once.
    pub chunk: usize,
    /// Floats of the pixels that a chunk of tiles sees, for a vector of channels.
    pub rows_len: usize,
    /// Floats of a chunk of tiles of half-transformed products, for a vector of channels.
    pub halves_len: usize,
    /// Floats of a row of tiles of finished pixels, for a vector of channels.
    pub finished_len: usize,
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
/// Tiles of a block for which the workspace must have room: with fewer, the weights are read too often.
const FEWEST_TILES: usize = 8;
/// Inputs from tile to tile, at most: images of larger strides have few outputs, and need no tiles.
const MOST_STEP: usize = 1 << 16;
/// Output channels whose products are computed before they are transformed.
const OUT_BLOCK: usize = 64;
/// Floats of a chunk of tiles before and after the first half of a transform: a half of L1 each.
const CHUNK: usize = 3 * 1024;

/// How many of the `columns` cells of a row are transformed at once.
pub(super) fn chunk([down, along]: [Axis; 2], columns: usize, lanes: usize) -> usize {
    let per_tile = seen_rows(down) * along.step * along.apart * lanes;
    let overlap = seen_rows(down) * along.inputs().saturating_sub(along.step) * along.apart * lanes;
    balanced(columns, (CHUNK.saturating_sub(overlap) / per_tile).max(1))
}

/// The length, a whole number of cache lines, as an odd number of them.
pub(super) fn odd_lines(len: usize) -> usize {
    if (len / LINE).is_multiple_of(2) { len + LINE } else { len }
}

impl Cut {
    /// The largest blocks that pay and for which the workspace has room.
    pub fn new(plan: &Winograd, batch: usize, out_size: [usize; 2], slots: usize) -> Self {
        let mut most = Self::most_tiles(plan.axes, [plan.in_channels, plan.out_channels], plan.isa);
        loop {
            let cut = Self::of(plan, batch, out_size, slots, most);
            let tiles = cut.blocks.block_tiles();
            // What one cell needs was asked for before there was a plan.
            if cut.len(slots) <= slots.max(1).saturating_mul(SLOT_LIMIT) || tiles <= cut.blocks.cell {
                return cut;
            }
            most = tiles - tiles.div_ceil(8);
        }
    }

    /// Blocks of at most `most` tiles.
    fn of(plan: &Winograd, batch: usize, out_size: [usize; 2], slots: usize, most: usize) -> Self {
        let lanes = plan.isa.lanes();
        let panel = NV * lanes;
        let [down, along] = plan.axes;
        let tilings = [0, 1].map(|axis| Tiling::new(plan.axes[axis], out_size[axis]));
        let frequencies = down.points() * along.points();
        let groups = plan.in_channels.div_ceil(GROUP);

        let channels = plan.in_channels.next_multiple_of(GROUP) + plan.out_channels.next_multiple_of(panel);
        let weights = frequencies * plan.in_channels * plan.out_channels;
        let tile = Tile {
            seconds: 2.0 * weights as f64 / PEAK_FLOPS,
            floats: [plan.out_channels.min(OUT_BLOCK), plan.out_channels]
                .map(|out| frequencies * (plan.in_channels + out)),
            near: block_floats(),
            weights,
            cell: tilings[1].phases,
            shared: slots.max(1).saturating_mul(SLOT_LIMIT - SLOT_LIMIT / 8) / (frequencies * channels),
        };
        let tiles = [tilings[0].all(), tilings[1].tiles];
        let blocks = Blocks::new(tiles, batch, plan.groups, most, slots, tile);
        let [_, _, columns] = blocks.block;
        let block_tiles = blocks.block_tiles();

        let out_panels = plan.out_channels.div_ceil(panel);
        let out_panels = if blocks.shared { out_panels } else { balanced(out_panels, OUT_BLOCK.div_ceil(panel)) };
        let (v_group, m_panel) = (block_tiles * GROUP, block_tiles * panel);

        let chunk = chunk(plan.axes, columns, lanes);
        Self {
            tilings,
            blocks,
            out_panels,
            panel,
            v_group,
            m_panel,
            v_plane: odd_lines(groups * v_group),
            m_plane: odd_lines(round_up(out_panels * m_panel)),
            frequencies,
            chunk,
            rows_len: round_up(rows_len(plan.axes, chunk, lanes)),
            halves_len: round_up(chunk * tilings[1].phases * down.outputs * along.points() * lanes),
            // A block of finished pixels is read whole.
            finished_len: round_up((down.outputs * columns * along.outputs * along.apart + lanes) * lanes),
        }
    }

    /// Tiles of a block, at most: those that stay near, if they are not too few, and for which a slot has room beside the
    /// transforms.
    pub fn most_tiles(axes: [Axis; 2], [in_channels, out_channels]: [usize; 2], isa: Isa) -> usize {
        let panel = NV * isa.lanes();
        let out_floats = out_channels.next_multiple_of(panel).min(OUT_BLOCK.next_multiple_of(panel));
        let channels = in_channels.next_multiple_of(GROUP) + out_floats;
        let tile = axes[0].points() * axes[1].points() * channels;
        let most = (block_floats() / tile).clamp(*BLOCK_TILES.start(), *BLOCK_TILES.end());
        most.min((SLOT_LIMIT - SLOT_LIMIT / 16) / tile).max(1)
    }

    /// Scratch of a call, in floats.
    pub fn len(&self, slots: usize) -> usize {
        let copies = if self.blocks.shared { 1 } else { slots };
        let products = copies.saturating_mul(round_up(self.products()));
        products.saturating_add(slots.saturating_mul(self.transform_scratch())).saturating_add(LINE)
    }

    /// Whether a slot has room for blocks that pay, or for those of one cell, on any instruction set.
    pub fn has_room([down, along]: [Axis; 2], in_channels: usize) -> bool {
        const LANES: usize = 16;
        if down.step.max(along.step) > MOST_STEP {
            return false;
        }
        let (frequencies, cell) = (down.points() * along.points(), along.apart);
        let (cells, tiles) = (FEWEST_TILES.div_ceil(cell), cell.max(FEWEST_TILES));
        let plane = |channels: usize| channels.saturating_mul(tiles + cell).saturating_add(2 * LINE);
        let in_channels = in_channels.checked_next_multiple_of(GROUP).unwrap_or(usize::MAX);
        let products = plane(in_channels).saturating_add(plane(OUT_BLOCK)).saturating_mul(frequencies);
        let seen = seen_rows(down) * LANES;
        let pixels = cell.saturating_mul((cells * along.step + along.inputs()) * seen).max(CHUNK);
        let finished = cell.saturating_mul(cells * along.outputs * down.outputs);
        let halves = cell.saturating_mul(cells * down.outputs * along.points());
        let outputs = finished.saturating_add(halves).saturating_add(2 * LINE).saturating_mul(LANES);
        let transforms = pixels.saturating_add(seen * LANES).saturating_mul(2).max(outputs);
        products.saturating_add(transforms).saturating_add(4 * LINE) <= SLOT_LIMIT
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
}
