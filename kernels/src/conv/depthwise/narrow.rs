//! Small planes in NCHW, sixteen channels at a time: turned so that channels are the lanes, and back.
//!
//! ```text
//! 16 planes of 7 x 7        49 pixels of 16 channels                        16 planes of 4 x 4
//! c0: x x x x x x x ...     x c0..c15                                       c0: y y y y ...
//! c1: x x x x x x x ...  ►  x c0..c15  ► the kernel of channels last  ►     c1: y y y y ...
//! ```
//!
//! A row of 7 fills less than half of a vector, at a stride of 2 a quarter; channels fill all of it, whatever the
//! kernel and the stride. Turning costs about as much as four products for each element.

use super::finish::Finish;
use super::nhwc::{ChannelLanes, row};
use super::windows::{TASKS_PER_THREAD, Windows, WindowsCall};
use crate::parts::share;
use crate::simd::{Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned};

/// Channels of a block: a vector of the widest instruction set.
const BLOCK: usize = 16;

/// Pixels of source and target together, at most: a block of both stays in 32 KiB of L1.
const MOST_PIXELS: usize = 512;

/// Whether a call is done in blocks, by the sizes alone.
pub(super) fn is_better(windows: &Windows, source_size: [usize; 2], target_size: [usize; 2]) -> bool {
    let pixels = (source_size[0] * source_size[1]).saturating_add(target_size[0] * target_size[1]);
    if windows.lane_weights.is_empty() || windows.groups < BLOCK || pixels > MOST_PIXELS {
        return false;
    }
    let taps = windows.kernel[0] * windows.kernel[1] / (windows.rows.out_step * windows.columns.out_step);
    // Cycles of a plane, as measured on Zen 4.
    let products = target_size[0].next_multiple_of(4) * target_size[1].div_ceil(BLOCK) * taps;
    let by_planes = if windows.stacks(source_size, target_size) {
        products + 200
    } else if windows.plane_by_plane(source_size, target_size) {
        products * (windows.columns.step + 2) / 2 + 100
    } else {
        products * 27 / 10 + 300
    };
    let by_blocks = pixels * 3 / 4 + target_size[0] * target_size[1] * taps / 4;
    by_blocks < by_planes
}

/// Scratch memory of a slot.
pub(super) fn slot_len(source_size: [usize; 2], target_size: [usize; 2]) -> usize {
    BLOCK * (source_size[0] * source_size[1] + target_size[0] * target_size[1])
}

/// Runs a call without a residual.
pub(super) fn run(windows: &Windows, call: &mut WindowsCall<'_>, seconds: f64) {
    let slots = call.slots.max(1);
    let slot_len = slot_len(call.source_size, call.target_size);
    let scratch = aligned(call.workspace);
    assert!(scratch.len() / slot_len >= slots, "a workspace of the length that workspace_len says");
    let parallelism = call.parallelism.for_seconds(seconds);
    let threads = parallelism.threads().min(slots);
    let blocks = windows.groups.div_ceil(BLOCK);
    let units = blocks * call.batch;
    let tasks = if threads == 1 { 1 } else { units.min(threads * TASKS_PER_THREAD) };
    let shared = Shared {
        windows,
        blocks,
        source: call.source.as_ptr(),
        source_size: call.source_size,
        target: call.target.as_mut_ptr(),
        target_size: call.target_size,
        finish: Finish { bias: call.bias.map(<[f32]>::as_ptr), residual: None, activation: call.activation },
        scratch: scratch.as_mut_ptr(),
        slot_len,
    };
    let shared = &shared;
    parallelism.for_each(tasks, slots, &|task, slot| {
        let units = share(units, tasks, task);
        dispatch(windows.isa, Units { shared, begin: units.start, end: units.end, slot });
    });
}

/// Scratch memory of a call in `f32`s.
pub(super) fn workspace_len(source_size: [usize; 2], target_size: [usize; 2], slots: usize) -> usize {
    slot_len(source_size, target_size) * slots.max(1) + LINE
}

/// What all tasks of a call see.
struct Shared<'a> {
    windows: &'a Windows,
    blocks: usize,
    source: *const f32,
    source_size: [usize; 2],
    target: *mut f32,
    target_size: [usize; 2],
    finish: Finish,
    scratch: *mut f32,
    slot_len: usize,
}

// SAFETY: tasks write to the channels of their own units and to the scratch memory of their own slot; all else is only
// read.
unsafe impl Sync for Shared<'_> {}

/// The units `begin .. end` of (image, block), in this order.
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
        let Shared { windows, blocks, source_size, target_size, finish, slot_len, .. } = *self.shared;
        let (from, to) = (source_size[0] * source_size[1], target_size[0] * target_size[1]);
        let mut laps = Laps::start();
        for unit in self.begin..self.end {
            let (n, first) = (unit / blocks, unit % blocks * BLOCK);
            let channels = (windows.groups - first).min(BLOCK);
            let plane = n * windows.groups + first;
            // SAFETY: channels of an image, turned into the slot's own scratch memory and back.
            unsafe {
                let x = self.shared.scratch.add(self.slot * slot_len);
                let y = x.add(BLOCK * from);
                turn(simd, self.shared.source.add(plane * from), from, [channels, from], x, BLOCK);
                laps.lap(Stage::Pack);
                let lanes = ChannelLanes {
                    channels,
                    pixel_step: BLOCK,
                    tap_step: windows.groups,
                    rows: &windows.rows,
                    columns: &windows.columns,
                    weights: windows.lane_weights.as_ptr().add(first),
                    source: x,
                    source_size,
                    target: y,
                    target_size,
                    bias: finish.bias.map(|bias| bias.add(first)),
                    residual: None,
                    activation: finish.activation,
                };
                for oh in 0..target_size[0] {
                    row(simd, &lanes, 0, oh);
                }
                laps.lap(Stage::Product);
                turn(simd, y, BLOCK, [to, channels], self.shared.target.add(plane * to), to);
                laps.lap(Stage::Epilogue);
            }
        }
    }
}

/// `to[j * to_step + i] = from[i * from_step + j]` for `i` and `j` below `size[0]` and `size[1]`.
///
/// # Safety
/// - All of them are readable and writable, and do not overlap.
#[inline(always)]
unsafe fn turn<S: Simd>(simd: S, from: *const f32, from_step: usize, size: [usize; 2], to: *mut f32, to_step: usize) {
    let [rows, columns] = size;
    if rows < S::LANES || columns < S::LANES {
        for i in 0..rows {
            for j in 0..columns {
                // SAFETY: the caller's contract.
                unsafe { *to.add(j * to_step + i) = *from.add(i * from_step + j) };
            }
        }
        return;
    }
    // The last blocks are moved back over what their neighbours have done.
    let mut i = 0;
    while i < rows {
        let at = i.min(rows - S::LANES);
        let mut j = 0;
        while j < columns {
            let (i, j_at) = (at, j.min(columns - S::LANES));
            // SAFETY: the block lies inside of both.
            unsafe {
                let (from, to) = (from.add(i * from_step + j_at), to.add(j_at * to_step + i));
                simd.transpose(from, from_step as isize, to, to_step as isize);
            }
            j += S::LANES;
        }
        i += S::LANES;
    }
}
