//! The program as scripts meet it: the keys of its JSON lines, its exit codes, and what it says about a bad command
//! line.
//!
//! Everything is tiny, on one thread, and no figure is looked at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of a test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kernelbench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a line of words, the last of which may be a path.
fn run(line: &str, path: Option<&str>) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_kernelbench"));
    Command::new(program).args(line.split_whitespace()).args(path).output().unwrap()
}

/// The JSON lines of a run that goes well.
fn lines(line: &str, path: Option<&str>) -> Vec<String> {
    let line = format!("{line} --threads 1 --format json {}", path.map_or("", |_| "--shapes"));
    let output = run(&line, path);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kernelbench {line} {}: {errors}", path.unwrap_or_default());
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

/// The text of a key's value, up to the next key. Names hold no commas here.
fn value<'a>(object: &'a str, key: &str) -> &'a str {
    let start = object.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no key {key} in {object}"));
    let value = &object[start + key.len() + 3..];
    value.split([',', '}']).next().unwrap_or_default().trim_matches('"')
}

/// Asserts that keys are there, and that those in `numbers` are positive numbers.
fn has(object: &str, texts: &[(&str, &str)], numbers: &[&str], others: &[&str]) {
    assert!(object.starts_with('{') && object.ends_with('}'), "{object}");
    for (key, expected) in texts {
        assert_eq!(value(object, key), *expected, "{key} in {object}");
    }
    for key in numbers {
        let number = value(object, key).parse::<f64>();
        assert!(number.is_ok_and(|number| number > 0.0), "{key} in {object}");
    }
    for key in others {
        value(object, key);
    }
}

/// Asserts that a run fails with a code and says something about it.
fn fails(line: &str, path: Option<&str>, code: i32, expected: &str) {
    let output = run(line, path);
    let errors = String::from_utf8_lossy(&output.stderr);
    let at = format!("kernelbench {line} {}: {errors}", path.unwrap_or_default());
    assert_eq!(output.status.code(), Some(code), "{at}");
    assert!(errors.contains(expected) && output.stdout.is_empty(), "expected {expected:?} from {at}");
}

const CONV: &str = "name,n,c,h,w,k,r,s,stride_h,stride_w,pad_h,pad_w,dilation_h,dilation_w,groups";
const HEADS: &str = "name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal,page_len";

const TIMES: [&str; 5] = ["threads", "seconds_min", "seconds_median", "calls", "gflops"];

#[test]
fn convolutions_are_lines_with_what_ran_how_fast_and_how_well_it_was_checked() {
    let folder = Folder::new("conv");
    let file = folder.file("a.csv", &format!("{CONV}\ntiny,1,4,6,6,4,3,3,1,1,1,1,1,1,1\n"));
    let lines = lines("conv --isa portable --layout nhwc", Some(&file));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let texts = [
        ("name", "tiny"),
        ("pass", "forward"),
        ("layout", "nhwc"),
        ("algorithm", "auto"),
        ("isa", "portable"),
        ("seconds_pack", "null"),
        ("share_of_bandwidth", "null"),
        ("regret", "null"),
    ];
    let others = ["chosen", "workspace_bytes", "seconds_prepare", "worst_error"];
    has(&lines[0], &texts, &TIMES, &others);
    has(&lines[0], &[], &["share_of_peak", "gigabytes_per_second", "checked_elements"], &[]);
}

#[test]
fn every_algorithm_says_where_its_time_goes_and_the_choice_what_it_costs() {
    let folder = Folder::new("stages");
    // One that grouped kernels do, and one that depthwise kernels do from planes.
    let rows = "grouped,1,4,6,9,4,3,3,1,1,1,1,1,1,2\ndepthwise,1,4,9,20,4,3,3,1,1,1,1,1,1,4\n";
    let file = folder.file("a.csv", &format!("{CONV}\n{rows}"));
    let lines = lines("conv --isa portable --algorithm all --stages --pass backward --only grouped", Some(&file));
    let auto = &lines[0];
    for key in ["regret", "regret_data", "regret_weights"] {
        let regret = value(auto, key).parse::<f64>();
        assert!(regret.is_ok_and(|regret| regret >= 0.0), "{key} in {auto}");
    }
    assert!(lines.iter().any(|line| value(line, "algorithm") == "grouped"), "{lines:?}");
    assert!(lines.iter().any(|line| value(line, "algorithm") == "baseline"), "{lines:?}");
    let depthwise = self::lines("conv --isa portable --algorithm depthwise --stages", Some(&file));
    for line in lines.iter().chain(&depthwise) {
        let stages = ["seconds_pack", "seconds_transform", "seconds_product", "seconds_epilogue"];
        let seconds: f64 = stages.iter().map(|stage| value(line, stage).parse::<f64>().unwrap()).sum();
        assert!(seconds > 0.0, "{line}");
    }
}

#[test]
fn attentions_are_lines_with_shares_of_what_the_machine_can_do() {
    let folder = Folder::new("attention");
    let rows = "paged,1,2,1,1,9,8,0,4\nplain,1,2,1,3,9,8,1,\n";
    let file = folder.file("a.csv", &format!("{HEADS}\n{rows}"));
    let lines = lines("attention --isa portable --pass backward --layout bshd", Some(&file));
    assert_eq!(lines.len(), 1, "keys in pages have no gradients: {lines:?}");
    let texts = [("name", "plain"), ("pass", "backward"), ("layout", "bshd"), ("algorithm", "auto")];
    has(&lines[0], &texts, &TIMES, &["chosen"]);
    has(&lines[0], &[], &["share_of_peak", "share_of_bandwidth", "checked_elements"], &[]);
}

#[test]
fn products_are_lines_with_the_names_of_the_file() {
    let folder = Folder::new("gemm");
    let file = folder.file("a.csv", "name,m,n,k\nmine,3,4,5\nother,6,7,8\n");
    let lines = lines("gemm --isa portable --only mine --algorithm auto", Some(&file));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let texts = [("name", "mine"), ("algorithm", "ours"), ("chosen", "null"), ("m", "3"), ("n", "4"), ("k", "5")];
    has(&lines[0], &texts, &TIMES, &["share_of_peak"]);
}

#[test]
fn small_kernels_are_lines_beside_a_copy() {
    let lines = lines("memory --only relu.forward", None);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let numbers = ["threads", "bytes", "seconds_min", "seconds_median", "gigabytes_per_second", "share_of_copy"];
    has(&lines[0], &[("name", "relu.forward")], &numbers, &["isa", "copy_gigabytes_per_second"]);
}

#[test]
fn what_fails_has_exit_code_1_and_names_the_file_and_the_line() {
    let folder = Folder::new("failures");
    for command in ["conv", "attention", "model", "gemm"] {
        fails(&format!("{command} --shapes"), Some("no-such-file.csv"), 1, "no-such-file.csv: ");
        let empty = folder.file("empty.csv", "");
        fails(&format!("{command} --shapes"), Some(&empty), 1, "the file is empty");
    }
    let bad = |name: &str, text: &str| folder.file(name, text);
    let conv = bad("conv.csv", &format!("{CONV}\ntiny,1,4,6,6,4,3,3,1,1,1,one,1,1,1\n"));
    fails("conv --shapes", Some(&conv), 1, "conv.csv, line 2: `pad_w` is \"one\"");
    let heads = bad("heads.csv", &format!("{HEADS}\n\na,1,2,2,8,eight,8,0,\n"));
    fails("attention --shapes", Some(&heads), 1, "heads.csv, line 3: `kv_len` is \"eight\"");
    let products = bad("products.csv", "name,m,n,k\na,1,2,3\nb,1,2,-3\n");
    fails("gemm --shapes", Some(&products), 1, "products.csv, line 3: ");
    let pages = bad("pages.csv", &format!("{HEADS}\npaged,1,2,1,1,9,8,0,4\n"));
    fails("attention --pass backward --shapes", Some(&pages), 1, "paged: left out");
    for command in ["conv", "attention", "model", "gemm", "memory"] {
        fails(&format!("{command} --only no-such-name"), None, 1, "\"no-such-name\"");
    }
}

#[test]
fn a_bad_command_line_has_exit_code_2_and_says_what_is_expected() {
    for (line, expected) in [
        ("convolve", "unknown command `convolve`"),
        ("conv --thread 2", "unknown option `--thread`"),
        ("conv --isa sse9", "--isa: expected avx512, avx2 or portable, given sse9"),
        ("conv --threads none", "--threads: expected a number"),
        ("conv --layers", "--layers means nothing to `kernelbench conv`"),
        ("attention --stages", "--stages means nothing to `kernelbench attention`"),
        ("attention --algorithm all", "--algorithm means nothing"),
        ("model --isa portable", "--isa means nothing"),
        ("gemm --pass backward", "--pass means nothing"),
        ("gemm --random 3", "--random means nothing"),
        ("memory --shapes a.csv", "--shapes means nothing"),
        ("parallel --threads 2", "takes no options"),
        ("--threads 2", "need a command"),
        ("gemm --algorithm winograd2", "expected all, auto, ours, matrixmultiply, gemm"),
    ] {
        fails(line, None, 2, expected);
    }
    let help = run("--help", None);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("kernelbench memory"));
}
