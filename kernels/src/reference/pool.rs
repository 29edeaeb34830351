//! Pooling, window by window.

use super::Float;
use crate::conv::{Layout, Shape};
use crate::error::{Error, check_len};
use crate::pool::Pool2dSpec;

/// Where element `[n, c, h, w]` of an image stands.
fn at(layout: Layout, channels: usize, [height, width]: [usize; 2], [n, c, h, w]: [usize; 4]) -> usize {
    match layout {
        Layout::Nchw => ((n * channels + c) * height + h) * width + w,
        Layout::Nhwc => ((n * height + h) * width + w) * channels + c,
    }
}

/// The taps along one axis of a window that starts at `start`, in pixels of the image.
fn taps(start: isize, kernel: usize, dilation: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..kernel).map(move |k| start + (k * dilation) as isize).filter_map(move |i| {
        let i = usize::try_from(i).ok()?;
        (i < size).then_some(i)
    })
}

/// Calls `visit(y index, x indices of the taps in the image, divisor)` for every window.
fn for_each_window(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    mut visit: impl FnMut(usize, &[usize], usize),
) -> Result<(), Error> {
    let output = spec.output_size([shape.height, shape.width])?;
    let mut indices = Vec::new();
    for n in 0..shape.batch {
        for c in 0..channels {
            for oh in 0..output[0] {
                for ow in 0..output[1] {
                    let top = (oh * spec.stride[0]) as isize - spec.padding.top as isize;
                    let left = (ow * spec.stride[1]) as isize - spec.padding.left as isize;
                    indices.clear();
                    for ih in taps(top, spec.kernel[0], spec.dilation[0], shape.height) {
                        for iw in taps(left, spec.kernel[1], spec.dilation[1], shape.width) {
                            indices.push(at(spec.layout, channels, [shape.height, shape.width], [n, c, ih, iw]));
                        }
                    }
                    let bottom = (top + spec.kernel[0] as isize).min((shape.height + spec.padding.bottom) as isize);
                    let right = (left + spec.kernel[1] as isize).min((shape.width + spec.padding.right) as isize);
                    let padded = ((bottom - top) * (right - left)) as usize;
                    let divisor = if spec.count_include_pad { padded } else { indices.len() };
                    visit(at(spec.layout, channels, output, [n, c, oh, ow]), &indices, divisor);
                }
            }
        }
    }
    Ok(())
}

/// The index of the first maximum, or of the last NaN; nothing where there are no taps.
fn first_maximum<T: Float>(x: &[T], taps: &[usize]) -> Option<usize> {
    let mut found: Option<usize> = None;
    for &tap in taps {
        if found.is_none_or(|best| x[tap] > x[best] || x[tap].is_nan()) {
            found = Some(tap);
        }
    }
    found
}

/// The maximum of each window; NaN where there is one.
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn max_pool2d_forward<T: Float>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[T],
    y: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    for_each_window(spec, shape, channels, |y_at, taps, _| {
        y[y_at] = first_maximum(x, taps).map_or(T::NEG_INFINITY, |best| x[best]);
    })
}

/// `dx[first maximum of each window] += dy`
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn max_pool2d_backward<T: Float>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    dx.fill(T::ZERO);
    for_each_window(spec, shape, channels, |y_at, taps, _| {
        if let Some(best) = first_maximum(x, taps) {
            dx[best] += dy[y_at];
        }
    })
}

/// The mean of each window.
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn average_pool2d_forward<T: Float>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    x: &[T],
    y: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape, channels)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("y", sizes.y_len, y.len())?;
    for_each_window(spec, shape, channels, |y_at, taps, divisor| {
        let mut sum = T::ZERO;
        for &tap in taps {
            sum += x[tap];
        }
        y[y_at] = sum / T::from_f64(divisor as f64);
    })
}

/// `dx[each tap of each window] += dy / divisor`
///
/// # Errors
/// Those of [`Pool2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn average_pool2d_backward<T: Float>(
    spec: &Pool2dSpec,
    shape: Shape,
    channels: usize,
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape, channels)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    dx.fill(T::ZERO);
    for_each_window(spec, shape, channels, |y_at, taps, divisor| {
        for &tap in taps {
            dx[tap] += dy[y_at] / T::from_f64(divisor as f64);
        }
    })
}

/// Calls `visit(y index, x indices of the window)` for every window of an adaptive pooling.
fn for_each_adaptive_window(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    mut visit: impl FnMut(usize, &[usize]),
) {
    let input = [shape.height, shape.width];
    let window = |o: usize, axis: usize| o * input[axis] / output[axis]..((o + 1) * input[axis]).div_ceil(output[axis]);
    for n in 0..shape.batch {
        for c in 0..channels {
            for oh in 0..output[0] {
                for ow in 0..output[1] {
                    let mut taps = Vec::new();
                    for ih in window(oh, 0) {
                        for iw in window(ow, 1) {
                            taps.push(at(layout, channels, input, [n, c, ih, iw]));
                        }
                    }
                    visit(at(layout, channels, output, [n, c, oh, ow]), &taps);
                }
            }
        }
    }
}

/// The mean of each of `output` windows: from `floor(o * input / output)` up to `ceil((o + 1) * input / output)`.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn adaptive_average_pool2d_forward<T: Float>(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    x: &[T],
    y: &mut [T],
) -> Result<(), Error> {
    check_len("x", shape.batch * channels * shape.height * shape.width, x.len())?;
    check_len("y", shape.batch * channels * output[0] * output[1], y.len())?;
    for_each_adaptive_window(output, layout, shape, channels, |y_at, taps| {
        let mut sum = T::ZERO;
        for &tap in taps {
            sum += x[tap];
        }
        y[y_at] = sum / T::from_f64(taps.len() as f64);
    });
    Ok(())
}

/// `dx[each pixel of each window] += dy / pixels of the window`
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn adaptive_average_pool2d_backward<T: Float>(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    check_len("dy", shape.batch * channels * output[0] * output[1], dy.len())?;
    check_len("dx", shape.batch * channels * shape.height * shape.width, dx.len())?;
    dx.fill(T::ZERO);
    for_each_adaptive_window(output, layout, shape, channels, |y_at, taps| {
        for &tap in taps {
            dx[tap] += dy[y_at] / T::from_f64(taps.len() as f64);
        }
    });
    Ok(())
}
