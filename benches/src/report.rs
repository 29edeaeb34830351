//! Rows as a table for people, as JSON lines or as CSV.

use std::io::{self, Write};

use kernels::study::Stage;

use crate::options::Format;
use crate::problem::StageSeconds;

/// One algorithm on one layer.
#[derive(Clone, Debug)]
pub struct Row {
    /// The layer.
    pub name: String,
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// `nchw` or `nhwc`.
    pub layout: &'static str,
    /// The algorithm that was asked for; `auto` for the automatic choice.
    pub algorithm: String,
    /// The algorithm that ran, where the plan says so.
    pub chosen: Option<String>,
    /// The instruction set.
    pub isa: String,
    /// Threads that work at once.
    pub threads: usize,
    /// The fastest call.
    pub seconds_min: f64,
    /// The median call.
    pub seconds_median: f64,
    /// Calls that were timed.
    pub calls: usize,
    /// The seconds of each stage, summed over the threads, if they were asked for.
    pub stages: Option<StageSeconds>,
    /// Making the plan.
    pub seconds_prepare: f64,
    /// Operations of a direct convolution a nanosecond, in the fastest call.
    pub gflops: f64,
    /// The same as a share of the measured peak of these threads on this instruction set.
    pub share_of_peak: f64,
    /// Bytes of all arguments a nanosecond, in the fastest call.
    pub gigabytes_per_second: f64,
    /// The same as a share of the measured speed of reads from memory, where that was measured.
    pub share_of_bandwidth: Option<f64>,
    /// What the choice of the algorithm costs, where all were timed.
    pub regret: Option<Regret>,
    /// Scratch memory.
    pub workspace_bytes: usize,
    /// Elements that were compared with the definition.
    pub checked_elements: usize,
    /// The largest error, as a share of what rounding allows.
    pub worst_error: f64,
}

/// The value of a column.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A name.
    Text(&'a str),
    /// Nothing that could be said.
    Missing,
    /// A number of things.
    Count(usize),
    /// A measurement.
    Number(f64),
}

impl From<Option<f64>> for Value<'_> {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Missing, Self::Number)
    }
}

/// Writes columns and their values as a JSON object, or as a line of CSV, the first one below a header.
///
/// # Errors
/// Those of the output.
pub fn write_fields(
    out: &mut (dyn Write + Send),
    format: Format,
    first: bool,
    fields: &[(&'static str, Value<'_>)],
) -> io::Result<()> {
    if format == Format::Json {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{}", json(value))).collect();
        return writeln!(out, "{{{}}}", fields.join(","));
    }
    if first {
        let names: Vec<&str> = fields.iter().map(|field| field.0).collect();
        writeln!(out, "{}", names.join(","))?;
    }
    let fields: Vec<String> = fields.iter().map(|(_, value)| csv(value)).collect();
    writeln!(out, "{}", fields.join(","))
}

/// How much longer the chosen algorithms take than the best that the accuracy allows: 0.1 is a tenth more time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regret {
    /// Of the whole call.
    pub all: f64,
    /// Of the gradient of the input and of that of the weights, which are chosen apart.
    pub gradients: Option<[f64; 2]>,
}

impl Row {
    fn fields(&self) -> [(&'static str, Value<'_>); 25] {
        let gradient = |which: usize| self.regret.and_then(|regret| regret.gradients).map(|gradients| gradients[which]);
        let stage = |stage: Stage| self.stages.map_or(Value::Missing, |stages| Value::Number(stages[stage as usize]));
        [
            ("name", Value::Text(&self.name)),
            ("pass", Value::Text(self.pass)),
            ("layout", Value::Text(self.layout)),
            ("algorithm", Value::Text(&self.algorithm)),
            ("chosen", self.chosen.as_deref().map_or(Value::Missing, Value::Text)),
            ("isa", Value::Text(&self.isa)),
            ("threads", Value::Count(self.threads)),
            ("seconds_min", Value::Number(self.seconds_min)),
            ("seconds_median", Value::Number(self.seconds_median)),
            ("calls", Value::Count(self.calls)),
            ("seconds_pack", stage(Stage::Pack)),
            ("seconds_transform", stage(Stage::Transform)),
            ("seconds_product", stage(Stage::Product)),
            ("seconds_epilogue", stage(Stage::Epilogue)),
            ("seconds_prepare", Value::Number(self.seconds_prepare)),
            ("gflops", Value::Number(self.gflops)),
            ("share_of_peak", Value::Number(self.share_of_peak)),
            ("gigabytes_per_second", Value::Number(self.gigabytes_per_second)),
            ("share_of_bandwidth", self.share_of_bandwidth.into()),
            ("workspace_bytes", Value::Count(self.workspace_bytes)),
            ("checked_elements", Value::Count(self.checked_elements)),
            ("worst_error", Value::Number(self.worst_error)),
            ("regret", self.regret.map(|regret| regret.all).into()),
            ("regret_data", gradient(0).into()),
            ("regret_weights", gradient(1).into()),
        ]
    }
}

/// Writes rows in one of the formats.
pub struct Report<'a> {
    out: &'a mut (dyn Write + Send),
    format: Format,
    rows: usize,
}

impl<'a> Report<'a> {
    /// Nothing is written before the first row.
    pub fn new(out: &'a mut (dyn Write + Send), format: Format) -> Self {
        Self { out, format, rows: 0 }
    }

    /// Writes a row, and before the first one the header.
    ///
    /// # Errors
    /// Those of the output.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        if self.format != Format::Text {
            write_fields(self.out, self.format, first, &row.fields())?;
            return self.out.flush();
        }
        if first {
            write!(
                self.out,
                "{:22} {:20} {:>11} {:>11} {:>9} {:>8} {:>7}",
                "layer", "algorithm", "best", "median", "GFLOP/s", "of peak", "GB/s"
            )?;
            if row.share_of_bandwidth.is_some() {
                write!(self.out, " {:>8}", "of reads")?;
            }
            writeln!(self.out, " {:>10}", "workspace")?;
        }
        let algorithm = match &row.chosen {
            Some(chosen) if *chosen != row.algorithm => format!("{}: {chosen}", row.algorithm),
            _ => row.algorithm.clone(),
        };
        write!(
            self.out,
            "{:22} {algorithm:20} {:>11} {:>11} {:>9.1} {:>7.0}% {:>7.1}",
            row.name,
            duration(row.seconds_min),
            duration(row.seconds_median),
            row.gflops,
            100.0 * row.share_of_peak,
            row.gigabytes_per_second,
        )?;
        if let Some(share) = row.share_of_bandwidth {
            write!(self.out, " {:>7.0}%", 100.0 * share)?;
        }
        writeln!(self.out, " {:>10}", bytes(row.workspace_bytes))?;
        if let Some(stages) = row.stages {
            let parts = Stage::ALL.map(|stage| format!("{stage} {}", duration(stages[stage as usize])));
            writeln!(self.out, "{:22} {}", "", parts.join(", "))?;
        }
        self.out.flush()
    }
}

impl Report<'_> {
    /// A remark below the rows, for people.
    ///
    /// # Errors
    /// Those of the output.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }
}

fn json(value: &Value<'_>) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Missing => "null".into(),
        Value::Count(count) => count.to_string(),
        // JSON has no infinities.
        Value::Number(number) if number.is_finite() => number.to_string(),
        Value::Number(_) => "null".into(),
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn csv(value: &Value<'_>) -> String {
    match value {
        Value::Text(text) if text.contains([',', '"']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::Text(text) => (*text).into(),
        Value::Missing => String::new(),
        Value::Count(count) => count.to_string(),
        Value::Number(number) => number.to_string(),
    }
}

/// A duration with a unit that suits it.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.2} us", 1e6 * s),
        s if s < 1.0 => format!("{:.3} ms", 1e3 * s),
        s => format!("{s:.3} s"),
    }
}

/// A number of bytes with a unit that suits it.
pub fn bytes(count: usize) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            name: "a \"layer\", quoted".into(),
            pass: "forward",
            layout: "nchw",
            algorithm: "auto".into(),
            chosen: Some("direct".into()),
            isa: "avx2".into(),
            threads: 2,
            seconds_min: 0.001,
            seconds_median: 0.00125,
            calls: 200,
            stages: Some([0.0, 1e-4, 2e-3, 0.0]),
            seconds_prepare: 0.01,
            gflops: 100.0,
            share_of_peak: 0.5,
            gigabytes_per_second: 1.5,
            share_of_bandwidth: Some(0.125),
            regret: Some(Regret { all: 0.25, gradients: None }),
            workspace_bytes: 4096,
            checked_elements: 10,
            worst_error: 0.25,
        }
    }

    fn written(format: Format) -> String {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, format);
        report.row(&row()).unwrap();
        report.row(&Row { chosen: None, ..row() }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_with_names_quoted() {
        let text = written(Format::Json);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with(r#"{"name":"a \"layer\", quoted","pass":"forward""#), "{}", lines[0]);
        assert!(lines[0].contains(r#""algorithm":"auto","chosen":"direct""#));
        assert!(lines[0].contains(r#""seconds_min":0.001,"seconds_median":0.00125"#));
        assert!(lines[0].ends_with(r#""worst_error":0.25,"regret":0.25,"regret_data":null,"regret_weights":null}"#));
        assert!(lines[1].contains(r#""chosen":null"#));
    }

    #[test]
    fn csv_has_a_header_and_as_many_fields_in_each_row() {
        let text = written(Format::Csv);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("name,pass,layout,algorithm,chosen,isa,threads,seconds_min"));
        assert!(lines[1].starts_with(r#""a ""layer"", quoted",forward,nchw,auto,direct,avx2,2,0.001"#));
        assert_eq!(lines[1].split(',').count(), lines[0].split(',').count() + 1);
    }

    #[test]
    fn the_table_says_what_was_chosen_and_uses_readable_units() {
        let text = written(Format::Text);
        assert!(
            text.contains("product 2.000 ms")
                && text.contains("auto: direct")
                && text.contains("1.000 ms")
                && text.contains("50%")
                && text.contains("of reads")
                && text.contains("12%"),
            "{text}"
        );
        assert_eq!(duration(12.5e-6), "12.50 us");
        assert_eq!(duration(2.0), "2.000 s");
        assert_eq!(bytes(3 << 20), "3072 KiB");
    }
}
