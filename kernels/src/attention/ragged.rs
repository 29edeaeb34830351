//! Sequences of different lengths, packed one after the other without padding.
//!
//! ```text
//! q_starts    0        3  4              9       sequence b has rows  q_starts[b] .. q_starts[b + 1]  of q and out,
//! q, out      │a0 a1 a2│b0│c0 c1 c2 c3 c4│                     keys  kv_starts[b] .. kv_starts[b + 1]  of k and v
//! k, v        │a0 a1 a2 a3│b0 b1│c0│
//! kv_starts   0           4     6  7             (what flash-attention calls cu_seqlens)
//! ```
//!
//! A sequence is an attention of its own, cut into tasks as if it were alone: it has the same bits as alone. The tasks
//! of all sequences are handed out together, so that short sequences fill the threads that a long one leaves idle.

use super::backward::{self, Backward, Layout};
use super::call::{Call, Raw};
use super::cut::{Cut, Scratch};
use super::dropout::Dropout;
use super::forward::{Forward, Outputs};
use super::inputs::{Inputs, check_shape};
use super::merge::Merge;
use super::plan::{Attention, FLOPS, slots};
use super::spec::{AttentionSpec, Shape};
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::parts::Shared;
use crate::tensor::{View, ViewMut};
use crate::workspace::{LINE, aligned, split_indices};

/// What a call over packed sequences reads.
///
/// ```
/// use kernels::attention::{Attention, AttentionSpec, RaggedInputs};
/// use kernels::{Parallelism, View, ViewMut};
/// // Two sequences, of 2 and of 1 queries, that meet 2 and 3 keys.
/// let (q_starts, kv_starts) = ([0, 2, 3], [0, 2, 5]);
/// let (q, k, v) = ([0.0; 3], [1.0; 5], [1.0, 3.0, 4.0, 5.0, 9.0]);
/// let view = |data, len| View::new(data, [len, 1, 1]); // one head of one element
/// let inputs = RaggedInputs::new(view(&q, 3)?, view(&k, 5)?, view(&v, 5)?, &q_starts, &kv_starts);
/// let plan = Attention::new(AttentionSpec::new(1, 1))?;
/// let mut workspace = vec![0.0; plan.ragged_workspace_len(&q_starts, &kv_starts, 1)?];
/// let mut out = [0.0; 3];
/// let view = ViewMut::new(&mut out, [3, 1, 1])?;
/// plan.forward_ragged(&inputs, view, None, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(out, [2.0, 2.0, 6.0]); // equal scores: the mean of each sequence's values
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RaggedInputs<'a, T = f32> {
    /// Queries, `[all queries, heads, head_dim]`.
    pub q: View<'a, T, 3>,
    /// Keys, `[all keys, kv_heads, head_dim]`.
    pub k: View<'a, T, 3>,
    /// Values, `[all keys, kv_heads, v_dim]`.
    pub v: View<'a, T, 3>,
    /// Where the queries of each sequence start, and at last where all end: from 0, never falling.
    pub q_starts: &'a [usize],
    /// Where the keys of each sequence start, as many numbers as for the queries.
    pub kv_starts: &'a [usize],
    /// ALiBi: the slope of each head.
    pub alibi: Option<&'a [T]>,
    /// A logit for each head that takes part in the softmax, but has no value.
    pub sinks: Option<&'a [T]>,
    /// Which weights of the softmax are left out at random.
    pub dropout: Option<Dropout>,
}

impl<'a, T: Copy> RaggedInputs<'a, T> {
    /// Queries, keys, values and lengths alone.
    pub const fn new(
        q: View<'a, T, 3>,
        k: View<'a, T, 3>,
        v: View<'a, T, 3>,
        q_starts: &'a [usize],
        kv_starts: &'a [usize],
    ) -> Self {
        Self { q, k, v, q_starts, kv_starts, alibi: None, sinks: None, dropout: None }
    }

    /// Subtracts `slope * |position of the query - key|` from the logits of each head.
    pub const fn alibi(mut self, slopes: &'a [T]) -> Self {
        self.alibi = Some(slopes);
        self
    }

    /// Adds a logit without a value to each head's softmax.
    pub const fn sinks(mut self, sinks: &'a [T]) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Leaves out weights of the softmax at random.
    pub const fn dropout(mut self, dropout: Dropout) -> Self {
        self.dropout = Some(dropout);
        self
    }

    /// The number of sequences, if all inputs fit the spec and each other.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Shape`], [`Error::Length`] and [`Error::Invalid`] for an input that
    /// does not fit, [`Error::Overflow`].
    pub fn check(&self, spec: &AttentionSpec) -> Result<usize, Error> {
        let (all_queries, all_keys) = (self.q.shape()[0], self.k.shape()[0]);
        let sequences = check_starts(spec, self.q_starts, self.kv_starts)?;
        check_shape("q", [ends(self.q_starts), spec.heads, spec.head_dim], self.q.shape())?;
        check_shape("k", [ends(self.kv_starts), spec.kv_heads, spec.head_dim], self.k.shape())?;
        check_shape("v", [all_keys, spec.kv_heads, spec.v_dim], self.v.shape())?;
        check_len("alibi", spec.heads, self.alibi.map_or(spec.heads, <[T]>::len))?;
        check_len("sinks", spec.heads, self.sinks.map_or(spec.heads, <[T]>::len))?;
        if let Some(dropout) = self.dropout {
            dropout.check([sequences, spec.heads, all_queries, all_keys])?;
        }
        Ok(sequences)
    }

    /// One of the sequences of checked inputs, as a batch of its own.
    pub(crate) fn sequence(&self, index: usize) -> Inputs<'a, T> {
        let (queries, keys) = (span(self.q_starts, index), span(self.kv_starts, index));
        let (q, k, v) = (self.q.sequence(queries), self.k.sequence(keys), self.v.sequence(keys));
        let dropout = self.dropout.map(|dropout| Dropout { first_sequence: dropout.first_sequence + index, ..dropout });
        Inputs { alibi: self.alibi, sinks: self.sinks, dropout, ..Inputs::new(q, k, v) }
    }
}

/// The gradients that a backward call over packed sequences writes.
#[derive(Debug)]
pub struct RaggedGradients<'a, 'v, T = f32> {
    /// Of the queries, `[all queries, heads, head_dim]`.
    pub dq: ViewMut<'v, T, 3>,
    /// Of the keys, `[all keys, kv_heads, head_dim]`.
    pub dk: ViewMut<'v, T, 3>,
    /// Of the values, `[all keys, kv_heads, v_dim]`.
    pub dv: ViewMut<'v, T, 3>,
    /// Of the sinks, one for each head.
    pub dsinks: Option<&'a mut [T]>,
}

impl<'a, 'v, T: Copy> RaggedGradients<'a, 'v, T> {
    /// Gradients of queries, keys and values.
    pub fn new(dq: ViewMut<'v, T, 3>, dk: ViewMut<'v, T, 3>, dv: ViewMut<'v, T, 3>) -> Self {
        Self { dq, dk, dv, dsinks: None }
    }

    /// Also those of the sinks.
    pub fn dsinks(mut self, dsinks: &'a mut [T]) -> Self {
        self.dsinks = Some(dsinks);
        self
    }

    /// Whether they fit the inputs.
    pub(crate) fn check(&self, spec: &AttentionSpec, inputs: &RaggedInputs<'_, T>) -> Result<(), Error> {
        check_shape("dq", inputs.q.shape(), self.dq.shape())?;
        check_shape("dk", inputs.k.shape(), self.dk.shape())?;
        check_shape("dv", inputs.v.shape(), self.dv.shape())?;
        if let Some(dsinks) = &self.dsinks {
            if inputs.sinks.is_none() {
                return Err(Error::invalid("dsinks", "none where there are no sinks", "some"));
            }
            check_len("dsinks", spec.heads, dsinks.len())?;
        }
        Ok(())
    }
}

/// The rows of one sequence: the first, and how many.
fn span(starts: &[usize], index: usize) -> [usize; 2] {
    [starts[index], starts[index + 1] - starts[index]]
}

fn ends(starts: &[usize]) -> usize {
    starts.last().copied().unwrap_or(0)
}

fn shape_of(q_starts: &[usize], kv_starts: &[usize], index: usize) -> Shape {
    Shape::new(1, span(q_starts, index)[1], span(kv_starts, index)[1])
}

/// The number of sequences.
fn check_starts(spec: &AttentionSpec, q_starts: &[usize], kv_starts: &[usize]) -> Result<usize, Error> {
    for (argument, starts) in [("q_starts", q_starts), ("kv_starts", kv_starts)] {
        if starts.first() != Some(&0) {
            return Err(Error::invalid(argument, "a first number of 0", format!("{:?}", starts.first())));
        }
        if let Some(pair) = starts.windows(2).find(|pair| pair[0] > pair[1]) {
            return Err(Error::invalid(argument, format!("at least {} after it", pair[0]), pair[1]));
        }
    }
    check_len("kv_starts", q_starts.len(), kv_starts.len())?;
    // The whole is no smaller than any sequence.
    spec.sizes(Shape::new(1, ends(q_starts), ends(kv_starts)))?;
    Ok(q_starts.len() - 1)
}

/// Scratch memory of all sequences: tables of where each starts among the tasks and the partial sums, partial sums,
/// slots.
#[derive(Clone, Copy, Default)]
struct Sizes {
    sequences: usize,
    tasks: usize,
    partial: usize,
    slot: usize,
}

impl Sizes {
    /// Adds a sequence of so many tasks.
    fn add(&mut self, tasks: usize, partial: usize, slot: usize) {
        self.sequences += 1;
        self.tasks = self.tasks.saturating_add(tasks);
        self.partial = self.partial.saturating_add(partial);
        self.slot = self.slot.max(slot);
    }

    fn table(&self) -> usize {
        split_indices::len(2 * (self.sequences + 1))
    }

    fn len(&self, slots: usize) -> usize {
        let own = slots.min(self.tasks.max(1)).saturating_mul(self.slot);
        own.saturating_add(self.partial).saturating_add(self.table() + LINE)
    }
}

/// The sequence that a task belongs to, and its number there.
fn find(starts: &[usize], task: usize) -> (usize, usize) {
    let sequence = starts.partition_point(|&start| start <= task) - 1;
    (sequence, task - starts[sequence])
}

impl Attention {
    /// The scratch memory that [`Attention::forward_ragged`] needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`RaggedInputs::check`] for the lengths, and [`Error::Invalid`] for no slots.
    pub fn ragged_workspace_len(&self, q_starts: &[usize], kv_starts: &[usize], slots: usize) -> Result<usize, Error> {
        let mut sizes = Sizes::default();
        for index in 0..check_starts(self.spec(), q_starts, kv_starts)? {
            let call = Call::unknown(self.spec(), shape_of(q_starts, kv_starts, index));
            let (cut, layout) = cut(&call);
            sizes.add(cut.tasks, cut.partial_len(&call, &layout), layout.len);
        }
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        Ok(sizes.len(slots))
    }

    /// The scratch memory that [`Attention::backward_ragged`] needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`Attention::ragged_workspace_len`].
    pub fn ragged_backward_workspace_len(
        &self,
        q_starts: &[usize],
        kv_starts: &[usize],
        slots: usize,
    ) -> Result<usize, Error> {
        let mut sizes = Sizes::default();
        for index in 0..check_starts(self.spec(), q_starts, kv_starts)? {
            let layout = Layout::new(&Call::unknown(self.spec(), shape_of(q_starts, kv_starts, index)), [true; 4]);
            sizes.add(layout.tasks, 0, layout.len);
        }
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        Ok(sizes.len(slots))
    }

    /// [`Attention::forward`] for packed sequences: `out` is `[all queries, heads, v_dim]`, `lse` `[heads][all
    /// queries]`. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`RaggedInputs::check`], [`Error::Shape`] or [`Error::Length`] for an output that does not fit,
    /// [`Error::Length`] for a workspace that is too short for one slot. Outputs are untouched then.
    pub fn forward_ragged(
        &self,
        inputs: &RaggedInputs<'_>,
        mut out: ViewMut<'_, f32, 3>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let spec = self.spec();
        let sequences = inputs.check(spec)?;
        let all_queries = ends(inputs.q_starts);
        check_shape("out", [all_queries, spec.heads, spec.v_dim], out.shape())?;
        let rows = all_queries * spec.heads;
        check_len("lse", rows, lse.as_ref().map_or(rows, |lse| lse.len()))?;
        let (mut sizes, mut flops) = (Sizes::default(), 0.0);
        for index in 0..sequences {
            let call = self.call(inputs, index);
            let (cut, layout) = cut(&call);
            sizes.add(cut.tasks, cut.partial_len(&call, &layout), layout.len);
            flops += spec.flops(call.shape)?;
        }
        let slots = slots(parallelism, workspace.len(), |slots| sizes.len(slots))?;
        let (table, scratch) = split_indices::split(aligned(workspace), 2 * (sequences + 1));
        let (tasks, partials) = table.split_at_mut(sequences + 1);
        for index in 0..sequences {
            let call = self.call(inputs, index);
            let (cut, layout) = cut(&call);
            tasks[index + 1] = tasks[index] + cut.tasks;
            partials[index + 1] = partials[index] + cut.partial_len(&call, &layout);
        }
        let (tasks, partials) = (&*tasks, &*partials);
        let out = Raw::sequences(&mut out);
        let lse = lse.map(|lse| Shared(lse.as_mut_ptr()));
        let scratch = Shared(scratch.as_mut_ptr());
        // Runs a task of a sequence, or merges the pieces of one of its heads of keys.
        let run = |index: usize, task: usize, slot: usize, merge: bool| {
            let call = self.call(inputs, index);
            let (cut, layout) = cut(&call);
            if merge && cut.key_pieces == 0 {
                return;
            }
            let first = inputs.q_starts[index];
            let lse = lse.as_ref().map_or(std::ptr::null_mut(), |lse| lse.at(first));
            let outputs = Outputs { out: out.from(first), lse, lse_stride: all_queries };
            let (partial, scratch) = (scratch.at(partials[index]), scratch.at(sizes.partial + slot * sizes.slot));
            let forward = Forward { call: &call, outputs: &outputs, cut, layout, scratch, partial, task };
            if merge { Merge(forward).start(self.isa()) } else { forward.start(self.isa()) }
        };
        let parallelism = parallelism.for_seconds(flops / FLOPS);
        parallelism.for_each(sizes.tasks, slots, &|task, slot| {
            let (index, task) = find(tasks, task);
            run(index, task, slot, false);
        });
        if sizes.partial > 0 {
            parallelism.for_each(sequences * spec.kv_heads, slots, &|head, slot| {
                run(head / spec.kv_heads, head % spec.kv_heads, slot, true);
            });
        }
        Ok(())
    }

    /// [`Attention::backward`] for packed sequences: `out` and `lse` are what [`Attention::forward_ragged`] gave for
    /// the same inputs. Gradients are written, not added to. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`RaggedInputs::check`], [`Error::Shape`] or [`Error::Length`] for an argument that does not fit,
    /// [`Error::Invalid`] for a gradient of what is not there, [`Error::Length`] for a workspace that is too short for
    /// one slot. Gradients are untouched then.
    pub fn backward_ragged(
        &self,
        inputs: &RaggedInputs<'_>,
        out: &View<'_, f32, 3>,
        dout: &View<'_, f32, 3>,
        lse: &[f32],
        mut gradients: RaggedGradients<'_, '_>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let spec = self.spec();
        let sequences = inputs.check(spec)?;
        let all_queries = ends(inputs.q_starts);
        let of_out = [all_queries, spec.heads, spec.v_dim];
        check_shape("out", of_out, out.shape())?;
        check_shape("dout", of_out, dout.shape())?;
        check_len("lse", all_queries * spec.heads, lse.len())?;
        gradients.check(spec, inputs)?;
        let copies = [inputs.q.strides(), dout.strides(), inputs.k.strides(), gradients.dq.strides()];
        let copies = copies.map(|strides| strides[2] != 1);
        let (mut sizes, mut flops) = (Sizes::default(), 0.0);
        for index in 0..sequences {
            let call = self.call(inputs, index);
            let layout = Layout::new(&call, copies);
            sizes.add(layout.tasks, 0, layout.len);
            flops += 2.5 * spec.flops(call.shape)?;
        }
        let slots = slots(parallelism, workspace.len(), |slots| sizes.len(slots))?;
        let (tasks, scratch) = split_indices::split(aligned(workspace), sequences + 1);
        for index in 0..sequences {
            tasks[index + 1] = tasks[index] + Layout::new(&self.call(inputs, index), copies).tasks;
        }
        let tasks = &*tasks;
        let [dq, dk, dv] = [&mut gradients.dq, &mut gradients.dk, &mut gradients.dv].map(Raw::sequences);
        let outputs = |index: usize| {
            let (queries, keys) = (inputs.q_starts[index], inputs.kv_starts[index]);
            let view = span(inputs.q_starts, index);
            backward::Outputs {
                out: Raw::new(&out.sequence(view)),
                dout: Raw::new(&dout.sequence(view)),
                lse: lse.as_ptr().wrapping_add(queries),
                lse_stride: all_queries,
                dq: dq.from(queries),
                dk: dk.from(keys),
                dv: dv.from(keys),
                dbias: None,
            }
        };
        let scratch = Shared(scratch.as_mut_ptr());
        parallelism.for_seconds(flops / FLOPS).for_each(sizes.tasks, slots, &|task, slot| {
            let (index, task) = find(tasks, task);
            let call = self.call(inputs, index);
            let (layout, scratch) = (Layout::new(&call, copies), scratch.at(slot * sizes.slot));
            Backward { call: &call, outputs: &outputs(index), layout: &layout, scratch, task }.start(self.isa());
        });
        if let (Some(dsinks), Some(logits)) = (gradients.dsinks, inputs.sinks) {
            dsinks.fill(0.0);
            for index in 0..sequences {
                // SAFETY: everything has been checked against the call.
                unsafe { backward::sinks(spec, &self.call(inputs, index), &outputs(index), logits, dsinks) };
            }
        }
        Ok(())
    }

    fn call<'a>(&self, inputs: &RaggedInputs<'a>, index: usize) -> Call<'a> {
        Call::new(self.spec(), shape_of(inputs.q_starts, inputs.kv_starts, index), &inputs.sequence(index))
    }
}

fn cut(call: &Call<'_>) -> (Cut, Scratch) {
    let cut = Cut::new(call);
    (cut, Scratch::new(call, &cut))
}

/// The rows of all sequences of an output, for tasks that write different ones.
struct Rows(Raw<f32>);

// SAFETY: tasks write the rows and heads of their own.
unsafe impl Sync for Rows {}

impl Rows {
    /// From a row on.
    fn from(&self, row: usize) -> Raw<f32> {
        Raw { start: self.0.start.wrapping_offset(row as isize * self.0.strides[2]), ..self.0 }
    }
}

impl Raw<f32> {
    /// The rows of an output as those of one sequence.
    fn sequences(view: &mut ViewMut<'_, f32, 3>) -> Rows {
        let [row, head, element] = view.strides();
        Rows(Self { start: view.as_mut_ptr().cast_const(), strides: [0, head, row, element] })
    }
}
