//! Criterion over named layers, attentions and matrix products: `cargo bench`, or `cargo bench -- forward/vgg16` for
//! some.
//!
//! ```text
//! forward/LAYER   backward/LAYER   attention.forward/NAME   attention.backward/NAME   gemm/CONTENDER/SIZE
//! ```
//!
//! Throughput is in elements a second, and an element is a floating-point operation of a direct convolution, of the
//! pairs that see each other, or of a product: 100 Gelem/s are 100 GFLOP/s. Everything runs on one pool of as many
//! threads as the CPU has. Shares of the peak, other threads, algorithms and layouts are `kernelbench`'s.

use std::time::Duration;

use benches::options::Pass;
use benches::problem::Problem;
use benches::{gemm, head_problem, heads, machine, shapes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use kernels::conv::Algorithm;
use kernels::{Isa, Parallelism};
use rayon::ThreadPool;

const FORWARD: [&str; 12] = [
    "lenet5.c1",
    "alexnet.conv1",
    "alexnet.conv2",
    "nin.cccp1",
    "googlenet.3a.5x5",
    "vgg16.conv1_1",
    "vgg16.conv3_2",
    "resnet50.conv1",
    "resnet50.3.3x3s2",
    "resnet50.5.3x3",
    "mobilenet.dw112",
    "vit.patch16",
];

const BACKWARD: [&str; 8] = [
    "lenet5.c1.b64",
    "alexnet.conv1.b8",
    "alexnet.conv2.b8",
    "vgg16.conv5_1.b4",
    "resnet50.2.1x1b.b8",
    "resnet50.3.3x3s2.b8",
    "mobilenet.dw14.b8",
    "vit.patch16.b8",
];

/// Each in both directions: few keys, long rows, and grouped heads; and decoding, which is forward alone.
const ATTENTION: [&str; 4] = ["vit-b16", "gpt2.1024", "llama3.gqa.1024", DECODING];

const DECODING: &str = "decode.gqa.8192";

/// Of [`gemm::SIZES`]: a square, a layer as a product, and one that is small.
const PRODUCTS: [usize; 3] = [0, 1, 5];

/// Long enough for a change of some percent to show: 3 seconds for each of 36 benchmarks, so the whole run stays below
/// five minutes.
fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(500), Duration::from_millis(2500));
    Criterion::default().warm_up_time(warm_up).measurement_time(measurement).sample_size(10)
}

fn machine() -> (Isa, ThreadPool) {
    (Isa::choose().expect("KERNELS_ISA"), machine::pool(machine::hardware_threads()).expect("a pool"))
}

fn convolution(criterion: &mut Criterion, pass: Pass, names: &[&str]) {
    let (isa, pool) = machine();
    let mut group = criterion.benchmark_group(pass.name());
    for name in names {
        let problem = Problem::new(shapes::named(name).expect("a known layer"), pass).expect("enough memory");
        group.throughput(Throughput::Elements(problem.operations() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            pool.install(|| {
                let prepared = problem.prepare(isa, Algorithm::Auto, Parallelism::Current);
                let mut prepared = prepared.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
                bencher.iter(|| prepared.call(Parallelism::Current));
            });
        });
    }
    group.finish();
}

fn forward(criterion: &mut Criterion) {
    convolution(criterion, Pass::Forward, &FORWARD);
}

fn backward(criterion: &mut Criterion) {
    convolution(criterion, Pass::Backward, &BACKWARD);
}

fn attention(criterion: &mut Criterion) {
    let (isa, pool) = machine();
    for pass in [Pass::Forward, Pass::Backward] {
        let mut group = criterion.benchmark_group(format!("attention.{}", pass.name()));
        for name in ATTENTION.into_iter().filter(|&name| pass == Pass::Forward || name != DECODING) {
            let head = heads::named(name).expect("a known attention");
            let problem = head_problem::Problem::new(head, heads::Layout::Bhsd).expect("enough memory");
            group.throughput(Throughput::Elements(problem.operations(pass).expect("a known attention") as u64));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                pool.install(|| {
                    let prepared = problem.prepare(isa, pass, Parallelism::Current);
                    let mut prepared = prepared.unwrap_or_else(|failure| panic!("{failure}"));
                    bencher.iter(|| prepared.call(Parallelism::Current));
                });
            });
        }
        group.finish();
    }
}

fn products(criterion: &mut Criterion) {
    let (isa, pool) = machine();
    let threads = pool.current_num_threads();
    let mut group = criterion.benchmark_group("gemm");
    for size in PRODUCTS.map(|index| gemm::SIZES[index]) {
        let mut problem = gemm::Problem::new(size, threads, isa).expect("enough memory");
        group.throughput(Throughput::Elements(size.operations() as u64));
        for contender in gemm::CONTENDERS {
            let id = BenchmarkId::new(contender.name(), format!("{}x{}x{}", size.m, size.n, size.k));
            group.bench_function(id, |bencher| {
                pool.install(|| {
                    problem.check(contender, Parallelism::Current).unwrap_or_else(|why| panic!("{why}"));
                    bencher.iter(|| problem.call(contender, Parallelism::Current));
                });
            });
        }
    }
    group.finish();
}

criterion_group! { name = layers; config = short(); targets = forward, backward, attention, products }

fn main() {
    let threads = machine::hardware_threads().to_string();
    // SAFETY: no other thread has been started yet.
    unsafe { std::env::set_var(gemm::MATRIXMULTIPLY_THREADS, threads) };
    layers();
    Criterion::default().configure_from_args().final_summary();
}
