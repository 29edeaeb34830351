//! One or two pixels, which meet several panels at once.
//!
//! ```text
//!              panel 0     panel 1     panel 2     the last, if it is half as wide
//!             ┌─────┬─────┬─────┬─────┬─────┬─────┬─────┐
//!   pixel     │     │     │     │     │     │     │     │     a chain in each vector
//!             └─────┴─────┴─────┴─────┴─────┴─────┴─────┘
//! ```
//!
//! With two vectors to a panel a pixel has two chains, each of which waits four cycles for its last sum; eight are
//! never short of work. With four vectors to a panel it is enough as it is.

use super::patches::Lhs;
use crate::conv::channel_tile::panel_vectors;
use crate::gemm::rhs::RhsAddress;
use crate::simd::{Isa, Job, Simd};

/// Vectors of a panel.
const PANEL: usize = 2;

const _: () = assert!(panel_vectors(Isa::Avx2) == PANEL && panel_vectors(Isa::Portable) == PANEL);

/// Chains that hide the latency of a fused multiply-add: four cycles, two a cycle.
const CHAINS: usize = 8;

/// Panels that so many pixels meet at once, of instruction sets with as many registers; 1 where a panel is enough.
pub(super) const fn panels_at_once(pixels: usize, registers: usize) -> usize {
    match pixels {
        1 | 2 if registers < 32 => CHAINS / PANEL / pixels,
        _ => 1,
    }
}

/// The right-hand rows of panels side by side.
#[derive(Clone, Copy)]
struct PanelRows {
    start: *const f32,
    /// From panel to panel.
    step: usize,
    /// Where the last panel starts.
    last: *const f32,
}

impl RhsAddress for PanelRows {
    /// Panels side by side have no row of one address: only what asks for vectors by [`RhsAddress::load`] takes them.
    #[inline(always)]
    unsafe fn row(&self, _: usize) -> *const f32 {
        unreachable!("the row of several panels")
    }

    /// An odd number of vectors ends with a panel of one.
    #[inline(always)]
    unsafe fn load<S: Simd, const NV: usize>(&self, simd: S, k: usize) -> [S::F; NV] {
        let mut row = [simd.zero(); NV];
        // SAFETY: the caller's contract.
        unsafe {
            for v in 0..NV / PANEL * PANEL {
                let panel = self.start.add(v / PANEL * self.step);
                row[v] = simd.load(panel.add((k * PANEL + v % PANEL) * S::LANES));
            }
            if !NV.is_multiple_of(PANEL) {
                row[NV - 1] = simd.load(self.last.add(k * S::LANES));
            }
        }
        row
    }
}

/// Panels side by side, and the sums of their pixels.
#[derive(Clone, Copy)]
pub(super) struct PanelGroup<'a> {
    /// Readable for all pixels and `depth` columns.
    pub lhs: Lhs<'a>,
    /// `depth` rows of the first panel, and from panel to panel.
    pub rhs: *const f32,
    pub rhs_step: usize,
    /// `depth` rows of the last, which may be one vector wide.
    pub last: *const f32,
    pub depth: usize,
    /// Writable for all pixels of each panel, `sums_step` apart; holds sums unless `first`.
    pub sums: *mut f32,
    pub sums_step: usize,
    pub first: bool,
}

impl PanelGroup<'_> {
    /// Starts or continues the chains of `pixels` pixels in `vectors` vectors.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise; pixels times vectors are 1 to [`CHAINS`].
    #[inline(always)]
    pub unsafe fn multiply<S: Simd>(self, simd: S, pixels: usize, vectors: usize) {
        debug_assert!((1..=CHAINS).contains(&(pixels * vectors)));
        match (pixels, vectors) {
            (1, 1) => simd.call(Fixed::<1, 1>(self)),
            (1, 2) => simd.call(Fixed::<1, 2>(self)),
            (1, 3) => simd.call(Fixed::<1, 3>(self)),
            (1, 4) => simd.call(Fixed::<1, 4>(self)),
            (1, 5) => simd.call(Fixed::<1, 5>(self)),
            (1, 6) => simd.call(Fixed::<1, 6>(self)),
            (1, 7) => simd.call(Fixed::<1, 7>(self)),
            (1, _) => simd.call(Fixed::<1, 8>(self)),
            (_, 1) => simd.call(Fixed::<2, 1>(self)),
            (_, 2) => simd.call(Fixed::<2, 2>(self)),
            (_, 3) => simd.call(Fixed::<2, 3>(self)),
            _ => simd.call(Fixed::<2, 4>(self)),
        }
    }
}

/// A group whose size is known at compile time: `ROWS` pixels and `V` vectors. Whoever makes one vouches for the
/// contract of [`PanelGroup::multiply`].
struct Fixed<'a, const ROWS: usize, const V: usize>(PanelGroup<'a>);

impl<const ROWS: usize, const V: usize> Job for Fixed<'_, ROWS, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // More registers have wider panels: this keeps the code from being generated.
        if const { S::REGISTERS >= 32 } {
            return;
        }
        let PanelGroup { lhs, rhs, rhs_step, last, depth, sums, sums_step, first } = self.0;
        let rhs = PanelRows { start: rhs, step: rhs_step, last };
        let at = |i: usize, v: usize| {
            let width = PANEL.min(V - v / PANEL * PANEL);
            sums.wrapping_add(v / PANEL * sums_step + (i * width + v % PANEL) * S::LANES)
        };
        let mut acc = [[simd.zero(); V]; ROWS];
        // SAFETY: the contract of `PanelGroup::multiply`.
        unsafe {
            for i in 0..if first { 0 } else { ROWS } {
                for v in 0..V {
                    acc[i][v] = simd.load(at(i, v));
                }
            }
            lhs.multiply(simd, &mut acc, rhs, depth);
            for i in 0..ROWS {
                for v in 0..V {
                    simd.store(at(i, v), acc[i][v]);
                }
            }
        }
    }
}
