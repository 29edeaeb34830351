//! The gradient of the bias: for each output channel the sum of `dy` over the batch and all pixels.
//!
//! NCHW: a channel's pixels go into 16 lanes, which are merged in a fixed tree for each image; images are added in
//! order. NHWC: one chain a channel, over all pixels in order.

use super::spec::Layout;
use crate::parallel::Parallelism;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};

/// Channels of a task: in NHWC, whole cache lines.
const TASK_CHANNELS: usize = 16;
/// Elements that a thread sums in a second, at least: one read from memory each.
const ELEMENTS_PER_SECOND: f64 = 2e9;

/// Computes `db` from `dy` of `batch` images of `pixels`.
pub(super) fn bias_gradient(
    isa: Isa,
    layout: Layout,
    batch: usize,
    pixels: usize,
    dy: &[f32],
    db: &mut [f32],
    parallelism: Parallelism<'_>,
) {
    let channels = db.len();
    let tasks = channels.div_ceil(TASK_CHANNELS);
    let context = Context { layout, batch, pixels, channels, dy, db: db.as_mut_ptr() };
    let context = &context;
    let parallelism = parallelism.for_seconds(dy.len() as f64 / ELEMENTS_PER_SECOND);
    parallelism.for_each(tasks, tasks, &move |task, _| {
        let mut laps = Laps::start();
        dispatch(isa, Task { context, task });
        laps.lap(Stage::Epilogue);
    });
}

struct Context<'a> {
    layout: Layout,
    batch: usize,
    pixels: usize,
    channels: usize,
    dy: &'a [f32],
    db: *mut f32,
}

// SAFETY: each task writes the channels that are its own; everything else is only read.
unsafe impl Sync for Context<'_> {}

struct Task<'a> {
    context: &'a Context<'a>,
    task: usize,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let &Context { layout, batch, pixels, channels, dy, db } = self.context;
        let first = self.task * TASK_CHANNELS;
        let count = (channels - first).min(TASK_CHANNELS);
        match layout {
            Layout::Nchw => {
                for channel in first..first + count {
                    let mut sum = 0.0;
                    for n in 0..batch {
                        let plane = &dy[(n * channels + channel) * pixels..][..pixels];
                        sum += plane_sum(simd, plane);
                    }
                    // SAFETY: the channel is one of this task's.
                    unsafe { *db.add(channel) = sum };
                }
            }
            Layout::Nhwc => {
                let mut lane = 0;
                while lane < count {
                    let lanes = count - lane;
                    let mut sum = simd.zero();
                    for pixel in 0..batch * pixels {
                        let from = dy[pixel * channels + first + lane..].as_ptr();
                        // SAFETY: only the task's channels of the pixel are read.
                        sum = simd.add(sum, unsafe { simd.load_first(from, lanes) });
                    }
                    // SAFETY: only the task's channels are written.
                    unsafe { simd.store_first(db.add(first + lane), lanes, sum) };
                    lane += S::LANES;
                }
            }
        }
    }
}

/// The sum of a plane in 16 lanes, the same on every instruction set.
#[inline(always)]
pub(super) fn plane_sum<S: Simd>(simd: S, plane: &[f32]) -> f32 {
    // Vectors of 16 lanes; the smallest instruction set needs four.
    let vectors = 16 / S::LANES;
    let mut acc = [simd.zero(); 4];
    let whole = plane.len() / 16 * 16;
    let mut i = 0;
    // SAFETY: every access is below the length of the plane.
    unsafe {
        while i < whole {
            for v in 0..vectors {
                acc[v] = simd.add(acc[v], simd.load(plane.as_ptr().add(i + v * S::LANES)));
            }
            i += 16;
        }
        for v in 0..vectors {
            let at = whole + v * S::LANES;
            if at < plane.len() {
                acc[v] = simd.add(acc[v], simd.load_first(plane.as_ptr().add(at), plane.len() - at));
            }
        }
    }
    let mut lanes = [0.0f32; 16];
    for v in 0..vectors {
        // SAFETY: sixteen lanes are written in all.
        unsafe { simd.store(lanes.as_mut_ptr().add(v * S::LANES), acc[v]) };
    }
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
