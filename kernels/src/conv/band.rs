//! A few rows of an image, copied once with their padding and split into phases, so that every tap is a shift.
//!
//! ```text
//! for each channel of a block, for each phase:
//!
//!        ┌ extra columns ┐
//!      0 0 0 0 0 0 0 0 0 0      rows + extra[0] rows of columns + extra[1] elements,
//!      0 . . . . . . . . 0      zeros where the window hangs over the image
//!      0 . . . . . . . . 0
//! ```
//!
//! Result `(r, c)` of a tap is element `(r + shift[0], c + shift[1])` of the tap's phase. So the results of
//! neighbouring pixels are neighbours, and the whole band is read at `pixel + offset[tap]`.

use super::slide::Slide;
use crate::simd::Simd;

/// The layout of a band in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BandLayout {
    /// Elements from one row to the next.
    pub pitch: usize,
    /// Elements of a phase of one channel.
    pub phase_len: usize,
    /// Elements of a channel.
    pub channel_len: usize,
}

impl BandLayout {
    /// For `rows` x `columns` results.
    pub fn new(slide: &Slide, rows: usize, columns: usize) -> Self {
        // Sizes that saturate are beyond every limit, and no band is made of them.
        let pitch = columns.saturating_add(slide.extra[1]);
        let phase_len = pitch.saturating_mul(rows.saturating_add(slide.extra[0]));
        Self { pitch, phase_len, channel_len: phase_len.saturating_mul(slide.phases.len()) }
    }

    /// The image itself as a band that holds all of its rows, if no tap leaves the image and its stride is 1.
    pub fn in_place(slide: &Slide, in_size: [usize; 2], grid: [usize; 2]) -> Option<Self> {
        let inside = (0..2).all(|axis| {
            let last = slide.first_shift[axis] as i128 + grid[axis] as i128 + slide.extra[axis] as i128;
            slide.stride[axis] == 1 && slide.first_shift[axis] >= 0 && last <= in_size[axis] as i128
        });
        let len = in_size[0].saturating_mul(in_size[1]);
        inside.then_some(Self { pitch: in_size[1], phase_len: len, channel_len: len })
    }

    /// The element of the image where result `(0, 0)` starts, if the image is read in place.
    pub fn origin(&self, slide: &Slide) -> usize {
        slide.first_shift[0].max(0) as usize * self.pitch + slide.first_shift[1].max(0) as usize
    }
}

/// Rows of an image in which every element of a patch has its offset.
pub(super) trait Offsets: Copy + Sync {
    /// From a patch's first element to that of a tap.
    fn offset(&self, slide: &Slide, tap: usize) -> usize;

    /// From channel to channel.
    fn channel_step(&self) -> usize;

    /// Writes the offset of each `(channel, tap)`, in this order, into `offsets`: a call of a small layer takes no
    /// longer than a division for each of them.
    fn fill_offsets(&self, slide: &Slide, offsets: &mut [usize]) {
        let taps = slide.taps.len();
        for (tap, offset) in offsets.iter_mut().take(taps).enumerate() {
            *offset = self.offset(slide, tap);
        }
        for index in taps..offsets.len() {
            offsets[index] = offsets[index - taps] + self.channel_step();
        }
    }
}

impl Offsets for BandLayout {
    fn offset(&self, slide: &Slide, tap: usize) -> usize {
        let tap = slide.taps[tap];
        let [row, column] = tap.shift;
        tap.phase * self.phase_len + row * self.pitch + column
    }

    fn channel_step(&self) -> usize {
        self.channel_len
    }
}

/// Copies the band of results from `first` on, `[row, column]`, of one channel.
///
/// # Safety
/// - `plane` is readable for `in_size[0] * in_size[1]` elements.
/// - `to` is writable for `layout.channel_len` elements, and overlaps nothing of `plane`.
#[inline(always)]
pub(super) unsafe fn fill_channel<S: Simd>(
    simd: S,
    slide: &Slide,
    layout: BandLayout,
    plane: *const f32,
    in_size: [usize; 2],
    first: [usize; 2],
    to: *mut f32,
) {
    let [height, width] = in_size.map(|size| size as isize);
    let [first_row, first_column] = first.map(|first| first as isize);
    let [row_stride, column_stride] = slide.stride.map(|stride| stride as isize);
    let rows = layout.phase_len / layout.pitch;
    for (index, &[row_phase, column_phase]) in slide.phases.iter().enumerate() {
        // Elements [left, right) of a row lie inside of the image: 0 <= (j + first_shift) * stride + phase < width.
        let pixel = |j: isize| (first_column + j + slide.first_shift[1]) * column_stride + column_phase as isize;
        let pitch = layout.pitch as isize;
        let left =
            (-pixel(0)).max(0).div_euclid(column_stride) + ((-pixel(0)).max(0).rem_euclid(column_stride) > 0) as isize;
        let left = left.min(pitch);
        let right = (width - pixel(0) + column_stride - 1).div_euclid(column_stride).clamp(left, pitch);
        for i in 0..rows {
            // SAFETY: row `i` of this phase is inside of the channel; the columns read are inside of the image.
            unsafe {
                let row = to.add(index * layout.phase_len + i * layout.pitch);
                let ih = (first_row + i as isize + slide.first_shift[0]) * row_stride + row_phase as isize;
                if ih < 0 || ih >= height || left == right {
                    zero_run(simd, row, layout.pitch);
                    continue;
                }
                zero_run(simd, row, left as usize);
                let from = plane.offset(ih * width + pixel(left));
                copy_run(simd, from, column_stride as usize, row.offset(left), (right - left) as usize);
                zero_run(simd, row.offset(right), (pitch - right) as usize);
            }
        }
    }
}

/// # Safety
/// - `to .. to + len` is writable.
#[inline(always)]
pub(super) unsafe fn zero_run<S: Simd>(simd: S, to: *mut f32, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, and no more than `len - done` lanes are written.
        unsafe { simd.store_first(to.add(done), len - done, simd.zero()) };
        done += S::LANES;
    }
}

/// Copies `len` elements that are `stride` apart.
///
/// # Safety
/// - `from[i * stride]` is readable and `to[i]` writable for `i < len`.
#[inline(always)]
pub(super) unsafe fn copy_run<S: Simd>(simd: S, from: *const f32, stride: usize, to: *mut f32, len: usize) {
    let mut done = 0;
    // SAFETY: every access is below `len`, or `(len - 1) * stride + 1` elements of the source.
    unsafe {
        match stride {
            1 => {
                while done + S::LANES <= len {
                    simd.store(to.add(done), simd.load(from.add(done)));
                    done += S::LANES;
                }
                if done < len {
                    simd.store_first(to.add(done), len - done, simd.load_first(from.add(done), len - done));
                }
                return;
            }
            // Vectors of the source hold its first `(len - done - 1) * stride + 1` elements: the last may end the
            // source.
            2 => {
                while done < len {
                    let (p, rest) = (from.add(2 * done), 2 * (len - done) - 1);
                    let (a, b) = if rest >= 2 * S::LANES {
                        (simd.load(p), simd.load(p.add(S::LANES)))
                    } else {
                        let b = p.wrapping_add(S::LANES);
                        (simd.load_first(p, rest), simd.load_first(b, rest.saturating_sub(S::LANES)))
                    };
                    store_some(simd, to.add(done), len - done, simd.even_odd(a, b).0);
                    done += S::LANES;
                }
                return;
            }
            4 => {
                while done < len {
                    let (p, rest) = (from.add(4 * done), 4 * (len - done) - 3);
                    let mut quarters = [simd.zero(); 4];
                    for (i, quarter) in quarters.iter_mut().enumerate() {
                        let (p, rest) = (p.wrapping_add(i * S::LANES), rest.saturating_sub(i * S::LANES));
                        *quarter = if rest >= S::LANES { simd.load(p) } else { simd.load_first(p, rest) };
                    }
                    let [a, b, c, d] = quarters;
                    let (even, odd) = (simd.even_odd(a, b).0, simd.even_odd(c, d).0);
                    store_some(simd, to.add(done), len - done, simd.even_odd(even, odd).0);
                    done += S::LANES;
                }
                return;
            }
            _ => {}
        }
        while done < len {
            *to.add(done) = *from.add(done * stride);
            done += 1;
        }
    }
}

/// Writes elements of two runs by turns, `len` in all: `even[0], odd[0], even[1], odd[1], ...`
///
/// # Safety
/// - `even` is readable for half of `len`, rounded up, `odd` for half of it, rounded down; `to` is writable for `len`.
#[inline(always)]
pub(super) unsafe fn interleave_runs<S: Simd>(simd: S, even: *const f32, odd: *const f32, to: *mut f32, len: usize) {
    let (mut done, mut rest) = (0, len);
    // SAFETY: the caller's contract; no more than `rest` elements are written, from half as many of each run.
    unsafe {
        while rest >= 2 * S::LANES {
            let (low, high) = simd.interleave(simd.load(even.add(done)), simd.load(odd.add(done)));
            simd.store(to.add(2 * done), low);
            simd.store(to.add(2 * done + S::LANES), high);
            (done, rest) = (done + S::LANES, rest - 2 * S::LANES);
        }
        if rest > 0 {
            let even = simd.load_first(even.add(done), rest.div_ceil(2));
            let odd = simd.load_first(odd.wrapping_add(done), rest / 2);
            let (low, high) = simd.interleave(even, odd);
            simd.store_first(to.add(2 * done), rest, low);
            simd.store_first(to.wrapping_add(2 * done + S::LANES), rest.saturating_sub(S::LANES), high);
        }
    }
}

/// Writes the first `n` lanes, by a plain store if that is all of them: a masked one takes longer on some CPUs.
///
/// # Safety
/// - `to` is writable for `min(n, LANES)` elements.
#[inline(always)]
unsafe fn store_some<S: Simd>(simd: S, to: *mut f32, n: usize, v: S::F) {
    // SAFETY: the caller's contract.
    unsafe { if n >= S::LANES { simd.store(to, v) } else { simd.store_first(to, n, v) } }
}
