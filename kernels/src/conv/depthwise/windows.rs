//! The driver that forward and backward-data share: padded copies of a group's planes in the first-level cache,
//! then tiles from there.
//!
//! ```text
//! image planes of a group ──► padded rows of a band (scratch) ──► tiles ──► target planes
//!    read once                   fits L1                                     written once
//! ```
//!
//! Where the targets of a tile are not neighbours in memory (channels last, or columns that belong to several
//! phases), tiles go to scratch too and are put in their places from there.

use super::axis::{Axis, Tap};
use super::nhwc::{ChannelLanes, TargetRows};
use super::rows::{Channel, RowLayout, SPARE, fill};
use super::finish::Finish;
use super::planes;
use super::tiles::{Tile, compute};
use crate::activation::{self, Activation};
use crate::conv::dense::PEAK_FLOPS;
use crate::conv::spec::{Conv2dSpec, Layout, Sizes};
use crate::error::Error;
use crate::execution::Execution;
use crate::parallel::Parallelism;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::workspace::{LINE, aligned};

/// Padded rows of a band, in floats: with what is written beside them they stay in 32 KiB of L1.
const BAND_LEN: usize = 5120;

/// Target rows of a band, at least: fewer would copy the rows that bands share too often.
const MIN_BAND: usize = 8;

/// Tasks per thread: enough to even out, few enough that each is worth its start.
const TASKS_PER_THREAD: usize = 4;

/// Kernel extents and paddings beyond this belong to other algorithms: padded rows would be mostly empty.
const MAX_EXTENT: usize = 4096;

/// Phases beyond this belong to other algorithms.
const MAX_PHASES: usize = 64;

/// A gather of targets from sources in each group, with packed weights.
#[derive(Clone, Debug)]
pub(in crate::conv) struct Windows {
    pub(super) isa: Isa,
    layout: Layout,
    pub(super) groups: usize,
    /// Source channels of a group.
    pub(super) planes: usize,
    /// Target channels of a group.
    pub(super) outs: usize,
    pub(super) kernel: [usize; 2],
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    /// `[group][row phase][column phase][block of channels][plane][tap row][tap column][channel of the block]`;
    /// `[row phase][column phase][tap row][tap column][group]` where channels are the lanes
    pub(super) weights: Vec<f32>,
    backward: bool,
    /// The step, and the source position of the first target's first tap, if each target sees 3 x 3 neighbours of one plane.
    pub(super) three: Option<(usize, [isize; 2])>,

}

/// The arguments of a call.
pub(in crate::conv) struct WindowsCall<'a> {
    pub batch: usize,
    pub source_size: [usize; 2],
    pub target_size: [usize; 2],
    pub source: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub activation: Activation,
    pub target: &'a mut [f32],
    pub workspace: &'a mut [f32],
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

/// What follows from a call's sizes.
#[derive(Clone, Copy, Debug)]
struct Frame {
    row_layout: RowLayout,
    /// Target rows (of a phase) in a band, and bands in an image.
    band: usize,
    bands: usize,
    plane_len: usize,
    /// Elements of a row of a tile in scratch.
    tile_row: usize,
    slot_len: usize,
}

/// Channels of the largest block.
const MAX_BLOCK: usize = 4;

/// The channels of a group in blocks: the first channel and the size, 4, 2 or 1, of each.
fn blocks(outs: usize, single: bool) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let size = match outs - at {
            0 => return None,
            _ if single => 1,
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
        at += size;
        Some((at - size, size))
    })
}

/// The step of a 3 x 3 neighbourhood and the position of its first tap, if that is what all targets see.
fn neighbours(rows: &Axis, columns: &Axis) -> Option<(usize, [isize; 2])> {
    let ([row_phase], [column_phase]) = (&rows.phases[..], &columns.phases[..]) else { return None };
    let neighbours = |taps: &[Tap]| taps.len() == 3 && taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1);
    let fits = neighbours(&row_phase.taps) && neighbours(&column_phase.taps) && rows.step == columns.step;
    let origin = |axis: &Axis, taps: &[Tap]| axis.origin + taps[0].offset as isize;
    let steps = rows.step <= 2 && rows.out_step == 1 && columns.out_step == 1;
    (fits && steps).then(|| (rows.step, [origin(rows, &row_phase.taps), origin(columns, &column_phase.taps)]))
}

impl Windows {
    /// Whether the sizes that do not change from call to call are small enough for padded copies.
    pub fn fits(spec: &Conv2dSpec, backward: bool) -> bool {
        let extents = (0..2).all(|axis| spec.window(axis).is_ok_and(|window| window <= MAX_EXTENT));
        let p = spec.padding;
        let padding = [p.top, p.bottom, p.left, p.right].into_iter().all(|p| p <= MAX_EXTENT);
        let phases = !backward || spec.stride[0].saturating_mul(spec.stride[1]) <= MAX_PHASES;
        extents && padding && phases && spec.stride.into_iter().all(|stride| stride <= MAX_EXTENT)
    }

    /// The seconds that a call may take on one thread: `products` for each output at what the tiles reach, and each
    /// element read and written once at the speed of a shared cache.
    pub fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa, products: usize, fma_share: f64) -> f64 {
        /// Bytes per second.
        const BANDWIDTH: f64 = 15e9;
        // Vectors of pixels are computed whole.
        let columns = sizes.output[1].max(1);
        let whole = match spec.layout {
            Layout::Nchw => columns.next_multiple_of(isa.lanes()) as f64 / columns as f64,
            Layout::Nhwc => 1.0,
        };
        let (outputs, elements) = (sizes.y_len as f64, (sizes.x_len + sizes.y_len) as f64);
        2.0 * outputs * products as f64 * whole / (PEAK_FLOPS * fma_share) + elements * 4.0 / BANDWIDTH
    }

    /// Outputs from inputs.
    pub fn forward(spec: &Conv2dSpec, isa: Isa) -> Result<Self, Error> {
        let axis = |a: usize, before: usize| Axis::forward(spec.kernel[a], spec.stride[a], spec.dilation[a], before);
        Self::new(spec, isa, [axis(0, spec.padding.top), axis(1, spec.padding.left)], false)
    }

    /// The gradient of inputs from that of outputs.
    pub fn backward_data(spec: &Conv2dSpec, isa: Isa) -> Result<Self, Error> {
        let axis = |a: usize, before: usize| Axis::backward(spec.kernel[a], spec.stride[a], spec.dilation[a], before);
        Self::new(spec, isa, [axis(0, spec.padding.top), axis(1, spec.padding.left)], true)
    }

    fn new(spec: &Conv2dSpec, isa: Isa, [rows, columns]: [Axis; 2], backward: bool) -> Result<Self, Error> {
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let (planes, outs) = if backward { (group_out, group_in) } else { (group_in, group_out) };
        let len = spec.out_channels * group_in * spec.kernel[0] * spec.kernel[1];
        let mut weights = Vec::new();
        weights.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(4) })?;
        weights.resize(len, 0.0);
        let (groups, layout, kernel) = (spec.groups, spec.layout, spec.kernel);
        let three = if planes == 1 { neighbours(&rows, &columns) } else { None };
        Ok(Self { isa, layout, groups, planes, outs, kernel, rows, columns, weights, backward, three })
    }

    /// Whether targets are gathered straight from the image, plane by plane.
    fn plane_by_plane(&self) -> bool {
        self.layout == Layout::Nchw && (self.planes == 1 || self.outs == 1)
    }

    /// Packs `[out_channels][in_channels / groups][kernel height][kernel width]`.
    pub fn pack(&mut self, weights: &[f32]) {
        let [kernel_height, kernel_width] = self.kernel;
        let taps = kernel_height * kernel_width;
        let mut at = 0;
        for group in 0..self.groups {
            for rows in &self.rows.phases {
                for columns in &self.columns.phases {
                    for (first, size) in blocks(self.outs, self.plane_by_plane()) {
                        for plane in 0..self.planes {
                            for kh in &rows.taps {
                                for kw in &columns.taps {
                                    for out in first..first + size {
                                        let filter = if self.backward {
                                            (group * self.planes + plane) * self.outs + out
                                        } else {
                                            (group * self.outs + out) * self.planes + plane
                                        };
                                        let from = (filter * kernel_height + kh.index) * kernel_width + kw.index;
                                        let to =
                                            if self.channels_in_lanes() { at % taps * self.groups + group } else { at };
                                        self.weights[to] = weights[from];
                                        at += 1;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Whether tiles can be written where their targets belong.
    fn writes_in_place(&self) -> bool {
        self.layout == Layout::Nchw && self.columns.out_step == 1
    }

    fn frame(&self, target_size: [usize; 2]) -> Frame {
        let [rows, columns] = [self.rows.max_count(target_size[0]), self.columns.max_count(target_size[1])];
        let row_layout = RowLayout::new(&self.columns, columns);
        let fit = (BAND_LEN / self.planes).checked_div(row_layout.row_len).unwrap_or(0);
        let band = (fit.saturating_sub(self.rows.reach + 1) / self.rows.step + 1).max(MIN_BAND).max(self.rows.reach);
        let bands = rows.div_ceil(band);
        let band = rows.div_ceil(bands.max(1));
        let plane_len = self.rows.positions(band).saturating_mul(row_layout.row_len);
        let tile_row = columns.max(SPARE);
        let tile_len = if self.writes_in_place() { 0 } else { tile_row.saturating_mul(band).saturating_mul(MAX_BLOCK) };
        let slot_len = plane_len.saturating_mul(self.planes).saturating_add(SPARE).saturating_add(tile_len);
        let slot_len = slot_len.div_ceil(LINE).saturating_mul(LINE);
        Frame { row_layout, band, bands, plane_len, tile_row, slot_len }
    }

    /// Scratch for targets of a size.
    pub fn workspace_len(&self, target_size: [usize; 2], slots: usize) -> usize {
        if self.channels_in_lanes() || self.plane_by_plane() {
            return 0;
        }
        self.frame(target_size).slot_len.saturating_mul(slots.max(1)).saturating_add(LINE)
    }

    /// Runs.
    pub fn run(&self, mut call: WindowsCall<'_>, seconds: f64) {
        if call.target.is_empty() {
            return;
        }
        if self.plane_by_plane() {
            planes::run(self, &mut call, seconds);
            return self.complete(call.activation, call.target, call.parallelism, call.slots.max(1));
        }
        if self.channels_in_lanes() {
            return self.run_channels(call, seconds);
        }
        let frame = self.frame(call.target_size);
        let slots = call.slots.max(1);
        let scratch = aligned(call.workspace);
        assert!(scratch.len() / frame.slot_len >= slots, "a workspace of the length that workspace_len says");
        let units = call.batch * self.groups * frame.bands;
        let parallelism = call.parallelism.for_seconds(seconds);
        let threads = parallelism.threads().min(slots);
        let tasks = if threads == 1 { 1 } else { units.min(threads * TASKS_PER_THREAD) };
        let shared = Shared {
            windows: self,
            frame,
            source_size: call.source_size,
            target_size: call.target_size,
            source: call.source.as_ptr(),
            bias: call.bias.map(<[f32]>::as_ptr),
            residual: call.residual.map(<[f32]>::as_ptr),
            activation: call.activation,
            target: call.target.as_mut_ptr(),
            scratch: scratch.as_mut_ptr(),
        };
        let shared = &shared;
        parallelism.for_each(tasks, slots, &|task, slot| {
            // Task `task` of `tasks` takes its even share.
            let (begin, end) = (task * units / tasks, (task + 1) * units / tasks);
            dispatch(self.isa, Units { shared, begin, end, slot });
        });
        self.complete(call.activation, call.target, call.parallelism, slots);
    }

    /// Channels last, one channel in and out per group: channels are the lanes.
    fn channels_in_lanes(&self) -> bool {
        self.layout == Layout::Nhwc && self.planes == 1 && self.outs == 1
    }

    /// [`Windows::run`] with channels as lanes.
    fn run_channels(&self, call: WindowsCall<'_>, seconds: f64) {
        let slots = call.slots.max(1);
        let units = call.batch * call.target_size[0];
        let parallelism = call.parallelism.for_seconds(seconds);
        let tasks = units.min(parallelism.threads().min(slots) * TASKS_PER_THREAD);
        let lanes = ChannelLanes {
            channels: self.groups,
            rows: &self.rows,
            columns: &self.columns,
            weights: self.weights.as_ptr(),
            source: call.source.as_ptr(),
            source_size: call.source_size,
            target: call.target.as_mut_ptr(),
            target_size: call.target_size,
            bias: call.bias.map(<[f32]>::as_ptr),
            residual: call.residual.map(<[f32]>::as_ptr),
            activation: call.activation,
        };
        let lanes = &lanes;
        parallelism.for_each(tasks, slots, &|task, _| {
            let (begin, end) = (task * units / tasks, (task + 1) * units / tasks);
            dispatch(self.isa, TargetRows { lanes, begin, end });
        });
        self.complete(call.activation, call.target, call.parallelism, slots);
    }

    /// Applies the activations that the kernels leave out.
    fn complete(&self, activation: Activation, target: &mut [f32], parallelism: Parallelism<'_>, slots: usize) {
        if let Activation::Sigmoid | Activation::Tanh = activation {
            let parallelism = if slots < parallelism.threads() { Parallelism::Serial } else { parallelism };
            let execution = Execution { parallelism, isa: Some(self.isa) };
            let done = activation::forward_in_place(activation, target, execution);
            debug_assert!(done.is_ok(), "the plan has checked the instruction set");
        }
    }
}

/// What all tasks of a call see.
struct Shared<'a> {
    windows: &'a Windows,
    frame: Frame,
    source_size: [usize; 2],
    target_size: [usize; 2],
    source: *const f32,
    bias: Option<*const f32>,
    residual: Option<*const f32>,
    activation: Activation,
    target: *mut f32,
    scratch: *mut f32,
}

// SAFETY: tasks write to the target rows of their own units and to the scratch memory of their own slot; all else
// is only read.
unsafe impl Sync for Shared<'_> {}

/// The units `begin .. end` of (image, group, band), in this order.
struct Units<'a> {
    shared: &'a Shared<'a>,
    begin: usize,
    end: usize,
    slot: usize,
}

impl Job for Units<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Units { shared, begin, end, slot } = self;
        let (windows, frame) = (shared.windows, &shared.frame);
        // SAFETY: the slot's own part of the workspace, whose length `Windows::run` has checked. Units are below
        // their number, and each is run once.
        unsafe {
            let scratch = shared.scratch.add(slot * frame.slot_len);
            std::slice::from_raw_parts_mut(scratch, windows.planes * frame.plane_len + SPARE).fill(0.0);
            for unit in begin..end {
                let (outer, band) = (unit / frame.bands, unit % frame.bands);
                let (n, group) = (outer / windows.groups, outer % windows.groups);
                run_unit(simd, shared, scratch, n, group, band);
            }
        }
    }
}

/// One band of all target channels of a group.
///
/// # Safety
/// - `scratch` is a slot's memory, zero outside of the image's columns.
/// - Nobody else uses the band's targets.
#[inline(always)]
unsafe fn run_unit<S: Simd>(simd: S, shared: &Shared<'_>, scratch: *mut f32, n: usize, group: usize, band: usize) {
    let (windows, frame) = (shared.windows, &shared.frame);
    let (rows, columns) = (&windows.rows, &windows.columns);
    let first = band * frame.band;
    // The last band may be shorter.
    let band_rows = frame.band.min(rows.max_count(shared.target_size[0]) - first);
    let source_channels = windows.groups * windows.planes;
    for plane in 0..windows.planes {
        // SAFETY: channel `group * planes + plane` of image `n`.
        unsafe {
            let channel = Channel::new(
                shared.source,
                windows.layout,
                source_channels,
                shared.source_size,
                n,
                group * windows.planes + plane,
            );
            let to = scratch.add(plane * frame.plane_len);
            let clear = frame.bands > 1;
            let count = rows.positions(band_rows);
            fill(simd, channel, rows, columns, frame.row_layout, to, first * rows.step, count, clear);
        }
    }
    let [height, width] = shared.target_size;
    let target_channels = windows.groups * windows.outs;
    let filters = windows.planes * windows.outs;
    // SAFETY: the weights of the group.
    let mut weights = unsafe { windows.weights.as_ptr().add(group * filters * windows.kernel[0] * windows.kernel[1]) };
    for row_phase in &rows.phases {
        let count = rows.count(row_phase, height).min(first + band_rows).saturating_sub(first);
        let oh = row_phase.first + first * rows.out_step;
        for column_phase in &columns.phases {
            let taps = row_phase.taps.len() * column_phase.taps.len();
            let phase_weights = weights;
            // SAFETY: each phase has its taps of each filter.
            weights = unsafe { weights.add(filters * taps) };
            let width_of_phase = columns.count(column_phase, width);
            if count == 0 || width_of_phase == 0 {
                continue;
            }
            for (out, size) in blocks(windows.outs, false) {
                let channel = group * windows.outs + out;
                let mut tile = Tile {
                    x: scratch,
                    layout: frame.row_layout,
                    plane_len: frame.plane_len,
                    planes: windows.planes,
                    row_step: rows.step,
                    rows: &row_phase.taps,
                    columns: &column_phase.taps,
                    // SAFETY: blocks follow each other.
                    weights: unsafe { phase_weights.add(out * windows.planes * taps) },
                    y: std::ptr::null_mut(),
                    y_row: rows.out_step * width,
                    y_channel: height * width,
                    size: [count, width_of_phase],
                    y_len: 0,
                    finish: Finish::NOTHING,
                };
                // SAFETY: the band's targets in the channels of the block, or the tile in scratch.
                unsafe {
                    if windows.writes_in_place() {
                        let at = ((n * target_channels + channel) * height + oh) * width;
                        tile.y = shared.target.add(at);
                        if rows.out_step == 1 {
                            tile.y_len = (count - 1) * width + width_of_phase;
                        }
                        tile.finish = Finish {
                            bias: shared.bias.map(|bias| bias.add(channel)),
                            residual: shared.residual.map(|residual| residual.add(at)),
                            activation: shared.activation,
                        };
                    } else {
                        tile.y = scratch.add(windows.planes * frame.plane_len + SPARE);
                        tile.y_row = frame.tile_row;
                        tile.y_channel = frame.tile_row * frame.band;
                        tile.y_len = tile.y_channel;
                    }
                    compute(simd, &tile, size);
                    if !windows.writes_in_place() {
                        place(shared, &tile, n, channel, size, [oh, column_phase.first]);
                    }
                }
            }
        }
    }
}

impl Channel {
    /// Channel `c` of image `n`.
    ///
    /// # Safety
    /// - `start` is the first element of a tensor with that image and channel.
    #[inline(always)]
    pub unsafe fn new(
        start: *const f32,
        layout: Layout,
        channels: usize,
        size: [usize; 2],
        n: usize,
        c: usize,
    ) -> Self {
        let [height, width] = size;
        let (at, strides) = match layout {
            Layout::Nchw => ((n * channels + c) * height * width, [width, 1]),
            Layout::Nhwc => (n * height * width * channels + c, [width * channels, channels]),
        };
        // SAFETY: the caller's contract.
        Self { start: unsafe { start.add(at) }, strides, size }
    }
}

/// Puts a tile from scratch where its targets belong, bias and residual added.
///
/// # Safety
/// - The tile holds `size[0]` rows of `size[1]` targets of `channels` channels from `channel` on, whose first
///   target is at `[row, column]`.
#[inline(always)]
unsafe fn place(
    shared: &Shared<'_>,
    tile: &Tile<'_>,
    n: usize,
    channel: usize,
    channels: usize,
    [row, column]: [usize; 2],
) {
    let windows = shared.windows;
    let [height, width] = shared.target_size;
    let target_channels = windows.groups * windows.outs;
    let (row_step, column_step) = (windows.rows.out_step, windows.columns.out_step);
    for o in 0..channels {
        for r in 0..tile.size[0] {
            for c in 0..tile.size[1] {
                let (oh, ow, oc) = (row + r * row_step, column + c * column_step, channel + o);
                let at = match windows.layout {
                    Layout::Nchw => ((n * target_channels + oc) * height + oh) * width + ow,
                    Layout::Nhwc => ((n * height + oh) * width + ow) * target_channels + oc,
                };
                // SAFETY: a target of the tile, and what belongs to it.
                unsafe {
                    let mut v = *tile.y.add(o * tile.y_channel + r * tile.y_row + c);
                    if let Some(bias) = shared.bias {
                        v += *bias.add(oc);
                    }
                    if let Some(residual) = shared.residual {
                        v += *residual.add(at);
                    }
                    // Written so that NaN stays.
                    v = match shared.activation {
                        Activation::Relu if v <= 0.0 => 0.0,
                        Activation::Clamp { low, .. } if v < low => low,
                        Activation::Clamp { high, .. } if v > high => high,
                        _ => v,
                    };
                    *shared.target.add(at) = v;
                }
            }
        }
    }
}
