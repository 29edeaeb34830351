//! The products of a block of channels: a matrix product per frequency, out channels by tiles by in channels.
//!
//! ```text
//!                                x[f]: tiles x panel of in channels
//!                               ┌────────┐
//!                               └────────┘
//!   dy[f]: 16 out channels  ┌──┐┌────────┐
//!   x tiles, a strip of     │  ││  tile  │ sums[f]      a panel meets one strip after the other
//!   rows at a time          └──┘└────────┘
//! ```
//!
//! Both are read as the transforms left them: columns of the left-hand side are 16 floats apart, rows of the right-hand
//! side are a panel.

use std::ops::Range;

use super::super::cut::GROUP;
use super::Context;
use crate::gemm::lhs::PackedPanel;
use crate::gemm::tile::{Ends, IN_PLACE, NV, Panels, max_height, tiles_of};
use crate::gemm::{Ahead, Strips};
use crate::simd::{Job, Simd};

/// Tiles after which the sums are stored: a panel stays in L1 beside the strips.
const DEPTH: usize = 128;

/// `sums[f][oc][ic] += dy[f][tile][oc] * x[f][tile][ic]` over the tiles of a pass, for some frequencies and channels.
///
/// Whoever makes one vouches that `x` and `dy` hold the part's transformed tiles, that `sums` has room for the block
/// and holds its sums unless `first`, that the channels start with whole panels and groups, and that no other task
/// writes the sums of these frequencies.
pub(super) struct Products<'a> {
    pub context: &'a Context<'a>,
    pub tiles: usize,
    /// The sums start with this pass.
    pub first: bool,
    pub frequencies: Range<usize>,
    /// Channels of the part, in and out.
    pub ics: Range<usize>,
    pub ocs: Range<usize>,
    pub x: *const f32,
    pub dy: *const f32,
    pub sums: *mut f32,
}

impl Job for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, tiles, first, frequencies, ics, ocs, x, dy, sums } = self;
        let cut = &context.cut;
        let mut ahead = Ahead::OUTPUTS;
        for f in frequencies {
            let (x, dy) = (x.wrapping_add(f * cut.x_plane), dy.wrapping_add(f * cut.dy_plane));
            let sums = sums.wrapping_add(f * cut.sums_plane);
            for k in (0..tiles).step_by(DEPTH) {
                let depth = DEPTH.min(tiles - k);
                for ic in ics.clone().step_by(cut.panel) {
                    let nv = if context.part[0] - ic > S::LANES { NV } else { 1 };
                    let width = nv * S::LANES;
                    let start = x.wrapping_add(ic / cut.panel * cut.x_panel + k * width);
                    let rhs = Panels::packed(start, width, 0, 1);
                    for oc in ocs.clone().step_by(GROUP) {
                        let strips = Strips::new(GROUP.min(ocs.end - oc), max_height(S::REGISTERS, nv));
                        for strip in 0..strips.count {
                            let row = oc + strips.start(strip);
                            let lhs = dy.wrapping_add(oc / GROUP * cut.dy_group + k * GROUP + row - oc);
                            let to = sums.wrapping_add((row - ocs.start) * cut.sums_row + ic - ics.start);
                            let stride = cut.sums_row as isize;
                            let from = if first && k == 0 { std::ptr::null() } else { to.cast_const() };
                            let ends =
                                Ends { from, from_stride: stride, to, to_stride: stride, columns: width, finish: None };
                            let (lhs, size) = (PackedPanel::<GROUP>(lhs), [strips.height(strip), nv]);
                            // SAFETY: the maker's promise; strips and panels are inside of `dy`, `x` and `sums`.
                            unsafe { tiles_of::<S, _, IN_PLACE>(simd, size, lhs, rhs, depth, ends, &mut ahead) };
                        }
                    }
                }
            }
        }
    }
}
