//! The convolutional models learn: small ones, where in a picture something is.

use nn::models::{AlexNet, Fcn, GoogLeNet, LeNet5, NiN, Perceptron, Stacked};
use nn::optim::clip_norm;
use nn::{
    AdamW, Flatten, Layer, Network, OneCycle, Parallelism, Random, Result, SCELoss, Sequential, Tensor, classify,
    tensor,
};

/// Pictures of `size` by `size` with a bright square in one of four quarters, anywhere in it; and which quarter.
fn squares(count: usize, size: usize, random: &mut Random) -> Result<(Tensor, Vec<usize>)> {
    let (mut pixels, mut labels) = (vec![0.0; count * size * size], Vec::new());
    for image in pixels.chunks_exact_mut(size * size) {
        image.iter_mut().for_each(|pixel| *pixel = random.uniform(0.0, 0.3));
        let (quarter, half, side) = (random.below(4), size / 2, size / 4);
        let [row, column] = [quarter / 2, quarter % 2].map(|at| at * half + random.below(half - side + 1));
        for at in 0..side * side {
            image[(row + at / side) * size + column + at % side] = 1.0;
        }
        labels.push(quarter);
    }
    Ok((tensor(&[count, 1, size, size], pixels)?, labels))
}

/// Takes some steps of AdamW, and asks for the quarters of pictures that the network has not seen.
fn learns(layer: impl Layer + 'static, size: usize, steps: usize, rate: f32) -> Result<()> {
    let (mut network, mut loss) = (Network::new(layer), SCELoss::default());
    let (mut adam, cycle, random) = (AdamW::new(), OneCycle::new(rate, steps), Random::new(5));
    for at in 0..steps {
        let (x, labels) = squares(16, size, &mut random.fork(at as u64))?;
        loss.forward(&network.forward(&x)?, &labels, Parallelism::Current)?;
        network.backward(&loss.backward()?)?;
        clip_norm(&mut network, 1.0)?;
        adam.step(&mut network, cycle.rate(at))?;
    }
    network.eval();
    let (x, labels) = squares(100, size, &mut Random::new(6))?;
    let right = classify(&network.forward(&x)?)?.iter().zip(&labels).filter(|(guess, label)| guess == label).count();
    assert!(right >= 95, "{right} of 100");
    Ok(())
}

#[test]
fn a_perceptron_learns() -> Result<()> {
    let model = Perceptron { inputs: 64, hidden: 32, classes: 4, ..Perceptron::default() };
    learns(model.build(&mut Random::new(1))?, 8, 300, 0.02)
}

#[test]
fn stacked_convolutions_learn() -> Result<()> {
    let model = Stacked { size: [8, 8], filters: vec![4, 4], kernel: 3, classes: 4, ..Stacked::default() };
    learns(model.build(&mut Random::new(1))?, 8, 200, 0.02)
}

#[test]
fn a_fully_convolutional_network_learns() -> Result<()> {
    let model = Fcn { classes: 4, width: 0.25, ..Fcn::default() };
    // One window sees the whole picture.
    let whole = Sequential::new().with(model.build(&mut Random::new(1))?)?.with(Flatten::default())?;
    learns(whole, 28, 100, 0.01)
}

#[test]
fn lenet_5_learns() -> Result<()> {
    learns(LeNet5 { classes: 4, width: 0.5 }.build(&mut Random::new(1))?, 28, 100, 0.01)
}

#[test]
fn alexnet_learns() -> Result<()> {
    let model = AlexNet { channels: 1, classes: 4, width: 0.0625, dropout: 0.0 };
    learns(model.build(&mut Random::new(1))?, 64, 120, 0.005)
}

#[test]
fn network_in_network_learns() -> Result<()> {
    let model = NiN { channels: 1, classes: 4, width: 0.125 };
    learns(model.build(&mut Random::new(1))?, 64, 150, 0.01)
}

#[test]
fn inception_modules_learn() -> Result<()> {
    let model = GoogLeNet { channels: 1, classes: 4, width: 0.125, dropout: 0.0, ..GoogLeNet::default() };
    learns(model.build(&mut Random::new(1))?, 32, 60, 0.01)
}
