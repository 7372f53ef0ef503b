//! Containers for `rbuildctl run`, `exec`, `ps`, `logs`, `cp` and their like.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use engine::run::{self, Container, Exit, NewContainer, Phase, Port, Runner, StartFailure};
use executor::Event;
use frontend_api::FrontendError;
use proto::rbuild::v1::{self as wire, containers_server::Containers as ContainersService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    idle::Idle,
    images::Images,
    logs,
    pipe::{self, Answers, Owning},
};

/// Metadata of an error: the exit status for a program that was told to run.
const EXIT_CODE: &str = "rbuild-exit-code";

/// Serves the containers of one runner.
#[derive(Clone)]
pub struct Containers {
    pub runner: Arc<Runner>,
    pub idle: Arc<Idle>,
    pub images: Images,
}

fn status(error: FrontendError) -> Status {
    gateway::status::to_tonic(&error)
}

fn start_status(failure: StartFailure) -> Status {
    let mut status = status(failure.error);
    if let Some(code) = failure.code {
        status.metadata_mut().insert(EXIT_CODE, code.into());
    }
    status
}

fn exit_to_wire(exit: &Exit) -> wire::Exit {
    wire::Exit { code: exit.code, error: exit.error.clone(), oom_killed: exit.oom_killed }
}

fn signal(name: &str) -> Result<i32, Status> {
    let upper = name.to_ascii_uppercase();
    run::signal(&upper).ok_or_else(|| Status::invalid_argument(format!("Invalid signal: {name}")))
}

fn resize(size: wire::WindowSize) -> Event {
    let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
    Event::Resize { rows: clamp(size.rows), columns: clamp(size.cols) }
}

fn piece(stream: u8, data: Bytes) -> wire::AttachResponse {
    match stream {
        1 => wire::AttachResponse { stdout: data, ..Default::default() },
        _ => wire::AttachResponse { stderr: data, ..Default::default() },
    }
}

fn describe(container: &Container) -> wire::Container {
    let phase = container.phase();
    let (state, started, exit, pid) = match &phase {
        Phase::Created => ("created", None, None, 0),
        Phase::Running { since, pid } => ("running", Some(*since), None, *pid),
        Phase::Ended { since, exit } => ("exited", Some(*since), Some(exit), 0),
    };
    let process = container.process();
    let config = &container.config.config;
    wire::Container {
        id: container.id.clone(),
        name: container.name(),
        image: container.image.clone(),
        command: container.command().to_vec(),
        created: Some(container.created.into()),
        finished: exit.map(|exit| exit.at.into()),
        exit: exit.map(exit_to_wire),
        ports: container.ports().iter().map(Port::to_wire).collect(),
        labels: {
            let mut labels = config.labels.clone();
            labels.extend(container.request.labels.clone());
            labels
        },
        state: state.into(),
        started: started.map(Into::into),
        image_id: container.image_id.clone(),
        request: Some(container.request.clone()),
        env: process.env.clone(),
        workdir: process.cwd.clone(),
        user: process.user.clone(),
        mounts: container.mounts().cloned().collect(),
        pid,
        platform: container.platform.format(),
        stop_signal: {
            let own = [&container.request.stop_signal, &container.config.config.stop_signal];
            let named = own.into_iter().find(|name| !name.is_empty());
            named.cloned().unwrap_or_else(|| "SIGTERM".into())
        },
        exposed: container.exposed().into_iter().collect(),
        health: container.health_to_wire(),
        entrypoint: match &container.request.entrypoint {
            Some(asked) => asked.args.clone(),
            None => config.entrypoint.clone(),
        },
        cmd: match (&container.request.entrypoint, container.request.args.as_slice()) {
            (None, []) => config.cmd.clone(),
            (_, args) => args.to_vec(),
        },
        endpoint: container.endpoint().map(|endpoint| wire::Endpoint {
            address: endpoint.address.to_string(),
            prefix: 32,
            gateway: endpoint.gateway.map(|it| it.to_string()).unwrap_or_default(),
        }),
    }
}

impl Containers {
    fn find(&self, wanted: &str) -> Result<Arc<Container>, Status> {
        self.runner.find(wanted).map_err(status)
    }

    /// Makes a container; what the user should know comes with it.
    async fn make(
        &self,
        request: wire::RunRequest,
    ) -> Result<(Arc<Container>, Option<String>), Status> {
        let image = self.images.find(&request.image)?;
        let (platform, warning) = self.images.runs_as(&image, &request)?;
        let new = NewContainer { request, image: image.descriptor, platform };
        Ok((self.runner.create(new).await.map_err(status)?, warning))
    }

    /// Starts a container that was made for this; one that cannot start is not kept.
    async fn start_new(&self, container: &Arc<Container>) -> Result<(), Status> {
        let started = self.runner.start(container).await;
        if let Err(failure) = started {
            _ = self.runner.remove(container, true, true).await;
            return Err(start_status(failure));
        }
        Ok(())
    }
}

#[async_trait]
impl ContainersService for Containers {
    async fn run(
        &self,
        request: Request<wire::RunRequest>,
    ) -> Result<Response<wire::RunResponse>, Status> {
        let _busy = self.idle.work();
        let request = request.into_inner();
        let create_only = request.create_only;
        let (container, warning) = self.make(request).await?;
        if !create_only {
            self.start_new(&container).await?;
        }
        let ports = container.ports().iter().map(Port::to_wire).collect();
        let warnings = warning.into_iter().collect();
        Ok(Response::new(wire::RunResponse { id: container.id.clone(), ports, warnings }))
    }

    async fn start(
        &self,
        request: Request<wire::StartContainerRequest>,
    ) -> Result<Response<wire::StartContainerResponse>, Status> {
        let _busy = self.idle.busy();
        let container = self.find(&request.into_inner().container)?;
        self.runner.start(&container).await.map_err(start_status)?;
        Ok(Response::new(wire::StartContainerResponse {}))
    }

    type AttachStream = Answers<wire::AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let busy = self.idle.busy();
        let mut incoming = request.into_inner();
        let first = incoming
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("attach needs a container to attach to"))?;
        let container = self.find(&first.container)?;
        let broken =
            |error: io::Error| Status::internal(format!("read a container's log: {error}"));
        let mut output = container.output(first.logs).map_err(broken)?;
        if first.start {
            let fresh = container.phase() == Phase::Created;
            match fresh {
                true => self.start_new(&container).await?,
                false => self.runner.start(&container).await.map_err(start_status)?,
            }
        } else if !first.logs && !container.is_running() {
            return Err(Status::failed_precondition(
                "You cannot attach to a stopped container, start it first",
            ));
        }
        let follow = first.follow;
        let input = container.clone();
        let reading = tokio::spawn(async move {
            let mut next = Some(first);
            while let Some(message) = next.take() {
                if !message.stdin.is_empty() {
                    input.write(Some(message.stdin)).await;
                }
                if message.stdin_eof {
                    input.write(None).await;
                }
                if let Some(size) = message.resize {
                    input.event(resize(size)).await;
                }
                if let Some(number) = run::signal(&message.signal) {
                    input.event(Event::Signal(number)).await;
                }
                next = incoming.message().await.ok().flatten();
            }
        });
        let (sender, receiver) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            loop {
                let answer = match output.next(follow).await {
                    Ok(Some(it)) => Ok(piece(it.stream, it.data)),
                    Ok(None) => break,
                    Err(error) => Err(broken(error)),
                };
                if sender.send(answer).await.is_err() {
                    break;
                }
            }
            if follow {
                container.wait().await;
            }
            if let Some(exit) = container.exit() {
                let exit = Some(exit_to_wire(&exit));
                _ = sender.send(Ok(wire::AttachResponse { exit, ..Default::default() })).await;
            }
            drop(busy);
        });
        let stream = Owning::new(ReceiverStream::new(receiver), task.abort_handle());
        Ok(Response::new(Box::pin(Owning::new(stream, reading.abort_handle()))))
    }

    type ExecStream = Answers<wire::AttachResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<wire::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let busy = self.idle.busy();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.unwrap_or_default();
        let start = first
            .start
            .ok_or_else(|| Status::invalid_argument("exec needs to know what to run"))?;
        let container = self.find(&start.container)?;
        let detach = start.detach;
        let mut exec = self.runner.exec(&container, start).await.map_err(start_status)?;
        let (sender, receiver) = mpsc::channel(16);
        if detach {
            // Its output goes nowhere, but has to be taken.
            tokio::spawn(async move { while exec.output.recv().await.is_some() {} });
            return Ok(Response::new(Box::pin(ReceiverStream::new(receiver))));
        }
        let (events, stdin) = (exec.events.clone(), exec.stdin.clone());
        let reading = tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if !message.stdin.is_empty() {
                    _ = stdin.send(Some(message.stdin)).await;
                }
                if message.stdin_eof {
                    _ = stdin.send(None).await;
                }
                if let Some(size) = message.resize {
                    _ = events.send(resize(size)).await;
                }
                if let Some(number) = run::signal(&message.signal) {
                    _ = events.send(Event::Signal(number)).await;
                }
            }
        });
        tokio::spawn(async move {
            let mut listening = true;
            while let Some((stream, data)) = exec.output.recv().await {
                // The process goes on without its client, as docker's does.
                listening = listening && sender.send(Ok(piece(stream, data))).await.is_ok();
            }
            if let Ok(exit) = exec.exit.await {
                let exit = Some(exit_to_wire(&exit));
                _ = sender.send(Ok(wire::AttachResponse { exit, ..Default::default() })).await;
            }
            drop(busy);
        });
        let stream = Owning::new(ReceiverStream::new(receiver), reading.abort_handle());
        Ok(Response::new(Box::pin(stream)))
    }

    type LogsStream = Answers<wire::AttachResponse>;

    async fn logs(
        &self,
        request: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let busy = self.idle.busy();
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let answers = logs::stream(&container, &request, busy)
            .map_err(|error| Status::internal(format!("read a container's log: {error}")))?;
        Ok(Response::new(answers))
    }

    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let containers = self.runner.list(request.into_inner().all);
        let containers = containers.iter().map(|container| describe(container)).collect();
        Ok(Response::new(wire::ListContainersResponse { containers }))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectContainerRequest>,
    ) -> Result<Response<wire::Container>, Status> {
        let container = self.find(&request.into_inner().container)?;
        Ok(Response::new(describe(&container)))
    }

    async fn stop(
        &self,
        request: Request<wire::StopContainerRequest>,
    ) -> Result<Response<wire::StopContainerResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let number = match request.signal.as_str() {
            "" => None,
            name => Some(signal(name)?),
        };
        let timeout = request.timeout_s.map(|seconds| Duration::from_secs(seconds.into()));
        self.runner.stop(&container, number, timeout).await;
        Ok(Response::new(wire::StopContainerResponse {}))
    }

    async fn signal(
        &self,
        request: Request<wire::SignalContainerRequest>,
    ) -> Result<Response<wire::SignalContainerResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let number = signal(&request.signal)?;
        if !container.event(Event::Signal(number)).await {
            return Err(Status::failed_precondition(format!(
                "cannot kill container: {}: container {} is not running",
                request.container, container.id
            )));
        }
        Ok(Response::new(wire::SignalContainerResponse {}))
    }

    async fn wait(
        &self,
        request: Request<wire::WaitContainerRequest>,
    ) -> Result<Response<wire::Exit>, Status> {
        let _busy = self.idle.busy();
        let container = self.find(&request.into_inner().container)?;
        Ok(Response::new(exit_to_wire(&container.wait().await)))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Result<Response<wire::RemoveContainerResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let removed = self.runner.remove(&container, request.force, request.volumes).await;
        removed.map_err(status)?;
        Ok(Response::new(wire::RemoveContainerResponse {}))
    }

    async fn rename(
        &self,
        request: Request<wire::RenameContainerRequest>,
    ) -> Result<Response<wire::RenameContainerResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        self.runner.rename(&container, &request.name).map_err(status)?;
        Ok(Response::new(wire::RenameContainerResponse {}))
    }

    type CopyFromStream = Answers<wire::CopyFromResponse>;

    async fn copy_from(
        &self,
        request: Request<wire::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        let busy = self.idle.busy();
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let found = self.runner.stat(&container, &request.path, request.follow_link);
        let (info, packer) = found.map_err(status)?;
        let (answers, receiver) = mpsc::channel(pipe::QUEUE);
        let exists = info.exists;
        let info = wire::PathInfo { name: info.name, folder: info.folder, exists };
        let first = wire::CopyFromResponse { info: Some(info), ..Default::default() };
        _ = answers.send(Ok(first)).await;
        if exists {
            let (sender, mut data) = mpsc::channel(pipe::QUEUE);
            let packing =
                tokio::task::spawn_blocking(move || packer.pack(&mut pipe::Sender::new(sender)));
            tokio::spawn(async move {
                while let Some(data) = data.recv().await {
                    let message = wire::CopyFromResponse { data, ..Default::default() };
                    if answers.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                let packed = packing.await.map_err(io::Error::other).and_then(|packed| packed);
                if let Err(error) = packed {
                    let text = format!("copy {}: {error}", request.path);
                    _ = answers.send(Err(Status::unknown(text))).await;
                }
                drop(busy);
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn copy_to(
        &self,
        request: Request<Streaming<wire::CopyToRequest>>,
    ) -> Result<Response<wire::CopyToResponse>, Status> {
        let _busy = self.idle.busy();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.unwrap_or_default();
        let container = self.find(&first.container)?;
        let (data, receiver) = mpsc::channel(pipe::QUEUE);
        let (runner, path) = (self.runner.clone(), first.path.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            runner.unpack(&container, &path, &mut pipe::Receiver::new(receiver))
        });
        let mut next = Some(Ok(first.data));
        while let Some(message) = next.take() {
            if data.send(message).await.is_err() {
                break;
            }
            next = match incoming.message().await {
                Ok(Some(message)) => Some(Ok(message.data)),
                Ok(None) => None,
                Err(status) => Some(Err(status)),
            };
        }
        drop(data);
        let unpacked = unpacking.await.map_err(|error| Status::internal(error.to_string()))?;
        unpacked.map_err(status)?;
        Ok(Response::new(wire::CopyToResponse {}))
    }
}
