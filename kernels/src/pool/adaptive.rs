//! Average pooling to an output of a given size, whatever the size of the input.
//!
//! ```text
//! window o of an axis:  from floor(o * input / output) up to ceil((o + 1) * input / output)
//!
//! input 5, output 3      0 1 2 3 4
//!                        └─┘
//!                          └───┘           neighbours may share a pixel
//!                              └─┘
//! ```
//!
//! Where the output divides the input, windows are equal and lie side by side: the pooling of
//! [`super::average_forward`]. Else they are few and small, and each is summed as it stands.

use std::ops::Range;

use super::{Pool2dSpec, average_backward, average_forward};
use crate::conv::{Layout, Shape};
use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;

/// A rough cost per element on one core, in seconds.
const SECONDS_PER_ELEMENT: f64 = 1e-9;

/// The pixels of window `o` along an axis.
fn window(o: usize, input: usize, output: usize) -> Range<usize> {
    let scaled = |o: usize| o as u128 * input as u128;
    let (start, end) = (scaled(o) / output as u128, scaled(o + 1).div_ceil(output as u128));
    start as usize..end as usize
}

/// A checked call.
struct Sizes {
    input: [usize; 2],
    output: [usize; 2],
    x_len: usize,
    y_len: usize,
    /// Pixels apart that belong to the same channel.
    step: usize,
    /// Parts of the data that do not meet: planes in NCHW, images in NHWC.
    parts: usize,
}

fn check(output: [usize; 2], layout: Layout, shape: Shape, channels: usize) -> Result<Sizes, Error> {
    let Shape { batch, height, width } = shape;
    for (argument, size) in [("output", output[0]), ("output", output[1]), ("height", height), ("width", width)] {
        if size == 0 {
            return Err(Error::invalid(argument, "at least 1", 0));
        }
    }
    let x_len = checked_len("x", &[batch, channels, height, width])?;
    let y_len = checked_len("y", &[batch, channels, output[0], output[1]])?;
    let (step, parts) = match layout {
        Layout::Nchw => (1, batch * channels),
        Layout::Nhwc => (channels, batch),
    };
    Ok(Sizes { input: [height, width], output, x_len, y_len, step, parts })
}

/// The pooling with equal windows side by side, if that is what it is.
fn regular(output: [usize; 2], layout: Layout, shape: Shape) -> Option<Pool2dSpec> {
    let whole = shape.height.is_multiple_of(output[0]) && shape.width.is_multiple_of(output[1]);
    whole.then(|| Pool2dSpec::new([shape.height / output[0], shape.width / output[1]]).layout(layout))
}

/// The mean of each of `output` `[height, width]` windows, which cover the image evenly.
///
/// `x` is `channels` of `shape` in the layout, `y` as many channels of `output`. With `s` the sum of the absolute
/// values of a window of `t` pixels, an element errs by at most `(t + 1) u s / t`, `u = 2^-24`.
///
/// ```
/// use kernels::{Parallelism, conv::{Layout, Shape}, pool};
/// let mut y = [0.0; 2];
/// let x = [1.0, 3.0, 5.0];
/// pool::adaptive_average_forward([1, 2], Layout::Nchw, Shape::new(1, 1, 3), 1, &x, &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [2.0, 4.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] for an empty image or output, [`Error::Length`] for a slice of another length,
/// [`Error::Overflow`].
pub fn adaptive_average_forward<'t>(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let sizes = check(output, layout, shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    if let Some(spec) = regular(output, layout, shape) {
        return average_forward(&spec, shape, channels, x, y, execution);
    }
    let [width, x_part] = [sizes.input[1], x.len() / sizes.parts.max(1)];
    for_each_part(&sizes, y, execution.into(), &|part, y| {
        let x = &x[part * x_part..][..x_part];
        for_each_window(&sizes, |at, rows, columns, c| {
            let mut sum = 0.0;
            for ih in rows.clone() {
                for iw in columns.clone() {
                    sum += x[(ih * width + iw) * sizes.step + c];
                }
            }
            y[at] = sum / (rows.len() * columns.len()) as f32;
        });
    })
}

/// The gradient of [`adaptive_average_forward`]'s input: each window gives `dy`, divided by its pixels, to each of
/// them.
///
/// An element of `dx` that `n` windows meet in errs by at most `(n + 1) u` times the sum of their shares' sizes.
///
/// # Errors
/// Those of [`adaptive_average_forward`].
pub fn adaptive_average_backward<'t>(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let sizes = check(output, layout, shape, channels)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    if let Some(spec) = regular(output, layout, shape) {
        return average_backward(&spec, shape, channels, dy, dx, execution);
    }
    let [width, y_part] = [sizes.input[1], dy.len() / sizes.parts.max(1)];
    for_each_part(&sizes, dx, execution.into(), &|part, dx| {
        let dy = &dy[part * y_part..][..y_part];
        dx.fill(0.0);
        for_each_window(&sizes, |at, rows, columns, c| {
            let share = dy[at] / (rows.len() * columns.len()) as f32;
            for ih in rows {
                for iw in columns.clone() {
                    dx[(ih * width + iw) * sizes.step + c] += share;
                }
            }
        });
    })
}

/// Calls `visit(index in the output's part, rows, columns, channel)` for each window of a part.
fn for_each_window(sizes: &Sizes, mut visit: impl FnMut(usize, Range<usize>, Range<usize>, usize)) {
    let mut at = 0;
    for oh in 0..sizes.output[0] {
        for ow in 0..sizes.output[1] {
            for c in 0..sizes.step {
                let rows = window(oh, sizes.input[0], sizes.output[0]);
                visit(at, rows, window(ow, sizes.input[1], sizes.output[1]), c);
                at += 1;
            }
        }
    }
}

/// Runs `task(part, its elements)` for each part of an output.
fn for_each_part(
    sizes: &Sizes,
    elements: &mut [f32],
    execution: Execution,
    task: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<(), Error> {
    execution.isa()?;
    if elements.is_empty() {
        return Ok(());
    }
    let seconds = (sizes.x_len + sizes.y_len) as f64 * SECONDS_PER_ELEMENT;
    let parallelism = execution.parallelism.for_seconds(seconds);
    let parts = Parts::new(elements, elements.len() / sizes.parts);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        task(index, unsafe { parts.take(index) });
    });
    Ok(())
}
