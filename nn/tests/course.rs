//! The course quotes the code as it is, and its commands run examples that there are.

use std::fs;
use std::path::Path;

use kernels::conv::Conv2dSpec;
use nn::{Conv2d, Network, Random, Result};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn course() -> String {
    fs::read_to_string(Path::new(ROOT).join("docs/course.md")).unwrap()
}

#[test]
fn the_course_quotes_lines_that_stand_in_the_files_it_names() {
    let (mut file, mut is_code, mut quoted) = (String::new(), false, 0);
    for line in course().lines() {
        // The last link before a block says where it is from.
        if let Some((_, path)) = line.rsplit_once("](../")
            && let Some((path, _)) = path.split_once(')')
        {
            file = fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        if line.starts_with("```") {
            is_code = line == "```rust";
        } else if is_code && !line.trim().is_empty() && line.trim() != "// ..." {
            assert!(file.lines().any(|there| there.trim() == line.trim()), "not in the file named before: {line}");
            quoted += 1;
        }
    }
    assert!(quoted > 40, "{quoted} lines");
}

#[test]
fn the_pictures_of_the_course_are_there_and_small() {
    let course = course();
    let pictures: Vec<&str> = course.split("](pictures/").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(pictures.len() >= 3, "{pictures:?}");
    for picture in pictures {
        let bytes = fs::metadata(Path::new(ROOT).join("docs/pictures").join(picture)).map(|file| file.len());
        assert!(bytes.as_ref().is_ok_and(|&bytes| bytes < 1 << 16), "{picture}: {bytes:?}");
    }
}

#[test]
fn the_commands_of_the_course_run_examples_that_there_are() {
    let course = course();
    let names: Vec<&str> =
        course.split("--example ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(names.len() >= 13, "{names:?}");
    for name in names {
        assert!(Path::new(ROOT).join(format!("nn/examples/{name}.rs")).exists(), "{name}");
    }
}

#[test]
fn four_large_filters_make_28_by_28_pixels_14_by_14() -> Result<()> {
    let filters = Conv2d::new(Conv2dSpec::new(3, 4, [15, 15]), &mut Random::new(1))?;
    let summary = Network::new(filters).summary(&[1, 3, 28, 28])?;
    assert_eq!(summary.rows[0].shape, [1, 4, 14, 14]);
    assert_eq!(summary.parameters(), 15 * 15 * 3 * 4 + 4);
    Ok(())
}
