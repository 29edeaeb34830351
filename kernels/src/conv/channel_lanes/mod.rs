//! Direct and im2col convolution with output channels in the lanes and pixels in the rows: NHWC, and small images.
//!
//! ```text
//! for each task: image, group, block of panels, band of rows
//!   for each block of input channels                         (k, in order)
//!     copy the band of these channels with its padding             image_band.rs
//!     for each panel of NV * LANES output channels
//!       for each tile of up to 6 pixels
//!         continue the chains: weights in vectors, elements of the image broadcast from pixel + offset[k]
//!       last block: bias, residual, activation, store              (NCHW: transposed on the way out)
//! ```
//!
//! The weights are read once for all pixels of a band, in order, which is what decides for small images with many
//! channels, and no pixel is computed that is not asked for: 49 pixels are four tiles of 6 and five of 5. The im2col
//! form packs some tiles of a band at a time. The sums run in the order of `ic, kh, kw`, as everywhere.
//!
//! Source: M. Dukhan, "The indirect convolution algorithm" (2019).

mod few_pixels;
mod finish;
mod patches;

use super::blocking::{Blocking, MOST_THREADS};
use super::channel_tile::{ChannelTile, MAX_ROWS, panel_vectors};
use super::engine::{Context, Cut, Engine, Source, Units};
use super::image_band::ImageBand;
use super::pack::{PackRows, Source as Weights, packers};
use super::panels::Panels;
use super::slide::Slide;
use super::spec::Layout;
use crate::error::Error;
use crate::parallel::Parallelism;
use crate::parts::{Shared, share};
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, Workspace, round_up};
use few_pixels::{PanelGroup, panels_at_once};
use finish::Finish;
use patches::{Lhs, Patches, pack_windows};

/// So many tasks come out even by themselves.
const MANY_TASKS: usize = 512;

/// Elements of a first-level cache.
const FIRST_LEVEL: usize = 8192;

/// Pixels of a small image: tiles of larger ones find the next tile's pixels on the same lines.
const FEW_PIXELS: usize = 64;

/// Panels that share the packing of their pixels, at least: it takes as long as two of them.
const LEAST_PANELS: usize = 16;

/// How pixels are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct PixelCut {
    units: Units,
    /// Tiles of a band that are packed before panels meet them: a fourth of what the copy of a row may take.
    packed: usize,
}

/// A slide with packed weights.
#[derive(Clone)]
pub(super) struct ChannelLanes {
    slide: Slide,
    groups: usize,
    layout: Layout,
    im2col: bool,
    isa: Isa,
    blocking: Blocking,
    /// Elements of a panel's row, and of the last panel's.
    panel_len: usize,
    packed: Workspace,
}

impl ChannelLanes {
    /// Allocates room for the packed weights of all groups.
    pub fn new(
        slide: Slide,
        groups: usize,
        layout: Layout,
        im2col: bool,
        isa: Isa,
        blocking: Blocking,
    ) -> Result<Self, Error> {
        let panel_len = panel_vectors(isa) * isa.lanes();
        let lanes = slide.out_channels.next_multiple_of(isa.lanes());
        let packed = Workspace::with_len(groups * lanes * slide.depth())?;
        Ok(Self { slide, groups, layout, im2col, isa, blocking, panel_len, packed })
    }

    fn panels(&self) -> usize {
        self.slide.out_channels.div_ceil(self.panel_len)
    }

    /// Whether pixels that are read where they are had better be packed: each channel of a tile is on a line of its
    /// own, and all of them are more than the first-level cache holds. Tiles of 16 registers have no time to wait:
    /// on one core, 2048 to 512 channels of 7 x 7 run at 69 GFLOP/s in place and at 82 packed, 256 to 512 of 56 x
    /// 56 at stride 2 at 70 and 75; 512 to 512 of 10 x 10 at 84 and 81 (AVX2 on Zen 4, peak 91).
    fn packs_planes(&self, source: Source<ImageBand>, depth: usize, grid: [usize; 2], unit: usize) -> bool {
        let narrow = self.isa != Isa::Avx512;
        let apart = self.layout == Layout::Nchw && matches!(source, Source::InPlace(_));
        let pixels = grid[0].saturating_mul(grid[1]);
        let scattered = pixels <= FEW_PIXELS || self.slide.stride[1] > 1;
        // Longer rows are not worth a copy: their pixels share lines with each other.
        let fits = depth.saturating_mul(unit) <= self.blocking.band_limit;
        narrow
            && apart
            && scattered
            && fits
            && depth.saturating_mul(pixels) > FIRST_LEVEL
            && self.panels() >= LEAST_PANELS
    }

    /// Elements of a row of a panel.
    fn row_len(&self, panel: usize) -> usize {
        (self.slide.out_channels - panel * self.panel_len).min(self.panel_len).next_multiple_of(self.isa.lanes())
    }

    /// Packs weights. Allocates nothing.
    pub fn pack(&mut self, source: Weights<'_>, parallelism: Parallelism<'_>) {
        let to = Shared(self.packed.as_mut_ptr());
        let Self { slide, panel_len, isa, .. } = &*self;
        let (depth, panels) = (slide.depth(), self.panels());
        let group_len = slide.out_channels.next_multiple_of(isa.lanes()) * depth;
        let parallelism = packers(parallelism, self.groups * group_len);
        parallelism.for_each(self.groups * panels, parallelism.threads(), &|task, _| {
            let (group, panel) = (task / panels, task % panels);
            let start = panel * panel_len;
            let rows = start..slide.out_channels.min(start + panel_len);
            let to = to.at(group * group_len + start * depth);
            let (in_channels, taps, height) = (slide.in_channels, &slide.taps, self.row_len(panel));
            dispatch(*isa, PackRows { source, group, rows, in_channels, taps, height, to });
        });
    }
}

impl Engine for ChannelLanes {
    type Band = ImageBand;
    type Own = PixelCut;

    fn slide(&self) -> &Slide {
        &self.slide
    }

    fn groups(&self) -> usize {
        self.groups
    }

    fn blocking(&self) -> &Blocking {
        &self.blocking
    }

    fn compute(context: &Context<'_, Self>, task: usize, slot: usize) {
        dispatch(context.plan.isa, Task { context, task, slot });
    }

    fn cut(&self, batch: usize, in_size: [usize; 2], out_size: [usize; 2], threads: usize) -> Cut<ImageBand, PixelCut> {
        let (slide, blocking) = (&self.slide, &self.blocking);
        let grid = [slide.grid(0, out_size[0]), slide.grid(1, out_size[1])];
        let taps = slide.taps.len();
        let all_channels = slide.in_channels * self.groups;
        let in_place = ImageBand::in_place(slide, self.layout, all_channels, in_size, grid);
        // Sums stay in registers for twice as long where that shortens no band, or spares them the way through memory.
        let twice = blocking.depth.saturating_mul(2);
        let most = if in_place.is_some() || slide.depth() <= twice { twice } else { blocking.depth };
        let channel_block = (most / taps.max(1)).clamp(1, slide.in_channels.max(1));
        let channel_blocks = slide.in_channels.div_ceil(channel_block).max(1);
        let channel_block = slide.in_channels.div_ceil(channel_blocks);
        let depth = channel_block * taps;
        // An image of one row, a line of sound, is cut along it.
        let by_rows = grid[0] > 1;
        let columns = grid[1].max(1);
        let unit = if by_rows { columns } else { MAX_ROWS };
        let units = if by_rows { grid[0] } else { columns.div_ceil(unit) };
        let band_of = |units: usize| {
            let [rows, columns] = if by_rows { [units, grid[1]] } else { [1, units.saturating_mul(unit).min(grid[1])] };
            ImageBand::copy(slide, self.layout, channel_block, rows, columns)
        };
        let smallest = band_of(1);
        let source = match (in_place, smallest) {
            (Some(band), _) => Source::InPlace(band),
            (None, Some(band)) if band.len <= blocking.band_limit => Source::Band(band),
            _ => Source::Gather,
        };
        // Pixels that are gathered one by one need no whole rows, which may be longer than a slot has room for.
        let (unit, units) = match source {
            Source::Gather => (MAX_ROWS, grid[0].max(1).saturating_mul(columns).div_ceil(MAX_ROWS)),
            _ => (unit, units),
        };
        let packs = self.im2col || source == Source::Gather || self.packs_planes(source, depth, grid, unit);

        let images = batch.saturating_mul(self.groups);
        let mut panel_blocks = slide.out_channels.div_ceil(blocking.out_channels).max(1);
        let block_lanes = |blocks: usize| self.panels().div_ceil(blocks) * self.panel_len;
        let by_sums = blocking.sums / block_lanes(panel_blocks).saturating_mul(unit);
        let by_band = match source {
            Source::Band(band) => {
                let (axis, across) = if by_rows { (0, band.columns) } else { (1, band.rows) };
                let line = across.saturating_mul(channel_block).saturating_mul(slide.stride[axis]).max(1);
                (blocking.band / line).saturating_sub(slide.extra[axis]) / if by_rows { 1 } else { unit }
            }
            _ => units,
        };
        let by_tiles = if packs { blocking.sums / depth.saturating_mul(unit).max(1) } else { units };
        let most_units = by_sums.min(by_band).min(by_tiles).min(blocking.pixels / unit).clamp(1, units);
        let mut bands = units.div_ceil(most_units).max(1);
        let threads = threads.min(MOST_THREADS);
        // Few tasks must come out even between the threads: blocks of panels, whose weights are read by one thread
        // only, where there are enough, else bands, or both.
        if threads > 1 && images.saturating_mul(panel_blocks * bands) < threads * blocking.tasks_per_thread {
            let even = |count: usize, most: usize| count.max(threads).next_multiple_of(threads).min(most.max(1));
            let (blocks, rows) = (even(panel_blocks, self.panels()), even(bands, units));
            // A block of its own for each panel, only where nothing is copied for each of them.
            let most = if packs || matches!(source, Source::Band(_)) { blocks } else { self.panels().max(blocks) };
            let choices = [[panel_blocks, bands], [blocks, bands], [panel_blocks, rows], [most, rows]];
            let longest = |&[blocks, bands]: &[usize; 2]| {
                let size = |task: usize| {
                    let panels = share(self.panels(), blocks, task / bands % blocks);
                    let end = (panels.end * self.panel_len).min(slide.out_channels);
                    (end - (panels.start * self.panel_len).min(end)) * share(units, bands, task % bands).len()
                };
                let tasks = images * blocks * bands;
                if tasks > MANY_TASKS {
                    return Some((slide.out_channels * units * images).div_ceil(threads));
                }
                (0..threads).map(|thread| share(tasks, threads, thread).map(size).sum::<usize>()).max()
            };
            [panel_blocks, bands] = choices.into_iter().min_by_key(longest).unwrap_or([panel_blocks, bands]);
        }
        let band_units = units.div_ceil(bands).max(1);
        let source = match source {
            Source::Band(_) => band_of(band_units).map_or(Source::Gather, Source::Band),
            other => other,
        };
        let pixels = band_units.saturating_mul(unit);
        let packed = (blocking.band_limit / 4 / depth.saturating_mul(MAX_ROWS).max(1)).max(1);
        let packed_pixels = pixels.min(packed.saturating_mul(MAX_ROWS));
        Cut {
            grid,
            source,
            channel_block,
            channel_blocks,
            panel_blocks,
            bands,
            tasks: images * panel_blocks * bands,
            table_len: if source == Source::Gather { 0 } else { depth },
            sums_len: round_up(pixels.saturating_mul(block_lanes(panel_blocks))),
            band_len: if let Source::Band(band) = source { band.len.next_multiple_of(LINE) } else { 0 },
            tiles_len: if packs { round_up(packed_pixels.saturating_mul(depth)) } else { 0 },
            own: PixelCut { units: Units { unit, units }, packed },
        }
    }
}

struct Task<'a> {
    context: &'a Context<'a, ChannelLanes>,
    task: usize,
    slot: usize,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { context, task, slot } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let slide = &plan.slide;
        let (rest, band) = (task / cut.bands, task % cut.bands);
        let (image, panel_block) = (rest / cut.panel_blocks, rest % cut.panel_blocks);
        let (n, group) = (image / plan.groups, image % plan.groups);
        let first_panel = plan.panels() * panel_block / cut.panel_blocks;
        let last_panel = plan.panels() * (panel_block + 1) / cut.panel_blocks;
        let taps = slide.taps.len();

        let columns = cut.grid[1];
        let band = cut.own.units.band(cut.bands, band, cut.grid[0] * columns);
        let (first_pixel, pixels) = (band.start, band.len());
        let corner = [first_pixel / columns, first_pixel % columns];
        let tiles = Panels::new(pixels, MAX_ROWS);

        let plane = context.in_size[0] * context.in_size[1];
        let in_channels = slide.in_channels * plan.groups;
        // SAFETY: `slot < slots`, and the workspace holds `slots` times `scratch_len` elements.
        let sums = unsafe { context.scratch.add(slot * cut.scratch_len()) };
        let band_copy = sums.wrapping_add(cut.sums_len);
        let packed_tiles = band_copy.wrapping_add(cut.band_len);
        let group_lanes = slide.out_channels.next_multiple_of(S::LANES);
        let weights = plan.packed.as_ptr().wrapping_add(group * group_lanes * slide.depth());
        let input = context.input[n * in_channels * plane..][..in_channels * plane].as_ptr();
        let channel_step = if plan.layout == Layout::Nchw { plane } else { 1 };
        let input = input.wrapping_add(group * slide.in_channels * channel_step);

        let mut laps = Laps::start();
        for block in 0..cut.channel_blocks {
            let first_in = block * cut.channel_block;
            let in_block = cut.channel_block.min(slide.in_channels - first_in.min(slide.in_channels));
            let depth = in_block * taps;
            let (first, last) = (block == 0, block + 1 == cut.channel_blocks);
            let block_input = input.wrapping_add(first_in * channel_step);
            let offsets = context.table.get(..depth).unwrap_or(&[]);
            // Where windows start, and how far apart they are.
            let (start, steps) = match cut.source {
                Source::Band(band) => {
                    // SAFETY: the block's channels are inside of the image, and `band_len` holds the band.
                    unsafe {
                        band.fill(
                            simd,
                            slide,
                            plan.layout,
                            in_block,
                            block_input,
                            in_channels,
                            context.in_size,
                            corner,
                            band_copy,
                        );
                    }
                    (band_copy.cast_const(), [band.row_step, band.column_step])
                }
                Source::InPlace(band) => {
                    let steps = [band.row_step, band.column_step];
                    let place = |axis: usize| corner[axis] * slide.stride[axis] * steps[axis];
                    (block_input.wrapping_add(band.origin(slide) + place(0) + place(1)), steps)
                }
                Source::Gather => (block_input, [0, 0]),
            };
            let window = |pixel: usize| {
                let (r, c) = (pixel / columns, pixel % columns);
                start.wrapping_add(r * slide.stride[0] * steps[0] + c * slide.stride[1] * steps[1])
            };
            let packs = cut.tiles_len > 0;
            let chunk = if packs { cut.own.packed } else { tiles.count().max(1) };
            for first_tile in (0..tiles.count()).step_by(chunk) {
                let chunk = first_tile..tiles.count().min(first_tile + chunk);
                let packed_at =
                    |tile: usize| packed_tiles.wrapping_add((tiles.start(tile) - tiles.start(first_tile)) * depth);
                for tile in if packs { chunk.clone() } else { 0..0 } {
                    let (from, to) = (tiles.start(tile), tiles.start(tile + 1));
                    let tile_at = packed_at(tile);
                    // SAFETY: windows lie in the band or the image; the packed tiles hold `depth` columns of a chunk.
                    unsafe {
                        if cut.source == Source::Gather {
                            for pixel in from..to {
                                let at = [(first_pixel + pixel) / columns, (first_pixel + pixel) % columns];
                                for k in 0..depth {
                                    let value =
                                        gather(slide, plan.layout, block_input, in_channels, context.in_size, at, k);
                                    *tile_at.add(k * (to - from) + pixel - from) = value;
                                }
                            }
                        } else {
                            let windows = std::array::from_fn(|i| window((from + i).min(to - 1)));
                            pack_windows(simd, &windows, to - from, offsets, tile_at);
                        }
                    }
                }
                laps.lap(Stage::Pack);
                // Panels that a tile meets at once.
                let together = panels_at_once(pixels, S::REGISTERS);
                for first_together in (first_panel..last_panel).step_by(together) {
                    let end = last_panel.min(first_together + together);
                    let rhs = |panel: usize| {
                        let start = panel * plan.panel_len * slide.depth();
                        weights.wrapping_add(start + first_in * taps * plan.row_len(panel))
                    };
                    let panel_sums = |panel: usize| sums.wrapping_add((panel - first_panel) * plan.panel_len * pixels);
                    for tile in chunk.clone() {
                        let (from, to) = (tiles.start(tile), tiles.start(tile + 1));
                        let mut windows = [start; MAX_ROWS];
                        let lhs = if packs {
                            Lhs::Packed(packed_at(tile))
                        } else {
                            for i in 0..to - from {
                                windows[i] = window(from + i);
                            }
                            Lhs::Windows(&windows, offsets.as_ptr())
                        };
                        // SAFETY: panels hold the whole depth; the sums hold all pixels of all panels of the block.
                        unsafe {
                            if together > 1 {
                                let rows = [first_together, end - 1].map(rhs);
                                let all = (end - 1 - first_together) * plan.panel_len + plan.row_len(end - 1);
                                let group = PanelGroup {
                                    lhs,
                                    rhs: rows[0],
                                    rhs_step: plan.panel_len * slide.depth(),
                                    last: rows[1],
                                    depth,
                                    sums: panel_sums(first_together),
                                    sums_step: plan.panel_len * pixels,
                                    first,
                                };
                                group.multiply(simd, pixels, all / S::LANES);
                            } else {
                                let row_len = plan.row_len(first_together);
                                let products = Patches { lhs, rhs: rhs(first_together), depth };
                                let sums = panel_sums(first_together).wrapping_add(from * row_len);
                                ChannelTile { products, sums, first }.multiply(simd, to - from, row_len);
                            }
                        }
                    }
                    laps.lap(Stage::Product);
                    for panel in if last && chunk.end == tiles.count() { first_together..end } else { 0..0 } {
                        let oc = group * slide.out_channels + panel * plan.panel_len;
                        let channels = (slide.out_channels - panel * plan.panel_len).min(plan.panel_len);
                        let finish = Finish { context, n, first_pixel, oc, channels, row_len: plan.row_len(panel) };
                        // SAFETY: the panel's sums are complete, and its channels and pixels are this task's.
                        unsafe { finish.write(simd, panel_sums(panel), pixels) };
                        laps.lap(Stage::Epilogue);
                    }
                }
            }
        }
    }
}

/// One element of a patch, straight from the image.
///
/// # Safety
/// - `input` points at the first channel of the block in an image of `in_size`, `in_channels` channels to a pixel.
unsafe fn gather(
    slide: &Slide,
    layout: Layout,
    input: *const f32,
    in_channels: usize,
    in_size: [usize; 2],
    at: [usize; 2],
    k: usize,
) -> f32 {
    let (channel, tap) = (k / slide.taps.len(), slide.taps[k % slide.taps.len()]);
    let position = |axis: usize| slide.position(&tap, axis, at[axis], in_size[axis]);
    match (position(0), position(1)) {
        (Some(ih), Some(iw)) => {
            let index = match layout {
                Layout::Nchw => (channel * in_size[0] + ih) * in_size[1] + iw,
                Layout::Nhwc => (ih * in_size[1] + iw) * in_channels + channel,
            };
            // SAFETY: the position is inside of the image.
            unsafe { *input.add(index) }
        }
        _ => 0.0,
    }
}
