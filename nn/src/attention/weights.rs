//! Which positions a position looks at: the weights of the softmax, for those who want to see them.

use kernels::attention::{Attention, Shape};
use kernels::{Parallelism, View, ViewMut, Workspace};

use super::MultiHeadAttention;
use super::parts::heads;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, elements, tensor};

impl MultiHeadAttention {
    /// The weights of the last `forward` in training, `[batch, heads, queries, keys]`: how much of each position's
    /// value each position takes. A row's weights sum to 1. No `forward` computes them as a whole: here they are
    /// what attention makes of values that are the unit vectors, so there may be at most 512 keys.
    ///
    /// ```
    /// use nn::{Layer, MultiHeadAttention, Parallelism, Random, Tensor};
    /// let mut attention = MultiHeadAttention::new(8, 2, &mut Random::new(0))?;
    /// attention.forward(&[&Tensor::ones(vec![1, 4, 8])], Parallelism::Current)?;
    /// let weights = attention.weights(Parallelism::Current)?;
    /// assert_eq!(weights.shape(), [1, 2, 4, 4]);
    /// assert!(weights.iter().all(|weight| (weight - 0.25).abs() < 1e-6)); // four times the same position
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before, or after its `backward`; [`Error::Kernel`] for more than 512
    /// keys.
    pub fn weights(&self, parallelism: Parallelism<'_>) -> Result<Tensor> {
        let cache = self.cache.as_ref().ok_or(Error::NoForward)?;
        let [batch, q_len] = [cache.out.shape()[0], cache.out.shape()[1]];
        let kv_len = cache.inputs.last().map_or(q_len, |memory| memory.shape()[1]);
        let spec = *self.plan.spec();
        let shape = [batch, spec.heads, q_len, kv_len];
        let mut weights = vec![0.0; shape.iter().product()];
        if weights.is_empty() {
            return tensor(&shape, weights);
        }
        let mut unit = vec![0.0; kv_len * kv_len];
        unit.iter_mut().step_by(kv_len + 1).for_each(|diagonal| *diagonal = 1.0);
        let projected: Vec<&[f32]> = cache.projected.iter().map(elements).collect();
        let mut inputs = heads(&spec, [batch, q_len, kv_len], &projected)?;
        inputs.v = View::strided(&unit, 0, [batch, spec.heads, kv_len, kv_len], [0, 0, kv_len as isize, 1])?;
        let plan = Attention::new(spec.v_dim(kv_len))?;
        let len = plan.workspace_len(Shape::new(batch, q_len, kv_len), parallelism.threads())?;
        let mut workspace = Workspace::with_len(len)?;
        plan.forward(&inputs, ViewMut::new(&mut weights, shape)?, None, &mut workspace, parallelism)?;
        tensor(&shape, weights)
    }
}
