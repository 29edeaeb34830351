//! The node cases of the ONNX project, as `tests/fixtures/onnx_cases.py` wrote them.

use std::collections::BTreeMap;

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Numbers.
    Floats(Vec<f32>),
    /// Lengths and the like.
    Integers(Vec<i64>),
    /// Truth values.
    Booleans(Vec<bool>),
}

/// A tensor, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Data,
}

impl Tensor {
    /// The elements of a tensor of numbers; none of another.
    pub fn floats(&self) -> &[f32] {
        match &self.data {
            Data::Floats(data) => data,
            _ => &[],
        }
    }
}

/// One call of one operator.
#[derive(Clone, Debug, Default)]
pub struct NodeCase {
    /// As ONNX names it.
    pub name: String,
    /// As ONNX names it.
    pub operator: String,
    /// Values as they are written.
    pub attributes: BTreeMap<String, String>,
    /// Inputs and outputs by name, in lower case.
    pub tensors: BTreeMap<String, Tensor>,
}

impl NodeCase {
    /// The numbers of an attribute, or none.
    ///
    /// # Panics
    /// When they are no such numbers.
    pub fn numbers<T: std::str::FromStr>(&self, attribute: &str) -> Vec<T> {
        let text = self.attributes.get(attribute).map_or("", String::as_str);
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{}: {attribute} is {text:?}", self.name));
        text.split_whitespace().map(number).collect()
    }

    /// The only number of an attribute.
    ///
    /// # Panics
    /// As [`NodeCase::numbers`].
    pub fn number<T: std::str::FromStr>(&self, attribute: &str) -> Option<T> {
        self.numbers(attribute).into_iter().next()
    }

    /// A tensor that must be there.
    ///
    /// # Panics
    /// When it is not.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }
}

/// A whole fixture.
#[derive(Clone, Debug, Default)]
pub struct Fixture {
    /// What can be run.
    pub cases: Vec<NodeCase>,
    /// Names of the others, and why they cannot.
    pub left_out: Vec<(String, String)>,
}

/// Reads the fixture.
///
/// # Panics
/// When it is not one.
pub fn read(mut bytes: &[u8]) -> Fixture {
    let mut fixture = Fixture::default();
    while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
        let line = std::str::from_utf8(&bytes[..end]).expect("lines of text");
        bytes = &bytes[end + 1..];
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        match word() {
            "#" => {}
            "left-out" => {
                let name = word().to_string();
                fixture.left_out.push((name, words.collect::<Vec<_>>().join(" ")));
            }
            "case" => {
                let (name, operator) = (word().to_string(), word().to_string());
                fixture.cases.push(NodeCase { name, operator, ..NodeCase::default() });
            }
            "attribute" => {
                let name = word().to_string();
                let value = words.collect::<Vec<_>>().join(" ");
                fixture.cases.last_mut().expect("a case first").attributes.insert(name, value);
            }
            "tensor" => {
                let (name, kind) = (word().to_string(), word().to_string());
                let shape: Vec<usize> = words.map(|size| size.parse().expect("a dimension")).collect();
                let count: usize = shape.iter().product();
                let width = match &kind[..] {
                    "f32" => 4,
                    "i64" => 8,
                    _ => 1,
                };
                let (data, rest) = bytes.split_at(count * width);
                bytes = &rest[1..];
                let data = match &kind[..] {
                    "f32" => Data::Floats(
                        data.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four"))).collect(),
                    ),
                    "i64" => Data::Integers(
                        data.chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().expect("eight"))).collect(),
                    ),
                    "bool" => Data::Booleans(data.iter().map(|&byte| byte != 0).collect()),
                    other => panic!("elements of {other}"),
                };
                fixture.cases.last_mut().expect("a case first").tensors.insert(name, Tensor { shape, data });
            }
            other => panic!("a line that starts with {other:?}"),
        }
    }
    fixture
}
