//! The layers of networks at their published sizes, from `fixtures/tables.txt`: `fixtures/tables.py` says where they
//! are from.

use nn::Summary;

/// Layers that change each number on its own, or leave all in their places: the tables leave them out.
const SHAPES_STAY: [&str; 6] = ["ReLU", "Sigmoid", "GELU", "Dropout", "Sum", "LocalResponseNorm"];
/// Layers that only move numbers.
const NUMBERS_MOVE: [&str; 4] = ["Flatten", "ToSequence", "Concat", "Pick"];

/// Compares a summary over one sample with the table of a network: every row of either.
pub fn check(network: &str, summary: &Summary) {
    let text = include_str!("../fixtures/tables.txt");
    let start = text.find(&format!("= {network}\n")).unwrap_or_else(|| panic!("no table of {network}"));
    let mut expected: Vec<[&str; 4]> = Vec::new();
    for line in text[start..].lines().skip(1).take_while(|line| !line.starts_with('=')) {
        expected.push(line.split(' ').collect::<Vec<_>>().try_into().expect("four columns"));
    }
    let mut last: &[usize] = &[];
    for row in &summary.rows {
        let shape: Vec<String> = row.shape[1..].iter().map(usize::to_string).collect();
        let given = [&row.name, &shape.join("x"), &row.parameters.to_string(), &format!("{}", row.flops)];
        match expected.iter().position(|[name, ..]| *name == row.name) {
            Some(at) => assert_eq!(given, expected.remove(at), "{network}: name, shape, parameters, operations"),
            None => {
                assert_eq!((row.parameters, row.flops), (0, 0.0), "{network}, {}: not in the table", row.name);
                let stays = SHAPES_STAY.contains(&row.kind);
                assert!(stays || NUMBERS_MOVE.contains(&row.kind), "{network}: no row for {} {}", row.kind, row.name);
                assert!(!stays || row.shape == last, "{network}, {}: {:?} of {last:?}", row.name, row.shape);
            }
        }
        last = &row.shape;
    }
    assert!(expected.is_empty(), "{network} has no {expected:?}");
}
