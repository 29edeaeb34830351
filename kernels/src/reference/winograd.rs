//! The bound of Winograd's rounding error: its shadow, the same steps over magnitudes.
//!
//! ```text
//! shadow = |Aᵀ| [ sum over ic of (|G| |w| |Gᵀ|) . (|Bᵀ| |x| |B|) ] |A|         |y - y exact| <= gamma(n) * shadow
//! ```
//!
//! with `n` roundings on the way: one for each input channel (for each tile of the batch where the gradient of the
//! weights is summed, whose shadow is `|Gᵀ| [ sum over tiles of (|A| |dy| |Aᵀ|) . (|Bᵀ| |x| |B|) ] |G|`), and less than
//! 40 in the transforms, their constants and the weights. (N. Higham, "Accuracy and stability of numerical algorithms",
//! 2nd ed., chapter 3; B. Barabasz et al., ACM TOMS 46 (2020).) What underflows on the way errs by half of the smallest
//! number instead, for which each step adds a tiny magnitude. A direct convolution's shadow is the sum of its products'
//! magnitudes, so the two compare: [`Algorithm::amplification`] is their ratio where all data are of one magnitude.

use super::conv::at;
use crate::conv::{Algorithm, Axis, Conv2dSpec, Layout, Shape, Sizes, Tiling, winograd_axes};
use crate::error::{Error, check_len};

/// The roundings on the way to an output beside those of the sum over the input channels; or to a weight's gradient,
/// beside those of the sum over the tiles.
pub const WINOGRAD_ROUNDINGS: usize = 40;

/// What a step adds to a magnitude: 16 times the smallest number, in units of the rounding error.
const UNDERFLOW: f64 = 16.0 * 1.401_298_464_324_817e-45 * 16_777_216.0;

/// The shadow of each output of the forward pass, before bias and residual. Infinities and NaN in the operands count as
/// 0: what they reach is computed by definition.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], [`Error::Length`] for a slice of another length, and [`Error::Invalid`] for an
/// algorithm that is not Winograd's or cannot do the spec.
pub fn winograd_shadow(
    spec: &Conv2dSpec,
    shape: Shape,
    algorithm: Algorithm,
    x: &[f32],
    weights: &[f32],
    shadow: &mut [f64],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("weights", sizes.w_len, weights.len())?;
    check_len("shadow", sizes.y_len, shadow.len())?;
    Tiles::forward(spec, &sizes, algorithm)?.shadow(shape.batch, x, weights, shadow);
    Ok(())
}

/// A convolution as its tiles see it.
struct Tiles {
    axes: [Axis; 2],
    /// Rows and columns of padding.
    before: [usize; 2],
    /// In and out, of all groups.
    channels: [usize; 2],
    groups: usize,
    layout: Layout,
    in_size: [usize; 2],
    out_size: [usize; 2],
}

impl Tiles {
    fn forward(spec: &Conv2dSpec, sizes: &Sizes, algorithm: Algorithm) -> Result<Self, Error> {
        Ok(Self {
            axes: axes(spec, algorithm, false)?,
            before: [spec.padding.top, spec.padding.left],
            channels: [spec.in_channels, spec.out_channels],
            groups: spec.groups,
            layout: spec.layout,
            in_size: sizes.input,
            out_size: sizes.output,
        })
    }

    fn tilings(&self) -> [Tiling; 2] {
        [0, 1].map(|axis| Tiling::new(self.axes[axis], self.out_size[axis]))
    }

    /// The shadow of every output, for filters `[out channel][in channel of the group][tap]`.
    fn shadow(&self, batch: usize, x: &[f32], weights: &[f32], shadow: &mut [f64]) {
        let [down, along] = &self.axes;
        let [out_height, out_width] = self.out_size;
        let [group_in, group_out] = self.channels.map(|channels| channels / self.groups);
        let (points, taps) = (down.points() * along.points(), down.taps * along.taps);
        let [g, a] = [self.axes.map(Magnitudes::of_weights), self.axes.map(Magnitudes::of_outputs)];
        let b = self.axes.map(Magnitudes::of_inputs);
        // |G| |w| |Gᵀ| of every filter.
        let mut u = vec![0.0; self.channels[1] * group_in * points];
        for (filter, u) in weights.chunks_exact(taps).zip(u.chunks_exact_mut(points)) {
            let filter: Vec<f64> = filter.iter().map(|&w| magnitude(w)).collect();
            both_sides(&g, &filter, u);
        }
        let tilings @ [tile_rows, tile_columns] = self.tilings();
        let (mut v, mut m) = (vec![0.0; group_in * points], vec![0.0; points]);
        let mut outputs = vec![0.0; down.outputs * along.outputs];
        for n in 0..batch {
            for group in 0..self.groups {
                for_each_pair(tile_rows.all(), tile_columns.all(), |tile_row, tile_column| {
                    let (top, left) =
                        (tile_rows.down(tile_row, down.outputs), tile_columns.along(tile_column, along.outputs));
                    self.inputs(&b, tilings, x, [n, group, tile_row, tile_column], &mut v);
                    for oc in group * group_out..(group + 1) * group_out {
                        m.fill(UNDERFLOW);
                        for ic in 0..group_in {
                            let u = &u[(oc * group_in + ic) * points..];
                            for ((m, u), v) in m.iter_mut().zip(u).zip(&v[ic * points..]) {
                                *m += u * v;
                            }
                        }
                        both_sides(&a, &m, &mut outputs);
                        for_each_pair(down.outputs, along.outputs, |i, j| {
                            let (oh, ow) = (top + i * down.apart, left + j * along.apart);
                            if oh < out_height && ow < out_width {
                                let y = at(self.layout, self.channels[1], self.out_size, [n, oc, oh, ow]);
                                shadow[y] = outputs[i * along.outputs + j];
                            }
                        });
                    }
                });
            }
        }
    }

    /// `|Bᵀ| |x| |B|` of every channel of a group, for a tile of image `n`; zeros are outside of the image.
    fn inputs(
        &self,
        b: &[Magnitudes; 2],
        tilings: [Tiling; 2],
        x: &[f32],
        [n, group, tile_row, tile_column]: [usize; 4],
        v: &mut [f64],
    ) {
        let [down, along] = &self.axes;
        let (top, left) = (tilings[0].down(tile_row, down.step), tilings[1].along(tile_column, along.step));
        let inside = |axis: usize, first: usize, i: usize| {
            (first + i * self.axes[axis].apart).checked_sub(self.before[axis]).filter(|&i| i < self.in_size[axis])
        };
        let group_in = self.channels[0] / self.groups;
        let mut pixels = vec![0.0; down.inputs() * along.inputs()];
        for (ic, v) in v.chunks_exact_mut(down.points() * along.points()).enumerate() {
            let c = group * group_in + ic;
            for_each_pair(down.inputs(), along.inputs(), |i, j| {
                let place = (inside(0, top, i), inside(1, left, j));
                pixels[i * along.inputs() + j] = match place {
                    (Some(ih), Some(iw)) => {
                        magnitude(x[at(self.layout, self.channels[0], self.in_size, [n, c, ih, iw])])
                    }
                    _ => 0.0,
                };
            });
            both_sides(b, &pixels, v);
        }
    }
}

/// The magnitudes of a matrix of an axis.
struct Magnitudes {
    rows: usize,
    columns: usize,
    /// Row after row.
    values: Vec<f64>,
}

impl Magnitudes {
    fn new(rows: usize, columns: usize, element: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..rows * columns).map(|at| element(at / columns, at % columns).abs()).collect();
        Self { rows, columns, values }
    }

    /// `|G|`
    fn of_weights(axis: Axis) -> Self {
        Self::new(axis.points(), axis.taps, |point, tap| axis.weight(point, tap))
    }

    /// `|Bᵀ|`
    fn of_inputs(axis: Axis) -> Self {
        Self::new(axis.points(), axis.inputs(), |point, input| axis.input(point)[input])
    }

    /// `|Aᵀ|`
    fn of_outputs(axis: Axis) -> Self {
        Self::new(axis.outputs, axis.points(), |output, point| axis.output(output, point))
    }

    fn transposed(self) -> Self {
        Self::new(self.columns, self.rows, |row, column| self.values[column * self.columns + row])
    }

    /// A row.
    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// `down middle alongᵀ`, and what underflows.
fn both_sides([down, along]: &[Magnitudes; 2], middle: &[f64], to: &mut [f64]) {
    let mut half = vec![0.0; along.columns];
    for p in 0..down.rows {
        half.fill(0.0);
        for (weight, middle) in down.row(p).iter().zip(middle.chunks_exact(along.columns)) {
            for (half, middle) in half.iter_mut().zip(middle) {
                *half += weight * middle;
            }
        }
        for q in 0..along.rows {
            let sum: f64 = along.row(q).iter().zip(&half).map(|(weight, half)| weight * half).sum();
            to[p * along.rows + q] = sum + UNDERFLOW;
        }
    }
}

/// A magnitude; 0 for what is not finite.
fn magnitude(value: f32) -> f64 {
    if value.is_finite() { f64::from(value.abs()) } else { 0.0 }
}

fn axes(spec: &Conv2dSpec, algorithm: Algorithm, gradient: bool) -> Result<[Axis; 2], Error> {
    winograd_axes(spec, algorithm, gradient)
        .ok_or_else(|| Error::invalid("algorithm", format!("one of Winograd's that can do {spec}"), algorithm))
}

/// The shadow of each element of the input's gradient.
///
/// # Errors
/// Those of [`winograd_shadow`].
pub fn winograd_shadow_backward_data(
    spec: &Conv2dSpec,
    shape: Shape,
    algorithm: Algorithm,
    dy: &[f32],
    weights: &[f32],
    shadow: &mut [f64],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("weights", sizes.w_len, weights.len())?;
    check_len("shadow", sizes.x_len, shadow.len())?;
    if shadow.is_empty() {
        return Ok(());
    }
    // The convolution of the gradient: channels exchanged, every filter turned by 180 degrees.
    let tiles = Tiles {
        axes: axes(spec, algorithm, true)?,
        before: [
            ((spec.kernel[0] - 1) * spec.dilation[0] - spec.padding.top) / spec.stride[0],
            ((spec.kernel[1] - 1) * spec.dilation[1] - spec.padding.left) / spec.stride[1],
        ],
        channels: [spec.out_channels, spec.in_channels],
        groups: spec.groups,
        layout: spec.layout,
        in_size: sizes.output,
        out_size: sizes.input,
    };
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let taps = spec.kernel[0] * spec.kernel[1];
    let mut filters = vec![0.0; weights.len()];
    for ic in 0..spec.in_channels {
        for g_oc in 0..group_out {
            let oc = ic / group_in * group_out + g_oc;
            for tap in 0..taps {
                let from = (oc * group_in + ic % group_in) * taps + taps - 1 - tap;
                filters[(ic * group_out + g_oc) * taps + tap] = weights[from];
            }
        }
    }
    tiles.shadow(shape.batch, dy, &filters, shadow);
    Ok(())
}

/// The shadow of each element of the weights' gradient.
///
/// # Errors
/// Those of [`winograd_shadow`].
pub fn winograd_shadow_backward_weights(
    spec: &Conv2dSpec,
    shape: Shape,
    algorithm: Algorithm,
    x: &[f32],
    dy: &[f32],
    shadow: &mut [f64],
) -> Result<(), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("dy", sizes.y_len, dy.len())?;
    check_len("shadow", sizes.w_len, shadow.len())?;
    let tiles = Tiles::forward(spec, &sizes, algorithm)?;
    let axes @ [down, along] = tiles.axes;
    let [out_height, out_width] = sizes.output;
    let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let (points, taps) = (down.points() * along.points(), down.taps * along.taps);
    let tilings @ [tile_rows, tile_columns] = tiles.tilings();
    let [g, a] = [axes.map(Magnitudes::of_weights), axes.map(Magnitudes::of_outputs)]
        .map(|axes| axes.map(Magnitudes::transposed));
    let b = axes.map(Magnitudes::of_inputs);
    let (mut v, mut d) = (vec![0.0; group_in * points], vec![0.0; points]);
    let mut outputs = vec![0.0; down.outputs * along.outputs];
    // [oc][ic][frequency]
    let mut sums = vec![UNDERFLOW; spec.out_channels * group_in * points];
    for n in 0..shape.batch {
        for group in 0..spec.groups {
            for_each_pair(tile_rows.all(), tile_columns.all(), |tile_row, tile_column| {
                let (top, left) =
                    (tile_rows.down(tile_row, down.outputs), tile_columns.along(tile_column, along.outputs));
                tiles.inputs(&b, tilings, x, [n, group, tile_row, tile_column], &mut v);
                for oc in group * group_out..(group + 1) * group_out {
                    // |A| |dy| |Aᵀ|
                    for_each_pair(down.outputs, along.outputs, |i, j| {
                        let (oh, ow) = (top + i * down.apart, left + j * along.apart);
                        outputs[i * along.outputs + j] = if oh < out_height && ow < out_width {
                            magnitude(dy[at(spec.layout, spec.out_channels, sizes.output, [n, oc, oh, ow])])
                        } else {
                            0.0
                        };
                    });
                    both_sides(&a, &outputs, &mut d);
                    for ic in 0..group_in {
                        let sums = &mut sums[(oc * group_in + ic) * points..];
                        for ((sum, d), v) in sums.iter_mut().zip(&d).zip(&v[ic * points..]) {
                            *sum += d * v;
                        }
                    }
                }
            });
        }
    }
    // |Gᵀ| sums |G|
    for (filter, sums) in shadow.chunks_exact_mut(taps).zip(sums.chunks_exact(points)) {
        both_sides(&g, sums, filter);
    }
    Ok(())
}

fn for_each_pair(rows: usize, columns: usize, mut visit: impl FnMut(usize, usize)) {
    for i in 0..rows {
        for j in 0..columns {
            visit(i, j);
        }
    }
}
