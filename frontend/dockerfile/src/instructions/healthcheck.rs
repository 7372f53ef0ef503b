//! HEALTHCHECK: `NONE`, or `CMD` with `--interval`, `--timeout`, `--start-period`,
//! `--start-interval`, `--retries`.

use super::flags::{Flags, Takes};
use super::simple::joined;
use crate::error::{Error, Kind, Result};
use crate::{parser::Node, text};

/// How to tell whether a container is well. Times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `NONE`, `CMD` with arguments or `CMD-SHELL` with a command.
    pub test: Vec<String>,
    /// Between checks.
    pub interval: i64,
    /// For one check.
    pub timeout: i64,
    /// While failures do not count.
    pub start_period: i64,
    /// Between checks in that period.
    pub start_interval: i64,
    /// Failures in a row.
    pub retries: i64,
}

const TIMES: &[&str] = &["interval", "timeout", "start-period", "start-interval"];

pub(super) fn parse(node: &Node) -> Result<Healthcheck> {
    let Some((kind, args)) = node.args.split_first() else {
        return Err(Error::new(Kind::NeedsArgument, ["HEALTHCHECK"]));
    };
    let kind = text::upper(kind);
    if kind == "NONE" {
        if !args.is_empty() {
            return Err(Error::plain(Kind::HealthcheckNoneArgs));
        }
        return Ok(Healthcheck { test: vec![kind], ..Healthcheck::default() });
    }
    let mut known: Vec<(&str, Takes)> = TIMES.iter().map(|name| (*name, Takes::Value)).collect();
    known.push(("retries", Takes::Value));
    let flags = Flags::parse(node, &known)?;
    if kind != "CMD" {
        return Err(Error::new(Kind::HealthcheckUnknownType, [text::quote(&kind)]));
    }
    let command = joined(args, node.json);
    if command.is_empty() {
        return Err(Error::plain(Kind::HealthcheckNoCommand));
    }
    let word = if node.json { "CMD" } else { "CMD-SHELL" };
    let time = |name: &str| duration(name, &flags.value(name));
    Ok(Healthcheck {
        test: std::iter::once(word.to_owned()).chain(command).collect(),
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries: retries(&flags.value("retries"))?,
    })
}

fn retries(value: &str) -> Result<i64> {
    if value.is_empty() {
        return Ok(0);
    }
    match value.parse::<i32>() {
        Ok(number) if number < 0 => Err(Error::new(Kind::NegativeRetries, [value])),
        Ok(number) => Ok(i64::from(number)),
        Err(_) => Err(Error::new(Kind::InvalidNumber, [text::quote(value)])),
    }
}

fn duration(name: &str, value: &str) -> Result<i64> {
    if value.is_empty() {
        return Ok(0);
    }
    let nanos = nanoseconds(value).map_err(|why| Error::new(Kind::InvalidDuration, [why]))?;
    if nanos != 0 && nanos < 1_000_000 {
        return Err(Error::new(Kind::DurationTooShort, [text::quote(name)]));
    }
    Ok(nanos)
}

/// Go's duration syntax, exactly: whole and fraction are summed as integers.
fn nanoseconds(value: &str) -> std::result::Result<i64, String> {
    let invalid = || text::quote(value);
    let (negative, mut rest) = match value.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, value.strip_prefix('+').unwrap_or(value)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, more) = rest.split_at(end);
        let (fraction, more) = match more.strip_prefix('.') {
            Some(more) => {
                more.split_at(more.find(|char: char| !char.is_ascii_digit()).unwrap_or(more.len()))
            }
            None => ("", more),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end =
            more.find(|char: char| char == '.' || char.is_ascii_digit()).unwrap_or(more.len());
        let (unit, after) = more.split_at(end);
        let scale: i128 = match unit {
            "" => return Err("missing unit".to_owned()),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("unknown unit {}", text::quote(unit))),
        };
        if whole.len() > 19 {
            return Err(invalid());
        }
        total += whole.parse::<i128>().unwrap_or(0) * scale;
        let digits: String = fraction.chars().take(18).collect();
        if !digits.is_empty() {
            let part: i128 = digits.parse().map_err(|_| invalid())?;
            total += part * scale / 10i128.pow(digits.len() as u32);
        }
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = after;
    }
    let total = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -total } else { total })
}
