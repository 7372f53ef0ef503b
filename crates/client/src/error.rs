//! What can go wrong between a client and its daemon, and how a failed build is explained.
//!
//! A failed call carries details as JSON beside its message: the failing step, the lines of the
//! Dockerfile, a process's exit code. [`RpcError`] keeps those that are understood, in the order
//! they were sent: outermost first.

use std::{fmt::Write as _, io, path::PathBuf};

use bytes::Bytes;
use llb::pb::Range;
use serde::Deserialize;
use tonic::Code;

mod caret;

/// A failure of the client crate.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address has a form that is not understood.
    #[error("invalid daemon address `{address}`: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Certificates or keys for TLS cannot be used.
    #[error("cannot set up TLS with {path}: {source}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to the daemon at {address}: {why}")]
    Connect {
        /// The daemon's address.
        address: String,
        /// Why not.
        why: String,
    },
    /// No daemon runs and none could be started.
    #[error("no daemon is running and none could be started: {0}")]
    Embedded(String),
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// Local trouble with a file or folder.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// The session's channel could not be kept.
    #[error("session: {0}")]
    Session(String),
    /// The daemon answered with an error.
    #[error("{context}: {error}")]
    Rpc {
        /// What was asked, e.g. `failed to solve`.
        context: &'static str,
        /// The answer.
        error: RpcError,
    },
    /// The person interrupted the build.
    #[error("build canceled")]
    Canceled,
}

impl ClientError {
    /// `error` as the answer to what `context` names.
    pub fn rpc(context: &'static str) -> impl Fn(tonic::Status) -> Self {
        move |status| Self::Rpc { context, error: RpcError::from(status) }
    }

    /// A local failure while `doing` something.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }

    /// The daemon's answer, if that is what this is.
    pub fn as_rpc(&self) -> Option<&RpcError> {
        match self {
            Self::Rpc { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Exit status for a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        let code = self.as_rpc().map(|error| error.code);
        match (self, code) {
            (Self::Canceled, _) | (_, Some(Code::Cancelled)) => 130,
            (_, Some(Code::Internal)) => 100,
            (_, Some(Code::ResourceExhausted)) => 102,
            _ => 1,
        }
    }

    /// Excerpts of the sources the error points at, ready to print before the message.
    pub fn source_excerpts(&self) -> String {
        let Some(error) = self.as_rpc() else { return String::new() };
        // Inner frames come last on the wire and are closest to the cause: print them first.
        let sources = error.details.iter().rev().filter_map(|detail| match detail {
            Detail::Source(source) => Some(source),
            _ => None,
        });
        sources
            .map(|source| pointed(&source.filename, &source.data, &source.ranges, &error.message))
            .collect()
    }
}

/// A status with its details taken apart.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// gRPC status code.
    pub code: Code,
    /// The daemon's message.
    pub message: String,
    /// Details, outermost first.
    pub details: Vec<Detail>,
    /// The encoded `google.rpc.Status` they came from, for passing the error on.
    pub raw: Bytes,
}

/// One detail of an error.
#[derive(Debug, Clone, PartialEq)]
pub enum Detail {
    /// The step that failed, by the digest of its operation.
    Vertex(String),
    /// Lines of a file that caused it.
    Source(SourceLines),
    /// A frontend failed.
    Frontend {
        /// Frontend, e.g. `gateway.v0`.
        name: String,
        /// Its image, if any.
        source: String,
    },
    /// The frontend lacks a capability that was asked for.
    FrontendCap(String),
    /// The frontend does not know the sub-request.
    Subrequest(String),
    /// Exit code of a process.
    ExitCode(u32),
    /// Why a source policy refused.
    Policy(Vec<String>),
    /// A detail of another type.
    Other {
        /// Its type.
        type_url: String,
        /// Its value as sent.
        value: Bytes,
    },
}

/// A file and the lines in it that matter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceLines {
    /// Name shown to people.
    pub filename: String,
    /// The whole file.
    pub data: Bytes,
    /// The lines, counted from 1.
    pub ranges: Vec<Range>,
}

impl From<tonic::Status> for RpcError {
    fn from(status: tonic::Status) -> Self {
        let raw = Bytes::copy_from_slice(status.details());
        let wire: proto::google::rpc::Status =
            prost::Message::decode(raw.clone()).unwrap_or_default();
        let details = wire.details.into_iter().map(|any| detail(&any.type_url, any.value.into()));
        let message = match status.message() {
            "" => format!("daemon answered {:?}", status.code()),
            message => message.to_owned(),
        };
        Self { code: status.code(), message, details: details.collect(), raw }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonSource {
    info: JsonInfo,
    ranges: Vec<JsonRange>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonInfo {
    filename: String,
    data: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct JsonPosition {
    line: i32,
    character: i32,
}

impl From<JsonPosition> for llb::pb::Position {
    fn from(at: JsonPosition) -> Self {
        Self { line: at.line, character: at.character }
    }
}

/// Decodes what is known; anything else is kept as it came.
fn detail(type_url: &str, value: Bytes) -> Detail {
    let json: serde_json::Value = serde_json::from_slice(&value).unwrap_or_default();
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    let known = type_url.strip_prefix("github.com/moby/buildkit/").unwrap_or(type_url);
    match known {
        "errdefs.Vertex+json" => Detail::Vertex(text("digest")),
        "errdefs.Frontend+json" => Detail::Frontend { name: text("name"), source: text("source") },
        "errdefs.FrontendCap+json" => Detail::FrontendCap(text("name")),
        "errdefs.Subrequest+json" => Detail::Subrequest(text("name")),
        "gatewayapi.ExitMessage+json" => {
            let code = json["Code"].as_u64().and_then(|code| u32::try_from(code).ok());
            Detail::ExitCode(code.unwrap_or(0))
        }
        "policysession.DecisionResponse+json" => {
            let messages = json["denyMessages"].as_array().into_iter().flatten();
            let messages = messages.filter_map(|message| message["message"].as_str());
            Detail::Policy(messages.map(str::to_owned).collect())
        }
        "errdefs.Source+json" => {
            use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
            let source: JsonSource = serde_json::from_value(json).unwrap_or_default();
            let range = |range: JsonRange| Range {
                start: Some(range.start.into()),
                end: Some(range.end.into()),
            };
            Detail::Source(SourceLines {
                filename: source.info.filename,
                data: BASE64.decode(source.info.data).unwrap_or_default().into(),
                ranges: source.ranges.into_iter().map(range).collect(),
            })
        }
        _ => Detail::Other { type_url: type_url.to_owned(), value },
    }
}

/// The lines `ranges` names with some around them, marked `>>>`; empty if they are not in `data`.
pub fn excerpt(filename: &str, data: &[u8], ranges: &[Range]) -> String {
    pointed(filename, data, ranges, "")
}

/// The same with carets under the word that `message` is about, where it can be told.
pub fn pointed(filename: &str, data: &[u8], ranges: &[Range], message: &str) -> String {
    let spans: Vec<(usize, usize)> = ranges.iter().filter_map(line_span).collect();
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split('\n').collect();
    let Some(first) = spans.iter().map(|span| span.0).min() else { return String::new() };
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let last = spans.iter().map(|span| span.1).max().unwrap_or(first).min(lines.len());
    // A single line gets two around it on each side, several get one.
    let around = if first == last { 4 } else { 2 };
    let (mut from, mut to, mut added) = (first, last, 0);
    while added < around {
        if from > 1 {
            from -= 1;
            added += 1;
        }
        if to != lines.len() {
            to += 1;
            added += 1;
        }
        // Counted even when the file ends on both sides, so that the loop does too.
        added += 1;
    }
    let marked = |number: usize| spans.iter().any(|span| (span.0..=span.1).contains(&number));
    let spot = caret::find(message, (from..=to).filter(|n| marked(*n)).map(|n| (n, lines[n - 1])));
    let mut out = format!("{filename}:{first}\n--------------------\n");
    for number in from..=to {
        let mark = if marked(number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:3} | {mark} {}", lines[number - 1]);
        if let Some(spot) = spot.as_ref().filter(|spot| spot.line == number) {
            let _ = writeln!(out, "     |     {}", spot.carets);
        }
    }
    out.push_str("--------------------\n");
    out
}

/// First and last line of a range; `None` for lines below zero.
fn line_span(range: &Range) -> Option<(usize, usize)> {
    let start = range.start.unwrap_or_default().line;
    let end = range.end.unwrap_or_default().line.max(start);
    Some((usize::try_from(start).ok()?, usize::try_from(end).ok()?))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use prost::Message as _;

    use super::*;

    fn range(start: i32, end: i32) -> Range {
        let at = |line| Some(llb::pb::Position { line, character: 0 });
        Range { start: at(start), end: at(end) }
    }

    #[test]
    fn carets_show_the_word() {
        let file = b"FROM scratch\nCOPY \\\n\t--fron=a b /\n";
        let message = "dockerfile parse error on line 2: unknown flag: --fron (did you mean from?)";
        expect![[r#"
            Dockerfile:2
            --------------------
               1 |     FROM scratch
               2 | >>> COPY \
               3 | >>> \t--fron=a b /
                 |     \t^^^^^^
               4 |     
            --------------------
        "#]]
        .assert_eq(&pointed("Dockerfile", file, &[range(2, 3)], message).replace('\t', "\\t"));
    }

    #[test]
    fn excerpts_mark_the_lines() {
        let file = b"FROM scratch\nCOPY a /\nRUN x\nRUN y\nRUN z\n";
        expect![[r#"
            Dockerfile:3
            --------------------
               1 |     FROM scratch
               2 |     COPY a /
               3 | >>> RUN x
               4 |     RUN y
               5 |     RUN z
            --------------------
        "#]]
        .assert_eq(&excerpt("Dockerfile", file, &[range(3, 0)]));
        expect![[r#"
            f:1
            --------------------
               1 | >>> FROM scratch
               2 | >>> COPY a /
               3 |     RUN x
            --------------------
        "#]]
        .assert_eq(&excerpt("f", file, &[range(1, 2)]));
        for bad in [&[][..], &[range(0, 0)], &[range(9, 9)], &[range(-1, 2)]] {
            assert_eq!(excerpt("f", file, bad), "");
        }
    }

    #[test]
    fn details_are_json_in_any() {
        let any = |name: &str, json: &str| prost_types::Any {
            type_url: format!("github.com/moby/buildkit/{name}+json"),
            value: json.as_bytes().to_vec(),
        };
        let source =
            r#"{"info":{"filename":"D","data":"Zg=="},"ranges":[{"start":{"line":1},"end":{}}]}"#;
        let status = proto::google::rpc::Status {
            code: 2,
            message: "boom".into(),
            details: vec![
                any("errdefs.Vertex", r#"{"digest":"sha256:ab"}"#),
                any("errdefs.Source", source),
                any("gatewayapi.ExitMessage", r#"{"Code":7}"#),
                any("stack.Stack", "not json"),
            ],
        };
        let bytes = status.encode_to_vec().into();
        let error = RpcError::from(tonic::Status::with_details(Code::Unknown, "boom", bytes));
        assert_eq!(error.details[0], Detail::Vertex("sha256:ab".into()));
        assert_eq!(error.details[2], Detail::ExitCode(7));
        assert!(matches!(&error.details[3], Detail::Other { .. }));
        let error = ClientError::Rpc { context: "failed to solve", error };
        assert_eq!(error.to_string(), "failed to solve: boom");
        assert!(error.source_excerpts().starts_with("D:1\n"));
        assert_eq!(error.exit_code(), 1);
    }
}
