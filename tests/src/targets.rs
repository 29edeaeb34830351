//! What fuzzing and the replay of its corpora run: functions of bytes that panic when something is wrong.

use std::cell::RefCell;

use kernels::Isa;
use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Conv2dSpec, Padding, Shape};

use crate::attention;
use crate::case::ConvCase;
use crate::check::{Bench, Failure, check};
use crate::decode::{Bytes, Kinds, VERSION, conv};
use crate::graph::{self, Report};
use crate::stats::Stats;
use crate::subject::Library;

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// Checks a case on this thread's bench.
///
/// # Errors
/// What is wrong.
pub fn run(case: &ConvCase) -> Result<Stats, Failure> {
    let mut stats = Stats::default();
    BENCH.with_borrow_mut(|bench| check(&Library, case, bench, &mut stats))?;
    Ok(stats)
}

fn run_or_panic(case: Option<ConvCase>) {
    if let Some(Err(failure)) = case.map(|case| run(&case)) {
        panic!("{failure}");
    }
}

/// A convolution of exact data: every result must be the reference's.
///
/// # Panics
/// When a result is wrong.
pub fn conv_exact(data: &[u8]) {
    run_or_panic(conv(data, Kinds::Exact));
}

/// A convolution of any other data: every result must be within its bound.
///
/// # Panics
/// When a result is wrong.
pub fn conv_bound(data: &[u8]) {
    run_or_panic(conv(data, Kinds::Bound));
}

/// An attention with any features: forward and backward must be within their bounds.
///
/// # Panics
/// When a result is wrong.
pub fn attention(data: &[u8]) {
    if let Some(case) = attention::Case::decode(data)
        && let Err(message) = attention::check(&case, &mut attention::Memory::default())
    {
        panic!("{}, {:?}: {message}", case.spec, case.shape);
    }
}

/// A small network, trained: outputs, all gradients and new parameters must be within their bounds, and the same to the
/// last bit on any number of threads.
///
/// # Panics
/// When a result is wrong.
pub fn nn_graph(data: &[u8]) {
    train(data);
}

/// [`nn_graph`], with what was compared.
///
/// # Panics
/// When a result is wrong.
pub fn train(data: &[u8]) -> Report {
    let Some(case) = graph::Case::decode(data) else { return Report::default() };
    let _line = Line(data, &case);
    graph::check(&case).unwrap_or_else(|message| panic!("{message}"))
}

/// Says how to repeat a network when it panics.
struct Line<'a>(&'a [u8], &'a graph::Case);

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{}\nrepeat it: NN_GRAPH={hex} cargo test -p tests --test nn_graph", self.1);
        }
    }
}

/// Numbers that sizes overflow with.
const EXTREMES: [usize; 16] = [
    0,
    1,
    2,
    3,
    5,
    16,
    100,
    1 << 16,
    1 << 31,
    (1 << 31) + 1,
    usize::MAX / 8,
    usize::MAX / 4 + 1,
    isize::MAX as usize,
    isize::MAX as usize + 1,
    usize::MAX - 1,
    usize::MAX,
];

/// Specs and shapes of any numbers, and slices of any length: no call panics, and all that is invalid is an error.
///
/// # Panics
/// When a call panics, or an invalid one is accepted.
pub fn conv_api(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    if bytes.byte() != VERSION {
        return;
    }
    let flags = bytes.byte();
    let next = |bytes: &mut Bytes| {
        let byte = bytes.byte();
        // Half of the numbers are small, so that not every spec fails at its first.
        if byte & 0x80 == 0 { usize::from(byte & 7) } else { EXTREMES[usize::from(byte & 15)] }
    };
    let mut number = || next(&mut bytes);
    let spec = Conv2dSpec::new(number(), number(), [number(), number()])
        .stride([number(), number()])
        .padding(Padding { top: number(), bottom: number(), left: number(), right: number() })
        .dilation([number(), number()])
        .groups(number());
    let shape = Shape::new(number(), number(), number());
    let other_shape = if flags & 1 == 0 { shape } else { Shape::new(number(), number(), number()) };
    let slots = number();
    let some = bytes.pick(&[
        Algorithm::Auto,
        Algorithm::Direct,
        Algorithm::Im2col,
        Algorithm::Depthwise,
        Algorithm::Grouped,
        Algorithm::Baseline,
        Algorithm::Gemm,
        Algorithm::Auto,
    ]);
    // Those that came later have a byte of their own, behind all others, so that old inputs keep their meaning.
    let algorithm = match bytes.byte() & 7 {
        4 => Algorithm::Winograd2,
        5 => Algorithm::Winograd2x4,
        6 => Algorithm::Winograd4,
        7 => Algorithm::Winograd6,
        _ => some,
    };
    let _ = (spec.check(), spec.output_size([shape.height, shape.width]), spec.flops(shape), spec.to_string());
    let sizes = spec.sizes(shape);
    // Small enough to be run: then it is a case like any other.
    const FEW: usize = 1 << 14;
    let small = |sizes: &kernels::conv::Sizes| sizes.x_len.max(sizes.y_len).max(sizes.w_len) <= FEW;
    let mut case = ConvCase::new(1, 1, [1, 1]);
    (case.spec, case.shape, case.bias) = (spec, shape, flags & 2 != 0);
    let is_little = sizes.as_ref().is_ok_and(small) && case.macs().is_some_and(|macs| macs <= FEW as u64);
    if is_little || sizes.is_err() {
        run_or_panic(Some(case));
    }

    // A plan for one shape, asked about another.
    let weights_len = match &sizes {
        Ok(sizes) if sizes.w_len <= FEW => sizes.w_len,
        _ => usize::from(flags >> 4),
    };
    let weights = vec![1.0; weights_len];
    let options = kernels::conv::Options { isa: Some(Isa::Portable), algorithm, ..Default::default() };
    let other = spec.sizes(other_shape);
    if let Ok(plan) = Conv2d::with_options(spec, &weights, None, shape, options) {
        assert!(sizes.is_ok(), "{case}: a plan was made for an invalid shape");
        assert!(
            other.is_ok() || plan.workspace_len(other_shape, slots).is_err(),
            "{case}: {other_shape:?} was accepted"
        );
        let _ = (plan.workspace_len(other_shape, slots), plan.describe(), plan.algorithm());
        let mut y = [7.0];
        if other.as_ref().is_ok_and(|sizes| sizes.y_len != 1) || other.is_err() {
            let result = plan.forward(other_shape, &[], None, &mut y, &mut [], kernels::Parallelism::Serial);
            assert!(result.is_err() && y == [7.0], "{case}: {other_shape:?} was run with an output of one element");
        }
    }
    if let Ok(plan) = Conv2dBackward::with_options(spec, &weights, shape, options) {
        assert!(sizes.is_ok(), "{case}: a backward plan was made for an invalid shape");
        assert!(
            other.is_ok() || plan.workspace_len(other_shape, slots).is_err(),
            "{case}: {other_shape:?} was accepted"
        );
        let _ = plan.workspace_len(other_shape, slots);
        let mut dx = [7.0];
        if other.as_ref().is_ok_and(|sizes| sizes.x_len != 1) || other.is_err() {
            let result = plan.data(other_shape, &[], &mut dx, &mut [], kernels::Parallelism::Serial);
            assert!(result.is_err() && dx == [7.0], "{case}: {other_shape:?} was run with a gradient of one element");
        }
    }
}
