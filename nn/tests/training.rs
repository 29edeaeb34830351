//! Optimisers on networks, clipping, and what is saved and taken up again.

use std::fs;
use std::path::PathBuf;

use kernels::conv::Conv2dSpec;
use nn::optim::{Optimizer, Rule};
use nn::{
    Adam, AdamW, BatchNorm2d, Conv2d, Error, Flatten, GradientDescent, Linear, Network, Random, ReLU, Result, SCELoss,
    Sequential, Sgd, StateDict, Tensor, clip_norm, clip_value, tensor,
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A convolution under a name of its own, nested, and a classifier.
fn network(seed: u64) -> Result<Network> {
    let random = &mut Random::new(seed);
    let features = Sequential::new().with(Conv2d::new(Conv2dSpec::new(1, 3, [3, 3]), random)?)?.with(ReLU::default())?;
    let layers = Sequential::new()
        .with_named("features", features)?
        .with(Flatten::default())?
        .with_named("classifier", Linear::new(3 * 4 * 4, 5, random)?)?;
    Ok(Network::new(layers))
}

/// The batch of a step.
fn batch(step: u64) -> Result<(Tensor, Vec<usize>)> {
    let mut random = Random::new(100 + step);
    let x = (0..7 * 36).map(|_| random.uniform(-1.0, 1.0)).collect();
    Ok((tensor(&[7, 1, 6, 6], x)?, (0..7).map(|_| random.below(5)).collect()))
}

fn backward(network: &mut Network, step: u64) -> Result<()> {
    let (x, labels) = batch(step)?;
    let mut loss = SCELoss::default();
    let z = network.forward(&x)?;
    loss.forward(&z, &labels, nn::Parallelism::Current)?;
    network.backward(&loss.backward()?)
}

fn train<R: Rule>(network: &mut Network, optimizer: &mut Optimizer<R>, steps: std::ops::Range<u64>) -> Result<()> {
    for step in steps {
        backward(network, step)?;
        optimizer.step(network, 0.05)?;
    }
    Ok(())
}

fn bits(dict: &StateDict) -> Vec<(String, Vec<u32>)> {
    dict.iter().map(|(name, tensor)| (name.to_string(), tensor.iter().map(|x| x.to_bits()).collect())).collect()
}

fn resumed_training_has_the_same_bits<R: Rule>(name: &str, fresh: impl Fn() -> Optimizer<R>) -> Result<()> {
    let (mut whole, mut optimizer) = (network(1)?, fresh());
    train(&mut whole, &mut optimizer, 0..4)?;

    let path = file(&format!("{name}.safetensors"));
    let (mut first, mut before) = (network(1)?, fresh());
    train(&mut first, &mut before, 0..2)?;
    let mut saved = StateDict::new();
    saved.insert_all("network.", &first.state_dict());
    saved.insert_all("optimizer.", &before.state_dict());
    saved.save(&path)?;

    let (mut second, mut after) = (network(2)?, fresh());
    let loaded = StateDict::load(&path)?;
    assert_eq!(loaded, saved);
    second.load_state_dict(&loaded.under("network."))?;
    after.load_state_dict(&loaded.under("optimizer."))?;
    train(&mut second, &mut after, 2..4)?;

    assert_eq!(after.count(), 4);
    assert!(bits(&second.state_dict()) == bits(&whole.state_dict()), "{name}");
    assert!(bits(&after.state_dict()) == bits(&optimizer.state_dict()), "{name}");
    Ok(())
}

#[test]
fn training_that_is_stopped_and_resumed_has_the_same_bits() -> Result<()> {
    resumed_training_has_the_same_bits("descent", GradientDescent::new)?;
    resumed_training_has_the_same_bits("sgd", || Sgd::new(0.9).nesterov().decay(0.01))?;
    resumed_training_has_the_same_bits("adam", || Adam::new().decay(0.01))?;
    resumed_training_has_the_same_bits("adamw", || AdamW::new().betas([0.8, 0.95]))
}

#[test]
fn names_are_those_of_pytorch() -> Result<()> {
    let (mut network, mut adam) = (network(1)?, Adam::new());
    train(&mut network, &mut adam, 0..1)?;
    let names = |dict: &StateDict| dict.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let parameters = ["classifier.bias", "classifier.weight", "features.0.bias", "features.0.weight"];
    assert_eq!(names(&network.state_dict()), parameters);
    let state = adam.state_dict();
    assert_eq!(
        names(&state)[..3],
        ["classifier.bias.exp_avg", "classifier.bias.exp_avg_sq", "classifier.weight.exp_avg"]
    );
    assert_eq!(state.metadata("step"), Some("1"));
    assert!(Sequential::new().with_named("0", ReLU::default())?.with_named("0", ReLU::default()).is_err());
    Ok(())
}

#[test]
fn a_tensor_that_does_not_fit_is_named_and_nothing_changes() -> Result<()> {
    let mut network = network(1)?;
    let right = network.state_dict();
    let mut refused = |change: &dyn Fn(&mut StateDict)| {
        let mut dict = right.clone();
        dict.insert("features.0.bias", ndarray::Array1::ones(3).into_dyn());
        change(&mut dict);
        let error = network.load_state_dict(&dict).unwrap_err();
        assert!(network.state_dict() == right);
        error.to_string()
    };
    assert_eq!(
        refused(&|dict| drop(dict.remove("classifier.weight"))),
        "tensor classifier.weight: expected shape [5, 48], given none"
    );
    let odd = || ndarray::Array2::zeros((2, 3)).into_dyn();
    assert_eq!(
        refused(&|dict| drop(dict.insert("classifier.bias", odd()))),
        "tensor classifier.bias: expected shape [5], given shape [2, 3]"
    );
    assert_eq!(
        refused(&|dict| drop(dict.insert("classifier.gamma", odd()))),
        "tensor classifier.gamma: expected a name that the network has, given shape [2, 3]"
    );
    Ok(())
}

#[test]
fn the_state_of_another_optimiser_is_refused() -> Result<()> {
    let mut network = network(1)?;
    let (mut sgd, mut adam) = (Sgd::new(0.9), Adam::new());
    train(&mut network, &mut sgd, 0..1)?;
    let error = adam.load_state_dict(&sgd.state_dict()).unwrap_err().to_string();
    let expected = "tensor classifier.bias.momentum_buffer: expected a name that ends in one of";
    assert!(error.starts_with(expected), "{error}");

    train(&mut network, &mut adam, 0..1)?;
    let mut state = adam.state_dict();
    state.remove("classifier.bias.exp_avg_sq");
    let error = adam.load_state_dict(&state).unwrap_err().to_string();
    assert_eq!(error, "tensor classifier.bias.exp_avg_sq: expected shape [5], given none");
    state.insert("classifier.bias.exp_avg_sq", ndarray::Array1::zeros(4).into_dyn());
    let error = adam.load_state_dict(&state).unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor classifier.bias.exp_avg_sq: expected shape [5], that of its other state, given shape [4]"
    );
    let error = adam.load_state_dict(&StateDict::new()).unwrap_err().to_string();
    assert_eq!(error, "step: expected the number of steps taken, given none");
    assert_eq!(adam.count(), 1);

    // A state that fits no parameter of the network.
    let mut other = Network::new(Linear::new(2, 2, &mut Random::new(0))?);
    assert!(matches!(adam.step(&mut other, 0.1), Err(Error::Invalid { argument: "network", .. })));
    assert!(GradientDescent::new().step(&mut other, 0.1).is_ok());
    Ok(())
}

#[test]
fn a_rate_that_is_no_number_is_refused_and_nothing_changes() -> Result<()> {
    let mut network = network(1)?;
    let before = network.state_dict();
    let mut adam = Adam::new();
    backward(&mut network, 0)?;
    assert!(matches!(adam.step(&mut network, f32::NAN), Err(Error::Kernel(_))));
    assert_eq!((adam.count(), adam.state_dict().len()), (0, 0));
    assert!(network.state_dict() == before);
    adam.step(&mut network, 0.1)
}

/// All gradients, one behind the other.
fn gradients(network: &mut Network) -> Vec<f32> {
    let mut all = Vec::new();
    network.visit(|_, parameter| all.extend_from_slice(parameter.gradient_elements()));
    all
}

#[test]
fn clipping_follows_its_formulas() -> Result<()> {
    let mut network = network(1)?;
    backward(&mut network, 0)?;
    let before = gradients(&mut network);
    let exact = before.iter().map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
    let norm = clip_norm(&mut network, 1e3)?;
    // 36 roundings of the kernel's promise.
    assert!((norm - exact).abs() <= 36.0 / (1 << 24) as f64 * exact);
    assert_eq!(gradients(&mut network), before);

    let most = (0.25 * exact) as f32;
    clip_norm(&mut network, most)?;
    let factor = most as f64 / (exact + 1e-6);
    for (after, before) in gradients(&mut network).iter().zip(&before) {
        let expected = factor * *before as f64;
        // The norm's error, and two roundings: of the factor and of the product.
        assert!((*after as f64 - expected).abs() <= 38.1 / (1 << 24) as f64 * expected.abs());
    }

    let before = gradients(&mut network);
    clip_value(&mut network, 0.01)?;
    let expected: Vec<f32> = before.iter().map(|g| g.clamp(-0.01, 0.01)).collect();
    assert_eq!(gradients(&mut network), expected);
    assert!(expected.contains(&0.01) || expected.contains(&-0.01));

    assert!(clip_norm(&mut network, f32::NAN).is_err() && clip_value(&mut network, -1.0).is_err());
    network.visit(|name, parameter| {
        if name == "classifier.bias" {
            parameter.elements_and_gradient().1[2] = f32::INFINITY;
        }
    });
    let error = clip_norm(&mut network, 1.0).unwrap_err().to_string();
    assert_eq!(error, "gradient: expected finite numbers, given a norm of inf in classifier.bias");
    Ok(())
}

#[test]
fn files_that_are_wrong_are_refused_and_never_panic() -> Result<()> {
    let right = network(1)?.state_dict();
    let bytes = right.to_bytes()?;
    assert_eq!(StateDict::from_bytes(&bytes)?, right);
    for len in 0..bytes.len() {
        assert!(StateDict::from_bytes(&bytes[..len]).is_err(), "cut after {len}");
    }
    let mut random = Random::new(5);
    for _ in 0..20_000 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random.below(3) {
            // Most changes in the header, where they do harm.
            let at = if random.below(4) > 0 { random.below(300) } else { random.below(bytes.len()) };
            changed[at] = random.bits() as u8;
        }
        if let Ok(dict) = StateDict::from_bytes(&changed) {
            let _ = network(1)?.load_state_dict(&dict);
        }
    }
    let path = file("cut.safetensors");
    fs::write(&path, &bytes[..100]).unwrap();
    let error = StateDict::load(&path).unwrap_err().to_string();
    assert!(error.contains("cut.safetensors") && error.contains("expected those of a safetensors file"), "{error}");
    assert!(StateDict::load(&file("no-such.safetensors")).unwrap_err().to_string().contains("no-such.safetensors"));
    let missing = file("no/such/folder.safetensors");
    assert!(right.save(&missing).unwrap_err().to_string().contains("no/such/folder.safetensors"));
    Ok(())
}

#[test]
fn what_cannot_be_saved_leaves_the_old_file() -> Result<()> {
    let folder = file("is-a-folder.safetensors");
    let _ = fs::create_dir(&folder);
    assert!(StateDict::new().save(&folder).is_err());
    assert!(folder.is_dir() && !file("is-a-folder.safetensors.part").exists());
    Ok(())
}

#[test]
fn running_statistics_are_saved_and_read_too() -> Result<()> {
    let fresh = || -> Result<Network> { Ok(Network::new(BatchNorm2d::new(2)?)) };
    let x = tensor(&[2, 2, 1, 2], vec![1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0])?;
    let mut taught = fresh()?;
    taught.forward(&x)?;
    let mut dict = taught.state_dict();
    let names: Vec<&str> = dict.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bias", "running_mean", "running_var", "weight"]);

    let mut other = fresh()?;
    // PyTorch's counter of batches is passed over.
    dict.insert("num_batches_tracked", ndarray::arr0(1.0).into_dyn());
    other.load_state_dict(&dict)?;
    taught.eval();
    other.eval();
    assert_eq!(taught.forward(&x)?, other.forward(&x)?);

    dict.remove("running_mean");
    let refused = fresh()?.load_state_dict(&dict).unwrap_err().to_string();
    assert!(refused.contains("running_mean"), "{refused}");
    Ok(())
}
