//! FROM: `[--platform=P] image [AS name]`.

use super::flags::{Flags, Takes};
use super::{Stage, check_description, description};
use crate::error::{Error, Kind, Result};
use crate::lint::{Linter, Rule, Scope};
use crate::{parser::Node, text};

pub(super) fn parse(node: &Node, scope: &Scope, linter: &mut Linter) -> Result<Stage> {
    check_casing(node, scope, linter);
    let (base, name) = match node.args.as_slice() {
        [base] => (base, String::new()),
        [base, word, name] if text::equal_fold(word, "as") => (base, stage_name(name)?),
        _ => return Err(Error::plain(Kind::FromArgCount)),
    };
    let flags = Flags::parse(node, &[("platform", Takes::Value)])?;
    if !name.is_empty() {
        check_description("FROM", &[&name], node, scope, linter);
    }
    Ok(Stage {
        base: base.clone(),
        platform: flags.value("platform"),
        word: node.word.clone(),
        code: node.original.trim().to_owned(),
        description: description(&node.comments, &name),
        lines: node.lines,
        comments: node.comments.clone(),
        instructions: Vec::new(),
        name,
    })
}

fn stage_name(written: &str) -> Result<String> {
    let name = text::lower(written);
    let valid = name.starts_with(|char: char| char.is_ascii_lowercase())
        && name
            .chars()
            .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || "-_.".contains(char));
    if valid { Ok(name) } else { Err(Error::new(Kind::InvalidStageName, [text::quote(written)])) }
}

fn check_casing(node: &Node, scope: &Scope, linter: &mut Linter) {
    let [_, word, rest @ ..] = node.args.as_slice() else { return };
    if let [name] = rest
        && *name != text::lower(name)
    {
        let message = format!("Stage name '{}' should be lowercase", text::lossy(name));
        linter.report(scope, Rule::StageNameCasing, node.lines, message);
    }
    if rest.is_empty() {
        return;
    }
    let matches = if node.word == text::lower(&node.word) {
        *word == text::lower(word)
    } else {
        node.word != text::upper(&node.word) || *word == text::upper(word)
    };
    if !matches {
        let message =
            format!("'{}' and '{}' keywords' casing do not match", text::lossy(word), node.word);
        linter.report(scope, Rule::FromAsCasing, node.lines, message);
    }
}
