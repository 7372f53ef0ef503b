//! JSON bytes exactly as Go's encoder writes them.
//!
//! Cache keys and manifests are digests of such text, so `<`, `>`, `&`, U+2028 and U+2029 are
//! escaped as Go does, struct fields keep their order, and byte strings are standard base64.

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter};

/// Compact Go JSON of `value`.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut out, Go(CompactFormatter)))
        .expect("values with string keys serialise into memory");
    out
}

/// Compact Go JSON of `value` as text.
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    String::from_utf8(to_vec(value)).expect("JSON is UTF-8")
}

/// Go JSON indented by two spaces, as `json.MarshalIndent(v, "", "  ")`.
pub fn to_vec_indented<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let formatter = Go(PrettyFormatter::with_indent(b"  "));
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        .expect("values with string keys serialise into memory");
    out
}

/// Appends valid JSON to `out` without white space, escaping in strings what Go escapes and
/// leaving all else (numbers, order, other escapes) as it came: Go's `RawMessage` inside Marshal.
pub fn compact(json: &str, out: &mut Vec<u8>) {
    let (mut in_string, mut escaped) = (false, false);
    let mut buffer = [0; 4];
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if in_string => {
                out.extend(format!("\\u{:04x}", c as u32).bytes());
            }
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            _ => out.extend(c.encode_utf8(&mut buffer).bytes()),
        }
        (in_string, escaped) = match c {
            '"' if !escaped => (!in_string, false),
            '\\' if in_string && !escaped => (true, true),
            _ => (in_string, false),
        };
    }
}

/// For `#[serde(serialize_with = "base::gojson::base64_bytes")]`: bytes as standard base64.
pub fn base64_bytes<S: Serializer>(bytes: &impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(bytes.as_ref()))
}

/// For `#[serde(skip_serializing_if = "base::gojson::is_zero")]`: Go's `omitempty`.
pub fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Wraps a formatter, changing only how characters are escaped.
struct Go<F>(F);

impl<F: Formatter> Formatter for Go<F> {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}', '\u{7f}']) {
            let special = rest[at..].chars().next().expect("find points at a character");
            out.write_all(&rest.as_bytes()[..at])?;
            match special {
                '\u{7f}' => out.write_all(b"\x7f")?,
                other => write!(out, "\\u{:04x}", other as u32)?,
            }
            rest = &rest[at + special.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.0.write_char_escape(out, escape)
    }

    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_go() {
        let text = to_string("a<b>&\u{2028}\n\u{1}\"\\é\u{8}\u{7f}");
        assert_eq!(text, "\"a\\u003cb\\u003e\\u0026\\u2028\\n\\u0001\\\"\\\\é\\b\u{7f}\"");
    }

    #[test]
    fn indents_as_go() {
        let value = serde_json::json!({"a": [], "b": {}, "c": [1, {"d": null}]});
        let text = String::from_utf8(to_vec_indented(&value)).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \"d\": null\n    }\n  ]\n}"
        );
    }
}
