//! A few rows of an image, copied once with their padding, in the coordinates of the image.
//!
//! Where elements are broadcast one by one, a stride costs nothing, and the phases of [`super::band`] would be in the
//! way. Window `(r, c)` starts at element `(r * stride[0], c * stride[1])` of the band, and tap `t` is at a constant
//! distance from there:
//!
//! ```text
//! NCHW: [channel][row][column]        NHWC: [row][column][channel], only the channels of the block
//! ```

use super::band::{Offsets, copy_run, zero_run};
use super::slide::Slide;
use super::spec::Layout;
use crate::simd::Simd;

/// Distances between elements of a band, or of the image itself where it can stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageBand {
    pub rows: usize,
    pub columns: usize,
    pub channel_step: usize,
    pub row_step: usize,
    pub column_step: usize,
    pub len: usize,
}

impl ImageBand {
    /// A copy of `channels` channels for `rows` x `columns` windows, or `None` if its size overflows.
    pub fn copy(slide: &Slide, layout: Layout, channels: usize, rows: usize, columns: usize) -> Option<Self> {
        let rows = rows.checked_add(slide.extra[0])?.checked_mul(slide.stride[0])?;
        let columns = columns.checked_add(slide.extra[1])?.checked_mul(slide.stride[1])?;
        let len = rows.checked_mul(columns)?.checked_mul(channels)?;
        let (channel_step, row_step, column_step) = match layout {
            Layout::Nchw => (rows * columns, columns, 1),
            Layout::Nhwc => (1, columns * channels, channels),
        };
        Some(Self { rows, columns, channel_step, row_step, column_step, len })
    }

    /// The image itself, if no tap leaves it. `channels` are all channels of the image, of every group.
    pub fn in_place(
        slide: &Slide,
        layout: Layout,
        channels: usize,
        in_size: [usize; 2],
        grid: [usize; 2],
    ) -> Option<Self> {
        let inside = (0..2).all(|axis| {
            let reach = |&[row, column]: &[usize; 2]| [row, column][axis];
            let phase = slide.phases.iter().map(reach).max().unwrap_or(0);
            let last = (grid[axis].max(1) - 1 + slide.extra[axis]) * slide.stride[axis] + phase;
            slide.first_shift[axis] >= 0 && slide.first_shift[axis] as usize * slide.stride[axis] + last < in_size[axis]
        });
        let [rows, columns] = in_size;
        let (channel_step, row_step, column_step) = match layout {
            Layout::Nchw => (rows.saturating_mul(columns), columns, 1),
            Layout::Nhwc => (1, columns.saturating_mul(channels), channels),
        };
        inside.then_some(Self { rows, columns, channel_step, row_step, column_step, len: 0 })
    }

    /// The element of the image where the window of result `(0, 0)` starts.
    pub fn origin(&self, slide: &Slide) -> usize {
        slide.first_shift[0].max(0) as usize * slide.stride[0] * self.row_step
            + slide.first_shift[1].max(0) as usize * slide.stride[1] * self.column_step
    }

    /// Copies the rows for the windows from `first` on, `[row, column]`.
    ///
    /// # Safety
    /// - `image` points at the first channel of the block; the block's channels are readable over the whole image,
    ///   whose pixels hold `image_channels` channels.
    /// - `to` is writable for `len` elements of a layout made by [`ImageBand::copy`].
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(
        &self,
        simd: S,
        slide: &Slide,
        layout: Layout,
        channels: usize,
        image: *const f32,
        image_channels: usize,
        in_size: [usize; 2],
        first: [usize; 2],
        to: *mut f32,
    ) {
        let [height, width] = in_size.map(|size| size as isize);
        let [top, start] =
            [0, 1].map(|axis| (first[axis] as isize + slide.first_shift[axis]) * slide.stride[axis] as isize);
        // Columns [left, right) of the band lie inside of the image.
        let left = (-start).clamp(0, self.columns as isize);
        let right = (width - start).clamp(left, self.columns as isize);
        let planes = if layout == Layout::Nchw { channels } else { 1 };
        let step = self.column_step;
        for plane in 0..planes {
            for i in 0..self.rows {
                let ih = top + i as isize;
                // SAFETY: the row is inside of the band; what is read is inside of the image.
                unsafe {
                    let row = to.add(plane * self.channel_step + i * self.row_step);
                    if ih < 0 || ih >= height || left == right {
                        zero_run(simd, row, self.columns * step);
                        continue;
                    }
                    zero_run(simd, row, left as usize * step);
                    let columns = (right - left) as usize;
                    let middle = row.add(left as usize * step);
                    match layout {
                        Layout::Nchw => {
                            let from = image.offset((plane as isize * height + ih) * width + start + left);
                            copy_run(simd, from, 1, middle, columns);
                        }
                        Layout::Nhwc => {
                            let from = image.offset((ih * width + start + left) * image_channels as isize);
                            if step == image_channels {
                                copy_run(simd, from, 1, middle, columns * step);
                            } else {
                                for column in 0..columns {
                                    let from = from.add(column * image_channels);
                                    copy_run(simd, from, 1, middle.add(column * step), channels);
                                }
                            }
                        }
                    }
                    zero_run(simd, row.add(right as usize * step), (self.columns - right as usize) * step);
                }
            }
        }
    }
}

impl Offsets for ImageBand {
    fn offset(&self, slide: &Slide, tap: usize) -> usize {
        let tap = slide.taps[tap];
        let at = |axis: usize| tap.shift[axis] * slide.stride[axis] + slide.phases[tap.phase][axis];
        at(0) * self.row_step + at(1) * self.column_step
    }

    fn channel_step(&self) -> usize {
        self.channel_step
    }
}
