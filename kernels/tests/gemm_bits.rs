//! Products against the definition of their bits: one chain of fused multiply-adds per output, in order of `k`.

use kernels::gemm::{Bias, Epilogue, Gemm, PackedLhs, PackedRhs, workspace_len};
use kernels::internals::{GemmBlocking as Blocking, GemmInput as Input, gemm_batched_within, gemm_within, mul_add};
use kernels::{Activation, Execution, Isa, Parallelism, View, ViewMut};
use random::Random;

mod random;

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Rows,
    Columns,
    PaddedRows,
    PaddedColumns,
    Reversed,
    ReversedColumns,
    Scattered,
    OneRowForAll,
    OneColumnForAll,
    /// Rows that share a set of L1, for up to 1024 columns.
    CrowdedRows,
}

impl Lie {
    const INPUTS: [Self; 9] = [
        Self::Rows,
        Self::Columns,
        Self::PaddedRows,
        Self::PaddedColumns,
        Self::Reversed,
        Self::ReversedColumns,
        Self::Scattered,
        Self::OneRowForAll,
        Self::OneColumnForAll,
    ];
    const OUTPUTS: [Self; 7] = [
        Self::Rows,
        Self::Columns,
        Self::PaddedRows,
        Self::PaddedColumns,
        Self::Reversed,
        Self::ReversedColumns,
        Self::Scattered,
    ];

    /// Length, offset and strides.
    fn of(self, rows: usize, columns: usize) -> (usize, usize, [isize; 2]) {
        let (r, c) = (rows as isize, columns as isize);
        let (strides, offset) = match self {
            Self::Rows => ([c, 1], 0),
            Self::Columns => ([1, r], 0),
            Self::PaddedRows => ([c + 3, 1], 2),
            Self::PaddedColumns => ([1, r + 5], 1),
            Self::Reversed => ([-(c + 1), 1], (r - 1).max(0) * (c + 1)),
            Self::ReversedColumns => ([c, -1], (c - 1).max(0)),
            Self::Scattered => ([2 * c * 3 + 1, 3], 4),
            Self::OneRowForAll => ([0, 1], 0),
            Self::OneColumnForAll => ([1, 0], 0),
            Self::CrowdedRows => ([1024, 1], 3),
        };
        let len = (r * strides[0].abs() + c * strides[1].abs() + 8) as usize;
        (len, offset as usize, strides)
    }
}

struct Matrix2 {
    data: Vec<f32>,
    offset: usize,
    shape: [usize; 2],
    strides: [isize; 2],
}

impl Matrix2 {
    fn new(lie: Lie, rows: usize, columns: usize, mut fill: impl FnMut() -> f32) -> Self {
        let (len, offset, strides) = lie.of(rows, columns);
        Self { data: (0..len).map(|_| fill()).collect(), offset, shape: [rows, columns], strides }
    }
    fn view(&self) -> View<'_, f32, 2> {
        View::strided(&self.data, self.offset, self.shape, self.strides).unwrap()
    }
    fn view_mut(&mut self) -> ViewMut<'_, f32, 2> {
        ViewMut::strided(&mut self.data, self.offset, self.shape, self.strides).unwrap()
    }
    fn at(&self, i: usize, j: usize) -> usize {
        (self.offset as isize + i as isize * self.strides[0] + j as isize * self.strides[1]) as usize
    }
}

fn activate(isa: Isa, activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Relu => {
            if x.is_nan() || x > 0.0 {
                x
            } else {
                0.0
            }
        }
        Activation::Clamp { low, high } => {
            if x.is_nan() {
                x
            } else {
                x.clamp(low, high)
            }
        }
        Activation::Identity => x,
        // Held against f64 elsewhere.
        _ => {
            let mut y = [x];
            kernels::activation::forward_in_place(activation, &mut y, Execution::on(isa)).unwrap();
            y[0]
        }
    }
}

/// What the output's memory has to be: gaps as they were, each output its chain and its epilogue.
fn expected(isa: Isa, options: &Gemm<'_>, lhs: View<'_, f32, 2>, rhs: View<'_, f32, 2>, out: &Matrix2) -> Vec<f32> {
    let ([m, k], [_, n]) = (lhs.shape(), rhs.shape());
    let mut data = out.data.clone();
    for i in 0..m {
        for j in 0..n {
            let mut x = if options.accumulate { out.data[out.at(i, j)] } else { 0.0 };
            for l in 0..k {
                x = mul_add(isa, lhs.get([i, l]), rhs.get([l, j]), x);
            }
            match options.epilogue.bias {
                Bias::None => {}
                Bias::Rows(bias) => x += bias[i],
                Bias::Columns(bias) => x += bias[j],
            }
            if let Some(residual) = options.epilogue.residual {
                x += residual.get([i, j]);
            }
            data[out.at(i, j)] = activate(isa, options.epilogue.activation, x);
        }
    }
    data
}

/// Bits, with all NaNs the same, and zeros without sign.
fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { (x + 0.0).to_bits() }).collect()
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Packing {
    Neither,
    Lhs,
    Rhs,
}

/// Runs a product in one way and compares every bit of the output's memory.
fn check(
    options: Gemm<'_>,
    [lhs, rhs]: [&Matrix2; 2],
    out: (Lie, f32),
    blocking: &Blocking,
    packing: Packing,
    parallelism: Parallelism<'_>,
) {
    let isa = options.isa.unwrap();
    let ([m, k], [_, n]) = (lhs.shape, rhs.shape);
    let mut random = Random(7);
    let background = out.1;
    let mut out = Matrix2::new(out.0, m, n, || if background.is_nan() { background } else { random.float() });
    let want = expected(isa, &options, lhs.view(), rhs.view(), &out);
    // A workspace that is full of NaN, and starts in the middle of a cache line.
    let mut workspace = vec![f32::NAN; workspace_len(m, n, k, 3).unwrap() + 1];
    let workspace = &mut workspace[1..];
    let mut run = |lhs, rhs| gemm_within(blocking, &options, (lhs, rhs), &mut out.view_mut(), workspace, parallelism);
    match packing {
        Packing::Neither => run(Input::Matrix(lhs.view()), Input::Matrix(rhs.view())),
        Packing::Lhs => run(Input::Packed(&PackedLhs::new(lhs.view(), Some(isa)).unwrap()), Input::Matrix(rhs.view())),
        Packing::Rhs => run(Input::Matrix(lhs.view()), Input::Packed(&PackedRhs::new(rhs.view(), Some(isa)).unwrap())),
    }
    .unwrap();
    assert!(
        bits(&out.data) == bits(&want),
        "{m}x{n}x{k} {packing:?} {parallelism:?} {options:?}\nlhs {:?} rhs {:?} out {:?}\n{blocking:?}",
        lhs.strides,
        rhs.strides,
        out.strides
    );
}

/// [`check`] of a product into rows, neither operand packed, on one thread.
fn check_plain(options: Gemm<'_>, operands: [&Matrix2; 2], blocking: &Blocking) {
    check(options, operands, (Lie::Rows, f32::NAN), blocking, Packing::Neither, Parallelism::Serial);
}

fn operands(random: &mut Random, [m, n, k]: [usize; 3], [lhs, rhs]: [Lie; 2]) -> [Matrix2; 2] {
    [Matrix2::new(lhs, m, k, || random.float()), Matrix2::new(rhs, k, n, || random.float())]
}

#[test]
fn every_small_size_has_the_bits_of_its_chains() {
    let sizes: Vec<usize> = (0..=17).chain([31, 32, 33, 47, 48, 49]).collect();
    let mut random = Random(1);
    for isa in Isa::available() {
        let options = Gemm { isa: Some(isa), ..Gemm::default() };
        for &m in &sizes {
            for &n in &sizes {
                for k in [0, 1, 2, 3, 7, 8, 9, 16, 17, 33] {
                    let [lhs, rhs] = operands(&mut random, [m, n, k], [Lie::Rows, Lie::Rows]);
                    let blocking = Blocking::of_tests()[random.below(4)];
                    check_plain(options, [&lhs, &rhs], &blocking);
                }
            }
        }
    }
}

#[test]
fn strides_blocks_packing_and_epilogues_do_not_change_bits() {
    let mut random = Random(2);
    for isa in Isa::available() {
        for round in 0..6000 {
            let (m, n, k) = (random.below(40), random.below(70), random.below(30));
            let lies = [Lie::INPUTS[random.below(9)], Lie::INPUTS[random.below(9)]];
            let [lhs, rhs] = operands(&mut random, [m, n, k], lies);
            let residual = Matrix2::new(Lie::INPUTS[random.below(9)], m, n, || random.float());
            let bias: Vec<f32> = (0..m.max(n)).map(|_| random.float()).collect();
            let bias = match random.below(3) {
                0 => Bias::None,
                1 => Bias::Rows(&bias[..m]),
                _ => Bias::Columns(&bias[..n]),
            };
            let activation = match random.below(6) {
                0 => Activation::Relu,
                1 => Activation::Clamp { low: -0.25, high: 0.5 },
                2 => Activation::Tanh,
                3 => Activation::Sigmoid,
                _ => Activation::Identity,
            };
            let residual = (round % 2 == 0).then(|| residual.view());
            let epilogue = Epilogue { bias, residual, activation };
            let accumulate = random.below(2) == 0;
            let background = if accumulate { 0.0 } else { f32::NAN };
            let options = Gemm { accumulate, epilogue, isa: Some(isa) };
            let packing = [Packing::Neither, Packing::Lhs, Packing::Rhs][random.below(3)];
            let out = (Lie::OUTPUTS[random.below(7)], background);
            check(options, [&lhs, &rhs], out, &Blocking::of_tests()[random.below(4)], packing, Parallelism::Serial);
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_do_not_change_bits() {
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut random = Random(3);
        pool.install(|| {
            for isa in Isa::available() {
                for _ in 0..1000 {
                    let (m, n, k) = (random.below(60), random.below(120), random.below(30));
                    let lies = [Lie::INPUTS[random.below(9)], Lie::INPUTS[random.below(9)]];
                    let [lhs, rhs] = operands(&mut random, [m, n, k], lies);
                    let options = Gemm { accumulate: random.below(2) == 0, isa: Some(isa), ..Gemm::default() };
                    let out = (Lie::OUTPUTS[random.below(7)], if options.accumulate { 0.0 } else { f32::NAN });
                    let packing = [Packing::Neither, Packing::Lhs, Packing::Rhs][random.below(3)];
                    check(
                        options,
                        [&lhs, &rhs],
                        out,
                        &Blocking::of_tests()[random.below(4)],
                        packing,
                        Parallelism::Current,
                    );
                }
            }
        });
    }
}

#[test]
fn thin_products_have_the_bits_of_their_chains() {
    let mut random = Random(4);
    for isa in Isa::available() {
        let options = Gemm { isa: Some(isa), ..Gemm::default() };
        for thin in 1..=16 {
            for lies in [[Lie::Rows, Lie::Rows], [Lie::Rows, Lie::Columns], [Lie::Columns, Lie::Rows]] {
                for size in [[thin, 1100, 70], [300, thin, 500]] {
                    let [lhs, rhs] = operands(&mut random, size, lies);
                    let blocking = Blocking::for_this_cpu();
                    check_plain(options, [&lhs, &rhs], blocking);
                }
            }
        }
    }
}

#[test]
fn rows_that_crowd_the_cache_have_the_bits_of_their_chains() {
    let mut random = Random(9);
    for isa in Isa::available() {
        for size in [[1, 150, 9], [7, 40, 20], [15, 131, 33], [31, 200, 70], [70, 150, 300]] {
            let [lhs, rhs] = operands(&mut random, size, [Lie::CrowdedRows, Lie::Rows]);
            let bias: Vec<f32> = (0..size[1]).map(|_| random.float()).collect();
            let epilogue = Epilogue { bias: Bias::Columns(&bias), activation: Activation::Relu, ..Epilogue::default() };
            let plain = Gemm { isa: Some(isa), ..Gemm::default() };
            let finished = Gemm { epilogue, accumulate: true, ..plain };
            for blocking in Blocking::of_tests() {
                for packing in [Packing::Neither, Packing::Rhs] {
                    for parallelism in [Parallelism::Serial, Parallelism::Current] {
                        check(plain, [&lhs, &rhs], (Lie::Rows, f32::NAN), &blocking, packing, parallelism);
                        let out = (Lie::OUTPUTS[random.below(7)], 0.0);
                        check(finished, [&lhs, &rhs], out, &blocking, packing, parallelism);
                    }
                }
            }
        }
    }
}

#[test]
fn a_batch_has_the_bits_of_its_products() {
    let mut random = Random(5);
    for isa in Isa::available() {
        for (batch, m, n, k) in [(0, 3, 4, 5), (1, 13, 17, 9), (5, 8, 33, 12), (9, 1, 7, 20), (4, 20, 1, 6)] {
            let lhs: Vec<f32> = (0..batch * m * k).map(|_| random.float()).collect();
            let rhs: Vec<f32> = (0..k * n).map(|_| random.float()).collect();
            let residual: Vec<f32> = (0..batch * m * n).map(|_| random.float()).collect();
            let mut out = vec![f32::NAN; batch * m * n];
            let residual = View::new(&residual, [batch * m, n]).unwrap();
            let epilogue = Epilogue { residual: Some(residual), ..Epilogue::default() };
            let options = Gemm { epilogue, isa: Some(isa), accumulate: false };
            let shared = View::strided(&rhs, 0, [batch, k, n], [0, n as isize, 1]).unwrap();
            let mut workspace = vec![f32::NAN; 4 * workspace_len(m, n, k, 1).unwrap()];
            for blocking in Blocking::of_tests() {
                let mut view = ViewMut::new(&mut out, [batch, m, n]).unwrap();
                let lhs = View::new(&lhs, [batch, m, k]).unwrap();
                let current = Parallelism::Current;
                gemm_batched_within(&blocking, &options, (lhs, shared), &mut view, &mut workspace, current).unwrap();
                for b in 0..batch {
                    for i in 0..m {
                        for j in 0..n {
                            let mut x = 0.0;
                            for l in 0..k {
                                x = mul_add(isa, lhs.get([b, i, l]), rhs[l * n + j], x);
                            }
                            x += residual.get([b * m + i, j]);
                            assert_eq!(out[(b * m + i) * n + j].to_bits(), x.to_bits());
                        }
                    }
                }
                out.fill(f32::NAN);
            }
        }
    }
}

#[test]
fn a_nan_reaches_its_row_or_column_and_nothing_else() {
    let mut random = Random(6);
    for isa in Isa::available() {
        for activation in [Activation::Relu, Activation::Clamp { low: 0.0, high: 6.0 }] {
            for special in [f32::NAN, f32::INFINITY] {
                let [mut lhs, mut rhs] = operands(&mut random, [9, 37, 11], [Lie::Rows, Lie::Columns]);
                let (a, b) = (lhs.at(4, 5), rhs.at(2, 36));
                (lhs.data[a], rhs.data[b]) = (special, special);
                let epilogue = Epilogue { activation, ..Epilogue::default() };
                let options = Gemm { isa: Some(isa), epilogue, accumulate: false };
                for blocking in Blocking::of_tests() {
                    for packing in [Packing::Neither, Packing::Lhs, Packing::Rhs] {
                        check(options, [&lhs, &rhs], (Lie::Rows, f32::NAN), &blocking, packing, Parallelism::Serial);
                    }
                }
            }
        }
    }
}

#[test]
fn blocks_without_depth_and_blocks_beyond_the_workspace_are_refused() {
    let (lhs, rhs, mut out) = (vec![1.0; 20 * 400], vec![1.0; 400 * 7000], vec![9.0; 20 * 7000]);
    let [lhs, rhs] = [View::new(&lhs, [20, 400]).unwrap(), View::new(&rhs, [400, 7000]).unwrap()];
    let own = *Blocking::for_this_cpu();
    let wide = Blocking { kc: 1 << 20, nc: 1 << 20, shared: 0, ..own };
    let mut workspace = vec![0.0; workspace_len(20, 7000, 400, 1).unwrap()];
    for blocking in [Blocking { kc: 0, ..own }, Blocking { thin_kc: 0, ..own }, Blocking { deep_kc: 0, ..own }, wide] {
        let mut view = ViewMut::new(&mut out, [20, 7000]).unwrap();
        let operands = (Input::Matrix(lhs), Input::Matrix(rhs));
        let given = gemm_within(&blocking, &Gemm::default(), operands, &mut view, &mut workspace, Parallelism::Serial);
        given.unwrap_err();
        assert!(out.iter().all(|&x| x == 9.0), "{blocking:?}");
    }
}
