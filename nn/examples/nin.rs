//! Network in Network learns to read digits: `cargo run --release --example nin`.
//!
//! The network is `nn::models::NiN` at a quarter of its width, over one channel instead of three; the digits of MNIST
//! are stretched to 96x96 pixels, which its first layers need.

mod common;

use std::process::ExitCode;

use common::Course;
use nn::models::NiN;
use nn::{Network, Random};

const HELP: &str = "\
Trains Network in Network at a quarter of its width on 10,000 of MNIST's digits and says how many of the held-out ones (every
fifth) it reads.

nin [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

";

const COURSE: Course = Course {
    name: "nin",
    epochs: 10,
    batch: 64,
    size: [96, 96],
    peak_rate: 0.003,
    decay: 5e-4,
    distortion: [12.0, 0.12, 0.1, 0.07],
};

fn main() -> ExitCode {
    common::run("nin", HELP, None, |arguments| {
        let images = common::mnist(arguments)?;
        let model = NiN { channels: 1, classes: 10, width: 0.25 };
        let mut network = Network::new(model.build(&mut Random::new(arguments.seed))?);
        print!("{}", network.summary(&[1, 1, 96, 96])?);
        let accuracy = COURSE.teach(&mut network, &images, arguments)?;
        println!("accuracy on held-out images: {:.2} %", 100.0 * accuracy);
        Ok(())
    })
}
