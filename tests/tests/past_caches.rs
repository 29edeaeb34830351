//! Outputs that no cache holds are written past the caches: with the same bits as piece by piece, into them.

use kernels::activation::gated::{self, Gated};
use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch, group, layer, rms};
use kernels::rotary::{Pairing, Rotary, Shape};
use kernels::{Activation, Error, Execution, Isa, Parallelism, activation, embedding, softmax};
use tests::data::numbers;

/// More than 4 Mi elements, in rows that start anywhere in a vector.
const ROWS: usize = 4100;
const COLUMNS: usize = HEADS * HEAD_DIM;
const HEADS: usize = 13;
const HEAD_DIM: usize = 79;
/// Rows that are written into the caches.
const PIECE: usize = 410;

/// What some rows of both inputs are made into: the first row's number, the inputs, the output.
type Call<'a> = dyn Fn(usize, &[f32], &[f32], &mut [f32], Execution) -> Result<(), Error> + 'a;

/// Compares all rows at once with a piece after the other, on every instruction set.
fn has_the_same_bits_as_its_pieces(name: &str, call: &Call) {
    let (a, b) = (numbers(ROWS * COLUMNS, 1), numbers(ROWS * COLUMNS, 2));
    for isa in Isa::available() {
        for threads in [Parallelism::Serial, Parallelism::Current] {
            let execution = Execution::on(isa).parallelism(threads);
            let mut whole = vec![9.0; ROWS * COLUMNS + 2];
            call(0, &a, &b, &mut whole[1..=ROWS * COLUMNS], execution).unwrap();
            assert_eq!([whole[0], whole[ROWS * COLUMNS + 1]], [9.0; 2], "{name} on {isa}");
            let mut piece = vec![9.0; PIECE * COLUMNS];
            for first in (0..ROWS).step_by(PIECE) {
                let range = first * COLUMNS..(first + PIECE) * COLUMNS;
                call(first, &a[range.clone()], &b[range.clone()], &mut piece, Execution::on(isa)).unwrap();
                let same = whole[1..][range].iter().zip(&piece).position(|(x, y)| x.to_bits() != y.to_bits());
                assert_eq!(same, None, "{name} on {isa}: rows from {first} on differ");
            }
        }
    }
}

#[test]
fn elementwise_kernels() {
    for function in [Activation::Identity, Activation::Relu] {
        has_the_same_bits_as_its_pieces("forward", &|_, x, _, y, e| activation::forward(function, x, y, e));
        has_the_same_bits_as_its_pieces("backward", &|_, y, dy, dx, e| activation::backward(function, y, dy, dx, e));
    }
    has_the_same_bits_as_its_pieces("silu", &|_, x, _, y, e| gated::forward(Gated::Silu, x, y, e));
    has_the_same_bits_as_its_pieces("silu", &|_, x, dy, dx, e| gated::backward(Gated::Silu, x, dy, dx, e));
}

#[test]
fn kernels_of_rows() {
    let rows = |x: &[f32]| [x.len() / COLUMNS, COLUMNS];
    let (gamma, beta) = (numbers(COLUMNS, 3), numbers(COLUMNS, 4));
    has_the_same_bits_as_its_pieces("softmax", &|_, y, dy, dx, e| softmax::backward(rows(y), y, dy, dx, e));
    has_the_same_bits_as_its_pieces("log_softmax", &|_, y, dy, dx, e| softmax::log_backward(rows(y), y, dy, dx, e));
    has_the_same_bits_as_its_pieces("layer norm", &|_, x, _, y, e| {
        layer::forward(rows(x), x, Affine::new(&gamma, &beta), 1e-5, y, e)
    });
    has_the_same_bits_as_its_pieces("rms norm", &|_, x, _, y, e| rms::forward(rows(x), x, Some(&gamma), 1e-5, y, e));
    has_the_same_bits_as_its_pieces("layer norm backward", &|_, x, dy, dx, e| {
        let mut workspace = vec![0.0; layer::backward_workspace_len(rows(x))?];
        let (mut dgamma, mut dbeta) = (vec![0.0; COLUMNS], vec![0.0; COLUMNS]);
        let gradients = Gradients { dx, dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
        layer::backward(rows(x), x, Some(&gamma), dy, 1e-5, gradients, &mut workspace, e)
    });
    has_the_same_bits_as_its_pieces("rms norm backward", &|_, x, dy, dx, e| {
        let mut workspace = vec![0.0; rms::backward_workspace_len(rows(x))?];
        let gradients = Gradients { dx, dgamma: None, dbeta: None };
        rms::backward(rows(x), x, Some(&gamma), dy, 1e-5, gradients, &mut workspace, e)
    });
}

#[test]
fn kernels_of_channels() {
    let (gamma, beta) = (numbers(ROWS, 3), numbers(ROWS, 4));
    let groups = |x: &[f32]| group::Shape { batch: x.len() / COLUMNS / 2, channels: 2, pixels: COLUMNS, groups: 1 };
    has_the_same_bits_as_its_pieces("group norm", &|_, x, _, y, e| {
        group::forward(groups(x), x, Affine::new(&gamma[..2], &beta[..2]), 1e-5, y, e)
    });
    has_the_same_bits_as_its_pieces("group norm backward", &|_, x, dy, dx, e| {
        let mut workspace = vec![0.0; group::backward_workspace_len(groups(x))?];
        let gradients = Gradients { dx, dgamma: None, dbeta: None };
        group::backward(groups(x), x, Some(&gamma[..2]), dy, 1e-5, gradients, &mut workspace, e)
    });
    // Of one image, each channel is alone.
    let image =
        |x: &[f32]| batch::Shape { batch: 1, channels: x.len() / COLUMNS, pixels: COLUMNS, layout: Layout::Nchw };
    has_the_same_bits_as_its_pieces("batch norm", &|first, x, dy, out, e| {
        let shape = image(x);
        let mut workspace = vec![0.0; batch::workspace_len(shape)?];
        let (mut mean, mut inverse_deviation) = (vec![0.0; shape.channels], vec![0.0; shape.channels]);
        let moments = batch::Moments { mean: &mut mean, inverse_deviation: &mut inverse_deviation };
        let affine = Affine::new(&gamma[first..][..shape.channels], &beta[first..][..shape.channels]);
        batch::forward(shape, x, affine, 1e-5, out, moments, None, &mut workspace, e)?;
        let y = out.to_vec();
        let gradients = Gradients { dx: out, dgamma: None, dbeta: None };
        batch::backward(shape, x, &mean, &inverse_deviation, affine.gamma, dy, gradients, &mut workspace, e)?;
        // Both results in one.
        out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
        Ok(())
    });
    has_the_same_bits_as_its_pieces("batch norm in inference", &|first, x, _, y, e| {
        let shape = image(x);
        let mut workspace = vec![0.0; batch::workspace_len(shape)?];
        let ones = vec![1.0; shape.channels];
        let affine = Affine::new(&gamma[first..][..shape.channels], &beta[first..][..shape.channels]);
        batch::inference(shape, x, &ones, &ones, affine, 1e-5, y, &mut workspace, e)
    });
}

#[test]
fn rotary_embedding_and_look_up() {
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let rotary = Rotary::new(pairing, 64, 10000.0, 10).unwrap();
        has_the_same_bits_as_its_pieces("rotary", &|_, x, _, y, e| {
            let shape = Shape { outer: x.len() / COLUMNS / 10, length: 10, inner: HEADS, head_dim: HEAD_DIM };
            rotary.forward(shape, 0, x, y, e)
        });
    }
    let table = numbers(7 * COLUMNS, 5);
    has_the_same_bits_as_its_pieces("look-up", &|first, x, _, y, e| {
        let indices: Vec<usize> = (first..first + x.len() / COLUMNS).map(|i| i % 7).collect();
        embedding::forward([7, COLUMNS], &table, &indices, y, e)
    });
}
