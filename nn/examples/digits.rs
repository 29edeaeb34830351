//! LeNet-5 learns to read digits: `cargo run --release --example digits`.
//!
//! The network is `nn::models::LeNet5`. The 8x8 images of `digits.csv.gz` are stretched to 28x28.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use nn::data::{Images, Warp, read_csv, read_idx, shuffled_batches};
use nn::models::LeNet5;
use nn::{Network, OneCycle, Parallelism, Random, Result, SCELoss, Sgd, classify};

const HELP: &str = "\
Trains LeNet-5 on handwritten digits and says how many of the held-out ones (every fifth) it reads.

digits [--data digits|mnist|all] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --data     what to learn: the 1,797 small digits, 10,000 of MNIST's, or both one after the other (the default)
  --epochs   how often each image is seen
  --threads  on how many threads; the result is the same
  --seed     another seed: other first weights, another order, other distortions
  --images   only the first N images: a quick trial
  --dir      the folder with the data (data)
";

/// Every fifth image is for the examination only.
const HELD_OUT: usize = 5;
/// Images are stretched to this [height, width].
const SIZE: [usize; 2] = [28, 28];
const MOMENTUM: f32 = 0.9;
const DECAY: f32 = 5e-4;
const PEAK_RATE: f32 = 0.05;
/// Images in a batch of the examination.
const EXAMINED: usize = 250;

/// What is learnt, and how. Distortions and epochs were tried out over several seeds: the fewest that keep a margin.
struct Course {
    name: &'static str,
    read: fn(&Path) -> Result<Images>,
    epochs: usize,
    batch: usize,
    /// Turn (degrees), scale, shear and shift (pixels of 28).
    distortion: [f32; 4],
}

const COURSES: [Course; 2] = [
    Course {
        name: "digits",
        read: |dir| read_csv(&dir.join("digits.csv.gz"), [8, 8], 16.0),
        epochs: 40,
        batch: 32,
        distortion: [15.0, 0.15, 0.1, 3.0],
    },
    Course {
        name: "mnist",
        read: |dir| read_idx(&dir.join("mnist-10k-images.idx3-ubyte.gz"), &dir.join("mnist-10k-labels.idx1-ubyte.gz")),
        epochs: 20,
        batch: 64,
        distortion: [12.0, 0.12, 0.1, 2.0],
    },
];

struct Arguments {
    courses: Vec<&'static Course>,
    epochs: Option<usize>,
    threads: usize,
    seed: u64,
    images: usize,
    dir: PathBuf,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("digits: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::result::Result<(), Failure> {
    let Some(arguments) = parse_arguments()? else {
        print!("{HELP}");
        return Ok(());
    };
    let mut lessons = Vec::new();
    for &course in &arguments.courses {
        lessons.push((course, (course.read)(&arguments.dir)?.first(arguments.images)));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build()?;
    let mut results = Vec::new();
    for (course, images) in &lessons {
        let accuracy = pool.install(|| train(course, images, &arguments))?;
        results.push(format!("{} {:.2} %", course.name, 100.0 * accuracy));
    }
    println!("accuracy on held-out images: {}", results.join(", "));
    Ok(())
}

fn parse_arguments() -> std::result::Result<Option<Arguments>, Failure> {
    use lexopt::prelude::*;
    let mut arguments = Arguments {
        courses: COURSES.iter().collect(),
        epochs: None,
        threads: 0,
        seed: 1,
        images: usize::MAX,
        dir: PathBuf::from("data"),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("data") => {
                let name = parser.value()?.string()?;
                arguments.courses.retain(|course| name == "all" || name == course.name);
                if arguments.courses.is_empty() {
                    return Err(format!("--data: expected digits, mnist or all, given {name}").into());
                }
            }
            Long("epochs") => arguments.epochs = Some(positive("--epochs", &parser.value()?.string()?)?),
            Long("threads") => arguments.threads = positive("--threads", &parser.value()?.string()?)?,
            Long("images") => arguments.images = positive("--images", &parser.value()?.string()?)?,
            Long("seed") => {
                let seed = parser.value()?.string()?;
                arguments.seed = seed.parse().map_err(|_| format!("--seed: expected a whole number, given {seed}"))?;
            }
            Long("dir") => arguments.dir = parser.value()?.into(),
            other => return Err(format!("{}; --help says what there is", other.unexpected()).into()),
        }
    }
    Ok(Some(arguments))
}

fn positive(option: &str, text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|&number: &usize| number > 0);
    number.ok_or_else(|| format!("{option}: expected a whole number, at least 1, given {text}"))
}

/// Learns from four fifths of the images; the share of the others that is read correctly in the end.
fn train(course: &Course, images: &Images, arguments: &Arguments) -> std::result::Result<f64, Failure> {
    let (lessons, examination) = images.hold_out(HELD_OUT)?;
    if lessons.is_empty() {
        return Err(format!("{}: needs at least two images, one to learn and one to hold out", course.name).into());
    }
    let [turn, scale, shear, shift] = course.distortion;
    let normalise = lessons.mean_and_deviation();
    let warp = Warp { size: SIZE, turn: turn.to_radians(), scale, shear, shift, normalise };

    let random = Random::new(arguments.seed);
    let mut network = Network::new(LeNet5::default().build(&mut random.fork(0))?);
    print!("{}", network.summary(&[1, 1, SIZE[0], SIZE[1]])?);
    let mut loss = SCELoss::default();
    let mut sgd = Sgd::new(MOMENTUM).decay(DECAY);
    let epochs = arguments.epochs.unwrap_or(course.epochs);
    let batches = lessons.len().div_ceil(course.batch);
    let steps = epochs.saturating_mul(batches);
    let cycle = OneCycle::new(PEAK_RATE, steps);
    println!(
        "{}: {} images to learn from, {} held out, {} parameters, {} threads",
        course.name,
        lessons.len(),
        examination.len(),
        network.parameter_count(),
        rayon::current_num_threads()
    );

    let style = ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} batches, {eta} left, loss {msg}")?;
    let bar = ProgressBar::new(steps as u64).with_style(style).with_prefix(course.name);
    let mut accuracy = 0.0;
    for epoch in 0..epochs {
        let start = Instant::now();
        network.train();
        let distortion = random.fork(2 * epoch as u64 + 1);
        let order = shuffled_batches(lessons.len(), course.batch, &mut random.fork(2 * epoch as u64 + 2));
        let mut total = 0.0;
        for (at, batch) in order.iter().enumerate() {
            let (x, labels) = warp.batch(&lessons, batch, Some(&distortion))?;
            let z = network.forward(&x)?;
            let mean = loss.forward(&z, &labels, Parallelism::Current)?;
            network.backward(&loss.backward()?)?;
            sgd.step(&mut network, cycle.rate(epoch * batches + at))?;
            total += mean as f64 * batch.len() as f64;
            bar.set_message(format!("{mean:.4}"));
            bar.inc(1);
        }
        let seconds = start.elapsed().as_secs_f64();
        network.eval();
        accuracy = examine(&mut network, &examination, &warp)?;
        bar.suspend(|| {
            println!(
                "{} epoch {:2}: loss {:.4}, accuracy {:.2} %, {:.0} samples a second",
                course.name,
                epoch + 1,
                total / lessons.len() as f64,
                100.0 * accuracy,
                lessons.len() as f64 / seconds
            );
        });
    }
    bar.finish_and_clear();
    println!("{}: weights {:016x}", course.name, fingerprint(&mut network));
    Ok(accuracy)
}

/// The share of images that the network reads correctly.
fn examine(network: &mut Network, images: &Images, warp: &Warp) -> Result<f64> {
    let mut right = 0;
    let indices: Vec<usize> = (0..images.len()).collect();
    for batch in indices.chunks(EXAMINED) {
        let (x, labels) = warp.batch(images, batch, None)?;
        let guesses = classify(&network.forward(&x)?)?;
        right += guesses.iter().zip(&labels).filter(|(guess, label)| guess == label).count();
    }
    Ok(right as f64 / images.len() as f64)
}

/// A hash of every bit of the weights (FNV-1a): equal for equal networks, so that two runs can be compared.
fn fingerprint(network: &mut Network) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    network.visit(|_, parameter| {
        for element in parameter.elements() {
            for byte in element.to_bits().to_le_bytes() {
                hash = (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3);
            }
        }
    });
    hash
}
