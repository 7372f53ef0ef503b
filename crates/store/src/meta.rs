//! The metadata database: one redb file, a journal in front of it, one thread that commits in groups.
//!
//! A change is visible to readers of this process at once (it waits in memory in front of the
//! database) and in the [journal](crate::journal) too, so that it outlives the daemon. Some seconds
//! later the thread takes everything that waits, makes the data it names durable with one `syncfs`,
//! then commits it in one transaction. So a killed daemon loses nothing, and a loss of power the last
//! moments, never order: what a committed record names is on disk. Syncing seldom is also what keeps
//! a slow disk free for builds.
//!
//! [`Meta::flush`] waits until all earlier changes outlive the daemon, [`Meta::sync`] until they
//! outlive a loss of power.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase as _, TableDefinition};
use tokio::sync::oneshot;

use crate::{
    StoreError,
    error::Doing as _,
    journal::{self, Journal},
};

/// How long changes gather before they are committed.
const GATHER: Duration = Duration::from_secs(5);
/// The same for what is not in the journal.
const HURRY: Duration = Duration::from_millis(250);
/// Bytes in the journal that are committed at once.
const MAX_JOURNAL: u64 = 64 << 20;
/// After a slow sync the next waits this many times as long, so that syncing never takes more
/// than a fraction of the disk's time.
const REST: u32 = 4;
/// Pause before a failed commit is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Page cache of the database: metadata is read once at start and rarely after.
const CACHE_BYTES: usize = 1 << 20;

/// The tables of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum T {
    Info,
    Records,
    Layers,
    Content,
    Images,
    Indexes,
    Solver,
    Values,
}

impl T {
    /// In the order of their numbers in the journal.
    pub(crate) const ALL: [T; 8] =
        [T::Info, T::Records, T::Layers, T::Content, T::Images, T::Indexes, T::Solver, T::Values];

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            T::Info => "info",
            T::Records => "records",
            T::Layers => "layers",
            T::Content => "content",
            T::Images => "images",
            T::Indexes => "indexes",
            T::Solver => "solver",
            T::Values => "values",
        })
    }
}

/// A key of a table and its new value; none removes it.
pub(crate) type Change = (T, Vec<u8>, Option<Bytes>);
type Key = (T, Vec<u8>);
type Changes = BTreeMap<Key, Option<Bytes>>;

/// What waits to be committed.
#[derive(Default)]
struct Queue {
    waiting: Changes,
    /// The batch the thread is working on; still in front of the database for readers.
    committing: Arc<Changes>,
    /// When the oldest waiting change came.
    since: Option<Instant>,
    /// Until the end.
    journal: Option<Journal>,
    /// Ended journals of what waits.
    sealed: Vec<PathBuf>,
    /// The journal could not be written: only a commit keeps what waits.
    unwritten: bool,
    syncs: Vec<oneshot::Sender<Result<(), String>>>,
    stop: Option<Stop>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Commit what waits, then end.
    Gently,
    /// End without committing (tests).
    Crash,
}

/// How a test ends the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// As a killed process.
    Killed,
    /// As a machine without power: what was not synced is gone.
    PowerLost,
}

/// What the thread commits.
struct Batch {
    changes: Arc<Changes>,
    journals: Vec<PathBuf>,
    unwritten: bool,
    syncs: Vec<oneshot::Sender<Result<(), String>>>,
    last: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// `None` after a failure, until it could be opened anew.
    database: Mutex<Option<Arc<Database>>>,
    path: PathBuf,
    /// An open file on each file system that holds data.
    disks: Vec<File>,
}

/// The open database.
pub(crate) struct Meta {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Meta {
    /// Opens or creates the database at `path`. Data named by changes lies on `disks`.
    pub(crate) fn open(path: &Path, disks: Vec<File>) -> Result<Self, StoreError> {
        let database = open_database(path)?;
        let (journal, journal::Found { groups, files }) = Journal::open(path)?;
        let waiting = groups.into_iter().flatten();
        let queue = Queue {
            waiting: waiting.map(|(table, key, value)| ((table, key), value)).collect(),
            since: (!files.is_empty()).then(Instant::now),
            journal: Some(journal),
            sealed: files,
            ..Queue::default()
        };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            wake: Condvar::new(),
            database: Mutex::new(Some(Arc::new(database))),
            path: path.to_owned(),
            disks,
        });
        let thread = std::thread::Builder::new()
            .name("store-meta".into())
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })
            .doing(|| "start the metadata thread".into())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Puts `value` under `key`, or removes the key.
    pub(crate) fn set(&self, table: T, key: impl Into<Vec<u8>>, value: Option<Bytes>) {
        self.set_all([(table, key.into(), value)]);
    }

    /// Several changes that are kept together, or lost together.
    pub(crate) fn set_all(&self, changes: impl IntoIterator<Item = Change>) {
        let changes: Vec<Change> = changes.into_iter().collect();
        if changes.is_empty() {
            return;
        }
        let mut queue = self.shared.queue.lock().unwrap();
        let wake = queue.since.is_none();
        queue.since.get_or_insert_with(Instant::now);
        let was_urgent = queue.is_urgent();
        queue.append(&changes);
        for (table, key, value) in changes {
            queue.waiting.insert((table, key), value);
        }
        if wake || queue.is_urgent() != was_urgent {
            self.shared.wake.notify_one();
        }
    }

    /// Reads one value, as the latest change left it.
    pub(crate) fn get(&self, table: T, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        {
            let queue = self.shared.queue.lock().unwrap();
            let full = (table, key.to_vec());
            if let Some(value) = queue.waiting.get(&full).or_else(|| queue.committing.get(&full)) {
                return Ok(value.clone());
            }
        }
        let read = self.shared.database()?.begin_read().map_err(meta)?;
        let table = match read.open_table(table.definition()) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(meta(error)),
        };
        let value = table.get(key).map_err(meta)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    /// All entries whose keys start with `prefix`, in key order.
    pub(crate) fn scan(
        &self,
        table: T,
        prefix: &[u8],
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        // The overlay is read first: a batch that is committed in between shows up in both.
        let overlay: Changes = {
            let queue = self.shared.queue.lock().unwrap();
            let committing = select(&queue.committing, table, prefix);
            let mut overlay: Changes =
                committing.map(|(key, value)| (key.clone(), value.clone())).collect();
            let waiting = select(&queue.waiting, table, prefix);
            overlay.extend(waiting.map(|(key, value)| (key.clone(), value.clone())));
            overlay
        };
        let mut found = BTreeMap::new();
        let read = self.shared.database()?.begin_read().map_err(meta)?;
        match read.open_table(table.definition()) {
            Ok(table) => {
                for entry in table.range(prefix..).map_err(meta)? {
                    let (key, value) = entry.map_err(meta)?;
                    if !key.value().starts_with(prefix) {
                        break;
                    }
                    found.insert(key.value().to_vec(), Bytes::copy_from_slice(value.value()));
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(meta(error)),
        }
        for ((_, key), value) in overlay {
            match value {
                Some(value) => _ = found.insert(key, value),
                None => _ = found.remove(&key),
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Visits all entries of a table in no particular order; for start-up.
    pub(crate) fn each(
        &self,
        table: T,
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        let waiting: BTreeMap<_, _> = {
            let queue = self.shared.queue.lock().unwrap();
            let waiting = select(&queue.waiting, table, &[]);
            waiting.map(|((_, key), value)| (key.clone(), value.clone())).collect()
        };
        let read = self.shared.database()?.begin_read().map_err(meta)?;
        match read.open_table(table.definition()) {
            Ok(table) => {
                for entry in table.range::<&[u8]>(..).map_err(meta)? {
                    let (key, value) = entry.map_err(meta)?;
                    if !waiting.contains_key(key.value()) {
                        visit(key.value(), value.value());
                    }
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(meta(error)),
        }
        for (key, value) in waiting {
            if let Some(value) = value {
                visit(&key, &value);
            }
        }
        Ok(())
    }

    /// Waits until every change made so far outlives the daemon.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        match self.is_written() {
            true => Ok(()),
            false => self.sync().await,
        }
    }

    /// [`flush`](Self::flush) for threads outside a runtime.
    pub(crate) fn flush_blocking(&self) -> Result<(), StoreError> {
        match self.is_written() {
            true => Ok(()),
            false => self.sync_blocking(),
        }
    }

    /// Waits until every change made so far, and the data it names, is on disk.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        let done = self.ask_sync();
        finish_sync(done.await)
    }

    /// [`sync`](Self::sync) for threads outside a runtime.
    pub(crate) fn sync_blocking(&self) -> Result<(), StoreError> {
        let done = self.ask_sync();
        finish_sync(done.blocking_recv())
    }

    fn is_written(&self) -> bool {
        let queue = self.shared.queue.lock().unwrap();
        queue.stop.is_none() && !queue.unwritten
    }

    fn ask_sync(&self) -> oneshot::Receiver<Result<(), String>> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock().unwrap();
        if queue.stop.is_none() {
            queue.syncs.push(sender);
            self.shared.wake.notify_one();
        }
        receiver
    }

    /// The files that hold the metadata.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let queue = self.shared.queue.lock().unwrap();
        let current = queue.journal.iter().filter_map(Journal::current).map(Path::to_owned);
        let database = std::iter::once(self.shared.path.clone());
        database.chain(queue.sealed.iter().cloned()).chain(current).collect()
    }

    /// Commits what waits and ends the thread.
    pub(crate) fn close(&self) {
        self.stop(Stop::Gently);
    }

    /// Ends without committing.
    pub(crate) fn crash(&self, how: Crash) {
        self.stop(Stop::Crash);
        let mut queue = self.shared.queue.lock().unwrap();
        let current = queue.journal.take().and_then(|mut journal| journal.seal());
        if how == Crash::PowerLost {
            forget(std::mem::take(&mut queue.sealed).into_iter().chain(current));
        }
    }

    fn stop(&self, how: Stop) {
        self.shared.queue.lock().unwrap().stop.get_or_insert(how);
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().unwrap().take() {
            _ = thread.join();
        }
    }
}

impl Queue {
    fn append(&mut self, changes: &[Change]) {
        let Some(journal) = &mut self.journal else { return };
        // Behind a gap nothing may be written: changes would come back without earlier ones.
        if self.unwritten {
            return;
        }
        if let Err(error) = journal.append(changes) {
            tracing::error!("write down changes of the metadata: {error}");
            self.unwritten = true;
            self.sealed.extend(journal.seal());
        }
    }

    fn is_urgent(&self) -> bool {
        self.unwritten || self.journal.as_ref().is_some_and(|it| it.length() > MAX_JOURNAL)
    }
}

/// Removes journals whose changes the database has.
fn forget(journals: impl IntoIterator<Item = PathBuf>) {
    for path in journals {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!("remove {}: {error}", path.display());
        }
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.close();
    }
}

fn finish_sync(
    answer: Result<Result<(), String>, oneshot::error::RecvError>,
) -> Result<(), StoreError> {
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) if text.contains(NO_SPACE) => {
            Err(StoreError::NoSpace { doing: "commit metadata".into() })
        }
        Ok(Err(text)) => Err(StoreError::Meta(text)),
        Err(_) => Err(StoreError::Closed),
    }
}

const NO_SPACE: &str = "no space left";

fn select<'a>(
    changes: &'a Changes,
    table: T,
    prefix: &'a [u8],
) -> impl Iterator<Item = (&'a Key, &'a Option<Bytes>)> {
    let from = (table, prefix.to_vec());
    changes
        .range((Bound::Included(from), Bound::Unbounded))
        .take_while(move |((at, key), _)| *at == table && key.starts_with(prefix))
}

impl Shared {
    /// The database, opened anew if it failed.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut database = self.database.lock().unwrap();
        if let Some(database) = &*database {
            return Ok(database.clone());
        }
        let opened = Arc::new(open_database(&self.path)?);
        *database = Some(opened.clone());
        Ok(opened)
    }

    /// The thread: gather, sync, commit, tell.
    fn run(&self) {
        let mut rest_until = Instant::now();
        while let Some(batch) = self.next_batch(rest_until) {
            let started = Instant::now();
            let outcome = self.commit(&batch.changes);
            rest_until = Instant::now() + started.elapsed() * REST;
            let mut queue = self.queue.lock().unwrap();
            queue.committing = Arc::default();
            match &outcome {
                Ok(()) => forget(batch.journals),
                Err(text) => {
                    tracing::error!("commit metadata: {text}");
                    // Nothing is lost: the batch waits again, behind newer changes of the same keys.
                    let newer = std::mem::take(&mut queue.waiting);
                    queue.waiting = Arc::unwrap_or_clone(batch.changes);
                    queue.waiting.extend(newer);
                    let newer = std::mem::replace(&mut queue.sealed, batch.journals);
                    queue.sealed.extend(newer);
                    queue.unwritten |= batch.unwritten;
                    queue.since = Some(Instant::now());
                    rest_until = Instant::now() + RETRY;
                }
            }
            if batch.last {
                queue.journal = None;
            }
            drop(queue);
            for waiter in batch.syncs {
                _ = waiter.send(outcome.clone());
            }
            if batch.last {
                return;
            }
        }
    }

    /// Waits for the next batch; `None` ends the thread at once.
    fn next_batch(&self, rest_until: Instant) -> Option<Batch> {
        let mut queue = self.queue.lock().unwrap();
        loop {
            let now = Instant::now();
            let gather = if queue.is_urgent() { HURRY } else { GATHER };
            let due = queue.since.map(|since| (since + gather).max(rest_until));
            match queue.stop {
                Some(Stop::Crash) => return None,
                Some(Stop::Gently) => break,
                None if !queue.syncs.is_empty() => break,
                None => {}
            }
            queue = match due {
                Some(due) if due <= now => break,
                Some(due) => self.wake.wait_timeout(queue, due - now).unwrap().0,
                None => self.wake.wait(queue).unwrap(),
            };
        }
        queue.since = None;
        queue.committing = Arc::new(std::mem::take(&mut queue.waiting));
        let current = queue.journal.as_mut().and_then(Journal::seal);
        let mut journals = std::mem::take(&mut queue.sealed);
        journals.extend(current);
        Some(Batch {
            changes: queue.committing.clone(),
            journals,
            unwritten: std::mem::take(&mut queue.unwritten),
            syncs: std::mem::take(&mut queue.syncs),
            last: queue.stop.is_some(),
        })
    }

    fn commit(&self, batch: &Changes) -> Result<(), String> {
        if batch.is_empty() {
            return Ok(());
        }
        for disk in &self.disks {
            rustix::fs::syncfs(disk).map_err(|errno| describe(&errno.into()))?;
        }
        let database = self.database().map_err(|error| match error {
            StoreError::NoSpace { .. } => NO_SPACE.to_owned(),
            error => error.to_string(),
        })?;
        let outcome = write(&database, batch);
        if outcome.is_err() {
            // After a failed write redb refuses all further ones until it is opened anew, which
            // works once the last reader has let go of it.
            *self.database.lock().unwrap() = None;
        }
        outcome
    }
}

fn write(database: &Database, batch: &Changes) -> Result<(), String> {
    let mut transaction = database.begin_write().map_err(text)?;
    // Quick repair keeps the free-space map in every commit: reopening after a crash needs no walk.
    transaction.set_quick_repair(true);
    transaction.set_durability(Durability::Immediate).map_err(text)?;
    for table in T::ALL {
        let mut changes = select(batch, table, &[]).peekable();
        if changes.peek().is_none() {
            continue;
        }
        let mut open = transaction.open_table(table.definition()).map_err(text)?;
        for ((_, key), value) in changes {
            match value {
                Some(value) => _ = open.insert(&key[..], &value[..]).map_err(text)?,
                None => _ = open.remove(&key[..]).map_err(text)?,
            }
        }
    }
    transaction.commit().map_err(text)
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(source)) => {
            StoreError::io(format!("open metadata {}", path.display()), source)
        }
        error => StoreError::Meta(format!("open {}: {error}", path.display())),
    })
}

fn meta(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(source) => StoreError::io("read metadata", source),
        error => StoreError::Meta(error.to_string()),
    }
}

fn text(error: impl Into<redb::Error>) -> String {
    match error.into() {
        redb::Error::Io(source) => describe(&source),
        error => error.to_string(),
    }
}

fn describe(error: &std::io::Error) -> String {
    if crate::error::is_full(error) { NO_SPACE.into() } else { error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Meta {
        Meta::open(&folder.join("meta"), vec![File::open(folder).unwrap()]).unwrap()
    }

    /// Entries of a table as `key=value`.
    fn scan(meta: &Meta, prefix: &str) -> String {
        let found = meta.scan(T::Values, prefix.as_bytes()).unwrap().into_iter();
        let lines = found.map(|(key, value)| {
            format!("{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value))
        });
        lines.collect::<Vec<_>>().join(" ")
    }

    fn set(meta: &Meta, key: &str, value: Option<&'static str>) {
        meta.set(T::Values, key, value.map(Bytes::from));
    }

    #[test]
    fn changes_show_at_once_and_stand_in_front_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let meta = open(folder.path());
        set(&meta, "a/1", Some("one"));
        set(&meta, "a/2", Some("two"));
        set(&meta, "b", Some("three"));
        assert_eq!(scan(&meta, "a/"), "a/1=one a/2=two");
        meta.sync_blocking().unwrap();
        set(&meta, "a/1", None);
        set(&meta, "a/2", Some("changed"));
        set(&meta, "a/3", Some("new"));
        assert_eq!(scan(&meta, "a/"), "a/2=changed a/3=new");
        assert_eq!(meta.get(T::Values, b"a/1").unwrap(), None);
        assert_eq!(scan(&meta, ""), "a/2=changed a/3=new b=three");
        assert!(meta.scan(T::Images, b"").unwrap().is_empty());
    }

    fn journals(folder: &Path) -> usize {
        let names = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains("journal")).count()
    }

    #[test]
    fn a_killed_daemon_loses_nothing_and_a_loss_of_power_what_was_not_synced() {
        let folder = tempfile::tempdir().unwrap();
        let meta = open(folder.path());
        set(&meta, "closed", Some("1"));
        drop(meta);
        assert_eq!(journals(folder.path()), 0);
        for how in [Crash::Killed, Crash::PowerLost] {
            let meta = open(folder.path());
            set(&meta, "a", Some("1"));
            set(&meta, "b", Some("1"));
            meta.sync_blocking().unwrap();
            set(&meta, "a", Some("2"));
            set(&meta, "b", None);
            set(&meta, "c", Some("2"));
            meta.flush_blocking().unwrap();
            meta.crash(how);
            set(&meta, "d", Some("too late"));
            assert!(matches!(meta.flush_blocking(), Err(StoreError::Closed)));
            drop(meta);
            // Twice: what was found is not lost by being killed again.
            for _ in 0..2 {
                let meta = open(folder.path());
                let expected = match how {
                    Crash::Killed => "a=2 c=2 closed=1",
                    Crash::PowerLost => "a=1 b=1 closed=1",
                };
                assert_eq!(scan(&meta, ""), expected);
                let mut each = Vec::new();
                meta.each(T::Values, |key, value| each.push([key, b"=", value].concat())).unwrap();
                each.sort();
                assert_eq!(String::from_utf8(each.join(&b" "[..])).unwrap(), expected);
                meta.crash(Crash::Killed);
            }
            let meta = open(folder.path());
            set(&meta, "c", None);
            drop(meta);
            assert_eq!(journals(folder.path()), 0);
        }
    }

    #[test]
    fn changes_that_cannot_be_written_down_are_committed() {
        let folder = tempfile::tempdir().unwrap();
        let meta = open(folder.path());
        set(&meta, "a", Some("1"));
        // Its name is taken.
        meta.shared.queue.lock().unwrap().journal.as_mut().unwrap().seal().unwrap();
        std::fs::create_dir(folder.path().join("meta-journal-1")).unwrap();
        set(&meta, "b", Some("2"));
        assert!(meta.shared.queue.lock().unwrap().unwritten);
        meta.flush_blocking().unwrap();
        meta.crash(Crash::PowerLost);
        drop(meta);
        std::fs::remove_dir(folder.path().join("meta-journal-1")).unwrap();
        assert_eq!(scan(&open(folder.path()), ""), "a=1 b=2");
    }

    #[test]
    fn unasked_changes_reach_the_disk_soon() {
        let folder = tempfile::tempdir().unwrap();
        let meta = open(folder.path());
        set(&meta, "a", Some("1"));
        let started = Instant::now();
        while !meta.shared.queue.lock().unwrap().waiting.is_empty()
            || !meta.shared.queue.lock().unwrap().committing.is_empty()
        {
            assert!(started.elapsed() < Duration::from_secs(20), "never committed");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(journals(folder.path()), 0);
        meta.crash(Crash::PowerLost);
        drop(meta);
        assert_eq!(scan(&open(folder.path()), ""), "a=1");
    }

    #[test]
    fn a_database_that_failed_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let meta = open(folder.path());
        set(&meta, "a", Some("1"));
        meta.sync_blocking().unwrap();
        *meta.shared.database.lock().unwrap() = None;
        set(&meta, "b", Some("2"));
        meta.sync_blocking().unwrap();
        assert_eq!(scan(&meta, ""), "a=1 b=2");
    }
}
