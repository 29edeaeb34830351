//! Winograd's algorithm: convolutions of stride 1 with a half to a fifth of the multiplications.
//!
//! ```text
//!   x ──► tiles of (m + r - 1)², overlapping ──► Bᵀ d B ──► v[frequency][in channel][tile]
//!                                                               │  one matrix product per frequency
//!   w ──► G w Gᵀ, in f64, when the plan is made ──► u ──────────┤  m[f] = u[f] * v[f]
//!                                                               ▼
//!   y ◄── bias, residual, activation ◄── tiles of m² ◄── Aᵀ m A ◄── m[frequency][out channel][tile]
//! ```
//!
//! The tile is chosen apart for height and width, [`points`] has the transforms. A block of tiles goes through all steps
//! before the next, so that `v` and `m` stay in the cache; where there are fewer blocks than threads, the threads share
//! each step of a block instead. Backward-data is the same with flipped filters, channels exchanged.
//!
//! # Order of sums
//! One chain of fused multiply-adds over the input channels for each frequency; transforms add in the order written in
//! [`points`]. Nothing depends on blocks or threads.

mod input;
mod output;
pub(crate) mod points;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::algorithm::Algorithm;
use super::dense::PEAK_FLOPS;
use super::pixel_lanes::{Call, Post};
use super::spec::{Conv2dSpec, Layout};
use crate::error::{Error, checked_len};
use crate::gemm::micro::ContiguousColumns;
use crate::gemm::tile::{Ends, NV, Panels, max_height, tiles_of};
use crate::gemm::{Ahead, Strips};
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, Workspace, aligned, round_up};
use input::InputTransform;
use output::OutputTransform;
pub(crate) use points::Axis;

/// Which gradient, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    BackwardData,
}

/// A convolution of stride 1 with transformed weights.
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
    strips: Strips,
    /// `[group][frequency][strip][in channel][row of the strip]`, each frequency from a cache line on.
    u: Workspace,
}

/// Floats of `v` and `m` of a block of tiles, at most: they go through the cache once in each step.
const BLOCK: usize = 512 * 1024;
/// Tiles of a block beyond which nothing is won any more.
const BLOCK_TILES: usize = 224;
/// Depth of a product after which the sums are stored: strip and panel fit L1.
const DEPTH: usize = 256;
/// Output channels whose products are computed before they are transformed, at least.
const OUT_BLOCK: usize = 48;
/// The most floats of a block's `v` for which the algorithm is taken into account: its workspace is bounded.
const MOST_SCRATCH: usize = 768 * 1024;

/// How a call is cut.
struct Cut {
    /// Tiles of an image, down and along.
    tiles: [usize; 2],
    /// Tiles of a block, down and along.
    block: [usize; 2],
    /// Blocks of an image, down and along.
    blocks: [usize; 2],
    /// Strips of output channels that are multiplied before they are transformed.
    out_strips: usize,
    /// From channel to channel of `v` and of `m`.
    tiles_stride: usize,
    /// From frequency to frequency of `v`, and of `m`.
    v_plane: usize,
    m_plane: usize,
    /// From row to row of a plane, and of finished rows: whole vectors.
    width: usize,
    /// Rows of a plane, and of finished rows.
    plane_rows: usize,
    out_rows: usize,
    axes: [Axis; 2],
    /// Threads share the steps of a block.
    shared: bool,
}

impl Cut {
    /// Floats of a plane.
    fn plane_len(&self) -> usize {
        round_up(self.plane_rows * self.width)
    }

    /// Floats of one channel's finished rows.
    fn rows_len(&self) -> usize {
        round_up(self.out_rows * self.width)
    }

    /// Columns of the image that `tiles` tiles side by side see.
    fn shown(&self, tiles: usize) -> usize {
        tiles * self.axes[1].outputs + self.axes[1].taps - 1
    }

    /// Rows of the image that `tiles` rows of tiles see.
    fn shown_rows(&self, tiles: usize) -> usize {
        tiles * self.axes[0].outputs + self.axes[0].taps - 1
    }

    fn frequencies(&self) -> usize {
        self.axes[0].points() * self.axes[1].points()
    }

    /// Floats of what a task needs for the transforms alone.
    fn transform_scratch(&self) -> usize {
        // Planes of a vector of channels, and one row of tiles; or their finished rows.
        let planes = 16 * self.plane_len() + round_up(self.axes[0].points() * self.width);
        let columns = self.axes[0].outputs * self.axes[1].points() * self.width;
        planes.max(16 * self.rows_len() + round_up(columns))
    }

    /// Floats of `v` and of `m`.
    fn products(&self) -> usize {
        self.frequencies() * (self.v_plane + self.m_plane)
    }
}

/// A block of tiles of one image and group.
#[derive(Clone, Copy)]
struct Block {
    image: usize,
    group: usize,
    /// Its first tile, and how many it has.
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
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
        let stride_one = spec.stride == [1, 1];
        let dense = (0..2).all(|axis| spec.dilation[axis] == 1 || spec.kernel[axis] == 1);
        // One channel a group: depthwise, where transforms cost more than the products that they spare.
        let pays = spec.in_channels > spec.groups || spec.out_channels > spec.groups || spec.groups == 1;
        if !stride_one || !dense || !pays || spec.kernel == [1, 1] {
            return None;
        }
        let axis = |at: usize| Axis::new(spec.kernel[at], if spec.kernel[at] == 1 { 1 } else { outputs[at] });
        let axes = [axis(0)?, axis(1)?];
        let padding = spec.padding;
        // Backward, the image is padded with what the kernel hangs over less what the padding was.
        let narrow = [[padding.top, padding.bottom], [padding.left, padding.right]];
        let fits = |at: usize| narrow[at].iter().all(|&side| side < spec.kernel[at]);
        if direction == Direction::BackwardData && !(fits(0) && fits(1)) {
            return None;
        }
        let [in_channels, out_channels] = channels(spec, direction);
        let frequencies = axes[0].points() * axes[1].points();
        // A block of the fewest tiles.
        let least = frequencies.saturating_mul(in_channels.saturating_add(OUT_BLOCK)).saturating_mul(48);
        let weights = frequencies.checked_mul(in_channels)?.checked_mul(out_channels)?.checked_mul(spec.groups)?;
        (least <= MOST_SCRATCH * 2 && weights <= isize::MAX as usize / 64).then_some(axes)
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
        let [ic, oc] = channels(spec, direction).map(|channels| channels as f64);
        let lanes = isa.lanes();
        let tiles = [0, 1].map(|axis| out_size[axis].div_ceil(axes[axis].outputs));
        let frequencies = (axes[0].points() * axes[1].points()) as f64;
        let images = (batch * spec.groups) as f64;
        // Vectors of tiles: dense in the products, one row at a time in the transforms.
        let in_products = (tiles[0] as f64 * tiles[1] as f64 / lanes as f64).ceil();
        let in_transforms = tiles[0] as f64 * tiles[1].div_ceil(lanes) as f64;
        let products = images * frequencies * in_products * ic * oc * (2 * lanes) as f64 / PEAK_FLOPS;
        let transforms = images * frequencies * in_transforms * (ic + oc) * TRANSFORM_SECONDS;
        let weights = spec.groups as f64 * frequencies * ic * oc * WEIGHT_SECONDS;
        Some((PRODUCTS_SLOWER + TILE_DEPTH / ic) * products + transforms + weights)
    }

    /// Room for the weights.
    pub fn new(spec: &Conv2dSpec, direction: Direction, axes: [Axis; 2], isa: Isa) -> Result<Self, Error> {
        let [in_channels, out_channels] = channels(spec, direction);
        let padding = [spec.padding.top, spec.padding.left];
        let before = match direction {
            Direction::Forward => padding,
            Direction::BackwardData => [0, 1].map(|axis| spec.kernel[axis] - 1 - padding[axis]),
        };
        let frequencies = axes[0].points() * axes[1].points();
        let plane = round_up(in_channels * out_channels);
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
            strips: Strips::new(out_channels, max_height(isa.registers(), NV)),
            u: Workspace::with_len(checked_len("weights", &[spec.groups, frequencies, plane])?)?,
        })
    }

    /// Transforms the weights. Allocates nothing.
    pub fn pack(&mut self, weights: &[f32]) {
        let Self { axes, in_channels, out_channels, groups, direction, .. } = *self;
        let [down, along] = axes;
        let taps = down.taps * along.taps;
        let plane = round_up(in_channels * out_channels);
        for group in 0..groups {
            for strip in 0..self.strips.count {
                let (start, height) = (self.strips.start(strip), self.strips.height(strip));
                for row in 0..height {
                    for ic in 0..in_channels {
                        let oc = start + row;
                        let filter = match direction {
                            Direction::Forward => (group * out_channels + oc) * in_channels + ic,
                            Direction::BackwardData => (group * in_channels + ic) * out_channels + oc,
                        };
                        let filter = &weights[filter * taps..][..taps];
                        // G w, then times G transposed.
                        let mut columns = [[0.0f64; points::MOST]; points::MOST];
                        for p in 0..down.points() {
                            for kw in 0..along.taps {
                                for kh in 0..down.taps {
                                    let tap = kh * along.taps + kw;
                                    let tap = if direction == Direction::Forward { tap } else { taps - 1 - tap };
                                    columns[p][kw] += down.weight(p, kh) * f64::from(filter[tap]);
                                }
                            }
                        }
                        for p in 0..down.points() {
                            for q in 0..along.points() {
                                let sum: f64 = (0..along.taps).map(|kw| columns[p][kw] * along.weight(q, kw)).sum();
                                let f = p * along.points() + q;
                                let at = (group * down.points() * along.points() + f) * plane;
                                self.u[at + start * in_channels + ic * height + row] = sum as f32;
                            }
                        }
                    }
                }
            }
        }
    }

    fn cut(&self, batch: usize, out_size: [usize; 2], slots: usize) -> Cut {
        let lanes = self.isa.lanes();
        let tiles = [0, 1].map(|axis| out_size[axis].div_ceil(self.axes[axis].outputs));
        let frequencies = self.axes[0].points() * self.axes[1].points();
        let out_channels = self.out_channels;
        // As many tiles as fit with all of their channels, along the rows first.
        let fitting =
            (BLOCK / (frequencies * (self.in_channels + out_channels.min(4 * OUT_BLOCK)))).clamp(16, BLOCK_TILES);
        let count = |tiles: usize, most: usize| tiles.div_ceil(tiles.div_ceil(most.max(1)).max(1)).max(1);
        let columns = if tiles[1] <= fitting { tiles[1] } else { count(tiles[1], fitting / 16 * 16) };
        let columns = if columns < tiles[1] { columns.next_multiple_of(lanes) } else { columns };
        let mut rows = count(tiles[0], fitting / columns.max(1));
        let blocks_of = |rows: usize| tiles[0].div_ceil(rows) * tiles[1].div_ceil(columns.max(1)) * batch * self.groups;
        // Even work for all threads: smaller blocks where that is enough, else shared steps.
        while slots > 1
            && blocks_of(rows) % slots != 0
            && blocks_of(rows) < 4 * slots
            && rows * columns >= 64
            && rows > 1
        {
            rows = count(tiles[0], rows - 1);
        }
        let blocks = [tiles[0].div_ceil(rows), tiles[1].div_ceil(columns.max(1))];
        let all = blocks[0] * blocks[1] * batch * self.groups;
        let shared = slots > 1 && all < 4 * slots && !all.is_multiple_of(slots);
        let panel = NV * lanes;
        // Whole panels, and a whole vector at the end of the last row; an odd number of cache lines.
        let needed =
            (rows * columns).max((rows - 1) * columns + columns.next_multiple_of(lanes)).next_multiple_of(panel);
        let tiles_stride = if (needed / LINE).is_multiple_of(2) { needed + LINE } else { needed };
        let height = max_height(self.isa.registers(), NV);
        let out_strips = if shared {
            self.strips.count
        } else {
            let room = (BLOCK / frequencies).saturating_sub(self.in_channels * tiles_stride) / tiles_stride;
            (room.max(OUT_BLOCK) / height).clamp(1, self.strips.count.max(1))
        };
        let out_strips = count(self.strips.count, out_strips);
        let along = self.axes[1];
        // A transposition reads a vector from each of a vector of tiles.
        let width = (columns.next_multiple_of(lanes) * along.outputs + 16 + points::MOST).next_multiple_of(LINE);
        Cut {
            tiles,
            block: [rows, columns],
            blocks,
            out_strips,
            tiles_stride,
            v_plane: self.in_channels * tiles_stride,
            m_plane: (out_strips * height).min(out_channels) * tiles_stride,
            width,
            plane_rows: rows * self.axes[0].outputs + self.axes[0].taps - 1,
            out_rows: self.axes[0].outputs,
            axes: self.axes,
            shared,
        }
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, batch: usize, out_size: [usize; 2], slots: usize) -> usize {
        let cut = self.cut(batch, out_size, slots);
        let copies = if cut.shared { 1 } else { slots };
        LINE + copies * round_up(cut.products()) + slots * cut.transform_scratch()
    }

    /// Computes every output of a call; `weights` are those that were packed.
    pub fn run(&self, call: Call<'_>, weights: &[f32]) {
        let Call { batch, input, in_size, output, out_size, post, workspace, slots, parallelism } = call;
        let cut = self.cut(batch, out_size, slots);
        let blocks = cut.blocks[0] * cut.blocks[1] * batch * self.groups;
        let frequencies = cut.frequencies();
        let products = round_up(cut.products());
        let transforms = cut.transform_scratch();
        let shared = cut.shared;
        let scratch = aligned(workspace);
        debug_assert!(scratch.len() >= if shared { products } else { slots * products } + slots * transforms);
        let scratch = Scratch(scratch.as_mut_ptr());
        let context = Context { plan: self, cut, weights, input, in_size, output: output.as_mut_ptr(), out_size, post };
        let flops = 2.0
            * (batch * self.groups * self.out_channels * self.in_channels) as f64
            * (context.cut.tiles[0] * context.cut.tiles[1] * frequencies) as f64;
        let parallelism = parallelism.for_seconds(flops / FLOPS_PER_SECOND);
        let context = &context;
        let whole = 0..self.strips.count;
        if !shared {
            parallelism.for_each(blocks, slots, &|index, slot| {
                let block = context.block(index);
                let v = scratch.at(slot * (products + transforms));
                let m = v.wrapping_add(frequencies * context.cut.v_plane);
                let own = v.wrapping_add(products);
                let channels = 0..self.in_channels;
                let mut laps = Laps::start();
                dispatch(self.isa, InputTransform { context, block, channels, v, scratch: own });
                laps.lap(Stage::Transform);
                let mut strip = 0;
                while strip < self.strips.count {
                    let strips = strip..self.strips.count.min(strip + context.cut.out_strips);
                    let first = self.strips.start(strips.start);
                    let channels = first..self.strips.start(strips.end);
                    let (all, frequencies) = (strips.clone(), 0..frequencies);
                    dispatch(self.isa, Products { context, block, frequencies, strips: all, first, v, m });
                    laps.lap(Stage::Product);
                    dispatch(self.isa, OutputTransform { context, block, channels, first, m, scratch: own });
                    laps.lap(Stage::Transform);
                    strip = strips.end;
                }
            });
            return;
        }
        let v = scratch.at(0);
        let m = v.wrapping_add(frequencies * context.cut.v_plane);
        let (v, m) = (Scratch(v), Scratch(m));
        for index in 0..blocks {
            let block = context.block(index);
            // Whole vectors of channels, for NHWC.
            let part = |items: usize, unit: usize, parts: usize, part: usize| {
                let units = items.div_ceil(unit);
                (units * part / parts * unit).min(items)..(units * (part + 1) / parts * unit).min(items)
            };
            let own = |slot: usize| scratch.at(products + slot * transforms);
            let tasks = slots.min(self.in_channels.div_ceil(16)).max(1);
            parallelism.for_each(tasks, slots, &|task, slot| {
                let channels = part(self.in_channels, 16, tasks, task);
                let mut laps = Laps::start();
                dispatch(self.isa, InputTransform { context, block, channels, v: v.at(0), scratch: own(slot) });
                laps.lap(Stage::Transform);
            });
            // Weights are read once: each frequency by one thread.
            let tasks = frequencies.min(4 * slots);
            parallelism.for_each(tasks, slots, &|task, _| {
                let frequencies = part(frequencies, 1, tasks, task);
                let (strips, v, m) = (whole.clone(), v.at(0), m.at(0));
                let mut laps = Laps::start();
                dispatch(self.isa, Products { context, block, frequencies, strips, first: 0, v, m });
                laps.lap(Stage::Product);
            });
            let tasks = slots.min(self.out_channels.div_ceil(16)).max(1);
            parallelism.for_each(tasks, slots, &|task, slot| {
                let channels = part(self.out_channels, 16, tasks, task);
                let (m, scratch) = (m.at(0), own(slot));
                let mut laps = Laps::start();
                dispatch(self.isa, OutputTransform { context, block, channels, first: 0, m, scratch });
                laps.lap(Stage::Transform);
            });
        }
    }
}

/// What a vector of tiles costs in each transform, per frequency: measured on Zen 3.
const TRANSFORM_SECONDS: f64 = 1.8e-9;
/// What a transformed weight costs to read from L3.
const WEIGHT_SECONDS: f64 = 0.2e-9;
/// Products are stored and read again.
const PRODUCTS_SLOWER: f64 = 1.1;
/// What a tile of products costs beside them, in units of a step of depth: first layers are not worth it.
const TILE_DEPTH: f64 = 16.0;

/// The speed by which work is judged too small for several threads.
const FLOPS_PER_SECOND: f64 = 80e9;

/// Channels of a group that a direction reads and computes.
fn channels(spec: &Conv2dSpec, direction: Direction) -> [usize; 2] {
    let [group_in, group_out] = [spec.in_channels / spec.groups, spec.out_channels / spec.groups];
    match direction {
        Direction::Forward => [group_in, group_out],
        Direction::BackwardData => [group_out, group_in],
    }
}

/// Scratch memory that tasks cut among themselves.
#[derive(Clone, Copy)]
struct Scratch(*mut f32);
// SAFETY: each task writes only its own part, and reads what was written in an earlier loop.
unsafe impl Sync for Scratch {}

impl Scratch {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Context<'_> {
    fn block(&self, index: usize) -> Block {
        let [down, along] = self.cut.blocks;
        let (row, column) = (index / along % down * self.cut.block[0], index % along * self.cut.block[1]);
        let image_group = index / along / down;
        Block {
            image: image_group / self.plan.groups,
            group: image_group % self.plan.groups,
            row,
            column,
            rows: self.cut.block[0].min(self.cut.tiles[0] - row),
            columns: self.cut.block[1].min(self.cut.tiles[1] - column),
        }
    }

    /// An output as the loops of a lecture compute it, before bias and activation: for results that are not finite.
    fn by_definition(&self, image: usize, channel: usize, [row, column]: [usize; 2]) -> f32 {
        let spec = &self.plan.spec;
        let [kernel_height, kernel_width] = spec.kernel;
        let Winograd { in_channels, out_channels, .. } = *self.plan;
        let (group, oc) = (channel / out_channels, channel % out_channels);
        let all = self.plan.groups * in_channels;
        let [height, width] = self.in_size;
        let mut sum = 0.0f32;
        for ic in 0..in_channels {
            for kh in 0..kernel_height {
                let Some(ih) = (row + kh).checked_sub(self.plan.before[0]).filter(|&ih| ih < height) else { continue };
                for kw in 0..kernel_width {
                    let Some(iw) = (column + kw).checked_sub(self.plan.before[1]).filter(|&iw| iw < width) else {
                        continue;
                    };
                    let c = group * in_channels + ic;
                    let x = match self.plan.layout {
                        Layout::Nchw => self.input[((image * all + c) * height + ih) * width + iw],
                        Layout::Nhwc => self.input[((image * height + ih) * width + iw) * all + c],
                    };
                    let tap = kh * kernel_width + kw;
                    let taps = kernel_height * kernel_width;
                    let w = match self.plan.direction {
                        Direction::Forward => ((group * out_channels + oc) * in_channels + ic) * taps + tap,
                        Direction::BackwardData => {
                            ((group * in_channels + ic) * out_channels + oc) * taps + taps - 1 - tap
                        }
                    };
                    sum = self.plan.isa.mul_add(x, self.weights[w], sum);
                }
            }
        }
        sum
    }
}

/// The products of some frequencies: `m[f][oc][tile] = u[f][oc][ic] * v[f][ic][tile]`.
///
/// Whoever makes one vouches that `v` holds the block's transformed input, and that `m` has room for the strips, the first
/// of which starts with channel `first`.
struct Products<'a> {
    context: &'a Context<'a>,
    block: Block,
    frequencies: Range<usize>,
    strips: Range<usize>,
    first: usize,
    v: *const f32,
    m: *mut f32,
}

impl Job for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, block, frequencies, strips, first, v, m } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let (ic, oc) = (plan.in_channels, plan.out_channels);
        let panel = NV * S::LANES;
        let tiles = block.rows * block.columns;
        // A last panel of one vector where that is enough.
        let (whole, rest) = (tiles / panel, tiles % panel);
        let (whole, narrow) = if rest > S::LANES { (whole + 1, false) } else { (whole, rest > 0) };
        let stride = cut.tiles_stride as isize;
        let mut ahead = Ahead::NONE;
        for f in frequencies {
            let u = plan.u[(block.group * cut.frequencies() + f) * round_up(ic * oc)..].as_ptr();
            let (v, m) = (v.wrapping_add(f * cut.v_plane), m.wrapping_add(f * cut.m_plane));
            let mut k = 0;
            while k < ic {
                let depth = DEPTH.min(ic - k);
                for strip in strips.clone() {
                    let (start, height) = (plan.strips.start(strip), plan.strips.height(strip));
                    let lhs = ContiguousColumns {
                        start: u.wrapping_add(start * ic + k * height),
                        column_stride: height as isize,
                    };
                    let rhs = v.wrapping_add(k * cut.tiles_stride);
                    let to = m.wrapping_add((start - first) * cut.tiles_stride);
                    let ends = Ends { from: std::ptr::null(), from_stride: stride, to, to_stride: stride, columns: 0 };
                    let ends = if k == 0 { ends } else { Ends { from: to, ..ends } };
                    let rhs = Panels { start: rhs, row_stride: stride, step: panel, count: whole };
                    // SAFETY: strips and panels are inside of `u`, `v` and `m`, whose rows hold whole panels.
                    unsafe {
                        if whole > 0 {
                            let ends = Ends { columns: panel, ..ends };
                            tiles_of::<S, _, true>(simd, [height, NV], lhs, rhs, depth, ends, &mut ahead);
                        }
                        if narrow {
                            let at = whole * panel;
                            let rhs = Panels { start: rhs.start.wrapping_add(at), count: 1, ..rhs };
                            let from = if k == 0 { ends.from } else { ends.from.wrapping_add(at) };
                            let ends = Ends { from, to: to.wrapping_add(at), columns: S::LANES, ..ends };
                            tiles_of::<S, _, true>(simd, [height, 1], lhs, rhs, depth, ends, &mut ahead);
                        }
                    }
                }
                k += depth;
            }
        }
    }
}
