//! Text in quotes as Go's `%q` writes it, which clients know from messages.

use std::fmt::{self, Write as _};

/// Shows `text` in double quotes, with Go's escapes for what cannot be printed.
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
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\x07' => f.write_str("\\a")?,
                '\x08' => f.write_str("\\b")?,
                '\x0c' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\x0b' => f.write_str("\\v")?,
                _ => match (character as u32, character.escape_debug().len() > 2) {
                    (code @ (..0x20 | 0x7f), _) => write!(f, "\\x{code:02x}")?,
                    (code @ ..0x1_0000, true) => write!(f, "\\u{code:04x}")?,
                    (code, true) => write!(f, "\\U{code:08x}")?,
                    (_, false) => f.write_char(character)?,
                },
            }
        }
        f.write_char('"')
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
            ("ä 世 😀", "\"ä 世 😀\""),
            ("\u{200b}\u{e000}\u{f0000}", r#""\u200b\ue000\U000f0000""#),
        ] {
            assert_eq!(Quoted(text).to_string(), quoted);
        }
    }
}
