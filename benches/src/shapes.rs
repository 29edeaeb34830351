//! Layers by name, from CSV files with one layer a line.
//!
//! ```text
//! name,n,c,h,w,k,r,s,stride_h,stride_w,pad_h,pad_w,dilation_h,dilation_w,groups
//! alexnet.conv2,1,64,27,27,192,5,5,1,1,2,2,1,1,1
//! ```
//!
//! `n` images of `c` channels and `h` x `w` pixels, `k` filters of `r` x `s` taps. Columns may stand in any
//! order, and further columns are ignored.

use std::path::Path;

use kernels::conv::{Conv2dSpec, Padding, Shape};

use crate::failure::Failure;
use crate::table::{self, Fields};

/// Layers of known networks at batch 1, for studies of inference.
pub const NETWORKS: &str = include_str!("../shapes/conv_networks.csv");

/// Layers of known networks in batches, for studies of training.
pub const TRAINING: &str = include_str!("../shapes/conv_training.csv");

const COLUMNS: [&str; 15] = [
    "name",
    "n",
    "c",
    "h",
    "w",
    "k",
    "r",
    "s",
    "stride_h",
    "stride_w",
    "pad_h",
    "pad_w",
    "dilation_h",
    "dilation_w",
    "groups",
];

/// A convolution by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// For example `vgg16.conv3_2`.
    pub name: String,
    /// What does not change from call to call.
    pub spec: Conv2dSpec,
    /// Batch, height and width.
    pub shape: Shape,
}

/// The layers of a CSV text. `origin` names it in errors.
///
/// # Errors
/// A missing column, a field that is no number, or a layer that fits no image, each with its line.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Layer>, Failure> {
    table::parse(text, origin, &COLUMNS, layer)
}

fn layer(fields: &Fields<'_>) -> Result<Layer, String> {
    let mut numbers = [0usize; COLUMNS.len()];
    for column in 1..COLUMNS.len() {
        let text = fields.text(column)?;
        numbers[column] = text
            .parse()
            .map_err(|_| format!("`{}` is {text:?}, expected a number that is not negative", COLUMNS[column]))?;
    }
    let [_, n, c, h, w, k, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups] = numbers;
    let spec = Conv2dSpec::new(c, k, [r, s])
        .stride([stride_h, stride_w])
        .padding(Padding::symmetric([pad_h, pad_w]))
        .dilation([dilation_h, dilation_w])
        .groups(groups);
    let shape = Shape::new(n, h, w);
    spec.sizes(shape).map_err(|error| error.to_string())?;
    Ok(Layer { name: fields.text(0)?.to_string(), spec, shape })
}

/// The layers of a CSV file.
///
/// # Errors
/// A file that cannot be read, and those of [`parse`].
pub fn read(path: &Path) -> Result<Vec<Layer>, Failure> {
    table::read(path, parse)
}

/// A layer of [`NETWORKS`] or [`TRAINING`].
///
/// # Errors
/// When neither holds the name.
pub fn named(name: &str) -> Result<Layer, Failure> {
    let mut layers = parse(NETWORKS, "conv_networks.csv")?;
    layers.extend(parse(TRAINING, "conv_training.csv")?);
    let found = layers.into_iter().find(|layer| layer.name == name);
    found.ok_or_else(|| Failure::study(format!("no layer is named {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_files_of_this_project_are_read() {
        assert_eq!(parse(NETWORKS, "").unwrap().len(), 57);
        assert_eq!(parse(TRAINING, "").unwrap().len(), 18);
        let layer = named("resnet50.3.3x3s2").unwrap();
        assert_eq!(layer.spec.stride, [2, 2]);
        assert_eq!(layer.spec.output_size([56, 56]), Ok([28, 28]));
        assert!(named("resnet50.4711").is_err());
    }

    #[test]
    fn columns_stand_in_any_order_and_lines_end_in_any_way() {
        let header = "groups,dilation_w,dilation_h,pad_w,pad_h,stride_w,stride_h,s,r,k,w,h,c,n,remark,name";
        let layers = parse(&format!("{header}\r\n1,1,1,2,1,1,1,5,3,8,20,10,4,2,ours,mine\r\n\r\n"), "x.csv").unwrap();
        let spec = Conv2dSpec::new(4, 8, [3, 5]).padding(Padding::symmetric([1, 2]));
        assert_eq!(layers, [Layer { name: "mine".into(), spec, shape: Shape::new(2, 10, 20) }]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let header = COLUMNS.join(",");
        let message = |text: String| parse(&text, "x.csv").unwrap_err().to_string();
        assert_eq!(message(String::new()), "x.csv: the file is empty");
        assert!(message("name,n,c\n".into()).starts_with("x.csv, line 1: no column `h`"));
        let word = message(format!("{header}\na,1,1,8,8,1,3,3,1,1,one,1,1,1,1\n"));
        assert_eq!(word, "x.csv, line 2: `pad_h` is \"one\", expected a number that is not negative");
        assert_eq!(message(format!("{header}\na,1,1\n")), "x.csv, line 2: the field `h` is missing");
        let small = message(format!("{header}\n\na,1,1,2,2,1,3,3,1,1,0,0,1,1,1\n"));
        assert_eq!(small, "x.csv, line 3: height: expected at least 3 with padding, the extent of the kernel, given 2");
        assert!(message(format!("{header}\na,1,1,8,8,1,3,3,0,1,0,0,1,1,1\n")).contains("stride: expected at least 1"));
    }
}
