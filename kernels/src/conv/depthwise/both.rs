//! Both gradients, and the bias', in one pass over the planes.
//!
//! ```text
//! channel c:  image 0   dy ──► dx        x, dy ──► lanes of dw      dy ──► db
//!             image 1   dy ──► dx        x, dy ──► lanes of dw      ...
//! ```
//!
//! The planes of one channel and image stay in the second-level cache while all that is made of them is made: `x` and
//! `dy` are read from memory once. Sums have the order of the calls for one gradient, so the bits are the same.

use super::planes::Planes;
use super::weights::Shared;
use super::{DepthwiseBackwardData, DepthwiseBackwardWeights, backward_call};
use crate::conv::algorithm::{BackwardDataCall, BackwardWeightsCall};
use crate::conv::bias_gradient::plane_sum;
use crate::conv::spec::{Shape, Sizes};
use crate::parts::Parts;
use crate::simd::{Job, Simd, dispatch};

/// Pixels of a plane from which on the memory that is saved outweighs that the planes of a channel do not follow each
/// other: smaller ones arrive sooner in the order of memory, as the calls for one gradient read them.
const LARGE: usize = 512;

/// The arguments of a call: those of one for each gradient.
pub(in crate::conv) struct BothCall<'a> {
    pub dx: &'a mut [f32],
    pub db: Option<&'a mut [f32]>,
    pub weights: BackwardWeightsCall<'a>,
}

/// Whether both plans work plane by plane, and a channel's images are not spread over several sums.
pub(in crate::conv) fn is_possible(
    data: &DepthwiseBackwardData,
    gradient: &DepthwiseBackwardWeights,
    shape: Shape,
    sizes: &Sizes,
) -> bool {
    let narrow = data.windows.is_narrow(sizes.output, sizes.input);
    let by_planes =
        data.windows.plane_by_plane(sizes.output, sizes.input) && gradient.gradient.plane_by_plane() && !narrow;
    let large = sizes.input[0] * sizes.input[1] >= LARGE;
    by_planes && large && gradient.gradient.pieces(shape.batch) == 1
}

/// Runs. Only where [`is_possible`] says so.
pub(in crate::conv) fn run(data: &DepthwiseBackwardData, gradient: &DepthwiseBackwardWeights, call: BothCall<'_>) {
    let BothCall { dx, db, weights } = call;
    let seconds = super::seconds(&data.spec, &weights.sizes, data.isa) * 2.0;
    let (slots, parallelism) = (weights.slots.max(1), weights.parallelism.for_seconds(seconds));
    let BackwardWeightsCall { shape, sizes, dy, .. } = weights;
    let mut planes = backward_call(BackwardDataCall { shape, sizes, dy, dx, workspace: &mut [], slots, parallelism });
    let planes = Planes::new(&data.windows, &mut planes);
    let outs = gradient.gradient.outs;
    let db = db.map(|db| Parts::new(db, outs));
    gradient.gradient.with(weights, |shared| {
        let all = All { shared, planes: &planes, db: db.as_ref(), dy, pixels: sizes.output[0] * sizes.output[1], outs };
        let all = &all;
        parallelism.for_each(shared.units(), slots, &|group, slot| {
            dispatch(gradient.isa, Group { all, group, slot });
        });
    });
}

/// What all tasks of a call see.
struct All<'a> {
    shared: &'a Shared<'a>,
    planes: &'a Planes<'a>,
    /// The output channels of each group.
    db: Option<&'a Parts<'a>>,
    dy: &'a [f32],
    pixels: usize,
    outs: usize,
}

/// All images of one group.
struct Group<'a> {
    all: &'a All<'a>,
    group: usize,
    slot: usize,
}

impl Job for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { all, group, slot } = self;
        let &All { shared, planes, db, dy, pixels, outs } = all;
        let groups = shared.units();
        // SAFETY: groups are below their number, and each is run once.
        unsafe {
            let db = db.map(|db| db.take(group)).unwrap_or_default();
            db.fill(0.0);
            shared.unit(simd, group, slot, |n| {
                planes.plane(simd, n, group, 0);
                for (out, sum) in db.iter_mut().enumerate() {
                    let plane = (n * groups + group) * outs + out;
                    *sum += plane_sum(simd, &dy[plane * pixels..][..pixels]);
                }
            });
        }
    }
}
