//! A perceptron with one hidden layer learns to read digits: `cargo run --release --example perceptron`.
//!
//! ```text
//! [28, 28] ── 784 ──► 512, sigmoid ──► 10
//! ```

mod common;

use std::process::ExitCode;

use common::Course;
use nn::models::Perceptron;
use nn::{Network, Random};

const HELP: &str = "\
Trains a perceptron with one hidden layer on 10,000 of MNIST's digits and says how many of the held-out ones (every
fifth) it reads.

perceptron [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

";

const COURSE: Course = Course {
    name: "perceptron",
    epochs: 20,
    batch: 64,
    size: [28, 28],
    peak_rate: 0.1,
    decay: 1e-5,
    distortion: [5.0, 0.05, 0.05, 0.03],
};

fn main() -> ExitCode {
    common::run("perceptron", HELP, None, |arguments| {
        let images = common::mnist(arguments)?;
        let mut network = Network::new(Perceptron::default().build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, 1, 28, 28])?);
        let accuracy = COURSE.teach(&mut network, &images, arguments)?;
        println!("accuracy on held-out images: {:.2} %", 100.0 * accuracy);
        Ok(())
    })
}
