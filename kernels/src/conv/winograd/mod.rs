//! Winograd's algorithm: convolutions with two thirds to a fifth of the multiplications.
//!
//! ```text
//!   x ──► tiles of (m + r - 1)², overlapping ──► Bᵀ d B ──► v[frequency][tile][in channel]
//!                                                               │  one matrix product per frequency
//!   w ──► G w Gᵀ, in f64, when weights are set ──► u ───────────┤  m[f] = v[f] * u[f]
//!                                                               ▼
//!   y ◄── bias, residual, activation ◄── tiles of m² ◄── Aᵀ m A ◄── m[frequency][tile][out channel]
//! ```
//!
//! The tile is chosen apart for height and width; [`axis`] says what there is, strides of 2 and axes that stay direct
//! among it, [`points`] has the transforms, and [`tiling`] says where tiles lie, those of dilated kernels among them. A
//! block of tiles goes through all steps before the next, so that `v` and `m` stay in the cache; where there are fewer
//! blocks than threads, the threads share each step of a block instead. Backward-data is the same with flipped filters,
//! channels exchanged.
//!
//! # Order of sums
//! One chain of fused multiply-adds over the input channels for each frequency; transforms add in the order written in
//! [`points`]. Nothing depends on blocks or threads.

mod axis;
mod blocks;
mod cut;
mod definition;
mod input;
mod output;
mod pack;
mod points;
mod products;
mod scheme;
#[cfg(test)]
mod tests;
mod tiling;
pub(crate) mod weights;

use std::ops::Range;

use super::algorithm::Algorithm;
use super::dense::PEAK_FLOPS;
use super::engine::{Call, Post};
use super::spec::{Conv2dSpec, Layout};
use crate::error::{Error, checked_len};
use crate::gemm::tile::NV;
use crate::parallel::Parallelism;
use crate::parts::{Shared, share};
use crate::simd::{Isa, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{Workspace, aligned, round_up};
pub(crate) use axis::Axis;
use blocks::Block;
use cut::{Cut, GROUP};
use input::{Image, InputTransform, Place, Transform};
use output::OutputTransform;
use pack::PackFilters;
use products::Products;
pub(crate) use tiling::Tiling;
pub(super) use weights::WinogradWeights;

/// Which gradient, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    BackwardData,
}

/// A convolution with transformed weights.
#[derive(Clone)]
pub(super) struct Winograd {
    axes: [Axis; 2],
    direction: Direction,
    /// The forward convolution.
    spec: Conv2dSpec,
    /// Rows and columns of padding before the image, as this direction sees it.
    before: [usize; 2],
    /// Channels of a group.
    in_channels: usize,
    out_channels: usize,
    groups: usize,
    layout: Layout,
    isa: Isa,
    /// `[group][frequency][panel of out channels][in channel][column]`, each frequency from a cache line on.
    u: Workspace,
}

/// A call, as its tasks see it.
struct Context<'a> {
    plan: &'a Winograd,
    cut: Cut,
    weights: &'a [f32],
    input: &'a [f32],
    in_size: [usize; 2],
    output: *mut f32,
    out_size: [usize; 2],
    post: Post<'a>,
}

// SAFETY: tasks write disjoint outputs.
unsafe impl Sync for Context<'_> {}

impl Winograd {
    /// The axes of the algorithm's tiles, if it can do the spec.
    pub fn axes(spec: &Conv2dSpec, direction: Direction, algorithm: Algorithm) -> Option<[Axis; 2]> {
        let outputs = algorithm.tile()?;
        // Phases of a stride, or of a dilation.
        let regular = (0..2).all(|axis| spec.dilation[axis] == 1 || spec.kernel[axis] == 1 || spec.stride[axis] == 1);
        // One channel a group: depthwise, where transforms cost more than the products that they spare.
        let pays = spec.in_channels > spec.groups || spec.out_channels > spec.groups || spec.groups == 1;
        if !regular || !pays || spec.kernel == [1, 1] {
            return None;
        }
        let padding = spec.padding;
        // Backward, the image is padded with what the kernel hangs over less what the padding was.
        let narrow = [[padding.top, padding.bottom], [padding.left, padding.right]];
        let reach = |at: usize| (spec.kernel[at] - 1).saturating_mul(spec.dilation[at]);
        let fits = |at: usize| narrow[at].iter().all(|&side| side <= reach(at));
        if direction == Direction::BackwardData && !(fits(0) && fits(1)) {
            return None;
        }
        let axis = |at: usize| {
            let (taps, stride) = (spec.kernel[at], spec.stride[at]);
            let apart = if taps == 1 { 1 } else { spec.dilation[at] };
            let axis = match direction {
                Direction::Forward => Axis::forward(taps, stride, outputs[at]),
                Direction::BackwardData => Axis::gradient(taps, stride, outputs[at], reach(at) - narrow[at][0]),
            };
            axis.map(|axis| Axis { apart, ..axis })
        };
        let axes = [axis(0)?, axis(1)?];
        if !axes.iter().any(Axis::saves) {
            return None;
        }
        let [in_channels, out_channels] = Self::channels(spec, direction);
        let frequencies = axes[0].points() * axes[1].points();
        let weights = frequencies.checked_mul(in_channels)?.checked_mul(out_channels)?.checked_mul(spec.groups)?;
        (Cut::has_room(axes, in_channels) && weights <= isize::MAX as usize / 64).then_some(axes)
    }

    /// Channels of a group that a direction reads and computes.
    pub fn channels(spec: &Conv2dSpec, direction: Direction) -> [usize; 2] {
        let [group_in, group_out] = [spec.in_channels / spec.groups, spec.out_channels / spec.groups];
        match direction {
            Direction::Forward => [group_in, group_out],
            Direction::BackwardData => [group_out, group_in],
        }
    }

    /// The expected seconds of a call on one thread, or `None` where the algorithm cannot do the spec.
    pub fn cost(
        spec: &Conv2dSpec,
        direction: Direction,
        algorithm: Algorithm,
        batch: usize,
        out_size: [usize; 2],
        isa: Isa,
    ) -> Option<f64> {
        let axes = Self::axes(spec, direction, algorithm)?;
        let [ic, oc] = Self::channels(spec, direction).map(|channels| channels as f64);
        let lanes = isa.lanes();
        let tiles = [0, 1].map(|axis| Tiling::new(axes[axis], out_size[axis]).all());
        let frequencies = (axes[0].points() * axes[1].points()) as f64;
        let group_tiles = batch as f64 * tiles[0] as f64 * tiles[1] as f64;
        let (groups, tiles) = (spec.groups as f64, spec.groups as f64 * group_tiles);
        let vectors = |channels: f64| (channels / lanes as f64).ceil();
        let rows = groups * group_tiles.max(FEWEST_TILES);
        let products = frequencies * rows * ic * vectors(oc) * (2 * lanes) as f64 / PEAK_FLOPS;
        let seconds = if isa == Isa::Avx512 { TRANSFORM_SECONDS } else { NARROW_TRANSFORMS * TRANSFORM_SECONDS };
        let transforms = frequencies * tiles * (vectors(ic) + vectors(oc)) * lanes as f64 * seconds;
        // Each block of tiles reads all weights of its group once.
        let most = Cut::most_tiles(axes, Self::channels(spec, direction), isa) as f64;
        let passes = (group_tiles / most).max(1.0).ceil();
        let weights = groups * frequencies * ic * oc;
        let beyond = (weights * 4.0 / (1 << 20) as f64 - WEIGHTS_NEAR) / (WEIGHTS_FAR - WEIGHTS_NEAR);
        let [near, far] = WEIGHT_SECONDS;
        let weights = weights * passes * (near + (far - near) * beyond.clamp(0.0, 1.0));
        Some((PRODUCTS + TILE_DEPTH / ic) * products + transforms + weights)
    }

    /// Room for the weights.
    pub fn new(spec: &Conv2dSpec, direction: Direction, axes: [Axis; 2], isa: Isa) -> Result<Self, Error> {
        let [in_channels, out_channels] = Self::channels(spec, direction);
        let padding = [spec.padding.top, spec.padding.left];
        let before = match direction {
            Direction::Forward => padding,
            // Rows and columns of zeros between those of a gradient are left out.
            Direction::BackwardData => {
                [0, 1].map(|axis| ((spec.kernel[axis] - 1) * spec.dilation[axis] - padding[axis]) / spec.stride[axis])
            }
        };
        let frequencies = axes[0].points() * axes[1].points();
        let plane = plane(in_channels, out_channels, isa);
        Ok(Self {
            axes,
            direction,
            spec: *spec,
            before,
            in_channels,
            out_channels,
            groups: spec.groups,
            layout: spec.layout,
            isa,
            u: Workspace::with_len(checked_len("weights", &[spec.groups, frequencies, plane])?)?,
        })
    }

    /// Where the weights of a frequency start in `u`.
    fn frequency(&self, group: usize, f: usize) -> usize {
        let [down, along] = self.axes;
        (group * down.points() * along.points() + f) * plane(self.in_channels, self.out_channels, self.isa)
    }

    /// Transforms the weights. Allocates nothing.
    pub fn pack(&mut self, weights: &[f32], parallelism: Parallelism<'_>) {
        let (len, u) = (self.u.len(), Shared(self.u.as_mut_ptr()));
        let plan = &*self;
        let lanes = plan.isa.lanes();
        let panel = NV * lanes;
        let (panels, chunks) = (plan.out_channels.div_ceil(panel), plan.in_channels.div_ceil(pack::CHANNELS));
        let stream = len >= STREAMED;
        let parallelism = parallelism.for_seconds(len as f64 * PACK_SECONDS);
        parallelism.for_each(plan.groups * panels * chunks, parallelism.threads(), &|task, _| {
            let (chunk, first) = (task % chunks, task / chunks % panels * panel);
            let start = chunk * pack::CHANNELS;
            let channels = start..plan.in_channels.min(start + pack::CHANNELS);
            let width = if plan.out_channels - first > lanes { panel } else { lanes };
            let group = task / chunks / panels;
            dispatch(plan.isa, PackFilters { plan, weights, group, first, width, stream, channels, u: u.at(0) });
        });
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, batch: usize, out_size: [usize; 2], slots: usize) -> usize {
        Cut::new(self, batch, out_size, slots).len(slots)
    }

    /// Computes every output of a call; `weights` are those that were packed.
    pub fn run(&self, call: Call<'_>, weights: &[f32]) {
        let Call { batch, input, in_size, output, out_size, post, workspace, slots, parallelism } = call;
        let cut = Cut::new(self, batch, out_size, slots);
        let (products, transforms, shared) = (round_up(cut.products()), cut.transform_scratch(), cut.blocks.shared);
        let scratch = aligned(workspace);
        debug_assert!(scratch.len() >= if shared { products } else { slots * products } + slots * transforms);
        let scratch = Shared(scratch.as_mut_ptr());
        let flops = 2.0
            * (batch * self.groups * self.out_channels * self.in_channels) as f64
            * (cut.tilings[0].all() * cut.tilings[1].all() * cut.frequencies) as f64;
        let parallelism = parallelism.for_seconds(flops / FLOPS_PER_SECOND);
        let context =
            &Context { plan: self, cut, weights, input, in_size, output: output.as_mut_ptr(), out_size, post };
        let blocks = context.cut.blocks.count();
        if !shared {
            parallelism.for_each(blocks, slots, &|index, slot| {
                context.block_alone(index, scratch.at(slot * (products + transforms)));
            });
            return;
        }
        for index in 0..blocks {
            context.block_shared(index, scratch, slots, parallelism);
        }
    }
}

impl Context<'_> {
    /// The transform of some channels of a block, from a multiple of 16 on.
    fn input_transform(
        &self,
        block: Block,
        channels: Range<usize>,
        v: *mut f32,
        scratch: *mut f32,
    ) -> InputTransform<'_> {
        let (plan, cut) = (self.plan, &self.cut);
        let (before, layout) = (plan.before, plan.layout);
        let all = plan.groups * plan.in_channels;
        let (plane, panel) = (cut.v_plane, cut.v_group);
        InputTransform {
            image: Image { values: self.input, size: self.in_size, before, channels: all, layout },
            axes: plan.axes,
            tilings: cut.tilings,
            transform: Transform::Input,
            block,
            chunk: cut.chunk,
            first_channel: block.group * plan.in_channels,
            channels,
            place: Place { v, before: 0, plane, panel, width: GROUP, last_width: GROUP, channels: plan.in_channels },
            scratch,
        }
    }

    /// A block by one thread.
    fn block_alone(&self, index: usize, v: *mut f32) {
        let (plan, cut) = (self.plan, &self.cut);
        let block = cut.blocks.at(index);
        let m = v.wrapping_add(cut.frequencies * cut.v_plane);
        let scratch = v.wrapping_add(round_up(cut.products()));
        let mut laps = Laps::start();
        dispatch(plan.isa, self.input_transform(block, 0..plan.in_channels, v, scratch));
        laps.lap(Stage::Transform);
        let all = plan.out_channels.div_ceil(cut.panel);
        for first in (0..all).step_by(cut.out_panels) {
            let panels = first..all.min(first + cut.out_panels);
            let channels = panels.start * cut.panel..plan.out_channels.min(panels.end * cut.panel);
            dispatch(plan.isa, Products { context: self, block, frequencies: 0..cut.frequencies, panels, v, m });
            laps.lap(Stage::Product);
            dispatch(plan.isa, OutputTransform { context: self, block, channels, skip: 0, m, scratch });
            laps.lap(Stage::Transform);
        }
    }

    /// A block by all threads: each takes some channels, then some frequencies, so weights are read once, then some
    /// channels.
    fn block_shared(&self, index: usize, scratch: Shared, slots: usize, parallelism: Parallelism<'_>) {
        let (plan, cut) = (self.plan, &self.cut);
        let block = cut.blocks.at(index);
        let v = scratch;
        let m = Shared(v.at(cut.frequencies * cut.v_plane));
        let own = Shared(v.at(round_up(cut.products())));
        let transforms = cut.transform_scratch();
        let units = |items: usize, unit: usize, tasks: usize, task: usize| {
            let units = share(items.div_ceil(unit), tasks, task);
            (units.start * unit).min(items)..(units.end * unit).min(items)
        };
        let tasks = slots.min(plan.in_channels.div_ceil(GROUP)).max(1);
        parallelism.for_each(tasks, slots, &|task, slot| {
            let mut laps = Laps::start();
            let (channels, scratch) = (units(plan.in_channels, GROUP, tasks, task), own.at(slot * transforms));
            dispatch(plan.isa, self.input_transform(block, channels, v.at(0), scratch));
            laps.lap(Stage::Transform);
        });
        let tasks = cut.frequencies.min(4 * slots);
        parallelism.for_each(tasks, slots, &|task, _| {
            let mut laps = Laps::start();
            let frequencies = share(cut.frequencies, tasks, task);
            let (panels, v, m) = (0..cut.out_panels, v.at(0), m.at(0));
            dispatch(plan.isa, Products { context: self, block, frequencies, panels, v, m });
            laps.lap(Stage::Product);
        });
        let lanes = plan.isa.lanes();
        let tasks = slots.min(plan.out_channels.div_ceil(lanes)).max(1);
        parallelism.for_each(tasks, slots, &|task, slot| {
            let mut laps = Laps::start();
            let channels = units(plan.out_channels, lanes, tasks, task);
            let (skip, m, scratch) = (channels.start, m.at(0), own.at(slot * transforms));
            dispatch(plan.isa, OutputTransform { context: self, block, channels, skip, m, scratch });
            laps.lap(Stage::Transform);
        });
    }
}

/// Floats of a frequency's weights: whole vectors of output channels.
fn plane(in_channels: usize, out_channels: usize, isa: Isa) -> usize {
    round_up(in_channels * out_channels.next_multiple_of(isa.lanes()))
}

// Costs on one thread, for products that run at `PEAK_FLOPS`; measured on Zen 4 with AVX-512.
/// What a channel of a tile costs in each transform, per frequency: 2.2 to 3.2 ns a vector of 16, 5 where a block
/// leaves the second-level cache.
const TRANSFORM_SECONDS: f64 = 0.2e-9;
/// So much more with vectors of 8 and 16 registers (AVX2 on Zen 4).
const NARROW_TRANSFORMS: f64 = 1.25;
/// Fewer tiles take as long: their chains, two vectors of outputs for each, wait for their latency.
const FEWEST_TILES: f64 = 4.0;
/// What a transformed weight costs to read where all of them stay near, and where they come from memory.
const WEIGHT_SECONDS: [f64; 2] = [0.02e-9, 0.12e-9];
/// MiB of weights up to which they stay near, and from which they come from memory.
const WEIGHTS_NEAR: f64 = 8.0;
const WEIGHTS_FAR: f64 = 40.0;
/// Products run at 91 to 96 % of the peak, a little faster than `PEAK_FLOPS`.
const PRODUCTS: f64 = 0.9;
/// What a tile of products costs beside them, in units of a step of depth.
const TILE_DEPTH: f64 = 4.0;

/// The speed by which work is judged too small for several threads.
const FLOPS_PER_SECOND: f64 = 80e9;
/// Transformed weights from which on they are written past the caches: a step of AlexNet's training takes a tenth less
/// than with 8 to 14 MiB written through them, one of NiN's a twentieth.
const STREAMED: usize = 1 << 20;
/// A transformed weight, to tell whether threads are worth waking.
const PACK_SECONDS: f64 = 0.4e-9;
