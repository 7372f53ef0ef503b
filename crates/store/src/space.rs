//! The ceiling: the most the state folder may take, work in flight included.
//!
//! Work asks for a [`Room`] before it starts and holds it while it writes; processes that write in
//! it are [`Writer`]s. Well below the ceiling garbage is collected before more may start, and while
//! work goes on. Just below it everybody is *held*: processes frozen, writers of this process made to
//! wait (see [`snapshot::Brake`]), which leaves time to count and to collect. If that makes room they
//! go on; if nothing can go, the room of whoever wrote most is *withdrawn*: its holder ends the work.
//! The little that is left is for what is written until all are held, so that the folder never takes
//! more than the ceiling. `ceiling` watches and decides; here is what it decides about.
//!
//! Counting everything takes a while, so the disk's free space (microseconds) is followed from count
//! to count: writes of others on the same disk are taken for ours until the next count. Writers may
//! be held because of that, but nobody is ended because of an old count.

use std::{
    collections::HashMap,
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use snapshot::{LayerId, Pedal};
use tokio::sync::watch;

use crate::{PruneOptions, Store, StoreError, record::blocking, usage::allocated_below};

/// Room that work about to start must find on the disk: this much, or a part of a small disk.
const SPARE_BYTES: u64 = 64 << 20;
const SPARE_PART: u64 = 64;
/// How long [`Store::reserve`] waits for other work to let go of its room.
const PATIENCE: Duration = Duration::from_secs(30);
/// A count this old is good enough close to the ceiling.
pub(crate) const RECOUNT: Duration = Duration::from_millis(250);
/// What is kept for writers until they are held: this much, or a hundredth of a large ceiling.
const LAST_BYTES: u64 = 32 << 20;
/// How often is counted anew because much changed meanwhile.
const TRIES: u32 = 3;
/// Longer than anything is being removed that is in no folder any more.
const SETTLED: Duration = Duration::from_secs(1);
/// For so long after writers of this process had to fail, their errors are the ceiling's.
const BLAMED: Duration = Duration::from_secs(5);

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

/// A process that writes in a room.
pub trait Writer: Send + Sync {
    /// Stops it where it is, within moments, unless that cannot be done.
    fn hold(&self);
    /// Lets it go on.
    fn resume(&self);
    /// Whether it writes nothing now, being held or at its end.
    fn is_still(&self) -> bool;
    /// Ends it, held or not.
    fn kill(&self);
}

/// The ceiling, who works below it, and what is known of the disk.
pub(crate) struct Space {
    ceiling: Option<u64>,
    promised: Arc<AtomicU64>,
    rooms: Mutex<Rooms>,
    next: AtomicU64,
    counted: Mutex<Counts>,
    /// When writers of this process last had to fail.
    failed: Mutex<Option<Instant>>,
    /// One collection at a time.
    pub(crate) collecting: Mutex<()>,
}

/// Who works, and since when all of them are held.
#[derive(Default)]
struct Rooms {
    held: Option<Instant>,
    open: HashMap<u64, Weak<Shared>>,
}

impl Rooms {
    fn live(&self) -> Vec<Arc<Shared>> {
        self.open.values().filter_map(Weak::upgrade).collect()
    }
}

/// What was counted lately.
#[derive(Debug, Default)]
struct Counts {
    /// Each with the sum of what was in use and what was free: it stays the same while only we
    /// write and remove.
    recent: Vec<(Instant, u64)>,
    /// Nothing was removed since the last one.
    exact: bool,
}

impl Counts {
    /// What is being removed is in no folder any more and not free yet, so that a sum can be too
    /// small for a moment: the greatest of the last moments counts.
    fn sum(&self) -> Option<u64> {
        self.recent.iter().map(|(_, sum)| *sum).max()
    }

    /// While layers are `removing`, which takes as long as it takes, no count is given up for a
    /// smaller one.
    fn add(&mut self, at: Instant, sum: u64, removing: bool) {
        if removing {
            let most = self.sum().unwrap_or(0).max(sum);
            self.recent = vec![(at, most)];
        } else {
            self.recent.retain(|(then, _)| then.elapsed() < SETTLED);
            self.recent.push((at, sum));
        }
        self.exact = true;
    }
}

/// What holders of a room and its owner share.
struct Shared {
    id: u64,
    bytes: u64,
    promised: Arc<AtomicU64>,
    withdrawn: watch::Sender<Option<Pressure>>,
    writers: Mutex<Vec<Arc<dyn Writer>>>,
}

impl Shared {
    fn writers(&self) -> MutexGuard<'_, Vec<Arc<dyn Writer>>> {
        self.writers.lock().unwrap()
    }

    fn is_withdrawn(&self) -> bool {
        self.withdrawn.borrow().is_some()
    }

    /// Its holder has to end. Processes are killed, so that they write nothing until it gets to know.
    fn withdraw(&self, pressure: Pressure) {
        self.withdrawn.send_replace(Some(pressure));
        self.writers().iter().for_each(|writer| writer.kill());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A room that was withdrawn, until its holder has let go of it.
pub(crate) struct Ending {
    since: Instant,
    room: Weak<Shared>,
}

impl Ending {
    /// Whether the holder is still at it, for less than `patience`.
    pub(crate) fn goes_on(&self, patience: Duration) -> bool {
        self.room.strong_count() > 0 && self.since.elapsed() < patience
    }
}

/// Leave to write to the store; dropping it gives back what was set aside.
#[derive(Clone)]
pub struct Room(Arc<Shared>);

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "room {}", self.0.id)
    }
}

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
            failed: Mutex::default(),
            collecting: Mutex::default(),
        }
    }

    /// The last count is not exact any more.
    pub(crate) fn changed(&self) {
        self.counted.lock().unwrap().exact = false;
    }

    fn room(&self, bytes: u64) -> Room {
        self.promised.fetch_add(bytes, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            bytes,
            promised: self.promised.clone(),
            withdrawn: watch::Sender::new(None),
            writers: Mutex::default(),
        });
        let mut rooms = self.rooms();
        rooms.open.retain(|_, room| room.strong_count() > 0);
        rooms.open.insert(shared.id, Arc::downgrade(&shared));
        Room(shared)
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap()
    }

    /// Since when everybody is held.
    pub(crate) fn held(&self) -> Option<Instant> {
        self.rooms().held
    }

    /// Wants everybody held, or let go on; see [`Space::carry_out`].
    pub(crate) fn want_held(&self, held: bool) {
        self.rooms().held = held.then(Instant::now);
    }

    /// Holds all processes that write, or lets them go on, until that is what is wanted. One thread
    /// does this: it can wait for others of the machine.
    pub(crate) fn carry_out(&self, done: &mut Option<Instant>) {
        loop {
            let (wanted, live) = {
                let rooms = self.rooms();
                (rooms.held, rooms.live())
            };
            if wanted == *done {
                return;
            }
            for writer in live.iter().flat_map(|room| room.writers().clone()) {
                match wanted {
                    Some(_) => writer.hold(),
                    None => writer.resume(),
                }
            }
            *done = wanted;
        }
    }

    /// Withdraws the rooms of those that write on although they are held.
    pub(crate) fn end_unheld(&self, pressure: Pressure) {
        let live = self.rooms().live();
        for room in live {
            let writes = room.writers().iter().any(|writer| !writer.is_still());
            if writes && !room.is_withdrawn() {
                room.withdraw(pressure);
            }
        }
    }

    /// Bytes in use, followed from the last count by the disk's free space, and how old that is.
    pub(crate) fn estimate(&self, free: u64) -> Option<(u64, Duration)> {
        let counts = self.counted.lock().unwrap();
        let (at, _) = counts.recent.last()?;
        Some((counts.sum()?.saturating_sub(free), at.elapsed()))
    }

    /// The same if the last count is at most `age` old and nothing was removed since.
    pub(crate) fn exact(&self, free: u64, age: impl Fn(u64) -> Duration) -> Option<u64> {
        let exact = self.counted.lock().unwrap().exact;
        let (used, old) = self.estimate(free)?;
        (exact && old <= age(used)).then_some(used)
    }

    /// Writers of this process fail from now on.
    pub(crate) fn blame(&self) {
        *self.failed.lock().unwrap() = Some(Instant::now());
    }
}

/// Above this, garbage is collected.
pub(crate) fn soft(ceiling: u64) -> u64 {
    hard(ceiling) / 10 * 9
}

/// Above this, writers are held.
pub(crate) fn hard(ceiling: u64) -> u64 {
    ceiling - last(ceiling)
}

/// What is kept for writers until they are held.
pub(crate) fn last(ceiling: u64) -> u64 {
    (ceiling / 100).max(LAST_BYTES).min(ceiling / 8)
}

/// Bytes that are free on the disk.
pub(crate) fn free(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX / 2, |stat| stat.f_bfree * stat.f_frsize)
}

fn available(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize)
}

impl Store {
    /// The most the state folder may take, if there is a limit.
    pub fn ceiling(&self) -> Option<u64> {
        self.space().ceiling
    }

    /// What one process under the ceiling may set aside at once without writing it.
    pub fn most_allocated(&self) -> Option<u64> {
        self.ceiling().map(|ceiling| last(ceiling) / 8)
    }

    /// How close the store is to its ceiling, if writers of this process fail because of it, or did
    /// so a moment ago.
    pub fn at_ceiling(&self) -> Option<Pressure> {
        let ceiling = self.ceiling()?;
        let failed = *self.space().failed.lock().unwrap();
        let blamed = failed.is_some_and(|at| at.elapsed() < BLAMED);
        if self.snapshotter().brake().get() != Pedal::Fail && !blamed {
            return None;
        }
        let used = self.space().estimate(free(self.root())).map_or(ceiling, |(used, _)| used);
        Some(Pressure { used, ceiling })
    }

    /// A process is about to write in the room that the caller works in: it is held and ended with
    /// it, from now on.
    pub fn writes_here(&self, writer: Arc<dyn Writer>) {
        _ = ROOM.try_with(|room| {
            let rooms = self.space().rooms();
            if room.is_withdrawn() {
                writer.kill();
            }
            if rooms.held.is_some() {
                writer.hold();
            }
            room.writers().push(writer);
        });
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
    pub(crate) fn collect_below_blocking(&self, bytes: u64) -> bool {
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
        if let Some(used) = self.space().exact(free(self.root()), |_| age) {
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
            let removing = self.is_removing();
            let used = self.count();
            let after = free(self.root());
            tries += 1;
            // What was removed or written meanwhile may have been counted or not.
            let settled = before.abs_diff(after) <= used / 100;
            if settled || tries == TRIES {
                let mut counts = self.space().counted.lock().unwrap();
                if settled || counts.recent.is_empty() {
                    counts.add(at, used + before.max(after), removing);
                }
                return counts.sum().map_or(used, |sum| sum.saturating_sub(after));
            }
            before = after;
        }
    }

    /// Whether something is in no count any more and still takes its room.
    pub(crate) fn is_removing(&self) -> bool {
        self.space().collecting.try_lock().is_err()
            || self.tidy().is_busy()
            || self.snapshotter().is_removing()
    }

    /// Waits until what was removed has really gone.
    pub(crate) fn wait_removed(&self) {
        self.tidy().wait();
        self.snapshotter().wait_removed();
    }

    /// Layers are made, then there, then removed: counting against that order finds none twice. What
    /// it misses instead was in a count of a moment ago.
    fn count(&self) -> u64 {
        let removed = self.snapshotter().being_removed();
        let writing = self.writing();
        let known: u64 = {
            let state = self.state();
            let done =
                state.layers.iter().filter(|(id, it)| it.row.here && !writing.contains_key(*id));
            done.map(|(_, layer)| layer.row.size).sum()
        };
        removed
            + known
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

    /// Everything that is neither a layer, removed or not, nor a finished blob.
    pub(crate) fn overhead_files(&self) -> u64 {
        let root = self.root();
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let others = entries
            .filter(|entry| !matches!(entry.file_name().to_str(), Some("content" | "snapshots")));
        others.map(|entry| allocated_below(&entry.path())).sum::<u64>()
            + allocated_below(&root.join("content").join("ingest"))
            + self.snapshotter().being_made()
    }

    /// Withdraws the room of whoever wrote most, if there is anybody left.
    pub(crate) fn withdraw(&self, pressure: Pressure) -> Option<Ending> {
        let mut written: HashMap<u64, u64> = HashMap::new();
        for (bytes, room) in self.writing().into_values() {
            if let Some(room) = room {
                *written.entry(room).or_default() += bytes;
            }
        }
        let open = self.space().rooms().live().into_iter();
        let open = open.filter(|room| !room.is_withdrawn());
        // A container can write to volumes alone.
        let open = open.filter(|room| written.contains_key(&room.id) || !room.writers().is_empty());
        let open = open.map(|room| (written.get(&room.id).copied().unwrap_or(0), room.id, room));
        let (bytes, _, room) = open.max_by_key(|(bytes, id, _)| (*bytes, *id))?;
        let Pressure { used, ceiling } = pressure;
        tracing::warn!(used, ceiling, written = bytes, "at the ceiling: stopping who wrote most");
        let is_ours = room.writers().is_empty();
        room.withdraw(pressure);
        if is_ours {
            // It cannot be told apart from others that copy and unpack.
            self.fail_writers();
        }
        Some(Ending { since: Instant::now(), room: Arc::downgrade(&room) })
    }

    /// Writers of this process fail as on a full disk.
    pub(crate) fn fail_writers(&self) {
        self.space().blame();
        self.snapshotter().brake().set(Pedal::Fail);
    }
}
