//! The client's SSH agent (or any Unix socket it forwards) as a socket on the daemon's machine.
//!
//! Each accepted connection becomes one stream to the client. Bytes pass through unread.

use std::{
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, ssh_client::SshClient};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixListener,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::{Session, SessionError, header, session::MESSAGE_LIMIT};

pub(crate) const KEY_AGENT: &str = "buildkit.ssh.id";
const READ_CHUNK: usize = 32 << 10;

impl Session {
    /// Whether the client forwards an agent under `id` (empty is `default`); the error says why
    /// not.
    pub async fn check_agent(&self, id: &str) -> Result<(), SessionError> {
        let mut client = SshClient::new(self.channel());
        let request = CheckAgentRequest { id: id.to_owned() };
        match self.during(client.check_agent(request)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_unimplemented() => {
                Err(SessionError::Status(tonic::Status::unimplemented(format!(
                    "no SSH key {id:?} forwarded from the client"
                ))))
            }
            Err(error) => Err(error),
        }
    }

    /// Connects `socket` with the client's agent until either side is done.
    pub async fn forward_agent(
        &self,
        id: &str,
        socket: impl AsyncRead + AsyncWrite + Send,
    ) -> Result<(), SessionError> {
        let id = if id.is_empty() { "default" } else { id };
        let (sender, receiver) = mpsc::channel(8);
        let mut call = Request::new(ReceiverStream::new(receiver));
        call.metadata_mut().insert(KEY_AGENT, header::ascii(KEY_AGENT, id)?);
        let mut client = SshClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let (reader, writer) = tokio::io::split(socket);
        self.during(async {
            // The client may answer only after it got something, so reading starts at once.
            let up = pump_up(reader, move |data| {
                let sender = sender.clone();
                async move { sender.send(BytesMessage { data }).await.is_ok() }
            });
            let down = async {
                let answers = client.forward_agent(call).await?.into_inner();
                pump_down(answers, writer).await
            };
            run_both(up, down).await
        })
        .await
    }
}

/// Sends what arrives on `reader` until its end; `send` says whether anybody still listens.
pub(crate) async fn pump_up<F: Future<Output = bool>>(
    reader: impl AsyncRead,
    send: impl Fn(Bytes) -> F,
) -> io::Result<()> {
    let mut reader = std::pin::pin!(reader);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_CHUNK);
        if reader.read_buf(&mut buffer).await? == 0 || !send(buffer.split().freeze()).await {
            return Ok(());
        }
    }
}

/// Writes what the other end sends until its end, then shuts the write side down.
pub(crate) async fn pump_down(
    mut messages: Streaming<BytesMessage>,
    writer: impl AsyncWrite,
) -> Result<(), SessionError> {
    let mut writer = std::pin::pin!(writer);
    let failed = |source| SessionError::Io { doing: "write to agent socket".to_owned(), source };
    while let Some(message) = messages.message().await? {
        writer.write_all(&message.data).await.map_err(failed)?;
    }
    writer.shutdown().await.or_else(|error| match error.kind() {
        io::ErrorKind::NotConnected => Ok(()),
        _ => Err(failed(error)),
    })
}

/// Runs both directions; the end of `down` ends the connection, the end of `up` only half of it.
async fn run_both(
    up: impl Future<Output = io::Result<()>>,
    down: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let mut down = std::pin::pin!(down);
    tokio::select! {
        result = &mut down => return result,
        read = up => read.map_err(|source| SessionError::Io {
            doing: "read from agent socket".to_owned(),
            source,
        })?,
    }
    down.await
}

/// Who may use a forwarded agent's socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct AgentSocketOptions {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode of the socket; only the lower nine bits count.
    pub mode: u32,
}

/// A listening socket whose connections reach the client's agent. Dropping it closes the socket and
/// all connections.
pub struct AgentSocket {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl AgentSocket {
    /// Listens at `folder`/`ssh_auth_sock`. `folder` must exist and be private to the caller; it
    /// becomes 0711, so that the owner of the socket can reach it.
    pub fn listen(
        folder: &Path,
        session: Session,
        id: &str,
        options: AgentSocketOptions,
    ) -> Result<Self, SessionError> {
        let path = folder.join("ssh_auth_sock");
        let prepare = || -> io::Result<UnixListener> {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
            let listener = UnixListener::bind(&path)?;
            chown(&path, Some(options.uid), Some(options.gid))?;
            let mode = std::fs::Permissions::from_mode(options.mode & 0o777);
            std::fs::set_permissions(&path, mode)?;
            Ok(listener)
        };
        let listener = prepare().map_err(|source| SessionError::Io {
            doing: format!("listen for agent connections at {}", path.display()),
            source,
        })?;
        let id = id.to_owned();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((socket, _)) => {
                            let (session, id) = (session.clone(), id.clone());
                            connections.spawn(async move {
                                if let Err(error) = session.forward_agent(&id, socket).await {
                                    tracing::debug!(%error, agent = id, "agent connection ended");
                                }
                            });
                        }
                        // Out of descriptors, most likely: wait for some to come back.
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept agent connection");
                            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                    () = session.ended() => return,
                }
            }
        });
        Ok(Self { path, accepting })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        _ = std::fs::remove_file(&self.path);
    }
}
