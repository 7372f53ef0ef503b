//! Which stages a file has.

use bytes::Bytes;
use frontend_api::FrontendResult;
use serde::Serialize;

use super::{Base64, Location, documents, json, table};
use crate::context::DockerfileSource;
use crate::error::Result;
use crate::frontend::location;
use crate::lint::Linter;
use crate::{instructions, parser, text};

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It is built if no target is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// Its description.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its base, unexpanded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// Its platform, unexpanded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Where it is.
    pub location: Location,
    /// Its first line.
    #[serde(skip)]
    pub line: u32,
}

#[derive(Serialize)]
struct List {
    targets: Vec<Target>,
    sources: [Base64; 1],
}

/// The stages of a file.
pub fn targets(source: &[u8]) -> Result<Vec<Target>> {
    let file = parser::parse(source)?;
    let program = instructions::parse(&file, &mut Linter::silent())?;
    let last = program.stages.len().saturating_sub(1);
    let target = |(number, stage): (usize, instructions::Stage)| Target {
        default: number == last,
        description: text::lossy(&stage.description),
        base: text::lossy(&stage.base),
        platform: text::lossy(&stage.platform),
        location: location(0, &[stage.lines]).into(),
        line: stage.lines.first,
        name: stage.name,
    };
    Ok(program.stages.into_iter().enumerate().map(target).collect())
}

pub(super) fn answer(source: &DockerfileSource) -> Result<FrontendResult> {
    let targets = targets(&source.data)?;
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in &targets {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, target.description.clone()]);
    }
    let text = Bytes::from(table::render(&rows, 1));
    let list = List { targets, sources: [Base64(source.data.clone())] };
    Ok(documents("1.0.0", vec![("result.json", json(&list)), ("result.txt", text)]))
}
