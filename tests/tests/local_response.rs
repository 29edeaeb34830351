//! Local response normalisation, rows of unit length and adaptive pooling against their definitions.

use kernels::conv::{Layout, Shape};
use kernels::{Error, Execution, Isa, LocalResponse, Parallelism, normalize, pool, reference};

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// Finite differences in f64: step, and what they err by for functions whose third derivative is of order 10.
const STEP: f64 = 1.0 / 8192.0;
const DIFFERENCE: f64 = 1e-6;

fn uniform(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn random(len: usize, size: f32, seed: &mut u64) -> Vec<f32> {
    (0..len).map(|_| size * uniform(seed)).collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

/// The slope of `sum of dy * function(x)` in each element of `x`.
fn slopes(x: &[f64], dy: &[f64], function: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let dot = |x: &[f64]| function(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let mut x = x.to_vec();
    (0..x.len())
        .map(|at| {
            let value = x[at];
            x[at] = value + STEP;
            let above = dot(&x);
            x[at] = value - STEP;
            let below = dot(&x);
            x[at] = value;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

const NORMS: [LocalResponse; 5] = [
    LocalResponse { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 },
    LocalResponse { size: 1, alpha: 0.5, beta: 1.0, k: 0.125 },
    LocalResponse { size: 4, alpha: 2.0, beta: 0.5, k: 1.0 },
    LocalResponse { size: 64, alpha: 1.0, beta: 0.75, k: 1.0 },
    LocalResponse { size: 3, alpha: 0.0, beta: -1.0, k: 3.0 },
];

/// s of each element, in f64.
fn scales(norm: &LocalResponse, [batch, channels, pixels]: [usize; 3], x: &[f32]) -> Vec<f64> {
    let mut scales = vec![0.0; x.len()];
    for n in 0..batch {
        for c in 0..channels {
            for pixel in 0..pixels {
                let at = |c: usize| (n * channels + c) * pixels + pixel;
                let window = (0..channels).filter(|&o| o + norm.size / 2 >= c && o <= c + (norm.size - 1) / 2);
                let sum: f64 = window.map(|o| (x[at(o)] as f64).powi(2)).sum();
                scales[at(c)] = norm.k as f64 + norm.alpha as f64 / norm.size as f64 * sum;
            }
        }
    }
    scales
}

#[test]
fn local_response_normalisation_errs_by_no_more_than_its_bounds() {
    let mut seed = 1;
    for shape in [[1, 1, 1], [2, 3, 7], [1, 9, 16], [3, 6, 33], [2, 70, 5], [1, 5, 0], [0, 4, 4]] {
        let len = shape.iter().product();
        for norm in NORMS {
            let x = random(len, 4.0, &mut seed);
            let dy = random(len, 1.0, &mut seed);
            let scales = scales(&norm, shape, &x);
            let mut exact = vec![0.0; len];
            reference::local_response_forward(&norm, shape, &wide(&x), &mut exact).unwrap();
            let mut exact_dx = vec![0.0; len];
            reference::local_response_backward(&norm, shape, &wide(&x), &wide(&dy), &mut exact_dx).unwrap();
            let (size, beta) = (norm.size as f64, f64::from(norm.beta.abs()));
            let roundings = |at: usize| beta * (size + 3.0 + 4.0 * scales[at].ln().abs());
            for isa in Isa::available() {
                let (mut y, mut dx) = (vec![9.5; len + 2], vec![9.5; len + 2]);
                norm.forward(shape, &x, &mut y[1..=len], Execution::on(isa)).unwrap();
                norm.backward(shape, &x, &y[1..=len], &dy, &mut dx[1..=len], Execution::on(isa)).unwrap();
                assert_eq!([y[0], y[len + 1], dx[0], dx[len + 1]], [9.5; 4]);
                let [_, channels, pixels] = shape;
                for at in 0..len {
                    let bound = UNIT * exact[at].abs() * (roundings(at) + 6.0);
                    let error = (y[at + 1] as f64 - exact[at]).abs();
                    assert!(error <= bound, "{norm:?} {shape:?} y[{at}] on {isa}: {} for {}", y[at + 1], exact[at]);

                    let c = at / pixels % channels;
                    let t: f64 = (0..channels)
                        .filter(|&o| c + norm.size / 2 >= o && c <= o + (norm.size - 1) / 2)
                        .map(|o| at - c * pixels + o * pixels)
                        .map(|other| {
                            (dy[other] as f64 * exact[other] / scales[other]).abs()
                                * (1.0 + UNIT * (roundings(other) + 6.0))
                        })
                        .sum();
                    let own = (dy[at] as f64).abs() * scales[at].powf(-f64::from(norm.beta));
                    let factor = 2.0 * f64::from(norm.alpha) * beta / size * x[at].abs() as f64;
                    // The bound is for the y that was given, which errs itself.
                    let of_y = UNIT * (beta * (size + 3.0 + 4.0 * 8.0) + 6.0) * factor * t;
                    let bound = UNIT * (roundings(at) + 8.0) * own + UNIT * (2.0 * size + 12.0) * factor * t + of_y;
                    let error = (dx[at + 1] as f64 - exact_dx[at]).abs();
                    assert!(
                        error <= bound,
                        "{norm:?} {shape:?} dx[{at}] on {isa}: {} for {}",
                        dx[at + 1],
                        exact_dx[at]
                    );
                }
            }
        }
    }
}

#[test]
fn the_gradient_of_the_definition_is_its_slope() {
    let (mut seed, shape) = (2, [2, 5, 3]);
    for norm in NORMS {
        let (x, dy) = (wide(&random(30, 1.0, &mut seed)), wide(&random(30, 1.0, &mut seed)));
        let mut dx = vec![0.0; 30];
        reference::local_response_backward(&norm, shape, &x, &dy, &mut dx).unwrap();
        let slopes = slopes(&x, &dy, |x| {
            let mut y = vec![0.0; x.len()];
            reference::local_response_forward(&norm, shape, x, &mut y).unwrap();
            y
        });
        for (given, slope) in dx.iter().zip(&slopes) {
            assert!((given - slope).abs() <= 10.0 * DIFFERENCE, "{norm:?}: {given} for {slope}");
        }
    }
}

#[test]
fn rows_of_unit_length_err_by_no_more_than_their_bounds() {
    let mut seed = 3;
    for shape @ [rows, columns] in [[1, 1], [3, 2], [4, 17], [2, 64], [5, 333], [2, 0], [0, 3]] {
        let len = rows * columns;
        let (x, dy) = (random(len, 3.0, &mut seed), random(len, 1.0, &mut seed));
        let mut exact = vec![0.0; len];
        reference::normalize_forward(shape, &wide(&x), &mut exact).unwrap();
        for isa in Isa::available() {
            let (mut y, mut lengths, mut dx) = (vec![9.5; len], vec![9.5; rows], vec![9.5; len]);
            normalize::forward(shape, &x, &mut y, &mut lengths, Execution::on(isa)).unwrap();
            normalize::backward(shape, &y, &lengths, &dy, &mut dx, Execution::on(isa)).unwrap();
            let mut exact_dx = vec![0.0; len];
            reference::normalize_backward(shape, &wide(&y), &wide(&lengths), &wide(&dy), &mut exact_dx).unwrap();
            let terms = columns as f64 / 64.0 + 12.0;
            for at in 0..len {
                let bound = UNIT * exact[at].abs() * terms;
                assert!((y[at] as f64 - exact[at]).abs() <= bound, "{shape:?} y[{at}] on {isa}");
                let row = at / columns * columns..at / columns * columns + columns;
                let t: f64 = row.map(|i| (dy[i] as f64 * y[i] as f64).abs()).sum();
                let sizes = 3.0 * dy[at].abs() as f64 + terms * y[at].abs() as f64 * t;
                let bound = UNIT * sizes / lengths[at / columns] as f64;
                assert!((dx[at] as f64 - exact_dx[at]).abs() <= bound, "{shape:?} dx[{at}] on {isa}");
            }
        }
        let (x, dy) = (wide(&x), wide(&dy));
        let lengths: Vec<f64> =
            x.chunks(columns.max(1)).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
        if lengths.iter().all(|&length| length > 0.5) && lengths.len() == rows {
            let mut dx = vec![0.0; len];
            reference::normalize_backward(shape, &exact, &lengths, &dy, &mut dx).unwrap();
            let slopes = slopes(&x, &dy, |x| {
                let mut y = vec![0.0; x.len()];
                reference::normalize_forward(shape, x, &mut y).unwrap();
                y
            });
            assert!(dx.iter().zip(&slopes).all(|(given, slope)| (given - slope).abs() <= DIFFERENCE), "{shape:?}");
        }
    }
    // A row of zeros stays one, and a NaN reaches its row alone.
    let (mut y, mut lengths) = ([9.5; 6], [9.5; 3]);
    let x = [0.0, 0.0, f32::NAN, 1.0, 3.0, 4.0];
    normalize::forward([3, 2], &x, &mut y, &mut lengths, Parallelism::Serial).unwrap();
    assert_eq!((&y[..2], &y[4..]), (&[0.0; 2][..], &[0.6, 0.8][..]));
    assert!(y[2].is_nan() && y[3].is_nan());
}

#[test]
fn adaptive_pooling_errs_by_no_more_than_its_bounds() {
    let mut seed = 4;
    let sizes = [1, 2, 3, 5, 6, 7, 13, 32];
    for (case, output) in sizes.iter().flat_map(|&h| sizes.map(|w| [h, w])).enumerate() {
        let (shape, channels) = (Shape::new(case % 3, sizes[case * 5 % 8], sizes[case * 3 % 8]), 1 + case % 4);
        let (x_len, y_len) =
            (shape.batch * channels * shape.height * shape.width, shape.batch * channels * output[0] * output[1]);
        let (x, dy) = (random(x_len, 1.0, &mut seed), random(y_len, 1.0, &mut seed));
        let magnitudes = |v: &[f32]| v.iter().map(|v| v.abs() as f64).collect::<Vec<f64>>();
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let forward = |x: &[f64]| {
                let mut y = vec![0.0; y_len];
                reference::adaptive_average_pool2d_forward(output, layout, shape, channels, x, &mut y).unwrap();
                y
            };
            let backward = |dy: &[f64]| {
                let mut dx = vec![0.0; x_len];
                reference::adaptive_average_pool2d_backward(output, layout, shape, channels, dy, &mut dx).unwrap();
                dx
            };
            let (exact, size) = (forward(&wide(&x)), forward(&magnitudes(&x)));
            let (exact_dx, size_dx) = (backward(&wide(&dy)), backward(&magnitudes(&dy)));
            let (mut y, mut dx) = (vec![9.5; y_len], vec![9.5; x_len]);
            pool::adaptive_average_forward(output, layout, shape, channels, &x, &mut y, Parallelism::Current).unwrap();
            pool::adaptive_average_backward(output, layout, shape, channels, &dy, &mut dx, Parallelism::Current)
                .unwrap();
            // Windows have at most as many pixels as the image, pixels lie in at most as many windows as there are.
            let (taps, windows) = ((shape.height * shape.width) as f64, (output[0] * output[1]) as f64);
            let close = |a: f32, b: f64, bound: f64| (a as f64 - b).abs() <= UNIT * bound;
            for at in 0..y_len {
                assert!(close(y[at], exact[at], (taps + 1.0) * size[at]), "{output:?} of {shape:?}: y[{at}]");
            }
            for at in 0..x_len {
                assert!(
                    close(dx[at], exact_dx[at], (windows + 1.0) * size_dx[at]),
                    "{output:?} of {shape:?}: dx[{at}]"
                );
            }
        }
    }
}

#[test]
fn the_squared_error_errs_by_no_more_than_its_bound() {
    let mut seed = 5;
    for len in [1, 2, 15, 16, 17, 64, 65, 1000, 4001] {
        let (a, b) = (random(len, 2.0, &mut seed), random(len, 2.0, &mut seed));
        let mut exact_gradient = vec![0.0; len];
        let exact = reference::mean_squared_error(&wide(&a), &wide(&b), &mut exact_gradient).unwrap();
        for isa in Isa::available() {
            let mut gradient = vec![9.5; len];
            let mean = kernels::loss::mean_squared_error(&a, &b, Some(&mut gradient), Execution::on(isa)).unwrap();
            let alone = kernels::loss::mean_squared_error(&a, &b, None, Execution::on(isa)).unwrap();
            assert_eq!(mean.to_bits(), alone.to_bits());
            assert!((mean as f64 - exact).abs() <= UNIT * (len as f64 / 64.0 + 12.0) * exact, "{len} on {isa}");
            for (given, expected) in gradient.iter().zip(&exact_gradient) {
                assert!((*given as f64 - expected).abs() <= 4.0 * UNIT * expected.abs(), "{len} on {isa}");
            }
        }
    }
}

#[test]
fn the_bits_are_those_of_every_fused_instruction_set_and_any_number_of_threads() {
    let (mut seed, shape) = (6, [3, 40, 1000]);
    let norm = LocalResponse::default();
    let x = random(120_000, 2.0, &mut seed);
    let dy = random(120_000, 1.0, &mut seed);
    let run = |execution: Execution| {
        let (mut y, mut dx, mut unit, mut lengths) =
            (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; 120]);
        norm.forward(shape, &x, &mut y, execution).unwrap();
        norm.backward(shape, &x, &y, &dy, &mut dx, execution).unwrap();
        normalize::forward([120, 1000], &x, &mut unit, &mut lengths, execution).unwrap();
        let all = y.iter().chain(&dx).chain(&unit).chain(&lengths);
        all.map(|v| v.to_bits()).collect::<Vec<u32>>()
    };
    for isa in Isa::available() {
        let expected = run(Execution::on(isa));
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let given = pool.install(|| run(Execution::on(isa).parallelism(Parallelism::Current)));
            assert!(given == expected, "{isa}, {threads} threads");
        }
        if isa != Isa::Portable {
            assert!(expected == run(Execution::on(Isa::Avx2)), "{isa}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_leaves_outputs_alone() {
    let mut y = [9.5; 4];
    let norm = LocalResponse::default();
    let invalid = |norm: LocalResponse| norm.check().unwrap_err().to_string();
    assert!(invalid(LocalResponse { size: 0, ..norm }).starts_with("size: expected at least 1"));
    assert!(invalid(LocalResponse { alpha: -1.0, ..norm }).starts_with("alpha: "));
    assert!(invalid(LocalResponse { beta: f32::NAN, ..norm }).starts_with("beta: "));
    assert!(invalid(LocalResponse { k: 0.0, ..norm }).starts_with("k: "));
    let huge = LocalResponse { size: usize::MAX, ..norm };
    assert_eq!(huge.forward([1, 4, 1], &[0.0; 4], &mut [9.5; 4], Parallelism::Serial), Ok(()));
    let short = norm.forward([1, 2, 2], &[0.0; 3], &mut y, Parallelism::Serial);
    assert_eq!(short, Err(Error::Length { argument: "x", expected: 4, given: 3 }));
    assert!(norm.forward([usize::MAX, 2, 2], &[], &mut y, Parallelism::Serial).is_err());
    let mut lengths = [9.5; 1];
    assert!(normalize::forward([2, 2], &[0.0; 4], &mut y, &mut lengths, Parallelism::Serial).is_err());
    assert!(normalize::backward([2, 2], &[0.0; 4], &lengths, &[0.0; 4], &mut y, Parallelism::Serial).is_err());
    let mut pool = |output, height, x: &[f32]| {
        let shape = Shape::new(1, height, 2);
        pool::adaptive_average_forward(output, Layout::Nchw, shape, 1, x, &mut y, Parallelism::Serial)
    };
    assert!(matches!(pool([0, 2], 2, &[0.0; 4]), Err(Error::Invalid { argument: "output", .. })));
    assert!(matches!(pool([2, 2], 0, &[]), Err(Error::Invalid { argument: "height", .. })));
    assert!(matches!(pool([2, 2], 2, &[0.0; 3]), Err(Error::Length { argument: "x", .. })));
    assert!(matches!(pool([2, 2], usize::MAX, &[0.0; 3]), Err(Error::Overflow { .. })));
    assert!(kernels::loss::mean_squared_error(&[], &[], None, Parallelism::Serial).is_err());
    assert!(kernels::loss::mean_squared_error(&[1.0], &[], None, Parallelism::Serial).is_err());
    assert_eq!(y, [9.5; 4]);
}
