//! All services on all listeners.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Engine, run::Runner};
use futures_util::StreamExt as _;
use gateway::Run;
use proto::{
    containerd::services::content::v1::content_server::ContentServer,
    control::control_server::ControlServer,
    frontend::llb_bridge_server::LlbBridgeServer,
    opentelemetry::proto::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    rbuild::v1::{
        containers_server::ContainersServer, images_server::ImagesServer,
        registries_server::RegistriesServer, storage_server::StorageServer,
        volumes_server::VolumesServer,
    },
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes, transport::Server};

use crate::{
    builds::Builds,
    config::Config,
    containers::Containers,
    content::Content,
    control::Control,
    idle::Idle,
    images::Images,
    listen::{Connection, Listener, tls_config},
    reflection::Reflection,
    registries::Registries,
    storage::Storage,
    trace::Traces,
    volumes::Volumes,
};

/// Largest message, both ways.
const MAX_MESSAGE: usize = 16 << 20;
/// Metadata key that names the build a bridge call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// HTTP/2 windows: a context of many small files must not wait for window updates.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What the services work on.
pub struct Services {
    pub engine: Arc<Engine>,
    pub runner: Arc<Runner>,
    pub idle: Arc<Idle>,
    pub policies: Arc<Vec<store::GcPolicy>>,
    pub builds: Arc<Builds>,
    pub traces: Option<Traces>,
    /// The way to registries.
    pub client: oci::registry::Client,
}

/// Client-side frontend runs by build id.
struct ClientRuns(Arc<Engine>);

#[async_trait]
impl gateway::Runs for ClientRuns {
    async fn find(&self, metadata: &MetadataMap) -> Result<Arc<Run>, Status> {
        let mut ids = metadata.get_all(BUILD_ID).iter();
        let id = match (ids.next(), ids.next()) {
            (Some(id), None) => {
                id.to_str().map_err(|_| Status::invalid_argument("build id is not text"))?
            }
            _ => return Err(Status::unknown("no buildid found in context")),
        };
        let run = self.0.client_run(id).await;
        run.ok_or_else(|| Status::not_found(format!("no such job {id}")))
    }

    fn llb_capabilities(&self) -> &'static [&'static str] {
        engine::LLB_CAPABILITIES
    }
}

/// Passes spans of clients on, if there is a collector.
pub struct Spans(pub Option<Traces>);

#[async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(traces) = &self.0 {
            traces.forward(request.into_inner().resource_spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Services {
    fn routes(&self) -> Routes {
        macro_rules! sized {
            ($server:expr) => {
                $server
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            };
        }
        let (engine, runner, idle) = (&self.engine, &self.runner, &self.idle);
        let control = Control {
            engine: engine.clone(),
            idle: idle.clone(),
            policies: self.policies.clone(),
            builds: self.builds.clone(),
            traces: self.traces.clone(),
        };
        let bridge = gateway::Service::new(Arc::new(ClientRuns(engine.clone())));
        let content = Content { store: engine.store().clone() };
        let client = self.client.clone();
        let registries =
            Registries { engine: engine.clone(), idle: idle.clone(), client: client.clone() };
        let images =
            Images { engine: engine.clone(), runner: runner.clone(), idle: idle.clone(), client };
        let containers =
            Containers { runner: runner.clone(), idle: idle.clone(), images: images.clone() };
        let volumes = Volumes { runner: runner.clone() };
        let storage = Storage { engine: engine.clone(), idle: idle.clone() };
        let (_, health) = tonic_health::server::health_reporter();
        Routes::new(sized!(ControlServer::new(control)))
            .add_service(sized!(LlbBridgeServer::new(bridge)))
            .add_service(sized!(ContentServer::new(content)))
            .add_service(sized!(TraceServiceServer::new(Spans(self.traces.clone()))))
            .add_service(sized!(ImagesServer::new(images)))
            .add_service(sized!(RegistriesServer::new(registries)))
            .add_service(sized!(ContainersServer::new(containers)))
            .add_service(VolumesServer::new(volumes))
            .add_service(StorageServer::new(storage))
            .add_service(health)
            .add_service(Reflection::<false>)
            .add_service(Reflection::<true>)
    }

    /// Serves `listeners` until `idle` says that the daemon stops, then waits for running calls.
    pub async fn serve(&self, listeners: Vec<Listener>, config: &Config) -> anyhow::Result<()> {
        let routes = self.routes();
        let mut servers = tokio::task::JoinSet::new();
        for listener in listeners {
            let mut server = Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .tcp_nodelay(true);
            if let (Listener::Tcp(_, true), Some(tls)) = (&listener, &config.tls) {
                server = server.tls_config(tls_config(tls)?)?;
            }
            let server = server.add_routes(routes.clone());
            let mut stopping = self.idle.stopping();
            let stop = async move { _ = stopping.wait_for(|stopping| *stopping).await };
            match listener {
                Listener::Unix(listener, path) => {
                    let incoming = UnixListenerStream::new(listener)
                        .map(|stream| stream.map(Connection::Unix));
                    servers.spawn(async move {
                        let served = server.serve_with_incoming_shutdown(incoming, stop).await;
                        if let Some(path) = path {
                            _ = std::fs::remove_file(path);
                        }
                        served
                    });
                }
                Listener::Tcp(listener, _) => {
                    let incoming =
                        TcpListenerStream::new(listener).map(|stream| stream.map(Connection::Tcp));
                    servers.spawn(server.serve_with_incoming_shutdown(incoming, stop));
                }
            }
        }
        while let Some(served) = servers.join_next().await {
            served??;
        }
        Ok(())
    }
}
