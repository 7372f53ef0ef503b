//! Here-documents: recognising `<<NAME` words.
//!
//! Source: Dockerfile notes §5.

use crate::shell::{Empty, Lexer};
use crate::text;

/// A here-document with its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heredoc {
    /// The end word, which is also the file name.
    pub name: String,
    /// File descriptor before `<<`.
    pub descriptor: u64,
    /// Variables are expanded.
    pub expand: bool,
    /// Leading tabs are removed.
    pub chomp: bool,
    /// The lines as read.
    pub content: String,
}

/// A here-document word such as `<<-EOF`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The end word.
    pub name: String,
    /// File descriptor.
    pub descriptor: u64,
    /// No part of the word was quoted.
    pub expand: bool,
    /// Written with `<<-`.
    pub chomp: bool,
}

impl Heredoc {
    pub(super) fn new(word: Word, content: String) -> Self {
        let Word { name, descriptor, expand, chomp } = word;
        Self { name, descriptor, expand, chomp, content }
    }
}

/// The here-document words of a logical line; none if the line cannot be split into words.
pub(super) fn words(line: &str) -> Vec<Word> {
    let lexer = Lexer { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lexer::new('\\') };
    let words = lexer.words(line, &Empty).unwrap_or_default();
    words.iter().filter_map(|part| word(part)).collect()
}

/// Reads one word.
pub fn word(input: &str) -> Option<Word> {
    let rest = input.trim_start_matches(|char: char| char.is_ascii_digit());
    let digits = &input[..input.len() - rest.len()];
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let lexer = Lexer { skip_unset: true, ..Lexer::new('\\') };
    let mut plain = lexer.words(rest, &Empty).ok()?;
    let raw = Lexer { raw_quotes: true, ..lexer }.words(rest, &Empty).ok()?;
    if plain.len() != 1 || raw.len() != 1 {
        return None;
    }
    let name = plain.remove(0);
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Some(Word {
        expand: quotes(&name) == quotes(&raw[0]),
        name,
        descriptor: digits.parse().unwrap_or(if digits.is_empty() { 0 } else { u64::MAX }),
        chomp,
    })
}

/// Removes the leading tabs of every line.
pub fn chomp(content: &str) -> String {
    let mut out = String::with_capacity(content.len());
    for line in content.split_inclusive('\n') {
        out.push_str(line.trim_start_matches('\t'));
    }
    out
}

/// A short form for display: the first line, and dots if there are more.
pub fn summary(content: &str) -> String {
    let content = content.trim().replace("\r\n", "\n");
    let mut lines = content.split('\n');
    let first = lines.next().unwrap_or_default().to_owned();
    if lines.next().is_some() { first + "..." } else { first }
}

impl Heredoc {
    /// The content as it is used.
    pub fn data(&self) -> String {
        if self.chomp { chomp(&self.content) } else { self.content.clone() }
    }

    /// A short form for display.
    pub fn summary(&self) -> String {
        summary(&self.content)
    }
}

/// A word as it is shown.
impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<<{}", text::lossy(&self.name))
    }
}
