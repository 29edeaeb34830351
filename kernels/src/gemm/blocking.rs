//! Blocking sizes, as data per CPU. None of them changes a bit of any result.
//!
//! ```text
//!            ◄── NC ──►
//!           ┌──────────┐ ▲                  a block of rhs, KC x NC, stays in L2 while each strip of lhs meets it
//!           │  rhs     │ KC
//!           └──────────┘ ▼
//!    ┌───┐  ┌──────────┐ ▲                  a strip of lhs, MR x KC, meets each panel of a block of rhs
//!    │lhs│  │  out     │ MR
//!    └───┘  └──────────┘ ▼
//!    ◄KC►
//! ```
//!
//! Deep blocks, although neither strip nor panel fits L1 then: a step of the micro-kernel asks L2 for 3 to 11 bytes a
//! cycle, which arrive unnoticed (Zen 4, AVX-512, packed operands: 116.2 GFLOP/s of 118.2 at a depth of 256, where all
//! comes from L1, and 117.4 at 1024 from L2), while each pass over the output costs some 5 % at a depth of 256 and 2 %
//! at 1024, and is spared where k is no deeper. 1024 x 1024 x 1024 on one thread: 102 with 256 x 512, 106 with 512 x
//! 256, 110 with 1024 x 128.
//!
//! What is met next is asked for while a tile is computed: 1024 x 1024 x 1024 on one thread, 94 GFLOP/s without and 101
//! with the next strip of a packed lhs (Zen 4, while other programs on the same processor used much of its L3). Where
//! an L3 is slow, few rows of lhs stay in L2 and each panel of weights that are packed ahead of time comes by once.
//!
//! Rows of lhs that are contiguous are read where they are: broadcasts do not mind, and packing them took a seventh of
//! the time at 256 x 256 x 256 (79 % of the peak with, 93 % without, on Zen 3), 2 to 5 % at 788 x 1152 x 384 and
//! 128 x 768 x 768 (Zen 4). Only rows that share a set of L1 are copied first, a line further apart.

use crate::simd::{Cpu, cpu};

/// Where the loops are cut.
#[derive(Clone, Copy, Debug)]
pub struct Blocking {
    /// Depth of a block, at most.
    pub kc: usize,
    /// Columns of a block of rhs, KC x NC floats, a third or half of L2: what a task packs for itself, and reads once
    /// per strip. Beside it are two strips of lhs and, towards the end, the next block, which is asked for ahead
    /// of time.
    pub nc: usize,
    /// Floats of lhs, all rows of it, that stay in L2 while panels of a packed rhs come by, each once; for no more
    /// rows.
    pub lhs_block: usize,
    /// Floats of an operand that are packed at once for all threads: a part of L3.
    pub shared: usize,
    /// Depth of a block where rhs is read in place, row after row, for a few rows of lhs: as many streams of
    /// memory at once as the hardware prefetches.
    pub thin_kc: usize,
    /// Columns of a block there: the outputs of one row stay in L1.
    pub thin_nc: usize,
    /// Depth of a block of one panel: rows of the other operand are read where they are, and long rows stream better.
    pub deep_kc: usize,
    /// Up to so many rows of lhs, rhs is not worth packing when its rows are contiguous.
    pub thin_rows: usize,
    /// Up to so many columns of rhs, lhs is not worth a copy: contiguous columns are not packed, crowded rows not
    /// spread.
    pub thin_columns: usize,
    /// Up to so many floats, an operand with contiguous rows or columns is read in place: it stays in L1.
    pub in_place: usize,
    /// Up to so many floats, an operand that few rows meet in place stays in L2, and is met at its whole depth.
    pub near: usize,
    /// The speed that estimates of the running time assume.
    pub gflops: f64,
}

/// 32 KiB L1d, 512 KiB L2.
const ZEN3: Blocking = Blocking {
    kc: 512,
    nc: 128,
    lhs_block: 80 << 10,
    shared: 1 << 21,
    thin_kc: 8,
    thin_nc: 1024,
    deep_kc: 2048,
    thin_rows: 12,
    thin_columns: 128,
    in_place: 4096,
    near: 96 << 10,
    gflops: 100.0,
};

/// 1 MiB L2. Strips of lhs that come from L3 arrive in time: 308 x 512 x 2048 on two threads 218 GFLOP/s, and 210 where
/// all rows stay in L2. Of few rows, the first block of weights would come too late: 64 x 512 x 784 214 GFLOP/s, 223 as
/// it is.
const ZEN4: Blocking = Blocking { kc: 1024, nc: 128, lhs_block: 60 << 10, ..ZEN3 };

/// 2 MiB L2, and an L3 of 28 GiB/s a core: both blocks have to fit L2.
const SAPPHIRE_RAPIDS: Blocking = Blocking { kc: 1024, nc: 192, lhs_block: 320 << 10, ..ZEN3 };

/// What fits 256 KiB of L2.
const OTHER: Blocking = Blocking { kc: 256, nc: 128, lhs_block: 40 << 10, shared: 1 << 20, ..ZEN3 };

impl Blocking {
    /// The largest `kc * nc` of all CPUs: what a task packs for itself.
    pub const LARGEST_BLOCK: usize = SAPPHIRE_RAPIDS.kc * SAPPHIRE_RAPIDS.nc;
    /// The largest `shared` of all CPUs.
    pub const LARGEST_SHARED: usize = ZEN3.shared;

    /// Sizes for tests: so small that tiny products cross every boundary, nothing in place, nothing serial; the same
    /// with operands in place where that is possible; everything in one block, and shared packing of all; and this
    /// CPU's.
    #[cfg(any(test, feature = "internals"))]
    pub fn of_tests() -> [Self; 4] {
        let toy = Self {
            kc: 5,
            nc: 1,
            lhs_block: 0,
            shared: 40,
            thin_kc: 3,
            thin_nc: 1,
            deep_kc: 11,
            thin_rows: 0,
            thin_columns: 0,
            in_place: 0,
            near: 0,
            gflops: 1e-12,
        };
        let in_place = Self { thin_rows: 1000, thin_columns: 1000, lhs_block: 60, ..toy };
        let whole = Self { kc: 1000, nc: 40, shared: 100_000, ..toy };
        [toy, in_place, whole, *Self::for_this_cpu()]
    }

    /// The sizes for this CPU.
    pub fn for_this_cpu() -> &'static Self {
        match cpu() {
            Cpu::Zen3 => &ZEN3,
            Cpu::Zen4 => &ZEN4,
            Cpu::SapphireRapids => &SAPPHIRE_RAPIDS,
            Cpu::Other => &OTHER,
        }
    }
}
