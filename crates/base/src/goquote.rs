//! Text in quotes as Go's `%q` writes it, which clients know from messages.

use std::{
    fmt::{self, Write},
    sync::LazyLock,
};

use regex::Regex;

/// Shows a text in double quotes, with Go's escapes for what cannot be printed.
///
/// ```
/// assert_eq!(base::goquote::Quoted("a \"b\"\n\u{7f}").to_string(), r#""a \"b\"\n\x7f""#);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            write_char(f, character)?;
        }
        f.write_char('"')
    }
}

/// Writes one character as it stands between the quotes.
pub fn write_char(out: &mut impl Write, character: char) -> fmt::Result {
    match character {
        '"' => out.write_str("\\\""),
        '\\' => out.write_str("\\\\"),
        '\x07' => out.write_str("\\a"),
        '\x08' => out.write_str("\\b"),
        '\x0c' => out.write_str("\\f"),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        '\x0b' => out.write_str("\\v"),
        _ if is_printable(character) => out.write_char(character),
        _ => match u32::from(character) {
            code @ ..0x80 => write!(out, "\\x{code:02x}"),
            code @ 0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
            code => write!(out, "\\U{code:08x}"),
        },
    }
}

fn is_printable(character: char) -> bool {
    static PRINTABLE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^[\p{L}\p{M}\p{N}\p{P}\p{S}]$").expect("a fixed pattern is valid")
    });
    match character.is_ascii() {
        true => matches!(character, ' '..='~'),
        false => PRINTABLE.is_match(character.encode_utf8(&mut [0; 4])),
    }
}

#[cfg(test)]
mod tests {
    use super::Quoted;

    #[test]
    fn as_go_quotes() {
        for (text, quoted) in [
            ("sh -c echo 'a'\n", r#""sh -c echo 'a'\n""#),
            ("\x07\x1b\\", r#""\a\x1b\\""#),
            ("ä 世 😀 e\u{301}", "\"ä 世 😀 e\u{301}\""),
            ("\u{200b}\u{e000}\u{f0000}", r#""\u200b\ue000\U000f0000""#),
        ] {
            assert_eq!(Quoted(text).to_string(), quoted);
        }
    }
}
