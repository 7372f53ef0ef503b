//! Keeps the pictures true: the layer table against the dependency graph, module docs, file
//! endings, links of the documents.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{cargo, output};

/// Checks everything and lists all that is wrong.
pub fn check(root: &Path) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    layers(root, &mut wrong)?;
    for file in files(root)? {
        let text = match std::fs::read_to_string(root.join(&file)) {
            Ok(text) => text,
            Err(_) => continue,
        };
        let name = file.display();
        if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
            wrong.push(format!("{name}: does not end in exactly one newline"));
        }
        if file.extension().is_some_and(|extension| extension == "rs") && !text.starts_with("//!") {
            wrong.push(format!("{name}: does not open with module docs"));
        }
        if file.extension().is_some_and(|extension| extension == "md") {
            links(root, &file, &text, &mut wrong);
        }
    }
    if wrong.is_empty() {
        println!("tidy: all true");
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "));
}

/// Text files that git knows, but for recorded vectors and corpora.
fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = output(std::process::Command::new("git").current_dir(root).args(["ls-files"]))?;
    let recorded = |line: &&str| !line.starts_with("tests/golden/") && !line.contains("/corpus/");
    Ok(list
        .lines()
        .filter(recorded)
        .filter(|line| {
            [".rs", ".md", ".toml", ".proto", ".go"].iter().any(|ending| line.ends_with(ending))
        })
        .map(PathBuf::from)
        .collect())
}

/// The rows of ARCHITECTURE.md by crate.
fn rows(text: &str) -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    let picture = text.split("```").nth(1).unwrap_or_default();
    for line in picture.lines() {
        let mut words = line.split_whitespace();
        let Some(row) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words.skip(1) {
            rows.insert(name.to_owned(), row);
        }
    }
    rows
}

fn layers(root: &Path, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("read ARCHITECTURE.md")?;
    let rows = rows(&text);
    let metadata = output(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: Vec<String> = packages.iter().map(name).collect();
    for package in packages {
        let from = name(package);
        let Some(row) = rows.get(&from) else {
            wrong.push(format!("ARCHITECTURE.md: crate {from} is missing from the map"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = name(dependency);
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if is_dev || !ours.contains(&to) {
                continue;
            }
            let below = rows.get(&to).is_some_and(|other| other < row);
            if !below && (from.as_str(), to.as_str()) != ("proto", "llb") {
                wrong.push(format!("{from} (row {row}) uses {to}, which is not below it"));
            }
        }
    }
    for name in rows.keys().filter(|name| !ours.contains(name)) {
        wrong.push(format!("ARCHITECTURE.md: there is no crate {name}"));
    }
    Ok(())
}

/// Relative links must lead to files.
fn links(root: &Path, file: &Path, text: &str, wrong: &mut Vec<String>) {
    let folder = file.parent().unwrap_or(Path::new(""));
    for piece in text.split("](").skip(1) {
        let Some(target) = piece.split(')').next() else { continue };
        let target = target.split('#').next().unwrap_or_default();
        if target.is_empty() || target.contains("://") {
            continue;
        }
        if !root.join(folder).join(target).exists() {
            wrong.push(format!("{}: link to {target} leads nowhere", file.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_true() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn rows_are_read_from_the_picture() {
        let rows = rows("x\n```\n 1 models  a  b\n 0 ground  c\n```\n 5 no d");
        assert_eq!(
            rows,
            [("a", 1), ("b", 1), ("c", 0)].map(|(name, row)| (name.to_owned(), row)).into()
        );
    }
}
