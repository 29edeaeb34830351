//! Convolutions with one mistake each: a harness that has never found a mistake proves nothing.
//!
//! Each mistake is one that kernels have had, here or elsewhere. [`Fault::None`] makes none: it passes every
//! check, so what the checks say about the others is about the mistake.

mod winograd;

use kernels::conv::{Algorithm, Conv2dSpec, Layout, Padding, Shape, Sizes};
use kernels::{Activation, Error, Parallelism};

use crate::case::ConvCase;
use crate::subject::{BackwardPlan, Choice, ForwardPlan, Subject};

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            /// None: a slow convolution without mistakes.
            None,
            $($(#[doc = $doc])+ $name,)+
        }

        impl Fault {
            /// Every mistake.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }
    };
}

faults! {
    /// The last tap is left out.
    LastTapDropped,
    /// Square kernels are read by columns.
    TapsTransposed,
    /// The last channel is left out, where there are several.
    LastChannelDropped,
    /// The last product is left out, where their number leaves 3 when divided by 4.
    RemainderDropped,
    /// The last image of a batch is left out.
    LastImageDropped,
    /// Channels of the next group are read.
    GroupOffByOne,
    /// The first two output channels change places.
    ChannelsSwapped,
    /// Padding above and below change places.
    PaddingRowsSwapped,
    /// Padding above and to the left change places.
    PaddingSidesSwapped,
    /// The padding to the right holds the next row.
    RowsWrap,
    /// The padding holds zeros, which weights are multiplied with.
    PaddingMultiplied,
    /// Strides along height and width change places.
    StridesSwapped,
    /// Dilations along height and width change places.
    DilationsSwapped,
    /// The gradient of the input takes a dense kernel for granted.
    DilationIgnoredBackward,
    /// The gradient of the input uses the turned kernel as it is.
    KernelTurnedBackward,
    /// The gradient of the input is wrong for groups and strides together.
    GroupsWithStrideBackward,
    /// The gradient of the weights is that of the last image.
    WeightsGradientOfLastImage,
    /// The gradient of the weights is not written where there are no images.
    EmptyBatchUnwritten,
    /// The gradient of the bias is not written by the combined call.
    CombinedCallForgetsBias,
    /// The bias is added twice.
    BiasTwice,
    /// The residual is forgotten, where there is a bias.
    ResidualForgotten,
    /// The activation comes before the residual.
    ActivationBeforeResidual,
    /// The activation's upper bound is forgotten.
    UpperBoundForgotten,
    /// ReLU makes 0 of NaN.
    NanLostByRelu,
    /// A logistic function as it is approximated by someone in a hurry.
    SigmoidApproximated,
    /// Infinite results become the largest number.
    InfinitySaturated,
    /// Subnormal results become zero.
    SubnormalsFlushed,
    /// Inputs are rounded to half precision.
    HalfPrecision,
    /// Offsets into the input are cut to ten bits.
    OffsetsTruncated,
    /// The last pixel of rows of 7, 15, ... is not written.
    TailLaneUnwritten,
    /// The output is added to what is there.
    OutputAccumulated,
    /// The workspace is used without being cleared.
    WorkspaceRead,
    /// A workspace that is too short is accepted.
    WorkspaceUnchecked,
    /// The output is cleared before the arguments are checked.
    WrittenBeforeChecked,
    /// Replaced weights leave the first one as it was.
    StaleWeight,
    /// The order of sums depends on the number of threads.
    OrderByThreads,
    /// The order of sums depends on the batch.
    OrderByBatch,
    /// The automatic choice runs something else than it reports.
    OtherAlgorithmThanReported,
    /// What Winograd's last tile of a row has too much is written to the next row.
    TileUnclipped,
    /// Rows and columns of Winograd's output transform change places.
    TileTransposed,
    /// A constant of Winograd's weights is wrong.
    TileConstantWrong,
    /// Winograd's sums are not zero where the next tile begins.
    TileSumsKept,
    /// What is not finite spoils a whole tile.
    TileSpoilt,
}

/// A subject with a mistake.
#[derive(Clone, Copy, Debug)]
pub struct Faulty(pub Fault);

#[derive(Clone, Debug)]
struct Plan {
    fault: Fault,
    spec: Conv2dSpec,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
    is_auto: bool,
    is_tiled: bool,
}

/// The workspace of each slot; nothing is done with it.
const SCRATCH: usize = 8;

/// Which operand a product adds to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Data,
    Weights,
}

impl Faulty {
    fn plan(self, case: &ConvCase, choice: Choice, weights: &[f32], bias: Option<&[f32]>) -> Result<Plan, Error> {
        let sizes = case.spec.sizes(case.shape)?;
        let is_tiled = choice.algorithm == Algorithm::Winograd2 && winograd::can_do(&case.spec);
        if !is_tiled && !matches!(choice.algorithm, Algorithm::Auto | Algorithm::Direct) {
            return Err(Error::invalid("algorithm", "auto, direct or winograd2", choice.algorithm));
        }
        check("weights", sizes.w_len, weights.len())?;
        let mut weights = weights.to_vec();
        if choice.repacked && self.0 == Fault::StaleWeight {
            weights[0] = 0.0;
        }
        let is_auto = choice.algorithm == Algorithm::Auto;
        Ok(Plan { fault: self.0, spec: case.spec, weights, bias: bias.map(<[f32]>::to_vec), is_auto, is_tiled })
    }
}

impl Subject for Faulty {
    fn forward(
        &self,
        case: &ConvCase,
        choice: Choice,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Box<dyn ForwardPlan>, Error> {
        Ok(Box::new(self.plan(case, choice, weights, bias)?))
    }

    fn backward(&self, case: &ConvCase, choice: Choice, weights: &[f32]) -> Result<Box<dyn BackwardPlan>, Error> {
        if choice.algorithm == Algorithm::Winograd2 {
            return Err(Error::invalid("algorithm", "auto or direct", choice.algorithm));
        }
        Ok(Box::new(self.plan(case, choice, weights, None)?))
    }
}

fn check(argument: &'static str, expected: usize, given: usize) -> Result<(), Error> {
    if expected == given { Ok(()) } else { Err(Error::Length { argument, expected, given }) }
}

fn at(layout: Layout, channels: usize, [height, width]: [usize; 2], [n, c, h, w]: [usize; 4]) -> usize {
    match layout {
        Layout::Nchw => ((n * channels + c) * height + h) * width + w,
        Layout::Nhwc => ((n * height + h) * width + w) * channels + c,
    }
}

/// One product: where its three elements are. An `x` of `None` is padding that is multiplied.
#[derive(Clone, Copy)]
struct Product {
    x: Option<usize>,
    w: usize,
    y: usize,
}

impl Plan {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// All products in the order of their outputs.
    fn products(&self, shape: Shape, sizes: &Sizes, direction: Direction) -> Vec<Product> {
        let spec = &self.spec;
        let [kernel_height, kernel_width] = spec.kernel;
        let Padding { mut top, bottom, mut left, .. } = spec.padding;
        let (mut stride, mut dilation) = (spec.stride, spec.dilation);
        match self.fault {
            Fault::PaddingRowsSwapped => top = bottom,
            Fault::PaddingSidesSwapped => (top, left) = (left, top),
            Fault::StridesSwapped => stride.reverse(),
            Fault::DilationsSwapped => dilation.reverse(),
            Fault::DilationIgnoredBackward if direction == Direction::Data => dilation = [1, 1],
            Fault::GroupsWithStrideBackward if direction == Direction::Data && spec.groups > 1 => stride = [1, 1],
            _ => {}
        }
        let (group_in, group_out) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
        let count = group_in * kernel_height * kernel_width;
        let mut products = Vec::new();
        for n in 0..shape.batch {
            if self.has(Fault::LastImageDropped) && n > 0 && n + 1 == shape.batch {
                continue;
            }
            for oc in 0..spec.out_channels {
                for oh in 0..sizes.output[0] {
                    for ow in 0..sizes.output[1] {
                        let to = if self.has(Fault::ChannelsSwapped) && oc < 2 && spec.out_channels > 1 {
                            1 - oc
                        } else {
                            oc
                        };
                        let y = at(spec.layout, spec.out_channels, sizes.output, [n, to, oh, ow]);
                        for k in 0..count {
                            let (kw, kh) = (k % kernel_width, k / kernel_width % kernel_height);
                            let g_ic = k / kernel_width / kernel_height;
                            let dropped = match self.fault {
                                Fault::LastTapDropped => kh + 1 == kernel_height && kw + 1 == kernel_width,
                                Fault::LastChannelDropped => g_ic > 0 && g_ic + 1 == group_in,
                                Fault::RemainderDropped => count % 4 == 3 && k + 1 == count,
                                _ => false,
                            };
                            if dropped {
                                continue;
                            }
                            let group = oc / group_out + usize::from(self.has(Fault::GroupOffByOne));
                            let ic = group % spec.groups * group_in + g_ic;
                            let (ih, iw) = (oh * stride[0] + kh * dilation[0], ow * stride[1] + kw * dilation[1]);
                            let (ih, iw) = (ih.wrapping_sub(top), iw.wrapping_sub(left));
                            let wraps = self.has(Fault::RowsWrap) && iw < isize::MAX as usize && ih < shape.height;
                            let inside = ih < shape.height && (iw < shape.width || wraps);
                            if !inside && !self.has(Fault::PaddingMultiplied) {
                                continue;
                            }
                            let x_at = || {
                                let x = at(spec.layout, spec.in_channels, sizes.input, [n, ic, ih, iw]);
                                if self.has(Fault::OffsetsTruncated) { x % 1024 } else { x.min(sizes.x_len - 1) }
                            };
                            let turned = self.has(Fault::KernelTurnedBackward) && direction == Direction::Data;
                            let (kh, kw) =
                                if turned { (kernel_height - 1 - kh, kernel_width - 1 - kw) } else { (kh, kw) };
                            let transposed = self.has(Fault::TapsTransposed) && kernel_height == kernel_width;
                            let (kh, kw) = if transposed { (kw, kh) } else { (kh, kw) };
                            let w = ((oc * group_in + g_ic) * kernel_height + kh) * kernel_width + kw;
                            products.push(Product { x: inside.then(x_at), w, y });
                        }
                    }
                }
            }
        }
        products
    }

    fn is_reversed(&self, shape: Shape, parallelism: Parallelism) -> bool {
        match self.fault {
            Fault::OrderByThreads => parallelism.threads() > 1,
            Fault::OrderByBatch => shape.batch > 1,
            Fault::OtherAlgorithmThanReported => self.is_auto,
            _ => false,
        }
    }

    fn check_workspace(&self, workspace: &[f32]) -> Result<(), Error> {
        if workspace.len() < SCRATCH && !self.has(Fault::WorkspaceUnchecked) {
            return Err(Error::Length { argument: "workspace", expected: SCRATCH, given: workspace.len() });
        }
        Ok(())
    }

    fn read(&self, x: f32) -> f32 {
        if self.has(Fault::HalfPrecision) { f32::from_bits(x.to_bits() & 0xffff_e000) } else { x }
    }

    fn finish(&self, value: f32) -> f32 {
        let value = match self.fault {
            Fault::InfinitySaturated => value.clamp(f32::MIN, f32::MAX),
            Fault::SubnormalsFlushed if value.is_subnormal() => 0.0,
            _ => value,
        };
        match self.spec.activation {
            Activation::Relu if self.has(Fault::NanLostByRelu) => value.max(0.0),
            Activation::Sigmoid if self.has(Fault::SigmoidApproximated) => (1.0 / (1.0 + (-value).exp())) * 1.000_01,
            Activation::Clamp { low, .. } if self.has(Fault::UpperBoundForgotten) => value.max(low),
            _ if value.is_nan() => value,
            Activation::Relu => value.max(0.0),
            Activation::Clamp { low, high } => value.max(low).min(high),
            Activation::Sigmoid => 1.0 / (1.0 + (-value).exp()),
            Activation::Tanh => value.tanh(),
            _ => value,
        }
    }

    /// `out[target] += a * b` over products, in one direction.
    fn accumulate(
        &self,
        shape: Shape,
        sizes: &Sizes,
        direction: Direction,
        parallelism: Parallelism,
        out: &mut [f32],
        operand: [&[f32]; 2],
    ) {
        let mut products = self.products(shape, sizes, direction);
        if self.is_reversed(shape, parallelism) {
            products.reverse();
        }
        for Product { x, w, y } in products {
            let [left, right] = operand;
            let term = |left_at: Option<usize>, right_at: usize| {
                left_at.map_or(0.0, |left_at| self.read(left[left_at])) * right[right_at]
            };
            match (direction, x) {
                (Direction::Forward, x) => out[y] = product_sum(term(x, w), out[y]),
                (Direction::Data, Some(x)) => out[x] = product_sum(term(Some(w), y), out[x]),
                (Direction::Weights, x) => out[w] = product_sum(term(x, y), out[w]),
                (Direction::Data, None) => {}
            }
        }
    }

    fn bias_gradient(&self, shape: Shape, sizes: &Sizes, dy: &[f32], db: &mut [f32]) {
        db.fill(0.0);
        for n in 0..shape.batch {
            for (oc, db) in db.iter_mut().enumerate() {
                for oh in 0..sizes.output[0] {
                    for ow in 0..sizes.output[1] {
                        *db += dy[at(self.spec.layout, self.spec.out_channels, sizes.output, [n, oc, oh, ow])];
                    }
                }
            }
        }
    }

    fn weights_gradient(
        &self,
        shape: Shape,
        sizes: &Sizes,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        parallelism: Parallelism,
    ) {
        if self.has(Fault::EmptyBatchUnwritten) && shape.batch == 0 {
            return;
        }
        dw.fill(0.0);
        if self.has(Fault::WeightsGradientOfLastImage) && shape.batch > 1 {
            let one = Shape { batch: 1, ..shape };
            let (x_one, dy_one) = (x.len() / shape.batch, dy.len() / shape.batch);
            let last = [&x[x.len() - x_one..], &dy[dy.len() - dy_one..]];
            self.accumulate(one, sizes, Direction::Weights, parallelism, dw, last);
        } else {
            self.accumulate(shape, sizes, Direction::Weights, parallelism, dw, [x, dy]);
        }
    }
}

/// A sum of a rounded product.
fn product_sum(product: f32, sum: f32) -> f32 {
    sum + product
}

impl ForwardPlan for Plan {
    fn algorithm(&self) -> Algorithm {
        if self.is_tiled { Algorithm::Winograd2 } else { Algorithm::Direct }
    }

    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        self.spec.sizes(shape)?;
        slots.checked_mul(SCRATCH).ok_or(Error::Overflow { argument: "slots" })
    }

    fn run(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        if self.has(Fault::WrittenBeforeChecked) {
            y.fill(0.0);
        }
        let sizes = self.spec.sizes(shape)?;
        check("x", sizes.x_len, x.len())?;
        check("y", sizes.y_len, y.len())?;
        self.check_workspace(workspace)?;
        if self.has(Fault::WorkspaceRead) {
            y.fill(workspace[0]);
        } else if !self.has(Fault::OutputAccumulated) {
            y.fill(0.0);
        }
        self.accumulate(shape, &sizes, Direction::Forward, parallelism, y, [x, &self.weights]);
        if self.is_tiled {
            winograd::forward(self.fault, &self.spec, &sizes, shape.batch, [x, &self.weights], y);
        }
        let [out_height, out_width] = sizes.output;
        for n in 0..shape.batch {
            for oc in 0..self.spec.out_channels {
                for oh in 0..out_height {
                    for ow in 0..out_width {
                        let y_at = at(self.spec.layout, self.spec.out_channels, sizes.output, [n, oc, oh, ow]);
                        let bias = self.bias.as_ref().map_or(0.0, |bias| bias[oc]);
                        let mut value = y[y_at] + bias;
                        if self.has(Fault::BiasTwice) {
                            value += bias;
                        }
                        if self.has(Fault::ActivationBeforeResidual) {
                            value = self.finish(value);
                        }
                        if !(self.has(Fault::ResidualForgotten) && self.bias.is_some()) {
                            value += residual.map_or(0.0, |residual| residual[y_at]);
                        }
                        if !self.has(Fault::ActivationBeforeResidual) {
                            value = self.finish(value);
                        }
                        let is_stale = self.has(Fault::TailLaneUnwritten) && out_width % 8 == 7 && ow + 1 == out_width;
                        y[y_at] = if is_stale { f32::NAN } else { value };
                    }
                }
            }
        }
        Ok(())
    }
}

impl BackwardPlan for Plan {
    fn algorithms(&self) -> [Algorithm; 2] {
        [Algorithm::Direct; 2]
    }

    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        ForwardPlan::workspace_len(self, shape, slots)
    }

    fn data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        check("dy", sizes.y_len, dy.len())?;
        check("dx", sizes.x_len, dx.len())?;
        self.check_workspace(workspace)?;
        dx.fill(0.0);
        self.accumulate(shape, &sizes, Direction::Data, parallelism, dx, [&self.weights, dy]);
        Ok(())
    }

    fn weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        check("x", sizes.x_len, x.len())?;
        check("dy", sizes.y_len, dy.len())?;
        check("dw", sizes.w_len, dw.len())?;
        check("db", self.spec.out_channels, db.as_ref().map_or(self.spec.out_channels, |db| db.len()))?;
        self.check_workspace(workspace)?;
        self.weights_gradient(shape, &sizes, x, dy, dw, parallelism);
        if let Some(db) = db {
            self.bias_gradient(shape, &sizes, dy, db);
        }
        Ok(())
    }

    fn both(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let sizes = self.spec.sizes(shape)?;
        check("dx", sizes.x_len, dx.len())?;
        let db = if self.has(Fault::CombinedCallForgetsBias) { None } else { db };
        self.weights(shape, x, dy, dw, db, workspace, parallelism)?;
        self.data(shape, dy, dx, workspace, parallelism)
    }
}
