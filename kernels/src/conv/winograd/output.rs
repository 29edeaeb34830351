//! The output transform: products to `Aᵀ m A` of every tile of a block, then bias, residual and activation.
//!
//! ```text
//! m[frequency][panel][tile][channel] ──► for each vector of channels, each row of tiles:
//!     down the columns:   n rows ──► rows of outputs
//!     along the rows:     n columns ──► outputs       ──► finished[row][pixel][channel]
//!     results that are not finite again, by definition
//!     ──► y        NCHW: a small transposition; NHWC: as they are
//! ```
//!
//! Bias and ReLU are applied on registers where nothing stands between them and the output; else as the pixels leave.

use std::marker::PhantomData;

use super::Context;
use super::blocks::Block;
use super::points::MOST;
use super::scheme::{Scheme, Visit, with_scheme};
use crate::activation::{Activation, apply};
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};

/// Transforms the channels `channels`, from a whole vector on, of a block of tiles, whose products stand at `m`.
///
/// Whoever makes one vouches that block and channels are those of the context, that `m` holds their products with the
/// panel of `channels.start - skip` in front, that no other task writes these outputs, and that `scratch` has room for
/// [`Cut::transform_scratch`](super::cut::Cut::transform_scratch) floats.
pub(super) struct OutputTransform<'a> {
    pub context: &'a Context<'a>,
    pub block: Block,
    pub channels: std::ops::Range<usize>,
    /// Channels of `m` before these.
    pub skip: usize,
    pub m: *const f32,
    pub scratch: *mut f32,
}

impl Job for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, block, channels, skip, m, scratch } = self;
        let cut = &context.cut;
        let outputs = context.plan.axes.map(|axis| axis.outputs);
        let [height, width] = context.out_size;
        let [down, along] = cut.tilings;
        let left = along.along(block.column, outputs[1]);
        let columns = (block.columns / along.phases * outputs[1] * along.apart).min(width - left);
        let halves = scratch.wrapping_add(cut.finished_len);
        for first in channels.clone().step_by(S::LANES) {
            let place = skip + first - channels.start;
            let m = m.wrapping_add(place / cut.panel * cut.m_panel + place % cut.panel);
            for image in 0..block.images {
                for row in 0..block.rows {
                    let top = down.down(block.row + row, outputs[0]);
                    let rows = Rows {
                        context,
                        block,
                        m: m.wrapping_add((image * block.rows + row) * block.columns * cut.panel),
                        image: block.image + image,
                        channel: block.group * context.plan.out_channels + first,
                        count: S::LANES.min(channels.end - first),
                        top,
                        left,
                        size: [height.saturating_sub(top).div_ceil(down.apart).min(outputs[0]), columns],
                        finished: scratch,
                        halves,
                    };
                    // SAFETY: the maker's promise.
                    unsafe { rows.transform(simd) };
                }
            }
        }
    }
}

/// The outputs of a row of tiles, of a vector of channels.
#[derive(Clone, Copy)]
struct Rows<'a> {
    context: &'a Context<'a>,
    block: Block,
    /// The products of the first tile.
    m: *const f32,
    image: usize,
    /// The first channel, counted over all groups, and how many there are.
    channel: usize,
    count: usize,
    /// Where the outputs lie in the image, and how many rows and columns of them there are.
    top: usize,
    left: usize,
    size: [usize; 2],
    /// `[row][pixel][lane]`, without a gap.
    finished: *mut f32,
    halves: *mut f32,
}

impl Rows<'_> {
    /// Products to outputs.
    ///
    /// # Safety
    /// - The fields hold what they say, and the scratch memory has room.
    #[inline(always)]
    unsafe fn transform<S: Simd>(&self, simd: S) {
        let post = self.context.post;
        let nchw = self.context.plan.layout == Layout::Nchw;
        let on_registers =
            nchw && post.residual.is_none() && matches!(post.activation, Activation::Identity | Activation::Relu);
        // SAFETY: passed on.
        unsafe {
            let finite = self.passes(simd, on_registers);
            if on_registers && finite {
                return self.turn(simd);
            }
            if !finite {
                if on_registers {
                    self.passes(simd, false);
                }
                self.repair::<S>();
            }
            match self.context.plan.layout {
                Layout::Nchw => self.turn_and_finish(simd),
                Layout::Nhwc => self.finish(simd),
            }
        }
    }

    /// Both halves of the transform; with bias and activation if `post`. Whether all sums are finite.
    ///
    /// # Safety
    /// - As for [`Rows::transform`].
    #[inline(always)]
    unsafe fn passes<S: Simd>(&self, simd: S, post: bool) -> bool {
        let context = self.context;
        let [down, along] = context.plan.axes;
        let mut finite = true;
        let chunk = context.cut.chunk * context.cut.tilings[1].phases;
        for column in (0..self.block.columns).step_by(chunk) {
            let tiles = column..self.block.columns.min(column + chunk);
            with_scheme(down, Call(simd, Down { rows: *self, tiles: tiles.clone() }));
            finite &= with_scheme(along, Call(simd, Along { rows: *self, tiles, post }));
        }
        finite
    }

    /// Computes again what is not finite.
    ///
    /// # Safety
    /// - As for [`Rows::transform`]; nothing is applied to the outputs yet.
    #[cold]
    #[inline(never)]
    unsafe fn repair<S: Simd>(&self) {
        let [rows, columns] = self.size;
        let apart = self.context.cut.tilings[0].apart;
        for pixel in 0..rows * columns {
            for lane in 0..self.count {
                // SAFETY: the pixel is finished.
                let at = unsafe { &mut *self.finished.add(pixel * S::LANES + lane) };
                if !at.is_finite() {
                    let place = [self.top + pixel / columns * apart, self.left + pixel % columns];
                    *at = self.context.by_definition(self.image, self.channel + lane, place);
                }
            }
        }
    }

    /// Runs of pixels that are neighbours in a plane of the output: where each starts in the plane, and its first pixel
    /// and their number among the finished ones.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let ([rows, columns], width) = (self.size, self.context.out_size[1]);
        let start = self.top * width + self.left;
        let pitch = width * self.context.cut.tilings[0].apart;
        let (count, len) = if columns == pitch { (1, rows * columns) } else { (rows, columns) };
        (0..count).map(move |run| [start + run * pitch, run * len, len])
    }

    /// Where the first channel's plane starts.
    #[inline(always)]
    fn plane(&self) -> [usize; 2] {
        let plan = self.context.plan;
        let plane = self.context.out_size[0] * self.context.out_size[1];
        [(self.image * plan.groups * plan.out_channels + self.channel) * plane, plane]
    }

    /// NCHW, when nothing is left to be applied.
    ///
    /// # Safety
    /// - As for [`Rows::transform`].
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, simd: S) {
        let [start, plane] = self.plane();
        let mut block = [0.0f32; 16 * 16];
        for [at, first, len] in self.runs() {
            for pixel in (0..len).step_by(S::LANES) {
                // SAFETY: the pixels are finished, with room for a whole block; they exist in the output.
                unsafe {
                    let from = self.finished.add((first + pixel) * S::LANES);
                    let to = self.context.output.add(start + at + pixel);
                    if self.count == S::LANES && len - pixel >= S::LANES {
                        simd.transpose(from, S::LANES as isize, to, plane as isize);
                        continue;
                    }
                    simd.transpose(from, S::LANES as isize, block.as_mut_ptr(), S::LANES as isize);
                    for lane in 0..self.count {
                        let v = simd.load(block.as_ptr().add(lane * S::LANES));
                        simd.store_first(to.add(lane * plane), len - pixel, v);
                    }
                }
            }
        }
    }

    /// NCHW, with bias, residual and activation.
    ///
    /// # Safety
    /// - As for [`Rows::transform`].
    #[inline(always)]
    unsafe fn turn_and_finish<S: Simd>(&self, simd: S) {
        let post = self.context.post;
        let [start, plane] = self.plane();
        let mut block = [0.0f32; 16 * 16];
        for [at, first, len] in self.runs() {
            for pixel in (0..len).step_by(S::LANES) {
                let left = len - pixel;
                // SAFETY: the pixels are finished, with room for a whole block; they exist in residual and output.
                unsafe {
                    let from = self.finished.add((first + pixel) * S::LANES);
                    simd.transpose(from, S::LANES as isize, block.as_mut_ptr(), S::LANES as isize);
                    for lane in 0..self.count {
                        let at = start + lane * plane + at + pixel;
                        let mut v = simd.load(block.as_ptr().add(lane * S::LANES));
                        if let Some(bias) = post.bias {
                            v = simd.add(v, simd.splat(bias[self.channel + lane]));
                        }
                        if let Some(residual) = post.residual {
                            v = simd.add(v, simd.load_first(residual[at..].as_ptr(), left));
                        }
                        v = apply(simd, post.activation, v);
                        simd.store_first(self.context.output.add(at), left, v);
                    }
                }
            }
        }
    }

    /// NHWC, with bias, residual and activation.
    ///
    /// # Safety
    /// - As for [`Rows::transform`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S) {
        let (plan, post) = (self.context.plan, self.context.post);
        let all = plan.groups * plan.out_channels;
        let image = self.image * self.context.out_size[0] * self.context.out_size[1];
        for [at, first, len] in self.runs() {
            for pixel in 0..len {
                let at = (image + at + pixel) * all + self.channel;
                // SAFETY: `count` channels of the pixel are there in bias, residual and output.
                unsafe {
                    let mut v = simd.load(self.finished.add((first + pixel) * S::LANES));
                    if let Some(bias) = post.bias {
                        v = simd.add(v, simd.load_first(bias[self.channel..].as_ptr(), self.count));
                    }
                    if let Some(residual) = post.residual {
                        v = simd.add(v, simd.load_first(residual[at..].as_ptr(), self.count));
                    }
                    v = apply(simd, post.activation, v);
                    simd.store_first(self.context.output.add(at), self.count, v);
                }
            }
        }
    }
}

/// One half of the transform of some tiles.
trait Half {
    type Output;

    /// The body of [`Pass`]: must be `#[inline(always)]`.
    fn run<S: Simd, A: Scheme>(self, simd: S) -> Self::Output;
}

/// A pass with one scheme, in a function of its own.
struct Pass<P, A>(P, PhantomData<A>);

impl<P: Half, A: Scheme> Job for Pass<P, A> {
    type Output = P::Output;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> P::Output {
        self.0.run::<S, A>(simd)
    }
}

/// Calls the pass of a scheme.
struct Call<S, P>(S, P);

impl<S: Simd, P: Half> Visit for Call<S, P> {
    type Output = P::Output;

    #[inline(always)]
    fn visit<A: Scheme>(self) -> P::Output {
        self.0.call(Pass::<P, A>(self.1, PhantomData))
    }
}

/// Down the columns of some tiles: to `halves[tile][output row][column point]`.
struct Down<'a> {
    rows: Rows<'a>,
    tiles: std::ops::Range<usize>,
}

impl Half for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, A: Scheme>(self, simd: S) {
        let Down { rows, tiles } = self;
        let cut = &rows.context.cut;
        let (plane, across) = (cut.m_plane, rows.context.plan.axes[1].points());
        let mut to = rows.halves;
        for tile in tiles {
            for j in 0..across {
                // SAFETY: the products of the block's tiles are there, and room for as many sums.
                unsafe {
                    let from = rows.m.add(tile * cut.panel + j * plane);
                    let mut m = [simd.zero(); MOST];
                    for i in 0..A::POINTS {
                        m[i] = simd.load(from.add(i * across * plane));
                    }
                    let y = A::output(simd, &m);
                    for r in 0..A::OUTPUTS {
                        simd.store(to.add((r * across + j) * S::LANES), y[r]);
                    }
                }
            }
            to = to.wrapping_add(A::OUTPUTS * across * S::LANES);
        }
    }
}

/// Along the rows of some tiles: to finished pixels. Whether all sums are finite.
struct Along<'a> {
    rows: Rows<'a>,
    tiles: std::ops::Range<usize>,
    post: bool,
}

impl Half for Along<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd, A: Scheme>(self, simd: S) -> bool {
        let Along { rows, tiles, post } = self;
        let [height, width] = rows.size;
        let outputs = rows.context.plan.axes[0].outputs;
        let bias = rows.context.post.bias.filter(|_| post).map(|bias| {
            // SAFETY: only the biases of existing channels are read.
            unsafe { simd.load_first(bias[rows.channel..].as_ptr(), rows.count) }
        });
        let relu = post && rows.context.post.activation == Activation::Relu;
        // 0 times a sum that is not finite is NaN, and NaN stays in a sum.
        let mut finite = simd.zero();
        let mut from = rows.halves;
        let tiling = rows.context.cut.tilings[1];
        let (mut first, apart) = (tiling.along(tiles.start, A::OUTPUTS), tiling.apart);
        let mut phase = tiles.start % tiling.phases;
        for _ in tiles {
            for r in 0..height {
                // SAFETY: the tile's half-transformed products are there, and room for its pixels inside of the image.
                unsafe {
                    let mut m = [simd.zero(); MOST];
                    for j in 0..A::POINTS {
                        m[j] = simd.load(from.add((r * A::POINTS + j) * S::LANES));
                    }
                    let y = A::output(simd, &m);
                    let to = rows.finished.add((r * width + first) * S::LANES);
                    for j in 0..A::OUTPUTS {
                        if first + j * apart < width {
                            finite = simd.fma(y[j], simd.zero(), finite);
                            let mut v = y[j];
                            if let Some(bias) = bias {
                                v = simd.add(v, bias);
                            }
                            if relu {
                                v = apply(simd, Activation::Relu, v);
                            }
                            simd.store(to.add(j * apart * S::LANES), v);
                        }
                    }
                }
            }
            from = from.wrapping_add(outputs * A::POINTS * S::LANES);
            // The next phase, or the next cell.
            (first, phase) = match phase + 1 == tiling.phases {
                true => (first - phase + A::OUTPUTS * apart, 0),
                false => (first + 1, phase + 1),
            };
        }
        simd.bits(simd.is_nan(finite)) == 0
    }
}
