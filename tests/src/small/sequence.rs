//! Rotary embedding and the look-up in a table.

use kernels::rotary::{Pairing, Rotary, Shape};
use kernels::{embedding, reference};

use super::call::{Call, Output, Values, wide};
use crate::data::{below, random};
use crate::oracle::UNIT;

/// The usual base of the angles.
const BASE: f64 = 10000.0;

pub(super) fn rotary(
    pairing: Pairing,
    dim: usize,
    shape: Shape,
    offset: usize,
    values: Values,
    seed: u64,
) -> Vec<Call> {
    let Shape { outer, length, inner, head_dim } = shape;
    let x = values.draw(seed, 1, outer * length * inner * head_dim);
    let turned = |name: &'static str, sign: f64| {
        let mut y = vec![0.0; x.len()];
        reference::rotary(pairing, dim, BASE, shape, offset, sign, &wide(&x), &mut y).expect("lengths that fit");
        Output::within(name, y, |i| {
            let at = i % head_dim;
            let partner = match pairing {
                _ if at >= dim => return 0.0,
                Pairing::Interleaved => i - at + (at ^ 1),
                Pairing::Half => i - at + (at + dim / 2) % dim,
            };
            4.0 * UNIT * f64::from(x[i].abs() + x[partner].abs())
        })
    };
    let rotary = move || Rotary::new(pairing, dim, BASE, offset + length);
    vec![
        Call::new("forward", vec![("x", x.clone())], vec![turned("y", 1.0)], move |inputs, outputs, _, execution| {
            rotary()?.forward(shape, offset, inputs[0], outputs[0], execution)
        }),
        Call::new(
            "forward in place",
            vec![],
            vec![turned("y", 1.0).over(x.clone())],
            move |_, outputs, _, execution| rotary()?.forward_in_place(shape, offset, outputs[0], execution),
        ),
        Call::new(
            "backward",
            vec![("dy", x.clone())],
            vec![turned("dx", -1.0)],
            move |inputs, outputs, _, execution| rotary()?.backward(shape, offset, inputs[0], outputs[0], execution),
        ),
        Call::new(
            "backward in place",
            vec![],
            vec![turned("dx", -1.0).over(x.clone())],
            move |_, outputs, _, execution| rotary()?.backward_in_place(shape, offset, outputs[0], execution),
        ),
    ]
}

pub(super) fn embedding([rows, columns]: [usize; 2], count: usize, values: Values, seed: u64) -> Vec<Call> {
    let shape = [rows, columns];
    let (table, dy) = (values.draw(seed, 1, rows * columns), values.draw(seed, 2, count * columns));
    // Some rows often, some never.
    let indices: Vec<usize> = (0..count as u64)
        .map(|i| below(random(seed, 900 + i), rows.div_ceil(1 + (i % 3) as usize) as u64) as usize)
        .collect();
    let (mut y, mut dtable) = (vec![0.0; count * columns], table.clone());
    reference::embedding_forward(shape, &table, &indices, &mut y).expect("rows that exist");
    // The order of the additions is that of the definition.
    reference::embedding_backward(shape, &indices, &dy, &mut dtable).expect("rows that exist");
    let (y, dtable) = (Output::exactly("y", &y), Output::exactly("dtable", &dtable).over(table.clone()));
    let of_backward = indices.clone();
    vec![
        Call::new("forward", vec![("table", table)], vec![y], move |inputs, outputs, _, execution| {
            embedding::forward(shape, inputs[0], &indices, outputs[0], execution)
        }),
        Call::new("backward", vec![("dy", dy)], vec![dtable], move |inputs, outputs, _, execution| {
            embedding::backward(shape, &of_backward, inputs[0], outputs[0], execution)
        }),
    ]
}
