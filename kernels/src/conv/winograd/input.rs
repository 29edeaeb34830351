//! The input transform: pixels, padding included, to `Bᵀ d B` of every tile of a block; or, for the weights' gradient,
//! the outputs' gradients to `A d Aᵀ`.
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

use std::marker::PhantomData;
use std::ops::Range;

use super::axis::Axis;
use super::blocks::Block;
use super::points::MOST;
use super::scheme::{Scheme, Visit, with_forward, with_scheme};
use super::tiling::Tiling;
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};

/// An image as the transforms see it: a batch of padded images.
#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    pub values: &'a [f32],
    pub size: [usize; 2],
    /// Rows and columns of padding before it.
    pub before: [usize; 2],
    /// Channels of all groups.
    pub channels: usize,
    pub layout: Layout,
}

/// What a tile is transformed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    /// `Bᵀ d B` of all inputs of a tile, which neighbours share.
    Input,
    /// `A d Aᵀ` of the gradients of a tile's outputs.
    Spread,
}

/// Where transformed tiles go: `[frequency][panel of channels][tile][channel of the panel]`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub v: *mut f32,
    /// Tiles in front of the block's.
    pub before: usize,
    /// From frequency to frequency, and from panel to panel.
    pub plane: usize,
    pub panel: usize,
    /// Channels of a panel, and of the last one.
    pub width: usize,
    pub last_width: usize,
    /// Channels in all.
    pub channels: usize,
}

impl Place {
    /// Where the first tile of a vector of channels is, and the distance of the next.
    #[inline(always)]
    fn at(&self, channel: usize) -> (*mut f32, usize) {
        let (panel, within) = (channel / self.width, channel % self.width);
        let last = panel == (self.channels - 1) / self.width;
        let width = if last { self.last_width } else { self.width };
        (self.v.wrapping_add(panel * self.panel + self.before * width + within), width)
    }
}

/// Transforms the channels `channels`, from a multiple of 16 on, of a block of tiles.
///
/// Whoever makes one vouches that block and channels are those of the image, that there is place for the block's
/// tiles of all channels, and that `scratch` has room for twice [`rows_len`] of the chunk.
pub(super) struct InputTransform<'a> {
    pub image: Image<'a>,
    pub axes: [Axis; 2],
    /// Those of the outputs.
    pub tilings: [Tiling; 2],
    pub transform: Transform,
    pub block: Block,
    /// Cells of tiles side by side that are transformed at once.
    pub chunk: usize,
    /// The channel of the image that is number 0 of the `channels`.
    pub first_channel: usize,
    pub channels: Range<usize>,
    pub place: Place,
    pub scratch: *mut f32,
}

/// Rows of pixels that a tile sees, or those of what half a transform makes of them.
pub(super) const fn seen_rows(down: Axis) -> usize {
    let (points, inputs) = (down.points(), down.inputs());
    if points > inputs { points } else { inputs }
}

/// Floats of the pixels that a chunk of cells sees, or of what half a transform makes of them, for a vector of
/// channels.
pub(super) fn rows_len([down, along]: [Axis; 2], chunk: usize, lanes: usize) -> usize {
    seen_rows(down) * row_pixels(((chunk - 1) * along.step + along.inputs()) * along.apart, lanes) * lanes
}

impl Job for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { image, axes, tilings, transform, block, chunk, first_channel, channels, place, scratch } = self;
        let [down, along] = axes;
        // Rows and columns that a tile sees, and those from tile to tile.
        let [seen, steps] = match transform {
            Transform::Input => [axes.map(|axis| axis.inputs()), axes.map(|axis| axis.step)],
            Transform::Spread => [axes.map(|axis| axis.outputs); 2],
        };
        let turned = scratch.wrapping_add(rows_len(axes, chunk, S::LANES));
        let phases = tilings[1].phases;
        for first in channels.clone().step_by(S::LANES) {
            let count = S::LANES.min(channels.end - first);
            let (v, step) = place.at(first);
            for n in 0..block.images {
                for column in (0..block.columns).step_by(chunk * phases) {
                    let tiles = chunk.min((block.columns - column) / phases);
                    // Pixels of each phase, and of all that are seen.
                    let each = (tiles - 1) * steps[1] + seen[1];
                    let shown = (each - 1) * along.apart + phases;
                    let pitch = row_pixels(each * along.apart, S::LANES) * S::LANES;
                    let left = tilings[1].along(block.column + column, steps[1]);
                    for row in 0..block.rows {
                        let top = tilings[0].down(block.row + row, steps[0]);
                        // The tile above is the one before, but for the first of a phase.
                        let fresh = row == 0 || (block.row + row).is_multiple_of(tilings[0].tiles);
                        let known = if fresh { 0 } else { seen[0].saturating_sub(steps[0]) };
                        // SAFETY: the maker's promise: `seen_rows` rows of `pitch` fit twice into the scratch memory;
                        // the tile is one of the block's.
                        unsafe {
                            scratch.copy_from(scratch.wrapping_add(steps[0] * pitch), known * pitch);
                            for i in known..seen[0] {
                                let pixels = Pixels {
                                    image,
                                    n: block.image + n,
                                    channel: first_channel + first,
                                    count,
                                    row: (top + i * down.apart) as isize - image.before[0] as isize,
                                    column: left as isize - image.before[1] as isize,
                                    shown,
                                };
                                pixels.copy(simd, scratch.add(i * pitch));
                            }
                            let pass = Down { from: scratch, to: turned, pitch, phases, apart: along.apart, each };
                            let halves = by_scheme(simd, down, transform, pass);
                            let tile = (n * block.rows + row) * block.columns + column;
                            let to = v.add(tile * step);
                            let (rows, plane, across) = (down.points(), place.plane, steps[1]);
                            for phase in 0..phases {
                                let (from, to) = (halves.add(phase * each * S::LANES), to.add(phase * step));
                                let pass = Along { from, pitch, rows, across, tiles, to, plane, step: step * phases };
                                by_scheme(simd, along, transform, pass);
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
    image: Image<'a>,
    n: usize,
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
        let [height, width] = self.image.size;
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
                match self.image.layout {
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
        let Image { values, size: [height, width], channels: all, .. } = self.image;
        let plane = height * width;
        let at = (self.n * all + self.channel) * plane + row * width + column;
        for pixel in (0..len).step_by(S::LANES) {
            let at = at + pixel;
            // SAFETY: whole blocks end inside of the input; of others only the pixels of the row are read.
            unsafe {
                let to = to.add(pixel * S::LANES);
                let from = values.as_ptr().add(at);
                if self.count == S::LANES && at + (S::LANES - 1) * plane + S::LANES <= values.len() {
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
        let Image { values, size: [height, width], channels: all, .. } = self.image;
        let at = ((self.n * height + row) * width + column) * all + self.channel;
        for pixel in 0..len {
            // SAFETY: `count` channels of a pixel inside of the image are read.
            unsafe {
                let channels = simd.load_first(values.as_ptr().add(at + pixel * all), self.count);
                simd.store(to.add(pixel * S::LANES), channels);
            }
        }
    }
}

/// Room for a row of `shown` pixels: whatever the first of them inside of the image is, whole blocks may follow.
pub(super) fn row_pixels(shown: usize, lanes: usize) -> usize {
    shown + lanes - 1
}

/// A transform of a row of tiles along one of their axes.
trait Lines {
    type Output;

    /// Transforms what a tile sees to the points of `A`. The body of [`Pass`]: must be `#[inline(always)]`.
    fn run<S: Simd, A: Scheme, const SPREAD: bool>(self, simd: S) -> Self::Output;
}

/// A pass with one scheme, in a function of its own.
struct Pass<L, A, const SPREAD: bool>(L, PhantomData<A>);

impl<L: Lines, A: Scheme, const SPREAD: bool> Job for Pass<L, A, SPREAD> {
    type Output = L::Output;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> L::Output {
        self.0.run::<S, A, SPREAD>(simd)
    }
}

/// Calls the pass of a scheme.
struct Call<S, L, const SPREAD: bool>(S, L);

impl<S: Simd, L: Lines, const SPREAD: bool> Visit for Call<S, L, SPREAD> {
    type Output = L::Output;

    #[inline(always)]
    fn visit<A: Scheme>(self) -> L::Output {
        self.0.call(Pass::<L, A, SPREAD>(self.1, PhantomData))
    }
}

#[inline(always)]
fn by_scheme<S: Simd, L: Lines>(simd: S, axis: Axis, transform: Transform, lines: L) -> L::Output {
    match transform {
        Transform::Input => with_scheme(axis, Call::<S, L, false>(simd, lines)),
        Transform::Spread => with_forward(axis, Call::<S, L, true>(simd, lines)),
    }
}

/// What a tile sees, at the points of `A`.
#[inline(always)]
fn transform<S: Simd, A: Scheme, const SPREAD: bool>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
    if SPREAD { A::spread(simd, d) } else { A::input(simd, d) }
}

/// Values that a tile sees.
const fn seen<A: Scheme, const SPREAD: bool>() -> usize {
    if SPREAD { A::OUTPUTS } else { A::INPUTS }
}

/// Down the columns of a row of tiles, phase after phase. Returns where the result is.
struct Down {
    from: *const f32,
    to: *mut f32,
    pitch: usize,
    /// Phases, pixels from one of a phase to the next, and how many each has.
    phases: usize,
    apart: usize,
    each: usize,
}

impl Lines for Down {
    type Output = *const f32;

    #[inline(always)]
    fn run<S: Simd, A: Scheme, const SPREAD: bool>(self, simd: S) -> *const f32 {
        let Self { from, to, pitch, phases, apart, each } = self;
        if A::POINTS == 1 && apart == 1 {
            return from;
        }
        for phase in 0..phases {
            // SAFETY: the rows of pixels that a tile sees are there, and room for those of its points.
            unsafe {
                let (mut from, mut to) = (from.add(phase * S::LANES), to.add(phase * each * S::LANES));
                for _ in 0..each {
                    let mut d = [simd.zero(); MOST];
                    for i in 0..const { seen::<A, SPREAD>() } {
                        d[i] = simd.load(from.add(i * pitch));
                    }
                    let v = transform::<S, A, SPREAD>(simd, &d);
                    for i in 0..A::POINTS {
                        simd.store(to.add(i * pitch), v[i]);
                    }
                    from = from.wrapping_add(apart * S::LANES);
                    to = to.add(S::LANES);
                }
            }
        }
        to
    }
}

/// Along the rows of a row of tiles, to where they belong.
struct Along {
    from: *const f32,
    pitch: usize,
    /// Rows of a tile, and pixels from tile to tile.
    rows: usize,
    across: usize,
    tiles: usize,
    to: *mut f32,
    /// From frequency to frequency, and from tile to tile.
    plane: usize,
    step: usize,
}

impl Lines for Along {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, A: Scheme, const SPREAD: bool>(self, simd: S) {
        let Self { from, pitch, rows, across, tiles, to, plane, step } = self;
        for i in 0..rows {
            for tile in 0..tiles {
                // SAFETY: the row holds the pixels of so many tiles, and there is place for every frequency of each.
                unsafe {
                    let from = from.add(i * pitch + tile * across * S::LANES);
                    let mut d = [simd.zero(); MOST];
                    for j in 0..const { seen::<A, SPREAD>() } {
                        d[j] = simd.load(from.add(j * S::LANES));
                    }
                    let v = transform::<S, A, SPREAD>(simd, &d);
                    for j in 0..A::POINTS {
                        simd.store(to.add((i * A::POINTS + j) * plane + tile * step), v[j]);
                    }
                }
            }
        }
    }
}
