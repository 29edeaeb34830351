//! The five loops around the micro-kernel, and the tasks that run them.
//!
//! ```text
//! pack rhs                                            tasks over panels (if threads share it)
//! for each chunk of k, of rows:                       L3
//!     pack lhs, or copy its rows farther apart        tasks over strips, or rows
//!     for each rectangle of the output:               tasks
//!         for each block of columns (NC):             loop 4
//!             for each block of depth (KC):           loop 3     the block of rhs stays in L2
//!                 for each strip (MR):                loop 2     the first strip packs the block
//!                     for each panel (NR):            loop 1     the panel comes from L2
//!                         micro-kernel over k         loop 0     the tile stays in registers
//! ```
//!
//! Blocks of depth come in order, and each continues the chains that the one before has stored.

use std::ops::Range;

use super::blocking::Blocking;
use super::pack::{Strips, pack_panels, pack_strip};
use super::plan::{LhsPacking, Operand, Plan, RhsPacking};
use super::rectangle::{PackedPanels, PackedStrips, Product, Rectangle};
use super::tile::{Matrix, NV};
use crate::parallel::Parallelism;
use crate::parts::{Shared, share};
use crate::simd::{Isa, Job, Simd, dispatch};

/// Packs strips of lhs, for all tasks or ahead of time.
pub(super) struct PackStrips {
    pub lhs: Matrix,
    pub rows: usize,
    pub all: Strips,
    pub strips: Range<usize>,
    /// The row that stands at `to`.
    pub first_row: usize,
    pub ks: Range<usize>,
    pub to: *mut f32,
}

impl Job for PackStrips {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for strip in self.strips.clone() {
            let (row, height) = (self.all.start(strip), self.all.height(strip));
            let at = (row - self.first_row) * self.ks.len();
            // SAFETY: the strip is inside of the matrix, and `to` has room for all strips.
            unsafe { pack_strip(simd, self.lhs, self.rows, [row, height], self.ks.clone(), self.to.add(at)) };
        }
    }
}

/// Packs panels of rhs, for all tasks or ahead of time.
pub(super) struct PackPanels {
    pub rhs: Matrix,
    pub n: usize,
    pub panels: Range<usize>,
    pub k: usize,
    pub to: *mut f32,
}

impl Job for PackPanels {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let at = self.panels.start * NV * S::LANES * self.k;
        // SAFETY: the panels are inside of the matrix, and `to` has room for all panels.
        unsafe { pack_panels(simd, self.rhs, self.n, self.panels, 0..self.k, self.to.add(at)) };
    }
}

/// Runs a product on at most `slots` threads.
///
/// # Safety
/// - The product's pointers are valid for its dimensions and strides, and its output overlaps no operand.
/// - `workspace` holds `plan.least_workspace()` floats, and `plan.private` more for each slot after the first.
pub(super) unsafe fn run(
    product: &Product,
    plan: &Plan,
    isa: Isa,
    workspace: *mut f32,
    slots: usize,
    parallelism: Parallelism<'_>,
) {
    if product.m == 0 || product.n == 0 {
        return;
    }
    let Product { m, n, k, .. } = *product;
    let packed_lhs = Shared(workspace);
    let packed_rhs = Shared(workspace.wrapping_add(plan.shared_lhs));
    let private = Shared(workspace.wrapping_add(plan.shared_lhs + plan.shared_rhs));

    let mut rhs = match product.rhs {
        Operand::Packed(start) => Some(PackedPanels { start, depth: k, first_panel: 0, first_k: 0 }),
        Operand::Matrix(_) => None,
    };
    if let (RhsPacking::Shared, Operand::Matrix(matrix)) = (plan.rhs, product.rhs) {
        let rhs_matrix = SharedMatrix(matrix);
        let tasks = slots.min(plan.panels);
        parallelism.for_each(tasks, slots, &|task, _| {
            let panels = share(plan.panels, tasks, task);
            dispatch(isa, PackPanels { rhs: rhs_matrix.get(), n, panels, k, to: packed_rhs.at(0) });
        });
        rhs = Some(PackedPanels { start: packed_rhs.at(0), depth: k, first_panel: 0, first_k: 0 });
    }

    // With lhs where it is read.
    let mut spread = *product;
    let mut k_start = 0;
    loop {
        let ks = k_start..k.min(k_start + plan.chunk_depth);
        let mut strip_start = 0;
        while strip_start < plan.strips.count {
            let strips = strip_start..plan.strips.count.min(strip_start + plan.chunk_strips);
            let first_row = plan.strips.start(strips.start);
            let lhs = match (plan.lhs, product.lhs) {
                (LhsPacking::Shared, Operand::Matrix(matrix)) => {
                    let lhs_matrix = SharedMatrix(matrix);
                    let tasks = slots.min(strips.len());
                    parallelism.for_each(tasks, slots, &|task, _| {
                        let own = share(strips.len(), tasks, task);
                        dispatch(
                            isa,
                            PackStrips {
                                lhs: lhs_matrix.get(),
                                rows: m,
                                all: plan.strips,
                                strips: strips.start + own.start..strips.start + own.end,
                                first_row,
                                ks: ks.clone(),
                                to: packed_lhs.at(0),
                            },
                        );
                    });
                    Some(PackedStrips { start: packed_lhs.at(0), depth: ks.len(), first_row, first_k: ks.start })
                }
                (LhsPacking::Spread, Operand::Matrix(matrix)) => {
                    let lhs = SharedMatrix(matrix);
                    let rows = first_row..plan.strips.start(strips.end);
                    let tasks = slots.min(strips.len());
                    parallelism.for_each(tasks, slots, &|task, _| {
                        for row in share(rows.len(), tasks, task) {
                            let to = packed_lhs.at(row * plan.pitch);
                            // SAFETY: the row is inside of the matrix, and a whole one fits the distance to the next.
                            unsafe { to.copy_from_nonoverlapping(lhs.get().at(first_row + row, ks.start), ks.len()) };
                        }
                    });
                    let pitch = plan.pitch as isize;
                    let origin = packed_lhs.at(0).wrapping_offset(-(first_row as isize * pitch)).wrapping_sub(ks.start);
                    spread.lhs = Operand::Matrix(Matrix { start: origin, row_stride: pitch, column_stride: 1 });
                    None
                }
                (_, Operand::Packed(start)) => Some(PackedStrips { start, depth: k, first_row: 0, first_k: 0 }),
                _ => None,
            };
            let product = &spread;
            let places = Places { lhs, rhs };
            let [rows, columns] = [plan.grid[0].min(strips.len()), plan.grid[1]];
            parallelism.for_each(rows * columns, slots, &|task, slot| {
                let places = &places;
                let own = share(strips.len(), rows, task % rows);
                dispatch(
                    isa,
                    Rectangle {
                        product,
                        plan,
                        strips: strips.start + own.start..strips.start + own.end,
                        panels: share(plan.panels, columns, task / rows),
                        ks: ks.clone(),
                        lhs: places.lhs,
                        rhs: places.rhs,
                        private: private.at(slot * plan.private),
                    },
                );
            });
            strip_start = strips.end;
        }
        k_start = ks.end;
        if k_start >= k {
            break;
        }
    }
}

/// Packed operands that all tasks read.
struct Places {
    lhs: Option<PackedStrips>,
    rhs: Option<PackedPanels>,
}
// SAFETY: only read while tasks run.
unsafe impl Sync for Places {}

/// A matrix that all tasks read.
struct SharedMatrix(Matrix);
// SAFETY: only read while tasks run.
unsafe impl Sync for SharedMatrix {}

impl SharedMatrix {
    fn get(&self) -> Matrix {
        self.0
    }
}

/// The plan for a product on this CPU, or with other block sizes.
pub(super) fn plan(product: &Product, isa: Isa, blocking: &Blocking, threads: usize) -> Plan {
    Plan::new([product.m, product.n, product.k], &product.lhs, &product.rhs, isa, blocking, threads)
}
