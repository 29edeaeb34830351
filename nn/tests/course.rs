//! The course quotes the code as it is, and its commands run examples that there are.

use std::fs;
use std::path::Path;

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
fn the_commands_of_the_course_run_examples_that_there_are() {
    let course = course();
    let names: Vec<&str> =
        course.split("--example ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(names.len() >= 13, "{names:?}");
    for name in names {
        assert!(Path::new(ROOT).join(format!("nn/examples/{name}.rs")).exists(), "{name}");
    }
}
