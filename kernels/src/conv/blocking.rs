//! Block sizes, as data.

use crate::error::Error;
use crate::simd::Isa;

/// More threads than these are not looked after when work is cut evenly.
pub(super) const MOST_THREADS: usize = 256;

/// Elements of the scratch memory that a slot has, beside what inputs and outputs hold together: 4 MiB.
pub(super) const SLOT_LIMIT: usize = 1 << 20;

/// How a dense convolution is cut. Every cut is between outputs, or continues a sum where it was: no size here
/// changes a bit of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocking {
    /// Products of an output that are computed before the next block of input channels is taken up.
    pub depth: usize,
    /// Output channels of a task.
    pub out_channels: usize,
    /// Unfinished sums of a task, in elements.
    pub sums: usize,
    /// The padded copy of a few rows, in elements: what a task aims at.
    pub band: usize,
    /// The padded copy of one row, in elements: beyond this, patches are gathered one by one.
    pub band_limit: usize,
    /// Patches that are read by one panel after the other, in elements: a part of L1.
    pub strip: usize,
    /// Pixels of a task.
    pub pixels: usize,
    /// Pixels that the gradient of the weights runs through before the next block is copied.
    pub gradient_pixels: usize,
    /// Results of a call, in elements, from which on they are written past the caches where they can be: no cache
    /// holds them until the next layer reads them, but each line would be read from memory before it is written. 3
    /// to 64 channels of 224 x 224 (12.8 MB) on one core of Zen 4: 2.2 ms with plain stores, 1.8 ms with these.
    pub stream_from: usize,
    /// Fewer tasks than this for each thread are cut so that every thread gets as many.
    pub tasks_per_thread: usize,
    /// The speed by which work is judged too small for several threads.
    pub flops_per_second: f64,
}

impl Blocking {
    /// Whether every size is at least 1.
    pub(super) fn check(self) -> Result<Self, Error> {
        let sizes = [
            ("blocking.depth", self.depth),
            ("blocking.out_channels", self.out_channels),
            ("blocking.sums", self.sums),
            ("blocking.band", self.band),
            ("blocking.band_limit", self.band_limit),
            ("blocking.strip", self.strip),
            ("blocking.pixels", self.pixels),
            ("blocking.gradient_pixels", self.gradient_pixels),
            ("blocking.stream_from", self.stream_from),
            ("blocking.tasks_per_thread", self.tasks_per_thread),
        ];
        match sizes.into_iter().find(|&(_, size)| size == 0) {
            Some((argument, size)) => Err(Error::invalid(argument, "at least 1", size)),
            None => Ok(self),
        }
    }

    /// For 512 KiB of L2 and 32 KiB of L1: a tile's patches (depth 256 x 16 pixels, 16 KiB) stay in L1, the weights
    /// of a task (256 x 256, 256 KiB) and its unfinished sums in L2.
    pub const fn default_for(isa: Isa) -> Self {
        Self {
            depth: match isa {
                Isa::Avx512 => 256,
                Isa::Avx2 | Isa::Portable => 288,
            },
            out_channels: 256,
            sums: 48 * 1024,
            band: 32 * 1024,
            band_limit: 512 * 1024,
            strip: 5 * 1024,
            pixels: 4096,
            gradient_pixels: 384,
            stream_from: 2 << 20,
            tasks_per_thread: 8,
            flops_per_second: 80e9,
        }
    }
}
