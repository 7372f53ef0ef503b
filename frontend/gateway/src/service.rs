//! Serves the bridge calls of frontend runs.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use async_trait::async_trait;
use frontend_api::{
    CacheImport, Code, FileRange, FrontendError, RefHandle, Refs, SolveRequest, SolveWhat, Warning,
};
use llb::pb;
use proto::frontend::{self as wire, llb_bridge_server::LlbBridge};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    Container, NewContainer, Process, ProcessEvent, ProcessInput, Run, capabilities,
    status::to_tonic, wire as convert,
};

/// Finds the run a call belongs to.
#[async_trait]
pub trait Runs: Send + Sync + 'static {
    /// By the call's metadata; waits shortly for a run that is about to be registered.
    async fn find(&self, metadata: &MetadataMap) -> Result<Arc<Run>, Status>;
    /// Names of the LLB capabilities to advertise, sorted.
    fn llb_capabilities(&self) -> &'static [&'static str];
}

/// The bridge service over any number of runs.
pub struct Service<R> {
    runs: Arc<R>,
}

impl<R> Clone for Service<R> {
    fn clone(&self) -> Self {
        Self { runs: self.runs.clone() }
    }
}

impl<R: Runs> Service<R> {
    /// Serves the runs that `runs` finds.
    pub fn new(runs: Arc<R>) -> Self {
        Self { runs }
    }

    async fn run<T>(&self, request: &Request<T>) -> Result<Arc<Run>, Status> {
        self.runs.find(request.metadata()).await
    }
}

/// The exit code of a process of which none is known.
const UNKNOWN_EXIT: u32 = 255;

fn read_only(reference: Option<RefHandle>, doing: &str) -> Result<RefHandle, Status> {
    reference.ok_or_else(|| Status::unknown(format!("{doing}: no such file or directory")))
}

#[async_trait]
impl<R: Runs> LlbBridge for Service<R> {
    async fn resolve_image_config(
        &self,
        request: Request<wire::ResolveImageConfigRequest>,
    ) -> Result<Response<wire::ResolveImageConfigResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let mut attrs = std::collections::BTreeMap::new();
        let scheme = if request.resolver_type == 1 {
            attrs.insert("oci.session".to_owned(), request.session_id.clone());
            attrs.insert("oci.store".to_owned(), request.store_id.clone());
            "oci-layout"
        } else {
            if !request.resolve_mode.is_empty() {
                attrs.insert("image.resolvemode".to_owned(), request.resolve_mode.clone());
            }
            "docker-image"
        };
        let source =
            llb::pb::SourceOp { identifier: format!("{scheme}://{}", request.r#ref), attrs };
        let meta = frontend_api::SourceMetaRequest {
            source,
            platform: request.platform.as_ref().map(base::Platform::from),
            log_name: request.log_name.clone(),
            resolve_mode: request.resolve_mode.clone(),
            policies: request.source_policies.clone(),
            ..Default::default()
        };
        let answer =
            run.bridge().resolve_source_meta(meta).await.map_err(|error| to_tonic(&error))?;
        let image = answer.image.unwrap_or_default();
        let reference = answer
            .source
            .identifier
            .split_once("://")
            .map_or(request.r#ref.as_str(), |(_, rest)| rest)
            .to_owned();
        Ok(Response::new(wire::ResolveImageConfigResponse {
            digest: image.digest,
            config: image.config,
            r#ref: reference,
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<wire::ResolveSourceMetaRequest>,
    ) -> Result<Response<wire::ResolveSourceMetaResponse>, Status> {
        let run = self.run(&request).await?;
        let mut request = request.into_inner();
        let source =
            request.source.take().ok_or_else(|| Status::invalid_argument("source is required"))?;
        let meta = convert::meta_request(request, source);
        let answer =
            run.bridge().resolve_source_meta(meta).await.map_err(|error| to_tonic(&error))?;
        Ok(Response::new(convert::meta_response(answer)))
    }

    async fn solve(
        &self,
        request: Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let definition = request.definition.filter(|definition| !definition.def.is_empty());
        let what = match (definition, request.frontend.is_empty()) {
            (Some(_), false) => {
                return Err(Status::unknown(
                    "cannot solve with both Definition and Frontend specified",
                ));
            }
            (Some(definition), true) => SolveWhat::Definition(definition),
            (None, false) => SolveWhat::Frontend {
                name: request.frontend,
                options: request.frontend_opt,
                inputs: request.frontend_inputs,
            },
            (None, true) => SolveWhat::Nothing,
        };
        let cache_imports = request
            .cache_imports
            .into_iter()
            .map(|import| CacheImport { kind: import.r#type, attrs: import.attrs })
            .collect();
        let solve = SolveRequest {
            what,
            cache_imports,
            evaluate: request.evaluate,
            policies: request.source_policies,
        };
        let mut result = run.bridge().solve(solve).await.map_err(|error| run.failure(error))?;
        if request.r#final {
            if !request.exporter_attr.is_empty() {
                let extra: std::collections::BTreeMap<String, String> =
                    serde_json::from_slice(&request.exporter_attr).map_err(|error| {
                        Status::invalid_argument(format!("exporter attributes: {error}"))
                    })?;
                for (key, value) in extra {
                    use base64::Engine as _;
                    let bytes = base64::engine::general_purpose::STANDARD.decode(value).map_err(
                        |error| {
                            Status::invalid_argument(format!("exporter attribute {key}: {error}"))
                        },
                    )?;
                    result.metadata.insert(key, bytes.into());
                }
            }
            run.settle(Ok(result))?;
            return Ok(Response::new(wire::SolveResponse::default()));
        }
        if !request.allow_result_return {
            let Refs::Single(reference) = &result.refs else {
                return Err(Status::unknown("cannot return a map of results to this client"));
            };
            let reference = run.register(reference.as_ref());
            return Ok(Response::new(wire::SolveResponse { r#ref: reference.id, result: None }));
        }
        let mut answer = convert::result_to_wire(&result, |reference| run.register(reference));
        if !request.allow_result_array_ref {
            answer.result = answer.result.map(deprecated_refs);
        }
        Ok(Response::new(wire::SolveResponse { r#ref: String::new(), result: Some(answer) }))
    }

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference =
            read_only(run.find(&request.r#ref)?, &format!("open {}", request.file_path))?;
        let range = file_range(request.range);
        let data = run
            .bridge()
            .read_file(&reference, &request.file_path, range)
            .await
            .map_err(|error| run.failure(error))?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference =
            read_only(run.find(&request.r#ref)?, &format!("open {}", request.dir_path))?;
        let entries = run
            .bridge()
            .read_dir(&reference, &request.dir_path, &request.include_pattern)
            .await
            .map_err(|error| run.failure(error))?;
        Ok(Response::new(wire::ReadDirResponse {
            entries: entries.into_iter().map(convert::stat_to_wire).collect(),
        }))
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference = read_only(run.find(&request.r#ref)?, &format!("lstat {}", request.path))?;
        let stat = run
            .bridge()
            .stat_file(&reference, &request.path)
            .await
            .map_err(|error| run.failure(error))?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(convert::stat_to_wire(stat)) }))
    }

    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        let run = self.run(&request).await?;
        if let Some(reference) = run.find(&request.into_inner().r#ref)? {
            run.bridge().evaluate(&reference).await.map_err(|error| run.failure(error))?;
        }
        Ok(Response::new(wire::EvaluateResponse {}))
    }

    async fn ping(
        &self,
        request: Request<wire::PingRequest>,
    ) -> Result<Response<wire::PongResponse>, Status> {
        let run = self.run(&request).await?;
        Ok(Response::new(wire::PongResponse {
            frontend_api_caps: capabilities::wire(capabilities::FRONTEND),
            llb_caps: capabilities::wire(self.runs.llb_capabilities()),
            workers: run.bridge().workers().iter().map(convert::worker).collect(),
        }))
    }

    async fn r#return(
        &self,
        request: Request<wire::ReturnRequest>,
    ) -> Result<Response<wire::ReturnResponse>, Status> {
        let run = self.run(&request).await?;
        run.finish(request.into_inner())?;
        Ok(Response::new(wire::ReturnResponse {}))
    }

    async fn inputs(
        &self,
        request: Request<wire::InputsRequest>,
    ) -> Result<Response<wire::InputsResponse>, Status> {
        let run = self.run(&request).await?;
        let definitions = run.bridge().inputs().await.map_err(|error| to_tonic(&error))?;
        let entry = |(key, mut definition): (String, llb::pb::Definition)| {
            definition.drop_empty_locations();
            wire::inputs_response::Entry { key, value: Some(definition) }
        };
        let definitions = definitions.into_iter().map(entry).collect();
        Ok(Response::new(wire::InputsResponse { definitions }))
    }

    async fn warn(
        &self,
        request: Request<wire::WarnRequest>,
    ) -> Result<Response<wire::WarnResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        if request.ranges.iter().any(|range| range.start.is_none() || range.end.is_none()) {
            return Err(Status::invalid_argument("invalid source range"));
        }
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        let warning = Warning {
            vertex: request.digest,
            level: i32::try_from(request.level).unwrap_or(i32::MAX),
            short: text(&request.short),
            detail: request.detail.iter().map(text).collect(),
            url: request.url,
            source_info: request.info,
            ranges: request.ranges,
        };
        run.bridge().warn(warning).await.map_err(|error| to_tonic(&error))?;
        Ok(Response::new(wire::WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<wire::NewContainerRequest>,
    ) -> Result<Response<wire::NewContainerResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let network = request.network();
        let mut mounts = Vec::with_capacity(request.mounts.len());
        for mount in request.mounts {
            let reference = run.find(&mount.result_id)?;
            mounts.push((mount, reference));
        }
        run.create_container(NewContainer {
            id: request.container_id,
            mounts,
            network,
            platform: request.platform.as_ref().map(base::Platform::from),
            extra_hosts: request.extra_hosts,
            hostname: request.hostname,
        })
        .await?;
        Ok(Response::new(wire::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<wire::ReleaseContainerRequest>,
    ) -> Result<Response<wire::ReleaseContainerResponse>, Status> {
        let run = self.run(&request).await?;
        if let Some(container) = run.take_container(&request.into_inner().container_id) {
            container.release().await.map_err(|error| to_tonic(&error))?;
        }
        Ok(Response::new(wire::ReleaseContainerResponse {}))
    }

    type ExecProcessStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::ExecMessage, Status>> + Send>>;

    async fn exec_process(
        &self,
        request: Request<Streaming<wire::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let run = self.run(&request).await?;
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            if let Err(status) = exec_stream(run, request.into_inner(), sender.clone()).await {
                _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn read_file_container(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference =
            container_mount(&run, &request.r#ref, request.mount_index, &request.file_path).await?;
        let range = file_range(request.range);
        let data = run
            .bridge()
            .read_file(&reference, &request.file_path, range)
            .await
            .map_err(|error| to_tonic(&error))?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir_container(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference =
            container_mount(&run, &request.r#ref, request.mount_index, &request.dir_path).await?;
        let entries = run
            .bridge()
            .read_dir(&reference, &request.dir_path, &request.include_pattern)
            .await
            .map_err(|error| to_tonic(&error))?;
        Ok(Response::new(wire::ReadDirResponse {
            entries: entries.into_iter().map(convert::stat_to_wire).collect(),
        }))
    }

    async fn stat_file_container(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let run = self.run(&request).await?;
        let request = request.into_inner();
        let reference =
            container_mount(&run, &request.r#ref, request.mount_index, &request.path).await?;
        let stat = run
            .bridge()
            .stat_file(&reference, &request.path)
            .await
            .map_err(|error| to_tonic(&error))?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(convert::stat_to_wire(stat)) }))
    }
}

fn file_range(range: Option<wire::FileRange>) -> Option<FileRange> {
    range.map(|range| FileRange {
        offset: u64::try_from(range.offset).unwrap_or(0),
        length: u64::try_from(range.length).unwrap_or(0),
    })
}

fn deprecated_refs(result: wire::result::Result) -> wire::result::Result {
    use wire::result::Result as Wire;
    match result {
        Wire::Ref(reference) => Wire::RefDeprecated(reference.id),
        Wire::Refs(map) => Wire::RefsDeprecated(wire::RefMapDeprecated {
            refs: map
                .refs
                .into_iter()
                .map(|entry| (entry.key, entry.value.unwrap_or_default().id))
                .collect(),
        }),
        already => already,
    }
}

async fn container_mount(run: &Run, id: &str, index: i32, path: &str) -> Result<RefHandle, Status> {
    if !path.starts_with('/') {
        return Err(Status::invalid_argument(format!("{path} is not an absolute path")));
    }
    let container = run.container(id)?;
    let index =
        usize::try_from(index).map_err(|_| Status::invalid_argument("negative mount index"))?;
    let reference = container.mount(index).await.map_err(|error| to_tonic(&error))?;
    read_only(reference, &format!("open {path}"))
}

/// Any number of processes on one stream, keyed by their ids.
async fn exec_stream(
    run: Arc<Run>,
    mut incoming: Streaming<wire::ExecMessage>,
    outgoing: mpsc::Sender<Result<wire::ExecMessage, Status>>,
) -> Result<(), Status> {
    use wire::exec_message::Input;
    let mut processes: HashMap<String, mpsc::Sender<ProcessInput>> = HashMap::new();
    while let Some(message) = incoming.message().await? {
        let id = message.process_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("process id is required"));
        }
        let known = |processes: &HashMap<String, mpsc::Sender<ProcessInput>>| {
            processes
                .get(&id)
                .cloned()
                .ok_or_else(|| Status::not_found(format!("process {id} not found")))
        };
        match message.input {
            Some(Input::Init(init)) => {
                if processes.contains_key(&id) {
                    return Err(Status::already_exists(format!("process {id} already exists")));
                }
                let container = run.container(&init.container_id)?;
                let (sender, receiver) = mpsc::channel(64);
                processes.insert(id.clone(), sender);
                let events = match start(&*container, &init, receiver).await {
                    Ok(events) => events,
                    Err(error) => failed(error),
                };
                tokio::spawn(pump(id, init.fds, events, outgoing.clone()));
            }
            Some(Input::File(file)) => {
                let process = known(&processes)?;
                if file.fd != 0 {
                    return Err(Status::out_of_range(format!(
                        "descriptor {} cannot be written",
                        file.fd
                    )));
                }
                if !file.data.is_empty() {
                    _ = process.send(ProcessInput::Stdin(file.data)).await;
                }
                if file.eof {
                    _ = process.send(ProcessInput::StdinEof).await;
                }
            }
            Some(Input::Resize(size)) => {
                _ = known(&processes)?
                    .send(ProcessInput::Resize { rows: size.rows, cols: size.cols })
                    .await;
            }
            Some(Input::Signal(signal)) => {
                let number = signal_number(&signal.name).ok_or_else(|| {
                    Status::invalid_argument(format!("unknown signal {}", signal.name))
                })?;
                _ = known(&processes)?.send(ProcessInput::Signal(number)).await;
            }
            Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                return Err(Status::invalid_argument("unexpected exec message"));
            }
        }
    }
    Ok(())
}

async fn start(
    container: &dyn Container,
    init: &wire::InitMessage,
    input: mpsc::Receiver<ProcessInput>,
) -> Result<mpsc::Receiver<ProcessEvent>, FrontendError> {
    let security = pb::SecurityMode::try_from(init.security).map_err(|_| {
        let code = Code::InvalidArgument;
        FrontendError::with_code(code, format!("invalid security mode {}", init.security))
    })?;
    let process = Process {
        fds: init.fds.clone(),
        tty: init.tty,
        security,
        secret_env: init.secretenv.clone(),
        meta: init.meta.clone().unwrap_or_default(),
    };
    container.start(process, input).await
}

/// The events of a process that could not be started. The stream goes on: a client that saw it end
/// would wait for ever for this process.
fn failed(error: FrontendError) -> mpsc::Receiver<ProcessEvent> {
    let (sender, events) = mpsc::channel(1);
    _ = sender.try_send(ProcessEvent::Exit { code: UNKNOWN_EXIT, error: Some(error) });
    events
}

async fn pump(
    id: String,
    fds: Vec<u32>,
    mut events: mpsc::Receiver<ProcessEvent>,
    outgoing: mpsc::Sender<Result<wire::ExecMessage, Status>>,
) {
    use wire::exec_message::Input;
    let send = async |input: Input| {
        outgoing
            .send(Ok(wire::ExecMessage { process_id: id.clone(), input: Some(input) }))
            .await
            .is_ok()
    };
    if !send(Input::Started(wire::StartedMessage {})).await {
        return;
    }
    while let Some(event) = events.recv().await {
        match event {
            ProcessEvent::Output { fd, data } => {
                if !send(Input::File(wire::FdMessage { fd, eof: false, data })).await {
                    return;
                }
            }
            ProcessEvent::Exit { code, error } => {
                for fd in fds.iter().copied().filter(|fd| *fd != 0) {
                    _ = send(Input::File(wire::FdMessage {
                        fd,
                        eof: true,
                        data: bytes::Bytes::new(),
                    }))
                    .await;
                }
                let error = match (code, error) {
                    (0, None) => None,
                    (_, Some(error)) => Some(crate::status::to_wire(&error)),
                    (code, None) => Some(proto::google::rpc::Status {
                        code: 2,
                        message: format!("exit code: {code}"),
                        details: Vec::new(),
                    }),
                };
                _ = send(Input::Exit(wire::ExitMessage { code, error })).await;
                _ = send(Input::Done(wire::DoneMessage {})).await;
            }
        }
    }
}

/// Number of a signal named without `SIG`.
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: &[&str] = &[
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).map(|at| at as i32 + 1)
}
