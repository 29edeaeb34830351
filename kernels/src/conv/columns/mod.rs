//! The gradient of the input as a product of matrices, whose columns are then added where their windows stand.
//!
//! ```text
//!                          dy: group_out x pixels, packed block by block
//!                         ┌──────────────┐
//!                         └──────────────┘
//!   weights, transposed ┌┐┌──────────────┐      row (ic, kh, kw) of the columns holds what each output pixel sends
//!   (ic, kh, kw) x oc   ││├── columns ───┤ ──►  back through this tap; it is added to the plane of its channel at
//!   packed ahead        └┘└──────────────┘      (oh, ow) * stride + (kh, kw) * dilation
//!
//! for each task: image, group, some units of input channels
//!   for each block of output pixels                        (in order)
//!     pack dy
//!     for each unit, for each block of its rows            (taps from the last to the first)
//!       strips of rows: their product, a block of columns that stays in cache
//!       add each row to its plane
//!   write the planes
//! ```
//!
//! A plane is split into phases of the stride, so that a row of columns is added to neighbours whatever the stride:
//!
//! ```text
//! padded row, stride 2:   0 1 2 3 4 5 6 7     plane: 0 2 4 6 | 1 3 5 7     tap kw adds to phase kw % 2, from kw / 2 on
//! ```
//!
//! No zero stands in for padding: what falls there is left out. The gradient of a pixel is the sum, in the order of
//! the output's pixels, of chains over the output channels. (A tap further right reaches a pixel from an output further
//! left, hence taps from the last to the first.) So no block size changes a bit. Convolutions with one tap and no
//! padding write their products where they belong, without planes: at stride 1 as they are computed, else with zeros
//! between them ([`spread`]).
//!
//! Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for document processing"
//! (2006), whose unfolding this is the transpose of.

mod planes;
mod spread;

use crate::conv::algorithm::BackwardDataCall;
use crate::conv::band::zero_run;
use crate::conv::blocking::{Blocking, MOST_THREADS};
use crate::conv::border::{self, Pixels};
use crate::conv::dense::PEAK_FLOPS;
use crate::conv::pack::{PackColumns, packers};
use crate::conv::spec::{Conv2dSpec, Layout, Padding, Shape, Sizes};
use crate::error::{Error, checked_len};
use crate::gemm::lhs::ContiguousColumns;
use crate::gemm::tile::{Ends, Matrix, NV, PackedBlock, max_height, strip_across};
use crate::gemm::{Strips, pack_panels};
use crate::parallel::Parallelism;
use crate::parts::{Shared, share};
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, Workspace, aligned, round_up};
use planes::{add_row, write_plane};
use spread::spread_row;

/// Rows of a block of columns, at most: with [`MAX_PIXELS`], an eighth of a megabyte.
const MAX_ROWS: usize = 144;
/// Output pixels of a block, at most.
const MAX_PIXELS: usize = 256;
/// Elements that the planes of a unit may have beyond those of the image, for padding and the stride's phases: a
/// quarter of what a slot may take.
const MAX_MARGIN: usize = 1 << 18;

/// The gradient of the input, with packed weights.
#[derive(Clone)]
pub(super) struct Columns {
    spec: Conv2dSpec,
    isa: Isa,
    blocking: Blocking,
    /// The input channels of a group in units, whose rows fill strips.
    units: Strips,
    packed: Workspace,
}

/// Where columns go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// A row of the product is a channel of `dx`.
    Image,
    /// It is every other pixel of one, or fewer.
    Spread,
    /// It is added to a plane.
    Planes,
}

impl Target {
    fn of(spec: &Conv2dSpec) -> Self {
        let alone = spec.kernel == [1, 1] && spec.padding == Padding::default();
        match (spec.layout == Layout::Nchw && alone, spec.stride) {
            (true, [1, 1]) => Self::Image,
            (true, _) => Self::Spread,
            _ => Self::Planes,
        }
    }
}

/// How a call is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    target: Target,
    /// Output pixels, as one row if that is what they are in `dx`.
    grid: [usize; 2],
    /// Elements of a phase of a row of a plane, and of a plane.
    pitch: usize,
    plane_len: usize,
    /// Tasks of a group of an image.
    unit_blocks: usize,
    /// Output pixels, and rows of columns, of a block.
    pixels: usize,
    rows: usize,
    tasks: usize,
    dy_len: usize,
    columns_len: usize,
    planes_len: usize,
}

impl Cut {
    fn scratch_len(&self) -> usize {
        self.dy_len.saturating_add(self.columns_len).saturating_add(self.planes_len)
    }
}

impl Columns {
    pub fn new(spec: &Conv2dSpec, isa: Isa, blocking: Blocking) -> Result<Self, Error> {
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let taps = spec.kernel[0] * spec.kernel[1];
        let packed = Workspace::with_len(checked_len("weights", &[spec.groups, group_out, group_in, taps])?)?;
        Ok(Self { spec: *spec, isa, blocking, units: units(group_in, taps, isa), packed })
    }

    fn taps(&self) -> usize {
        self.spec.kernel[0] * self.spec.kernel[1]
    }

    fn group_in(&self) -> usize {
        self.spec.in_channels / self.spec.groups
    }

    fn group_out(&self) -> usize {
        self.spec.out_channels / self.spec.groups
    }

    /// The rows of a unit, in strips.
    fn strips(&self, unit: usize) -> Strips {
        Strips::new(self.units.height(unit) * self.taps(), max_height(self.isa.registers(), NV))
    }

    /// Packs `[out_channels][group_in][taps]`: for each group, unit and strip the columns of its rows, one for each
    /// output channel; row `(ic, tap)` is number `ic * taps + taps - 1 - tap`.
    pub fn pack(&mut self, weights: &[f32], parallelism: Parallelism<'_>) {
        let to = Shared(self.packed.as_mut_ptr());
        let plan = &*self;
        let (taps, group_in, group_out) = (plan.taps(), plan.group_in(), plan.group_out());
        let parallelism = packers(parallelism, weights.len());
        parallelism.for_each(plan.spec.groups * plan.units.count, parallelism.threads(), &|task, _| {
            let (group, unit) = (task / plan.units.count, task % plan.units.count);
            let weights = &weights[group * group_out * group_in * taps..][..group_out * group_in * taps];
            let strips = plan.strips(unit);
            for strip in 0..strips.count {
                let row = plan.units.start(unit) * taps + strips.start(strip);
                let to = to.at((group * group_in * taps + row) * group_out);
                let (in_channels, height) = (group_in, strips.height(strip));
                dispatch(plan.isa, PackColumns { weights, in_channels, taps, row, height, to });
            }
        });
    }

    /// `None` where a plane would be much larger than the image.
    fn cut(&self, shape: Shape, sizes: &Sizes, threads: usize) -> Option<Cut> {
        let (spec, blocking) = (&self.spec, &self.blocking);
        let [height, width] = sizes.input;
        let target = Target::of(spec);
        let grid = if target == Target::Image { [1, sizes.output[0] * sizes.output[1]] } else { sizes.output };
        // The last column that a tap reaches, or that the image has, in the padded row.
        let last_tap = (grid[1].max(1) - 1) * spec.stride[1] + (spec.kernel[1] - 1) * spec.dilation[1];
        let last = last_tap.max((width + spec.padding.left).saturating_sub(1));
        let (pitch, plane_len) = match target {
            Target::Image | Target::Spread => (0, 0),
            Target::Planes => {
                let pitch = last / spec.stride[1] + 1;
                (pitch, pitch.checked_mul(spec.stride[1])?.checked_mul(height)?)
            }
        };
        let channels = self.units.height(0).max(1);
        if plane_len.saturating_sub(height * width).saturating_mul(channels) > MAX_MARGIN {
            return None;
        }
        // Planes that a task adds to share the second-level cache with its columns.
        let most_units = (2 * blocking.sums / (channels * plane_len).max(1)).clamp(1, self.units.count);
        let mut unit_blocks = self.units.count.div_ceil(most_units);
        // Enough tasks for the threads; each packs dy for itself.
        let wanted = if threads > 1 { 2 * threads.min(MOST_THREADS) } else { 1 };
        let images = shape.batch.saturating_mul(spec.groups);
        while images * unit_blocks < wanted && unit_blocks < self.units.count {
            unit_blocks += 1;
        }
        let pixels = (2 * blocking.sums / self.group_out()).min(blocking.pixels).clamp(1, MAX_PIXELS);
        // Blocks of nearly the same size: 196 pixels are 112 and 84, not 128 and 68.
        let all_pixels = grid[0].saturating_mul(grid[1]).max(1);
        let pixels =
            all_pixels.div_ceil(all_pixels.div_ceil(pixels)).next_multiple_of(self.isa.lanes()).min(all_pixels);
        let rows = channels.saturating_mul(self.taps()).min(MAX_ROWS.max(max_height(self.isa.registers(), NV)));
        let task_channels = self.units.count.div_ceil(unit_blocks).saturating_mul(channels).min(self.group_in());
        Some(Cut {
            target,
            grid,
            pitch,
            plane_len,
            unit_blocks,
            pixels,
            rows,
            tasks: images.saturating_mul(unit_blocks),
            dy_len: round_up(pixels.next_multiple_of(self.isa.lanes()).saturating_mul(self.group_out())),
            columns_len: if target == Target::Image { 0 } else { round_up(rows * pixels.next_multiple_of(LINE)) },
            planes_len: round_up(task_channels.saturating_mul(plane_len)),
        })
    }

    /// Scratch of a call, in elements.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.cut(shape, sizes, slots)
            .map_or(0, |cut| slots.min(cut.tasks).saturating_mul(cut.scratch_len()).saturating_add(LINE))
    }

    /// Computes `dx`. `weights` are those that were packed.
    pub fn run(&self, call: BackwardDataCall<'_>, weights: &[f32]) {
        let BackwardDataCall { shape, sizes, dy, dx, workspace, slots, parallelism } = call;
        let Some(cut) = self.cut(shape, &sizes, slots) else {
            let spec = &self.spec;
            border::backward_data(self.isa, spec, Pixels::All, shape, &sizes, dy, weights, |at, sum| dx[at] = sum);
            return;
        };
        let scratch = aligned(workspace);
        debug_assert!(scratch.len() >= slots.min(cut.tasks) * cut.scratch_len());
        let context = Context { plan: self, cut, sizes, dy, dx: dx.as_mut_ptr(), scratch: scratch.as_mut_ptr() };
        let context = &context;
        let flops = 2.0 * dy.len() as f64 * (self.group_in() * self.taps()) as f64;
        let limited = parallelism.for_seconds(flops / self.blocking.flops_per_second);
        limited.for_each(cut.tasks, slots, &move |task, slot| {
            dispatch(self.isa, Task { context, task, slot });
        });
    }
}

/// Units of as many channels as make the fewest strips: 128 channels of 3x3 taps are 9 units of 14 or 15, 83 strips in
/// all.
fn units(group_in: usize, taps: usize, isa: Isa) -> Strips {
    let height = max_height(isa.registers(), NV);
    let most = (MAX_ROWS / taps).clamp(1, group_in.max(1));
    let strips_of = |most: usize| {
        let units = Strips::new(group_in, most);
        (0..units.count).map(|unit| (units.height(unit) * taps).div_ceil(height)).sum::<usize>()
    };
    let best = (1..=most).rev().min_by_key(|&most| strips_of(most)).unwrap_or(1);
    Strips::new(group_in, best)
}

struct Context<'a> {
    plan: &'a Columns,
    cut: Cut,
    sizes: Sizes,
    dy: &'a [f32],
    dx: *mut f32,
    scratch: *mut f32,
}

// SAFETY: tasks write the channels of `dx` that are their own, and disjoint parts of `scratch` (a slot belongs to one
// running task); everything else is only read.
unsafe impl Sync for Context<'_> {}

struct Task<'a> {
    context: &'a Context<'a>,
    task: usize,
    slot: usize,
}

/// A task's place in the image, and its scratch.
struct Place {
    n: usize,
    group: usize,
    /// The first of its channels, in the group.
    first_channel: usize,
    packed_dy: *mut f32,
    columns: *mut f32,
    planes: *mut f32,
}

impl Job for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { context, task, slot } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let (rest, block) = (task / cut.unit_blocks, task % cut.unit_blocks);
        let units = share(plan.units.count, cut.unit_blocks, block);
        let channels = plan.units.start(units.start)..plan.units.start(units.end);
        // SAFETY: `slot < slots`, and the workspace holds `slots` times `scratch_len` elements.
        let packed_dy = unsafe { context.scratch.add(slot * cut.scratch_len()) };
        let columns = packed_dy.wrapping_add(cut.dy_len);
        let planes = columns.wrapping_add(cut.columns_len);
        let (n, group) = (rest / plan.spec.groups, rest % plan.spec.groups);
        let place = Place { n, group, first_channel: channels.start, packed_dy, columns, planes };
        let all_pixels = cut.grid[0] * cut.grid[1];
        let mut laps = Laps::start();
        // SAFETY: every part of the scratch is as long as the cut says, and units and pixels are inside of the image.
        unsafe {
            zero_run(simd, planes, channels.len() * cut.plane_len);
            for first in (0..all_pixels).step_by(cut.pixels) {
                let count = cut.pixels.min(all_pixels - first);
                pack_dy(simd, context, &place, first, count);
                laps.lap(Stage::Pack);
                for unit in units.clone() {
                    multiply_unit(simd, context, &place, unit, [first, count], &mut laps);
                }
            }
            if cut.target != Target::Planes {
                return;
            }
            for channel in channels.clone() {
                let plane = planes.add((channel - channels.start) * cut.plane_len);
                write_plane(simd, context, n, group * plan.group_in() + channel, plane);
            }
            laps.lap(Stage::Epilogue);
        }
    }
}

/// Packs `count` pixels of all output channels of a group.
///
/// # Safety
/// - The place's buffer holds them; the pixels are inside of the image.
#[inline(always)]
unsafe fn pack_dy<S: Simd>(simd: S, context: &Context<'_>, place: &Place, first: usize, count: usize) {
    let (plan, cut) = (context.plan, &context.cut);
    let (all_channels, group_out) = (plan.spec.out_channels, plan.group_out());
    let plane = cut.grid[0] * cut.grid[1];
    let oc = place.group * group_out;
    let (start, row_stride, column_stride) = match plan.spec.layout {
        Layout::Nchw => ((place.n * all_channels + oc) * plane + first, plane, 1),
        Layout::Nhwc => ((place.n * plane + first) * all_channels + oc, 1, all_channels),
    };
    let start = context.dy[start..].as_ptr();
    let dy = Matrix { start, row_stride: row_stride as isize, column_stride: column_stride as isize };
    let panels = count.div_ceil(NV * S::LANES);
    // SAFETY: the caller's contract.
    unsafe { pack_panels(simd, dy, count, 0..panels, 0..group_out, place.packed_dy) };
}

/// The products of a unit's rows for a block of pixels, added to its planes or written to `dx`.
///
/// # Safety
/// - `place.packed_dy` holds `count` pixels from `first` on; the unit is one of the task's.
#[inline(always)]
unsafe fn multiply_unit<S: Simd>(
    simd: S,
    context: &Context<'_>,
    place: &Place,
    unit: usize,
    [first, count]: [usize; 2],
    laps: &mut Laps,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let (taps, group_in, group_out) = (plan.taps(), plan.group_in(), plan.group_out());
    let strips = plan.strips(unit);
    let unit_start = plan.units.start(unit);
    let weights = &plan.packed[(place.group * group_in + unit_start) * taps * group_out..];
    let rhs = PackedBlock { start: place.packed_dy, depth: group_out, columns: count };
    let in_place = cut.target == Target::Image;
    let (target, pitch) = if in_place {
        let plane = cut.grid[1];
        let channel = place.n * plan.spec.in_channels + place.group * group_in + unit_start;
        (context.dx.wrapping_add(channel * plane + first), plane)
    } else {
        (place.columns, cut.pixels.next_multiple_of(LINE))
    };
    let mut strip = 0;
    while strip < strips.count {
        // As many strips as the block of columns holds; where they are written to `dx`, all.
        let first_row = strips.start(strip);
        let mut end = strip + 1;
        while end < strips.count && (in_place || strips.start(end + 1) - first_row <= cut.rows) {
            end += 1;
        }
        let mut k = 0;
        while k < group_out {
            let depth = plan.blocking.depth.min(group_out - k);
            for strip in strip..end {
                let (row, height) = (strips.start(strip), strips.height(strip));
                let to = target.wrapping_add((row - first_row) * pitch);
                let from = if k == 0 { std::ptr::null() } else { to.cast_const() };
                let stride = pitch as isize;
                let ends = Ends { from, from_stride: stride, to, to_stride: stride, columns: count, finish: None };
                let start = weights[row * group_out + k * height..].as_ptr();
                let lhs = ContiguousColumns { start, column_stride: height as isize };
                // SAFETY: the strip is packed for all output channels; its rows fit the block of columns or `dx`.
                unsafe { strip_across(simd, height, lhs, rhs, k..k + depth, ends) };
            }
            k += depth;
        }
        laps.lap(Stage::Product);
        for row in first_row..strips.start(end) {
            let columns = place.columns.wrapping_add((row - first_row) * pitch);
            let (channel, tap) = (unit_start + row / taps, taps - 1 - row % taps);
            // SAFETY: the row holds `count` sums; the plane, or the channel, is the task's.
            unsafe {
                match cut.target {
                    Target::Image => break,
                    Target::Spread => {
                        let channel = place.group * group_in + channel;
                        spread_row(simd, context, [place.n, channel], columns, first, count);
                    }
                    Target::Planes => {
                        let plane = place.planes.wrapping_add((channel - place.first_channel) * cut.plane_len);
                        add_row(simd, context, plane, tap, columns, first, count);
                    }
                }
            }
        }
        laps.lap(Stage::Epilogue);
        strip = end;
    }
}

/// What an element of the columns costs beside its product, and what a run of neighbours costs, in operations of one
/// vector on one element. Measured on Zen 4, one thread: 10 to 17 an element where runs are 28 to 112 long, 44 where
/// they are 10 long.
const COLUMN_OPERATIONS: f64 = 10.0;
const RUN_OPERATIONS: f64 = 250.0;
/// What an element of `dy` costs to pack where tiles are small: AVX2 on Zen 4, fitted to 80 layers of `kernelbench conv
/// --random`.
const NARROW_PACKING: f64 = 13.0;

impl Columns {
    /// The expected seconds on one thread.
    pub fn cost(spec: &Conv2dSpec, hint: Shape, sizes: &Sizes, isa: Isa) -> f64 {
        let vector = isa.lanes();
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let rows = group_in as f64 * (spec.kernel[0] * spec.kernel[1]) as f64;
        let pixels = sizes.output[0].saturating_mul(sizes.output[1]).div_ceil(vector) as f64 * vector as f64;
        let images = hint.batch as f64 * spec.groups as f64;
        let per_run = RUN_OPERATIONS / sizes.output[1].max(1) as f64;
        let extra = match Target::of(spec) {
            Target::Image => 0.5,
            Target::Spread | Target::Planes => COLUMN_OPERATIONS + per_run,
        };
        // The first rows pack `dy` on their way.
        let packing = if isa == Isa::Avx512 { 1.0 } else { NARROW_PACKING };
        let operations = images * pixels * (rows * (group_out as f64 + extra) + packing * group_out as f64);
        2.0 * operations / PEAK_FLOPS
    }
}
