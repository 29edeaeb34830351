//! The forward pass of a network that does not learn: planned once, then nothing but kernels.
//!
//! ```text
//! Network ──► Program ──────────────► Layout ──────────────► run
//!             layers fused,            for each shape of       only kernels: no check of shapes,
//!             weights packed, once     the input: which        no allocation
//!                                      value stands where
//!
//! conv ──► sum ──► relu     one kernel:  y = relu(conv(x) + bias + other)
//!           ▲
//! other ────┘
//! conv ──► batch norm       one kernel, transposed or not, with other weights:  (scale w) * x + (scale bias + shift)
//! linear ──► sigmoid        one kernel; GELU and SiLU, which the ends of kernels do not have, are steps of their own
//! flatten                   no kernel: the same elements under another shape
//! concat                    for a single image no kernel: each branch writes its part of the result
//! ```
//!
//! A fused kernel rounds as its parts do one after the other, so results have the bits of the layers' `forward`. Batch
//! normalisation that was folded into weights is the exception: each weight is rounded once more, and the
//! normalisation's own roundings fall away.

mod layout;
mod program;

pub(crate) use layout::{Layout, Memory};
pub(crate) use program::{Program, shapes};

use kernels::{Activation, Parallelism, Workspace};

use crate::error::{Error, Result};

/// What a layer is to a planned forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Role {
    /// Nothing that a plan knows: the layer runs by its `forward`.
    Opaque,
    /// A function with a kernel of its own, which [`Layer::kernel`](crate::Layer::kernel) makes.
    Compute {
        /// Whether the kernel can end with an activation.
        activation: bool,
        /// Whether the kernel can add another value of the output's shape, before the activation.
        residual: bool,
    },
    /// A function of each element.
    Activation(Activation),
    /// The sum of its inputs.
    Sum,
    /// Its inputs side by side along the second axis, the channels.
    Concat,
    /// The elements of its input under another shape, or the input itself.
    View,
}

/// What a kernel takes over from the layers behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fused {
    /// The function that is applied last.
    pub activation: Activation,
    /// Whether there is one more input, which is added before the activation.
    pub residual: bool,
}

/// `y[n, c, ...] = scale[c] * x[n, c, ...] + shift[c]`, in f64, so that folding it into weights rounds once.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelScale {
    /// One factor for each channel.
    pub scale: Vec<f64>,
    /// One term for each channel.
    pub shift: Vec<f64>,
}

impl ChannelScale {
    /// Refuses another number of channels.
    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        for (argument, given) in [("scale", &self.scale), ("shift", &self.shift)] {
            if given.len() != channels {
                return Err(Error::shape(argument, format!("[{channels}]"), &[given.len()]));
            }
        }
        Ok(())
    }

    /// Multiplies the weights of a channel.
    pub(crate) fn scale(&self, channel: usize, weights: &mut [f32]) {
        weights.iter_mut().for_each(|weight| *weight = (self.scale[channel] * f64::from(*weight)) as f32);
    }

    /// The bias of each channel, where the layer has `own` or none.
    pub(crate) fn bias(&self, own: Option<&[f32]>) -> Vec<f32> {
        let own = |channel: usize| own.map_or(0.0, |own| f64::from(own[channel]));
        let channels = self.scale.iter().zip(&self.shift).enumerate();
        channels.map(|(channel, (scale, shift))| (scale * own(channel) + shift) as f32).collect()
    }
}

/// The forward pass of a layer with its weights packed.
pub trait Kernel: Send + Sync {
    /// Floats of scratch memory for inputs of these shapes when at most `slots` tasks run at once.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        let _ = (inputs, slots);
        Ok(0)
    }

    /// Computes the output. Allocates nothing.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn run(&self, call: Call<'_>) -> Result<()>;
}

/// What a kernel works on.
pub struct Call<'a> {
    /// The elements of each input, in row-major order.
    pub inputs: Inputs<'a>,
    /// The shape of each input.
    pub shapes: &'a [Vec<usize>],
    /// The elements of the output, in row-major order; may hold anything before.
    pub y: &'a mut [f32],
    /// Scratch memory, as much as the kernel asked for.
    pub workspace: &'a mut [f32],
    /// Who does the work.
    pub parallelism: Parallelism<'a>,
}

/// Where the elements of a value stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    home: Home,
    offset: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Home {
    Input(usize),
    Output,
    Buffer(usize),
}

/// The inputs of a kernel.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    network: &'a [&'a [f32]],
    buffers: &'a [Workspace],
    places: &'a [Place],
}

impl<'a> Inputs<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The elements of an input; empty if there is no such input.
    pub fn get(&self, index: usize) -> &'a [f32] {
        let Some(&Place { home, offset, len }) = self.places.get(index) else { return &[] };
        let all: &[f32] = match home {
            Home::Input(input) => self.network[input],
            Home::Buffer(buffer) => &self.buffers[buffer],
            Home::Output => &[],
        };
        &all[offset..][..len]
    }
}
