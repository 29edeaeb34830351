//! A Vision Transformer learns to read digits, and shows what it looks at: `cargo run --release --example vit`.
//!
//! ```text
//! [1, 28, 28] ── patches of 4x4 ──► [49, 64] ── class token, positions ──► [50, 64] ── 4 blocks ──► class token ──► 10
//! ```
//!
//! The network is `nn::models::VisionTransformer`. In the picture, each column is a held-out digit; below it, for each
//! head of the last block, the patches from which the class token takes what it knows: the brighter, the more.

mod common;

use std::process::ExitCode;

use common::{Course, Failure, Tile};
use image::RgbImage;
use nn::data::Images;
use nn::models::VisionTransformer;
use nn::{AdamW, Network, Parallelism, Random};

const HELP: &str = "\
Trains a Vision Transformer on 10,000 of MNIST's digits, says how many of the held-out ones (every fifth) it reads, and
paints what it looks at.

vit [--picture FILE.png] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --picture  where digits and, below, the attention of each head are painted (attention.png)
";

const COURSE: Course = Course {
    name: "vit",
    epochs: 30,
    batch: 64,
    size: [28, 28],
    peak_rate: 0.002,
    decay: 0.05,
    distortion: [12.0, 0.12, 0.1, 0.07],
};

const DIGITS: usize = 10;
/// Height of a digit in the picture.
const PIXELS: usize = 112;

fn main() -> ExitCode {
    common::run("vit", HELP, Some("attention.png"), |arguments| {
        let images = common::mnist(arguments)?;
        let model = VisionTransformer::digits();
        let mut network = Network::new(model.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, 1, 28, 28])?);
        let mut adam = AdamW::new().decay(COURSE.decay.into());
        let accuracy = COURSE.teach_by(&mut adam, &mut network, &images, arguments)?;
        let picture = attention(&mut network, &images, &model)?;
        common::paint(&arguments.picture, &picture)?;
        println!("{}: digits, and the attention of each head of the last block", arguments.picture.display());
        println!("accuracy on held-out images: {:.2} %", 100.0 * accuracy);
        Ok(())
    })
}

/// A column for each digit: the image, and where each head of the last block looks.
fn attention(
    network: &mut Network,
    [lessons, examination]: &[Images; 2],
    model: &VisionTransformer,
) -> Result<RgbImage, Failure> {
    let of_digit = |digit| examination.labels().iter().position(|&label| label == digit);
    let shown: Vec<usize> = (0..DIGITS).filter_map(of_digit).collect();
    let (x, _) = COURSE.warp(lessons).batch(examination, &shown, None)?;
    network.train();
    network.forward(&x)?;
    // The last is asked last.
    let mut weights = None;
    network.visit_attention(|_, attention| weights = Some(attention.weights(Parallelism::Current)));
    let weights = weights.ok_or("the network has no attention")??;

    let (patches, across) = (model.patches()?, model.size[1] / model.patch);
    let mut rows = vec![Vec::new()];
    rows[0].extend(shown.iter().map(|&index| Tile { values: examination.image(index).to_vec(), size: model.size }));
    for head in 0..model.heads {
        let of_digit = |column: usize| {
            let values: Vec<f32> = (1..=patches).map(|patch| weights[[column, head, 0, patch]]).collect();
            let most = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            Tile { values: values.iter().map(|value| value / most).collect(), size: [patches / across, across] }
        };
        rows.push((0..shown.len()).map(of_digit).collect());
    }
    Ok(common::tiles(&rows, PIXELS))
}
