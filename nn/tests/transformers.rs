//! Whole Transformers against PyTorch, under the names of PyTorch, torchvision and OpenAI: weights, outputs, all
//! gradients. `fixtures/transformers.py` says how the numbers were made.

use std::path::Path;

use nn::models::{Clip, Tower, Transformer, VisionTransformer};
use nn::{Graph, Network, Random, Result, StateDict, Tensor};

/// What an element may err by, of the largest of its tensor: some thousand roundings, since each passes through a dozen
/// layers and normalisations divide by small deviations. A mistake in a layer is a hundred times larger.
const SHARE: f32 = 1e-4;

fn close(what: &str, given: &[f32], expected: &[f32]) {
    assert_eq!(given.len(), expected.len(), "{what}");
    let most = expected.iter().fold(1e-2f32, |most, value| most.max(value.abs()));
    for (at, (given, expected)) in given.iter().zip(expected).enumerate() {
        assert!((given - expected).abs() <= SHARE * most, "{what}[{at}]: {given} for {expected}");
    }
}

fn compare(case: &str, graph: Graph, inputs: usize) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers.safetensors");
    let case = StateDict::load(&path)?.under(&format!("{case}."));
    let tensor = |name: &str| case.get(name).unwrap_or_else(|| panic!("no {name}")).clone();
    let elements = |name: &str| tensor(name).iter().copied().collect::<Vec<f32>>();
    let mut network = Network::new(graph);
    network.load_state_dict(&case.under("weights."))?;
    let inputs: Vec<Tensor> = (0..inputs).map(|at| tensor(&format!("input.{at}")).into_shared()).collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let y = network.forward_all(&inputs)?;
    assert_eq!(y.shape(), tensor("output").shape());
    close("output", y.as_slice().unwrap(), &elements("output"));
    network.backward(&y)?;
    network.visit(|name, parameter| {
        close(name, parameter.gradient_elements(), &elements(&format!("gradients.{name}")));
    });
    Ok(())
}

#[test]
fn the_transformer_of_pytorch_gives_the_same_with_either_place_of_its_norms() -> Result<()> {
    for (case, norm_first) in [("transformer.last", false), ("transformer.first", true)] {
        let model = Transformer {
            features: 8,
            heads: 2,
            hidden: 12,
            encoder: 2,
            decoder: 2,
            norm_first,
            ..Transformer::base()
        };
        compare(case, model.build(&mut Random::new(0))?, 2)?;
    }
    Ok(())
}

#[test]
fn the_vision_transformer_gives_the_same_under_the_names_of_torchvision() -> Result<()> {
    let small = VisionTransformer {
        size: [8, 8],
        patch: 4,
        features: 8,
        depth: 2,
        heads: 2,
        hidden: 12,
        classes: 5,
        ..VisionTransformer::b16()
    };
    compare("vit", small.build(&mut Random::new(0))?, 1)
}

#[test]
fn clip_gives_the_same_under_the_names_of_openai() -> Result<()> {
    let small = Clip {
        size: [8, 8],
        patch: 4,
        image: Tower { features: 8, depth: 2, heads: 2 },
        context: 6,
        words: 20,
        text: Tower { features: 8, depth: 1, heads: 2 },
        features: 6,
        ..Clip::b32()
    };
    compare("clip", small.build(&mut Random::new(0))?, 2)
}
