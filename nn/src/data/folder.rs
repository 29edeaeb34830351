//! Pictures in folders, one for each class.
//!
//! ```text
//! path/cat/1.jpg
//! path/cat/2.png        class 0: cat
//! path/dog/a.jpg        class 1: dog          names in order of their bytes
//! ```
//!
//! Behind the feature `images`, because the decoders are many times the size of this crate.

use std::fs;
use std::path::{Path, PathBuf};

use image::ImageReader;
use image::imageops::FilterType;

use super::Images;
use crate::error::{Error, Result};

/// Reads the JPEG and PNG files in the folders in `path`, scaled to `size` [height, width], as images of three
/// channels: red, green, blue. Also gives the names of the classes. What begins with a dot is left out, and so are
/// files that are in no folder.
///
/// # Errors
/// [`Error::File`] for a folder that cannot be read and for a file that is no picture or damaged, [`Error::Invalid`]
/// for a size that is empty or has more than 2^26 pixels.
pub fn read_folder(path: &Path, size: [usize; 2]) -> Result<(Images, Vec<String>)> {
    let len = size[0].checked_mul(size[1]).filter(|len| (1..=1 << 26).contains(len));
    let Some(len) = len else {
        return Err(Error::invalid("size", "1 to 2^26 pixels", format!("{size:?}")));
    };
    let (mut pixels, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for folder in entries(path)?.into_iter().filter(|entry| entry.is_dir()) {
        for file in entries(&folder)? {
            let picture = decode(&file, size)?;
            for channel in 0..3 {
                for at in 0..len {
                    pixels.push(picture[3 * at + channel] as f32 / 255.0);
                }
            }
            labels.push(classes.len());
        }
        classes.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    Ok((Images::with_channels(pixels, 3, size, labels)?, classes))
}

/// What is in a folder and not hidden, in order.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                entries.push(entry.path());
            }
        }
        entries.sort_unstable();
        Ok(entries)
    };
    list().map_err(|error| Error::file(folder, error))
}

/// The bytes of a picture, scaled: [height][width][3].
fn decode(file: &Path, [height, width]: [usize; 2]) -> Result<Vec<u8>> {
    let reader = ImageReader::open(file).and_then(ImageReader::with_guessed_format);
    let picture = reader.map_err(|error| Error::file(file, error))?.decode();
    let picture = picture.map_err(|error| Error::file(file, error))?;
    let same = [picture.height() as usize, picture.width() as usize] == [height, width];
    let scaled = if same { picture } else { picture.resize_exact(width as u32, height as u32, FilterType::Triangle) };
    Ok(scaled.into_rgb8().into_raw())
}
