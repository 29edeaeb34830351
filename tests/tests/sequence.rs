//! Rotary embedding, embedding look-up and dropout against their definitions.

use kernels::rotary::{Pairing, Rotary, Shape};
use kernels::{Dropout, Error, Execution, Isa, Parallelism, embedding, reference};
use tests::data::numbers;
use tests::oracle::UNIT;

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

/// Whether a call gives the same bits on any number of threads, and on instruction sets that fuse.
fn is_the_same_everywhere(call: &(dyn Fn(Execution) -> Vec<f32> + Sync)) -> bool {
    let bits = |execution: Execution| call(execution).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let serial = bits(Parallelism::Serial.into());
    let on_threads = [1, 2, 3].into_iter().all(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(Parallelism::Current.into())) == serial
    });
    let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
    on_threads && fused.windows(2).all(|pair| bits(Execution::on(pair[0])) == bits(Execution::on(pair[1])))
}

#[test]
fn rotary_errs_by_no_more_than_promised_and_backward_turns_back() {
    for pairing in [Pairing::Interleaved, Pairing::Half] {
        for (dim, head_dim) in [(0, 3), (2, 2), (4, 7), (16, 16), (30, 30), (64, 64), (80, 96), (128, 128)] {
            for (outer, length, inner, offset) in [(1, 1, 1, 0), (2, 5, 1, 3), (3, 7, 4, 90), (1, 300, 2, 0)] {
                let shape = Shape { outer, length, inner, head_dim };
                let x = numbers(outer * length * inner * head_dim, 3);
                let rotary = Rotary::new(pairing, dim, 10000.0, offset + length).unwrap();
                let definition = |sign: f64| {
                    let mut y = vec![0.0; x.len()];
                    reference::rotary(pairing, dim, 10000.0, shape, offset, sign, &wide(&x), &mut y).unwrap();
                    y
                };
                let (forward, backward) = (definition(1.0), definition(-1.0));
                for isa in Isa::available() {
                    let run = Execution::on(isa);
                    let (mut y, mut dx) = (vec![9.0; x.len() + 2], vec![9.0; x.len()]);
                    rotary.forward(shape, offset, &x, &mut y[1..=x.len()], run).unwrap();
                    rotary.backward(shape, offset, &x, &mut dx, run).unwrap();
                    assert_eq!([y[0], y[x.len() + 1]], [9.0; 2]);
                    for i in 0..x.len() {
                        let at = i % head_dim;
                        let partner = match pairing {
                            _ if at >= dim => i,
                            Pairing::Interleaved => i - at + (at ^ 1),
                            Pairing::Half => i - at + (at + dim / 2) % dim,
                        };
                        let bound = if at >= dim { 0.0 } else { 4.0 * UNIT * f64::from(x[i].abs() + x[partner].abs()) };
                        let errors = [f64::from(y[i + 1]) - forward[i], f64::from(dx[i]) - backward[i]];
                        assert!(errors.iter().all(|e| e.abs() <= bound), "{pairing:?} {shape:?} {dim} [{i}] on {isa}");
                    }
                    let (mut in_place, mut gradient) = (x.clone(), x.clone());
                    rotary.forward_in_place(shape, offset, &mut in_place, run).unwrap();
                    rotary.backward_in_place(shape, offset, &mut gradient, run).unwrap();
                    assert_eq!((&in_place[..], gradient), (&y[1..=x.len()], dx));
                }
            }
        }
    }
}

#[test]
fn rotary_gives_the_same_bits_everywhere() {
    let shape = Shape { outer: 3, length: 401, inner: 3, head_dim: 80 };
    let x = numbers(3 * 401 * 3 * 80, 5);
    for pairing in [Pairing::Interleaved, Pairing::Half] {
        let rotary = Rotary::new(pairing, 64, 10000.0, 401).unwrap();
        assert!(is_the_same_everywhere(&|execution| {
            let mut y = vec![0.0; x.len()];
            rotary.forward(shape, 0, &x, &mut y, execution).unwrap();
            y
        }));
    }
}

#[test]
fn rotary_turns_many_sequences_as_it_turns_each() {
    // Longer than the positions whose angles stay near, so that sequences are met in several rounds.
    let (outer, length, head_dim) = (3, 2500, 64);
    let x = numbers(outer * length * head_dim, 5);
    for pairing in [Pairing::Interleaved, Pairing::Half] {
        let rotary = Rotary::new(pairing, 64, 10000.0, length).unwrap();
        let mut all = vec![f32::NAN; x.len()];
        rotary.forward(Shape { outer, length, inner: 1, head_dim }, 0, &x, &mut all, Parallelism::Current).unwrap();
        let mut each = vec![f32::NAN; x.len()];
        let one = Shape { outer: 1, length, inner: 1, head_dim };
        for (x, y) in x.chunks(length * head_dim).zip(each.chunks_mut(length * head_dim)) {
            rotary.forward(one, 0, x, y, Parallelism::Serial).unwrap();
        }
        assert!(all == each, "{pairing:?}");
    }
}

#[test]
fn rotary_refuses_what_does_not_fit() {
    assert_eq!(
        Rotary::new(Pairing::Half, 3, 10000.0, 4).unwrap_err().to_string(),
        "dim: expected an even number, given 3"
    );
    assert!(Rotary::new(Pairing::Half, 2, 0.0, 4).is_err() && Rotary::new(Pairing::Half, 2, f64::NAN, 4).is_err());
    assert!(Rotary::new(Pairing::Interleaved, usize::MAX - 1, 10000.0, 4).is_err());
    let rotary = Rotary::new(Pairing::Half, 4, 10000.0, 8).unwrap();
    let (x, mut y) = ([1.0; 32], [9.0; 32]);
    let shape = Shape { outer: 1, length: 8, inner: 1, head_dim: 4 };
    let mut refused =
        |shape, offset| rotary.forward(shape, offset, &x, &mut y, Parallelism::Serial).unwrap_err().to_string();
    assert_eq!(refused(shape, 1), "offset: expected 8 positions below 8 from it on, given 1");
    assert!(refused(shape, usize::MAX).starts_with("offset"));
    assert_eq!(refused(Shape { head_dim: 2, length: 16, ..shape }, 0), "head_dim: expected at least 4, given 2");
    assert!(refused(Shape { outer: usize::MAX, ..shape }, 0).starts_with("shape"));
    assert!(refused(Shape { outer: 2, ..shape }, 0).starts_with("x: expected 64"));
    assert_eq!(y, [9.0; 32]);
}

#[test]
fn embedding_copies_rows_and_adds_their_gradients_in_order() {
    for (rows, columns, count) in [(1, 1, 3), (5, 3, 20), (17, 33, 100), (1000, 64, 3000), (3, 5000, 40)] {
        let table = numbers(rows * columns, 1);
        let dy = numbers(count * columns, 2);
        // Some rows often, some never.
        let indices: Vec<usize> = (0..count).map(|i| (i * i + 3 * i) % rows).collect();
        let (mut expected_y, mut expected_dtable) = (vec![0.0; count * columns], table.clone());
        reference::embedding_forward([rows, columns], &table, &indices, &mut expected_y).unwrap();
        reference::embedding_backward([rows, columns], &indices, &dy, &mut expected_dtable).unwrap();
        let both = |execution: Execution| {
            let (mut y, mut dtable) = (vec![9.0; count * columns], table.clone());
            embedding::forward([rows, columns], &table, &indices, &mut y, execution).unwrap();
            embedding::backward([rows, columns], &indices, &dy, &mut dtable, execution).unwrap();
            [y, dtable].concat()
        };
        // The order of the additions is that of the definition.
        for isa in Isa::available() {
            assert_eq!(both(Execution::on(isa)), [&expected_y[..], &expected_dtable].concat());
        }
        assert!(is_the_same_everywhere(&both));
    }
}

#[test]
fn an_index_that_is_no_row_is_an_error() {
    let (table, mut y) = ([1.0; 6], [9.0; 4]);
    let run = Parallelism::Serial;
    let error = embedding::forward([3, 2], &table, &[0, 3], &mut y, run).unwrap_err();
    assert_eq!(error.to_string(), "indices: expected rows below 3, given 3");
    assert_eq!(y, [9.0; 4]);
    let mut dtable = [9.0; 6];
    assert!(embedding::backward([3, 2], &[usize::MAX, 0], &y, &mut dtable, run).is_err());
    let error = embedding::backward([3, 2], &[1], &y, &mut dtable, run).unwrap_err();
    assert_eq!(error, Error::Length { argument: "dy", expected: 2, given: 4 });
    assert_eq!(dtable, [9.0; 6]);
    embedding::forward([usize::MAX, 0], &[], &[5, 6], &mut [], run).unwrap();
}

#[test]
fn dropout_keeps_what_its_definition_keeps() {
    for len in [0, 1, 15, 16, 17, 63, 64, 65, 200, 16_384, 40_001] {
        let mut x = numbers(len, 4);
        if len > 20 {
            x[3..9].fill(f32::NAN);
        }
        for probability in [0.0, 0.1, 0.5, 0.999, 1.0] {
            let dropout = Dropout { probability, seed: 0x1234_5678_9abc_def0, stream: 7 };
            let mut expected = vec![0.0f32; len];
            reference::dropout(&dropout, &x, &mut expected).unwrap();
            for isa in Isa::available() {
                let run = Execution::on(isa);
                let (mut y, mut dx) = (vec![9.0; len + 2], vec![9.0; len]);
                dropout.forward(&x, &mut y[1..=len], run).unwrap();
                dropout.backward(&x, &mut dx, run).unwrap();
                assert_eq!([y[0], y[len + 1]], [9.0; 2]);
                let mut in_place = x.clone();
                dropout.forward_in_place(&mut in_place, run).unwrap();
                for got in [&y[1..=len], &dx, &in_place] {
                    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                    assert!(got.iter().zip(&expected).all(same), "{len} elements, probability {probability}, {isa}");
                }
            }
        }
    }
}

#[test]
fn dropout_drops_as_many_as_it_should_and_keeps_the_mean() {
    let x = vec![1.0; 1 << 18];
    for (seed, probability) in [0.1f32, 0.3, 0.9].into_iter().enumerate() {
        let dropout = Dropout { probability, seed: seed as u64, stream: 0 };
        let mut y = vec![0.0; x.len()];
        dropout.forward(&x, &mut y, Parallelism::Serial).unwrap();
        let (n, p) = (x.len() as f64, f64::from(probability));
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64;
        assert!((dropped - n * p).abs() < 5.0 * (n * p * (1.0 - p)).sqrt(), "{dropped} of {n} at {p}");
        let other = Dropout { stream: 1, ..dropout };
        let mut z = vec![0.0; x.len()];
        other.forward(&x, &mut z, Parallelism::Serial).unwrap();
        let both = y.iter().zip(&z).filter(|(y, z)| **y == 0.0 && **z == 0.0).count() as f64;
        assert!((both - n * p * p).abs() < 6.0 * (n * p * p).sqrt(), "streams depend on each other");
    }
}

#[test]
fn dropout_gives_the_same_bits_everywhere_and_refuses_what_is_no_probability() {
    let x = numbers(300_007, 8);
    let dropout = Dropout { probability: 0.25, seed: 1, stream: 2 };
    assert!(is_the_same_everywhere(&|execution| {
        let mut y = vec![0.0; x.len()];
        dropout.forward(&x, &mut y, execution).unwrap();
        y
    }));
    let mut y = [9.0; 2];
    for probability in [-0.1, 1.1, f32::NAN] {
        let error = Dropout { probability, ..dropout }.forward(&x[..2], &mut y, Parallelism::Serial).unwrap_err();
        assert_eq!(error.to_string(), format!("probability: expected 0 to 1, given {probability}"));
    }
    assert!(dropout.forward(&x[..3], &mut y, Parallelism::Serial).is_err());
    assert_eq!(y, [9.0; 2]);
}
