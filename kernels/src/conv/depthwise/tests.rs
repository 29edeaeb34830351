use super::super::grouped::{Grouped, GroupedBackwardData, GroupedBackwardWeights};
use super::*;
use crate::conv::{Layout, Padding};
use crate::parallel::Parallelism;
use crate::reference;

/// Numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn integers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(15) as f32 - 7.0).collect()
    }
    fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

/// The three passes of either algorithm.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Depthwise,
    Grouped,
}
use Family::*;

fn forward(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    (x, w): (&[f32], &[f32]),
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    slots: usize,
) -> Vec<f32> {
    fn run<F: Forward>(
        isa: Isa,
        spec: &Conv2dSpec,
        shape: Shape,
        (x, w): (&[f32], &[f32]),
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        slots: usize,
    ) -> Vec<f32> {
        let sizes = spec.sizes(shape).unwrap();
        assert!(F::cost(spec, shape, &sizes, isa).unwrap() >= 0.0);
        let mut algorithm = F::new(spec, shape, isa).unwrap();
        algorithm.pack(w);
        let mut y = vec![f32::NAN; sizes.y_len];
        let mut workspace = vec![f32::NAN; algorithm.workspace_len(shape, &sizes, slots)];
        algorithm.forward(ForwardCall {
            shape,
            sizes,
            x,
            bias,
            residual,
            y: &mut y,
            workspace: &mut workspace,
            slots,
            parallelism: Parallelism::Current,
        });
        y
    }
    match family {
        Depthwise => run::<super::Depthwise>(isa, spec, shape, (x, w), bias, residual, slots),
        Grouped => run::<super::super::grouped::Grouped>(isa, spec, shape, (x, w), bias, residual, slots),
    }
}

fn backward_data(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    dy: &[f32],
    w: &[f32],
    slots: usize,
) -> Vec<f32> {
    let sizes = spec.sizes(shape).unwrap();
    let mut dx = vec![f32::NAN; sizes.x_len];
    let mut run = |len: usize, run: &dyn Fn(BackwardDataCall<'_>)| {
        let mut workspace = vec![f32::NAN; len];
        run(BackwardDataCall {
            shape,
            sizes,
            dy,
            dx: &mut dx,
            workspace: &mut workspace,
            slots,
            parallelism: Parallelism::Current,
        });
    };
    match family {
        Depthwise => {
            let mut algorithm = DepthwiseBackwardData::new(spec, shape, isa).unwrap();
            algorithm.pack(w);
            run(algorithm.workspace_len(shape, &sizes, slots), &|call| algorithm.run(call));
        }
        Grouped => {
            let mut algorithm = GroupedBackwardData::new(spec, shape, isa).unwrap();
            algorithm.pack(w);
            run(algorithm.workspace_len(shape, &sizes, slots), &|call| algorithm.run(call));
        }
    }
    dx
}

fn backward_weights(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    x: &[f32],
    dy: &[f32],
    slots: usize,
) -> Vec<f32> {
    let sizes = spec.sizes(shape).unwrap();
    let mut dw = vec![f32::NAN; sizes.w_len];
    let mut run = |len: usize, run: &dyn Fn(BackwardWeightsCall<'_>)| {
        let mut workspace = vec![f32::NAN; len];
        run(BackwardWeightsCall {
            shape,
            sizes,
            x,
            dy,
            dw: &mut dw,
            workspace: &mut workspace,
            slots,
            parallelism: Parallelism::Current,
        });
    };
    match family {
        Depthwise => {
            let algorithm = DepthwiseBackwardWeights::new(spec, shape, isa).unwrap();
            run(algorithm.workspace_len(shape, &sizes, slots), &|call| algorithm.run(call));
        }
        Grouped => {
            let algorithm = GroupedBackwardWeights::new(spec, shape, isa).unwrap();
            run(algorithm.workspace_len(shape, &sizes, slots), &|call| algorithm.run(call));
        }
    }
    dw
}

/// A spec and a shape that fit each other.
fn case(random: &mut Random, family: Family) -> (Conv2dSpec, Shape) {
    loop {
        let groups = 1 + random.below(20);
        let (ic, oc) = match family {
            Depthwise => (1, 1 + random.below(2) * random.below(4)),
            Grouped => (1 + random.below(5), 1 + random.below(9)),
        };
        let common = random.below(2) == 0;
        let kernel = if common { [3, 3] } else { [1 + random.below(7), 1 + random.below(7)] };
        let mut pair = |most: usize| if common { [1, 1] } else { [1 + random.below(most), 1 + random.below(most)] };
        let (mut stride, dilation) = (pair(3), pair(3));
        if common && random.below(2) == 0 {
            stride = [2, 2];
        }
        let padding =
            Padding { top: random.below(4), bottom: random.below(4), left: random.below(4), right: random.below(4) };
        let padding = if random.below(2) == 0 { Padding::all(1) } else { padding };
        let layout = if random.below(3) == 0 { Layout::Nhwc } else { Layout::Nchw };
        let spec = Conv2dSpec::new(groups * ic, groups * oc, kernel)
            .stride(stride)
            .dilation(dilation)
            .padding(padding)
            .groups(groups)
            .layout(layout);
        let height = 1 + if random.below(8) == 0 { random.below(90) } else { random.below(20) };
        let shape = Shape::new(1 + random.below(3), height, 1 + random.below(44));
        if spec.sizes(shape).is_ok() {
            return (spec, shape);
        }
    }
}

const CASES: usize = 1500;

#[test]
fn integers_come_out_exact() {
    let mut random = Random(1);
    for index in 0..CASES {
        for family in [Depthwise, Grouped] {
            let (spec, shape) = case(&mut random, family);
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            let (dy, bias) = (random.integers(sizes.y_len), random.integers(spec.out_channels));
            let bias = (index % 2 == 0).then_some(&bias[..]);
            let residual = (index % 3 == 0).then_some(&dy[..]);
            let mut y = vec![0.0; sizes.y_len];
            reference::conv2d_forward(&spec, shape, &x, &w, bias, residual, &mut y).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
            let mut dw = vec![0.0; sizes.w_len];
            reference::conv2d_backward_weights(&spec, shape, &x, &dy, &mut dw).unwrap();
            for isa in Isa::available() {
                let line = format!("{family:?} {isa} {spec} {shape:?}");
                assert_eq!(forward(family, isa, &spec, shape, (&x, &w), bias, residual, 1), y, "forward {line}");
                assert_eq!(backward_data(family, isa, &spec, shape, &dy, &w, 1), dx, "backward-data {line}");
                assert_eq!(backward_weights(family, isa, &spec, shape, &x, &dy, 1), dw, "backward-weights {line}");
            }
        }
    }
}
