//! Attention with several heads.
//!
//! ```text
//! x [batch, n, d] ── qkv ──► [batch, n, (q, k, v), heads, d / heads]        qkv: Linear d -> 3 d
//!                 ── softmax(q kᵀ / sqrt(d / heads)) v ──► [batch, n, heads, d / heads]
//!                 ── proj ──► y [batch, n, d]                               proj: Linear d -> d
//! ```
//!
//! Vaswani et al., "Attention is all you need", NeurIPS 2017.

use kernels::attention::{Attention, AttentionSpec, Causal, Gradients, Inputs, Shape};
use kernels::{Parallelism, View, ViewMut, Workspace};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::linear::{Linear, Product};
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, tensor};

/// Self-attention over sequences `[batch, length, features]`.
///
/// ```
/// use nn::{Layer, MultiHeadAttention, Parallelism, Random, Tensor};
/// let mut attention = MultiHeadAttention::new(16, 4, &mut Random::new(0))?;
/// let x = Tensor::zeros(vec![2, 7, 16]);
/// assert_eq!(attention.forward(&[&x], Parallelism::Current)?.shape(), [2, 7, 16]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct MultiHeadAttention {
    qkv: Linear,
    proj: Linear,
    plan: Attention,
    workspace: Workspace,
    cache: Option<Cache>,
}

struct Cache {
    /// [batch, n, 3 d]
    qkv: Tensor,
    /// [batch, n, d]
    out: Tensor,
    /// [batch, heads, n]
    lse: Vec<f32>,
}

impl MultiHeadAttention {
    /// A layer whose heads share `features` evenly.
    ///
    /// # Errors
    /// [`Error::Invalid`] for heads that do not divide the features, [`Error::Kernel`] for heads that are too large.
    pub fn new(features: usize, heads: usize, random: &mut Random) -> Result<Self> {
        if heads == 0 || !features.is_multiple_of(heads) {
            return Err(Error::invalid("heads", format!("a divisor of the {features} features"), heads));
        }
        let threefold = features.checked_mul(3).ok_or_else(|| Error::invalid("features", "fewer", features))?;
        Ok(Self {
            qkv: Linear::new(features, threefold, random)?,
            proj: Linear::new(features, features, random)?,
            plan: Attention::new(AttentionSpec::new(heads, features / heads))?,
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

    /// [batch, length, features]
    fn sizes(&self, shape: &[usize]) -> Result<[usize; 3]> {
        let features = features(self.plan.spec());
        match *shape {
            [batch, length, given] if given == features => Ok([batch, length, features]),
            _ => Err(Error::shape("x", format!("[batch, length, {features}]"), shape)),
        }
    }
}

fn features(spec: &AttentionSpec) -> usize {
    spec.heads * spec.head_dim
}

/// Where a part (0: q, 1: k, 2: v) of `[batch, n, parts, heads, dim]` starts, its shape and strides.
fn part(
    spec: &AttentionSpec,
    [batch, length]: [usize; 2],
    parts: usize,
    part: usize,
) -> (usize, [usize; 4], [isize; 4]) {
    let (features, dim) = (features(spec), spec.head_dim);
    let row = (parts * features) as isize;
    let shape = [batch, spec.heads, length, dim];
    (part * features, shape, [row * length as isize, dim as isize, row, 1])
}

/// A part of a projection, to read. Nothing to read has no part.
fn view<'a>(spec: &AttentionSpec, size: [usize; 2], x: &'a [f32], parts: usize, at: usize) -> Result<View<'a, f32, 4>> {
    let (offset, shape, strides) = part(spec, size, parts, at);
    Ok(View::strided(x, if x.is_empty() { 0 } else { offset }, shape, strides)?)
}

impl Layer for MultiHeadAttention {
    fn kind(&self) -> &'static str {
        "MultiHeadAttention"
    }

    fn details(&self) -> String {
        self.plan.spec().to_string()
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        self.sizes(shape).map(|_| shape.to_vec())
    }

    /// Those of both projections and of the attention.
    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let [batch, length, features] = self.sizes(single_shape(inputs)?)?;
        let projections = 8.0 * (batch * length) as f64 * (features * features) as f64;
        Ok(projections + self.plan.spec().flops(Shape::new(batch, length, length))?)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: true, residual: true }
    }

    fn kernel(&self, _: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        let (qkv, proj) = (self.qkv.product(Fused::default())?, self.proj.product(fused)?);
        Ok(Box::new(Planned { qkv, proj, plan: self.plan }))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = single(inputs)?;
        let [batch, length, features] = self.sizes(x.shape())?;
        let qkv = self.qkv.forward(&[x], parallelism)?;
        let (spec, size) = (*self.plan.spec(), [batch, length]);
        let mut out = vec![0.0; batch * length * features];
        let mut lse = vec![0.0; batch * spec.heads * length];
        if !out.is_empty() {
            let workspace = self
                .workspace
                .grow(self.plan.workspace_len(Shape::new(batch, length, length), parallelism.threads())?)?;
            let [q, k, v] = [0, 1, 2].map(|at| view(&spec, size, elements(&qkv), 3, at));
            let (_, shape, strides) = part(&spec, size, 1, 0);
            let to = ViewMut::strided(&mut out, 0, shape, strides)?;
            self.plan.forward(&Inputs::new(q?, k?, v?), to, Some(&mut lse), workspace, parallelism)?;
        }
        let out = tensor(&[batch, length, features], out)?;
        let y = self.proj.forward(&[&out], parallelism)?;
        self.cache = Some(Cache { qkv, out, lse });
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let Cache { qkv, out, lse } = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, out.shape())?;
        let d_out = self.proj.backward(d_output, parallelism)?.remove(0);
        let (spec, size) = (*self.plan.spec(), [out.shape()[0], out.shape()[1]]);
        let len = out.len();
        let mut d_qkv = vec![0.0; 3 * len];
        if len > 0 {
            let shape = Shape::new(size[0], size[1], size[1]);
            let workspace = self.workspace.grow(self.plan.backward_workspace_len(shape, parallelism.threads())?)?;
            let [q, k, v] = [0, 1, 2].map(|at| view(&spec, size, elements(qkv), 3, at));
            let (out, d_out) = (view(&spec, size, elements(out), 1, 0)?, view(&spec, size, elements(&d_out), 1, 0)?);
            // The gradients of q, k and v are found one behind the other, and put side by side afterwards.
            let mut apart = vec![0.0; 3 * len];
            let (dq, rest) = apart.split_at_mut(len);
            let (dk, dv) = rest.split_at_mut(len);
            let (_, shape, strides) = part(&spec, size, 1, 0);
            let gradients = Gradients::new(
                ViewMut::strided(dq, 0, shape, strides)?,
                ViewMut::strided(dk, 0, shape, strides)?,
                ViewMut::strided(dv, 0, shape, strides)?,
            );
            let inputs = Inputs::new(q?, k?, v?);
            self.plan.backward(&inputs, &out, &d_out, lse, gradients, workspace, parallelism)?;
            let features = features(&spec);
            for (row, d_qkv) in d_qkv.chunks_exact_mut(3 * features).enumerate() {
                for (at, d) in d_qkv.chunks_exact_mut(features).enumerate() {
                    d.copy_from_slice(&apart[at * len + row * features..][..features]);
                }
            }
        }
        let d_qkv = tensor(qkv.shape(), d_qkv)?;
        self.cache = None;
        self.qkv.backward(&d_qkv, parallelism)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        self.qkv.visit(&format!("{prefix}qkv."), visitor);
        self.proj.visit(&format!("{prefix}proj."), visitor);
    }
}

/// The forward pass of a plan. Projections and their attention stand at the start of the workspace.
struct Planned {
    qkv: Product,
    proj: Product,
    plan: Attention,
}

impl Planned {
    /// Floats for q, k and v, and for the output of the attention.
    fn own(&self, shape: &[usize]) -> [usize; 2] {
        let len: usize = shape.iter().product();
        [3 * len, len]
    }
}

impl Kernel for Planned {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        let [batch, length] = [inputs[0][0], inputs[0][1]];
        let attention = self.plan.workspace_len(Shape::new(batch, length, length), slots)?;
        let scratch = attention.max(self.qkv.scratch_len(batch * length, slots)?);
        let scratch = scratch.max(self.proj.scratch_len(batch * length, slots)?);
        Ok(self.own(&inputs[0]).iter().sum::<usize>() + scratch)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let shape = &call.shapes[0];
        let (size, rows) = ([shape[0], shape[1]], shape[0] * shape[1]);
        if call.y.is_empty() {
            return Ok(());
        }
        let [of_qkv, of_out] = self.own(shape);
        let (qkv, rest) = call.workspace.split_at_mut(of_qkv);
        let (out, scratch) = rest.split_at_mut(of_out);
        self.qkv.run_rows(rows, call.inputs.get(0), None, qkv, scratch, call.parallelism)?;
        let spec = self.plan.spec();
        let [q, k, v] = [0, 1, 2].map(|at| view(spec, size, qkv, 3, at));
        let (_, of_view, strides) = part(spec, size, 1, 0);
        let to = ViewMut::strided(out, 0, of_view, strides)?;
        self.plan.forward(&Inputs::new(q?, k?, v?), to, None, scratch, call.parallelism)?;
        let residual = (call.inputs.len() > 1).then(|| call.inputs.get(1));
        self.proj.run_rows(rows, out, residual, call.y, scratch, call.parallelism)
    }
}
