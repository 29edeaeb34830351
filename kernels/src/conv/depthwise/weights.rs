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

use super::axis::{Axis, Tap};
use super::rows::{Channel, RowLayout, SPARE, fill};
use super::small::{Gradient, Source};
use crate::conv::algorithm::BackwardWeightsCall;
use crate::conv::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::parts::share;
use crate::simd::{Isa, Job, Simd, dispatch};
use crate::workspace::{LINE, aligned};

/// Virtual lanes of a sum.
const LANES: usize = 16;

/// Padded rows of a band, in floats; with the rows of `dy` they stay in 32 KiB of L1.
const BAND_LEN: usize = 4096;

/// Rows of `dy` in a band, at least.
const MIN_BAND: usize = 8;

/// Rows of `dy` whose 3 x 3 windows share the vectors that they read.
const ROW_BLOCK: usize = 4;

/// With fewer groups than this the batch is cut too, so that threads have work.
const MANY_GROUPS: usize = 16;

/// Pieces of the batch, at most.
const MAX_PIECES: usize = 16;

/// The gradient of the weights, for few channels per group.
#[derive(Clone, Debug)]
pub(in crate::conv) struct WeightGradient {
    isa: Isa,
    layout: Layout,
    groups: usize,
    /// Input and output channels of a group.
    planes: usize,
    outs: usize,
    taps: usize,
    rows: Axis,
    columns: Axis,
    /// Rows and columns of `dy`, which are copied as they are.
    identity: Axis,
    /// 3 x 3 neighbours at a step of 1 or 2.
    dense: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    row_layout: RowLayout,
    dy_layout: RowLayout,
    band: usize,
    bands: usize,
    plane_len: usize,
    dy_len: usize,
    lanes_len: usize,
    slot_len: usize,
    pieces: usize,
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

    /// Whether planes of such rows of `dy` are read where they are: a lane for each column.
    fn is_small(&self, width: usize) -> bool {
        self.dense && self.rows.step == 1 && self.layout == Layout::Nchw && self.planes == 1 && width <= LANES
    }

    fn frame(&self, shape: Shape, sizes: &Sizes) -> Frame {
        let [height, width] = sizes.output;
        let row_layout = RowLayout::new(&self.columns, width);
        let dy_layout = RowLayout::new(&self.identity, width);
        let fit = BAND_LEN / self.planes / row_layout.row_len;
        let band = (fit.saturating_sub(self.rows.reach + 1) / self.rows.step + 1).max(MIN_BAND).max(self.rows.reach);
        // Whole blocks of rows in all bands but the last, so that the order of a sum does not depend on the band.
        let band = band.next_multiple_of(ROW_BLOCK);
        let bands = height.div_ceil(band);
        let plane_len = self.rows.positions(band.min(height)).saturating_mul(row_layout.row_len);
        let dy_len = if self.layout == Layout::Nhwc {
            dy_layout.row_len.saturating_mul(band.min(height)).saturating_mul(self.outs)
        } else {
            0
        };
        let lanes_len = self.planes * self.outs * self.taps * LANES;
        let slot_len = plane_len
            .saturating_mul(self.planes)
            .saturating_add(SPARE)
            .saturating_add(dy_len)
            .saturating_add(lanes_len)
            .div_ceil(LINE)
            .saturating_mul(LINE);
        let pieces = if self.groups >= MANY_GROUPS { 1 } else { shape.batch.clamp(1, MAX_PIECES) };
        Frame { row_layout, dy_layout, band, bands, plane_len, dy_len, lanes_len, slot_len, pieces }
    }

    /// Scratch of a call in `f32`s, when at most `slots` tasks run at once.
    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        let frame = self.frame(shape, sizes);
        let partial = if frame.pieces > 1 { sizes.w_len.saturating_mul(frame.pieces) } else { 0 };
        frame.slot_len.saturating_mul(slots.max(1)).saturating_add(partial).saturating_add(LINE)
    }

    /// Runs.
    pub fn run(&self, call: BackwardWeightsCall<'_>, seconds: f64) {
        let frame = self.frame(call.shape, &call.sizes);
        let slots = call.slots.max(1);
        let w_len = call.sizes.w_len;
        let scratch = aligned(call.workspace);
        let (slot_scratch, partial) = scratch.split_at_mut(frame.slot_len * slots);
        let units = self.groups * frame.pieces;
        let parallelism = call.parallelism.for_seconds(seconds);
        let shared = Shared {
            gradient: self,
            frame,
            shape: call.shape,
            output: call.sizes.output,
            x: call.x.as_ptr(),
            dy: call.dy.as_ptr(),
            sums: if frame.pieces > 1 { partial[..w_len * frame.pieces].as_mut_ptr() } else { call.dw.as_mut_ptr() },
            w_len,
            scratch: slot_scratch.as_mut_ptr(),
        };
        let shared = &shared;
        parallelism.for_each(units, slots, &|unit, slot| {
            dispatch(self.isa, Unit { shared, group: unit % self.groups, piece: unit / self.groups, slot });
        });
        if frame.pieces > 1 {
            merge(&mut partial[..w_len * frame.pieces], w_len, frame.pieces);
            call.dw.copy_from_slice(&partial[..w_len]);
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

/// What all tasks of a call see.
struct Shared<'a> {
    gradient: &'a WeightGradient,
    frame: Frame,
    shape: Shape,
    output: [usize; 2],
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
    group: usize,
    piece: usize,
    slot: usize,
}

impl Job for Unit<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Unit { shared, group, piece, slot } = self;
        let (gradient, frame) = (shared.gradient, &shared.frame);
        let (planes, outs, taps) = (gradient.planes, gradient.outs, gradient.taps);
        let images = share(shared.shape.batch, frame.pieces, piece);
        // SAFETY: the slot's own scratch; channels, images and bands are within the call's sizes, which the plan
        // has checked; the sums of this group and piece are written by this unit alone.
        unsafe {
            let padded = shared.scratch.add(slot * frame.slot_len);
            let lanes = padded.add(planes * frame.plane_len + SPARE + frame.dy_len);
            if gradient.is_small(shared.output[1]) {
                shared.small_products(simd, group, images.clone(), lanes);
            } else {
                shared.padded_products(simd, group, images.clone(), padded, lanes);
            }
            for o in 0..outs {
                for p in 0..planes {
                    for tap in 0..taps {
                        let lanes = lanes.add((o * planes + p) * taps * LANES + tap * LANES);
                        let mut sum = add_lanes(&*lanes.cast::<[f32; LANES]>());
                        if !sum.is_finite() {
                            sum = by_definition(shared, images.clone(), group, o, p, tap);
                        }
                        let at = ((group * outs + o) * planes + p) * taps + tap;
                        *shared.sums.add(piece * shared.w_len + at) = sum;
                    }
                }
            }
        }
    }
}

impl Shared<'_> {
    /// The lanes of every tap of a group, from padded copies of its planes.
    ///
    /// # Safety
    /// - Images and group exist; `padded` is a slot's scratch memory, `lanes` the lanes in it.
    #[inline(always)]
    unsafe fn padded_products<S: Simd>(
        &self,
        simd: S,
        group: usize,
        images: std::ops::Range<usize>,
        padded: *mut f32,
        lanes: *mut f32,
    ) {
        let (gradient, frame) = (self.gradient, &self.frame);
        let (planes, outs, taps) = (gradient.planes, gradient.outs, gradient.taps);
        let [height, width] = self.output;
        let used = planes * frame.plane_len + SPARE + frame.dy_len + frame.lanes_len;
        // SAFETY: the caller's contract; bands are within the call's sizes.
        unsafe {
            std::slice::from_raw_parts_mut(padded, used).fill(0.0);
            let dy_rows = padded.add(planes * frame.plane_len + SPARE);
            for n in images {
                for band in 0..frame.bands {
                    let first = band * frame.band;
                    let count = frame.band.min(height - first);
                    for p in 0..planes {
                        let (rows, columns) = (&gradient.rows, &gradient.columns);
                        let to = padded.add(p * frame.plane_len);
                        let clear = frame.bands > 1;
                        let channel = self.x_channel(n, group * planes + p);
                        let positions = rows.positions(count);
                        fill(simd, channel, rows, columns, frame.row_layout, to, first * rows.step, positions, clear);
                    }
                    for o in 0..outs {
                        let channel = self.dy_channel(n, group * outs + o);
                        let mut dy = Rows { start: channel.start.add(first * channel.strides[0]), row: width };
                        if gradient.layout == Layout::Nhwc {
                            let identity = &gradient.identity;
                            let to = dy_rows.add(o * frame.band.min(height) * frame.dy_layout.row_len);
                            fill(simd, channel, identity, identity, frame.dy_layout, to, first, count, false);
                            dy = Rows { start: to, row: frame.dy_layout.row_len };
                        }
                        for p in 0..planes {
                            let x = padded.add(p * frame.plane_len);
                            let lanes = lanes.add((o * planes + p) * taps * LANES);
                            add_products(simd, gradient, frame.row_layout, x, dy, [count, width], lanes);
                        }
                    }
                }
            }
        }
    }

    /// The lanes of every tap of a group whose planes are small.
    ///
    /// # Safety
    /// - Images and group exist; `lanes` has room for the taps of all outputs of the group.
    #[inline(always)]
    unsafe fn small_products<S: Simd>(&self, simd: S, group: usize, images: std::ops::Range<usize>, lanes: *mut f32) {
        let gradient = self.gradient;
        let first_tap = |axis: &Axis| axis.origin + axis.phases[0].taps[0].offset as isize;
        for out in 0..gradient.outs {
            // SAFETY: a channel of the first image, and the lanes of its taps.
            unsafe {
                let x = self.x_channel(images.start, group);
                let dy = self.dy_channel(images.start, group * gradient.outs + out);
                simd.call(Gradient {
                    source: Source {
                        start: x.start,
                        size: x.size,
                        origin: [first_tap(&gradient.rows), first_tap(&gradient.columns)],
                    },
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

    /// # Safety
    /// - The image and the channel exist.
    #[inline(always)]
    unsafe fn x_channel(&self, n: usize, c: usize) -> Channel {
        let Shared { gradient, shape, .. } = self;
        let channels = gradient.groups * gradient.planes;
        // SAFETY: the caller's contract.
        unsafe { Channel::new(self.x, gradient.layout, channels, [shape.height, shape.width], n, c) }
    }

    /// # Safety
    /// - The image and the channel exist.
    #[inline(always)]
    unsafe fn dy_channel(&self, n: usize, c: usize) -> Channel {
        let channels = self.gradient.groups * self.gradient.outs;
        // SAFETY: the caller's contract.
        unsafe { Channel::new(self.dy, self.gradient.layout, channels, self.output, n, c) }
    }
}

/// Rows of `dy`.
#[derive(Clone, Copy)]
struct Rows {
    start: *const f32,
    row: usize,
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

/// Adds the products of a band to the lanes of all taps of one pair of channels.
///
/// # Safety
/// - `x` holds the padded rows of `size[0]` rows of `dy`, which have `size[1]` columns.
/// - `lanes` holds 16 floats for each tap.
#[inline(always)]
unsafe fn add_products<S: Simd>(
    simd: S,
    gradient: &WeightGradient,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    lanes: *mut f32,
) {
    let (rows, columns) = (&gradient.rows.phases[0].taps, &gradient.columns.phases[0].taps);
    let step = gradient.rows.step;
    let mut lane = 0;
    while lane < LANES.min(size[1]) {
        // SAFETY: passed on; lanes from `lane` on, those of the columns `lane % 16`.
        unsafe {
            let lanes = lanes.add(lane);
            if gradient.dense {
                if step == 1 {
                    three::<S, 1>(simd, layout, x, dy, size, lane, lanes);
                } else {
                    three::<S, 2>(simd, layout, x, dy, size, lane, lanes);
                }
            } else {
                for (i, kh) in rows.iter().enumerate() {
                    let x = x.add(kh.offset * layout.row_len);
                    let mut done = 0;
                    while done < columns.len() {
                        let lanes = lanes.add((i * columns.len() + done) * LANES);
                        let taps = &columns[done..];
                        let row_step = step * layout.row_len;
                        done += match taps.len() {
                            1 => some::<S, 1>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            2 => some::<S, 2>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            3 => some::<S, 3>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            4 => some::<S, 4>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            5 => some::<S, 5>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            6 => some::<S, 6>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            7 => some::<S, 7>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                            _ => some::<S, 8>(simd, layout, x, row_step, dy, size, taps, lane, lanes),
                        };
                    }
                }
            }
        }
        lane += S::LANES;
    }
}

/// Adds the products of the first `K` taps of a tap row to their lanes. Returns `K`.
///
/// # Safety
/// - As [`add_products`], `x` and `lanes` being moved to the tap row.
#[inline(always)]
unsafe fn some<S: Simd, const K: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    row_step: usize,
    dy: Rows,
    size: [usize; 2],
    taps: &[Tap],
    lane: usize,
    lanes: *mut f32,
) -> usize {
    let mut offsets = [0; K];
    let mut acc = [simd.zero(); K];
    // SAFETY: the padded rows hold the positions of all columns, and `SPARE` elements more.
    unsafe {
        for k in 0..K {
            offsets[k] = taps[k].slot * layout.slot_len + taps[k].shift;
            acc[k] = simd.load(lanes.add(k * LANES));
        }
        for r in 0..size[0] {
            let (x, dy) = (x.add(r * row_step), dy.start.add(r * dy.row));
            let mut c = lane;
            while c < size[1] {
                let d = load_columns(simd, dy.add(c), size[1] - c);
                for k in 0..K {
                    acc[k] = simd.fma(d, simd.load(x.add(offsets[k] + c)), acc[k]);
                }
                c += LANES;
            }
        }
        for k in 0..K {
            simd.store(lanes.add(k * LANES), acc[k]);
        }
    }
    K
}

/// A vector of which `n` columns are left in the row.
///
/// # Safety
/// - `min(n, LANES)` floats are readable.
#[inline(always)]
unsafe fn load_columns<S: Simd>(simd: S, p: *const f32, n: usize) -> S::F {
    // SAFETY: the caller's contract.
    unsafe { if n >= S::LANES { simd.load(p) } else { simd.load_first(p, n) } }
}

/// Adds the products of 3 x 3 neighbouring taps to their lanes.
///
/// # Safety
/// - As [`add_products`].
#[inline(always)]
unsafe fn three<S: Simd, const STEP: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    lane: usize,
    lanes: *mut f32,
) {
    let mut acc = [[simd.zero(); 3]; 3];
    // SAFETY: the padded rows hold the positions of all columns, and `SPARE` elements more; nine taps have lanes.
    unsafe {
        for kh in 0..3 {
            for kw in 0..3 {
                acc[kh][kw] = simd.load(lanes.add((3 * kh + kw) * LANES));
            }
        }
        let mut r = 0;
        while r + ROW_BLOCK <= size[0] {
            three_rows::<S, STEP, ROW_BLOCK>(simd, layout, x, dy, size, r, lane, &mut acc);
            r += ROW_BLOCK;
        }
        while r < size[0] {
            three_rows::<S, STEP, 1>(simd, layout, x, dy, size, r, lane, &mut acc);
            r += 1;
        }
        for kh in 0..3 {
            for kw in 0..3 {
                simd.store(lanes.add((3 * kh + kw) * LANES), acc[kh][kw]);
            }
        }
    }
}

/// The rows `r .. r + R` of [`three`].
///
/// # Safety
/// - As [`add_products`].
#[inline(always)]
unsafe fn three_rows<S: Simd, const STEP: usize, const R: usize>(
    simd: S,
    layout: RowLayout,
    x: *const f32,
    dy: Rows,
    size: [usize; 2],
    r: usize,
    lane: usize,
    acc: &mut [[S::F; 3]; 3],
) {
    let mut c = lane;
    // SAFETY: the caller's contract.
    unsafe {
        let x = x.add(r * STEP * layout.row_len);
        let dy_start = dy.start.add(r * dy.row);
        while c < size[1] {
            let mut d = [simd.zero(); R];
            for q in 0..R {
                d[q] = load_columns(simd, dy_start.add(q * dy.row + c), size[1] - c);
            }
            for i in 0..(R - 1) * STEP + 3 {
                for kw in 0..3 {
                    let at = if STEP == 1 { kw } else { kw % 2 * layout.slot_len + kw / 2 };
                    let x = simd.load(x.add(i * layout.row_len + at + c));
                    for q in 0..R {
                        if i >= q * STEP && i - q * STEP < 3 {
                            acc[i - q * STEP][kw] = simd.fma(d[q], x, acc[i - q * STEP][kw]);
                        }
                    }
                }
            }
            c += LANES;
        }
    }
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
