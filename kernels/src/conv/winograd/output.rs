//! The output transform: products to `Aᵀ m A` of every tile of a block, then bias, residual and activation.
//!
//! ```text
//! m[frequency][channel][tile] ──► for each row of tiles:
//!                                     down the columns, tiles in the lanes:   n rows ──► outputs of each column
//!                                     along the rows, tiles in the lanes:     n columns ──► outputs
//!                                     tiles side by side, after a small transposition: rows of the output
//!                                 ──► results that are not finite again, by definition
//!                                 ──► y = activation(row + bias + residual)
//! ```

use super::points::{MOST, output};
use super::{Block, Context};
use crate::activation;
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};

/// Transforms the channels `channels` of a block of tiles, whose products stand at `m` with channel `first` in front. A
/// function of its own.
///
/// Whoever makes one vouches that block and channels are those of the context, that `m` holds their products, that no
/// other task writes these outputs, and that `scratch` has room for [`Cut::transform_scratch`](super::Cut::transform_scratch) floats.
pub(super) struct OutputTransform<'a> {
    pub context: &'a Context<'a>,
    pub block: Block,
    pub channels: std::ops::Range<usize>,
    pub first: usize,
    pub m: *const f32,
    pub scratch: *mut f32,
}

impl Job for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, block, channels, first, m, scratch } = self;
        let cut = &context.cut;
        let step = if context.plan.layout == Layout::Nhwc { S::LANES } else { 1 };
        let mut channel = channels.start;
        while channel < channels.end {
            let count = step.min(channels.end - channel);
            for tile_row in 0..block.rows {
                // SAFETY: the maker's promise.
                unsafe {
                    for c in 0..count {
                        let from = m.add((channel + c - first) * cut.tiles_stride + tile_row * block.columns);
                        let columns = scratch.add(S::LANES * cut.rows_len());
                        let [down, along] = context.plan.axes;
                        let pass = Down { context, block, from, to: columns };
                        match (down.pairs, down.outputs) {
                            (0, _) => simd.call(Pass::<_, 0, 1>(pass)),
                            (1, _) => simd.call(Pass::<_, 1, 2>(pass)),
                            (2, 2) => simd.call(Pass::<_, 2, 2>(pass)),
                            (2, _) => simd.call(Pass::<_, 2, 4>(pass)),
                            (_, 4) => simd.call(Pass::<_, 3, 4>(pass)),
                            _ => simd.call(Pass::<_, 3, 6>(pass)),
                        }
                        let pass = Along { context, block, from: columns, to: scratch.add(c * cut.rows_len()) };
                        match (along.pairs, along.outputs) {
                            (0, _) => simd.call(Pass::<_, 0, 1>(pass)),
                            (1, _) => simd.call(Pass::<_, 1, 2>(pass)),
                            (2, 2) => simd.call(Pass::<_, 2, 2>(pass)),
                            (2, _) => simd.call(Pass::<_, 2, 4>(pass)),
                            (_, 4) => simd.call(Pass::<_, 3, 4>(pass)),
                            _ => simd.call(Pass::<_, 3, 6>(pass)),
                        }
                    }
                    finish(simd, context, block, tile_row, [channel, count], scratch);
                }
            }
            channel += count;
        }
    }
}

/// A pass whose points and outputs are known at compile time.
struct Pass<P, const PAIRS: usize, const OUTPUTS: usize>(P);

/// Down the columns of one row of tiles of one channel, tiles in the lanes: to `to[output row][column point][tile]`.
struct Down<'a> {
    context: &'a Context<'a>,
    block: Block,
    from: *const f32,
    to: *mut f32,
}

impl<const PAIRS: usize, const OUTPUTS: usize> Job for Pass<Down<'_>, PAIRS, OUTPUTS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Down { context, block, from, to } = self.0;
        let (plane, across) = (context.cut.m_plane, context.plan.axes[1].points());
        let points = if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 };
        let stride = block.columns.next_multiple_of(S::LANES);
        for tile in (0..block.columns).step_by(S::LANES) {
            for j in 0..across {
                // SAFETY: the products of whole vectors of tiles are there, and room for as many sums.
                unsafe {
                    let mut m = [simd.zero(); MOST];
                    for i in 0..points {
                        m[i] = simd.load(from.add((i * across + j) * plane + tile));
                    }
                    let y = output::<S, PAIRS, OUTPUTS>(simd, &m);
                    for r in 0..OUTPUTS {
                        simd.store(to.add((r * across + j) * stride + tile), y[r]);
                    }
                }
            }
        }
    }
}

/// Along the rows, then tile beside tile: to rows of the output.
struct Along<'a> {
    context: &'a Context<'a>,
    block: Block,
    from: *const f32,
    to: *mut f32,
}

impl<const PAIRS: usize, const OUTPUTS: usize> Job for Pass<Along<'_>, PAIRS, OUTPUTS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Along { context, block, from, to } = self.0;
        let points = if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 };
        let (stride, lanes) = (block.columns.next_multiple_of(S::LANES), S::LANES as isize);
        let (mut side_by_side, mut turned) = ([0.0f32; 16 * 16], [0.0f32; 16 * 16]);
        for r in 0..context.plan.axes[0].outputs {
            for tile in (0..block.columns).step_by(S::LANES) {
                // SAFETY: the sums of whole vectors of tiles are there, and a row has room for as many outputs.
                unsafe {
                    let mut m = [simd.zero(); MOST];
                    for j in 0..points {
                        m[j] = simd.load(from.add((r * points + j) * stride + tile));
                    }
                    let y = output::<S, PAIRS, OUTPUTS>(simd, &m);
                    let to = to.add(r * context.cut.width + tile * OUTPUTS);
                    if OUTPUTS == 1 {
                        simd.store(to, y[0]);
                        continue;
                    }
                    for j in 0..OUTPUTS {
                        simd.store(side_by_side.as_mut_ptr().add(j * S::LANES), y[j]);
                    }
                    for j in (0..OUTPUTS).step_by(S::LANES) {
                        let count = if OUTPUTS - j < S::LANES { OUTPUTS - j } else { S::LANES };
                        let from = side_by_side.as_ptr().add(j * S::LANES);
                        simd.transpose(from, lanes, turned.as_mut_ptr(), lanes);
                        for t in 0..S::LANES {
                            let tile = turned.as_ptr().add(t * S::LANES);
                            tile.copy_to_nonoverlapping(to.add(t * OUTPUTS + j), count);
                        }
                    }
                }
            }
        }
    }
}

/// Writes the finished rows of one row of tiles, of `count` channels from `channel` on.
///
/// # Safety
/// - As for [`OutputTransform`]; `rows` holds the channels' rows.
#[inline(always)]
unsafe fn finish<S: Simd>(
    simd: S,
    context: &Context<'_>,
    block: Block,
    tile_row: usize,
    [channel, count]: [usize; 2],
    rows: *mut f32,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let [height, width] = context.out_size;
    let [down, along] = plan.axes;
    let (row, column) = ((block.row + tile_row) * down.outputs, block.column * along.outputs);
    let columns = (block.columns * along.outputs).min(width - column);
    let all = plan.groups * plan.out_channels;
    let first = block.group * plan.out_channels + channel;
    for r in 0..down.outputs.min(height - row) {
        for c in 0..count {
            // SAFETY: the row has so many columns.
            unsafe {
                let from = rows.add(c * cut.rows_len() + r * cut.width);
                if !all_finite(simd, from, columns) {
                    for i in 0..columns {
                        if !(*from.add(i)).is_finite() {
                            *from.add(i) = context.by_definition(block.image, first + c, [row + r, column + i]);
                        }
                    }
                }
            }
        }
        let post = context.post;
        match plan.layout {
            Layout::Nchw => {
                let at = ((block.image * all + first) * height + row + r) * width + column;
                let bias = simd.splat(post.bias.map_or(0.0, |bias| bias[first]));
                for i in (0..columns).step_by(S::LANES) {
                    let left = columns - i;
                    // SAFETY: `left` floats are there in the row, in the residual and in the output.
                    unsafe {
                        let mut v = simd.load(rows.add(r * cut.width + i));
                        if post.bias.is_some() {
                            v = simd.add(v, bias);
                        }
                        if let Some(residual) = post.residual {
                            v = simd.add(v, simd.load_first(residual[at + i..].as_ptr(), left));
                        }
                        v = activation::apply(simd, post.activation, v);
                        simd.store_first(context.output.add(at + i), left, v);
                    }
                }
            }
            Layout::Nhwc => {
                let mut turned = [0.0f32; 16 * 16];
                for i in (0..columns).step_by(S::LANES) {
                    // SAFETY: the rows of a vector of channels are there, whole vectors of pixels each.
                    unsafe {
                        let from = rows.add(r * cut.width + i);
                        simd.transpose(from, cut.rows_len() as isize, turned.as_mut_ptr(), S::LANES as isize);
                    }
                    for p in 0..S::LANES.min(columns - i) {
                        let pixel = (block.image * height + row + r) * width + column + i + p;
                        let at = pixel * all + first;
                        // SAFETY: `count` channels of the pixel are there in the bias, in the residual and in the output.
                        unsafe {
                            let mut v = simd.load(turned.as_ptr().add(p * S::LANES));
                            if let Some(bias) = post.bias {
                                v = simd.add(v, simd.load_first(bias[first..].as_ptr(), count));
                            }
                            if let Some(residual) = post.residual {
                                v = simd.add(v, simd.load_first(residual[at..].as_ptr(), count));
                            }
                            v = activation::apply(simd, post.activation, v);
                            simd.store_first(context.output.add(at), count, v);
                        }
                    }
                }
            }
        }
    }
}

/// Whether none of `len` floats is NaN or infinite.
///
/// # Safety
/// - `len` floats, rounded up to whole vectors, are readable.
#[inline(always)]
unsafe fn all_finite<S: Simd>(simd: S, from: *const f32, len: usize) -> bool {
    // x - x is 0 for a finite x, else NaN, and NaN stays in a sum.
    let mut sum = simd.zero();
    for i in (0..len).step_by(S::LANES) {
        // SAFETY: the caller's contract.
        let x = unsafe { simd.load_first(from.add(i), len - i) };
        sum = simd.add(sum, simd.sub(x, x));
    }
    simd.bits(simd.is_nan(sum)) == 0
}
