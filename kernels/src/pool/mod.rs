//! Max and average pooling over windows of an image, forward and backward.
//!
//! ```text
//! max      y[n, c, oh, ow] = max over kh, kw of x[n, c, oh * stride + kh * dilation - padding.top, ...]
//!          dx[first maximum of the window] += dy
//! average  y[n, c, oh, ow] = sum over kh, kw of x[...] / divisor
//!          dx[each tap of the window] += dy / divisor
//! ```
//!
//! Taps in the padding contribute nothing: they are never a maximum, and 0 to a sum. A window has at least one tap in
//! the image, for padding is at most half of the window; only a dilated window can step over the image, and then its
//! maximum is -infinity and its gradient goes nowhere.
//!
//! NaN propagates: it is larger than any number. The maximum's gradient goes to the first maximum in the order of
//! `kh, kw` (`-0 = +0`), or to the last NaN where there are NaNs, as in PyTorch. It is found again from `x` and `y`, so
//! no indices are kept.
//!
//! Outputs are independent of each other, and gradients are added up plane by plane in the order of the windows, so the
//! bits do not depend on threads.

mod adaptive;
mod max_apart;
mod max_backward;
mod max_meet;
mod nchw;
mod nhwc;
mod spec;
mod square;

pub use adaptive::{adaptive_average_backward, adaptive_average_forward};
pub use spec::{Pool2dSpec, PoolSizes};

use crate::conv::{Layout, Shape};
use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::reduce::{Reduction, Sum};
use crate::simd::{Isa, Simd, dispatch};
use spec::Geometry;
use square::Square;

/// Input elements that make a task worth handing out.
const TASK: usize = 16 * 1024;

/// How a window becomes one number.
trait Pooling: Reduction {
    /// Whether the result is divided by the number of taps.
    const MEAN: bool;
}

impl Pooling for Sum {
    const MEAN: bool = true;
}

impl Pooling for MaxOrNan {
    const MEAN: bool = false;
}

/// The maximum; NaN where there is one. Of +0 and -0, the first.
struct MaxOrNan;

impl Reduction for MaxOrNan {
    const START: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::F, b: S::F) -> S::F {
        simd.select(simd.eq(b, b), simd.larger(a, b), b)
    }
    #[inline(always)]
    fn join_one(a: f32, b: f32) -> f32 {
        if a < b || b.is_nan() { b } else { a }
    }
}

/// The maximum of each window: exact. Among +0 and -0 either may come out.
///
/// `x` is `channels` of `shape` in the spec's layout, `y` as [`Pool2dSpec::output_size`] says.
///
/// ```
/// use kernels::{Parallelism, conv::Shape, pool::{self, Pool2dSpec}};
/// let spec = Pool2dSpec::new([2, 2]);
/// let mut y = [0.0; 2];
/// let x = [1.0, 2.0, 8.0, 7.0, 3.0, 4.0, 6.0, 5.0];
/// pool::max_forward(&spec, Shape::new(1, 2, 4), 1, &x, &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [4.0, 8.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn max_forward<'t>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let (geometry, sizes) = spec.geometry(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    let square = Square::of(&geometry);
    for_each_output_rows(&geometry, y, execution.into(), &|isa, first, y| match (spec.layout, square) {
        (Layout::Nchw, Some(square)) => dispatch(isa, square::Forward { geometry: &geometry, square, x, first, y }),
        (Layout::Nchw, None) => dispatch(isa, nchw::Forward { geometry: &geometry, pooling: MaxOrNan, x, first, y }),
        (Layout::Nhwc, _) => dispatch(isa, nhwc::Forward { geometry: &geometry, pooling: MaxOrNan, x, first, y }),
    })
}

/// The gradient of [`max_forward`]'s input: each window gives its `dy` to its first maximum.
///
/// `x` and `y` are the input and the output of the forward pass. An element of `dx` that several windows meet in is
/// their sum, with at most one rounding a window.
///
/// ```
/// use kernels::{Parallelism, conv::Shape, pool::{self, Pool2dSpec}};
/// let spec = Pool2dSpec::new([2, 2]);
/// let x = [1.0, 2.0, 8.0, 7.0, 3.0, 4.0, 6.0, 8.0];
/// let (y, dy) = ([4.0, 8.0], [10.0, 20.0]);
/// let mut dx = [0.0; 8];
/// pool::max_backward(&spec, Shape::new(1, 2, 4), 1, &x, &y, &dy, &mut dx, Parallelism::Serial)?;
/// assert_eq!(dx, [0.0, 0.0, 20.0, 0.0, 0.0, 10.0, 0.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`max_forward`].
pub fn max_backward<'t>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[f32],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let (geometry, sizes) = spec.geometry(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    for_each_band(&geometry, dx, execution.into(), &|isa, band, dx| match spec.layout {
        Layout::Nchw => dispatch(isa, max_backward::MaxBackward { geometry: &geometry, x, y, dy, band, dx }),
        Layout::Nhwc => dispatch(isa, nhwc::MaxBackward { geometry: &geometry, x, y, dy, band, dx }),
    })
}

/// The mean of each window.
///
/// The divisor counts the taps in the image and, with `count_include_pad`, those in the padding (not those that
/// `ceil_mode` lets stick out beyond the padding). With `s` the sum of the window's absolute values, `t` its taps and
/// `u = 2^-24`, an element errs by at most `(t + 1) u s / divisor`; it is exact if all partial sums are representable
/// and the divisor is a power of two.
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], [`Error::Length`] for a slice of another length, [`Error::Invalid`] for a dilated
/// window.
pub fn average_forward<'t>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_dense(spec)?;
    let (geometry, sizes) = spec.geometry(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    for_each_output_rows(&geometry, y, execution.into(), &|isa, first, y| match spec.layout {
        Layout::Nchw => dispatch(isa, nchw::Forward { geometry: &geometry, pooling: Sum, x, first, y }),
        Layout::Nhwc => dispatch(isa, nhwc::Forward { geometry: &geometry, pooling: Sum, x, first, y }),
    })
}

/// The gradient of [`average_forward`]'s input: each window gives `dy / divisor` to each of its taps in the image.
///
/// An element of `dx` that `n` windows meet in errs by at most `(n + 1) u` times the sum of their `|dy| / divisor`.
///
/// # Errors
/// Those of [`average_forward`].
pub fn average_backward<'t>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_dense(spec)?;
    let (geometry, sizes) = spec.geometry(shape, channels)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    for_each_band(&geometry, dx, execution.into(), &|isa, band, dx| match spec.layout {
        Layout::Nchw => dispatch(isa, nchw::AverageBackward { geometry: &geometry, dy, band, dx }),
        Layout::Nhwc => dispatch(isa, nhwc::AverageBackward { geometry: &geometry, dy, band, dx }),
    })
}

fn check_dense(spec: &Pool2dSpec) -> Result<(), Error> {
    match spec.dilation {
        [1, 1] => Ok(()),
        given => Err(Error::invalid("dilation", "[1, 1] for an average", format!("{given:?}"))),
    }
}

/// Runs `task(isa, first, rows)` for runs of output rows, counted through all planes.
fn for_each_output_rows(
    geometry: &Geometry,
    y: &mut [f32],
    execution: Execution,
    task: &(dyn Fn(Isa, usize, &mut [f32]) + Sync),
) -> Result<(), Error> {
    let isa = execution.isa()?;
    if y.is_empty() {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(geometry.seconds());
    let input_per_row = geometry.rows.size * geometry.x_row() / geometry.rows.output;
    let rows = (TASK / input_per_row.max(1)).max(1);
    let parts = Parts::new(y, rows.saturating_mul(geometry.y_row()));
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        task(isa, index * rows, unsafe { parts.take(index) });
    });
    Ok(())
}

/// Windows `first .. last` along the height of one plane, and the rows of `dx` that they alone reach.
#[derive(Clone, Copy)]
struct Band {
    plane: usize,
    first: usize,
    last: usize,
    /// The row of the plane that the band's `dx` starts with.
    top: usize,
}

/// Runs `task(isa, band, rows of dx)` for bands of windows whose inputs do not overlap: parts of a plane where windows
/// lie side by side, else whole planes. Bands cover `dx`.
fn for_each_band(
    geometry: &Geometry,
    dx: &mut [f32],
    execution: Execution,
    task: &(dyn Fn(Isa, Band, &mut [f32]) + Sync),
) -> Result<(), Error> {
    let isa = execution.isa()?;
    if dx.is_empty() {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(geometry.seconds());
    let rows = &geometry.rows;
    let x_row = geometry.x_row();
    let per_band = if rows.window <= rows.stride {
        (TASK / x_row.saturating_mul(rows.stride)).clamp(1, rows.output)
    } else {
        rows.output
    };
    let bands = rows.output.div_ceil(per_band);
    let per_task = (TASK / (x_row * rows.size).div_ceil(bands)).max(1);
    // Where the first window of a band starts its plane, or the last ends it, the band has all rows up to the edge.
    let top = |window: usize| match window {
        0 => 0,
        o if o == rows.output => rows.size,
        o => (o * rows.stride).saturating_sub(rows.before).min(rows.size),
    };
    let total = geometry.planes * bands;
    let parts = Parts::new(dx, x_row);
    parallelism.for_each(total.div_ceil(per_task), parallelism.threads(), &|index, _| {
        for unit in index * per_task..total.min((index + 1) * per_task) {
            let (plane, band) = (unit / bands, unit % bands);
            let (first, last) = (band * per_band, rows.output.min((band + 1) * per_band));
            let (top, bottom) = (top(first), top(last));
            // SAFETY: bands cut the rows of a plane without overlap, and each comes up once.
            let dx = unsafe { parts.take_run(plane * rows.size + top, bottom - top) };
            task(isa, Band { plane, first, last, top }, dx);
        }
    });
    Ok(())
}
