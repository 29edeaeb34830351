//! Attention with every feature, forward and backward, against the reference within derived bounds; and what must hold
//! to the last bit.
//!
//! `KERNELS_TEST_CASES=N` checks a tenth of `N` problems instead of the usual number: each takes as long as ten
//! convolutions.

use std::sync::Mutex;

use kernels::attention::{Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, MAX_HEAD_DIM, Shape};
use kernels::internals::{Loops, eagerly};
use kernels::{Error, Isa, Parallelism, View, ViewMut};
use tests::attention::{Case, Memory, bits, check, check_on, difference};
use tests::cores;
use tests::guard::Side;

/// Problems of a usual run; each goes forward and backward on every instruction set.
const PROBLEMS: u64 = 250;

fn problems() -> u64 {
    tests::cases_asked_for(10 * PROBLEMS).div_ceil(10)
}

#[test]
fn every_feature_stays_within_its_bound_forward_and_backward() {
    tests::crash::report_faults();
    let worst = Mutex::new([0.0f64; 2]);
    cores::for_each_with(0..problems(), Memory::default, |memory, seed| {
        let case = Case::new(seed);
        match check(&case, memory) {
            Ok(error) => {
                let mut worst = worst.lock().unwrap();
                *worst = [worst[0].max(error[0]), worst[1].max(error[1])];
            }
            Err(message) => panic!("seed {seed}, {}: {message}", case.spec),
        }
    });
    println!("worst errors as shares of their bounds, forward and backward: {:?}", worst.into_inner().unwrap());
}

/// Every head dimension, with values of another one, of so few queries and keys that there are both paths and, from
/// where blocks are shortest, more than one block.
#[test]
fn every_head_dimension_stays_within_its_bound() {
    let isas: Vec<Isa> = Isa::available().collect();
    cores::for_each_with(1..MAX_HEAD_DIM as u64 + 1, Memory::default, |memory, dim| {
        let head_dim = dim as usize;
        // Each dimension of values comes once, too.
        let v_dim = (head_dim * 37) % MAX_HEAD_DIM + 1;
        let (q_len, kv_len) = [(13, 19), (3, 33), (14, 70), (1, 66)][head_dim % 4];
        let causal = [Causal::None, Causal::BottomRight][head_dim / 4 % 2];
        let spec = AttentionSpec::new(1, head_dim).v_dim(v_dim).causal(causal);
        let case = Case::plain(spec, Shape::new(1, q_len, kv_len), dim);
        check_on(&case, &[isas[head_dim / 8 % isas.len()]], memory)
            .unwrap_or_else(|message| panic!("{spec}, {q_len} x {kv_len}: {message}"));
    });
}

#[test]
fn threads_do_not_change_a_bit() {
    for threads in [2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut memory = Memory::default();
            let (mut given, mut shared) = (0, 0);
            let mut count = |loops: Loops| {
                given += u64::from(loops.given > 0);
                shared += u64::from(loops.shared > 0);
            };
            for seed in 0..60 {
                let case = Case::new(seed);
                for isa in Isa::available() {
                    let (out, lse) = case.forward(isa, Parallelism::Serial, &mut memory, Side::Left);
                    let ((also_out, also_lse), loops) =
                        eagerly(|| case.forward(isa, Parallelism::Current, &mut memory, Side::Left));
                    count(loops);
                    assert_eq!((bits(&out), bits(&lse)), (bits(&also_out), bits(&also_lse)), "seed {seed}");
                    let results = (&out[..], &lse[..]);
                    let serial = case.backward(isa, Parallelism::Serial, &mut memory, Side::Left, results);
                    let (on_threads, loops) =
                        eagerly(|| case.backward(isa, Parallelism::Current, &mut memory, Side::Left, results));
                    count(loops);
                    assert_eq!(serial.map(|of| bits(&of)), on_threads.map(|of| bits(&of)), "seed {seed}");
                }
            }
            println!("{threads} threads: {given} calls with loops to give away, {shared} of them shared");
            assert!(given > 60 && shared * 4 > given, "{shared} of {given} calls ran on more than one of {threads}");
        });
    }
}

#[test]
fn a_team_gives_the_same_bits_as_one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let mut memory = Memory::default();
    let grouped = AttentionSpec::new(6, 32).kv_heads(3);
    for (spec, shape) in [
        (AttentionSpec::new(5, 64).causal(Causal::BottomRight), Shape::new(2, 300, 300)),
        (grouped.window(Some(40), None), Shape::new(3, 70, 200)),
        (grouped, Shape::new(2, 3, 2100)),
    ] {
        let case = Case::plain(spec, shape, 1);
        for isa in Isa::available() {
            let serial = case.results(isa, &mut memory);
            let memory = &mut memory;
            let team =
                pool.install(|| kernels::Team::scope(|team| case.results_with(isa, Parallelism::Team(team), memory)));
            if let Some(message) = difference(&team, &serial) {
                panic!("{spec}, {shape:?} on {isa}: {message}");
            }
        }
    }
}

#[test]
fn a_plan_says_which_path_a_shape_takes() {
    let spec = |dim| AttentionSpec::new(4, dim).kv_heads(2);
    let path = |spec, q_len, kv_len| {
        let described = Attention::with_isa(spec, Isa::Portable).unwrap().describe(Shape::new(1, q_len, kv_len));
        described.strip_prefix(&format!("{spec}: ")).unwrap().strip_suffix(", on portable").unwrap().to_string()
    };
    // Two query heads share a head of keys: twelve rows are few.
    assert_eq!(path(spec(64), 6, 5000), "few rows, pieces of 1024 keys");
    assert_eq!(path(spec(64), 7, 512), "one block of keys of up to 512");
    for (dim, block) in [(64, 512), (65, 256), (128, 256), (129, 128), (256, 128), (257, 64), (512, 64)] {
        assert_eq!(path(spec(dim), 7, block), format!("one block of keys of up to {block}"));
        let blocks = format!("blocks of keys, online softmax of up to {block}");
        assert_eq!(path(spec(dim), 7, block + 1), blocks);
        // The larger dimension decides.
        assert_eq!(path(spec(8).v_dim(dim), 7, block + 1), blocks);
    }
}

/// Of causal heads: which outputs are NaN if key `poisoned` of the values is.
#[test]
fn a_nan_in_a_value_reaches_the_rows_that_see_it_and_no_other() {
    for (len, poisoned) in [(17, 3), (40, 39), (300, 7), (300, 258), (5, 4)] {
        for isa in Isa::available() {
            let spec = AttentionSpec::new(1, 8).causal(Causal::TopLeft);
            let shape = [1, 1, len, 8];
            let data: Vec<f32> = (0..len * 8).map(|i| (i % 13) as f32 / 13.0).collect();
            let run = |v: &[f32], k: &[f32]| {
                let view = |data| View::new(data, shape).unwrap();
                let inputs = Inputs::new(view(&data), view(k), view(v));
                let plan = Attention::with_isa(spec, isa).unwrap();
                let mut out = vec![0.0; len * 8];
                let mut workspace = vec![f32::NAN; plan.workspace_len(Shape::new(1, len, len), 1).unwrap()];
                let to = ViewMut::new(&mut out, shape).unwrap();
                plan.forward(&inputs, to, None, &mut workspace, Parallelism::Serial).unwrap();
                out
            };
            let clean = run(&data, &data);
            let mut bad = data.clone();
            bad[poisoned * 8 + 2] = f32::NAN;
            let given = run(&bad, &data);
            let of_keys = run(&data, &bad);
            for row in 0..len {
                for c in 0..8 {
                    let at = row * 8 + c;
                    let reached = row >= poisoned;
                    assert_eq!(given[at].is_nan(), reached && c == 2, "row {row} of {len}, column {c} on {isa}");
                    assert_eq!(of_keys[at].is_nan(), reached, "row {row} of {len}, column {c} on {isa}");
                    if !reached {
                        assert_eq!(given[at].to_bits(), clean[at].to_bits());
                        assert_eq!(of_keys[at].to_bits(), clean[at].to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    // The last is cut into four pieces of a head where it is alone, and into two in the batch.
    for (q_len, kv_len, dim) in [(1, 3000, 64), (50, 50, 40), (300, 300, 64), (768, 768, 64)] {
        let spec = AttentionSpec::new(2, dim).causal(Causal::BottomRight);
        let numbers = |len: usize| (0..len).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 500.0).collect::<Vec<f32>>();
        let (q, kv) = (numbers(3 * 2 * q_len * dim), numbers(3 * 2 * kv_len * dim));
        let run = |isa: Isa, batch: usize, q: &[f32], kv: &[f32]| {
            let plan = Attention::with_isa(spec, isa).unwrap();
            let kv = View::new(kv, [batch, 2, kv_len, dim]).unwrap();
            let inputs = Inputs::new(View::new(q, [batch, 2, q_len, dim]).unwrap(), kv, kv);
            let mut out = vec![f32::NAN; q.len()];
            let mut workspace = vec![f32::NAN; plan.workspace_len(Shape::new(batch, q_len, kv_len), 1).unwrap()];
            let to = ViewMut::new(&mut out, [batch, 2, q_len, dim]).unwrap();
            plan.forward(&inputs, to, None, &mut workspace, Parallelism::Serial).unwrap();
            out
        };
        for isa in Isa::available() {
            let all = run(isa, 3, &q, &kv);
            for batch in 0..3 {
                let (of_q, of_kv) = (2 * q_len * dim, 2 * kv_len * dim);
                let alone = run(isa, 1, &q[batch * of_q..][..of_q], &kv[batch * of_kv..][..of_kv]);
                assert!(
                    bits(&alone) == bits(&all[batch * of_q..][..of_q]),
                    "{q_len} x {kv_len} x {dim}: sequence {batch} on {isa}"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named_and_outputs_stay_untouched() {
    let data = [1.0f32; 64];
    let view = |shape: [usize; 4]| View::new(&data[..shape[0] * shape[1] * shape[2] * shape[3]], shape).unwrap();
    let plan = Attention::new(AttentionSpec::new(2, 4)).unwrap();
    let good = Inputs::new(view([1, 2, 3, 4]), view([1, 2, 3, 4]), view([1, 2, 3, 4]));
    let call = |inputs: &Inputs<'_>, out: usize, workspace: usize| {
        let mut memory = [7.0f32; 64];
        let mut workspace = vec![0.0; workspace];
        let to = ViewMut::new(&mut memory[..out * 8], [1, 2, out, 4]).unwrap();
        let result = plan.forward(inputs, to, None, &mut workspace, Parallelism::Serial);
        assert!(result.is_ok() || memory == [7.0; 64]);
        result
    };
    assert_eq!(call(&good, 3, 1 << 16), Ok(()));
    let bad = Inputs { k: view([1, 1, 3, 4]), ..good };
    let shape = |argument, expected: [usize; 4], given: [usize; 4]| {
        Err(Error::Shape { argument, expected: expected.to_vec(), given: given.to_vec() })
    };
    assert_eq!(call(&bad, 3, 1 << 16), shape("k", [1, 2, 3, 4], [1, 1, 3, 4]));
    assert_eq!(call(&good, 2, 1 << 16), shape("out", [1, 2, 3, 4], [1, 2, 2, 4]));
    assert!(matches!(call(&good, 3, 5), Err(Error::Length { argument: "workspace", .. })));
    assert!(matches!(call(&good.kv_lens(&[4]), 3, 1 << 16), Err(Error::Invalid { argument: "kv_lens", .. })));
    assert!(matches!(call(&good.sinks(&[0.0]), 3, 1 << 16), Err(Error::Length { argument: "sinks", .. })));
    for spec in [
        AttentionSpec::new(0, 4),
        AttentionSpec::new(2, 0),
        AttentionSpec::new(2, 513),
        AttentionSpec::new(3, 4).kv_heads(2),
        AttentionSpec::new(2, 4).scale(f32::NAN),
        AttentionSpec::new(2, 4).softcap(0.0),
    ] {
        assert!(Attention::new(spec).is_err(), "{spec:?}");
    }
    assert!(plan.workspace_len(Shape::new(usize::MAX, usize::MAX, 2), 1).is_err());
    assert!(plan.backward_workspace_len(Shape::new(1, 1, usize::MAX), 1).is_err());
}

/// With the identity for values, outputs are the weights; with the identity for the gradient of outputs, the gradients
/// of the values are the weights as backward sees them.
#[test]
fn dropout_leaves_out_the_same_weights_forward_and_backward_whatever_the_path_and_the_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for (batch, heads, kv_heads, q_len, kv_len) in [(2, 2, 1, 130, 300), (1, 4, 4, 3, 70), (3, 6, 3, 6, 64)] {
        let spec = AttentionSpec::new(heads, 4).kv_heads(kv_heads).v_dim(kv_len.max(q_len));
        let shape = Shape::new(batch, q_len, kv_len);
        let dropout = Dropout::new(0.3, 99);
        let numbers = |len: usize| (0..len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>();
        let (q, k) = (numbers(batch * heads * q_len * 4), numbers(batch * kv_heads * kv_len * 4));
        let identity = |rows: usize| {
            let dim = spec.v_dim;
            (0..rows * dim).map(|i| if i / dim == i % dim { 1.0 } else { 0.0 }).collect::<Vec<f32>>()
        };
        let (v, dout) = (identity(kv_len), identity(q_len));
        let dim = spec.v_dim as isize;
        let inputs = Inputs::new(
            View::new(&q, [batch, heads, q_len, 4]).unwrap(),
            View::new(&k, [batch, kv_heads, kv_len, 4]).unwrap(),
            View::strided(&v, 0, [batch, kv_heads, kv_len, spec.v_dim], [0, 0, dim, 1]).unwrap(),
        )
        .dropout(dropout);
        let of_out = [batch, heads, q_len, spec.v_dim];
        let dout = View::strided(&dout, 0, of_out, [0, 0, dim, 1]).unwrap();
        for isa in Isa::available() {
            let plan = Attention::with_isa(spec, isa).unwrap();
            let run = |parallelism: Parallelism| {
                let mut out = vec![f32::NAN; batch * heads * q_len * spec.v_dim];
                let mut lse = vec![f32::NAN; batch * heads * q_len];
                let len = plan.workspace_len(shape, 3).unwrap().max(plan.backward_workspace_len(shape, 3).unwrap());
                let mut workspace = vec![f32::NAN; len];
                let to = ViewMut::new(&mut out, of_out).unwrap();
                plan.forward(&inputs, to, Some(&mut lse), &mut workspace, parallelism).unwrap();
                let (mut dq, mut dk) = (vec![0.0; q.len()], vec![0.0; k.len()]);
                let mut dv = vec![f32::NAN; batch * kv_heads * kv_len * spec.v_dim];
                let gradients = Gradients::new(
                    ViewMut::new(&mut dq, inputs.q.shape()).unwrap(),
                    ViewMut::new(&mut dk, inputs.k.shape()).unwrap(),
                    ViewMut::new(&mut dv, inputs.v.shape()).unwrap(),
                );
                let of = View::new(&out, of_out).unwrap();
                plan.backward(&inputs, &of, &dout, &lse, gradients, &mut workspace, parallelism).unwrap();
                (out, dv)
            };
            let (out, dv) = run(Parallelism::Serial);
            let group = heads / kv_heads;
            for (b, h, i, j) in (0..batch)
                .flat_map(|b| (0..heads).flat_map(move |h| (0..q_len).map(move |i| (b, h, i))))
                .flat_map(|(b, h, i)| (0..kv_len).map(move |j| (b, h, i, j)))
            {
                let keeps = dropout.keeps([b, h, i, j]);
                let weight = out[((b * heads + h) * q_len + i) * spec.v_dim + j];
                assert_eq!(weight > 0.0, keeps, "{isa}: pair {:?}", [b, h, i, j]);
                if group == 1 {
                    let of_backward = dv[((b * kv_heads + h) * kv_len + j) * spec.v_dim + i];
                    assert_eq!(of_backward > 0.0, keeps, "{isa}: pair {:?} backward", [b, h, i, j]);
                    assert!((of_backward - weight).abs() <= 1e-5 * weight);
                }
            }
            let (shared_out, shared_dv) = pool.install(|| run(Parallelism::Current));
            assert_eq!((bits(&out), bits(&dv)), (bits(&shared_out), bits(&shared_dv)));
        }
    }
}

#[test]
fn dropout_keeps_the_mean_and_a_probability_of_0_every_bit() {
    let spec = AttentionSpec::new(8, 16);
    let (shape, len) = ([4, 8, 64, 16], 4 * 8 * 64 * 16);
    let q: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let ones = vec![1.0; len];
    let run = |isa: Isa, v: &[f32], dropout: Option<Dropout>| {
        let plan = Attention::with_isa(spec, isa).unwrap();
        let view = |data| View::new(data, shape).unwrap();
        let inputs = Inputs { dropout, ..Inputs::new(view(&q), view(&q), view(v)) };
        let mut out = vec![f32::NAN; len];
        let mut workspace = vec![f32::NAN; plan.workspace_len(Shape::new(4, 64, 64), 1).unwrap()];
        let to = ViewMut::new(&mut out, shape).unwrap();
        plan.forward(&inputs, to, None, &mut workspace, Parallelism::Serial).unwrap();
        out
    };
    for isa in Isa::available() {
        assert_eq!(bits(&run(isa, &q, None)), bits(&run(isa, &q, Some(Dropout::new(0.0, 5)))), "{isa}");
        for (probability, seed) in [(0.1, 1), (0.5, 2), (0.8, 3)] {
            // Of values of 1: the sum of the kept weights over what is expected of it.
            let out = run(isa, &ones, Some(Dropout::new(probability, seed)));
            let rows: Vec<f64> = out.chunks(16).map(|row| f64::from(row[0])).collect();
            let mean = rows.iter().sum::<f64>() / rows.len() as f64;
            let variance = rows.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / rows.len() as f64;
            let deviation = (variance / rows.len() as f64).sqrt();
            assert!((mean - 1.0).abs() < 6.0 * deviation, "{probability} on {isa}: mean {mean}, deviation {deviation}");
        }
    }
    let bad = |probability, first: usize| {
        let view = View::new(&q, shape).unwrap();
        let dropout = Dropout::new(probability, 1).first_sequence(first);
        Inputs::new(view, view, view).dropout(dropout).check(&spec)
    };
    for probability in [-0.1, 1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(bad(probability, 0), Err(Error::Invalid { argument: "dropout", .. })));
    }
    assert_eq!(bad(0.5, usize::MAX), Err(Error::Overflow { argument: "dropout" }));
}
