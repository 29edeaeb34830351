//! Tensors by name: what a network has learnt and what an optimiser remembers, in memory and in files.
//!
//! ```text
//! features.0.weight   [64, 3, 7, 7]   the names of PyTorch and torchvision: the path of the layer, then its parameter
//! features.0.bias     [64]
//! ```
//!
//! Files are in the format safetensors: the length of a header (8 bytes), the header (JSON: name, type, shape and place
//! of each tensor), then the elements. A file is read whole, not mapped: a map changes with its file, and Rust has no
//! safe way to look at memory that may change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::network::Network;

/// Tensors and words, by name.
///
/// ```
/// use nn::{Linear, Network, Random, Sequential, StateDict};
/// let random = &mut Random::new(0);
/// let mut network = Network::new(Sequential::new().with(Linear::new(3, 2, random)?)?);
/// let bytes = network.state_dict().to_bytes()?;
///
/// let dict = StateDict::from_bytes(&bytes)?;
/// let shapes: Vec<_> = dict.iter().map(|(name, tensor)| (name, tensor.shape())).collect();
/// assert_eq!(shapes, [("0.bias", &[2][..]), ("0.weight", &[2, 3])]);
/// network.load_state_dict(&dict)?;
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    tensors: BTreeMap<String, ArrayD<f32>>,
    metadata: BTreeMap<String, String>,
}

impl StateDict {
    /// Without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&ArrayD<f32>> {
        self.tensors.get(name)
    }

    /// Sets the tensor of a name; gives the one that it had.
    pub fn insert(&mut self, name: &str, tensor: ArrayD<f32>) -> Option<ArrayD<f32>> {
        self.tensors.insert(name.to_string(), tensor)
    }

    /// Takes a tensor out: say, one of a file that the network has no use for.
    pub fn remove(&mut self, name: &str) -> Option<ArrayD<f32>> {
        self.tensors.remove(name)
    }

    /// All tensors, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ArrayD<f32>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The words under a key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Sets the words under a key.
    pub fn set_metadata(&mut self, key: &str, words: &str) {
        self.metadata.insert(key.to_string(), words.to_string());
    }

    /// Puts all of another dict in, its names behind `prefix`: network and optimiser can share a file.
    ///
    /// ```
    /// use nn::StateDict;
    /// let mut network = StateDict::new();
    /// network.insert("weight", ndarray::array![1.0].into_dyn());
    /// let mut both = StateDict::new();
    /// both.insert_all("network.", &network);
    /// assert!(both.get("network.weight").is_some());
    /// assert_eq!(both.under("network."), network);
    /// ```
    pub fn insert_all(&mut self, prefix: &str, other: &Self) {
        for (name, tensor) in &other.tensors {
            self.tensors.insert(format!("{prefix}{name}"), tensor.clone());
        }
        for (key, words) in &other.metadata {
            self.metadata.insert(format!("{prefix}{key}"), words.clone());
        }
    }

    /// What was put in behind `prefix`.
    pub fn under(&self, prefix: &str) -> Self {
        let mut part = Self::new();
        for (name, tensor) in &self.tensors {
            if let Some(name) = name.strip_prefix(prefix) {
                part.insert(name, tensor.clone());
            }
        }
        for (key, words) in &self.metadata {
            if let Some(key) = key.strip_prefix(prefix) {
                part.set_metadata(key, words);
            }
        }
        part
    }

    /// As a file in the format safetensors, elements as `F32`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when names and words take more than the format's 100 MB.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let wrong =
            |problem: &dyn std::fmt::Display| Error::invalid("state", "what a safetensors file can hold", problem);
        let mut elements = Vec::with_capacity(self.tensors.len());
        for tensor in self.tensors.values() {
            elements.push(tensor.iter().flat_map(|element| element.to_le_bytes()).collect::<Vec<u8>>());
        }
        let mut views = Vec::with_capacity(self.tensors.len());
        for ((name, tensor), bytes) in self.tensors.iter().zip(&elements) {
            let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes);
            views.push((name, view.map_err(|error| wrong(&error))?));
        }
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone().into_iter().collect());
        safetensors::serialize(views, metadata).map_err(|error| wrong(&error))
    }

    /// The tensors of a file in the format safetensors. Whole numbers and other floats become the nearest `f32`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bytes of another format, [`Error::Tensor`] for a tensor of a type that has no numbers of
    /// up to 64 bits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = |problem: &dyn std::fmt::Display| Error::invalid("bytes", "those of a safetensors file", problem);
        let file = SafeTensors::deserialize(bytes).map_err(|error| wrong(&error))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(&error))?;
        let mut dict = Self::new();
        for (key, words) in header.metadata().iter().flatten() {
            dict.set_metadata(key, words);
        }
        for (name, view) in file.iter() {
            let Some(elements) = to_f32(view.dtype(), view.data()) else {
                let expected = "F64, F32, F16, BF16, I64, I32, U8 or BOOL";
                return Err(Error::tensor(name, expected, format!("{:?}", view.dtype())));
            };
            let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), elements);
            dict.tensors.insert(name.to_string(), tensor.map_err(|error| wrong(&error))?);
        }
        Ok(dict)
    }

    /// Writes a file in the format safetensors. Either the whole file is there in the end, or what was there before: it
    /// is written beside its place, under the name with `.part` behind, and then moved.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written, and the errors of [`StateDict::to_bytes`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        let mut part = path.as_os_str().to_os_string();
        part.push(".part");
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
        written.map_err(|error| {
            let _ = fs::remove_file(&part);
            Error::file(path, error)
        })
    }

    /// Reads a file in the format safetensors.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, or for the reasons of [`StateDict::from_bytes`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| Error::file(path, error))?;
        Self::from_bytes(&bytes).map_err(|error| Error::file(path, error))
    }
}

impl Network {
    /// The values of all parameters and buffers (the running statistics of a batch normalisation), by name.
    pub fn state_dict(&mut self) -> StateDict {
        let mut dict = StateDict::new();
        self.visit(|name, parameter| {
            dict.insert(name, parameter.value().clone());
        });
        self.visit_buffers(|name, buffer| {
            dict.insert(name, buffer.clone());
        });
        dict
    }

    /// Sets the values of all parameters and buffers. The names have to be the same, and the shapes; only PyTorch's
    /// counters `num_batches_tracked` are passed over, which nothing here needs.
    ///
    /// # Errors
    /// [`Error::Tensor`] for the first tensor that is missing or of another shape, then for the first that the network
    /// does not know. Nothing is changed then.
    pub fn load_state_dict(&mut self, dict: &StateDict) -> Result<()> {
        let (mut known, mut result) = (Vec::new(), Ok(()));
        let mut check = |name: &str, shape: &[usize]| {
            let given = dict.get(name).map(ArrayD::shape);
            if result.is_ok() && given != Some(shape) {
                let given = given.map_or("none".to_string(), |given| format!("shape {given:?}"));
                result = Err(Error::tensor(name, format!("shape {shape:?}"), given));
            }
            known.push(name.to_string());
        };
        self.visit(|name, parameter| check(name, parameter.value().shape()));
        self.visit_buffers(|name, buffer| check(name, buffer.shape()));
        result?;
        known.sort_unstable();
        let is_known = |name: &str| {
            name.ends_with("num_batches_tracked") || known.binary_search_by(|k| k.as_str().cmp(name)).is_ok()
        };
        if let Some((name, tensor)) = dict.iter().find(|(name, _)| !is_known(name)) {
            return Err(Error::tensor(name, "a name that the network has", format!("shape {:?}", tensor.shape())));
        }
        self.visit(|name, parameter| {
            if let Some(tensor) = dict.get(name) {
                for (to, from) in parameter.update().0.iter_mut().zip(tensor) {
                    *to = *from;
                }
            }
        });
        self.visit_buffers(|name, buffer| {
            if let Some(tensor) = dict.get(name) {
                buffer.assign(tensor);
            }
        });
        Ok(())
    }
}

/// Little-endian elements as `f32`; None for a type that is not known here.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
        Some(bytes.as_chunks::<N>().0.iter().map(|&element| convert(element)).collect())
    }
    match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F64 => each(bytes, |element| f64::from_le_bytes(element) as f32),
        Dtype::F16 => each(bytes, |element| from_f16(u16::from_le_bytes(element))),
        Dtype::BF16 => each(bytes, |element| f32::from_bits((u16::from_le_bytes(element) as u32) << 16)),
        Dtype::I64 => each(bytes, |element| i64::from_le_bytes(element) as f32),
        Dtype::I32 => each(bytes, |element| i32::from_le_bytes(element) as f32),
        Dtype::U8 | Dtype::BOOL => each(bytes, |[element]| element as f32),
        _ => None,
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
