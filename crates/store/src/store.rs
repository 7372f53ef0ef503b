//! The store itself: opening, closing, and finding what is in it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base::Digest;
use snapshot::Snapshotter;
use tokio::sync::Notify;

use crate::{
    Content, GcPolicy, Images, RecordId, Recovery, Ref, StoreError, Table,
    blobs::Makers,
    ceiling,
    error::Doing as _,
    images::ImageMap,
    layers::Tidy,
    lock::FolderLock,
    meta::{Meta, T},
    pull::Flights,
    recover::{self, Found},
    space::Space,
    state::State,
};

/// Longest wait of [`Store::wait_released`]: a caller looks again at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Table of pinned blobs by owner.
pub(crate) const PINS: &str = "store.pins";

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder; made if missing.
    pub root: PathBuf,
    /// Snapshot driver.
    pub snapshotter: snapshot::Choice,
    /// Most bytes the store may use, work in flight included.
    pub ceiling: Option<u64>,
    /// Policies of [`Store::collect`], in order.
    pub policies: Vec<GcPolicy>,
}

impl Config {
    /// Defaults for this folder: driver chosen by trying, no ceiling, no policies.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            snapshotter: snapshot::Choice::Auto,
            ceiling: None,
            policies: Vec::new(),
        }
    }
}

/// One state folder, open.
pub struct Store {
    config: Config,
    worker_id: String,
    recovery: Recovery,
    snapshotter: Arc<dyn Snapshotter>,
    meta: Arc<Meta>,
    content: Content,
    state: Arc<Mutex<State>>,
    images: ImageMap,
    pins: Mutex<BTreeMap<String, Vec<Digest>>>,
    flights: Flights,
    makers: Makers,
    space: Space,
    released: Notify,
    tidy: Tidy,
    /// Given back last.
    _lock: FolderLock,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.config.root.display())
    }
}

impl Store {
    /// Opens the state folder: takes its lock, reads the metadata, removes what nobody names and
    /// drops records whose data is missing (see [`Store::recovery`]).
    pub fn open(config: Config) -> Result<Arc<Store>, StoreError> {
        let root = &config.root;
        base::fs::create_dir_all(root).doing(|| "open the store".into())?;
        let lock = FolderLock::take(&root.join("buildkitd.lock"))?;
        let snapshots = root.join("snapshots");
        let (blobs, ingest) = (crate::content::folder(root), crate::content::ingest(root));
        for folder in [&snapshots, &blobs, &ingest] {
            base::fs::create_dir_all(folder).doing(|| "open the store".into())?;
        }
        // The driver tries mounts while the metadata is read.
        let (snapshotter, meta, rows) = std::thread::scope(|scope| {
            let choice = config.snapshotter;
            let driver = scope.spawn(move || snapshot::open(&snapshots, choice));
            let meta = Arc::new(Meta::open(&root.join("meta"), disks(root)?)?);
            let rows = recover::read(&meta)?;
            let driver = driver.join().expect("opening a driver does not panic")?;
            Ok::<_, StoreError>((driver, meta, rows))
        })?;
        let Found { worker_id, state, content, images, pins, recovery, measure } =
            recover::load(root, &meta, rows, &*snapshotter)?;
        let state = Arc::new(Mutex::new(state));
        let tidy = Tidy::start(state.clone(), meta.clone(), snapshotter.clone())?;
        for chore in measure {
            tidy.add(chore);
        }
        let brake = snapshotter.brake().clone();
        let bounded = config.ceiling.is_some();
        let content = Content::new(root, meta.clone(), content, brake, bounded);
        let space = Space::new(config.ceiling);
        let store = Arc::new(Self {
            config,
            worker_id,
            recovery,
            snapshotter,
            meta,
            content,
            state,
            images: Mutex::new(images),
            pins: Mutex::new(pins),
            flights: Flights::default(),
            makers: Makers::default(),
            space,
            released: Notify::new(),
            tidy,
            _lock: lock,
        });
        ceiling::watch(&store)?;
        Ok(store)
    }

    /// The state folder.
    pub fn root(&self) -> &Path {
        &self.config.root
    }

    /// Policies of [`Store::collect`].
    pub fn policies(&self) -> &[GcPolicy] {
        &self.config.policies
    }

    /// Random id of this store, the same over restarts.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// What opening had to put right.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The snapshot driver.
    pub fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        &self.snapshotter
    }

    /// Blobs by digest.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Named images.
    pub fn images(&self) -> Images<'_> {
        Images { store: self }
    }

    /// The table called `name`, made when first written.
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.meta.clone(), name)
    }

    /// Keeps `blobs` (and what they speak of) until [`unpin`](Self::unpin), over restarts. For
    /// history and others that name blobs in tables. Replaces earlier pins of the same owner.
    pub fn pin(&self, owner: &str, blobs: &[Digest]) {
        let blobs = blobs.to_vec();
        self.table(PINS).put_json(owner, &blobs);
        self.pins.lock().unwrap().insert(owner.to_owned(), blobs);
    }

    /// Takes back the pins of `owner`.
    pub fn unpin(&self, owner: &str) {
        if self.pins.lock().unwrap().remove(owner).is_some() {
            self.table(PINS).remove(owner);
        }
    }

    /// Waits until everything done so far outlives the daemon.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.meta.flush().await
    }

    /// [`flush`](Self::flush) for threads outside the runtime.
    pub fn flush_blocking(&self) -> Result<(), StoreError> {
        self.meta.flush_blocking()
    }

    /// Waits until deletions and measurements under way are done.
    pub async fn settle(self: &Arc<Self>) {
        let store = self.clone();
        _ = crate::record::blocking("settle", move || {
            store.wait_removed();
            Ok(())
        })
        .await;
    }

    /// Waits until everything done so far is on disk. The last handle to go closes the files.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.meta.sync().await
    }

    /// Stops as if killed or without power: nothing more is written down. For tests of recovery.
    #[doc(hidden)]
    pub fn crash(&self, how: crate::Crash) {
        self.meta.crash(how);
    }

    /// The committed record called `id`, if it exists. Views of mutable records that are being
    /// written do not count. It may be lazy: see [`Ref::needs_provider`].
    pub fn get(self: &Arc<Self>, id: &RecordId) -> Option<Ref> {
        let mut state = self.state();
        self.attach_committed(&mut state, id)
    }

    fn attach_committed(self: &Arc<Self>, state: &mut State, id: &RecordId) -> Option<Ref> {
        let keeper = state.keeper(id)?;
        let record = &state.records[&keeper];
        // A mutable record is had through its view, and only while nobody writes.
        let committed = !record.writer && (keeper != *id || !record.row.mutable);
        if committed { Ref::attach(self, state, id) } else { None }
    }

    /// Whether a committed record called `id` exists.
    pub fn contains(&self, id: &RecordId) -> bool {
        let state = self.state();
        let Some(keeper) = state.keeper(id) else { return false };
        let record = &state.records[&keeper];
        !record.writer && (keeper != *id || !record.row.mutable)
    }

    /// Records (mutable and committed) that have this index key, last used first.
    pub fn find(&self, index_key: &str) -> Vec<RecordId> {
        self.state().find(index_key)
    }

    /// The committed record found by an index key, last used first.
    pub fn find_committed(self: &Arc<Self>, index_key: &str) -> Option<Ref> {
        let mut state = self.state();
        let found = state.find(index_key);
        found.iter().find_map(|id| self.attach_committed(&mut state, id))
    }

    /// The view of the mutable record `id`, if it has one that is up to date; it can be shared
    /// while others hold it.
    pub fn view_of(self: &Arc<Self>, id: &RecordId) -> Option<Ref> {
        let mut state = self.state();
        let view = state.records.get(id)?.row.view.clone()?;
        self.attach_committed(&mut state, &view)
    }

    /// Waits until some mutable record is let go (or a short while); for callers that found all
    /// matching records in use.
    pub async fn wait_released(&self) {
        _ = tokio::time::timeout(LOOK_AGAIN, self.released.notified()).await;
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn image_map(&self) -> &ImageMap {
        &self.images
    }

    pub(crate) fn pinned(&self) -> Vec<Digest> {
        self.pins.lock().unwrap().values().flatten().copied().collect()
    }

    pub(crate) fn flights(&self) -> &Flights {
        &self.flights
    }

    pub(crate) fn makers(&self) -> &Makers {
        &self.makers
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn released(&self) -> &Notify {
        &self.released
    }

    pub(crate) fn tidy(&self) -> &Tidy {
        &self.tidy
    }

    /// Makes and stores a worker id if there is none yet.
    pub(crate) fn worker_id_of(meta: &Meta) -> Result<String, StoreError> {
        if let Some(id) = meta.get(T::Info, b"worker-id")?
            && let Ok(id) = String::from_utf8(id.to_vec())
        {
            return Ok(id);
        }
        let id = base::id::random_id();
        meta.set(T::Info, "worker-id", Some(id.clone().into()));
        Ok(id)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.tidy.stop();
        // Tables may outlive the store; what they write from here on is not kept.
        self.meta.close();
    }
}

/// One open folder for each file system the state folder spreads over.
fn disks(root: &Path) -> Result<Vec<std::fs::File>, StoreError> {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = Vec::new();
    let mut disks = Vec::new();
    for folder in [root.to_owned(), root.join("content"), root.join("snapshots")] {
        let file = std::fs::File::open(&folder).doing(|| format!("open {}", folder.display()))?;
        let device = file.metadata().doing(|| format!("look at {}", folder.display()))?.dev();
        if !seen.contains(&device) {
            seen.push(device);
            disks.push(file);
        }
    }
    Ok(disks)
}
