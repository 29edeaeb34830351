//! Labelled images: reading them, holding some out, cutting the rest into shuffled batches.

mod csv;
mod idx;
mod warp;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

pub use csv::read_csv;
pub use idx::read_idx;
pub use warp::Warp;

use crate::error::{Error, Result};
use crate::random::Random;

/// Grey images of one size, with the class of each. Pixels go from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// [images][height][width]
    pixels: Vec<f32>,
    size: [usize; 2],
    labels: Vec<usize>,
}

impl Images {
    /// Images of `size` [height, width], one behind the other.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are pixels for each label, and at least one pixel an image.
    pub fn new(pixels: Vec<f32>, size: [usize; 2], labels: Vec<usize>) -> Result<Self> {
        let len = size[0].checked_mul(size[1]).filter(|&len| len > 0).and_then(|len| len.checked_mul(labels.len()));
        if len != Some(pixels.len()) {
            let expected = format!("{} images of {size:?}, not empty", labels.len());
            return Err(Error::shape("pixels", expected, &[pixels.len()]));
        }
        Ok(Self { pixels, size, labels })
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

    /// All pixels, image by image and row by row.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// The pixels of one image, row by row; empty if there is no such image.
    pub fn image(&self, index: usize) -> &[f32] {
        self.pixels.chunks_exact(self.size[0] * self.size[1]).nth(index).unwrap_or_default()
    }

    /// Holds out every so-manieth image: those with index 0, `every`, 2 `every`, ... The others come first, then these.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0.
    pub fn hold_out(&self, every: usize) -> Result<(Self, Self)> {
        if every == 0 {
            return Err(Error::invalid("every", "at least 1", every));
        }
        let empty = || Self { pixels: Vec::new(), size: self.size, labels: Vec::new() };
        let (mut kept, mut held) = (empty(), empty());
        for index in 0..self.len() {
            let to = if index % every == 0 { &mut held } else { &mut kept };
            to.pixels.extend_from_slice(self.image(index));
            to.labels.push(self.labels[index]);
        }
        Ok((kept, held))
    }

    /// The first images, at most so many.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        let pixels = self.pixels[..count * self.size[0] * self.size[1]].to_vec();
        Self { pixels, size: self.size, labels: self.labels[..count].to_vec() }
    }

    /// The mean of all pixels and their standard deviation.
    pub fn mean_and_deviation(&self) -> (f32, f32) {
        let count = self.pixels.len().max(1) as f64;
        let mean = self.pixels.iter().map(|&pixel| pixel as f64).sum::<f64>() / count;
        let variance = self.pixels.iter().map(|&pixel| (pixel as f64 - mean).powi(2)).sum::<f64>() / count;
        (mean as f32, variance.sqrt() as f32)
    }
}

/// The indices below `len` in random order, in batches of `size`; the last may be smaller.
///
/// ```
/// let batches = nn::data::shuffled_batches(10, 4, &mut nn::Random::new(1));
/// assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
/// ```
pub fn shuffled_batches(len: usize, size: usize, random: &mut Random) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..len).collect();
    random.shuffle(&mut order);
    order.chunks(size.max(1)).map(<[usize]>::to_vec).collect()
}

/// A gzip file, unpacked; at most `limit` bytes, so that a small file cannot fill the memory.
fn read_gz(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let unpack = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        MultiGzDecoder::new(File::open(path)?).take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = unpack().map_err(|error| Error::file(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("holds more than {limit} bytes")));
    }
    Ok(bytes)
}
