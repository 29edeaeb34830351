//! The CSV files that list what is timed: a header that names the columns, a row a line.

use std::path::Path;

use crate::failure::Failure;

/// A row of a table, whose columns are known by number.
pub struct Fields<'a> {
    columns: &'a [&'static str],
    positions: &'a [usize],
    header: &'a [&'a str],
    fields: Vec<&'a str>,
}

impl Fields<'_> {
    /// The text of a column.
    ///
    /// # Errors
    /// The row ends before.
    pub fn text(&self, column: usize) -> Result<&str, String> {
        let text = self.fields.get(self.positions[column]).copied();
        text.ok_or_else(|| format!("the field `{}` is missing", self.columns[column]))
    }

    /// The text of a column that need not be there.
    pub fn optional(&self, column: &str) -> Option<&str> {
        let position = self.header.iter().position(|&name| name == column)?;
        self.fields.get(position).copied().filter(|text| !text.is_empty())
    }
}

/// What `row` makes of each row of a text with these columns, in any order. `origin` names the text in errors.
///
/// # Errors
/// An empty text, a missing column, or what `row` says, each with its line.
pub fn parse<T>(
    text: &str,
    origin: &str,
    columns: &[&'static str],
    row: impl Fn(&Fields<'_>) -> Result<T, String>,
) -> Result<Vec<T>, Failure> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().ok_or_else(|| Failure::study(format!("{origin}: the file is empty")))?;
    let header: Vec<&str> = header.split(',').map(str::trim).collect();
    let position = |column: &&str| {
        header.iter().position(|name| name == column).ok_or_else(|| {
            Failure::study(format!("{origin}, line 1: no column `{column}`; expected {}", columns.join(",")))
        })
    };
    let positions = columns.iter().map(position).collect::<Result<Vec<_>, _>>()?;
    lines
        .map(|(index, line)| {
            let fields = line.split(',').map(str::trim).collect();
            row(&Fields { columns, positions: &positions, header: &header, fields })
                .map_err(|why| Failure::study(format!("{origin}, line {}: {why}", index + 1)))
        })
        .collect()
}

/// What `parse(text, origin)` makes of a file.
///
/// # Errors
/// A file that cannot be read, and those of `parse`.
pub fn read<T>(path: &Path, parse: impl FnOnce(&str, &str) -> Result<T, Failure>) -> Result<T, Failure> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::study(format!("{origin}: {error}")))?;
    parse(&text, &origin)
}
