//! The trace of a build, as history keeps it.
//!
//! Clients that trace say which of their spans a build belongs to. The build is a span below that, and
//! every vertex one below the build. History keeps them as JSON objects one after another, in the form
//! in which Go's tracing library shows finished spans: clients read that.
//!
//! A span's id follows from the trace and what the span stands for, so that everybody who tells of a
//! span names it alike.

use std::{io, time::SystemTime};

use base::{Digest, time::rfc3339_nano};
use proto::control::Vertex;
use serde_json::{Value, json};

/// Media type of a stored trace.
pub(crate) const TRACE_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";

/// The span of a client that a build belongs to; numbers in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace, 16 bytes.
    pub trace: String,
    /// The span, 8 bytes; empty if the trace begins with the build.
    pub parent: String,
}

impl TraceContext {
    /// Reads a `traceparent`: `00-TRACE-SPAN-FLAGS`.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let _version = parts.next()?;
        let mut hex = |length: usize| {
            let text = parts.next()?.to_ascii_lowercase();
            let is_id = text.len() == length
                && text.bytes().all(|byte| byte.is_ascii_hexdigit())
                && text.bytes().any(|byte| byte != b'0');
            is_id.then_some(text)
        };
        Some(Self { trace: hex(32)?, parent: hex(16)? })
    }
}

/// The id of the span that stands for `what` (a build or a vertex) in a trace.
pub fn span_id(trace: &str, what: &str) -> String {
    Digest::of(format!("{trace} {what}")).hex()[..16].to_owned()
}

/// Writes the spans of a build that is over.
pub(crate) fn write(
    out: &mut dyn io::Write,
    context: &TraceContext,
    build: &str,
    begun: SystemTime,
    error: Option<&str>,
    vertices: &[Vertex],
) -> io::Result<()> {
    let root = span_id(&context.trace, build);
    let place = |span: &str, remote: bool| {
        json!({
            "TraceID": context.trace,
            "SpanID": span,
            "TraceFlags": "01",
            "TraceState": "",
            "Remote": remote,
        })
    };
    let text =
        |key: &str, value: &str| json!({"Key": key, "Value": {"Type": "STRING", "Value": value}});
    let span = |name: &str, id: &str, parent: Value, kind: u8| {
        json!({
            "Name": name,
            "SpanContext": place(id, false),
            "Parent": parent,
            "SpanKind": kind,
            "Attributes": null,
            "Events": null,
            "Links": null,
            "Status": {"Code": "Unset", "Description": ""},
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": 0,
            "Resource": [text("service.name", "rbuildd")],
            "InstrumentationScope": {"Name": "rbuildd", "Version": "", "SchemaURL": "", "Attributes": null},
            "InstrumentationLibrary": {"Name": "rbuildd", "Version": "", "SchemaURL": "", "Attributes": null},
        })
    };
    let failed = |message: &str| json!({"Code": "Error", "Description": message});
    let mut put = |span: Value| {
        serde_json::to_writer_pretty(&mut *out, &span)?;
        out.write_all(b"\n")
    };

    // Kinds of Go's library: 1 is internal, 2 a server.
    let mut steps = 0;
    for vertex in vertices {
        let (Some(start), Some(end)) = (vertex.started, vertex.completed) else { continue };
        let (Ok(start), Ok(end)) = (SystemTime::try_from(start), SystemTime::try_from(end)) else {
            continue;
        };
        let id = span_id(&context.trace, &vertex.digest);
        let mut step = span(&vertex.name, &id, place(&root, false), 1);
        step["StartTime"] = rfc3339_nano(start).into();
        step["EndTime"] = rfc3339_nano(end.max(start)).into();
        step["Attributes"] = json!([
            text("vertex", &vertex.digest),
            {"Key": "cached", "Value": {"Type": "BOOL", "Value": vertex.cached}},
        ]);
        if !vertex.error.is_empty() {
            step["Status"] = failed(&vertex.error);
        }
        put(step)?;
        steps += 1;
    }
    let above = match context.parent.as_str() {
        "" => "0000000000000000",
        parent => parent,
    };
    let mut whole = span("moby.buildkit.v1.Control/Solve", &root, place(above, true), 2);
    whole["StartTime"] = rfc3339_nano(begun).into();
    whole["EndTime"] = rfc3339_nano(SystemTime::now()).into();
    whole["Attributes"] = json!([text("build.ref", build)]);
    whole["ChildSpanCount"] = steps.into();
    if let Some(message) = error {
        whole["Status"] = failed(message);
    }
    put(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_names_a_span() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(header).unwrap();
        assert_eq!(context.parent, "b7ad6b7169203331");
        assert_eq!(span_id(&context.trace, "x").len(), 16);
        for bad in [
            "",
            "00",
            "00-12-34-01",
            "00-zz-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_vertex_is_a_span_below_its_build() {
        let context = TraceContext { trace: "ab".repeat(16), parent: "cd".repeat(8) };
        let at = SystemTime::UNIX_EPOCH;
        let vertex = Vertex {
            digest: "sha256:1".into(),
            name: "RUN x".into(),
            started: Some(at.into()),
            completed: Some(at.into()),
            ..Vertex::default()
        };
        let mut out = Vec::new();
        write(&mut out, &context, "build", at, Some("no"), &[vertex]).unwrap();
        let spans: Vec<Value> = serde_json::Deserializer::from_slice(&out)
            .into_iter::<Value>()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(spans[0]["Parent"]["SpanID"], spans[1]["SpanContext"]["SpanID"]);
        assert_eq!(spans[1]["Parent"]["SpanID"], "cdcdcdcdcdcdcdcd");
        assert_eq!(spans[1]["Status"]["Code"], "Error");
    }
}
