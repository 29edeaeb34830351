//! Random attentions with every feature, run in guarded memory, and what may differ from the reference.
//!
//! The bounds are derived per row: the errors of its logits (roundings of `q . k`, of bias and slopes) become errors of
//! its weights through the exponential, those of the output through the weighted sum, and in backward through each of
//! the five products. Each is computed in f64 beside the reference, from magnitudes.

use kernels::attention::{Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, Shape, Window};
use kernels::reference::{attention_backward, attention_forward};
use kernels::{Isa, Parallelism, View, ViewMut};

use crate::guard::{Guarded, POISON, SENTINEL, Side};

/// Random numbers from a seed.
#[derive(Clone, Debug)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % (1 << 24)) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

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

impl Case {
    /// Draws a case: every feature at once or none, shapes around the sizes of tiles and blocks.
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            draw.next();
        }
        let kv_heads = draw.pick(&[1, 1, 2, 3]);
        let heads = kv_heads * draw.pick(&[1, 1, 2, 4]);
        let dims = [1, 2, 3, 7, 8, 9, 16, 17, 24, 32, 40, 64, 80, 130];
        let mut spec = AttentionSpec::new(heads, draw.pick(&dims)).kv_heads(kv_heads);
        spec.v_dim = if draw.below(3) == 0 { draw.pick(&dims) } else { spec.head_dim };
        let lens = [0, 1, 1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 31, 33, 49, 64, 65];
        let long = [100, 127, 129, 197, 255, 256, 257, 300, 513, 600];
        let mut shape = Shape::new(draw.pick(&[1, 1, 2, 3]), draw.pick(&lens), draw.pick(&lens));
        match draw.below(4) {
            0 => shape.kv_len = draw.pick(&long),
            1 if draw.below(2) == 0 => (shape.q_len, shape.kv_len) = (draw.pick(&long), draw.pick(&long)),
            _ => {}
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
        let mut draw = Draw(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
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
        let [q, k, v, bias, alibi, sinks] = data;
        let mut inputs = Inputs::new(self.view(q, 0), self.view(k, 1), self.view(v, 2));
        let pairs = [self.shape.batch, self.spec.heads, self.shape.q_len, self.shape.kv_len];
        if let Some((_, axes)) = &self.bias {
            inputs = inputs.bias(View::strided(bias, 0, pairs, broadcast_strides(pairs, *axes).0).unwrap());
        }
        if let Some((keep, axes)) = &self.keep {
            inputs = inputs.keep(View::strided(keep, 0, pairs, broadcast_strides(pairs, *axes).0).unwrap());
        }
        if self.alibi.is_some() {
            inputs = inputs.alibi(alibi);
        }
        if self.sinks.is_some() {
            inputs = inputs.sinks(sinks);
        }
        if let Some(lens) = &self.kv_lens {
            inputs = inputs.kv_lens(lens);
        }
        inputs.dropout = self.dropout;
        inputs
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
        let wide = self.data().map(|data| data.iter().map(|&x| x as f64).collect::<Vec<_>>());
        let dout: Vec<f64> = self.dout.iter().map(|&x| x as f64).collect();
        let inputs = self.inputs(std::array::from_fn(|i| &wide[i][..]));
        let (sizes, dbias) = self.gradient_sizes();
        let mut of = sizes.map(|len| vec![0.0; len]);
        attention_backward(&self.spec, &inputs, &self.view(&dout, 3), &mut self.gradients(&mut of, dbias)).unwrap();
        if self.bias.is_none() {
            of[3].clear();
        }
        of
    }

    /// The output and the log-sum-exp of the reference.
    pub fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let wide = self.data().map(|data| data.iter().map(|&x| x as f64).collect::<Vec<_>>());
        let inputs = self.inputs(std::array::from_fn(|i| &wide[i][..]));
        let mut out = vec![0.0; self.dout.len()];
        let mut lse = vec![0.0; self.shape.batch * self.spec.heads * self.shape.q_len];
        attention_forward(&self.spec, &inputs, &mut self.view_mut(&mut out, 3), &mut lse).unwrap();
        (out, lse)
    }
}

/// Guarded memory for the arguments of calls.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: [Guarded; 16],
}

impl Case {
    /// The output and the log-sum-exp, computed between guard pages.
    pub fn forward(&self, isa: Isa, parallelism: Parallelism, memory: &mut Memory, side: Side) -> (Vec<f32>, Vec<f32>) {
        let plan = Attention::with_isa(self.spec, isa).expect("a valid spec");
        let [m0, m1, m2, m3, m4, m5, m6, m7, m8, ..] = &mut memory.buffers;
        let [q, k, v, bias, alibi, sinks] = self.data();
        let data = [
            &*m0.copy(q, side),
            &*m1.copy(k, side),
            &*m2.copy(v, side),
            &*m3.copy(bias, side),
            &*m4.copy(alibi, side),
            &*m5.copy(sinks, side),
        ];
        let inputs = self.inputs(data);
        let out = m6.filled(self.dout.len(), side, SENTINEL);
        let lse = m7.filled(self.rows(), side, SENTINEL);
        let len = plan.workspace_len(self.shape, parallelism.threads()).expect("a valid shape");
        let workspace = m8.filled(len, side, POISON);
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
        let [m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, ..] = &mut memory.buffers;
        let [q, k, v, bias, alibi, sinks] = self.data();
        let data = [
            &*m0.copy(q, side),
            &*m1.copy(k, side),
            &*m2.copy(v, side),
            &*m3.copy(bias, side),
            &*m4.copy(alibi, side),
            &*m5.copy(sinks, side),
        ];
        let inputs = self.inputs(data);
        let (sizes, of_bias) = self.gradient_sizes();
        let mut of = [m6, m7, m8, m9, m10];
        let mut at = 0;
        let mut of = of.each_mut().map(|memory| {
            at += 1;
            memory.filled(sizes[at - 1], side, SENTINEL)
        });
        let len = plan.backward_workspace_len(self.shape, parallelism.threads()).expect("a valid shape");
        let workspace = m11.filled(len, side, POISON);
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
            let (out, dout, lse) = (m12.copy(out, side), m13.copy(&self.dout, side), m14.copy(lse, side));
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

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;
/// The error of a weight's exponential, in units of `U`.
const EXP: f64 = 2.5;

fn gamma(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

/// What the output, the log-sum-exp and the gradients may differ by, element by element.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Of the output.
    pub out: Vec<f64>,
    /// Of the log-sum-exp.
    pub lse: Vec<f64>,
    /// Of the gradients of queries, keys, values, bias and sinks.
    pub gradients: [Vec<f64>; 5],
}

impl Case {
    fn flat(&self, which: usize, at: [usize; 4]) -> usize {
        let strides = strides(self.shapes()[which], self.order);
        (0..4).map(|axis| at[axis] * strides[axis] as usize).sum()
    }

    /// The bounds of every element, from the reference's output and log-sum-exp.
    pub fn bounds(&self, out: &[f64], lse: &[f64]) -> Bounds {
        let Shape { batch, q_len, kv_len } = self.shape;
        let AttentionSpec { heads, head_dim, v_dim, .. } = self.spec;
        let (sizes, of_bias) = self.gradient_sizes();
        let mut bounds =
            Bounds { out: vec![0.0; out.len()], lse: vec![0.0; lse.len()], gradients: sizes.map(|len| vec![0.0; len]) };
        let scale = f64::from(self.spec.scale);
        let pairs = [batch, heads, q_len, kv_len];
        let rows = batch * heads * q_len;
        // Rescalings: a block has at least 64 keys, and pieces are merged.
        let blocks = kv_len / 64 + 2;
        let g = gamma(2 * kv_len + 3 * blocks + 3);
        let tiny = 2f64.powi(-126);
        for row in 0..rows {
            let (b, h, i) = (row / q_len / heads, row / q_len % heads, row % q_len);
            let kv_head = h / self.spec.group();
            let len = self.kv_lens.as_ref().map_or(kv_len, |lens| lens[b]);
            let offset = if self.spec.causal == Causal::BottomRight { len as f64 - q_len as f64 } else { 0.0 };
            // Logits, their errors, and the derivatives of softcap.
            let mut seen = Vec::new();
            for j in self.spec.visible_keys(i, q_len, len) {
                if let Some((keep, axes)) = &self.keep {
                    let strides = broadcast_strides(pairs, *axes).0;
                    let at: usize = [b, h, i, j].iter().zip(strides).map(|(at, stride)| at * stride as usize).sum();
                    if !keep[at] {
                        continue;
                    }
                }
                let (mut score, mut magnitude) = (0.0, 0.0);
                for d in 0..head_dim {
                    let product = f64::from(self.q[self.flat(0, [b, h, i, d])])
                        * f64::from(self.k[self.flat(1, [b, kv_head, j, d])]);
                    score += product;
                    magnitude += product.abs();
                }
                let mut logit = scale * score;
                let mut error = scale.abs() * gamma(head_dim + 2) * magnitude + U * logit.abs();
                let (mut slope, mut slope_error) = (1.0, 0.0);
                if let Some(cap) = self.spec.softcap {
                    let cap = f64::from(cap);
                    let tanh = (logit / cap).tanh();
                    slope = 1.0 - tanh * tanh;
                    slope_error = 2.0 * (error / cap + 2.0 * U * (logit / cap).abs()) + 8.0 * U;
                    error += U * logit.abs() + 6.0 * U * cap * tanh.abs();
                    logit = cap * tanh;
                }
                if let Some((bias, axes)) = &self.bias {
                    let strides = broadcast_strides(pairs, *axes).0;
                    let at: usize = [b, h, i, j].iter().zip(strides).map(|(at, stride)| at * stride as usize).sum();
                    logit += f64::from(bias[at]);
                    error += U * logit.abs();
                }
                if let Some(alibi) = &self.alibi {
                    let added = f64::from(alibi[h]) * (i as f64 + offset - j as f64).abs();
                    logit -= added;
                    error += U * (logit.abs() + added.abs());
                }
                if logit > f64::NEG_INFINITY {
                    seen.push((j, logit, error, slope, slope_error));
                }
            }
            let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[h]));
            let maximum = seen.iter().map(|seen| seen.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let least = seen.iter().map(|seen| seen.1).chain(sink).fold(f64::INFINITY, f64::min);
            if maximum == f64::NEG_INFINITY {
                continue;
            }
            let worst = seen.iter().map(|seen| seen.2).fold(0.0, f64::max);
            let theta = 2.0 * worst + 3.0 * U * (maximum - least) + EXP * U + blocks as f64 * (EXP + 2.0) * U;
            let lse = lse[row];
            bounds.lse[row] = theta + gamma(kv_len + blocks + 1) + 3.0 * U * lse.abs() + 3.0 * U * maximum.abs();
            let relative = (2.0 * theta).exp_m1() * (1.0 + g) + g + if self.dropout.is_some() { 2.0 * U } else { 0.0 };
            let dout = |c: usize| f64::from(self.dout[self.flat(3, [b, h, i, c])]);
            let value = |j: usize, c: usize| f64::from(self.v[self.flat(2, [b, kv_head, j, c])]);
            let weight = |logit: f64| (logit - lse).exp();
            // What dropout multiplies a weight with: rounded once itself, and once as a factor.
            let factor = |j: usize| match self.dropout {
                None => 1.0,
                Some(dropout) if dropout.keeps([b, h, i, j]) => dropout.factor(),
                Some(_) => 0.0,
            };
            let roundings = if self.dropout.is_some() { 2.0 * U } else { 0.0 };
            let (mut mean, mut mean_error) = (0.0, 0.0);
            for c in 0..v_dim {
                let at = self.flat(3, [b, h, i, c]);
                let magnitude: f64 =
                    seen.iter().map(|&(j, logit, ..)| weight(logit) * factor(j) * value(j, c).abs()).sum();
                let largest = self.dropout.map_or(1.0, |dropout| dropout.factor());
                bounds.out[at] = relative * magnitude + 2.0 * largest * kv_len as f64 * tiny;
                mean += dout(c) * out[at];
                mean_error += gamma(v_dim + 1) * (dout(c) * out[at]).abs() + dout(c).abs() * bounds.out[at];
            }
            // Backward computes weights from the log-sum-exp, which has an error of its own.
            let relative = (2.0 * theta + bounds.lse[row] + 4.0 * U * lse.abs()).exp_m1() + 2.0 * EXP * U;
            let count = self.spec.group() * q_len * batch;
            for (j, logit, _, slope, slope_error) in seen {
                let p = weight(logit);
                let (mut dp, mut dp_error) = (0.0, 0.0);
                let factor = factor(j);
                for c in 0..v_dim {
                    let product = factor * dout(c) * value(j, c);
                    dp += product;
                    dp_error += (gamma(v_dim) + roundings) * product.abs();
                    bounds.gradients[2][self.flat(2, [b, kv_head, j, c])] +=
                        (relative + roundings + gamma(count)) * p * factor * dout(c).abs() + tiny * factor.max(1.0);
                }
                let size = dp.abs() + mean.abs();
                let dlogit = p * (dp - mean);
                // A weight below the normal numbers is 0.
                let dlogit_error =
                    p * (relative * size + dp_error + mean_error + 4.0 * U * size) + tiny * (1.0 + 2.0 * size);
                let ds = scale.abs() * slope * dlogit.abs();
                let ds_error = scale.abs() * (slope * dlogit_error + (slope_error + U) * dlogit.abs()) + U * ds + tiny;
                for d in 0..head_dim {
                    let (at_q, at_k) = (self.flat(0, [b, h, i, d]), self.flat(1, [b, kv_head, j, d]));
                    let (q, k) = (f64::from(self.q[at_q]).abs(), f64::from(self.k[at_k]).abs());
                    bounds.gradients[0][at_q] += (ds_error + gamma(kv_len) * ds) * k + tiny;
                    bounds.gradients[1][at_k] += (ds_error + gamma(count) * ds) * q + tiny;
                }
                if self.bias.is_some() {
                    let at = [b, h, i, j];
                    let index = (0..4)
                        .fold(0, |index, axis| index * of_bias[axis] + if of_bias[axis] == 1 { 0 } else { at[axis] });
                    bounds.gradients[3][index] += dlogit_error + gamma(rows * kv_len) * dlogit.abs();
                }
            }
            if let Some(sink) = sink {
                let p = (sink - lse).exp();
                bounds.gradients[4][h] += p * ((relative + gamma(count + 2)) * mean.abs() + mean_error) + tiny;
            }
        }
        if self.bias.is_none() {
            bounds.gradients[3].clear();
        }
        bounds
    }
}

/// Compares element by element.
///
/// # Errors
/// The first element that differs by more than its bound.
pub fn judge(name: &str, given: &[f32], expected: &[f64], bounds: &[f64]) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for (at, ((&given, &expected), &bound)) in given.iter().zip(expected).zip(bounds).enumerate() {
        let given = f64::from(given);
        if given == expected {
            continue;
        }
        let error = (given - expected).abs();
        if error.is_nan() || error > bound {
            return Err(format!("{name}[{at}] is {given:e}, expected {expected:e} within {bound:e}"));
        }
        worst = worst.max(error / bound);
    }
    Ok(worst)
}
