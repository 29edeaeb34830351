//! What the engines of dense convolutions have in common: a call is cut into tasks, each with a slot of scratch memory.
//!
//! ```text
//! workspace   [table of offsets][slot 0][slot 1] ...        slots hold sums, a band of the image, packed patches
//! tasks       image, group, block of output channels, band of rows: each writes its own outputs
//! ```

use std::ops::Range;

use super::band::Offsets;
use super::blocking::Blocking;
use super::slide::Slide;
use crate::activation::Activation;
use crate::parallel::Parallelism;
use crate::parts::share;
use crate::workspace::{LINE, aligned, split_indices};

/// What is applied to each output when its sum is complete.
#[derive(Clone, Copy, Default)]
pub(super) struct Post<'a> {
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub activation: Activation,
}

/// The arguments of a call, checked by the plan.
pub(super) struct Call<'a> {
    pub batch: usize,
    pub input: &'a [f32],
    pub in_size: [usize; 2],
    pub output: &'a mut [f32],
    pub out_size: [usize; 2],
    pub post: Post<'a>,
    pub workspace: &'a mut [f32],
    pub slots: usize,
    pub parallelism: Parallelism<'a>,
}

impl Call<'_> {
    /// The same call again, for the next slide over the same tensors.
    pub fn reborrow(&mut self) -> Call<'_> {
        Call { output: &mut *self.output, workspace: &mut *self.workspace, ..*self }
    }
}

/// Where patches are read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source<B> {
    /// The image itself.
    InPlace(B),
    /// A padded copy of a few rows.
    Band(B),
    /// The image itself, every element by its own computation: for windows so sparse that a band would be huge.
    Gather,
}

/// The results of an image, in units that no cut parts: rows, or tiles where there is one row or no copy of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units {
    /// Pixels of a unit; the last may have fewer.
    pub unit: usize,
    pub units: usize,
}

impl Units {
    /// The pixels of a band of so many, among all `pixels`.
    #[inline(always)]
    pub fn band(&self, bands: usize, band: usize, pixels: usize) -> Range<usize> {
        let units = share(self.units, bands, band);
        units.start * self.unit..(units.end * self.unit).min(pixels)
    }
}

/// How a call is cut. Every cut is between outputs, or between blocks of `k` whose chains continue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<B, O> {
    /// Results of the slide, down and along.
    pub grid: [usize; 2],
    pub source: Source<B>,
    /// Input channels of a block, and the number of blocks.
    pub channel_block: usize,
    pub channel_blocks: usize,
    /// Blocks of panels.
    pub panel_blocks: usize,
    /// Bands of rows, or of pixels.
    pub bands: usize,
    pub tasks: usize,
    /// Elements of the table of offsets.
    pub table_len: usize,
    /// Elements of the three parts of a slot's scratch.
    pub sums_len: usize,
    pub band_len: usize,
    pub tiles_len: usize,
    /// What one engine alone cuts.
    pub own: O,
}

impl<B, O> Cut<B, O> {
    /// Elements of a slot's scratch.
    pub fn scratch_len(&self) -> usize {
        self.sums_len.saturating_add(self.band_len).saturating_add(self.tiles_len)
    }
}

/// A slide with packed weights, and how its results are computed.
pub(super) trait Engine: Sync + Sized {
    /// The rows that patches are read from.
    type Band: Offsets;
    /// What it alone cuts.
    type Own: Sync;

    fn slide(&self) -> &Slide;
    fn groups(&self) -> usize;
    fn blocking(&self) -> &Blocking;

    /// Cuts a call for so many threads.
    fn cut(
        &self,
        batch: usize,
        in_size: [usize; 2],
        out_size: [usize; 2],
        threads: usize,
    ) -> Cut<Self::Band, Self::Own>;

    /// Computes a task on a slot that no other running task has.
    fn compute(context: &Context<'_, Self>, task: usize, slot: usize);

    /// Scratch of a call, in elements.
    fn workspace_len(&self, batch: usize, in_size: [usize; 2], out_size: [usize; 2], slots: usize) -> usize {
        let cut = self.cut(batch, in_size, out_size, slots);
        let table = LINE + split_indices::len(cut.table_len);
        slots.min(cut.tasks.max(1)).saturating_mul(cut.scratch_len()).saturating_add(table)
    }

    /// Computes every result of the slide.
    fn run(&self, call: Call<'_>) {
        let Call { batch, input, in_size, output, out_size, post, workspace, slots, parallelism } = call;
        let cut = self.cut(batch, in_size, out_size, slots);
        if cut.grid.contains(&0) {
            return;
        }
        let (table, scratch) = split_indices::split(aligned(workspace), cut.table_len);
        if let Source::InPlace(band) | Source::Band(band) = &cut.source {
            band.fill_offsets(self.slide(), table);
        }
        debug_assert!(scratch.len() >= slots.min(cut.tasks) * cut.scratch_len());
        let tasks = cut.tasks;
        let flops = 2.0
            * (batch * self.groups() * self.slide().out_channels * self.slide().depth()) as f64
            * cut.grid.iter().product::<usize>() as f64;
        let context = Context {
            plan: self,
            cut,
            input,
            in_size,
            output_len: output.len(),
            output: output.as_mut_ptr(),
            out_size,
            post,
            table,
            scratch: scratch.as_mut_ptr(),
        };
        let parallelism = parallelism.for_seconds(flops / self.blocking().flops_per_second);
        // The closure must borrow the whole context, whose `Sync` is argued below, not its pointers one by one.
        let context = &context;
        parallelism.for_each(tasks, slots, &move |task, slot| Self::compute(context, task, slot));
    }
}

/// What the tasks of a call share.
pub(super) struct Context<'a, E: Engine> {
    pub plan: &'a E,
    pub cut: Cut<E::Band, E::Own>,
    pub input: &'a [f32],
    pub in_size: [usize; 2],
    pub output: *mut f32,
    pub output_len: usize,
    pub out_size: [usize; 2],
    pub post: Post<'a>,
    pub table: &'a [usize],
    pub scratch: *mut f32,
}

// SAFETY: tasks write disjoint pixels and channels of `output` (every cut is between outputs), and disjoint parts
// of `scratch` (a slot belongs to one running task); everything else is only read.
unsafe impl<E: Engine> Sync for Context<'_, E> {}
