//! The gradient of the weights as a product of matrices: patches, transposed, by `dy`, transposed.
//!
//! ```text
//!                               dy, packed: pixels x output channels
//!                              ┌────────┬────────┐
//!   patches: a strip of rows   └────────┴────────┘
//!   (ic, kh, kw), a block of  ┌┐┌────────┬────────┐
//!   pixels long, copied from  ││├─ sums ─┼────────┤    sums[ic, kh, kw][oc]
//!   the image, or in it where └┘└────────┴────────┘
//!   there is one tap
//!
//! for each task: piece of the batch's pixels, group, block of output channels, block of rows
//!   for each block of pixels, of one image or of several      (in order)
//!     pack dy
//!     for each strip of rows: copy its patches unless they are rows of the image, continue its sums
//! add the pieces' sums, write them transposed
//! ```
//!
//! The patch matrix never exists: a strip of it stays in L1 for as long as it meets the panels of `dy`. Patches of a
//! single tap are runs of the image, which are read where they are if they are long; blocks of pixels then end where
//! images end. Where there is a stride, the pixels that the tap meets are first brought together, all at once: every
//! block of output channels would gather them again, a row here and there.
//!
//! Few weights are few tasks, and each would pack all of `dy`. So the pixels of the batch are then cut into pieces, by
//! the shape alone, whose sums are added in a fixed tree: `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`. Everything else
//! that is cut changes no bit.
//!
//! Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for document processing"
//! (2006).

mod patches;
mod sums;

use std::ops::Range;

use crate::conv::algorithm::BackwardWeightsCall;
use crate::conv::blocking::Blocking;
use crate::conv::border;
use crate::conv::dense::PEAK_FLOPS;
use crate::conv::pixel_runs::PixelRuns;
use crate::conv::spec::{Conv2dSpec, Layout, Padding, Shape, Sizes};
use crate::gemm::lhs::{ContiguousRows, RowsAhead};
use crate::gemm::tile::{Ends, MAX_HEIGHT, Matrix, NV, PackedBlock, max_height, strip_across};
use crate::gemm::{Strips, pack_panels};
use crate::parts::{Shared, share};
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned, round_up};
use patches::{Together, copy_patches};
use sums::{Merge, write};

/// Pieces of the pixels, at most.
const MAX_PIECES: usize = 8;
/// Sums of all pieces together, at most, in elements: 1 MiB.
const MAX_PIECE_SUMS: usize = 1 << 18;
/// Pixels of a piece, at least.
const PIECE_PIXELS: usize = 1024;
/// Rows whose pieces are added by one task.
const MERGED_ROWS: usize = 16;
/// Pixels of a block, at most: 256 of them by 256 output channels are a quarter of a megabyte.
const MAX_PIXELS: usize = 256;
/// Pixels of an image whose patches are read in place, at least: sums are loaded and stored once for each block, and
/// blocks end with the image, so that 14 x 14 pixels gain a few percent (resnet50.4.1x1a, Zen 4) and 7 x 7 would make
/// too many blocks.
const IN_PLACE_PIXELS: usize = 128;
/// Rows of images that are a multiple of so many elements apart meet in two sets of L1 or in one: 7 of a strip of 14 in
/// each, beside a panel of `dy` and a line of sums, are too many for 8 ways.
const SHARED_SETS: usize = 512;
/// Rows of a task, at least: `dy` is packed once for them.
const LEAST_ROWS: usize = 56;

/// The gradient of the weights.
#[derive(Clone, Debug)]
pub(super) struct PatchGradient {
    spec: Conv2dSpec,
    isa: Isa,
    blocking: Blocking,
}

/// How a call is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Output pixels of an image, as one row if `flat`.
    grid: [usize; 2],
    /// Whether patches are runs of the image, or of what is left of it, `together_len` elements.
    flat: bool,
    together_len: usize,
    /// Whether patches are read where they are, in the image.
    in_place: bool,
    /// Rows of the product, of a group, in strips.
    strips: Strips,
    pieces: usize,
    oc_blocks: usize,
    row_blocks: usize,
    /// Pixels of a block.
    pixels: usize,
    tasks: usize,
    /// Elements from row to row of the sums.
    pitch: usize,
    dy_len: usize,
    strip_len: usize,
    /// Sums that a task keeps for itself, or that a piece of a group has.
    sums_len: usize,
    piece_len: usize,
}

impl Cut {
    fn scratch_len(&self) -> usize {
        self.dy_len.saturating_add(self.strip_len).saturating_add(self.sums_len)
    }

    /// Elements from row to row of a strip of patches: a line more than the pixels, so that rows do not share sets of
    /// L1.
    fn strip_pitch(&self) -> usize {
        self.pixels.next_multiple_of(LINE) + LINE
    }
}

/// Into how many pieces pixels are cut: a matter of the shape alone.
fn pieces(spec: &Conv2dSpec, batch: usize, plane: usize) -> usize {
    let rows = (spec.in_channels * spec.kernel[0]).saturating_mul(spec.kernel[1]);
    let sums = rows.saturating_mul((spec.out_channels / spec.groups).next_multiple_of(LINE));
    let pixels = batch.saturating_mul(plane);
    MAX_PIECES.min(MAX_PIECE_SUMS / sums.max(1)).min(pixels / PIECE_PIXELS).max(1)
}

impl PatchGradient {
    pub fn new(spec: &Conv2dSpec, isa: Isa, blocking: Blocking) -> Self {
        Self { spec: *spec, isa, blocking }
    }

    fn group_in(&self) -> usize {
        self.spec.in_channels / self.spec.groups
    }

    fn group_out(&self) -> usize {
        self.spec.out_channels / self.spec.groups
    }

    fn taps(&self) -> usize {
        self.spec.kernel[0] * self.spec.kernel[1]
    }

    fn cut(&self, shape: Shape, sizes: &Sizes, threads: usize) -> Cut {
        let (spec, blocking) = (&self.spec, &self.blocking);
        let plane = sizes.output[0].saturating_mul(sizes.output[1]);
        let single = self.taps() == 1 && spec.padding == Padding::default();
        let together = single && spec.stride != [1, 1] && spec.layout == Layout::Nchw;
        let flat = single && (together || spec.stride == [1, 1]);
        let grid = if flat { [1, plane] } else { sizes.output };
        let group_out = self.group_out();
        let nv = if group_out <= self.isa.lanes() { 1 } else { NV };
        let strips = Strips::new(self.group_in() * self.taps(), max_height(self.isa.registers(), nv));
        let nr = NV * self.isa.lanes();
        let panels = group_out.div_ceil(nr);
        let pieces = pieces(spec, shape.batch, plane);
        let mut oc_blocks = panels.div_ceil((blocking.out_channels / nr).max(1));
        let width = panels.div_ceil(oc_blocks) * nr;
        let height = strips.height(0);
        let most_strips = (4 * blocking.sums / width / height).clamp(1, strips.count);
        let mut row_blocks = strips.count.div_ceil(most_strips);
        let wanted = if threads > 1 { 2 * threads } else { 1 };
        let enough = |oc_blocks: usize, row_blocks: usize| spec.groups * pieces * oc_blocks * row_blocks >= wanted;
        while !enough(oc_blocks, row_blocks) && strips.count.div_ceil(row_blocks + 1) * height >= LEAST_ROWS {
            row_blocks += 1;
        }
        while !enough(oc_blocks, row_blocks) && oc_blocks < panels {
            oc_blocks += 1;
        }
        while !enough(oc_blocks, row_blocks) && row_blocks < strips.count {
            row_blocks += 1;
        }
        let width = (panels.div_ceil(oc_blocks) * nr).min(group_out.next_multiple_of(LINE));
        let rows = strips.count.div_ceil(row_blocks) * height;
        let (pitch, sums_len, piece_len) = if pieces == 1 {
            (width, round_up(rows * width), 0)
        } else {
            let pitch = group_out.next_multiple_of(LINE);
            (pitch, 0, strips.start(strips.count) * pitch)
        };
        let in_place =
            flat && spec.layout == Layout::Nchw && plane >= IN_PLACE_PIXELS && !plane.is_multiple_of(SHARED_SETS);
        let most = blocking.gradient_pixels.min(MAX_PIXELS);
        let pixels = if in_place { plane.div_ceil(plane.div_ceil(most)) } else { shape.batch.saturating_mul(plane) };
        let pixels = pixels.min(most).max(1);
        let cut = Cut {
            grid,
            flat,
            together_len: if together { round_up(shape.batch.saturating_mul(spec.in_channels) * plane) } else { 0 },
            in_place,
            strips,
            pieces,
            oc_blocks,
            row_blocks,
            pixels,
            tasks: spec.groups * pieces * oc_blocks * row_blocks,
            pitch,
            dy_len: round_up(pixels * width),
            strip_len: 0,
            sums_len,
            piece_len,
        };
        Cut { strip_len: MAX_HEIGHT * cut.strip_pitch(), ..cut }
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        let cut = self.cut(shape, sizes, slots);
        let shared = LINE + cut.together_len + self.spec.groups * cut.pieces * cut.piece_len;
        slots.min(cut.tasks).saturating_mul(cut.scratch_len()).saturating_add(shared)
    }

    /// Computes `dw`.
    pub fn run(&self, call: BackwardWeightsCall<'_>) {
        let BackwardWeightsCall { shape, sizes, x, dy, dw, workspace, slots, parallelism } = call;
        let cut = self.cut(shape, &sizes, slots);
        let (together, rest) = aligned(workspace).split_at_mut(cut.together_len);
        let (sums, scratch) = rest.split_at_mut(self.spec.groups * cut.pieces * cut.piece_len);
        debug_assert!(scratch.len() >= slots.min(cut.tasks) * cut.scratch_len());
        let (sums, scratch) = (sums.as_mut_ptr(), scratch.as_mut_ptr());
        let flops = 2.0 * dw.len() as f64 * (shape.batch * cut.grid[0] * cut.grid[1]) as f64;
        let limited = parallelism.for_seconds(flops / self.blocking.flops_per_second);
        let images = if cut.together_len > 0 {
            let to = Shared(together.as_mut_ptr());
            limited.for_each(shape.batch * self.spec.in_channels, slots, &|image, _| {
                let from = x[image * sizes.input[0] * sizes.input[1]..].as_ptr();
                let to = to.at(image * cut.grid[1]);
                dispatch(self.isa, Together { from, to, input: sizes.input, output: sizes.output, plan: self });
            });
            &*together
        } else {
            x
        };
        let context = Context { plan: self, cut, shape, sizes, x: images, dy, dw: dw.as_mut_ptr(), sums, scratch };
        let context = &context;
        limited.for_each(cut.tasks, slots, &move |task, slot| {
            dispatch(self.isa, Task { context, task, slot });
        });
        if cut.pieces > 1 {
            let blocks = (self.group_in() * self.taps()).div_ceil(MERGED_ROWS);
            limited.for_each(self.spec.groups * blocks, slots, &move |task, _| {
                dispatch(self.isa, Merge { context, group: task / blocks, block: task % blocks });
            });
        }
        border::repair_weights(self.isa, &self.spec, shape, &sizes, x, dy, dw);
    }
}

struct Context<'a> {
    plan: &'a PatchGradient,
    cut: Cut,
    shape: Shape,
    sizes: Sizes,
    /// The images, or what was brought together of them.
    x: &'a [f32],
    dy: &'a [f32],
    dw: *mut f32,
    /// `[group][piece][row][pitch]` if there is more than one piece.
    sums: *mut f32,
    scratch: *mut f32,
}

// SAFETY: tasks write disjoint output channels and rows of `dw` and of the pieces' sums, and disjoint parts of
// `scratch` (a slot belongs to one running task); everything else is only read.
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
        let (plan, cut) = (context.plan, &context.cut);
        let (rest, row_block) = (task / cut.row_blocks, task % cut.row_blocks);
        let (rest, oc_block) = (rest / cut.oc_blocks, rest % cut.oc_blocks);
        let (group, piece) = (rest / cut.pieces, rest % cut.pieces);
        let group_out = plan.group_out();
        let nr = NV * S::LANES;
        let panels = share(group_out.div_ceil(nr), cut.oc_blocks, oc_block);
        let channels = panels.start * nr..group_out.min(panels.end * nr);
        let strips = share(cut.strips.count, cut.row_blocks, row_block);
        let first_row = cut.strips.start(strips.start);
        let rows = cut.strips.start(strips.end) - first_row;
        let pixels = share(context.shape.batch * cut.grid[0] * cut.grid[1], cut.pieces, piece);

        // SAFETY: `slot < slots`, and the workspace holds `slots` times `scratch_len` elements.
        let packed_dy = unsafe { context.scratch.add(slot * cut.scratch_len()) };
        let patches = packed_dy.wrapping_add(cut.dy_len);
        let sums = if cut.pieces == 1 {
            patches.wrapping_add(cut.strip_len)
        } else {
            let at = (group * cut.pieces + piece) * cut.piece_len + first_row * cut.pitch + channels.start;
            context.sums.wrapping_add(at)
        };
        let stride = cut.pitch as isize;
        let mut laps = Laps::start();
        let mut first = pixels.start;
        while first < pixels.end {
            let plane = cut.grid[0] * cut.grid[1];
            let image_end = if cut.in_place { first / plane * plane + plane } else { pixels.end };
            let block = first..pixels.end.min(first + cut.pixels).min(image_end);
            let depth = block.len();
            let rhs = PackedBlock { start: packed_dy, depth, columns: channels.len() };
            debug_assert!(!cut.in_place || depth <= plane - first % plane);
            // SAFETY: the scratch holds a block of pixels of the task's channels and a strip of patches; the sums hold
            // its rows of its channels. In place, the strip's rows are channels of one image, with which
            // the block ends.
            unsafe {
                pack_dy(simd, context, group, channels.clone(), block.clone(), packed_dy);
                laps.lap(Stage::Pack);
                for strip in strips.clone() {
                    let (row, height) = (cut.strips.start(strip), cut.strips.height(strip));
                    let lhs = if cut.in_place {
                        let channel = first / plane * plan.spec.in_channels + group * plan.group_in() + row;
                        let start = context.x[channel * plane + first % plane..].as_ptr();
                        ContiguousRows { start, row_stride: plane as isize }
                    } else {
                        for i in 0..height {
                            let to = patches.add(i * cut.strip_pitch());
                            copy_patches(simd, context, group, row + i, block.clone(), to);
                        }
                        laps.lap(Stage::Pack);
                        ContiguousRows { start: patches, row_stride: cut.strip_pitch() as isize }
                    };
                    let to = sums.add((row - first_row) * cut.pitch);
                    let from = if first == pixels.start { std::ptr::null() } else { to.cast_const() };
                    let ends = Ends {
                        from,
                        from_stride: stride,
                        to,
                        to_stride: stride,
                        columns: channels.len(),
                        finish: None,
                    };
                    strip_across(simd, height, RowsAhead::alone(lhs), rhs, 0..depth, ends);
                    laps.lap(Stage::Product);
                }
            }
            first = block.end;
        }
        if cut.pieces == 1 {
            // SAFETY: the task's sums are complete, and these gradients are its own.
            unsafe { write(simd, context, group, first_row..first_row + rows, channels, sums) };
            laps.lap(Stage::Epilogue);
        }
    }
}

/// Packs `dy` of a block of pixels for some channels of a group.
///
/// # Safety
/// - `to` is writable for the pixels times the channels, in whole vectors; pixels and channels exist.
#[inline(always)]
unsafe fn pack_dy<S: Simd>(
    simd: S,
    context: &Context<'_>,
    group: usize,
    channels: Range<usize>,
    pixels: Range<usize>,
    to: *mut f32,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let plane = cut.grid[0] * cut.grid[1];
    let (all_channels, oc) = (plan.spec.out_channels, group * plan.group_out() + channels.start);
    let (nr, depth) = (NV * S::LANES, pixels.len());
    for panel in 0..channels.len().div_ceil(nr) {
        let width = nr.min((channels.len() - panel * nr).next_multiple_of(S::LANES));
        // Rows of an image follow each other in `dy`: runs are images.
        for run in PixelRuns::new([1, plane], pixels.clone()) {
            let (start, row_stride, column_stride) = match plan.spec.layout {
                Layout::Nchw => ((run.n * all_channels + oc) * plane + run.ow, 1, plane),
                Layout::Nhwc => ((run.n * plane + run.ow) * all_channels + oc, all_channels, 1),
            };
            let start = context.dy[start..].as_ptr();
            let dy = Matrix { start, row_stride: row_stride as isize, column_stride: column_stride as isize };
            let to = to.wrapping_add(panel * nr * depth + run.at * width);
            // SAFETY: the caller's contract.
            unsafe { pack_panels(simd, dy, channels.len(), panel..panel + 1, 0..run.len, to) };
        }
    }
}

/// What copying an element of the patches costs, and packing one of `dy`, in operations of one vector on one element.
/// Measured on Zen 4, one thread: 3 to 6 where stride is 1 and rows are long, 12 to 25 else.
const PATCH_OPERATIONS: f64 = 12.0;
const PACK_OPERATIONS: f64 = 4.0;
/// What a run of neighbours costs beside them with vectors of fewer lanes than 16: fitted to 80 layers of `kernelbench
/// conv --random` with AVX2 on Zen 4.
const NARROW_RUN: f64 = 400.0;

impl PatchGradient {
    /// The expected seconds on one thread.
    pub fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes, isa: Isa) -> f64 {
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let rows = group_in as f64 * (spec.kernel[0] * spec.kernel[1]) as f64;
        let lanes = group_out.next_multiple_of(isa.lanes()) as f64;
        let pixels = hint.batch as f64 * sizes.output[0] as f64 * sizes.output[1] as f64;
        let per_run = match spec.kernel {
            [1, 1] => 0.0,
            _ if isa == Isa::Avx512 => 0.0,
            _ => NARROW_RUN / sizes.output[1].max(1) as f64,
        };
        let patches = PATCH_OPERATIONS + per_run;
        let operations = spec.groups as f64 * pixels * (rows * (lanes + patches) + PACK_OPERATIONS * lanes);
        2.0 * operations / PEAK_FLOPS
    }
}
