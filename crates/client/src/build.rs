//! Runs one build: session, solve, status and the client's side of the frontend, all at once.
//!
//! The session and the status stream live as long as the solve call and a little longer: once it
//! has answered, the session is closed (the daemon waits for that) and the status stream is read
//! until it ends or falls silent. Cancelling drops the solve call, which cancels the job.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proto::{
    control::{self, SolveRequest, StatusRequest, StatusResponse},
    frontend::{self, ReturnRequest},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    connect::{Bridge, Client},
    error::{ClientError, RpcError},
    request::{BuildRequest, CacheEntry, Drive},
    serve,
};

/// A status stream silent for this long after the end of its build is given up.
const STATUS_SILENCE: Duration = Duration::from_secs(5);
/// The same for a stream that never said anything: the build was refused before it began, and the
/// daemon would wait seconds for it to appear.
const STATUS_NEVER: Duration = Duration::from_millis(300);
/// How long the solve call may go on after the client's frontend failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Cancels a build; clones cancel together.
#[derive(Debug, Clone, Default)]
pub struct Cancel(CancellationToken);

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether it was cancelled.
    pub fn is_canceled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// What a build left behind.
#[derive(Debug, Clone, Default)]
pub struct BuildOutcome {
    /// The exporters' answers, e.g. `containerimage.digest`.
    pub response: BTreeMap<String, String>,
    /// The frontend's metadata; empty when the daemon drove it.
    pub metadata: BTreeMap<String, Bytes>,
}

impl Client {
    /// Builds `request`; status messages go to `statuses` until the build has ended.
    pub async fn build(
        &self,
        mut request: BuildRequest,
        statuses: Option<mpsc::Sender<StatusResponse>>,
        cancel: Cancel,
    ) -> Result<BuildOutcome, ClientError> {
        let prepared = serve::prepare(&mut request, statuses.as_ref())?;
        let session = prepared.server.id().to_owned();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(prepared.server.run(self.control(), stop.clone()));
        let solved = CancellationToken::new();
        let watching = statuses.map(|statuses| {
            tokio::spawn(self.clone().watch(request.reference.clone(), statuses, solved.clone()))
        });
        let result = tokio::select! {
            result = self.drive(&request, &session) => result,
            () = cancel.0.cancelled() => Err(ClientError::Canceled),
        };
        solved.cancel();
        stop.cancel();
        let served = join(serving).await;
        if let Some(watching) = watching {
            let _ = join(watching).await;
        }
        if let Some(Err(status)) = served {
            tracing::debug!("the session ended with {status}");
        }
        let outcome = result?;
        serve::finish(&request, &outcome.response)?;
        Ok(outcome)
    }

    async fn drive(
        &self,
        request: &BuildRequest,
        session: &str,
    ) -> Result<BuildOutcome, ClientError> {
        let solve = self.solve(solve_request(request, session));
        if request.drive == Drive::Daemon {
            return Ok(BuildOutcome { response: solve.await?, metadata: BTreeMap::new() });
        }
        let bridge = self.bridge(&request.reference)?;
        let frontend = run_frontend(bridge, request);
        tokio::pin!(solve, frontend);
        tokio::select! {
            // The solve call cannot succeed before the frontend has returned.
            result = &mut solve => match result {
                Err(error) => Err(error),
                Ok(response) => Ok(BuildOutcome { response, metadata: frontend.await? }),
            },
            result = &mut frontend => match result {
                Ok(metadata) => Ok(BuildOutcome { response: solve.await?, metadata }),
                // The daemon's own account of the failure says more than ours.
                Err(error) => match tokio::time::timeout(AFTER_FAILURE, solve).await {
                    Ok(Err(solve_error)) => Err(solve_error),
                    Ok(Ok(_)) | Err(_) => Err(error),
                },
            },
        }
    }

    async fn solve(&self, request: SolveRequest) -> Result<BTreeMap<String, String>, ClientError> {
        let answer = self.control().solve(request).await;
        Ok(answer.map_err(ClientError::rpc("failed to solve"))?.into_inner().exporter_response)
    }

    /// Copies the status stream until it ends, or falls silent after the build.
    async fn watch(
        self,
        reference: String,
        statuses: mpsc::Sender<StatusResponse>,
        solved: CancellationToken,
    ) {
        let request = StatusRequest { r#ref: reference };
        let mut control = self.control();
        let opened = tokio::select! {
            opened = control.status(request) => opened,
            () = after(&solved, STATUS_NEVER) => return,
        };
        let mut stream = match opened {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                tracing::debug!("no status stream: {status}");
                return;
            }
        };
        let mut silence = STATUS_NEVER;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = after(&solved, silence) => return,
            };
            silence = STATUS_SILENCE;
            match message {
                // Nobody listening any more is no reason to stop the build.
                Ok(Some(status)) => {
                    if statuses.send(status).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!("the status stream ended with {status}");
                    return;
                }
            }
        }
    }
}

async fn after(token: &CancellationToken, wait: Duration) {
    token.cancelled().await;
    tokio::time::sleep(wait).await;
}

/// The task's value; a panic there is a panic here.
async fn join<T>(task: JoinHandle<T>) -> Option<T> {
    match task.await {
        Ok(value) => Some(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

fn solve_request(request: &BuildRequest, session: &str) -> SolveRequest {
    let daemon = request.drive == Drive::Daemon;
    let exporters: Vec<control::Exporter> = request
        .exports
        .iter()
        .map(|export| control::Exporter {
            r#type: export.kind.clone(),
            attrs: export.attrs.clone(),
        })
        .collect();
    let entry = |entry: &CacheEntry| control::CacheOptionsEntry {
        r#type: entry.kind.clone(),
        attrs: entry.attrs.clone(),
    };
    // Daemons before several exporters read the first one here.
    let first = exporters.first().cloned().unwrap_or_default();
    SolveRequest {
        r#ref: request.reference.clone(),
        definition: if daemon { request.definition.clone() } else { None },
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        session: session.to_owned(),
        frontend: if daemon { request.frontend.clone() } else { String::new() },
        frontend_attrs: request.frontend_attrs.clone(),
        cache: Some(control::CacheOptions {
            exports: request.cache_exports.iter().map(entry).collect(),
            imports: request.cache_imports.iter().map(entry).collect(),
            ..control::CacheOptions::default()
        }),
        entitlements: request.entitlements.clone(),
        frontend_inputs: request.frontend_inputs.clone(),
        internal: request.internal,
        source_policy: request.source_policy.clone(),
        exporters,
        proxy_network: request.proxy_network,
        ..SolveRequest::default()
    }
}

/// Asks the frontend, hands its result back, and keeps its metadata.
async fn run_frontend(
    mut bridge: Bridge,
    request: &BuildRequest,
) -> Result<BTreeMap<String, Bytes>, ClientError> {
    let entry = |entry: &CacheEntry| frontend::CacheOptionsEntry {
        r#type: entry.kind.clone(),
        attrs: entry.attrs.clone(),
    };
    let question = frontend::SolveRequest {
        definition: request.definition.clone(),
        frontend: if request.definition.is_some() {
            String::new()
        } else {
            request.frontend.clone()
        },
        frontend_opt: request.frontend_attrs.clone(),
        allow_result_return: true,
        allow_result_array_ref: true,
        cache_imports: request.cache_imports.iter().map(entry).collect(),
        frontend_inputs: request.frontend_inputs.clone(),
        ..frontend::SolveRequest::default()
    };
    match bridge.solve(question).await {
        Ok(answer) => {
            let result = answer.into_inner().result.unwrap_or_default();
            let metadata = result.metadata.clone();
            let returned = ReturnRequest { result: Some(result), error: None };
            bridge
                .r#return(returned)
                .await
                .map_err(ClientError::rpc("failed to return the result"))?;
            Ok(metadata)
        }
        Err(status) => {
            let error = RpcError::from(status);
            let mut wire: proto::google::rpc::Status =
                prost::Message::decode(error.raw.clone()).unwrap_or_default();
            wire.code = error.code as i32;
            wire.message.clone_from(&error.message);
            // The build has failed; a daemon that cannot be told notices when this call ends.
            let _ = bridge.r#return(ReturnRequest { result: None, error: Some(wire) }).await;
            Err(ClientError::Rpc { context: "failed to solve", error })
        }
    }
}
