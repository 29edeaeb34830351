//! What each layer of a network takes: where to look when a network is slow.

use std::fmt;
use std::time::Duration;

/// What a layer took, or several that run as one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTime {
    /// Its path in the network, as its parameters have it.
    pub name: String,
    /// What kind of layer it is; the kinds of all layers that run as one kernel.
    pub kind: String,
    /// The forward pass.
    pub forward: Duration,
    /// The backward pass; nothing in the mode for examination.
    pub backward: Duration,
}

impl fmt::Display for LayerTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "{:>11.1} {:>11.1}  {} ({})", micros(self.forward), micros(self.backward), self.name, self.kind)
    }
}
