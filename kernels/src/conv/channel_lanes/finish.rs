//! The last step of a panel: where its results go, and bias, residual and activation on the way.

use super::{ChannelLanes, Context};
use crate::activation::apply;
use crate::conv::spec::Layout;
use crate::simd::Simd;

/// Pixels that are transposed before any of them is written: a few cache lines of each channel's plane.
const BLOCK_PIXELS: usize = 64;

/// The last step of a panel: bias, residual, activation, store.
pub(super) struct Finish<'a> {
    pub context: &'a Context<'a, ChannelLanes>,
    pub n: usize,
    /// The first pixel of the band in the grid.
    pub first_pixel: usize,
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
        let pixel = self.first_pixel + pixel;
        let (row, column) = (pixel / columns, pixel % columns);
        let at = |axis: usize, i: usize| slide.out_start[axis] + i * slide.out_step[axis];
        at(0, row) * self.context.out_size[1] + at(1, column)
    }

    /// Writes the results of `pixels` pixels.
    ///
    /// # Safety
    /// - `sums` holds `pixels` rows of `row_len`; the pixels and channels of the output are this task's.
    #[inline(always)]
    pub unsafe fn write<S: Simd>(&self, simd: S, sums: *const f32, pixels: usize) {
        // SAFETY: passed on.
        unsafe {
            match self.context.plan.layout {
                Layout::Nchw if self.context.out_size != [1, 1] => self.transposed(simd, sums, pixels),
                // Planes of a single result lie as channels do.
                _ => self.pixels(simd, sums, pixels),
            }
        }
    }

    /// NHWC: each pixel's channels are neighbours.
    ///
    /// # Safety
    /// - As for [`Finish::write`].
    #[inline(always)]
    unsafe fn pixels<S: Simd>(&self, simd: S, sums: *const f32, pixels: usize) {
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
    /// - As for [`Finish::write`].
    #[inline(always)]
    unsafe fn transposed<S: Simd>(&self, simd: S, sums: *const f32, pixels: usize) {
        let context = self.context;
        let slide = &context.plan.slide;
        let plane = context.out_size[0] * context.out_size[1];
        let channels = slide.out_channels * context.plan.groups;
        // Pixels of the band are neighbours in the output unless it is computed in phases.
        let dense = slide.out_step == [1, 1] && context.cut.grid[1] == context.out_size[1];
        // Written by narrower stores than it is read, so it is read when those have long left their queue.
        let mut block = [0.0f32; 16 * BLOCK_PIXELS];
        let mut first = 0;
        while first < pixels {
            let count = (pixels - first).min(BLOCK_PIXELS);
            let mut lane = 0;
            while lane < self.channels {
                let mut pixel = 0;
                while pixel < count {
                    let from = sums.wrapping_add((first + pixel) * self.row_len + lane);
                    // SAFETY: so many pixels of `LANES` channels are read; the block has `LANES` rows of
                    // `BLOCK_PIXELS`.
                    unsafe {
                        if pixel + S::LANES <= count {
                            let to = block.as_mut_ptr().add(pixel);
                            simd.transpose(from, self.row_len as isize, to, BLOCK_PIXELS as isize);
                        } else {
                            for p in 0..count - pixel {
                                for l in 0..S::LANES {
                                    block[l * BLOCK_PIXELS + pixel + p] = *from.add(p * self.row_len + l);
                                }
                            }
                        }
                    }
                    pixel += S::LANES;
                }
                for l in 0..S::LANES.min(self.channels - lane) {
                    let channel = self.oc + lane + l;
                    let start = (self.n * channels + channel) * plane;
                    let row = &block[l * BLOCK_PIXELS..][..BLOCK_PIXELS];
                    // SAFETY: the pixels are this task's.
                    unsafe {
                        match dense {
                            true => self.run(simd, row, count, channel, start + self.place(first)),
                            false => self.scattered(simd, row, first, count, channel, start),
                        }
                    }
                }
                lane += S::LANES;
            }
            first += count;
        }
    }

    /// Writes a run of `count` neighbouring results of a channel, the first of them element `at` of the output.
    ///
    /// # Safety
    /// - `count` elements of the output are this task's from `at` on; the row has as many, in whole vectors.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S, row: &[f32], count: usize, channel: usize, at: usize) {
        let post = self.context.post;
        let bias = post.bias.map(|bias| simd.splat(bias[channel]));
        let mut done = 0;
        while done < count {
            let left = count - done;
            // SAFETY: `left` elements are left on all sides.
            unsafe {
                let mut value = simd.load(row.as_ptr().add(done));
                if let Some(bias) = bias {
                    value = simd.add(value, bias);
                }
                if let Some(residual) = post.residual {
                    value = simd.add(value, simd.load_first(residual[at + done..].as_ptr(), left));
                }
                let value = apply(simd, post.activation, value);
                let to = self.context.output.add(at + done);
                if left >= S::LANES { simd.store(to, value) } else { simd.store_first(to, left, value) }
            }
            done += S::LANES;
        }
    }

    /// Writes `count` results of a channel from pixel `first` of the band on, each at its own place in the plane that
    /// begins at `start`.
    ///
    /// # Safety
    /// - The pixels are this task's; the row has `count` elements, in whole vectors.
    #[inline(always)]
    unsafe fn scattered<S: Simd>(
        &self,
        simd: S,
        row: &[f32],
        first: usize,
        count: usize,
        channel: usize,
        start: usize,
    ) {
        let post = self.context.post;
        let mut done = 0;
        while done < count {
            let lanes = (count - done).min(S::LANES);
            let mut line = [0.0f32; 16];
            // SAFETY: whole vectors of the row and the line, single elements of the rest.
            unsafe {
                let mut value = simd.load(row.as_ptr().add(done));
                if let Some(bias) = post.bias {
                    value = simd.add(value, simd.splat(bias[channel]));
                }
                if let Some(residual) = post.residual {
                    for p in 0..lanes {
                        line[p] = residual[start + self.place(first + done + p)];
                    }
                    value = simd.add(value, simd.load(line.as_ptr()));
                }
                simd.store(line.as_mut_ptr(), apply(simd, post.activation, value));
                for p in 0..lanes {
                    *self.context.output.add(start + self.place(first + done + p)) = line[p];
                }
            }
            done += S::LANES;
        }
    }
}
