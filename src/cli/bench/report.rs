//! The results, as a table for people and as JSON for programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

/// The target of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum FigureTarget {
    AtLeast(f64),
    AtMost(f64),
    /// For comparison only.
    None,
}

/// One figure of one round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) target: FigureTarget,
}

/// The conditions of the measurement.
#[derive(Debug, Serialize)]
pub(super) struct Conditions {
    pub(super) version: &'static str,
    /// Whether the daemon had one core, and source and clients another.
    pub(super) pinned: bool,
    /// The load average of the last minute before the first round.
    pub(super) load_before: Option<f64>,
    /// Whether the store's folder is in memory.
    pub(super) in_memory: bool,
    /// The Redis that was used, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) redis: Option<String>,
    pub(super) rounds: usize,
}

/// One figure over all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct FigureRow {
    name: &'static str,
    /// The median of the rounds.
    value: f64,
    lowest: f64,
    highest: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// All results.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    conditions: Conditions,
    figures: Vec<FigureRow>,
}

impl FigureTarget {
    fn met_by(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(value >= bound),
            Self::AtMost(bound) => Some(value <= bound),
            Self::None => None,
        }
    }

    fn describe(self) -> Option<String> {
        match self {
            Self::AtLeast(bound) => Some(format!("≥ {}", number(bound))),
            Self::AtMost(bound) => Some(format!("≤ {}", number(bound))),
            Self::None => None,
        }
    }
}

impl BenchReport {
    /// The medians of the rounds, in the order of the first round.
    pub(super) fn new(conditions: Conditions, measured: &[Figure]) -> Self {
        let mut order = Vec::new();
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for figure in measured {
            let rounds = values.entry(figure.name).or_default();
            if rounds.is_empty() {
                order.push(*figure);
            }
            rounds.push(figure.value);
        }
        let figures =
            order.into_iter().map(|figure| FigureRow::new(figure, values.remove(figure.name).unwrap_or_default()));
        Self { conditions, figures: figures.collect() }
    }

    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    pub(super) fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.conditions.conditions_text())?;
        writeln!(out, "{:<46} {:>12} {:>23}  {:<12} {:>12}", "", "median", "lowest … highest", "", "target")?;
        for row in &self.figures {
            let FigureRow { name, value, lowest, highest, unit, target, met } = row;
            let spread = format!("{} … {}", number(*lowest), number(*highest));
            let verdict = match met {
                Some(true) => "  met",
                Some(false) => "  missed",
                None => "",
            };
            let target = target.as_deref().unwrap_or("");
            writeln!(out, "{name:<46} {:>12} {spread:>23}  {unit:<12} {target:>12}{verdict}", number(*value))?;
        }
        Ok(())
    }
}

impl Conditions {
    fn conditions_text(&self) -> String {
        let Self { version, pinned, load_before, in_memory, redis, rounds } = self;
        let cores = if *pinned { "daemon pinned to one core" } else { "daemon not pinned" };
        let load = load_before.map_or(String::new(), |load| format!(", load before {load:.1}"));
        let memory = if *in_memory { "; the store is in memory, so the figures do not include a disk" } else { "" };
        let redis = redis.as_ref().map_or(String::new(), |redis| format!(", {redis}"));
        format!("trunkline {version}, {cores}, {rounds} rounds{load}{redis}{memory}\n")
    }
}

impl FigureRow {
    fn new(figure: Figure, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let value = values[values.len() / 2];
        let (lowest, highest) = (values[0], values[values.len() - 1]);
        let Figure { name, unit, target, .. } = figure;
        Self { name, value, lowest, highest, unit, target: target.describe(), met: target.met_by(value) }
    }
}

/// Large numbers with thousands separators, small ones with two decimals.
fn number(value: f64) -> String {
    if value < 1_000.0 {
        return format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &'static str, value: f64, target: FigureTarget) -> Figure {
        Figure { name, value, unit: "µs", target }
    }

    fn report() -> BenchReport {
        let conditions = Conditions {
            version: "1.0.0",
            pinned: true,
            load_before: Some(0.3),
            in_memory: true,
            redis: None,
            rounds: 3,
        };
        let measured = [
            figure("b", 4.0, FigureTarget::AtMost(5.0)),
            figure("a", 2.0, FigureTarget::AtLeast(120_000.0)),
            figure("b", 9.0, FigureTarget::AtMost(5.0)),
            figure("b", 5.5, FigureTarget::AtMost(5.0)),
            figure("c", 1.0, FigureTarget::None),
        ];
        BenchReport::new(conditions, &measured)
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds_compared_with_its_target() {
        let rows = report().figures;
        let results: Vec<_> = rows.iter().map(|row| (row.name, row.value, row.lowest, row.highest, row.met)).collect();
        assert_eq!(
            results,
            [("b", 5.5, 4.0, 9.0, Some(false)), ("a", 2.0, 2.0, 2.0, Some(false)), ("c", 1.0, 1.0, 1.0, None)]
        );
        assert_eq!(rows[1].target.as_deref(), Some("≥ 120,000"));
    }

    #[test]
    fn the_table_marks_missed_targets_and_in_memory_storage() {
        let mut table = Vec::new();
        report().write_table(&mut table).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains("in memory") && table.matches("missed").count() == 2, "{table}");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [0.4, 12.0, 3.456, 999.0, 1_234.5, 1_000_000.0].map(number),
            ["0.4", "12", "3.46", "999", "1,234", "1,000,000"]
        );
    }
}
