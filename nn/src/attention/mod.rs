//! Attention with several heads.
//!
//! ```text
//! self:   x [batch, n, d] ── qkv ──► [batch, n, (q, k, v), heads, d / heads]           qkv: Linear d -> 3 d
//! cross:  x [batch, n, d] ── q ──► [batch, n, heads, d / heads]                        its first third
//!         memory [batch, m, d] ── kv ──► [batch, m, (k, v), heads, d / heads]          and the other two
//!
//!         ── softmax(q kᵀ / sqrt(d / heads)) v ──► [batch, n, heads, d / heads]
//!         ── proj ──► y [batch, n, d]                                                  proj: Linear d -> d
//! ```
//!
//! Vaswani et al., "Attention is all you need", NeurIPS 2017.

mod parts;
mod planned;
mod weights;

use kernels::attention::{Attention, AttentionSpec, Causal, Gradients, Inputs, Shape};
use kernels::rotary::{Pairing, Rotary};
use kernels::{Parallelism, ViewMut, Workspace};

use crate::error::{Error, Result};
use crate::inference::{Fused, Kernel, Role};
use crate::layer::{Layer, Parameter};
use crate::linear::Linear;
use crate::memory::{recycle, room};
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, tensor};
use parts::{features, part, turn, view};
use planned::Planned;

/// Attention over sequences `[batch, length, features]`: of one sequence to itself, or, given two, of the first to the
/// second.
///
/// ```
/// use nn::{Layer, MultiHeadAttention, Parallelism, Random, Tensor};
/// let mut attention = MultiHeadAttention::new(16, 4, &mut Random::new(0))?;
/// let (x, memory) = (Tensor::zeros(vec![2, 7, 16]), Tensor::zeros(vec![2, 9, 16]));
/// assert_eq!(attention.forward(&[&x], Parallelism::Current)?.shape(), [2, 7, 16]);
/// assert_eq!(attention.forward(&[&x, &memory], Parallelism::Current)?.shape(), [2, 7, 16]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct MultiHeadAttention {
    qkv: Linear,
    proj: Linear,
    /// What the names of both layers' parameters begin with.
    names: [&'static str; 2],
    plan: Attention,
    rotary: Option<Rotary>,
    workspace: Workspace,
    cache: Option<Cache>,
}

/// What the last `forward` leaves.
struct Cache {
    /// x [batch, n, d], and [batch, m, d] if there was a memory.
    inputs: Vec<Tensor>,
    /// [batch, n, 3 d], or q [batch, n, d] and kv [batch, m, 2 d].
    projected: Vec<Tensor>,
    /// [batch, n, d]
    out: Tensor,
    /// [batch, heads, n]
    lse: Vec<f32>,
}

impl MultiHeadAttention {
    /// A layer whose heads share `features` evenly, with Xavier-uniform weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] for heads that do not divide the features, [`Error::Kernel`] for heads that are too large.
    pub fn new(features: usize, heads: usize, random: &mut Random) -> Result<Self> {
        if heads == 0 || !features.is_multiple_of(heads) {
            return Err(Error::invalid("heads", format!("a divisor of the {features} features"), heads));
        }
        let threefold = features.checked_mul(3).ok_or_else(|| Error::invalid("features", "fewer", features))?;
        Ok(Self {
            qkv: Linear::xavier(features, threefold, random)?,
            proj: Linear::xavier(features, features, random)?,
            names: ["qkv.", "proj."],
            plan: Attention::new(AttentionSpec::new(heads, features / heads))?,
            rotary: None,
            workspace: Workspace::new(),
            cache: None,
        })
    }

    /// Whether a position sees those behind it: a decoder's does not.
    ///
    /// # Errors
    /// None today: every spec may be causal.
    pub fn causal(mut self, causal: bool) -> Result<Self> {
        let causal = if causal { Causal::TopLeft } else { Causal::None };
        self.plan = Attention::new(self.plan.spec().causal(causal))?;
        Ok(self)
    }

    /// Turns queries and keys by angles that grow with their position, so that scores depend on distances: the
    /// positions of Su et al., "RoFormer", 2021, with a base of 10000. For sequences of at most so many positions,
    /// which attend to themselves.
    ///
    /// # Errors
    /// [`Error::Kernel`] for heads of an odd size.
    pub fn rotary(mut self, positions: usize) -> Result<Self> {
        self.rotary = Some(Rotary::new(Pairing::Half, self.plan.spec().head_dim, 10_000.0, positions)?);
        Ok(self)
    }

    /// Names the parameters as PyTorch's layer of this name does, `in_proj_weight` and `out_proj.weight`, instead of
    /// `qkv.weight` and `proj.weight`.
    pub const fn pytorch_names(mut self) -> Self {
        self.names = ["in_proj_", "out_proj."];
        self
    }

    /// Batch, positions of the queries, positions of the keys.
    fn sizes(&self, inputs: &[&[usize]]) -> Result<[usize; 3]> {
        let features = features(self.plan.spec());
        let size = |argument, shape: &[usize], batch: Option<usize>| match *shape {
            [of, length, given] if given == features && batch.is_none_or(|batch| batch == of) => Ok([of, length]),
            _ => {
                let batch = batch.map_or("batch".to_string(), |batch| batch.to_string());
                Err(Error::shape(argument, format!("[{batch}, length, {features}]"), shape))
            }
        };
        match *inputs {
            [x] => size("x", x, None).map(|[batch, length]| [batch, length, length]),
            [_, _] if self.rotary.is_some() => {
                Err(Error::invalid("inputs", "1 tensor, as rotary positions are those of one sequence", 2))
            }
            [x, memory] => {
                let [batch, length] = size("x", x, None)?;
                Ok([batch, length, size("memory", memory, Some(batch))?[1]])
            }
            _ => Err(Error::invalid("inputs", "1 or 2 tensors", inputs.len())),
        }
    }
}

impl Layer for MultiHeadAttention {
    fn kind(&self) -> &'static str {
        "MultiHeadAttention"
    }

    fn details(&self) -> String {
        self.plan.spec().to_string()
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shapes: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        self.sizes(&shapes).map(|_| inputs[0].clone())
    }

    /// Those of the projections and of the attention.
    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let shapes: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        let [batch, q_len, kv_len] = self.sizes(&shapes)?;
        let of_position = 4.0 * (features(self.plan.spec()) as f64).powi(2);
        let positions = batch as f64 * (q_len as f64 + kv_len as f64);
        Ok(of_position * positions + self.plan.spec().flops(Shape::new(batch, q_len, kv_len))?)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: true, residual: true }
    }

    fn kernel(&self, hint: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        let features = features(self.plan.spec());
        let ends: &[usize] = if hint.len() == 2 { &[0, features, 3 * features] } else { &[0, 3 * features] };
        let cuts = ends.windows(2).map(|ends| ends[0]..ends[1]);
        let projections = cuts.map(|cut| self.qkv.product(cut, Fused::default())).collect::<Result<_>>()?;
        Ok(Box::new(Planned {
            projections,
            proj: self.proj.product(0..features, fused)?,
            plan: self.plan,
            rotary: self.rotary.clone(),
        }))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|x| x.shape()).collect();
        let [batch, q_len, kv_len] = self.sizes(&shapes)?;
        let (spec, features) = (*self.plan.spec(), features(self.plan.spec()));
        let mut projected = match *inputs {
            [x, memory] => vec![
                self.qkv.forward_part(0..features, x, parallelism)?,
                self.qkv.forward_part(features..3 * features, memory, parallelism)?,
            ],
            _ => vec![self.qkv.forward_part(0..3 * features, inputs[0], parallelism)?],
        };
        if let Some(rotary) = &self.rotary
            && let Some(qkv) = projected[0].as_slice_mut()
        {
            turn(rotary, &spec, q_len, qkv)?;
        }
        let mut out = room(batch * q_len * features);
        let mut lse = vec![0.0; batch * spec.heads * q_len];
        if !out.is_empty() {
            let len = self.plan.workspace_len(Shape::new(batch, q_len, kv_len), parallelism.threads())?;
            let workspace = self.workspace.grow(len)?;
            let (_, shape, strides) = part(&spec, [batch, q_len], 1, 0);
            let to = ViewMut::strided(&mut out, 0, shape, strides)?;
            let heads = heads(&spec, [batch, q_len, kv_len], &projected)?;
            self.plan.forward(&heads, to, Some(&mut lse), workspace, parallelism)?;
        }
        let out = tensor(&[batch, q_len, features], out)?;
        let y = self.proj.forward(&[&out], parallelism)?;
        let inputs = inputs.iter().map(|&x| x.clone()).collect();
        self.cache = Some(Cache { inputs, projected, out, lse });
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let Cache { inputs, projected, out, lse } = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, out.shape())?;
        let d_out = self.proj.backward(d_output, parallelism)?.remove(0);
        let (spec, features) = (*self.plan.spec(), features(self.plan.spec()));
        let [batch, q_len] = [out.shape()[0], out.shape()[1]];
        let kv_len = inputs.last().map_or(q_len, |memory| memory.shape()[1]);
        // The gradients of q, k and v go back through their parts of the projection one by one.
        let [q_all, kv_all] = [out.len(), batch * kv_len * features];
        let (mut dq, mut dk, mut dv) = (room(q_all), room(kv_all), room(kv_all));
        if q_all > 0 && kv_all > 0 {
            let sizes = [batch, q_len, kv_len];
            let shape = Shape::new(batch, q_len, kv_len);
            let workspace = self.workspace.grow(self.plan.backward_workspace_len(shape, parallelism.threads())?)?;
            let (_, of_q, q_strides) = part(&spec, [batch, q_len], 1, 0);
            let (_, of_kv, kv_strides) = part(&spec, [batch, kv_len], 1, 0);
            let gradients = Gradients::new(
                ViewMut::strided(&mut dq, 0, of_q, q_strides)?,
                ViewMut::strided(&mut dk, 0, of_kv, kv_strides)?,
                ViewMut::strided(&mut dv, 0, of_kv, kv_strides)?,
            );
            let [out, d_out] = [out, &d_out].map(|x| view(&spec, [batch, q_len], elements(x), 1, 0));
            let heads = heads(&spec, sizes, projected)?;
            self.plan.backward(&heads, &out?, &d_out?, lse, gradients, workspace, parallelism)?;
            if let Some(rotary) = &self.rotary {
                let shape =
                    kernels::rotary::Shape { outer: batch, length: q_len, inner: spec.heads, head_dim: spec.head_dim };
                rotary.backward_in_place(shape, 0, &mut dq, parallelism)?;
                rotary.backward_in_place(shape, 0, &mut dk, parallelism)?;
            }
        }
        let (x, memory) = (&inputs[0], inputs.get(1));
        let (mut dx, mut d_memory) = (Vec::new(), Vec::new());
        for (at, (len, d)) in [(q_len, dq), (kv_len, dk), (kv_len, dv)].into_iter().enumerate() {
            let d = tensor(&[batch, len, features], d)?;
            let (from, to) = match memory {
                Some(memory) if at > 0 => (memory, &mut d_memory),
                _ => (x, &mut dx),
            };
            self.qkv.backward_part(at * features..(at + 1) * features, from, &d, Some(to), parallelism)?;
            recycle(d);
        }
        recycle(d_out);
        let mut d_inputs = vec![tensor(x.shape(), dx)?];
        if let Some(memory) = memory {
            d_inputs.push(tensor(memory.shape(), d_memory)?);
        }
        self.cache = None;
        Ok(d_inputs)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        let [qkv, proj] = self.names;
        self.qkv.visit(&format!("{prefix}{qkv}"), visitor);
        self.proj.visit(&format!("{prefix}{proj}"), visitor);
    }

    fn visit_attention(&self, prefix: &str, visitor: &mut dyn FnMut(&str, &MultiHeadAttention)) {
        visitor(prefix.strip_suffix('.').unwrap_or(prefix), self);
    }
}

/// Queries, keys and values in what projections made. `[batch, q_len, kv_len]`.
fn heads<'a>(spec: &AttentionSpec, [batch, q_len, kv_len]: [usize; 3], projected: &'a [Tensor]) -> Result<Inputs<'a>> {
    let of: Vec<&[f32]> = projected.iter().map(elements).collect();
    parts::heads(spec, [batch, q_len, kv_len], &of)
}
