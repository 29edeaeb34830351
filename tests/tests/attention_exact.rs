//! Attentions whose results have no rounding: equal logits give means, and a leading one its value, to the last bit,
//! forward and backward, with every mask.

use kernels::Isa;
use kernels::attention::{AttentionSpec, Causal, Shape};
use tests::attention::{Case, Memory};

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;

/// Grouped heads on either path, one and several blocks of keys, dimensions of every length of a block.
const SIZES: [(usize, usize, usize, usize); 7] = [
    (1, 1, 64, 16),
    (3, 2, 16, 24),
    (40, 2, 256, 64),
    (64, 1, 512, 16),
    (3, 3, 2048, 40),
    (20, 2, 128, 256),
    (33, 2, 70, 512),
];

/// A small odd integer: never 0, and different for neighbours.
fn odd(at: usize) -> f32 {
    ((at * 31 % 61) as f32) * 2.0 - 61.0
}

/// Every way to hide keys, with integers for values and for the gradients of outputs.
fn cases() -> Vec<(&'static str, Case)> {
    let mut cases = Vec::new();
    for (number, (q_len, group, kv_len, dim)) in SIZES.into_iter().enumerate() {
        let spec = AttentionSpec::new(2 * group, dim).kv_heads(2).scale(1.0);
        let mut plain = Case::plain(spec, Shape::new(1, q_len, kv_len), number as u64);
        for data in [&mut plain.v, &mut plain.dout] {
            data.iter_mut().enumerate().for_each(|(at, x)| *x = odd(at));
        }
        let with = |change: fn(&mut Case)| {
            let mut case = plain.clone();
            change(&mut case);
            case
        };
        let keys = [false, false, false, true];
        let kept = |of: fn(usize) -> bool| Some(((0..kv_len).map(of).collect(), keys));
        cases.extend([
            ("everything", plain.clone()),
            ("causal from the top left", with(|case| case.spec.causal = Causal::TopLeft)),
            ("causal to the bottom right", with(|case| case.spec.causal = Causal::BottomRight)),
            ("a window", with(|case| case.spec = case.spec.causal(Causal::BottomRight).window(Some(15), None))),
            ("a length", with(|case| case.kv_lens = Some(vec![case.shape.kv_len / 2]))),
            ("a mask", Case { keep: kept(|j| j % 4 == 1), ..plain.clone() }),
            (
                "a mask and a corner",
                Case { keep: kept(|j| j % 2 == 0), spec: spec.causal(Causal::TopLeft), ..plain.clone() },
            ),
        ]);
    }
    cases
}

/// The keys that a row sees.
fn seen(case: &Case, head: usize, row: usize) -> Vec<usize> {
    (0..case.shape.kv_len).filter(|&key| case.sees([0, head, row, key])).collect()
}

/// Every row of every head.
fn rows(case: &Case) -> impl Iterator<Item = (usize, usize)> + use<> {
    let q_len = case.shape.q_len;
    (0..case.spec.heads * q_len).map(move |row| (row / q_len, row % q_len))
}

/// All weights of a row are equal, and their sum is exact; so is the mean where there are 2, 4, 8, ... keys.
#[test]
fn equal_logits_give_the_mean_of_the_keys_that_a_row_sees_exactly() {
    let mut memory = Memory::default();
    let mut means = 0;
    for (name, mut case) in cases() {
        case.q.fill(3.0);
        case.k.fill(0.25);
        for isa in Isa::available() {
            let out = &case.results(isa, &mut memory)[0];
            for (head, row) in rows(&case) {
                let keys = seen(&case, head, row);
                if !keys.len().is_power_of_two() {
                    continue;
                }
                let of_keys = |key| case.row(2, [0, head / case.spec.group(), key]);
                let mut sums = vec![0.0f32; case.spec.v_dim];
                for &key in &keys {
                    sums.iter_mut().zip(of_keys(key)).for_each(|(sum, at)| *sum += case.v[at]);
                }
                for (sum, at) in sums.into_iter().zip(case.row(3, [0, head, row])) {
                    let mean = sum / keys.len() as f32;
                    assert_eq!(out[at], mean, "{name}, {}, {:?} on {isa}: row {row}", case.spec, case.shape);
                }
                means += 1;
            }
        }
    }
    assert!(means > 1000);
}

/// Where all values are one integer vector, the gradient of a weight is that of every other: logits have none, to the
/// last bit. The gradients of values are sums over rows of `dout / keys`, each weight of which errs by its exponential
/// and by the log-sum-exp, which has the size of logits and `ln(keys)`.
#[test]
fn equal_values_have_no_gradients_of_queries_and_keys_and_equal_weights_divide_that_of_the_output() {
    let mut memory = Memory::default();
    for (name, mut case) in cases() {
        case.q.fill(0.0);
        let dim = case.spec.v_dim;
        case.v.iter_mut().enumerate().for_each(|(at, v)| *v = odd(at % dim));
        let mut sums = vec![0.0f64; case.v.len()];
        let mut sizes = vec![0.0f64; case.v.len()];
        let mut exact = true;
        for (head, row) in rows(&case) {
            let keys = seen(&case, head, row);
            exact &= keys.is_empty() || keys.len().is_power_of_two();
            for &key in &keys {
                let of_key = case.row(2, [0, head / case.spec.group(), key]);
                for (to, from) in of_key.zip(case.row(3, [0, head, row])) {
                    sums[to] += f64::from(case.dout[from]) / keys.len() as f64;
                    sizes[to] += f64::from(case.dout[from].abs()) / keys.len() as f64;
                }
            }
        }
        let terms = (case.spec.group() * case.shape.q_len) as f64;
        // The exponential, and the rounding of a log-sum-exp below 8 where the logits are 0.
        let most = (2.0 * 2.5 + 4.0 * 8.0 + terms) * U;
        for isa in Isa::available() {
            let [_, _, dq, dk, dv, ..] = case.results(isa, &mut memory);
            let context = format!("{name}, {}, {:?} on {isa}", case.spec, case.shape);
            if exact {
                assert!(dq.iter().chain(&dk).all(|&x| x == 0.0), "{context}: a gradient of a query or key is not 0");
            }
            for (at, &given) in dv.iter().enumerate() {
                let error = (f64::from(given) - sums[at]).abs();
                assert!(error <= most * sizes[at], "{context}: dv[{at}] is {given:e}, expected {:e}", sums[at]);
            }
        }
    }
}

/// Which key of each row leads, by row of `rows`, once through the keys alone, where rows that do not see that key get
/// no gradient, and once through a bias that gives each row a key of its own.
fn leading(case: &Case, lead: f32) -> [(Case, Vec<Option<usize>>); 2] {
    let last = |(head, row)| seen(case, head, row).last().copied();
    let Some(common) = last((0, case.shape.q_len / 2)) else { return [0; 2].map(|_| (case.clone(), Vec::new())) };
    let (mut by_keys, dim) = (case.clone(), case.spec.head_dim);
    by_keys.q.fill(1.0);
    for (at, k) in by_keys.k.iter_mut().enumerate() {
        // One element alone counts, so that the logit has no rounding; the leading one is 0, and so is its log-sum-exp.
        let leads = at / dim % case.shape.kv_len == common;
        *k = if at % dim == 3 && !leads { -lead } else { 0.0 };
    }
    let of_common = |(head, row)| case.sees([0, head, row, common]).then_some(common);
    for (head, row) in rows(case).filter(|&at| of_common(at).is_none()) {
        case.row(3, [0, head, row]).for_each(|at| by_keys.dout[at] = 0.0);
    }
    let mut by_bias = case.clone();
    by_bias.q.fill(0.0);
    let (q_len, kv_len) = (case.shape.q_len, case.shape.kv_len);
    let mut bias = vec![-lead; q_len * kv_len];
    for row in 0..q_len {
        if let Some(key) = last((0, row)) {
            bias[row * kv_len + key] = 0.0;
        }
    }
    by_bias.bias = Some((bias, [false, false, true, true]));
    [(by_keys, rows(case).map(of_common).collect()), (by_bias, rows(case).map(last).collect())]
}

/// One key leads by so much that no other has a weight: its value is the output, and its gradient takes all of the
/// output's. Queries and keys have none. Leads of 88 leave weights below the normal numbers, which are 0, those of 104
/// none at all.
#[test]
fn a_leading_logit_gives_its_value_and_takes_the_gradient_exactly() {
    let mut memory = Memory::default();
    let mut leaders = 0;
    for lead in [88.0, 90.5, 96.0, 103.0, 104.0] {
        for (name, case) in cases() {
            for (way, (case, keys)) in ["keys", "a bias"].into_iter().zip(leading(&case, lead)) {
                let mut out = vec![None; case.dout.len()];
                let mut dv = vec![0.0f32; case.v.len()];
                for ((head, row), key) in rows(&case).zip(keys) {
                    let Some(key) = key else { continue };
                    leaders += 1;
                    for (from, to) in case.row(2, [0, head / case.spec.group(), key]).zip(case.row(3, [0, head, row])) {
                        out[to] = Some(case.v[from]);
                        dv[from] += case.dout[to];
                    }
                }
                for isa in Isa::available() {
                    let given = case.results(isa, &mut memory);
                    let context =
                        format!("a lead of {lead} by {way}, {name}, {}, {:?} on {isa}", case.spec, case.shape);
                    for (at, expected) in out.iter().enumerate().filter_map(|(at, out)| Some((at, (*out)?))) {
                        assert_eq!(given[0][at], expected, "{context}: out[{at}] is not the value that leads");
                    }
                    for (at, &expected) in dv.iter().enumerate() {
                        assert_eq!(given[4][at], expected, "{context}: dv[{at}] is not the sum of the gradients");
                    }
                    for which in [2, 3] {
                        assert!(given[which].iter().all(|&x| x == 0.0), "{context}: a logit has a gradient");
                    }
                }
            }
        }
    }
    assert!(leaders > 5000);
}
