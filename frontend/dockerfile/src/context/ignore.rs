//! Ignore files.

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::text;

/// The usual name.
pub const NAME: &str = ".dockerignore";

/// Longest line.
const MAX_LINE: usize = 65536;

/// An ignore file that was read.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: String,
    pub data: Bytes,
}

/// The patterns of an ignore file, cleaned and without leading `/`; whether they are right is seen
/// when they are used.
pub fn patterns(name: &str, data: &[u8]) -> Result<Vec<String>> {
    let fail = |why: &str| Error::new(Kind::IgnoreFile, [name, why]);
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let mut list = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        if line.len() >= MAX_LINE {
            return Err(fail("a line is too long"));
        }
        let line = text::lossy(&text::from_bytes(line));
        let pattern = line.trim();
        if line.starts_with('#') || pattern.is_empty() {
            continue;
        }
        let (mark, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => ("!", pattern.trim()),
            None => ("", pattern),
        };
        let mut pattern =
            if pattern.is_empty() { String::new() } else { base::path::clean(pattern) };
        if pattern.len() > 1 && pattern.starts_with('/') {
            pattern.remove(0);
        }
        list.push(format!("{mark}{pattern}"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_patterns() {
        let text = b"\xef\xbb\xbf# c\n /a//b/ \n! /c\n\n**\n #x\n";
        assert_eq!(patterns("x", text).unwrap(), ["a/b", "!c", "**", "#x"]);
        let long = [b'a'; MAX_LINE];
        assert_eq!(patterns("x", &long).unwrap_err().kind, Kind::IgnoreFile);
    }
}
