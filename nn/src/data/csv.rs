//! Images as rows of text: the pixels of an image, row by row, then its class.

use std::path::Path;

use super::{Images, read_text, wrong_line};
use crate::error::{Error, Result};

/// Reads images of `size` [height, width] from a file, gzipped or not, of comma-separated numbers without a header.
/// `white` is the value of the brightest pixel.
///
/// # Errors
/// [`Error::File`] for a file that is missing, damaged or no text, or that has a row which does not fit, with its line
/// number.
pub fn read_csv(path: &Path, size: [usize; 2], white: f32) -> Result<Images> {
    let text = read_text(path)?;
    let columns = size[0].saturating_mul(size[1]);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let found = line.split(',').count();
        if found != columns.saturating_add(1) {
            let problem = format!("line {}: expected {columns} pixels and a label, found {found} fields", index + 1);
            return Err(Error::file(path, problem));
        }
        for (column, field) in line.split(',').map(str::trim).enumerate() {
            if column < columns {
                let value = field.parse().ok().filter(|value: &f32| (0.0..=white).contains(value));
                let expected = format!("a number from 0 to {white}");
                pixels.push(value.ok_or_else(|| wrong_line(path, index, &expected, field))? / white);
            } else {
                let label = field.parse().map_err(|_| wrong_line(path, index, "a whole number as label", field));
                labels.push(label?);
            }
        }
    }
    Images::new(pixels, size, labels).map_err(|error| Error::file(path, error))
}
