//! Training that is stopped, written to a file and taken up again by another network has the same bits as if it had
//! never stopped: dropout, running statistics, the schedule, the order of the samples and how they are shown included.

use std::ops::Range;
use std::path::PathBuf;

use kernels::conv::{Conv2dSpec, Padding};
use nn::data::{Augment, Images, shuffled_batches};
use nn::models::Transformer;
use nn::optim::{Optimizer, Rule};
use nn::{
    AdamW, BatchNorm2d, Conv2d, Dropout, Flatten, Linear, Network, OneCycle, Parallelism, Random, ReLU, Result,
    SCELoss, Schedule, Sequential, Sgd, StateDict, StateFile, Tensor, clip_norm, tensor,
};

/// The steps of a whole run, those before the break, and those of an epoch: the break falls into an epoch.
const STEPS: usize = 8;
const BREAK: usize = 5;
const EPOCH: usize = 3;

/// The inputs and the labels of a step.
type Batch = (Vec<Tensor>, Vec<usize>);

/// All that learning is, given which step it is.
fn learn<R: Rule>(
    network: &mut Network,
    optimizer: &mut Optimizer<R>,
    steps: Range<usize>,
    batch: impl Fn(usize) -> Result<Batch>,
) -> Result<Vec<f32>> {
    let (schedule, mut loss) = (Schedule::from(OneCycle::new(0.1, STEPS)), SCELoss::default());
    let mut losses = Vec::new();
    for step in steps {
        let (inputs, labels) = batch(step)?;
        let z = network.forward_all(&inputs.iter().collect::<Vec<_>>())?;
        losses.push(loss.forward(&z, &labels, Parallelism::Current)?);
        network.backward(&loss.backward()?)?;
        clip_norm(network, 1.0)?;
        // The optimiser knows how far training is, and it is saved.
        optimizer.step(network, schedule.rate(optimizer.count() as usize))?;
    }
    Ok(losses)
}

/// Values as bits: NaNs, and zeros of either sign, count too.
fn bits(dict: &StateDict) -> Vec<(String, Vec<u32>)> {
    dict.iter().map(|(name, tensor)| (name.to_string(), tensor.iter().map(|x| x.to_bits()).collect())).collect()
}

/// `fresh` makes the network for a seed; the second one has another, so that nothing but the file can make it the same.
fn resumes<R: Rule>(
    name: &str,
    fresh: impl Fn(u64) -> Result<Network>,
    optimizer: impl Fn() -> Optimizer<R>,
    batch: impl Fn(usize) -> Result<Batch>,
) -> Result<()> {
    let (mut whole, mut of_whole) = (fresh(1)?, optimizer());
    let expected = learn(&mut whole, &mut of_whole, 0..STEPS, &batch)?;

    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("resume-{name}.safetensors"));
    let (mut first, mut of_first) = (fresh(1)?, optimizer());
    learn(&mut first, &mut of_first, 0..BREAK, &batch)?;
    let mut checkpoint = StateDict::new();
    checkpoint.insert_all("network.", &first.state_dict());
    checkpoint.insert_all("optimizer.", &of_first.state_dict());
    checkpoint.save(&path)?;

    let (mut second, mut of_second) = (fresh(2)?, optimizer());
    let file = StateFile::open(&path)?;
    second.load_state_file(&file, "network.")?;
    of_second.load_state_dict(&file.under("optimizer.")?)?;
    let done = of_second.count() as usize;
    assert_eq!(done, BREAK, "{name}");
    let losses = learn(&mut second, &mut of_second, done..STEPS, &batch)?;

    assert_eq!(losses, expected[BREAK..], "{name}: losses after the break");
    for (of, [one, other]) in [
        ("network", [whole.state_dict(), second.state_dict()]),
        ("optimizer", [of_whole.state_dict(), of_second.state_dict()]),
    ] {
        for (one, other) in bits(&one).iter().zip(&bits(&other)) {
            assert!(one == other, "{name}: {} of the {of}", one.0);
        }
        // Words, dropout's counters, too.
        assert!(one == other, "{name}: {of}");
    }
    Ok(())
}

fn images() -> Result<Images> {
    let random = &mut Random::new(7);
    let pixels = (0..20 * 2 * 36).map(|_| random.uniform(-1.0, 1.0)).collect();
    Images::with_channels(pixels, 2, [6, 6], (0..20).map(|_| random.below(4)).collect())
}

#[test]
fn a_network_of_images_with_dropout_and_normalisation_resumes() -> Result<()> {
    let fresh = |seed| -> Result<Network> {
        let random = &mut Random::new(seed);
        let spec = Conv2dSpec::new(2, 5, [3, 3]).padding(Padding::all(1));
        let features = Sequential::new()
            .with(Conv2d::without_bias(spec, random)?)?
            .with(BatchNorm2d::new(5)?)?
            .with(ReLU::default())?
            .with(Dropout::new(0.2, random)?)?;
        let layers = Sequential::new()
            .with_named("features", features)?
            .with(Flatten::default())?
            .with(Dropout::new(0.5, random)?)?
            .with(Linear::new(5 * 36, 4, random)?)?;
        Ok(Network::new(layers))
    };
    let images = images()?;
    let augment = Augment { shift: 1, flip: true, ..Augment::none(images.size()) };
    let batch = |step: usize| -> Result<Batch> {
        // The order of an epoch, and how its images are shown, follow from the epoch's number.
        let (epoch, at) = (step / EPOCH, step % EPOCH);
        let mut random = Random::new(3).fork(epoch as u64);
        let batches = shuffled_batches(images.len(), images.len().div_ceil(EPOCH), &mut random);
        let (x, labels) = augment.batch(&images, &batches[at], Some(&random))?;
        Ok((vec![x], labels))
    };
    resumes("images", fresh, || Sgd::new(0.9).nesterov().decay(1e-3), batch)
}

#[test]
fn a_transformer_resumes() -> Result<()> {
    let small = Transformer {
        features: 8,
        heads: 2,
        hidden: 12,
        encoder: 1,
        decoder: 2,
        norm_first: true,
        final_norm: true,
        dropout: 0.3,
    };
    let fresh = |seed| Ok(Network::new(small.build_with_words(9, 6, &mut Random::new(seed))?));
    let batch = |step: usize| -> Result<Batch> {
        let mut random = Random::new(4).fork(step as u64);
        let mut words = |length: usize| (0..3 * length).map(|_| random.below(9) as f32).collect::<Vec<_>>();
        let inputs = vec![tensor(&[3, 6], words(6))?, tensor(&[3, 5], words(5))?];
        Ok((inputs, words(5).iter().map(|&word| word as usize).collect()))
    };
    resumes("transformer", fresh, || AdamW::new().decay(0.01), batch)
}

#[test]
fn files_without_counters_leave_them_as_they_are_and_wrong_ones_are_refused() -> Result<()> {
    let fresh = |seed| -> Result<Network> {
        let random = &mut Random::new(seed);
        Ok(Network::new(Sequential::new().with(Linear::new(2, 3, random)?)?.with(Dropout::new(0.5, random)?)?))
    };
    let counters = |network: &mut Network| {
        let mut all = Vec::new();
        network.visit_counters(|name, counter| all.push((name.to_string(), *counter)));
        all
    };
    let (mut one, mut other) = (fresh(1)?, fresh(2)?);
    one.forward(&tensor(&[1, 2], vec![1.0, 2.0])?)?;
    let of_one = counters(&mut one);
    assert_eq!([of_one[0].0.as_str(), of_one[1].0.as_str()], ["1.seed", "1.stream"]);
    assert_eq!(of_one[1].1, 1);

    // As PyTorch writes it: tensors alone.
    let mut tensors = StateDict::new();
    one.state_dict().iter().for_each(|(name, tensor)| drop(tensors.insert(name, tensor.clone())));
    let before = counters(&mut other);
    other.load_state_dict(&tensors)?;
    assert_eq!(counters(&mut other), before);
    other.load_state_dict(&one.state_dict())?;
    assert_eq!(counters(&mut other), of_one);

    let mut wrong = fresh(3)?.state_dict();
    wrong.set_metadata("1.stream", "-1");
    let before = other.state_dict();
    let error = other.load_state_dict(&wrong).unwrap_err().to_string();
    assert_eq!(error, "tensor 1.stream: expected a whole number of 64 bits, given -1");
    assert!(other.state_dict() == before);
    Ok(())
}
