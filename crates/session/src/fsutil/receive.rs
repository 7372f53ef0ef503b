//! The receiving end of a transfer.
//!
//! The async part reads packets and checks the listing; one thread (`merge`) compares the listing
//! with the existing folder, deletes, makes folders and asks for content; a few threads write
//! files. Hard links and everything about folders that writing into them would disturb come last.
//! Requests go out through a queue without bound: whoever reads must never wait for the peer to
//! read.

mod merge;
mod writers;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use base::{Digest, Hasher, gomode};
use bytes::Bytes;
use dashmap::DashMap;
use futures_util::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use self::{merge::Merged, writers::Job};
use super::{
    METADATA_FILE, Packet, PacketType, Progress, Stat, TransferError, packet, validate::Order,
};

/// Listing entries on their way to the merging thread.
const LISTING_QUEUE: usize = 4096;

/// When an existing entry counts as equal to a listed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// Same metadata, size and time.
    #[default]
    Metadata,
    /// Never: everything is fetched again.
    None,
}

/// One change to the destination, told after it was made.
#[derive(Debug)]
pub enum Change<'a> {
    /// An entry is new or differs. The digest is that of [`ChangeSink::hasher`] fed with the
    /// content.
    Put {
        /// Its metadata as received.
        stat: &'a Stat,
        /// Digest of header and content.
        digest: Digest,
    },
    /// A hard link is new or differs; `stat.linkname` is an entry told or kept before.
    Link {
        /// Its metadata as received.
        stat: &'a Stat,
    },
    /// An entry and all below it are gone.
    Remove {
        /// Where it was.
        path: &'a str,
    },
}

/// Follows the changes of a transfer, e.g. to keep an index of content digests.
pub trait ChangeSink: Send + Sync {
    /// A hash that has taken in what of the metadata counts.
    fn hasher(&self, stat: &Stat) -> Hasher;

    /// A change was made. Called from several threads; parents' changes need not come first.
    fn changed(&self, change: Change<'_>);
}

/// Decides by path and metadata.
pub type SelectEntry = Arc<dyn Fn(&str, &Stat) -> bool + Send + Sync>;

/// How to receive.
#[derive(Default, Clone)]
pub struct ReceiveOptions {
    /// What counts as equal.
    pub differ: Differ,
    /// Add to the destination: nothing is compared and nothing deleted.
    pub merge: bool,
    /// Changes entries before they are compared and written, e.g. their owner.
    pub map: Option<Arc<dyn Fn(&mut Stat) + Send + Sync>>,
    /// Metadata-only mode: content (and the entry itself) is taken only where this says so; the
    /// whole listing is stored in one file.
    pub content_of: Option<SelectEntry>,
    /// Bytes of packets received so far.
    pub progress: Option<Progress>,
    /// Is told of every change.
    pub changes: Option<Arc<dyn ChangeSink>>,
    /// Tell of entries that stay as they are, too, for a sink that knows nothing of them; their
    /// content is read from the destination.
    pub tell_unchanged: bool,
}

/// What a transfer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Entries in the listing.
    pub entries: u64,
    /// Entries made, replaced, removed or touched; 0 means the destination was equal already.
    pub changed: u64,
    /// Files whose content was fetched.
    pub files: u64,
    /// Bytes of packets.
    pub bytes: u64,
}

pub(crate) struct Shared {
    pub(crate) root: OwnedFd,
    pub(crate) options: ReceiveOptions,
    outgoing: mpsc::UnboundedSender<Packet>,
    /// Files asked for whose content has not begun to arrive.
    requested: DashMap<u32, Arc<Job>>,
    /// Set when the transfer is over, for the threads to stop.
    stop: AtomicBool,
}

impl Shared {
    fn tell(&self, change: Change<'_>) {
        if let Some(changes) = &self.options.changes {
            changes.changed(change);
        }
    }

    fn hasher(&self, stat: &Stat) -> Option<Hasher> {
        self.options.changes.as_ref().map(|changes| changes.hasher(stat))
    }

    fn tell_put(&self, stat: &Stat, hasher: Option<Hasher>) {
        if let Some(hasher) = hasher {
            self.tell(Change::Put { stat, digest: hasher.finish() });
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A listing entry on its way to the merging thread.
enum Listed {
    Entry { id: u32, stat: Stat },
    End,
}

enum Event {
    Merged(Result<Merged, TransferError>),
    FileDone,
    Failed(TransferError),
}

/// Stops the threads when the transfer is over or given up.
struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Makes `folder` a copy of what the sender lists. On failure the folder holds a mixture that the
/// next transfer puts right.
pub async fn receive(
    folder: OwnedFd,
    options: ReceiveOptions,
    incoming: impl Stream<Item = Result<Packet, Status>> + Unpin,
    outgoing: mpsc::UnboundedSender<Packet>,
) -> Result<Received, TransferError> {
    let shared = Arc::new(Shared {
        root: folder,
        options,
        outgoing: outgoing.clone(),
        requested: DashMap::new(),
        stop: AtomicBool::new(false),
    });
    let stop = StopOnDrop(shared.clone());
    let (events, event_queue) = mpsc::unbounded_channel();
    let (listing, listed) = mpsc::channel(LISTING_QUEUE);
    let merging = {
        let (shared, events) = (shared.clone(), events.clone());
        tokio::task::spawn_blocking(move || {
            _ = events.send(Event::Merged(merge::run(&shared, listed)));
        })
    };
    let writers = writers::Writers::start(&shared, &events);
    drop(events);
    let mut reader = Reader {
        shared: &shared,
        incoming,
        events: event_queue,
        listing: Some(listing),
        writers,
        order: Order::default(),
        listed: Vec::new(),
        parents: Vec::new(),
        next_id: 0,
        done: Received::default(),
    };
    let outcome = reader.run().await;
    let Reader { writers, mut listing, .. } = reader;
    drop(listing.take());
    drop(stop);
    // Nothing may write any more when this returns.
    let writing = writers.finish();
    _ = merging.await;
    writing.await;
    if let Err(error) = &outcome
        && !matches!(error, TransferError::FromSender(_))
    {
        _ = outgoing.send(packet(PacketType::PacketErr, 0, error.to_string()));
    }
    outcome
}

struct Reader<'a, S> {
    shared: &'a Arc<Shared>,
    incoming: S,
    events: mpsc::UnboundedReceiver<Event>,
    listing: Option<mpsc::Sender<Listed>>,
    writers: writers::Writers,
    order: Order,
    /// Metadata-only mode: the whole listing, framed.
    listed: Vec<u8>,
    /// Metadata-only mode: folders above the current entry that were not passed on yet.
    parents: Vec<(u32, Stat)>,
    next_id: u32,
    done: Received,
}

impl<S: Stream<Item = Result<Packet, Status>> + Unpin> Reader<'_, S> {
    async fn run(&mut self) -> Result<Received, TransferError> {
        let mut merged = None;
        loop {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(Event::Merged(result)) => merged = Some(result?),
                    Some(Event::FileDone) => self.done.files += 1,
                    Some(Event::Failed(error)) => return Err(error),
                    None => return Err(TransferError::Worker("all workers ended".to_owned())),
                },
                received = self.incoming.next() => {
                    let received = received.ok_or(TransferError::Closed)??;
                    self.take(received).await?;
                }
            }
            if let Some(all) = merged.take_if(|all| all.requested == self.done.files) {
                return self.complete(all).await;
            }
        }
    }

    async fn take(&mut self, received: Packet) -> Result<(), TransferError> {
        self.done.bytes += received.encoded_len() as u64;
        if let Some(progress) = &self.shared.options.progress {
            progress(self.done.bytes);
        }
        match received.r#type() {
            PacketType::PacketErr => {
                Err(TransferError::FromSender(String::from_utf8_lossy(&received.data).into_owned()))
            }
            PacketType::PacketStat => match received.stat {
                Some(stat) => self.take_entry(stat).await,
                None => {
                    self.pass_on(Listed::End).await?;
                    self.listing = None;
                    Ok(())
                }
            },
            PacketType::PacketData => self.writers.data(received.id, received.data).await,
            PacketType::PacketFin => Err(TransferError::Closed),
            PacketType::PacketReq => Ok(()),
        }
    }

    async fn take_entry(&mut self, mut stat: Stat) -> Result<(), TransferError> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or_else(|| {
            TransferError::Worker("more entries than the protocol can number".to_owned())
        })?;
        self.order.check(&stat)?;
        self.done.entries += 1;
        let Some(content_of) = &self.shared.options.content_of else {
            if let Some(map) = &self.shared.options.map {
                map(&mut stat);
            }
            return self.pass_on(Listed::Entry { id, stat }).await;
        };

        if stat.path == METADATA_FILE {
            return Ok(());
        }
        self.listed.extend_from_slice(&(stat.encoded_len() as u32).to_le_bytes());
        stat.encode(&mut self.listed).expect("a vector takes all");
        let wanted = content_of(&stat.path, &stat);
        self.parents.retain(|(_, folder)| {
            stat.path.strip_prefix(folder.path.as_str()).is_some_and(|rest| rest.starts_with('/'))
        });
        if let Some(map) = &self.shared.options.map {
            map(&mut stat);
        }
        if !wanted {
            if stat.mode & gomode::DIR != 0 {
                self.parents.push((id, stat));
            }
            return Ok(());
        }
        for (id, stat) in std::mem::take(&mut self.parents) {
            self.pass_on(Listed::Entry { id, stat }).await?;
        }
        self.pass_on(Listed::Entry { id, stat }).await
    }

    async fn pass_on(&mut self, listed: Listed) -> Result<(), TransferError> {
        let Some(listing) = &self.listing else {
            let last = String::new();
            return match listed {
                Listed::Entry { stat, .. } => {
                    Err(TransferError::OutOfOrder { path: stat.path, last })
                }
                Listed::End => Ok(()),
            };
        };
        // If the thread is gone it has told why through its event.
        _ = listing.send(listed).await;
        Ok(())
    }

    /// Everything is written: links, folders, then the goodbye.
    async fn complete(&mut self, merged: Merged) -> Result<Received, TransferError> {
        let shared = self.shared.clone();
        self.done.changed = merged.changed;
        let listed = shared.options.content_of.as_ref().map(|_| std::mem::take(&mut self.listed));
        let changed =
            tokio::task::spawn_blocking(move || merged.complete(&shared, listed.as_deref()));
        self.done.changed += join(changed.await)??;
        _ = self.shared.outgoing.send(packet(PacketType::PacketFin, 0, Bytes::new()));
        let mut answered = false;
        while let Some(received) = self.incoming.next().await {
            let received = received?;
            match received.r#type() {
                PacketType::PacketFin => answered = true,
                PacketType::PacketErr => {
                    let text = String::from_utf8_lossy(&received.data).into_owned();
                    return Err(TransferError::FromSender(text));
                }
                PacketType::PacketData => {
                    return Err(TransferError::InvalidRequest(received.id));
                }
                _ => {}
            }
            // A sender that is the calling side ends its stream when it sees ours end.
            if answered {
                break;
            }
        }
        Ok(self.done)
    }
}

fn join<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, TransferError> {
    result.map_err(|error| TransferError::Worker(error.to_string()))
}
