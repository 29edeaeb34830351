//! Images as rows of text: the pixels of an image, row by row, then its class.

use std::path::Path;

use super::{Images, read_gz};
use crate::error::{Error, Result};

/// More than any data set of this format is likely to hold.
const LIMIT: u64 = 1 << 30;

/// Reads images of `size` [height, width] from a gzipped file of comma-separated numbers without a header. `white` is
/// the value of the brightest pixel.
///
/// # Errors
/// [`Error::File`] for a file that is missing or no gzip, or that has a row which does not fit, with its line number.
pub fn read_csv(path: &Path, size: [usize; 2], white: f32) -> Result<Images> {
    let text = String::from_utf8(read_gz(path, LIMIT)?).map_err(|_| Error::file(path, "is not text (UTF-8)"))?;
    let columns = size[0].saturating_mul(size[1]);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let wrong = |problem: String| Error::file(path, format!("line {}: {problem}", index + 1));
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let Some((label, row)) = fields.split_last().filter(|(_, row)| row.len() == columns) else {
            let expected = format!("{columns} pixels and a label");
            return Err(wrong(format!("expected {expected}, found {} fields", fields.len())));
        };
        for field in row {
            let value = field.parse().ok().filter(|value: &f32| (0.0..=white).contains(value));
            pixels.push(
                value.ok_or_else(|| wrong(format!("expected a number from 0 to {white}, found {field:?}")))? / white,
            );
        }
        labels.push(label.parse().map_err(|_| wrong(format!("expected a whole number as label, found {label:?}")))?);
    }
    Images::new(pixels, size, labels).map_err(|error| Error::file(path, error))
}
