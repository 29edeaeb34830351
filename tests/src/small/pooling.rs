//! Pooling, window by window.

use kernels::conv::{Layout, Shape};
use kernels::pool::{self, Pool2dSpec};
use kernels::reference;

use super::call::{Call, Output, Values, absolute, wide};
use crate::oracle::UNIT;

pub(super) fn maximum(spec: Pool2dSpec, shape: Shape, channels: usize, values: Values, seed: u64) -> Vec<Call> {
    let sizes = spec.sizes(shape, channels).expect("a valid case");
    let (x, dy) = (values.draw(seed, 1, sizes.x_len), Values::Integers.draw(seed, 2, sizes.y_len));
    let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
    reference::max_pool2d_forward(&spec, shape, channels, &x, &mut y).expect("a valid case");
    reference::max_pool2d_backward(&spec, shape, channels, &x, &dy, &mut dx).expect("a valid case");
    let (y_out, dx_out) = (Output::exactly("y", &y), Output::exactly("dx", &dx));
    let inputs = vec![("x", x.clone()), ("y", y), ("dy", dy)];
    vec![
        Call::new("forward", vec![("x", x)], vec![y_out], move |inputs, outputs, _, execution| {
            pool::max_forward(&spec, shape, channels, inputs[0], outputs[0], execution)
        }),
        Call::new("backward", inputs, vec![dx_out], move |inputs, outputs, _, execution| {
            let &[x, y, dy] = inputs else { unreachable!("three inputs") };
            pool::max_backward(&spec, shape, channels, x, y, dy, outputs[0], execution)
        }),
    ]
}

pub(super) fn average(spec: Pool2dSpec, shape: Shape, channels: usize, values: Values, seed: u64) -> Vec<Call> {
    let sizes = spec.sizes(shape, channels).expect("a valid case");
    let (x, dy) = (values.draw(seed, 1, sizes.x_len), values.draw(seed, 2, sizes.y_len));
    let forward = |x: &[f64]| {
        let mut y = vec![0.0; sizes.y_len];
        reference::average_pool2d_forward(&spec, shape, channels, x, &mut y).expect("a valid case");
        y
    };
    let backward = |dy: &[f64]| {
        let mut dx = vec![0.0; sizes.x_len];
        reference::average_pool2d_backward(&spec, shape, channels, dy, &mut dx).expect("a valid case");
        dx
    };
    // No more windows meet in a pixel than there are taps.
    let roundings = 1.001 * (spec.kernel[0] * spec.kernel[1] + 1) as f64 * UNIT;
    let (y_scale, dx_scale) = (forward(&absolute(&x)), backward(&absolute(&dy)));
    let y = Output::within("y", forward(&wide(&x)), |i| roundings * y_scale[i]);
    let dx = Output::within("dx", backward(&wide(&dy)), |i| roundings * dx_scale[i]);
    vec![
        Call::new("forward", vec![("x", x)], vec![y], move |inputs, outputs, _, execution| {
            pool::average_forward(&spec, shape, channels, inputs[0], outputs[0], execution)
        }),
        Call::new("backward", vec![("dy", dy)], vec![dx], move |inputs, outputs, _, execution| {
            pool::average_backward(&spec, shape, channels, inputs[0], outputs[0], execution)
        }),
    ]
}

pub(super) fn adaptive(
    output: [usize; 2],
    layout: Layout,
    shape: Shape,
    channels: usize,
    values: Values,
    seed: u64,
) -> Vec<Call> {
    let input = [shape.height, shape.width];
    let planes = shape.batch * channels;
    let (x_len, y_len) = (planes * input[0] * input[1], planes * output[0] * output[1]);
    let (x, dy) = (values.draw(seed, 1, x_len), values.draw(seed, 2, y_len));
    let forward = |x: &[f64]| {
        let mut y = vec![0.0; y_len];
        reference::adaptive_average_pool2d_forward(output, layout, shape, channels, x, &mut y).expect("a valid case");
        y
    };
    let backward = |dy: &[f64]| {
        let mut dx = vec![0.0; x_len];
        reference::adaptive_average_pool2d_backward(output, layout, shape, channels, dy, &mut dx)
            .expect("a valid case");
        dx
    };
    // Pixels of a window, or windows of a pixel: one more at either end than evenly shared.
    let most = |of: [usize; 2], among: [usize; 2]| -> usize {
        (0..2).map(|axis| of[axis].div_ceil(among[axis].max(1)) + 1).product()
    };
    let roundings = |terms: usize| 1.001 * (terms + 1) as f64 * UNIT;
    let (y_scale, dx_scale) = (forward(&absolute(&x)), backward(&absolute(&dy)));
    let y = Output::within("y", forward(&wide(&x)), |i| roundings(most(input, output)) * y_scale[i]);
    let dx = Output::within("dx", backward(&wide(&dy)), |i| roundings(most(output, input)) * dx_scale[i]);
    vec![
        Call::new("forward", vec![("x", x)], vec![y], move |inputs, outputs, _, execution| {
            pool::adaptive_average_forward(output, layout, shape, channels, inputs[0], outputs[0], execution)
        }),
        Call::new("backward", vec![("dy", dy)], vec![dx], move |inputs, outputs, _, execution| {
            pool::adaptive_average_backward(output, layout, shape, channels, inputs[0], outputs[0], execution)
        }),
    ]
}
