//! The ONNX project's own cases for the operators that the library has, within our bounds.
//!
//! What is expected was computed in f32 too, by other means, and may err as much as we may: a result may differ by
//! twice its bound. Cases that the library cannot be asked are named in the fixture, each with the reason.

use kernels::attention::{Attention, AttentionSpec, Causal, Inputs, KvCache};
use kernels::conv::{Algorithm, Conv2d, Conv2dSpec, ConvTranspose2d, ConvTranspose2dSpec, Options, Padding, Shape};
use kernels::norm::{Affine, layer, rms};
use kernels::pool::{self, Pool2dSpec};
use kernels::rotary::{self, Pairing, Rotary};
use kernels::{Isa, Parallelism, View, ViewMut, softmax};
use tests::onnx::{Data, NodeCase, read};

static FIXTURE: &[u8] = include_bytes!("../fixtures/onnx_cases.bin");

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;

#[test]
fn every_case_of_onnx_that_can_be_asked_passes() {
    let fixture = read(FIXTURE);
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for case in &fixture.cases {
        match &case.operator[..] {
            "Conv" => conv(case),
            "ConvTranspose" => conv_transpose(case),
            "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" => pooling(case),
            "Softmax" | "LogSoftmax" => row_softmax(case),
            "Gemm" | "MatMul" => product(case),
            "Attention" => attention(case),
            "LayerNormalization" | "RMSNormalization" => row_norm(case),
            "RotaryEmbedding" => rotary_embedding(case),
            other => panic!("{}: no such operator here: {other}", case.name),
        }
        *counts.entry(&case.operator).or_default() += 1;
    }
    println!("passed: {counts:?}; left out: {}", fixture.left_out.len());
    // A reader that lost cases would pass as well.
    assert_eq!((fixture.cases.len(), fixture.left_out.len()), (204, 27));
    let counted = ["Attention", "LayerNormalization", "RMSNormalization", "RotaryEmbedding"].map(|of| counts[of]);
    assert_eq!(counted, [82, 19, 19, 8]);
}

/// Compares element by element.
fn judge(case: &NodeCase, context: &str, given: &[f32], expected: &[f32], bound: impl Fn(usize) -> f64) {
    assert_eq!(given.len(), expected.len(), "{} {context}", case.name);
    for (at, (&given, &expected)) in given.iter().zip(expected).enumerate() {
        let error = (f64::from(given) - f64::from(expected)).abs();
        let same = given == expected || (given.is_nan() && expected.is_nan());
        assert!(
            same || error <= 2.0 * bound(at),
            "{} {context}: element {at} is {given}, expected {expected} within {}",
            case.name,
            2.0 * bound(at)
        );
    }
}

fn largest(of: &[f32]) -> f64 {
    of.iter().fold(0.0, |largest, &x| f64::from(x.abs()).max(largest))
}

/// `[batch, channels, height, width]` of an image or a line.
fn image(shape: &[usize]) -> [usize; 4] {
    match *shape {
        [n, c, w] => [n, c, 1, w],
        [n, c, h, w] => [n, c, h, w],
        _ => panic!("neither an image nor a line: {shape:?}"),
    }
}

/// A pair of an attribute: a line has a height of `one`.
fn pair(case: &NodeCase, attribute: &str, one: usize) -> [usize; 2] {
    match case.numbers(attribute)[..] {
        [w] => [one, w],
        [h, w] => [h, w],
        _ => panic!("{}: {attribute}", case.name),
    }
}

fn padding(case: &NodeCase) -> Padding {
    match case.numbers("pads")[..] {
        [left, right] => Padding { left, right, ..Padding::default() },
        [top, left, bottom, right] => Padding { top, bottom, left, right },
        _ => panic!("{}: pads", case.name),
    }
}

fn conv(case: &NodeCase) {
    let (x, w, y) = (case.tensor("x"), case.tensor("w"), case.tensor("y"));
    let ([batch, ic, height, width], [oc, ..]) = (image(&x.shape), image(&w.shape));
    let spec = Conv2dSpec::new(ic, oc, pair(case, "kernel", 1))
        .stride(pair(case, "strides", 1))
        .dilation(pair(case, "dilations", 1))
        .padding(padding(case))
        .groups(case.number("group").unwrap());
    let shape = Shape::new(batch, height, width);
    let terms = (spec.kernel[0] * spec.kernel[1] * ic) as f64;
    let magnitude = terms * largest(x.floats()) * largest(w.floats());
    for isa in Isa::available() {
        for algorithm in Algorithm::ALL.into_iter().chain([Algorithm::Auto]) {
            let options = Options { isa: Some(isa), algorithm, ..Options::default() };
            let Ok(plan) = Conv2d::with_options(spec, w.floats(), None, shape, options) else {
                continue; // not an algorithm for this spec
            };
            let mut out = vec![f32::NAN; y.floats().len()];
            let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
            plan.forward(shape, x.floats(), None, &mut out, &mut workspace, Parallelism::Serial).unwrap();
            let bound = plan.algorithm().amplification(&spec) * (terms + 2.0) * U * magnitude;
            judge(case, &format!("{algorithm} on {isa}"), &out, y.floats(), |_| bound);
        }
    }
}

fn conv_transpose(case: &NodeCase) {
    let (x, w, y) = (case.tensor("x"), case.tensor("w"), case.tensor("y"));
    let ([batch, ic, height, width], [_, oc, ..]) = (image(&x.shape), image(&w.shape));
    let groups = case.number("group").unwrap();
    let spec = ConvTranspose2dSpec::new(ic, oc * groups, pair(case, "kernel", 1))
        .stride(pair(case, "strides", 1))
        .dilation(pair(case, "dilations", 1))
        .padding(padding(case))
        .output_padding(pair(case, "output_padding", 0))
        .groups(groups);
    let shape = Shape::new(batch, height, width);
    let [_, _, out_height, out_width] = image(&y.shape);
    assert_eq!(spec.output_size([height, width]), Ok([out_height, out_width]), "{}", case.name);
    let terms = (spec.kernel[0] * spec.kernel[1] * ic) as f64;
    let magnitude = terms * largest(x.floats()) * largest(w.floats());
    for isa in Isa::available() {
        let options = Options { isa: Some(isa), algorithm: Algorithm::Auto, ..Options::default() };
        let plan = ConvTranspose2d::with_options(spec, w.floats(), None, shape, options).unwrap();
        let mut out = vec![f32::NAN; y.floats().len()];
        let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
        plan.forward(shape, x.floats(), None, &mut out, &mut workspace, Parallelism::Serial).unwrap();
        let bound = plan.algorithm().amplification(&spec.gradient_of()) * (terms + 2.0) * U * magnitude;
        judge(case, &isa.to_string(), &out, y.floats(), |_| bound);
    }
}

fn pooling(case: &NodeCase) {
    let (x, y) = (case.tensor("x"), case.tensor("y"));
    let [batch, channels, height, width] = image(&x.shape);
    let spec = if case.operator.starts_with("Global") {
        Pool2dSpec::global([height, width])
    } else {
        Pool2dSpec::new(pair(case, "kernel", 1))
            .stride(pair(case, "strides", 1))
            .dilation(pair(case, "dilations", 1))
            .padding(padding(case))
            .ceil_mode(case.number("ceil_mode") == Some(1))
            .count_include_pad(case.number("count_include_pad") == Some(1))
    };
    let shape = Shape::new(batch, height, width);
    let mut out = vec![f32::NAN; y.floats().len()];
    if case.operator.ends_with("MaxPool") {
        pool::max_forward(&spec, shape, channels, x.floats(), &mut out, Parallelism::Serial).unwrap();
        judge(case, "", &out, y.floats(), |_| 0.0);
    } else {
        pool::average_forward(&spec, shape, channels, x.floats(), &mut out, Parallelism::Serial).unwrap();
        let taps = (spec.kernel[0] * spec.kernel[1]) as f64;
        // The sum of magnitudes over the divisor is no more than the largest.
        // Inputs and outputs of one case are written by hand, with four decimals.
        let written = if case.name == "test_averagepool_2d_ceil_last_window_starts_on_pad" { 0.5e-4 } else { 0.0 };
        let bound = (taps + 1.0) * U * largest(x.floats()) + written;
        judge(case, "", &out, y.floats(), |_| bound);
    }
}

/// Softmax along any axis: rows are gathered, and results compared where they belong.
fn row_softmax(case: &NodeCase) {
    let (x, y) = (case.tensor("x"), case.tensor("y"));
    let rank = x.shape.len() as i64;
    let axis = case.number::<i64>("axis").unwrap_or(-1).rem_euclid(rank) as usize;
    let product = |of: &[usize]| of.iter().product::<usize>();
    let (outer, columns, inner) = (product(&x.shape[..axis]), x.shape[axis], product(&x.shape[axis + 1..]));
    let rows = outer * inner;
    let place = |row: usize, column: usize| (row / inner * columns + column) * inner + row % inner;
    let gather = |of: &[f32]| (0..rows * columns).map(|at| of[place(at / columns, at % columns)]).collect::<Vec<f32>>();
    let mut out = vec![f32::NAN; x.floats().len()];
    let (shape, log) = ([outer, columns, inner], case.operator == "LogSoftmax");
    if log {
        softmax::axis::log_forward(shape, x.floats(), &mut out, Parallelism::Serial).unwrap();
    } else {
        softmax::axis::forward(shape, x.floats(), &mut out, Parallelism::Serial).unwrap();
    }
    let (given, out, expected) = (gather(x.floats()), gather(&out), gather(y.floats()));
    judge(case, "", &out, &expected, |at| {
        let row = &given[at / columns * columns..][..columns];
        let below = f64::from(row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) - given[at]);
        let (y, n) = (f64::from(expected[at]).abs(), columns as f64);
        if log {
            U * (2.0 * y + 2.0 * below + 2.0 * n.ln() + n + 7.0)
        } else {
            y * U * (below + n.ln() + n + 7.0) + 1.23e-38
        }
    });
}

/// Layer and RMS norm from an axis on: everything behind it is a row.
fn row_norm(case: &NodeCase) {
    let (x, y) = (case.tensor("x"), case.tensor("y"));
    let axis = case.number::<i64>("axis").unwrap_or(-1).rem_euclid(x.shape.len() as i64) as usize;
    let columns = x.shape[axis..].iter().product::<usize>();
    let (x, rows) = (x.floats(), x.floats().len() / columns);
    let epsilon = case.number::<f32>("epsilon").unwrap_or(1e-5);
    let gamma = case.tensors.get("w").or(case.tensors.get("scale")).expect("a scale").floats();
    let beta = case.tensors.get("b").or(case.tensors.get("bias")).map(|bias| bias.floats());
    let centred = case.operator == "LayerNormalization";
    let mut out = vec![f32::NAN; x.len()];
    if centred {
        let affine = Affine { gamma: Some(gamma), beta };
        layer::forward([rows, columns], x, affine, epsilon, &mut out, Parallelism::Serial).unwrap();
    } else {
        rms::forward([rows, columns], x, Some(gamma), epsilon, &mut out, Parallelism::Serial).unwrap();
    }
    // The bound that the documentation of `norm` derives.
    judge(case, "", &out, y.floats(), |at| {
        let row = &x[at / columns * columns..][..columns];
        let (n, d) = (columns as f64, (columns / 64 + 8) as f64);
        let mean = if centred { row.iter().map(|&x| f64::from(x)).sum::<f64>() / n } else { 0.0 };
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let largest = row.iter().map(|&x| f64::from(x).abs()).sum::<f64>() / n;
        let em = if centred { (d + 2.0) * U * largest } else { 0.0 };
        let er = r * ((d / 2.0 + 6.0) * U + em * em * r * r / 2.0);
        let hat = (f64::from(x[at]) - mean) * r;
        let eh = r * em + hat.abs() * (er / r + 3.0 * U);
        let (gamma, beta) = (f64::from(gamma[at % columns]), beta.map_or(0.0, |beta| f64::from(beta[at % columns])));
        gamma.abs() * eh + 2.0 * U * ((gamma * hat).abs() + beta.abs())
    });
}

/// Row by row, for positions come in any order.
fn rotary_embedding(case: &NodeCase) {
    let (x, cos, sin) = (case.tensor("input"), case.tensor("cos_cache"), case.tensor("sin_cache"));
    // [batch, heads, length, head_dim], or [batch, length, heads * head_dim].
    let (batch, heads, length, head_dim, by_head) = match x.shape[..] {
        [batch, heads, length, head_dim] => (batch, heads, length, head_dim, true),
        [batch, length, all] => {
            let heads = case.number::<usize>("num_heads").expect("a number of heads");
            (batch, heads, length, all / heads, false)
        }
        _ => panic!("{}: {:?}", case.name, x.shape),
    };
    let dim = case.number::<usize>("rotary_embedding_dim").filter(|&dim| dim > 0).unwrap_or(head_dim);
    let pairing = if case.number::<usize>("interleaved") == Some(1) { Pairing::Interleaved } else { Pairing::Half };
    let rotary = Rotary::with_angles(pairing, dim, cos.floats(), sin.floats()).unwrap();
    let mut out = vec![f32::NAN; x.floats().len()];
    for row in 0..batch * heads * length {
        let (b, l) = (row / (heads * length), if by_head { row % length } else { row / heads % length });
        let position = match case.tensors.get("position_ids").map(|ids| &ids.data) {
            Some(Data::Integers(ids)) => ids[b * length + l] as usize,
            // Without, there are angles for each row of each sequence.
            _ => b * length + l,
        };
        let (shape, at) = (rotary::Shape { outer: 1, length: 1, inner: 1, head_dim }, row * head_dim);
        let (x, out) = (&x.floats()[at..][..head_dim], &mut out[at..][..head_dim]);
        rotary.forward(shape, position, x, out, Parallelism::Serial).unwrap();
    }
    judge(case, "", &out, case.tensor("output").floats(), |at| {
        8.0 * U * largest(&x.floats()[at / head_dim * head_dim..][..head_dim])
    });
}

/// A matrix product over broadcast batches, one call each.
fn product(case: &NodeCase) {
    let (a, b) = (case.tensor("a"), case.tensor("b"));
    let y = case.tensors.get("y").unwrap_or_else(|| case.tensor("c"));
    let flag = |name: &str| case.number::<usize>(name) == Some(1);
    // Vectors are a row on the left and a column on the right.
    let left = if a.shape.len() == 1 { vec![1, a.shape[0]] } else { a.shape.clone() };
    let right = if b.shape.len() == 1 { vec![b.shape[0], 1] } else { b.shape.clone() };
    let matrix = |shape: &[usize], transposed: bool| {
        let [rows, columns] = [shape[shape.len() - 2], shape[shape.len() - 1]];
        if transposed { ([columns, rows], [1, columns as isize]) } else { ([rows, columns], [columns as isize, 1]) }
    };
    let ((lhs, lhs_strides), (rhs, rhs_strides)) = (matrix(&left, flag("transA")), matrix(&right, flag("transB")));
    let (m, n, k) = (lhs[0], rhs[1], lhs[1]);
    let batches = y.floats().len() / (m * n);
    let outer: Vec<usize> = {
        let (long, short) = if left.len() > right.len() { (&left, &right) } else { (&right, &left) };
        let missing = long.len() - short.len();
        let size = |axis: usize| long[axis].max(axis.checked_sub(missing).map_or(1, |axis| short[axis]));
        (0..long.len() - 2).map(size).collect()
    };
    let offset = |shape: &[usize], batch: usize| {
        let (mut rest, mut step, mut offset) = (batch, shape[shape.len() - 2] * shape[shape.len() - 1], 0);
        let dims = &shape[..shape.len() - 2];
        for (back, &size) in outer.iter().rev().enumerate() {
            let at = rest % size;
            rest /= size;
            if let Some(&own) = dims.len().checked_sub(back + 1).and_then(|axis| dims.get(axis)) {
                offset += if own == 1 { 0 } else { at * step };
                step *= own;
            }
        }
        offset
    };
    let [alpha, beta] = ["alpha", "beta"].map(|name| case.number::<f32>(name).unwrap_or(1.0));
    let added = if case.operator == "Gemm" { case.tensors.get("c") } else { None };
    let bias = |row: usize, column: usize| {
        let Some(c) = added else { return 0.0 };
        let (rows, columns) = match c.shape[..] {
            [] => (1, 1),
            [columns] => (1, columns),
            _ => (c.shape[0], c.shape[1]),
        };
        c.floats()[if rows == 1 { 0 } else { row } * columns + if columns == 1 { 0 } else { column }]
    };
    let mut out = vec![f32::NAN; m * n * batches];
    for batch in 0..batches {
        let lhs = View::strided(a.floats(), offset(&left, batch), lhs, lhs_strides).unwrap();
        let rhs = View::strided(b.floats(), offset(&right, batch), rhs, rhs_strides).unwrap();
        let to = &mut out[batch * m * n..][..m * n];
        kernels::gemm::gemm(lhs, rhs, &mut ViewMut::new(to, [m, n]).unwrap()).unwrap();
        for (at, value) in to.iter_mut().enumerate() {
            *value = alpha * *value + beta * bias(at / n, at % n);
        }
    }
    let magnitude = k as f64 * largest(a.floats()) * largest(b.floats()) * f64::from(alpha.abs())
        + f64::from(beta.abs()) * added.map_or(0.0, |c| largest(c.floats()));
    judge(case, "", &out, y.floats(), |_| (k as f64 + 4.0) * U * magnitude);
}

/// Attention as ONNX has it: three or four dimensions, masks that broadcast from the right, a past that is put before
/// the keys, lengths without the padding.
fn attention(case: &NodeCase) {
    let (q, k, v, y) = (case.tensor("q"), case.tensor("k"), case.tensor("v"), case.tensor("y"));
    let flat = q.shape.len() == 3;
    let given_heads: [Option<usize>; 2] = ["q_num_heads", "kv_num_heads"].map(|name| case.number(name));
    let (heads, kv_heads) =
        if flat { (given_heads[0].unwrap(), given_heads[1].unwrap()) } else { (q.shape[1], k.shape[1]) };
    // Shape and strides of [batch, heads, length, dim], where it may lie as [batch, length, heads * dim].
    let layout = |shape: &[usize], heads: usize| {
        if flat {
            let [batch, len, all] = [shape[0], shape[1], shape[2]];
            let dim = all / heads;
            ([batch, heads, len, dim], [len * all, dim, all, 1].map(|stride| stride as isize))
        } else {
            let [batch, heads, len, dim] = [shape[0], shape[1], shape[2], shape[3]];
            ([batch, heads, len, dim], [heads * len * dim, len * dim, dim, 1].map(|stride| stride as isize))
        }
    };
    let ((q_shape, q_strides), (k_shape, k_strides)) = (layout(&q.shape, heads), layout(&k.shape, kv_heads));
    let ((v_shape, v_strides), (y_shape, y_strides)) = (layout(&v.shape, kv_heads), layout(&y.shape, heads));
    let [batch, _, q_len, dim] = q_shape;
    let past = case.tensors.get("past_key").map_or(0, |past| past.shape[2]);
    let kv_len = past + k_shape[2];
    let lens: Option<Vec<usize>> = case.tensors.get("nonpad_kv_seqlen").map(|lens| match &lens.data {
        Data::Integers(lens) => lens.iter().map(|&len| len as usize).collect(),
        _ => panic!("{}: lengths that are none", case.name),
    });

    let mut spec = AttentionSpec::new(heads, dim).kv_heads(kv_heads).v_dim(v_shape[3]);
    spec.scale = case.number("scale").unwrap_or(spec.scale);
    spec.softcap = case.number("softcap").filter(|&cap: &f32| cap > 0.0);
    // Positions: those of ONNX start after the past, or end with each sequence.
    let causal = case.number::<usize>("is_causal") == Some(1);
    let sides: [Option<usize>; 2] = ["left_window_size", "right_window_size"]
        .map(|name| case.number::<i64>(name).and_then(|side| usize::try_from(side).ok()));
    let offset = |b: usize| match &lens {
        Some(lens) => lens[b] as isize - q_len as isize,
        None => past as isize,
    };
    let ends_with_keys = lens.is_some() || past + q_len == kv_len;
    let same_corner = past == 0 && lens.is_none();
    let positions = causal || sides != [None, None];
    let mut hidden_by_test = false;
    if causal && same_corner {
        spec = spec.causal(Causal::TopLeft);
    } else if causal && ends_with_keys {
        spec = spec.causal(Causal::BottomRight);
    }
    if !positions || same_corner || (causal && ends_with_keys) {
        spec = spec.window(sides[0], sides[1]);
    } else {
        hidden_by_test = true; // neither corner: the caller's mask says which pairs see each other
    }

    let pairs = [batch, heads, q_len, kv_len];
    let count = pairs.iter().product::<usize>();
    let places = || {
        (0..count)
            .map(|at| [at / kv_len / q_len / heads, at / kv_len / q_len % heads, at / kv_len % q_len, at % kv_len])
    };
    let mask = case.tensors.get("attn_mask");
    // The element of the mask, or none beyond its last key.
    let mask_at = |place: [usize; 4]| {
        let shape = &mask?.shape;
        let mut index = 0;
        for (axis, &size) in shape.iter().enumerate() {
            let at = place[4 - shape.len() + axis];
            if axis + 1 == shape.len() && size > 1 && at >= size {
                return None;
            }
            index = index * size + if size == 1 { 0 } else { at };
        }
        Some(index)
    };
    let bias: Option<Vec<f32>> = match mask.map(|mask| &mask.data) {
        Some(Data::Floats(data)) => {
            Some(places().map(|place| mask_at(place).map_or(f32::NEG_INFINITY, |at| data[at])).collect())
        }
        _ => None,
    };
    let kept_by_mask: Option<Vec<bool>> = match mask.map(|mask| &mask.data) {
        Some(Data::Booleans(data)) => Some(places().map(|place| mask_at(place).is_some_and(|at| data[at])).collect()),
        _ => None,
    };
    let keep: Option<Vec<bool>> = (hidden_by_test || kept_by_mask.is_some()).then(|| {
        places()
            .enumerate()
            .map(|(at, [b, _, i, j])| {
                let distance = i as isize + offset(b) - j as isize;
                let [left, right] = sides.map(|side| side.map_or(isize::MAX, |side| side as isize));
                let seen = (!causal || distance >= 0) && distance <= left && -distance <= right;
                kept_by_mask.as_ref().is_none_or(|kept| kept[at]) && (seen || !hidden_by_test)
            })
            .collect()
    });

    // Past and present go through a cache.
    let mut cache = KvCache::new(&spec, batch, kv_len).unwrap();
    if past > 0 {
        let (past_key, past_value) = (case.tensor("past_key"), case.tensor("past_value"));
        for b in 0..batch {
            let part = |data: &'_ [f32], shape: [usize; 4], strides: [isize; 4]| -> Vec<f32> {
                let view = View::strided(data, 0, shape, strides).unwrap();
                let [_, heads, len, dim] = shape;
                (0..heads * len * dim).map(|at| view.get([b, at / dim / len, at / dim % len, at % dim])).collect()
            };
            let whole = |shape: &[usize]| layout_of_rows(shape);
            for (k, k_layout, v, v_layout) in [
                (past_key, whole(&past_key.shape), past_value, whole(&past_value.shape)),
                (k, (k_shape, k_strides), v, (v_shape, v_strides)),
            ] {
                let (of_k, of_v) = (part(k.floats(), k_layout.0, k_layout.1), part(v.floats(), v_layout.0, v_layout.1));
                let rows = |shape: [usize; 4]| [shape[1], shape[2], shape[3]];
                let k_view = View::new(&of_k, rows(k_layout.0)).unwrap();
                cache.append(b, &k_view, &View::new(&of_v, rows(v_layout.0)).unwrap()).unwrap();
            }
        }
    }
    let q_view = View::strided(q.floats(), 0, q_shape, q_strides).unwrap();
    let mut inputs = if past > 0 {
        cache.inputs(q_view).unwrap()
    } else {
        let k_view = View::strided(k.floats(), 0, k_shape, k_strides).unwrap();
        Inputs::new(q_view, k_view, View::strided(v.floats(), 0, v_shape, v_strides).unwrap())
    };
    if let Some(bias) = &bias {
        inputs = inputs.bias(View::new(bias, pairs).unwrap());
    }
    if let Some(keep) = &keep {
        inputs = inputs.keep(View::new(keep, pairs).unwrap());
    }
    if let Some(lens) = &lens {
        inputs = inputs.kv_lens(lens);
    }

    // The bound of the output, with every magnitude at its largest; ONNX scales queries and keys before their product.
    let products = dim as f64 * largest(q.floats()) * largest(k.floats()).max(largest_of(case, "past_key"));
    let scale = f64::from(spec.scale.abs());
    let added = bias.as_ref().map_or(0.0, |bias| {
        bias.iter().filter(|x| x.is_finite()).fold(0.0, |largest, &x| f64::from(x.abs()).max(largest))
    });
    let range = scale * products + added;
    let theta = 2.0 * (scale * (dim as f64 + 8.0) * products + 8.0 * range) * U + (6.0 * range + 12.0) * U;
    let relative = (2.0 * theta).exp_m1() + (2.0 * kv_len as f64 + 12.0) * U;
    // What no row sees must not widen the bound: magnitudes of the outputs themselves.
    let bound = relative * largest(v.floats()).max(largest_of(case, "past_value")).min(1e3 * largest(y.floats()));
    for isa in Isa::available() {
        let plan = Attention::with_isa(spec, isa).unwrap();
        let shape = inputs.check(&spec).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let mut out = vec![f32::NAN; y.floats().len()];
        let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
        let to = ViewMut::strided(&mut out, 0, y_shape, y_strides).unwrap();
        plan.forward(&inputs, to, None, &mut workspace, Parallelism::Serial).unwrap();
        judge(case, &format!("on {isa}"), &out, y.floats(), |_| bound);
    }
}

fn largest_of(case: &NodeCase, name: &str) -> f64 {
    case.tensors.get(name).map_or(0.0, |tensor| largest(tensor.floats()))
}

/// A row-major `[batch, heads, length, dim]`.
fn layout_of_rows(shape: &[usize]) -> ([usize; 4], [isize; 4]) {
    let [batch, heads, len, dim] = [shape[0], shape[1], shape[2], shape[3]];
    ([batch, heads, len, dim], [heads * len * dim, len * dim, dim, 1].map(|stride| stride as isize))
}
