//! JSON arguments, read the way Go's decoder reads them.
//!
//! What counts is whether a text is one valid JSON value and whether it is an array of strings.
//! Lone surrogates and invalid bytes become U+FFFD instead of being refused.

use crate::text;

/// Deepest nesting the official decoder accepts.
const MAX_DEPTH: usize = 10_000;

/// What the arguments of an instruction are.
#[derive(Debug, PartialEq, Eq)]
pub enum Array {
    /// Not a JSON array.
    None,
    /// An array with something else than strings.
    Mixed,
    /// An array of strings.
    Strings(Vec<String>),
}

/// Reads an array; anything behind it but white space makes it none.
pub fn array(input: &str) -> Array {
    if !input.starts_with('[') {
        return Array::None;
    }
    let mut scanner = Scanner::new(input);
    match scanner.document(Wanted::Elements) {
        None => Array::None,
        Some(()) if scanner.mixed => Array::Mixed,
        Some(()) => Array::Strings(scanner.strings),
    }
}

/// The string member `key` of a JSON object.
pub fn string_member(input: &str, key: &str) -> Option<String> {
    let mut scanner = Scanner::new(input);
    scanner.skip_space();
    if scanner.peek() != Some('{') {
        return None;
    }
    scanner.document(Wanted::Member(key.to_owned()))?;
    scanner.member
}

enum Wanted {
    Elements,
    Member(String),
}

struct Scanner {
    chars: Vec<char>,
    at: usize,
    strings: Vec<String>,
    mixed: bool,
    member: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Container {
    Array,
    Object,
}

impl Scanner {
    fn new(input: &str) -> Self {
        let replace = |char| if text::escaped(char).is_some() { '\u{fffd}' } else { char };
        Self {
            chars: input.chars().map(replace).collect(),
            at: 0,
            strings: Vec::new(),
            mixed: false,
            member: None,
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.at += 1;
        }
    }

    /// Checks a whole document with an own stack of open containers.
    fn document(&mut self, wanted: Wanted) -> Option<()> {
        let mut open: Vec<Container> = Vec::new();
        let mut wanted_key = false;
        loop {
            // A value begins here.
            self.skip_space();
            let top = open.len() == 1;
            let mut closed = true;
            match self.peek()? {
                '"' => {
                    let value = self.string()?;
                    match &wanted {
                        Wanted::Elements if top => self.strings.push(value),
                        Wanted::Member(_) if top && wanted_key => self.member = Some(value),
                        _ => {}
                    }
                }
                start @ ('[' | '{') => {
                    self.at += 1;
                    self.not_string(&wanted, top, wanted_key);
                    if open.len() == MAX_DEPTH {
                        return None;
                    }
                    self.skip_space();
                    let (container, end) = if start == '[' {
                        (Container::Array, ']')
                    } else {
                        (Container::Object, '}')
                    };
                    if self.take(end).is_none() {
                        open.push(container);
                        closed = false;
                    }
                }
                _ => {
                    self.scalar()?;
                    self.not_string(&wanted, top, wanted_key);
                }
            }
            // After a value: close containers or go on to the next one.
            while closed {
                self.skip_space();
                let Some(container) = open.last() else {
                    return self.peek().is_none().then_some(());
                };
                let end = if *container == Container::Array { ']' } else { '}' };
                if self.take(end).is_some() {
                    open.pop();
                } else {
                    self.take(',')?;
                    closed = false;
                }
            }
            if open.last() == Some(&Container::Object) {
                self.skip_space();
                let key = self.string()?;
                wanted_key = matches!(&wanted, Wanted::Member(name) if *name == key);
                self.skip_space();
                self.take(':')?;
            }
        }
    }

    fn not_string(&mut self, wanted: &Wanted, top: bool, wanted_key: bool) {
        match wanted {
            Wanted::Elements => self.mixed |= top,
            Wanted::Member(_) if top && wanted_key => self.member = None,
            Wanted::Member(_) => {}
        }
    }

    fn scalar(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|char| char.is_ascii_alphanumeric() || "+-.".contains(char)) {
            self.at += 1;
        }
        let word: String = self.chars[start..self.at].iter().collect();
        let known = matches!(word.as_str(), "true" | "false" | "null");
        (known || is_number(&word)).then_some(())
    }

    fn string(&mut self) -> Option<String> {
        self.take('"')?;
        let mut out = String::new();
        loop {
            let char = self.peek()?;
            self.at += 1;
            match char {
                '"' => return Some(out),
                '\0'..'\u{20}' => return None,
                '\\' => {
                    let escape = self.peek()?;
                    self.at += 1;
                    out.push(match escape {
                        '"' | '\\' | '/' => escape,
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'u' => self.unicode()?,
                        _ => return None,
                    });
                }
                other => out.push(other),
            }
        }
    }

    fn unicode(&mut self) -> Option<char> {
        let high = self.hex()?;
        if (0xd800..0xdc00).contains(&high) && self.chars[self.at..].starts_with(&['\\', 'u']) {
            let before = self.at;
            self.at += 2;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                return char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00));
            }
            self.at = before;
        }
        Some(char::from_u32(high).unwrap_or('\u{fffd}'))
    }

    fn hex(&mut self) -> Option<u32> {
        let mut value = 0;
        for _ in 0..4 {
            value = value * 16 + self.peek()?.to_digit(16)?;
            self.at += 1;
        }
        Some(value)
    }
}

fn is_number(word: &str) -> bool {
    let digits =
        |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let mut rest = word.strip_prefix('-').unwrap_or(word);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest.starts_with('0')) {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let length = digits(exponent);
        if length == 0 {
            return false;
        }
        rest = &exponent[length..];
    }
    rest.is_empty() && word.parse::<f64>().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_arrays() {
        let strings = |list: &[&str]| Array::Strings(list.iter().map(|s| s.to_string()).collect());
        assert_eq!(
            array(r#"["a", "b\n\u00e9\ud83d\ude00\ud800"] "#),
            strings(&["a", "b\né😀\u{fffd}"])
        );
        assert_eq!(array("[]"), strings(&[]));
        for mixed in ["[1]", "[null]", "[[\"a\"]]", r#"["a", {"b": []}]"#, "[-1.5e3]"] {
            assert_eq!(array(mixed), Array::Mixed, "{mixed}");
        }
        for none in ["['a']", "[\"a\",]", "[\"a\"] x", "[", "[01]", "[\"a\tb\"]", "[1e999]", "[,]"]
        {
            assert_eq!(array(none), Array::None, "{none}");
        }
        assert_eq!(array(&"[".repeat(100_000)), Array::None);
    }

    #[test]
    fn finds_members() {
        let member = |input| string_member(input, "syntax");
        assert_eq!(
            member(r#" {"x": {"syntax": "no"}, "syntax": "yes", "z": [1]}"#).as_deref(),
            Some("yes")
        );
        assert_eq!(member(r#"{"syntax": 1}"#), None);
        assert_eq!(member(r#"{"syntax": "a""#), None);
    }
}
