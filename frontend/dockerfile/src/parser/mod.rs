//! From bytes to a list of instructions as written: the syntax phase.
//!
//! [`parse`] reads logical lines (directives, comments, continuations), splits each into word,
//! flags and arguments, and attaches here-documents. It knows which splitter an instruction word
//! uses but nothing of what instructions mean.
//!
//! Source: Dockerfile notes §3–5. Invariant: nodes are in file order and their lines never overlap.

mod args;
mod directives;
mod heredoc;
mod json;
mod lines;

use crate::error::{Error, Kind, Lines, Result};
use crate::text;

pub use directives::{Directive, Syntax, check_comment, detect_syntax, directive};
pub use heredoc::{Heredoc, Word as HeredocWord, chomp, word as heredoc_word};

/// Nested ONBUILD words beyond this are not looked into; the second one is an error already.
const MAX_ONBUILD: usize = 8;

/// A Dockerfile after the syntax phase.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// The escape character.
    pub escape: char,
    /// Recognised parser directives.
    pub directives: Vec<Directive>,
    /// Instructions in order.
    pub nodes: Vec<Node>,
    /// Last lines of instructions that hold an empty continuation line.
    pub empty_continuations: Vec<u32>,
}

/// One instruction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// The instruction word as written.
    pub word: String,
    /// The logical line.
    pub original: String,
    /// Builder flags, quotes removed.
    pub flags: Vec<String>,
    /// Arguments; ENV and LABEL have triples of key, value and `=` or nothing.
    pub args: Vec<String>,
    /// The arguments were a JSON array.
    pub json: bool,
    /// Here-documents in order.
    pub heredocs: Vec<Heredoc>,
    /// Where it stands.
    pub lines: Lines,
    /// The comment block directly above.
    pub comments: Vec<String>,
    /// The instruction inside ONBUILD.
    pub sub: Option<Box<Node>>,
}

/// Reads a Dockerfile.
pub fn parse(source: &[u8]) -> Result<File> {
    let mut reader = lines::Reader::new(source);
    let mut file = File { escape: '\\', ..File::default() };
    while let Some(line) = reader.logical(&mut file)? {
        let mut node = node(&line.text, file.escape, 0).map_err(|error| error.at(line.lines))?;
        node.comments = line.comments;
        node.lines = line.lines;
        if node.takes_heredocs() && line.text.contains("<<") {
            for word in heredoc::words(&line.text) {
                let content = reader.heredoc(&word).ok_or_else(|| {
                    let lines = Lines { last: reader.line(), ..line.lines };
                    Error::noted(Kind::UnterminatedHeredoc, &word.name).at(lines)
                })?;
                node.heredocs.push(Heredoc::new(word, content));
                node.lines.last = reader.line();
            }
        }
        file.nodes.push(node);
    }
    if file.nodes.is_empty() {
        return Err(Error::plain(Kind::NoInstructions).at(Lines::one(reader.line())));
    }
    if reader.too_long() {
        let limit = [(lines::MAX_LINE - 1).to_string()];
        return Err(Error::new(Kind::LineTooLong, limit).at(Lines::one(reader.line())));
    }
    Ok(file)
}

/// Splits one logical line.
fn node(line: &str, escape: char, depth: usize) -> Result<Node> {
    let trimmed = line.trim();
    let (word, rest) = match text::split_words(trimmed, 2).as_slice() {
        [word, rest] => (*word, *rest),
        _ => (trimmed, ""),
    };
    let (flags, rest) = args::flags(rest, escape);
    let mut node =
        Node { word: word.to_owned(), original: line.to_owned(), flags, ..Node::default() };
    let rest = rest.trim();
    match text::lower(word).as_str() {
        "onbuild" if rest.is_empty() || depth == MAX_ONBUILD => {}
        "onbuild" => node.sub = Some(Box::new(self::node(rest, escape, depth + 1)?)),
        word => {
            let split = args::split(word, rest, escape)?;
            node.args = split.args;
            node.json = split.json;
        }
    }
    Ok(node)
}

impl Node {
    /// The arguments as the instruction phase sees them: those of ONBUILD are its instruction's
    /// word and arguments.
    pub fn all_args(&self) -> Vec<String> {
        let mut all = self.args.clone();
        let mut node = self;
        while let Some(sub) = &node.sub {
            all.push(sub.word.clone());
            all.extend(sub.args.iter().cloned());
            node = sub;
        }
        all
    }

    fn takes_heredocs(&self) -> bool {
        let node = self.sub.as_deref().unwrap_or(self);
        matches!(text::lower(&node.word).as_str(), "add" | "copy" | "run") && !node.json
    }
}

#[cfg(test)]
mod tests;
