//! COPY and ADD.

use super::flags::{Flags, Takes};
use crate::error::{Error, Kind, Result};
use crate::parser::{self, Node};

/// A COPY instruction.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    /// What and where to.
    pub sources: Sources,
    /// Stage, stage index or image; empty for the build context.
    pub from: String,
    /// Keep the folders above each source.
    pub parents: bool,
}

/// An ADD instruction.
#[derive(Debug, Clone, Default)]
pub struct Add {
    /// What and where to.
    pub sources: Sources,
    /// Keep `.git`.
    pub keep_git_dir: Option<bool>,
    /// Expected digest or commit.
    pub checksum: String,
    /// Unpack archives, or do not.
    pub unpack: Option<bool>,
}

/// What COPY and ADD have in common.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Paths, URLs, Git references.
    pub paths: Vec<String>,
    /// Here-documents.
    pub inline: Vec<InlineFile>,
    /// Destination.
    pub destination: String,
    /// `user[:group]`.
    pub chown: String,
    /// Mode.
    pub chmod: String,
    /// Independent of what is below.
    pub link: bool,
    /// Patterns of what to leave out.
    pub exclude: Vec<String>,
}

/// A here-document used as a file.
#[derive(Debug, Clone, Default)]
pub struct InlineFile {
    /// File name.
    pub name: String,
    /// Content.
    pub data: String,
    /// Expand variables in the content.
    pub expand: bool,
}

pub(super) fn parse_copy(node: &Node) -> Result<Copy> {
    check_count(node, "COPY")?;
    let known = [
        ("chown", Takes::Value),
        ("from", Takes::Value),
        ("chmod", Takes::Value),
        ("link", Takes::Bool),
        ("exclude", Takes::Values),
        ("parents", Takes::Bool),
    ];
    let flags = Flags::parse(node, &known)?;
    Ok(Copy {
        sources: sources(node, &flags, "COPY")?,
        from: flags.value("from"),
        parents: flags.switch("parents").unwrap_or(false),
    })
}

pub(super) fn parse_add(node: &Node) -> Result<Add> {
    check_count(node, "ADD")?;
    let known = [
        ("chown", Takes::Value),
        ("chmod", Takes::Value),
        ("link", Takes::Bool),
        ("keep-git-dir", Takes::Bool),
        ("checksum", Takes::Value),
        ("unpack", Takes::Bool),
        ("exclude", Takes::Values),
    ];
    let flags = Flags::parse(node, &known)?;
    Ok(Add {
        sources: sources(node, &flags, "ADD")?,
        keep_git_dir: flags.switch("keep-git-dir"),
        checksum: flags.value("checksum"),
        unpack: flags.switch("unpack"),
    })
}

fn check_count(node: &Node, word: &str) -> Result<()> {
    if node.args.len() < 2 {
        return Err(Error::new(Kind::NeedsDestination, [word]));
    }
    Ok(())
}

fn sources(node: &Node, flags: &Flags, word: &str) -> Result<Sources> {
    let (destination, args) = node.args.split_last().expect("the count was checked");
    if parser::heredoc_word(destination).is_some() {
        return Err(Error::new(Kind::HeredocDestination, [word]));
    }
    let mut sources = Sources {
        destination: destination.clone(),
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link").unwrap_or(false),
        exclude: flags.values("exclude").map(str::to_owned).collect(),
        ..Sources::default()
    };
    for arg in args {
        match parser::heredoc_word(arg) {
            None => sources.paths.push(arg.clone()),
            Some(doc) => {
                let content = node.heredocs.iter().rev().find(|other| other.name == doc.name);
                let content = content.map_or("", |found| &found.content);
                let data = if doc.chomp { parser::chomp(content) } else { content.to_owned() };
                sources.inline.push(InlineFile { name: doc.name, data, expand: doc.expand });
            }
        }
    }
    Ok(sources)
}
