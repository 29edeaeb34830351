//! The driver for groups of several channels, and for channels last with several outputs a group: padded copies of a
//! group's planes in the first-level cache, then tiles from there.
//!
//! ```text
//! image planes of a group ──► padded rows of a band (scratch) ──► tiles ──► target planes
//!    read once                   fits L1                                     written once
//! ```
//!
//! Where the targets of a tile are not neighbours in memory (channels last, or columns that belong to several
//! phases), tiles go to scratch too and are put in their places from there.

use super::finish::Finish;
use super::rows::{Channel, RowLayout, SPARE, fill};
use super::tiles::{Tile, compute};
use super::windows::{TASKS_PER_THREAD, Windows, WindowsCall};
use crate::activation::Activation;
use crate::conv::blocking::SLOT_LIMIT;
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned};

/// Padded rows of a band, in floats: with what is written beside them they stay in 32 KiB of L1.
const BAND_LEN: usize = 5120;

/// Target rows of a band, at least: fewer would copy the rows that bands share too often.
const MIN_BAND: usize = 8;

/// Channels of the largest block.
const MAX_BLOCK: usize = 4;

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

/// Scratch for targets of a size.
pub(super) fn workspace_len(windows: &Windows, target_size: [usize; 2], slots: usize) -> usize {
    windows.padded_frame(target_size).slot_len.saturating_mul(slots.max(1)).saturating_add(LINE)
}

/// Runs a call.
pub(super) fn run(windows: &Windows, call: &mut WindowsCall<'_>, seconds: f64) {
    let frame = windows.padded_frame(call.target_size);
    let slots = call.slots.max(1);
    let scratch = aligned(call.workspace);
    assert!(scratch.len() / frame.slot_len >= slots, "a workspace of the length that workspace_len says");
    let units = call.batch * windows.groups * frame.bands;
    let parallelism = call.parallelism.for_seconds(seconds);
    let threads = parallelism.threads().min(slots);
    let tasks = if threads == 1 { 1 } else { units.min(threads * TASKS_PER_THREAD) };
    let shared = Shared {
        windows,
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
        dispatch(windows.isa, Units { shared, begin, end, slot });
    });
}

impl Windows {
    /// Whether tiles can be written where their targets belong.
    fn writes_in_place(&self) -> bool {
        self.layout == Layout::Nchw && self.columns.out_step == 1
    }

    fn padded_frame(&self, target_size: [usize; 2]) -> Frame {
        let [rows, columns] = [self.rows.max_count(target_size[0]), self.columns.max_count(target_size[1])];
        let row_layout = RowLayout::new(&self.columns, columns);
        let fit = (BAND_LEN / self.planes).checked_div(row_layout.row_len).unwrap_or(0);
        let fit = (fit.saturating_sub(self.rows.reach + 1) / self.rows.step + 1).max(MIN_BAND).max(self.rows.reach);
        let tile_row = columns.max(SPARE);
        let lens = |band: usize| {
            let plane_len = self.rows.positions(band).saturating_mul(row_layout.row_len);
            let tile_len =
                if self.writes_in_place() { 0 } else { tile_row.saturating_mul(band).saturating_mul(MAX_BLOCK) };
            let slot_len = plane_len.saturating_mul(self.planes).saturating_add(SPARE).saturating_add(tile_len);
            (plane_len, slot_len.div_ceil(LINE).saturating_mul(LINE))
        };
        let bands = rows.div_ceil(fit);
        // Rows so long that a slot has no room for several come one by one.
        let bands = if lens(rows.div_ceil(bands.max(1))).1 <= SLOT_LIMIT { bands } else { rows };
        let band = rows.div_ceil(bands.max(1));
        let (plane_len, slot_len) = lens(band);
        Frame { row_layout, band, bands, plane_len, tile_row, slot_len }
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
        let mut laps = Laps::start();
        // SAFETY: the slot's own part of the workspace, whose length `Windows::run` has checked. Units are below
        // their number, and each is run once.
        unsafe {
            let scratch = shared.scratch.add(slot * frame.slot_len);
            std::slice::from_raw_parts_mut(scratch, windows.planes * frame.plane_len + SPARE).fill(0.0);
            for unit in begin..end {
                let (outer, band) = (unit / frame.bands, unit % frame.bands);
                let (n, group) = (outer / windows.groups, outer % windows.groups);
                run_unit(simd, shared, scratch, [n, group, band], &mut laps);
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
unsafe fn run_unit<S: Simd>(
    simd: S,
    shared: &Shared<'_>,
    scratch: *mut f32,
    [n, group, band]: [usize; 3],
    laps: &mut Laps,
) {
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
    laps.lap(Stage::Pack);
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
            for (out, size) in windows.blocks() {
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
    laps.lap(Stage::Product);
}

/// Puts a tile from scratch where its targets belong, bias and residual added.
///
/// # Safety
/// - The tile holds `size[0]` rows of `size[1]` targets of `channels` channels from `channel` on, whose first target is
///   at `[row, column]`.
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
