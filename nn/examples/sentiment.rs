//! A classifier with self-attention learns whether a review likes its film, and shows which words attend to which:
//! `cargo run --release --example sentiment`.
//!
//! ```text
//! [n] ── words, positions ──► [n, 64] ── self-attention, mlp ──► [n, 64] ── mean over the words ── linear ──► likes it?
//! ```
//!
//! The network is `nn::models::Sentiment`. Sentences of one length share a batch, so that nothing is padded.

mod common;

use std::collections::BTreeMap;
use std::process::ExitCode;

use common::{Arguments, Failure, HELD_OUT, Progress};
use nn::data::{Texts, Vocabulary, read_tsv, words};
use nn::models::Sentiment;
use nn::{AdamW, Network, Parallelism, Random, SCELoss, Tensor, classify, tensor};

const HELP: &str = "\
Trains a classifier with self-attention on sentences from film reviews that clearly like or dislike a film, says how many of
the held-out ones (every fifth) it judges as their readers did, and shows which words attend to which.

sentiment [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

";

/// Sentences whose mean rating, from -4 to 4, is at least so far from 0.
const CLEAR: f32 = 1.0;
/// A word of the vocabulary comes up so often at least.
const LEAST: usize = 2;
/// Letters of the shortest word that stands for those that begin with it.
const STEM: usize = 5;
/// Words of a sentence that are read.
const LENGTH: usize = 48;
const EPOCHS: usize = 8;
const BATCH: usize = 32;
const PEAK_RATE: f32 = 0.002;
const DECAY: f64 = 0.1;
/// The probability with which a word is not known in training.
const FORGOTTEN: f32 = 0.3;
/// How far one reader's rating is from the mean of all, as a standard deviation: training asks another reader each
/// time.
const READER: f32 = 1.0;
/// Sentences whose attention is shown.
const SHOWN: usize = 4;
/// Words of those, at most.
const SHORT: usize = 12;

fn main() -> ExitCode {
    common::run("sentiment", HELP, None, |arguments| {
        let texts = read_tsv(&arguments.dir.join("movie-snippets.tsv.gz"))?.first(arguments.images);
        let (lessons, examination) = texts.with_rating(|rating| rating.abs() >= CLEAR).hold_out(HELD_OUT)?;
        if lessons.is_empty() {
            return Err("needs at least two clear sentences, one to learn and one to hold out".into());
        }
        let vocabulary = Vocabulary::new(lessons.texts(), LEAST, usize::MAX);
        let model = Sentiment {
            words: vocabulary.size(),
            positions: LENGTH,
            features: 64,
            depth: 1,
            heads: 4,
            dropout: 0.5,
            ..Sentiment::default()
        };
        let mut network = Network::new(model.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, LENGTH])?);
        let accuracy = teach(&mut network, [&lessons, &examination], &vocabulary, arguments)?;
        show(&mut network, &examination, &vocabulary)?;
        println!("accuracy on held-out sentences: {:.2} %", 100.0 * accuracy);
        Ok(())
    })
}

/// A sentence: its words' numbers, and what its readers think on average.
struct Sample {
    words: Vec<usize>,
    rating: f32,
}

impl Sample {
    /// 1 if a rating likes the film.
    fn class(rating: f32) -> usize {
        usize::from(rating > 0.0)
    }
}

fn encode(texts: &Texts, vocabulary: &Vocabulary) -> Vec<Sample> {
    let encoded = texts.texts().iter().zip(texts.ratings()).map(|(text, &rating)| {
        let mut numbers: Vec<usize> = words(text).take(LENGTH).map(|word| number(&word, vocabulary)).collect();
        numbers.resize(numbers.len().max(1), Vocabulary::PADDING);
        Sample { words: numbers, rating }
    });
    encoded.collect()
}

/// The number of a word, or of the longest known word that it begins with, of at least `STEM` letters: `amazingly` is
/// read as `amazing`.
fn number(word: &str, vocabulary: &Vocabulary) -> usize {
    let ends = word.char_indices().map(|(at, c)| at + c.len_utf8()).skip(STEM - 1);
    let is_known = |&number: &usize| number != Vocabulary::UNKNOWN;
    let stem = ends.map(|end| vocabulary.number(&word[..end])).filter(is_known).last();
    Some(vocabulary.number(word)).filter(is_known).or(stem).unwrap_or(Vocabulary::UNKNOWN)
}

/// Indices of sentences of one length each, in batches; in random order, given `random`.
fn batches(samples: &[Sample], random: Option<&mut Random>) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let mut none = Random::new(0);
    let random = match random {
        Some(random) => {
            random.shuffle(&mut order);
            random
        }
        None => &mut none,
    };
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in order {
        by_length.entry(samples[index].words.len()).or_default().push(index);
    }
    let mut batches: Vec<Vec<usize>> =
        by_length.values().flat_map(|indices| indices.chunks(BATCH).map(<[usize]>::to_vec)).collect();
    random.shuffle(&mut batches);
    batches
}

/// The sentences of a batch and their classes: in training, given `random`, with some words forgotten and the opinion
/// of one reader.
fn rows(samples: &[Sample], batch: &[usize], mut random: Option<&mut Random>) -> Result<(Tensor, Vec<usize>), Failure> {
    let mut numbers = Vec::new();
    for &index in batch {
        for &word in &samples[index].words {
            let is_forgotten = random.as_mut().is_some_and(|random| random.uniform(0.0, 1.0) < FORGOTTEN);
            numbers.push(if is_forgotten { Vocabulary::UNKNOWN } else { word } as f32);
        }
    }
    let length = numbers.len() / batch.len().max(1);
    let mut classes = Vec::with_capacity(batch.len());
    for &index in batch {
        // A sum of four uniform numbers is nearly normal; each has a variance of a third of its square bound.
        let bound = READER * 0.75f32.sqrt();
        let own = random.as_mut().map_or(0.0, |random| (0..4).map(|_| random.uniform(-bound, bound)).sum());
        classes.push(Sample::class(samples[index].rating + own));
    }
    Ok((tensor(&[batch.len(), length], numbers)?, classes))
}

/// Learns from all lessons; the share of sentences held out that is judged correctly in the end.
fn teach(
    network: &mut Network,
    [lessons, examination]: [&Texts; 2],
    vocabulary: &Vocabulary,
    arguments: &Arguments,
) -> Result<f64, Failure> {
    let (lessons, examination) = (encode(lessons, vocabulary), encode(examination, vocabulary));
    let random = Random::new(arguments.seed).fork(1);
    let epochs = arguments.epochs.unwrap_or(EPOCHS);
    let mut progress = Progress::new("sentiment", PEAK_RATE, epochs, batches(&lessons, None).len())?;
    println!(
        "sentiment: {} sentences to learn from, {} held out, {} words, {} parameters",
        lessons.len(),
        examination.len(),
        vocabulary.size(),
        network.parameter_count()
    );
    let (mut loss, mut adam) = (SCELoss::default(), AdamW::new().decay(DECAY));
    let mut accuracy = 0.0;
    for epoch in 0..epochs {
        network.train();
        let mut random = random.fork(epoch as u64);
        for batch in batches(&lessons, Some(&mut random)) {
            let (x, labels) = rows(&lessons, &batch, Some(&mut random))?;
            let z = network.forward(&x)?;
            let mean = loss.forward(&z, &labels, Parallelism::Current)?;
            network.backward(&loss.backward()?)?;
            adam.step(network, progress.rate())?;
            progress.step(mean, batch.len());
        }
        network.eval();
        let taught = progress.pause();
        let mut right = 0;
        for batch in batches(&examination, None) {
            let (x, labels) = rows(&examination, &batch, None)?;
            let guesses = classify(&network.forward(&x)?)?;
            right += guesses.iter().zip(&labels).filter(|(guess, label)| guess == label).count();
        }
        accuracy = right as f64 / examination.len() as f64;
        progress.epoch(taught, accuracy);
    }
    println!("sentiment: weights {:016x}", common::fingerprint(network));
    Ok(accuracy)
}

/// For some short sentences held out: the judgement, and for each word those that it attends to most.
fn show(network: &mut Network, examination: &Texts, vocabulary: &Vocabulary) -> Result<(), Failure> {
    let samples = encode(examination, vocabulary);
    let is_short = |&index: &usize| (SHORT / 2..=SHORT).contains(&samples[index].words.len());
    for index in (0..samples.len()).filter(is_short).take(SHOWN) {
        let (x, _) = rows(&samples, &[index], None)?;
        network.eval();
        let likes = classify(&network.forward(&x)?)?[0] == 1;
        network.train();
        network.forward(&x)?;
        let mut weights = None;
        network.visit_attention(|_, attention| weights = Some(attention.weights(Parallelism::Current)));
        let weights = weights.ok_or("the network has no attention")??;
        let (heads, length) = (weights.shape()[1], weights.shape()[2]);
        let (rating, text) = (examination.ratings()[index], &examination.texts()[index]);
        println!(
            "\n{text}\n    judged: {}, readers: {rating:+.1}",
            if likes { "likes it" } else { "does not like it" }
        );
        let words: Vec<String> = words(text).take(length).collect();
        for (row, word) in words.iter().enumerate() {
            let mean = |key: usize| (0..heads).map(|head| weights[[0, head, row, key]]).sum::<f32>() / heads as f32;
            let mut seen: Vec<(f32, &str)> = words.iter().enumerate().map(|(key, word)| (mean(key), &**word)).collect();
            seen.sort_by(|a, b| b.0.total_cmp(&a.0));
            let most: Vec<String> = seen.iter().take(3).map(|(share, word)| format!("{word} {share:.2}")).collect();
            println!("    {word:>16} ──► {}", most.join(", "));
        }
    }
    println!();
    Ok(())
}
