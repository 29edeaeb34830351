//! Small shapes of every kind against the reference in f64.

use super::*;
use crate::reference::{attention_backward, attention_forward};
use crate::{Isa, Parallelism, View, ViewMut};

/// Random numbers from a seed.
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

/// A problem with data, in a random memory order.
struct Case {
    spec: AttentionSpec,
    shape: Shape,
    order: [usize; 4],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    bias: Option<(Vec<f32>, [bool; 4])>,
    keep: Option<(Vec<bool>, [bool; 4])>,
    alibi: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    kv_lens: Option<Vec<usize>>,
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
    fn new(seed: u64) -> Self {
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
        let size = |h: usize, l: usize, d: usize| shape.batch * h * l * d;
        Self {
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
        inputs
    }

    fn data(&self) -> [&[f32]; 6] {
        let bias = self.bias.as_ref().map_or(&[][..], |(data, _)| data);
        let [alibi, sinks] = [&self.alibi, &self.sinks].map(|data| data.as_deref().unwrap_or_default());
        [&self.q, &self.k, &self.v, bias, alibi, sinks]
    }

    fn name(&self, seed: u64) -> String {
        format!(
            "seed {seed}: {}, {:?}, order {:?}, scale {}, bias {:?}, keep {:?}, alibi {}, sinks {}, lens {:?}",
            self.spec,
            self.shape,
            self.order,
            self.spec.scale,
            self.bias.as_ref().map(|b| b.1),
            self.keep.as_ref().map(|b| b.1),
            self.alibi.is_some(),
            self.sinks.is_some(),
            self.kv_lens,
        )
    }

    /// Of values in (-1, 1): logits err by roundings of what they are made of, weights by twice as much, and sums by
    /// the root of their terms (far below the worst case, which would be their number).
    fn tolerance(&self) -> f64 {
        let Shape { q_len, kv_len, .. } = self.shape;
        let products = self.spec.scale.abs() as f64 * (self.spec.head_dim as f64).sqrt();
        let slopes = self.alibi.as_ref().map_or(0.0, |slopes| slopes.iter().fold(0.0, |a, b| b.abs().max(a)) as f64);
        let logits = 1.0 + 3.0 * products + slopes * q_len.max(kv_len) as f64;
        (8.0 * logits + 2.0 * (kv_len as f64).sqrt() + 4.0) * f64::from(f32::EPSILON) / 2.0
    }

    fn forward(&self, isa: Isa, parallelism: Parallelism) -> (Vec<f32>, Vec<f32>) {
        let plan = Attention::with_isa(self.spec, isa).unwrap();
        let inputs = self.inputs(self.data());
        let mut out = vec![f32::NAN; self.dout.len()];
        let mut lse = vec![f32::NAN; self.shape.batch * self.spec.heads * self.shape.q_len];
        let mut workspace = vec![f32::NAN; plan.workspace_len(self.shape, parallelism.threads()).unwrap()];
        let view = self.view_mut(&mut out, 3);
        plan.forward(&inputs, view, Some(&mut lse), &mut workspace, parallelism).unwrap();
        (out, lse)
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

    fn backward(&self, isa: Isa, parallelism: Parallelism, out: &[f32], lse: &[f32]) -> [Vec<f32>; 5] {
        let plan = Attention::with_isa(self.spec, isa).unwrap();
        let inputs = self.inputs(self.data());
        let (sizes, dbias) = self.gradient_sizes();
        let mut of = sizes.map(|len| vec![f32::NAN; len]);
        let gradients = self.gradients(&mut of, dbias);
        let mut workspace = vec![f32::NAN; plan.backward_workspace_len(self.shape, parallelism.threads()).unwrap()];
        let (out, dout) = (self.view(out, 3), self.view(&self.dout, 3));
        plan.backward(&inputs, &out, &dout, lse, gradients, &mut workspace, parallelism).unwrap();
        if self.bias.is_none() {
            of[3].clear();
        }
        of
    }

    fn reference_gradients(&self) -> [Vec<f64>; 5] {
        let wide = self.data().map(|data| data.iter().map(|&x| x as f64).collect::<Vec<_>>());
        let dout: Vec<f64> = self.dout.iter().map(|&x| x as f64).collect();
        let inputs = self.inputs(std::array::from_fn(|i| &wide[i][..]));
        let (sizes, dbias) = self.gradient_sizes();
        let mut of = sizes.map(|len| vec![0.0; len]);
        let mut gradients = self.gradients(&mut of, dbias);
        attention_backward(&self.spec, &inputs, &self.view(&dout, 3), &mut gradients).unwrap();
        drop(gradients);
        if self.bias.is_none() {
            of[3].clear();
        }
        of
    }

    /// Weights err as in the output; a gradient is a sum of as many products with elements of `dout . v`.
    fn gradient_tolerance(&self) -> f64 {
        let Shape { batch, q_len, .. } = self.shape;
        let rows = (batch * q_len * self.spec.heads) as f64;
        let products = 2.0 * (self.spec.v_dim as f64).sqrt() * (1.0 + self.spec.scale.abs() as f64);
        self.tolerance() * products * (1.0 + 0.25 * rows.sqrt())
    }

    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let wide = self.data().map(|data| data.iter().map(|&x| x as f64).collect::<Vec<_>>());
        let inputs = self.inputs(std::array::from_fn(|i| &wide[i][..]));
        let mut out = vec![0.0; self.dout.len()];
        let mut lse = vec![0.0; self.shape.batch * self.spec.heads * self.shape.q_len];
        attention_forward(&self.spec, &inputs, &mut self.view_mut(&mut out, 3), &mut lse).unwrap();
        (out, lse)
    }
}

fn close(given: f32, expected: f64, tolerance: f64) -> bool {
    given as f64 == expected || (given as f64 - expected).abs() <= tolerance
}

#[test]
fn every_feature_agrees_with_the_reference() {
    for isa in Isa::available() {
        for seed in 0..600 {
            let case = Case::new(seed);
            let (out, lse) = case.forward(isa, Parallelism::Serial);
            let (expected_out, expected_lse) = case.reference();
            let tolerance = case.tolerance();
            for (at, (&given, &expected)) in out.iter().zip(&expected_out).enumerate() {
                assert!(
                    close(given, expected, tolerance),
                    "{}: out[{at}] {given} {expected} on {isa}",
                    case.name(seed)
                );
            }
            for (at, (&given, &expected)) in lse.iter().zip(&expected_lse).enumerate() {
                assert!(
                    close(given, expected, tolerance),
                    "{}: lse[{at}] {given} {expected} on {isa}",
                    case.name(seed)
                );
            }
        }
    }
}

#[test]
fn gradients_of_every_feature_agree_with_the_reference() {
    for isa in Isa::available() {
        for seed in 0..600 {
            let case = Case::new(seed);
            let (out, lse) = case.forward(isa, Parallelism::Serial);
            let given = case.backward(isa, Parallelism::Serial, &out, &lse);
            let expected = case.reference_gradients();
            let tolerance = case.gradient_tolerance();
            for (which, (given, expected)) in given.iter().zip(&expected).enumerate() {
                let name = ["dq", "dk", "dv", "dbias", "dsinks"][which];
                for (at, (&given, &expected)) in given.iter().zip(expected).enumerate() {
                    assert!(
                        close(given, expected, tolerance),
                        "{}: {name}[{at}] {given} {expected} on {isa}",
                        case.name(seed)
                    );
                }
            }
        }
    }
}
