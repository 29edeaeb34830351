//! Transformers learn to reverse and to sort, and to write like film reviews: `cargo run --release --example
//! transformer`.
//!
//! ```text
//! sequences   [reverse, 7, 3, 9] ── encoder ──► memory ──┐
//!             [start, 9, 3, 7] ── decoder ───────────────┴──► [9, 3, 7, end]         each word from those before it
//!
//! text        [a,  , f, i, l] ── causal blocks ──► [ , f, i, l, m]                   each character from those before it
//! ```
//!
//! Both networks are those of `nn::models`, small. In the examination the decoder writes for itself: its input is what
//! it wrote so far. The picture shows, for a reversed and a sorted sequence, at which words of the source (columns) the
//! decoder looks while it writes each word (rows).

mod common;

use std::path::Path;
use std::process::ExitCode;

use common::{Arguments, Failure, HELD_OUT, Progress, Tile};
use kernels::softmax;
use nn::data::read_tsv;
use nn::models::{LanguageModel, Transformer};
use nn::optim::clip_norm;
use nn::{AdamW, Network, Parallelism, Random, SCELoss, Tensor, classify, tensor};

const HELP: &str = "\
Trains a Transformer of encoder and decoder to reverse and to sort sequences, and says how many of the held-out ones it gets
right as a whole; then a decoder on the characters of film reviews, and says how well it foresees those of held-out ones.

transformer [--picture FILE.png] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --picture  where the decoder's attention to its source is painted (decoder.png)
";

/// Numbers that sequences are made of: words 0 to 19. Then the words that say what to do, and those around a target.
const NUMBERS: usize = 20;
const REVERSE: usize = NUMBERS;
const START: usize = NUMBERS + 2;
const END: usize = NUMBERS + 3;
const WORDS: usize = NUMBERS + 4;
const TASKS: [&str; 2] = ["reversed", "sorted"];
/// Shortest and longest sequence.
const LENGTHS: [usize; 2] = [4, 12];
const SEQUENCES: Lessons = Lessons { name: "sequences", epochs: 12, samples: 16_000, batch: 64, peak_rate: 0.002 };
/// Sequences of the examination.
const EXAMINED: usize = 500;

const TEXT: Lessons = Lessons { name: "text", epochs: 4, samples: 8_000, batch: 32, peak_rate: 0.003 };
/// Characters of a sample.
const WINDOW: usize = 96;
/// Windows of the examination.
const WINDOWS: usize = 500;
/// Characters written in the end.
const WRITTEN: usize = 200;

/// The largest norm of a step's gradients.
const NORM: f32 = 1.0;
/// Height of a tile of the picture.
const PIXELS: usize = 240;

struct Lessons {
    name: &'static str,
    epochs: usize,
    /// Of an epoch.
    samples: usize,
    batch: usize,
    peak_rate: f32,
}

impl Lessons {
    fn progress(&self, arguments: &Arguments) -> Result<Progress, Failure> {
        let epochs = arguments.epochs.unwrap_or(self.epochs);
        Progress::new(self.name, self.peak_rate, epochs, self.samples(arguments).div_ceil(self.batch))
    }

    fn samples(&self, arguments: &Arguments) -> usize {
        self.samples.min(arguments.images)
    }

    /// The sizes of an epoch's batches.
    fn batches(&self, arguments: &Arguments) -> impl Iterator<Item = usize> {
        let (samples, batch) = (self.samples(arguments), self.batch);
        (0..samples).step_by(batch).map(move |start| batch.min(samples - start))
    }
}

fn main() -> ExitCode {
    common::run("transformer", HELP, Some("decoder.png"), |arguments| {
        let text = Text::read(&arguments.dir, arguments.images)?;
        let right = sequences(arguments)?;
        let nats = write(&text, arguments)?;
        let bits = nats / std::f64::consts::LN_2;
        let [reversed, sorted] = right.map(|share| 100.0 * share);
        println!(
            "held-out sequences that are right as a whole: reversed {reversed:.2} %, sorted {sorted:.2} %; \
             held-out text: loss {nats:.4} a character ({bits:.3} bits)"
        );
        Ok(())
    })
}

/// A task and its numbers. What is held out is a matter of both, so that no lesson can give it away.
struct Sequence {
    task: usize,
    numbers: Vec<usize>,
}

impl Sequence {
    fn new(length: usize, random: &mut Random) -> Self {
        Self { task: random.below(TASKS.len()), numbers: (0..length).map(|_| random.below(NUMBERS)).collect() }
    }

    /// Every so-manieth, by a hash (FNV-1a).
    fn is_held_out(&self) -> bool {
        let words = self.numbers.iter().chain([&self.task]);
        let hash =
            words.fold(0xcbf2_9ce4_8422_2325u64, |hash, &word| (hash ^ word as u64).wrapping_mul(0x100_0000_01b3));
        (hash >> 32).is_multiple_of(HELD_OUT as u64)
    }

    /// What to do, then the numbers.
    fn source(&self) -> Vec<usize> {
        [vec![REVERSE + self.task], self.numbers.clone()].concat()
    }

    fn target(&self) -> Vec<usize> {
        let mut target = self.numbers.clone();
        match self.task {
            0 => target.reverse(),
            _ => target.sort_unstable(),
        }
        target
    }
}

/// Sequences of one random length, held out or not.
fn batch(size: usize, held_out: bool, random: &mut Random) -> Vec<Sequence> {
    let length = LENGTHS[0] + random.below(LENGTHS[1] - LENGTHS[0] + 1);
    let endless = std::iter::repeat_with(|| Sequence::new(length, random));
    endless.filter(|sequence| sequence.is_held_out() == held_out).take(size).collect()
}

/// Rows of words, all of one length.
fn rows(words: &[Vec<usize>]) -> Result<Tensor, Failure> {
    let length = words.first().map_or(0, Vec::len);
    Ok(tensor(&[words.len(), length], words.iter().flatten().map(|&word| word as f32).collect())?)
}

/// Learns to reverse and to sort; the share of each that is right as a whole in the end.
fn sequences(arguments: &Arguments) -> Result<[f64; TASKS.len()], Failure> {
    let random = Random::new(arguments.seed);
    let model = Transformer {
        features: 64,
        heads: 4,
        hidden: 256,
        encoder: 2,
        decoder: 2,
        norm_first: true,
        ..Transformer::base()
    };
    let mut network = Network::new(model.build_with_words(WORDS, LENGTHS[1] + 2, &mut random.fork(0))?);
    print!("{}", network.summary_all(&[&[1, LENGTHS[1] + 1], &[1, LENGTHS[1] + 1]])?);
    let (mut loss, mut adam) = (SCELoss::default(), AdamW::new());
    let mut progress = SEQUENCES.progress(arguments)?;
    let mut right = [0.0; TASKS.len()];
    for epoch in 0..progress.epochs {
        network.train();
        let lessons = random.fork(1 + epoch as u64);
        for (step, size) in SEQUENCES.batches(arguments).enumerate() {
            let batch = batch(size, false, &mut lessons.fork(step as u64));
            let source: Vec<_> = batch.iter().map(Sequence::source).collect();
            let given: Vec<_> = batch.iter().map(|sequence| [vec![START], sequence.target()].concat()).collect();
            let wanted: Vec<_> = batch.iter().flat_map(|sequence| [sequence.target(), vec![END]].concat()).collect();
            let z = network.forward_all(&[&rows(&source)?, &rows(&given)?])?;
            let mean = loss.forward(&z, &wanted, Parallelism::Current)?;
            network.backward(&loss.backward()?)?;
            clip_norm(&mut network, NORM)?;
            adam.step(&mut network, progress.rate())?;
            progress.step(mean, size);
        }
        network.eval();
        let taught = progress.pause();
        right = examine(&mut network, EXAMINED.min(arguments.images), &random)?;
        progress.epoch_ends(taught, &format!("reversed {:.2} %, sorted {:.2} %", 100.0 * right[0], 100.0 * right[1]));
    }
    println!("{}: weights {:016x}", SEQUENCES.name, common::fingerprint(&mut network));
    common::paint(&arguments.picture, &common::tiles(&attention(&mut network, &random)?, PIXELS))?;
    println!("{}: where the decoder looks as it writes", arguments.picture.display());
    Ok(right)
}

/// What the decoder writes word by word, each time the likeliest, until all are as long as their source.
fn decode(network: &mut Network, source: &[Vec<usize>]) -> Result<Vec<Vec<usize>>, Failure> {
    let (x, length) = (rows(source)?, source.first().map_or(0, Vec::len));
    let mut written = vec![vec![START]; source.len()];
    for at in 0..length {
        let guesses = classify(&network.forward_all(&[&x, &rows(&written)?])?)?;
        for (row, words) in written.iter_mut().enumerate() {
            words.push(guesses[row * (at + 1) + at]);
        }
    }
    Ok(written)
}

/// The share of held-out sequences of each task that the decoder writes without a mistake, and ends.
fn examine(network: &mut Network, count: usize, random: &Random) -> Result<[f64; TASKS.len()], Failure> {
    let (mut right, mut all) = ([0; TASKS.len()], [0; TASKS.len()]);
    let examination = random.fork(0).fork(1);
    let mut step = 0;
    while all.iter().sum::<usize>() < count {
        let batch = batch(50, true, &mut examination.fork(step));
        let source: Vec<_> = batch.iter().map(Sequence::source).collect();
        for (sequence, written) in batch.iter().zip(decode(network, &source)?) {
            let wanted = [vec![START], sequence.target(), vec![END]].concat();
            right[sequence.task] += usize::from(written == wanted);
            all[sequence.task] += 1;
        }
        step += 1;
    }
    Ok([0, 1].map(|task| right[task] as f64 / all[task].max(1) as f64))
}

/// The attention of the decoder's last block to its source, for a held-out sequence of each task: a row for each head.
fn attention(network: &mut Network, random: &Random) -> Result<Vec<Vec<Tile>>, Failure> {
    let mut lessons = random.fork(0).fork(2);
    let numbers = Sequence::new(LENGTHS[1], &mut lessons).numbers;
    network.train();
    let mut tiles = Vec::new();
    for task in 0..TASKS.len() {
        let sequence = Sequence { task, numbers: numbers.clone() };
        let given = [vec![START], sequence.target()].concat();
        network.forward_all(&[&rows(&[sequence.source()])?, &rows(&[given])?])?;
        let mut weights = None;
        network.visit_attention(|name, attention| {
            if name.ends_with("multihead_attn") {
                weights = Some(attention.weights(Parallelism::Current));
            }
        });
        let weights = weights.ok_or("the decoder does not look at its source")??;
        let shape = weights.shape().to_vec();
        let all: Vec<f32> = weights.iter().copied().collect();
        let heads = all.chunks_exact(shape[2] * shape[3]);
        tiles.push(heads.map(|head| Tile { values: head.to_vec(), size: [shape[2], shape[3]] }).collect());
    }
    Ok(tiles)
}

/// The characters of the reviews, by number, those to learn from and those held out.
struct Text {
    characters: Vec<char>,
    lessons: Vec<usize>,
    examination: Vec<usize>,
}

impl Text {
    fn read(dir: &Path, most: usize) -> Result<Self, Failure> {
        let (lessons, examination) = read_tsv(&dir.join("movie-snippets.tsv.gz"))?.first(most).hold_out(HELD_OUT)?;
        let mut characters: Vec<char> = lessons.texts().iter().flat_map(|text| text.chars()).chain(['\n']).collect();
        characters.sort_unstable();
        characters.dedup();
        // What the lessons lack is read as the end of a line.
        let line_end = characters.binary_search(&'\n').unwrap_or_default();
        let numbers = |texts: &[String]| -> Vec<usize> {
            let all = texts.iter().flat_map(|text| text.chars().chain(['\n']));
            all.map(|c| characters.binary_search(&c).unwrap_or(line_end)).collect()
        };
        let (lessons, examination) = (numbers(lessons.texts()), numbers(examination.texts()));
        if lessons.len() <= WINDOW || examination.len() <= WINDOW {
            return Err(format!("needs more than {WINDOW} characters to learn from and as many to hold out").into());
        }
        Ok(Self { characters, lessons, examination })
    }
}

/// Windows of characters, and for each character the one that follows it.
fn windows(text: &[usize], starts: &[usize]) -> Result<(Tensor, Vec<usize>), Failure> {
    let given: Vec<_> = starts.iter().map(|&start| text[start..start + WINDOW].to_vec()).collect();
    let next = starts.iter().flat_map(|&start| text[start + 1..=start + WINDOW].to_vec()).collect();
    Ok((rows(&given)?, next))
}

/// Learns to foresee characters; the loss for each of those held out.
fn write(text: &Text, arguments: &Arguments) -> Result<f64, Failure> {
    let random = Random::new(arguments.seed).fork(100);
    let model = LanguageModel {
        words: text.characters.len(),
        positions: WINDOW,
        features: 96,
        depth: 3,
        heads: 4,
        ..LanguageModel::default()
    };
    let mut network = Network::new(model.build(&mut random.fork(0))?);
    println!(
        "{}: {} characters to learn from, {} held out, {} kinds, {} parameters",
        TEXT.name,
        text.lessons.len(),
        text.examination.len(),
        text.characters.len(),
        network.parameter_count()
    );
    let (mut loss, mut adam) = (SCELoss::default(), AdamW::new());
    let mut progress = TEXT.progress(arguments)?;
    let mut nats = f64::INFINITY;
    for epoch in 0..progress.epochs {
        network.train();
        let mut lessons = random.fork(1 + epoch as u64);
        for size in TEXT.batches(arguments) {
            let starts: Vec<usize> = (0..size).map(|_| lessons.below(text.lessons.len() - WINDOW)).collect();
            let (x, next) = windows(&text.lessons, &starts)?;
            let z = network.forward(&x)?;
            let mean = loss.forward(&z, &next, Parallelism::Current)?;
            network.backward(&loss.backward()?)?;
            clip_norm(&mut network, NORM)?;
            adam.step(&mut network, progress.rate())?;
            progress.step(mean, size);
        }
        network.eval();
        let taught = progress.pause();
        nats = foresee(&mut network, &text.examination)?;
        progress.epoch_ends(taught, &format!("held out {nats:.4}"));
    }
    println!("{}: weights {:016x}", TEXT.name, common::fingerprint(&mut network));
    println!("{}", continue_text(&mut network, text, &mut random.fork(0).fork(1))?);
    Ok(nats)
}

/// The mean loss of the characters of windows spread over a text.
fn foresee(network: &mut Network, text: &[usize]) -> Result<f64, Failure> {
    let count = (text.len() / WINDOW).clamp(1, WINDOWS);
    let starts: Vec<usize> = (0..count).map(|at| at * (text.len() - WINDOW - 1) / count).collect();
    let (mut total, mut loss) = (0.0, SCELoss::default());
    for batch in starts.chunks(TEXT.batch) {
        let (x, next) = windows(text, batch)?;
        let z = network.forward(&x)?;
        total += f64::from(loss.forward(&z, &next, Parallelism::Current)?) * batch.len() as f64;
    }
    Ok(total / count as f64)
}

/// Writes from the start of a line on, each character drawn by its probability.
fn continue_text(network: &mut Network, text: &Text, random: &mut Random) -> Result<String, Failure> {
    let line_end = text.characters.binary_search(&'\n').unwrap_or_default();
    let (mut written, kinds) = (vec![line_end], text.characters.len());
    for _ in 0..WRITTEN {
        let seen = &written[written.len().saturating_sub(WINDOW)..];
        let z: Vec<f32> = network.forward(&rows(&[seen.to_vec()])?)?.iter().copied().collect();
        let mut share = vec![0.0; kinds];
        softmax::forward([1, kinds], &z[z.len() - kinds..], &mut share, Parallelism::Current)?;
        let mut left = random.uniform(0.0, 1.0);
        let drawn = share.iter().position(|share| {
            left -= share;
            left < 0.0
        });
        written.push(drawn.unwrap_or(line_end));
    }
    Ok(written[1..].iter().map(|&number| text.characters[number]).collect())
}
