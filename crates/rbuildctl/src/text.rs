//! How docker and buildctl write sizes, ages and times.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// The instant of a wire timestamp.
pub fn instant(at: &Timestamp) -> SystemTime {
    let nanos = at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos));
    base::time::from_unix_nanos(nanos)
}

/// `5 minutes ago`.
pub fn ago(at: &Timestamp) -> String {
    format!("{} ago", age(SystemTime::now().duration_since(instant(at)).unwrap_or_default()))
}

/// A duration the way docker says it: `Less than a second`, `About an hour`, `3 days`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, (duration.as_secs_f64() / 3600.0).round() as u64);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Decimal size with up to three significant digits, as docker's tables have it: `1.23MB`.
pub fn docker_size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 3), UNITS[unit])
}

/// Go's `%g` of a decimal size: `512MB`, `1.2kB`.
pub fn plain_size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value.abs() >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// `value` with `digits` significant digits and no trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Go's text of a duration in whole nanoseconds: `48h0m0s`, `1.5s`, `300ms`.
pub fn go_duration(nanos: i64) -> String {
    let seconds = nanos as f64 / 1e9;
    match nanos {
        0 => "0s".into(),
        nanos if nanos.unsigned_abs() < 1_000 => format!("{nanos}ns"),
        nanos if nanos.unsigned_abs() < 1_000_000 => format!("{}µs", nanos as f64 / 1e3),
        nanos if nanos.unsigned_abs() < 1_000_000_000 => format!("{}ms", nanos as f64 / 1e6),
        _ => {
            let whole = nanos / 1_000_000_000;
            let (hours, minutes) = (whole / 3600, whole % 3600 / 60);
            let rest = seconds - (hours * 3600 + minutes * 60) as f64;
            let rest = (rest * 1e9).round() / 1e9;
            match (hours, minutes) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// Go's `time.Time` as text, in UTC: `2026-01-02 03:04:05.6 +0000 UTC`.
pub fn go_time(at: &Timestamp) -> String {
    let text = base::time::rfc3339_nano(instant(at));
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// As docker's tables write times: `2026-01-02 03:04:05 +0000 UTC`.
pub fn docker_time(at: &Timestamp) -> String {
    let text = rfc3339(at);
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// RFC 3339 with nanoseconds, UTC.
pub fn rfc3339_nano(at: &Timestamp) -> String {
    base::time::rfc3339_nano(instant(at))
}

/// RFC 3339 in whole seconds, UTC.
pub fn rfc3339(at: &Timestamp) -> String {
    base::time::rfc3339_seconds(instant(at))
}

/// A size as docker's flags take it: `64m`, `1g`, `512kb`, bytes without a unit; binary multiples.
pub fn parse_size(text: &str) -> Option<i64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().ok()?;
    let unit = lower[digits..].trim().trim_end_matches('b').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let bytes =
        number * f64::from(1u32 << (shift % 30)) * if shift >= 30 { 1073741824.0 } else { 1.0 };
    (0.0..9.2e18).contains(&bytes).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 999, 1_234, 12_345_678, 200_000_000].map(docker_size),
            ["0B", "999B", "1.23kB", "12.3MB", "200MB"]
        );
        assert_eq!(plain_size(512_000_000), "512MB");
        assert_eq!(
            ["64m", "1g", "10", "1.5kb", "2GiB"].map(parse_size),
            [Some(64 << 20), Some(1 << 30), Some(10), Some(1536), Some(2 << 30)]
        );
        assert_eq!(parse_size("x"), None);
    }

    #[test]
    fn times() {
        let hours = |hours: u64| age(Duration::from_secs(hours * 3600));
        assert_eq!(
            [hours(0), hours(1), hours(47), hours(50)],
            ["Less than a second", "About an hour", "47 hours", "2 days"]
        );
        assert_eq!(
            [0, 172_800_000_000_000, 90_500_000_000, 300_000_000].map(go_duration),
            ["0s", "48h0m0s", "1m30.5s", "300ms"]
        );
        let at = Timestamp { seconds: 0, nanos: 500_000_000 };
        assert_eq!(go_time(&at), "1970-01-01 00:00:00.5 +0000 UTC");
    }
}
