//! What group norm and batch norm with channels apart share: runs of pixels of one channel.

use crate::simd::Simd;
use crate::simd::each::{Step, load};
use crate::simd::output::Output;
use crate::simd::reduce::Pairs;

/// `y = (x - mean) r gamma + beta`
pub(super) struct Normalise {
    pub x: *const f32,
    pub y: Output,
    pub mean: f32,
    pub r: f32,
    pub gamma: f32,
    pub beta: f32,
}

impl Step for Normalise {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let hat = simd.mul(simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean)), simd.splat(self.r));
            let v = simd.fma(hat, simd.splat(self.gamma), simd.splat(self.beta));
            self.y.put(simd, at, count, v);
        }
    }
}

/// `y = x scale + shift`
pub(super) struct Scale {
    pub x: *const f32,
    pub y: Output,
    pub scale: f32,
    pub shift: f32,
}

impl Step for Scale {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let v = simd.fma(load(simd, self.x.add(at), count), simd.splat(self.scale), simd.splat(self.shift));
            self.y.put(simd, at, count, v);
        }
    }
}

/// `dy x^` and `dy`, for their sums.
pub(super) struct Both {
    pub x: *const f32,
    pub dy: *const f32,
    pub mean: f32,
    pub r: f32,
}

impl Pairs for Both {
    #[inline(always)]
    unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2] {
        // SAFETY: the caller's contract: `at + count` is within the run.
        unsafe {
            let centred = simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean));
            let dy = load(simd, self.dy.add(at), count);
            [simd.mul(simd.mul(centred, simd.splat(self.r)), dy), dy]
        }
    }
}

/// `dx = factor (dy gamma - plain + x^ weighted)`
pub(super) struct Outgoing {
    pub x: *const f32,
    pub dy: *const f32,
    pub dx: Output,
    pub mean: f32,
    pub r: f32,
    pub gamma: f32,
    pub plain: f32,
    pub weighted: f32,
    pub factor: f32,
}

impl Step for Outgoing {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let hat = simd.mul(simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean)), simd.splat(self.r));
            let g = simd.mul(load(simd, self.dy.add(at), count), simd.splat(self.gamma));
            let v = simd.fma(hat, simd.splat(self.weighted), simd.sub(g, simd.splat(self.plain)));
            self.dx.put(simd, at, count, simd.mul(simd.splat(self.factor), v));
        }
    }
}
