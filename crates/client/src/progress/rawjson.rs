//! A status message as one line of JSON, field for field what Go's clients write.

use base::gojson::is_zero;
use proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<JsonVertex<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<JsonPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<JsonLog<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Value>,
}

#[derive(Serialize)]
struct JsonVertex<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    digest: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    inputs: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    cached: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(rename = "progressGroup", skip_serializing_if = "Option::is_none")]
    group: Option<Value>,
}

#[derive(Serialize)]
struct JsonPart<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    vertex: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    total: i64,
    current: i64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct JsonLog<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    vertex: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    stream: i64,
    #[serde(serialize_with = "base::gojson::base64_bytes")]
    data: &'a [u8],
    timestamp: String,
}

/// `status` and a line feed.
pub(super) fn line(status: &StatusResponse) -> Vec<u8> {
    let mut text = base::gojson::to_vec(&Status {
        vertexes: status.vertexes.iter().map(vertex).collect(),
        statuses: status.statuses.iter().map(part).collect(),
        logs: status.logs.iter().map(log).collect(),
        warnings: status.warnings.iter().map(warning).collect(),
    });
    text.push(b'\n');
    text
}

fn time(at: &prost_types::Timestamp) -> String {
    base::time::rfc3339_nano(base::time::from_unix_nanos(super::trace::nanos(at)))
}

fn vertex(vertex: &Vertex) -> JsonVertex<'_> {
    JsonVertex {
        digest: &vertex.digest,
        inputs: &vertex.inputs,
        name: &vertex.name,
        started: vertex.started.as_ref().map(time),
        completed: vertex.completed.as_ref().map(time),
        cached: vertex.cached,
        error: &vertex.error,
        group: vertex.progress_group.as_ref().map(|group| {
            let mut object = serde_json::Map::new();
            for (key, text) in [("id", &group.id), ("name", &group.name)] {
                if !text.is_empty() {
                    object.insert(key.into(), text.as_str().into());
                }
            }
            if group.weak {
                object.insert("weak".into(), true.into());
            }
            Value::Object(object)
        }),
    }
}

fn part(status: &VertexStatus) -> JsonPart<'_> {
    JsonPart {
        id: &status.id,
        vertex: &status.vertex,
        name: &status.name,
        total: status.total,
        current: status.current,
        timestamp: time(&status.timestamp.unwrap_or_default()),
        started: status.started.as_ref().map(time),
        completed: status.completed.as_ref().map(time),
    }
}

fn log(log: &VertexLog) -> JsonLog<'_> {
    let timestamp = time(&log.timestamp.unwrap_or_default());
    JsonLog { vertex: &log.vertex, stream: log.stream, data: &log.msg, timestamp }
}

fn warning(warning: &VertexWarning) -> Value {
    use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
    let mut object = serde_json::Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    if !warning.vertex.is_empty() {
        put("vertex", warning.vertex.as_str().into());
    }
    if warning.level != 0 {
        put("level", warning.level.into());
    }
    if !warning.short.is_empty() {
        put("short", BASE64.encode(&warning.short).into());
    }
    if !warning.detail.is_empty() {
        put("detail", warning.detail.iter().map(|line| BASE64.encode(line)).collect());
    }
    if !warning.url.is_empty() {
        put("url", warning.url.as_str().into());
    }
    if let Some(info) = &warning.info {
        let mut source = serde_json::Map::new();
        if !info.filename.is_empty() {
            source.insert("filename".into(), info.filename.as_str().into());
        }
        if !info.data.is_empty() {
            source.insert("data".into(), BASE64.encode(&info.data).into());
        }
        if !info.language.is_empty() {
            source.insert("language".into(), info.language.as_str().into());
        }
        put("sourceInfo", Value::Object(source));
    }
    if !warning.ranges.is_empty() {
        let place = |at: &Option<llb::pb::Position>| {
            let at = at.unwrap_or_default();
            json!({"line": at.line, "character": at.character})
        };
        let ranges = warning.ranges.iter();
        let ranges =
            ranges.map(|range| json!({"start": place(&range.start), "end": place(&range.end)}));
        put("range", ranges.collect());
    }
    Value::Object(object)
}
