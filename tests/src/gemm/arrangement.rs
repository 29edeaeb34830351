//! How a matrix, or a batch of them, lies in memory.
//!
//! ```text
//! rows,skip1,gap2      a . b . c . . d . e . f            the matrix  a b c
//! columns,up           d a e b f c                                    d e f
//! ```
//!
//! Memory ends with the last element, whatever gaps there are between others: guard pages see all that reads on.

use std::fmt;
use std::str::FromStr;

use crate::case::number;

/// Strides, in words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrangement {
    /// Whether columns are runs of memory, instead of rows.
    pub by_columns: bool,
    /// Elements between two runs that belong to nobody.
    pub gap: usize,
    /// Elements between two of a run that belong to nobody.
    pub skip: usize,
    /// Whether rows, and columns, come from last to first.
    pub reversed: [bool; 2],
    /// Whether all rows, and all columns, are one: a stride of 0.
    pub repeated: [bool; 2],
    /// Whether all matrices of a batch are one.
    pub shared: bool,
}

/// Where each element of `[batch, rows, columns]` is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The shape.
    pub shape: [usize; 3],
    /// Where the first element is.
    pub offset: usize,
    /// From element to element.
    pub strides: [isize; 3],
    /// Elements of memory.
    pub len: usize,
}

impl Arrangement {
    /// Lays a batch of matrices out.
    pub fn place(&self, shape: [usize; 3]) -> Place {
        let (run, along) = if self.by_columns { (2, 1) } else { (1, 2) };
        let same = [self.shared, self.repeated[0], self.repeated[1]];
        let (mut strides, mut reach) = ([0; 3], 0);
        for (axis, between) in [(along, self.skip), (run, self.gap), (0, self.gap)] {
            // A run of one element after the other has no gap before its first.
            let least = if axis == along { 1 } else { reach + 1 };
            strides[axis] = if same[axis] { 0 } else { least + between };
            reach += strides[axis] * shape[axis].saturating_sub(1);
        }
        let mut place = Place { shape, offset: 0, strides: strides.map(|stride| stride as isize), len: reach + 1 };
        for axis in [1, 2] {
            if self.reversed[axis - 1] {
                place.offset += strides[axis] * shape[axis].saturating_sub(1);
                place.strides[axis] = -place.strides[axis];
            }
        }
        if shape.contains(&0) {
            (place.offset, place.len) = (0, 0);
        }
        place
    }
}

impl Place {
    /// Every index of the shape, the last axis first.
    pub fn indices(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [batch, rows, columns] = self.shape;
        (0..batch).flat_map(move |b| (0..rows).flat_map(move |i| (0..columns).map(move |j| [b, i, j])))
    }

    /// Where an element is.
    pub fn at(&self, index: [usize; 3]) -> usize {
        let steps: isize = index.iter().zip(self.strides).map(|(&at, stride)| at as isize * stride).sum();
        (self.offset as isize + steps) as usize
    }
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.by_columns { "columns" } else { "rows" })?;
        for (word, size) in [("gap", self.gap), ("skip", self.skip)] {
            if size > 0 {
                write!(f, ",{word}{size}")?;
            }
        }
        let words = [
            (self.reversed[0], ",up"),
            (self.reversed[1], ",left"),
            (self.repeated[0], ",one-row"),
            (self.repeated[1], ",one-column"),
            (self.shared, ",shared"),
        ];
        words.into_iter().filter(|(is_so, _)| *is_so).try_for_each(|(_, word)| f.write_str(word))
    }
}

impl FromStr for Arrangement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut arrangement = Self::default();
        for word in text.split(',') {
            match word {
                "rows" => arrangement.by_columns = false,
                "columns" => arrangement.by_columns = true,
                "up" => arrangement.reversed[0] = true,
                "left" => arrangement.reversed[1] = true,
                "one-row" => arrangement.repeated[0] = true,
                "one-column" => arrangement.repeated[1] = true,
                "shared" => arrangement.shared = true,
                _ => match (word.strip_prefix("gap"), word.strip_prefix("skip")) {
                    (Some(gap), _) => arrangement.gap = number(gap)?,
                    (_, Some(skip)) => arrangement.skip = number(skip)?,
                    _ => return Err(format!("`{word}` is no way to lie in memory")),
                },
            }
        }
        Ok(arrangement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_of_the_page_are_right() {
        let shown = |text: &str| {
            let place = text.parse::<Arrangement>().unwrap().place([1, 2, 3]);
            let mut memory = vec!['.'; place.len];
            place.indices().zip("abcdef".chars()).for_each(|(index, letter)| memory[place.at(index)] = letter);
            memory.into_iter().collect::<String>()
        };
        assert_eq!(shown("rows"), "abcdef");
        assert_eq!(shown("rows,skip1,gap2"), "a.b.c..d.e.f");
        assert_eq!(shown("columns,up"), "daebfc");
        assert_eq!(shown("rows,left"), "cbafed");
    }
}
