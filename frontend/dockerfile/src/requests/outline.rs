//! What a target can be given.

use bytes::Bytes;
use frontend_api::FrontendResult;
use serde::Serialize;

use super::{Base64, Location, documents, json, table};
use crate::context::{Client, DockerfileSource};
use crate::error::Result;
use crate::frontend::{location, warn};
use crate::lint::Linter;
use crate::lower::outline::{ArgInfo, Outline, Required};
use crate::lower::{self, Request};
use crate::text;

#[derive(Serialize)]
struct Document {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Need>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Need>,
    sources: [Base64; 1],
}

#[derive(Serialize)]
struct Arg {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    location: Location,
}

#[derive(Serialize)]
struct Need {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

pub(super) async fn answer(client: &Client, source: &DockerfileSource) -> Result<FrontendResult> {
    let config = lower::lint_config(client, &source.data)?;
    let mut linter = Linter::new(config);
    let converted = lower::convert(client, source, &Request::default(), &mut linter).await;
    warn(client, source, &linter).await;
    let document = document(converted?.outline, source);
    let text = Bytes::from(show(&document));
    Ok(documents("1.0.0", vec![("result.json", json(&document)), ("result.txt", text)]))
}

fn document(outline: Outline, source: &DockerfileSource) -> Document {
    let arg = |(name, info): (String, ArgInfo)| Arg {
        name: text::lossy(&name),
        description: text::lossy(&info.description),
        value: text::lossy(&info.value),
        location: location(0, &[info.lines]).into(),
    };
    let need = |(name, info): (String, Required)| Need {
        name: text::lossy(&name),
        required: info.required,
        location: location(0, &[info.lines]).into(),
    };
    Document {
        name: outline.name,
        description: text::lossy(&outline.description),
        args: outline.args.into_iter().map(arg).collect(),
        secrets: outline.secrets.into_iter().map(need).collect(),
        ssh: outline.ssh.into_iter().map(need).collect(),
        sources: [Base64(source.data.clone())],
    }
}

fn show(document: &Document) -> String {
    let mut out = String::new();
    if !document.name.is_empty() || !document.description.is_empty() {
        let name = if document.name.is_empty() { "(default)" } else { &document.name };
        let mut rows = vec![vec!["TARGET:".to_owned(), name.to_owned()]];
        if !document.description.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_owned(), document.description.clone()]);
        }
        out.push_str(&table::render(&rows, 1));
        out.push('\n');
    }
    if !document.args.is_empty() {
        let head = ["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned).to_vec();
        let rows = document
            .args
            .iter()
            .map(|arg| vec![arg.name.clone(), arg.value.clone(), arg.description.clone()]);
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        out.push_str(&table::render(&rows, 3));
        out.push('\n');
    }
    for (title, needs) in [("SECRET", &document.secrets), ("SSH", &document.ssh)] {
        if needs.is_empty() {
            continue;
        }
        let head = vec![title.to_owned(), "REQUIRED".to_owned()];
        let rows = needs.iter().map(|need| {
            vec![need.name.clone(), if need.required { "true" } else { "" }.to_owned()]
        });
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        out.push_str(&table::render(&rows, 3));
        out.push('\n');
    }
    out
}
