//! The state of a network, taken out and put in.
//!
//! ```text
//! parameters, buffers            tensors, under the names that PyTorch has for them
//! seeds, numbers of the masks    words: `classifier.0.stream` -> `17`, of which PyTorch makes nothing
//! ```

use std::path::Path;

use ndarray::ArrayD;

use crate::error::{Error, Result};
use crate::network::Network;
use crate::state_dict::StateDict;
use crate::state_file::{Part, Source, StateFile};

impl Network {
    /// The values of all parameters and buffers (the running statistics of a batch normalisation), by name; as words,
    /// seeds and counters of what is random in training.
    pub fn state_dict(&mut self) -> StateDict {
        let mut dict = StateDict::new();
        self.visit(|name, parameter| {
            dict.insert(name, parameter.value().clone());
        });
        self.visit_buffers(|name, buffer| {
            dict.insert(name, buffer.clone());
        });
        self.visit_counters(|name, counter| dict.set_metadata(name, &counter.to_string()));
        dict
    }

    /// Sets the values of all parameters and buffers. The names have to be the same, and the shapes; only PyTorch's
    /// counters `num_batches_tracked` are passed over, which nothing here needs. Seeds and counters are set if they are
    /// there: files of others have none.
    ///
    /// # Errors
    /// [`Error::Tensor`] for the first tensor that is missing or of another shape, then for the first that the network
    /// does not know, and for a counter that is no whole number. Nothing is changed then.
    pub fn load_state_dict(&mut self, dict: &StateDict) -> Result<()> {
        self.load(dict)
    }

    /// As [`Network::load_state_dict`], from a file in the format safetensors. Elements go from the file straight to
    /// the parameters: see [`StateFile`] for what must not happen to the file meanwhile.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read or is of another format; those of [`Network::load_state_dict`], and
    /// [`Error::Tensor`] for a tensor of a type that has no numbers of up to 64 bits. Nothing is changed then.
    pub fn load_file(&mut self, path: &Path) -> Result<()> {
        self.load_state_file(&StateFile::open(path)?, "")
    }

    /// As [`Network::load_file`], from the part of a file whose names begin with `prefix`.
    ///
    /// # Errors
    /// Those of [`Network::load_file`].
    pub fn load_state_file(&mut self, file: &StateFile, prefix: &str) -> Result<()> {
        self.load(&Part { file, prefix })
    }

    fn load(&mut self, source: &impl Source) -> Result<()> {
        let (mut known, mut result) = (Vec::new(), Ok(()));
        let mut check = |name: &str, expected: &[usize]| {
            if result.is_ok() {
                result = source.shape(name).and_then(|given| {
                    if given == Some(expected) {
                        return Ok(());
                    }
                    let given = given.map_or("none".to_string(), |given| format!("shape {given:?}"));
                    Err(Error::tensor(name, format!("shape {expected:?}"), given))
                });
            }
            known.push(name.to_string());
        };
        self.visit(|name, parameter| check(name, parameter.value().shape()));
        self.visit_buffers(|name, buffer| check(name, buffer.shape()));
        result?;
        known.sort_unstable();
        for name in source.names() {
            if !name.ends_with("num_batches_tracked") && known.binary_search(&name).is_err() {
                let shape = source.shape(&name)?.unwrap_or_default();
                return Err(Error::tensor(&name, "a name that the network has", format!("shape {shape:?}")));
            }
        }
        let (mut counters, mut result) = (Vec::new(), Ok(()));
        self.visit_counters(|name, counter| {
            let given = source.words(name).map(|words| (words, words.parse()));
            match given {
                Some((words, Err(_))) if result.is_ok() => {
                    result = Err(Error::tensor(name, "a whole number of 64 bits", words));
                }
                Some((_, Err(_))) => {}
                Some((_, Ok(given))) => counters.push(given),
                None => counters.push(*counter),
            }
        });
        result?;
        self.visit(|name, parameter| source.copy(name, parameter.update().0.iter_mut()));
        self.visit_buffers(|name, buffer| source.copy(name, buffer.iter_mut()));
        let mut counters = counters.into_iter();
        self.visit_counters(|_, counter| *counter = counters.next().unwrap_or(*counter));
        Ok(())
    }
}

impl Source for StateDict {
    fn names(&self) -> Vec<String> {
        self.iter().map(|(name, _)| name.to_string()).collect()
    }

    fn shape(&self, name: &str) -> Result<Option<&[usize]>> {
        Ok(self.get(name).map(ArrayD::shape))
    }

    fn words(&self, key: &str) -> Option<&str> {
        self.metadata(key)
    }

    fn copy<'t>(&self, name: &str, to: impl Iterator<Item = &'t mut f32>) {
        to.zip(self.get(name).into_iter().flatten()).for_each(|(to, from)| *to = *from);
    }
}
