//! `kernelbench attention`: attentions, checked against the definition on a sample of rows, then timed.
//!
//! ```text
//! name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal
//! gpt2.1024,1,12,12,1024,1024,64,1
//! ```
//!
//! Causal is bottom-right; operations count the pairs that see each other. Two more columns may follow: `dropout`, the
//! probability that a weight is left out, and `page_len`, for keys and values that lie in pages of so many.

use std::io::Write;
use std::path::Path;

use kernels::attention::{Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, PagedKvCache, Shape};
use kernels::{Parallelism, Team, View, ViewMut, Workspace};

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options, Pass};
use crate::report::{Report, Row};
use crate::table;
use crate::timing::{Budget, time};

/// Attentions of known networks.
pub const NETWORKS: &str = include_str!("../shapes/attention.csv");

const COLUMNS: [&str; 8] = ["name", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"];

/// An attention by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// For example `gpt2.1024`.
    pub name: String,
    /// What does not change from call to call.
    pub spec: AttentionSpec,
    /// Batch and lengths.
    pub shape: Shape,
    /// Which weights are left out.
    pub dropout: Option<Dropout>,
    /// Keys of a page, if keys and values lie in pages.
    pub page_len: Option<usize>,
}

/// The attentions of a CSV text. `origin` names it in errors.
///
/// # Errors
/// A missing column, a field that is no number, or an attention that cannot be, each with its line.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Head>, Failure> {
    table::parse(text, origin, &COLUMNS, |fields| {
        let mut numbers = [0usize; COLUMNS.len()];
        for column in 1..COLUMNS.len() {
            let text = fields.text(column)?;
            numbers[column] = text.parse().map_err(|_| format!("`{}` is {text:?}, no number", COLUMNS[column]))?;
        }
        let [_, batch, heads, kv_heads, q_len, kv_len, head_dim, causal] = numbers;
        let causal = if causal == 0 { Causal::None } else { Causal::BottomRight };
        let spec = AttentionSpec::new(heads, head_dim).kv_heads(kv_heads).causal(causal);
        let shape = Shape::new(batch, q_len, kv_len);
        spec.flops(shape).map_err(|error| error.to_string())?;
        let number = |column: &str| match fields.optional(column) {
            None => Ok(0.0),
            Some(text) => text.parse::<f32>().map_err(|_| format!("`{column}` is {text:?}, no number")),
        };
        let (dropout, page_len) = (number("dropout")?, number("page_len")?);
        let dropout = (dropout != 0.0).then(|| Dropout::new(dropout, 1));
        let page_len = (page_len != 0.0).then_some(page_len as usize);
        Ok(Head { name: fields.text(0)?.into(), spec, shape, dropout, page_len })
    })
}

fn read(path: &Path) -> Result<Vec<Head>, Failure> {
    table::read(path, parse)
}

/// Checks and times everything that the command line asks for.
///
/// # Errors
/// A bad file, or a result that differs from the definition (which is not timed).
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let mut heads = match &options.shapes {
        Some(path) => read(path)?,
        None => parse(NETWORKS, "attention.csv")?,
    };
    if let Some(only) = &options.only {
        heads.retain(|head| head.name.contains(only.as_str()));
        if heads.is_empty() {
            return Err(Failure::study(format!("no attention's name contains {only:?}")));
        }
    }
    let pool = machine::pool(options.threads)?;
    let peak = machine::fma_peak(&pool, options.isa)?;
    if options.format == Format::Text {
        let plural = if options.threads == 1 { "" } else { "s" };
        writeln!(
            out,
            "{}: {}, {} thread{plural}, FMA peak {:.1} GFLOP/s; {} pass, checked before it is timed\n",
            machine::cpu_name(),
            options.isa,
            options.threads,
            peak / 1e9,
            options.pass.name(),
        )?;
    }
    let mut report = Report::new(out, options.format);
    pool.install(|| {
        Team::scope(|team| {
            for head in &heads {
                report.row(&study(head, options, peak, Parallelism::Team(team))?)?;
            }
            Ok(())
        })
    })
}

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| random()).collect()
}

/// The operands of an attention, batch by batch and head by head.
struct Problem<'a> {
    head: &'a Head,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

impl<'a> Problem<'a> {
    fn new(head: &'a Head) -> Self {
        let (spec, shape) = (&head.spec, head.shape);
        let queries = shape.batch * spec.heads * shape.q_len * spec.head_dim;
        let keys = shape.batch * spec.kv_heads * shape.kv_len * spec.head_dim;
        Self { head, q: numbers(queries, 1), k: numbers(keys, 2), v: numbers(keys, 3), dout: numbers(queries, 4) }
    }

    fn q_shape(&self) -> [usize; 4] {
        let (spec, shape) = (&self.head.spec, self.head.shape);
        [shape.batch, spec.heads, shape.q_len, spec.head_dim]
    }

    fn kv_shape(&self) -> [usize; 4] {
        let (spec, shape) = (&self.head.spec, self.head.shape);
        [shape.batch, spec.kv_heads, shape.kv_len, spec.head_dim]
    }

    fn inputs(&self) -> Result<Inputs<'_>, kernels::Error> {
        let inputs = Inputs::new(
            View::new(&self.q, self.q_shape())?,
            View::new(&self.k, self.kv_shape())?,
            View::new(&self.v, self.kv_shape())?,
        );
        Ok(Inputs { dropout: self.head.dropout, ..inputs })
    }

    /// Keys and values in pages of a pool, those of different sequences in turn.
    fn pages(&self, page_len: usize) -> Result<PagedKvCache, kernels::Error> {
        let [batch, kv_heads, kv_len, dim] = self.kv_shape();
        let mut cache = PagedKvCache::new(&self.head.spec, batch, batch * kv_len.div_ceil(page_len), page_len)?;
        for first in (0..kv_len).step_by(page_len) {
            let count = page_len.min(kv_len - first);
            for b in 0..batch {
                let strides = [(kv_len * dim) as isize, dim as isize, 1];
                let offset = (b * kv_heads * kv_len + first) * dim;
                let new = |data| View::strided(data, offset, [kv_heads, count, dim], strides);
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

    /// The first query element of a row, and the first key element of its head of keys.
    fn starts(&self, row: usize) -> (usize, usize) {
        let [_, heads, q_len, dim] = self.q_shape();
        let [_, kv_heads, kv_len, _] = self.kv_shape();
        let (batch, head) = (row / q_len / heads, row / q_len % heads);
        let kv_head = head / self.head.spec.group();
        (row * dim, (batch * kv_heads + kv_head) * kv_len * dim)
    }

    /// The weights of one row by definition, for the keys that it sees.
    fn weights(&self, row: usize) -> (std::ops::Range<usize>, Vec<f64>) {
        let [_, _, q_len, dim] = self.q_shape();
        let (q, k) = self.starts(row);
        let seen = self.head.spec.visible_keys(row % q_len, q_len, self.head.shape.kv_len);
        let dot = |j: usize| (0..dim).map(|d| self.q[q + d] as f64 * self.k[k + j * dim + d] as f64).sum::<f64>();
        let logits: Vec<f64> = seen.clone().map(|j| self.head.spec.scale as f64 * dot(j)).collect();
        let maximum = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - maximum).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (seen, weights.iter().map(|weight| weight / sum).collect())
    }

    /// The output and the gradient of the query of one row by definition.
    fn row(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let dim = self.q_shape()[3];
        let (q, k) = self.starts(row);
        let (seen, weights) = self.weights(row);
        let (mut out, mut dq) = (vec![0.0; dim], vec![0.0; dim]);
        let mut dweights = Vec::new();
        for (j, &weight) in seen.clone().zip(&weights) {
            let v = &self.v[k + j * dim..][..dim];
            let factor = self.factor(row, j);
            let dot = v.iter().zip(&self.dout[q..]).map(|(&v, &dout)| v as f64 * dout as f64).sum::<f64>();
            dweights.push(factor * dot);
            for d in 0..dim {
                out[d] += weight * factor * v[d] as f64;
            }
        }
        let mean: f64 = weights.iter().zip(&dweights).map(|(weight, dweight)| weight * dweight).sum();
        for ((j, &weight), &dweight) in seen.zip(&weights).zip(&dweights) {
            let dscore = self.head.spec.scale as f64 * weight * (dweight - mean);
            for d in 0..dim {
                dq[d] += dscore * self.k[k + j * dim + d] as f64;
            }
        }
        (out, dq)
    }
}

/// What a backward call is given and what it wrote.
struct Results<'a> {
    out: &'a [f32],
    lse: &'a [f32],
    dq: &'a [f32],
    dk: &'a [f32],
    dv: &'a [f32],
}

impl Problem<'_> {
    /// The gradients of one key and its value, row of all heads of keys, from outputs and log-sum-exps that have been
    /// checked; and the sums of what their terms may err by, in units of the tolerance.
    fn key(&self, key: usize, results: &Results<'_>) -> [Vec<(f64, f64)>; 2] {
        let [_, heads, q_len, dim] = self.q_shape();
        let [_, kv_heads, kv_len, _] = self.kv_shape();
        let (spec, group) = (&self.head.spec, self.head.spec.group());
        let (batch, kv_head, j) = (key / kv_len / kv_heads, key / kv_len % kv_heads, key % kv_len);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
        let (k, v) = (&self.k[key * dim..][..dim], &self.v[key * dim..][..dim]);
        let (mut dk, mut dv) = (vec![(0.0, 0.0); dim], vec![(0.0, 0.0); dim]);
        for head in kv_head * group..(kv_head + 1) * group {
            for i in 0..q_len {
                if !spec.visible_keys(i, q_len, kv_len).contains(&j) {
                    continue;
                }
                let row = (batch * heads + head) * q_len + i;
                let [q, out, dout] = [&self.q, results.out, &self.dout].map(|of| &of[row * dim..][..dim]);
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

/// Compares the gradients of a sample of keys and values, as [`check`] does rows.
fn check_keys(problem: &Problem<'_>, results: &Results<'_>) -> Result<(usize, f64), Failure> {
    let [batch, kv_heads, kv_len, dim] = problem.kv_shape();
    let keys = batch * kv_heads * kv_len;
    let checked = keys.min(CHECKED_ROWS);
    let mut worst = 0.0f64;
    for sample in 0..checked {
        let key = sampled(sample, checked, keys);
        let expected = problem.key(key, results);
        for ((what, given), expected) in [("key", results.dk), ("value", results.dv)].into_iter().zip(&expected) {
            for (&given, &(expected, size)) in given[key * dim..][..dim].iter().zip(expected) {
                let error = (given as f64 - expected).abs() / (TOLERANCE * size.max(f64::MIN_POSITIVE));
                if error.is_nan() || error > 1.0 {
                    let name = &problem.head.name;
                    return Err(Failure::study(format!("{name}: gradient of {what} {key} is {given}, not {expected}")));
                }
                worst = worst.max(error);
            }
        }
    }
    Ok((2 * checked * dim, worst))
}

/// The first and the last of `all`, and others in between.
fn sampled(sample: usize, samples: usize, all: usize) -> usize {
    if samples > 1 { sample * (all - 1) / (samples - 1) } else { 0 }
}

/// Rows that are compared with the definition.
const CHECKED_ROWS: usize = 24;

/// The largest error that counts as rounding: of values in (-1, 1), sixteen units in the last place of 1.
const TOLERANCE: f64 = 16.0 / (1 << 24) as f64;

/// Compares a sample of rows. Returns the number of elements, and the largest error as a share of the tolerance.
fn check(problem: &Problem<'_>, results: &[f32], gradient: bool) -> Result<(usize, f64), Failure> {
    let [batch, heads, q_len, dim] = problem.q_shape();
    let rows = batch * heads * q_len;
    let mut worst = 0.0f64;
    let checked = rows.min(CHECKED_ROWS);
    for sample in 0..checked {
        let row = sampled(sample, checked, rows);
        let (out, dq) = problem.row(row);
        let scale = if gradient { (dim as f64).sqrt() } else { 1.0 };
        for (&given, &expected) in results[row * dim..][..dim].iter().zip(if gradient { &dq } else { &out }) {
            let error = (given as f64 - expected).abs() / (TOLERANCE * scale);
            if error.is_nan() || error > 1.0 {
                return Err(Failure::study(format!("{}: row {row} is {given}, not {expected}", problem.head.name)));
            }
            worst = worst.max(error);
        }
    }
    Ok((checked * dim, worst))
}

fn study(head: &Head, options: &Options, peak: f64, parallelism: Parallelism) -> Result<Row, Failure> {
    let problem = Problem::new(head);
    let plan = Attention::with_isa(head.spec, options.isa)?;
    let cache = head.page_len.map(|page_len| problem.pages(page_len)).transpose()?;
    let inputs = match &cache {
        Some(cache) => Inputs { dropout: head.dropout, ..cache.inputs(View::new(&problem.q, problem.q_shape())?)? },
        None => problem.inputs()?,
    };
    let mut out = vec![f32::NAN; problem.q.len()];
    let forward_len = plan.workspace_len(head.shape, options.threads)?;
    let len = match options.pass {
        Pass::Forward => forward_len,
        Pass::Backward => plan.backward_workspace_len(head.shape, options.threads)?,
    };
    let mut workspace = Workspace::with_len(len.max(forward_len))?;
    let mut lse = vec![f32::NAN; problem.q.len() / head.spec.head_dim];
    let elements = 2 * (problem.q.len() + problem.k.len());
    let mut forward = |out: &mut [f32], lse: Option<&mut [f32]>| -> Result<(), Failure> {
        let view = ViewMut::new(out, problem.q_shape())?;
        Ok(plan.forward(&inputs, view, lse, &mut workspace, parallelism)?)
    };
    forward(&mut out, Some(&mut lse))?;
    let mut checked = check(&problem, &out, false)?;
    let (timing, operations) = match options.pass {
        Pass::Forward => (time(Budget::default(), || forward(&mut out, None))?, 1.0),
        Pass::Backward => {
            let [mut dq, mut dk, mut dv] = [&problem.q, &problem.k, &problem.v].map(|of| vec![f32::NAN; of.len()]);
            let mut backward = || -> Result<(), Failure> {
                let (q_shape, kv_shape) = (problem.q_shape(), problem.kv_shape());
                let gradients = Gradients::new(
                    ViewMut::new(&mut dq, q_shape)?,
                    ViewMut::new(&mut dk, kv_shape)?,
                    ViewMut::new(&mut dv, kv_shape)?,
                );
                let (out, dout) = (View::new(&out, q_shape)?, View::new(&problem.dout, q_shape)?);
                Ok(plan.backward(&inputs, &out, &dout, &lse, gradients, &mut workspace, parallelism)?)
            };
            let timing = time(Budget::default(), &mut backward)?;
            let results = Results { out: &out, lse: &lse, dq: &dq, dk: &dk, dv: &dv };
            checked = check(&problem, results.dq, true)?;
            let (elements, worst) = check_keys(&problem, &results)?;
            checked = (checked.0 + elements, checked.1.max(worst));
            (timing, 2.5)
        }
    };
    let speed = operations * head.spec.flops(head.shape)? / timing.seconds_min;
    Ok(Row {
        name: head.name.clone(),
        pass: options.pass.name(),
        layout: "bhsd",
        algorithm: "auto".into(),
        chosen: None,
        isa: options.isa.to_string(),
        threads: options.threads,
        seconds_min: timing.seconds_min,
        seconds_median: timing.seconds_median,
        calls: timing.calls,
        stages: None,
        seconds_prepare: 0.0,
        gflops: speed / 1e9,
        share_of_peak: speed / peak,
        gigabytes_per_second: 4.0 * elements as f64 / timing.seconds_min / 1e9,
        workspace_bytes: 4 * len,
        checked_elements: checked.0,
        worst_error: checked.1,
    })
}
