//! The input transform: rows of the image, padding included, to `Bᵀ d B` of every tile of a block.
//!
//! ```text
//! image ──► plane: the block's rows with their padding, one channel (or, from NHWC, a vector of channels)
//!           for each row of tiles:
//!               down the columns, pixels in the lanes:   n rows ──► n rows          shared by tiles that overlap
//!               along the rows, tiles in the lanes:      n columns ──► n columns    after a small transposition
//!           ──► v[frequency][channel][tile]
//! ```

use super::points::{MOST, input};
use super::{Block, Context};
use crate::conv::spec::Layout;
use crate::simd::{Job, Simd};

/// Transforms the channels `channels` of a block of tiles. A function of its own.
///
/// Whoever makes one vouches that block and channels are those of the context, that `v` has room for the block's
/// tiles of all channels, and that `scratch` has room for [`Cut::transform_scratch`](super::Cut::transform_scratch) floats.
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
        let plane = cut.plane_len();
        let columns = scratch.wrapping_add(plane * S::LANES);
        let step = if context.plan.layout == Layout::Nhwc { S::LANES } else { 1 };
        let mut channel = channels.start;
        while channel < channels.end {
            let count = step.min(channels.end - channel);
            // SAFETY: the maker's promise.
            unsafe {
                match context.plan.layout {
                    Layout::Nchw => copy_plane(context, block, channel, scratch),
                    Layout::Nhwc => copy_planes(simd, context, block, [channel, count], scratch),
                }
                for c in 0..count {
                    let place = v.add((channel + c) * cut.tiles_stride);
                    let from = scratch.add(c * plane);
                    for tile_row in 0..block.rows {
                        let down = Down {
                            context,
                            from: from.add(tile_row * context.plan.axes[0].outputs * cut.width),
                            to: columns,
                        };
                        match context.plan.axes[0].pairs {
                            0 => simd.call(Pass::<_, 0>(down)),
                            1 => simd.call(Pass::<_, 1>(down)),
                            2 => simd.call(Pass::<_, 2>(down)),
                            _ => simd.call(Pass::<_, 3>(down)),
                        }
                        let to = place.add(tile_row * block.columns);
                        let along = Along { context, block, from: columns, to };
                        match context.plan.axes[1].pairs {
                            0 => simd.call(Pass::<_, 0>(along)),
                            1 => simd.call(Pass::<_, 1>(along)),
                            2 => simd.call(Pass::<_, 2>(along)),
                            _ => simd.call(Pass::<_, 3>(along)),
                        }
                    }
                }
            }
            channel += count;
        }
    }
}

/// The first row of the image that a block's plane shows, its first column, and what of the plane lies inside the image.
struct Window {
    row: isize,
    column: isize,
    /// Columns of the plane before, and up to the end of, the image.
    inside: std::ops::Range<usize>,
}

fn window(context: &Context<'_>, block: Block) -> Window {
    let [rows, columns] = [0, 1].map(|axis| {
        let first = [block.row, block.column][axis] * context.plan.axes[axis].outputs;
        first as isize - context.plan.before[axis] as isize
    });
    let width = context.in_size[1] as isize;
    let shown = context.cut.shown(block.columns) as isize;
    let start = (-columns).clamp(0, shown);
    let end = (width - columns).clamp(start, shown);
    Window { row: rows, column: columns, inside: start as usize..end as usize }
}

/// Copies a channel's plane, zeros where the padding is.
///
/// # Safety
/// - As for [`InputTransform`].
unsafe fn copy_plane(context: &Context<'_>, block: Block, channel: usize, to: *mut f32) {
    let Window { row, column, inside } = window(context, block);
    let [height, width] = context.in_size;
    let shown = context.cut.shown(block.columns);
    let group = block.group * context.plan.in_channels + channel;
    let image = (block.image * context.plan.groups * context.plan.in_channels + group) * height * width;
    for i in 0..context.cut.shown_rows(block.rows) {
        let ih = row + i as isize;
        // SAFETY: rows and columns inside of the image are read, `shown` floats of a row of the plane written.
        unsafe {
            let to = to.add(i * context.cut.width);
            if ih < 0 || ih >= height as isize || inside.is_empty() {
                to.write_bytes(0, shown);
                continue;
            }
            to.write_bytes(0, inside.start);
            let at = image + ih as usize * width + (column + inside.start as isize) as usize;
            let from = context.input.as_ptr().add(at);
            from.copy_to_nonoverlapping(to.add(inside.start), inside.len());
            to.add(inside.end).write_bytes(0, shown - inside.end);
        }
    }
}

/// Copies the planes of `count` channels from `first` on, which are neighbours in memory.
///
/// # Safety
/// - As for [`InputTransform`].
#[inline(always)]
unsafe fn copy_planes<S: Simd>(simd: S, context: &Context<'_>, block: Block, [first, count]: [usize; 2], to: *mut f32) {
    let Window { row, column, inside } = window(context, block);
    let [height, width] = context.in_size;
    let (shown, plane) = (context.cut.shown(block.columns), context.cut.plane_len());
    let channels = context.plan.groups * context.plan.in_channels;
    let first = block.group * context.plan.in_channels + first;
    for i in 0..context.cut.shown_rows(block.rows) {
        let ih = row + i as isize;
        // SAFETY: pixels inside of the image are read, `shown` floats of a row of each plane written.
        unsafe {
            let to = to.add(i * context.cut.width);
            let inside = if ih < 0 || ih >= height as isize { 0..0 } else { inside.clone() };
            for c in 0..count {
                to.add(c * plane).write_bytes(0, inside.start);
                to.add(c * plane + inside.end).write_bytes(0, shown - inside.end);
            }
            if inside.is_empty() {
                continue;
            }
            let pixel = (block.image * height + ih as usize) * width + (column + inside.start as isize) as usize;
            let from = context.input.as_ptr().add(pixel * channels + first);
            let mut p = 0;
            if count == S::LANES {
                while p + S::LANES <= inside.len() {
                    let to = to.add(inside.start + p);
                    simd.transpose(from.add(p * channels), channels as isize, to, plane as isize);
                    p += S::LANES;
                }
            }
            for p in p..inside.len() {
                for c in 0..count {
                    *to.add(c * plane + inside.start + p) = *from.add(p * channels + c);
                }
            }
        }
    }
}

/// A pass whose points are known at compile time.
struct Pass<P, const PAIRS: usize>(P);

/// Down the columns of one row of tiles.
struct Down<'a> {
    context: &'a Context<'a>,
    from: *const f32,
    to: *mut f32,
}

impl<const PAIRS: usize> Job for Pass<Down<'_>, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Down { context, from, to } = self.0;
        let (width, points) = (context.cut.width, if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 });
        debug_assert_eq!(points, context.plan.axes[0].points());
        let mut column = 0;
        while column < width {
            // SAFETY: the plane has `points` rows from here on, `width` is a multiple of the lanes.
            unsafe {
                let mut d = [simd.zero(); MOST];
                for i in 0..points {
                    d[i] = simd.load(from.add(i * width + column));
                }
                let v = input::<S, PAIRS>(simd, &d);
                for i in 0..points {
                    simd.store(to.add(i * width + column), v[i]);
                }
            }
            column += S::LANES;
        }
    }
}

/// Along the rows of one row of tiles.
struct Along<'a> {
    context: &'a Context<'a>,
    block: Block,
    from: *const f32,
    to: *mut f32,
}

impl<const PAIRS: usize> Job for Pass<Along<'_>, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Along { context, block, from, to } = self.0;
        let cut = &context.cut;
        let outputs = context.plan.axes[1].outputs;
        let points = if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 };
        debug_assert_eq!(points, context.plan.axes[1].points());
        let mut lanes = [0.0f32; 16 * 16];
        for i in 0..context.plan.axes[0].points() {
            let mut tile = 0;
            while tile < block.columns {
                // SAFETY: a row of the plane holds the columns of whole vectors of tiles, `to` whole vectors of tiles; what
                // is written beyond the row's last tile is written again with the next row, or is padding.
                unsafe {
                    let from = from.add(i * cut.width + tile * outputs);
                    let mut d = [simd.zero(); MOST];
                    if PAIRS == 0 {
                        d[0] = simd.load(from);
                    } else {
                        for j in (0..points).step_by(S::LANES) {
                            let block = lanes.as_mut_ptr().add(j * S::LANES);
                            simd.transpose(from.add(j), outputs as isize, block, S::LANES as isize);
                        }
                        for j in 0..points {
                            d[j] = simd.load(lanes.as_ptr().add(j * S::LANES));
                        }
                    }
                    let v = input::<S, PAIRS>(simd, &d);
                    for j in 0..points {
                        simd.store(to.add((i * points + j) * cut.v_plane + tile), v[j]);
                    }
                }
                tile += S::LANES;
            }
        }
    }
}
