//! Shell patterns inside substitutions: `*`, `?` and escapes, no classes.
//!
//! Source: Dockerfile notes §6.4.

use regex::Regex;

use crate::error::{Error, Kind, Result};

/// Drops what `pattern` matches at the start.
pub fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String> {
    let regex = compile(pattern, greedy, true)?;
    let rest = regex.find(value).map_or(value, |found| &value[found.end()..]);
    Ok(rest.to_owned())
}

/// Drops what `pattern` matches at the end.
pub fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String> {
    // The shortest match at the end cannot be found from the front, so both are turned around.
    let reverse = |text: &str| text.chars().rev().collect::<String>();
    trim_prefix(&reverse_pattern(pattern), &reverse(value), greedy).map(|rest| reverse(&rest))
}

/// Replaces the first or every match.
pub fn replace(pattern: &str, value: &str, replacement: &str, all: bool) -> Result<String> {
    let regex = compile(pattern, true, false)?;
    if all {
        // Group references are read here and not for a single replacement: both are kept.
        return Ok(regex.replace_all(value, replacement).into_owned());
    }
    Ok(match regex.find(value) {
        Some(found) => {
            format!("{}{replacement}{}", &value[..found.start()], &value[found.end()..])
        }
        None => value.to_owned(),
    })
}

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex> {
    let invalid = || Error::new(Kind::InvalidPattern, [pattern]);
    let mut out = String::from(if anchored { "^" } else { "" });
    let mut chars = super::scan(pattern).into_iter().peekable();
    while let Some(char) = chars.next() {
        match char {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            '\\' => match chars.peek() {
                Some('}' | '/') => {}
                Some(&next @ ('*' | '?' | '\\')) => {
                    chars.next();
                    out.push('\\');
                    out.push(next);
                }
                _ => return Err(invalid()),
            },
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&out).map_err(|_| invalid())
}

/// Turns a pattern around, keeping each escape before what it escapes.
fn reverse_pattern(pattern: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        let mut part = char.to_string();
        if char == '\\' {
            part.extend(chars.next());
        }
        parts.push(part);
    }
    parts.into_iter().rev().collect()
}
