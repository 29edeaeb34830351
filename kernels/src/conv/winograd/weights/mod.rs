//! Winograd's algorithm for the gradient of the weights, with two thirds to a fifth of the multiplications.
//!
//! ```text
//!   x ──► tiles of (m + r - 1)², overlapping ──► Bᵀ d B ──► x[frequency][tile][in channel]
//!                                                               │  one matrix product per frequency, over all tiles
//!   dy ──► tiles of m² ─────────────────────────► A d Aᵀ ──► dy[frequency][tile][out channel]
//!                                                               ▼
//!   dw ◄── r² taps ◄── Gᵀ u G, once ◄────────── sums[frequency][out channel][in channel]
//! ```
//!
//! The tiles are those of the forward pass, and so is the transform of x; [`points`](super::points) has the others. All
//! threads transform the tiles of a pass, then each multiplies some blocks of channels: nothing is transformed twice.
//! Where one pass holds all tiles and there are blocks enough, a block's sums stay in its core's cache until they are
//! weights.
//!
//! # Order of sums
//! One chain of fused multiply-adds over the tiles of the batch, in order, for each frequency and pair of channels.
//!
//! Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.3.

pub(crate) mod cut;
mod output;
mod products;
#[cfg(test)]
mod tests;
#[cfg(feature = "internals")]
pub(crate) mod within;

use std::ops::Range;

use super::blocks::Block;
use super::cut::GROUP;
use super::input::{Image, InputTransform, Place, Transform};
use super::{Axis, Direction, Tiling, Winograd};
use crate::conv::algorithm::{Algorithm, BackwardWeightsCall};
use crate::conv::border;
use crate::conv::dense::PEAK_FLOPS;
use crate::conv::spec::{Conv2dSpec, Shape, Sizes};
use crate::gemm::tile::NV;
use crate::parallel::Parallelism;
use crate::parts::{Shared, share};
use crate::simd::{Isa, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned};
use cut::{Cut, Limits};
use output::Taps;
use products::Products;

/// The gradient of the weights of a convolution.
#[derive(Clone, Debug)]
pub(in crate::conv) struct WinogradWeights {
    spec: Conv2dSpec,
    axes: [Axis; 2],
    isa: Isa,
    /// Channels of a group.
    group_in: usize,
    group_out: usize,
    limits: Limits,
}

/// A part of a call, as its tasks see it.
struct Context<'a> {
    plan: &'a WinogradWeights,
    cut: Cut,
    sizes: Sizes,
    x: &'a [f32],
    dy: &'a [f32],
    dw: *mut f32,
    group: usize,
    /// The first channels of the part, in and out, and how many there are.
    start: [usize; 2],
    part: [usize; 2],
    /// Transformed tiles, sums and what each slot has for transforms.
    x_tiles: Shared,
    dy_tiles: Shared,
    sums: Shared,
    own: Shared,
}

// SAFETY: tasks write disjoint tiles, sums and gradients, each after those before it are complete.
unsafe impl Sync for Context<'_> {}

impl WinogradWeights {
    pub fn new(spec: &Conv2dSpec, axes: [Axis; 2], isa: Isa) -> Self {
        let [group_in, group_out] = [spec.in_channels / spec.groups, spec.out_channels / spec.groups];
        Self { spec: *spec, axes, isa, group_in, group_out, limits: Limits::DEFAULT }
    }

    /// The expected seconds on one thread, or `None` where the algorithm cannot do the spec.
    pub fn cost(spec: &Conv2dSpec, algorithm: Algorithm, hint: Shape, sizes: &Sizes, isa: Isa) -> Option<f64> {
        let axes = Winograd::axes(spec, Direction::Forward, algorithm)?;
        let plan = Self::new(spec, axes, isa);
        let lanes = isa.lanes();
        let vectors = |channels: usize| (channels.div_ceil(lanes) * lanes) as f64;
        let (ic, oc) = (vectors(plan.group_in), plan.group_out as f64);
        let frequencies = (axes[0].points() * axes[1].points()) as f64;
        let groups = spec.groups as f64;
        let tiles =
            hint.batch as f64 * plan.tilings(sizes.output).map(|tiling| tiling.all() as f64).iter().product::<f64>();
        let products = 2.0 * frequencies * tiles * ic * oc / PEAK_FLOPS * (PRODUCTS + TILE_DEPTH / tiles.max(1.0));
        let near = frequencies * ic * oc <= plan.limits.near as f64;
        let transforms = frequencies * tiles * (ic + vectors(plan.group_out)) * TRANSFORM_SECONDS[usize::from(!near)];
        let sums = frequencies * ic * oc * SUM_SECONDS;
        Some(groups * (products + transforms + sums))
    }

    /// Tiles of an image, down and along.
    fn tilings(&self, out_size: [usize; 2]) -> [Tiling; 2] {
        [0, 1].map(|axis| Tiling::new(self.axes[axis], out_size[axis]))
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        LINE.saturating_add(Cut::new(self, shape, sizes, slots).len(slots))
    }

    /// Computes `dw`.
    pub fn run(&self, call: BackwardWeightsCall<'_>) {
        let BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism } = call;
        let cut = Cut::new(self, shape, &sizes, slots);
        let scratch = aligned(workspace);
        debug_assert!(scratch.len() >= cut.len(slots));
        let [x_len, dy_len] = cut.transformed();
        let x_tiles = Shared(scratch.as_mut_ptr());
        let dy_tiles = Shared(x_tiles.at(x_len));
        let sums = Shared(dy_tiles.at(dy_len));
        let own = Shared(sums.at(cut.sums(slots)));
        let tiles = (shape.batch * cut.tilings[0].all() * cut.tilings[1].all()) as f64;
        let flops = 2.0 * cut.frequencies as f64 * tiles * (self.spec.out_channels * self.group_in) as f64;
        let parallelism = parallelism.for_seconds(flops / super::FLOPS_PER_SECOND);
        let passes: usize = cut.passes.iter().product();
        for group in 0..self.spec.groups {
            for in_part in 0..cut.parts[0] {
                for out_part in 0..cut.parts[1] {
                    let start = [in_part * cut.part[0], out_part * cut.part[1]];
                    let part = [0, 1].map(|at| cut.part[at].min([self.group_in, self.group_out][at] - start[at]));
                    let dw = dw.as_mut_ptr();
                    let context = &Context {
                        plan: self,
                        cut,
                        sizes,
                        x,
                        dy,
                        dw,
                        group,
                        start,
                        part,
                        x_tiles,
                        dy_tiles,
                        sums,
                        own,
                    };
                    for pass in 0..passes {
                        // What the part before has transformed of x is still there.
                        let known = passes == 1 && out_part > 0;
                        context.pass(pass, passes, known, shape.batch, slots, parallelism);
                    }
                }
            }
        }
        border::repair_weights(self.isa, &self.spec, shape, &sizes, x, dy, dw);
    }
}

impl Context<'_> {
    /// Adds the tiles of a pass to the part's sums; after the last the gradients are complete. `known` says that x is
    /// transformed already.
    fn pass(&self, index: usize, passes: usize, known: bool, batch: usize, slots: usize, parallelism: Parallelism<'_>) {
        let tiles = self.cut.tiles_of(batch, index);
        self.transform(tiles, known, slots, parallelism);
        let (count, first) = (tiles.tiles(), index == 0);
        if self.cut.alone {
            return self.multiply_and_write(count, slots, parallelism);
        }
        self.multiply(count, first, slots, parallelism);
        if index + 1 == passes {
            self.write(slots, parallelism);
        }
    }

    /// Transforms the tiles of x, unless they are known, and of dy: each task takes sixteen channels of some rows of
    /// tiles.
    fn transform(&self, tiles: Block, known: bool, slots: usize, parallelism: Parallelism<'_>) {
        let units = self.part.map(|channels| channels.div_ceil(GROUP));
        let first = if known { units[0] } else { 0 };
        let count = units[0] + units[1] - first;
        let lines = tiles.images * tiles.rows;
        let shares = if slots == 1 { 1 } else { slots.saturating_mul(8).div_ceil(count).min(lines) };
        parallelism.for_each(count * shares, slots, &|task, slot| {
            let mut laps = Laps::start();
            let (unit, share) = (first + task / shares, share(lines, shares, task % shares));
            let scratch = self.own.at(slot * self.cut.transform_len);
            let mut line = share.start;
            while line < share.end {
                // Whole images at once, or some rows of one.
                let row = line % tiles.rows;
                let rows = (tiles.rows - row).min(share.end - line);
                let images = if rows == tiles.rows { (share.end - line) / rows } else { 1 };
                let image = tiles.image + line / tiles.rows;
                let some = Block { image, images, row: tiles.row + row, rows, ..tiles };
                let before = line * tiles.columns;
                let job = match unit.checked_sub(units[0]) {
                    None => self.input_transform(unit, some, before, scratch),
                    Some(unit) => self.spread_transform(unit, some, before, scratch),
                };
                dispatch(self.plan.isa, job);
                line += images * rows;
            }
            laps.lap(Stage::Transform);
        });
    }

    /// Blocks of the part, in and out.
    fn blocks(&self) -> [usize; 2] {
        [0, 1].map(|at| self.part[at].div_ceil(self.cut.block[at]))
    }

    /// Channels of a block, in and out.
    fn channels(&self, block: usize) -> [Range<usize>; 2] {
        let [across, _] = self.blocks();
        [(0, block % across), (1, block / across)].map(|(at, block)| {
            let size = self.cut.block[at];
            block * size..self.part[at].min((block + 1) * size)
        })
    }

    /// Each task continues the sums of some frequencies of a block.
    fn multiply(&self, tiles: usize, first: bool, slots: usize, parallelism: Parallelism<'_>) {
        let blocks: usize = self.blocks().iter().product();
        let shares = slots.saturating_mul(8).div_ceil(blocks).clamp(1, self.cut.frequencies);
        parallelism.for_each(blocks * shares, slots, &|task, _| {
            let mut laps = Laps::start();
            let (block, frequencies) = (task / shares, share(self.cut.frequencies, shares, task % shares));
            let sums = self.sums.at(block * self.cut.sums_block);
            dispatch(self.plan.isa, self.products(tiles, first, frequencies, block, sums));
            laps.lap(Stage::Product);
        });
    }

    /// Each task makes gradients of some out channels of a block.
    fn write(&self, slots: usize, parallelism: Parallelism<'_>) {
        let blocks: usize = self.blocks().iter().product();
        let shares = slots.saturating_mul(4).div_ceil(blocks).clamp(1, self.cut.block[1]);
        parallelism.for_each(blocks * shares, slots, &|task, _| {
            let mut laps = Laps::start();
            let block = task / shares;
            let rows = share(self.channels(block)[1].len(), shares, task % shares);
            let sums = self.sums.at(block * self.cut.sums_block + rows.start * self.cut.sums_row);
            dispatch(self.plan.isa, self.taps(block, rows, sums));
            laps.lap(Stage::Transform);
        });
    }

    /// Each task sums a block over all tiles, then makes its gradients.
    fn multiply_and_write(&self, tiles: usize, slots: usize, parallelism: Parallelism<'_>) {
        parallelism.for_each(self.blocks().iter().product(), slots, &|block, slot| {
            let mut laps = Laps::start();
            let sums = self.sums.at(slot * self.cut.sums_block);
            dispatch(self.plan.isa, self.products(tiles, true, 0..self.cut.frequencies, block, sums));
            laps.lap(Stage::Product);
            let rows = 0..self.channels(block)[1].len();
            dispatch(self.plan.isa, self.taps(block, rows, sums));
            laps.lap(Stage::Transform);
        });
    }

    fn products(
        &self,
        tiles: usize,
        first: bool,
        frequencies: Range<usize>,
        block: usize,
        sums: *mut f32,
    ) -> Products<'_> {
        let [ics, ocs] = self.channels(block);
        let (x, dy) = (self.x_tiles.at(0), self.dy_tiles.at(0));
        Products { context: self, tiles, first, frequencies, ics, ocs, x, dy, sums }
    }

    /// The last transform of some rows of a block, whose sums start at `sums`.
    fn taps(&self, block: usize, rows: Range<usize>, sums: *const f32) -> Taps<'_> {
        let ([ics, ocs], [first_in, first_out]) = (self.channels(block), self.start);
        let first_out = first_out + ocs.start;
        let (ics, ocs) = (first_in + ics.start..first_in + ics.end, first_out + rows.start..first_out + rows.end);
        Taps { context: self, ics, ocs, group: self.group, sums }
    }

    /// The transform of sixteen channels of some tiles of x, of which `before` come before them in the pass.
    fn input_transform(&self, unit: usize, block: Block, before: usize, scratch: *mut f32) -> InputTransform<'_> {
        let (plan, cut, channels) = (self.plan, &self.cut, self.part[0]);
        let lanes = plan.isa.lanes();
        let last = channels - (channels - 1) / cut.panel * cut.panel;
        let last_width = if last > lanes { NV * lanes } else { lanes };
        let (v, plane, panel, width) = (self.x_tiles.at(0), cut.x_plane, cut.x_panel, cut.panel);
        InputTransform {
            image: Image {
                values: self.x,
                size: self.sizes.input,
                before: [plan.spec.padding.top, plan.spec.padding.left],
                channels: plan.spec.in_channels,
                layout: plan.spec.layout,
            },
            axes: plan.axes,
            tilings: cut.tilings,
            transform: Transform::Input,
            block,
            chunk: cut.chunk,
            first_channel: self.group * plan.group_in + self.start[0],
            channels: unit * GROUP..channels.min((unit + 1) * GROUP),
            place: Place { v, before, plane, panel, width, last_width, channels },
            scratch,
        }
    }

    /// As [`Context::input_transform`], of dy.
    fn spread_transform(&self, unit: usize, block: Block, before: usize, scratch: *mut f32) -> InputTransform<'_> {
        let (plan, cut, channels) = (self.plan, &self.cut, self.part[1]);
        let (v, plane, panel) = (self.dy_tiles.at(0), cut.dy_plane, cut.dy_group);
        InputTransform {
            image: Image {
                values: self.dy,
                size: self.sizes.output,
                before: [0, 0],
                channels: plan.spec.out_channels,
                layout: plan.spec.layout,
            },
            axes: plan.axes,
            tilings: cut.tilings,
            transform: Transform::Spread,
            block,
            chunk: cut.chunk,
            first_channel: self.group * plan.group_out + self.start[1],
            channels: unit * GROUP..channels.min((unit + 1) * GROUP),
            place: Place { v, before, plane, panel, width: GROUP, last_width: GROUP, channels },
            scratch,
        }
    }
}

// Costs on one thread, for products that run at `PEAK_FLOPS`; measured on Zen 4 with AVX-512.
/// Products run at 91 to 93 % of the peak where there are many tiles.
const PRODUCTS: f64 = 0.95;
/// What a product costs beside its tiles, in tiles.
const TILE_DEPTH: f64 = 6.0;
/// What a channel of a tile costs in each transform, per frequency: where a pass stays in the second-level cache, and
/// where not.
const TRANSFORM_SECONDS: [f64; 2] = [0.33e-9, 0.45e-9];
/// What a sum costs in the last transform.
const SUM_SECONDS: f64 = 0.28e-9;
