//! The examples as their users run them: results, error messages, exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder with the data of the examples.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// An example, brought up to date: where only this test is asked for, `cargo test` does not build the examples.
fn example(name: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let built = test.parent().unwrap().parent().unwrap();
        let profile = if built.ends_with("release") { "release" } else { "test" };
        let mut build = Command::new(env!("CARGO"));
        // Of the whole workspace, or features are resolved anew and the kernels are built a second time.
        build.args(["build", "--quiet", "--workspace", "--examples", "--profile", profile, "--target-dir"]);
        assert!(build.arg(built.parent().unwrap()).status().unwrap().success());
        built.join("examples")
    });
    Command::new(folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

/// An empty folder for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code 1, and a message that holds each of `parts`.
fn assert_refused(output: &Output, parts: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

fn photo(input: &Path, output: &Path, options: &[&str]) -> Output {
    example("photo").arg(input).arg(output).args(options).output().unwrap()
}

#[test]
fn the_photo_example_filters_pictures() {
    let folder = folder("photo");
    let input = folder.join("in.png");
    // Brightness grows by 10 from row to row.
    image::RgbImage::from_fn(6, 5, |_, row| image::Rgb([10 * row as u8; 3])).save(&input).unwrap();
    let output = folder.join("out.png");
    let run = photo(&input, &output, &[]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stdout).contains("megapixels a second"));
    let picture = image::open(&output).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (4, 3));
    // (20 - 0) / 2 above the middle of 0 and 255, rounded.
    assert!(picture.iter().all(|&byte| byte == 138), "{picture:?}");

    for (filter, expected) in [("sharpen", 10), ("sobel", 80), ("blur", 0), ("emboss", 188)] {
        let size = if filter == "blur" { 9 } else { 3 };
        let grow = if filter == "blur" { 0 } else { 10 };
        image::RgbImage::from_fn(size, size, |_, row| image::Rgb([grow * row as u8; 3])).save(&input).unwrap();
        let run = photo(&input, &output, &["--filter", filter]);
        assert!(run.status.success(), "{}", text(&run.stderr));
        let picture = image::open(&output).unwrap().into_rgb8();
        assert!(picture.iter().all(|&byte| byte == expected), "{filter}: {picture:?}");
    }
    assert_eq!(names(&folder), ["in.png", "out.png"]);
}

#[test]
fn the_photo_example_reads_the_photographs() {
    let folder = folder("photographs");
    for name in ["flower.jpg", "china.jpg"] {
        for options in [&[] as &[&str], &["--filter", "sobel"]] {
            let output = folder.join(name);
            let run = photo(&Path::new(DATA).join(name), &output, options);
            assert!(run.status.success(), "{name} {options:?}: {}", text(&run.stderr));
            assert_eq!(image::image_dimensions(&output).unwrap(), (638, 425));
        }
    }
}

/// The start of a PNG that claims to have so many columns and rows of red, green and blue.
fn claim_of_a_picture(side: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    };
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    // The first bytes of a stream of zlib: more than this is never there.
    for (name, body) in [(b"IHDR", header), (b"IDAT", vec![0x78, 0x9C])] {
        png.extend((body.len() as u32).to_be_bytes());
        let chunk = [&name[..], &body].concat();
        png.extend(&chunk);
        png.extend(crc(&chunk).to_be_bytes());
    }
    png
}

#[test]
fn the_photo_example_refuses_a_picture_that_memory_does_not_hold() {
    let folder = folder("photo-huge");
    let (input, output) = (folder.join("huge.png"), folder.join("out.png"));
    // Three terabytes, then more bytes than an address can count.
    for side in [1_000_000, 0x7FFF_FFFF] {
        fs::write(&input, claim_of_a_picture(side)).unwrap();
        assert_refused(&photo(&input, &output, &[]), &["huge.png"]);
    }
    assert_eq!(names(&folder), ["huge.png"]);
}

#[test]
fn the_photo_example_says_what_is_wrong_and_leaves_nothing_behind() {
    let folder = folder("photo-errors");
    let (input, output) = (folder.join("in.png"), folder.join("out.png"));
    image::RgbImage::new(5, 5).save(&input).unwrap();

    assert_refused(&photo(&folder.join("missing.jpg"), &output, &[]), &["missing.jpg"]);
    let no_picture = folder.join("text.jpg");
    fs::write(&no_picture, "not a picture").unwrap();
    assert_refused(&photo(&no_picture, &output, &[]), &["text.jpg", "neither a JPEG nor a PNG"]);
    let cut = folder.join("cut.jpg");
    fs::write(&cut, &fs::read(Path::new(DATA).join("china.jpg")).unwrap()[..200]).unwrap();
    assert_refused(&photo(&cut, &output, &[]), &["cut.jpg"]);
    assert_refused(&photo(&input, &output, &["--filter", "magic"]), &["--filter", "sobel", "magic"]);
    let small = folder.join("small.png");
    image::RgbImage::new(9, 2).save(&small).unwrap();
    assert_refused(&photo(&small, &output, &[]), &["small.png", "height", "at least 3", "2"]);
    assert_refused(&photo(&input, &folder.join("out.gif"), &[]), &["out.gif", ".png"]);
    assert_refused(&photo(&input, &folder.join("no/such/out.png"), &[]), &["out.png", "cannot write"]);
    fs::create_dir(folder.join("folder.png")).unwrap();
    assert_refused(&photo(&input, &folder.join("folder.png"), &[]), &["folder.png", "is a directory"]);
    assert_refused(&example("photo").arg(&input).output().unwrap(), &["IN and OUT"]);
    assert_refused(&example("photo").arg("--no-such-option").output().unwrap(), &["--no-such-option"]);
    assert_eq!(names(&folder), ["cut.jpg", "folder.png", "in.png", "small.png", "text.jpg"]);

    // A picture that is there stays as it is.
    fs::write(&output, "precious").unwrap();
    assert_refused(&photo(&small, &output, &[]), &["small.png"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "precious");
}

#[test]
fn the_photo_example_lists_its_filters() {
    let run = example("photo").arg("--help").output().unwrap();
    assert!(run.status.success());
    let help = text(&run.stdout);
    assert!(["derivative", "sobel", "sharpen", "blur", "emboss"].iter().all(|filter| help.contains(filter)), "{help}");
}

fn digits(dir: &str, options: &[&str]) -> Output {
    example("digits").args(["--dir", dir]).args(options).output().unwrap()
}

#[test]
fn the_digits_example_learns_the_same_on_any_number_of_threads() {
    let learnt: Vec<Vec<String>> = ["1", "3"]
        .iter()
        .map(|threads| {
            let run = digits(DATA, &["--epochs", "2", "--images", "50", "--threads", threads]);
            assert!(run.status.success(), "{}", text(&run.stderr));
            let lines: Vec<String> = text(&run.stdout).lines().map(str::to_string).collect();
            lines.into_iter().filter(|line| line.contains("weights") || line.contains("held-out")).collect()
        })
        .collect();
    assert_eq!(learnt[0], learnt[1]);
    // Two fingerprints, and the last line.
    assert_eq!(learnt[0].len(), 3);
    assert!(learnt[0][2].starts_with("accuracy on held-out images: digits ") && learnt[0][2].ends_with(" %"));
}

#[test]
fn the_digits_example_says_what_is_wrong() {
    assert_refused(&digits("no/such/folder", &[]), &["digits.csv.gz"]);
    assert_refused(&digits(DATA, &["--data", "letters"]), &["--data", "mnist", "letters"]);
    assert_refused(&digits(DATA, &["--epochs", "0"]), &["--epochs", "at least 1"]);
    assert_refused(&digits(DATA, &["--threads", "many"]), &["--threads", "many"]);
    assert_refused(&digits(DATA, &["--seed", "x"]), &["--seed"]);
    assert_refused(&digits(DATA, &["--images", "1"]), &["at least two images"]);
    assert_refused(&digits(DATA, &["--surprise"]), &["--surprise"]);

    let folder = folder("digits-errors");
    let dir = folder.to_str().unwrap();
    fs::write(folder.join("digits.csv.gz"), "no gzip").unwrap();
    assert_refused(&digits(dir, &["--data", "digits"]), &["digits.csv.gz"]);
    assert_refused(&digits(dir, &["--data", "mnist"]), &["mnist-10k-images"]);
}

/// A quick trial of an example that learns: its last line.
fn trial(name: &str, options: &[&str]) -> String {
    let run = example(name).args(["--dir", DATA, "--epochs", "1", "--images", "60"]).args(options).output().unwrap();
    assert!(run.status.success(), "{name}: {}", text(&run.stderr));
    text(&run.stdout).lines().last().unwrap().to_string()
}

#[test]
fn the_models_examples_learn_and_say_how_much_on_their_last_line() {
    for name in ["perceptron", "alexnet", "nin", "inception"] {
        let last = trial(name, &["--threads", "2"]);
        assert!(last.starts_with("accuracy on held-out images: ") && last.ends_with(" %"), "{name}: {last}");
        assert_eq!(last, trial(name, &["--threads", "1"]), "{name}");
    }
}

#[test]
fn the_stacked_example_paints_its_filters() {
    let picture = folder("stacked").join("filters.png");
    let last = trial("stacked", &["--picture", picture.to_str().unwrap()]);
    assert!(["one filter ", "stacked ", "wide "].iter().all(|name| last.contains(name)), "{last}");
    // Sixteen filters of 5x5 taps side by side, in the longest of four rows.
    assert_eq!(image::image_dimensions(&picture).unwrap(), (16 * 88 + 8, 4 * 88 + 8));
}

#[test]
fn the_fcn_example_paints_a_page_and_its_map() {
    let picture = folder("fcn").join("map.png");
    let last = trial("fcn", &["--picture", picture.to_str().unwrap()]);
    assert!(["28x28 ", "32x32 ", "40x40 "].iter().all(|size| last.contains(size)), "{last}");
    assert_eq!(image::image_dimensions(&picture).unwrap(), (3 * 336, 2 * 3 * 224));
}

#[test]
fn the_graph_example_shows_derivatives_and_the_graph_itself() {
    let run = example("graph").output().unwrap();
    assert!(run.status.success());
    // L = sigmoid(-2 * 1.5 + 4):  dL/dz = L (1 - L)
    assert!(text(&run.stdout).lines().any(|line| line == "       z   4.0000   0.1966"), "{}", text(&run.stdout));
    let dot = example("graph").arg("--dot").output().unwrap();
    assert!(text(&dot.stdout).starts_with("digraph {"));
    assert_refused(&example("graph").arg("--surprise").output().unwrap(), &["--surprise"]);
}

#[test]
fn the_vit_example_paints_what_it_looks_at() {
    let picture = folder("vit").join("attention.png");
    let last = trial("vit", &["--picture", picture.to_str().unwrap()]);
    assert!(last.starts_with("accuracy on held-out images: ") && last.ends_with(" %"), "{last}");
    // Digits, and the four heads of the last block.
    assert_eq!(image::image_dimensions(&picture).unwrap().1, 8 + 5 * (112 + 8));
}

#[test]
fn the_clip_example_finds_captions_and_paints_how_probable_they_are() {
    let picture = folder("clip").join("captions.png");
    let run = |threads| trial("clip", &["--threads", threads, "--picture", picture.to_str().unwrap()]);
    let last = run("2");
    assert!(last.starts_with("zero-shot accuracy on held-out images, by captions never seen: "), "{last}");
    // A digit, and ten probabilities beside it.
    assert_eq!(image::image_dimensions(&picture).unwrap().0, 8 + (84 + 8) + (840 + 8));
    assert_eq!(run("1"), last);
}

#[test]
fn the_transformer_example_decodes_writes_and_paints() {
    let picture = folder("transformer").join("decoder.png");
    let run = |threads| trial("transformer", &["--threads", threads, "--picture", picture.to_str().unwrap()]);
    let last = run("2");
    assert!(["reversed ", "sorted ", "loss ", " bits)"].iter().all(|part| last.contains(part)), "{last}");
    // Four heads of 13 words looking at 13, for each task.
    assert_eq!(image::image_dimensions(&picture).unwrap(), (8 + 4 * (240 + 8), 8 + 2 * (240 + 8)));
    assert_eq!(run("1"), last);
}

#[test]
fn the_sentiment_example_judges_and_shows_which_words_attend_to_which() {
    let options = ["--dir", DATA, "--epochs", "1", "--images", "200"];
    let run = example("sentiment").args(options).output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let out = text(&run.stdout);
    assert!(out.lines().last().unwrap().starts_with("accuracy on held-out sentences: "), "{out}");
    assert!(out.contains("judged: ") && out.contains(" ──► "), "{out}");
    let one = example("sentiment").args(["--dir", DATA, "--images", "1"]).output().unwrap();
    assert_refused(&one, &["at least two clear sentences"]);
}

#[test]
fn the_models_examples_say_what_is_wrong() {
    let run = |name: &str, options: &[&str]| example(name).args(options).output().unwrap();
    let images = ["perceptron", "alexnet", "nin", "inception", "stacked", "fcn", "vit", "clip"];
    for name in images.into_iter().chain(["transformer", "sentiment"]) {
        assert_refused(&run(name, &["--dir", "no/such/folder"]), &[name, "no/such/folder"]);
        assert_refused(&run(name, &["--epochs", "0"]), &["--epochs", "at least 1"]);
        assert_refused(&run(name, &["--surprise"]), &["--surprise"]);
    }
    assert_refused(&run("perceptron", &["--dir", DATA, "--images", "1"]), &["at least two images"]);
    let gif = ["--dir", DATA, "--epochs", "1", "--images", "20", "--picture", "no/such.gif"];
    assert_refused(&run("stacked", &gif), &["such.gif", ".png"]);
}
