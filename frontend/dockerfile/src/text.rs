//! Text of Dockerfiles, which need not be UTF-8, and the official frontend's text forms.
//!
//! A byte that is not part of valid UTF-8 becomes one character of the range U+10FF80 to U+10FFFF,
//! so that everything can be handled as `str` and written back exactly with [`to_bytes`].
//! (Characters of that private-use range in a file are taken for invalid bytes; nobody uses them.)

use std::fmt::Write as _;
use std::sync::LazyLock;

use base::goquote;
use regex::Regex;

const ESCAPE_BASE: u32 = 0x10_FF80;

/// Decodes file content.
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if u32::from(char) >= ESCAPE_BASE {
                char.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push(escape(byte)));
            } else {
                out.push(char);
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push(escape(*byte)));
    }
    out
}

/// The file content that `text` was decoded from.
pub fn to_bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for char in text.chars() {
        match escaped(char) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

/// Every invalid byte as U+FFFD, as JSON encoders and the word lexer show them.
pub fn lossy(text: &str) -> String {
    text.chars().map(valid).collect()
}

/// Whether `text` stands for bytes that are not UTF-8.
pub fn is_invalid(text: &str) -> bool {
    text.chars().any(|char| escaped(char).is_some())
}

/// The byte a character stands for, if it is an escape.
pub fn escaped(char: char) -> Option<u8> {
    u32::from(char).checked_sub(ESCAPE_BASE).map(|offset| 0x80 + offset as u8)
}

fn escape(byte: u8) -> char {
    char::from_u32(ESCAPE_BASE + u32::from(byte & 0x7f)).expect("the range holds characters only")
}

/// Lower case, character by character; invalid bytes become U+FFFD.
pub fn lower(text: &str) -> String {
    text.chars().map(|char| single(valid(char).to_lowercase()).unwrap_or(char)).collect()
}

/// Upper case, character by character; invalid bytes become U+FFFD.
pub fn upper(text: &str) -> String {
    text.chars().map(|char| single(valid(char).to_uppercase()).unwrap_or(char)).collect()
}

fn valid(char: char) -> char {
    if escaped(char).is_some() { '\u{fffd}' } else { char }
}

/// Equal but for case.
pub fn equal_fold(left: &str, right: &str) -> bool {
    left == right || lower(&upper(left)) == lower(&upper(right))
}

fn single(mut chars: impl Iterator<Item = char>) -> Option<char> {
    let first = chars.next()?;
    chars.next().is_none().then_some(first)
}

/// White space of a single byte, with which lines are split into words: `[\t\v\f\r ]`.
pub fn is_word_space(char: char) -> bool {
    matches!(char, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Splits at runs of word space, into at most `limit` parts if that is not 0.
pub fn split_words(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while limit == 0 || parts.len() + 1 < limit {
        let Some(at) = rest.find(is_word_space) else { break };
        parts.push(&rest[..at]);
        rest = rest[at..].trim_start_matches(is_word_space);
    }
    parts.push(rest);
    parts
}

/// A letter or a decimal digit of any script.
pub fn is_letter(char: char) -> bool {
    static LETTER: LazyLock<Regex> = LazyLock::new(|| regex(r"^\p{L}$"));
    if char.is_ascii() { char.is_ascii_alphabetic() } else { matches(&LETTER, char) }
}

/// A decimal digit of any script.
pub fn is_digit(char: char) -> bool {
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| regex(r"^\p{Nd}$"));
    if char.is_ascii() { char.is_ascii_digit() } else { matches(&DIGIT, char) }
}

fn matches(regex: &Regex, char: char) -> bool {
    regex.is_match(char.encode_utf8(&mut [0; 4]))
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a fixed pattern is valid")
}

/// Go's `%q`: a double-quoted literal.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        let written = match escaped(char) {
            Some(byte) => write!(out, "\\x{byte:02x}"),
            None => goquote::write_char(&mut out, char),
        };
        written.expect("writing to a string succeeds");
    }
    out.push('"');
    out
}

/// Go's `%q` of a list: `["a" "b"]`.
pub fn quote_list(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| quote(item)).collect::<Vec<_>>().join(" "))
}

/// Go's boolean words.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Fields of one CSV record. Quotes wrap a whole field and are doubled inside; anything else with
/// a quote, and an empty text, is no record.
pub fn csv_fields(text: &str) -> Option<Vec<String>> {
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return None;
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut inner = quoted;
            loop {
                let at = inner.find('"')?;
                field.push_str(&inner[..at]);
                inner = &inner[at + 1..];
                match inner.chars().next() {
                    Some('"') => {
                        field.push('"');
                        inner = &inner[1..];
                    }
                    Some(',') => {
                        rest = &inner[1..];
                        break;
                    }
                    None => {
                        fields.push(field);
                        return Some(fields);
                    }
                    Some(_) => return None,
                }
            }
            fields.push(field);
        } else {
            let (field, more) = match rest.split_once(',') {
                Some((field, more)) => (field, Some(more)),
                None => (rest, None),
            };
            if field.contains('"') {
                return None;
            }
            fields.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Some(fields),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive() {
        for bytes in [&b"plain"[..], b"\xff\xfea\x80", "é\u{10ffff}\u{10ff80}".as_bytes()] {
            assert_eq!(to_bytes(&from_bytes(bytes)), bytes);
        }
        assert_eq!(lossy(&from_bytes(b"a\xffb")), "a\u{fffd}b");
    }

    #[test]
    fn quotes_like_go() {
        assert_eq!(quote("a\"b\\\n\u{1}é\u{200b}\u{1f600}"), r#""a\"b\\\n\x01é\u200b😀""#);
        assert_eq!(quote(&from_bytes(b"\xff")), r#""\xff""#);
        assert_eq!(quote_list(&["a".into(), "b c".into()]), r#"["a" "b c"]"#);
    }

    #[test]
    fn splits_words() {
        assert_eq!(split_words("a  b\tc", 0), ["a", "b", "c"]);
        assert_eq!(split_words("a  b c", 2), ["a", "b c"]);
        assert_eq!(split_words(" a ", 0), ["", "a", ""]);
    }

    #[test]
    fn reads_csv() {
        let fields = |text| csv_fields(text).map(|fields| fields.join("|"));
        assert_eq!(fields("a=1,b").as_deref(), Some("a=1|b"));
        assert_eq!(fields(r#""a,""b""",c"#).as_deref(), Some("a,\"b\"|c"));
        assert_eq!(fields("a,,").as_deref(), Some("a||"));
        for bad in ["", "a\"b", "\"a", "\"a\"b"] {
            assert_eq!(fields(bad), None, "{bad}");
        }
    }
}
