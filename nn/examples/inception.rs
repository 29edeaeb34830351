//! GoogLeNet learns to read digits: `cargo run --release --example inception`.
//!
//! The network is `nn::models::GoogLeNet` at an eighth of its width, over one channel instead of three; the digits of
//! MNIST are stretched to 64x64 pixels, which its first layers need.

mod common;

use std::process::ExitCode;

use common::Course;
use nn::models::GoogLeNet;
use nn::{Network, Random};

const HELP: &str = "\
Trains GoogLeNet at an eighth of its width on 10,000 of MNIST's digits and says how many of the held-out ones (every
fifth) it reads.

inception [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

";

const COURSE: Course = Course {
    name: "inception",
    epochs: 8,
    batch: 64,
    size: [64, 64],
    peak_rate: 0.05,
    decay: 5e-4,
    distortion: [12.0, 0.12, 0.1, 0.07],
};

fn main() -> ExitCode {
    common::run("inception", HELP, None, |arguments| {
        let images = common::mnist(arguments)?;
        let model = GoogLeNet { channels: 1, classes: 10, width: 0.125, ..GoogLeNet::default() };
        let mut network = Network::new(model.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, 1, 64, 64])?);
        let accuracy = COURSE.teach(&mut network, &images, arguments)?;
        println!("accuracy on held-out images: {:.2} %", 100.0 * accuracy);
        Ok(())
    })
}
