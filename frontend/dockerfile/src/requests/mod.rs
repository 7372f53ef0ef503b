//! Sub-requests: questions about a Dockerfile that need no build.
//!
//! Each answers with documents in the result's metadata: `result.json` for programs and
//! `result.txt` for people.
//!
//! Source: Dockerfile notes §16.4; gateway notes §7.

mod convert;
mod lint;
mod outline;
mod table;
mod targets;

use std::collections::BTreeMap;

use bytes::Bytes;
use frontend_api::FrontendResult;
use llb::pb;
use serde::Serialize;

use crate::context::{Client, DockerfileSource};
use crate::error::{Error, Kind, Result};

pub use lint::{BuildError, LintResult, lint};
pub use targets::{Target, targets};

/// Answers the request `id`.
pub async fn answer(
    client: &Client,
    source: &DockerfileSource,
    id: &str,
) -> Result<FrontendResult> {
    match id {
        "frontend.subrequests.describe" => Ok(describe()),
        "frontend.outline" => outline::answer(client, source).await,
        "frontend.targets" => targets::answer(source),
        "frontend.convertllb" => convert::answer(client, source).await,
        "frontend.lint" => lint::answer(client, source).await,
        _ => Err(Error::new(Kind::UnsupportedRequest, [id])),
    }
}

/// A result of documents.
fn documents(version: &'static str, documents: Vec<(&str, Bytes)>) -> FrontendResult {
    let mut result = FrontendResult::default();
    let owned = documents.into_iter().map(|(name, value)| (name.to_owned(), value));
    result.metadata = owned.collect();
    result.metadata.insert("version".to_owned(), version.into());
    result
}

fn json<T: Serialize>(value: &T) -> Bytes {
    base::gojson::to_vec_indented(value).into()
}

#[derive(Serialize)]
struct Description {
    name: &'static str,
    version: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: Option<Vec<Named>>,
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

fn describe() -> FrontendResult {
    let documents_of = || {
        let named = |name| Named { name, description: "" };
        Some(vec![named("result.json"), named("result.txt")])
    };
    let request = |name, description, opts| Description {
        name,
        version: "1.0.0",
        kind: "rpc",
        description,
        opts,
        inputs: None,
        metadata: documents_of(),
        refs: None,
    };
    let target = Named { name: "target", description: "Target build stage" };
    let list = [
        request(
            "frontend.outline",
            "List all parameters current build target supports",
            Some(vec![target]),
        ),
        request("frontend.targets", "List all targets current build supports", Some(Vec::new())),
        request("frontend.subrequests.describe", "List available subrequest types", None),
    ];
    let mut rows = vec![vec!["NAME".to_owned(), "VERSION".to_owned(), "DESCRIPTION".to_owned()]];
    for request in &list {
        let name = request.name.trim_start_matches("frontend.");
        rows.push([name, request.version, request.description].map(str::to_owned).to_vec());
    }
    let text = table::render(&rows, 1);
    documents("1.0.0", vec![("result.json", json(&list)), ("result.txt", text.into())])
}

/// A place in documents: zero members are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Location {
    #[serde(rename = "sourceIndex", skip_serializing_if = "base::gojson::is_zero")]
    source_index: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Position {
    #[serde(skip_serializing_if = "base::gojson::is_zero")]
    line: i32,
    #[serde(skip_serializing_if = "base::gojson::is_zero")]
    character: i32,
}

impl From<pb::Location> for Location {
    fn from(location: pb::Location) -> Self {
        let position = |position: Option<pb::Position>| {
            let pb::Position { line, character } = position.unwrap_or_default();
            Position { line, character }
        };
        let range =
            |range: pb::Range| Range { start: position(range.start), end: position(range.end) };
        Self {
            source_index: location.source_index,
            ranges: location.ranges.into_iter().map(range).collect(),
        }
    }
}

/// Bytes as base64.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Base64(#[serde(serialize_with = "base::gojson::base64_bytes")] Bytes);

/// A source file in documents.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct SourceInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "is_empty")]
    data: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
}

fn is_empty(data: &Base64) -> bool {
    data.0.is_empty()
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Definition {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    def: Vec<Base64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, Metadata>,
    #[serde(rename = "Source", skip_serializing_if = "Option::is_none")]
    source: Option<Locations>,
}

/// Which ops there are; the graph a file is read from has no locations of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Locations {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Metadata {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_cache: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    description: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    caps: BTreeMap<String, bool>,
}

impl From<&pb::SourceInfo> for SourceInfo {
    fn from(info: &pb::SourceInfo) -> Self {
        let metadata = |metadata: &pb::OpMetadata| Metadata {
            ignore_cache: metadata.ignore_cache,
            description: metadata.description.clone(),
            caps: metadata.caps.clone(),
        };
        let definition = |definition: &pb::Definition| Definition {
            def: definition.def.iter().cloned().map(Base64).collect(),
            metadata: definition
                .metadata
                .iter()
                .map(|(digest, entry)| (digest.clone(), metadata(entry)))
                .collect(),
            source: definition.source.as_ref().map(|source| Locations {
                locations: source
                    .locations
                    .keys()
                    .map(|digest| (digest.clone(), BTreeMap::new()))
                    .collect(),
            }),
        };
        Self {
            filename: info.filename.clone(),
            data: Base64(info.data.clone()),
            definition: info.definition.as_ref().map(definition),
            language: info.language.clone(),
        }
    }
}
