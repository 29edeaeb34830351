//! The plan: a spec and an instruction set, and the choice of the path for each shape.

use std::fmt;

use super::backward::{Backward, Layout, sinks};
use super::call::{Call, Raw, block_keys};
use super::cut::{Cut, PIECE, Scratch, few_rows};
use super::forward::{Forward, Outputs};
use super::gradients::{Gradients, check_gradients, fill};
use super::inputs::{Inputs, check_shape};
use super::merge::Merge;
use super::spec::{AttentionSpec, Shape};
use crate::error::{Error, check_len, checked_len};
use crate::parallel::Parallelism;
use crate::parts::{Shared, dealt};
use crate::simd::Isa;
use crate::tensor::{View, ViewMut};
use crate::workspace::{LINE, Workspace, aligned};

/// Operations a second that estimates assume of one thread.
pub(super) const FLOPS: f64 = 80e9;

/// An attention: made once, run often, from any thread.
///
/// ```
/// use kernels::attention::{Attention, AttentionSpec, Inputs, Shape};
/// use kernels::{Parallelism, View, ViewMut};
/// let plan = Attention::new(AttentionSpec::new(1, 2))?;
/// let shape = [1, 1, 2, 2]; // batch, heads, length, head_dim
/// let (q, k, v) = ([0.0; 4], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 6.0]);
/// let inputs = Inputs::new(View::new(&q, shape)?, View::new(&k, shape)?, View::new(&v, shape)?);
/// let mut workspace = vec![0.0; plan.workspace_len(Shape::new(1, 2, 2), 1)?];
/// let mut out = [0.0; 4];
/// let mut lse = [0.0; 2];
/// let view = ViewMut::new(&mut out, shape)?;
/// plan.forward(&inputs, view, Some(&mut lse), &mut workspace, Parallelism::Serial)?;
/// assert_eq!(out, [2.0, 4.0, 2.0, 4.0]); // equal scores: the mean of the values
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq)]
pub struct Attention {
    spec: AttentionSpec,
    isa: Isa,
}

impl Attention {
    /// Checks the spec and takes the widest instruction set.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Isa`] where `KERNELS_ISA` asks for what the CPU lacks.
    pub fn new(spec: AttentionSpec) -> Result<Self, Error> {
        spec.check()?;
        Ok(Self { spec, isa: Isa::choose()? })
    }

    /// With an instruction set of the caller's choice.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Isa`] when the CPU lacks it.
    pub fn with_isa(spec: AttentionSpec, isa: Isa) -> Result<Self, Error> {
        spec.check()?;
        Ok(Self { spec, isa: isa.check("isa")? })
    }

    /// The spec.
    pub fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    /// The instruction set that runs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Which path a shape takes, on which instruction set.
    pub fn describe(&self, shape: Shape) -> String {
        if few_rows(&self.spec, shape) {
            return format!("{}: few rows, pieces of {PIECE} keys, on {}", self.spec, self.isa);
        }
        let block = block_keys(&self.spec);
        let path = if shape.kv_len <= block { "one block of keys" } else { "blocks of keys, online softmax" };
        format!("{}: {path} of up to {block}, on {}", self.spec, self.isa)
    }

    /// The scratch memory that a forward call needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Overflow`], and [`Error::Invalid`] for no slots.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        self.spec.sizes(shape)?;
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        // Whatever the memory orders: elements that are not neighbours need the most.
        let call = Call::unknown(&self.spec, shape);
        Ok(Self::forward_len(&call, slots))
    }

    fn forward_len(call: &Call<'_>, slots: usize) -> usize {
        let cut = Cut::new(call);
        let layout = Scratch::new(call, &cut);
        let own = slots.min(cut.tasks.max(1)).saturating_mul(layout.len);
        own.saturating_add(cut.partial_len(call, &layout)).saturating_add(LINE)
    }

    /// `out = softmax(logits) v`, and if asked for the log-sum-exp of each row's logits, `[batch][heads][q_len]`.
    /// Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Inputs::check`], [`Error::Shape`] or [`Error::Length`] for an output that does not fit,
    /// [`Error::Length`] for a workspace that is too short for one slot. Outputs are untouched then.
    pub fn forward(
        &self,
        inputs: &Inputs<'_>,
        mut out: ViewMut<'_, f32, 4>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let shape = inputs.check(&self.spec)?;
        check_shape("out", [shape.batch, self.spec.heads, shape.q_len, self.spec.v_dim], out.shape())?;
        let rows = checked_len("lse", &[shape.batch, self.spec.heads, shape.q_len])?;
        check_len("lse", rows, lse.as_ref().map_or(rows, |lse| lse.len()))?;
        let call = Call::new(&self.spec, shape, inputs);
        let slots = slots(parallelism, workspace.len(), |slots| Self::forward_len(&call, slots))?;
        let cut = Cut::new(&call);
        let layout = Scratch::new(&call, &cut);
        let strides = out.strides();
        let outputs = Outputs {
            out: Raw { start: out.as_mut_ptr().cast_const(), strides },
            lse: lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
            lse_stride: shape.q_len,
        };
        let scratch = Shared(aligned(workspace).as_mut_ptr());
        let partial_len = cut.partial_len(&call, &layout);
        let task = |task: usize, slot: usize| {
            let (partial, scratch) = (scratch.at(0), scratch.at(partial_len + slot * layout.len));
            Forward { call: &call, outputs: &outputs, cut, layout, scratch, partial, task }
        };
        let parallelism = parallelism.for_seconds(self.spec.flops(shape)? / FLOPS);
        // Participants take ranges of tasks: dealt out, each begins with long ones.
        let participants = slots.min(cut.tasks);
        parallelism.for_each(cut.tasks, slots, &|index, slot| {
            let index = if cut.longest_first { dealt(index, participants, cut.tasks) } else { index };
            task(index, slot).start(self.isa);
        });
        if cut.key_pieces > 0 {
            let groups = shape.batch * self.spec.kv_heads;
            parallelism.for_each(groups, slots, &|index, slot| Merge(task(index, slot)).start(self.isa));
        }
        Ok(())
    }

    /// The scratch memory that a backward call needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`Attention::workspace_len`].
    pub fn backward_workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        self.spec.sizes(shape)?;
        if slots == 0 {
            return Err(Error::invalid("slots", "at least 1", 0));
        }
        let call = Call::unknown(&self.spec, shape);
        let layout = Layout::new(&call, [true; 4]);
        Ok(slots.min(layout.tasks.max(1)).saturating_mul(layout.len).saturating_add(LINE))
    }

    /// The gradients of the inputs from that of the output, `dout`. `out` and `lse` are what [`Attention::forward`]
    /// gave for the same inputs. Gradients are written, not added to. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Inputs::check`], [`Error::Shape`] or [`Error::Length`] for an argument that does not fit,
    /// [`Error::Invalid`] for a gradient of what is not there, [`Error::Length`] for a workspace that is too short for
    /// one slot. Gradients are untouched then.
    pub fn backward(
        &self,
        inputs: &Inputs<'_>,
        out: &View<'_, f32, 4>,
        dout: &View<'_, f32, 4>,
        lse: &[f32],
        mut gradients: Gradients<'_, '_>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let shape = inputs.check(&self.spec)?;
        if inputs.pages.is_some() {
            return Err(Error::invalid("pages", "none in a backward call", "some"));
        }
        let of_out = [shape.batch, self.spec.heads, shape.q_len, self.spec.v_dim];
        check_shape("out", of_out, out.shape())?;
        check_shape("dout", of_out, dout.shape())?;
        check_len("lse", checked_len("lse", &[shape.batch, self.spec.heads, shape.q_len])?, lse.len())?;
        check_gradients(&self.spec, inputs, shape, &gradients)?;
        let call = Call::new(&self.spec, shape, inputs);
        let copies = [inputs.q.strides(), dout.strides(), inputs.k.strides(), gradients.dq.strides()];
        let layout = Layout::new(&call, copies.map(|strides| strides[3] != 1));
        let len = |slots: usize| slots.min(layout.tasks.max(1)).saturating_mul(layout.len).saturating_add(LINE);
        let slots = slots(parallelism, workspace.len(), len)?;
        if let Some(dbias) = &mut gradients.dbias {
            fill(dbias, 0.0);
        }
        let (raw_out, raw_dout) = (Raw::new(out), Raw::new(dout));
        let outputs =
            super::backward::Outputs::new(raw_out, raw_dout, (lse, shape.q_len), &mut gradients, call.extras.bias);
        let parallelism = if outputs.needs_order(&call) {
            Parallelism::Serial
        } else {
            parallelism.for_seconds(2.5 * self.spec.flops(shape)? / FLOPS)
        };
        let scratch = Shared(aligned(workspace).as_mut_ptr());
        parallelism.for_each(layout.tasks, slots, &|task, slot| {
            let scratch = scratch.at(slot * layout.len);
            Backward { call: &call, outputs: &outputs, layout: &layout, scratch, task }.start(self.isa);
        });
        if let (Some(dsinks), Some(logits)) = (gradients.dsinks, inputs.sinks) {
            dsinks.fill(0.0);
            // SAFETY: everything has been checked against the call.
            unsafe { sinks(&self.spec, &call, &outputs, logits, dsinks) };
        }
        Ok(())
    }
}

impl fmt::Debug for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attention({}, on {})", self.spec, self.isa)
    }
}

/// How many tasks may run at once: one a thread, as far as the workspace goes.
pub(super) fn slots(parallelism: Parallelism, given: usize, len: impl Fn(usize) -> usize) -> Result<usize, Error> {
    let fits = |&slots: &usize| len(slots) <= given;
    (1..=parallelism.threads().max(1)).rev().find(fits).ok_or_else(|| Error::Length {
        argument: "workspace",
        expected: len(1),
        given,
    })
}

/// An attention in one call: allocates a workspace and runs on the current rayon pool.
///
/// # Errors
/// Those of [`Attention::forward`], and [`Error::OutOfMemory`].
pub fn attention(spec: AttentionSpec, inputs: &Inputs<'_>, out: ViewMut<'_, f32, 4>) -> Result<(), Error> {
    let plan = Attention::new(spec)?;
    let parallelism = Parallelism::Current;
    let mut workspace = Workspace::with_len(plan.workspace_len(inputs.check(&spec)?, parallelism.threads())?)?;
    plan.forward(inputs, out, None, &mut workspace, parallelism)
}
