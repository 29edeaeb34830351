//! Data: reading it, holding some out, cutting the rest into shuffled batches, showing it slightly otherwise.
//!
//! ```text
//! read_idx, read_csv, read_folder ──► Images ──┬── hold_out ──► examination
//!                                              └── shuffled_batches ──► Warp, Augment ──► [batch, channels, height, width]
//!
//! read_tsv ──► Texts ──┬── hold_out ──► examination
//!                      └── Vocabulary ──► encode ──► [words]
//! ```
//!
//! Whatever is random comes from a seed and the index of the sample alone. A file that is cut off or garbled is an
//! error that says where; files may be gzipped.

mod augment;
mod csv;
#[cfg(feature = "images")]
mod folder;
mod idx;
mod images;
mod text;
mod vocabulary;
mod warp;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

pub use augment::Augment;
pub use csv::read_csv;
#[cfg(feature = "images")]
pub use folder::read_folder;
pub use idx::read_idx;
pub use images::Images;
pub use text::{Texts, read_tsv};
pub use vocabulary::{Vocabulary, words};
pub use warp::Warp;

use crate::error::{Error, Result};
use crate::random::Random;

/// More than any data set of these formats is likely to hold (all of MNIST: 47 MB).
const LIMIT: u64 = 1 << 30;

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

/// Which samples are kept and which held out: every so-manieth of `len`, in order or, given `random`, in random order.
fn split(len: usize, every: usize, random: Option<&mut Random>) -> Result<(Vec<usize>, Vec<usize>)> {
    if every == 0 {
        return Err(Error::invalid("every", "at least 1", every));
    }
    let mut order: Vec<usize> = (0..len).collect();
    if let Some(random) = random {
        random.shuffle(&mut order);
    }
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for (at, index) in order.into_iter().enumerate() {
        if at % every == 0 { held.push(index) } else { kept.push(index) }
    }
    Ok((kept, held))
}

/// A file, unpacked if it is a gzip; at most `limit` bytes, so that a small file cannot fill the memory.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let unpack = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = BufReader::new(File::open(path)?);
        if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            MultiGzDecoder::new(file).take(limit + 1).read_to_end(&mut bytes)?;
        } else {
            file.take(limit + 1).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = unpack().map_err(|error| Error::file(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

/// A file of text.
fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path, LIMIT)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not text: expected UTF-8, found another byte at {at}"))
    })
}

/// What is wrong with a line, counted from 0, of a file.
fn wrong_line(path: &Path, index: usize, expected: &str, found: &str) -> Error {
    // A line may be as long as the file.
    let found: String = found.chars().take(80).collect();
    Error::file(path, format!("line {}: expected {expected}, found {found:?}", index + 1))
}
