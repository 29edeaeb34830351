//! A network of convolutions alone reads digits of any size, and finds them on a page:
//! `cargo run --release --example fcn`.
//!
//! ```text
//! [1, h, w] ── conv 5x5 /2 ──► [16, ...] ── conv 5x5 /2 ──► [32, ...] ── conv 7x7 ──► [11, h / 4 - 6, w / 4 - 6]
//! ```
//!
//! An image of 28x28 becomes one number for each class, a larger one a map of them. It learns from images of several
//! sizes: the cross-entropy of the mean of their maps. The eleventh class is "no digit in the middle": empty paper, and
//! digits that lie far to one side. On a page of digits, the map says where which digit stands.

mod common;

use std::process::ExitCode;

use common::{Course, Failure, HELD_OUT};
use image::{Rgb, RgbImage};
use kernels::softmax;
use nn::data::{Images, Warp, shuffled_batches};
use nn::models::Fcn;
use nn::{AdaptiveAvgPool2d, Layer, Network, Parallelism, Random, SCELoss, Sgd, Tensor, classify, tensor};

const HELP: &str = "\
Trains a fully convolutional network on 10,000 of MNIST's digits, stretched to several sizes, and says how many of the
held-out ones (every fifth) it reads at each size. Then it looks for digits on a page of held-out ones.

fcn [--picture FILE.png] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --picture  where the page and, below, the map of what stands where are painted (heatmap.png)
";

const COURSE: Course = Course {
    name: "fcn",
    epochs: 12,
    batch: 64,
    size: [28, 28],
    peak_rate: 0.05,
    decay: 5e-4,
    distortion: [10.0, 0.1, 0.1, 0.06],
};

/// Height and width that digits are stretched to.
const SIZES: [usize; 3] = [28, 32, 40];
const DIGITS: usize = 10;
/// The class of what is no digit.
const NOTHING: usize = DIGITS;
/// Every so-manieth image of a batch becomes one that shows no digit in its middle.
const EMPTY: usize = 8;
/// Digits on the page, and pixels of paper around each.
const PAGE: [usize; 2] = [4, 6];
const MARGIN: usize = 14;
/// Pixels of the picture for one of the page.
const ZOOM: u32 = 3;

fn main() -> ExitCode {
    common::run("fcn", HELP, Some("heatmap.png"), |arguments| {
        let images = common::mnist(arguments)?;
        let model = Fcn { classes: DIGITS + 1, ..Fcn::default() };
        let mut network = Network::new(model.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, 1, 28, 28])?);
        let accuracies = teach(&mut network, &images, arguments)?;
        let [lessons, examination] = &images;
        let found = look_for_digits(&mut network, examination, &COURSE.warp(lessons), arguments)?;
        println!("{}: {found}", arguments.picture.display());
        let results: Vec<String> =
            SIZES.iter().zip(accuracies).map(|(size, share)| format!("{size}x{size} {:.2} %", 100.0 * share)).collect();
        println!("accuracy on held-out images: {}", results.join(", "));
        Ok(())
    })
}

/// Learns from images of all sizes; the share of those held out that is read correctly at each.
fn teach(
    network: &mut Network,
    [lessons, examination]: &[Images; 2],
    arguments: &common::Arguments,
) -> Result<[f64; 3], Failure> {
    let random = Random::new(arguments.seed).fork(1);
    let (mut mean, mut loss) = (AdaptiveAvgPool2d::global(), SCELoss::default());
    let mut sgd = Sgd::new(0.9).decay(COURSE.decay);
    let mut progress = COURSE.progress(lessons, arguments)?;
    println!(
        "{}: {} images to learn from, {} held out (every {HELD_OUT}th)",
        COURSE.name,
        lessons.len(),
        examination.len()
    );
    let mut accuracies = [0.0; 3];
    for epoch in 0..progress.epochs {
        network.train();
        let distortion = random.fork(2 * epoch as u64);
        let batches = shuffled_batches(lessons.len(), COURSE.batch, &mut random.fork(2 * epoch as u64 + 1));
        for (step, batch) in batches.iter().enumerate() {
            let size = SIZES[step % SIZES.len()];
            let warp = Warp { size: [size; 2], ..COURSE.warp(lessons) };
            let (mut x, mut labels) = warp.batch(lessons, batch, Some(&distortion))?;
            empty_some(&mut x, &mut labels, &mut distortion.fork(step as u64));
            let map = network.forward(&x)?;
            let scores = mean.forward(&[&map], Parallelism::Current)?;
            let shape = scores.shape().to_vec();
            let z = tensor(&shape[..2], scores.iter().copied().collect())?;
            let value = loss.forward(&z, &labels, Parallelism::Current)?;
            let d_scores = tensor(&shape, loss.backward()?.iter().copied().collect())?;
            network.backward(&mean.backward(&d_scores, Parallelism::Current)?[0])?;
            sgd.step(network, progress.rate())?;
            progress.step(value, batch.len());
        }
        network.eval();
        let taught = progress.pause();
        for (accuracy, size) in accuracies.iter_mut().zip(SIZES) {
            *accuracy = examine(network, examination, &Warp { size: [size; 2], ..COURSE.warp(lessons) })?;
        }
        progress.epoch(taught, accuracies.iter().sum::<f64>() / accuracies.len() as f64);
    }
    println!("{}: weights {:016x}", COURSE.name, common::fingerprint(network));
    Ok(accuracies)
}

/// Makes every so-manieth image of a batch one that shows no digit in its middle: half of them empty, half pushed
/// aside.
fn empty_some(x: &mut Tensor, labels: &mut [usize], random: &mut Random) {
    let size = x.shape()[2];
    // Paper is the darkest that there is.
    let paper = x.iter().fold(f32::INFINITY, |least, &pixel| least.min(pixel));
    for n in (0..labels.len()).step_by(EMPTY) {
        labels[n] = NOTHING;
        let mut image = x.index_axis_mut(ndarray::Axis(0), n);
        let before = image.to_owned();
        // From half of the size to all of it, along one axis or both.
        let far = |random: &mut Random| {
            let distance = size / 2 + random.below(size / 2 + 1);
            if random.below(2) == 0 { distance as isize } else { -(distance as isize) }
        };
        let shift = match random.below(4) {
            0 => [size as isize, 0],
            1 => [far(random), random.below(size) as isize - size as isize / 2],
            2 => [random.below(size) as isize - size as isize / 2, far(random)],
            _ => [far(random), far(random)],
        };
        for row in 0..size {
            for column in 0..size {
                let from = [row as isize + shift[0], column as isize + shift[1]];
                let inside = from.iter().all(|&at| (0..size as isize).contains(&at));
                image[[0, row, column]] = if inside { before[[0, from[0] as usize, from[1] as usize]] } else { paper };
            }
        }
    }
}

/// The share of images whose largest mean over the map is that of their digit.
fn examine(network: &mut Network, images: &Images, warp: &Warp) -> Result<f64, Failure> {
    let mut right = 0;
    let mut mean = AdaptiveAvgPool2d::global();
    let indices: Vec<usize> = (0..images.len()).collect();
    for batch in indices.chunks(250) {
        let (x, labels) = warp.batch(images, batch, None)?;
        let scores = mean.forward(&[&network.forward(&x)?], Parallelism::Current)?;
        let digits: Vec<f32> =
            scores.iter().enumerate().filter(|(at, _)| at % (DIGITS + 1) != NOTHING).map(|(_, &score)| score).collect();
        let guesses = classify(&tensor(&[batch.len(), DIGITS], digits)?)?;
        right += guesses.iter().zip(&labels).filter(|(guess, label)| guess == label).count();
    }
    Ok(right as f64 / images.len() as f64)
}

/// Writes digits onto a page, each somewhere in a field of its own, lets the network look at the page as a whole, and
/// paints both: the page, and in a colour for each digit how sure the network is that it stands there.
fn look_for_digits(
    network: &mut Network,
    images: &Images,
    warp: &Warp,
    arguments: &common::Arguments,
) -> Result<String, Failure> {
    let field = 28 + 2 * MARGIN;
    let [height, width] = PAGE.map(|count| count * field);
    let count = (PAGE[0] * PAGE[1]).min(images.len());
    let (digits, labels) = warp.batch(images, &(0..count).collect::<Vec<_>>(), None)?;
    let paper = digits.iter().fold(f32::INFINITY, |least, &pixel| least.min(pixel));
    let mut page = Tensor::from_elem(vec![1, 1, height, width], paper);
    let random = &mut Random::new(arguments.seed).fork(2);
    let mut corners = Vec::new();
    for n in 0..count {
        let corner = [n / PAGE[1], n % PAGE[1]].map(|at| at * field + random.below(2 * MARGIN));
        for row in 0..28 {
            for column in 0..28 {
                page[[0, 0, corner[0] + row, corner[1] + column]] = digits[[n, 0, row, column]];
            }
        }
        corners.push(corner);
    }

    let map = network.forward(&page)?;
    let [rows, columns] = [map.shape()[2], map.shape()[3]];
    // For each window the probability of each class.
    let scores: Vec<f32> = (0..rows * columns)
        .flat_map(|at| (0..=DIGITS).map(move |class| [0, class, at / columns, at % columns]))
        .map(|index| map[index])
        .collect();
    let mut shares = vec![0.0; scores.len()];
    softmax::forward([rows * columns, DIGITS + 1], &scores, &mut shares, Parallelism::Current)?;
    let share = |row: usize, column: usize, class: usize| shares[(row * columns + column) * (DIGITS + 1) + class];

    let mut found = 0;
    for (corner, &label) in corners.iter().zip(&labels) {
        // The window that lies nearest to the digit.
        let [row, column] = corner.map(|at| (at + Fcn::STRIDE / 2) / Fcn::STRIDE);
        let (row, column) = (row.min(rows - 1), column.min(columns - 1));
        let best = (0..DIGITS).max_by(|&a, &b| share(row, column, a).total_cmp(&share(row, column, b)));
        found += usize::from(best == Some(label) && share(row, column, label) > share(row, column, NOTHING));
    }
    common::paint(&arguments.picture, &picture(&page, paper, [rows, columns], share))?;
    Ok(format!("found and read {found} of {count} digits on a page of {width}x{height}"))
}

/// The page, and below it the map: the colour of the likeliest digit, as bright as it is likely.
fn picture(
    page: &Tensor,
    paper: f32,
    [rows, columns]: [usize; 2],
    share: impl Fn(usize, usize, usize) -> f32,
) -> RgbImage {
    let [height, width] = [page.shape()[2] as u32, page.shape()[3] as u32];
    let ink = page.iter().fold(f32::NEG_INFINITY, |most, &pixel| most.max(pixel));
    RgbImage::from_fn(width * ZOOM, 2 * height * ZOOM, |x, y| {
        let (row, column) = ((y / ZOOM % height) as usize, (x / ZOOM) as usize);
        let grey = (page[[0, 0, row, column]] - paper) / (ink - paper);
        if y / ZOOM < height {
            return Rgb([(255.0 - 255.0 * grey) as u8; 3]);
        }
        // The window whose middle is here.
        let at = |pixel: usize, most: usize| {
            (pixel.saturating_sub((Fcn::WINDOW - Fcn::STRIDE) / 2) / Fcn::STRIDE).min(most - 1)
        };
        let (row, column) = (at(row, rows), at(column, columns));
        let best = (0..DIGITS).max_by(|&a, &b| share(row, column, a).total_cmp(&share(row, column, b))).unwrap_or(0);
        let light = share(row, column, best);
        let colour = COLOURS[best].map(|channel: u8| (light * f32::from(channel) * (1.0 - 0.6 * grey)) as u8);
        Rgb(colour)
    })
}

/// One for each digit.
const COLOURS: [[u8; 3]; DIGITS] = [
    [230, 25, 75],
    [60, 180, 75],
    [255, 225, 25],
    [0, 130, 255],
    [245, 130, 48],
    [180, 60, 220],
    [70, 240, 240],
    [240, 50, 230],
    [170, 255, 195],
    [255, 255, 255],
];
