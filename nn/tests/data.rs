//! Readers of data, on files that are right and on files that are not.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use nn::Random;
use nn::data::{Images, Texts, Vocabulary, read_csv, read_idx, read_tsv, words};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// A gzip file in the tests' folder.
fn packed(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    path
}

fn refusal<T: std::fmt::Debug>(result: nn::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_projects_data_is_read_whole() -> nn::Result<()> {
    let digits = read_csv(&Path::new(DATA).join("digits.csv.gz"), [8, 8], 16.0)?;
    assert_eq!((digits.len(), digits.size()), (1797, [8, 8]));
    assert_eq!(digits.image(0)[..5], [0.0, 0.0, 5.0 / 16.0, 13.0 / 16.0, 9.0 / 16.0]);
    let (kept, held) = digits.hold_out(5)?;
    assert_eq!((kept.len(), held.len()), (1437, 360));
    assert_eq!((held.image(1), kept.image(0)), (digits.image(5), digits.image(1)));

    let folder = Path::new(DATA);
    let mnist =
        read_idx(&folder.join("mnist-10k-images.idx3-ubyte.gz"), &folder.join("mnist-10k-labels.idx1-ubyte.gz"))?;
    assert_eq!((mnist.len(), mnist.size()), (10_000, [28, 28]));
    assert_eq!(mnist.labels()[..5], [1, 7, 3, 6, 0]);
    assert!(digits.labels().iter().chain(mnist.labels()).all(|&label| label < 10));
    Ok(())
}

#[test]
fn idx_files_that_are_wrong_are_refused() {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2][..], &[0, 51, 102, 255]].concat();
    let labels = [0, 0, 8, 1, 0, 0, 0, 2, 7, 9];
    let right = (packed("right-images.gz", &images), packed("right-labels.gz", &labels));
    let read = read_idx(&right.0, &right.1).unwrap();
    assert_eq!(read, Images::new(vec![0.0, 0.2, 0.4, 1.0], [1, 2], vec![7, 9]).unwrap());

    let cut = packed("cut.gz", &images[..images.len() - 1]);
    assert!(refusal(read_idx(&cut, &right.1)).contains("says 4 bytes from byte 16 on, found 3"));
    let header = packed("header.gz", &images[..10]);
    assert!(refusal(read_idx(&header, &right.1)).contains("expected a header of 16 bytes, found 10"));
    assert!(refusal(read_idx(&right.1, &right.1)).contains("in 3 dimensions: expected [0, 0, 8, 3] at byte 0"));
    let huge = packed("huge.gz", &[0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]);
    assert!(refusal(read_idx(&huge, &right.1)).contains("found 0"));
    let few = packed("few.gz", &[0, 0, 8, 1, 0, 0, 0, 1, 7]);
    assert!(refusal(read_idx(&right.0, &few)).contains("expected 2 labels"));
    assert!(refusal(read_idx(Path::new("no/such/file.gz"), &right.1)).contains("no/such/file.gz"));
}

#[test]
fn csv_files_that_are_wrong_are_refused_with_the_line() {
    let read = |name: &str, text: &[u8]| read_csv(&packed(name, text), [1, 2], 16.0);
    let right = read("right.csv.gz", b"0, 16,3\n8,4,1\r\n").unwrap();
    assert_eq!(right, Images::new(vec![0.0, 1.0, 0.5, 0.25], [1, 2], vec![3, 1]).unwrap());
    assert!(refusal(read("short.csv.gz", b"0,16,3\n1,2\n")).contains("line 2: expected 2 pixels and a label, found 2"));
    assert!(refusal(read("bright.csv.gz", b"0,17,3\n")).contains("line 1: expected a number from 0 to 16"));
    assert!(refusal(read("nan.csv.gz", b"0,NaN,3\n")).contains("line 1"));
    assert!(refusal(read("label.csv.gz", b"0,1,x\n")).contains("whole number as label, found \"x\""));
    assert!(refusal(read("binary.csv.gz", &[0xff, 0xfe])).contains("found another byte at 0"));
    assert_eq!(read("empty.csv.gz", b"").unwrap().len(), 0);
}

#[test]
fn no_images_can_be_held_out_and_counted() {
    let none = Images::new(Vec::new(), [2, 2], Vec::new()).unwrap();
    assert!(none.is_empty() && none.image(0).is_empty() && none.first(5).is_empty());
    assert!(none.hold_out(0).is_err());
    let (kept, held) = none.hold_out(5).unwrap();
    assert!(kept.is_empty() && held.is_empty());
    assert!(Images::new(vec![0.0; 3], [2, 2], vec![1]).is_err());
    assert!(Images::new(Vec::new(), [0, 2], vec![1]).is_err());
}

#[test]
fn files_need_not_be_packed() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain.csv");
    fs::write(&path, "0,16,3\n").unwrap();
    assert_eq!(read_csv(&path, [1, 2], 16.0).unwrap().labels(), [3]);
}

#[test]
fn images_may_have_several_planes() {
    let pixels: Vec<f32> = (0..24).map(|pixel| pixel as f32).collect();
    let images = Images::with_channels(pixels.clone(), 3, [2, 2], vec![4, 5]).unwrap();
    assert_eq!((images.channels(), images.image(1)), (3, &pixels[12..]));
    let (kept, held) = images.hold_out(2).unwrap();
    assert_eq!((kept.image(0), held.image(0)), (images.image(1), images.image(0)));
    let warp = nn::data::Warp { size: [2, 2], turn: 0.0, scale: 0.0, shear: 0.0, shift: 0.0, normalise: (0.0, 1.0) };
    let (batch, _) = warp.batch(&images, &[1], None).unwrap();
    assert_eq!((batch.shape(), batch.as_slice().unwrap()), (&[1, 3, 2, 2][..], &pixels[12..]));
    assert!(Images::with_channels(pixels, usize::MAX, [2, 2], vec![4, 5]).is_err());
}

#[test]
fn the_projects_texts_are_read_whole_and_split_by_a_seed() -> nn::Result<()> {
    let texts = read_tsv(&Path::new(DATA).join("movie-snippets.tsv.gz"))?;
    assert_eq!((texts.len(), texts.ratings()[2]), (10_605, -0.6));
    assert_eq!(texts.texts()[2], "Effective but too tepid biopic");
    assert!(texts.ratings().iter().all(|rating| (-4.0..=4.0).contains(rating)));

    let (kept, held) = texts.hold_out(5)?;
    assert_eq!((kept.len(), held.len()), (8484, 2121));
    assert_eq!(held.texts()[1], texts.texts()[5]);
    let shuffled = |seed| texts.hold_out_shuffled(5, &mut Random::new(seed));
    let (kept, held) = shuffled(1)?;
    assert_eq!((kept.len(), held.len()), (8484, 2121));
    assert!(shuffled(1)? == (kept.clone(), held.clone()) && shuffled(2)?.1 != held);
    let sorted = |all: &[&Texts]| {
        let mut all: Vec<String> = all.iter().flat_map(|texts| texts.texts()).cloned().collect();
        all.sort_unstable();
        all
    };
    assert_eq!(sorted(&[&kept, &held]), sorted(&[&texts]));

    let vocabulary = Vocabulary::new(kept.texts(), 2, 5000);
    assert_eq!((vocabulary.size(), vocabulary.word(2)), (5002, Some("the")));
    let numbers = vocabulary.encode(&held.texts()[0], 40);
    assert_eq!(numbers.len(), 40);
    // Most of what was not seen before is made of words that were.
    let all: Vec<usize> = held.texts().iter().flat_map(|text| vocabulary.encode(text, words(text).count())).collect();
    let unknown = all.iter().filter(|&&number| number == Vocabulary::UNKNOWN).count();
    assert!(unknown * 6 < all.len(), "{unknown} of {}", all.len());
    let saved = Vocabulary::with_words(vocabulary.words().to_vec());
    assert_eq!(saved, vocabulary);
    Ok(())
}

#[test]
fn words_are_runs_of_letters_with_apostrophes_inside() {
    let split = |text| words(text).collect::<Vec<_>>();
    assert_eq!(split("Don't 'stop', rock''n'roll!?"), ["don't", "stop", "rock", "n'roll", "!", "?"]);
    assert_eq!(split("Jirí Hubac's 3-D ÉTUDE"), ["jirí", "hubac's", "3", "d", "étude"]);
    assert_eq!(split("' -- ... ''"), Vec::<String>::new());
}

#[test]
fn tsv_files_that_are_wrong_are_refused_with_the_line() {
    let read = |name: &str, text: &str| read_tsv(&packed(name, text.as_bytes()));
    let right = read("right.tsv.gz", "rating\ttext\r\n-1.5\tSo so\r\n").unwrap();
    assert_eq!((right.texts(), right.ratings()), (&["So so".to_string()][..], &[-1.5][..]));
    let start = "rating\ttext\n1\tFine\n";
    let wrong = |name: &str, line: &str| refusal(read(name, &format!("{start}{line}\n")));
    assert!(wrong("tab.tsv.gz", "no tab").contains("line 3: expected a rating, a tab and a text, found \"no tab\""));
    assert!(wrong("tabs.tsv.gz", "1\tone\ttwo").contains("line 3"));
    assert!(wrong("nan.tsv.gz", "NaN\tx").contains("line 3: expected a number as rating, found \"NaN\""));
    assert!(wrong("long.tsv.gz", &"x".repeat(1_000_000)).len() < 500);
    assert!(refusal(read("empty.tsv.gz", "")).contains("line 1: expected the header \"rating\\ttext\""));
    assert!(refusal(read_tsv(Path::new("no/such/file.gz"))).contains("no/such/file.gz"));
}

#[test]
fn files_that_are_cut_off_or_garbled_never_panic() {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2][..], &[0, 51, 102, 255]].concat();
    let labels = packed("whole-labels.gz", &[0, 0, 8, 1, 0, 0, 0, 2, 7, 9]);
    let originals = [images.as_slice(), b"0,16,3\n8,4,1\n", "rating\ttext\n1.5\tn\u{fc}ll\n-2\ttwo words\n".as_bytes()];
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("garbled");
    let read_all = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let _ = read_csv(&path, [1, 2], 16.0);
        let _ = read_tsv(&path);
        read_idx(&path, &labels)
    };
    for original in originals {
        let gz = fs::read(packed("to-garble.gz", original)).unwrap();
        for bytes in [original, &gz] {
            for len in 0..bytes.len() {
                assert!(read_all(&bytes[..len]).is_err(), "cut after {len}");
            }
            let mut random = Random::new(7);
            for _ in 0..200 {
                let mut changed = bytes.to_vec();
                for _ in 0..1 + random.below(3) {
                    let at = random.below(changed.len());
                    changed[at] = random.bits() as u8;
                }
                let _ = read_all(&changed);
            }
        }
    }
}
