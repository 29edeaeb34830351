//! Bias, residual and activation as a pass of their own, where a kernel cannot end with them.

use super::engine::Post;
use super::spec::Layout;
use crate::activation::{self, Activation};
use crate::parallel::Parallelism;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};

/// Elements that a thread reads and writes in a second, at least.
const ELEMENTS_PER_SECOND: f64 = 1e9;

/// `y = activation(y + bias + residual)` for `batch` images of `pixels`, `[batch, pixels]`.
pub(super) fn finish(
    isa: Isa,
    layout: Layout,
    [batch, pixels]: [usize; 2],
    post: Post<'_>,
    y: &mut [f32],
    parallelism: Parallelism<'_>,
) {
    let Post { bias, residual, activation } = post;
    if (bias.is_none() && residual.is_none() && activation == Activation::Identity) || y.is_empty() {
        return;
    }
    debug_assert!(residual.is_none_or(|residual| residual.len() == y.len()));
    let channels = y.len() / (batch * pixels);
    // Runs of one bias each, or of all of them.
    let run = match layout {
        Layout::Nchw => pixels,
        Layout::Nhwc => channels,
    };
    let context = Context { layout, channels, run, post, y: y.as_mut_ptr() };
    let context = &context;
    let runs = y.len() / run;
    let parallelism = parallelism.for_seconds(y.len() as f64 / ELEMENTS_PER_SECOND);
    let tasks = runs.min(TASKS_PER_THREAD * parallelism.threads());
    parallelism.for_each(tasks, tasks, &move |task, _| {
        let runs = runs * task / tasks..runs * (task + 1) / tasks;
        let mut laps = Laps::start();
        dispatch(isa, Task { context, runs });
        laps.lap(Stage::Epilogue);
    });
}

/// Parts of the output, so that a thread that comes late finds something left.
const TASKS_PER_THREAD: usize = 4;

struct Context<'a> {
    layout: Layout,
    channels: usize,
    /// Elements of a run.
    run: usize,
    post: Post<'a>,
    y: *mut f32,
}

// SAFETY: tasks write disjoint runs of `y`.
unsafe impl Sync for Context<'_> {}

struct Task<'a> {
    context: &'a Context<'a>,
    runs: std::ops::Range<usize>,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let &Context { layout, channels, run, post, y } = self.context;
        for index in self.runs {
            let mut at = 0;
            while at < run {
                let left = run - at;
                // SAFETY: only what the run has left is read or written, and the run is this task's alone.
                unsafe {
                    let place = y.add(index * run + at);
                    let mut v = simd.load_first(place, left);
                    if let Some(bias) = post.bias {
                        v = simd.add(
                            v,
                            match layout {
                                Layout::Nchw => simd.splat(bias[index % channels]),
                                Layout::Nhwc => simd.load_first(bias[at..].as_ptr(), left),
                            },
                        );
                    }
                    if let Some(residual) = post.residual {
                        v = simd.add(v, simd.load_first(residual[index * run + at..].as_ptr(), left));
                    }
                    simd.store_first(place, left, activation::apply(simd, post.activation, v));
                }
                at += S::LANES;
            }
        }
    }
}
