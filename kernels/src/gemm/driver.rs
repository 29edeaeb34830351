//! The five loops around the micro-kernel, and the tasks that run them.
//!
//! ```text
//! pack rhs                                            tasks over panels (if threads share it)
//! for each chunk of k, of rows:                       L3
//!     pack lhs                                        tasks over strips
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

use super::ahead::{Ahead, ask_for};
use super::blocking::Blocking;
use super::epilogue::RawEpilogue;
use super::micro::{ContiguousColumns, ContiguousRows, Later};
use super::pack::{Strips, pack_panels, pack_strip, panel_vectors};
use super::plan::{LhsPacking, Operand, Plan, RhsPacking};
use super::tile::{Ends, IN_PLACE, MAX_HEIGHT, MAX_WIDTH, Matrix, NV, PACKED, PACKING, Panels, tiles_of};
use crate::parallel::Parallelism;
use crate::parts::share;
use crate::simd::{Isa, Job, Simd, dispatch};

/// A product whose arguments have been checked: `out = epilogue(lhs * rhs)`, or `epilogue(out + lhs * rhs)`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub lhs: Operand,
    pub rhs: Operand,
    pub out: *mut f32,
    pub row_stride: isize,
    pub column_stride: isize,
    pub accumulate: bool,
    pub epilogue: RawEpilogue,
}

// SAFETY: the pointers come from views that outlive the call, and tasks write disjoint parts of the output.
unsafe impl Sync for Product {}

impl Product {
    /// The same product with rows along the registers, if the output's columns are not contiguous but its rows are,
    /// or if there is one column only.
    pub fn oriented(mut self) -> Self {
        if let (Operand::Matrix(lhs), Operand::Matrix(rhs)) = (self.lhs, self.rhs) {
            let upright = self.n > 1 && (self.column_stride == 1 || self.row_stride != 1);
            if self.m > 1 && !upright {
                self = Self {
                    m: self.n,
                    n: self.m,
                    lhs: Operand::Matrix(rhs.transposed()),
                    rhs: Operand::Matrix(lhs.transposed()),
                    row_stride: self.column_stride,
                    column_stride: self.row_stride,
                    epilogue: self.epilogue.transposed(),
                    ..self
                };
            }
        }
        if self.n == 1 {
            self.column_stride = 1;
        }
        self
    }

    /// An estimate for the choice between one thread and many.
    pub fn seconds(&self, blocking: &Blocking) -> f64 {
        2e-9 * self.m as f64 * self.n as f64 * self.k as f64 / blocking.gflops
    }
}

/// Packed lhs: strips through `depth` columns from `first_k` on, of rows from `first_row` on.
#[derive(Clone, Copy)]
struct PackedStrips {
    start: *const f32,
    depth: usize,
    first_row: usize,
    first_k: usize,
}

impl PackedStrips {
    /// Column `k` of the strip of so many rows from `row` on.
    #[inline(always)]
    fn at(&self, row: usize, height: usize, k: usize) -> *const f32 {
        self.start.wrapping_add((row - self.first_row) * self.depth + (k - self.first_k) * height)
    }
}

/// Packed rhs: panels through `depth` rows from `first_k` on, from `first_panel` on.
#[derive(Clone, Copy)]
struct PackedPanels {
    start: *const f32,
    depth: usize,
    first_panel: usize,
    first_k: usize,
}

/// A rectangle of the output, and a range of `k`, that one task computes.
struct Rectangle<'a> {
    product: &'a Product,
    plan: &'a Plan,
    strips: Range<usize>,
    panels: Range<usize>,
    ks: Range<usize>,
    /// None: in place.
    lhs: Option<PackedStrips>,
    /// None: in place, or packed block by block into `private`.
    rhs: Option<PackedPanels>,
    private: *mut f32,
}

impl Job for Rectangle<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: `run` made the rectangle of a checked product and gave it the memory that the plan asks for.
        unsafe { blocks(simd, &self) }
    }
}

/// Loops 4 and 3.
///
/// # Safety
/// - The rectangle lies inside of its product; its pointers hold what the plan promised.
#[inline(always)]
unsafe fn blocks<S: Simd>(simd: S, rectangle: &Rectangle<'_>) {
    let Rectangle { product, plan, .. } = *rectangle;
    let nr = NV * S::LANES;
    let mut ahead = Ahead::NONE;
    let mut panel = rectangle.panels.start;
    while panel < rectangle.panels.end {
        let panels = panel..rectangle.panels.end.min(panel + plan.block_panels);
        let mut k = rectangle.ks.start;
        loop {
            let ks = k..rectangle.ks.end.min(k + plan.kc);
            // SAFETY: panels and depth of the block are inside of the rectangle's.
            unsafe {
                let private =
                    PackedPanels { start: rectangle.private, depth: ks.len(), first_panel: panel, first_k: k };
                let mut meeting = rectangle.strips.clone();
                let packed = match (plan.rhs, product.rhs) {
                    (RhsPacking::InPlace, _) => None,
                    (RhsPacking::Private, Operand::Matrix(rhs)) => {
                        let deeper = ks.end < rectangle.ks.end;
                        let next_k = if deeper { ks.end } else { rectangle.ks.start };
                        let next_panel = if deeper { panels.start } else { panels.end };
                        if next_panel < rectangle.panels.end {
                            let next_ks = next_k..rectangle.ks.end.min(next_k + plan.kc);
                            let end = rectangle.panels.end.min(next_panel + plan.block_panels) * nr;
                            let steps = rectangle.strips.len() * panels.len();
                            ahead.block(rhs, next_ks, next_panel * nr..product.n.min(end), steps);
                        }
                        if rhs.column_stride == 1 {
                            // The first strip packs the block on its way.
                            let first = meeting.start..meeting.end.min(meeting.start + 1);
                            meeting.start = first.end;
                            strips::<S, PACKING>(
                                simd,
                                rectangle,
                                Some(private),
                                first,
                                panels.clone(),
                                ks.clone(),
                                None,
                                &mut ahead,
                            );
                        } else {
                            pack_panels(simd, rhs, product.n, panels.clone(), ks.clone(), rectangle.private);
                        }
                        Some(private)
                    }
                    _ => rectangle.rhs,
                };
                let (panels, ks) = (panels.clone(), ks.clone());
                if packed.is_none() {
                    strips::<S, IN_PLACE>(simd, rectangle, None, meeting, panels, ks, None, &mut ahead);
                } else {
                    let next = next_block(rectangle, &panels, &ks, nr);
                    strips::<S, PACKED>(simd, rectangle, packed, meeting, panels, ks, next, &mut ahead);
                }
            }
            k = ks.end;
            if k >= rectangle.ks.end {
                break;
            }
        }
        panel = panels.end;
    }
}

/// How many floats behind a block of a packed rhs, of panels of `nr` columns, the block stands that is met next.
fn next_block(rectangle: &Rectangle<'_>, panels: &Range<usize>, ks: &Range<usize>, nr: usize) -> Option<isize> {
    let depth = rectangle.rhs?.depth;
    if ks.end < rectangle.ks.end {
        return Some((ks.len() * nr) as isize);
    }
    // Beyond the rectangle is what this thread's next task meets, most likely.
    let back = ks.start - rectangle.ks.start;
    (panels.end < rectangle.plan.panels).then(|| (panels.len() * depth * nr) as isize - (back * nr) as isize)
}

/// Loops 2 and 1: the strips of the rectangle, each against all panels of a block of rhs.
///
/// # Safety
/// - As for [`blocks`]; `packed` holds `panels` and `ks` unless rhs is read in place, or has room for them if they are
///   packed on the way.
///
/// The panels that are met next, if they are packed, stand `next` floats behind these.
#[inline(always)]
unsafe fn strips<S: Simd, const RHS: u8>(
    simd: S,
    rectangle: &Rectangle<'_>,
    packed: Option<PackedPanels>,
    strips: Range<usize>,
    panels: Range<usize>,
    ks: Range<usize>,
    next: Option<isize>,
    ahead: &mut Ahead,
) {
    let Rectangle { product, plan, .. } = *rectangle;
    let (nr, depth) = (NV * S::LANES, ks.len());
    let continues = ks.start > 0 || product.accumulate;
    let finishes = ks.end == product.k && !product.epilogue.is_nothing();
    // A tile that is not stored as it is goes through a buffer.
    let buffered = finishes || product.column_stride != 1;
    let mut buffer = std::mem::MaybeUninit::<[f32; MAX_HEIGHT * MAX_WIDTH]>::uninit();
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    if buffered {
        // SAFETY: the buffer's own size.
        unsafe { buffer.write_bytes(0, MAX_HEIGHT * MAX_WIDTH) };
    }
    // Panels that are whole are met in one go, unless each tile goes through the buffer.
    let whole = panels.end.min(product.n / nr);
    for strip in strips {
        let (row, height) = (plan.strips.start(strip), plan.strips.height(strip));
        if let (None, Operand::Matrix(lhs)) = (rectangle.lhs, product.lhs)
            && plan.looks_ahead
            && lhs.column_stride == 1
            && strip + 1 < rectangle.strips.end
        {
            ahead.strip(lhs, [row + height, plan.strips.height(strip + 1)], ks.clone(), panels.len());
        }
        let next_strip = rectangle.lhs.map(|p| {
            let after = if strip + 1 < rectangle.strips.end { strip + 1 } else { rectangle.strips.start };
            p.at(plan.strips.start(after), plan.strips.height(after), ks.start)
        });
        let mut panel = panels.start;
        while panel < panels.end {
            let count = if buffered || panel >= whole { 1 } else { whole - panel };
            let column = panel * nr;
            let nv = panel_vectors::<S>(column, product.n);
            let columns = (product.n - column).min(nr);
            let packed_panel = packed.map_or(std::ptr::null(), |p| {
                p.start.wrapping_add((panel - p.first_panel) * nr * p.depth + (ks.start - p.first_k) * nv * S::LANES)
            });
            let rhs = match (packed, product.rhs) {
                (Some(p), _) if RHS == PACKED => {
                    let mut met = Panels::packed(packed_panel, nv * S::LANES, nr * p.depth, count);
                    if let Some(distance) = next {
                        let part = [strip - rectangle.strips.start, rectangle.strips.len()];
                        met = met.before_panels(packed_panel.wrapping_offset(distance), depth, part);
                    }
                    if let Some(next) = next_strip {
                        met = met.before_strip(next, [height, depth], [panel - panels.start, panels.len()]);
                    }
                    met
                }
                (_, Operand::Matrix(rhs)) => Panels {
                    start: rhs.at(ks.start, column),
                    row_stride: rhs.row_stride,
                    step: nr,
                    count,
                    pack_to: packed_panel.cast_mut(),
                    later: [Later::nothing(std::ptr::null()); 2],
                },
                (_, Operand::Packed(_)) => unreachable!("a packed operand is never read in place"),
            };
            let out = element(product, product.out, row, column);
            let mut ends = Ends {
                from: if continues { out } else { std::ptr::null() },
                from_stride: product.row_stride,
                to: out,
                to_stride: product.row_stride,
                columns,
            };
            // SAFETY: strip, panels and depth are inside of the operands, and so are the tiles inside of the output;
            // the buffer holds the largest tile.
            unsafe {
                if buffered {
                    // Tiles ask for the lines that they write, which is the buffer here.
                    if depth >= WORTH_ASKING && product.column_stride == 1 {
                        ask_for(simd, out, product.row_stride, [height, columns]);
                        let residual = product.epilogue.residual;
                        if finishes && !residual.start.is_null() && residual.column_stride == 1 {
                            ask_for(simd, residual.at(row, column), residual.row_stride, [height, columns]);
                        }
                    }
                    (ends.to, ends.to_stride) = (buffer, MAX_WIDTH as isize);
                    if continues && product.column_stride != 1 {
                        for i in 0..height {
                            for j in 0..columns {
                                *buffer.add(i * MAX_WIDTH + j) = *element(product, out, i, j);
                            }
                        }
                        (ends.from, ends.from_stride) = (buffer, MAX_WIDTH as isize);
                    }
                }
                match (rectangle.lhs, product.lhs) {
                    (None, Operand::Matrix(lhs)) if lhs.column_stride == 1 => {
                        let lhs = ContiguousRows { start: lhs.at(row, ks.start), row_stride: lhs.row_stride };
                        tiles_of::<S, _, RHS>(simd, [height, nv], lhs, rhs, depth, ends, ahead);
                    }
                    (packed, operand) => {
                        let lhs = match (packed, operand) {
                            (Some(p), _) => {
                                let start = p.at(row, height, ks.start);
                                ContiguousColumns { start, column_stride: height as isize }
                            }
                            (None, Operand::Matrix(lhs)) => {
                                ContiguousColumns { start: lhs.at(row, ks.start), column_stride: lhs.column_stride }
                            }
                            (None, Operand::Packed(_)) => unreachable!("a packed operand is never read in place"),
                        };
                        tiles_of::<S, _, RHS>(simd, [height, nv], lhs, rhs, depth, ends, ahead);
                    }
                }
                if buffered {
                    if finishes {
                        product.epilogue.apply(simd, buffer, MAX_WIDTH, [row, column], [height, columns]);
                    }
                    for i in 0..height {
                        if product.column_stride == 1 {
                            for j in (0..columns).step_by(S::LANES) {
                                let x = simd.load(buffer.add(i * MAX_WIDTH + j));
                                simd.store_first(element(product, out, i, j), columns - j, x);
                            }
                        } else {
                            for j in 0..columns {
                                *element(product, out, i, j) = *buffer.add(i * MAX_WIDTH + j);
                            }
                        }
                    }
                }
            }
            panel += count;
        }
    }
}

/// Depth from which a tile lasts long enough for its lines to arrive.
const WORTH_ASKING: usize = 128;

/// The address of element `[i, j]` from `start` on.
#[inline(always)]
fn element(product: &Product, start: *mut f32, i: usize, j: usize) -> *mut f32 {
    start.wrapping_offset(i as isize * product.row_stride + j as isize * product.column_stride)
}

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

/// Memory that tasks share or cut among themselves.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub *mut f32);
// SAFETY: who holds one writes only the part that is its own, and reads what was written in an earlier loop.
unsafe impl Sync for Shared {}

impl Shared {
    #[inline(always)]
    pub fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
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
                (_, Operand::Packed(start)) => Some(PackedStrips { start, depth: k, first_row: 0, first_k: 0 }),
                _ => None,
            };
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

/// Runs a product whose plan is a [`Plan::small`].
///
/// # Safety
/// - As for [`run`]; the plan asks for no workspace.
pub(super) unsafe fn run_at_once(product: &Product, plan: &Plan, isa: Isa) {
    debug_assert!(plan.grid == [1, 1] && plan.least_workspace() == 0);
    dispatch(
        isa,
        Rectangle {
            product,
            plan,
            strips: 0..plan.strips.count,
            panels: 0..plan.panels,
            ks: 0..product.k,
            lhs: None,
            rhs: None,
            private: std::ptr::null_mut(),
        },
    );
}

/// The plan for a small product that is read in place, if it is one.
pub(super) fn small_plan(product: &Product, isa: Isa, blocking: &Blocking) -> Option<Plan> {
    Plan::small([product.m, product.n, product.k], &product.lhs, &product.rhs, isa, blocking)
}

/// The plan for a product on this CPU, or with other block sizes.
pub(super) fn plan(product: &Product, isa: Isa, blocking: &Blocking, threads: usize) -> Plan {
    Plan::new([product.m, product.n, product.k], &product.lhs, &product.rhs, isa, blocking, threads)
}
