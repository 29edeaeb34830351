//! Dropout: sets elements to 0 at random and scales the others up, so that the mean stays.
//!
//! ```text
//! y[i] = x[i] / keep  where  word(i) / 2^32 < keep,   0 elsewhere          keep = 1 - probability
//! ```
//!
//! `word(i)` is a function of seed, stream and `i` alone (Philox4x32-10): backward makes the mask again instead of
//! reading one, and threads, instruction sets and cuts of the work do not change it. The comparison takes 24 bits of
//! the word, so that `keep` is rounded to a multiple of 2^-24, and scaled by what it was rounded to.
//!
//! Dropped elements are +0 even where `x` is NaN or infinite.
//!
//! Source: N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (2014).

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::philox::{RUN, words64};
use crate::simd::{Job, Simd, dispatch};

/// A rough cost per element on one core, in seconds: 45 operations a vector.
const SECONDS_PER_ELEMENT: f64 = 1.2e-9;

/// Elements of a task: whole runs of random words.
const PART: usize = 256 * RUN;

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability of an element to be dropped, from 0 to 1.
    pub probability: f32,
    /// Different seeds give independent masks.
    pub seed: u64,
    /// Different streams of a seed give independent masks too: the number of a layer and a step, for example.
    pub stream: u64,
}

impl Dropout {
    /// The number of 2^24 values of a word for which an element is kept.
    pub(crate) fn kept(&self) -> Result<u32, Error> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(Error::invalid("probability", "0 to 1", self.probability));
        }
        Ok(((1.0 - f64::from(self.probability)) * f64::from(1 << 24)).round() as u32)
    }

    /// What kept elements are multiplied by.
    pub(crate) fn scale(kept: u32) -> f32 {
        if kept == 0 { 0.0 } else { (f64::from(1 << 24) / f64::from(kept)) as f32 }
    }

    /// The seed as a key.
    pub(crate) fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// `y = x / keep` where the mask keeps, 0 elsewhere. One product: errs by at most `2 u |y|`, `u = 2^-24`.
    ///
    /// ```
    /// use kernels::{Dropout, Parallelism};
    /// let dropout = Dropout { probability: 0.5, seed: 42, stream: 0 };
    /// let mut y = [9.0; 1000];
    /// dropout.forward(&[1.0; 1000], &mut y, Parallelism::Serial)?;
    /// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
    /// let mut dx = [9.0; 1000];
    /// dropout.backward(&[3.0; 1000], &mut dx, Parallelism::Serial)?;
    /// assert!(y.iter().zip(&dx).all(|(y, dx)| *dx == 3.0 * y));
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] unless `y` is as long as `x`, [`Error::Invalid`] for a probability outside of 0 to 1.
    pub fn forward<'t>(&self, x: &[f32], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
        check_len("y", x.len(), y.len())?;
        self.run(y, execution.into(), &|at, _| x[at..].as_ptr())
    }

    /// As [`Dropout::forward`], `x` becoming `y`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a probability outside of 0 to 1.
    pub fn forward_in_place<'t>(&self, x: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
        self.run(x, execution.into(), &|_, part| part)
    }

    /// `dx = dy / keep` where the mask of forward keeps, 0 elsewhere: the same as [`Dropout::forward`] of `dy`.
    ///
    /// # Errors
    /// Those of [`Dropout::forward`].
    pub fn backward<'t>(&self, dy: &[f32], dx: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
        check_len("dx", dy.len(), dx.len())?;
        self.run(dx, execution.into(), &|at, _| dy[at..].as_ptr())
    }

    /// `input(start, part)` says where the input of an output's part begins.
    fn run(
        &self,
        output: &mut [f32],
        execution: Execution,
        input: &(dyn Fn(usize, *const f32) -> *const f32 + Sync),
    ) -> Result<(), Error> {
        let kept = self.kept()?;
        let isa = execution.isa()?;
        let parallelism = execution.parallelism.for_seconds(output.len() as f64 * SECONDS_PER_ELEMENT);
        let parts = Parts::new(output, PART);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let y = unsafe { parts.take(index) };
            let x = input(index * PART, y.as_ptr());
            let run = (index * (PART / RUN)) as u64;
            dispatch(isa, Drop { run, stream: self.stream, key: self.key(), kept, x, y });
        });
        Ok(())
    }
}

struct Drop<'a> {
    /// The first run of random words.
    run: u64,
    stream: u64,
    key: [u32; 2],
    kept: u32,
    /// As many elements as `y`, possibly the same ones.
    x: *const f32,
    y: &'a mut [f32],
}

impl Job for Drop<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { run, stream, key, kept, x, y } = self;
        let (len, y) = (y.len(), y.as_mut_ptr());
        let scale = simd.splat(Dropout::scale(kept));
        // Up to 2^24, and so exact.
        let kept = simd.splat(kept as f32);
        let low = simd.splat_int(0x00ff_ffff);
        for index in 0..len.div_ceil(RUN) {
            for first in (0..16).step_by(S::LANES) {
                let words = words64(simd, run + index as u64, first, stream, key);
                for (j, word) in words.into_iter().enumerate() {
                    let at = index * RUN + 16 * j + first;
                    let is_kept = simd.lt(simd.int_to_float(simd.and_int(simd.shr_int::<8>(word), low)), kept);
                    // SAFETY: as many lanes are touched as there are elements left.
                    unsafe {
                        if at + S::LANES <= len {
                            let v = simd.mul(simd.load(x.add(at)), scale);
                            simd.store(y.add(at), simd.select(is_kept, v, simd.zero()));
                        } else if at < len {
                            let v = simd.mul(simd.load_first(x.add(at), len - at), scale);
                            simd.store_first(y.add(at), len - at, simd.select(is_kept, v, simd.zero()));
                        }
                    }
                }
            }
        }
    }
}
