//! The networks at their published sizes against PyTorch, under the names of PyTorch, torchvision and OpenAI: outputs
//! for training and for inference, and all gradients, also of the inputs. `fixtures/full_size.py` makes the files,
//! which are too large to keep:
//!
//! ```text
//! peers/bin/python nn/tests/fixtures/full_size.py
//! cargo test --release -p nn --test full_size -- --ignored
//! ```

use std::path::Path;

use nn::models::{AlexNet, Clip, GoogLeNet, LeNet5, NiN, Perceptron, Transformer, VisionTransformer};
use nn::{Layer, Network, Random, Result, StateDict, Tensor};

/// How many times as far off as PyTorch's own f32 a tensor may be, each as the root of the mean square beside results
/// in f64: twice what sums in another order and Winograd's convolutions were measured to take, which is 1.9. A mistake
/// shows as a hundred times and more.
const ROUNDINGS: f64 = 4.0;

struct Comparison {
    case: StateDict,
    /// The largest part of what it may that a tensor is off.
    worst: (f64, String),
}

impl Comparison {
    fn tensor(&self, name: &str) -> Tensor {
        self.case.get(name).unwrap_or_else(|| panic!("no {name}")).clone().into_shared()
    }

    fn close(&mut self, name: &str, given: &[f32]) {
        let expected = self.tensor(name);
        assert_eq!(given.len(), expected.len(), "{name}");
        let squares = |of: &mut dyn Iterator<Item = f64>| (of.map(|x| x * x).sum::<f64>() / given.len() as f64).sqrt();
        let error = squares(&mut given.iter().zip(&expected).map(|(&given, &expected)| given as f64 - expected as f64));
        // What is written down is rounded as well, which is all that the smallest tensors see.
        let unit = f32::EPSILON as f64 * squares(&mut expected.iter().map(|&x| x as f64));
        let bound = ROUNDINGS * (self.tensor(&format!("rounding.{name}")).sum() as f64 + unit);
        assert!(error <= bound, "{name} is off by {error:e}, may be by {bound:e}");
        if error / bound > self.worst.0 {
            self.worst = (error / bound, name.to_owned());
        }
    }
}

fn compare(name: &str, layer: impl Layer + 'static, inputs: usize) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/full-size/{name}.safetensors"));
    let mut case = Comparison { case: StateDict::load(&path)?, worst: (0.0, String::new()) };
    let mut network = Network::new(layer);
    network.load_state_dict(&case.case.under("weights."))?;
    let inputs: Vec<Tensor> = (0..inputs).map(|at| case.tensor(&format!("input.{at}"))).collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    network.eval();
    let y = network.forward_all(&inputs)?;
    assert_eq!(y.shape(), case.tensor("eval").shape());
    case.close("eval", y.as_slice().unwrap());
    network.train();
    let y = network.forward_all(&inputs)?;
    assert_eq!(y.shape(), case.tensor("output").shape());
    case.close("output", y.as_slice().unwrap());
    let mut buffers = 0;
    network.visit_buffers(|name, buffer| {
        case.close(&format!("buffers.{name}"), buffer.as_slice().unwrap());
        buffers += 1;
    });
    assert_eq!(buffers, case.case.under("buffers.").len(), "buffers");
    let gradients = network.backward_to_inputs(&y)?;
    assert_eq!(gradients.len(), inputs.len());
    let known = case.case.under("input_gradients.");
    assert!(!known.is_empty(), "made by an older script");
    for (at, gradient) in gradients.iter().enumerate().filter(|(at, _)| known.get(&at.to_string()).is_some()) {
        let elements: Vec<f32> = gradient.iter().copied().collect();
        case.close(&format!("input_gradients.{at}"), &elements);
    }
    network.visit(|name, parameter| case.close(&format!("gradients.{name}"), parameter.gradient_elements()));
    println!("{name}: {:.2} of the bound, in {}", case.worst.0, case.worst.1);
    Ok(())
}

#[test]
#[ignore = "needs target/full-size"]
fn the_perceptron_agrees() -> Result<()> {
    compare("mlp", Perceptron::default().build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn lenet_5_agrees() -> Result<()> {
    compare("lenet5", LeNet5::default().build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn alexnet_agrees() -> Result<()> {
    compare("alexnet", AlexNet { dropout: 0.0, ..AlexNet::default() }.build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn network_in_network_agrees() -> Result<()> {
    compare("nin", NiN::default().build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn googlenet_agrees() -> Result<()> {
    compare("googlenet", GoogLeNet { dropout: 0.0, ..GoogLeNet::default() }.build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn the_transformer_agrees() -> Result<()> {
    compare("transformer", Transformer { dropout: 0.0, ..Transformer::base() }.build(&mut Random::new(0))?, 2)
}

#[test]
#[ignore = "needs target/full-size"]
fn the_vision_transformer_agrees() -> Result<()> {
    compare("vit_b_16", VisionTransformer::b16().build(&mut Random::new(0))?, 1)
}

#[test]
#[ignore = "needs target/full-size"]
fn clip_agrees() -> Result<()> {
    compare("clip", Clip::b32().build(&mut Random::new(0))?, 2)
}
