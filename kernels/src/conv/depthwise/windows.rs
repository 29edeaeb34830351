//! A convolution of few channels a group, or its gradient of the input, as a gather; and which driver does it.

use super::axis::Axis;
use super::nhwc::{ChannelLanes, TargetRows};
use super::rows::SPARE;
use super::{halves, narrow, padded, planes, stack};
use crate::activation::{self, Activation};
use crate::conv::dense::PEAK_FLOPS;
use crate::conv::spec::{Conv2dSpec, Layout, Sizes};
use crate::error::Error;
use crate::execution::Execution;
use crate::parallel::Parallelism;
use crate::simd::{Isa, dispatch};
use crate::stages::{Laps, Stage};

/// Tasks per thread: enough to even out, few enough that each is worth its start.
pub(super) const TASKS_PER_THREAD: usize = 4;

/// Kernel extents and paddings beyond this belong to other algorithms: padded rows would be mostly empty.
const MAX_EXTENT: usize = 4096;

/// Phases beyond this belong to other algorithms.
const MAX_PHASES: usize = 64;

/// Rows of `dy` that the gradient of the weights copies together, at least, and rows of a tile of targets.
const ROWS: usize = 4;

/// A gather of targets from sources in each group, with packed weights.
#[derive(Clone, Debug)]
pub(in crate::conv) struct Windows {
    pub(super) isa: Isa,
    pub(super) layout: Layout,
    pub(super) groups: usize,
    /// Source channels of a group.
    pub(super) planes: usize,
    /// Target channels of a group.
    pub(super) outs: usize,
    pub(super) kernel: [usize; 2],
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    /// `[group][row phase][column phase][block of channels][plane][tap row][tap column][channel of the block]`
    pub(super) weights: Vec<f32>,
    /// `[row phase][column phase][tap row][tap column][group]`, if channels may be the lanes
    pub(super) lane_weights: Vec<f32>,
    backward: bool,
    /// The squares of neighbours of one plane that targets see, if there is a kernel for those.
    pub(super) square: Option<Squares>,
    /// Whether it is a gradient at a stride of 2 that has a kernel of its own.
    halves: bool,
    /// Whether stacks may read the image where it is.
    pub(super) image: bool,
}

/// The arguments of a call.
pub(in crate::conv) struct WindowsCall<'a> {
    pub batch: usize,
    pub source_size: [usize; 2],
    pub target_size: [usize; 2],
    pub source: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub activation: Activation,
    pub target: &'a mut [f32],
    pub workspace: &'a mut [f32],
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

/// Squares of neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Squares {
    /// Taps along each axis, and the step.
    pub taps: usize,
    pub step: usize,
    /// The source position of the first target's first tap.
    pub origin: [isize; 2],
}

/// The squares that all targets see, if there is a kernel for those.
fn squares(rows: &Axis, columns: &Axis) -> Option<Squares> {
    let square = rows.sees_neighbours() && columns.sees_neighbours() && rows.step == columns.step;
    let [taps, across] = [rows, columns].map(|axis| axis.phases.first().map_or(0, |phase| phase.taps.len()));
    let known = matches!((taps, rows.step), (3, 1 | 2) | (5, 2));
    (square && taps == across && known).then(|| Squares {
        taps,
        step: rows.step,
        origin: [rows.first_tap(), columns.first_tap()],
    })
}

impl Windows {
    /// Whether the sizes that do not change from call to call are small enough for padded copies.
    pub fn fits(spec: &Conv2dSpec, backward: bool) -> bool {
        let extents = (0..2).all(|axis| spec.window(axis).is_ok_and(|window| window <= MAX_EXTENT));
        let p = spec.padding;
        let padding = [p.top, p.bottom, p.left, p.right].into_iter().all(|p| p <= MAX_EXTENT);
        let phases = !backward || spec.stride[0].saturating_mul(spec.stride[1]) <= MAX_PHASES;
        extents && padding && phases && spec.stride.into_iter().all(|stride| stride <= MAX_EXTENT)
    }

    /// Elements of the padded rows of a group's `planes` that a few rows of targets meet, which a slot's scratch memory
    /// has to hold.
    pub fn rows_len(spec: &Conv2dSpec, sizes: &Sizes, planes: usize) -> usize {
        let extent = |axis: usize| spec.window(axis).unwrap_or(usize::MAX).saturating_add(ROWS * spec.stride[axis]);
        let targets = sizes.input[1].max(sizes.output[1]).max(SPARE);
        let row = targets.saturating_add(extent(1).saturating_mul(2)).saturating_add(SPARE);
        // With channels last, rows of dy are copied as well.
        let copies = if spec.layout == Layout::Nhwc { 2 } else { 1 };
        planes.saturating_mul(copies).saturating_mul(extent(0)).saturating_add(ROWS).saturating_mul(row)
    }

    /// The seconds that a call may take on one thread: `products` for each output at what the tiles reach, and each
    /// element read and written once at the speed of a shared cache.
    pub fn seconds(spec: &Conv2dSpec, sizes: &Sizes, isa: Isa, products: usize, fma_share: f64) -> f64 {
        /// Bytes per second.
        const BANDWIDTH: f64 = 15e9;
        // Vectors of pixels are computed whole.
        let columns = sizes.output[1].max(1);
        let whole = match spec.layout {
            Layout::Nchw => columns.next_multiple_of(isa.lanes()) as f64 / columns as f64,
            Layout::Nhwc => 1.0,
        };
        let (outputs, elements) = (sizes.y_len as f64, (sizes.x_len + sizes.y_len) as f64);
        2.0 * outputs * products as f64 * whole / (PEAK_FLOPS * fma_share) + elements * 4.0 / BANDWIDTH
    }

    /// Outputs from inputs.
    pub fn forward(spec: &Conv2dSpec, isa: Isa) -> Result<Self, Error> {
        let axis = |a: usize, before: usize| Axis::forward(spec.kernel[a], spec.stride[a], spec.dilation[a], before);
        Self::new(spec, isa, [axis(0, spec.padding.top), axis(1, spec.padding.left)], false)
    }

    /// The gradient of inputs from that of outputs.
    pub fn backward_data(spec: &Conv2dSpec, isa: Isa) -> Result<Self, Error> {
        let axis = |a: usize, before: usize| Axis::backward(spec.kernel[a], spec.stride[a], spec.dilation[a], before);
        Self::new(spec, isa, [axis(0, spec.padding.top), axis(1, spec.padding.left)], true)
    }

    fn new(spec: &Conv2dSpec, isa: Isa, [rows, columns]: [Axis; 2], backward: bool) -> Result<Self, Error> {
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let (planes, outs) = if backward { (group_out, group_in) } else { (group_in, group_out) };
        let len = spec.out_channels * group_in * spec.kernel[0] * spec.kernel[1];
        let zeros = |len: usize| {
            let mut weights = Vec::new();
            weights.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(4) })?;
            weights.resize(len, 0.0);
            Ok(weights)
        };
        let weights = zeros(len)?;
        let lane_weights = zeros(if planes == 1 && outs == 1 { len } else { 0 })?;
        let (groups, layout, kernel) = (spec.groups, spec.layout, spec.kernel);
        let halves = planes == 1 && outs == 1 && halves::fits(&rows, &columns);
        let square = if planes == 1 { squares(&rows, &columns) } else { None };
        let image = planes == 1 && stack::reads_images(isa, &rows, &columns);
        Ok(Self {
            isa,
            layout,
            groups,
            planes,
            outs,
            kernel,
            rows,
            columns,
            weights,
            lane_weights,
            backward,
            square,
            halves,
            image,
        })
    }

    /// Whether targets are gathered straight from the image, plane by plane.
    pub(super) fn plane_by_plane(&self, source_size: [usize; 2], target_size: [usize; 2]) -> bool {
        let kernels = self.square.is_some() || self.halves || self.stacks(source_size, target_size);
        self.layout == Layout::Nchw && kernels
    }

    /// Whether that is done by stacks.
    pub(super) fn stacks(&self, source_size: [usize; 2], target_size: [usize; 2]) -> bool {
        self.image && stack::masks_suffice(self.isa.lanes(), &self.columns, source_size[1], target_size[1])
    }

    /// Whether the planes are so small that several channels are better computed together.
    pub(super) fn is_narrow(&self, source_size: [usize; 2], target_size: [usize; 2]) -> bool {
        self.layout == Layout::Nchw && narrow::is_better(self, source_size, target_size)
    }

    /// The channels of a group in blocks: the first channel and the size, 4, 2 or 1, of each. Planes that are alone are
    /// read once for each channel.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (outs, alone) = (self.outs, self.planes == 1);
        let mut at = 0;
        std::iter::from_fn(move || {
            let size = match outs - at {
                0 => return None,
                _ if alone => 1,
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
            at += size;
            Some((at - size, size))
        })
    }

    /// Packs `[out_channels][in_channels / groups][kernel height][kernel width]`.
    pub fn pack(&mut self, weights: &[f32]) {
        let [kernel_height, kernel_width] = self.kernel;
        let taps = kernel_height * kernel_width;
        let mut at = 0;
        for group in 0..self.groups {
            for rows in &self.rows.phases {
                for columns in &self.columns.phases {
                    for (first, size) in self.blocks() {
                        for plane in 0..self.planes {
                            for kh in &rows.taps {
                                for kw in &columns.taps {
                                    for out in first..first + size {
                                        let filter = if self.backward {
                                            (group * self.planes + plane) * self.outs + out
                                        } else {
                                            (group * self.outs + out) * self.planes + plane
                                        };
                                        let from = (filter * kernel_height + kh.index) * kernel_width + kw.index;
                                        self.weights[at] = weights[from];
                                        if !self.lane_weights.is_empty() {
                                            self.lane_weights[at % taps * self.groups + group] = weights[from];
                                        }
                                        at += 1;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Scratch for sources and targets of a size.
    pub fn workspace_len(&self, source_size: [usize; 2], target_size: [usize; 2], slots: usize) -> usize {
        let narrow = if self.is_narrow(source_size, target_size) {
            narrow::workspace_len(source_size, target_size, slots)
        } else {
            0
        };
        // Calls with a residual are never narrow.
        let other = if self.channels_in_lanes() || self.plane_by_plane(source_size, target_size) {
            0
        } else {
            padded::workspace_len(self, target_size, slots)
        };
        narrow.max(other)
    }

    /// Runs.
    pub fn run(&self, mut call: WindowsCall<'_>, seconds: f64) {
        if call.target.is_empty() {
            return;
        }
        if self.channels_in_lanes() {
            return self.run_channels(call, seconds);
        }
        let (activation, parallelism, slots) = (call.activation, call.parallelism, call.slots.max(1));
        if self.is_narrow(call.source_size, call.target_size) && call.residual.is_none() {
            narrow::run(self, &mut call, seconds);
        } else if self.plane_by_plane(call.source_size, call.target_size) {
            planes::run(self, &mut call, seconds);
        } else {
            padded::run(self, &mut call, seconds);
        }
        self.complete(activation, call.target, parallelism, slots);
    }

    /// Channels last, one channel in and out per group: channels are the lanes.
    fn channels_in_lanes(&self) -> bool {
        self.layout == Layout::Nhwc && self.planes == 1 && self.outs == 1
    }

    /// [`Windows::run`] with channels as lanes.
    fn run_channels(&self, call: WindowsCall<'_>, seconds: f64) {
        let slots = call.slots.max(1);
        let units = call.batch * call.target_size[0];
        let parallelism = call.parallelism.for_seconds(seconds);
        let tasks = units.min(parallelism.threads().min(slots) * TASKS_PER_THREAD);
        let lanes = ChannelLanes {
            channels: self.groups,
            pixel_step: self.groups,
            tap_step: self.groups,
            rows: &self.rows,
            columns: &self.columns,
            weights: self.lane_weights.as_ptr(),
            source: call.source.as_ptr(),
            source_size: call.source_size,
            target: call.target.as_mut_ptr(),
            target_size: call.target_size,
            bias: call.bias.map(<[f32]>::as_ptr),
            residual: call.residual.map(<[f32]>::as_ptr),
            activation: call.activation,
        };
        let lanes = &lanes;
        parallelism.for_each(tasks, slots, &|task, _| {
            let (begin, end) = (task * units / tasks, (task + 1) * units / tasks);
            let mut laps = Laps::start();
            dispatch(self.isa, TargetRows { lanes, begin, end });
            laps.lap(Stage::Product);
        });
        self.complete(call.activation, call.target, call.parallelism, slots);
    }

    /// Applies the activations that the kernels leave out.
    fn complete(&self, activation: Activation, target: &mut [f32], parallelism: Parallelism<'_>, slots: usize) {
        if let Activation::Sigmoid | Activation::Tanh = activation {
            let parallelism = if slots < parallelism.threads() { Parallelism::Serial } else { parallelism };
            let execution = Execution { parallelism, isa: Some(self.isa) };
            let done = activation::forward_in_place(activation, target, execution);
            debug_assert!(done.is_ok(), "the plan has checked the instruction set");
        }
    }
}
