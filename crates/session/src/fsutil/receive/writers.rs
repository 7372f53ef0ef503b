//! Threads that write the content of files as it arrives.
//!
//! All packets of one file go to one thread. A thread waits only for the disk, so the reader that
//! feeds it never waits for the peer.

use std::{
    collections::HashMap,
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base::Hasher;
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    super::{
        Stat, TransferError,
        write::{self, FolderCache},
    },
    Event, Shared,
};

const WRITERS: usize = 4;
/// With more transfers than this at once each has one thread: together they must not take all
/// threads that the runtime has for blocking work, which they wait for themselves.
const CROWD: usize = 32;

/// Transfers under way.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

struct Active;

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Packets waiting for one thread.
const QUEUE: usize = 64;

/// A file that was asked for.
pub(crate) struct Job {
    pub(crate) stat: Stat,
    /// Something is in its place already.
    pub(crate) replaces: bool,
}

struct Message {
    id: u32,
    /// With the first packet of a file.
    job: Option<Arc<Job>>,
    /// Empty ends the file.
    data: Bytes,
}

pub(crate) struct Writers {
    shared: Arc<Shared>,
    queues: Vec<mpsc::Sender<Message>>,
    threads: Vec<JoinHandle<()>>,
    /// Which thread has the file.
    open: HashMap<u32, usize>,
    next: usize,
    _active: Active,
}

impl Writers {
    pub(crate) fn start(shared: &Arc<Shared>, events: &mpsc::UnboundedSender<Event>) -> Self {
        let others = ACTIVE.fetch_add(1, Ordering::Relaxed);
        let writers = if others < CROWD { WRITERS } else { 1 };
        let (queues, threads) = (0..writers)
            .map(|_| {
                let (sender, queue) = mpsc::channel(QUEUE);
                let (shared, events) = (shared.clone(), events.clone());
                let thread = tokio::task::spawn_blocking(move || {
                    if let Err(error) = run(&shared, queue, &events) {
                        _ = events.send(Event::Failed(error));
                    }
                });
                (sender, thread)
            })
            .unzip();
        let (open, _active) = (HashMap::new(), Active);
        Self { shared: shared.clone(), queues, threads, open, next: 0, _active }
    }

    pub(crate) async fn data(&mut self, id: u32, data: Bytes) -> Result<(), TransferError> {
        let ends = data.is_empty();
        let (index, job) = match self.open.get(&id) {
            Some(index) => (*index, None),
            None => {
                let (_, job) =
                    self.shared.requested.remove(&id).ok_or(TransferError::InvalidRequest(id))?;
                self.next = (self.next + 1) % self.queues.len();
                (self.next, Some(job))
            }
        };
        match (ends, job.is_some()) {
            (true, false) => _ = self.open.remove(&id),
            (false, true) => _ = self.open.insert(id, index),
            _ => {}
        }
        // A thread that is gone has told why through its event.
        _ = self.queues[index].send(Message { id, job, data }).await;
        Ok(())
    }

    pub(crate) fn finish(self) -> impl Future<Output = ()> {
        drop(self.queues);
        async {
            for thread in self.threads {
                _ = thread.await;
            }
        }
    }
}

struct Open {
    job: Arc<Job>,
    file: File,
    temporary: Option<std::ffi::CString>,
    hasher: Option<Hasher>,
}

fn run(
    shared: &Shared,
    mut queue: mpsc::Receiver<Message>,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<(), TransferError> {
    let mut open: HashMap<u32, Open> = HashMap::new();
    let mut folders = FolderCache::new();
    let result = (|| {
        while let Some(message) = queue.blocking_recv() {
            if shared.stopped() {
                break;
            }
            if let Some(job) = message.job {
                open.insert(message.id, begin(shared, job, &mut folders)?);
            }
            if message.data.is_empty() {
                if let Some(file) = open.remove(&message.id) {
                    end(shared, file, &mut folders)?;
                    _ = events.send(Event::FileDone);
                }
            } else if let Some(file) = open.get_mut(&message.id) {
                let path = &file.job.stat.path;
                file.file
                    .write_all(&message.data)
                    .map_err(TransferError::io(format!("write {path}")))?;
                if let Some(hasher) = &mut file.hasher {
                    hasher.update(&message.data);
                }
            }
        }
        Ok(())
    })();
    // Half-written files under temporary names must not stay.
    for file in open.into_values() {
        if let Some(temporary) = file.temporary {
            let (folder, _) = write::split(&file.job.stat.path);
            if let Ok(folder) = folders.open(shared.root.as_fd(), folder) {
                _ = write::remove_all(folder, &temporary);
            }
        }
    }
    result
}

fn begin(shared: &Shared, job: Arc<Job>, folders: &mut FolderCache) -> Result<Open, TransferError> {
    let path = &job.stat.path;
    let folder = folders.open(shared.root.as_fd(), write::split(path).0)?;
    let temporary = job.replaces.then(write::temporary);
    let name = match &temporary {
        Some(temporary) => temporary.clone(),
        None => write::c_name(path)?,
    };
    let file = write::create_file(folder, &name)
        .map_err(TransferError::os(format!("create file {path}")))?;
    let hasher = shared.hasher(&job.stat);
    Ok(Open { job, file: file.into(), temporary, hasher })
}

fn end(shared: &Shared, open: Open, folders: &mut FolderCache) -> Result<(), TransferError> {
    let stat = &open.job.stat;
    let path = &stat.path;
    write::finish_file(open.file.as_fd(), stat)
        .map_err(TransferError::os(format!("set metadata of {path}")))?;
    drop(open.file);
    if let Some(temporary) = &open.temporary {
        let folder = folders.open(shared.root.as_fd(), write::split(path).0)?;
        write::replace(folder, temporary, &write::c_name(path)?)
            .map_err(TransferError::os(format!("replace {path}")))?;
    }
    shared.tell_put(stat, open.hasher);
    Ok(())
}
