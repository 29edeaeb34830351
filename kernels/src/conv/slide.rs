//! A convolution as a window that slides over an image: the loops that forward and backward-data share.
//!
//! ```text
//! out[oc][start + step * (r, c)]  =  sum over ic, t of  w[oc][ic][t] * in[ic][stride * (r, c) + tap[t]]
//! ```
//!
//! - Forward: one slide over `x`; taps start at `-padding`, results land on every pixel of `y`.
//! - Backward-data: `stride` x `stride` slides over `dy` at most, one for each phase of `x`'s rows and columns. Each
//!   has the taps that reach its phase, a stride of 1, and results that land `stride` apart.
//!
//! With a stride, neighbouring results read pixels that are not neighbours. So the image is split into phases,
//! pixel `q * stride + phase` being number `q` of its phase, and within a phase a tap is a plain shift:
//!
//! ```text
//! row of the image, stride 2:   0 1 2 3 4 5 6 7      phase 0: 0 2 4 6      phase 1: 1 3 5 7
//! ```

use super::spec::Conv2dSpec;

/// Where a tap reads, in the phases of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    /// Index into [`Slide::phases`].
    pub phase: usize,
    /// Shift within the phase, from the smallest one: `[rows, columns]`.
    pub shift: [usize; 2],
    /// The tap's place in the filter: `kh * kernel_width + kw`.
    pub filter_index: usize,
}

/// The geometry of one slide, the same for every size of image.
#[derive(Clone, Debug)]
pub(super) struct Slide {
    /// Channels of a group that are read.
    pub in_channels: usize,
    /// Channels of a group that are computed.
    pub out_channels: usize,
    /// Distance of neighbouring windows in the image that is read.
    pub stride: [usize; 2],
    /// Phases that some tap reads: `[row, column]`, each below the stride.
    pub phases: Vec<[usize; 2]>,
    /// Taps in the order of the filter.
    pub taps: Vec<Tap>,
    /// The smallest shift of any tap within its phase.
    pub first_shift: [isize; 2],
    /// How much further the largest shift is.
    pub extra: [usize; 2],
    /// The first pixel that is computed.
    pub out_start: [usize; 2],
    /// The distance of the pixels that are computed.
    pub out_step: [usize; 2],
}

impl Slide {
    fn new(
        channels: [usize; 2],
        stride: [usize; 2],
        offsets: &[([isize; 2], usize)],
        out_start: [usize; 2],
        out_step: [usize; 2],
    ) -> Self {
        let split = |axis: usize, offset: isize| {
            let s = stride[axis] as isize;
            (offset.div_euclid(s), offset.rem_euclid(s) as usize)
        };
        let mut first_shift = [0; 2];
        let mut extra = [0; 2];
        for axis in 0..2 {
            let shifts = || offsets.iter().map(|(offset, _)| split(axis, offset[axis]).0);
            first_shift[axis] = shifts().min().unwrap_or(0);
            extra[axis] = (shifts().max().unwrap_or(0) - first_shift[axis]) as usize;
        }
        let mut phases = Vec::new();
        let mut taps = Vec::new();
        for &(offset, filter_index) in offsets {
            let ((row, row_phase), (column, column_phase)) = (split(0, offset[0]), split(1, offset[1]));
            let phase = [row_phase, column_phase];
            let index = phases.iter().position(|&p| p == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            let shift = [(row - first_shift[0]) as usize, (column - first_shift[1]) as usize];
            taps.push(Tap { phase: index, shift, filter_index });
        }
        let [in_channels, out_channels] = channels;
        Self { in_channels, out_channels, stride, phases, taps, first_shift, extra, out_start, out_step }
    }

    /// Where along an axis of `size` pixels a tap reads for result number `at`; nothing in the padding.
    pub fn position(&self, tap: &Tap, axis: usize, at: usize, size: usize) -> Option<usize> {
        let shift = self.first_shift[axis] + (at + tap.shift[axis]) as isize;
        let position = shift * self.stride[axis] as isize + self.phases[tap.phase][axis] as isize;
        usize::try_from(position).ok().filter(|&position| position < size)
    }

    /// The forward convolution. `spec` has been checked.
    pub fn forward(spec: &Conv2dSpec) -> Self {
        let [kernel_height, kernel_width] = spec.kernel;
        let mut offsets = Vec::with_capacity(kernel_height * kernel_width);
        for kh in 0..kernel_height {
            for kw in 0..kernel_width {
                let row = (kh * spec.dilation[0]) as isize - spec.padding.top as isize;
                let column = (kw * spec.dilation[1]) as isize - spec.padding.left as isize;
                offsets.push(([row, column], kh * kernel_width + kw));
            }
        }
        let channels = [spec.in_channels / spec.groups, spec.out_channels / spec.groups];
        Self::new(channels, spec.stride, &offsets, [0, 0], [1, 1])
    }

    /// The gradient of the input, a slide for each phase that some tap reaches. The gradient of the others is 0.
    pub fn backward_data(spec: &Conv2dSpec) -> Vec<Self> {
        let channels = [spec.out_channels / spec.groups, spec.in_channels / spec.groups];
        let before = [spec.padding.top, spec.padding.left];
        // Tap k of an axis connects input position i with output position (i + padding - k * dilation) / stride.
        let distance = |axis: usize, k: usize| (k * spec.dilation[axis]) as isize - before[axis] as isize;
        let phases = |axis: usize| {
            let stride = spec.stride[axis] as isize;
            let mut phases: Vec<isize> = (0..spec.kernel[axis]).map(|k| distance(axis, k).rem_euclid(stride)).collect();
            phases.sort_unstable();
            phases.dedup();
            phases
        };
        let reach = |axis: usize, phase: isize, k: usize| {
            let (distance, stride) = (phase - distance(axis, k), spec.stride[axis] as isize);
            (distance.rem_euclid(stride) == 0).then(|| distance.div_euclid(stride))
        };
        let mut slides = Vec::new();
        let columns = phases(1);
        for row_phase in phases(0) {
            for &column_phase in &columns {
                let mut offsets = Vec::new();
                for kh in 0..spec.kernel[0] {
                    for kw in 0..spec.kernel[1] {
                        if let (Some(row), Some(column)) = (reach(0, row_phase, kh), reach(1, column_phase, kw)) {
                            offsets.push(([row, column], kh * spec.kernel[1] + kw));
                        }
                    }
                }
                let start = [row_phase as usize, column_phase as usize];
                slides.push(Self::new(channels, [1, 1], &offsets, start, spec.stride));
            }
        }
        slides
    }

    /// Products of one output.
    pub fn depth(&self) -> usize {
        self.in_channels * self.taps.len()
    }

    /// How many pixels are computed along an axis of an image of `size`.
    pub fn grid(&self, axis: usize, size: usize) -> usize {
        size.saturating_sub(self.out_start[axis]).div_ceil(self.out_step[axis])
    }
}
