//! Errors between their typed form and gRPC statuses.
//!
//! Details travel as JSON inside `Any`, named by Go type paths; clients print Dockerfile lines from
//! them. Unknown details are passed on unchanged. Every status tells which process it comes from, for
//! those who ask for details of an error. Source: control notes §13.

use std::panic::Location;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use frontend_api::{Code, ErrorDetail, ErrorSource, FrontendError, Remains, Subject};
use llb::pb;
use prost::Message as _;
use proto::google::rpc;
use serde_json::{Map, Value, json};

use crate::protojson;

const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";
const SOLVE: &str = "github.com/moby/buildkit/errdefs.Solve+json";
const STACK: &str = "github.com/moby/buildkit/stack.Stack+json";
const VERTEX: &str = "github.com/moby/buildkit/errdefs.Vertex+json";

/// A status for the wire, with all details.
#[track_caller]
pub fn to_tonic(error: &FrontendError) -> tonic::Status {
    let status = to_wire(error);
    tonic::Status::with_details(
        tonic::Code::from_i32(status.code),
        status.message.clone(),
        Bytes::from(status.encode_to_vec()),
    )
}

/// As the message that history records and `Return` carry.
#[track_caller]
pub fn to_wire(error: &FrontendError) -> rpc::Status {
    let mut details = Vec::new();
    if !error.vertex.is_empty() {
        details.push(any(VERTEX, &json!({"digest": error.vertex})));
    }
    details.extend(error.sources.iter().map(|source| any(SOURCE, &source_json(source))));
    details.extend(error.details.iter().map(|detail| prost_types::Any {
        type_url: detail.type_url.clone(),
        value: detail.value.to_vec(),
    }));
    let own = std::process::id();
    let is_own = |detail: &ErrorDetail| {
        detail.type_url == STACK
            && serde_json::from_slice::<Value>(&detail.value).is_ok_and(|json| json["pid"] == own)
    };
    if !error.details.iter().any(is_own) {
        details.push(any(STACK, &stack(Location::caller())));
    }
    rpc::Status { code: error.code as i32, message: error.message.clone(), details }
}

/// From a status message; sources and vertex become typed again.
pub fn from_wire(status: &rpc::Status) -> FrontendError {
    let mut error = FrontendError::with_code(Code::from_i32(status.code), status.message.clone());
    for detail in &status.details {
        let json: Option<Value> = serde_json::from_slice(&detail.value).ok();
        match (detail.type_url.as_str(), json) {
            (VERTEX, Some(json)) if error.vertex.is_empty() => {
                error.vertex = json["digest"].as_str().unwrap_or_default().to_owned();
            }
            (SOURCE, Some(json)) => match source_from_json(&json) {
                Some(source) => error.sources.push(source),
                None => error.details.push(kept(detail)),
            },
            _ => error.details.push(kept(detail)),
        }
    }
    error
}

/// Puts what a vertex left behind into the details, its trees by the ids they were given.
pub(crate) fn add_remains(
    error: &mut FrontendError,
    remains: &Remains,
    inputs: &[String],
    mounts: &[String],
) {
    let mut json = Map::new();
    if !inputs.is_empty() {
        json.insert("inputIDs".into(), inputs.into());
    }
    if !mounts.is_empty() {
        json.insert("mountIDs".into(), mounts.into());
    }
    match protojson::of("pb.Op", &remains.op.encode_to_vec()) {
        Ok(op) => _ = json.insert("op".into(), op),
        Err(error) => tracing::warn!(%error, "a failed operation cannot be told of"),
    }
    // Zeros are left out, as everywhere in this form.
    let subject = |index: usize| match index {
        0 => json!({}),
        index => json!({"index": index.to_string()}),
    };
    match remains.subject {
        Some(Subject::Action(index)) => _ = json.insert("file".into(), subject(index)),
        Some(Subject::Input(index)) => _ = json.insert("cache".into(), subject(index)),
        None => {}
    }
    if !remains.description.is_empty() {
        json.insert("description".into(), json!(remains.description));
    }
    error.details.retain(|detail| detail.type_url != SOLVE);
    let value = base::gojson::to_vec(&Value::from(json)).into();
    error.details.push(ErrorDetail { type_url: SOLVE.into(), value });
}

/// The ids of trees in an error's details.
pub(crate) fn remaining_ids(error: &FrontendError) -> impl Iterator<Item = String> + use<> {
    let details = error.details.iter().filter(|detail| detail.type_url == SOLVE);
    let ids: Vec<String> = details
        .filter_map(|detail| serde_json::from_slice::<Value>(&detail.value).ok())
        .flat_map(|json| {
            ["inputIDs", "mountIDs"]
                .into_iter()
                .flat_map(|name| json[name].as_array().cloned().unwrap_or_default())
                .filter_map(|id| id.as_str().map(str::to_owned))
                .collect::<Vec<_>>()
        })
        .collect();
    ids.into_iter().filter(|id| !id.is_empty())
}

fn kept(detail: &prost_types::Any) -> ErrorDetail {
    ErrorDetail { type_url: detail.type_url.clone(), value: detail.value.clone().into() }
}

fn any(type_url: &str, value: &Value) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value: base::gojson::to_vec(value) }
}

/// This process and the place in it that tells of an error.
fn stack(at: &Location<'_>) -> Value {
    let cmdline: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into()).collect();
    let module = at.file().trim_end_matches(".rs").replace("/src/", "/").replace('/', "::");
    json!({
        "frames": [{"Name": module, "File": at.file(), "Line": at.line()}],
        "cmdline": Value::Array(cmdline),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn source_json(source: &ErrorSource) -> Value {
    let mut info = Map::new();
    if !source.info.filename.is_empty() {
        info.insert("filename".into(), source.info.filename.clone().into());
    }
    if !source.info.data.is_empty() {
        info.insert("data".into(), STANDARD.encode(&source.info.data).into());
    }
    if let Some(definition) = &source.info.definition {
        let def: Vec<Value> = definition.def.iter().map(|op| STANDARD.encode(op).into()).collect();
        info.insert("definition".into(), json!({"def": def}));
    }
    if !source.info.language.is_empty() {
        info.insert("language".into(), source.info.language.clone().into());
    }
    let ranges: Vec<Value> = source.ranges.iter().map(range_json).collect();
    let mut json = Map::new();
    json.insert("info".into(), info.into());
    if !ranges.is_empty() {
        json.insert("ranges".into(), ranges.into());
    }
    json.into()
}

fn range_json(range: &pb::Range) -> Value {
    let position = |position: &Option<pb::Position>| {
        let mut json = Map::new();
        let position = position.unwrap_or_default();
        if position.line != 0 {
            json.insert("line".into(), position.line.into());
        }
        if position.character != 0 {
            json.insert("character".into(), position.character.into());
        }
        Value::from(json)
    };
    json!({"start": position(&range.start), "end": position(&range.end)})
}

fn source_from_json(json: &Value) -> Option<ErrorSource> {
    let info = &json["info"];
    let definition = info["definition"]["def"].as_array().map(|ops| pb::Definition {
        def: ops
            .iter()
            .filter_map(|op| STANDARD.decode(op.as_str()?).ok().map(Bytes::from))
            .collect(),
        ..Default::default()
    });
    let info = pb::SourceInfo {
        filename: info["filename"].as_str().unwrap_or_default().to_owned(),
        data: match info["data"].as_str() {
            Some(text) => STANDARD.decode(text).ok()?.into(),
            None => Bytes::new(),
        },
        definition,
        language: info["language"].as_str().unwrap_or_default().to_owned(),
    };
    let position = |json: &Value| {
        let number =
            |name: &str| json[name].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        Some(pb::Position { line: number("line"), character: number("character") })
    };
    let ranges = json["ranges"].as_array().map_or_else(Vec::new, |ranges| {
        ranges
            .iter()
            .map(|range| pb::Range {
                start: position(&range["start"]),
                end: position(&range["end"]),
            })
            .collect()
    });
    Some(ErrorSource { info, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let info = pb::SourceInfo {
            filename: "Dockerfile".into(),
            data: "FROM x".into(),
            ..Default::default()
        };
        let at = |line| Some(pb::Position { line, character: 0 });
        let error =
            FrontendError { vertex: "sha256:1".into(), ..FrontendError::new("no such thing") }
                .at(info, vec![pb::Range { start: at(2), end: at(3) }])
                .detail("other+json", "{}");
        let again = from_wire(&to_wire(&error));
        assert_eq!(again.sources, error.sources);
        assert_eq!((&again.vertex, &again.message), (&error.vertex, &error.message));
        // What came from elsewhere is passed on, and a process tells of itself once.
        let urls = |error: &FrontendError| {
            error.details.iter().map(|detail| detail.type_url.clone()).collect::<Vec<_>>()
        };
        assert_eq!(again.details[..1], error.details);
        assert_eq!(urls(&again), ["other+json", STACK]);
        assert_eq!(urls(&from_wire(&to_wire(&again))), ["other+json", STACK]);
    }
}
