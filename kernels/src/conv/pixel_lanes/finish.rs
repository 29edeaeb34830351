//! The last step of a tile: where its results go, and bias, residual and activation on the way.

use super::patches::Run;
use super::tile::Whole;
use super::{MAX_PIXELS, NV, Post};
use crate::activation::{Activation, apply};
use crate::conv::slide::Slide;
use crate::simd::{Job, Simd};

/// The last step of a tile: bias, residual, activation, store.
pub(super) struct Finish<'a> {
    pub post: &'a Post<'a>,
    pub output: *mut f32,
    /// Elements of a plane, and from one result to the next.
    pub plane: usize,
    pub column_step: usize,
}

/// A run of results, from a lane of the tile to an element of the output's plane.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub lane: usize,
    pub len: usize,
    pub at: usize,
}

/// Where the runs of a tile go. Results that cover the output without gaps are one run, whatever the rows.
#[inline(always)]
pub(super) fn places(slide: &Slide, grid: [usize; 2], width: usize, runs: &[Run]) -> ([Place; MAX_PIXELS], usize) {
    let [start_row, start_column] = slide.out_start;
    let [row_step, column_step] = slide.out_step;
    let dense = column_step == 1 && row_step == 1 && grid[1] == width;
    let mut places = [Place::default(); MAX_PIXELS];
    let mut count = 0;
    for run in runs {
        if dense && count > 0 {
            let last: &mut Place = &mut places[count - 1];
            if last.lane + last.len == run.lane {
                last.len += run.len;
                continue;
            }
        }
        let at = (start_row + run.row * row_step) * width + start_column + run.column * column_step;
        places[count] = Place { lane: run.lane, len: run.len, at };
        count += 1;
    }
    (places, count)
}

impl Finish<'_> {
    /// The way from the registers to the output, where a tile of `tile_pixels` is one run and nothing but a bias and a
    /// ReLU is to be done: with few products to an output the way through memory would cost a fifth of the time.
    #[inline(always)]
    pub fn whole(&self, tile_pixels: usize, channel: usize, offset: usize, places: &[Place]) -> Option<Whole> {
        let relu = match self.post.activation {
            Activation::Identity => false,
            Activation::Relu => true,
            _ => return None,
        };
        if self.post.residual.is_some() || self.column_step != 1 {
            return None;
        }
        match places {
            [place] if place.len == tile_pixels => Some(Whole {
                output: self.output.wrapping_add(offset + place.at),
                plane: self.plane,
                bias: self.post.bias.map_or(std::ptr::null(), |bias| bias[channel..].as_ptr()),
                relu,
            }),
            _ => None,
        }
    }

    /// Writes `rows` channels from `channel` on, the first of which starts at `offset` of the output.
    ///
    /// # Safety
    /// - `sums` holds `rows` rows of `NV * LANES`; the places of `rows` planes are writable from `offset` on.
    #[inline(always)]
    pub unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        sums: *const f32,
        rows: usize,
        channel: usize,
        offset: usize,
        places: &[Place],
    ) {
        // Naming the common activations moves the choice out of the loops.
        // SAFETY: passed on.
        unsafe {
            match self.post.activation {
                Activation::Identity => self.rows(simd, Activation::Identity, sums, rows, channel, offset, places),
                Activation::Relu => self.rows(simd, Activation::Relu, sums, rows, channel, offset, places),
                other => simd.call(FinishRows { finish: self, other, sums, rows, channel, offset, places }),
            }
        }
    }

    /// # Safety
    /// - As for [`Finish::tile`].
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        simd: S,
        activation: Activation,
        sums: *const f32,
        rows: usize,
        channel: usize,
        offset: usize,
        places: &[Place],
    ) {
        for i in 0..rows {
            let bias = simd.splat(self.post.bias.map_or(0.0, |bias| bias[channel + i]));
            for place in places {
                let at = offset + i * self.plane + place.at;
                let from = sums.wrapping_add(i * NV * S::LANES + place.lane);
                let mut done = 0;
                while done < place.len {
                    let lanes = (place.len - done).min(S::LANES);
                    let whole = lanes == S::LANES;
                    // SAFETY: `lanes` elements are left on all sides.
                    unsafe {
                        let from = from.add(done);
                        let mut value = if whole { simd.load(from) } else { simd.load_first(from, lanes) };
                        value = simd.add(value, bias);
                        let at = at + done * self.column_step;
                        if let Some(residual) = self.post.residual {
                            value = simd.add(value, self.residual(simd, residual, at, lanes));
                        }
                        let value = apply(simd, activation, value);
                        if self.column_step != 1 {
                            let mut line = [0.0f32; 16];
                            simd.store(line.as_mut_ptr(), value);
                            for l in 0..lanes {
                                *self.output.add(at + l * self.column_step) = line[l];
                            }
                        } else if whole {
                            simd.store(self.output.add(at), value);
                        } else {
                            simd.store_first(self.output.add(at), lanes, value);
                        }
                    }
                    done += S::LANES;
                }
            }
        }
    }

    /// The residuals of `lanes` results from `at` on.
    #[inline(always)]
    fn residual<S: Simd>(&self, simd: S, residual: &[f32], at: usize, lanes: usize) -> S::F {
        let mut line = [0.0f32; 16];
        if self.column_step == 1 {
            let from = residual[at..at + lanes].as_ptr();
            // SAFETY: the range was just checked.
            return unsafe { if lanes == S::LANES { simd.load(from) } else { simd.load_first(from, lanes) } };
        }
        for l in 0..lanes {
            line[l] = residual[at + l * self.column_step];
        }
        // SAFETY: sixteen elements are there.
        unsafe { simd.load(line.as_ptr()) }
    }
}

/// [`Finish::rows`] for activations that take long, in a function of its own.
struct FinishRows<'a> {
    finish: &'a Finish<'a>,
    other: Activation,
    sums: *const f32,
    rows: usize,
    channel: usize,
    offset: usize,
    places: &'a [Place],
}

impl Job for FinishRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { finish, other, sums, rows, channel, offset, places } = self;
        // SAFETY: the contract of `Finish::tile`, which alone makes one.
        unsafe { finish.rows(simd, other, sums, rows, channel, offset, places) }
    }
}
