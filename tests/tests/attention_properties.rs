//! What holds of attention whatever the numbers are: how results change with the order of keys, with what is added to
//! all logits, with keys that come twice; where outputs lie; and that neither the place in memory nor the batch shows.

use kernels::Isa;
use kernels::attention::{AttentionSpec, Causal, Dropout, Shape};
use tests::attention::{Bounds, Case, Memory, NAMES, Placement, Placements, Results, difference};
use tests::cores;

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;

fn bounds(case: &Case) -> Bounds {
    let (out, lse) = case.reference();
    case.bounds(&out, &lse)
}

/// Two results that are equal by definition differ by no more than both may differ from it, and by `more`.
fn agree(context: &str, given: [&[f32]; 2], bounds: [&[f64]; 2], more: f64) {
    assert_eq!((given[0].len(), given[0].len()), (given[1].len(), bounds[0].len()), "{context}");
    for at in 0..given[0].len() {
        let [a, b] = given.map(|of| f64::from(of[at]));
        let most = bounds[0][at] + bounds[1][at] + more;
        assert!(a == b || (a - b).abs() <= most, "{context}: [{at}] is {a:e} and {b:e}, which may differ by {most:e}");
    }
}

/// One head of keys, one sequence, on either path and with several blocks of keys.
fn shapes() -> impl Iterator<Item = (AttentionSpec, Shape)> {
    let spec = AttentionSpec::new(2, 24).kv_heads(1).v_dim(17);
    [(3, 70), (5, 600), (40, 33), (40, 600)].map(|(q_len, kv_len)| (spec, Shape::new(1, q_len, kv_len))).into_iter()
}

/// The rows of keys or values `from[0], from[1], ...`.
fn rows_of(data: &[f32], dim: usize, from: &[usize]) -> Vec<f32> {
    from.iter().flat_map(|&row| &data[row * dim..][..dim]).copied().collect()
}

/// Bounds in the same order.
fn bounds_of(data: &[f64], dim: usize, from: &[usize]) -> Vec<f64> {
    from.iter().flat_map(|&row| &data[row * dim..][..dim]).copied().collect()
}

#[test]
fn the_order_of_keys_does_not_matter_and_their_gradients_follow_them() {
    for (spec, shape) in shapes() {
        let n = shape.kv_len;
        let mut case = Case::plain(spec.softcap(3.0), shape, 1);
        // An eighth of an integer each, that of key `j` being a function of `j`.
        let bias = |j: usize| (j * 5 % 17) as f32 / 8.0 - 1.0;
        let row_bias = [false, false, false, true];
        case.bias = Some(((0..n).map(bias).collect(), row_bias));
        case.keep = Some(((0..n).map(|j| j % 7 != 2).collect(), row_bias));
        case.sinks = Some(vec![0.3, -0.2]);
        // 7 and 11 divide no length here.
        let from: Vec<usize> = (0..n).map(|j| (j * 77 + 5) % n).collect();
        let from = if n.is_multiple_of(7) || n.is_multiple_of(11) { (0..n).rev().collect() } else { from };
        let mut permuted = case.clone();
        permuted.k = rows_of(&case.k, spec.head_dim, &from);
        permuted.v = rows_of(&case.v, spec.v_dim, &from);
        permuted.bias = Some((from.iter().map(|&j| bias(j)).collect(), row_bias));
        permuted.keep = Some((from.iter().map(|&j| j % 7 != 2).collect(), row_bias));
        let (of_case, of_permuted) = (bounds(&case), bounds(&permuted));
        let mut memory = Memory::default();
        for isa in Isa::available() {
            let context = |name: &str| format!("{name} of {spec}, {shape:?} on {isa}");
            let [out, lse, dq, dk, dv, dbias, dsinks] = case.results(isa, &mut memory);
            let other = permuted.results(isa, &mut memory);
            agree(&context("out"), [&out, &other[0]], [&of_case.out, &of_permuted.out], 0.0);
            agree(&context("lse"), [&lse, &other[1]], [&of_case.lse, &of_permuted.lse], 0.0);
            let moved = [
                (dq, of_case.gradients[0].clone()),
                (rows_of(&dk, spec.head_dim, &from), bounds_of(&of_case.gradients[1], spec.head_dim, &from)),
                (rows_of(&dv, spec.v_dim, &from), bounds_of(&of_case.gradients[2], spec.v_dim, &from)),
                (rows_of(&dbias, 1, &from), bounds_of(&of_case.gradients[3], 1, &from)),
                (dsinks, of_case.gradients[4].clone()),
            ];
            for (which, (given, bounds)) in moved.iter().enumerate() {
                let pair = [&given[..], &other[which + 2]];
                agree(&context(NAMES[which + 2]), pair, [bounds, &of_permuted.gradients[which]], 0.0);
            }
        }
    }
}

#[test]
fn what_is_added_to_all_logits_moves_the_log_sum_exp_and_nothing_else() {
    for (spec, shape) in shapes() {
        let mut case = Case::plain(spec, shape, 2);
        let keys = [false, false, false, true];
        // Eighths, to which integers are added without rounding.
        let with = |added: f32| Some(((0..shape.kv_len).map(|j| (j % 9) as f32 / 8.0 + added).collect(), keys));
        case.bias = with(0.0);
        let of_case = bounds(&case);
        let mut memory = Memory::default();
        for added in [8.0, -100.0, 10_000.0] {
            let moved = Case { bias: with(added), ..case.clone() };
            let of_moved = bounds(&moved);
            for isa in Isa::available() {
                let context = |name: &str| format!("{name} of {spec}, {shape:?}, {added} added, on {isa}");
                let (given, other) = (case.results(isa, &mut memory), moved.results(isa, &mut memory));
                agree(&context("out"), [&given[0], &other[0]], [&of_case.out, &of_moved.out], 0.0);
                for (row, (&lse, &of_other)) in given[1].iter().zip(&other[1]).enumerate() {
                    let (error, most) =
                        (f64::from(of_other) - f64::from(lse) - f64::from(added), of_case.lse[row] + of_moved.lse[row]);
                    assert!(error.abs() <= most, "{}: row {row} errs by {error:e} of {most:e}", context("lse"));
                }
                for which in 0..4 {
                    let bounds = [&of_case.gradients[which][..], &of_moved.gradients[which]];
                    agree(&context(NAMES[which + 2]), [&given[which + 2], &other[which + 2]], bounds, 0.0);
                }
            }
        }
    }
}

#[test]
fn a_key_that_comes_twice_weighs_as_one_whose_logit_is_larger_by_the_logarithm_of_2() {
    for (spec, shape) in shapes() {
        let n = shape.kv_len;
        let case = Case::plain(spec, shape, 3);
        let key = n * 2 / 3;
        let mut twice = case.clone();
        twice.shape.kv_len = n + 1;
        let rows: Vec<usize> = (0..n).chain([key]).collect();
        twice.k = rows_of(&case.k, spec.head_dim, &rows);
        twice.v = rows_of(&case.v, spec.v_dim, &rows);
        let mut heavier = case.clone();
        let ln_2 = std::f32::consts::LN_2;
        let bias = (0..n).map(|j| if j == key { ln_2 } else { 0.0 }).collect();
        heavier.bias = Some((bias, [false, false, false, true]));
        // The logarithm is rounded: an error of a logit, twice in a weight; values and gradients are at most 1.
        let rounded = 2.0 * U * f64::from(ln_2);
        let (of_twice, of_heavier) = (bounds(&twice), bounds(&heavier));
        let mut memory = Memory::default();
        for isa in Isa::available() {
            let context = |name: &str| format!("{name} of {spec}, {shape:?} on {isa}");
            let (one, two) = (heavier.results(isa, &mut memory), twice.results(isa, &mut memory));
            agree(&context("out"), [&one[0], &two[0]], [&of_heavier.out, &of_twice.out], rounded);
            agree(&context("lse"), [&one[1], &two[1]], [&of_heavier.lse, &of_twice.lse], rounded);
            let rows = (spec.heads * shape.q_len) as f64;
            for (which, dim) in [(1, spec.head_dim), (2, spec.v_dim)] {
                let (given, last) = two[which + 2].split_at(n * dim);
                let mut given = given.to_vec();
                assert_eq!(given[key * dim..][..dim], *last, "{}", context("the gradients of both"));
                given[key * dim..][..dim].iter_mut().zip(last).for_each(|(sum, of)| *sum += of);
                let mut bounds = of_twice.gradients[which][..n * dim].to_vec();
                bounds[key * dim..][..dim].iter_mut().for_each(|bound| *bound *= 2.0);
                // `dp` is at most `v_dim`, and so is its mean.
                let more = rounded * rows * 2.0 * spec.v_dim as f64;
                agree(
                    &context(NAMES[which + 2]),
                    [&one[which + 2], &given],
                    [&of_heavier.gradients[which], &bounds],
                    more,
                );
            }
        }
    }
}

/// A random case whose rows are means of values: without sinks and dropout. Every fourth has logits so far apart that
/// bounds of single elements say nothing.
fn means(seed: u64) -> Case {
    let mut case = Case::new(seed);
    case.sinks = None;
    case.dropout = None;
    if seed.is_multiple_of(4) {
        case.spec.scale *= 200.0;
    }
    case
}

/// The roundings of a weighted mean: of its weights' sum, of the sum of values, of rescaling both, and the division.
fn roundings(kv_len: usize) -> f64 {
    let blocks = kv_len / 64 + 2;
    let n = (2 * kv_len + 3 * blocks + 3) as f64 * U;
    n / (1.0 - n)
}

#[test]
fn outputs_lie_between_the_least_and_the_largest_value_that_their_row_sees() {
    cores::for_each_with(0..150, Memory::default, |memory, seed| {
        let case = means(seed);
        let Shape { batch, q_len, kv_len } = case.shape;
        for isa in Isa::available() {
            let out = &case.results(isa, memory)[0];
            for (b, h, i) in (0..batch * case.spec.heads * q_len)
                .map(|row| (row / q_len / case.spec.heads, row / q_len % case.spec.heads, row % q_len))
            {
                let mut hull = vec![(f32::INFINITY, f32::NEG_INFINITY); case.spec.v_dim];
                for j in (0..kv_len).filter(|&j| case.sees([b, h, i, j])) {
                    for (hull, at) in hull.iter_mut().zip(case.row(2, [b, h / case.spec.group(), j])) {
                        *hull = (hull.0.min(case.v[at]), hull.1.max(case.v[at]));
                    }
                }
                for (&(least, most), at) in hull.iter().zip(case.row(3, [b, h, i])) {
                    let slack = roundings(kv_len) * f64::from(least.abs().max(most.abs())) + 1e-30;
                    let x = f64::from(out[at]);
                    let inside = f64::from(least) - slack <= x && x <= f64::from(most) + slack;
                    let empty = least > most && x == 0.0;
                    assert!(
                        inside || empty,
                        "seed {seed} on {isa}, {}, {:?}: {x} is not between {least} and {most} in row {:?}",
                        case.spec,
                        case.shape,
                        [b, h, i]
                    );
                }
            }
        }
    });
}

#[test]
fn values_of_1_give_1_and_gradients_of_queries_and_keys_that_are_roundings() {
    cores::for_each_with(0..150, Memory::default, |memory, seed| {
        let mut case = means(seed);
        case.v.fill(1.0);
        for isa in Isa::available() {
            let [out, lse, ..] = case.results(isa, memory);
            for (row, lse) in lse.iter().enumerate() {
                let (head, i) = (row / case.shape.q_len, row % case.shape.q_len);
                for at in case.row(3, [head / case.spec.heads, head % case.spec.heads, i]) {
                    let expected = if *lse == f32::NEG_INFINITY { 0.0 } else { 1.0 };
                    let error = (f64::from(out[at]) - expected).abs();
                    let most = roundings(case.shape.kv_len);
                    assert!(
                        error <= most,
                        "seed {seed} on {isa}, {}, {:?}: row {row} errs by {error:e} of {most:e}",
                        case.spec,
                        case.shape
                    );
                }
            }
        }
    });
}

/// The part of row-major data that belongs to one of `batch` sequences.
fn part<T: Copy>(data: &[T], batch: usize, sequence: usize) -> Vec<T> {
    let len = data.len() / batch;
    data[sequence * len..][..len].to_vec()
}

#[test]
fn a_sequence_with_any_feature_has_the_same_bits_alone_and_in_a_batch_forward_and_backward() {
    let compared = std::sync::atomic::AtomicUsize::new(0);
    cores::for_each_with(0..250, Memory::default, |memory, seed| {
        let mut case = Case::new(seed);
        case.order = [0, 1, 2, 3];
        let batch = case.shape.batch;
        if batch == 1 {
            return;
        }
        for isa in Isa::available() {
            let all = case.results(isa, memory);
            for sequence in 0..batch {
                let of = |data: &Vec<f32>| part(data, batch, sequence);
                let mut alone = case.clone();
                alone.shape.batch = 1;
                [alone.q, alone.k, alone.v, alone.dout] = [&case.q, &case.k, &case.v, &case.dout].map(of);
                alone.bias = case
                    .bias
                    .as_ref()
                    .map(|(data, axes)| (if axes[0] { part(data, batch, sequence) } else { data.clone() }, *axes));
                alone.keep = case
                    .keep
                    .as_ref()
                    .map(|(data, axes)| (if axes[0] { part(data, batch, sequence) } else { data.clone() }, *axes));
                alone.kv_lens = case.kv_lens.as_ref().map(|lens| vec![lens[sequence]]);
                alone.dropout = case.dropout.map(|of| Dropout { first_sequence: of.first_sequence + sequence, ..of });
                let mut given = alone.results(isa, memory);
                let mut expected: Results = all.each_ref().map(of);
                // What all sequences share is a sum over them.
                if case.bias.as_ref().is_some_and(|(_, axes)| !axes[0]) {
                    given[5].clear();
                    expected[5].clear();
                }
                given[6].clear();
                expected[6].clear();
                if let Some(message) = difference(&given, &expected) {
                    panic!("seed {seed} on {isa}, {}, {:?}, sequence {sequence}: {message}", case.spec, case.shape);
                }
                compared.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    assert!(compared.into_inner() > 200);
}

/// A random case in row-major order.
fn row_major(seed: u64) -> Case {
    Case { order: [0, 1, 2, 3], ..Case::new(seed) }
}

fn same_placed(case: &Case, placements: &Placements, expected: &Results, isa: Isa, memory: &mut Memory, context: &str) {
    let given = case.results_placed(placements, isa, memory);
    if let Some(message) = difference(&given, expected) {
        panic!("seed {}, {}, {:?} on {isa}, {context}: {message}", case.seed, case.spec, case.shape);
    }
}

/// Queries, keys, values, bias, mask, outputs and gradients each in an order of its own, with gaps that stay untouched,
/// backwards, and at any distance from a cache line.
#[test]
fn memory_orders_gaps_directions_and_alignment_do_not_change_a_bit() {
    tests::crash::report_faults();
    cores::for_each_with(0..160, Memory::default, |memory, seed| {
        let case = row_major(seed);
        for isa in Isa::available() {
            let expected = case.results(isa, memory);
            same_placed(&case, &Placements::new(seed), &expected, isa, memory, "everything anywhere");
        }
    });
}

#[test]
fn every_alignment_of_row_major_memory_gives_the_same_bits() {
    let mut memory = Memory::default();
    for (q_len, kv_len, dim) in [(3, 70, 24), (40, 130, 17), (20, 90, 64)] {
        let case = Case::plain(AttentionSpec::new(2, dim).causal(Causal::BottomRight), Shape::new(1, q_len, kv_len), 4);
        for isa in Isa::available() {
            let expected = case.results(isa, &mut memory);
            for offset in 0..17 {
                let placements = Placements::all(Placement { offset, ..Placement::PLAIN });
                same_placed(&case, &placements, &expected, isa, &mut memory, &format!("offset {offset}"));
            }
        }
    }
}

#[test]
fn keys_and_values_that_are_broadcast_by_strides_of_0_give_the_bits_of_copies() {
    cores::for_each_with(0..60, Memory::default, |memory, seed| {
        let mut case = row_major(seed);
        // Over sequences, heads or keys: all of them repeat the first.
        let axis = seed as usize % 3;
        for which in [1, 2] {
            let first = |at: [usize; 3]| {
                let mut at = at;
                at[axis] = 0;
                at
            };
            let (kv_heads, kv_len) = (case.spec.kv_heads, case.shape.kv_len);
            for row in 0..case.shape.batch * kv_heads * kv_len {
                let at = [row / kv_len / kv_heads, row / kv_len % kv_heads, row % kv_len];
                for (to, from) in case.row(which, at).zip(case.row(which, first(at))) {
                    let data = if which == 1 { &mut case.k } else { &mut case.v };
                    data[to] = data[from];
                }
            }
        }
        let mut placements = Placements::all(Placement::PLAIN);
        for which in [1, 2] {
            placements.inputs[which].broadcast[axis] = true;
        }
        for isa in Isa::available() {
            let expected = case.results(isa, memory);
            same_placed(&case, &placements, &expected, isa, memory, &format!("broadcast along {axis}"));
        }
    });
}

/// `[length][q, k, v][heads][dim]`, as a projection gives it: the gradients of each leave those of the others alone.
#[test]
fn queries_keys_and_values_of_one_projection_lie_between_each_other() {
    let (heads, dim) = (2, 24);
    for len in [3, 20, 70] {
        let case = Case::plain(AttentionSpec::new(heads, dim).causal(Causal::TopLeft), Shape::new(2, len, len), 5);
        let mut memory = Memory::default();
        for isa in Isa::available() {
            let expected = case.results(isa, &mut memory);
            let part = |offset| Placement {
                order: [0, 2, 1, 3],
                gaps: [0, 0, 2 * heads * dim, 0],
                offset: offset * heads * dim,
                ..Placement::PLAIN
            };
            let mut placements = Placements::all(Placement { order: [0, 2, 1, 3], ..Placement::PLAIN });
            placements.inputs = [0, 1, 2].map(part);
            placements.gradients = [0, 1, 2].map(part);
            same_placed(&case, &placements, &expected, isa, &mut memory, "packed");
        }
    }
}
