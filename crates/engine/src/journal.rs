//! A build's progress, from its first vertex to its end, as clients replay it.
//!
//! Events are appended to a file as length-prefixed `StatusResponse` messages, the very form that
//! history keeps, so that a log of any length costs no memory and a late reader sees everything.
//! Readers follow the file. Invariant: what a reader is told is in the file before it is told.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use base::Digest;
use bytes::{Buf as _, Bytes, BytesMut};
use llb::pb;
use ops::LogStream;
use prost::Message as _;
use proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use tokio::sync::{Notify, watch};

/// Events are written together when this much has gathered, or after [`PAUSE`].
const BATCH: usize = 256 << 10;
/// How long an event may wait for company.
const PAUSE: Duration = Duration::from_millis(15);
/// Messages to readers stay about this large.
const MESSAGE: usize = 1 << 20;

/// The journal of one build.
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
    dirty: Notify,
    written: watch::Sender<Written>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Written {
    bytes: u64,
    closed: bool,
}

struct State {
    file: File,
    pending: StatusResponse,
    pending_bytes: usize,
    vertices: HashMap<String, Vertex>,
    warnings: usize,
    log_limit: LogLimit,
    logged: HashMap<String, u64>,
    written: u64,
    closed: bool,
}

/// How much output of a step is kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogLimit {
    /// Bytes a step; none is no limit.
    pub max_bytes: Option<u64>,
}

/// What a finished build's vertices add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All vertices.
    pub total: i32,
    /// Found in a cache.
    pub cached: i32,
    /// Ended, well or not.
    pub completed: i32,
    /// Warnings.
    pub warnings: i32,
}

impl Journal {
    /// An empty journal in a new file of `folder`.
    pub fn create(folder: &Path, log_limit: LogLimit) -> io::Result<Arc<Self>> {
        let path = folder.join(format!("{}.journal", base::id::random_id()));
        let file = File::options().create_new(true).append(true).open(&path)?;
        let journal = Arc::new(Self {
            path,
            state: Mutex::new(State {
                file,
                pending: StatusResponse::default(),
                pending_bytes: 0,
                vertices: HashMap::new(),
                warnings: 0,
                log_limit,
                logged: HashMap::new(),
                written: 0,
                closed: false,
            }),
            dirty: Notify::new(),
            written: watch::Sender::new(Written::default()),
        });
        tokio::spawn(flush_soon(Arc::downgrade(&journal)));
        Ok(journal)
    }

    /// The file; complete once [`Journal::close`] was called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while holding a journal")
    }

    /// Announces a vertex.
    pub fn loaded(
        &self,
        digest: &str,
        name: &str,
        inputs: Vec<String>,
        group: Option<pb::ProgressGroup>,
    ) {
        let mut state = self.state();
        if state.vertices.contains_key(digest) {
            return;
        }
        let vertex = Vertex {
            digest: digest.to_owned(),
            inputs,
            name: name.to_owned(),
            progress_group: group,
            ..Vertex::default()
        };
        state.vertices.insert(digest.to_owned(), vertex.clone());
        self.push(&mut state, 128 + name.len(), |pending| pending.vertexes.push(vertex));
    }

    /// Work on a vertex begins.
    pub fn started(&self, digest: &str) {
        let now = SystemTime::now();
        self.change(digest, |vertex| {
            vertex.started = Some(now.into());
            vertex.completed = None;
            vertex.cached = false;
            vertex.error.clear();
        });
    }

    /// Work on a vertex ends.
    pub fn completed(&self, digest: &str, cached: bool, error: Option<&str>) {
        let now = SystemTime::now();
        self.change(digest, |vertex| {
            vertex.started.get_or_insert_with(|| now.into());
            vertex.completed = Some(now.into());
            vertex.cached = cached;
            vertex.error = error.unwrap_or_default().to_owned();
        });
    }

    /// A vertex was not needed: something built on it was cached.
    pub fn skipped(&self, digest: &str) {
        let now = SystemTime::now();
        self.change(digest, |vertex| {
            if vertex.completed.is_none() || !vertex.cached {
                vertex.started = Some(now.into());
                vertex.completed = Some(now.into());
                vertex.cached = true;
                vertex.error.clear();
            }
        });
    }

    fn change(&self, digest: &str, change: impl FnOnce(&mut Vertex)) {
        let mut state = self.state();
        let vertex = state
            .vertices
            .entry(digest.to_owned())
            .or_insert_with(|| Vertex { digest: digest.to_owned(), ..Vertex::default() });
        change(vertex);
        let vertex = vertex.clone();
        self.push(&mut state, 160 + vertex.name.len(), |pending| pending.vertexes.push(vertex));
    }

    /// Progress of a part of a vertex.
    pub fn status(&self, status: VertexStatus) {
        self.push(&mut self.state(), 128, |pending| pending.statuses.push(status));
    }

    /// Output of a step.
    pub fn log(&self, digest: &str, stream: LogStream, data: Bytes) {
        self.push_log(VertexLog {
            vertex: digest.to_owned(),
            timestamp: Some(SystemTime::now().into()),
            stream: stream as i64,
            msg: data,
        });
    }

    fn push_log(&self, mut log: VertexLog) {
        let mut state = self.state();
        if let Some(limit) = state.log_limit.max_bytes {
            let logged = state.logged.entry(log.vertex.clone()).or_default();
            let data = &mut log.msg;
            if *logged > limit {
                return;
            }
            *logged += data.len() as u64;
            if *logged > limit {
                let keep = data.len().saturating_sub((*logged - limit) as usize);
                let note = format!("\n[output clipped, log limit {} reached]\n", human(limit));
                *data = [&data[..keep], note.as_bytes()].concat().into();
            }
        }
        let size = log.msg.len() + 100;
        self.push(&mut state, size, |pending| pending.logs.push(log));
    }

    /// Copies the log of a vertex so far into another journal, where it is called `name`.
    pub(crate) fn copy_log(&self, vertex: &str, to: &Journal, name: &Digest) -> io::Result<()> {
        let end = {
            let mut state = self.state();
            self.write(&mut state);
            state.written
        };
        // Without the lock: the other journal may be copying from this one.
        let mut reader = Reader::finished(File::open(&self.path)?)?;
        reader.end = end;
        let name = name.to_string();
        while let Some(message) = reader.frames()? {
            for log in message.logs.into_iter().filter(|log| log.vertex == vertex) {
                to.push_log(VertexLog { vertex: name.clone(), ..log });
            }
        }
        Ok(())
    }

    /// A remark about a vertex.
    pub fn warning(&self, warning: VertexWarning) {
        let mut state = self.state();
        state.warnings += 1;
        self.push(&mut state, 512, |pending| pending.warnings.push(warning));
    }

    fn push(&self, state: &mut State, size: usize, add: impl FnOnce(&mut StatusResponse)) {
        if state.closed {
            return;
        }
        add(&mut state.pending);
        state.pending_bytes += size;
        if state.pending_bytes >= BATCH {
            self.write(state);
        } else {
            self.dirty.notify_one();
        }
    }

    fn write(&self, state: &mut State) {
        if state.pending_bytes > 0 {
            let message = std::mem::take(&mut state.pending);
            state.pending_bytes = 0;
            let bytes = message.encode_to_vec();
            let mut frame = Vec::with_capacity(bytes.len() + 4);
            frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            frame.extend_from_slice(&bytes);
            match state.file.write_all(&frame) {
                Ok(()) => state.written += frame.len() as u64,
                // The build matters more than its log: readers miss this piece, and the next frame
                // must not follow half of one.
                Err(error) => {
                    tracing::error!(%error, path = %self.path.display(), "cannot write build progress");
                    _ = state.file.set_len(state.written);
                }
            }
        }
        let written = Written { bytes: state.written, closed: state.closed };
        self.written.send_if_modified(|current| std::mem::replace(current, written) != written);
    }

    /// Ends the journal: vertices under way are completed as cancelled.
    pub fn close(&self) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        let now = SystemTime::now();
        let open: Vec<Vertex> = state
            .vertices
            .values_mut()
            .filter(|vertex| vertex.started.is_some() && vertex.completed.is_none())
            .map(|vertex| {
                vertex.completed = Some(now.into());
                vertex.error = "context canceled".into();
                vertex.clone()
            })
            .collect();
        state.pending_bytes += open.len() * 160;
        state.pending.vertexes.extend(open);
        state.closed = true;
        self.write(&mut state);
        self.dirty.notify_one();
    }

    /// Forgets what the closed journal's file says too; [`Self::counts`] and [`Self::vertices`] are
    /// empty from here on.
    pub(crate) fn slim(&self) {
        let mut state = self.state();
        if state.closed {
            (state.vertices, state.logged) = Default::default();
        }
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// What the vertices add up to.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let count = |keep: fn(&Vertex) -> bool| {
            state.vertices.values().filter(|vertex| keep(vertex)).count() as i32
        };
        Counts {
            total: state.vertices.len() as i32,
            cached: count(|vertex| vertex.cached),
            completed: count(|vertex| vertex.completed.is_some()),
            warnings: state.warnings as i32,
        }
    }

    /// The vertices as they are now, in the order in which they started.
    pub(crate) fn vertices(&self) -> Vec<Vertex> {
        let mut all: Vec<Vertex> = self.state().vertices.values().cloned().collect();
        all.sort_by_key(|vertex| {
            let started = vertex.started.map(|at| (at.seconds, at.nanos));
            (started.is_none(), started, vertex.digest.clone())
        });
        all
    }

    /// Follows the journal from its beginning to its end.
    pub fn reader(self: &Arc<Self>) -> io::Result<Reader> {
        let file = File::open(&self.path)?;
        let written = Some(self.written.subscribe());
        Ok(Reader { file, offset: 0, written, end: 0, second: None })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

async fn flush_soon(journal: std::sync::Weak<Journal>) {
    loop {
        let Some(strong) = journal.upgrade() else { return };
        let dirty = strong.dirty.notified();
        tokio::select! {
            () = dirty => {}
            // Look now and then whether anybody still holds the journal.
            () = tokio::time::sleep(Duration::from_secs(5)) => {
                if strong.state().closed { return }
                continue;
            }
        }
        tokio::time::sleep(PAUSE).await;
        let mut state = strong.state();
        strong.write(&mut state);
        if state.closed {
            return;
        }
    }
}

/// Reads a journal message by message, waiting for more until it is closed.
pub struct Reader {
    file: File,
    offset: u64,
    end: u64,
    written: Option<watch::Receiver<Written>>,
    /// What follows the first message.
    second: Option<StatusResponse>,
}

impl Reader {
    /// Reads a finished journal from a file.
    pub fn finished(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file, offset: 0, end, written: None, second: None })
    }

    /// The next messages, joined up to about 1 MiB; `None` at the end.
    ///
    /// The first message holds vertices as they started and nothing else. Clients print the first
    /// one at once and later ones a few times a second, and print nothing more of a vertex once they
    /// printed its end: the warnings that follow on the heels of a quick one would be lost on them.
    pub async fn next(&mut self) -> io::Result<Option<StatusResponse>> {
        if let Some(second) = self.second.take() {
            return Ok(Some(second));
        }
        let is_first = self.offset == 0;
        let Some(message) = self.read().await? else { return Ok(None) };
        if !is_first {
            return Ok(Some(message));
        }
        let started = |vertex: &Vertex| Vertex {
            completed: None,
            cached: false,
            error: String::new(),
            ..vertex.clone()
        };
        let vertexes = message.vertexes.iter().map(started).collect();
        self.second = Some(message);
        Ok(Some(StatusResponse { vertexes, ..StatusResponse::default() }))
    }

    async fn read(&mut self) -> io::Result<Option<StatusResponse>> {
        while self.offset == self.end {
            let Some(written) = &mut self.written else { return Ok(None) };
            let now = *written.borrow_and_update();
            self.end = now.bytes;
            if self.offset < self.end {
                break;
            }
            if now.closed || written.changed().await.is_err() {
                return Ok(None);
            }
        }
        self.frames()
    }

    /// What is there of the next messages; `None` at the end of what was written.
    fn frames(&mut self) -> io::Result<Option<StatusResponse>> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let mut joined = StatusResponse::default();
        let mut size = 0;
        // What is over comes as it was written, so that clients print it in that order; who follows a
        // build is to catch up.
        let follows = self.written.as_ref().is_some_and(|written| !written.borrow().closed);
        let most = if follows { MESSAGE } else { 1 };
        while self.offset < self.end && size < most {
            let mut length = [0; 4];
            self.file.read_exact_at(&mut length, self.offset)?;
            let length = u32::from_le_bytes(length) as usize;
            if self.offset + 4 + length as u64 > self.end {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "build progress is cut short",
                ));
            }
            let mut frame = BytesMut::zeroed(length);
            self.file.read_exact_at(&mut frame, self.offset + 4)?;
            let message = StatusResponse::decode(frame.freeze())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.offset += 4 + length as u64;
            size += length;
            joined.vertexes.extend(message.vertexes);
            joined.statuses.extend(message.statuses);
            joined.logs.extend(message.logs);
            joined.warnings.extend(message.warnings);
        }
        Ok(Some(joined))
    }
}

fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..1_048_576 => format!("{}KiB", bytes >> 10),
        _ => format!("{}MiB", bytes >> 20),
    }
}

/// Splits a message whose logs are too large for one gRPC message.
pub fn split(message: StatusResponse) -> Vec<StatusResponse> {
    let size: usize = message.logs.iter().map(|log| log.msg.len()).sum();
    if size <= MESSAGE {
        return vec![message];
    }
    let StatusResponse { vertexes, statuses, logs, warnings } = message;
    let mut parts =
        vec![StatusResponse { vertexes, statuses, warnings, ..StatusResponse::default() }];
    let mut size = 0;
    for mut log in logs {
        while log.msg.has_remaining() {
            if size >= MESSAGE {
                parts.push(StatusResponse::default());
                size = 0;
            }
            let piece = log.msg.split_to(log.msg.len().min(MESSAGE - size));
            size += piece.len();
            let part = parts.last_mut().expect("there is always a part");
            part.logs.push(VertexLog { msg: piece, ..log.clone() });
        }
    }
    parts
}

/// Text of a vertex digest that belongs to no LLB op.
pub fn made_up_digest(text: &str) -> String {
    Digest::of(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn late_readers_see_everything_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let limit = LogLimit { max_bytes: Some(4) };
        let journal = Journal::create(folder.path(), limit).unwrap();
        journal.loaded("a", "first", vec![], None);
        journal.loaded("b", "second", vec!["a".into()], None);
        journal.started("a");
        journal.log("a", LogStream::Stdout, "123456".into());
        journal.log("a", LogStream::Stdout, "7".into());
        journal.completed("a", true, None);
        journal.started("b");
        let mut early = journal.reader().unwrap();
        journal.close();
        let mut late = journal.reader().unwrap();
        for reader in [&mut early, &mut late] {
            let mut all = StatusResponse::default();
            while let Some(message) = reader.next().await.unwrap() {
                all.vertexes.extend(message.vertexes);
                all.logs.extend(message.logs);
            }
            let last = |digest: &str| {
                all.vertexes.iter().rfind(|vertex| vertex.digest == digest).unwrap().clone()
            };
            assert!(last("a").cached && last("a").error.is_empty());
            assert_eq!(last("b").error, "context canceled");
            let text: Vec<u8> = all.logs.iter().flat_map(|log| log.msg.to_vec()).collect();
            assert_eq!(
                String::from_utf8(text).unwrap(),
                "1234\n[output clipped, log limit 4B reached]\n"
            );
        }
        assert_eq!(journal.counts(), Counts { total: 2, cached: 1, completed: 2, warnings: 0 });
        let path = journal.path().to_owned();
        drop((journal, early, late));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!path.exists());
    }
}
