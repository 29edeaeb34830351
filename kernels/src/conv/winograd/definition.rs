//! An output by definition, in the order of a direct convolution's sums, for results that are not finite.

use super::{Context, Direction, Winograd};
use crate::conv::spec::Layout;

impl Context<'_> {
    /// An output as the loops of a lecture compute it, before bias and activation: for results that are not finite.
    pub(super) fn by_definition(&self, image: usize, channel: usize, [row, column]: [usize; 2]) -> f32 {
        let spec = &self.plan.spec;
        let [kernel_height, kernel_width] = spec.kernel;
        let Winograd { in_channels, out_channels, .. } = *self.plan;
        let (group, oc) = (channel / out_channels, channel % out_channels);
        let all = self.plan.groups * in_channels;
        let [height, width] = self.in_size;
        let padding = [spec.padding.top, spec.padding.left];
        // The input that an output meets at a tap, if there is one.
        let met = |axis: usize, output: usize, tap: usize| {
            let (stride, before) = (spec.stride[axis], padding[axis]);
            let tap = tap * spec.dilation[axis];
            let input = match self.plan.direction {
                Direction::Forward => (output * stride + tap).checked_sub(before),
                Direction::BackwardData => (output + tap)
                    .checked_sub((spec.kernel[axis] - 1) * spec.dilation[axis] - before)
                    .filter(|at| at.is_multiple_of(stride))
                    .map(|at| at / stride),
            };
            input.filter(|&input| input < self.in_size[axis])
        };
        let mut sum = 0.0f32;
        for ic in 0..in_channels {
            for kh in 0..kernel_height {
                let Some(ih) = met(0, row, kh) else { continue };
                for kw in 0..kernel_width {
                    let Some(iw) = met(1, column, kw) else { continue };
                    let c = group * in_channels + ic;
                    let x = match self.plan.layout {
                        Layout::Nchw => self.input[((image * all + c) * height + ih) * width + iw],
                        Layout::Nhwc => self.input[((image * height + ih) * width + iw) * all + c],
                    };
                    let tap = kh * kernel_width + kw;
                    let taps = kernel_height * kernel_width;
                    let w = match self.plan.direction {
                        Direction::Forward => ((group * out_channels + oc) * in_channels + ic) * taps + tap,
                        Direction::BackwardData => {
                            ((group * in_channels + ic) * out_channels + oc) * taps + taps - 1 - tap
                        }
                    };
                    sum = self.plan.isa.mul_add(x, self.weights[w], sum);
                }
            }
        }
        sum
    }
}
