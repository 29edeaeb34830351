//! CLIP learns which caption belongs to which digit, and then reads digits by captions that it has never seen:
//! `cargo run --release --example clip`.
//!
//! ```text
//! [1, 28, 28] ── patches of 4x4, 3 blocks ──────────────────────────► direction ──┐
//!                                                                                 ├─ cosine x scale ──► [images, captions]
//! "a picture of the number three" ── words, 2 causal blocks ────────► direction ──┘
//! ```
//!
//! The network is `nn::models::Clip`, small. Each image of a batch is to find its own caption among all of them, and
//! each caption its image. Captions are made of templates; an examination with other templates is a classifier that was
//! never trained as one, "zero-shot". In the picture, each row is a held-out digit and how probable each of ten new
//! captions is, from zero to nine.

mod common;

use std::process::ExitCode;

use common::{Arguments, Course, Failure, Tile};
use kernels::softmax;
use nn::data::{Images, Vocabulary, shuffled_batches, words};
use nn::models::{Clip, Tower};
use nn::{AdamW, ClipLoss, Network, Parallelism, Random, Tensor, tensor};

const HELP: &str = "\
Trains CLIP on 10,000 of MNIST's digits with a caption each, and says how many of the held-out images (every fifth) it finds
the right caption for, among ten that it has never seen.

clip [--picture FILE.png] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --picture  where digits and the probabilities of captions are painted (captions.png)
";

const COURSE: Course = Course {
    name: "clip",
    epochs: 24,
    batch: 64,
    size: [28, 28],
    peak_rate: 0.002,
    decay: 0.05,
    distortion: [12.0, 0.12, 0.1, 0.07],
};

/// Captions to learn from. `{}` is the digit.
const LEARNED: [&str; 10] = [
    "a picture of the digit {}",
    "a photo of a handwritten {}",
    "a photo of the number {} in white",
    "this is the number {}",
    "this is an image of a {}",
    "somebody wrote a {}",
    "somebody wrote the digit {} by hand",
    "an image that shows a white {}",
    "the handwritten number {}",
    "a {} by hand",
];
/// Captions of the examination.
const NEW: [&str; 4] = [
    "a photo of the digit {}",
    "a picture of a handwritten {}",
    "this is an image that shows the number {}",
    "somebody wrote a white {} by hand",
];
const DIGITS: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
/// Words of a caption at most, with one that begins and one that ends it.
const CONTEXT: usize = 12;
/// Images in a batch of the examination.
const EXAMINED: usize = 250;
/// Height of a digit in the picture.
const PIXELS: usize = 84;

fn main() -> ExitCode {
    common::run("clip", HELP, Some("captions.png"), |arguments| {
        let images = common::mnist(arguments)?;
        let captions = Captions::new();
        let clip = Clip {
            channels: 1,
            size: COURSE.size,
            patch: 4,
            image: Tower { features: 64, depth: 3, heads: 4 },
            context: CONTEXT,
            words: captions.words(),
            text: Tower { features: 64, depth: 2, heads: 4 },
            features: 64,
        };
        let mut network = Network::new(clip.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary_all(&[&[1, 1, 28, 28], &[1, CONTEXT]])?);
        teach(&mut network, &images, &captions, arguments)?;
        let shares = examine(&mut network, &images, &captions)?;
        for (template, share) in NEW.iter().zip(shares) {
            println!("{:6.2} %  {}", 100.0 * share, template.replace("{}", "..."));
        }
        common::paint(&arguments.picture, &common::tiles(&probabilities(&mut network, &images, &captions)?, PIXELS))?;
        println!("{}: digits, and the probabilities of ten captions for each", arguments.picture.display());
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        println!("zero-shot accuracy on held-out images, by captions never seen: {:.2} %", 100.0 * mean);
        Ok(())
    })
}

/// How captions become words' numbers.
struct Captions {
    vocabulary: Vocabulary,
}

impl Captions {
    fn new() -> Self {
        let all = LEARNED.iter().flat_map(|template| DIGITS.map(|digit| template.replace("{}", digit)));
        Self { vocabulary: Vocabulary::new(all, 1, usize::MAX) }
    }

    /// Those of the captions, and one that begins and one that ends each: the last, as CLIP asks for.
    fn words(&self) -> usize {
        self.vocabulary.size() + 2
    }

    fn encode(&self, template: &str, digit: usize) -> Vec<f32> {
        let caption = template.replace("{}", DIGITS[digit]);
        let mut numbers = vec![self.words() - 2];
        numbers.extend(words(&caption).map(|word| self.vocabulary.number(&word)).take(CONTEXT - 2));
        numbers.push(self.words() - 1);
        numbers.resize(CONTEXT, Vocabulary::PADDING);
        numbers.into_iter().map(|number| number as f32).collect()
    }

    /// All digits in some templates: `[templates * 10, CONTEXT]`.
    fn all(&self, templates: &[&str]) -> Result<Tensor, Failure> {
        let rows = templates.iter().flat_map(|template| (0..DIGITS.len()).map(|digit| self.encode(template, digit)));
        Ok(tensor(&[templates.len() * DIGITS.len(), CONTEXT], rows.flatten().collect())?)
    }
}

fn teach(
    network: &mut Network,
    images: &[Images; 2],
    captions: &Captions,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let [lessons, examination] = images;
    let (warp, random) = (COURSE.warp(lessons), Random::new(arguments.seed).fork(1));
    let (mut loss, mut adam) = (ClipLoss::default(), AdamW::new().decay(COURSE.decay.into()));
    let mut progress = COURSE.progress(lessons, arguments)?;
    println!(
        "{}: {} images with captions to learn from, {} held out, {} parameters",
        COURSE.name,
        lessons.len(),
        examination.len(),
        network.parameter_count()
    );
    for epoch in 0..progress.epochs {
        network.train();
        let distortion = random.fork(2 * epoch as u64);
        let mut order = random.fork(2 * epoch as u64 + 1);
        for batch in shuffled_batches(lessons.len(), COURSE.batch, &mut order) {
            let (x, labels) = warp.batch(lessons, &batch, Some(&distortion))?;
            let caption = |&digit: &usize| captions.encode(LEARNED[order.below(LEARNED.len())], digit);
            let texts = tensor(&[batch.len(), CONTEXT], labels.iter().flat_map(caption).collect())?;
            let z = network.forward_all(&[&x, &texts])?;
            let mean = loss.forward(&z, Parallelism::Current)?;
            network.backward(&loss.backward()?)?;
            adam.step(network, progress.rate())?;
            progress.step(mean, batch.len());
        }
        let taught = progress.pause();
        let shares = examine(network, images, captions)?;
        progress.epoch(taught, shares.iter().sum::<f64>() / shares.len() as f64);
    }
    println!("{}: weights {:016x}", COURSE.name, common::fingerprint(network));
    Ok(())
}

/// The share of images held out that is closest to its own digit's caption, for each new template.
fn examine(
    network: &mut Network,
    [lessons, examination]: &[Images; 2],
    captions: &Captions,
) -> Result<[f64; NEW.len()], Failure> {
    network.eval();
    let (warp, texts, mut right) = (COURSE.warp(lessons), captions.all(&NEW)?, [0; NEW.len()]);
    let indices: Vec<usize> = (0..examination.len()).collect();
    for batch in indices.chunks(EXAMINED) {
        let (x, labels) = warp.batch(examination, batch, None)?;
        let z = network.forward_all(&[&x, &texts])?;
        // [images, templates, digits]
        let z = tensor(&[batch.len(), NEW.len(), DIGITS.len()], z.iter().copied().collect())?;
        for (at, guess) in nn::classify(&z)?.into_iter().enumerate() {
            right[at % NEW.len()] += usize::from(guess == labels[at / NEW.len()]);
        }
    }
    Ok(right.map(|right| right as f64 / examination.len() as f64))
}

/// For one image of each digit, the image and the probabilities of ten captions.
fn probabilities(
    network: &mut Network,
    [lessons, examination]: &[Images; 2],
    captions: &Captions,
) -> Result<Vec<Vec<Tile>>, Failure> {
    let of_digit = |digit| examination.labels().iter().position(|&label| label == digit);
    let shown: Vec<usize> = (0..DIGITS.len()).filter_map(of_digit).collect();
    let (x, _) = COURSE.warp(lessons).batch(examination, &shown, None)?;
    let z = network.forward_all(&[&x, &captions.all(&NEW[..1])?])?;
    let z: Vec<f32> = z.iter().copied().collect();
    let mut share = vec![0.0; z.len()];
    softmax::forward([shown.len(), DIGITS.len()], &z, &mut share, Parallelism::Current)?;
    let row = |(&index, share): (&usize, &[f32])| {
        let image = Tile { values: examination.image(index).to_vec(), size: examination.size() };
        vec![image, Tile { values: share.to_vec(), size: [1, DIGITS.len()] }]
    };
    Ok(shown.iter().zip(share.chunks_exact(DIGITS.len())).map(row).collect())
}
