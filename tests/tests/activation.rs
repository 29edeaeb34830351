//! Activations against their definition.

use kernels::{Activation, Error, Execution, Isa, Parallelism, activation, reference};

const ALL: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Clamp { low: 0.0, high: 6.0 },
    Activation::Clamp { low: -1.5, high: -0.5 },
    Activation::Sigmoid,
    Activation::Tanh,
];

/// Lengths around every vector width, and beyond a task.
const LENGTHS: [usize; 18] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 16_384, 40_001];

/// Values over many magnitudes, with zeros, infinities and NaN among them.
fn values(len: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 6.0, -1.5, -0.5, 1e-40, -100.0];
    (0..len)
        .map(|i| match i % 13 {
            12 => special[i / 13 % special.len()],
            _ => (i as f32 * 0.37).sin() * 2f32.powi(i as i32 % 17 - 9),
        })
        .collect()
}

/// The promised error, in ULP of the exact value.
fn promised(activation: Activation) -> f64 {
    match activation {
        Activation::Sigmoid => 2.5,
        Activation::Tanh => 1.8,
        _ => 0.0,
    }
}

fn ulp(exact: f64) -> f64 {
    let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
    ((exponent.max(-126) - 23) as f64).exp2()
}

#[test]
fn outputs_err_by_no_more_than_promised_and_gaps_stay_untouched() {
    for function in ALL {
        for len in LENGTHS {
            let x = values(len);
            let exact_x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mut exact = vec![0.0; len];
            reference::activation_forward(function, &exact_x, &mut exact).unwrap();
            for isa in Isa::available() {
                let mut y = vec![9.5; len + 2];
                activation::forward(function, &x, &mut y[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([y[0], y[len + 1]], [9.5; 2]);
                for i in 0..len {
                    let (y, exact) = (y[i + 1], exact[i]);
                    let error = (y as f64 - exact).abs();
                    let fits = y.is_nan() && exact.is_nan()
                        || y as f64 == exact
                        || error <= promised(function) * ulp(exact)
                        || function == Activation::Sigmoid && x[i] < -87.3 && error <= 2f64.powi(-126);
                    assert!(fits, "{function:?}({}) = {y} on {isa}, exactly {exact}", x[i]);
                }
                let mut in_place = x.clone();
                activation::forward_in_place(function, &mut in_place, Execution::on(isa)).unwrap();
                assert!(same_bits(&in_place, &y[1..=len]));
            }
        }
    }
}

#[test]
fn gradients_follow_from_the_output_within_three_roundings() {
    for function in ALL {
        for len in LENGTHS {
            let x = values(len);
            let mut y = vec![0.0; len];
            activation::forward(function, &x, &mut y, Parallelism::Serial).unwrap();
            let dy: Vec<f32> = (0..len).map(|i| if i % 29 == 28 { f32::NAN } else { i as f32 - 20.0 }).collect();
            let wide = |v: &[f32]| v.iter().map(|&v| v as f64).collect::<Vec<_>>();
            let mut exact = vec![0.0; len];
            reference::activation_backward(function, &wide(&y), &wide(&dy), &mut exact).unwrap();
            for isa in Isa::available() {
                let mut dx = vec![9.5; len + 2];
                activation::backward(function, &y, &dy, &mut dx[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([dx[0], dx[len + 1]], [9.5; 2]);
                for i in 0..len {
                    let (dx, exact) = (dx[i + 1] as f64, exact[i]);
                    // 1 - y y may cancel: its roundings are relative to 1.
                    let scale = if function == Activation::Tanh { dy[i].abs() as f64 } else { exact.abs() };
                    let bound = 3.01 * scale / (1u64 << 24) as f64 + 2f64.powi(-148);
                    let agrees = (dx.is_nan() && exact.is_nan()) || dx == exact || (dx - exact).abs() <= bound;
                    // Where the slope is 0 the definition stops the gradient; a product lets NaN through.
                    let stopped = exact == 0.0 && dy[i].is_nan() && dx.is_nan();
                    assert!(agrees || stopped, "{function:?}'({}) * {} = {dx} on {isa}, exactly {exact}", y[i], dy[i]);
                }
                let mut in_place = dy.clone();
                activation::backward_in_place(function, &y, &mut in_place, Execution::on(isa)).unwrap();
                assert!(same_bits(&in_place, &dx[1..=len]));
            }
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

#[test]
fn relu_keeps_nan_and_has_no_slope_at_zero() {
    let x = [f32::NAN, -0.0, 0.0, -1.0, 1.0, f32::NEG_INFINITY, f32::INFINITY];
    for isa in Isa::available() {
        let (mut y, mut dx) = ([9.0; 7], [9.0; 7]);
        activation::forward(Activation::Relu, &x, &mut y, Execution::on(isa)).unwrap();
        assert!(y[0].is_nan());
        assert_eq!(y[1..].iter().map(|y| y.to_bits()).collect::<Vec<_>>(), {
            [0.0f32, 0.0, 0.0, 1.0, 0.0, f32::INFINITY].map(f32::to_bits).to_vec()
        });
        activation::backward(Activation::Relu, &y, &[2.0; 7], &mut dx, Execution::on(isa)).unwrap();
        assert_eq!(dx, [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0]);
    }
}

#[test]
fn a_gradient_where_the_slope_is_zero_is_stopped_even_if_it_is_nan() {
    let relu6 = Activation::Clamp { low: 0.0, high: 6.0 };
    let mut dx = [9.0; 3];
    activation::backward(relu6, &[0.0, 3.0, 6.0], &[f32::NAN, 1.0, f32::INFINITY], &mut dx, Parallelism::Serial)
        .unwrap();
    assert_eq!(dx, [0.0, 1.0, 0.0]);
}

#[test]
fn threads_and_fused_instruction_sets_do_not_change_a_bit() {
    let x = values(200_003);
    for function in ALL {
        let mut serial = vec![0.0; x.len()];
        activation::forward(function, &x, &mut serial, Parallelism::Serial).unwrap();
        let mut serial_dx = vec![0.0; x.len()];
        activation::backward(function, &serial, &x, &mut serial_dx, Parallelism::Serial).unwrap();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            pool.install(|| activation::forward(function, &x, &mut y, Parallelism::Current)).unwrap();
            pool.install(|| activation::backward(function, &y, &x, &mut dx, Parallelism::Current)).unwrap();
            assert!(same_bits(&y, &serial) && same_bits(&dx, &serial_dx), "{function:?} on {threads} threads");
        }
        let mut all: Vec<Vec<f32>> = Vec::new();
        for isa in Isa::available().filter(|&isa| isa != Isa::Portable) {
            let mut y = vec![0.0; x.len()];
            activation::forward(function, &x, &mut y, Execution::on(isa)).unwrap();
            all.push(y);
        }
        assert!(all.windows(2).all(|pair| same_bits(&pair[0], &pair[1])), "{function:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let (x, mut y) = ([1.0; 4], [9.0; 3]);
    let error = activation::forward(Activation::Relu, &x, &mut y, Parallelism::Serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "y", expected: 4, given: 3 });
    assert!(activation::backward(Activation::Relu, &x, &x[1..], &mut [0.0; 4], Parallelism::Serial).is_err());
    assert!(activation::backward(Activation::Relu, &x, &x, &mut y, Parallelism::Serial).is_err());
    assert!(activation::backward_in_place(Activation::Relu, &x, &mut y, Parallelism::Serial).is_err());
    for (low, high) in [(1.0, 0.0), (f32::NAN, 1.0), (0.0, f32::NAN)] {
        let clamp = Activation::Clamp { low, high };
        let error = activation::forward(clamp, &x[1..], &mut y, Parallelism::Serial).unwrap_err();
        assert_eq!(error.to_string(), format!("activation: expected low <= high, given {low} and {high}"));
    }
    assert_eq!(y, [9.0; 3]);
}

/// What takes `x` and writes `y`.
type Slices = fn(&[f32], &mut [f32], Execution) -> Result<(), Error>;

/// A function as the crate offers it, its exact values, and the promised error in ULP.
struct Elementary {
    name: &'static str,
    run: Slices,
    exact: fn(f64) -> f64,
    promised: f64,
}

#[test]
fn elementary_functions_err_by_no_more_than_promised_wherever_they_run() {
    let functions = [
        Elementary { name: "exp", run: |x, y, on| activation::exp(x, y, on), exact: f64::exp, promised: 1.1 },
        Elementary { name: "tanh", run: |x, y, on| activation::tanh(x, y, on), exact: f64::tanh, promised: 1.8 },
        Elementary { name: "erf", run: |x, y, on| activation::erf(x, y, on), exact: reference::erf, promised: 1.3 },
    ];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for Elementary { name, run: function, exact, promised } in functions {
        for len in LENGTHS {
            let x = values(len);
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut y = vec![9.5; len + 2];
                function(&x, &mut y[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([y[0], y[len + 1]], [9.5; 2], "{name} of {len} on {isa}");
                for (x, y) in x.iter().zip(&y[1..=len]) {
                    let exact = exact(f64::from(*x));
                    // Below its domain exp is 0, above it infinite.
                    let fits = y.is_nan() && exact.is_nan()
                        || f64::from(*y) == exact
                        || (f64::from(*y) - exact).abs() <= promised * ulp(exact)
                        || name == "exp" && (*x < -87.3 && *y == 0.0 || *x > 88.722_83 && *y == f32::INFINITY);
                    assert!(fits, "{name}({x}) = {y} on {isa}, exactly {exact}");
                }
                let mut threads = vec![9.5; len];
                let current = Execution::on(isa).parallelism(Parallelism::Current);
                pool.install(|| function(&x, &mut threads, current)).unwrap();
                assert!(same_bits(&threads, &y[1..=len]), "{name} of {len} on {isa}, 3 threads");
                if isa != Isa::Portable {
                    let bits = fused.get_or_insert_with(|| threads.clone());
                    assert!(same_bits(bits, &threads), "{name} of {len} on {isa}");
                }
            }
        }
        let mut short = [7.0; 2];
        let error = function(&[1.0; 3], &mut short, Parallelism::Serial.into()).unwrap_err();
        assert_eq!((error, short), (Error::Length { argument: "y", expected: 3, given: 2 }, [7.0; 2]));
    }
    let x = values(33);
    let (mut own, mut activated) = ([0.0; 33], [0.0; 33]);
    activation::tanh(&x, &mut own, Parallelism::Serial).unwrap();
    activation::forward(Activation::Tanh, &x, &mut activated, Parallelism::Serial).unwrap();
    assert!(same_bits(&own, &activated));
}
