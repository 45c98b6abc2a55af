//! The table of results: each side's figures for each line, their ratios, and whether
//! targets are met. In Markdown, as in `ops/bench/RESULTS.md`.

use std::fmt::{self, Write};

use super::Side;

/// Unit of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations or bytes per second.
    PerSecond,
    /// A duration in seconds.
    Seconds,
    /// Memory or disk space in bytes.
    Bytes,
    /// A multiple of a reference value other than the other side's.
    Times,
    /// A plain number.
    Count,
}

/// One measured value of a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Name of the figure; the same on both sides.
    pub name: &'static str,
    /// The value, in `unit`.
    pub value: f64,
    /// Unit of the value.
    pub unit: Unit,
}

/// Name of the figure that holds a rate.
pub const RATE: &str = "/s";

/// A target for a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The rate must be at least this multiple of the other side's.
    Rate(f64),
    /// The named figure must be at most this value, in this unit.
    AtMost(&'static str, f64, Unit),
}

/// One side's result for a line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What was measured: the first column of the table.
    pub what: String,
    /// The measured figures.
    pub figures: Vec<Figure>,
    /// The targets for Ephor.
    pub targets: Vec<Target>,
}

/// The table of all lines, with both sides.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    targets: Vec<Target>,
    ephor: Option<Result<Vec<Figure>, String>>,
    etcd: Option<Result<Vec<Figure>, String>>,
}

impl Figure {
    /// Creates a figure.
    pub fn new(name: &'static str, value: f64, unit: Unit) -> Self {
        Self { name, value, unit }
    }

    /// Creates a figure that is a duration.
    pub fn time(name: &'static str, time: std::time::Duration) -> Self {
        Self::new(name, time.as_secs_f64(), Unit::Seconds)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, unit } = self;
        match unit {
            Unit::PerSecond => return write!(f, "{}{name}", thousands(*value)),
            Unit::Count => return write!(f, "{name} {value:.0}"),
            Unit::Times => return write!(f, "{value:.2}x {name}"),
            Unit::Seconds | Unit::Bytes => write!(f, "{name} ")?,
        }
        match unit {
            Unit::Bytes => write!(f, "{:.1} MiB", value / f64::from(1 << 20)),
            _ if *value < 1e-3 => write!(f, "{:.0} us", value * 1e6),
            _ if *value < 0.1 => write!(f, "{:.1} ms", value * 1e3),
            _ if *value < 1.0 => write!(f, "{:.0} ms", value * 1e3),
            _ => write!(f, "{value:.2} s"),
        }
    }
}

/// Formats a number with commas, such as `12,345`.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Table {
    /// Enters a side's lines, or, in the row `step`, the reason why it has none.
    pub fn enter(&mut self, side: Side, step: &str, lines: Result<Vec<Line>, String>) {
        match lines {
            Ok(lines) => {
                for line in lines {
                    *self.cell(side, &line.what, &line.targets) = Some(Ok(line.figures));
                }
            }
            Err(reason) => *self.cell(side, step, &[]) = Some(Err(reason)),
        }
    }

    fn cell(
        &mut self,
        side: Side,
        what: &str,
        targets: &[Target],
    ) -> &mut Option<Result<Vec<Figure>, String>> {
        let position = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            let targets = targets.to_vec();
            self.rows.push(Row { what: what.to_owned(), targets, ephor: None, etcd: None });
            self.rows.len() - 1
        });
        let row = &mut self.rows[position];
        match side {
            Side::Ephor => &mut row.ephor,
            Side::Etcd => &mut row.etcd,
        }
    }

    /// Renders the table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text =
            "| line | Ephor | etcd | Ephor / etcd | target |\n| --- | --- | --- | --- | --- |\n".to_owned();
        for row in &self.rows {
            let (ephor, etcd) = (cell_text(row.ephor.as_ref()), cell_text(row.etcd.as_ref()));
            let _ =
                writeln!(text, "| {} | {ephor} | {etcd} | {} | {} |", row.what, row.ratios(), row.verdicts());
        }
        text
    }
}

fn cell_text(cell: Option<&Result<Vec<Figure>, String>>) -> String {
    match cell {
        None => "-".to_owned(),
        Some(Ok(figures)) => figures.iter().map(Figure::to_string).collect::<Vec<_>>().join(", "),
        Some(Err(reason)) => {
            format!("failed: {}", reason.lines().next().unwrap_or_default().replace('|', "/"))
        }
    }
}

fn ratio_text(figure: &Figure, ratio: f64) -> String {
    match figure.unit {
        Unit::PerSecond => format!("rate {ratio:.2}x"),
        _ => format!("{} {ratio:.2}x", figure.name),
    }
}

impl Row {
    fn figure(cell: Option<&Result<Vec<Figure>, String>>, name: &str) -> Option<f64> {
        let figures = cell?.as_ref().ok()?;
        figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    fn ratio(&self, name: &str) -> Option<f64> {
        let (ephor, etcd) =
            (Self::figure(self.ephor.as_ref(), name)?, Self::figure(self.etcd.as_ref(), name)?);
        (etcd != 0.0).then(|| ephor / etcd)
    }

    fn ratios(&self) -> String {
        let Some(Ok(figures)) = &self.ephor else { return "-".to_owned() };
        let ratios = figures.iter().filter(|figure| !matches!(figure.unit, Unit::Count | Unit::Times));
        let ratios = ratios.filter_map(|figure| Some(ratio_text(figure, self.ratio(figure.name)?)));
        ratios.collect::<Vec<_>>().join(", ")
    }

    fn verdicts(&self) -> String {
        let verdict = |target: &Target| {
            let (met, what) = match target {
                Target::Rate(times) => {
                    (self.ratio(RATE).map(|ratio| ratio >= *times), format!("rate at least {times}x"))
                }
                Target::AtMost(name, limit, unit) => {
                    let value = Self::figure(self.ephor.as_ref(), name);
                    (
                        value.map(|value| value <= *limit),
                        format!("{} at most", Figure::new(name, *limit, *unit)),
                    )
                }
            };
            format!("{what}: {}", met.map_or("unknown", |met| if met { "met" } else { "missed" }))
        };
        self.targets.iter().map(verdict).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rate: f64, p50: f64) -> Line {
        let figures = vec![
            Figure::new(RATE, rate, Unit::PerSecond),
            Figure::new("p50", p50, Unit::Seconds),
            Figure::new("failed", 3.0, Unit::Count),
        ];
        let targets = vec![Target::Rate(1.5), Target::AtMost("p50", 0.002, Unit::Seconds)];
        Line { what: "put".to_owned(), figures, targets }
    }

    #[test]
    fn sides_meet_on_one_line_with_ratios_and_verdicts() {
        let mut table = Table::default();
        table.enter(Side::Ephor, "writes", Ok(vec![line(12_345.4, 0.0021)]));
        table.enter(Side::Etcd, "writes", Ok(vec![line(6_172.7, 0.000_7)]));
        table.enter(Side::Etcd, "watch", Err("lost|all\nmore".to_owned()));
        let rows: Vec<_> = table.markdown().lines().skip(2).map(str::to_owned).collect();
        assert_eq!(
            rows,
            [
                "| put | 12,345/s, p50 2.1 ms, failed 3 | 6,173/s, p50 700 us, failed 3 \
                 | rate 2.00x, p50 3.00x | rate at least 1.5x: met; p50 2.0 ms at most: missed |",
                "| watch | - | failed: lost/all | - |  |",
            ]
        );
    }

    #[test]
    fn a_target_without_the_other_side_is_unknown() {
        let mut table = Table::default();
        table.enter(Side::Ephor, "writes", Ok(vec![line(1.0, 12.5)]));
        let text = table.markdown();
        assert!(text.contains("rate at least 1.5x: unknown; p50 2.0 ms at most: missed"), "{text}");
        assert!(text.contains("p50 12.50 s"), "{text}");
    }
}
