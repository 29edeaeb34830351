//! Criterion over named layers: `cargo bench`, or `cargo bench -- forward/vgg16` for some of them.
//!
//! Throughput is in elements a second, and an element is a floating-point operation of a direct convolution: 100
//! Gelem/s are 100 GFLOP/s. All layers run on one pool of as many threads as the CPU has. Shares of the peak, other
//! threads, algorithms and layouts are `kernelbench`'s.

use std::time::Duration;

use benches::machine;
use benches::options::Pass;
use benches::problem::Problem;
use benches::shapes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::conv::Algorithm;
use kernels::{Isa, Parallelism};

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

/// Long enough for a change of some percent to show; the whole run stays below five minutes.
fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(500), Duration::from_millis(2500));
    Criterion::default().warm_up_time(warm_up).measurement_time(measurement).sample_size(10)
}

fn convolution(criterion: &mut Criterion, pass: Pass, names: &[&str]) {
    let isa = Isa::choose().expect("KERNELS_ISA");
    let pool = machine::pool(machine::hardware_threads()).expect("a pool");
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

criterion_group! { name = layers; config = short(); targets = forward, backward }
criterion_main!(layers);
