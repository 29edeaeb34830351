//! Labelled images of one size, in memory.
//!
//! ```text
//! pixels [images][channels][height][width]      labels [images]
//! ```

use super::split;
use crate::error::{Error, Result};
use crate::random::Random;

/// Images of one size, grey or in colours, with the class of each. Pixels go from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// [images][channels][height][width]
    pixels: Vec<f32>,
    channels: usize,
    size: [usize; 2],
    labels: Vec<usize>,
}

impl Images {
    /// Grey images of `size` [height, width], one behind the other.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are pixels for each label, and at least one pixel an image.
    pub fn new(pixels: Vec<f32>, size: [usize; 2], labels: Vec<usize>) -> Result<Self> {
        Self::with_channels(pixels, 1, size, labels)
    }

    /// Images of several planes, say red, green and blue, one plane behind the other.
    ///
    /// # Errors
    /// Those of [`Images::new`].
    pub fn with_channels(pixels: Vec<f32>, channels: usize, size: [usize; 2], labels: Vec<usize>) -> Result<Self> {
        let image = size[0].checked_mul(size[1]).and_then(|len| len.checked_mul(channels)).filter(|&len| len > 0);
        if image.and_then(|len| len.checked_mul(labels.len())) != Some(pixels.len()) {
            let expected = format!("{} images of {channels} x {size:?}, not empty", labels.len());
            return Err(Error::shape("pixels", expected, &[pixels.len()]));
        }
        Ok(Self { pixels, channels, size, labels })
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `[height, width]`
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The class of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// All pixels, image by image, plane by plane and row by row.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// How many planes an image has.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The pixels of one image, plane by plane and row by row; empty if there is no such image.
    pub fn image(&self, index: usize) -> &[f32] {
        self.pixels.chunks_exact(self.image_len()).nth(index).unwrap_or_default()
    }

    fn image_len(&self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }

    /// Holds out every so-manieth image: those with index 0, `every`, 2 `every`, ... The others come first, then these.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0.
    pub fn hold_out(&self, every: usize) -> Result<(Self, Self)> {
        let (kept, held) = split(self.len(), every, None)?;
        Ok((self.select(&kept), self.select(&held)))
    }

    /// As [`Images::hold_out`], from a random order: for files that are sorted.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0.
    pub fn hold_out_shuffled(&self, every: usize, random: &mut Random) -> Result<(Self, Self)> {
        let (kept, held) = split(self.len(), every, Some(random))?;
        Ok((self.select(&kept), self.select(&held)))
    }

    fn select(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        for &index in indices {
            pixels.extend_from_slice(self.image(index));
        }
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Self { pixels, channels: self.channels, size: self.size, labels }
    }

    /// The first images, at most so many.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        let pixels = self.pixels[..count * self.image_len()].to_vec();
        Self { pixels, channels: self.channels, size: self.size, labels: self.labels[..count].to_vec() }
    }

    /// The mean of all pixels and their standard deviation.
    pub fn mean_and_deviation(&self) -> (f32, f32) {
        let count = self.pixels.len().max(1) as f64;
        let mean = self.pixels.iter().map(|&pixel| pixel as f64).sum::<f64>() / count;
        let variance = self.pixels.iter().map(|&pixel| (pixel as f64 - mean).powi(2)).sum::<f64>() / count;
        (mean as f32, variance.sqrt() as f32)
    }
}
