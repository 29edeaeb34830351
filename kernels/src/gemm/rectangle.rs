//! A product, and a rectangle of its output: what one task computes, loops 4 to 1 of [`super::driver`].

use std::ops::Range;

use super::ahead::Ahead;
use super::blocking::Blocking;
use super::epilogue::{Finish, RawEpilogue};
use super::lhs::{ContiguousColumns, ContiguousRows, RowsAhead, asks_ahead};
use super::pack::{pack_panels, panel_vectors};
use super::plan::{Operand, Plan, RhsPacking};
use super::rhs::Later;
use super::tile::{
    Ends, IN_PLACE, MAX_WIDTH, NV, PACKED, PACKING, Panels, TileBuffer, WIDE, max_wide_height, tiles_of, wide_tiles_of,
};
use crate::simd::{Job, Simd};

/// What a core reads from its second-level cache, on either kind of CPU at least.
const BYTES_PER_SECOND: f64 = 70e9;

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
        let upright = self.n > 1 && (self.column_stride == 1 || self.row_stride != 1);
        if self.m > 1 && !upright {
            self.turn();
        }
        if self.n == 1 {
            self.column_stride = 1;
        }
        self
    }

    /// Makes it `outᵀ = rhsᵀ lhsᵀ`, if both are matrices.
    pub fn turn(&mut self) {
        if let (Operand::Matrix(lhs), Operand::Matrix(rhs)) = (self.lhs, self.rhs) {
            (self.m, self.n) = (self.n, self.m);
            (self.lhs, self.rhs) = (Operand::Matrix(rhs.transposed()), Operand::Matrix(lhs.transposed()));
            (self.row_stride, self.column_stride) = (self.column_stride, self.row_stride);
            self.epilogue = self.epilogue.transposed();
        }
    }

    /// An estimate for the choice between one thread and many: thin products wait for their larger factor.
    pub fn seconds(&self, blocking: &Blocking) -> f64 {
        let [m, n, k] = [self.m, self.n, self.k].map(|len| len as f64);
        let bytes = 4.0 * (m * k + k * n + m * n);
        (2e-9 * m * n * k / blocking.gflops).max(bytes / BYTES_PER_SECOND)
    }
}

/// Packed lhs: strips through `depth` columns from `first_k` on, of rows from `first_row` on.
#[derive(Clone, Copy)]
pub(super) struct PackedStrips {
    pub start: *const f32,
    pub depth: usize,
    pub first_row: usize,
    pub first_k: usize,
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
pub(super) struct PackedPanels {
    pub start: *const f32,
    pub depth: usize,
    pub first_panel: usize,
    pub first_k: usize,
}

/// A rectangle of the output, and a range of `k`, that one task computes.
pub(super) struct Rectangle<'a> {
    pub product: &'a Product,
    pub plan: &'a Plan,
    pub strips: Range<usize>,
    pub panels: Range<usize>,
    pub ks: Range<usize>,
    /// None: in place.
    pub lhs: Option<PackedStrips>,
    /// None: in place, or packed block by block into `private`.
    pub rhs: Option<PackedPanels>,
    pub private: *mut f32,
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
    let mut ahead = Ahead::OUTPUTS;
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
                        if asks_ahead::<S>() && next_panel < rectangle.panels.end {
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

/// Loops 2 and 1: the strips of the rectangle, each against all panels of a block of rhs. The panels that are met next,
/// if they are packed, stand `next` floats behind these.
///
/// # Safety
/// - As for [`blocks`]; `packed` holds `panels` and `ks` unless rhs is read in place, or has room for them if they are
///   packed on the way.
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
    // Columns that are no neighbours go through a buffer, one tile at a time.
    let strided = product.column_stride != 1;
    let mut buffer = TileBuffer::uninit();
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let epilogue = if finishes { &product.epilogue } else { &RawEpilogue::NOTHING };
    // Panels that are whole are met in one go.
    let whole = panels.end.min(product.n / nr);
    let next_k = if ks.end < rectangle.ks.end { ks.end } else { rectangle.ks.start };
    for strip in strips {
        let (row, height) = (plan.strips.start(strip), plan.strips.height(strip));
        let next_strip = rectangle.lhs.map(|p| {
            let after = if strip + 1 < rectangle.strips.end { strip + 1 } else { rectangle.strips.start };
            p.at(plan.strips.start(after), plan.strips.height(after), ks.start)
        });
        let in_rows = rectangle.lhs.is_none() && matches!(product.lhs, Operand::Matrix(lhs) if lhs.column_stride == 1);
        let few = RHS == IN_PLACE && in_rows && height <= max_wide_height(S::REGISTERS);
        let end = product.n.min(panels.end * nr);
        let mut panel = panels.start;
        while panel < panels.end {
            let column = panel * nr;
            let wide = few && end - column > (WIDE - 1) * S::LANES;
            let (nv, step) = if wide { (WIDE, WIDE * S::LANES) } else { (panel_vectors::<S>(column, product.n), nr) };
            let count = match strided {
                false if wide => ((end - column) / step).max(1),
                false if panel < whole => whole - panel,
                _ => 1,
            };
            let columns = (product.n - column).min(step);
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
                    step,
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
                finish: (finishes || strided).then_some(Finish {
                    epilogue,
                    row,
                    column,
                    column_stride: product.column_stride,
                    buffer,
                }),
            };
            // SAFETY: strip, panels and depth are inside of the operands, and so are the tiles inside of the output;
            // the buffer holds the largest tile.
            unsafe {
                if strided && continues {
                    for i in 0..height {
                        for j in 0..columns {
                            *buffer.add(i * MAX_WIDTH + j) = *element(product, out, i, j);
                        }
                    }
                    (ends.from, ends.from_stride) = (buffer, MAX_WIDTH as isize);
                }
                match (rectangle.lhs, product.lhs) {
                    (None, Operand::Matrix(lhs)) if lhs.column_stride == 1 => {
                        let rows = ContiguousRows { start: lhs.at(row, ks.start), row_stride: lhs.row_stride };
                        // The next strip, or the first again, through what follows in depth.
                        let next = match strip + 1 < rectangle.strips.end {
                            true => lhs.at(row + height, ks.start),
                            false => lhs.at(plan.strips.start(rectangle.strips.start), next_k),
                        };
                        let lhs = RowsAhead { rows, next };
                        if wide {
                            wide_tiles_of(simd, height, lhs, rhs, depth, ends, ahead);
                        } else {
                            tiles_of::<S, _, RHS>(simd, [height, nv], lhs, rhs, depth, ends, ahead);
                        }
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
            }
            panel += count * step / nr;
        }
    }
}

/// The address of element `[i, j]` from `start` on.
#[inline(always)]
pub(super) fn element(product: &Product, start: *mut f32, i: usize, j: usize) -> *mut f32 {
    start.wrapping_offset(i as isize * product.row_stride + j as isize * product.column_stride)
}
