//! Direct and im2col convolution of NCHW images: neighbouring pixels in the lanes, output channels in the rows.
//!
//! ```text
//! for each task: image, group, block of output channels, band of pixels
//!   for each block of input channels                               (k, in order)
//!     copy the band of these channels, padded and split into phases     band.rs
//!     for each strip of tiles of 2 * LANES pixels
//!       im2col: pack the tiles' patches, k rows of 2 * LANES floats     (in L1, read by every panel)
//!       direct: read the band where it is, at pixel + offset[k]
//!       for each panel of output channels
//!         for each tile: continue its chains                            gemm/micro.rs
//!         last block: bias, residual, activation, store
//! ```
//!
//! Direct copies nothing per tap, and its loads are not aligned. Its tiles follow the rows of the band one by one where
//! rows are as good as whole vectors; else a vector that meets the end of a row is read in two pieces, or, where rows
//! are shorter than a vector, tiles compute the few pixels between the end of one row and the start of the next. Im2col
//! packs each patch once per block of output channels; those of a single tap of stride 1 are runs of the image, which
//! the first panel reads where they are and packs for the others. The patch matrix as a whole never exists. Both sum in
//! the order of `ic, kh, kw`, so they give the same bits.
//!
//! Sources: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for document
//! processing" (2006) for im2col; J. Zhang, F. Franchetti, T. M. Low, "High performance zero-memory-overhead direct
//! convolutions" (2018) for the direct form.

mod finish;
mod patches;
mod rows;
mod tile;

use super::band::{BandLayout, fill_channel};
use super::blocking::{Blocking, MOST_THREADS};
use super::engine::{Context, Cut, Engine, Source, Units};
use super::pack::{PackRows, Source as Weights, packers};
use super::panels::Panels;
use super::slide::Slide;
use crate::error::Error;
use crate::gemm::rhs::{BrokenRhs, OffsetRhs, PackingRhs, ScatteredRhs, StridedRhs};
use crate::parallel::Parallelism;
use crate::parts::Shared;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, Workspace};
use finish::{Finish, Place, Places};
use patches::{Runs, Vectors, gather_tile, pack_tile};
pub(super) use rows::TileRows;
use rows::{BROKEN_LANES, Span};
use tile::{Series, Tile};

/// Vectors of a tile's row.
const NV: usize = 2;
/// Pixels of the widest tile, for arrays on the stack.
const MAX_PIXELS: usize = NV * 16;
/// Rows of the highest tile.
const MAX_ROWS: usize = 14;

/// Tiles of the longest strip.
const MAX_STRIP: usize = 8;

/// Tiles of a band that make bands of rows even enough: beyond, a tile more or less hardly counts.
const EVEN_TILES: usize = 12;

/// One band more is made where that spares a part in so many of the work.
const MORE_BANDS: usize = 64;

/// No more than so many further bands are weighed: among many, one more changes little.
const MOST_MORE_BANDS: usize = 32;

/// Rows of a tile: as many accumulators as the registers hold beside a row of the right-hand side.
pub(super) const fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        Isa::Avx2 | Isa::Portable => 6,
    }
}

/// A slide with packed weights.
#[derive(Clone)]
pub(super) struct PixelLanes {
    slide: Slide,
    groups: usize,
    /// Whether each tile's patches are packed.
    im2col: bool,
    isa: Isa,
    blocking: Blocking,
    panels: Panels,
    packed: Workspace,
}

/// How pixels are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct PixelCut {
    units: Units,
    /// Tiles that meet a panel one after the other, so that neighbouring results are written together.
    strip_tiles: usize,
    rows: TileRows,
}

impl PixelLanes {
    /// Allocates room for the packed weights of all groups.
    pub fn new(slide: Slide, groups: usize, im2col: bool, isa: Isa, blocking: Blocking) -> Result<Self, Error> {
        let panels = Panels::new(slide.out_channels, tile_rows(isa));
        let packed = Workspace::with_len(groups * slide.out_channels * slide.depth())?;
        Ok(Self { slide, groups, im2col, isa, blocking, panels, packed })
    }

    /// Packs weights. Allocates nothing.
    pub fn pack(&mut self, source: Weights<'_>, parallelism: Parallelism<'_>) {
        let to = Shared(self.packed.as_mut_ptr());
        let Self { slide, panels, isa, .. } = &*self;
        let (depth, isa) = (slide.depth(), *isa);
        let parallelism = packers(parallelism, self.groups * slide.out_channels * depth);
        parallelism.for_each(self.groups * panels.count(), parallelism.threads(), &|task, _| {
            let (group, panel) = (task / panels.count(), task % panels.count());
            let rows = panels.start(panel)..panels.start(panel + 1);
            let to = to.at((group * slide.out_channels + rows.start) * depth);
            let (in_channels, taps, height) = (slide.in_channels, &slide.taps, rows.len());
            dispatch(isa, PackRows { source, group, rows, in_channels, taps, height, to });
        });
    }
}

impl Engine for PixelLanes {
    type Band = BandLayout;
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

    fn cut(
        &self,
        batch: usize,
        in_size: [usize; 2],
        out_size: [usize; 2],
        threads: usize,
    ) -> Cut<BandLayout, PixelCut> {
        let (slide, blocking) = (&self.slide, &self.blocking);
        let tile_pixels = NV * self.isa.lanes();
        let grid = [slide.grid(0, out_size[0]), slide.grid(1, out_size[1])];
        let pixels = grid[0].saturating_mul(grid[1]);
        let taps = slide.taps.len();

        let channel_block = (blocking.depth / taps.max(1)).clamp(1, slide.in_channels.max(1));
        let channel_blocks = slide.in_channels.div_ceil(channel_block).max(1);
        let channel_block = slide.in_channels.div_ceil(channel_blocks);

        let in_place = BandLayout::in_place(slide, in_size, grid);
        // An image of one row, a line of sound, is cut along it.
        let one_row = BandLayout::new(slide, 1, if grid[0] == 1 { tile_pixels.min(grid[1]) } else { grid[1] });
        let source = match in_place {
            Some(layout) if self.im2col => Source::InPlace(layout),
            _ if one_row.channel_len.saturating_mul(channel_block) > blocking.band_limit => Source::Gather,
            _ => Source::Band(one_row),
        };
        // A band ends where a row ends, unless there is but one or the image is read in place.
        let by_rows = matches!(source, Source::Band(_)) && grid[0] > 1;
        let unit = if by_rows { grid[1].max(1) } else { tile_pixels };
        let units = pixels.div_ceil(unit).max(1);

        let mut panel_blocks = slide.out_channels.div_ceil(blocking.out_channels).max(1);
        let widest_block = |blocks: usize| slide.out_channels.div_ceil(blocks) + tile_rows(self.isa);
        let most_units = {
            let by_sums = if channel_blocks > 1 {
                blocking.sums / widest_block(panel_blocks).saturating_mul(unit)
            } else {
                units
            };
            let by_band = match source {
                Source::Band(layout) => {
                    let column = slide.phases.len().saturating_mul(channel_block).max(1);
                    match by_rows {
                        true => {
                            (blocking.band / column.saturating_mul(layout.pitch).max(1)).saturating_sub(slide.extra[0])
                        }
                        false => {
                            let column = column.saturating_mul(slide.extra[0].saturating_add(1));
                            (blocking.band / column).saturating_sub(slide.extra[1]) / unit
                        }
                    }
                }
                _ => units,
            };
            by_sums.min(by_band).min((blocking.pixels / unit).max(1)).clamp(1, units)
        };
        // Few tasks must come out even between the threads: bands where there are many pixels, else blocks of panels.
        let images = batch.saturating_mul(self.groups);
        let mut bands = units.div_ceil(most_units);
        let threads = threads.min(MOST_THREADS);
        let few = |tasks: usize| threads > 1 && tasks > 0 && tasks < threads * blocking.tasks_per_thread;
        if few(images * panel_blocks * bands) && !(images * panel_blocks * bands).is_multiple_of(threads) {
            let even = (bands.max(threads)).next_multiple_of(threads);
            if units >= even && pixels / even >= EVEN_TILES * tile_pixels {
                bands = even;
            } else {
                let blocks = panel_blocks.max(threads).next_multiple_of(threads);
                panel_blocks = blocks.min(self.panels.count().max(1));
            }
        }
        // Bands differ by one unit at most. The number of them that leaves the least of the last vectors empty, or of a
        // thread's time, where that is worth what more of them copy.
        let work = |bands: usize| {
            let (least, larger) = (units / bands, units % bands);
            let vectors = |units: usize| units.saturating_mul(unit).div_ceil(self.isa.lanes());
            let all = larger * vectors(least + 1) + (bands - larger) * vectors(least);
            let tasks = images * panel_blocks * bands;
            if few(tasks) { tasks.div_ceil(threads).saturating_mul(all) / bands } else { all }
        };
        let fewest = bands;
        let weight = |&bands: &usize| work(bands).saturating_mul(MORE_BANDS + bands - fewest);
        let bands = (fewest..=(fewest + (fewest / 3).min(MOST_MORE_BANDS)).min(units)).min_by_key(weight).unwrap_or(1);
        let band_units = units.div_ceil(bands);

        let depth = channel_block * taps;
        let source = match source {
            Source::Band(_) if by_rows => Source::Band(BandLayout::new(slide, band_units, grid[1])),
            Source::Band(_) => Source::Band(BandLayout::new(slide, 1, (band_units * unit).min(grid[1]))),
            other => other,
        };
        let band_len = match source {
            // What a tile reads beyond its last result.
            Source::Band(layout) => {
                (channel_block * layout.channel_len + MAX_PIXELS + slide.extra[1]).next_multiple_of(LINE)
            }
            _ => 0,
        };
        let rows = match source {
            Source::Band(layout) if !self.im2col && by_rows => {
                TileRows::best(self.isa.lanes(), layout.pitch, [band_units, grid[1]], depth)
            }
            _ => TileRows::Flat { pitch: grid[1] },
        };
        let band_pixels = (band_units * unit).min(pixels);
        let tiles = rows.tiles(band_pixels, grid[1].max(1), tile_pixels);
        let sums_rows = widest_block(panel_blocks).min(slide.out_channels);
        let sums_len = match channel_blocks {
            1 => MAX_ROWS * MAX_PIXELS,
            _ => tiles * tile_pixels * sums_rows,
        };
        let packs = self.im2col || source == Source::Gather;
        // Taps that are neighbours in a row of the band read the same elements.
        let shared = if packs { 1 } else { slide.extra[1] + 1 };
        let strip_tiles = (blocking.strip.saturating_mul(shared) / (depth * tile_pixels).max(1)).clamp(1, MAX_STRIP);
        let strip_tiles = match rows {
            // Strips end where rows end, or pairs of them.
            TileRows::Aligned { tiles, .. } | TileRows::Paired { vectors: tiles, .. } => {
                tiles.div_ceil(tiles.div_ceil(strip_tiles).max(1)).max(1)
            }
            TileRows::Flat { .. } | TileRows::Broken { .. } => strip_tiles,
        };
        Cut {
            grid,
            source,
            channel_block,
            channel_blocks,
            panel_blocks,
            bands,
            tasks: images * panel_blocks * bands,
            table_len: if source == Source::Gather { 0 } else { depth },
            sums_len: sums_len.next_multiple_of(LINE),
            band_len,
            tiles_len: if packs { (strip_tiles * depth * tile_pixels + MAX_PIXELS).next_multiple_of(LINE) } else { 0 },
            own: PixelCut { units: Units { unit, units }, strip_tiles, rows },
        }
    }
}

struct Task<'a> {
    context: &'a Context<'a, PixelLanes>,
    task: usize,
    slot: usize,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { context, task, slot } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let (slide, panels) = (&plan.slide, plan.panels);
        let tile_pixels = NV * S::LANES;
        let (rest, band) = (task / cut.bands, task % cut.bands);
        let (image, panel_block) = (rest / cut.panel_blocks, rest % cut.panel_blocks);
        let group = image % plan.groups;
        let first_panel = panels.count() * panel_block / cut.panel_blocks;
        let last_panel = panels.count() * (panel_block + 1) / cut.panel_blocks;
        let (first_channel, taps) = (panels.start(first_panel), slide.taps.len());
        let channels = panels.start(last_panel) - first_channel;

        let [_, columns] = cut.grid;
        let pixels = cut.grid[0] * columns;
        let band = cut.own.units.band(cut.bands, band, pixels);
        let (first_pixel, last_pixel) = (band.start, band.end);
        let [first_row, first_column] = [first_pixel / columns, first_pixel % columns];
        let pitch = cut.own.rows.pitch();
        let tiles = cut.own.rows.tiles(last_pixel - first_pixel, columns, tile_pixels);
        // Im2col tiles run through the results alone, direct tiles mostly through the band as it lies in memory.
        let in_band = matches!(cut.source, Source::Band(_)) && !plan.im2col;
        let broken = const { S::LANES >= BROKEN_LANES } && matches!(cut.own.rows, TileRows::Broken { .. });
        let gaps = in_band && !broken && pitch > columns;
        let flat_pixels = match gaps {
            true => ((last_pixel - first_pixel) / columns - 1) * pitch + columns,
            false => last_pixel - first_pixel,
        };
        let size = [(last_pixel - first_pixel) / columns, columns];

        let plane = context.in_size[0] * context.in_size[1];
        // SAFETY: `slot < slots`, and the workspace holds `slots` times `scratch_len` elements.
        let sums = unsafe { context.scratch.add(slot * cut.scratch_len()) };
        let band_copy = sums.wrapping_add(cut.sums_len);
        let packed_tiles = band_copy.wrapping_add(cut.band_len);
        let weights = plan.packed.as_ptr().wrapping_add(group * slide.out_channels * slide.depth());
        let input = context.input[image * slide.in_channels * plane..][..slide.in_channels * plane].as_ptr();

        let first_channel_of_image = image / plan.groups * plan.groups * slide.out_channels;
        let finish = Finish {
            post: &context.post,
            output: context.output,
            plane: context.out_size[0] * context.out_size[1],
            column_step: slide.out_step[1],
            stream: context.output_len >= plan.blocking.stream_from,
        };
        let mut laps = Laps::start();
        // Of each tile of a strip.
        let mut strip_places = [Places::default(); MAX_STRIP];
        let mut strip_runs = [None; MAX_STRIP];
        let mut strip_vectors = [Vectors::default(); MAX_STRIP];
        let mut strip_lens = [0; MAX_STRIP];
        for block in 0..cut.channel_blocks {
            let first_in = block * cut.channel_block;
            let in_block = cut.channel_block.min(slide.in_channels - first_in.min(slide.in_channels));
            let depth = in_block * taps;
            let (first, last) = (block == 0, block + 1 == cut.channel_blocks);
            let block_input = input.wrapping_add(first_in * plane);
            let source = match cut.source {
                Source::Band(layout) => {
                    for channel in 0..in_block {
                        // SAFETY: the channel is inside of the image, and `band_len` holds a whole block.
                        unsafe {
                            let from = block_input.add(channel * plane);
                            let to = band_copy.add(channel * layout.channel_len);
                            fill_channel(simd, slide, layout, from, context.in_size, [first_row, first_column], to);
                        }
                    }
                    band_copy.cast_const()
                }
                // Rows and columns before the first shift are read by no tap.
                Source::InPlace(layout) => block_input.wrapping_add(layout.origin(slide)),
                Source::Gather => block_input,
            };
            let packed_len = depth * tile_pixels;
            // The patches of a single tap are the image itself: the first panel reads them where they are.
            let packs_on_the_way = match cut.source {
                Source::InPlace(layout) => taps == 1 && layout.pitch == columns,
                _ => false,
            };
            let mut strip = 0;
            while strip < tiles {
                let strip_tiles = cut.own.strip_tiles.min(tiles - strip);
                // How many whole tiles from this one on follow each other on both sides.
                let mut strip_counts = [0; MAX_STRIP];
                let mut head = 0;
                for t in 0..strip_tiles {
                    let Span { flat, len, second } = cut.own.rows.span(strip + t, S::LANES, size, flat_pixels);
                    strip_lens[t] = len;
                    let (runs, apart) = match gaps {
                        true if second.is_some() => (Runs::pair(flat, S::LANES, pitch, columns, first_row), pitch),
                        true => (Runs::new(flat, len, pitch, columns, first_row), pitch),
                        false => (Runs::new(first_pixel + flat, len, columns, columns, 0), columns),
                    };
                    strip_places[t] = Places::new(slide, cut.grid, context.out_size[1], apart, runs);
                    strip_runs[t] = strip_places[t].single();
                    if in_band {
                        strip_vectors[t] = match broken {
                            true => Vectors::broken(flat, len, S::LANES, pitch, columns),
                            false => {
                                let starts = [flat, second.unwrap_or(flat)];
                                Vectors { starts, is_pair: second.is_some(), ..Vectors::default() }
                            }
                        };
                    }
                    let joins = t > 0
                        && strip_lens[t - 1] == tile_pixels
                        && len == tile_pixels
                        && (!in_band || Vectors::follow(strip_vectors[t - 1], strip_vectors[t], tile_pixels))
                        && Place::follow(strip_runs[t - 1], strip_runs[t], tile_pixels);
                    if !joins {
                        head = t;
                    }
                    strip_counts[head] += 1;
                    if in_band || packs_on_the_way && len == tile_pixels {
                        continue;
                    }
                    let offsets = context.table.get(..depth).unwrap_or(&[]);
                    // SAFETY: `tiles_len` holds `depth` rows of each tile of a strip, and a row more.
                    unsafe {
                        let to = packed_tiles.add(t * packed_len);
                        match cut.source {
                            Source::Band(layout) => {
                                let source = source.wrapping_sub(first_column);
                                pack_tile(simd, source, layout.pitch, first_row, offsets, runs, to, usize::MAX);
                            }
                            Source::InPlace(layout) => {
                                // The last element that a tap reaches is the last of the block.
                                let highest =
                                    (in_block.max(1) - 1) * plane + slide.extra[0] * layout.pitch + slide.extra[1];
                                let end = (in_block * plane).saturating_sub(highest + layout.origin(slide));
                                pack_tile(simd, source, layout.pitch, 0, offsets, runs, to, end);
                            }
                            Source::Gather => {
                                gather_tile(slide, source, context.in_size, runs, in_block, tile_pixels, to);
                            }
                        }
                    }
                }
                laps.lap(Stage::Pack);
                for panel in first_panel..last_panel {
                    let (start, end) = (panels.start(panel), panels.start(panel + 1));
                    let rows = end - start;
                    let lhs = weights.wrapping_add(start * slide.depth() + first_in * taps * rows);
                    let channel = group * slide.out_channels + start;
                    let offset = (first_channel_of_image + channel) * finish.plane;
                    let mut t = 0;
                    while t < strip_tiles {
                        let tile = strip + t;
                        let (vectors, len) = (&strip_vectors[t], strip_lens[t]);
                        let (sums, sums_step) = match cut.channel_blocks {
                            1 => (sums, 0),
                            _ => {
                                let at = (tile * channels + start - first_channel) * tile_pixels;
                                (sums.wrapping_add(at), channels * tile_pixels)
                            }
                        };
                        let whole = if last { finish.whole(simd, channel, offset, strip_runs[t]) } else { None };
                        let fresh = packs_on_the_way && len == tile_pixels && panel == first_panel;
                        let count = if !fresh && (whole.is_some() || !last) { strip_counts[t].max(1) } else { 1 };
                        // SAFETY: the panel holds `rows` rows of the whole depth; the tile's right-hand rows are in the
                        // band (which has a tile to spare at its end) or in the packed tile, or in the image, which has
                        // all of a whole tile's pixels; the sums hold the tile; the channels
                        // are those of the image, the places lie in its plane. So it is for
                        // every tile.
                        unsafe {
                            let scattered = || {
                                let starts = vectors.starts.map(|start| source.wrapping_add(start));
                                ScatteredRhs { starts, offsets: context.table.as_ptr() }
                            };
                            if vectors.is_broken {
                                let rhs = BrokenRhs { first: scattered(), kept: vectors.kept, gap: pitch - columns };
                                let series = Series { count, rhs_step: 0, sums_step };
                                Tile { lhs, rhs, depth, sums, first, whole }.multiply(simd, rows, len, series);
                            } else if const { S::LANES < BROKEN_LANES } && vectors.is_pair {
                                let series = Series { count, rhs_step: 0, sums_step };
                                Tile { lhs, rhs: scattered(), depth, sums, first, whole }
                                    .multiply(simd, rows, len, series);
                            } else if in_band {
                                let start = source.add(vectors.starts[0]);
                                let rhs = OffsetRhs { start, offsets: context.table.as_ptr() };
                                let series = Series { count, rhs_step: tile_pixels, sums_step };
                                Tile { lhs, rhs, depth, sums, first, whole }.multiply(simd, rows, len, series);
                            } else if fresh {
                                let start = source.add(first_pixel + tile * tile_pixels);
                                let to = packed_tiles.add(t * packed_len);
                                let rhs = PackingRhs { start, row_stride: plane as isize, to };
                                let series = Series { count, rhs_step: 0, sums_step };
                                Tile { lhs, rhs, depth, sums, first, whole }.multiply(simd, rows, len, series);
                            } else {
                                let start = packed_tiles.add(t * packed_len);
                                let rhs = StridedRhs { start, row_stride: tile_pixels as isize };
                                let series = Series { count, rhs_step: packed_len, sums_step };
                                Tile { lhs, rhs, depth, sums, first, whole }.multiply(simd, rows, len, series);
                            }
                            if last && whole.is_none() {
                                laps.lap(Stage::Product);
                                finish.tile(simd, sums, rows, channel, offset, strip_places[t]);
                                laps.lap(Stage::Epilogue);
                            }
                        }
                        t += count;
                    }
                }
                laps.lap(Stage::Product);
                strip += strip_tiles;
            }
        }
        if finish.stream {
            simd.fence();
        }
    }
}
