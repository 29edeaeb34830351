//! The products of a block: a matrix product per frequency, tiles by input channels by output channels.
//!
//! ```text
//!                      u[f]: in channels x panel of out channels, packed with the plan
//!                     ┌────────┐
//!                     └────────┘
//!   v[f]   ┌─────────┐┌────────┐
//!   tiles  │  strip  ││  tile  │ m[f]      a panel meets one strip of tiles after the other
//!          └─────────┘└────────┘
//! ```
//!
//! Any number of tiles makes strips that are nearly full, so small images lose nothing.

use std::ops::Range;

use super::Context;
use super::blocks::Block;
use crate::gemm::lhs::ColumnBlocks;
use crate::gemm::tile::{Ends, NV, PACKED, Panels, max_height, tiles_of};
use crate::gemm::{Ahead, Strips};
use crate::simd::{Job, Simd};

/// Depth of a product after which the sums are stored: a panel stays in L1 beside the strips. A multiple of 16.
const DEPTH: usize = 192;

/// `m[f][panel][tile] = v[f][tile] * u[f][panel]` for some frequencies and panels.
///
/// Whoever makes one vouches that `v` holds the block's transformed input, that `m` has room for the panels, the first
/// of which stands in front, and that no other task writes these frequencies.
pub(super) struct Products<'a> {
    pub context: &'a Context<'a>,
    pub block: Block,
    pub frequencies: Range<usize>,
    pub panels: Range<usize>,
    pub v: *const f32,
    pub m: *mut f32,
}

impl Job for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, block, frequencies, panels, v, m } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let (ic, oc) = (plan.in_channels, plan.out_channels);
        let strips = Strips::new(block.tiles(), max_height(S::REGISTERS, NV));
        let mut ahead = Ahead::OUTPUTS;
        for f in frequencies {
            let u = plan.u[plan.frequency(block.group, f)..].as_ptr();
            let (v, m) = (v.wrapping_add(f * cut.v_plane), m.wrapping_add(f * cut.m_plane));
            for panel in panels.clone() {
                let nv = if oc - panel * cut.panel > S::LANES { NV } else { 1 };
                let width = nv * S::LANES;
                let u = u.wrapping_add(panel * cut.panel * ic);
                let m = m.wrapping_add((panel - panels.start) * cut.m_panel);
                for k in (0..ic).step_by(DEPTH) {
                    let depth = DEPTH.min(ic - k);
                    let start = u.wrapping_add(k * width);
                    // What is met next stands behind this: deeper rows, or the next panel.
                    let next = start.wrapping_add(depth * width);
                    for strip in 0..strips.count {
                        let (first, height) = (strips.start(strip), strips.height(strip));
                        let rhs = Panels::packed(start, width, 0, 1).before_panels(next, depth, [strip, strips.count]);
                        let start = v.wrapping_add(k / 16 * cut.v_group + first * 16);
                        let lhs = ColumnBlocks { start, block_stride: cut.v_group };
                        let to = m.wrapping_add(first * cut.panel);
                        let stride = cut.panel as isize;
                        let from = if k == 0 { std::ptr::null() } else { to.cast_const() };
                        let ends =
                            Ends { from, from_stride: stride, to, to_stride: stride, columns: width, finish: None };
                        // SAFETY: the maker's promise; strips and panels are inside of `u`, `v` and `m`.
                        unsafe { tiles_of::<S, _, PACKED>(simd, [height, nv], lhs, rhs, depth, ends, &mut ahead) };
                    }
                }
            }
        }
    }
}
