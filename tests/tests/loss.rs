//! Softmax, log-softmax and cross-entropy against their definitions.

use kernels::{Error, Execution, Isa, Parallelism, loss, reference, softmax};

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// Exponentials below exp(-87.3) come out as 0.
const CUT: f64 = 1.23e-38;

const COLUMNS: [usize; 18] = [1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000, 3001];

fn uniform(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Rows of every kind: ordinary, wide spread, all equal, one dominant, next to overflow, the maximum last.
fn logits(rows: usize, columns: usize) -> Vec<f32> {
    let mut seed = (rows * 1000 + columns) as u64;
    let mut x = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            x.push(match row % 6 {
                0 => 3.0 * uniform(&mut seed),
                1 => 60.0 * uniform(&mut seed),
                2 => -7.25,
                3 => uniform(&mut seed) + if column == columns / 2 { 88.0 } else { 0.0 },
                4 => 3e38 - 1e33 * uniform(&mut seed).abs(),
                _ => column as f32 * 0.01 + uniform(&mut seed),
            });
        }
    }
    x
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

fn largest(row: &[f32]) -> f64 {
    row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)).into()
}

#[test]
fn softmax_errs_by_no_more_than_its_bound() {
    for columns in COLUMNS {
        let shape = [6, columns];
        let x = logits(6, columns);
        let mut exact = vec![0.0; x.len()];
        reference::softmax_forward(shape, &wide(&x), &mut exact).unwrap();
        for isa in Isa::available() {
            let mut y = vec![9.5; x.len() + 2];
            let len = x.len();
            softmax::forward(shape, &x, &mut y[1..=len], Execution::on(isa)).unwrap();
            assert_eq!([y[0], y[len + 1]], [9.5; 2]);
            for i in 0..len {
                let row = &x[i / columns * columns..][..columns];
                let distance = largest(row) - x[i] as f64;
                let n = columns as f64;
                let bound = exact[i] * UNIT * (distance + n.ln() + n + 7.0) * 1.001;
                let bound = if distance > 87.29 { bound + CUT } else { bound + 2f64.powi(-149) };
                let error = (y[i + 1] as f64 - exact[i]).abs();
                assert!(error <= bound, "{columns} columns, element {i} on {isa}: {} for {}", y[i + 1], exact[i]);
            }
        }
    }
}

#[test]
fn log_softmax_errs_by_no_more_than_its_bound() {
    for columns in COLUMNS {
        let shape = [6, columns];
        let x = logits(6, columns);
        let mut exact = vec![0.0; x.len()];
        reference::log_softmax_forward(shape, &wide(&x), &mut exact).unwrap();
        for isa in Isa::available() {
            let mut y = vec![9.5; x.len()];
            softmax::log_forward(shape, &x, &mut y, Execution::on(isa)).unwrap();
            for i in 0..x.len() {
                let row = &x[i / columns * columns..][..columns];
                let (distance, n) = (largest(row) - x[i] as f64, columns as f64);
                let bound = UNIT * (2.0 * exact[i].abs() + 2.0 * distance + 2.0 * n.ln() + n + 7.0);
                let error = (y[i] as f64 - exact[i]).abs();
                assert!(error <= bound, "{columns} columns, element {i} on {isa}: {} for {}", y[i], exact[i]);
            }
        }
    }
}

#[test]
fn gradients_of_softmax_err_by_no_more_than_their_bounds() {
    for columns in COLUMNS {
        let shape = [6, columns];
        let x = logits(6, columns);
        let mut seed = 7;
        let dy: Vec<f32> = x.iter().map(|_| uniform(&mut seed)).collect();
        let (mut y, mut log_y) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        softmax::forward(shape, &x, &mut y, Parallelism::Serial).unwrap();
        softmax::log_forward(shape, &x, &mut log_y, Parallelism::Serial).unwrap();
        let (mut exact, mut log_exact) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        reference::softmax_backward(shape, &wide(&y), &wide(&dy), &mut exact).unwrap();
        reference::log_softmax_backward(shape, &wide(&log_y), &wide(&dy), &mut log_exact).unwrap();
        for isa in Isa::available() {
            let (mut dx, mut log_dx) = (vec![9.5; x.len()], vec![9.5; x.len()]);
            softmax::backward(shape, &y, &dy, &mut dx, Execution::on(isa)).unwrap();
            softmax::log_backward(shape, &log_y, &dy, &mut log_dx, Execution::on(isa)).unwrap();
            for i in 0..x.len() {
                let row = i / columns * columns..i / columns * columns + columns;
                let products: f64 = row.clone().map(|j| (y[j] as f64 * dy[j] as f64).abs()).sum();
                let sum: f64 = row.map(|j| dy[j].abs() as f64).sum();
                let (n, g) = (columns as f64, dy[i].abs() as f64);
                let bound = 1.001 * (n + 3.0) * UNIT * y[i] as f64 * (g + products) + n * 2f64.powi(-148);
                assert!((dx[i] as f64 - exact[i]).abs() <= bound, "softmax, {columns} columns, {i} on {isa}");
                let p = (log_y[i] as f64).exp();
                let bound = 1.001 * (n + 4.0) * UNIT * (g + p * sum) + CUT * sum;
                assert!(
                    (log_dx[i] as f64 - log_exact[i]).abs() <= bound,
                    "log-softmax, {columns} columns, {i} on {isa}"
                );
            }
        }
    }
}

/// `[outer, inner, len]` from `[outer, len, inner]`.
fn turned(x: &[f32], [outer, len, inner]: [usize; 3]) -> Vec<f32> {
    let at = |i: usize| (i / (inner * len) * len + i % len) * inner + i / len % inner;
    (0..outer * len * inner).map(|i| x[at(i)]).collect()
}

#[test]
fn softmax_over_a_middle_axis_errs_by_no_more_than_that_of_rows() {
    for shape in [[2, 5, 3], [1, 7, 64], [3, 21, 65], [2, 1, 17], [1, 300, 200], [4, 3, 1], [2, 0, 4], [0, 3, 3]] {
        let [outer, len, inner] = shape;
        let rows = [outer * inner, len];
        let x = turned(&logits(outer * inner, len), [outer, inner, len]);
        let mut seed = 7;
        let dy: Vec<f32> = x.iter().map(|_| uniform(&mut seed)).collect();
        let of_rows = |x: &[f32]| wide(&turned(x, shape));
        let [mut exact, mut log_exact, mut dx_exact, mut log_dx_exact] = [(); 4].map(|()| vec![0.0; x.len()]);
        reference::softmax_forward(rows, &of_rows(&x), &mut exact).unwrap();
        reference::log_softmax_forward(rows, &of_rows(&x), &mut log_exact).unwrap();
        for isa in Isa::available() {
            let [mut y, mut log_y, mut dx, mut log_dx] = [(); 4].map(|()| vec![9.5; x.len()]);
            let mut every = |execution: Execution| {
                softmax::axis::forward(shape, &x, &mut y, execution).unwrap();
                softmax::axis::log_forward(shape, &x, &mut log_y, execution).unwrap();
                softmax::axis::backward(shape, &y, &dy, &mut dx, execution).unwrap();
                softmax::axis::log_backward(shape, &log_y, &dy, &mut log_dx, execution).unwrap();
                [&y, &log_y, &dx, &log_dx].map(|of| of.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            };
            let pool = Execution { parallelism: Parallelism::Current, isa: Some(isa) };
            assert_eq!(every(Execution::on(isa)), every(pool), "{shape:?} on {isa}: threads change bits");
            reference::softmax_backward(rows, &of_rows(&y), &of_rows(&dy), &mut dx_exact).unwrap();
            reference::log_softmax_backward(rows, &of_rows(&log_y), &of_rows(&dy), &mut log_dx_exact).unwrap();
            let [x, y, log_y, dx, log_dx, dy] = [&x, &y, &log_y, &dx, &log_dx, &dy].map(|of| turned(of, shape));
            for i in 0..x.len() {
                let row = i / len * len..(i / len + 1) * len;
                let (distance, n) = (largest(&x[row.clone()]) - x[i] as f64, len as f64);
                let products: f64 = row.clone().map(|j| (y[j] as f64 * dy[j] as f64).abs()).sum();
                let (sum, g): (f64, f64) = (row.map(|j| dy[j].abs() as f64).sum(), dy[i].abs() as f64);
                let cut = if distance > 87.29 { CUT } else { 2f64.powi(-149) };
                let p = (log_y[i] as f64).exp();
                let checks = [
                    (y[i], exact[i], 1.001 * exact[i] * UNIT * (distance + n.ln() + n + 7.0) + cut),
                    (log_y[i], log_exact[i], UNIT * (2.0 * (log_exact[i].abs() + distance + n.ln()) + n + 7.0)),
                    (dx[i], dx_exact[i], 1.001 * (n + 3.0) * UNIT * y[i] as f64 * (g + products) + n * 2f64.powi(-148)),
                    (log_dx[i], log_dx_exact[i], 1.001 * (n + 4.0) * UNIT * (g + p * sum) + CUT * sum),
                ];
                for (which, (got, exact, bound)) in checks.into_iter().enumerate() {
                    let error = (got as f64 - exact).abs();
                    assert!(error <= bound, "{shape:?} on {isa}, check {which}, {i}: {got} for {exact}");
                }
            }
        }
    }
    let refused = softmax::axis::forward([2, 2, 2], &[0.0; 8], &mut [0.0; 7], Parallelism::Serial);
    assert!(matches!(refused, Err(Error::Length { argument: "y", .. })));
}

#[test]
fn cross_entropy_and_its_gradient_err_by_no_more_than_their_bounds() {
    for classes in COLUMNS {
        // Without the rows next to overflow, whose losses are sums of huge differences.
        let rows = 4;
        let shape = [rows, classes];
        let z = logits(rows, classes);
        let targets: Vec<usize> = (0..rows).map(|row| (row * 7919 + 3) % classes).collect();
        let (mut exact, mut exact_gradient) = (vec![0.0; rows], vec![0.0; z.len()]);
        let exact_mean =
            reference::softmax_cross_entropy(shape, &wide(&z), &targets, &mut exact, &mut exact_gradient).unwrap();
        for isa in Isa::available() {
            let (mut losses, mut gradient) = (vec![9.5; rows], vec![9.5; z.len()]);
            let run = Execution::on(isa);
            let mean = loss::softmax_cross_entropy(shape, &z, &targets, &mut losses, Some(&mut gradient), run).unwrap();
            let mut worst = 0.0;
            for row in 0..rows {
                let z = &z[row * classes..][..classes];
                let spread = largest(z) - z.iter().fold(f32::INFINITY, |a, &b| a.min(b)) as f64;
                let n = classes as f64;
                let bound = UNIT * (4.0 * exact[row] + spread + n + 9.0);
                worst = bound.max(worst);
                assert!((losses[row] as f64 - exact[row]).abs() <= bound, "loss {row} of {classes} classes on {isa}");
                let bound = UNIT * (2.0 * spread + n + 12.0) / rows as f64;
                for i in row * classes..(row + 1) * classes {
                    let error = (gradient[i] as f64 - exact_gradient[i]).abs();
                    assert!(error <= bound, "gradient {i} of {classes} classes on {isa}");
                }
            }
            let bound = worst + exact_mean * UNIT * (rows as f64 / 64.0 + 8.0);
            assert!((mean as f64 - exact_mean).abs() <= bound, "mean over {classes} classes on {isa}");

            let mut without = vec![9.5; rows];
            let same = loss::softmax_cross_entropy(shape, &z, &targets, &mut without, None, run).unwrap();
            assert_eq!((same, without), (mean, losses), "the loss does not depend on the gradient being asked for");
        }
    }
}

/// The step of differences.
const STEP: f64 = 1e-5;

/// The slope of a function at each element, by differences in f64.
fn slopes(x: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let at = |i: usize, step: f64| {
        let mut moved = x.to_vec();
        moved[i] += step;
        function(&moved)
    };
    (0..x.len()).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
}

#[test]
fn the_definitions_of_the_gradients_are_the_slopes_of_the_definitions() {
    // Of a sum of `n` terms with the magnitude `size`: its third derivative is below `6 size`, and it rounds as often as
    // it has terms, each of which took some functions.
    let are_close = |a: &[f64], b: &[f64], size: f64| {
        let error = STEP * STEP * size + (a.len() as f64 + 40.0) * f64::EPSILON / 2.0 * size / STEP;
        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= error)
    };
    let mut seed = 11;
    for shape in [[1, 1], [1, 2], [2, 5], [3, 9], [2, 33]] {
        let [rows, columns] = shape;
        for spread in [0.1, 2.0, 8.0] {
            let mut random = |_| f64::from(uniform(&mut seed));
            let x: Vec<f64> = (0..rows * columns).map(|i| spread * random(i)).collect();
            let dy: Vec<f64> = (0..x.len()).map(&mut random).collect();
            // Arguments of exponentials, and logarithms of their sums, are at most this.
            let reach = 1.0 + 2.0 * spread + (columns as f64).ln();
            let size = reach * dy.iter().map(|dy| dy.abs()).sum::<f64>();
            let (mut y, mut dx) = (x.clone(), x.clone());
            let weighted = |y: &[f64]| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();

            reference::softmax_forward(shape, &x, &mut y).unwrap();
            reference::softmax_backward(shape, &y, &dy, &mut dx).unwrap();
            let of_softmax = slopes(&x, |x| {
                let mut y = x.to_vec();
                reference::softmax_forward(shape, x, &mut y).unwrap();
                weighted(&y)
            });
            assert!(are_close(&dx, &of_softmax, size), "softmax, {shape:?}: {dx:?} {of_softmax:?}");

            reference::log_softmax_forward(shape, &x, &mut y).unwrap();
            reference::log_softmax_backward(shape, &y, &dy, &mut dx).unwrap();
            let of_logarithm = slopes(&x, |x| {
                let mut y = x.to_vec();
                reference::log_softmax_forward(shape, x, &mut y).unwrap();
                weighted(&y)
            });
            assert!(are_close(&dx, &of_logarithm, size), "log-softmax, {shape:?}: {dx:?} {of_logarithm:?}");

            let targets: Vec<usize> = (0..rows).map(|row| (row * 5 + 1) % columns).collect();
            let mean = |x: &[f64]| {
                let (mut losses, mut gradient) = (vec![0.0; rows], vec![0.0; x.len()]);
                let mean = reference::softmax_cross_entropy(shape, x, &targets, &mut losses, &mut gradient).unwrap();
                (mean, gradient)
            };
            let (gradient, of_loss) = (mean(&x).1, slopes(&x, |x| mean(x).0));
            assert!(are_close(&gradient, &of_loss, reach), "cross-entropy, {shape:?}: {gradient:?} {of_loss:?}");

            let error = |x: &[f64]| {
                let mut gradient = vec![0.0; x.len()];
                (reference::mean_squared_error(x, &dy, &mut gradient).unwrap(), gradient)
            };
            let (gradient, of_loss) = (error(&x).1, slopes(&x, |x| error(x).0));
            assert!(
                are_close(&gradient, &of_loss, (1.0 + spread).powi(2)),
                "mean square, {shape:?}: {gradient:?} {of_loss:?}"
            );
        }
    }
}

#[test]
fn equal_logits_and_certain_ones_are_exact() {
    for isa in Isa::available() {
        let run = Execution::on(isa);
        for columns in [1usize, 2, 16, 64, 1024] {
            let mut y = vec![9.0; columns];
            softmax::forward([1, columns], &vec![-3.7; columns], &mut y, run).unwrap();
            assert!(y.iter().all(|&y| y == 1.0 / columns as f32));
            let mut z = vec![0.0; columns];
            z[columns / 2] = 88.0;
            softmax::forward([1, columns], &z, &mut y, run).unwrap();
            assert!((0..columns).all(|i| y[i] == if i == columns / 2 { 1.0 } else { 0.0 }));
            softmax::log_forward([1, columns], &z, &mut y, run).unwrap();
            assert!((0..columns).all(|i| y[i] == if i == columns / 2 { 0.0 } else { -88.0 }));
            let (mut losses, mut gradient) = ([9.0], vec![9.0; columns]);
            let target = [columns / 2];
            let mean =
                loss::softmax_cross_entropy([1, columns], &z, &target, &mut losses, Some(&mut gradient), run).unwrap();
            assert_eq!((mean, losses), (0.0, [0.0]));
            assert!(gradient.iter().all(|&g| g == 0.0));
        }
    }
}

#[test]
fn special_values_stay_in_their_row() {
    for isa in Isa::available() {
        for columns in [1usize, 2, 9, 16, 17, 64, 70, 200] {
            for at in [0, columns / 2, columns - 1] {
                // Rows: NaN somewhere, +infinity somewhere, nothing but -infinity, one -infinity, ordinary.
                let mut x = vec![0.5; 5 * columns];
                x[at] = f32::NAN;
                x[columns + at] = f32::INFINITY;
                x[2 * columns..3 * columns].fill(f32::NEG_INFINITY);
                x[3 * columns + at] = f32::NEG_INFINITY;
                let run = Execution::on(isa);
                let (mut y, mut log_y) = (vec![9.0; x.len()], vec![9.0; x.len()]);
                softmax::forward([5, columns], &x, &mut y, run).unwrap();
                softmax::log_forward([5, columns], &x, &mut log_y, run).unwrap();
                let (mut losses, mut gradient) = ([9.0; 5], vec![9.0; x.len()]);
                let targets = [at; 5];
                loss::softmax_cross_entropy([5, columns], &x, &targets, &mut losses, Some(&mut gradient), run).unwrap();
                let nan_rows = if columns == 1 { 4 } else { 3 };
                for out in [&y, &log_y, &gradient] {
                    assert!(out[..nan_rows * columns].iter().all(|y| y.is_nan()), "{columns} columns on {isa}");
                    assert!(out[4 * columns..].iter().all(|y| y.is_finite()));
                }
                assert!(losses[..nan_rows].iter().all(|loss| loss.is_nan()) && losses[4].is_finite());
                if columns > 1 {
                    assert_eq!((y[3 * columns + at], log_y[3 * columns + at]), (0.0, f32::NEG_INFINITY));
                    assert_eq!(losses[3], f32::INFINITY);
                    assert_eq!(gradient[3 * columns + at], -0.2);
                }
            }
        }
    }
}

#[test]
fn threads_batches_and_fused_instruction_sets_do_not_change_a_bit() {
    for [rows, columns] in [[700, 10], [300, 257], [5, 40_001]] {
        let shape = [rows, columns];
        let x = logits(rows, columns);
        let targets: Vec<usize> = (0..rows).map(|row| row * 31 % columns).collect();
        let all = |run: Execution| {
            let (mut y, mut log_y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
            let (mut losses, mut gradient) = (vec![0.0; rows], vec![0.0; x.len()]);
            softmax::forward(shape, &x, &mut y, run).unwrap();
            softmax::log_forward(shape, &x, &mut log_y, run).unwrap();
            softmax::backward(shape, &y, &log_y, &mut dx, run).unwrap();
            let mean = loss::softmax_cross_entropy(shape, &x, &targets, &mut losses, Some(&mut gradient), run).unwrap();
            let bits = [y, log_y, dx, losses, gradient, vec![mean]].concat();
            bits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let serial = all(Execution::default().parallelism(Parallelism::Serial));
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| all(Parallelism::Current.into())) == serial, "{threads} threads");
        }
        let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
        for pair in fused.windows(2) {
            assert!(all(Execution::on(pair[0])) == all(Execution::on(pair[1])));
        }
        let mut alone = vec![0.0; columns];
        softmax::forward([1, columns], &x[2 * columns..3 * columns], &mut alone, Parallelism::Serial).unwrap();
        let in_batch = &serial[2 * columns..3 * columns];
        assert!(alone.iter().zip(in_batch).all(|(a, &b)| a.to_bits() == b));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let run = Parallelism::Serial;
    let (x, mut y) = ([0.5; 6], [9.0; 6]);
    assert!(softmax::forward([2, 4], &x, &mut y, run).is_err());
    assert!(softmax::log_forward([usize::MAX, 2], &x, &mut y, run).is_err());
    assert!(softmax::backward([2, 3], &x, &x[1..], &mut y, run).is_err());
    assert!(softmax::log_backward([2, 3], &x[1..], &x, &mut y, run).is_err());
    softmax::forward([usize::MAX, 0], &[], &mut [], run).unwrap();
    softmax::forward([0, usize::MAX], &[], &mut [], run).unwrap();

    let mut losses = [9.0; 2];
    let mut refused = |shape, targets: &[usize]| {
        loss::softmax_cross_entropy(shape, &x, targets, &mut losses, Some(&mut y), run).unwrap_err()
    };
    assert_eq!(refused([2, 3], &[0, 3]).to_string(), "targets: expected classes below 3, given 3");
    assert_eq!(refused([2, 3], &[0]), Error::Length { argument: "targets", expected: 2, given: 1 });
    assert_eq!(refused([3, 2], &[0, 0, 0]), Error::Length { argument: "losses", expected: 3, given: 2 });
    assert!(matches!(refused([2, 4], &[0, 0]), Error::Length { argument: "logits", .. }));
    assert_eq!((losses, y), ([9.0; 2], [9.0; 6]));
    let empty = loss::softmax_cross_entropy([0, 3], &[], &[], &mut [], None, run).unwrap_err();
    assert_eq!(empty.to_string(), "rows: expected at least 1, for a mean, given 0");
    assert!(loss::softmax_cross_entropy([2, 0], &[], &[0, 0], &mut losses, None, run).is_err());
}
