//! How products are planned.

use super::*;

#[path = "../../tests/random/mod.rs"]
mod random;
use random::Random;

#[test]
fn strips_are_as_few_as_possible_and_nearly_the_same() {
    for rows in 0..200 {
        for max_height in [1, 6, 12, 14] {
            let strips = pack::Strips::new(rows, max_height);
            assert_eq!(strips.count, rows.div_ceil(max_height));
            assert_eq!(strips.start(strips.count), rows);
            for i in 0..strips.count {
                assert_eq!(strips.start(i) + strips.height(i), strips.start(i + 1));
                assert!(strips.height(i) <= max_height && strips.height(i) + 1 >= strips.height(0));
            }
        }
    }
}

#[test]
fn the_workspace_is_enough_for_every_plan() {
    let mut random = Random(8);
    let tables = Blocking::of_tests();
    for _ in 0..20_000 {
        let mut size = || 1usize << random.below(13);
        let (m, n, k) = (size() + size() / 3, size() + size() / 3, size());
        // Chains without a term are planned as well.
        let k = if random.below(16) == 0 { 0 } else { k };
        let matrix =
            |row_stride, column_stride| Operand::Matrix(Matrix { start: std::ptr::null(), row_stride, column_stride });
        let strides = [[1, 7], [7, 1], [3, 7], [1024, 1]];
        let (lhs, rhs) = (strides[random.below(4)], strides[random.below(4)]);
        let threads = 1 + random.below(9);
        for isa in Isa::ALL {
            let operands = (matrix(lhs[0], lhs[1]), matrix(rhs[0], rhs[1]));
            let blocking = &tables[random.below(4)];
            let plan = plan::Plan::new([m, n, k], &operands.0, &operands.1, isa, blocking, threads);
            let needed = plan.least_workspace() + (threads - 1) * plan.private;
            assert!(needed + LINE <= workspace_len(m, n, k, threads).unwrap(), "{m}x{n}x{k} {plan:?}");
        }
    }
}

#[test]
fn a_shallow_product_of_many_outputs_is_not_small() {
    let is_small = |m: usize, n: usize, k: usize| {
        let (lhs, rhs, mut out) = (vec![0.0; m * k], vec![0.0; k * n], vec![0.0; m * n]);
        let [lhs, rhs] = [View::new(&lhs, [m, k]).unwrap(), View::new(&rhs, [k, n]).unwrap()];
        let mut out = ViewMut::new(&mut out, [m, n]).unwrap();
        let product = Gemm::default().product(Input::Matrix(lhs), Input::Matrix(rhs), &mut out, Isa::Portable).unwrap();
        super::small::suiting(&product, Blocking::for_this_cpu()).is_some()
    };
    assert!(is_small(32, 32, 32) && is_small(64, 64, 1) && !is_small(1024, 1024, 1));
}
