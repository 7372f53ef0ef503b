//! The sending end of a transfer.
//!
//! One thread lists the tree, several read the files that were asked for, and the async part takes
//! requests. Requests are queued without bound, so that reading them never waits for sending:
//! otherwise two ends could wait for each other.

use std::{
    collections::HashMap,
    io::Read as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use base::gomode;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::{FileTree, Packet, PacketType, Progress, TransferError, links::Promote, packet};

/// Files read at the same time.
const READERS: usize = 4;
/// Content bytes in one packet.
const CHUNK: usize = 128 << 10;

struct Shared {
    tree: Arc<dyn FileTree>,
    outgoing: mpsc::Sender<Packet>,
    /// Files that may still be asked for.
    files: Mutex<HashMap<u32, String>>,
    progress: Option<Progress>,
    sent: AtomicU64,
}

/// Sends `tree` and serves the receiver until it has everything. The caller closes the stream.
pub async fn send(
    tree: Arc<dyn FileTree>,
    incoming: impl Stream<Item = Result<Packet, Status>> + Unpin,
    outgoing: mpsc::Sender<Packet>,
    progress: Option<Progress>,
) -> Result<(), TransferError> {
    send_with(tree, outgoing, progress, async move { Ok(incoming) }).await
}

/// The same for the answering side, whose stream ends with success after the last packet whether
/// or not the other one goes on.
pub(crate) async fn send_until_fin(
    tree: Arc<dyn FileTree>,
    incoming: impl Stream<Item = Result<Packet, Status>> + Unpin,
    outgoing: mpsc::Sender<Packet>,
    progress: Option<Progress>,
) -> Result<(), TransferError> {
    run(tree, outgoing, progress, async move { Ok(incoming) }).await.map(drop)
}

/// The same where the answers appear only after sending has begun. After the last packet the
/// outgoing side is dropped and the incoming one read to its end.
pub(crate) async fn send_with<S>(
    tree: Arc<dyn FileTree>,
    outgoing: mpsc::Sender<Packet>,
    progress: Option<Progress>,
    open: impl Future<Output = Result<S, TransferError>>,
) -> Result<(), TransferError>
where
    S: Stream<Item = Result<Packet, Status>> + Unpin,
{
    let mut incoming = run(tree, outgoing, progress, open).await?;
    while let Some(rest) = incoming.next().await {
        rest?;
    }
    Ok(())
}

/// Sends until both sides said goodbye; nothing goes out any more when this returns.
async fn run<S>(
    tree: Arc<dyn FileTree>,
    outgoing: mpsc::Sender<Packet>,
    progress: Option<Progress>,
    open: impl Future<Output = Result<S, TransferError>>,
) -> Result<S, TransferError>
where
    S: Stream<Item = Result<Packet, Status>> + Unpin,
{
    let shared = Arc::new(Shared {
        tree,
        outgoing,
        files: Mutex::default(),
        progress,
        sent: AtomicU64::new(0),
    });
    let (fail, mut failures) = mpsc::unbounded_channel::<TransferError>();
    let (requests, queue) = mpsc::unbounded_channel::<(u32, String)>();
    let queue = Arc::new(Mutex::new(queue));
    let spawn = |work: Box<dyn FnOnce(&Shared) -> Result<(), TransferError> + Send>| {
        let (shared, fail) = (shared.clone(), fail.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work(&shared) {
                _ = fail.send(error);
            }
        });
    };
    spawn(Box::new(list));
    for _ in 0..READERS {
        let queue = queue.clone();
        spawn(Box::new(move |shared| serve(shared, &queue)));
    }
    drop(fail);

    let talk_shared = shared.clone();
    let talk = async move {
        let shared = talk_shared;
        let mut incoming = open.await?;
        loop {
            let received = incoming.next().await.ok_or(TransferError::Closed)??;
            match received.r#type() {
                PacketType::PacketErr => {
                    let text = String::from_utf8_lossy(&received.data).into_owned();
                    return Err(TransferError::FromReceiver(text));
                }
                PacketType::PacketReq => {
                    let id = received.id;
                    let path = shared.files.lock().expect("nobody panics here").remove(&id);
                    let path = path.ok_or(TransferError::InvalidId(id))?;
                    _ = requests.send((id, path));
                }
                PacketType::PacketFin => {
                    shared.send_async(packet(PacketType::PacketFin, 0, Bytes::new())).await?;
                    return Ok(incoming);
                }
                // Nothing a receiver says; older ends ignore it too.
                PacketType::PacketStat | PacketType::PacketData => {}
            }
        }
    };
    let mut talk = std::pin::pin!(talk);
    let outcome = tokio::select! {
        biased;
        outcome = &mut talk => outcome,
        failure = failures.recv() => match failure {
            // The stream is gone; only its other direction knows why.
            Some(TransferError::Closed) | None => talk.await,
            Some(error) => Err(error),
        },
    };
    match outcome {
        Ok(incoming) => {
            drop(shared);
            // The workers hold the stream too and are about to let go of it.
            while failures.recv().await.is_some() {}
            Ok(incoming)
        }
        Err(error) => {
            let text = error.to_string();
            if !matches!(error, TransferError::FromReceiver(_)) {
                // A peer that reads no more must not keep us; it sees the broken stream then.
                _ = shared.outgoing.try_send(packet(PacketType::PacketErr, 0, text));
            }
            Err(error)
        }
    }
}

impl Shared {
    fn count(&self, packet: &Packet) {
        if let Some(progress) = &self.progress {
            let size = packet.encoded_len() as u64;
            progress(self.sent.fetch_add(size, Ordering::Relaxed) + size);
        }
    }

    /// From a blocking thread.
    fn send(&self, packet: Packet) -> Result<(), TransferError> {
        self.count(&packet);
        self.outgoing.blocking_send(packet).map_err(|_| TransferError::Closed)
    }

    async fn send_async(&self, packet: Packet) -> Result<(), TransferError> {
        self.outgoing.send(packet).await.map_err(|_| TransferError::Closed)
    }
}

fn list(shared: &Shared) -> Result<(), TransferError> {
    let mut promote = Promote::default();
    let mut id = 0u32;
    shared.tree.walk(&mut |mut stat| {
        promote.apply(&mut stat);
        if gomode::is_regular(stat.mode) {
            shared.files.lock().expect("nobody panics here").insert(id, stat.path.clone());
        }
        id = id.checked_add(1).ok_or_else(|| {
            TransferError::Worker("more entries than the protocol can number".to_owned())
        })?;
        shared.send(Packet { stat: Some(stat), ..Packet::default() })
    })?;
    shared.send(Packet::default())
}

fn serve(
    shared: &Shared,
    queue: &Mutex<mpsc::UnboundedReceiver<(u32, String)>>,
) -> Result<(), TransferError> {
    let mut buffer = BytesMut::new();
    loop {
        let next = queue.lock().expect("nobody panics here").blocking_recv();
        let Some((id, path)) = next else { return Ok(()) };
        // A file that cannot be opened travels as an empty one, as the protocol has it.
        if let Ok(mut file) = shared.tree.open(&path) {
            loop {
                buffer.resize(CHUNK, 0);
                let length = match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(TransferError::io(format!("read {path}"))(error)),
                };
                let data = if length < CHUNK / 2 {
                    // Small pieces must not keep the whole buffer alive.
                    Bytes::copy_from_slice(&buffer[..length])
                } else {
                    buffer.split_to(length).freeze()
                };
                shared.send(packet(PacketType::PacketData, id, data))?;
            }
        }
        shared.send(packet(PacketType::PacketData, id, Bytes::new()))?;
    }
}
