//! The last step of a panel: where its results go, and bias, residual and activation on the way.

use super::Context;
use crate::activation::apply;
use crate::simd::Simd;

/// The last step of a panel: bias, residual, activation, store.
pub(super) struct Finish<'a> {
    pub context: &'a Context<'a>,
    pub n: usize,
    pub first_row: usize,
    pub oc: usize,
    pub channels: usize,
    pub row_len: usize,
}

impl Finish<'_> {
    /// Where a pixel of the band stands in a plane of the output.
    #[inline(always)]
    fn place(&self, pixel: usize) -> usize {
        let slide = &self.context.plan.slide;
        let columns = self.context.cut.grid[1];
        let (row, column) = (self.first_row + pixel / columns, pixel % columns);
        let at = |axis: usize, i: usize| slide.out_start[axis] + i * slide.out_step[axis];
        at(0, row) * self.context.out_size[1] + at(1, column)
    }

    /// NHWC: each pixel's channels are neighbours.
    ///
    /// # Safety
    /// - `sums` holds `pixels` rows of `row_len`; the pixels and channels of the output are this task's.
    #[inline(always)]
    pub unsafe fn pixels<S: Simd>(&self, simd: S, sums: *const f32, pixels: usize) {
        let context = self.context;
        let plane = context.out_size[0] * context.out_size[1];
        let channels = context.plan.slide.out_channels * context.plan.groups;
        for pixel in 0..pixels {
            let at = (self.n * plane + self.place(pixel)) * channels + self.oc;
            let mut lane = 0;
            while lane < self.channels {
                let lanes = self.channels - lane;
                // SAFETY: at most `lanes` elements of the pixel's channels are touched.
                unsafe {
                    let mut value = simd.load(sums.add(pixel * self.row_len + lane));
                    if let Some(bias) = context.post.bias {
                        value = simd.add(value, simd.load_first(bias[self.oc + lane..].as_ptr(), lanes));
                    }
                    if let Some(residual) = context.post.residual {
                        value = simd.add(value, simd.load_first(residual[at + lane..].as_ptr(), lanes));
                    }
                    let value = apply(simd, context.post.activation, value);
                    simd.store_first(context.output.add(at + lane), lanes, value);
                }
                lane += S::LANES;
            }
        }
    }

    /// NCHW: each channel's pixels are neighbours.
    ///
    /// # Safety
    /// - As for [`Finish::pixels`].
    #[inline(always)]
    pub unsafe fn transposed<S: Simd>(&self, simd: S, sums: *const f32, pixels: usize) {
        let context = self.context;
        let slide = &context.plan.slide;
        let plane = context.out_size[0] * context.out_size[1];
        let channels = slide.out_channels * context.plan.groups;
        // Pixels of the band are neighbours in the output unless it is computed in phases.
        let dense = slide.out_step == [1, 1] && context.cut.grid[1] == context.out_size[1];
        let mut block = [0.0f32; 16 * 16];
        let mut pixel = 0;
        while pixel < pixels {
            let count = (pixels - pixel).min(S::LANES);
            let mut lane = 0;
            while lane < self.channels {
                // SAFETY: `count` pixels of `LANES` channels are read; the block holds LANES x LANES.
                unsafe {
                    let from = sums.add(pixel * self.row_len + lane);
                    if count == S::LANES {
                        simd.transpose(from, self.row_len as isize, block.as_mut_ptr(), S::LANES as isize);
                    } else {
                        for p in 0..count {
                            for l in 0..S::LANES {
                                block[l * S::LANES + p] = *from.add(p * self.row_len + l);
                            }
                        }
                    }
                }
                for l in 0..S::LANES.min(self.channels - lane) {
                    let channel = self.oc + lane + l;
                    let start = (self.n * channels + channel) * plane;
                    // SAFETY: the pixels are this task's; at most `count` lanes are touched, one by one if they are apart.
                    unsafe {
                        let mut value = simd.load(block.as_ptr().add(l * S::LANES));
                        if let Some(bias) = context.post.bias {
                            value = simd.add(value, simd.splat(bias[channel]));
                        }
                        if dense {
                            let at = start + self.place(pixel);
                            if let Some(residual) = context.post.residual {
                                value = simd.add(value, simd.load_first(residual[at..].as_ptr(), count));
                            }
                            let value = apply(simd, context.post.activation, value);
                            simd.store_first(context.output.add(at), count, value);
                        } else {
                            if let Some(residual) = context.post.residual {
                                let mut line = [0.0f32; 16];
                                for p in 0..count {
                                    line[p] = residual[start + self.place(pixel + p)];
                                }
                                value = simd.add(value, simd.load(line.as_ptr()));
                            }
                            let mut line = [0.0f32; 16];
                            simd.store(line.as_mut_ptr(), apply(simd, context.post.activation, value));
                            for p in 0..count {
                                *context.output.add(start + self.place(pixel + p)) = line[p];
                            }
                        }
                    }
                }
                lane += S::LANES;
            }
            pixel += S::LANES;
        }
    }
}
