//! The definition of a convolution and of its gradients, one element at a time, in `f64`.
//!
//! The full reference of a large layer takes seconds; a few thousand of its outputs take milliseconds. Each
//! comes with the sum of the absolute values of its terms, from which the rounding error that any order of
//! summation can make follows.
//!
//! ```text
//! value     = sum of  a * b            |computed - value| <= gamma(roundings) * magnitude
//! magnitude = sum of |a * b|           gamma(n) = n u / (1 - n u),  u = 2^-24
//! ```
//!
//! Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1.

use kernels::conv::{Conv2dSpec, Layout, Shape, Sizes};

/// One element of a result, as it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Where it stands in the result.
    pub index: usize,
    /// Its value.
    pub value: f64,
    /// The sum of the absolute values of its terms.
    pub magnitude: f64,
    /// How many terms there are.
    pub terms: usize,
}

impl Expected {
    fn new(index: usize) -> Self {
        Self { index, value: 0.0, magnitude: 0.0, terms: 0 }
    }

    fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
        self.terms += 1;
    }

    /// The largest rounding error that summation in any order, fused or not, can make.
    pub fn tolerance(&self) -> f64 {
        // A term passes at most one rounding of its product and one of each addition.
        let roundings = self.terms as f64 + 1.0;
        let gamma = |n: f64, unit: f64| n * unit / (1.0 - n * unit);
        let (single, double) = (f64::powi(2.0, -24), f64::powi(2.0, -53));
        let smallest = f64::powi(2.0, -149);
        (gamma(roundings, single) + gamma(roundings, double)) * self.magnitude + roundings * smallest
    }

    /// Whether integer terms add up exactly in `f32`, in any order.
    pub fn is_exact(&self) -> bool {
        self.magnitude <= f64::powi(2.0, 24)
    }
}

/// A layer with its sizes, which knows where elements stand.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    spec: Conv2dSpec,
    shape: Shape,
    sizes: Sizes,
}

impl Definition {
    /// # Errors
    /// Those of [`Conv2dSpec::sizes`].
    pub fn new(spec: Conv2dSpec, shape: Shape) -> Result<Self, kernels::Error> {
        Ok(Self { spec, shape, sizes: spec.sizes(shape)? })
    }

    fn at(&self, channels: usize, [height, width]: [usize; 2], [n, c, h, w]: [usize; 4]) -> usize {
        match self.spec.layout {
            Layout::Nchw => ((n * channels + c) * height + h) * width + w,
            Layout::Nhwc => ((n * height + h) * width + w) * channels + c,
        }
    }

    /// The inverse of `at`.
    fn coordinates(&self, channels: usize, [height, width]: [usize; 2], index: usize) -> [usize; 4] {
        match self.spec.layout {
            Layout::Nchw => {
                let (row, w) = (index / width, index % width);
                [row / height / channels, row / height % channels, row % height, w]
            }
            Layout::Nhwc => {
                let (pixel, c) = (index / channels, index % channels);
                [pixel / width / height, c, pixel / width % height, pixel % width]
            }
        }
    }

    fn x_at(&self, coordinates: [usize; 4]) -> usize {
        self.at(self.spec.in_channels, self.sizes.input, coordinates)
    }

    fn y_at(&self, coordinates: [usize; 4]) -> usize {
        self.at(self.spec.out_channels, self.sizes.output, coordinates)
    }

    fn group_channels(&self) -> [usize; 2] {
        [self.spec.in_channels / self.spec.groups, self.spec.out_channels / self.spec.groups]
    }

    /// Where the weight of output channel `oc` and the `g_ic`-th input channel of its group stands.
    fn w_at(&self, oc: usize, g_ic: usize, kh: usize, kw: usize) -> usize {
        ((oc * self.group_channels()[0] + g_ic) * self.spec.kernel[0] + kh) * self.spec.kernel[1] + kw
    }

    /// The input row (axis 0) or column (axis 1) that tap `k` of output `o` reads, unless it is padding.
    fn input(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let before = [self.spec.padding.top, self.spec.padding.left][axis];
        let i = (o * self.spec.stride[axis] + k * self.spec.dilation[axis]).checked_sub(before)?;
        (i < self.sizes.input[axis]).then_some(i)
    }

    /// The output row or column whose tap `k` reads input `i`, if there is one.
    fn output(&self, axis: usize, i: usize, k: usize) -> Option<usize> {
        let before = [self.spec.padding.top, self.spec.padding.left][axis];
        let distance = (i + before).checked_sub(k * self.spec.dilation[axis])?;
        let o = distance / self.spec.stride[axis];
        (distance % self.spec.stride[axis] == 0 && o < self.sizes.output[axis]).then_some(o)
    }

    /// One output: `y = x * w + bias`.
    pub fn forward(&self, index: usize, x: &[f32], weights: &[f32], bias: &[f32]) -> Expected {
        let [n, oc, oh, ow] = self.coordinates(self.spec.out_channels, self.sizes.output, index);
        let [group_in, group_out] = self.group_channels();
        let mut sum = Expected::new(index);
        sum.add(f64::from(bias[oc]));
        for g_ic in 0..group_in {
            let ic = oc / group_out * group_in + g_ic;
            for kh in 0..self.spec.kernel[0] {
                let Some(ih) = self.input(0, oh, kh) else { continue };
                for kw in 0..self.spec.kernel[1] {
                    let Some(iw) = self.input(1, ow, kw) else { continue };
                    let (a, b) = (x[self.x_at([n, ic, ih, iw])], weights[self.w_at(oc, g_ic, kh, kw)]);
                    sum.add(f64::from(a) * f64::from(b));
                }
            }
        }
        sum
    }

    /// One element of the gradient of the input.
    pub fn backward_data(&self, index: usize, dy: &[f32], weights: &[f32]) -> Expected {
        let [n, ic, ih, iw] = self.coordinates(self.spec.in_channels, self.sizes.input, index);
        let [group_in, group_out] = self.group_channels();
        let (group, g_ic) = (ic / group_in, ic % group_in);
        let mut sum = Expected::new(index);
        for oc in group * group_out..(group + 1) * group_out {
            for kh in 0..self.spec.kernel[0] {
                let Some(oh) = self.output(0, ih, kh) else { continue };
                for kw in 0..self.spec.kernel[1] {
                    let Some(ow) = self.output(1, iw, kw) else { continue };
                    let (a, b) = (dy[self.y_at([n, oc, oh, ow])], weights[self.w_at(oc, g_ic, kh, kw)]);
                    sum.add(f64::from(a) * f64::from(b));
                }
            }
        }
        sum
    }

    /// One element of the gradient of the weights.
    pub fn backward_weights(&self, index: usize, x: &[f32], dy: &[f32]) -> Expected {
        let [kernel_height, kernel_width] = self.spec.kernel;
        let [group_in, group_out] = self.group_channels();
        let (kh, kw) = (index / kernel_width % kernel_height, index % kernel_width);
        let filter = index / (kernel_width * kernel_height);
        let (oc, ic) = (filter / group_in, filter / group_in / group_out * group_in + filter % group_in);
        let mut sum = Expected::new(index);
        for n in 0..self.shape.batch {
            for oh in 0..self.sizes.output[0] {
                let Some(ih) = self.input(0, oh, kh) else { continue };
                for ow in 0..self.sizes.output[1] {
                    let Some(iw) = self.input(1, ow, kw) else { continue };
                    let (a, b) = (dy[self.y_at([n, oc, oh, ow])], x[self.x_at([n, ic, ih, iw])]);
                    sum.add(f64::from(a) * f64::from(b));
                }
            }
        }
        sum
    }

    /// One element of the gradient of the bias.
    pub fn backward_bias(&self, oc: usize, dy: &[f32]) -> Expected {
        let mut sum = Expected::new(oc);
        for n in 0..self.shape.batch {
            for oh in 0..self.sizes.output[0] {
                for ow in 0..self.sizes.output[1] {
                    sum.add(f64::from(dy[self.y_at([n, oc, oh, ow])]));
                }
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::conv::Padding;
    use kernels::reference;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 19) as f32 - 9.0).collect()
    }

    fn doubles(from: &[f32]) -> Vec<f64> {
        from.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn every_element_agrees_with_the_reference() {
        let lopsided = Padding { top: 2, bottom: 0, left: 1, right: 3 };
        let specs = [
            Conv2dSpec::new(3, 4, [3, 2]),
            Conv2dSpec::new(4, 6, [2, 3]).stride([2, 3]).padding(lopsided).dilation([2, 1]).groups(2),
            Conv2dSpec::new(3, 6, [3, 3]).padding(Padding::all(4)).groups(3).layout(Layout::Nhwc),
        ];
        let shape = Shape::new(2, 7, 5);
        for spec in specs {
            let definition = Definition::new(spec, shape).unwrap();
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (numbers(sizes.x_len, 1), numbers(sizes.w_len, 2));
            let (dy, bias) = (numbers(sizes.y_len, 3), numbers(spec.out_channels, 4));
            let [x64, w64, dy64, bias64] = [&x, &w, &dy, &bias].map(|v| doubles(v));

            let mut y = vec![0.0; sizes.y_len];
            reference::conv2d_forward(&spec, shape, &x64, &w64, Some(&bias64), None, &mut y).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy64, &w64, &mut dx).unwrap();
            let mut dw = vec![0.0; sizes.w_len];
            reference::conv2d_backward_weights(&spec, shape, &x64, &dy64, &mut dw).unwrap();
            let mut db = vec![0.0; spec.out_channels];
            reference::conv2d_backward_bias(&spec, shape, &dy64, &mut db).unwrap();

            let values = |len: usize, at: &dyn Fn(usize) -> Expected| (0..len).map(|i| at(i).value).collect::<Vec<_>>();
            assert_eq!(values(sizes.y_len, &|i| definition.forward(i, &x, &w, &bias)), y, "{spec}");
            assert_eq!(values(sizes.x_len, &|i| definition.backward_data(i, &dy, &w)), dx, "{spec}");
            assert_eq!(values(sizes.w_len, &|i| definition.backward_weights(i, &x, &dy)), dw, "{spec}");
            assert_eq!(values(spec.out_channels, &|i| definition.backward_bias(i, &dy)), db, "{spec}");
        }
    }

    #[test]
    fn the_tolerance_grows_with_the_terms_and_with_their_size() {
        let mut small = Expected::new(0);
        small.add(1.0);
        let mut large = small;
        large.add(-1.0);
        assert!(large.value == 0.0 && large.tolerance() > 2.0 * small.tolerance());
        assert!(small.tolerance() >= f64::from(f32::EPSILON));
    }
}
