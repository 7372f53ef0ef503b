//! The history of an image: one entry an instruction.
//!
//! Source: Dockerfile notes §15.2.

use std::sync::Arc;

use super::env::Env;
use super::stage::Stage;
use crate::image::History;
use crate::instructions::Arg;
use crate::shell::Variables;

const COMMENT: &str = "buildkit.dockerfile.v0";

/// A fixed time of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    seconds: i64,
    nanos: u32,
}

impl Epoch {
    /// From 0000-01-01 to 9999-12-31, which is what image configs can say.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        let years = -62_167_219_200..=253_402_300_799;
        (years.contains(&seconds) && nanos < 1_000_000_000).then_some(Self { seconds, nanos })
    }

    /// Unix seconds.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Unix nanoseconds, as far as they fit.
    pub fn unix_nanos(self) -> i64 {
        self.seconds.wrapping_mul(1_000_000_000).wrapping_add(i64::from(self.nanos))
    }

    fn rfc3339(self) -> String {
        let seconds = base::time::from_unix_seconds(self.seconds);
        base::time::rfc3339_nano(seconds + std::time::Duration::from_nanos(u64::from(self.nanos)))
    }
}

impl Stage {
    /// Adds an entry.
    pub fn commit(&mut self, created_by: String, layer: bool, epoch: Option<Epoch>) {
        self.image.history.push(Arc::new(History {
            created: epoch.map(Epoch::rfc3339).unwrap_or_default(),
            created_by,
            comment: COMMENT.to_owned(),
            empty_layer: !layer,
            author: String::new(),
        }));
    }
}

/// Arguments of a process with the args it could see: `|1 A=b cmd`.
pub fn run_text(args: &[String], declared: &[Arg], env: &Env) -> String {
    let mut seen: Vec<(&str, String)> = Vec::new();
    for arg in declared {
        let value = env.get(&arg.key).map(str::to_owned);
        let value = value.or_else(|| arg.value.clone()).unwrap_or_default();
        let entry = format!("{}={value}", arg.key);
        match seen.iter_mut().find(|(key, _)| *key == arg.key) {
            Some(known) => known.1 = entry,
            None => seen.push((&arg.key, entry)),
        }
    }
    let mut words = Vec::with_capacity(seen.len() + args.len() + 1);
    if !seen.is_empty() {
        words.push(format!("|{}", seen.len()));
        words.extend(seen.into_iter().map(|(_, entry)| entry));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}

/// Go's form of a duration in nanoseconds.
pub fn duration(nanos: i64) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = |value: u64, unit: u64| {
        let text =
            format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
            let minutes = nanos / 60_000_000_000;
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (300_000_000_000, "5m0s"),
            (3_723_500_000_000, "1h2m3.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(nanos), text);
        }
    }

    #[test]
    fn args_are_shown_once() {
        let arg = |key: &str, value: Option<&str>| Arg {
            key: key.into(),
            value: value.map(Into::into),
            description: String::new(),
        };
        let mut env = Env::default();
        env.set("A", "x");
        let declared = [arg("A", Some("1")), arg("B", None), arg("A", None)];
        assert_eq!(run_text(&["sh".into()], &declared, &env), "|2 A=x B= sh");
        assert_eq!(run_text(&["sh".into()], &[], &env), "sh");
    }
}
