//! The forward pass of a plan.

use kernels::ViewMut;
use kernels::attention::{Attention, Shape};
use kernels::rotary::Rotary;

use super::parts::{features, heads, part, turn};
use crate::error::Result;
use crate::inference::{Call, Kernel};
use crate::linear::Product;

/// Projections and their attention stand at the start of the workspace.
pub(super) struct Planned {
    /// That of q, k and v, or that of q and that of k and v.
    pub projections: Vec<Product>,
    pub proj: Product,
    pub plan: Attention,
    pub rotary: Option<Rotary>,
}

impl Planned {
    /// Batch, positions of the queries, positions of the keys.
    fn sizes(&self, inputs: &[Vec<usize>]) -> [usize; 3] {
        let memory = &inputs[self.projections.len() - 1];
        [inputs[0][0], inputs[0][1], memory[1]]
    }

    /// Floats of the first projection, of the second, and of the attention's output.
    fn own(&self, [batch, q_len, kv_len]: [usize; 3]) -> [usize; 3] {
        let features = features(self.plan.spec());
        let [q, kv] = [batch * q_len * features, batch * kv_len * features];
        if self.projections.len() == 2 { [q, 2 * kv, q] } else { [3 * q, 0, q] }
    }
}

impl Kernel for Planned {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        let sizes @ [batch, q_len, kv_len] = self.sizes(inputs);
        let mut scratch = self.plan.workspace_len(Shape::new(batch, q_len, kv_len), slots)?;
        for (projection, length) in self.projections.iter().zip([q_len, kv_len]) {
            scratch = scratch.max(projection.scratch_len(batch * length, slots)?);
        }
        scratch = scratch.max(self.proj.scratch_len(batch * q_len, slots)?);
        Ok(self.own(sizes).iter().sum::<usize>() + scratch)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let sizes @ [batch, q_len, kv_len] = self.sizes(call.shapes);
        if call.y.is_empty() {
            return Ok(());
        }
        let [of_first, of_second, of_out] = self.own(sizes);
        let (first, rest) = call.workspace.split_at_mut(of_first);
        let (second, rest) = rest.split_at_mut(of_second);
        let (out, scratch) = rest.split_at_mut(of_out);
        let projected = [&mut *first, &mut *second];
        for (at, ((projection, to), length)) in self.projections.iter().zip(projected).zip([q_len, kv_len]).enumerate()
        {
            projection.run_rows(batch * length, call.inputs.get(at), None, to, scratch, call.parallelism)?;
        }
        let spec = self.plan.spec();
        if let Some(rotary) = &self.rotary {
            turn(rotary, spec, q_len, first)?;
        }
        let projected = [&*first, &*second];
        let heads = heads(spec, sizes, &projected[..self.projections.len()])?;
        let (_, of_view, strides) = part(spec, [batch, q_len], 1, 0);
        let to = ViewMut::strided(out, 0, of_view, strides)?;
        self.plan.forward(&heads, to, None, scratch, call.parallelism)?;
        let operands = self.projections.len();
        let residual = (call.inputs.len() > operands).then(|| call.inputs.get(operands));
        self.proj.run_rows(batch * q_len, out, residual, call.y, scratch, call.parallelism)
    }
}
