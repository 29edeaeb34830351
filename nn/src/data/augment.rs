//! Images shifted, cropped and mirrored by whole pixels: what photographs bear without looking unnatural.
//!
//! ```text
//!        ┌ shift ┐
//!        0 0 0 0 0 0 0 0
//!        0 ┌─────────┐ 0      a window of the size of the crop lies anywhere within the image and its border of zeros;
//!        0 │  image  │ 0      half of the windows are mirrored
//!        0 └─────────┘ 0
//!        0 0 0 0 0 0 0 0
//! ```
//!
//! Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", 2012, section 4.1.

use super::Images;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::tensor::{Tensor, reserve, tensor};

/// How images may be shown.
///
/// ```
/// use nn::data::{Augment, Images};
/// let images = Images::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3], vec![7])?;
/// let augment = Augment { crop: [2, 1], ..Augment::none(images.size()) };
/// let (centre, labels) = augment.batch(&images, &[0], None)?;
/// assert_eq!((centre.as_slice(), labels), (Some(&[2.0, 5.0][..]), vec![7]));
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Augment {
    /// `[height, width]` of the window, at most those of the images and the border on both sides.
    pub crop: [usize; 2],
    /// The width of the border of zeros that the window may reach into.
    pub shift: usize,
    /// Whether left and right are exchanged in half of the images.
    pub flip: bool,
    /// Taken off each pixel, and then divided by the second: the data's mean and standard deviation.
    pub normalise: (f32, f32),
}

impl Augment {
    /// Images of `size` as they are.
    pub const fn none(size: [usize; 2]) -> Self {
        Self { crop: size, shift: 0, flip: false, normalise: (0.0, 1.0) }
    }

    /// A batch `[images, channels, height, width]` of the images with the given indices, and their classes. With
    /// `random` each window depends on the image's index alone, without it is the one in the middle.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an index beyond the images, for a crop that is empty or larger than an image and its
    /// border; [`Error::Shape`] for more pixels than memory holds.
    pub fn batch(&self, images: &Images, indices: &[usize], random: Option<&Random>) -> Result<(Tensor, Vec<usize>)> {
        let (size, [height, width]) = (images.size(), self.crop);
        let room = [0, 1].map(|axis: usize| {
            let bordered = self.shift.checked_mul(2).and_then(|border| border.checked_add(size[axis]));
            bordered.and_then(|bordered| bordered.checked_sub(self.crop[axis])).filter(|_| self.crop[axis] > 0)
        });
        let [Some(down), Some(right)] = room else {
            let expected = format!("from 1 x 1 to {size:?} and a border of {}", self.shift);
            return Err(Error::invalid("crop", expected, format!("{:?}", self.crop)));
        };
        let planes = images.channels();
        let mut batch = reserve("crop", &[indices.len(), planes, height, width])?;
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            let Some(&label) = images.labels().get(index) else {
                return Err(Error::invalid("indices", format!("below {}", images.len()), index));
            };
            labels.push(label);
            let (top, left, mirrored) = match random.map(|random| random.fork(index as u64)) {
                Some(mut random) => {
                    (random.below(down + 1), random.below(right + 1), random.below(2) == 1 && self.flip)
                }
                None => (down / 2, right / 2, false),
            };
            for from in images.image(index).chunks_exact(size[0] * size[1]) {
                self.draw(from, size, [top, left], mirrored, &mut batch);
            }
        }
        Ok((tensor(&[indices.len(), planes, height, width], batch)?, labels))
    }

    /// Appends a window of a plane; its corner counts from that of the border.
    fn draw(&self, from: &[f32], size: [usize; 2], corner: [usize; 2], mirrored: bool, to: &mut Vec<f32>) {
        let ([height, width], (mean, deviation)) = (self.crop, self.normalise);
        for oh in 0..height {
            for ow in 0..width {
                let ow = if mirrored { width - 1 - ow } else { ow };
                // In the border above or to the left the difference wraps around, and is beyond the image too.
                let ih = (corner[0] + oh).wrapping_sub(self.shift);
                let iw = (corner[1] + ow).wrapping_sub(self.shift);
                let pixel = if ih < size[0] && iw < size[1] { from[ih * size[1] + iw] } else { 0.0 };
                to.push((pixel - mean) / deviation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of two planes, every pixel another number from 1 on.
    fn images() -> Images {
        Images::with_channels((1..=48).map(|pixel| pixel as f32).collect(), 2, [3, 4], vec![5, 6]).unwrap()
    }

    #[test]
    fn every_window_is_a_piece_of_the_image_and_all_of_them_come_up() {
        let augment = Augment { crop: [3, 3], shift: 1, flip: true, normalise: (0.0, 1.0) };
        let images = images();
        let pixel = |plane: usize, row: isize, column: isize| {
            let inside = (0..3).contains(&row) && (0..4).contains(&column);
            if inside { images.image(1)[plane * 12 + row as usize * 4 + column as usize] } else { 0.0 }
        };
        let mut windows = Vec::new();
        for top in -1..2 {
            for left in -1..3 {
                for mirrored in [false, true] {
                    let mut window = Vec::new();
                    for (plane, row, column) in (0..18).map(|at| (at / 9, at / 3 % 3, at % 3)) {
                        let column = if mirrored { 2 - column } else { column };
                        window.push(pixel(plane, top + row as isize, left + column as isize));
                    }
                    windows.push((window, 0));
                }
            }
        }
        for seed in 0..500 {
            let (batch, labels) = augment.batch(&images, &[1], Some(&Random::new(seed))).unwrap();
            assert_eq!((batch.shape(), labels), (&[1, 2, 3, 3][..], vec![6]));
            let window = windows.iter_mut().find(|(window, _)| window == batch.as_slice().unwrap());
            window.unwrap_or_else(|| panic!("seed {seed}: {batch}")).1 += 1;
        }
        // 24 windows, 500 draws: one is missed with a probability of 24 (23/24)^500, one in 70 million.
        assert!(windows.iter().all(|&(_, count)| count > 0));
    }

    #[test]
    fn a_window_depends_on_seed_and_index_alone() {
        let augment = Augment { shift: 2, flip: true, ..Augment::none([3, 4]) };
        let random = Random::new(3);
        let (both, _) = augment.batch(&images(), &[0, 1], Some(&random)).unwrap();
        let (second, _) = augment.batch(&images(), &[1], Some(&random)).unwrap();
        assert_eq!(both.as_slice().unwrap()[24..], *second.as_slice().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let none = Augment::none([3, 4]);
        let (batch, _) = none.batch(&images(), &[0, 1], None).unwrap();
        assert_eq!(batch.as_slice().unwrap(), images().pixels());
        assert!(none.batch(&images(), &[2], None).is_err());
        for (crop, shift) in [([4, 4], 0), ([0, 1], 0), ([6, 4], 1), ([1, 1], usize::MAX), ([usize::MAX, 1], 1)] {
            assert!(Augment { crop, shift, ..none }.batch(&images(), &[0], None).is_err(), "{crop:?} {shift}");
        }
    }
}
