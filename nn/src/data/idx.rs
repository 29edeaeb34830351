//! The format of MNIST.
//!
//! ```text
//! 0 0 8 D            two zeros, the type (8: bytes), the number of dimensions
//! d1 d2 ... dD       the dimensions, 4 bytes each, most significant first
//! elements           d1 * d2 * ... bytes, row by row
//! ```

use std::path::Path;

use super::{Images, read_gz};
use crate::error::{Error, Result};

/// More than any data set of this format holds (all of MNIST: 47 MB).
const LIMIT: u64 = 1 << 30;

/// Reads images and labels from gzipped IDX files.
///
/// # Errors
/// [`Error::File`] for a file that is missing, of another format, cut off, or that does not fit the other.
pub fn read_idx(images: &Path, labels: &Path) -> Result<Images> {
    let (pixels, [count, height, width]) = read_bytes::<3>(images)?;
    let (classes, [label_count]) = read_bytes::<1>(labels)?;
    if count != label_count {
        return Err(Error::file(labels, format!("expected {count} labels, one for each image, found {label_count}")));
    }
    let pixels = pixels.iter().map(|&byte| byte as f32 / 255.0).collect();
    let classes = classes.into_iter().map(usize::from).collect();
    Images::new(pixels, [height, width], classes).map_err(|error| Error::file(images, error))
}

/// The elements and the dimensions of a file of bytes.
fn read_bytes<const D: usize>(path: &Path) -> Result<(Vec<u8>, [usize; D])> {
    let mut bytes = read_gz(path, LIMIT)?;
    let header = 4 + 4 * D;
    if bytes.len() < header || bytes[..4] != [0, 0, 8, D as u8] {
        return Err(Error::file(path, format!("is not an IDX file of bytes in {D} dimensions")));
    }
    let mut dimensions = [0; D];
    let mut len = 1u64;
    for (d, dimension) in dimensions.iter_mut().enumerate() {
        let at = 4 + 4 * d;
        let size = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        *dimension = size as usize;
        len = len.saturating_mul(size as u64);
    }
    let given = bytes.len() - header;
    if given as u64 != len {
        return Err(Error::file(path, format!("its header {dimensions:?} says {len} bytes, found {given}")));
    }
    bytes.drain(..header);
    Ok((bytes, dimensions))
}
