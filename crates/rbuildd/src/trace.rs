//! Traces of builds, sent to a collector when the environment names one (OTLP over gRPC or HTTP).
//!
//! A build is a span, below the client's if it sent one; each vertex that ran or was looked up is a
//! span below the build. They are read from the build's progress, so tracing costs a build nothing.
//! Spans that clients send are passed on. What cannot be delivered is dropped and told of.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use engine::{Engine, TraceContext};
use prost::Message as _;
use proto::opentelemetry::proto::{
    collector::trace::v1::{
        ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
        trace_service_server::TraceServiceServer,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status as SpanStatus, span::SpanKind, status::StatusCode,
    },
};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Status,
    transport::{Endpoint, Server},
};

use crate::{VERSION, serve::Spans};

/// Batches that may wait for a slow collector.
const WAITING: usize = 256;
/// How long spans gather before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a collector that does not answer is told of.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Where spans go. Cloning shares.
#[derive(Clone)]
pub struct Traces {
    sender: mpsc::Sender<ResourceSpans>,
    resource: Resource,
}

/// How the collector is spoken to.
enum Collector {
    Grpc(TraceServiceClient<tonic::transport::Channel>),
    Http(reqwest::Client, String),
}

/// Where a span belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    trace: Bytes,
    parent: Bytes,
}

/// The span of a build under way; dropped without an answer it is one that was cancelled.
pub struct Traced {
    traces: Traces,
    span: Option<Span>,
}

impl Traces {
    /// What the environment asks for; `None` if it asks for nothing.
    pub fn from_environment() -> anyhow::Result<Option<Self>> {
        let variable = |name: &str| {
            let specific = std::env::var(format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
            let value = specific.or_else(|_| std::env::var(format!("OTEL_EXPORTER_OTLP_{name}")));
            value.ok().filter(|value| !value.is_empty())
        };
        let off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value == "true")
            || std::env::var("OTEL_TRACES_EXPORTER").is_ok_and(|value| value == "none");
        let Some(endpoint) = variable("ENDPOINT").filter(|_| !off) else { return Ok(None) };
        let protocol = variable("PROTOCOL").unwrap_or_else(|| "grpc".into());
        let collector = match protocol.as_str() {
            "grpc" => {
                let uri = match endpoint.contains("://") {
                    true => endpoint.clone(),
                    false => format!("http://{endpoint}"),
                };
                let endpoint = Endpoint::from_shared(uri)
                    .with_context(|| format!("OTLP endpoint {endpoint:?}"))?
                    .timeout(TIMEOUT);
                Collector::Grpc(TraceServiceClient::new(endpoint.connect_lazy()))
            }
            "http/protobuf" => {
                // An endpoint given for traces alone is taken as it is.
                let whole = std::env::var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_ok();
                let url = match whole {
                    true => endpoint,
                    false => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
                };
                oci::registry::install_crypto_provider();
                let client = reqwest::Client::builder().timeout(TIMEOUT).build();
                Collector::Http(client.context("set up the client for traces")?, url)
            }
            other => {
                bail!("OTLP protocol {other:?} is not supported; use grpc or http/protobuf")
            }
        };
        let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "rbuildd".into());
        let resource = Resource {
            attributes: vec![
                text("service.name", &name),
                text("service.version", VERSION.version),
                text("telemetry.sdk.language", "rust"),
            ],
            ..Resource::default()
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(send(receiver, collector));
        Ok(Some(Self { sender, resource }))
    }

    /// Takes the spans of steps at a socket in `folder`, which is returned.
    pub fn listen(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join("otel-grpc.sock");
        _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("listen for spans at {}", path.display()))?;
        // Steps run as anybody; the folder is nobody else's.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let service = TraceServiceServer::new(Spans(Some(self.clone())));
        let server = Server::builder().add_service(service);
        tokio::spawn(async move {
            let served = server.serve_with_incoming(UnixListenerStream::new(listener)).await;
            if let Err(error) = served {
                tracing::warn!(%error, "spans of steps are no longer taken");
            }
        });
        Ok(path)
    }

    /// Begins the span of a build and follows its steps.
    pub fn begin(
        &self,
        engine: &Arc<Engine>,
        reference: &str,
        frontend: &str,
        context: &TraceContext,
    ) -> Traced {
        let place = place_of(context).expect("a context holds hexadecimal numbers");
        let id = named(&place.trace, reference);
        let span = Span {
            trace_id: place.trace.clone(),
            span_id: id.clone(),
            parent_span_id: place.parent,
            name: format!("build {reference}"),
            kind: SpanKind::Server as i32,
            start_time_unix_nano: nanos(SystemTime::now()),
            attributes: vec![text("build.ref", reference), text("build.frontend", frontend)],
            ..Span::default()
        };
        let below = Place { trace: place.trace, parent: id };
        tokio::spawn(follow(self.clone(), engine.clone(), reference.to_owned(), below));
        Traced { traces: self.clone(), span: Some(span) }
    }

    /// Passes on what a client sent.
    pub fn forward(&self, spans: Vec<ResourceSpans>) {
        for spans in spans {
            _ = self.sender.try_send(spans);
        }
    }

    fn push(&self, spans: Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let scope = InstrumentationScope { name: "rbuildd".into(), ..Default::default() };
        let scope = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        _ = self.sender.try_send(ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![scope],
            ..ResourceSpans::default()
        });
    }
}

impl Traced {
    /// The build has an answer.
    pub fn end<T>(mut self, answer: &Result<T, Status>) {
        self.finish(answer.as_ref().err().map(Status::message));
    }

    fn finish(&mut self, error: Option<&str>) {
        let Some(mut span) = self.span.take() else { return };
        span.end_time_unix_nano = nanos(SystemTime::now());
        span.status = error.map(failed);
        self.traces.push(vec![span]);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.finish(Some("context canceled"));
    }
}

/// Makes spans of a build's steps as they complete.
async fn follow(traces: Traces, engine: Arc<Engine>, reference: String, place: Place) {
    let Some(job) = engine.jobs().find(&reference).await else { return };
    let reader = job.journal.reader();
    drop((job, engine));
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(error) => {
            tracing::debug!(%error, "cannot follow the steps of {reference}");
            return;
        }
    };
    let mut seen = std::collections::HashMap::new();
    while let Ok(Some(message)) = reader.next().await {
        let steps = message.vertexes.into_iter().filter_map(|vertex| {
            let start = vertex.started.map(wire_nanos)?;
            let end = vertex.completed.map(wire_nanos)?;
            let id = match seen.insert(vertex.digest.clone(), start) {
                Some(before) if before == start => return None,
                // It ran again.
                Some(_) => random::<8>(),
                None => named(&place.trace, &vertex.digest),
            };
            let cached = AnyValue { value: Some(Value::BoolValue(vertex.cached)) };
            Some(Span {
                trace_id: place.trace.clone(),
                span_id: id,
                parent_span_id: place.parent.clone(),
                name: vertex.name,
                kind: SpanKind::Internal as i32,
                start_time_unix_nano: start,
                end_time_unix_nano: end.max(start),
                attributes: vec![
                    text("vertex", &vertex.digest),
                    KeyValue { key: "cached".into(), value: Some(cached), ..Default::default() },
                ],
                status: (!vertex.error.is_empty()).then(|| failed(&vertex.error)),
                ..Span::default()
            })
        });
        traces.push(steps.collect());
    }
}

/// Sends what gathered, once a second.
async fn send(mut receiver: mpsc::Receiver<ResourceSpans>, mut collector: Collector) {
    let mut told: Option<Instant> = None;
    while let Some(first) = receiver.recv().await {
        tokio::time::sleep(GATHER).await;
        let mut batch = vec![first];
        while let Ok(more) = receiver.try_recv() {
            batch.push(more);
        }
        let request = ExportTraceServiceRequest { resource_spans: batch };
        let sent = match &mut collector {
            Collector::Grpc(client) => {
                client.export(request).await.map(drop).map_err(|status| status.to_string())
            }
            Collector::Http(client, url) => {
                let sending = client
                    .post(url.as_str())
                    .header("content-type", "application/x-protobuf")
                    .body(request.encode_to_vec());
                let answer = sending.send().await.and_then(reqwest::Response::error_for_status);
                answer.map(drop).map_err(|error| error.to_string())
            }
        };
        if let Err(error) = sent
            && told.is_none_or(|at| at.elapsed() > TELL_EVERY)
        {
            told = Some(Instant::now());
            tracing::warn!(error, "traces are lost: the collector does not take them");
        }
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
}

fn failed(message: &str) -> SpanStatus {
    SpanStatus { message: message.to_owned(), code: StatusCode::Error as i32 }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(base::time::unix_nanos(time)).unwrap_or(0)
}

fn wire_nanos(time: prost_types::Timestamp) -> u64 {
    SystemTime::try_from(time).map_or(0, nanos)
}

/// Random bytes.
fn random<const N: usize>() -> Bytes {
    unhex(&base::id::random_hex(N)).expect("what was just printed can be read")
}

/// The id of the span that stands for a build or a vertex.
fn named(trace: &Bytes, what: &str) -> Bytes {
    let trace: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    unhex(&engine::span_id(&trace, what)).expect("what was just printed can be read")
}

fn place_of(context: &TraceContext) -> Option<Place> {
    Some(Place { trace: unhex(&context.trace)?, parent: unhex(&context.parent)? })
}

fn unhex(text: &str) -> Option<Bytes> {
    let pairs = text.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    Some(bytes?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_span_is_the_parent() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let place = place_of(&TraceContext::parse(header).unwrap()).unwrap();
        assert_eq!((place.trace[0], place.trace[15]), (0x0a, 0x9c));
        assert_eq!(place.parent.len(), 8);
        let none = TraceContext { trace: "ab".repeat(16), parent: String::new() };
        assert_eq!(place_of(&none).unwrap().parent.len(), 0);
    }
}
