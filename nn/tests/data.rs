//! Readers of data, on files that are right and on files that are not.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use nn::data::{Images, read_csv, read_idx};

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
    assert!(refusal(read_idx(&cut, &right.1)).contains("says 4 bytes, found 3"));
    let header = packed("header.gz", &images[..10]);
    assert!(refusal(read_idx(&header, &right.1)).contains("is not an IDX file"));
    assert!(refusal(read_idx(&right.1, &right.1)).contains("in 3 dimensions"));
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
    assert!(refusal(read("binary.csv.gz", &[0xff, 0xfe])).contains("is not text"));
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
