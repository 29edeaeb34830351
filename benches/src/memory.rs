//! `kernelbench memory`: the kernels between the products, which no arithmetic should hold up, beside a copy.
//!
//! ```text
//! copy        y = x                            2 arrays of traffic: one read, one written
//! forward     y from x                         2
//! backward    dx from x (or y) and dy          3
//! batch norm  channels that no cache holds     x twice, y; or x and dy twice, dx
//! ```
//!
//! Bytes are the least that an algorithm must read and write when caches hold rows and tasks, but no array. The share
//! of the copy's speed, measured in the same run on as many threads, says how much of what memory gives is used. A copy
//! is measured twice: in the kernels' own tasks, which write arrays of this size past the caches, and as each thread's
//! share in one call of the library's `memcpy`; the faster counts. A kernel whose arithmetic takes longer than that
//! writes into the caches, whose lines memory reads first: then it moves half as much again as is counted.

use std::io::Write;

use kernels::activation::gated::{self, Gated};
use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch, group, layer, rms};
use kernels::rotary::{self, Pairing, Rotary};
use kernels::{Activation, Dropout, Error, Execution, Isa, Parallelism, Team, activation, embedding, loss, softmax};

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options};
use crate::timing::{Budget, time};

/// Elements of an array: 61 MiB, of which no cache here holds much.
const LEN: usize = IMAGES * CHANNELS * PIXELS;
/// A row, for kernels of rows.
const COLUMNS: usize = 1024;
const ROWS: [usize; 2] = [LEN / COLUMNS, COLUMNS];
/// Images of a network's first blocks. Rows and heads divide their elements too.
const PIXELS: usize = 56 * 56;
const CHANNELS: usize = 64;
const IMAGES: usize = 80;
const GROUPED: group::Shape = group::Shape { batch: IMAGES, channels: CHANNELS, pixels: PIXELS, groups: 32 };
/// Heads of 64 elements at 1024 positions.
const HEADS: rotary::Shape = rotary::Shape { outer: LEN / (1024 * 64), length: 1024, inner: 1, head_dim: 64 };

const fn images(layout: Layout) -> batch::Shape {
    batch::Shape { batch: IMAGES, channels: CHANNELS, pixels: PIXELS, layout }
}

/// What kernels read and write.
struct Buffers {
    x: Vec<f32>,
    dy: Vec<f32>,
    out: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
    rows: Vec<f32>,
    indices: Vec<usize>,
    workspace: Vec<f32>,
    halves: Rotary,
    neighbours: Rotary,
}

impl Buffers {
    fn new() -> Result<Self, Failure> {
        let mut state = 1u64;
        let mut random = |len: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..len).map(|_| next()).collect()
        };
        let workspace = [
            layer::backward_workspace_len(ROWS)?,
            group::backward_workspace_len(GROUPED)?,
            batch::workspace_len(images(Layout::Nchw))?,
            batch::workspace_len(images(Layout::Nhwc))?,
        ];
        let angles = |pairing| Rotary::new(pairing, HEADS.head_dim, 10000.0, HEADS.length);
        Ok(Self {
            x: random(LEN),
            dy: random(LEN),
            out: vec![0.0; LEN],
            gamma: random(COLUMNS),
            beta: random(COLUMNS),
            dgamma: vec![0.0; COLUMNS],
            dbeta: vec![0.0; COLUMNS],
            mean: vec![0.1; CHANNELS],
            deviation: vec![1.1; CHANNELS],
            rows: vec![0.0; ROWS[0]],
            // An odd multiplier visits every row once.
            indices: (0..ROWS[0]).map(|i| i * 2731 % ROWS[0]).collect(),
            workspace: vec![0.0; workspace.into_iter().max().unwrap_or(0)],
            halves: angles(Pairing::Half)?,
            neighbours: angles(Pairing::Interleaved)?,
        })
    }

    fn channels(&self) -> Affine<'_> {
        Affine::new(&self.gamma[..CHANNELS], &self.beta[..CHANNELS])
    }
}

/// A kernel under study.
struct Kernel {
    name: &'static str,
    /// Arrays read and written.
    traffic: f64,
    run: fn(&mut Buffers, Execution) -> Result<(), Error>,
}

const fn kernel(name: &'static str, traffic: f64, run: fn(&mut Buffers, Execution) -> Result<(), Error>) -> Kernel {
    Kernel { name, traffic, run }
}

const KERNELS: [Kernel; 35] = [
    kernel("relu.forward", 2.0, |b, e| activation::forward(Activation::Relu, &b.x, &mut b.out, e)),
    kernel("relu.backward", 3.0, |b, e| activation::backward(Activation::Relu, &b.x, &b.dy, &mut b.out, e)),
    kernel("sigmoid.forward", 2.0, |b, e| activation::forward(Activation::Sigmoid, &b.x, &mut b.out, e)),
    kernel("tanh.forward", 2.0, |b, e| activation::forward(Activation::Tanh, &b.x, &mut b.out, e)),
    kernel("gelu.forward", 2.0, |b, e| gated::forward(Gated::Gelu, &b.x, &mut b.out, e)),
    kernel("gelu.backward", 3.0, |b, e| gated::backward(Gated::Gelu, &b.x, &b.dy, &mut b.out, e)),
    kernel("gelu_tanh.forward", 2.0, |b, e| gated::forward(Gated::GeluTanh, &b.x, &mut b.out, e)),
    kernel("gelu_tanh.backward", 3.0, |b, e| gated::backward(Gated::GeluTanh, &b.x, &b.dy, &mut b.out, e)),
    kernel("silu.forward", 2.0, |b, e| gated::forward(Gated::Silu, &b.x, &mut b.out, e)),
    kernel("silu.backward", 3.0, |b, e| gated::backward(Gated::Silu, &b.x, &b.dy, &mut b.out, e)),
    kernel("softmax.forward", 2.0, |b, e| softmax::forward(ROWS, &b.x, &mut b.out, e)),
    kernel("softmax.backward", 3.0, |b, e| softmax::backward(ROWS, &b.x, &b.dy, &mut b.out, e)),
    kernel("log_softmax.forward", 2.0, |b, e| softmax::log_forward(ROWS, &b.x, &mut b.out, e)),
    kernel("log_softmax.backward", 3.0, |b, e| softmax::log_backward(ROWS, &b.x, &b.dy, &mut b.out, e)),
    kernel("cross_entropy", 2.0, |b, e| {
        let targets: &[usize] = &b.indices;
        let classes = [ROWS[1], ROWS[0]];
        loss::softmax_cross_entropy(classes, &b.x, &targets[..ROWS[1]], &mut b.rows[..ROWS[1]], Some(&mut b.out), e)
            .map(|_| ())
    }),
    kernel("layer_norm.forward", 2.0, |b, e| {
        layer::forward(ROWS, &b.x, Affine::new(&b.gamma, &b.beta), 1e-5, &mut b.out, e)
    }),
    kernel("layer_norm.backward", 3.0, |b, e| {
        let gradients = Gradients { dx: &mut b.out, dgamma: Some(&mut b.dgamma), dbeta: Some(&mut b.dbeta) };
        layer::backward(ROWS, &b.x, Some(&b.gamma), &b.dy, 1e-5, gradients, &mut b.workspace, e)
    }),
    kernel("rms_norm.forward", 2.0, |b, e| rms::forward(ROWS, &b.x, Some(&b.gamma), 1e-5, &mut b.out, e)),
    kernel("rms_norm.backward", 3.0, |b, e| {
        let gradients = Gradients { dx: &mut b.out, dgamma: Some(&mut b.dgamma), dbeta: None };
        rms::backward(ROWS, &b.x, Some(&b.gamma), &b.dy, 1e-5, gradients, &mut b.workspace, e)
    }),
    kernel("group_norm.forward", 2.0, |b, e| {
        let affine = Affine::new(&b.gamma[..CHANNELS], &b.beta[..CHANNELS]);
        group::forward(GROUPED, &b.x, affine, 1e-5, &mut b.out, e)
    }),
    kernel("group_norm.backward", 3.0, |b, e| {
        let gradients = Gradients {
            dx: &mut b.out,
            dgamma: Some(&mut b.dgamma[..CHANNELS]),
            dbeta: Some(&mut b.dbeta[..CHANNELS]),
        };
        group::backward(GROUPED, &b.x, Some(&b.gamma[..CHANNELS]), &b.dy, 1e-5, gradients, &mut b.workspace, e)
    }),
    kernel("batch_norm.nchw.forward", 2.0, |b, e| batch_forward(b, Layout::Nchw, e)),
    kernel("batch_norm.nchw.backward", 3.0, |b, e| batch_backward(b, Layout::Nchw, e)),
    kernel("batch_norm.nhwc.forward", 3.0, |b, e| batch_forward(b, Layout::Nhwc, e)),
    kernel("batch_norm.nhwc.backward", 5.0, |b, e| batch_backward(b, Layout::Nhwc, e)),
    kernel("batch_norm.nchw.inference", 2.0, |b, e| batch_inference(b, Layout::Nchw, e)),
    kernel("batch_norm.nhwc.inference", 2.0, |b, e| batch_inference(b, Layout::Nhwc, e)),
    kernel("rotary.half.forward", 2.0, |b, e| b.halves.forward(HEADS, 0, &b.x, &mut b.out, e)),
    kernel("rotary.half.backward", 2.0, |b, e| b.halves.backward(HEADS, 0, &b.dy, &mut b.out, e)),
    kernel("rotary.interleaved.forward", 2.0, |b, e| b.neighbours.forward(HEADS, 0, &b.x, &mut b.out, e)),
    kernel("rotary.interleaved.backward", 2.0, |b, e| b.neighbours.backward(HEADS, 0, &b.dy, &mut b.out, e)),
    kernel("embedding.forward", 2.0, |b, e| embedding::forward(ROWS, &b.x, &b.indices, &mut b.out, e)),
    kernel("embedding.backward", 3.0, |b, e| embedding::backward(ROWS, &b.indices, &b.dy, &mut b.out, e)),
    kernel("dropout.forward", 2.0, |b, e| DROPOUT.forward(&b.x, &mut b.out, e)),
    kernel("dropout.backward", 2.0, |b, e| DROPOUT.backward(&b.dy, &mut b.out, e)),
];

const DROPOUT: Dropout = Dropout { probability: 0.1, seed: 1, stream: 0 };

fn batch_forward(b: &mut Buffers, layout: Layout, execution: Execution) -> Result<(), Error> {
    let moments = batch::Moments { mean: &mut b.mean, inverse_deviation: &mut b.deviation };
    let affine = Affine::new(&b.gamma[..CHANNELS], &b.beta[..CHANNELS]);
    batch::forward(images(layout), &b.x, affine, 1e-5, &mut b.out, moments, None, &mut b.workspace, execution)
}

fn batch_backward(b: &mut Buffers, layout: Layout, execution: Execution) -> Result<(), Error> {
    let gradients =
        Gradients { dx: &mut b.out, dgamma: Some(&mut b.dgamma[..CHANNELS]), dbeta: Some(&mut b.dbeta[..CHANNELS]) };
    let (gamma, workspace) = (Some(&b.gamma[..CHANNELS]), &mut b.workspace);
    batch::backward(images(layout), &b.x, &b.mean, &b.deviation, gamma, &b.dy, gradients, workspace, execution)
}

fn batch_inference(b: &mut Buffers, layout: Layout, execution: Execution) -> Result<(), Error> {
    let shape = images(layout);
    let mut workspace = std::mem::take(&mut b.workspace);
    let mut out = std::mem::take(&mut b.out);
    let (mean, variance) = (&b.mean, &b.deviation);
    let result = batch::inference(shape, &b.x, mean, variance, b.channels(), 1e-5, &mut out, &mut workspace, execution);
    (b.workspace, b.out) = (workspace, out);
    result
}

/// What was measured of a kernel.
struct Row {
    name: String,
    bytes: f64,
    seconds_min: f64,
    seconds_median: f64,
    /// Bytes a second of a copy.
    copy: f64,
}

/// Checks and times every kernel whose name contains what `--only` says.
///
/// # Errors
/// A result that differs from that of the portable kernels on one thread, which is not timed.
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let only = options.only.as_deref().unwrap_or("");
    let kernels: Vec<&Kernel> = KERNELS.iter().filter(|kernel| kernel.name.contains(only)).collect();
    if kernels.is_empty() {
        return Err(Failure::study(format!("no kernel's name contains {only:?}")));
    }
    let pool = machine::pool(options.threads)?;
    let mut buffers = Buffers::new()?;
    pool.install(|| {
        Team::scope(|team| {
            let execution = Execution { parallelism: Parallelism::Team(team), isa: Some(options.isa) };
            let copies = [copy(&mut buffers, execution, false)?, copy(&mut buffers, execution, true)?];
            let best = copies[0].max(copies[1]);
            header(options, copies, out)?;
            for kernel in kernels {
                let row = study(kernel, &mut buffers, execution, best)?;
                write_row(&row, options, out)?;
                out.flush()?;
            }
            Ok(())
        })
    })
}

/// Bytes a second of a copy: by this project's vectors, or by the library.
fn copy(buffers: &mut Buffers, execution: Execution, library: bool) -> Result<f64, Failure> {
    let threads = execution.parallelism.threads();
    let Buffers { x, out, .. } = buffers;
    let timing = time(Budget::default(), || {
        if library {
            let share = LEN.div_ceil(threads);
            let parts: Vec<_> = out.chunks_mut(share).map(std::sync::Mutex::new).collect();
            execution.parallelism.for_each(parts.len(), threads, &|index, _| {
                if let Ok(mut part) = parts[index].lock() {
                    let len = part.len();
                    part.copy_from_slice(&x[index * share..][..len]);
                }
            });
            Ok(())
        } else {
            activation::forward(Activation::Identity, x, out, execution)
        }
    })?;
    Ok(2.0 * (LEN * size_of::<f32>()) as f64 / timing.seconds_min)
}

fn study(kernel: &Kernel, buffers: &mut Buffers, execution: Execution, copy: f64) -> Result<Row, Failure> {
    // Where a kernel adds to its output, it adds to as much in both runs.
    buffers.out.fill(0.25);
    (kernel.run)(buffers, Execution::on(portable()))?;
    let expected = std::mem::replace(&mut buffers.out, vec![0.25; LEN]);
    (kernel.run)(buffers, execution)?;
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (i, (&got, &wanted)) in buffers.out.iter().zip(&expected).enumerate() {
        let error = (got - wanted).abs();
        if error.is_nan() || error > 1e-4 * largest {
            return Err(Failure::study(format!("{}: element {i} is {got} instead of {wanted}", kernel.name)));
        }
    }
    drop(expected);
    let timing = time(Budget::default(), || (kernel.run)(buffers, execution))?;
    Ok(Row {
        name: kernel.name.into(),
        bytes: kernel.traffic * (LEN * size_of::<f32>()) as f64,
        seconds_min: timing.seconds_min,
        seconds_median: timing.seconds_median,
        copy,
    })
}

/// The instruction set to check against: the narrowest.
fn portable() -> Isa {
    Isa::available().last().unwrap_or(Isa::Portable)
}

fn header(options: &Options, copies: [f64; 2], out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let Options { isa, threads, .. } = *options;
    match options.format {
        Format::Text => {
            let plural = if threads == 1 { "" } else { "s" };
            writeln!(
                out,
                "{}: {isa}, {threads} thread{plural}, arrays of {} MiB; a copy reads and writes {:.1} GB/s with our \
                 vectors, {:.1} GB/s with memcpy\n",
                machine::cpu_name(),
                (LEN * size_of::<f32>()) >> 20,
                copies[0] / 1e9,
                copies[1] / 1e9,
            )?;
            writeln!(out, "{:28} {:>11} {:>11} {:>8} {:>9}", "kernel", "best", "median", "GB/s", "of copy")?;
        }
        Format::Csv => writeln!(
            out,
            "name,isa,threads,bytes,seconds_min,seconds_median,gigabytes_per_second,copy_gigabytes_per_second,share_of_copy"
        )?,
        Format::Json => {}
    }
    Ok(())
}

fn write_row(row: &Row, options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let Row { name, bytes, seconds_min, seconds_median, copy } = row;
    let Options { isa, threads, .. } = *options;
    let speed = bytes / seconds_min;
    let (gigabytes, copied, share) = (speed / 1e9, copy / 1e9, speed / copy);
    match options.format {
        Format::Text => writeln!(
            out,
            "{name:28} {:>8.3} ms {:>8.3} ms {gigabytes:>8.1} {:>8.0}%",
            1e3 * seconds_min,
            1e3 * seconds_median,
            100.0 * share
        )?,
        Format::Csv => {
            writeln!(out, "{name},{isa},{threads},{bytes},{seconds_min},{seconds_median},{gigabytes},{copied},{share}")?
        }
        Format::Json => writeln!(
            out,
            "{{\"name\":\"{name}\",\"isa\":\"{isa}\",\"threads\":{threads},\"bytes\":{bytes},\
             \"seconds_min\":{seconds_min},\"seconds_median\":{seconds_median},\
             \"gigabytes_per_second\":{gigabytes},\"copy_gigabytes_per_second\":{copied},\"share_of_copy\":{share}}}"
        )?,
    }
    Ok(())
}
