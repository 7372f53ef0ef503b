//! Attribute values as Go reads them.

use crate::SourceError;

fn bad(key: &str, value: &str) -> SourceError {
    SourceError::Attribute(format!("invalid value for {key} {value:?}"))
}

/// A JSON list of strings; `null` is no list.
pub(crate) fn list(key: &str, value: &str) -> Result<Option<Vec<String>>, SourceError> {
    serde_json::from_str(value).map_err(|_| bad(key, value))
}

/// Go's `strconv.ParseBool`.
pub(crate) fn boolean(key: &str, value: &str) -> Result<bool, SourceError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(bad(key, value)),
    }
}

/// Go's `strconv.ParseInt(value, 0, 64)`: a sign, a base prefix, underscores between digits.
pub(crate) fn integer(key: &str, value: &str) -> Result<i64, SourceError> {
    let (negative, digits) = match value.as_bytes() {
        [b'-', ..] => (true, &value[1..]),
        [b'+', ..] => (false, &value[1..]),
        _ => (false, value),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_str() {
        "0" => (10, "0"),
        text => match text.as_bytes() {
            [b'0', b'x', ..] => (16, &text[2..]),
            [b'0', b'b', ..] => (2, &text[2..]),
            [b'0', b'o', ..] => (8, &text[2..]),
            [b'0', ..] => (8, &text[1..]),
            _ => (10, text),
        },
    };
    let prefixed = digits.len() < lower.len();
    let parts: Vec<&str> = digits.split('_').collect();
    let misplaced =
        parts.iter().enumerate().any(|(index, part)| part.is_empty() && !(index == 0 && prefixed));
    if digits.is_empty() || misplaced || digits.contains(['+', '-']) || digits == "_" {
        return Err(bad(key, value));
    }
    let number = i128::from_str_radix(&parts.concat(), radix).map_err(|_| bad(key, value))?;
    i64::try_from(if negative { -number } else { number }).map_err(|_| bad(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_follow_go() {
        for (text, expected) in [
            ("0", Some(0)),
            ("420", Some(420)),
            ("0644", Some(0o644)),
            ("0o644", Some(0o644)),
            ("0x1F", Some(31)),
            ("0b11", Some(3)),
            ("-5", Some(-5)),
            ("1_000", Some(1000)),
            ("0_7", Some(7)),
            ("", None),
            ("_1", None),
            ("1_", None),
            ("08", None),
            ("0x", None),
            ("--1", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(integer("k", text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn lists_may_be_null() {
        assert_eq!(list("k", "null").unwrap(), None);
        assert_eq!(list("k", "[]").unwrap(), Some(Vec::new()));
        assert_eq!(list("k", r#"["a"]"#).unwrap(), Some(vec!["a".to_owned()]));
        assert!(list("k", "a").is_err());
    }
}
