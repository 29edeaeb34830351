//! The models learn: small ones, on a task that only what they are made of can solve.

use nn::models::{Clip, LanguageModel, Sentiment, Tower, Transformer, VisionTransformer};
use nn::optim::clip_norm;
use nn::{AdamW, ClipLoss, Network, OneCycle, Parallelism, Random, Result, SCELoss, Tensor, classify, tensor};

/// Images of 8x8 with a bright square of 2x2 in one of four quarters, anywhere in it; and which quarter.
fn squares(count: usize, random: &mut Random) -> Result<(Tensor, Vec<usize>)> {
    let (mut pixels, mut labels) = (vec![0.0; count * 64], Vec::new());
    for image in pixels.chunks_exact_mut(64) {
        image.iter_mut().for_each(|pixel| *pixel = random.uniform(0.0, 0.3));
        let quarter = random.below(4);
        let [row, column] = [quarter / 2 * 4 + random.below(3), quarter % 2 * 4 + random.below(3)];
        for at in [0, 1, 8, 9] {
            image[row * 8 + column + at] = 1.0;
        }
        labels.push(quarter);
    }
    Ok((tensor(&[count, 1, 8, 8], pixels)?, labels))
}

/// Numbers below `bound` in rows.
fn numbers(rows: usize, length: usize, bound: usize, random: &mut Random) -> Vec<Vec<usize>> {
    (0..rows).map(|_| (0..length).map(|_| random.below(bound)).collect()).collect()
}

fn words(rows: &[Vec<usize>]) -> Result<Tensor> {
    tensor(&[rows.len(), rows[0].len()], rows.iter().flatten().map(|&word| word as f32).collect())
}

/// Steps of AdamW, each on a batch of its own, with one cycle of the rate.
fn learn(
    network: &mut Network,
    steps: usize,
    rate: f32,
    mut step: impl FnMut(&mut Network, &mut Random) -> Result<Tensor>,
) -> Result<()> {
    let (mut adam, cycle, random) = (AdamW::new(), OneCycle::new(rate, steps), Random::new(5));
    for at in 0..steps {
        let gradient = step(network, &mut random.fork(at as u64))?;
        network.backward(&gradient)?;
        clip_norm(network, 1.0)?;
        adam.step(network, cycle.rate(at))?;
    }
    network.eval();
    Ok(())
}

/// The share of guesses that are right.
fn share(z: &Tensor, wanted: &[usize]) -> Result<f64> {
    let right = classify(z)?.iter().zip(wanted).filter(|(guess, wanted)| guess == wanted).count();
    Ok(right as f64 / wanted.len() as f64)
}

#[test]
fn a_vision_transformer_learns_where_something_is() -> Result<()> {
    let digits = VisionTransformer::digits();
    let model = VisionTransformer {
        size: [8, 8],
        patch: 2,
        features: 16,
        depth: 2,
        heads: 2,
        hidden: 32,
        classes: 4,
        ..digits
    };
    let (mut network, mut loss) = (Network::new(model.build(&mut Random::new(1))?), SCELoss::default());
    learn(&mut network, 250, 0.01, |network, random| {
        let (x, labels) = squares(32, random)?;
        loss.forward(&network.forward(&x)?, &labels, Parallelism::Current)?;
        loss.backward()
    })?;
    let (x, labels) = squares(200, &mut Random::new(6))?;
    let share = share(&network.forward(&x)?, &labels)?;
    assert!(share > 0.95, "{share}");
    Ok(())
}

#[test]
fn clip_learns_captions_and_reads_those_that_it_has_not_seen() -> Result<()> {
    let tower = Tower { features: 16, depth: 1, heads: 2 };
    // Words: 0 to 3 quarters, 4 to 9 words that say nothing, 10 the end.
    let clip =
        Clip { channels: 1, size: [8, 8], patch: 2, image: tower, context: 4, words: 11, text: tower, features: 16 };
    let caption = |quarter: usize, filler: usize| match filler % 2 {
        0 => vec![4 + filler, quarter, 10, 0],
        _ => vec![4 + filler, 4 + (filler + 2) % 6, quarter, 10],
    };
    let (mut network, mut loss) = (Network::new(clip.build(&mut Random::new(1))?), ClipLoss::default());
    learn(&mut network, 400, 0.01, |network, random| {
        let (x, labels) = squares(32, random)?;
        let texts: Vec<_> = labels.iter().map(|&quarter| caption(quarter, random.below(5))).collect();
        let z = network.forward_all(&[&x, &words(&texts)?])?;
        loss.forward(&z, Parallelism::Current)?;
        loss.backward()
    })?;
    let (x, labels) = squares(200, &mut Random::new(6))?;
    let new: Vec<_> = (0..4).map(|quarter| vec![7, 8, quarter, 10]).collect();
    let share = share(&network.forward_all(&[&x, &words(&new)?])?, &labels)?;
    assert!(share > 0.9, "{share}");
    Ok(())
}

#[test]
fn a_transformer_learns_to_reverse() -> Result<()> {
    const START: usize = 6;
    let model = Transformer {
        features: 32,
        heads: 2,
        hidden: 64,
        encoder: 1,
        decoder: 1,
        norm_first: true,
        ..Transformer::base()
    };
    let mut network = Network::new(model.build_with_words(7, 6, &mut Random::new(1))?);
    let mut loss = SCELoss::default();
    let turned = |source: &[Vec<usize>]| -> Vec<Vec<usize>> {
        source.iter().map(|row| row.iter().rev().copied().collect()).collect()
    };
    learn(&mut network, 300, 0.005, |network, random| {
        let source = numbers(32, 5, 6, random);
        let target = turned(&source);
        let given: Vec<_> = target.iter().map(|row| [&[START], &row[..4]].concat()).collect();
        let z = network.forward_all(&[&words(&source)?, &words(&given)?])?;
        loss.forward(&z, &target.concat(), Parallelism::Current)?;
        loss.backward()
    })?;
    let source = numbers(100, 5, 6, &mut Random::new(6));
    let mut written = vec![vec![START]; source.len()];
    for at in 0..5 {
        let guesses = classify(&network.forward_all(&[&words(&source)?, &words(&written)?])?)?;
        written.iter_mut().enumerate().for_each(|(row, words)| words.push(guesses[row * (at + 1) + at]));
    }
    let right = written.iter().zip(turned(&source)).filter(|(written, wanted)| written[1..] == wanted[..]).count();
    assert!(right >= 90, "{right} of 100");
    Ok(())
}

#[test]
fn a_classifier_of_texts_learns_that_one_word_turns_another_around() -> Result<()> {
    // Words 0 and 1 are good and bad; 2 turns around what comes behind it; 3 to 9 say nothing.
    let model = Sentiment { words: 10, positions: 6, features: 16, heads: 2, dropout: 0.0, ..Sentiment::default() };
    let (mut network, mut loss) = (Network::new(model.build(&mut Random::new(1))?), SCELoss::default());
    let texts = |count: usize, random: &mut Random| {
        let mut texts: Vec<Vec<usize>> =
            numbers(count, 6, 7, random).concat().chunks(6).map(<[usize]>::to_vec).collect();
        let mut labels = Vec::new();
        for text in &mut texts {
            text.iter_mut().for_each(|word| *word += 3);
            let (at, judgement, turns) = (1 + random.below(5), random.below(2), random.below(2));
            text[at] = judgement;
            if turns == 1 {
                text[at - 1] = 2;
            }
            labels.push(judgement ^ turns);
        }
        (texts, labels)
    };
    learn(&mut network, 300, 0.01, |network, random| {
        let (texts, labels) = texts(32, random);
        loss.forward(&network.forward(&words(&texts)?)?, &labels, Parallelism::Current)?;
        loss.backward()
    })?;
    let (texts, labels) = texts(200, &mut Random::new(6));
    let share = share(&network.forward(&words(&texts)?)?, &labels)?;
    assert!(share > 0.95, "{share}");
    Ok(())
}

#[test]
fn a_language_model_learns_what_came_some_words_before() -> Result<()> {
    let model = LanguageModel { words: 5, positions: 12, features: 32, depth: 2, heads: 2, ..LanguageModel::default() };
    let (mut network, mut loss) = (Network::new(model.build(&mut Random::new(1))?), SCELoss::default());
    // Three random words, again and again: from the fourth on, the next is the one three before it.
    let texts = |count: usize, random: &mut Random| -> Vec<Vec<usize>> {
        numbers(count, 3, 5, random).iter().map(|row| row.iter().cycle().take(13).copied().collect()).collect()
    };
    let next = |texts: &[Vec<usize>]| texts.iter().flat_map(|text| text[1..].to_vec()).collect::<Vec<usize>>();
    let given = |texts: &[Vec<usize>]| words(&texts.iter().map(|text| text[..12].to_vec()).collect::<Vec<_>>());
    learn(&mut network, 250, 0.005, |network, random| {
        let texts = texts(32, random);
        loss.forward(&network.forward(&given(&texts)?)?, &next(&texts), Parallelism::Current)?;
        loss.backward()
    })?;
    let texts = texts(50, &mut Random::new(6));
    let guesses = classify(&network.forward(&given(&texts)?)?)?;
    let wanted = next(&texts);
    let known = (0..wanted.len()).filter(|at| at % 12 >= 2);
    let right = known.clone().filter(|&at| guesses[at] == wanted[at]).count();
    assert!(right as f64 > 0.95 * known.count() as f64, "{right}");
    Ok(())
}
