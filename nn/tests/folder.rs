//! Pictures in folders, with the feature `images`.

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use nn::Random;
use nn::data::read_folder;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data");

/// An empty folder with two classes in it.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    for class in ["cat", "dog"] {
        fs::create_dir_all(path.join(class)).unwrap();
    }
    path
}

#[test]
fn classes_and_files_are_read_in_order() {
    let path = folder("animals");
    let pixel = |red| RgbImage::from_fn(2, 1, |x, _| Rgb([red, 51, 255 * x as u8]));
    pixel(204).save(path.join("dog/b.png")).unwrap();
    pixel(102).save(path.join("dog/a.png")).unwrap();
    pixel(0).save(path.join("cat/c.png")).unwrap();
    fs::write(path.join("cat/.hidden"), "no picture").unwrap();
    fs::write(path.join("README"), "of no class").unwrap();
    let (images, classes) = read_folder(&path, [1, 2]).unwrap();
    assert_eq!(classes, ["cat", "dog"]);
    assert_eq!((images.channels(), images.size(), images.labels()), (3, [1, 2], &[0, 1, 1][..]));
    assert_eq!(images.image(1), [0.4, 0.4, 0.2, 0.2, 0.0, 1.0]);
    assert_eq!(images.image(2)[0], 0.8);
}

#[test]
fn photographs_are_scaled() {
    let path = folder("photographs");
    fs::copy(Path::new(DATA).join("flower.jpg"), path.join("cat/flower.jpg")).unwrap();
    fs::copy(Path::new(DATA).join("china.jpg"), path.join("dog/china.jpg")).unwrap();
    let (images, _) = read_folder(&path, [32, 48]).unwrap();
    assert_eq!((images.len(), images.image(0).len()), (2, 3 * 32 * 48));
    assert!(images.pixels().iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    assert!(read_folder(&path, [0, 48]).is_err() && read_folder(&path, [usize::MAX, 48]).is_err());
}

#[test]
fn files_that_are_no_pictures_are_named() {
    let path = folder("no-pictures");
    fs::write(path.join("dog/notes.txt"), "no picture").unwrap();
    let error = read_folder(&path, [1, 2]).unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    assert!(read_folder(&path.join("none"), [1, 2]).unwrap_err().to_string().contains("none"));
}

#[test]
fn pictures_that_are_cut_off_or_garbled_never_panic() {
    let path = folder("garbled-pictures");
    let (png, jpeg) = (path.join("cat/small.png"), path.join("dog/small.jpg"));
    let picture = RgbImage::from_fn(9, 7, |x, y| Rgb([20 * x as u8, 30 * y as u8, 77]));
    for file in [png, jpeg] {
        picture.save(&file).unwrap();
        let whole = fs::read(&file).unwrap();
        let mut random = Random::new(8);
        for at in 0..400 {
            let mut bytes = whole.clone();
            if at < whole.len().min(100) {
                bytes.truncate(at * whole.len() / whole.len().min(100));
            } else {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bytes.len());
                    bytes[at] = random.bits() as u8;
                }
            }
            fs::write(&file, &bytes).unwrap();
            let _ = read_folder(&path, [4, 4]);
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(read_folder(&path, [7, 9]).unwrap().0.labels(), [0, 1]);
}
