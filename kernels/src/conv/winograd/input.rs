//! The input transform: pixels, padding included, to `Bᵀ d B` of every tile of a block.
//!
//! ```text
//! for each vector of channels, each row of tiles, some tiles at a time:
//!     image ──► rows of pixels, channels in the lanes      NCHW: a small transposition; NHWC: as they are
//!               rows that the tiles above have seen are kept
//!     down the columns:   n rows ──► n rows                shared by tiles that overlap
//!     along the rows:     n columns ──► n columns
//!     ──► v[frequency][16 channels][tile][channel]
//! ```
//!
//! Lanes hold channels, so tiles at the border, and images of any size, cost no more than others.

use super::Context;
use super::cut::{Block, GROUP};
use super::points::{MOST, input};
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};

/// Transforms the channels `channels`, from a multiple of 16 on, of a block of tiles.
///
/// Whoever makes one vouches that block and channels are those of the context, that `v` has room for the block's
/// tiles of all channels, and that `scratch` has room for [`Cut::transform_scratch`](super::cut::Cut::transform_scratch)
/// floats.
pub(super) struct InputTransform<'a> {
    pub context: &'a Context<'a>,
    pub block: Block,
    pub channels: std::ops::Range<usize>,
    pub v: *mut f32,
    pub scratch: *mut f32,
}

impl Job for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, block, channels, v, scratch } = self;
        let cut = &context.cut;
        let [down, along] = context.plan.axes;
        let turned = scratch.wrapping_add(cut.rows_len);
        for first in channels.clone().step_by(S::LANES) {
            let count = S::LANES.min(channels.end - first);
            let v = v.wrapping_add(first / GROUP * cut.v_group + first % GROUP);
            for image in 0..block.images {
                for column in (0..block.columns).step_by(cut.chunk) {
                    let tiles = cut.chunk.min(block.columns - column);
                    let shown = tiles * along.outputs + along.taps - 1;
                    let pitch = row_pixels(shown, S::LANES) * S::LANES;
                    let left = (block.column + column) * along.outputs;
                    for row in 0..block.rows {
                        let top = (block.row + row) * down.outputs;
                        let known = if row == 0 { 0 } else { down.taps - 1 };
                        // SAFETY: the maker's promise: `points` rows of `pitch` fit twice into the scratch memory; the
                        // tile is one of the block's.
                        unsafe {
                            scratch.copy_from(scratch.add(down.outputs * pitch), known * pitch);
                            for i in known..down.points() {
                                let pixels = Pixels {
                                    context,
                                    image: block.image + image,
                                    channel: block.group * context.plan.in_channels + first,
                                    count,
                                    row: (top + i) as isize - context.plan.before[0] as isize,
                                    column: left as isize - context.plan.before[1] as isize,
                                    shown,
                                };
                                pixels.copy(simd, scratch.add(i * pitch));
                            }
                            let pass = Down { from: scratch, to: turned, pitch, len: shown * S::LANES };
                            let halves = match down.pairs {
                                0 => scratch,
                                1 => simd.call(Pass::<_, 1>(pass)),
                                2 => simd.call(Pass::<_, 2>(pass)),
                                _ => simd.call(Pass::<_, 3>(pass)),
                            };
                            let tile = (image * block.rows + row) * block.columns + column;
                            let to = v.add(tile * GROUP);
                            let pass = Along { context, from: halves, pitch, tiles, to };
                            match along.pairs {
                                0 => simd.call(Pass::<_, 0>(pass)),
                                1 => simd.call(Pass::<_, 1>(pass)),
                                2 => simd.call(Pass::<_, 2>(pass)),
                                _ => simd.call(Pass::<_, 3>(pass)),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `shown` pixels of a row of the padded image, of `count` channels from `channel` on.
struct Pixels<'a> {
    context: &'a Context<'a>,
    image: usize,
    channel: usize,
    count: usize,
    /// The first pixel; padding lies outside of the image.
    row: isize,
    column: isize,
    shown: usize,
}

impl Pixels<'_> {
    /// Writes `to[pixel][lane]`, zeros where padding or no channel is.
    ///
    /// # Safety
    /// - The image and the channels exist; `to` is writable for [`row_pixels`] rows of `LANES`.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self, simd: S, to: *mut f32) {
        let [height, width] = self.context.in_size;
        let outside = self.row < 0 || self.row >= height as isize;
        let first = (-self.column).clamp(0, self.shown as isize) as usize;
        let last = (width as isize - self.column).clamp(first as isize, self.shown as isize) as usize;
        let (first, last) = if outside { (0, 0) } else { (first, last) };
        // SAFETY: `first .. last` are the pixels inside of the image; the rest is the caller's contract.
        unsafe {
            for pixel in 0..first {
                simd.store(to.add(pixel * S::LANES), simd.zero());
            }
            if first < last {
                let row = self.row as usize;
                let column = (self.column + first as isize) as usize;
                match self.context.plan.layout {
                    Layout::Nchw => self.turn(simd, [row, column], last - first, to.add(first * S::LANES)),
                    Layout::Nhwc => self.gather(simd, [row, column], last - first, to.add(first * S::LANES)),
                }
            }
            for pixel in last..self.shown {
                simd.store(to.add(pixel * S::LANES), simd.zero());
            }
        }
    }

    /// From planes of channels: a block of `LANES` pixels at a time. Writes whole blocks.
    ///
    /// # Safety
    /// - As for [`Pixels::copy`], for `len` pixels inside of the image.
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, simd: S, [row, column]: [usize; 2], len: usize, to: *mut f32) {
        let context = self.context;
        let [height, width] = context.in_size;
        let all = context.plan.groups * context.plan.in_channels;
        let plane = height * width;
        let at = (self.image * all + self.channel) * plane + row * width + column;
        for pixel in (0..len).step_by(S::LANES) {
            let at = at + pixel;
            // SAFETY: whole blocks end inside of the input; of others only the pixels of the row are read.
            unsafe {
                let to = to.add(pixel * S::LANES);
                let from = context.input.as_ptr().add(at);
                if self.count == S::LANES && at + (S::LANES - 1) * plane + S::LANES <= context.input.len() {
                    simd.transpose(from, plane as isize, to, S::LANES as isize);
                    continue;
                }
                let mut block = [0.0f32; 16 * 16];
                for lane in 0..self.count {
                    let pixels = simd.load_first(from.add(lane * plane), len - pixel);
                    simd.store(block.as_mut_ptr().add(lane * S::LANES), pixels);
                }
                simd.transpose(block.as_ptr(), S::LANES as isize, to, S::LANES as isize);
            }
        }
    }

    /// From pixels of channels.
    ///
    /// # Safety
    /// - As for [`Pixels::copy`], for `len` pixels inside of the image.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, simd: S, [row, column]: [usize; 2], len: usize, to: *mut f32) {
        let context = self.context;
        let [height, width] = context.in_size;
        let all = context.plan.groups * context.plan.in_channels;
        let at = ((self.image * height + row) * width + column) * all + self.channel;
        for pixel in 0..len {
            // SAFETY: `count` channels of a pixel inside of the image are read.
            unsafe {
                let channels = simd.load_first(context.input.as_ptr().add(at + pixel * all), self.count);
                simd.store(to.add(pixel * S::LANES), channels);
            }
        }
    }
}

/// Room for a row of `shown` pixels: whatever the first of them inside of the image is, whole blocks may follow.
pub(super) fn row_pixels(shown: usize, lanes: usize) -> usize {
    shown + lanes - 1
}

/// A pass with `PAIRS` pairs of points.
struct Pass<P, const PAIRS: usize>(P);

/// Down the columns of a row of tiles. Returns where the result is.
struct Down {
    from: *const f32,
    to: *mut f32,
    pitch: usize,
    len: usize,
}

impl<const PAIRS: usize> Job for Pass<Down, PAIRS> {
    type Output = *mut f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> *mut f32 {
        let Down { from, to, pitch, len } = self.0;
        let points = 2 * PAIRS + 2;
        for at in (0..len).step_by(S::LANES) {
            // SAFETY: `points` rows of `len` floats are there.
            unsafe {
                let mut d = [simd.zero(); MOST];
                for i in 0..points {
                    d[i] = simd.load(from.add(i * pitch + at));
                }
                let v = input::<S, PAIRS>(simd, &d);
                for i in 0..points {
                    simd.store(to.add(i * pitch + at), v[i]);
                }
            }
        }
        to
    }
}

/// Along the rows of a row of tiles, to `v`.
struct Along<'a> {
    context: &'a Context<'a>,
    from: *const f32,
    pitch: usize,
    tiles: usize,
    to: *mut f32,
}

impl<const PAIRS: usize> Job for Pass<Along<'_>, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Along { context, from, pitch, tiles, to } = self.0;
        let (plane, [down, along]) = (context.cut.v_plane, context.plan.axes);
        let points = if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 };
        debug_assert_eq!(points, along.points());
        for i in 0..down.points() {
            for tile in 0..tiles {
                // SAFETY: the row holds the pixels of so many tiles, `v` every frequency of each.
                unsafe {
                    let from = from.add(i * pitch + tile * along.outputs * S::LANES);
                    let mut d = [simd.zero(); MOST];
                    for j in 0..points {
                        d[j] = simd.load(from.add(j * S::LANES));
                    }
                    let v = input::<S, PAIRS>(simd, &d);
                    for j in 0..points {
                        simd.store(to.add((i * points + j) * plane + tile * GROUP), v[j]);
                    }
                }
            }
        }
    }
}
