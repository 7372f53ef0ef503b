//! Times as Go prints them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// RFC 3339 in UTC with as many fractional digits as needed (Go's `RFC3339Nano`).
pub fn rfc3339_nano(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).expect("years 0 to 9999 have an RFC 3339 form")
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339_seconds(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at).replace_nanosecond(0).expect("zero is a valid nanosecond");
    at.format(&Rfc3339).expect("years 0 to 9999 have an RFC 3339 form")
}

/// Parses RFC 3339 with or without a fraction; `None` if it is not that.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

/// Parses a date as in HTTP headers (`Wed, 21 Oct 2015 07:28:00 GMT`); `None` if it is not that.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let form = &time::format_description::well_known::Rfc2822;
    OffsetDateTime::parse(text, form).ok().map(SystemTime::from)
}

/// The instant `nanos` nanoseconds after (or before) the Unix epoch.
pub fn from_unix_nanos(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// The instant `seconds` seconds after (or before) the Unix epoch.
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// Nanoseconds since the Unix epoch.
pub fn unix_nanos(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
    }
}

/// Parses a Go duration such as `1h2m3.5s`, `300ms` or `0`; negative ones are refused.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_like_go() {
        assert_eq!(rfc3339_nano(from_unix_nanos(1_500_000_000)), "1970-01-01T00:00:01.5Z");
        assert_eq!(rfc3339_seconds(from_unix_nanos(1_500_000_000)), "1970-01-01T00:00:01Z");
        assert_eq!(unix_nanos(parse_rfc3339("1970-01-01T01:00:01+01:00").unwrap()), 1_000_000_000);
    }

    #[test]
    fn reads_go_durations() {
        assert_eq!(parse_go_duration("1h2m3.5s"), Some(Duration::from_millis(3_723_500)));
        assert_eq!(parse_go_duration("48h"), Some(Duration::from_secs(172_800)));
        for bad in ["", "5", "-1s", "s", "1x"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }
}
