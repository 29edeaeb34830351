//! Convolution as in a lecture: seven loops, and an `if` for the padding.

use super::Float;
use crate::conv::{Conv2dSpec, ConvTranspose2dSpec, Layout, Shape};
use crate::error::{Error, check_len};

/// Where element `[n, c, h, w]` of an image stands.
pub(super) fn at(layout: Layout, channels: usize, [height, width]: [usize; 2], [n, c, h, w]: [usize; 4]) -> usize {
    match layout {
        Layout::Nchw => ((n * channels + c) * height + h) * width + w,
        Layout::Nhwc => ((n * height + h) * width + w) * channels + c,
    }
}

/// Calls `visit(x index, w index, y index)` for every product of the convolution, grouped by output and in
/// the order of `ic, kh, kw`. Taps that fall into the padding are left out.
fn for_each_product(spec: &Conv2dSpec, shape: Shape, mut visit: impl FnMut(usize, usize, usize)) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    let [out_height, out_width] = sizes.output;
    let [kernel_height, kernel_width] = spec.kernel;
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    for n in 0..shape.batch {
        for oc in 0..spec.out_channels {
            for oh in 0..out_height {
                for ow in 0..out_width {
                    let y_at = at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow]);
                    for g_ic in 0..group_in {
                        let ic = oc / group_out * group_in + g_ic;
                        for kh in 0..kernel_height {
                            for kw in 0..kernel_width {
                                let ih = oh * spec.stride[0] + kh * spec.dilation[0];
                                let iw = ow * spec.stride[1] + kw * spec.dilation[1];
                                let (top, left) = (spec.padding.top, spec.padding.left);
                                if ih < top || iw < left || ih - top >= shape.height || iw - left >= shape.width {
                                    continue;
                                }
                                let x_at = at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih - top, iw - left]);
                                let w_at = ((oc * group_in + g_ic) * kernel_height + kh) * kernel_width + kw;
                                visit(x_at, w_at, y_at);
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// `y = x * w + bias + residual`, before the activation.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn conv2d_forward<T: Float>(
    spec: &Conv2dSpec,
    shape: Shape,
    x: &[T],
    weights: &[T],
    bias: Option<&[T]>,
    residual: Option<&[T]>,
    y: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("weights", sizes.w_len, weights.len())?;
    check_len("y", sizes.y_len, y.len())?;
    check_len("bias", spec.out_channels, bias.map_or(spec.out_channels, <[T]>::len))?;
    check_len("residual", sizes.y_len, residual.map_or(sizes.y_len, <[T]>::len))?;
    y.fill(T::ZERO);
    for_each_product(spec, shape, |x_at, w_at, y_at| y[y_at] += x[x_at] * weights[w_at])?;
    for n in 0..shape.batch {
        for oc in 0..spec.out_channels {
            for oh in 0..sizes.output[0] {
                for ow in 0..sizes.output[1] {
                    let y_at = at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow]);
                    if let Some(bias) = bias {
                        y[y_at] += bias[oc];
                    }
                    if let Some(residual) = residual {
                        y[y_at] += residual[y_at];
                    }
                }
            }
        }
    }
    Ok(())
}

/// The gradient of the input: `dx[x] = sum of dy[y] * w[w]` over every product of the forward convolution.
///
/// `dy` is the gradient before the activation.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn conv2d_backward_data<T: Float>(
    spec: &Conv2dSpec,
    shape: Shape,
    dy: &[T],
    weights: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("weights", sizes.w_len, weights.len())?;
    check_len("dx", sizes.x_len, dx.len())?;
    dx.fill(T::ZERO);
    for_each_product(spec, shape, |x_at, w_at, y_at| dx[x_at] += dy[y_at] * weights[w_at])
}

/// The gradient of the weights: `dw[w] = sum of dy[y] * x[x]` over every product of the forward convolution.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn conv2d_backward_weights<T: Float>(
    spec: &Conv2dSpec,
    shape: Shape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("dw", sizes.w_len, dw.len())?;
    dw.fill(T::ZERO);
    for_each_product(spec, shape, |x_at, w_at, y_at| dw[w_at] += dy[y_at] * x[x_at])
}

/// The gradient of the bias: `db[oc] = sum of dy[n, oc, oh, ow]`.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn conv2d_backward_bias<T: Float>(spec: &Conv2dSpec, shape: Shape, dy: &[T], db: &mut [T]) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("db", spec.out_channels, db.len())?;
    db.fill(T::ZERO);
    for n in 0..shape.batch {
        for oc in 0..spec.out_channels {
            for oh in 0..sizes.output[0] {
                for ow in 0..sizes.output[1] {
                    db[oc] += dy[at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow])];
                }
            }
        }
    }
    Ok(())
}

/// A transposed convolution before the activation: each pixel, times the kernel, is added to the output.
///
/// # Errors
/// Those of [`ConvTranspose2dSpec::sizes`], and [`Error::Length`] for a slice of another length.
pub fn conv_transpose2d_forward<T: Float>(
    spec: &ConvTranspose2dSpec,
    shape: Shape,
    x: &[T],
    weights: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("weights", sizes.w_len, weights.len())?;
    check_len("y", sizes.y_len, y.len())?;
    check_len("bias", spec.out_channels, bias.map_or(spec.out_channels, <[T]>::len))?;
    let [height, width] = sizes.output;
    let [kernel_height, kernel_width] = spec.kernel;
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    y.fill(T::ZERO);
    for n in 0..shape.batch {
        for ic in 0..spec.in_channels {
            for ih in 0..shape.height {
                for iw in 0..shape.width {
                    let x = x[at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih, iw])];
                    for g_oc in 0..group_out {
                        let oc = ic / group_in * group_out + g_oc;
                        for kh in 0..kernel_height {
                            for kw in 0..kernel_width {
                                let oh = ih * spec.stride[0] + kh * spec.dilation[0];
                                let ow = iw * spec.stride[1] + kw * spec.dilation[1];
                                let (top, left) = (spec.padding.top, spec.padding.left);
                                if oh < top || ow < left || oh - top >= height || ow - left >= width {
                                    continue;
                                }
                                let y_at =
                                    at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh - top, ow - left]);
                                y[y_at] +=
                                    x * weights[((ic * group_out + g_oc) * kernel_height + kh) * kernel_width + kw];
                            }
                        }
                    }
                }
            }
        }
        if let Some(bias) = bias {
            for oc in 0..spec.out_channels {
                for oh in 0..height {
                    for ow in 0..width {
                        y[at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow])] += bias[oc];
                    }
                }
            }
        }
    }
    Ok(())
}
