//! Filters that a classifier learns for itself, then several of them: `cargo run --release --example stacked`.
//!
//! ```text
//! one      conv 5x5 ► 1, ReLU,                          linear ► 10      a filtered image, and a classifier over it
//! stacked  conv 5x5 ► 4, ReLU,   conv 5x5 ► 4, ReLU,    linear ► 10      filters of filtered images
//! wide     conv 5x5 ► 8, ReLU,   conv 5x5 ► 16, ReLU,   linear ► 10      more filters in each layer
//! ```
//!
//! The filters of the first layers are painted side by side: black takes away, white adds.

mod common;

use std::process::ExitCode;

use common::Course;
use image::{Rgb, RgbImage};
use nn::models::Stacked;
use nn::{Network, Random};

const HELP: &str = "\
Trains three classifiers of digits, with one learned filter, with two layers of four, and with two layers of several, on
1,797 small digits. Says how many of the held-out ones (every fifth) each reads, and paints the filters.

stacked [--picture FILE.png] [--epochs N] [--threads N] [--seed N] [--images N] [--dir DIR]

  --picture  where the filters are painted (filters.png)
";

const COURSE: Course = Course {
    name: "",
    epochs: 60,
    batch: 32,
    size: [28, 28],
    peak_rate: 0.02,
    decay: 5e-4,
    distortion: [12.0, 0.12, 0.12, 0.06],
};

/// What is learnt: a name, and the filters of each layer.
const NETWORKS: [(&str, &[usize]); 3] = [("one filter", &[1]), ("stacked", &[4, 4]), ("wide", &[8, 16])];

/// Pixels of the picture for a tap, and between two filters.
const TAP: u32 = 16;
const GAP: u32 = 8;

fn main() -> ExitCode {
    common::run("stacked", HELP, Some("filters.png"), |arguments| {
        let images = common::digits(arguments)?;
        let (mut results, mut rows) = (Vec::new(), Vec::new());
        for (at, (name, filters)) in NETWORKS.into_iter().enumerate() {
            let model = Stacked { filters: filters.to_vec(), ..Stacked::default() };
            let mut network = Network::new(model.build(&mut Random::new(arguments.seed).fork(at as u64))?);
            let accuracy = Course { name, ..COURSE }.teach(&mut network, &images, arguments)?;
            results.push(format!("{name} {:.2} %", 100.0 * accuracy));
            // A row of the picture for each network; deeper layers have a filter for each pair of channels.
            network.visit(|name, parameter| {
                if name == "0.weight" || name == "2.weight" && at == 1 {
                    rows.push(parameter.elements().to_vec());
                }
            });
        }
        common::paint(&arguments.picture, &filters(&rows, 5))?;
        println!(
            "{}: the learned filters, a row for each first layer and one more for the stacked one",
            arguments.picture.display()
        );
        println!("accuracy on held-out images: {}", results.join(", "));
        Ok(())
    })
}

/// Rows of square filters, each scaled to its largest weight.
fn filters(rows: &[Vec<f32>], size: u32) -> RgbImage {
    let taps = (size * size) as usize;
    let most = rows.iter().map(|row| row.len() / taps).max().unwrap_or(1) as u32;
    let (step, middle) = (size * TAP + GAP, Rgb([90, 110, 160]));
    let mut picture = RgbImage::from_pixel(most * step + GAP, rows.len() as u32 * step + GAP, middle);
    for (row, filters) in rows.iter().enumerate() {
        for (column, filter) in filters.chunks_exact(taps).enumerate() {
            let largest = filter.iter().fold(f32::MIN_POSITIVE, |most, weight| most.max(weight.abs()));
            for y in 0..size * TAP {
                for x in 0..size * TAP {
                    let weight = filter[(y / TAP * size + x / TAP) as usize] / largest;
                    let grey = (127.5 + 127.5 * weight).round() as u8;
                    picture.put_pixel(GAP + column as u32 * step + x, GAP + row as u32 * step + y, Rgb([grey; 3]));
                }
            }
        }
    }
    picture
}
