//! Files of tensors in the format safetensors, mapped instead of read.
//!
//! ```text
//! length of the header   8 bytes, little-endian
//! header                 JSON: name, type, shape and place of each tensor, and words by key
//! elements               those of one tensor behind those of another
//! ```
//!
//! The header is checked against the file's length before anything is believed. Elements go from the map to where they
//! are wanted: a network that is loaded holds its parameters, and of the file what the operating system likes to keep.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::state_dict::StateDict;

/// A file in the format safetensors, open and checked; its tensors are read when they are asked for.
///
/// ```
/// use nn::{AdamW, Linear, Network, Random, StateDict, StateFile};
/// let path = std::env::temp_dir().join(format!("nn-doc-{}.safetensors", std::process::id()));
/// let (mut network, mut adam) = (Network::new(Linear::new(3, 2, &mut Random::new(0))?), AdamW::new());
/// let mut checkpoint = StateDict::new();
/// checkpoint.insert_all("network.", &network.state_dict());
/// checkpoint.insert_all("optimizer.", &adam.state_dict());
/// checkpoint.save(&path)?;
///
/// let file = StateFile::open(&path)?;
/// assert_eq!(file.shape("network.weight"), Some(&[2, 3][..]));
/// network.load_state_file(&file, "network.")?;
/// adam.load_state_dict(&file.under("optimizer.")?)?;
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), nn::Error>(())
/// ```
///
/// # Files that change
/// The file is mapped into memory, so nobody may write to it or cut it short while this value lives: what is read would
/// be undefined, and beyond a new end the process gets a signal. [`StateDict::save`] does neither: it puts another file
/// in the place of the old one. Whoever cannot rule it out reads the file and calls [`StateDict::from_bytes`].
pub struct StateFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl StateFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, or is of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::file(path, error))?;
        // SAFETY: the map is private to this value and only read. That nobody changes the file meanwhile is beyond what
        // a process can check, and asked for in the docs of this type, which every user of it meets.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::file(path, error))?;
        let header = Header::read(&map).map_err(|error| Error::file(path, error))?;
        Ok(Self { path: path.to_path_buf(), map, header })
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.metadata.offset_keys()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// The words under a key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.words(key)
    }

    /// The tensors and words whose names begin with `prefix`, without it, in memory. Whole numbers and other floats
    /// become the nearest `f32`.
    ///
    /// # Errors
    /// [`Error::File`] for a tensor of a type that has no numbers of up to 64 bits.
    pub fn under(&self, prefix: &str) -> Result<StateDict> {
        self.header.dict(prefix, &self.map).map_err(|error| Error::file(&self.path, error))
    }
}

/// Where state comes from: a dict in memory, or a part of a file.
pub(crate) trait Source {
    /// The names of all tensors.
    fn names(&self) -> Vec<String>;
    /// The shape of a tensor, if there is one of that name and it holds numbers.
    fn shape(&self, name: &str) -> Result<Option<&[usize]>>;
    /// The words under a key.
    fn words(&self, key: &str) -> Option<&str>;
    /// Writes as many elements as there is room for; none of a tensor that there is not.
    fn copy<'t>(&self, name: &str, to: impl Iterator<Item = &'t mut f32>);
}

/// The tensors of a file whose names begin with a prefix.
pub(crate) struct Part<'a> {
    pub file: &'a StateFile,
    pub prefix: &'a str,
}

impl Part<'_> {
    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Source for Part<'_> {
    fn names(&self) -> Vec<String> {
        self.file.names().iter().filter_map(|name| name.strip_prefix(self.prefix).map(str::to_string)).collect()
    }

    fn shape(&self, name: &str) -> Result<Option<&[usize]>> {
        let info = self.file.header.metadata.info(&self.full(name));
        info.map(|info| check_type(name, info.dtype).map(|()| info.shape.as_slice())).transpose()
    }

    fn words(&self, key: &str) -> Option<&str> {
        self.file.metadata(&self.full(key))
    }

    fn copy<'t>(&self, name: &str, to: impl Iterator<Item = &'t mut f32>) {
        if let Some((info, bytes)) = self.file.header.tensor(&self.full(name), &self.file.map) {
            convert(info.dtype, bytes, to);
        }
    }
}

/// What a file says about its tensors.
pub(crate) struct Header {
    metadata: Metadata,
    /// The byte at which the elements begin.
    start: usize,
}

impl Header {
    /// Reads and checks the header of a file. Not by `SafeTensors::deserialize`, which adds up sizes that a header may
    /// claim to be near the end of `usize`, unchecked.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let wrong = |problem: &dyn std::fmt::Display| Error::invalid("bytes", "those of a safetensors file", problem);
        let Some((len, rest)) = bytes.split_first_chunk() else {
            return Err(wrong(&format!("{} bytes", bytes.len())));
        };
        let len = u64::from_le_bytes(*len);
        let header = usize::try_from(len).ok().filter(|&len| len <= LONGEST).and_then(|len| rest.get(..len));
        let Some(header) = header else {
            return Err(wrong(&format!("a header of {len} bytes in {}", bytes.len())));
        };
        let metadata: Metadata = serde_json::from_slice(header).map_err(|error| wrong(&error))?;
        let (claimed, given) = (metadata.data_len(), rest.len() - header.len());
        if claimed != given {
            return Err(wrong(&format!("{given} bytes of elements where the header has {claimed}")));
        }
        Ok(Self { metadata, start: bytes.len() - given })
    }

    /// A tensor and its bytes in a file of this header.
    fn tensor<'a>(&'a self, name: &str, bytes: &'a [u8]) -> Option<(&'a TensorInfo, &'a [u8])> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        Some((info, bytes.get(self.start..)?.get(start..end)?))
    }

    fn words(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// What begins with a prefix, of the bytes of a file of this header.
    pub fn dict(&self, prefix: &str, bytes: &[u8]) -> Result<StateDict> {
        let mut dict = StateDict::new();
        for (key, words) in self.metadata.metadata().iter().flatten() {
            if let Some(key) = key.strip_prefix(prefix) {
                dict.set_metadata(key, words);
            }
        }
        for name in self.metadata.offset_keys() {
            let (Some(short), Some((info, bytes))) = (name.strip_prefix(prefix), self.tensor(&name, bytes)) else {
                continue;
            };
            check_type(&name, info.dtype)?;
            // Never more than the file has: each element takes a byte at least.
            let mut elements = vec![0.0; info.shape.iter().product()];
            convert(info.dtype, bytes, elements.iter_mut());
            let tensor = ArrayD::from_shape_vec(IxDyn(&info.shape), elements);
            dict.insert(short, tensor.map_err(|error| Error::tensor(&name, "a shape that fits in memory", error))?);
        }
        Ok(dict)
    }
}

/// The longest header that the format allows.
const LONGEST: usize = 100_000_000;

/// Fails for a type that is not known here.
fn check_type(name: &str, dtype: Dtype) -> Result<()> {
    match dtype {
        Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16 | Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL => {
            Ok(())
        }
        other => Err(Error::tensor(name, "F64, F32, F16, BF16, I64, I32, U8 or BOOL", format!("{other:?}"))),
    }
}

/// Little-endian elements of a type that [`check_type`] knows, as `f32`.
fn convert<'t>(dtype: Dtype, bytes: &[u8], to: impl Iterator<Item = &'t mut f32>) {
    fn each<'t, const N: usize>(bytes: &[u8], to: impl Iterator<Item = &'t mut f32>, convert: impl Fn([u8; N]) -> f32) {
        to.zip(bytes.as_chunks::<N>().0).for_each(|(to, &element)| *to = convert(element));
    }
    match dtype {
        Dtype::F32 => each(bytes, to, f32::from_le_bytes),
        Dtype::F64 => each(bytes, to, |element| f64::from_le_bytes(element) as f32),
        Dtype::F16 => each(bytes, to, |element| from_f16(u16::from_le_bytes(element))),
        Dtype::BF16 => each(bytes, to, |element| f32::from_bits((u16::from_le_bytes(element) as u32) << 16)),
        Dtype::I64 => each(bytes, to, |element| i64::from_le_bytes(element) as f32),
        Dtype::I32 => each(bytes, to, |element| i32::from_le_bytes(element) as f32),
        _ => each(bytes, to, |[element]| element as f32),
    }
}

/// Half precision: a sign, 5 bits of exponent with a bias of 15, 10 bits of fraction. Exact.
fn from_f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10 & 31) as u32, (bits & 0x3ff) as u32);
    let magnitude = match exponent {
        0 => fraction as f32 / (1u32 << 24) as f32,
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 127 - 15) << 23 | fraction << 13),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_read_exactly() {
        let cases =
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 2f32.powi(-24)), (0x0400, 2f32.powi(-14))];
        for (bits, value) in cases {
            assert_eq!(from_f16(bits), value);
        }
        assert_eq!(from_f16(0xfc00), f32::NEG_INFINITY);
        assert!(from_f16(0x7e00).is_nan());
        assert_eq!(from_f16(0x8000).to_bits(), (-0.0f32).to_bits());
    }
}
