//! Tensors by name: what a network has learnt and what an optimiser remembers, in memory and in files.
//!
//! ```text
//! features.0.weight   [64, 3, 7, 7]   the names of PyTorch and torchvision: the path of the layer, then its parameter
//! features.0.bias     [64]
//! ```
//!
//! Files are in the format safetensors, see [`StateFile`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ndarray::ArrayD;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};
use crate::state_file::{Header, StateFile};

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
        Header::read(bytes)?.dict("", bytes)
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

    /// Reads a file in the format safetensors. For a network alone, [`Network::load_file`](crate::Network::load_file)
    /// takes half of the memory.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, or for the reasons of [`StateDict::from_bytes`].
    pub fn load(path: &Path) -> Result<Self> {
        StateFile::open(path)?.under("")
    }
}
