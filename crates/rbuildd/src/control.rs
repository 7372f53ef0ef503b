//! The control service: wire requests become engine requests.
//!
//! Source: control notes. Nothing is decided here but what the wire means.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use engine::{CacheEntry, Engine, SolveRequest, Work};
use frontend_api::{Code, FrontendError};
use futures_util::StreamExt as _;
use proto::control::{
    self as wire, BytesMessage, UsageRecord, control_server::Control as ControlService,
};
use store::{Filter, PruneOptions, Usage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{VERSION, builds::Builds, idle::Idle, trace::Traces};

/// The newest behaviour clients may ask for, used when they ask for none.
const COMPATIBILITY: i64 = 30;
/// So long an answer waits for its client's session to settle.
const SETTLE: Duration = Duration::from_millis(250);
/// Header telling the daemon's clock; history clients compute ages from it.
const CLOCK: &str = "buildkit-current-timestamp";

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Serves one engine.
#[derive(Clone)]
pub struct Control {
    pub engine: Arc<Engine>,
    pub idle: Arc<Idle>,
    pub policies: Arc<Vec<store::GcPolicy>>,
    pub builds: Arc<Builds>,
    pub traces: Option<Traces>,
}

fn status(error: &FrontendError) -> Status {
    gateway::status::to_tonic(error)
}

fn clock<T>(mut response: Response<T>) -> Response<T> {
    if let Ok(now) = base::time::rfc3339_nano(SystemTime::now()).parse() {
        response.metadata_mut().insert(CLOCK, now);
    }
    response
}

/// What the daemon calls itself.
pub fn version() -> wire::types::BuildkitVersion {
    wire::types::BuildkitVersion {
        package: VERSION.package.to_owned(),
        version: VERSION.version.to_owned(),
        revision: VERSION.revision.to_owned(),
        dockerfile_version: VERSION.dockerfile.to_owned(),
    }
}

impl Control {
    /// The devices of this machine, as they are described now.
    async fn devices(&self) -> Result<Vec<wire::types::CdiDevice>, Status> {
        let devices = self.engine.machine().config.devices.clone();
        let found = tokio::task::spawn_blocking(move || devices.list()).await;
        let found = found.map_err(|error| Status::internal(format!("list devices: {error}")))?;
        let described = found.into_iter().map(|device| wire::types::CdiDevice {
            name: device.name,
            auto_allow: device.auto_allow,
            annotations: device.annotations.into_iter().collect(),
            on_demand: false,
        });
        Ok(described.collect())
    }

    async fn run(
        &self,
        request: wire::SolveRequest,
        trace: Option<engine::TraceContext>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let request = solve_request(request).map_err(|error| status(&error))?;
        let request = SolveRequest { trace, ..request };
        // On a task of its own, so that a client that goes away cancels at a well-defined point.
        let engine = self.engine.clone();
        let solving = AbortOnDrop(tokio::spawn(async move { engine.solve(request).await }));
        let exporter_response = solving.join().await?.map_err(|error| status(&error))?;
        Ok(Response::new(wire::SolveResponse { exporter_response }))
    }
}

#[async_trait]
impl ControlService for Control {
    async fn disk_usage(
        &self,
        request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let filters = filters(&request.filter)?;
        let store = self.engine.store().clone();
        let usage = tokio::task::spawn_blocking(move || store.disk_usage(&filters))
            .await
            .map_err(broke_off)?;
        let age = Duration::from_nanos(u64::try_from(request.age_limit).unwrap_or(0));
        let old = |usage: &Usage| {
            age.is_zero()
                || usage
                    .last_used_at
                    .unwrap_or(usage.created_at)
                    .elapsed()
                    .is_ok_and(|elapsed| elapsed >= age)
        };
        let record = usage.into_iter().filter(old).map(usage_record).collect();
        Ok(Response::new(wire::DiskUsageResponse { record }))
    }

    type PruneStream = Answers<UsageRecord>;

    async fn prune(
        &self,
        request: Request<wire::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let busy = self.idle.busy();
        let request = request.into_inner();
        let space = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let options = PruneOptions {
            filters: filters(&request.filter)?,
            all: request.all,
            keep_duration: (request.keep_duration > 0)
                .then(|| Duration::from_nanos(space(request.keep_duration))),
            reserved_space: space(request.reserved_space),
            max_used_space: space(request.max_used_space),
            min_free_space: space(request.min_free_space),
            grace: Some(self.idle.working_for()),
        };
        let (sender, receiver) = mpsc::channel(64);
        let engine = self.engine.clone();
        tokio::spawn(async move {
            engine.machine().cache_mounts.forget_shared();
            let (removed, mut told) = mpsc::unbounded_channel();
            let prune = engine.store().prune(options, move |usage| _ = removed.send(usage));
            let forward = async {
                let mut gone = Vec::new();
                while let Some(usage) = told.recv().await {
                    gone.push(usage.id.clone());
                    let record = UsageRecord { record_type: String::new(), ..usage_record(usage) };
                    _ = sender.send(Ok(record)).await;
                }
                gone
            };
            let (outcome, gone) = tokio::join!(prune, forward);
            engine.evicted(&gone);
            if let Err(error) = outcome {
                _ = sender.send(Err(Status::unknown(error.to_string()))).await;
            }
            drop(busy);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let _busy = self.idle.work();
        let (metadata, _, request) = request.into_parts();
        let running = self.builds.enter(&request.r#ref)?;
        let trace = metadata.get("traceparent").and_then(|value| value.to_str().ok());
        let mut trace = trace.and_then(engine::TraceContext::parse);
        let traced = self.traces.as_ref().map(|traces| {
            let context = trace.get_or_insert_with(|| engine::TraceContext {
                trace: base::id::random_hex(16),
                parent: String::new(),
            });
            traces.begin(&self.engine, &request.r#ref, &request.frontend, context)
        });
        let session = request.session.clone();
        let answer = self.run(request, trace).await;
        if !session.is_empty() {
            let settled = async {
                if let Ok(session) = self.engine.sessions().get(&session).await {
                    session.settled().await;
                }
            };
            _ = tokio::time::timeout(SETTLE, settled).await;
        }
        if let Some(traced) = traced {
            traced.end(&answer);
        }
        running.end(&answer);
        answer
    }

    type StatusStream = Answers<wire::StatusResponse>;

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let busy = self.idle.busy();
        let reference = request.into_inner().r#ref;
        let stored = match self.engine.jobs().is_known(&reference) {
            true => None,
            false => self.engine.history().journal(&reference).await,
        };
        let failed = |error: std::io::Error| {
            Status::internal(format!("read the progress of {reference}: {error}"))
        };
        let mut reader = match stored {
            Some(file) => engine::Reader::finished(file).map_err(failed)?,
            None => {
                let job = self.engine.jobs().find(&reference).await;
                let job =
                    job.ok_or_else(|| Status::not_found(format!("no such job {reference}")))?;
                job.journal.reader().map_err(failed)?
            }
        };
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                let message = match reader.next().await {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(error) => {
                        _ = sender.send(Err(Status::internal(error.to_string()))).await;
                        break;
                    }
                };
                for part in engine::split(message) {
                    if sender.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
            }
            drop(busy);
        });
        Ok(clock(Response::new(Box::pin(ReceiverStream::new(receiver)))))
    }

    type SessionStream = Answers<BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let busy = self.idle.busy();
        let outgoing = self.engine.sessions().serve_rpc(request).await?.into_inner();
        let outgoing = outgoing.map(move |message| {
            let _ = &busy;
            message
        });
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let filters = filters(&request.into_inner().filter)?;
        let worker = self.engine.worker();
        let fields = WorkerFields { id: &worker.id, labels: &worker.labels };
        let wanted = filters.is_empty() || filters.iter().any(|filter| filter.matches(&fields));
        if !wanted {
            return Ok(Response::new(wire::ListWorkersResponse::default()));
        }
        let record = wire::types::WorkerRecord {
            gc_policy: self.policies.iter().map(gc_policy).collect(),
            buildkit_version: Some(version()),
            cdi_devices: self.devices().await?,
            ..gateway::wire::worker(worker)
        };
        Ok(Response::new(wire::ListWorkersResponse { record: vec![record] }))
    }

    async fn info(
        &self,
        _: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        Ok(Response::new(wire::InfoResponse { buildkit_version: Some(version()) }))
    }

    type ListenBuildHistoryStream = Answers<wire::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let request = request.into_inner();
        let (now, mut later) =
            self.engine.history().listen(&request).await.map_err(|error| status(&error))?;
        let (sender, receiver) = mpsc::channel(64);
        let mut stopping = self.idle.stopping();
        tokio::spawn(async move {
            for event in now {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if request.early_exit {
                return;
            }
            loop {
                let event = tokio::select! {
                    event = later.recv() => event,
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = sender.closed() => return,
                };
                match event {
                    Ok(event) => {
                        let about = event.record.as_ref().map_or("", |record| &record.r#ref);
                        let wanted = request.r#ref.is_empty() || about == request.r#ref;
                        if wanted && sender.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                        let text =
                            format!("{missed} history events were missed; list the history again");
                        _ = sender.send(Err(Status::data_loss(text))).await;
                        return;
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Ok(clock(Response::new(Box::pin(ReceiverStream::new(receiver)))))
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        self.engine
            .history()
            .update(&request.into_inner())
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}

/// A task that ends with its handle.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    async fn join(mut self) -> Result<T, Status> {
        (&mut self.0).await.map_err(broke_off)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn broke_off(error: tokio::task::JoinError) -> Status {
    if error.is_cancelled() {
        return Status::cancelled("context canceled");
    }
    Status::internal(format!("request broke off: {error}"))
}

fn filters(texts: &[String]) -> Result<Vec<Filter>, Status> {
    texts
        .iter()
        .map(|text| {
            Filter::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
        })
        .collect()
}

struct WorkerFields<'a> {
    id: &'a str,
    labels: &'a BTreeMap<String, String>,
}

impl store::Fields for WorkerFields<'_> {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id"] => Some(self.id.to_owned()),
            ["labels", key @ ..] => self.labels.get(&key.join(".")).cloned(),
            _ => None,
        }
    }
}

fn gc_policy(policy: &store::GcPolicy) -> wire::types::GcPolicy {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    wire::types::GcPolicy {
        all: policy.all,
        keep_duration: policy
            .keep_duration
            .map_or(0, |keep| i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: number(policy.reserved_space),
        filters: policy.filters.iter().map(ToString::to_string).collect(),
        max_used_space: number(policy.max_used_space),
        min_free_space: number(policy.min_free_space),
    }
}

fn usage_record(usage: Usage) -> UsageRecord {
    UsageRecord {
        id: usage.id.to_string(),
        mutable: usage.mutable,
        in_use: usage.in_use,
        size: i64::try_from(usage.size).unwrap_or(i64::MAX),
        created_at: Some(usage.created_at.into()),
        last_used_at: usage.last_used_at.map(Into::into),
        usage_count: i64::try_from(usage.usage_count).unwrap_or(i64::MAX),
        description: usage.description,
        record_type: usage.kind.as_str().to_owned(),
        shared: usage.shared,
        parents: usage.parents.iter().map(ToString::to_string).collect(),
        ..UsageRecord::default()
    }
}

/// What a solve request means; refuses what this daemon cannot do.
fn solve_request(mut wire: wire::SolveRequest) -> Result<SolveRequest, FrontendError> {
    if wire.r#ref.is_empty() {
        return Err(FrontendError::with_code(Code::InvalidArgument, "a build needs a ref"));
    }
    let compatibility = match wire.compatibility_version {
        0 => COMPATIBILITY,
        10 | 20 | 30 => wire.compatibility_version,
        version if version > COMPATIBILITY => {
            return Err(FrontendError::new(format!(
                "unsupported compatibility-version {version}: upgrade buildkit (max supported: {COMPATIBILITY})"
            )));
        }
        version => {
            return Err(FrontendError::new(format!(
                "unsupported compatibility-version {version} (supported: [10 20 30])"
            )));
        }
    };
    let jobs = match wire.frontend_attrs.remove(engine::JOBS_ATTR) {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            let name = engine::JOBS_ATTR;
            FrontendError::with_code(
                Code::InvalidArgument,
                format!("invalid {name} {text:?}: not a number of steps"),
            )
        })?,
    };
    // A graph without vertices is the empty tree; no graph at all is left to the client.
    let is_empty = |definition: &llb::pb::Definition| definition.def.is_empty();
    let definition = wire.definition.filter(|graph| !is_empty(graph) || wire.frontend.is_empty());
    let inputs = wire.frontend_inputs;
    let work = match (definition, wire.frontend.as_str(), inputs.is_empty()) {
        (Some(_), frontend, _) if !frontend.is_empty() => {
            return Err(FrontendError::new(
                "cannot solve with both Definition and Frontend specified",
            ));
        }
        (Some(definition), _, _) => Work::Definition(definition),
        (None, "", true) => Work::ClientSide,
        (None, "", false) => Work::ClientSideWithInputs(inputs),
        (None, frontend, true) => Work::Frontend(frontend.to_owned()),
        (None, frontend, false) => Work::FrontendWithInputs(frontend.to_owned(), inputs),
    };
    let mut exporters: Vec<(String, BTreeMap<String, String>)> =
        wire.exporters.into_iter().map(|exporter| (exporter.r#type, exporter.attrs)).collect();
    if exporters.is_empty() && !wire.exporter_deprecated.is_empty() {
        exporters.push((wire.exporter_deprecated, wire.exporter_attrs_deprecated));
    }
    let (cache_imports, cache_exports) = caches(wire.cache.unwrap_or_default());
    Ok(SolveRequest {
        cache_imports,
        cache_exports,
        reference: wire.r#ref,
        session: wire.session,
        work,
        attrs: wire.frontend_attrs,
        exporters,
        entitlements: wire.entitlements,
        policy: wire.source_policy,
        policy_session: wire.source_policy_session,
        proxy_network: wire.proxy_network,
        internal: wire.internal,
        compatibility: compatibility as u32,
        session_exporter: wire.enable_session_exporter,
        jobs,
        trace: None,
    })
}

/// Imports and exports of a request; refs alone are what very old clients send.
fn caches(cache: wire::CacheOptions) -> (Vec<CacheEntry>, Vec<CacheEntry>) {
    let entry = |entry: wire::CacheOptionsEntry| CacheEntry {
        kind: entry.r#type,
        attrs: entry.attrs.into_iter().collect(),
    };
    let refs = cache.import_refs_deprecated.into_iter().map(|reference| CacheEntry {
        kind: "registry".to_owned(),
        attrs: [("ref".to_owned(), reference)].into(),
    });
    let imports = refs.chain(cache.imports.into_iter().map(entry)).collect();
    let mut exports: Vec<CacheEntry> = cache.exports.into_iter().map(entry).collect();
    if exports.is_empty() && !cache.export_ref_deprecated.is_empty() {
        let mut attrs: BTreeMap<_, _> = cache.export_attrs_deprecated.into_iter().collect();
        attrs.insert("ref".to_owned(), cache.export_ref_deprecated);
        exports.push(CacheEntry { kind: "registry".to_owned(), attrs });
    }
    (imports, exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: wire::SolveRequest) -> String {
        solve_request(wire::SolveRequest { r#ref: "x".into(), ..request }).unwrap_err().message
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let text = refused(wire::SolveRequest { compatibility_version: 40, ..Default::default() });
        assert_eq!(
            text,
            "unsupported compatibility-version 40: upgrade buildkit (max supported: 30)"
        );
    }

    #[test]
    fn the_deprecated_exporter_counts_alone_only() {
        let wire = wire::SolveRequest {
            r#ref: "x".into(),
            exporter_deprecated: "local".into(),
            exporters: vec![wire::Exporter { r#type: "oci".into(), ..Default::default() }],
            ..Default::default()
        };
        let kinds = |request: SolveRequest| -> Vec<String> {
            request.exporters.into_iter().map(|(kind, _)| kind).collect()
        };
        assert_eq!(kinds(solve_request(wire.clone()).unwrap()), ["oci"]);
        let wire = wire::SolveRequest { exporters: Vec::new(), ..wire };
        assert_eq!(kinds(solve_request(wire).unwrap()), ["local"]);
    }
}
