//! What the examples that learn have in common: arguments, data, the loop over epochs, the examination.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use nn::data::{Images, Warp, read_csv, read_idx, shuffled_batches};
use nn::optim::{Optimizer, Rule};
use nn::{Network, OneCycle, Parallelism, Random, SCELoss, Sgd, classify};

/// Every fifth image is for the examination only.
pub const HELD_OUT: usize = 5;
/// Images in a batch of the examination.
const EXAMINED: usize = 250;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What users may choose.
pub struct Arguments {
    pub epochs: Option<usize>,
    pub threads: usize,
    pub seed: u64,
    pub images: usize,
    pub dir: PathBuf,
    /// Where a picture goes, in the examples that paint one.
    pub picture: PathBuf,
}

/// The options that all examples share, for their help.
pub const OPTIONS: &str = "\
  --epochs   how often each image is seen
  --threads  on how many threads; the result is the same
  --seed     another seed: other first weights, another order, other distortions
  --images   only the first N images: a quick trial
  --dir      the folder with the data (data)
";

/// Runs an example inside of a rayon pool of as many threads as were asked for. A failure is one line and exit code 1.
pub fn run(
    name: &str,
    help: &str,
    picture: Option<&str>,
    example: impl FnOnce(&Arguments) -> Result<(), Failure> + Send,
) -> ExitCode {
    let all = || -> Result<(), Failure> {
        match parse(picture)? {
            Some(arguments) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build()?;
                pool.install(|| example(&arguments))
            }
            None => {
                print!("{help}{OPTIONS}");
                Ok(())
            }
        }
    };
    match all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{name}: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn parse(picture: Option<&str>) -> Result<Option<Arguments>, Failure> {
    use lexopt::prelude::*;
    let mut arguments = Arguments {
        epochs: None,
        threads: 0,
        seed: 1,
        images: usize::MAX,
        dir: PathBuf::from("data"),
        picture: PathBuf::from(picture.unwrap_or_default()),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("epochs") => arguments.epochs = Some(positive("--epochs", &parser.value()?.string()?)?),
            Long("threads") => arguments.threads = positive("--threads", &parser.value()?.string()?)?,
            Long("images") => arguments.images = positive("--images", &parser.value()?.string()?)?,
            Long("seed") => {
                let seed = parser.value()?.string()?;
                arguments.seed = seed.parse().map_err(|_| format!("--seed: expected a whole number, given {seed}"))?;
            }
            Long("dir") => arguments.dir = parser.value()?.into(),
            Long("picture") if picture.is_some() => arguments.picture = parser.value()?.into(),
            other => return Err(format!("{}; --help says what there is", other.unexpected()).into()),
        }
    }
    Ok(Some(arguments))
}

fn positive(option: &str, text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number: &usize| number > 0);
    number.ok_or_else(|| format!("{option}: expected a whole number, at least 1, given {text}"))
}

/// The first 10,000 images of MNIST: those to learn from, and those to be examined in.
#[allow(dead_code)]
pub fn mnist(arguments: &Arguments) -> Result<[Images; 2], Failure> {
    let file = |name| arguments.dir.join(name);
    let images = read_idx(&file("mnist-10k-images.idx3-ubyte.gz"), &file("mnist-10k-labels.idx1-ubyte.gz"))?;
    held_out(&images, arguments)
}

/// The 1,797 small digits, likewise.
#[allow(dead_code)]
pub fn digits(arguments: &Arguments) -> Result<[Images; 2], Failure> {
    held_out(&read_csv(&arguments.dir.join("digits.csv.gz"), [8, 8], 16.0)?, arguments)
}

fn held_out(images: &Images, arguments: &Arguments) -> Result<[Images; 2], Failure> {
    let (lessons, examination) = images.first(arguments.images).hold_out(HELD_OUT)?;
    if lessons.is_empty() {
        return Err("needs at least two images, one to learn and one to hold out".into());
    }
    Ok([lessons, examination])
}

/// How a network learns.
#[derive(Clone, Copy)]
pub struct Course {
    pub name: &'static str,
    pub epochs: usize,
    pub batch: usize,
    /// `[height, width]` that images are stretched to.
    pub size: [usize; 2],
    pub peak_rate: f32,
    pub decay: f32,
    /// Turn (degrees), scale, shear and shift (share of the size).
    pub distortion: [f32; 4],
}

impl Course {
    /// How the images of a lesson are stretched, distorted and normalised.
    pub fn warp(&self, lessons: &Images) -> Warp {
        let [turn, scale, shear, shift] = self.distortion;
        let (normalise, shift) = (lessons.mean_and_deviation(), shift * self.size[0] as f32);
        Warp { size: self.size, turn: turn.to_radians(), scale, shear, shift, normalise }
    }

    /// Teaches a network by descent with momentum and one cycle of the rate; the share of the images held out that it
    /// reads correctly in the end.
    #[allow(dead_code)]
    pub fn teach(&self, network: &mut Network, images: &[Images; 2], arguments: &Arguments) -> Result<f64, Failure> {
        self.teach_by(&mut Sgd::new(0.9).decay(self.decay), network, images, arguments)
    }

    /// As `teach`, by another optimiser.
    #[allow(dead_code)]
    pub fn teach_by<R: Rule>(
        &self,
        optimizer: &mut Optimizer<R>,
        network: &mut Network,
        [lessons, examination]: &[Images; 2],
        arguments: &Arguments,
    ) -> Result<f64, Failure> {
        let warp = self.warp(lessons);
        let (random, mut loss) = (Random::new(arguments.seed).fork(1), SCELoss::default());
        let mut progress = Progress::new(self, lessons, arguments)?;
        println!(
            "{}: {} images to learn from, {} held out, {} parameters, {} threads",
            self.name,
            lessons.len(),
            examination.len(),
            network.parameter_count(),
            rayon::current_num_threads()
        );
        let mut accuracy = 0.0;
        for epoch in 0..progress.epochs {
            network.train();
            let distortion = random.fork(2 * epoch as u64);
            for batch in shuffled_batches(lessons.len(), self.batch, &mut random.fork(2 * epoch as u64 + 1)) {
                let (x, labels) = warp.batch(lessons, &batch, Some(&distortion))?;
                let z = network.forward(&x)?;
                let mean = loss.forward(&z, &labels, Parallelism::Current)?;
                network.backward(&loss.backward()?)?;
                optimizer.step(network, progress.rate())?;
                progress.step(mean, batch.len());
            }
            network.eval();
            let taught = progress.pause();
            accuracy = examine(network, examination, &warp)?;
            progress.epoch(taught, accuracy);
        }
        println!("{}: weights {:016x}", self.name, fingerprint(network));
        Ok(accuracy)
    }
}

/// The bar, the line for each epoch, and the rate of each step.
pub struct Progress {
    name: &'static str,
    pub epochs: usize,
    cycle: OneCycle,
    bar: ProgressBar,
    step: usize,
    epoch: usize,
    start: Instant,
    total: f64,
    samples: usize,
}

impl Progress {
    pub fn new(course: &Course, lessons: &Images, arguments: &Arguments) -> Result<Self, Failure> {
        let epochs = arguments.epochs.unwrap_or(course.epochs);
        let steps = epochs.saturating_mul(lessons.len().div_ceil(course.batch));
        let style = ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} batches, {eta} left, loss {msg}")?;
        Ok(Self {
            name: course.name,
            epochs,
            cycle: OneCycle::new(course.peak_rate, steps),
            bar: ProgressBar::new(steps as u64).with_style(style).with_prefix(course.name),
            step: 0,
            epoch: 0,
            start: Instant::now(),
            total: 0.0,
            samples: 0,
        })
    }

    /// The rate of the step that comes.
    pub fn rate(&self) -> f32 {
        self.cycle.rate(self.step)
    }

    /// A step is done.
    pub fn step(&mut self, mean: f32, samples: usize) {
        self.step += 1;
        self.total += f64::from(mean) * samples as f64;
        self.samples += samples;
        self.bar.set_message(format!("{mean:.4}"));
        self.bar.inc(1);
    }

    /// The seconds since the epoch began.
    pub fn pause(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// An epoch is done, whose steps took so many seconds.
    pub fn epoch(&mut self, seconds: f64, accuracy: f64) {
        self.epoch += 1;
        let (mean, speed) = (self.total / self.samples as f64, self.samples as f64 / seconds);
        let (name, epoch) = (self.name, self.epoch);
        self.bar.suspend(|| {
            println!(
                "{name} epoch {epoch:2}: loss {mean:.4}, accuracy {:.2} %, {speed:.0} samples a second",
                100.0 * accuracy
            );
        });
        if epoch == self.epochs {
            self.bar.finish_and_clear();
        }
        (self.total, self.samples, self.start) = (0.0, 0, Instant::now());
    }
}

/// The share of images that the network reads correctly.
#[allow(dead_code)]
pub fn examine(network: &mut Network, images: &Images, warp: &Warp) -> Result<f64, Failure> {
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
pub fn fingerprint(network: &mut Network) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    network.visit(|_, parameter| {
        for element in parameter.elements() {
            for byte in element.to_bits().to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    });
    hash
}

/// Writes a picture to a file beside `path` first, so that `path` never holds half of one.
#[allow(dead_code)]
pub fn paint(path: &Path, picture: &image::RgbImage) -> Result<(), Failure> {
    let failed = |problem: &dyn std::fmt::Display| format!("{}: cannot write: {problem}", path.display());
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
        return Err(format!("{}: expected a name that ends in .png", path.display()).into());
    }
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    let written = picture
        .save_with_format(&unfinished, image::ImageFormat::Png)
        .map_err(|error| failed(&error))
        .and_then(|()| std::fs::rename(&unfinished, path).map_err(|error| failed(&error)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&unfinished);
    }
    Ok(written?)
}
