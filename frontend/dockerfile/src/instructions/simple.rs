//! Instructions without flags of their own.

use super::flags::Flags;
use super::{check_description, description};
use crate::error::{Error, Kind, Result};
use crate::lint::{Linter, Scope};
use crate::parser::Heredoc;
use crate::{parser::Node, text};

/// A pair of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
    /// Written `key value`.
    pub legacy: bool,
}

/// An item of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Name.
    pub key: String,
    /// Default.
    pub value: Option<String>,
    /// Description taken from the comment above.
    pub description: String,
}

/// Arguments of RUN, CMD or ENTRYPOINT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// One argument in shell form, any number in JSON form.
    pub args: Vec<String>,
    /// Given to a shell.
    pub shell: bool,
    /// Here-documents.
    pub heredocs: Vec<Heredoc>,
}

pub(super) fn command_line(node: &Node) -> Result<CommandLine> {
    Flags::none(node)?;
    Ok(command_line_of(node))
}

pub(super) fn command_line_of(node: &Node) -> CommandLine {
    CommandLine {
        args: joined(&node.args, node.json),
        shell: !node.json,
        heredocs: node.heredocs.clone(),
    }
}

/// JSON arguments as they are, others as one text.
pub(super) fn joined(args: &[String], json: bool) -> Vec<String> {
    if json || args.is_empty() { args.to_vec() } else { vec![args.join(" ")] }
}

pub(super) fn key_values(node: &Node, word: &str) -> Result<Vec<KeyValue>> {
    Flags::none(node)?;
    if node.args.is_empty() {
        return Err(Error::new(Kind::NeedsArgument, [word]));
    }
    node.args
        .chunks_exact(3)
        .map(|triple| match triple[0].as_str() {
            "" => Err(Error::new(Kind::BlankName, [word])),
            key => Ok(KeyValue {
                key: key.to_owned(),
                value: triple[1].clone(),
                legacy: triple[2].is_empty(),
            }),
        })
        .collect()
}

pub(super) fn arg(node: &Node, scope: &Scope, linter: &mut Linter) -> Result<Vec<Arg>> {
    if node.args.is_empty() {
        return Err(Error::new(Kind::NeedsArgument, ["ARG"]));
    }
    let mut list = Vec::with_capacity(node.args.len());
    for arg in &node.args {
        let (key, value) = match arg.split_once('=') {
            Some(("", _)) => return Err(Error::new(Kind::BlankName, ["ARG"])),
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let description = description(&node.comments, key);
        list.push(Arg { key: key.to_owned(), value, description });
    }
    let keys: Vec<&str> = list.iter().map(|arg| arg.key.as_str()).collect();
    check_description("ARG", &keys, node, scope, linter);
    Ok(list)
}

pub(super) fn one(node: &Node, word: &str, check_flags: bool) -> Result<String> {
    let [only] = node.args.as_slice() else {
        return Err(Error::new(Kind::NeedsOneArgument, [word]));
    };
    if check_flags {
        Flags::none(node)?;
    }
    Ok(only.clone())
}

pub(super) fn expose(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        return Err(Error::new(Kind::NeedsArgument, ["EXPOSE"]));
    }
    Flags::none(node)?;
    let mut ports = node.args.clone();
    ports.sort();
    Ok(ports)
}

pub(super) fn volume(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        return Err(Error::new(Kind::NeedsArgument, ["VOLUME"]));
    }
    Flags::none(node)?;
    let volume = |arg: &String| match arg.trim() {
        "" => Err(Error::plain(Kind::VolumeEmpty)),
        path => Ok(path.to_owned()),
    };
    node.args.iter().map(volume).collect()
}

pub(super) fn shell(node: &Node) -> Result<Vec<String>> {
    Flags::none(node)?;
    match (node.args.is_empty(), node.json) {
        (true, _) => Err(Error::new(Kind::NeedsArgument, ["SHELL"])),
        (false, true) => Ok(node.args.clone()),
        (false, false) => Err(Error::plain(Kind::ShellNotJson)),
    }
}

pub(super) fn onbuild(node: &Node) -> Result<String> {
    let Some(sub) = &node.sub else {
        return Err(Error::new(Kind::NeedsArgument, ["ONBUILD"]));
    };
    Flags::none(node)?;
    match text::upper(sub.word.trim()).as_str() {
        "ONBUILD" => return Err(Error::plain(Kind::OnbuildChained)),
        word @ ("MAINTAINER" | "FROM") => return Err(Error::new(Kind::OnbuildForbidden, [word])),
        _ => {}
    }
    let mut expression = without_onbuild(&node.original).to_owned();
    for heredoc in &node.heredocs {
        expression.push('\n');
        expression.push_str(&heredoc.content);
        expression.push_str(&heredoc.name);
    }
    Ok(expression)
}

fn without_onbuild(original: &str) -> &str {
    let space = |char: char| matches!(char, '\t' | '\n' | '\u{c}' | '\r' | ' ');
    let trimmed = original.trim_start_matches(space);
    match trimmed.get(..7) {
        Some(word) if word.eq_ignore_ascii_case("onbuild") => {
            trimmed[7..].trim_start_matches(space)
        }
        _ => original,
    }
}
