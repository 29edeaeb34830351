//! Texts with a rating each.
//!
//! ```text
//! rating TAB text                       a header
//! 2.2667 TAB The Rock is destined ...
//! ```

use std::path::Path;

use super::{read_text, split, wrong_line};
use crate::error::Result;
use crate::random::Random;

/// The names of the columns.
const HEADER: &str = "rating\ttext";

/// Texts, and how much somebody liked what they tell of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    texts: Vec<String>,
    ratings: Vec<f32>,
}

impl Texts {
    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// All texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The rating of each.
    pub fn ratings(&self) -> &[f32] {
        &self.ratings
    }

    /// Holds out every so-manieth text, in the order of the file: those with index 0, `every`, 2 `every`, ... The
    /// others come first, then these.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for 0.
    pub fn hold_out(&self, every: usize) -> Result<(Self, Self)> {
        let (kept, held) = split(self.len(), every, None)?;
        Ok((self.select(&kept), self.select(&held)))
    }

    /// As [`Texts::hold_out`], from a random order: for files that are sorted.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for 0.
    pub fn hold_out_shuffled(&self, every: usize, random: &mut Random) -> Result<(Self, Self)> {
        let (kept, held) = split(self.len(), every, Some(random))?;
        Ok((self.select(&kept), self.select(&held)))
    }

    /// The first texts, at most so many.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        Self { texts: self.texts[..count].to_vec(), ratings: self.ratings[..count].to_vec() }
    }

    /// The texts whose rating is as wanted.
    ///
    /// ```
    /// let texts = nn::data::Texts::default();
    /// assert!(texts.with_rating(|rating| rating.abs() >= 1.0).is_empty());
    /// ```
    pub fn with_rating(&self, is_wanted: impl Fn(f32) -> bool) -> Self {
        let wanted: Vec<usize> = (0..self.len()).filter(|&index| is_wanted(self.ratings[index])).collect();
        self.select(&wanted)
    }

    fn select(&self, indices: &[usize]) -> Self {
        let texts = indices.iter().map(|&index| self.texts[index].clone()).collect();
        Self { texts, ratings: indices.iter().map(|&index| self.ratings[index]).collect() }
    }
}

/// Reads texts with a rating each from a file, gzipped or not, of two columns separated by a tab: `rating`, `text`.
///
/// # Errors
/// [`Error::File`](crate::Error::File) for a file that is missing, damaged or no text, or that has a line which does
/// not fit, with its number.
pub fn read_tsv(path: &Path) -> Result<Texts> {
    let file = read_text(path)?;
    let mut lines = file.lines().enumerate();
    let (_, header) = lines.next().unwrap_or_default();
    if header != HEADER {
        return Err(wrong_line(path, 0, &format!("the header {HEADER:?}"), header));
    }
    let mut all = Texts::default();
    for (index, line) in lines {
        let Some((rating, text)) = line.split_once('\t').filter(|(_, text)| !text.contains('\t')) else {
            return Err(wrong_line(path, index, "a rating, a tab and a text", line));
        };
        let number = rating.parse().ok().filter(|rating: &f32| rating.is_finite());
        all.ratings.push(number.ok_or_else(|| wrong_line(path, index, "a number as rating", rating))?);
        all.texts.push(text.to_string());
    }
    Ok(all)
}
