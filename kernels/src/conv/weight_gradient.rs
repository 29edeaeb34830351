//! The gradient of the weights: a product whose inner dimension is batch x pixels, read straight from the image.
//!
//! ```text
//!                               dy transposed: pixels x NV * LANES output channels
//!                              ┌────────┬────────┐
//!   image, from its band:      └────────┴────────┘
//!   6 rows, one for each    ┌─┐┌────────┬────────┐
//!   (ic, tap); pixel after  │ ││   dw   │   dw   │   dw[ic, tap][oc] += image[ic][pixel + tap] * dy[oc][pixel]
//!   pixel is broadcast      └─┘└────────┴────────┘
//!
//! for each task: group, block of panels, block of input channels
//!   for each block of pixels: some rows of an image, a part of one, or some small images      (k, in order)
//!     transpose dy, copy the band
//!     for each panel, for each tile of (ic, tap): continue its chains row by row
//!   store the tiles, transposed
//! ```
//!
//! No patch is ever copied: a broadcast does not care how far apart the elements are, so a stride costs nothing.
//! Each gradient is one chain over all pixels of the batch in order, whatever the blocks.

use super::algorithm::BackwardWeightsCall;
use super::band::Offsets as _;
use super::blocking::{Blocking, SLOT_LIMIT};
use super::border;
use super::channel_tile::{ChannelTile, MAX_ROWS, Products, panel_vectors};
use super::dense::PEAK_FLOPS;
use super::image_band::ImageBand;
use super::panels::Panels;
use super::slide::Slide;
use super::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::gemm::lhs::RowsLhs;
use crate::gemm::micro::multiply;
use crate::gemm::rhs::StridedRhs;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned, round_up, split_indices};

/// What a row of pixels costs to start, in pixels, with AVX2: this and the next are fitted to 80 layers of `kernelbench
/// conv --random` on Zen 4.
const NARROW_START: f64 = 6.0;
/// So many times what it has to compute takes a tile of a single vector.
const NARROW_SINGLE: f64 = 1.6;

/// The gradient of the weights of a dense or grouped convolution.
#[derive(Clone, Debug)]
pub(super) struct WeightGradient {
    spec: Conv2dSpec,
    slide: Slide,
    groups: usize,
    layout: Layout,
    isa: Isa,
    blocking: Blocking,
    panel_len: usize,
}

/// How a call is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    grid: [usize; 2],
    panel_blocks: usize,
    channel_blocks: usize,
    /// Rows of a block of pixels, its columns (all of them, unless it is a part of one row), and the number of images
    /// that it spans (1 unless it holds whole images).
    rows: usize,
    columns: usize,
    images: usize,
    band: ImageBand,
    tasks: usize,
    table_len: usize,
    sums_len: usize,
    dy_len: usize,
    band_len: usize,
}

impl Cut {
    fn scratch_len(&self) -> usize {
        self.sums_len.saturating_add(self.dy_len).saturating_add(self.band_len)
    }
}

impl WeightGradient {
    pub fn new(spec: &Conv2dSpec, isa: Isa, blocking: Blocking) -> Self {
        let panel_len = panel_vectors(isa) * isa.lanes();
        Self {
            spec: *spec,
            slide: Slide::forward(spec),
            groups: spec.groups,
            layout: spec.layout,
            isa,
            blocking,
            panel_len,
        }
    }

    /// The expected seconds on one thread.
    pub fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes, isa: Isa) -> f64 {
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        // Tiles of few chains wait for their latency: 4 cycles, of two additions each where vectors are not halved.
        let chains = if isa == Isa::Avx512 { 4 } else { 8 };
        let least = chains / group_out.div_ceil(isa.lanes()).clamp(1, chains);
        let rows = (spec.groups * (group_in * spec.kernel[0] * spec.kernel[1]).max(least)) as f64;
        // A row of a tile takes its lanes whether they are used or not, and a row of pixels starts as slowly as if it
        // had some more.
        let lanes = group_out.next_multiple_of(isa.lanes()) as f64;
        // Steps of small tiles are shorter, and a tile of one vector needs as many broadcasts as products.
        let (start, single) = if isa == Isa::Avx512 { (1.0, 1.0) } else { (NARROW_START, NARROW_SINGLE) };
        let single = if group_out <= isa.lanes() { single } else { 1.0 };
        let pixels = single * hint.batch as f64 * sizes.output[0] as f64 * (sizes.output[1] as f64 + start);
        // Where few taps meet a pixel of the image, each line of it is read for few products: measured on Zen 4, 1.6
        // times as long with one tap, 1.3 times with 3x3 taps of stride 2, no longer with 3x3 taps of stride 1.
        let reuse = (spec.kernel[0] * spec.kernel[1]) as f64 / (spec.stride[0] as f64 * spec.stride[1] as f64);
        2.0 * rows * lanes * pixels / PEAK_FLOPS * (1.0 + 0.5 / reuse.max(1.0))
    }

    fn panels(&self) -> usize {
        self.slide.out_channels.div_ceil(self.panel_len)
    }

    /// Elements of a row of a panel.
    fn row_len(&self, panel: usize) -> usize {
        (self.slide.out_channels - panel * self.panel_len).min(self.panel_len).next_multiple_of(self.isa.lanes())
    }

    /// `None` where even the smallest block would be larger than the limit.
    fn cut(&self, shape: Shape, sizes: &Sizes, threads: usize) -> Option<Cut> {
        let (slide, blocking) = (&self.slide, &self.blocking);
        let grid = sizes.output;
        let mut columns = grid[1].max(1);
        let taps = slide.taps.len();
        // A task's sums and its copies of dy and of the image should share the second-level cache.
        let mut panel_blocks = self.panels().div_ceil((64 / self.panel_len).max(1)).max(1);
        let panels = self.panels().div_ceil(panel_blocks);
        let most_channels = (blocking.sums / (taps * panels * self.panel_len)).clamp(1, slide.in_channels);
        let mut channel_blocks = slide.in_channels.div_ceil(most_channels);
        // Enough tasks for the threads; the least work is repeated when panels are split.
        while self.groups * panel_blocks * channel_blocks < threads {
            if panel_blocks < self.panels() {
                panel_blocks = (panel_blocks * 2).min(self.panels());
            } else if channel_blocks < slide.in_channels {
                channel_blocks = (channel_blocks * 2).min(slide.in_channels);
            } else {
                break;
            }
        }
        let wanted = blocking.gradient_pixels;
        let whole = grid[0].saturating_mul(columns);
        let (mut rows, images) = match wanted.checked_div(whole) {
            Some(images) if images > 0 => (grid[0].max(1), images.min(shape.batch.max(1))),
            _ => ((wanted / columns).clamp(1, grid[0].max(1)), 1),
        };
        loop {
            let (panels, channels) = (self.panels().div_ceil(panel_blocks), slide.in_channels.div_ceil(channel_blocks));
            let band = ImageBand::copy(slide, self.layout, channels, rows, columns);
            let cut = band.map(|band| {
                let images = if rows < grid[0] { 1 } else { images };
                let pixels = images.saturating_mul(rows).saturating_mul(columns);
                Cut {
                    grid,
                    panel_blocks,
                    channel_blocks,
                    rows,
                    columns,
                    images,
                    band,
                    tasks: self.groups * panel_blocks * channel_blocks,
                    table_len: channels * taps,
                    sums_len: (channels * taps * panels * self.panel_len).next_multiple_of(LINE),
                    dy_len: round_up(pixels.saturating_mul(panels * self.panel_len)),
                    band_len: round_up(images.saturating_mul(band.len)),
                }
            });
            let near = cut.is_some_and(|cut| cut.band_len <= blocking.band);
            let fits = cut.is_some_and(|cut| cut.scratch_len() <= SLOT_LIMIT);
            // What is near is wanted, what fits is a must; a row is cut only where a block has no other.
            if rows > 1 && !(near && fits) {
                rows = rows.div_ceil(2);
            } else if columns > wanted && !near || columns > MAX_ROWS && !fits {
                columns = columns.div_ceil(2);
            } else if fits {
                return cut;
            } else if channel_blocks < slide.in_channels {
                channel_blocks = (channel_blocks * 2).min(slide.in_channels);
            } else if panel_blocks < self.panels() {
                panel_blocks = (panel_blocks * 2).min(self.panels());
            } else {
                return None;
            }
        }
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.cut(shape, sizes, slots).map_or(0, |cut| {
            let table = LINE + split_indices::len(cut.table_len);
            slots.min(cut.tasks).saturating_mul(cut.scratch_len()).saturating_add(table)
        })
    }

    /// Computes `dw`.
    pub fn run(&self, call: BackwardWeightsCall<'_>) {
        let BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism } = call;
        let Some(cut) = self.cut(shape, &sizes, slots).filter(|cut| shape.batch > 0 && !cut.grid.contains(&0)) else {
            for index in 0..dw.len() {
                dw[index] = border::backward_weight(self.isa, &self.spec, shape, &sizes, x, dy, index);
            }
            return;
        };
        let (table, scratch) = split_indices::split(aligned(workspace), cut.table_len);
        cut.band.fill_offsets(&self.slide, table);
        debug_assert!(scratch.len() >= slots.min(cut.tasks) * cut.scratch_len());
        let context =
            Context { plan: self, cut, shape, sizes, x, dy, dw: dw.as_mut_ptr(), table, scratch: scratch.as_mut_ptr() };
        let flops = 2.0 * dw.len() as f64 * (shape.batch * cut.grid[0] * cut.grid[1]) as f64;
        let limited = parallelism.for_seconds(flops / self.blocking.flops_per_second);
        let context = &context;
        limited.for_each(cut.tasks, slots, &move |task, slot| {
            dispatch(self.isa, Task { context, task, slot });
        });
        border::repair_weights(self.isa, &self.spec, shape, &sizes, x, dy, dw);
    }
}

struct Context<'a> {
    plan: &'a WeightGradient,
    cut: Cut,
    shape: Shape,
    sizes: Sizes,
    x: &'a [f32],
    dy: &'a [f32],
    dw: *mut f32,
    table: &'a [usize],
    scratch: *mut f32,
}

// SAFETY: tasks write disjoint output and input channels of `dw`, and disjoint parts of `scratch` (a slot belongs to
// one running task); everything else is only read.
unsafe impl Sync for Context<'_> {}

struct Task<'a> {
    context: &'a Context<'a>,
    task: usize,
    slot: usize,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { context, task, slot } = self;
        let (plan, cut, shape) = (context.plan, &context.cut, context.shape);
        let slide = &plan.slide;
        let (rest, channel_block) = (task / cut.channel_blocks, task % cut.channel_blocks);
        let (group, panel_block) = (rest / cut.panel_blocks, rest % cut.panel_blocks);
        let first_panel = plan.panels() * panel_block / cut.panel_blocks;
        let last_panel = plan.panels() * (panel_block + 1) / cut.panel_blocks;
        let first_in = slide.in_channels * channel_block / cut.channel_blocks;
        let channels = slide.in_channels * (channel_block + 1) / cut.channel_blocks - first_in;
        let taps = slide.taps.len();
        let tiles = Panels::new(channels * taps, MAX_ROWS);

        // SAFETY: `slot < slots`, and the workspace holds `slots` times `scratch_len` elements.
        let sums = unsafe { context.scratch.add(slot * cut.scratch_len()) };
        let packed_dy = sums.wrapping_add(cut.sums_len);
        let bands = packed_dy.wrapping_add(cut.dy_len);

        // Blocks of pixels: `images` whole images, `rows` rows of one, or `columns` columns of a row.
        let blocks_of_columns = cut.grid[1].div_ceil(cut.columns);
        let blocks = cut.grid[0].div_ceil(cut.rows) * blocks_of_columns;
        let mut laps = Laps::start();
        let mut first = true;
        let mut n = 0;
        while n < shape.batch {
            let images = cut.images.min(shape.batch - n);
            for block in 0..blocks {
                let corner = [block / blocks_of_columns * cut.rows, block % blocks_of_columns * cut.columns];
                let rows = cut.rows.min(cut.grid[0] - corner[0]);
                let columns = cut.columns.min(cut.grid[1] - corner[1]);
                let (first_pixel, pixels) = (corner[0] * cut.grid[1] + corner[1], rows * columns);
                for image in 0..images {
                    // SAFETY: the scratch holds the bands and dy of `cut.images` images; rows and channels are inside.
                    unsafe {
                        let to = bands.add(image * cut.band.len);
                        fill_band(simd, context, n + image, group, first_in, channels, corner, to);
                        for panel in first_panel..last_panel {
                            let row_len = plan.row_len(panel);
                            let panel_dy = packed_dy.add((panel - first_panel) * plan.panel_len * images * pixels);
                            let to = panel_dy.add(image * pixels * row_len);
                            pack_dy(simd, context, n + image, group, panel, first_pixel, pixels, to);
                        }
                    }
                }
                laps.lap(Stage::Pack);
                for panel in first_panel..last_panel {
                    let row_len = plan.row_len(panel);
                    let panel_dy = packed_dy.wrapping_add((panel - first_panel) * plan.panel_len * images * pixels);
                    let panel_sums = sums.wrapping_add((panel - first_panel) * plan.panel_len * channels * taps);
                    for tile in 0..tiles.count() {
                        let (from, to) = (tiles.start(tile), tiles.start(tile + 1));
                        let mut starts = [0; MAX_ROWS];
                        starts[..to - from].copy_from_slice(&context.table[from..to]);
                        // SAFETY: the tile's windows lie in the bands, dy holds all pixels, the sums hold the tile.
                        unsafe {
                            let products = Pixels {
                                starts: &starts,
                                bands,
                                band: cut.band,
                                images,
                                rows,
                                columns,
                                stride: slide.stride,
                                dy: panel_dy,
                            };
                            let sums = panel_sums.add(from * row_len);
                            ChannelTile { products, sums, first }.multiply(simd, to - from, row_len);
                        }
                    }
                }
                laps.lap(Stage::Product);
                first = false;
            }
            n += images;
        }

        for panel in first_panel..last_panel {
            let row_len = plan.row_len(panel);
            let panel_sums = sums.wrapping_add((panel - first_panel) * plan.panel_len * channels * taps);
            let first_out = panel * plan.panel_len;
            for lane in 0..(slide.out_channels - first_out).min(plan.panel_len) {
                let oc = group * slide.out_channels + first_out + lane;
                for row in 0..channels * taps {
                    // SAFETY: the row's gradient belongs to this task's channels.
                    unsafe {
                        let at = (oc * slide.in_channels + first_in) * taps + row;
                        *context.dw.add(at) = *panel_sums.add(row * row_len + lane);
                    }
                }
            }
        }
        laps.lap(Stage::Epilogue);
    }
}

/// Copies the band of the block whose first row and column are `corner`.
///
/// # Safety
/// - `to` is writable for the band; the channels are inside of the group.
#[inline(always)]
unsafe fn fill_band<S: Simd>(
    simd: S,
    context: &Context<'_>,
    n: usize,
    group: usize,
    first_in: usize,
    channels: usize,
    corner: [usize; 2],
    to: *mut f32,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let all_channels = plan.slide.in_channels * plan.groups;
    let plane = context.sizes.input[0] * context.sizes.input[1];
    let first = group * plan.slide.in_channels + first_in;
    let start = match plan.layout {
        Layout::Nchw => (n * all_channels + first) * plane,
        Layout::Nhwc => n * all_channels * plane + first,
    };
    let image = context.x[start.min(context.x.len())..].as_ptr();
    // The last block of channels may be smaller: its band keeps the distances of the full one.
    let (input, layout) = (context.sizes.input, plan.layout);
    // SAFETY: the caller's contract.
    unsafe { cut.band.fill(simd, &plan.slide, layout, channels, image, all_channels, input, corner, to) }
}

/// Transposes `pixels` pixels of a panel's channels: `to[pixel][channel]`.
///
/// # Safety
/// - `to` is writable for `pixels` rows of the panel; the pixels are inside of the image.
#[inline(always)]
unsafe fn pack_dy<S: Simd>(
    simd: S,
    context: &Context<'_>,
    n: usize,
    group: usize,
    panel: usize,
    first_pixel: usize,
    pixels: usize,
    to: *mut f32,
) {
    let plan = context.plan;
    let row_len = plan.row_len(panel);
    let first_out = panel * plan.panel_len;
    let channels = (plan.slide.out_channels - first_out).min(plan.panel_len);
    let all_channels = plan.slide.out_channels * plan.groups;
    let plane = context.cut.grid[0] * context.cut.grid[1];
    let oc = group * plan.slide.out_channels + first_out;
    match plan.layout {
        Layout::Nhwc => {
            let from = context.dy[(n * plane + first_pixel) * all_channels + oc..].as_ptr();
            for pixel in 0..pixels {
                let mut lane = 0;
                while lane < row_len {
                    // SAFETY: only the panel's channels are read.
                    unsafe {
                        let value =
                            simd.load_first(from.add(pixel * all_channels + lane), channels.saturating_sub(lane));
                        simd.store(to.add(pixel * row_len + lane), value);
                    }
                    lane += S::LANES;
                }
            }
        }
        Layout::Nchw => {
            let from = context.dy[(n * all_channels + oc) * plane + first_pixel..].as_ptr();
            let mut lane = 0;
            while lane < row_len {
                let present = channels.saturating_sub(lane).min(S::LANES);
                let mut pixel = 0;
                while pixel < pixels {
                    let count = (pixels - pixel).min(S::LANES);
                    // SAFETY: `count` pixels of `present` channels are read, `count` rows written.
                    unsafe {
                        let (from, to) = (from.add(lane * plane + pixel), to.add(pixel * row_len + lane));
                        if count == S::LANES && present == S::LANES {
                            simd.transpose(from, plane as isize, to, row_len as isize);
                        } else {
                            for p in 0..count {
                                for l in 0..S::LANES {
                                    let value = if l < present { *from.add(l * plane + p) } else { 0.0 };
                                    *to.add(p * row_len + l) = value;
                                }
                            }
                        }
                    }
                    pixel += S::LANES;
                }
                lane += S::LANES;
            }
        }
    }
}

/// What the sums of a tile of weights run through: all rows of a block of pixels.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    /// Where the window of each `(ic, tap)` starts, from the start of the band.
    starts: &'a [usize; MAX_ROWS],
    /// `images` bands that hold all windows.
    bands: *const f32,
    band: ImageBand,
    images: usize,
    rows: usize,
    columns: usize,
    stride: [usize; 2],
    /// The panel's channels of every pixel.
    dy: *const f32,
}

impl Products for Pixels<'_> {
    #[inline(always)]
    unsafe fn add_to<S: Simd, const ROWS: usize, const V: usize>(self, simd: S, acc: &mut [[S::F; V]; ROWS]) {
        let Self { starts, bands, band, images, rows, columns, stride, mut dy } = self;
        let row_len = V * S::LANES;
        let step = (stride[1] * band.column_step) as isize;
        for image in 0..images {
            for r in 0..rows {
                // SAFETY: what the fields promise, for `ROWS` rows of `V` vectors.
                unsafe {
                    let start = bands.add(image * band.len + r * stride[0] * band.row_step);
                    let mut windows = [start; ROWS];
                    for i in 0..ROWS {
                        windows[i] = start.add(starts[i]);
                    }
                    let rhs = StridedRhs { start: dy, row_stride: row_len as isize };
                    multiply(simd, acc, RowsLhs { rows: windows, step }, rhs, columns);
                    dy = dy.add(columns * row_len);
                }
            }
        }
    }
}
