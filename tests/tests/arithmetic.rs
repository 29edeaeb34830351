//! Products, minima and maxima of tensors, forward and backward, against their definitions.

use kernels::extremum::{self, Extremum};
use kernels::{Error, Execution, Isa, Parallelism, product, reference, sum};
use tests::oracle::UNIT;

/// Lengths around every vector width, and beyond a task.
const LENGTHS: [usize; 9] = [0, 1, 3, 8, 15, 17, 33, 4096, 12_301];

/// Some numbers of either sign, many of them equal from tensor to tensor, with special ones among them.
fn numbers(seed: usize, len: usize, special: bool) -> Vec<f32> {
    const SPECIAL: [f32; 6] = [f32::NAN, 0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    (0..len)
        .map(|i| {
            let draw = (i + 1).wrapping_mul(2_654_435_761 + 97 * seed) >> 7;
            match draw % 9 {
                8 if special => SPECIAL[draw / 9 % SPECIAL.len()],
                7 => -1.5,
                _ => (draw % 1001) as f32 / 250.0 - 2.0,
            }
        })
        .collect()
}

/// The same bits, or both NaN: which NaN comes out of two is up to the instruction set.
fn assert_same(given: &[f32], expected: &[f32], what: &str) {
    assert_eq!(given.len(), expected.len(), "{what}");
    for (i, (given, expected)) in given.iter().zip(expected).enumerate() {
        let same = given.to_bits() == expected.to_bits() || given.is_nan() && expected.is_nan();
        assert!(same, "{what}: element {i} is {given} instead of {expected}");
    }
}

/// Runs `test(execution, what)` on each instruction set, alone and on three threads.
fn everywhere(test: impl Fn(Execution, &str) + Sync) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for isa in Isa::available() {
        test(Execution::on(isa), &format!("on {isa}"));
        pool.install(|| {
            test(Execution::on(isa).parallelism(Parallelism::Current), &format!("on {isa}, 3 threads"));
        });
    }
}

/// Each operation is rounded as in the definition and comes in the same order, so the bits are the same.
#[test]
fn results_and_gradients_have_the_bits_of_their_definitions() {
    for len in LENGTHS {
        for special in [false, true] {
            let all = [1, 2, 3, 4].map(|seed| numbers(seed, len, special));
            let dy = numbers(9, len, special);
            for count in 0..=all.len() {
                let inputs: Vec<&[f32]> = all[..count].iter().map(Vec::as_slice).collect();
                everywhere(|execution, place| {
                    let what = |name: &str| format!("{name} of {count} tensors of {len} {place}");
                    let (mut y, mut dx) = (vec![9.0; len], vec![9.0; len]);
                    let (mut expected, mut expected_dx) = (vec![9.0; len], vec![9.0; len]);
                    product::forward(&inputs, &mut y, execution).unwrap();
                    reference::product_forward(&inputs, &mut expected).unwrap();
                    assert_same(&y, &expected, &what("product"));
                    sum::forward(&inputs, &mut y, execution).unwrap();
                    reference::sum_forward(&inputs, &mut expected).unwrap();
                    assert_same(&y, &expected, &what("sum"));
                    for which in 0..count {
                        product::backward(&inputs, which, &dy, &mut dx, execution).unwrap();
                        reference::product_backward(&inputs, which, &dy, &mut expected_dx).unwrap();
                        assert_same(&dx, &expected_dx, &what(&format!("gradient of product's factor {which}")));
                    }
                    for kind in Extremum::ALL {
                        extremum::forward(kind, &inputs, &mut y, execution).unwrap();
                        reference::extremum_forward(kind, &inputs, &mut expected).unwrap();
                        assert_same(&y, &expected, &what(&format!("{kind:?}")));
                        for (which, x) in inputs.iter().enumerate() {
                            extremum::backward(x, &y, &dy, &mut dx, execution).unwrap();
                            reference::extremum_backward(x, &expected, &dy, &mut expected_dx).unwrap();
                            assert_same(&dx, &expected_dx, &what(&format!("{kind:?}'s gradient of input {which}")));
                        }
                    }
                });
            }
        }
    }
}

#[test]
fn a_product_errs_by_one_rounding_for_each_factor_but_the_first() {
    let all = [1, 2, 3, 4, 5].map(|seed| numbers(seed, 1000, false));
    let factors: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    let wide: Vec<Vec<f64>> = all.iter().map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
    let wide: Vec<&[f64]> = wide.iter().map(Vec::as_slice).collect();
    let mut exact = vec![0.0; 1000];
    reference::product_forward(&wide, &mut exact).unwrap();
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; 1000];
        product::forward(&factors, &mut y, Execution::on(isa)).unwrap();
        for i in 0..1000 {
            // gamma(4), and as many roundings of f64.
            let bound = 4.0 * UNIT / (1.0 - 4.0 * UNIT) * exact[i].abs() * (1.0 + 1e-8);
            assert!((f64::from(y[i]) - exact[i]).abs() <= bound, "{i} on {isa}: {} instead of {}", y[i], exact[i]);
        }
    }
}

#[test]
fn a_nan_is_passed_on_whichever_input_has_it_and_its_gradient_reaches_nobody() {
    let (nan, one, two) = ([f32::NAN; 17], [1.0; 17], [2.0; 17]);
    for isa in Isa::available() {
        for kind in Extremum::ALL {
            for inputs in [[&nan, &one, &two], [&one, &nan, &two], [&one, &two, &nan]] {
                let (mut y, mut dx) = ([9.0; 17], [9.0; 17]);
                extremum::forward(kind, &inputs.map(|x| x.as_slice()), &mut y, Execution::on(isa)).unwrap();
                assert!(y.iter().all(|y| y.is_nan()), "{kind:?} on {isa}");
                for x in inputs {
                    extremum::backward(x, &y, &two, &mut dx, Execution::on(isa)).unwrap();
                    assert_eq!(dx, [0.0; 17], "{kind:?} on {isa}");
                }
            }
        }
    }
}

#[test]
fn every_input_that_equals_the_result_gets_the_gradient() {
    for isa in Isa::available() {
        let (a, b, dy) = ([1.0, 5.0, -0.0], [1.0, 4.0, 0.0], [10.0, 20.0, 30.0]);
        let (mut y, mut da, mut db) = ([9.0; 3], [9.0; 3], [9.0; 3]);
        extremum::forward(Extremum::Minimum, &[&a, &b], &mut y, Execution::on(isa)).unwrap();
        extremum::backward(&a, &y, &dy, &mut da, Execution::on(isa)).unwrap();
        extremum::backward(&b, &y, &dy, &mut db, Execution::on(isa)).unwrap();
        assert_eq!((y, da, db), ([1.0, 4.0, 0.0], [10.0, 0.0, 30.0], [10.0, 20.0, 30.0]), "{isa}");
        assert!(y[2].is_sign_negative(), "the first of equal zeros on {isa}");
    }
}

#[test]
fn what_nothing_is_joined_into_is_what_changes_no_other() {
    let (mut one, mut least, mut largest) = ([9.0; 5], [9.0; 5], [9.0; 5]);
    product::forward(&[], &mut one, Parallelism::Serial).unwrap();
    extremum::forward(Extremum::Minimum, &[], &mut least, Parallelism::Serial).unwrap();
    extremum::forward(Extremum::Maximum, &[], &mut largest, Parallelism::Serial).unwrap();
    assert_eq!((one, least, largest), ([1.0; 5], [f32::INFINITY; 5], [f32::NEG_INFINITY; 5]));
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let run = Parallelism::Serial;
    let (short, long, mut y) = ([1.0; 2], [1.0; 3], [7.0; 2]);
    let length = |argument, expected, given| Error::Length { argument, expected, given };
    assert_eq!(product::forward(&[&short, &long], &mut y, run), Err(length("factors", 2, 3)));
    assert_eq!(product::backward(&[&short, &long], 0, &short, &mut y, run), Err(length("factors", 2, 3)));
    assert_eq!(product::backward(&[&short], 0, &long, &mut y, run), Err(length("dy", 2, 3)));
    let error = product::backward(&[&short], 1, &short, &mut y, run).unwrap_err();
    assert_eq!(error.to_string(), "which: expected less than the 1 factors, given 1");
    assert_eq!(extremum::forward(Extremum::Maximum, &[&long], &mut y, run), Err(length("inputs", 2, 3)));
    assert_eq!(extremum::backward(&long, &short, &short, &mut y, run), Err(length("x", 2, 3)));
    assert_eq!(extremum::backward(&short, &long, &short, &mut y, run), Err(length("y", 2, 3)));
    assert_eq!(extremum::backward(&short, &short, &long, &mut y, run), Err(length("dy", 2, 3)));
    assert_eq!(y, [7.0; 2]);
}
