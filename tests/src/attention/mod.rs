//! Random attentions with every feature, run in guarded memory, and what may differ from the reference ([`Bounds`]).

use kernels::attention::{Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, Shape, Window};
use kernels::reference::{Float, attention_backward, attention_forward};
use kernels::{Isa, Parallelism, View, ViewMut};

use crate::decode::VERSION;
use crate::guard::{Guarded, POISON, SENTINEL, Side};

mod bounds;
mod draw;
mod hidden;
mod paged;
mod placed;
mod results;

pub use bounds::{Bounds, check, check_on, judge};
use draw::Draw;
pub use placed::{Placement, Placements};
pub use results::{NAMES, Results, bits, difference};

/// An attention with data, in some memory order.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it comes from.
    pub seed: u64,
    /// The spec.
    pub spec: AttentionSpec,
    /// The shape.
    pub shape: Shape,
    /// The dimensions of queries, keys, values and outputs in memory, the outermost first.
    pub order: [usize; 4],
    /// Queries.
    pub q: Vec<f32>,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
    /// The gradient of the output.
    pub dout: Vec<f32>,
    /// Added to logits; false where it is broadcast.
    pub bias: Option<(Vec<f32>, [bool; 4])>,
    /// Which pairs see each other; false where it is broadcast.
    pub keep: Option<(Vec<bool>, [bool; 4])>,
    /// Slopes of heads.
    pub alibi: Option<Vec<f32>>,
    /// Logits without values.
    pub sinks: Option<Vec<f32>>,
    /// Keys of each sequence.
    pub kv_lens: Option<Vec<usize>>,
    /// Which weights are left out.
    pub dropout: Option<Dropout>,
}

/// Strides of `shape` where the dimensions lie in `order`, the outermost first.
fn strides(shape: [usize; 4], order: [usize; 4]) -> [isize; 4] {
    let (mut strides, mut step) = ([0; 4], 1);
    for &axis in order.iter().rev() {
        strides[axis] = step;
        step *= shape[axis] as isize;
    }
    strides
}

fn broadcast_strides(shape: [usize; 4], full: [bool; 4]) -> ([isize; 4], usize) {
    let (mut strides, mut step) = ([0; 4], 1);
    for axis in (0..4).rev() {
        if full[axis] {
            strides[axis] = step as isize;
            // A stride of 0 would say that the dimension is broadcast.
            step *= shape[axis].max(1);
        }
    }
    (strides, step)
}

/// A shape whose wide heads are as quick to check as others: one sequence, and fewer queries before fewer keys, so that
/// there are still several blocks of them.
fn shortened(spec: &AttentionSpec, shape: Shape) -> Shape {
    const WORK: usize = 1 << 21;
    let mut short = Shape { batch: 1, ..shape };
    let work = |shape: Shape| spec.heads * shape.q_len * shape.kv_len * (spec.head_dim + spec.v_dim);
    while work(short) > WORK && (short.q_len > 7 || short.kv_len > 70) {
        if short.q_len > 13 || short.kv_len <= 70 {
            short.q_len = short.q_len.div_ceil(2);
        } else {
            short.kv_len = short.kv_len.div_ceil(2).max(70);
        }
    }
    short
}

impl Case {
    /// Draws a case: every feature at once or none, shapes around the sizes of tiles and blocks.
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed, &[]);
        for _ in 0..4 {
            draw.next();
        }
        Self::drawn(draw, seed)
    }

    /// The case that bytes describe, one choice each, or `None` for an unknown version. Its data, and what the bytes do
    /// not reach, is random.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (&version, choices) = data.split_first()?;
        let seed = u64::from(choices.first().copied().unwrap_or_default());
        (version == VERSION).then(|| Self::drawn(Draw::new(seed, choices), seed))
    }

    fn drawn(mut draw: Draw<'_>, seed: u64) -> Self {
        let kv_heads = draw.pick(&[1, 1, 2, 3]);
        let heads = kv_heads * draw.pick(&[1, 1, 2, 4]);
        let mut spec = AttentionSpec::new(heads, draw.dim()).kv_heads(kv_heads);
        spec.v_dim = if draw.below(3) == 0 { draw.dim() } else { spec.head_dim };
        let lens = [0, 1, 1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 31, 33, 49, 64, 65];
        let long = [100, 127, 129, 197, 255, 256, 257, 300, 513, 600];
        let mut shape = Shape::new(draw.pick(&[1, 1, 2, 3]), draw.pick(&lens), draw.pick(&lens));
        match draw.below(4) {
            0 => shape.kv_len = draw.pick(&long),
            1 if draw.below(2) == 0 => (shape.q_len, shape.kv_len) = (draw.pick(&long), draw.pick(&long)),
            _ => {}
        }
        if spec.head_dim.max(spec.v_dim) > 130 {
            shape = shortened(&spec, shape);
        }
        spec.causal = draw.pick(&[Causal::None, Causal::None, Causal::TopLeft, Causal::BottomRight]);
        if draw.below(4) == 0 {
            let sides = [None, Some(0), Some(3), Some(20), Some(usize::MAX)];
            spec.window = Window { left: draw.pick(&sides), right: draw.pick(&sides) };
        }
        if draw.below(5) == 0 {
            spec.softcap = Some(draw.pick(&[0.5, 3.0]));
        }
        if draw.below(6) == 0 {
            spec.scale = draw.pick(&[0.0, -0.7, 1.0]);
        }
        let pairs = [shape.batch, heads, shape.q_len, shape.kv_len];
        let mut masked = |of: usize| (draw.below(of) == 0).then(|| [0; 4].map(|_| draw.below(2) == 0));
        let (bias_axes, keep_axes) = (masked(4), masked(4));
        let bias = bias_axes.map(|axes| {
            let mut data = draw.floats(broadcast_strides(pairs, axes).1);
            if draw.below(3) == 0 {
                data.iter_mut().filter(|_| draw.below(5) == 0).for_each(|x| *x = f32::NEG_INFINITY);
            }
            (data, axes)
        });
        let keep =
            keep_axes.map(|axes| ((0..broadcast_strides(pairs, axes).1).map(|_| draw.below(4) > 0).collect(), axes));
        let alibi = (draw.below(6) == 0).then(|| draw.floats(heads));
        let sinks = (draw.below(6) == 0).then(|| draw.floats(heads));
        let kv_lens = (draw.below(5) == 0).then(|| (0..shape.batch).map(|_| draw.below(shape.kv_len + 1)).collect());
        let order = draw.pick(&[[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3], [0, 1, 3, 2]]);
        let dropout = (draw.below(5) == 0)
            .then(|| Dropout::new(draw.pick(&[0.0, 0.1, 0.5, 0.97]), draw.next() << 24).first_sequence(draw.below(3)));
        let size = |h: usize, l: usize, d: usize| shape.batch * h * l * d;
        Self {
            seed,
            q: draw.floats(size(heads, shape.q_len, spec.head_dim)),
            k: draw.floats(size(kv_heads, shape.kv_len, spec.head_dim)),
            v: draw.floats(size(kv_heads, shape.kv_len, spec.v_dim)),
            dout: draw.floats(size(heads, shape.q_len, spec.v_dim)),
            spec,
            shape,
            order,
            bias,
            keep,
            alibi,
            sinks,
            kv_lens,
            dropout,
        }
    }

    /// An attention without further inputs, in row-major order.
    pub fn plain(spec: AttentionSpec, shape: Shape, seed: u64) -> Self {
        let mut draw = Draw::new(seed, &[]);
        let Shape { batch, q_len, kv_len } = shape;
        let (queries, keys) = (batch * spec.heads * q_len, batch * spec.kv_heads * kv_len);
        Self {
            seed,
            spec,
            shape,
            order: [0, 1, 2, 3],
            q: draw.floats(queries * spec.head_dim),
            k: draw.floats(keys * spec.head_dim),
            v: draw.floats(keys * spec.v_dim),
            dout: draw.floats(queries * spec.v_dim),
            bias: None,
            keep: None,
            alibi: None,
            sinks: None,
            kv_lens: None,
            dropout: None,
        }
    }

    fn shapes(&self) -> [[usize; 4]; 4] {
        let Shape { batch, q_len, kv_len } = self.shape;
        let AttentionSpec { heads, kv_heads, head_dim, v_dim, .. } = self.spec;
        [
            [batch, heads, q_len, head_dim],
            [batch, kv_heads, kv_len, head_dim],
            [batch, kv_heads, kv_len, v_dim],
            [batch, heads, q_len, v_dim],
        ]
    }

    fn view<'a, T: Copy>(&self, data: &'a [T], which: usize) -> View<'a, T, 4> {
        let shape = self.shapes()[which];
        View::strided(data, 0, shape, strides(shape, self.order)).unwrap()
    }

    fn view_mut<'a, T: Copy>(&self, data: &'a mut [T], which: usize) -> ViewMut<'a, T, 4> {
        let shape = self.shapes()[which];
        ViewMut::strided(data, 0, shape, strides(shape, self.order)).unwrap()
    }

    fn inputs<'a, T: Copy>(&'a self, data: [&'a [T]; 6]) -> Inputs<'a, T> {
        self.inputs_with(data, self.mask(), self.kv_lens.as_deref().unwrap_or_default())
    }

    /// With the mask and the lengths, if there are any, from elsewhere.
    fn inputs_with<'a, T: Copy>(&self, data: [&'a [T]; 6], mask: &'a [bool], lens: &'a [usize]) -> Inputs<'a, T> {
        let [q, k, v, bias, alibi, sinks] = data;
        let mut inputs = Inputs::new(self.view(q, 0), self.view(k, 1), self.view(v, 2));
        let pairs = [self.shape.batch, self.spec.heads, self.shape.q_len, self.shape.kv_len];
        if let Some((_, axes)) = &self.bias {
            inputs = inputs.bias(View::strided(bias, 0, pairs, broadcast_strides(pairs, *axes).0).unwrap());
        }
        if let Some((_, axes)) = &self.keep {
            inputs = inputs.keep(View::strided(mask, 0, pairs, broadcast_strides(pairs, *axes).0).unwrap());
        }
        if self.alibi.is_some() {
            inputs = inputs.alibi(alibi);
        }
        if self.sinks.is_some() {
            inputs = inputs.sinks(sinks);
        }
        if self.kv_lens.is_some() {
            inputs = inputs.kv_lens(lens);
        }
        inputs.dropout = self.dropout;
        inputs
    }

    fn mask(&self) -> &[bool] {
        self.keep.as_ref().map_or(&[][..], |(keep, _)| keep)
    }

    fn data(&self) -> [&[f32]; 6] {
        let bias = self.bias.as_ref().map_or(&[][..], |(data, _)| data);
        let [alibi, sinks] = [&self.alibi, &self.sinks].map(|data| data.as_deref().unwrap_or_default());
        [&self.q, &self.k, &self.v, bias, alibi, sinks]
    }

    fn gradient_sizes(&self) -> ([usize; 5], [usize; 4]) {
        let pairs = [self.shape.batch, self.spec.heads, self.shape.q_len, self.shape.kv_len];
        let axes = self.bias.as_ref().map_or([false; 4], |(_, axes)| *axes);
        let dbias = [0, 1, 2, 3].map(|axis| if axes[axis] { pairs[axis] } else { pairs[axis].min(1) });
        let sinks = self.sinks.as_ref().map_or(0, Vec::len);
        ([self.q.len(), self.k.len(), self.v.len(), dbias.iter().product(), sinks], dbias)
    }

    fn gradients<'a, T: Copy>(&self, of: &'a mut [Vec<T>; 5], dbias: [usize; 4]) -> Gradients<'a, 'a, T> {
        let [dq, dk, dv, of_bias, of_sinks] = of;
        let mut gradients = Gradients::new(self.view_mut(dq, 0), self.view_mut(dk, 1), self.view_mut(dv, 2));
        if self.bias.is_some() {
            gradients = gradients.dbias(ViewMut::new(of_bias, dbias).unwrap());
        }
        if self.sinks.is_some() {
            gradients = gradients.dsinks(of_sinks);
        }
        gradients
    }

    /// The gradients of the reference.
    pub fn reference_gradients(&self) -> [Vec<f64>; 5] {
        self.defined_gradients()
    }

    /// The output and the log-sum-exp of the reference.
    pub fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        self.defined()
    }

    /// The output and the log-sum-exp by definition, in the precision of `T`.
    pub fn defined<T: Float>(&self) -> (Vec<T>, Vec<T>) {
        let data = self.data().map(converted);
        let inputs = self.inputs(std::array::from_fn(|i| &data[i][..]));
        let mut out = vec![T::ZERO; self.dout.len()];
        let mut lse = vec![T::ZERO; self.rows()];
        attention_forward(&self.spec, &inputs, &mut self.view_mut(&mut out, 3), &mut lse).unwrap();
        (out, lse)
    }

    /// The gradients by definition, in the precision of `T`.
    pub fn defined_gradients<T: Float>(&self) -> [Vec<T>; 5] {
        let data = self.data().map(converted);
        let dout = converted(&self.dout);
        let inputs = self.inputs(std::array::from_fn(|i| &data[i][..]));
        let (sizes, dbias) = self.gradient_sizes();
        let mut of = sizes.map(|len| vec![T::ZERO; len]);
        attention_backward(&self.spec, &inputs, &self.view(&dout, 3), &mut self.gradients(&mut of, dbias)).unwrap();
        if self.bias.is_none() {
            of[3].clear();
        }
        of
    }
}

fn converted<T: Float>(data: &[f32]) -> Vec<T> {
    data.iter().map(|&x| T::from_f64(f64::from(x))).collect()
}

/// Guarded memory for the arguments of calls.
#[derive(Debug, Default)]
pub struct Memory {
    inputs: [Guarded; 6],
    results: [Guarded; 9],
    keep: Guarded,
    lens: Guarded,
}

impl Case {
    fn copies<'m>(&self, memory: &'m mut [Guarded; 6], side: Side) -> [&'m [f32]; 6] {
        let mut data = self.data().into_iter();
        memory.each_mut().map(|memory| &*memory.copy(data.next().unwrap_or_default(), side))
    }

    /// Copies of the mask and the lengths.
    fn flags<'m>(&self, keep: &'m mut Guarded, lens: &'m mut Guarded, side: Side) -> (&'m [bool], &'m [usize]) {
        let kv_lens = self.kv_lens.as_deref().unwrap_or_default();
        (keep.copy_mask(self.mask(), side), lens.copy_indices(kv_lens, side))
    }

    /// The output and the log-sum-exp, computed between guard pages.
    pub fn forward(&self, isa: Isa, parallelism: Parallelism, memory: &mut Memory, side: Side) -> (Vec<f32>, Vec<f32>) {
        let plan = Attention::with_isa(self.spec, isa).expect("a valid spec");
        let Memory { inputs, results: [m0, m1, m2, ..], keep, lens } = memory;
        let (keep, lens) = self.flags(keep, lens, side);
        let inputs = self.inputs_with(self.copies(inputs, side), keep, lens);
        let out = m0.filled(self.dout.len(), side, SENTINEL);
        let lse = m1.filled(self.rows(), side, SENTINEL);
        let len = plan.workspace_len(self.shape, parallelism.threads()).expect("a valid shape");
        let workspace = m2.filled(len, side, POISON);
        let view = self.view_mut(out, 3);
        plan.forward(&inputs, view, Some(lse), workspace, parallelism).expect("a valid call");
        (out.to_vec(), lse.to_vec())
    }

    /// The gradients of queries, keys, values, bias and sinks, computed between guard pages.
    pub fn backward(
        &self,
        isa: Isa,
        parallelism: Parallelism,
        memory: &mut Memory,
        side: Side,
        (out, lse): (&[f32], &[f32]),
    ) -> [Vec<f32>; 5] {
        let plan = Attention::with_isa(self.spec, isa).expect("a valid spec");
        let Memory { inputs, results: [m0, m1, m2, m3, m4, m5, m6, m7, m8], keep, lens } = memory;
        let (keep, lens) = self.flags(keep, lens, side);
        let inputs = self.inputs_with(self.copies(inputs, side), keep, lens);
        let (sizes, of_bias) = self.gradient_sizes();
        let mut of = [m0, m1, m2, m3, m4];
        let mut at = 0;
        let mut of = of.each_mut().map(|memory| {
            at += 1;
            memory.filled(sizes[at - 1], side, SENTINEL)
        });
        let len = plan.backward_workspace_len(self.shape, parallelism.threads()).expect("a valid shape");
        let workspace = m5.filled(len, side, POISON);
        {
            let [dq, dk, dv, dbias, dsinks] = &mut of;
            let (dq, dk, dv) = (self.view_mut(dq, 0), self.view_mut(dk, 1), self.view_mut(dv, 2));
            let mut gradients = Gradients::new(dq, dk, dv);
            if self.bias.is_some() {
                gradients = gradients.dbias(ViewMut::new(dbias, of_bias).expect("as many elements"));
            }
            if self.sinks.is_some() {
                gradients = gradients.dsinks(dsinks);
            }
            let (out, dout, lse) = (m6.copy(out, side), m7.copy(&self.dout, side), m8.copy(lse, side));
            let (out, dout) = (self.view(&*out, 3), self.view(&*dout, 3));
            plan.backward(&inputs, &out, &dout, lse, gradients, workspace, parallelism).expect("a valid call");
        }
        let mut given = of.map(|of| of.to_vec());
        if self.bias.is_none() {
            given[3].clear();
        }
        given
    }

    fn rows(&self) -> usize {
        self.shape.batch * self.spec.heads * self.shape.q_len
    }
}
