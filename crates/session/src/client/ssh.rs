//! Forwards agents (or any Unix sockets) of this machine by id.

use std::{collections::BTreeMap, path::PathBuf};

use futures_util::stream::BoxStream;
use proto::moby::sshforward::v1::{
    BytesMessage, CheckAgentRequest, CheckAgentResponse,
    ssh_server::{Ssh, SshServer},
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ssh::{KEY_AGENT, pump_down, pump_up};

/// The agents of one session; the usual id is `default`.
#[derive(Clone, Default)]
pub struct Agents(BTreeMap<String, PathBuf>);

impl Agents {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forwards connections for `id` (empty is `default`) to the socket at `path`.
    pub fn socket(&mut self, id: &str, path: impl Into<PathBuf>) {
        self.0.insert(named(id).to_owned(), path.into());
    }

    pub(super) fn into_service(self) -> SshServer<Self> {
        SshServer::new(self)
    }

    fn find(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = named(id);
        self.0.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

fn named(id: &str) -> &str {
    if id.is_empty() { "default" } else { id }
}

#[tonic::async_trait]
impl Ssh for Agents {
    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(KEY_AGENT).and_then(|id| id.to_str().ok()).unwrap_or("");
        let path = self.find(id)?;
        let socket = UnixStream::connect(path).await.map_err(|error| {
            Status::unavailable(format!("connect to agent {}: {error}", path.display()))
        })?;
        let (reader, mut writer) = socket.into_split();
        let incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            let down = async {
                if let Err(error) = pump_down(incoming, &mut writer).await {
                    tracing::debug!(%error, "agent connection ended");
                    _ = writer.shutdown().await;
                }
            };
            let up = async move {
                let send = |data| {
                    let sender = sender.clone();
                    async move { sender.send(Ok(BytesMessage { data })).await.is_ok() }
                };
                if let Err(error) = pump_up(reader, send).await {
                    _ = sender.send(Err(Status::unknown(error.to_string()))).await;
                }
            };
            // Each direction may end alone.
            tokio::join!(down, up);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
