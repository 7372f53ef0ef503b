//! The ceiling: the most the state folder may take, work in flight included.
//!
//! Work asks for a [`Room`] before it starts and holds it while it writes. Well below the ceiling
//! garbage is collected before more may start, and while work goes on. Just below it writers of
//! this process are stopped (see [`snapshot::Brake`]) and the room of whoever wrote most is
//! *withdrawn*: its holder ends the work. The little that is left is for what is written until the
//! work has really ended, so that the folder never takes more than the ceiling.
//!
//! Counting everything takes a while, so a thread follows the disk's free space (microseconds) from
//! count to count: writes of others on the same disk are taken for ours until the next count. Close
//! to the ceiling another thread counts several times a second, and nobody is stopped because of an
//! old count.

use std::{
    collections::HashMap,
    future::Future,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use snapshot::LayerId;
use tokio::sync::watch;

use crate::{PruneOptions, Store, StoreError, record::blocking, usage::allocated_below};

/// Room that work about to start must find on the disk: this much, or a part of a small disk.
const SPARE_BYTES: u64 = 64 << 20;
const SPARE_PART: u64 = 64;
/// How long [`Store::reserve`] waits for other work to let go of its room.
const PATIENCE: Duration = Duration::from_secs(30);
/// A count this old is good enough far from the ceiling.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// A count this old is good enough close to it.
const RECOUNT: Duration = Duration::from_millis(250);
/// So far ahead room is made: a collection takes a while.
const REACTION: Duration = Duration::from_millis(30);
/// How fast the disk fills is seen over at least this long.
const PACE_OVER: Duration = Duration::from_millis(4);
/// An older count is too old to stop anybody: what others wrote since then was taken for ours.
const TRUSTED: Duration = Duration::from_secs(2);
/// Faster than disks and page caches are filled.
const BYTES_PER_MS: u64 = 4 << 20;
/// Shortest and longest pause between looks at the disk.
const SHORTEST_MS: u64 = 1;
const LONGEST_MS: u64 = 250;
/// What is kept for writers that are being stopped: this much, or a hundredth of a large ceiling.
const LAST_BYTES: u64 = 32 << 20;
/// The highest priority of a thread.
const FIRST: i32 = -20;
/// How often is counted anew because much changed meanwhile.
const TRIES: u32 = 3;
/// Pause between collections that found nothing to free.
const COLLECT_AGAIN: Duration = Duration::from_millis(200);
/// How long a withdrawn room may take to end before the next one is withdrawn too.
const ENDING: Duration = Duration::from_millis(300);

tokio::task_local! {
    static ROOM: Arc<Shared>;
}

/// How close the store is to its ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes in use, work in flight included.
    pub used: u64,
    /// The ceiling.
    pub ceiling: u64,
}

/// The ceiling, who works below it, and what is known of the disk.
pub(crate) struct Space {
    ceiling: Option<u64>,
    promised: Arc<AtomicU64>,
    rooms: Mutex<HashMap<u64, Weak<Shared>>>,
    next: AtomicU64,
    counted: Mutex<Option<Count>>,
    /// One collection at a time.
    pub(crate) collecting: Mutex<()>,
}

/// What was counted, and how much of the disk was free then.
#[derive(Debug, Clone, Copy)]
struct Count {
    at: Instant,
    used: u64,
    free: u64,
}

/// What holders of a room and its owner share.
#[derive(Debug)]
struct Shared {
    id: u64,
    bytes: u64,
    promised: Arc<AtomicU64>,
    withdrawn: watch::Sender<Option<Pressure>>,
    /// Those that write in it, while they live.
    processes: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Shared {
    /// Kills those that write in it, so that nothing is written while the holder gets to know.
    fn kill(&self) {
        for process in self.processes.lock().unwrap().drain(..) {
            let Some(pidfd) = process.upgrade() else { continue };
            // It may have ended meanwhile.
            _ = rustix::process::pidfd_send_signal(&*pidfd, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Leave to write to the store; dropping it gives back what was set aside.
#[derive(Debug, Clone)]
pub struct Room(Arc<Shared>);

impl Room {
    /// The error the work has to end with, if its room was withdrawn.
    pub fn is_withdrawn(&self) -> Option<StoreError> {
        let pressure = *self.0.withdrawn.borrow();
        pressure.map(|Pressure { used, ceiling }| StoreError::Ceiling { used, ceiling })
    }

    /// Completes when the work has to end, with the error it ends with.
    pub async fn withdrawn(&self) -> StoreError {
        let mut withdrawn = self.0.withdrawn.subscribe();
        let pressure = match withdrawn.wait_for(Option::is_some).await {
            Ok(pressure) => *pressure,
            Err(_) => None,
        };
        match pressure {
            Some(Pressure { used, ceiling }) => StoreError::Ceiling { used, ceiling },
            None => std::future::pending().await,
        }
    }

    /// Runs work in this room: records begun meanwhile count as its own.
    pub async fn scope<T>(&self, work: impl Future<Output = T>) -> T {
        ROOM.scope(self.0.clone(), work).await
    }
}

/// The process that `pidfd` refers to writes in the room that the caller works in: it is killed the
/// moment the room is withdrawn.
pub fn kill_when_withdrawn(pidfd: &Arc<OwnedFd>) {
    _ = ROOM.try_with(|room| {
        let mut processes = room.processes.lock().unwrap();
        processes.retain(|process| process.strong_count() > 0);
        processes.push(Arc::downgrade(pidfd));
        drop(processes);
        if room.withdrawn.borrow().is_some() {
            room.kill();
        }
    });
}

/// The room that the caller works in.
pub(crate) fn current() -> Option<u64> {
    ROOM.try_with(|room| room.id).ok()
}

impl Space {
    pub(crate) fn new(ceiling: Option<u64>) -> Self {
        Self {
            ceiling,
            promised: Arc::default(),
            rooms: Mutex::default(),
            next: AtomicU64::new(0),
            counted: Mutex::default(),
            collecting: Mutex::default(),
        }
    }

    /// Nothing counted before is true any more.
    pub(crate) fn changed(&self) {
        *self.counted.lock().unwrap() = None;
    }

    fn room(&self, bytes: u64) -> Room {
        self.promised.fetch_add(bytes, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            bytes,
            promised: self.promised.clone(),
            withdrawn: watch::Sender::new(None),
            processes: Mutex::default(),
        });
        let mut rooms = self.rooms.lock().unwrap();
        rooms.retain(|_, room| room.strong_count() > 0);
        rooms.insert(shared.id, Arc::downgrade(&shared));
        Room(shared)
    }

    /// Bytes in use, followed from the last count by the disk's free space.
    fn estimate(&self, free: u64) -> Option<(u64, Instant)> {
        let count = (*self.counted.lock().unwrap())?;
        Some(((count.used + count.free).saturating_sub(free), count.at))
    }
}

/// Above this, garbage is collected.
fn soft(ceiling: u64) -> u64 {
    hard(ceiling) / 10 * 9
}

/// Above this, writers are stopped.
fn hard(ceiling: u64) -> u64 {
    ceiling - (ceiling / 100).max(LAST_BYTES).min(ceiling / 8)
}

fn free(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX / 2, |stat| stat.f_bfree * stat.f_frsize)
}

fn available(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize)
}

/// How fast the disk fills.
struct Pace {
    at: Instant,
    free: u64,
    /// Bytes that are written until room was made.
    ahead: u64,
}

impl Pace {
    fn new(free: u64) -> Self {
        Self { at: Instant::now(), free, ahead: 0 }
    }

    fn follow(&mut self, free: u64) {
        let elapsed = self.at.elapsed();
        if elapsed < PACE_OVER {
            return;
        }
        let written = self.free.saturating_sub(free) as f64;
        let ahead = written * REACTION.as_secs_f64() / elapsed.as_secs_f64();
        *self = Self { ahead: ahead as u64, ..Self::new(free) };
    }
}

impl Store {
    /// The most the state folder may take, if there is a limit.
    pub fn ceiling(&self) -> Option<u64> {
        self.space().ceiling
    }

    /// Whether writers are being stopped because the store is at its ceiling; how close it is.
    pub fn at_ceiling(&self) -> Option<Pressure> {
        let ceiling = self.space().ceiling.filter(|_| self.snapshotter().brake().is_set())?;
        let used = self.space().estimate(free(self.root())).map_or(ceiling, |(used, _)| used);
        Some(Pressure { used, ceiling })
    }

    /// Room for `bytes` more below the ceiling and on the disk, collecting if need be and waiting
    /// a while for other work to end. Call before starting work; far below the ceiling this costs
    /// next to nothing.
    pub async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Room, StoreError> {
        self.find_disk_space(bytes).await?;
        let Some(ceiling) = self.space().ceiling else { return Ok(self.space().room(bytes)) };
        let started = Instant::now();
        let mut collected = false;
        loop {
            let promises = self.space().promised.load(Ordering::Relaxed);
            let used = self.used(if collected { Duration::ZERO } else { RECOUNT }).await?;
            let wanted = used.saturating_add(promises).saturating_add(bytes);
            // After a collection everything but the last hundredth may be used.
            let limit = if collected { hard(ceiling) } else { soft(ceiling) };
            if wanted <= limit {
                return Ok(self.space().room(bytes));
            }
            if !collected {
                self.collect_below(soft(ceiling).saturating_sub(bytes + promises)).await?;
                collected = true;
                continue;
            }
            // Only somebody who holds something can still make room.
            let busy = promises > 0 || self.state().records.values().any(|it| it.in_use());
            if !busy || started.elapsed() > PATIENCE {
                return Err(StoreError::Ceiling { used, ceiling });
            }
            self.wait_released().await;
            collected = false;
        }
    }

    async fn find_disk_space(self: &Arc<Self>, bytes: u64) -> Result<(), StoreError> {
        let spare = crate::disk_total(self.root()).map_or(0, |total| total / SPARE_PART);
        let wanted = bytes.saturating_add(spare.min(SPARE_BYTES));
        if available(self.root()) >= wanted {
            return Ok(());
        }
        let options = PruneOptions { all: true, min_free_space: wanted, ..Default::default() };
        self.prune(options, |_| {}).await?;
        if available(self.root()) >= wanted {
            return Ok(());
        }
        Err(StoreError::NoSpace { doing: format!("find {wanted} bytes for work to start") })
    }

    /// Removes what nobody uses until the store takes less than `bytes`.
    async fn collect_below(self: &Arc<Self>, bytes: u64) -> Result<(), StoreError> {
        let store = self.clone();
        blocking("make room", move || {
            store.collect_below_blocking(bytes);
            Ok(())
        })
        .await
    }

    /// Returns whether anything could go.
    fn collect_below_blocking(&self, bytes: u64) -> bool {
        // The rules speak of records alone.
        let records: u64 = self.disk_usage(&[]).iter().map(|usage| usage.size).sum();
        let used = self.measure();
        let max_used_space = bytes.saturating_sub(used.saturating_sub(records)).max(1);
        let options = PruneOptions { all: true, max_used_space, ..Default::default() };
        let pruned = self.prune_blocking(&[options], |_| {});
        if pruned.records > 0 {
            tracing::info!(?pruned, "made room below the ceiling");
        }
        pruned.records > 0 || pruned.blobs > 0
    }

    /// Bytes in use: counted at most `age` ago and followed since then.
    async fn used(self: &Arc<Self>, age: Duration) -> Result<u64, StoreError> {
        if let Some((used, at)) = self.space().estimate(free(self.root()))
            && at.elapsed() <= age
        {
            return Ok(used);
        }
        let store = self.clone();
        blocking("measure the store", move || Ok(store.measure())).await
    }

    /// Counts everything below the state folder, what is being written included, and remembers it.
    pub(crate) fn measure(&self) -> u64 {
        let mut before = free(self.root());
        let mut tries = 0;
        loop {
            let at = Instant::now();
            let used = self.count();
            let after = free(self.root());
            tries += 1;
            // What was removed or written meanwhile may have been counted or not.
            let settled = before.abs_diff(after) <= used / 100;
            if settled || tries == TRIES {
                let count = Count { at, used, free: before.max(after) };
                *self.space().counted.lock().unwrap() = Some(count);
                return used + count.free.saturating_sub(after);
            }
            before = after;
        }
    }

    fn count(&self) -> u64 {
        let writing = self.writing();
        let known: u64 = {
            let state = self.state();
            let done =
                state.layers.iter().filter(|(id, it)| it.row.here && !writing.contains_key(*id));
            done.map(|(_, layer)| layer.row.size).sum()
        };
        known
            + writing.values().map(|(bytes, _)| bytes).sum::<u64>()
            + self.content().allocated().values().sum::<u64>()
            + self.overhead_files()
    }

    /// Layers that have a writer, measured now, with the room of the writer.
    fn writing(&self) -> HashMap<LayerId, (u64, Option<u64>)> {
        let writers: Vec<(LayerId, Option<u64>)> = {
            let state = self.state();
            let writers = state.records.values().filter(|record| record.writer);
            writers.filter_map(|record| Some((record.row.own.clone()?, record.room))).collect()
        };
        let measured = writers.into_iter().map(|(layer, room)| {
            let bytes = self.snapshotter().usage(&layer).map_or(0, |usage| usage.bytes);
            (layer, (bytes, room))
        });
        measured.collect()
    }

    /// Everything that is neither a layer nor a finished blob.
    pub(crate) fn overhead_files(&self) -> u64 {
        let root = self.root();
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let others = entries
            .filter(|entry| !matches!(entry.file_name().to_str(), Some("content" | "snapshots")));
        others.map(|entry| allocated_below(&entry.path())).sum::<u64>()
            + allocated_below(&root.join("content").join("ingest"))
            + self.snapshotter().aside()
    }

    /// Withdraws the room of whoever wrote most, unless one that was withdrawn just now is ending.
    fn withdraw(&self, pressure: Pressure, last: &mut Option<(Instant, Weak<Shared>)>) {
        if let Some((at, room)) = last
            && at.elapsed() < ENDING
            && room.strong_count() > 0
        {
            return;
        }
        let mut written: HashMap<u64, u64> = HashMap::new();
        for (bytes, room) in self.writing().into_values() {
            if let Some(room) = room {
                *written.entry(room).or_default() += bytes;
            }
        }
        let rooms = self.space().rooms.lock().unwrap();
        let open = rooms.iter().filter_map(|(id, room)| {
            let room = room.upgrade().filter(|room| room.withdrawn.borrow().is_none())?;
            Some((*written.get(id)?, *id, room))
        });
        let Some((bytes, _, room)) = open.max_by_key(|(bytes, id, _)| (*bytes, *id)) else {
            return;
        };
        let Pressure { used, ceiling } = pressure;
        tracing::warn!(used, ceiling, written = bytes, "at the ceiling: stopping who wrote most");
        *last = Some((Instant::now(), Arc::downgrade(&room)));
        room.withdrawn.send_replace(Some(pressure));
        room.kill();
    }
}

/// Watches the disk for a store with a ceiling; ends with the store.
pub(crate) fn watch(store: &Arc<Store>) -> Result<(), StoreError> {
    let Some(ceiling) = store.space().ceiling else { return Ok(()) };
    let store = Arc::downgrade(store);
    let thread = std::thread::Builder::new().name("store-ceiling".into());
    let spawned = thread.spawn(move || {
        // Before the steps that it watches, or a busy machine would let them write for longer than
        // what is kept for that lasts. Without the right to do so it is as good as it was.
        _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), FIRST);
        let mut last = None;
        let mut collector: Option<std::thread::JoinHandle<bool>> = None;
        let mut exhausted: Option<Instant> = None;
        let mut counter: Option<std::thread::JoinHandle<()>> = None;
        let mut pace: Option<Pace> = None;
        loop {
            let Some(store) = store.upgrade() else { return };
            let free = free(store.root());
            let pace = pace.get_or_insert_with(|| Pace::new(free));
            pace.follow(free);
            if let Some(done) = collector.take_if(|thread| thread.is_finished()) {
                exhausted = (!done.join().unwrap_or(false)).then(Instant::now);
            }
            let may_collect = exhausted.is_none_or(|at| at.elapsed() > COLLECT_AGAIN);
            let (used, due) = look(&store, ceiling, &mut last);
            if due && counter.as_ref().is_none_or(|thread| thread.is_finished()) {
                let store = store.clone();
                let thread = std::thread::Builder::new().name("store-count".into());
                counter = thread.spawn(move || _ = store.measure()).ok();
            }
            if used + pace.ahead > soft(ceiling) && collector.is_none() && may_collect {
                let store = store.clone();
                let thread = std::thread::Builder::new().name("store-collect".into());
                let target = soft(ceiling).saturating_sub(pace.ahead);
                collector = thread.spawn(move || store.collect_below_blocking(target)).ok();
            }
            drop(store);
            let pause = hard(ceiling).saturating_sub(used + pace.ahead) / BYTES_PER_MS / 2;
            std::thread::sleep(Duration::from_millis(pause.clamp(SHORTEST_MS, LONGEST_MS)));
        }
    });
    match spawned {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::io("start the thread that watches the ceiling", error)),
    }
}

/// One look at the disk: stops writers if it must. Returns the bytes in use and whether they are to
/// be counted anew. That takes a while when much is written, so this thread does not wait for it.
fn look(store: &Store, ceiling: u64, last: &mut Option<(Instant, Weak<Shared>)>) -> (u64, bool) {
    let known = store.space().estimate(free(store.root()));
    let known = known.filter(|(used, at)| *used < soft(ceiling) || at.elapsed() < TRUSTED);
    let (used, at) = known.unwrap_or_else(|| (store.measure(), Instant::now()));
    let fresh = if used < soft(ceiling) { COUNT_EVERY } else { RECOUNT };
    let brake = store.snapshotter().brake();
    let stop = used > hard(ceiling);
    if stop != brake.is_set() {
        brake.set(stop);
    }
    if stop {
        store.withdraw(Pressure { used, ceiling }, last);
    }
    (used, at.elapsed() > fresh)
}
