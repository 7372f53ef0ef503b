//! Containers for `rbuildctl run`, `ps`, `logs` and `stop`.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use base::Platform;
use engine::run::{self, Exit, Port, RunRequest, Runner};
use executor::Event;
use frontend_api::FrontendError;
use proto::rbuild::v1::{self as wire, containers_server::Containers as ContainersService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::idle::Idle;

/// Time between the stop signal and KILL unless the client says otherwise.
const STOP_TIMEOUT_S: u32 = 10;

/// Serves the containers of one runner.
#[derive(Clone)]
pub struct Containers {
    pub runner: Arc<Runner>,
    pub idle: Arc<Idle>,
}

fn status(error: FrontendError) -> Status {
    gateway::status::to_tonic(&error)
}

fn port_to_wire(port: &Port) -> wire::Port {
    wire::Port {
        host_ip: port.host.ip().to_string(),
        host_port: port.host.port().into(),
        container_port: port.container.into(),
        protocol: "tcp".into(),
    }
}

fn port_from_wire(port: &wire::Port) -> Result<Port, Status> {
    if !matches!(port.protocol.as_str(), "" | "tcp") {
        return Err(Status::invalid_argument(format!(
            "{} ports cannot be published; use tcp",
            port.protocol
        )));
    }
    let container =
        u16::try_from(port.container_port).ok().filter(|number| *number > 0).ok_or_else(|| {
            Status::invalid_argument(format!("{} is not a port", port.container_port))
        })?;
    Ok(Port { host: run::host_address(&port.host_ip, port.host_port).map_err(status)?, container })
}

fn exit_to_wire(exit: &Exit) -> wire::Exit {
    wire::Exit { code: exit.code, error: exit.error.clone() }
}

#[async_trait]
impl ContainersService for Containers {
    async fn run(
        &self,
        request: Request<wire::RunRequest>,
    ) -> Result<Response<wire::RunResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let platform = match request.platform.as_str() {
            "" => None,
            text => Some(
                Platform::parse(text)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?,
            ),
        };
        let ports = request.ports.iter().map(port_from_wire).collect::<Result<_, _>>()?;
        let container = self
            .runner
            .run(RunRequest {
                image: request.image,
                args: request.args,
                env: request.env,
                ports,
                remove: request.remove,
                workdir: request.workdir,
                user: request.user,
                name: request.name,
                entrypoint: request.entrypoint.map(|entrypoint| entrypoint.args),
                network: request.network,
                tty: request.tty,
                stdin: request.stdin,
                platform: platform.map(|platform| platform.normalize()),
                hostname: request.hostname,
                volumes: request.volumes,
            })
            .await
            .map_err(status)?;
        let ports = container.ports().iter().map(port_to_wire).collect();
        Ok(Response::new(wire::RunResponse { id: container.id.clone(), ports }))
    }

    type AttachStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::AttachResponse, Status>> + Send>>;

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
        let container = self.runner.find(&first.container).map_err(status)?;
        let mut output = container.output(first.logs).map_err(|error| {
            Status::internal(format!("read the log of {}: {error}", container.name))
        })?;
        let follow = first.follow && container.exit().is_none();
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
                    let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
                    input
                        .event(Event::Resize { rows: clamp(size.rows), columns: clamp(size.cols) })
                        .await;
                }
                if let Some(number) = run::signal(&message.signal) {
                    input.event(Event::Signal(number)).await;
                }
                next = incoming.message().await.ok().flatten();
            }
        });
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let answer = match output.next(follow).await {
                    Ok(Some((1, stdout))) => {
                        Ok(wire::AttachResponse { stdout, ..Default::default() })
                    }
                    Ok(Some((_, stderr))) => {
                        Ok(wire::AttachResponse { stderr, ..Default::default() })
                    }
                    Ok(None) => break,
                    Err(error) => Err(Status::internal(format!(
                        "read the log of {}: {error}",
                        container.name
                    ))),
                };
                if sender.send(answer).await.is_err() {
                    reading.abort();
                    return;
                }
            }
            if follow {
                container.wait().await;
            }
            if let Some(exit) = container.exit() {
                let exit = Some(exit_to_wire(&exit));
                _ = sender.send(Ok(wire::AttachResponse { exit, ..Default::default() })).await;
            }
            reading.abort();
            drop(busy);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let containers = self.runner.list(request.into_inner().all);
        let containers = containers
            .iter()
            .map(|container| {
                let exit = container.exit();
                wire::Container {
                    id: container.id.clone(),
                    name: container.name.clone(),
                    image: container.image.clone(),
                    command: container.command.clone(),
                    created: Some(container.created.into()),
                    finished: exit.as_ref().map(|exit| exit.at.into()),
                    exit: exit.as_ref().map(exit_to_wire),
                    ports: container.ports().iter().map(port_to_wire).collect(),
                }
            })
            .collect();
        Ok(Response::new(wire::ListContainersResponse { containers }))
    }

    async fn stop(
        &self,
        request: Request<wire::StopContainerRequest>,
    ) -> Result<Response<wire::StopContainerResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let container = self.runner.find(&request.container).map_err(status)?;
        let signal = match request.signal.as_str() {
            "" => None,
            name => Some(
                run::signal(name)
                    .ok_or_else(|| Status::invalid_argument(format!("unknown signal {name}")))?,
            ),
        };
        if container.exit().is_none() {
            let timeout = Duration::from_secs(request.timeout_s.unwrap_or(STOP_TIMEOUT_S).into());
            self.runner.stop(&container, signal, timeout).await;
        }
        Ok(Response::new(wire::StopContainerResponse {}))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Result<Response<wire::RemoveContainerResponse>, Status> {
        let request = request.into_inner();
        let container = self.runner.find(&request.container).map_err(status)?;
        self.runner.remove(&container, request.force).await.map_err(status)?;
        Ok(Response::new(wire::RemoveContainerResponse {}))
    }
}
