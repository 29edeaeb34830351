//! What a key or a bias holds does not show where it is hidden: not in the output, the log-sum-exp or any gradient,
//! forward and backward, in any memory order, to the last bit.

use kernels::{Isa, Parallelism};
use tests::attention::{Case, Memory, bits, difference};
use tests::cores;
use tests::guard::Side;

/// Random cases of a usual run.
const CASES: u64 = 300;

/// What hidden elements hold instead.
const POISONS: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30];

/// What a call wrote for a row.
fn of_row(case: &Case, results: &[Vec<f32>], which: usize, row: [usize; 3]) -> Vec<u32> {
    let lines = if which == 0 { 3 } else { 0 };
    bits(&case.row(lines, row).map(|at| results[which][at]).collect::<Vec<_>>())
}

/// All of `[batch][head][query]`.
fn rows(case: &Case) -> impl Iterator<Item = [usize; 3]> + use<> {
    let (heads, q_len) = (case.spec.heads, case.shape.q_len);
    (0..case.shape.batch * heads * q_len).map(move |row| [row / q_len / heads, row / q_len % heads, row % q_len])
}

/// Whether any row that shares the head of keys sees the key.
fn is_seen(case: &Case, batch: usize, kv_head: usize, key: usize) -> bool {
    case.heads_of(kv_head).any(|head| (0..case.shape.q_len).any(|row| case.sees([batch, head, row, key])))
}

/// Both calls on every instruction set, backward with the output of the clean one.
fn same_bits(seed: u64, clean: &Case, poisoned: &Case, memory: &mut Memory) {
    for isa in Isa::available() {
        let expected = clean.results(isa, memory);
        let given = poisoned.results(isa, memory);
        if let Some(message) = difference(&given, &expected) {
            panic!("seed {seed} on {isa}, {} {:?}: {message}", clean.spec, clean.shape);
        }
    }
}

#[test]
fn keys_that_no_row_sees_do_not_show_whatever_they_hold() {
    tests::crash::report_faults();
    let hidden = std::sync::atomic::AtomicUsize::new(0);
    cores::for_each_with(0..CASES, Memory::default, |memory, seed| {
        let case = Case::new(seed);
        let mut poisoned = case.clone();
        let mut count = 0;
        for batch in 0..case.shape.batch {
            for kv_head in 0..case.spec.kv_heads {
                for key in (0..case.shape.kv_len).filter(|&key| !is_seen(&case, batch, kv_head, key)) {
                    let poison = POISONS[(seed as usize + key / 3) % POISONS.len()];
                    case.row(1, [batch, kv_head, key]).for_each(|at| poisoned.k[at] = poison);
                    case.row(2, [batch, kv_head, key]).for_each(|at| poisoned.v[at] = poison);
                    count += 1;
                }
            }
        }
        if count > 0 {
            hidden.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
            same_bits(seed, &case, &poisoned, memory);
        }
    });
    assert!(hidden.into_inner() > 5000);
}

#[test]
fn a_bias_does_not_show_where_causal_window_length_or_mask_hide_its_pairs() {
    let hidden = std::sync::atomic::AtomicUsize::new(0);
    cores::for_each_with(0..2 * CASES, Memory::default, |memory, seed| {
        let case = Case::new(seed);
        let Some((bias, axes)) = &case.bias else { return };
        // An element that is broadcast is hidden if all of its pairs are.
        let mut seen = vec![false; bias.len()];
        let without = Case { bias: None, ..case.clone() };
        for [batch, head, row] in rows(&case) {
            for key in 0..case.shape.kv_len {
                seen[case.of_pair(*axes, [batch, head, row, key])] |= without.sees([batch, head, row, key]);
            }
        }
        let mut data = bias.clone();
        for at in (0..data.len()).filter(|&at| !seen[at]) {
            data[at] = POISONS[(seed as usize + at) % POISONS.len()];
            hidden.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        same_bits(seed, &case, &Case { bias: Some((data, *axes)), ..case.clone() }, memory);
    });
    assert!(hidden.into_inner() > 5000);
}

/// A key that some rows see and others do not: those others keep every bit.
#[test]
fn a_poisoned_key_changes_no_row_that_does_not_see_it() {
    let kept = std::sync::atomic::AtomicUsize::new(0);
    cores::for_each_with(0..CASES, Memory::default, |memory, seed| {
        let case = Case::new(seed);
        if case.shape.kv_len == 0 {
            return;
        }
        let key = seed as usize * 7919 % case.shape.kv_len;
        let poison = POISONS[seed as usize % POISONS.len()];
        let mut poisoned = case.clone();
        for batch in 0..case.shape.batch {
            for kv_head in 0..case.spec.kv_heads {
                // Either alone must not reach a row, nor both.
                if seed % 3 != 1 {
                    case.row(1, [batch, kv_head, key]).for_each(|at| poisoned.k[at] = poison);
                }
                if seed % 3 != 2 {
                    case.row(2, [batch, kv_head, key]).for_each(|at| poisoned.v[at] = poison);
                }
            }
        }
        for isa in Isa::available() {
            let (out, lse) = case.forward(isa, Parallelism::Serial, memory, Side::Left);
            let [dq, ..] = case.backward(isa, Parallelism::Serial, memory, Side::Left, (&out, &lse));
            let (other, other_lse) = poisoned.forward(isa, Parallelism::Serial, memory, Side::Left);
            let [other_dq, ..] = poisoned.backward(isa, Parallelism::Serial, memory, Side::Left, (&out, &lse));
            let (clean, given) = ([out, dq], [other, other_dq]);
            for (number, [batch, head, row]) in rows(&case).enumerate() {
                if case.sees([batch, head, row, key]) {
                    continue;
                }
                kept.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let context = format!("seed {seed} on {isa}, {}: key {key}, row {:?}", case.spec, [batch, head, row]);
                assert_eq!(bits(&other_lse[number..][..1]), bits(&lse[number..][..1]), "lse, {context}");
                for (which, name) in ["out", "dq"].into_iter().enumerate() {
                    let of = |results: &[Vec<f32>]| of_row(&case, results, which, [batch, head, row]);
                    assert_eq!(of(&given), of(&clean), "{name}, {context}");
                }
            }
        }
    });
    assert!(kept.into_inner() > 5000);
}
