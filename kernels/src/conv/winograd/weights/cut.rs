//! How a weights' gradient is cut, and where its data lie.
//!
//! ```text
//! part:   some in channels x some out channels       what the workspace holds at once; most often all of them
//! pass:   images x rows x columns of tiles, counted one after the other; all tiles if there is room
//! x:      [frequency][panel of in channels][tile][panel]          right-hand sides: panels of one or two vectors
//! dy:     [frequency][16 out channels][tile][16]                  left-hand sides: columns are tiles
//! block:  [out channel][frequency][in channel]                    sums of some channels of a part: one task's
//! ```
//!
//! All that is cut here is a matter of time and memory: the tiles of the batch follow each other in the same order.

use super::super::blocks::{Block, block_of};
use super::super::cut::{GROUP, chunk, odd_lines};
use super::super::input::rows_len;
use super::{Tiling, WinogradWeights};
use crate::conv::spec::{Shape, Sizes};
use crate::gemm::tile::NV;
use crate::workspace::{LINE, round_up};

/// What bounds the parts. Tests have smaller ones; none changes a bit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floats of scratch memory: so many times what input and output hold, and so many for each slot.
    pub floats: [usize; 2],
    /// Channels of a block, in and out, of a task alone, whose sums of all frequencies stay in the second-level cache.
    /// Like the next two, whole panels of any instruction set.
    pub alone: usize,
    /// The same in a long pass, which is bound by the tiles that come from the third.
    pub alone_long: usize,
    /// The same where a task has one frequency of the block.
    pub shared: usize,
    /// Tiles from which a pass is long.
    pub long: usize,
    /// Floats of a part's sums that stay in the second-level caches: then each slot's share of a pass should as well.
    pub near: usize,
    /// Floats of a part's sums from which they should be weights before they leave the cache.
    pub far: usize,
    /// Tiles of a pass, at least where there are as many: each pass reads and writes all sums of the part.
    pub tiles: usize,
}

impl Limits {
    /// For second-level caches of a megabyte or two, and 4 MiB a slot.
    pub const DEFAULT: Self = Self {
        floats: [1, 1 << 20],
        alone: 64,
        alone_long: 128,
        shared: 256,
        long: 256,
        near: 256 * 1024,
        far: 1024 * 1024,
        tiles: 64,
    };
}

/// Channels that are whole panels of any instruction set.
const PANELS: usize = 32;

/// How a call is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub frequencies: usize,
    /// Tiles of an image, down and along.
    pub tilings: [Tiling; 2],
    /// Channels of a part, in and out, and how many parts there are of each.
    pub part: [usize; 2],
    pub parts: [usize; 2],
    /// Images of a pass, its rows of tiles and its columns of cells; how many passes there are of each.
    pub pass: [usize; 3],
    pub passes: [usize; 3],
    /// Columns of a panel.
    pub panel: usize,
    /// From panel to panel of x, and from group to group of dy.
    pub x_panel: usize,
    pub dy_group: usize,
    /// From frequency to frequency.
    pub x_plane: usize,
    pub dy_plane: usize,
    /// Channels of a block, in and out.
    pub block: [usize; 2],
    /// From out channel to out channel of a block's sums, from frequency to frequency, and from block to block.
    pub sums_row: usize,
    pub sums_plane: usize,
    pub sums_block: usize,
    /// Each task keeps the sums of its block; else all blocks of a part have theirs.
    pub alone: bool,
    /// Cells of tiles side by side that are transformed at once.
    pub chunk: usize,
    /// Floats that a task has for the transforms.
    pub transform_len: usize,
}

impl Cut {
    /// The largest parts for which the workspace has room.
    pub fn new(plan: &WinogradWeights, shape: Shape, sizes: &Sizes, slots: usize) -> Self {
        let [times, per_slot] = plan.limits.floats;
        let most = times.saturating_mul(sizes.x_len.saturating_add(sizes.y_len));
        let most = most.saturating_add(slots.saturating_mul(per_slot));
        let mut part = [plan.group_in, plan.group_out];
        loop {
            if let Some(cut) = Self::within(plan, shape, sizes, slots, part, most, plan.limits.tiles) {
                return cut;
            }
            // Half of whole blocks, then of whole panels, then shorter passes.
            let at = usize::from(part[1] >= part[0]);
            let halves = [plan.limits.alone, PANELS].map(|unit| part[at].div_ceil(2).next_multiple_of(unit));
            let Some(half) = halves.into_iter().find(|&half| half < part[at]) else {
                let shorter = Self::within(plan, shape, sizes, slots, part, most, 1);
                return shorter.unwrap_or_else(|| Self::of(plan, shape, sizes, slots, part, 1));
            };
            part[at] = half;
        }
    }

    /// All tiles in one pass, or passes of at least so many, in at most so many floats.
    fn within(
        plan: &WinogradWeights,
        shape: Shape,
        sizes: &Sizes,
        slots: usize,
        part: [usize; 2],
        most: usize,
        least: usize,
    ) -> Option<Self> {
        let near = plan.limits.near;
        let all = shape.batch * plan.tilings(sizes.output).iter().map(Tiling::all).product::<usize>();
        let frequencies = plan.axes[0].points() * plan.axes[1].points();
        let tile = frequencies.saturating_mul(part[0] + part[1]);
        let mut tiles = all.min(most / tile.max(1) + 1);
        if frequencies.saturating_mul(part[0]).saturating_mul(part[1]) <= near {
            tiles = tiles.min((slots.saturating_mul(near) / tile.max(1)).max(least));
        }
        loop {
            let cut = Self::of(plan, shape, sizes, slots, part, tiles);
            if cut.len(slots) <= most {
                return Some(cut);
            }
            if tiles <= least {
                return None;
            }
            let passes = all.div_ceil(tiles);
            tiles = all.div_ceil(passes + passes / 8 + 1).min(tiles - 1);
        }
    }

    /// With passes of at most `most` tiles.
    fn of(plan: &WinogradWeights, shape: Shape, sizes: &Sizes, slots: usize, part: [usize; 2], most: usize) -> Self {
        let lanes = plan.isa.lanes();
        let panel = NV * lanes;
        let tilings = plan.tilings(sizes.output);
        let [rows, cells] = [tilings[0].all(), tilings[1].tiles];
        let frequencies = plan.axes[0].points() * plan.axes[1].points();
        let pass = block_of([rows, cells], shape.batch, (most / tilings[1].phases).max(1));
        let [images, down, along] = pass;
        let pass_tiles = images * down * along * tilings[1].phases;
        let passes = [shape.batch.div_ceil(images), rows.div_ceil(down), cells.div_ceil(along)];
        let (x_panel, dy_group) = (pass_tiles * panel, pass_tiles * GROUP);
        let Limits { alone, alone_long, shared, long, far, .. } = plan.limits;
        let most = if pass_tiles < long { alone } else { alone_long };
        let blocks: usize = part.iter().map(|channels| channels.div_ceil(most)).product();
        let far = frequencies.saturating_mul(part[0]).saturating_mul(part[1]) >= far;
        let alone = far && passes == [1, 1, 1] && (slots == 1 || blocks / 4 >= slots);
        let block = part.map(|channels| channels.min(if alone { most } else { shared }));
        let sums_plane = block[0].next_multiple_of(LINE);
        let sums_row = odd_lines(frequencies * sums_plane);
        let chunk = chunk(plan.axes, along, lanes);
        Self {
            frequencies,
            tilings,
            part,
            parts: [plan.group_in.div_ceil(part[0]), plan.group_out.div_ceil(part[1])],
            pass,
            passes,
            panel,
            x_panel,
            dy_group,
            x_plane: odd_lines(round_up(part[0].div_ceil(panel) * x_panel)),
            dy_plane: odd_lines(part[1].div_ceil(GROUP) * dy_group),
            block,
            sums_row,
            sums_plane,
            sums_block: block[1] * sums_row,
            alone,
            chunk,
            transform_len: 2 * round_up(rows_len(plan.axes, chunk, lanes)),
        }
    }

    /// Blocks of a part, in and out.
    pub fn blocks(&self) -> [usize; 2] {
        [self.part[0].div_ceil(self.block[0]), self.part[1].div_ceil(self.block[1])]
    }

    /// Floats of the transformed tiles of x and of dy.
    pub fn transformed(&self) -> [usize; 2] {
        [self.frequencies * self.x_plane, self.frequencies * self.dy_plane]
    }

    /// Floats of the sums that are kept.
    pub fn sums(&self, slots: usize) -> usize {
        let blocks = if self.alone { slots } else { self.blocks().iter().product() };
        self.sums_block.saturating_mul(blocks)
    }

    /// Floats of a call's scratch memory.
    pub fn len(&self, slots: usize) -> usize {
        let [x, dy] = self.transformed();
        x.saturating_add(dy).saturating_add(self.sums(slots)).saturating_add(self.transform_len.saturating_mul(slots))
    }

    /// The tiles of a pass of one group.
    pub fn tiles_of(&self, batch: usize, index: usize) -> Block {
        let [_, down, along] = self.passes;
        let cell = self.tilings[1].phases;
        let (image, row, column) =
            (index / along / down * self.pass[0], index / along % down * self.pass[1], index % along * self.pass[2]);
        Block {
            image,
            images: self.pass[0].min(batch - image),
            group: 0,
            row,
            column: column * cell,
            rows: self.pass[1].min(self.tilings[0].all() - row),
            columns: self.pass[2].min(self.tilings[1].tiles - column) * cell,
        }
    }
}
