//! Transformer blocks of every kind against loops in f64: with a memory or without, norms first or last, each gate.

mod check;
#[path = "check/sequence.rs"]
mod sequence;

use kernels::activation::gated::Gated;
use kernels::reference::{self, Sharing};
use nn::{Gate, Graph, Layer, Parallelism, Parameter, Result, Tensor, TransformerBlock, tensor};

use check::{between, for_seeds, wide};
use sequence::{compare, project, stir};

/// A block of two inputs as a layer of one, which holds both sequences.
struct Both {
    block: Graph,
    /// batch, positions, those of the memory, features
    sizes: [usize; 4],
}

impl Both {
    fn cut(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let [batch, length, memory, features] = self.sizes;
        let (x, rest) = x.as_slice().unwrap().split_at(batch * length * features);
        let x = tensor(&[batch, length, features], x.to_vec())?;
        Ok(if memory == 0 { vec![x] } else { vec![x, tensor(&[batch, memory, features], rest.to_vec())?] })
    }
}

impl Layer for Both {
    fn kind(&self) -> &'static str {
        "Both"
    }

    fn output_shape(&self, _: &[Vec<usize>]) -> Result<Vec<usize>> {
        let [batch, length, _, features] = self.sizes;
        Ok(vec![batch, length, features])
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let inputs = self.cut(inputs[0])?;
        self.block.forward(&inputs.iter().collect::<Vec<_>>(), parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let gradients = self.block.backward(d_output, parallelism)?;
        let all: Vec<f32> = gradients.iter().flat_map(|gradient| gradient.iter().copied()).collect();
        Ok(vec![tensor(&[all.len()], all)?])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        self.block.visit(prefix, visitor);
    }
}

/// Attention of rows to others, from its definition; parameters in the order of the layer.
fn attend(
    x: &[f64],
    memory: &[f64],
    p: &[Vec<f64>],
    [batch, n, m, features]: [usize; 4],
    heads: usize,
    causal: bool,
) -> Vec<f64> {
    let dim = features / heads;
    let part = |x: &[f64], at: usize| {
        project(x, &p[0][at * features * features..][..features * features], &p[1][at * features..][..features])
    };
    let [q, k, v] = [part(x, 0), part(memory, 1), part(memory, 2)];
    let mut out = vec![0.0; x.len()];
    for b in 0..batch {
        for i in 0..n {
            for h in 0..heads {
                let of = |x: &[f64], row: usize| x[row * features + h * dim..][..dim].to_vec();
                let q = of(&q, b * n + i);
                let seen = if causal { i + 1 } else { m };
                let score = |j: usize| {
                    let dot: f64 = q.iter().zip(of(&k, b * m + j)).map(|(q, k)| q * k).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let sum: f64 = (0..seen).map(score).sum();
                for c in 0..dim {
                    out[(b * n + i) * features + h * dim + c] =
                        (0..seen).map(|j| score(j) / sum * of(&v, b * m + j)[c]).sum();
                }
            }
        }
    }
    project(&out, &p[2], &p[3])
}

/// Layer normalisation of rows.
fn norm(x: &[f64], p: &[Vec<f64>], features: usize) -> Vec<f64> {
    let (row, column) = (|i: usize| i / features, |i: usize| i % features);
    let (len, sets) = (x.len(), x.len() / features);
    let sharing = Sharing { len, sets, parameters: features, set: &row, parameter: &column, is_centred: true };
    let mut y = vec![0.0; len];
    reference::norm_forward(&sharing, x, &p[0], &p[1], f64::from(1e-5f32), &mut y).unwrap();
    y
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x + branch(norm(x))`, or `norm(x + branch(x))`.
fn residual(
    x: &[f64],
    norm_first: bool,
    norm: impl Fn(&[f64]) -> Vec<f64>,
    branch: impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    if norm_first { add(x, &branch(&norm(x))) } else { norm(&add(x, &branch(x))) }
}

/// The block from its picture, and what is largest in front of its gate and nearest to 0.
fn block(kind: &TransformerBlock, sizes: [usize; 4], x: &[f64], p: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let [batch, n, m, features] = sizes;
    let (x, memory) = x.split_at(batch * n * features);
    // A norm comes in front of its branch, or behind it; so do its parameters.
    let mut at = 0;
    let mut take = |of_branch: usize| {
        let (norm, branch) = if kind.norm_first { (at, at + 2) } else { (at + of_branch, at) };
        at += 2 + of_branch;
        (&p[norm..norm + 2], &p[branch..branch + of_branch])
    };
    let (norm1, own) = take(4);
    let mut x = residual(
        x,
        kind.norm_first,
        |x| norm(x, norm1, features),
        |x| attend(x, x, own, [batch, n, n, features], kind.heads, kind.causal),
    );
    if kind.is_cross {
        let (of_cross, cross) = take(4);
        x = residual(
            &x,
            kind.norm_first,
            |x| norm(x, of_cross, features),
            |x| attend(x, memory, cross, [batch, n, m, features], kind.heads, false),
        );
    }
    let (norm2, mlp) = take(4);
    let nearest = std::cell::Cell::new(f64::INFINITY);
    let y = residual(
        &x,
        kind.norm_first,
        |x| norm(x, norm2, features),
        |x| {
            let hidden = project(x, &mlp[0], &mlp[1]);
            nearest.set(hidden.iter().fold(nearest.get(), |nearest, x| nearest.min(x.abs())));
            let mut gated = vec![0.0; hidden.len()];
            match kind.gate {
                Gate::Relu => gated.iter_mut().zip(&hidden).for_each(|(y, x)| *y = x.max(0.0)),
                Gate::Gelu => reference::gated_forward(Gated::Gelu, &hidden, &mut gated).unwrap(),
                Gate::GeluQuick => gated.iter_mut().zip(&hidden).for_each(|(y, x)| *y = x / (1.0 + (-1.702 * x).exp())),
            }
            project(&gated, &mlp[2], &mlp[3])
        },
    );
    (y, nearest.get())
}

#[test]
fn a_block_of_any_kind_is_that_of_the_loops() {
    for gate in [Gate::Relu, Gate::Gelu, Gate::GeluQuick] {
        for kind in 0..8 {
            for_seeds("a_block_of_any_kind", 2, |random| {
                let [is_cross, norm_first, causal] = [1, 2, 4].map(|bit| kind & bit != 0);
                let (heads, dim) = (between(random, 1, 2), between(random, 2, 3));
                let features = heads * dim;
                let kind = TransformerBlock {
                    hidden: 5,
                    is_cross,
                    norm_first,
                    causal,
                    gate,
                    ..TransformerBlock::encoder(features, heads)
                };
                let sizes = [
                    between(random, 1, 2),
                    between(random, 1, 3),
                    if is_cross { between(random, 1, 4) } else { 0 },
                    features,
                ];
                let [batch, n, m, _] = sizes;
                let mut layer = Both { block: kind.build(random).unwrap(), sizes };
                stir(&mut layer, random);
                // Where ReLU bends, differences say nothing: other inputs, until none is within a hundred steps of it.
                let len = batch * (n + m) * features;
                let mut parameters = Vec::new();
                layer.visit("", &mut |_, parameter| parameters.push(wide(parameter.elements())));
                let x = loop {
                    let x = tensor(&[len], (0..len).map(|_| random.uniform(-2.0, 2.0)).collect()).unwrap();
                    let (_, nearest) = block(&kind, sizes, &wide(x.as_slice().unwrap()), &parameters);
                    if gate != Gate::Relu || nearest > 100.0 * check::STEP {
                        break x;
                    }
                };
                // Normalised values with small deviations lose more.
                compare(&mut layer, &x, 1e-3, &|x, p| block(&kind, sizes, x, p).0);
            });
        }
    }
}
