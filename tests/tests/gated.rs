//! GELU and SiLU against their definitions.

use kernels::activation::gated::{self, Gated};
use kernels::{Error, Execution, Isa, Parallelism, reference};
use tests::oracle::UNIT;

/// Lengths around every vector width, and beyond a task.
const LENGTHS: [usize; 14] = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 16_384, 40_001];

/// Values over many magnitudes, with zeros, infinities and NaN among them.
fn values(len: usize) -> Vec<f32> {
    let special =
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -87.4, -13.3, 13.3, 1e25, -1e25, f32::MAX];
    (0..len)
        .map(|i| match i % 13 {
            12 => special[i / 13 % special.len()],
            _ => (i as f32 * 0.37).sin() * 2f32.powi(i as i32 % 17 - 9),
        })
        .collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// The argument of the gate's exponential.
fn argument(x: f64) -> f64 {
    (1.595_769_121_605_731 * (x + 0.044715 * x * x * x)).abs()
}

/// The smallest gate that is not rounded to 0.
const CUT: f64 = 1.3e-38;

#[test]
fn outputs_err_by_no_more_than_promised_and_gaps_stay_untouched() {
    for function in Gated::ALL {
        for len in LENGTHS {
            let x = values(len);
            let mut exact = vec![0.0; len];
            reference::gated_forward(function, &wide(&x), &mut exact).unwrap();
            for isa in Isa::available() {
                let mut y = vec![9.5; len + 2];
                gated::forward(function, &x, &mut y[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([y[0], y[len + 1]], [9.5; 2]);
                for i in 0..len {
                    let (y, exact, x) = (y[i + 1] as f64, exact[i], x[i] as f64);
                    let factor = match function {
                        Gated::Gelu => x * x / 2.0 + 14.0,
                        Gated::GeluTanh => 7.0 * argument(x) + 10.0,
                        Gated::GeluQuick => 2.0 * (1.702 * x).abs() + 8.0,
                        _ => 8.0,
                    };
                    let relative = if exact == 0.0 { 0.0 } else { UNIT * exact.abs() * factor };
                    let bound = relative + CUT * x.abs() + 2f64.powi(-148);
                    let fits = y.is_nan() && exact.is_nan() || y == exact || (y - exact).abs() <= bound;
                    assert!(fits, "{function:?}({x}) = {y} on {isa}, exactly {exact}");
                }
                let mut in_place = x.clone();
                gated::forward_in_place(function, &mut in_place, Execution::on(isa)).unwrap();
                assert!(same_bits(&in_place, &y[1..=len]));
            }
        }
    }
}

#[test]
fn gradients_err_by_no_more_than_promised() {
    for function in Gated::ALL {
        for len in LENGTHS {
            let x = values(len);
            let dy: Vec<f32> = (0..len).map(|i| if i % 29 == 28 { f32::NAN } else { (i % 41) as f32 - 20.0 }).collect();
            let (mut exact, mut gate) = (vec![0.0; len], vec![0.0; len]);
            reference::gated_backward(function, &wide(&x), &wide(&dy), &mut exact).unwrap();
            reference::gated_forward(function, &wide(&x), &mut gate).unwrap();
            for isa in Isa::available() {
                let mut dx = vec![9.5; len + 2];
                gated::backward(function, &x, &dy, &mut dx[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([dx[0], dx[len + 1]], [9.5; 2]);
                for i in 0..len {
                    let (dx, exact, x, dy) = (dx[i + 1] as f64, exact[i], x[i] as f64, dy[i] as f64);
                    let factor = match function {
                        Gated::Gelu => x * x / 2.0 + 16.0,
                        Gated::GeluTanh => 7.0 * argument(x) + 20.0,
                        Gated::GeluQuick => 4.0 * (1.702 * x).abs() + 20.0,
                        _ => 16.0,
                    };
                    // The gate and x times its slope, which may cancel.
                    let gate = if x == 0.0 { 0.5 } else { (gate[i] / x).min(1.0) };
                    let term = (exact / dy - gate).abs();
                    let bound = UNIT * dy.abs() * (gate + term) * factor + CUT * dy.abs() * (1.0 + x.abs().powi(3));
                    let fits = dx.is_nan() && exact.is_nan() || dx == exact || (dx - exact).abs() <= bound;
                    assert!(fits, "{function:?}'({x}) * {dy} = {dx} on {isa}, exactly {exact}, bound {bound:e}");
                }
                let mut in_place = dy.clone();
                gated::backward_in_place(function, &x, &mut in_place, Execution::on(isa)).unwrap();
                assert!(same_bits(&in_place, &dx[1..=len]));
            }
        }
    }
}

#[test]
fn the_definition_of_the_gradient_is_the_slope_of_the_definition() {
    for function in Gated::ALL {
        for i in -400..400 {
            let (x, step) = (0.05 * i as f64 + 0.01, 1e-5);
            let mut y = [0.0; 2];
            reference::gated_forward(function, &[x - step, x + step], &mut y).unwrap();
            let mut dx = [0.0];
            reference::gated_backward(function, &[x], &[1.0], &mut dx).unwrap();
            let slope = (y[1] - y[0]) / (2.0 * step);
            assert!((dx[0] - slope).abs() < 1e-8, "{function:?}'({x}) = {} instead of {slope}", dx[0]);
        }
    }
}

#[test]
fn infinities_come_out_as_limits() {
    for function in Gated::ALL {
        for isa in Isa::available() {
            let x = [f32::NEG_INFINITY, f32::INFINITY, -1e30, 1e30, f32::NAN];
            let (mut y, mut dx) = ([9.0; 5], [9.0; 5]);
            gated::forward(function, &x, &mut y, Execution::on(isa)).unwrap();
            gated::backward(function, &x, &[1.0; 5], &mut dx, Execution::on(isa)).unwrap();
            assert_eq!(y[..4], [-0.0, f32::INFINITY, -0.0, 1e30], "{function:?} on {isa}");
            assert_eq!(dx[..4], [0.0, 1.0, 0.0, 1.0], "{function:?} on {isa}");
            assert!(y[4].is_nan() && dx[4].is_nan());
        }
    }
}

#[test]
fn threads_and_fused_instruction_sets_do_not_change_a_bit() {
    let x = values(200_003);
    for function in Gated::ALL {
        let both = |run: Execution| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            gated::forward(function, &x, &mut y, run).unwrap();
            gated::backward(function, &x, &y, &mut dx, run).unwrap();
            [y, dx].concat()
        };
        let serial = both(Parallelism::Serial.into());
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let shared = pool.install(|| both(Parallelism::Current.into()));
            assert!(same_bits(&shared, &serial), "{function:?} on {threads} threads");
        }
        let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
        for pair in fused.windows(2) {
            assert!(same_bits(&both(Execution::on(pair[0])), &both(Execution::on(pair[1]))), "{function:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let (x, mut y) = ([1.0; 4], [9.0; 3]);
    let error = gated::forward(Gated::Gelu, &x, &mut y, Parallelism::Serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "y", expected: 4, given: 3 });
    assert!(gated::backward(Gated::Silu, &x, &x[1..], &mut [0.0; 4], Parallelism::Serial).is_err());
    assert!(gated::backward(Gated::Silu, &x, &x, &mut y, Parallelism::Serial).is_err());
    assert!(gated::backward_in_place(Gated::Silu, &x, &mut y, Parallelism::Serial).is_err());
    assert_eq!(y, [9.0; 3]);
}
