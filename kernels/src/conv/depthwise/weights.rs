//! The gradient of the weights, group by group.
//!
//! ```text
//! dw[oc, ic, kh, kw] = sum over n, oh, ow of dy[n, oc, oh, ow] * padded x[n, ic, oh * stride + kh, ow * stride + kw]
//!
//!   a row of dy   |0 1 2 ... 15|16 17 ...      column ow goes to lane ow % 16
//!   lane          |0 1 2 ... 15| 0  1 ...
//! ```
//!
//! Each tap has 16 virtual lanes on every instruction set: one chain of fused multiply-adds per lane, over images,
//! blocks of rows, blocks of columns and rows in order, and a fixed tree over the lanes at the end. Where groups
//! are few the batch is cut into pieces, by its size and the number of groups alone, and a fixed tree merges them.
//!
//! Zeros stand in for padding. They meet a non-finite `dy` as NaN; so a tap whose sum is not finite is computed
//! again by definition, without the taps that fall into the padding.

use super::axis::Axis;
use super::products::{Products, ROW_BLOCK, Tiles};
use super::rows::{Channel, RowLayout, SPARE};
use super::small_products::SmallProducts;
use super::source::Source;
use crate::conv::algorithm::BackwardWeightsCall;
use crate::conv::blocking::SLOT_LIMIT;
use crate::conv::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::parts::share;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::stages::{Laps, Stage};
use crate::workspace::{LINE, aligned};

/// Virtual lanes of a sum.
pub(super) const LANES: usize = 16;

/// Padded rows of a band, in floats; with the rows of `dy` they stay in 32 KiB of L1.
const BAND_LEN: usize = 4096;

/// Rows of `dy` in a band, at least.
const MIN_BAND: usize = 8;

/// With fewer groups than this the batch is cut too, so that threads have work.
const MANY_GROUPS: usize = 16;

/// Pieces of the batch, at most.
const MAX_PIECES: usize = 16;

/// The gradient of the weights, for few channels per group.
#[derive(Clone, Debug)]
pub(in crate::conv) struct WeightGradient {
    pub(super) isa: Isa,
    pub(super) layout: Layout,
    pub(super) groups: usize,
    /// Input and output channels of a group.
    pub(super) planes: usize,
    pub(super) outs: usize,
    pub(super) taps: usize,
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    /// Rows and columns of `dy`, which are copied as they are.
    pub(super) identity: Axis,
    /// 3 x 3 neighbours at a step of 1 or 2.
    pub(super) dense: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) row_layout: RowLayout,
    pub(super) dy_layout: RowLayout,
    pub(super) band: usize,
    pub(super) bands: usize,
    pub(super) plane_len: usize,
    /// Copies of all planes of a group, and of `dy`.
    pub(super) padded_len: usize,
    /// The lanes of all taps of a group.
    pub(super) lanes_len: usize,
    pub(super) slot_len: usize,
    pub(super) pieces: usize,
}

impl WeightGradient {
    /// For a spec that `Windows::fits` accepts.
    pub fn new(spec: &Conv2dSpec, isa: Isa) -> Self {
        let axis = |a: usize, before: usize| Axis::forward(spec.kernel[a], spec.stride[a], spec.dilation[a], before);
        let dense =
            spec.kernel == [3, 3] && spec.dilation == [1, 1] && spec.stride[0] == spec.stride[1] && spec.stride[0] <= 2;
        Self {
            isa,
            layout: spec.layout,
            groups: spec.groups,
            planes: spec.in_channels / spec.groups,
            outs: spec.out_channels / spec.groups,
            taps: spec.kernel[0] * spec.kernel[1],
            rows: axis(0, spec.padding.top),
            columns: axis(1, spec.padding.left),
            identity: Axis::identity(),
            dense,
        }
    }

    /// Elements of the lanes of all taps of a group.
    pub fn lanes_len(spec: &Conv2dSpec) -> usize {
        let [planes, outs] = [spec.in_channels, spec.out_channels].map(|channels| channels / spec.groups);
        [outs, spec.kernel[0], spec.kernel[1], LANES].into_iter().fold(planes, usize::saturating_mul)
    }

    /// Whether both tensors are read where they are, plane by plane.
    pub(super) fn plane_by_plane(&self) -> bool {
        self.layout == Layout::Nchw && self.planes == 1 && self.columns.step <= 2
    }

    /// Into how many pieces the batch is cut, each with sums of its own.
    pub(super) fn pieces(&self, batch: usize) -> usize {
        if self.groups >= MANY_GROUPS { 1 } else { batch.clamp(1, MAX_PIECES) }
    }

    fn frame(&self, shape: Shape, sizes: &Sizes) -> Frame {
        let [height, width] = sizes.output;
        let row_layout = RowLayout::new(&self.columns, width);
        let dy_layout = RowLayout::new(&self.identity, width);
        let fit = BAND_LEN / self.planes / row_layout.row_len;
        let wanted = (fit.saturating_sub(self.rows.reach + 1) / self.rows.step + 1).max(MIN_BAND).max(self.rows.reach);
        let lens = |band: usize| {
            let plane_len = self.rows.positions(band.min(height)).saturating_mul(row_layout.row_len);
            let dy_len = if self.layout == Layout::Nhwc {
                dy_layout.row_len.saturating_mul(band.min(height)).saturating_mul(self.outs)
            } else {
                0
            };
            (plane_len, plane_len.saturating_mul(self.planes).saturating_add(SPARE).saturating_add(dy_len))
        };
        // Whole blocks of rows in all bands but the last, so that the order of a sum does not depend on the band. Rows
        // so long that a slot has no room for more come in single blocks.
        let wanted = wanted.next_multiple_of(ROW_BLOCK);
        let lanes_len = self.planes * self.outs * self.taps * LANES;
        let band = if lens(wanted).1.saturating_add(lanes_len) <= SLOT_LIMIT { wanted } else { ROW_BLOCK };
        let bands = height.div_ceil(band);
        let (plane_len, padded_len) = lens(band);
        let padded_len = if self.plane_by_plane() { 0 } else { padded_len };
        let slot_len = padded_len.saturating_add(lanes_len).div_ceil(LINE).saturating_mul(LINE);
        let pieces = self.pieces(shape.batch);
        Frame { row_layout, dy_layout, band, bands, plane_len, padded_len, lanes_len, slot_len, pieces }
    }

    /// Scratch of a call in `f32`s, when at most `slots` tasks run at once.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        let frame = self.frame(shape, sizes);
        let partial = if frame.pieces > 1 { sizes.w_len.saturating_mul(frame.pieces) } else { 0 };
        frame.slot_len.saturating_mul(slots.max(1)).saturating_add(partial).saturating_add(LINE)
    }

    /// Runs.
    pub fn run(&self, call: BackwardWeightsCall<'_>, seconds: f64) {
        let (slots, parallelism) = (call.slots.max(1), call.parallelism.for_seconds(seconds));
        self.with(call, |shared| {
            parallelism.for_each(shared.units(), slots, &|unit, slot| {
                dispatch(self.isa, Unit { shared, unit, slot });
            });
        });
    }

    /// Calls `all` with what the units of a call see, which has to run each of them once; then merges the pieces.
    pub(super) fn with(&self, call: BackwardWeightsCall<'_>, all: impl FnOnce(&Shared<'_>)) {
        let frame = self.frame(call.shape, &call.sizes);
        let w_len = call.sizes.w_len;
        let scratch = aligned(call.workspace);
        let (slot_scratch, partial) = scratch.split_at_mut(frame.slot_len * call.slots.max(1));
        all(&Shared {
            gradient: self,
            frame,
            shape: call.shape,
            output: call.sizes.output,
            x: call.x.as_ptr(),
            dy: call.dy.as_ptr(),
            sums: if frame.pieces > 1 { partial[..w_len * frame.pieces].as_mut_ptr() } else { call.dw.as_mut_ptr() },
            w_len,
            scratch: slot_scratch.as_mut_ptr(),
        });
        if frame.pieces > 1 {
            let mut laps = Laps::start();
            merge(&mut partial[..w_len * frame.pieces], w_len, frame.pieces);
            call.dw.copy_from_slice(&partial[..w_len]);
            laps.lap(Stage::Epilogue);
        }
    }
}

/// Sums `pieces` rows of `len` into the first, by a tree that depends on their number alone.
fn merge(partial: &mut [f32], len: usize, pieces: usize) {
    let mut distance = 1;
    while distance < pieces {
        for to in (0..pieces - distance).step_by(2 * distance) {
            let (left, right) = partial.split_at_mut((to + distance) * len);
            for (to, from) in left[to * len..][..len].iter_mut().zip(&right[..len]) {
                *to += from;
            }
        }
        distance *= 2;
    }
}

/// What all units of a call see.
pub(super) struct Shared<'a> {
    pub(super) gradient: &'a WeightGradient,
    pub(super) frame: Frame,
    shape: Shape,
    pub(super) output: [usize; 2],
    x: *const f32,
    dy: *const f32,
    /// `[piece][weights]`
    sums: *mut f32,
    w_len: usize,
    scratch: *mut f32,
}

// SAFETY: a task writes the sums of its own group and piece, and the scratch memory of its own slot; all else is
// only read.
unsafe impl Sync for Shared<'_> {}

/// One group of one piece of the batch.
struct Unit<'a> {
    shared: &'a Shared<'a>,
    unit: usize,
    slot: usize,
}

impl Job for Unit<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Unit { shared, unit, slot } = self;
        // SAFETY: the slot's own scratch; units are below their number, and each is run once.
        unsafe { shared.unit(simd, unit, slot, |_| ()) };
    }
}

impl Shared<'_> {
    /// How many units there are.
    pub fn units(&self) -> usize {
        self.gradient.groups * self.frame.pieces
    }

    /// The group of a unit, and its images.
    #[inline(always)]
    pub fn unit_of(&self, unit: usize) -> (usize, std::ops::Range<usize>) {
        let (group, piece) = (unit % self.gradient.groups, unit / self.gradient.groups);
        (group, share(self.shape.batch, self.frame.pieces, piece))
    }

    /// The gradients of a group's weights from the images of a piece. Where planes are read where they are, `each` is
    /// called before an image's.
    ///
    /// # Safety
    /// - Nobody else uses the slot's scratch memory, and no unit is run twice.
    #[inline(always)]
    pub unsafe fn unit<S: Simd>(&self, simd: S, unit: usize, slot: usize, mut each: impl FnMut(usize)) {
        let (gradient, frame) = (self.gradient, &self.frame);
        let (planes, outs, taps) = (gradient.planes, gradient.outs, gradient.taps);
        let (group, images) = self.unit_of(unit);
        let mut laps = Laps::start();
        // SAFETY: the slot's own scratch; channels, images and bands are within the call's sizes, which the plan
        // has checked; the sums of this group and piece are written by this unit alone.
        unsafe {
            let padded = self.scratch.add(slot * frame.slot_len);
            let lanes = padded.add(frame.padded_len);
            std::slice::from_raw_parts_mut(padded, frame.padded_len + frame.lanes_len).fill(0.0);
            if gradient.plane_by_plane() {
                let small = gradient.dense && self.output[1] <= LANES;
                for n in images.clone() {
                    each(n);
                    if !small {
                        self.plane_products(simd, group, n, lanes);
                    }
                }
                if small && gradient.columns.step == 1 {
                    self.small_products::<S, 1>(simd, group, images.clone(), lanes);
                } else if small {
                    self.small_products::<S, 2>(simd, group, images.clone(), lanes);
                }
            } else {
                self.padded_products(simd, group, images.clone(), padded, lanes, &mut laps);
            }
            laps.lap(Stage::Product);
            let sums = self.sums.add(unit / gradient.groups * self.w_len);
            for o in 0..outs {
                for p in 0..planes {
                    for tap in 0..taps {
                        let at = (o * planes + p) * taps + tap;
                        let mut sum = add_lanes(&*lanes.add(at * LANES).cast::<[f32; LANES]>());
                        if !sum.is_finite() {
                            sum = by_definition(self, images.clone(), group, o, p, tap);
                        }
                        *sums.add(group * outs * planes * taps + at) = sum;
                    }
                }
            }
            laps.lap(Stage::Epilogue);
        }
    }

    /// The lanes of every tap of a group whose planes are small, at a step of `STEP`.
    ///
    /// # Safety
    /// - Images and group exist; `lanes` has room for the taps of all outputs of the group.
    #[inline(always)]
    unsafe fn small_products<S: Simd, const STEP: usize>(
        &self,
        simd: S,
        group: usize,
        images: std::ops::Range<usize>,
        lanes: *mut f32,
    ) {
        let gradient = self.gradient;
        for out in 0..gradient.outs {
            // SAFETY: a channel of the first image, and the lanes of its taps.
            unsafe {
                let x = self.x_channel(images.start, group);
                let dy = self.dy_channel(images.start, group * gradient.outs + out);
                let origin = [gradient.rows.first_tap(), gradient.columns.first_tap()];
                simd.call(SmallProducts {
                    source: Source::<3, STEP> { start: x.start, size: x.size, origin },
                    source_step: gradient.groups * x.size[0] * x.size[1],
                    dy: dy.start,
                    size: self.output,
                    dy_step: gradient.groups * gradient.outs * self.output[0] * self.output[1],
                    count: images.len(),
                    sums: lanes.add(out * 9 * LANES),
                    lanes: LANES,
                });
            }
        }
    }

    /// Adds the products of one image's plane and those of its gradient to the lanes of their taps.
    ///
    /// # Safety
    /// - Image and group exist; `lanes` has room for the taps of all outputs of the group.
    #[inline(always)]
    unsafe fn plane_products<S: Simd>(&self, simd: S, group: usize, n: usize, lanes: *mut f32) {
        let gradient = self.gradient;
        for out in 0..gradient.outs {
            // SAFETY: a channel of the image, and the lanes of its taps.
            unsafe {
                let x = self.x_channel(n, group);
                let dy = self.dy_channel(n, group * gradient.outs + out);
                let products = Products {
                    x: x.start,
                    size: x.size,
                    dy: dy.start,
                    dy_size: self.output,
                    rows: &gradient.rows,
                    columns: &gradient.columns,
                    lanes: lanes.add(out * gradient.taps * LANES),
                };
                if gradient.columns.step == 1 {
                    simd.call(Tiles::<1>(products));
                } else {
                    simd.call(Tiles::<2>(products));
                }
            }
        }
    }

    /// # Safety
    /// - The image and the channel exist.
    #[inline(always)]
    pub(super) unsafe fn x_channel(&self, n: usize, c: usize) -> Channel {
        let Shared { gradient, shape, .. } = self;
        let channels = gradient.groups * gradient.planes;
        // SAFETY: the caller's contract.
        unsafe { Channel::new(self.x, gradient.layout, channels, [shape.height, shape.width], n, c) }
    }

    /// # Safety
    /// - The image and the channel exist.
    #[inline(always)]
    pub(super) unsafe fn dy_channel(&self, n: usize, c: usize) -> Channel {
        let channels = self.gradient.groups * self.gradient.outs;
        // SAFETY: the caller's contract.
        unsafe { Channel::new(self.dy, self.gradient.layout, channels, self.output, n, c) }
    }
}

/// The fixed tree over the lanes.
#[inline(always)]
fn add_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// One sum in the order of rows, without the taps that fall into the padding.
///
/// # Safety
/// - The images and channels exist.
unsafe fn by_definition(
    shared: &Shared<'_>,
    images: std::ops::Range<usize>,
    group: usize,
    o: usize,
    p: usize,
    tap: usize,
) -> f32 {
    let gradient = shared.gradient;
    let (rows, columns) = (&gradient.rows, &gradient.columns);
    let kernel_width = columns.phases[0].taps.len();
    let (kh, kw) = (rows.phases[0].taps[tap / kernel_width].offset, columns.phases[0].taps[tap % kernel_width].offset);
    let mut lanes = [0.0f32; LANES];
    for n in images {
        // SAFETY: the caller's contract; indices are checked against the image below.
        unsafe {
            let x = shared.x_channel(n, group * gradient.planes + p);
            let dy = shared.dy_channel(n, group * gradient.outs + o);
            for oh in 0..shared.output[0] {
                let ih = (oh * rows.step + kh) as isize + rows.origin;
                if ih < 0 || ih >= x.size[0] as isize {
                    continue;
                }
                for ow in 0..shared.output[1] {
                    let iw = (ow * columns.step + kw) as isize + columns.origin;
                    if iw < 0 || iw >= x.size[1] as isize {
                        continue;
                    }
                    let a = *x.start.add(ih as usize * x.strides[0] + iw as usize * x.strides[1]);
                    let b = *dy.start.add(oh * dy.strides[0] + ow * dy.strides[1]);
                    lanes[ow % LANES] = gradient.isa.mul_add(b, a, lanes[ow % LANES]);
                }
            }
        }
    }
    add_lanes(&lanes)
}
