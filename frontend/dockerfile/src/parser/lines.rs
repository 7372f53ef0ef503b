//! Physical lines to logical lines.
//!
//! The reader owns the position; [`Reader::logical`] gives the next instruction's text and
//! [`Reader::heredoc`] the raw lines after it.

use super::{File, HeredocWord, directives};
use crate::error::{Lines, Result};
use crate::text;

/// Longest physical line, its end included.
pub const MAX_LINE: usize = 65536;

/// Reads a source line by line.
pub struct Reader<'a> {
    rest: &'a [u8],
    line: u32,
    too_long: bool,
    directives: directives::Block,
    comments: Vec<String>,
}

/// A logical line.
pub struct Logical {
    /// Continuation lines joined.
    pub text: String,
    /// Where it stands, here-documents excluded.
    pub lines: Lines,
    /// The comment block above.
    pub comments: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a [u8]) -> Self {
        Self {
            rest: source,
            line: 0,
            too_long: false,
            directives: directives::Block::new("#"),
            comments: Vec::new(),
        }
    }

    /// Lines read so far.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Whether reading ended at a line that is too long.
    pub fn too_long(&self) -> bool {
        self.too_long
    }

    /// The next instruction, comments and directives before it consumed.
    pub fn logical(&mut self, file: &mut File) -> Result<Option<Logical>> {
        while let Some(raw) = self.physical() {
            if is_comment(&raw) {
                // One byte is dropped, even of white space that takes more.
                let rest = text::from_bytes(&text::to_bytes(&raw)[1..]);
                match rest.trim() {
                    "" => self.comments.clear(),
                    comment => self.comments.push(comment.to_owned()),
                }
            }
            let stripped = raw.trim_end_matches(['\r', '\n']).trim_start();
            // Up to here the line is not counted: errors name the line before.
            let directive = self
                .directives
                .line(stripped, self.line)
                .and_then(|directive| {
                    directive.iter().try_for_each(|directive| directive.apply(file))?;
                    Ok(directive)
                })
                .map_err(|error| error.at(Lines::one(self.line)))?;
            self.line += 1;
            if let Some(directive) = directive {
                self.comments.pop();
                file.directives.push(directive);
            }
            let first = self.line;
            let stripped = if is_comment(stripped) { "" } else { stripped };
            let (head, mut more) = continued(stripped, file.escape);
            if !more && head.is_empty() {
                continue;
            }
            let mut text = head.to_owned();
            let mut empty = false;
            while more {
                let Some(raw) = self.physical() else { break };
                let stripped = raw.trim_end_matches(['\r', '\n']);
                self.line += 1;
                if is_comment(&raw) {
                    continue;
                }
                if stripped.trim_start().is_empty() {
                    empty = true;
                    continue;
                }
                let (part, goes_on) = continued(stripped, file.escape);
                text.push_str(part);
                more = goes_on;
            }
            if empty {
                file.empty_continuations.push(self.line);
            }
            let lines = Lines { first, last: self.line };
            return Ok(Some(Logical { text, lines, comments: std::mem::take(&mut self.comments) }));
        }
        Ok(None)
    }

    /// The raw lines up to the one that ends `word`; nothing if there is none.
    pub fn heredoc(&mut self, word: &HeredocWord) -> Option<String> {
        let mut content = String::new();
        while let Some(raw) = self.physical() {
            self.line += 1;
            let mut end = raw.trim_end_matches(['\r', '\n']);
            if word.chomp {
                end = end.trim_start_matches('\t');
            }
            if end == word.name {
                return Some(content);
            }
            content.push_str(&raw);
        }
        None
    }

    /// The next physical line with its end, not yet counted.
    fn physical(&mut self) -> Option<String> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let length = end.unwrap_or(self.rest.len());
        if length > MAX_LINE || (end.is_none() && length == MAX_LINE) {
            self.too_long = true;
            return None;
        }
        let (mut line, rest) = self.rest.split_at(length);
        self.rest = rest;
        if self.line == 0 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        Some(text::from_bytes(line))
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without its continuation mark, and whether it had one. An escape character before
/// the mark makes it an ordinary character.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(head) if !head.ends_with(escape) => (head, true),
        _ => (line, false),
    }
}
