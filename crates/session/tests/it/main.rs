//! Sessions end to end: a daemon's end and a client's end joined by two channels.

mod calls;
mod hostile;
mod transfer;

use std::{future::Future, path::Path, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use session::{Session, SessionError, SessionRequest, Sessions, client::SessionServer};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Both ends of one session.
pub struct Pair {
    pub sessions: Sessions,
    pub session: Session,
    pub stop: CancellationToken,
    daemon: JoinHandle<Result<(), SessionError>>,
    client: JoinHandle<Result<(), tonic::Status>>,
}

/// Opens a session that `server` serves.
pub async fn connect(server: SessionServer) -> Pair {
    let sessions = Sessions::new();
    let request = SessionRequest::from_metadata(&server.metadata().unwrap()).unwrap();
    let id = request.id.clone();
    let (to_client, from_daemon) = mpsc::channel::<Bytes>(32);
    let (to_daemon, from_client) = mpsc::channel::<Bytes>(32);
    let stop = CancellationToken::new();
    let incoming = ReceiverStream::new(from_client).map(Ok);
    let daemon = sessions.serve(request, incoming, to_client).await;
    let daemon = tokio::spawn(daemon);
    let incoming = ReceiverStream::new(from_daemon).map(Ok);
    let client = tokio::spawn(server.serve(incoming, to_daemon, stop.clone()));
    let session = sessions.get(&id).await.unwrap();
    Pair { sessions, session, stop, daemon, client }
}

impl Pair {
    /// Ends the session from the client's side; both ends must finish at once.
    pub async fn close(self) {
        self.stop.cancel();
        soon(self.daemon).await.unwrap().unwrap();
        soon(self.client).await.unwrap().unwrap();
        assert!(self.sessions.ids().is_empty());
        assert!(self.session.is_ended());
    }
}

/// Fails a test that would hang.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("finishes in time")
}

/// A listing of a folder: mode, path, size or target, time if it is an early one.
pub fn show(root: &Path) -> String {
    use session::fsutil::{DirTree, FileTree as _};
    let mut out = String::new();
    DirTree::open(root)
        .unwrap()
        .walk(&mut |stat| {
            let kind = match stat.mode & base::gomode::TYPE_MASK {
                0 => 'f',
                base::gomode::DIR => 'd',
                base::gomode::SYMLINK => 'l',
                base::gomode::NAMED_PIPE => 'p',
                _ => 'c',
            };
            let mode = base::gomode::permissions(stat.mode);
            out.push_str(&format!("{kind} {mode:04o} {}", stat.path));
            if kind == 'f' && stat.linkname.is_empty() {
                let content = std::fs::read(root.join(&stat.path)).unwrap();
                out.push_str(&format!(" {:?}", String::from_utf8_lossy(&content)));
            }
            if !stat.linkname.is_empty() {
                out.push_str(&format!(" -> {}", stat.linkname));
            }
            if stat.mod_time < 2_000_000_000 {
                out.push_str(&format!(" @{}", stat.mod_time));
            }
            out.push('\n');
            Ok(())
        })
        .unwrap();
    out
}
