//! An attention with its data and a plan: first checked against the definition on a sample of rows, then timed.

use std::ops::Range;

use kernels::attention::{Attention, Gradients, Inputs, PagedKvCache};
use kernels::{Error, Isa, Parallelism, View, ViewMut, Workspace};

use crate::failure::Failure;
use crate::heads::{Head, Layout};
use crate::options::Pass;
use crate::problem::{Checked, zeros};

/// Numbers in [-1, 1).
fn numbers(len: usize, seed: u64) -> Result<Vec<f32>, Failure> {
    let mut state = seed;
    let mut numbers = zeros(len)?;
    for x in &mut numbers {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
    }
    Ok(numbers)
}

/// The operands of an attention.
pub struct Problem {
    head: Head,
    layout: Layout,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    /// Keys and values in pages, where the attention has them there.
    cache: Option<PagedKvCache>,
}

impl Problem {
    /// Makes up data.
    ///
    /// # Errors
    /// When memory runs short.
    pub fn new(head: Head, layout: Layout) -> Result<Self, Failure> {
        let (spec, shape) = (&head.spec, head.shape);
        let queries = shape.batch * spec.heads * shape.q_len * spec.head_dim;
        let keys = shape.batch * spec.kv_heads * shape.kv_len * spec.head_dim;
        let (q, dout) = (numbers(queries, 1)?, numbers(queries, 4)?);
        let mut problem = Self { q, k: numbers(keys, 2)?, v: numbers(keys, 3)?, dout, layout, cache: None, head };
        problem.cache = problem.head.page_len.map(|page_len| problem.pages(page_len)).transpose()?;
        Ok(problem)
    }

    /// Operations of a call: those of the pairs that see each other, backward five products instead of two.
    ///
    /// # Errors
    /// Those of the spec.
    pub fn operations(&self, pass: Pass) -> Result<f64, Error> {
        let forward = self.head.spec.flops(self.head.shape)?;
        Ok(match pass {
            Pass::Forward => forward,
            Pass::Backward => 2.5 * forward,
        })
    }

    /// Bytes of queries, keys, values and outputs.
    pub fn bytes(&self) -> f64 {
        2.0 * (self.q.len() + self.k.len()) as f64 * size_of::<f32>() as f64
    }

    fn q_shape(&self) -> [usize; 4] {
        let (spec, shape) = (&self.head.spec, self.head.shape);
        [shape.batch, spec.heads, shape.q_len, spec.head_dim]
    }

    fn kv_shape(&self) -> [usize; 4] {
        let (spec, shape) = (&self.head.spec, self.head.shape);
        [shape.batch, spec.kv_heads, shape.kv_len, spec.head_dim]
    }

    fn view<'a>(&self, data: &'a [f32], shape: [usize; 4]) -> Result<View<'a, f32, 4>, Error> {
        View::strided(data, 0, shape, self.layout.strides(shape).map(|stride| stride as isize))
    }

    fn view_mut<'a>(&self, data: &'a mut [f32], shape: [usize; 4]) -> Result<ViewMut<'a, f32, 4>, Error> {
        ViewMut::strided(data, 0, shape, self.layout.strides(shape).map(|stride| stride as isize))
    }

    fn inputs(&self) -> Result<Inputs<'_>, Error> {
        let q = self.view(&self.q, self.q_shape())?;
        let inputs = match &self.cache {
            Some(cache) => cache.inputs(q)?,
            None => Inputs::new(q, self.view(&self.k, self.kv_shape())?, self.view(&self.v, self.kv_shape())?),
        };
        Ok(Inputs { dropout: self.head.dropout, ..inputs })
    }

    /// Keys and values in pages of a pool, those of different sequences in turn.
    fn pages(&self, page_len: usize) -> Result<PagedKvCache, Error> {
        let [batch, kv_heads, kv_len, dim] = self.kv_shape();
        let mut cache = PagedKvCache::new(&self.head.spec, batch, batch * kv_len.div_ceil(page_len), page_len)?;
        let [batch_stride, strides @ ..] = self.layout.strides(self.kv_shape());
        for first in (0..kv_len).step_by(page_len) {
            let count = page_len.min(kv_len - first);
            for b in 0..batch {
                let offset = b * batch_stride + first * strides[1];
                let new = |data| View::strided(data, offset, [kv_heads, count, dim], strides.map(|s| s as isize));
                cache.append(b, &new(&self.k)?, &new(&self.v)?)?;
            }
        }
        Ok(cache)
    }

    /// What dropout multiplies the weight of a pair with.
    fn factor(&self, row: usize, key: usize) -> f64 {
        let [_, heads, q_len, _] = self.q_shape();
        match self.head.dropout {
            None => 1.0,
            Some(dropout) if dropout.keeps([row / q_len / heads, row / q_len % heads, row % q_len, key]) => {
                dropout.factor()
            }
            Some(_) => 0.0,
        }
    }

    /// The first element of a row of a tensor, rows counted by batch, head and position.
    fn start(&self, row: usize, shape: [usize; 4]) -> usize {
        let [_, heads, len, _] = shape;
        let [batch, head, position, _] = self.layout.strides(shape);
        row / len / heads * batch + row / len % heads * head + row % len * position
    }

    /// The elements of a row of queries, outputs or their gradients.
    fn q_row<'a>(&self, of: &'a [f32], row: usize) -> &'a [f32] {
        &of[self.start(row, self.q_shape())..][..self.head.spec.head_dim]
    }

    /// The elements of a row of keys, values or their gradients.
    fn kv_row<'a>(&self, of: &'a [f32], row: usize) -> &'a [f32] {
        &of[self.start(row, self.kv_shape())..][..self.head.spec.head_dim]
    }

    /// The row of the first key that a row of queries may see.
    fn first_key(&self, row: usize) -> usize {
        let [_, heads, q_len, _] = self.q_shape();
        let [_, kv_heads, kv_len, _] = self.kv_shape();
        let (batch, head) = (row / q_len / heads, row / q_len % heads);
        (batch * kv_heads + head / self.head.spec.group()) * kv_len
    }

    /// The weights of one row by definition, for the keys that it sees.
    fn weights(&self, row: usize) -> (Range<usize>, Vec<f64>) {
        let q_len = self.q_shape()[2];
        let (q, first) = (self.q_row(&self.q, row), self.first_key(row));
        let seen = self.head.spec.visible_keys(row % q_len, q_len, self.head.shape.kv_len);
        let logit = |j: usize| self.head.spec.scale as f64 * dot(q, self.kv_row(&self.k, first + j));
        let logits: Vec<f64> = seen.clone().map(logit).collect();
        let maximum = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - maximum).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (seen, weights.iter().map(|weight| weight / sum).collect())
    }

    /// The output and the gradient of the query of one row by definition.
    fn row(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let dim = self.head.spec.head_dim;
        let (dout, first) = (self.q_row(&self.dout, row), self.first_key(row));
        let (seen, weights) = self.weights(row);
        let (mut out, mut dq) = (vec![0.0; dim], vec![0.0; dim]);
        let mut dweights = Vec::new();
        for (j, &weight) in seen.clone().zip(&weights) {
            let v = self.kv_row(&self.v, first + j);
            let factor = self.factor(row, j);
            dweights.push(factor * dot(v, dout));
            for d in 0..dim {
                out[d] += weight * factor * v[d] as f64;
            }
        }
        let mean: f64 = weights.iter().zip(&dweights).map(|(weight, dweight)| weight * dweight).sum();
        for ((j, &weight), &dweight) in seen.zip(&weights).zip(&dweights) {
            let dscore = self.head.spec.scale as f64 * weight * (dweight - mean);
            let k = self.kv_row(&self.k, first + j);
            for d in 0..dim {
                dq[d] += dscore * k[d] as f64;
            }
        }
        (out, dq)
    }

    /// The gradients of one key and its value, counted by batch, head and position, from outputs and log-sum-exps that
    /// have been checked; and the sums of what their terms may err by, in units of the tolerance.
    fn key(&self, key: usize, results: &Results) -> [Vec<(f64, f64)>; 2] {
        let [_, heads, q_len, dim] = self.q_shape();
        let [_, kv_heads, kv_len, _] = self.kv_shape();
        let (spec, group) = (&self.head.spec, self.head.spec.group());
        let (batch, kv_head, j) = (key / kv_len / kv_heads, key / kv_len % kv_heads, key % kv_len);
        let (k, v) = (self.kv_row(&self.k, key), self.kv_row(&self.v, key));
        let (mut dk, mut dv) = (vec![(0.0, 0.0); dim], vec![(0.0, 0.0); dim]);
        for head in kv_head * group..(kv_head + 1) * group {
            for i in 0..q_len {
                if !spec.visible_keys(i, q_len, kv_len).contains(&j) {
                    continue;
                }
                let row = (batch * heads + head) * q_len + i;
                let [q, out, dout] = [&self.q, &results.out, &self.dout].map(|of| self.q_row(of, row));
                let weight = (spec.scale as f64 * dot(q, k) - results.lse[row] as f64).exp();
                let factor = self.factor(row, j);
                let (dweight, mean) = (factor * dot(dout, v), dot(dout, out));
                let (slope, size) = (spec.scale as f64 * weight, dweight.abs() + mean.abs() + (dim as f64).sqrt());
                for d in 0..dim {
                    dk[d].0 += slope * (dweight - mean) * q[d] as f64;
                    dk[d].1 += slope * size * (q[d] as f64).abs();
                    dv[d].0 += weight * factor * dout[d] as f64;
                    dv[d].1 += weight * factor * (dout[d] as f64).abs();
                }
            }
        }
        [dk, dv]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// What calls write.
struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Compares the gradients of a sample of keys and values, as [`check`] does rows.
fn check_keys(problem: &Problem, results: &Results) -> Result<Checked, Failure> {
    let [batch, kv_heads, kv_len, dim] = problem.kv_shape();
    let keys = batch * kv_heads * kv_len;
    let checked = keys.min(CHECKED_ROWS);
    let mut worst = 0.0f64;
    for sample in 0..checked {
        let key = sampled(sample, checked, keys);
        let expected = problem.key(key, results);
        for ((what, given), expected) in [("key", &results.dk), ("value", &results.dv)].into_iter().zip(&expected) {
            for (&given, &(expected, size)) in problem.kv_row(given, key).iter().zip(expected) {
                let error = (given as f64 - expected).abs() / (TOLERANCE * size.max(f64::MIN_POSITIVE));
                if error.is_nan() || error > 1.0 {
                    let name = &problem.head.name;
                    return Err(Failure::study(format!("{name}: gradient of {what} {key} is {given}, not {expected}")));
                }
                worst = worst.max(error);
            }
        }
    }
    Ok(Checked { elements: 2 * checked * dim, worst })
}

/// The first and the last of `all`, and others in between.
fn sampled(sample: usize, samples: usize, all: usize) -> usize {
    if samples > 1 { sample * (all - 1) / (samples - 1) } else { 0 }
}

/// Rows that are compared with the definition.
const CHECKED_ROWS: usize = 24;

/// The largest error that counts as rounding: of values in (-1, 1), sixteen units in the last place of 1.
const TOLERANCE: f64 = 16.0 / (1 << 24) as f64;

/// Compares a sample of rows.
fn check(problem: &Problem, results: &[f32], gradient: bool) -> Result<Checked, Failure> {
    let [batch, heads, q_len, dim] = problem.q_shape();
    let rows = batch * heads * q_len;
    let mut worst = 0.0f64;
    let checked = rows.min(CHECKED_ROWS);
    for sample in 0..checked {
        let row = sampled(sample, checked, rows);
        let (out, dq) = problem.row(row);
        let scale = if gradient { (dim as f64).sqrt() } else { 1.0 };
        for (&given, &expected) in problem.q_row(results, row).iter().zip(if gradient { &dq } else { &out }) {
            let error = (given as f64 - expected).abs() / (TOLERANCE * scale);
            if error.is_nan() || error > 1.0 {
                return Err(Failure::study(format!("{}: row {row} is {given}, not {expected}", problem.head.name)));
            }
            worst = worst.max(error);
        }
    }
    Ok(Checked { elements: checked * dim, worst })
}

/// A plan that has been checked, with all that a call needs.
pub struct Prepared<'p> {
    problem: &'p Problem,
    plan: Attention,
    inputs: Inputs<'p>,
    pass: Pass,
    results: Results,
    workspace: Workspace,
    /// Scratch memory of a call of this pass.
    pub workspace_bytes: usize,
    /// What the check found.
    pub checked: Checked,
}

impl Problem {
    /// Makes a plan and checks it.
    ///
    /// # Errors
    /// A result that differs from the definition, and those of the kernels.
    pub fn prepare(&self, isa: Isa, pass: Pass, parallelism: Parallelism) -> Result<Prepared<'_>, Failure> {
        let (plan, shape, slots) = (Attention::with_isa(self.head.spec, isa)?, self.head.shape, parallelism.threads());
        let forward_len = plan.workspace_len(shape, slots)?;
        let len = match pass {
            Pass::Forward => forward_len,
            Pass::Backward => plan.backward_workspace_len(shape, slots)?,
        };
        let nan = |len: usize| -> Result<Vec<f32>, Failure> {
            let mut buffer = zeros(len)?;
            buffer.fill(f32::NAN);
            Ok(buffer)
        };
        let [queries, keys] = match pass {
            Pass::Forward => [0, 0],
            Pass::Backward => [self.q.len(), self.k.len()],
        };
        let (out, lse) = (nan(self.q.len())?, nan(self.q.len() / self.head.spec.head_dim)?);
        let mut prepared = Prepared {
            problem: self,
            plan,
            inputs: self.inputs()?,
            pass,
            results: Results { out, lse, dq: nan(queries)?, dk: nan(keys)?, dv: nan(keys)? },
            workspace: Workspace::with_len(len.max(forward_len))?,
            workspace_bytes: len * size_of::<f32>(),
            checked: Checked { elements: 0, worst: 0.0 },
        };
        prepared.forward(true, parallelism)?;
        prepared.checked = check(self, &prepared.results.out, false)?;
        if pass == Pass::Backward {
            prepared.call(parallelism)?;
            let [queries, keys] = [check(self, &prepared.results.dq, true)?, check_keys(self, &prepared.results)?];
            for found in [queries, keys] {
                prepared.checked.elements += found.elements;
                prepared.checked.worst = prepared.checked.worst.max(found.worst);
            }
        }
        Ok(prepared)
    }
}

impl Prepared<'_> {
    fn forward(&mut self, with_lse: bool, parallelism: Parallelism) -> Result<(), Error> {
        let Self { problem, plan, inputs, results, workspace, .. } = self;
        let out = problem.view_mut(&mut results.out, problem.q_shape())?;
        let lse = with_lse.then_some(results.lse.as_mut_slice());
        plan.forward(inputs, out, lse, workspace, parallelism)
    }

    /// One call, as it is timed.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn call(&mut self, parallelism: Parallelism) -> Result<(), Error> {
        if self.pass == Pass::Forward {
            return self.forward(false, parallelism);
        }
        let Self { problem, plan, inputs, results: Results { out, lse, dq, dk, dv }, workspace, .. } = self;
        let (q_shape, kv_shape) = (problem.q_shape(), problem.kv_shape());
        let gradients = Gradients::new(
            problem.view_mut(dq, q_shape)?,
            problem.view_mut(dk, kv_shape)?,
            problem.view_mut(dv, kv_shape)?,
        );
        let (out, dout) = (problem.view(out, q_shape)?, problem.view(&problem.dout, q_shape)?);
        plan.backward(inputs, &out, &dout, lse, gradients, workspace, parallelism)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::parse;

    #[test]
    fn attentions_agree_with_the_definition_in_both_layouts_and_in_pages() {
        let rows = "grouped,2,4,2,5,19,8,1,,\ndropout,1,2,2,7,7,16,0,0.3,\npages,2,4,2,3,21,8,1,,4\n";
        let header = "name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal,dropout,page_len\n";
        for head in parse(&format!("{header}{rows}"), "").unwrap() {
            for layout in Layout::ALL {
                for pass in [Pass::Forward, Pass::Backward] {
                    if pass == Pass::Backward && head.page_len.is_some() {
                        continue;
                    }
                    let problem = Problem::new(head.clone(), layout).unwrap();
                    let prepared = problem.prepare(Isa::Portable, pass, Parallelism::Serial);
                    let checked = prepared
                        .map(|prepared| prepared.checked)
                        .unwrap_or_else(|failure| panic!("{} {} {}: {failure}", head.name, layout.name(), pass.name()));
                    assert!(checked.elements > 0 && checked.worst < 1.0);
                }
            }
        }
    }

    #[test]
    fn a_wrong_row_is_found() {
        let head =
            parse("name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal\na,1,2,2,3,3,4,0\n", "").unwrap().remove(0);
        let problem = Problem::new(head, Layout::Bshd).unwrap();
        let Ok(mut prepared) = problem.prepare(Isa::Portable, Pass::Forward, Parallelism::Serial) else {
            panic!("a right row counts as wrong");
        };
        prepared.results.out[4] += 1e-3;
        assert!(check(&problem, &prepared.results.out, false).unwrap_err().to_string().starts_with("a: row 3 is "));
    }
}
