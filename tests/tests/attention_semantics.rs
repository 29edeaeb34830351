//! What users of attention have been surprised by elsewhere, one test for each decision (`docs/attention.md` lists
//! them).

use kernels::attention::{AttentionSpec, Causal, Shape};
use kernels::{Isa, Parallelism};
use tests::attention::{Case, Memory, judge};
use tests::guard::Side;

/// Output, log-sum-exp and the gradients of queries, keys, values, bias and sinks.
fn run(case: &Case, isa: Isa) -> (Vec<f32>, Vec<f32>, [Vec<f32>; 5]) {
    let mut memory = Memory::default();
    let (out, lse) = case.forward(isa, Parallelism::Serial, &mut memory, Side::Right);
    let gradients = case.backward(isa, Parallelism::Serial, &mut memory, Side::Right, (&out, &lse));
    (out, lse, gradients)
}

/// Forward and backward within the bounds of the definition.
fn holds(case: &Case, context: &str) {
    let (expected_out, expected_lse) = case.reference();
    let expected = case.reference_gradients();
    let bounds = case.bounds(&expected_out, &expected_lse);
    for isa in Isa::available() {
        let (out, lse, gradients) = run(case, isa);
        let check = |name: &str, given: &[f32], expected: &[f64], bounds: &[f64]| {
            judge(name, given, expected, bounds).unwrap_or_else(|error| panic!("{context} on {isa}: {error}"));
        };
        check("out", &out, &expected_out, &bounds.out);
        check("lse", &lse, &expected_lse, &bounds.lse);
        for (which, name) in ["dq", "dk", "dv", "dbias", "dsinks"].into_iter().enumerate() {
            check(name, &gradients[which], &expected[which], &bounds.gradients[which]);
        }
    }
}

/// Few rows take another path than many.
const LENGTHS: [usize; 3] = [1, 5, 70];

/// With queries of 0 every output is the mean of the values that its row sees, here of powers of two.
fn seen(case: &mut Case, isa: Isa) -> Vec<Vec<usize>> {
    let Shape { q_len, kv_len, .. } = case.shape;
    assert!(kv_len <= 16 && case.spec.heads == 1 && case.spec.v_dim == 1);
    case.q.fill(0.0);
    for (j, v) in case.v.iter_mut().enumerate() {
        *v = (1 << j) as f32;
    }
    let (out, ..) = run(case, isa);
    (0..q_len)
        .map(|row| {
            let of = |keys: u32| keys as f32 / keys.count_ones().max(1) as f32;
            let keys = (0..1u32 << kv_len).find(|&keys| (of(keys) - out[row]).abs() < 1e-3);
            let keys = keys.unwrap_or_else(|| panic!("row {row} gives {} on {isa}", out[row]));
            (0..kv_len).filter(|&j| keys >> j & 1 == 1).collect()
        })
        .collect()
}

#[test]
fn the_corner_of_causal_is_what_the_spec_says() {
    for isa in Isa::available() {
        let rows = |causal, q_len, kv_len| {
            let spec = AttentionSpec::new(1, 2).v_dim(1).causal(causal);
            seen(&mut Case::plain(spec, Shape::new(1, q_len, kv_len), 1), isa)
        };
        assert_eq!(rows(Causal::TopLeft, 2, 4), [vec![0], vec![0, 1]]);
        assert_eq!(rows(Causal::BottomRight, 2, 4), [vec![0, 1, 2], vec![0, 1, 2, 3]]);
        assert_eq!(rows(Causal::TopLeft, 3, 2), [vec![0], vec![0, 1], vec![0, 1]]);
        assert_eq!(rows(Causal::BottomRight, 3, 2), [vec![], vec![0], vec![0, 1]]);
        assert_eq!(
            rows(Causal::BottomRight, 1, 4),
            [vec![0, 1, 2, 3]],
            "a query that continues a cache sees all of it"
        );
        assert_eq!(rows(Causal::None, 1, 2), [vec![0, 1]]);
    }
}

#[test]
fn windows_count_from_the_query_that_the_corner_places() {
    for isa in Isa::available() {
        let rows = |causal, left, right| {
            let spec = AttentionSpec::new(1, 2).v_dim(1).causal(causal).window(left, right);
            seen(&mut Case::plain(spec, Shape::new(1, 3, 5), 1), isa)
        };
        assert_eq!(rows(Causal::None, Some(1), Some(1)), [vec![0, 1], vec![0, 1, 2], vec![1, 2, 3]]);
        assert_eq!(rows(Causal::TopLeft, Some(1), None), [vec![0], vec![0, 1], vec![1, 2]]);
        assert_eq!(rows(Causal::BottomRight, Some(1), None), [vec![1, 2], vec![2, 3], vec![3, 4]]);
    }
}

/// A tile that ends one head and starts the next sees two stretches of keys, and none of the blocks between them.
#[test]
fn windows_of_neighbouring_heads_may_leave_blocks_between_them() {
    let spec = AttentionSpec::new(2, 16).kv_heads(1).causal(Causal::TopLeft).window(Some(20), None);
    holds(&Case::plain(spec, Shape::new(1, 1000, 1000), 9), "two heads of a group");
}

#[test]
fn true_keeps_a_pair_and_causal_hides_beside_the_mask() {
    for isa in Isa::available() {
        let mut case = Case::plain(AttentionSpec::new(1, 2).v_dim(1), Shape::new(1, 2, 4), 1);
        case.keep = Some((vec![true, false, true, true], [false, false, false, true]));
        assert_eq!(seen(&mut case, isa), [vec![0, 2, 3], vec![0, 2, 3]]);
        case.spec = case.spec.causal(Causal::BottomRight);
        assert_eq!(seen(&mut case, isa), [vec![0, 2], vec![0, 2, 3]]);
    }
}

#[test]
fn bias_and_slopes_are_added_after_softcap_so_that_minus_infinity_hides() {
    for q_len in LENGTHS {
        let mut case = Case::plain(AttentionSpec::new(1, 8).softcap(0.5), Shape::new(1, q_len, 100), 2);
        let hidden = |j: usize| j % 3 == 1;
        case.bias = Some((
            (0..100).map(|j| if hidden(j) { f32::NEG_INFINITY } else { 4.0 }).collect(),
            [false, false, false, true],
        ));
        case.alibi = Some(vec![0.25]);
        holds(&case, &format!("{q_len} queries"));
        // Were the mask capped, hidden keys would weigh exp(-0.5) and show.
        let mut loud = case.clone();
        for j in (0..100).filter(|&j| hidden(j)) {
            loud.v[j * 8..][..8].fill(1e30);
        }
        for isa in Isa::available() {
            let ((out, ..), (other, ..)) = (run(&case, isa), run(&loud, isa));
            assert_eq!(out, other);
            assert!(out.iter().all(|x| x.abs() <= 1.0));
        }
    }
}

/// Every way to hide all keys from a row.
fn without_keys(q_len: usize) -> Vec<(&'static str, Case)> {
    let spec = AttentionSpec::new(2, 8).kv_heads(1);
    let plain = |spec| Case::plain(spec, Shape::new(1, q_len, 70), 3);
    let mut length = plain(spec);
    length.kv_lens = Some(vec![0]);
    let mut keep = plain(spec);
    keep.keep = Some((vec![false; 70], [false, false, false, true]));
    let mut bias = plain(spec);
    bias.bias = Some((vec![f32::NEG_INFINITY; 70], [false, false, false, true]));
    let mut corner = Case::plain(spec.causal(Causal::BottomRight), Shape::new(1, q_len + 70, 70), 3);
    corner.kv_lens = Some(vec![0]);
    let none = Case::plain(spec, Shape::new(1, q_len, 0), 3);
    let window = plain(spec.causal(Causal::TopLeft).window(None, Some(0)));
    let mut window = window;
    window.kv_lens = Some(vec![0]);
    vec![
        ("a length of 0", length),
        ("a keep mask", keep),
        ("a bias of -infinity", bias),
        ("causal", corner),
        ("no keys", none),
        ("a window", window),
    ]
}

#[test]
fn a_row_without_keys_gives_zeros_minus_infinity_and_no_gradients() {
    for q_len in LENGTHS {
        for (name, case) in without_keys(q_len) {
            for isa in Isa::available() {
                let (out, lse, gradients) = run(&case, isa);
                let context = format!("{name}, {q_len} queries on {isa}");
                assert!(out.iter().all(|x| x.to_bits() == 0), "{context}");
                assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY), "{context}");
                for gradient in &gradients[..3] {
                    assert!(gradient.iter().all(|&x| x == 0.0), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_row_with_a_sink_but_no_keys_gives_zeros_the_sink_and_no_gradients() {
    for q_len in LENGTHS {
        for (name, mut case) in without_keys(q_len) {
            let sinks = vec![0.75, -3.5];
            case.sinks = Some(sinks.clone());
            for isa in Isa::available() {
                let (out, lse, gradients) = run(&case, isa);
                let context = format!("{name}, {q_len} queries on {isa}");
                assert!(out.iter().all(|x| x.to_bits() == 0), "{context}");
                let rows = case.shape.q_len;
                assert!(lse.iter().enumerate().all(|(row, &lse)| lse == sinks[row / rows]), "{context}");
                assert!(gradients.iter().flatten().all(|&x| x == 0.0), "{context}");
            }
        }
    }
}

#[test]
fn a_nan_is_not_taken_for_a_row_without_keys() {
    for q_len in LENGTHS {
        let mut case = Case::plain(AttentionSpec::new(1, 8), Shape::new(1, q_len, 70), 4);
        case.q[3] = f32::NAN;
        for isa in Isa::available() {
            let (out, lse, gradients) = run(&case, isa);
            assert!(out[..8].iter().all(|x| x.is_nan()) && lse[0].is_nan(), "{q_len} queries on {isa}");
            assert!(out[8..].iter().all(|x| x.is_finite()), "{q_len} queries on {isa}");
            assert!(gradients[0][..8].iter().all(|x| x.is_nan()), "{q_len} queries on {isa}");
            assert!(gradients[0][8..].iter().all(|x| x.is_finite()), "{q_len} queries on {isa}");
        }
    }
}

#[test]
fn a_row_masked_with_the_least_float_is_a_mean_and_not_a_row_without_keys() {
    for q_len in LENGTHS {
        for least in [f32::MIN, -1e30, -1e9] {
            let mut case = Case::plain(AttentionSpec::new(1, 8), Shape::new(1, q_len, 64), 5);
            case.bias = Some((vec![least; 64], [false, false, false, true]));
            // Integers, so that the mean of 64 is exact.
            case.v.iter_mut().for_each(|v| *v = (*v * 16.0).round());
            for isa in Isa::available() {
                let context = format!("{least}, {q_len} queries on {isa}");
                let (out, lse, gradients) = run(&case, isa);
                if least < -1e8 {
                    for c in 0..8 {
                        let sum: f32 = (0..64).map(|j| case.v[j * 8 + c]).sum();
                        assert!((0..q_len).all(|row| out[row * 8 + c] == sum / 64.0), "{context}");
                    }
                }
                assert!(lse.iter().all(|&x| x.is_finite() && x <= least / 2.0), "{context}");
                for (which, gradient) in gradients[..3].iter().enumerate() {
                    assert!(gradient.iter().all(|x| x.is_finite()), "{context}, gradient {which}");
                }
                // Every key weighs 1/64.
                for c in 0..8 {
                    let sum: f64 = (0..q_len).map(|row| f64::from(case.dout[row * 8 + c])).sum();
                    for j in 0..64 {
                        let error = (f64::from(gradients[2][j * 8 + c]) - sum / 64.0).abs();
                        assert!(least > -1e20 || error < 1e-5, "{context}: dv of key {j}");
                    }
                }
            }
            // Among other keys it hides.
            let mut case = Case::plain(AttentionSpec::new(1, 8), Shape::new(1, q_len, 64), 5);
            let bias = (0..64).map(|j| if j % 2 == 0 { least } else { 0.0 }).collect();
            case.bias = Some((bias, [false, false, false, true]));
            holds(&case, &format!("{least} beside 0, {q_len} queries"));
        }
    }
}

#[test]
fn tails_of_tiles_do_not_show_in_gradients_where_all_logits_are_far_below_zero() {
    for (q_len, kv_len) in [(64, 64), (192, 192), (65, 192), (70, 127), (3, 129), (1, 70)] {
        let mut case = Case::plain(AttentionSpec::new(1, 8).scale(1.0), Shape::new(1, q_len, kv_len), 6);
        // Scores of about -128: a padded key of score 0 would weigh exp(128), which is infinite.
        case.q.iter_mut().for_each(|q| *q = -4.0 + *q * 0.01);
        case.k.iter_mut().for_each(|k| *k = 4.0 + *k * 0.01);
        for isa in Isa::available() {
            let (_, lse, gradients) = run(&case, isa);
            assert!(lse.iter().all(|&lse| lse < -100.0));
            assert!(gradients[..3].iter().flatten().all(|x| x.is_finite()), "{q_len} x {kv_len} on {isa}");
        }
        holds(&case, &format!("{q_len} x {kv_len}"));
    }
}

#[test]
fn lengths_and_head_dimensions_of_known_networks_hold() {
    for (len, dim) in [(17, 16), (49, 32), (50, 64), (77, 64), (197, 64), (257, 88), (77, 40), (64, 80), (196, 80)] {
        for causal in [Causal::None, Causal::TopLeft] {
            let case = Case::plain(AttentionSpec::new(2, dim).causal(causal), Shape::new(1, len, len), 7);
            holds(&case, &format!("{len} of {dim}"));
        }
        // Queries of one length, keys of another: text and image.
        holds(&Case::plain(AttentionSpec::new(1, dim), Shape::new(1, len, 77), 8), &format!("{len} x 77 of {dim}"));
    }
}
