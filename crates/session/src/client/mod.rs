//! The client's end of a session: a gRPC server inside a byte stream that the client opened.
//!
//! Put together what the build may ask for with [`SessionServer::add`] and friends, then
//! [`SessionServer::run`] opens the stream and serves until it is told to stop. Everything served
//! is listed to the daemon by method name.

mod content;
mod files;
mod outputs;
mod secrets;
mod ssh;
mod uploads;

use std::{collections::BTreeSet, convert::Infallible, io};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{Request as HttpRequest, Response as HttpResponse};
use proto::control::{BytesMessage, control_client::ControlClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    body::Body,
    metadata::{AsciiMetadataKey, MetadataMap},
    server::NamedService,
    service::Routes,
    transport::{Channel, Server, server::Connected},
};
use tower::Service;

pub use content::{ContentStores, LayoutStore};
pub use files::{SyncedDir, SyncedDirs};
pub use outputs::{OpenFile, OutputFile, Outputs, Target};
pub use secrets::Secrets;
pub use ssh::Agents;
pub use uploads::Uploads;

use crate::{
    header,
    registry::{KEY_ID, KEY_METHOD, KEY_SHARED},
    tunnel::{QUEUE, Tunnel},
};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The daemon sends blobs and files in messages of a few MiB.
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

/// What one client serves during one session.
pub struct SessionServer {
    id: String,
    shared_key: String,
    routes: Routes,
    methods: BTreeSet<String>,
}

impl SessionServer {
    /// A session with a random id that serves nothing but its health yet. `shared_key` tells the
    /// daemon which of its earlier copies of local folders are this client's.
    pub fn new(shared_key: impl Into<String>) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        // The whole server is healthy from the start, which is all that is asked.
        drop(reporter);
        let mut server = Self {
            id: base::id::random_id(),
            shared_key: shared_key.into(),
            routes: Routes::default(),
            methods: BTreeSet::new(),
        };
        server.add(health, &["Check", "Watch"]);
        server
    }

    /// The session's id, for the build request.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds a generated service with its method names.
    pub fn add<S>(&mut self, service: S, methods: &[&str])
    where
        S: Service<HttpRequest<Body>, Response = HttpResponse<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.methods.extend(methods.iter().map(|method| format!("/{}/{method}", S::NAME)));
        let routes = std::mem::take(&mut self.routes);
        self.routes = routes.add_service(service);
    }

    /// Serves folders as local sources.
    pub fn add_dirs(&mut self, dirs: SyncedDirs) {
        self.add(dirs.into_service(), &["DiffCopy", "TarStream"]);
    }

    /// Takes outputs.
    pub fn add_outputs(&mut self, outputs: Outputs) {
        self.add(outputs.into_service(), &["DiffCopy"]);
    }

    /// Serves secrets.
    pub fn add_secrets(&mut self, secrets: Secrets) {
        self.add(secrets.into_service(), &["GetSecret"]);
    }

    /// Forwards agents.
    pub fn add_agents(&mut self, agents: Agents) {
        self.add(agents.into_service(), &["CheckAgent", "ForwardAgent"]);
    }

    /// Serves content stores.
    pub fn add_content(&mut self, stores: ContentStores) {
        let methods = [
            "Info",
            "Update",
            "List",
            "Delete",
            "Read",
            "Status",
            "ListStatuses",
            "Write",
            "Abort",
        ];
        self.add(stores.into_service(), &methods);
    }

    /// Serves uploads.
    pub fn add_uploads(&mut self, uploads: Uploads) {
        self.add(uploads.into_service(), &["Pull"]);
    }

    /// The metadata that opens the session.
    pub fn metadata(&self) -> Result<MetadataMap, Status> {
        let value = |key: &str, text: &str| {
            header::ascii(key, text).map_err(|error| Status::invalid_argument(error.to_string()))
        };
        let mut metadata = MetadataMap::new();
        metadata.insert(KEY_ID, value(KEY_ID, &self.id)?);
        metadata.insert(KEY_SHARED, value(KEY_SHARED, &self.shared_key)?);
        let key = AsciiMetadataKey::from_static(KEY_METHOD);
        for method in &self.methods {
            metadata.append(&key, value(KEY_METHOD, method)?);
        }
        Ok(metadata)
    }

    /// Opens the session and serves it until `stop` is cancelled or the daemon ends it. With `stop`
    /// the daemon is told and waited for.
    pub async fn run(
        self,
        mut control: ControlClient<Channel>,
        stop: CancellationToken,
    ) -> Result<(), Status> {
        let metadata = self.metadata()?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let outgoing = ReceiverStream::new(receiver).map(|data| BytesMessage { data });
        let mut call = Request::new(outgoing);
        *call.metadata_mut() = metadata;
        let incoming = tokio::select! {
            incoming = control.session(call) => incoming?.into_inner(),
            () = stop.cancelled() => return Ok(()),
        };
        let incoming = incoming.map(|message| message.map(|message| message.data));
        self.serve(incoming, sender, stop).await
    }

    /// Serves over a pair of byte message streams. Returns once the incoming one has ended, after
    /// `stop` having closed the outgoing one.
    pub async fn serve(
        self,
        incoming: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
        outgoing: mpsc::Sender<Bytes>,
        stop: CancellationToken,
    ) -> Result<(), Status> {
        let (tail, ended) = mpsc::channel::<Result<Bytes, Status>>(QUEUE);
        // The stream is read apart from the server, so that its end is seen in every state.
        let pump = tokio::spawn(async move {
            let mut incoming = std::pin::pin!(incoming);
            while let Some(message) = incoming.next().await {
                let failed = message.is_err();
                // A server that is gone takes no more, but the end still matters.
                _ = tail.send(message).await;
                if failed {
                    return;
                }
            }
        });
        let over = CancellationToken::new();
        let bytes = ReceiverStream::new(ended).map(|message| message.map_err(io::Error::other));
        let tunnel = Tunnel::new(bytes, outgoing, over.clone());
        let connections =
            futures_util::stream::once(std::future::ready(Ok::<_, io::Error>(tunnel)))
                .chain(futures_util::stream::pending());
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_routes(self.routes.prepare())
            .serve_with_incoming_shutdown(connections, over.clone().cancelled_owned());
        let serving = tokio::spawn(serving);
        tokio::select! {
            () = stop.cancelled() => {}
            () = over.cancelled() => {}
        }
        // This ends the tunnel: the outgoing side closes and the daemon sees it.
        over.cancel();
        let grace = std::time::Duration::from_secs(1);
        let abort = serving.abort_handle();
        if tokio::time::timeout(grace, serving).await.is_err() {
            abort.abort();
        }
        if tokio::time::timeout(std::time::Duration::from_secs(5), pump).await.is_err() {
            return Err(Status::deadline_exceeded("the daemon did not end the session"));
        }
        Ok(())
    }
}

impl Connected for Tunnel {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
