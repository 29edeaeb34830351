//! Optimisers against their formulas.

use kernels::optimizer::{self, Adam, Descent};
use kernels::{Error, Execution, Isa, Parallelism, reference};

/// Half of the distance from 1 to the next number.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Room for products of roundings, which the bounds leave out.
const SLACK: f64 = 1.001;
/// Lengths around every vector width, and beyond a task.
const LENGTHS: [usize; 14] = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65, 20_001];

/// Numbers of both signs over many magnitudes, other ones for another seed.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + 7 * seed) as f32 * 0.37).sin() * 2f32.powi(((i * (seed + 3)) % 19) as i32 - 9)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// Between two elements that must not be written.
fn fenced(x: &[f32]) -> Vec<f32> {
    [&[9.5], x, &[9.5]].concat()
}

fn inside(x: &mut [f32]) -> &mut [f32] {
    let len = x.len();
    &mut x[1..len - 1]
}

#[test]
fn descent_errs_by_no_more_than_promised() {
    let specs = [
        Descent::new(0.1),
        Descent::new(0.1).decay(0.05),
        Descent::new(0.01).momentum(0.9),
        Descent::new(0.3).momentum(0.9).nesterov().decay(0.01),
    ];
    for spec in specs {
        for len in LENGTHS {
            let (w, g, v) = (values(len, 1), values(len, 2), values(len, 3));
            let (mut exact_w, mut exact_v) = (wide(&w), wide(&v));
            reference::descent_step(&spec, &mut exact_w, &wide(&g), &mut exact_v).unwrap();
            for isa in Isa::available() {
                let (mut new_w, mut new_v) = (fenced(&w), fenced(&v));
                let run = spec.step(inside(&mut new_w), &g, Some(inside(&mut new_v)), Execution::on(isa));
                assert_eq!((run, new_w[0], new_w[len + 1], new_v[0], new_v[len + 1]), (Ok(()), 9.5, 9.5, 9.5, 9.5));
                for i in 0..len {
                    let [wi, gi, vi] = [w[i], g[i], v[i]].map(|x| x.abs() as f64);
                    let of_velocity = gi + spec.decay * wi + spec.momentum * vi;
                    let ahead = gi + spec.decay * wi + spec.momentum * of_velocity;
                    let direction = if spec.nesterov { ahead } else { of_velocity };
                    let bound = SLACK * (U * exact_w[i].abs() + 9.0 * U * spec.rate * direction);
                    let error = (new_w[i + 1] as f64 - exact_w[i]).abs();
                    assert!(error <= bound, "{spec:?}: w[{i}] of {len} on {isa} errs by {error:e}, may by {bound:e}");
                    let error = (new_v[i + 1] as f64 - exact_v[i]).abs();
                    let bound = SLACK * 4.0 * U * of_velocity;
                    assert!(error <= bound, "{spec:?}: v[{i}] of {len} on {isa} errs by {error:e}, may by {bound:e}");
                }
            }
        }
    }
}

#[test]
fn descent_without_velocity_has_the_bits_of_a_momentum_of_zero() {
    let spec = Descent::new(0.1).decay(0.05);
    let (w, g, mut v) = (values(1000, 1), values(1000, 2), values(1000, 3));
    let (mut plain, mut heavy) = (w.clone(), w);
    spec.step(&mut plain, &g, None, Parallelism::Serial).unwrap();
    spec.step(&mut heavy, &g, Some(&mut v), Parallelism::Serial).unwrap();
    assert_eq!(plain, heavy);
}

#[test]
fn adam_errs_by_no_more_than_promised() {
    let specs = [
        Adam::new(0.001),
        Adam::new(0.1).betas([0.5, 0.9]).epsilon(1e-3),
        Adam::new(0.01).decay(0.1),
        Adam::new(0.01).decoupled_decay(0.1),
    ];
    for (spec, count) in specs.into_iter().flat_map(|spec| [1, 2, 10, 1000].map(|count| (spec, count))) {
        for len in LENGTHS {
            let (w, g, m) = (values(len, 1), values(len, 2), values(len, 3));
            let v: Vec<f32> = values(len, 4).iter().map(|v| v * v).collect();
            let (mut exact_w, mut exact_m, mut exact_v) = (wide(&w), wide(&m), wide(&v));
            reference::adam_step(&spec, count, &mut exact_w, &wide(&g), &mut exact_m, &mut exact_v).unwrap();
            for isa in Isa::available() {
                let (mut new_w, mut new_m, mut new_v) = (fenced(&w), fenced(&m), fenced(&v));
                let (of_w, of_m, of_v) = (inside(&mut new_w), inside(&mut new_m), inside(&mut new_v));
                spec.step(count, of_w, &g, of_m, of_v, Execution::on(isa)).unwrap();
                for fence in [&new_w, &new_m, &new_v] {
                    assert_eq!([fence[0], fence[len + 1]], [9.5; 2]);
                }
                for i in 0..len {
                    let [beta1, beta2] = spec.betas;
                    let (wi, coupled) = (w[i].abs() as f64, if spec.decoupled { 0.0 } else { spec.decay });
                    let exact_g = g[i] as f64 + coupled * w[i] as f64;
                    // The decay may cancel the gradient: what it errs by is relative to its parts.
                    let of_g = if coupled == 0.0 { 0.0 } else { 3.0 * U * (g[i].abs() as f64 + coupled * wi) };
                    let magnitude = beta1 * m[i].abs() as f64 + (1.0 - beta1) * (exact_g.abs() + of_g);
                    let mean = 3.0 * U * magnitude + (1.0 - beta1) * of_g;
                    let variance = 4.0 * U * exact_v[i] + (1.0 - beta2) * (2.0 * exact_g.abs() + of_g) * of_g;
                    let correction = [beta1, beta2].map(|beta| 1.0 - beta.powi(count as i32));
                    let root = (exact_v[i] / correction[1]).sqrt();
                    let denominator = root + spec.epsilon;
                    let pace = spec.rate / correction[0] / denominator;
                    // d sqrt(v) / sqrt(v) = dv / 2v
                    let of_root = (variance - 4.0 * U * exact_v[i]) / (2.0 * exact_v[i]).max(1e-300) * root;
                    let value = U * exact_w[i].abs()
                        + 2.0 * U * wi
                        + 14.0 * U * pace * magnitude
                        + pace * ((1.0 - beta1) * of_g + magnitude * of_root / denominator);
                    for (what, given, exact, bound) in [
                        ("m", new_m[i + 1], exact_m[i], mean),
                        ("v", new_v[i + 1], exact_v[i], variance),
                        ("w", new_w[i + 1], exact_w[i], value),
                    ] {
                        let (error, bound) = ((given as f64 - exact).abs(), SLACK * bound);
                        let case = format!("{spec:?}, step {count}: {what}[{i}] of {len} on {isa}");
                        assert!(error <= bound, "{case} errs by {error:e}, may by {bound:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn adam_stays_sane_at_the_ends() {
    // Neither a gradient of zeros nor one whose square is lost moves a value by more than the rate.
    let (mut w, g) = ([1.0; 3], [0.0, 1e-30, 3e38]);
    let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
    Adam::new(0.1).step(1, &mut w, &g, &mut m, &mut v, Parallelism::Serial).unwrap();
    assert_eq!(w[..2], [1.0; 2]);
    assert!((0.9..=1.0).contains(&w[2]), "{w:?}");
    // Counts without end: the corrections have become 1.
    let (mut late, mut later) = ([1.0], [1.0]);
    let spec = Adam::new(0.1).betas([0.9, 0.999_999_9]);
    spec.step(u64::MAX, &mut late, &[1.0], &mut [0.0], &mut [0.0], Parallelism::Serial).unwrap();
    spec.step(1 << 30, &mut later, &[1.0], &mut [0.0], &mut [0.0], Parallelism::Serial).unwrap();
    assert_eq!(late, later);
}

#[test]
fn norms_err_by_no_more_than_promised_and_never_overflow() {
    for len in LENGTHS.into_iter().chain([4096, 4097, 300_000]) {
        for factor in [1.0, 2f32.powi(110), 2f32.powi(-120)] {
            let x: Vec<f32> = values(len, 5).iter().map(|x| factor * x).collect();
            let exact = wide(&x).iter().map(|x| x * x).sum::<f64>().sqrt();
            for isa in Isa::available() {
                let given = optimizer::norm(&x, Execution::on(isa)).unwrap();
                assert!((given - exact).abs() <= SLACK * 36.0 * U * exact, "{len} times {factor} on {isa}: {given}");
            }
        }
    }
    let norm = |x: &[f32]| optimizer::norm(x, Parallelism::Serial).unwrap();
    assert!(norm(&[3e38; 5000]).is_finite());
    assert_eq!(norm(&[1e-45]), 1e-45f32 as f64);
    assert_eq!(norm(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
    assert!(norm(&[f32::INFINITY, f32::NAN, 3e38]).is_nan());
}

#[test]
fn scaling_rounds_once_and_writes_nothing_else() {
    for len in LENGTHS {
        let x = values(len, 6);
        for isa in Isa::available() {
            let mut scaled = fenced(&x);
            optimizer::scale(0.3, inside(&mut scaled), Execution::on(isa)).unwrap();
            let expected: Vec<f32> = x.iter().map(|x| 0.3 * x).collect();
            assert_eq!(scaled, fenced(&expected));
        }
    }
}

#[test]
fn threads_and_fused_instruction_sets_do_not_change_a_bit() {
    let len = 300_001;
    let (w, g) = (values(len, 1), values(len, 2));
    let run = |execution: Execution| {
        let (mut a, mut b, mut m, mut v) = (w.clone(), w.clone(), values(len, 3), vec![1.0; len]);
        let mut velocity = m.clone();
        Descent::new(0.1).momentum(0.9).step(&mut a, &g, Some(&mut velocity), execution).unwrap();
        Adam::new(0.1).decay(0.1).step(3, &mut b, &g, &mut m, &mut v, execution).unwrap();
        let norm = optimizer::norm(&g, execution).unwrap();
        optimizer::scale(0.7, &mut v, execution).unwrap();
        let bits = [a, b, m, v, velocity].concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        (bits, norm.to_bits())
    };
    let expected = run(Parallelism::Serial.into());
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| run(Parallelism::Current.into())) == expected, "{threads} threads");
    }
    let fused: Vec<_> =
        Isa::available().filter(|&isa| isa != Isa::Portable).map(|isa| run(Execution::on(isa))).collect();
    assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let serial = Parallelism::Serial;
    let (mut w, g, mut m, mut v) = ([1.0; 4], [1.0; 4], [2.0; 4], [3.0; 4]);
    let descent = Descent::new(0.1).momentum(0.9);
    let error = descent.step(&mut w, &g[1..], Some(&mut v), serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "gradient", expected: 4, given: 3 });
    let error = descent.step(&mut w, &g, Some(&mut v[1..]), serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "velocity", expected: 4, given: 3 });
    let error = descent.step(&mut w, &g, None, serial).unwrap_err();
    assert_eq!(error.to_string(), "velocity: expected one, where there is momentum, given none");
    for wrong in [Descent::new(f64::NAN), Descent::new(-0.1), descent.momentum(-1.0), descent.decay(f64::INFINITY)] {
        assert!(wrong.step(&mut w, &g, Some(&mut v), serial).is_err(), "{wrong:?}");
    }
    let adam = Adam::new(0.1);
    let error = adam.step(1, &mut w, &g, &mut m, &mut v[1..], serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "variance", expected: 4, given: 3 });
    assert!(adam.step(0, &mut w, &g, &mut m, &mut v, serial).unwrap_err().to_string().starts_with("count: "));
    for wrong in [
        Adam::new(f64::INFINITY),
        adam.betas([1.0, 0.9]),
        adam.betas([0.9, f64::NAN]),
        adam.betas([-0.1, 0.9]),
        adam.epsilon(0.0),
        adam.epsilon(1e-60),
        adam.decoupled_decay(-1.0),
    ] {
        assert!(wrong.step(1, &mut w, &g, &mut m, &mut v, serial).is_err(), "{wrong:?}");
    }
    assert_eq!((w, m, v), ([1.0; 4], [2.0; 4], [3.0; 4]));
}
