//! The driver of depthwise kernels that read planes of NCHW where they are.
//!
//! ```text
//! image n, channel c ──► Square: 3 x 3 neighbours, 5 x 5 at a stride of 2 ──► plane of targets
//!                        Stack: 5 or 7 neighbouring tap columns, 3 too with AVX2, at a stride of 1
//!                        Halves: the gradient of 3 x 3 and 5 x 5 taps at a stride of 2
//! ```
//!
//! Planes are read where they are, and written once. Where they are few they are cut into bands of rows.

use super::finish::Finish;
use super::halves::Halves;
use super::source::Source;
use super::square::Square;
use super::stack::{Image, Stack};
use super::windows::{Squares, TASKS_PER_THREAD, Windows, WindowsCall};
use crate::parts::share;
use crate::simd::{Job, Simd, dispatch};
use crate::stages::{Laps, Stage};

/// Rows of a band, at least: bands read the rows between them twice.
const MIN_BAND: usize = 16;

/// What all tasks of a call see.
pub(super) struct Planes<'a> {
    windows: &'a Windows,
    source: *const f32,
    source_size: [usize; 2],
    target: *mut f32,
    target_size: [usize; 2],
    finish: Finish,
    bands: usize,
}

// SAFETY: tasks write to the rows of their own units; all else is only read.
unsafe impl Sync for Planes<'_> {}

impl<'a> Planes<'a> {
    /// A call's planes in one band each.
    pub fn new(windows: &'a Windows, call: &mut WindowsCall<'_>) -> Self {
        Self {
            windows,
            source: call.source.as_ptr(),
            source_size: call.source_size,
            target: call.target.as_mut_ptr(),
            target_size: call.target_size,
            finish: Finish {
                bias: call.bias.map(<[f32]>::as_ptr),
                residual: call.residual.map(<[f32]>::as_ptr),
                activation: call.activation,
            },
            bands: 1,
        }
    }
}

/// Runs a call.
pub(super) fn run(windows: &Windows, call: &mut WindowsCall<'_>, seconds: f64) {
    let slots = call.slots.max(1);
    let parallelism = call.parallelism.for_seconds(seconds);
    let threads = parallelism.threads().min(slots);
    let mut planes = Planes::new(windows, call);
    let count = call.batch * windows.groups * windows.outs;
    let wanted = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    planes.bands = wanted.div_ceil(count).min(call.target_size[0] / MIN_BAND).max(1);
    let units = count * planes.bands;
    let tasks = units.min(wanted);
    let planes = &planes;
    parallelism.for_each(tasks, slots, &|task, _| {
        // Task `task` of `tasks` takes its even share.
        let units = share(units, tasks, task);
        let mut laps = Laps::start();
        dispatch(windows.isa, Units { planes, begin: units.start, end: units.end });
        laps.lap(Stage::Product);
    });
}

/// The units `begin .. end` of (image, channel, band), in this order.
struct Units<'a> {
    planes: &'a Planes<'a>,
    begin: usize,
    end: usize,
}

impl Job for Units<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let planes = self.planes;
        let (bands, channels) = (planes.bands, planes.windows.groups * planes.windows.outs);
        let (mut n, mut channel) = (self.begin / bands / channels, self.begin / bands % channels);
        let mut band = self.begin % bands;
        for _ in self.begin..self.end {
            // SAFETY: units are below their number, and each is run once.
            unsafe { planes.plane(simd, n, channel, band) };
            band += 1;
            if band == bands {
                (band, channel) = (0, channel + 1);
            }
            if channel == channels {
                (channel, n) = (0, n + 1);
            }
        }
    }
}

impl Planes<'_> {
    /// A band of one channel of an image.
    ///
    /// # Safety
    /// - They exist, and nobody else uses their targets.
    #[inline(always)]
    pub unsafe fn plane<S: Simd>(&self, simd: S, n: usize, channel: usize, band: usize) {
        let Self { windows, source_size, target_size, .. } = *self;
        let plane = n * windows.groups * windows.outs + channel;
        let (group, out) =
            if windows.outs == 1 { (channel, 0) } else { (channel / windows.outs, channel % windows.outs) };
        let (from, to) = (source_size[0] * source_size[1], target_size[0] * target_size[1]);
        let taps = windows.kernel[0] * windows.kernel[1];
        let filters = windows.planes * windows.outs;
        let rows = if self.bands == 1 { 0..target_size[0] } else { share(target_size[0], self.bands, band) };
        let (begin, end) = (rows.start, rows.end);
        // SAFETY: a channel of the image, and its weights, bias, residual and targets.
        unsafe {
            let source = self.source.add((n * windows.groups + group) * windows.planes * from);
            let weights = windows.weights.as_ptr().add(group * filters * taps);
            let target = self.target.add(plane * to);
            let finish = Finish {
                bias: self.finish.bias.map(|bias| bias.add(channel)),
                residual: self.finish.residual.map(|residual| residual.add(plane * to)),
                activation: self.finish.activation,
            };
            let (size, weights) = (target_size, weights.add(out * taps));
            if windows.stacks(source_size, target_size) {
                let (rows, columns) = (&windows.rows, &windows.columns);
                let (row, column, width) = (begin as isize + rows.first_tap(), columns.first_tap(), source_size[1]);
                let first = begin * target_size[1];
                return simd.call(Stack {
                    x: source.wrapping_offset(row * width as isize + column),
                    image: Some(Image { size: source_size, origin: [row, column] }),
                    x_row: width,
                    apart: 1,
                    x_target: width,
                    tap_rows: rows.phases[0].taps.len(),
                    columns: &columns.phases[0].taps,
                    weights,
                    y: target.add(first),
                    y_row: target_size[1],
                    size: [end - begin, target_size[1]],
                    y_len: (end - begin) * target_size[1],
                    finish: Finish { residual: finish.residual.map(|residual| residual.add(first)), ..finish },
                });
            }
            match windows.square {
                Some(Squares { taps: 3, step: 1, origin }) => {
                    let source = Source { start: source, size: source_size, origin };
                    simd.call(Square::<3, 1> { source, weights, target, size, begin, end, finish });
                }
                Some(Squares { taps: 3, origin, .. }) => {
                    let source = Source { start: source, size: source_size, origin };
                    simd.call(Square::<3, 2> { source, weights, target, size, begin, end, finish });
                }
                Some(Squares { origin, .. }) => {
                    let source = Source { start: source, size: source_size, origin };
                    simd.call(Square::<5, 2> { source, weights, target, size, begin, end, finish });
                }
                None => {
                    debug_assert!(
                        finish.bias.is_none() && finish.residual.is_none(),
                        "gradients end with nothing else"
                    );
                    let (rows, columns) = (&windows.rows, &windows.columns);
                    simd.call(Halves { source, source_size, rows, columns, weights, target, size, begin, end });
                }
            }
        }
    }
}
