//! A filter over a photograph: `cargo run --release --example photo -- IN OUT [--filter NAME]`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use kernels::conv::{Conv2d, Conv2dSpec, Layout, Shape};
use kernels::{Error, Parallelism, Workspace};

/// Red, green and blue are filtered each on its own.
const CHANNELS: usize = 3;
/// Of 100; hides the artefacts of compression behind what the filter shows.
const JPEG_QUALITY: u8 = 92;

/// Square filters of one size. Two are taken as the components of a gradient, whose length is shown.
struct Filter {
    name: &'static str,
    about: &'static str,
    size: usize,
    taps: &'static [&'static [f32]],
}

/// The first is the default.
const FILTERS: [Filter; 5] = [
    Filter {
        name: "derivative",
        about: "half the difference between the pixel below and the pixel above (the default)",
        size: 3,
        taps: &[&[0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0]],
    },
    Filter {
        name: "sobel",
        about: "edges: the length of the gradient",
        size: 3,
        taps: &[&[-1.0, 0.0, 1.0, -2.0, 0.0, 2.0, -1.0, 0.0, 1.0], &[-1.0, -2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 1.0]],
    },
    Filter {
        name: "sharpen",
        about: "what differs from the neighbours is made to differ more",
        size: 3,
        taps: &[&[0.0, -1.0, 0.0, -1.0, 5.0, -1.0, 0.0, -1.0, 0.0]],
    },
    Filter { name: "blur", about: "a binomial mean over 7x7 pixels", size: 7, taps: &[&BLUR] },
    Filter {
        name: "emboss",
        about: "a relief, lit from the top left",
        size: 3,
        taps: &[&[-2.0, -1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 2.0]],
    },
];

/// The sixth row of Pascal's triangle times itself, divided by its sum.
const BLUR: [f32; 49] = {
    let row = [1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0];
    let mut taps = [0.0; 49];
    let mut at = 0;
    while at < 49 {
        taps[at] = row[at / 7] * row[at % 7] / 4096.0;
        at += 1;
    }
    taps
};

struct Arguments {
    input: PathBuf,
    output: PathBuf,
    filter: &'static Filter,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("photo: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let Some(Arguments { input, output, filter }) = parse_arguments()? else {
        print!("{}", help());
        return Ok(());
    };
    let format = match ImageFormat::from_path(&output) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => format,
        _ => return Err(format!("{}: expected a name that ends in .jpg, .jpeg or .png", output.display())),
    };
    let picture = read(&input)?;
    let (width, height) = picture.dimensions();
    let (filtered, time) = apply(filter, &picture).map_err(|problem| format!("{}: {problem}", input.display()))?;
    write(&output, &filtered, format)?;
    let megapixels = width as f64 * height as f64 / 1e6;
    println!(
        "{}: {width}x{height} pixels, filter {} took {:.3} ms: {:.0} megapixels a second",
        output.display(),
        filter.name,
        time.as_secs_f64() * 1e3,
        megapixels / time.as_secs_f64()
    );
    Ok(())
}

fn parse_arguments() -> Result<Option<Arguments>, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_env();
    let mut files: Vec<OsString> = Vec::new();
    let mut filter = &FILTERS[0];
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("filter") => {
                let name = parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
                filter = FILTERS.iter().find(|filter| filter.name == name).ok_or_else(|| {
                    let names: Vec<&str> = FILTERS.iter().map(|filter| filter.name).collect();
                    format!("--filter: expected one of {}, given {name}", names.join(", "))
                })?;
            }
            Value(file) => files.push(file),
            other => return Err(format!("{}; --help says what there is", other.unexpected())),
        }
    }
    let [input, output] = <[OsString; 2]>::try_from(files)
        .map_err(|files| format!("expected IN and OUT, given {} files; --help says more", files.len()))?;
    Ok(Some(Arguments { input: input.into(), output: output.into(), filter }))
}

fn help() -> String {
    let mut text = String::from(
        "Applies a filter to each colour of a JPEG or PNG.\n\n\
         photo IN OUT [--filter NAME]\n\n\
         OUT is written as its name ends (.jpg, .jpeg, .png), in 8 bits a colour and without transparency. It lacks\n\
         the border pixels whose neighbours lie outside of IN. Differences are shown around a middle grey.\n\n\
         Filters:\n",
    );
    for Filter { name, about, .. } in &FILTERS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12}{about}");
    }
    text
}

fn read(path: &Path) -> Result<RgbImage, String> {
    let failed = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
    let file = File::open(path).map_err(|error| failed(&error))?;
    // The contents decide, whatever the name says.
    let mut reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|error| failed(&error))?;
    if !matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png)) {
        return Err(failed(&"is neither a JPEG nor a PNG"));
    }
    // Memory is the limit, not half a gigabyte.
    reader.no_limits();
    let decoder = reader.into_decoder().map_err(|error| failed(&error))?;
    // What decodes, and what brings the picture to three bytes a pixel, would abort without memory: asked for before.
    let (width, height) = decoder.dimensions();
    let bytes = decoder.total_bytes().saturating_add(u64::from(width) * u64::from(height) * CHANNELS as u64);
    reserve::<u8>(usize::try_from(bytes).unwrap_or(usize::MAX)).map_err(|error| failed(&error))?;
    Ok(DynamicImage::from_decoder(decoder).map_err(|error| failed(&error))?.into_rgb8())
}

/// An empty vector with room for so many elements.
fn reserve<T>(len: usize) -> Result<Vec<T>, Error> {
    let mut room = Vec::new();
    match room.try_reserve_exact(len) {
        Ok(()) => Ok(room),
        Err(_) => Err(Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) }),
    }
}

/// The filtered picture, and how long the convolution took.
fn apply(filter: &Filter, picture: &RgbImage) -> Result<(RgbImage, Duration), Error> {
    let (width, height) = picture.dimensions();
    let shape = Shape::new(1, height as usize, width as usize);
    // Pixels lie in memory as red, green, blue: NHWC. Each channel is a group of its own.
    let directions = filter.taps.len();
    let spec = Conv2dSpec::new(CHANNELS, CHANNELS * directions, [filter.size, filter.size])
        .groups(CHANNELS)
        .layout(Layout::Nhwc);
    let sizes = spec.sizes(shape)?;
    let [out_height, out_width] = sizes.output;
    let weights = filter.taps.concat().repeat(CHANNELS);
    let conv = Conv2d::new(spec, &weights, None, shape)?;
    let parallelism = Parallelism::Current;
    let mut workspace = Workspace::with_len(conv.workspace_len(shape, parallelism.threads())?)?;
    let mut x = reserve(sizes.x_len)?;
    x.extend(picture.iter().map(|&byte| f32::from(byte)));
    let mut y = reserve(sizes.y_len)?;
    y.resize(sizes.y_len, 0.0);

    let start = Instant::now();
    conv.forward(shape, &x, None, &mut y, &mut workspace, parallelism)?;
    let time = start.elapsed();

    let signed = directions == 1 && filter.taps[0].iter().sum::<f32>() == 0.0;
    let grey = if signed { 127.5 } else { 0.0 };
    let show = |taps: &[f32]| match taps {
        // `as u8` goes to 0 and 255 where a value lies beyond.
        [value] => (value + grey).round() as u8,
        components => components.iter().map(|value| value * value).sum::<f32>().sqrt().round() as u8,
    };
    let mut bytes = reserve(sizes.y_len / directions)?;
    bytes.extend(y.chunks_exact(directions).map(show));
    let filtered = RgbImage::from_raw(out_width as u32, out_height as u32, bytes);
    filtered.map(|picture| (picture, time)).ok_or(Error::Overflow { argument: "picture" })
}

/// Writes to a file beside `path` first, so that `path` never holds half a picture.
fn write(path: &Path, picture: &RgbImage, format: ImageFormat) -> Result<(), String> {
    let failed = |problem: &dyn std::fmt::Display| format!("{}: cannot write: {problem}", path.display());
    if path.is_dir() {
        return Err(failed(&"is a directory"));
    }
    let name = path.file_name().ok_or_else(|| failed(&"names no file"))?;
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = path.with_file_name(unfinished);
    let encode = || -> Result<(), Box<dyn std::error::Error>> {
        let mut file = BufWriter::new(File::create_new(&unfinished)?);
        match format {
            ImageFormat::Jpeg => picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY))?,
            _ => picture.write_to(&mut file, format)?,
        }
        file.into_inner()?.sync_all()?;
        fs::rename(&unfinished, path)?;
        Ok(())
    };
    encode().map_err(|error| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&unfinished);
        failed(&error)
    })
}
