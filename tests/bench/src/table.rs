//! Samples by label and daemon, and their medians as a Markdown table.

use std::{fmt::Write as _, time::Duration};

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Seconds,
    Bytes,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// How long something took.
    Time(Duration),
    /// How large something was.
    Bytes(u64),
}

impl From<Duration> for Value {
    fn from(took: Duration) -> Self {
        Self::Time(took)
    }
}

struct Row {
    label: String,
    unit: Unit,
    samples: Vec<Vec<f64>>,
}

/// All measurements.
pub struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
}

impl Table {
    /// A table with a column a daemon.
    pub fn new(names: &[String]) -> Self {
        Self { names: names.to_vec(), rows: Vec::new() }
    }

    /// Adds a measurement.
    pub fn add(&mut self, label: &str, daemon: usize, value: Value) {
        let (unit, value) = match value {
            Value::Time(took) => (Unit::Seconds, took.as_secs_f64()),
            Value::Bytes(size) => (Unit::Bytes, size as f64),
        };
        let at = match self.rows.iter().position(|row| row.label == label) {
            Some(at) => at,
            None => {
                let samples = vec![Vec::new(); self.names.len()];
                self.rows.push(Row { label: label.to_owned(), unit, samples });
                self.rows.len() - 1
            }
        };
        self.rows[at].samples[daemon].push(value);
    }

    /// Medians with their range, and how the second compares with the first.
    pub fn markdown(&self) -> String {
        let two = self.names.len() == 2;
        let mut text = String::from("| workload |");
        for name in &self.names {
            let _ = write!(text, " {name} | range |");
        }
        if two {
            let _ = write!(text, " {} / {} |", self.names[1], self.names[0]);
        }
        text.push_str("\n| --- |");
        for _ in 0..self.names.len() * 2 + usize::from(two) {
            text.push_str(" ---: |");
        }
        text.push('\n');
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.label);
            let medians: Vec<Option<f64>> = row.samples.iter().map(|all| median(all)).collect();
            for (samples, middle) in row.samples.iter().zip(&medians) {
                match middle {
                    Some(middle) => {
                        let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
                        let high = samples.iter().copied().fold(0.0, f64::max);
                        let show = |value| show(value, row.unit);
                        let _ = write!(text, " {} | {}–{} |", show(*middle), show(low), show(high));
                    }
                    None => text.push_str(" | |"),
                }
            }
            if let (true, [Some(first), Some(second)]) = (two, medians.as_slice()) {
                let _ = write!(text, " {:.1}× |", second / first);
            }
            text.push('\n');
        }
        text
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1e3),
        Unit::Seconds if value < 10.0 => format!("{value:.2} s"),
        Unit::Seconds => format!("{value:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratio() {
        let mut table = Table::new(&["a".into(), "b".into()]);
        for (daemon, millis) in [(0, 10), (0, 30), (0, 20), (1, 40)] {
            table.add("x", daemon, Duration::from_millis(millis).into());
        }
        let expected = "| workload | a | range | b | range | b / a |\n\
                        | --- | ---: | ---: | ---: | ---: | ---: |\n\
                        | x | 20.0 ms | 10.0 ms–30.0 ms | 40.0 ms | 40.0 ms–40.0 ms | 2.0× |\n";
        assert_eq!(table.markdown(), expected);
    }
}
