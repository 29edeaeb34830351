//! The format of MNIST.
//!
//! ```text
//! 0 0 8 D            two zeros, the type (8: bytes), the number of dimensions
//! d1 d2 ... dD       the dimensions, 4 bytes each, most significant first
//! elements           d1 * d2 * ... bytes, row by row
//! ```

use std::path::Path;

use super::{Images, LIMIT, read};
use crate::error::{Error, Result};

/// Reads images and labels from IDX files, gzipped or not.
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
    let mut bytes = read(path, LIMIT)?;
    let (magic, header) = ([0, 0, 8, D as u8], 4 + 4 * D);
    if !bytes.starts_with(&magic) {
        let found = &bytes[..bytes.len().min(4)];
        let problem =
            format!("is not an IDX file of bytes in {D} dimensions: expected {magic:?} at byte 0, found {found:?}");
        return Err(Error::file(path, problem));
    }
    if bytes.len() < header {
        return Err(Error::file(
            path,
            format!("is cut off: expected a header of {header} bytes, found {}", bytes.len()),
        ));
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
        return Err(Error::file(
            path,
            format!("its header {dimensions:?} says {len} bytes from byte {header} on, found {given}"),
        ));
    }
    bytes.drain(..header);
    Ok((bytes, dimensions))
}
