//! Optimisers, the schedules of their rates, and the clipping of gradients.
//!
//! ```text
//! network.backward ──► gradients ──► clip_norm, clip_value ──► Optimizer::step ──► parameters
//!                                                                   ▲    │
//!                                              Schedule::rate ──────┘    └──► state, by the parameters' names
//! ```
//!
//! An [`Optimizer`] keeps state and counts steps; a [`Rule`] says what a step is.

mod adam;
mod clip;
mod schedule;
mod sgd;

use std::collections::BTreeMap;

use kernels::Parallelism;
use ndarray::{ArrayD, IxDyn};

pub use adam::{Adam, AdamW, Adaptive};
pub use clip::{clip_norm, clip_value};
pub use schedule::{OneCycle, Schedule};
pub use sgd::{GradientDescent, Momentum, Plain, Sgd};

use crate::error::{Error, Result};
use crate::network::{Network, as_team};
use crate::state_dict::StateDict;

/// What an optimiser does to each parameter.
pub trait Rule {
    /// The names of the numbers that are kept for each element, as PyTorch has them.
    const STATES: &'static [&'static str];

    /// Step `count`, from 1, for one parameter; `states` has a vector for each name, zeros before the first step.
    ///
    /// # Errors
    /// When a number of the rule, or the rate, is outside of its domain; nothing is changed then.
    fn update(
        &self,
        step: Step<'_>,
        value: &mut [f32],
        gradient: &[f32],
        states: &mut [Vec<f32>],
    ) -> std::result::Result<(), kernels::Error>;
}

/// What is the same for all parameters in a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'t> {
    /// The learning rate.
    pub rate: f32,
    /// Which step this is, counted from 1.
    pub count: u64,
    /// Who does the work.
    pub parallelism: Parallelism<'t>,
}

/// A rule, and what it has to remember from step to step. The parameters are known by their names, so that training can
/// be stopped, saved and taken up again with the same bits:
///
/// ```
/// use nn::{AdamW, Linear, Network, Random, tensor};
/// let network = || Ok::<_, nn::Error>(Network::new(Linear::new(3, 2, &mut Random::new(0))?));
/// let (mut first, mut adam) = (network()?, AdamW::new());
/// first.forward(&tensor(&[1, 3], vec![1.0, 2.0, 3.0])?)?;
/// first.backward(&tensor(&[1, 2], vec![1.0, -1.0])?)?;
/// adam.step(&mut first, 0.01)?;
///
/// let (mut second, mut other) = (network()?, AdamW::new());
/// second.load_state_dict(&first.state_dict())?;
/// other.load_state_dict(&adam.state_dict())?;
/// assert_eq!(other.state_dict(), adam.state_dict());
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer<R> {
    pub(crate) rule: R,
    count: u64,
    slots: BTreeMap<String, Slot>,
}

/// The state of one parameter.
#[derive(Clone, Debug)]
struct Slot {
    shape: Vec<usize>,
    /// One vector for each of [`Rule::STATES`].
    states: Vec<Vec<f32>>,
}

/// The key under which a state dict has the number of steps taken.
const COUNT: &str = "step";

impl<R: Rule> Optimizer<R> {
    /// An optimiser that has not yet taken a step.
    pub fn with_rule(rule: R) -> Self {
        Self { rule, count: 0, slots: BTreeMap::new() }
    }

    /// How many steps were taken.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// One step down the gradients that the network has gathered; sets them to zero.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the network is another one than in the steps before, [`Error::Kernel`] for a rate or a
    /// number of the rule that is outside of its domain. Nothing is changed then.
    pub fn step(&mut self, network: &mut Network, rate: f32) -> Result<()> {
        self.meet(network)?;
        let (rule, slots, count) = (&self.rule, &mut self.slots, self.count.saturating_add(1));
        let mut result = Ok(());
        as_team(network.parallelism(), |parallelism| {
            let step = Step { rate, count, parallelism };
            network.visit(|name, parameter| {
                let Some(slot) = slots.get_mut(name).filter(|_| result.is_ok()) else { return };
                let (value, gradient) = parameter.update();
                result = rule.update(step, value, gradient, &mut slot.states);
                if result.is_ok() {
                    parameter.zero_gradient();
                }
            });
        });
        if result.is_err() && self.count == 0 {
            self.slots.clear();
        }
        result?;
        self.count = count;
        Ok(())
    }

    /// Makes room for the state of each parameter, or fails unless the parameters are those known from before.
    fn meet(&mut self, network: &mut Network) -> Result<()> {
        if R::STATES.is_empty() {
            // Nothing is remembered that could belong to another network.
            self.slots.clear();
        }
        let new = self.slots.is_empty() && (self.count == 0 || R::STATES.is_empty());
        let (slots, mut seen, mut result) = (&mut self.slots, 0, Ok(()));
        network.visit(|name, parameter| {
            seen += 1;
            let shape = parameter.value().shape();
            if new {
                let states = R::STATES.iter().map(|_| kernels::zeros(parameter.value().len())).collect::<Vec<_>>();
                slots.insert(name.to_string(), Slot { shape: shape.to_vec(), states });
            }
            let known = slots.get(name).map(|slot| slot.shape.as_slice());
            if result.is_ok() && known != Some(shape) {
                let given = format!("{name} of shape {shape:?}");
                result = Err(Error::invalid("network", "the parameters of the steps before", given));
            }
        });
        result?;
        if seen != slots.len() {
            let expected = format!("the {} parameters of the steps before", slots.len());
            return Err(Error::invalid("network", expected, seen));
        }
        Ok(())
    }

    /// The state: a tensor `NAME.STATE` for each parameter's name and each of [`Rule::STATES`], and the number of
    /// steps.
    pub fn state_dict(&self) -> StateDict {
        let mut dict = StateDict::new();
        for (name, slot) in &self.slots {
            for (state, elements) in R::STATES.iter().zip(&slot.states) {
                let tensor = ArrayD::from_shape_vec(IxDyn(&slot.shape), elements.clone());
                dict.insert(&format!("{name}.{state}"), tensor.expect("as many elements as the parameter has"));
            }
        }
        dict.set_metadata(COUNT, &self.count.to_string());
        dict
    }

    /// Takes over the state of another optimiser of this kind. The rule's own numbers are not part of it: make this
    /// optimiser with the same ones.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is missing, of another shape than its parameter's other states, or not known
    /// to the rule; [`Error::Invalid`] without the number of steps. Nothing is changed then.
    pub fn load_state_dict(&mut self, dict: &StateDict) -> Result<()> {
        let given = dict.metadata(COUNT).unwrap_or("none");
        let count = given.parse().map_err(|_| Error::invalid(COUNT, "the number of steps taken", given))?;
        let mut slots: BTreeMap<String, Slot> = BTreeMap::new();
        for (key, tensor) in dict.iter() {
            let shape = tensor.shape();
            let Some((name, at)) = split::<R>(key) else {
                let expected = format!("a name that ends in one of {:?}", R::STATES);
                return Err(Error::tensor(key, expected, format!("shape {shape:?}")));
            };
            let slot = slots
                .entry(name.to_string())
                .or_insert_with(|| Slot { shape: shape.to_vec(), states: vec![Vec::new(); R::STATES.len()] });
            if slot.shape != shape {
                let expected = format!("shape {:?}, that of its other state", slot.shape);
                return Err(Error::tensor(key, expected, format!("shape {shape:?}")));
            }
            slot.states[at] = tensor.iter().copied().collect();
        }
        for (name, slot) in &slots {
            for state in R::STATES {
                let key = format!("{name}.{state}");
                if dict.get(&key).is_none() {
                    return Err(Error::tensor(&key, format!("shape {:?}", slot.shape), "none"));
                }
            }
        }
        (self.count, self.slots) = (count, slots);
        Ok(())
    }
}

/// A parameter's name and the place of its state in [`Rule::STATES`].
fn split<R: Rule>(key: &str) -> Option<(&str, usize)> {
    let (name, state) = key.rsplit_once('.')?;
    Some((name, R::STATES.iter().position(|&known| known == state)?))
}
