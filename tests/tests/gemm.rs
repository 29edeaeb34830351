//! Matrix products and the linear layer through the public API, against the references.

use kernels::gemm::{Bias, Epilogue, Gemm, PackedLhs, PackedRhs, gemm, workspace_len};
use kernels::linear::{Gradients, Linear};
use kernels::{Activation, Error, Isa, Parallelism, View, ViewMut, Workspace, reference};
use tests::guard::{Guarded, POISON, SENTINEL, Side};

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    /// Integers from -7 to 7: sums of up to 2^24 / 49 products are exact in any order.
    fn integers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % 15) as f32 - 7.0).collect()
    }
    fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % 65536) as f32 / 32768.0 - 1.0).collect()
    }
}

const SIZES: [usize; 12] = [0, 1, 2, 3, 6, 7, 13, 16, 17, 33, 48, 49];

#[test]
fn integer_products_are_exactly_the_references() {
    let mut random = Random(1);
    for isa in Isa::available() {
        for m in SIZES {
            for n in SIZES {
                for k in SIZES {
                    let (lhs, rhs) = (random.integers(m * k), random.integers(k * n));
                    let mut expected = vec![0.0; m * n];
                    reference::gemm(m, n, k, &lhs, &rhs, &mut expected).unwrap();
                    let mut workspace = Workspace::with_len(workspace_len(m, n, k, 1).unwrap()).unwrap();
                    let options = Gemm { isa: Some(isa), ..Gemm::default() };
                    let (a, b) = (View::new(&lhs, [m, k]).unwrap(), View::new(&rhs, [k, n]).unwrap());
                    let mut out = vec![f32::NAN; m * n];
                    let mut view = ViewMut::new(&mut out, [m, n]).unwrap();
                    options.run(a, b, &mut view, &mut workspace, Parallelism::Serial).unwrap();
                    assert_eq!(out, expected, "{m}x{n}x{k} {isa}");
                    let packed = PackedLhs::new(a, Some(isa)).unwrap();
                    let mut view = ViewMut::new(&mut out, [m, n]).unwrap();
                    options.run_packed_lhs(&packed, b, &mut view, &mut workspace, Parallelism::Serial).unwrap();
                    assert_eq!(out, expected, "{m}x{n}x{k} {isa} packed lhs");
                    let packed = PackedRhs::new(b, Some(isa)).unwrap();
                    let mut view = ViewMut::new(&mut out, [m, n]).unwrap();
                    options.run_packed_rhs(a, &packed, &mut view, &mut workspace, Parallelism::Serial).unwrap();
                    assert_eq!(out, expected, "{m}x{n}x{k} {isa} packed rhs");
                }
            }
        }
    }
}

/// A matrix whose rows are contiguous, or the same with contiguous columns, and its strides.
fn lying(matrix: &[f32], [rows, columns]: [usize; 2], by_columns: bool) -> (Vec<f32>, [isize; 2]) {
    if !by_columns {
        return (matrix.to_vec(), [columns as isize, 1]);
    }
    let turned = (0..rows * columns).map(|at| matrix[at % rows * columns + at / rows]).collect();
    (turned, [1, rows as isize])
}

#[test]
fn products_read_and_write_what_is_theirs() {
    let mut random = Random(5);
    let [mut lhs_memory, mut rhs_memory, mut out_memory, mut workspace_memory] = [(); 4].map(|()| Guarded::default());
    let thin = (1..=17).flat_map(|thin| [[thin, 83, 41], [83, thin, 41], [thin, 16, 16], [16, thin, 131]]);
    for [m, n, k] in thin.chain([[40, 70, 30], [29, 100, 300]]) {
        let (lhs, rhs) = (random.integers(m * k), random.integers(k * n));
        let mut expected = vec![0.0; m * n];
        reference::gemm(m, n, k, &lhs, &rhs, &mut expected).unwrap();
        for (lhs_columns, rhs_columns) in [(false, false), (false, true), (true, false), (true, true)] {
            // The same matrices, whose rows or whose columns are contiguous.
            let (lhs, a_strides) = lying(&lhs, [m, k], lhs_columns);
            let (rhs, b_strides) = lying(&rhs, [k, n], rhs_columns);
            for isa in Isa::available() {
                for side in [Side::Left, Side::Right] {
                    let a = View::strided(lhs_memory.copy(&lhs, side), 0, [m, k], a_strides).unwrap();
                    let b = View::strided(rhs_memory.copy(&rhs, side), 0, [k, n], b_strides).unwrap();
                    let out = out_memory.filled(m * n, side, SENTINEL);
                    let workspace = workspace_memory.filled(workspace_len(m, n, k, 1).unwrap(), side, POISON);
                    let mut view = ViewMut::new(out, [m, n]).unwrap();
                    let options = Gemm { isa: Some(isa), ..Gemm::default() };
                    options.run(a, b, &mut view, workspace, Parallelism::Serial).unwrap();
                    assert_eq!(out, expected, "{m}x{n}x{k} {a_strides:?} {b_strides:?} {isa} {side:?}");
                }
            }
        }
    }
}

#[test]
fn real_products_are_within_the_bound_of_their_chains() {
    let mut random = Random(2);
    for (m, n, k) in [(7, 33, 1000), (64, 50, 300), (1, 200, 4000), (200, 1, 4000), (130, 300, 700)] {
        let (lhs, rhs) = (random.reals(m * k), random.reals(k * n));
        let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let size = |data: &[f32]| data.iter().map(|&x| f64::from(x).abs()).collect::<Vec<_>>();
        let (mut exact, mut sizes) = (vec![0.0f64; m * n], vec![0.0f64; m * n]);
        reference::gemm(m, n, k, &wide(&lhs), &wide(&rhs), &mut exact).unwrap();
        reference::gemm(m, n, k, &size(&lhs), &size(&rhs), &mut sizes).unwrap();
        let mut out = vec![f32::NAN; m * n];
        let (a, b) = (View::new(&lhs, [m, k]).unwrap(), View::new(&rhs, [k, n]).unwrap());
        gemm(a, b, &mut ViewMut::new(&mut out, [m, n]).unwrap()).unwrap();
        let units = (k + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
        for at in 0..m * n {
            let bound = units / (1.0 - units) * sizes[at];
            assert!((f64::from(out[at]) - exact[at]).abs() <= bound, "{m}x{n}x{k} at {at}");
        }
    }
}

#[test]
fn wrong_shapes_are_errors_and_leave_the_output_alone() {
    let data = [1.0f32; 64];
    let view = |rows, columns| View::new(&data[..rows * columns], [rows, columns]).unwrap();
    let mut out = [9.0f32; 16];
    let mut workspace = vec![0.0; workspace_len(4, 4, 3, 1).unwrap()];
    let plain = Gemm::default();
    let mut run = |options: Gemm<'_>, lhs, rhs, rows, workspace: &mut [f32]| {
        let mut view = ViewMut::new(&mut out[..rows * 4], [rows, 4]).unwrap();
        let result = options.run(lhs, rhs, &mut view, workspace, Parallelism::Serial);
        assert_eq!(out, [9.0; 16]);
        result.unwrap_err()
    };
    let error = run(plain, view(4, 3), view(2, 4), 4, &mut workspace);
    assert_eq!(error, Error::Shape { argument: "rhs", expected: vec![3, 4], given: vec![2, 4] });
    let error = run(plain, view(4, 3), view(3, 4), 3, &mut workspace);
    assert_eq!(error, Error::Shape { argument: "out", expected: vec![4, 4], given: vec![3, 4] });
    let bias = Epilogue { bias: Bias::Rows(&data[..3]), ..Epilogue::default() };
    let error = run(Gemm { epilogue: bias, ..plain }, view(4, 3), view(3, 4), 4, &mut workspace);
    assert_eq!(error, Error::Length { argument: "bias", expected: 4, given: 3 });
    let residual = Epilogue { residual: Some(view(4, 5)), ..Epilogue::default() };
    let error = run(Gemm { epilogue: residual, ..plain }, view(4, 3), view(3, 4), 4, &mut workspace);
    assert_eq!(error, Error::Shape { argument: "residual", expected: vec![4, 4], given: vec![4, 5] });
    let error = run(plain, view(4, 3), view(3, 4), 4, &mut []);
    assert!(matches!(error, Error::Length { argument: "workspace", given: 0, .. }));
}

#[test]
fn chains_without_a_term_need_no_more_workspace_than_was_asked_for() {
    let mut workspace = vec![f32::NAN; workspace_len(4, 257, 0, 1).unwrap()];
    let (lhs, rhs) = (View::new(&[], [4, 0]).unwrap(), View::strided(&[], 0, [0, 257], [774, 3]).unwrap());
    for isa in Isa::available() {
        let packed = PackedLhs::new(lhs, Some(isa)).unwrap();
        let mut out = vec![f32::NAN; 4 * 257];
        let mut view = ViewMut::new(&mut out, [4, 257]).unwrap();
        Gemm::default().run_packed_lhs(&packed, rhs, &mut view, &mut workspace, Parallelism::Serial).unwrap();
        assert!(out.iter().all(|&out| out == 0.0), "{isa}");
    }
}

#[test]
fn a_packed_operand_takes_only_its_own_shape_again() {
    let data = [1.0f32; 12];
    let mut packed = PackedLhs::new(View::new(&data, [3, 4]).unwrap(), None).unwrap();
    assert!(packed.repack(View::new(&data, [4, 3]).unwrap()).is_err());
    assert!(packed.repack(View::new(&data, [3, 4]).unwrap()).is_ok());
    assert_eq!(packed.shape(), [3, 4]);
    assert!(workspace_len(usize::MAX, usize::MAX, usize::MAX, usize::MAX).is_err());
}

#[test]
fn the_linear_layer_agrees_with_its_reference() {
    let mut random = Random(3);
    for isa in Isa::available() {
        for (batch, i, o) in [(0, 3, 2), (1, 5, 7), (4, 1, 1), (3, 40, 10), (33, 20, 17), (5, 0, 4)] {
            let layer = Linear { activation: Activation::Relu, isa: Some(isa), ..Linear::new(i, o) };
            let (x, w, bias) = (random.integers(batch * i), random.integers(o * i), random.integers(o));
            let dy = random.integers(batch * o);
            let mut workspace = Workspace::with_len(layer.workspace_len(batch, 1).unwrap()).unwrap();
            let (mut y, mut expected) = (vec![f32::NAN; batch * o], vec![0.0; batch * o]);
            reference::linear_forward([batch, i, o], &x, &w, Some(&bias), &mut expected).unwrap();
            let expected: Vec<f32> = expected.iter().map(|y| y.max(0.0)).collect();
            layer.forward(batch, &x, &w, Some(&bias), &mut y, &mut workspace, Parallelism::Serial).unwrap();
            assert_eq!(y, expected, "{batch} {i} {o} {isa}");

            let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; o]);
            reference::linear_backward([batch, i, o], &x, &w, &dy, &mut dx, &mut dw, &mut db).unwrap();
            let (mut dx2, mut dw2, mut db2) = (vec![f32::NAN; x.len()], vec![1.0; w.len()], vec![1.0; o]);
            let gradients = Gradients {
                dx: Some(&mut dx2),
                dw: Some(&mut dw2),
                db: Some(&mut db2),
                accumulate_dx: false,
                accumulate_parameters: true,
            };
            layer.backward(batch, &x, &w, &dy, gradients, &mut workspace, Parallelism::Serial).unwrap();
            assert_eq!(dx2, dx);
            assert_eq!(dw2, dw.iter().map(|x| x + 1.0).collect::<Vec<_>>());
            assert_eq!(db2, db.iter().map(|x| x + 1.0).collect::<Vec<_>>());
        }
    }
}
