//! Pooling where the channels of a pixel are neighbours: vectors of channels, window by window, nothing to rearrange.

use super::spec::Geometry;
use super::{Band, Pooling};
use crate::simd::each::{load, store};
use crate::simd::{Job, Simd};

/// Max or average pooling of a run of output rows.
pub(super) struct Forward<'a, P> {
    pub geometry: &'a Geometry,
    #[expect(dead_code, reason = "names the type; holds nothing")]
    pub pooling: P,
    pub x: &'a [f32],
    /// The first row, counted through all images.
    pub first: usize,
    pub y: &'a mut [f32],
}

impl<P: Pooling> Job for Forward<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, x, first, y, .. } = self;
        let (rows, channels) = (&geometry.rows, geometry.channels);
        let image_len = rows.size * geometry.x_row();
        for (i, y) in y.chunks_exact_mut(geometry.y_row()).enumerate() {
            let (image, oh) = ((first + i) / rows.output, (first + i) % rows.output);
            let x = &x[image * image_len..][..image_len];
            for (ow, y) in y.chunks_exact_mut(channels).enumerate() {
                let mut c = 0;
                // SAFETY: `x` is an image, `y` a pixel, and the channels `c ..` are within both.
                unsafe {
                    while c + 4 * S::LANES <= channels {
                        window::<S, P, 4>(simd, geometry, x.as_ptr().add(c), oh, ow, y.as_mut_ptr().add(c), S::LANES);
                        c += 4 * S::LANES;
                    }
                    while c < channels {
                        let count = S::LANES.min(channels - c);
                        window::<S, P, 1>(simd, geometry, x.as_ptr().add(c), oh, ow, y.as_mut_ptr().add(c), count);
                        c += S::LANES;
                    }
                }
            }
        }
    }
}

/// One window of `NV` vectors of channels, the last of them with `count` lanes.
///
/// # Safety
/// - `x` is an image of the geometry from some channel on, which has `(NV - 1) * LANES + count` channels left.
/// - `y` has room for as many.
#[inline(always)]
unsafe fn window<S: Simd, P: Pooling, const NV: usize>(
    simd: S,
    geometry: &Geometry,
    x: *const f32,
    oh: usize,
    ow: usize,
    y: *mut f32,
    count: usize,
) {
    let (rows, columns, channels) = (&geometry.rows, &geometry.columns, geometry.channels);
    let mut result = [simd.splat(P::START); NV];
    for kh in rows.taps(oh) {
        let row = rows.pixel(oh, kh) * columns.size;
        // Sums row by row have shorter chains of roundings.
        let mut partial = if P::MEAN { [simd.splat(P::START); NV] } else { result };
        for kw in columns.taps(ow) {
            // SAFETY: the tap is in the image; the channels are the caller's contract.
            unsafe {
                let p = x.add((row + columns.pixel(ow, kw)) * channels);
                for v in 0..NV {
                    partial[v] = P::join(simd, partial[v], load(simd, p.add(v * S::LANES), count));
                }
            }
        }
        for v in 0..NV {
            result[v] = if P::MEAN { P::join(simd, result[v], partial[v]) } else { partial[v] };
        }
    }
    let divisor = simd.splat(geometry.divisor(oh, ow));
    for v in 0..NV {
        let value = if P::MEAN { simd.div(result[v], divisor) } else { result[v] };
        // SAFETY: the caller's contract.
        unsafe { store(simd, y.add(v * S::LANES), count, value) };
    }
}

/// The gradient of max pooling for one band.
pub(super) struct MaxBackward<'a> {
    pub geometry: &'a Geometry,
    pub x: &'a [f32],
    pub y: &'a [f32],
    pub dy: &'a [f32],
    pub band: Band,
    pub dx: &'a mut [f32],
}

impl Job for MaxBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, x, y, dy, band, dx } = self;
        let (rows, columns, channels) = (&geometry.rows, &geometry.columns, geometry.channels);
        let image_len = rows.size * geometry.x_row();
        let x = &x[band.plane * image_len..][..image_len];
        dx.fill(0.0);
        for oh in band.first..band.last {
            for ow in 0..columns.output {
                let at = ((band.plane * rows.output + oh) * columns.output + ow) * channels;
                let (y, dy) = (&y[at..][..channels], &dy[at..][..channels]);
                let mut c = 0;
                while c < channels {
                    let count = S::LANES.min(channels - c);
                    // SAFETY: `count` channels from `c` on are within every pixel.
                    unsafe {
                        let (y, dy) = (load(simd, y.as_ptr().add(c), count), load(simd, dy.as_ptr().add(c), count));
                        give(simd, geometry, band, [oh, ow], c, count, x, y, dy, dx);
                    }
                    c += S::LANES;
                }
            }
        }
    }
}

/// Gives `dy` of one window and vector of channels to the first maxima; to the last NaN where the maximum is NaN.
///
/// # Safety
/// - `x` is an image of the geometry, `dx` the rows of `band`, `oh` one of the band's windows.
/// - `c + count` is at most `channels`, `count` at most `LANES`.
#[inline(always)]
unsafe fn give<S: Simd>(
    simd: S,
    geometry: &Geometry,
    band: Band,
    [oh, ow]: [usize; 2],
    c: usize,
    count: usize,
    x: &[f32],
    y: S::F,
    dy: S::F,
    dx: &mut [f32],
) {
    let (rows, columns, channels) = (&geometry.rows, &geometry.columns, geometry.channels);
    let mut open = simd.mask_first(count);
    for kh in rows.taps(oh) {
        for kw in columns.taps(ow) {
            let (ih, iw) = (rows.pixel(oh, kh), columns.pixel(ow, kw));
            let from = (ih * columns.size + iw) * channels + c;
            let to = ((ih - band.top) * columns.size + iw) * channels + c;
            debug_assert!(from + count <= x.len() && to + count <= dx.len());
            // SAFETY: the tap is in the image and in the band's rows, and `count` channels are left.
            unsafe {
                let hit = simd.and(open, simd.eq(load(simd, x.as_ptr().add(from), count), y));
                // Which tap it is cannot be predicted, so there is no branch to leave out the others.
                add_where(simd, hit, dx.as_mut_ptr().add(to), count, dy);
                open = simd.and(open, simd.not(hit));
            }
        }
    }
    open = simd.and(open, simd.is_nan(y));
    if simd.bits(open) == 0 {
        return;
    }
    for kh in rows.taps(oh).rev() {
        for kw in columns.taps(ow).rev() {
            let (ih, iw) = (rows.pixel(oh, kh), columns.pixel(ow, kw));
            let from = (ih * columns.size + iw) * channels + c;
            let to = ((ih - band.top) * columns.size + iw) * channels + c;
            // SAFETY: as above.
            unsafe {
                let hit = simd.and(open, simd.is_nan(load(simd, x.as_ptr().add(from), count)));
                add_where(simd, hit, dx.as_mut_ptr().add(to), count, dy);
                open = simd.and(open, simd.not(hit));
            }
        }
    }
}

/// Adds `v` to the lanes of `p` whose mask is true.
///
/// # Safety
/// - `p .. p + count` is readable and writable, `count <= LANES`, no lane from `count` on is true.
#[inline(always)]
unsafe fn add_where<S: Simd>(simd: S, mask: S::M, p: *mut f32, count: usize, v: S::F) {
    // SAFETY: the caller's contract.
    unsafe {
        let old = load(simd, p, count);
        store(simd, p, count, simd.select(mask, simd.add(old, v), old));
    }
}

/// The gradient of average pooling for one band.
pub(super) struct AverageBackward<'a> {
    pub geometry: &'a Geometry,
    pub dy: &'a [f32],
    pub band: Band,
    pub dx: &'a mut [f32],
}

impl Job for AverageBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, dy, band, dx } = self;
        let (rows, columns, channels) = (&geometry.rows, &geometry.columns, geometry.channels);
        dx.fill(0.0);
        for oh in band.first..band.last {
            for ow in 0..columns.output {
                let at = ((band.plane * rows.output + oh) * columns.output + ow) * channels;
                let dy = &dy[at..][..channels];
                let divisor = simd.splat(geometry.divisor(oh, ow));
                let mut c = 0;
                while c < channels {
                    let count = S::LANES.min(channels - c);
                    // SAFETY: `count` channels from `c` on are within every pixel, and the taps within the band's rows.
                    unsafe {
                        let share = simd.div(load(simd, dy.as_ptr().add(c), count), divisor);
                        for kh in rows.taps(oh) {
                            let row = (rows.pixel(oh, kh) - band.top) * columns.size;
                            for kw in columns.taps(ow) {
                                let at = (row + columns.pixel(ow, kw)) * channels + c;
                                debug_assert!(at + count <= dx.len());
                                let p = dx.as_mut_ptr().add(at);
                                store(simd, p, count, simd.add(load(simd, p, count), share));
                            }
                        }
                    }
                    c += S::LANES;
                }
            }
        }
    }
}
