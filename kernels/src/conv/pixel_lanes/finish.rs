//! The last step of a tile: where its results go, and bias, residual and activation on the way.

use super::patches::Runs;
use super::tile::Whole;
use super::{MAX_ROWS, NV};
use crate::activation::{Activation, apply};
use crate::conv::engine::Post;
use crate::conv::slide::Slide;
use crate::simd::{Job, Simd};

/// The last step of a tile: bias, residual, activation, store.
pub(super) struct Finish<'a> {
    pub post: &'a Post<'a>,
    pub output: *mut f32,
    /// Elements of a plane, and from one result to the next.
    pub plane: usize,
    pub column_step: usize,
    /// Whether results are too many to stay in a cache: they are written past it where they can be.
    pub stream: bool,
}

/// The bias of a convolution without one: a sum and -0 is the sum, -0 as well, which +0 would turn into +0.
static NO_BIAS: [f32; MAX_ROWS] = [-0.0; MAX_ROWS];

/// A run of results, from a lane of the tile to an element of the output's plane.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub lane: usize,
    pub len: usize,
    pub at: usize,
}

impl Place {
    /// Whether the second starts `distance` behind the first.
    #[inline(always)]
    pub fn follow(first: Option<Self>, second: Option<Self>, distance: usize) -> bool {
        first.zip(second).is_some_and(|(first, second)| second.at == first.at + distance)
    }
}

/// Where the runs of a tile go. Results that cover the output without gaps are one run, whatever the rows.
#[derive(Clone, Copy, Default)]
pub(super) struct Places {
    runs: Runs,
    /// Rows that lie one behind the other on both sides.
    dense: bool,
    start: [usize; 2],
    step: [usize; 2],
    width: usize,
}

impl Places {
    #[inline(always)]
    pub fn new(slide: &Slide, grid: [usize; 2], width: usize, pitch: usize, runs: Runs) -> Self {
        let dense = slide.out_step == [1, 1] && grid[1] == width && pitch == width;
        Self { runs, dense, start: slide.out_start, step: slide.out_step, width }
    }

    /// The place of all results, if they are one run.
    #[inline(always)]
    pub fn single(mut self) -> Option<Place> {
        let len = self.runs.len;
        self.next().filter(|place| place.len == len)
    }
}

impl Iterator for Places {
    type Item = Place;

    #[inline(always)]
    fn next(&mut self) -> Option<Place> {
        let run = self.runs.next()?;
        let at = (self.start[0] + run.row * self.step[0]) * self.width + self.start[1] + run.column * self.step[1];
        if !self.dense {
            return Some(Place { lane: run.lane, len: run.len, at });
        }
        let len = std::mem::take(&mut self.runs.len);
        Some(Place { lane: 0, len, at })
    }
}

impl Finish<'_> {
    /// The way from the registers to the output, where a tile is one run and nothing but a bias and a ReLU is to be
    /// done: with few products to an output the way through memory would cost a fifth of the time.
    #[inline(always)]
    pub fn whole<S: Simd>(&self, _: S, channel: usize, offset: usize, place: Option<Place>) -> Option<Whole> {
        let place = place?;
        let relu = match self.post.activation {
            Activation::Identity => false,
            Activation::Relu => true,
            _ => return None,
        };
        if self.post.residual.is_some() || self.column_step != 1 {
            return None;
        }
        let output = self.output.wrapping_add(offset + place.at);
        let aligned = output.addr().is_multiple_of(S::LANES * size_of::<f32>()) && self.plane.is_multiple_of(S::LANES);
        Some(Whole {
            output,
            len: place.len,
            plane: self.plane,
            bias: self.post.bias.map_or(NO_BIAS.as_ptr(), |bias| bias[channel..].as_ptr()),
            relu,
            stream: self.stream && aligned,
        })
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
        places: Places,
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
        places: Places,
    ) {
        for i in 0..rows {
            let bias = simd.splat(self.post.bias.map_or(NO_BIAS[i], |bias| bias[channel + i]));
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
    places: Places,
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
