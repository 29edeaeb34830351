//! A network as its user holds it: inputs, mostly one, an output, and the threads that it may use.

use kernels::{Parallelism, Team};
use ndarray::ArrayD;

use crate::attention::MultiHeadAttention;
use crate::error::{Error, Result};
use crate::inference::{Layout, Memory, Program};
use crate::layer::{Layer, Parameter};
use crate::leaves::{Leaf, leaves};
use crate::memory::Pool;
use crate::summary::Summary;
use crate::tensor::{Tensor, elements, row_major, tensor};
use crate::time::LayerTime;

/// For how many shapes of the input the places of all values are remembered.
const LAYOUTS: usize = 8;

/// A layer, most often a [`Sequential`](crate::Sequential) or a [`Graph`](crate::Graph), that runs on the current rayon
/// pool unless it is told otherwise. Results are the same to the last bit for any number of threads.
///
/// ```
/// use nn::{Linear, Network, Random, tensor};
/// let mut network = Network::new(Linear::new(3, 2, &mut Random::new(0))?);
/// network.set_parallelism(kernels::Parallelism::Serial);
/// assert_eq!(network.parameter_count(), 8);
/// assert_eq!(network.forward(&tensor(&[1, 3], vec![1.0, 2.0, 3.0])?)?.shape(), [1, 2]);
/// # Ok::<(), nn::Error>(())
/// ```
///
/// # Two modes
/// A new network is in the mode for training: `forward` keeps what `backward` needs. After [`Network::eval`] it
/// computes outputs only: the first `forward` packs the weights and joins layers (a convolution, the sum with a
/// residual and the activation become one kernel), the first for each shape of the input says which value stands where
/// in memory, and every later one runs nothing but kernels. It gives the same bits as before (but for batch
/// normalisation behind a convolution, whose factors become part of the weights: the results differ by their rounding),
/// and sees every later change of the weights.
///
/// ```
/// use nn::{Linear, Network, Random, ReLU, Sequential, tensor};
/// let layers = Sequential::new().with(Linear::new(3, 2, &mut Random::new(0))?)?.with(ReLU::default())?;
/// let mut network = Network::new(layers);
/// let x = tensor(&[1, 3], vec![1.0, 2.0, 3.0])?;
/// let trained = network.forward(&x)?;
/// network.eval();
/// assert_eq!(network.forward(&x)?, trained);
/// let mut y = [0.0; 2];
/// network.forward_into(&x, &mut y)?; // in memory that is there
/// assert_eq!(trained.as_slice(), Some(y.as_slice()));
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Network {
    layer: Box<dyn Layer>,
    parallelism: Parallelism<'static>,
    training: bool,
    plan: Plan,
    /// The memory of values and gradients in training, and the shapes of the inputs that it was used for.
    pool: Pool,
    pooled: Vec<Vec<usize>>,
}

/// The planned forward pass.
enum Plan {
    /// None yet, or the weights may have changed since.
    Unknown,
    /// There is a layer without a kernel.
    Impossible,
    Ready {
        program: Program,
        layouts: Vec<Layout>,
        memory: Memory,
    },
}

/// Does the work of a whole pass: workers of the current pool stay awake from its first layer to its last.
pub(crate) fn as_team<R>(parallelism: Parallelism<'_>, pass: impl FnOnce(Parallelism<'_>) -> R) -> R {
    match parallelism {
        Parallelism::Current => Team::scope(|team| pass(Parallelism::Team(team))),
        other => pass(other),
    }
}

/// Calls with the elements of some tensors in row-major order. A list of a few needs no memory of the heap.
fn with_elements<R>(inputs: &[&Tensor], call: impl FnOnce(&[&[f32]]) -> R) -> R {
    let mut few: [&[f32]; 4] = [&[]; 4];
    if inputs.len() <= few.len() && inputs.iter().all(|x| x.is_standard_layout()) {
        few.iter_mut().zip(inputs).for_each(|(place, x)| *place = elements(x));
        return call(&few[..inputs.len()]);
    }
    let inputs: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
    call(&inputs.iter().map(elements).collect::<Vec<_>>())
}

impl Network {
    /// A network that runs on the current rayon pool.
    pub fn new(layer: impl Layer + 'static) -> Self {
        Self {
            layer: Box::new(layer),
            parallelism: Parallelism::Current,
            training: true,
            plan: Plan::Unknown,
            pool: Pool::default(),
            pooled: Vec::new(),
        }
    }

    /// The layer, for whoever may change its parameters: packed weights are stale from then on.
    fn layer_mut(&mut self) -> &mut dyn Layer {
        self.plan = Plan::Unknown;
        self.layer.as_mut()
    }

    /// Says who does the work from now on.
    pub fn set_parallelism(&mut self, parallelism: Parallelism<'static>) {
        self.parallelism = parallelism;
    }

    /// Who does the work.
    pub(crate) fn parallelism(&self) -> Parallelism<'static> {
        self.parallelism
    }

    /// From now on `forward` keeps what `backward` needs, and layers behave as they do while they learn.
    pub fn train(&mut self) {
        self.training = true;
        self.layer_mut().set_training(true);
    }

    /// From now on `forward` computes outputs only, as fast as it can, and there is no `backward`.
    pub fn eval(&mut self) {
        if self.training {
            self.training = false;
            self.layer_mut().set_training(false);
        }
    }

    /// Whether the network is in the mode for training.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Whether the last `forward` in the mode for examination ran nothing but kernels: false until there was one, and
    /// where a layer has none.
    pub fn is_planned(&self) -> bool {
        !self.training && matches!(self.plan, Plan::Ready { .. })
    }

    /// The output for an input.
    ///
    /// # Errors
    /// Those of the layers, with the layer's name.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        self.forward_all(&[x])
    }

    /// The output for several inputs, of a network that takes them: two towers, or a decoder beside its encoder.
    ///
    /// ```
    /// use nn::{Graph, Network, Sum, tensor};
    /// let mut graph = Graph::new();
    /// let (x, y) = (graph.input("x")?, graph.input("y")?);
    /// graph.add("sum", Sum::default(), &[x, y])?;
    /// let (x, y) = (tensor(&[2], vec![1.0, 2.0])?, tensor(&[2], vec![3.0, 4.0])?);
    /// assert_eq!(Network::new(graph).forward_all(&[&x, &y])?, tensor(&[2], vec![4.0, 6.0])?);
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Network::forward`], and [`Error::Invalid`] for another number of inputs than the network takes.
    pub fn forward_all(&mut self, inputs: &[&Tensor]) -> Result<Tensor> {
        let parallelism = self.parallelism;
        match self.planned(inputs)? {
            Some((program, layout, memory)) => {
                let mut y = vec![0.0; layout.output_len()];
                with_elements(inputs, |inputs| {
                    as_team(parallelism, |team| layout.run(program, inputs, &mut y, memory, team, None))
                })?;
                let shape = layout.output_shape.clone();
                tensor(&shape, y)
            }
            None => self.run_layers(inputs),
        }
    }

    /// Writes the elements of the output for an input, in row-major order. In the mode for examination, from the second
    /// call for a shape on, this allocates nothing but the job, of a few words, that rayon makes for each further
    /// thread of a pool; within a [`kernels::Team`] of the caller not even that.
    ///
    /// # Errors
    /// Those of [`Network::forward`], and [`Error::Shape`] for a `y` of another length. `y` is untouched then.
    pub fn forward_into(&mut self, x: &Tensor, y: &mut [f32]) -> Result<()> {
        self.forward_all_into(&[x], y)
    }

    /// As [`Network::forward_into`], for several inputs. Allocates as little for up to four of them in row-major order.
    ///
    /// ```
    /// use nn::{Network, Sum, tensor};
    /// let mut network = Network::new(Sum::default());
    /// network.eval();
    /// let (x, other, mut y) = (tensor(&[2], vec![1.0, 2.0])?, tensor(&[2], vec![3.0, 4.0])?, [0.0; 2]);
    /// network.forward_all_into(&[&x, &other], &mut y)?;
    /// assert_eq!(y, [4.0, 6.0]);
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Network::forward_all`], and [`Error::Shape`] for a `y` of another length. `y` is untouched then.
    pub fn forward_all_into(&mut self, inputs: &[&Tensor], y: &mut [f32]) -> Result<()> {
        let parallelism = self.parallelism;
        if let Some((program, layout, memory)) = self.planned(inputs)? {
            if y.len() != layout.output_len() {
                return Err(Error::shape("y", format!("{:?}", layout.output_shape), &[y.len()]));
            }
            return with_elements(inputs, |inputs| {
                as_team(parallelism, |team| layout.run(program, inputs, y, memory, team, None))
            });
        }
        let output = row_major(&self.run_layers(inputs)?);
        if y.len() != output.len() {
            return Err(Error::shape("y", format!("{:?}", output.shape()), &[y.len()]));
        }
        y.copy_from_slice(elements(&output));
        Ok(())
    }

    /// The forward pass layer by layer.
    fn run_layers(&mut self, inputs: &[&Tensor]) -> Result<Tensor> {
        if !self.pooled.iter().map(Vec::as_slice).eq(inputs.iter().map(|x| x.shape())) {
            // Other sizes are needed now.
            self.pool.clear();
            self.pooled = inputs.iter().map(|x| x.shape().to_vec()).collect();
        }
        let inputs: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let (layer, parallelism) = (&mut self.layer, self.parallelism);
        self.pool.lend(|| as_team(parallelism, |team| layer.forward(&inputs, team)))
    }

    /// The planned forward pass for some inputs, if the network is not in training and all layers have kernels.
    /// Allocates nothing for shapes that are known.
    fn planned(&mut self, inputs: &[&Tensor]) -> Result<Option<(&Program, &mut Layout, &mut Memory)>> {
        if self.training {
            return Ok(None);
        }
        let slots = self.parallelism.threads();
        let shapes = || inputs.iter().map(|x| x.shape().to_vec()).collect::<Vec<_>>();
        // A layer alone may take another number of inputs than before; a graph has its own.
        if let Plan::Ready { program, .. } = &self.plan
            && program.inputs.len() != inputs.len()
            && self.layer.as_graph().is_none()
        {
            self.plan = Plan::Unknown;
        }
        if let Plan::Unknown = self.plan {
            self.plan = match Program::new(self.layer.as_ref(), &shapes())? {
                Some(program) => Plan::Ready { program, layouts: Vec::new(), memory: Memory::default() },
                None => Plan::Impossible,
            };
        }
        let Plan::Ready { program, layouts, memory } = &mut self.plan else { return Ok(None) };
        let is_known =
            |layout: &Layout| layout.input_shapes.iter().map(Vec::as_slice).eq(inputs.iter().map(|x| x.shape()));
        let known = layouts.iter().position(is_known);
        let at = match known {
            Some(at) => at,
            None => {
                let layout = Layout::new(program, self.layer.as_ref(), &shapes(), slots)?;
                if layouts.len() == LAYOUTS {
                    layouts.remove(0);
                }
                layouts.push(layout);
                layouts.len() - 1
            }
        };
        Ok(Some((program, &mut layouts[at], memory)))
    }

    /// Adds to the gradients of the parameters, given the gradient of the last output.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before, or in the mode for examination; [`Error::Shape`] when
    /// `d_output` has not the output's shape.
    pub fn backward(&mut self, d_output: &Tensor) -> Result<()> {
        self.check_training()?;
        let (layer, parallelism) = (&mut self.layer, self.parallelism);
        self.pool.lend(|| as_team(parallelism, |team| layer.backward_parameters(d_output, team)))
    }

    /// As [`Network::backward`], and gives the gradient of the input too.
    ///
    /// # Errors
    /// Those of [`Network::backward`], and [`Error::Invalid`] when the network has taken several inputs: see
    /// [`Network::backward_to_inputs`].
    pub fn backward_to_input(&mut self, d_output: &Tensor) -> Result<Tensor> {
        if self.pooled.len() > 1 {
            return Err(Error::invalid("network", "one that has taken 1 input", self.pooled.len()));
        }
        self.backward_to_inputs(d_output)?.pop().ok_or(Error::NoForward)
    }

    /// As [`Network::backward`], and gives the gradients of all inputs, in their order.
    ///
    /// ```
    /// use nn::{Network, Product, tensor};
    /// let mut network = Network::new(Product::default());
    /// let (x, y) = (tensor(&[2], vec![1.0, 2.0])?, tensor(&[2], vec![3.0, 4.0])?);
    /// network.forward_all(&[&x, &y])?;
    /// assert_eq!(network.backward_to_inputs(&tensor(&[2], vec![1.0, 1.0])?)?, [y, x]);
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Network::backward`].
    pub fn backward_to_inputs(&mut self, d_output: &Tensor) -> Result<Vec<Tensor>> {
        self.check_training()?;
        let (layer, parallelism) = (&mut self.layer, self.parallelism);
        self.pool.lend(|| as_team(parallelism, |team| layer.backward(d_output, team)))
    }

    fn check_training(&self) -> Result<()> {
        if self.training { Ok(()) } else { Err(Error::NoForward) }
    }

    /// Shows each parameter under its name: `0.weight`, `0.bias`, ...
    pub fn visit(&mut self, mut visitor: impl FnMut(&str, &mut Parameter)) {
        self.layer_mut().visit("", &mut visitor);
    }

    /// Shows each tensor that is part of the state but does not learn, under its name: `1.running_mean`, ...
    pub fn visit_buffers(&mut self, mut visitor: impl FnMut(&str, &mut ArrayD<f32>)) {
        self.layer_mut().visit_buffers("", &mut visitor);
    }

    /// Shows each whole number that what is random in training follows from, under its name: `2.seed` and `2.stream` of
    /// a dropout.
    pub fn visit_counters(&mut self, mut visitor: impl FnMut(&str, &mut u64)) {
        self.layer.visit_counters("", &mut visitor);
    }

    /// Shows each attention under its name: after a `forward` in training, it knows what it looked at.
    pub fn visit_attention(&self, mut visitor: impl FnMut(&str, &MultiHeadAttention)) {
        self.layer.visit_attention("", &mut visitor);
    }

    /// Sets the gradients of all parameters to zero.
    pub fn zero_gradients(&mut self) {
        self.visit(|_, parameter| parameter.zero_gradient());
    }

    /// How many numbers the network learns.
    pub fn parameter_count(&mut self) -> usize {
        let mut count = 0;
        self.layer.visit("", &mut |_, parameter| count += parameter.value().len());
        count
    }

    /// What each layer gives, learns and costs, for an input of a shape. Printed, it is a table:
    ///
    /// ```
    /// use nn::{Linear, Network, Random, ReLU, Sequential};
    /// let random = &mut Random::new(0);
    /// let layers = Sequential::new().with(Linear::new(784, 512, random)?)?.with(ReLU::default())?;
    /// let summary = Network::new(layers.with(Linear::new(512, 10, random)?)?).summary(&[1, 784])?;
    /// assert_eq!(summary.parameters(), 407_050);
    /// assert_eq!(summary.flops(), 2.0 * (784.0 * 512.0 + 512.0 * 10.0));
    /// assert!(summary.to_string().contains("2 (Linear 512->10)"));
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Network::forward`].
    pub fn summary(&mut self, input: &[usize]) -> Result<Summary> {
        self.summary_all(&[input])
    }

    /// As [`Network::summary`], for several inputs.
    ///
    /// # Errors
    /// Those of [`Network::forward_all`].
    pub fn summary_all(&mut self, inputs: &[&[usize]]) -> Result<Summary> {
        let parameters = self.parameter_count();
        let inputs: Vec<Vec<usize>> = inputs.iter().map(|input| input.to_vec()).collect();
        Summary::new(self.layer.as_ref(), parameters, &inputs)
    }

    /// Runs a pass and says what each layer took: `forward` alone in the mode for examination, where layers that run as
    /// one kernel are one; in the mode for training `backward` too, from a gradient of zeros, which adds nothing.
    ///
    /// ```
    /// use nn::{Linear, Network, Random, ReLU, Sequential, tensor};
    /// let layers = Sequential::new().with(Linear::new(3, 2, &mut Random::new(0))?)?.with(ReLU::default())?;
    /// let mut network = Network::new(layers);
    /// let x = tensor(&[1, 3], vec![1.0, 2.0, 3.0])?;
    /// assert_eq!(network.time_layers(&x)?.len(), 2);
    /// network.eval();
    /// assert_eq!(network.time_layers(&x)?[0].kind, "Linear + ReLU");
    /// # Ok::<(), nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Network::forward`] and [`Network::backward`].
    pub fn time_layers(&mut self, x: &Tensor) -> Result<Vec<LayerTime>> {
        let (x, parallelism) = (row_major(x), self.parallelism);
        if let Some((program, layout, memory)) = self.planned(&[&x])? {
            let (mut y, mut times) = (vec![0.0; layout.output_len()], Vec::new());
            as_team(parallelism, |team| layout.run(program, &[elements(&x)], &mut y, memory, team, Some(&mut times)))?;
            return Ok(program.name_times(&times));
        }
        let y = self.forward(&x)?;
        if self.training {
            self.backward(&Tensor::zeros(y.raw_dim()))?;
        }
        let (leaves, _) = leaves(self.layer.as_ref(), 0, 1);
        let layers = leaves.iter().filter(|leaf| leaf.layer.is_some());
        let time = |leaf: &Leaf<'_>| {
            let [forward, backward] = leaf.times;
            LayerTime { name: leaf.name(), kind: leaf.kind().to_string(), forward, backward }
        };
        Ok(layers.map(time).collect())
    }

    /// The network's graph in the language of Graphviz, see [`Graph::to_dot`](crate::Graph::to_dot); nothing for a
    /// single layer.
    pub fn to_dot(&self) -> Option<String> {
        self.layer.as_graph().map(crate::Graph::to_dot)
    }
}
