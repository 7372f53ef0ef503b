//! Parser directives: `# name=value` lines at the very top.
//!
//! A [`Block`] is fed line after line and ends for good at the first line of another kind.

use super::{File, json};
use crate::error::{Error, Kind, Result};
use crate::text;

/// A recognised directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// The value.
    pub value: String,
    /// Where it stands, counted from 1.
    pub line: u32,
}

/// Which frontend a file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax {
    /// Its image.
    pub reference: String,
    /// The whole value.
    pub cmdline: String,
    /// Where it is said.
    pub line: u32,
}

/// State of reading a block of directives.
pub struct Block {
    comment: &'static str,
    seen: Vec<String>,
    done: bool,
}

impl Block {
    /// Directives are comments that start with `comment`.
    pub fn new(comment: &'static str) -> Self {
        Self { comment, seen: Vec::new(), done: false }
    }

    /// Reads a line without its end; `before` lines stand above it.
    pub fn line(&mut self, line: &str, before: u32) -> Result<Option<Directive>> {
        if self.done {
            return Ok(None);
        }
        let found =
            line.strip_prefix(self.comment).and_then(|rest| name_and_value(rest.trim_start()));
        let Some((name, value)) = found else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Error::new(Kind::DuplicateDirective, [name]));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive { name, value: value.to_owned(), line: before + 1 }))
    }
}

impl Directive {
    /// Makes it count for the rest of the file.
    pub fn apply(&self, file: &mut File) -> Result<()> {
        if self.name == "escape" {
            file.escape = match self.value.as_str() {
                "\\" => '\\',
                "`" => '`',
                other => return Err(Error::new(Kind::InvalidEscape, [other])),
            };
        }
        Ok(())
    }
}

/// `name = value` with a known name.
fn name_and_value(line: &str) -> Option<(String, &str)> {
    let space = |char: char| matches!(char, '\t' | '\n' | '\u{c}' | '\r' | ' ');
    let length = line.find(|char: char| !char.is_ascii_alphanumeric()).unwrap_or(line.len());
    let (name, rest) = line.split_at(length);
    if !name.starts_with(|char: char| char.is_ascii_alphabetic()) {
        return None;
    }
    let rest = rest.trim_start_matches(space).strip_prefix('=')?;
    let mut value = rest.trim_matches(space);
    if value.is_empty() {
        // The value needs one character, and takes the last blank if there is nothing else.
        value = rest.char_indices().last().map(|(at, _)| &rest[at..])?;
    }
    if value.contains('\n') {
        return None;
    }
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), "syntax" | "escape" | "check").then_some((name, value))
}

/// The value of a `check=` comment above an instruction.
pub fn check_comment(comment: &str) -> Option<&str> {
    let (name, value) = name_and_value(comment.trim_start())?;
    (name == "check").then_some(value)
}

/// Value of the directive `name` of a file.
pub fn directive(name: &str, source: &[u8]) -> Option<Directive> {
    let (body, before) = body(source);
    find(name, body, before, "#")
}

/// Which frontend a file asks for: in a `#` block, a `//` block, or as member of a JSON object.
pub fn detect_syntax(source: &[u8]) -> Option<Syntax> {
    let (body, before) = body(source);
    let found = ["#", "//"].into_iter().find_map(|comment| find("syntax", body, before, comment));
    if let Some(directive) = found {
        let (reference, _) = directive.value.split_once(' ').unwrap_or((&directive.value, ""));
        return Some(Syntax {
            reference: reference.to_owned(),
            line: directive.line,
            cmdline: directive.value,
        });
    }
    let value = json::string_member(&text::from_bytes(body), "syntax")?;
    Some(Syntax { reference: value.clone(), cmdline: value, line: before })
}

/// The file without byte order mark and `#!` line, and how many lines that took.
fn body(source: &[u8]) -> (&[u8], u32) {
    let source = source.strip_prefix(b"\xef\xbb\xbf").unwrap_or(source);
    if !source.starts_with(b"#!") {
        return (source, 0);
    }
    let end = source.iter().position(|byte| *byte == b'\n').map_or(source.len(), |at| at + 1);
    (&source[end..], 1)
}

fn find(name: &str, body: &[u8], before: u32, comment: &'static str) -> Option<Directive> {
    let mut block = Block::new(comment);
    for (number, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.len() >= super::lines::MAX_LINE {
            return None;
        }
        let line = text::from_bytes(line.strip_suffix(b"\r").unwrap_or(line));
        let directive = block.line(&line, before + number as u32).ok()??;
        if directive.name == name {
            return Some(directive);
        }
    }
    None
}
