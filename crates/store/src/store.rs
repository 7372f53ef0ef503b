//! The store itself: opening, closing, and finding what is in it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use snapshot::Snapshotter;

use crate::{
    Content, GcPolicy, Images, MutRef, NewRecord, RecordId, Recovery, Ref, StoreError, Table,
    images::ImageMap, meta::Meta,
};

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

/// Bytes on disk that belong to no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overhead {
    /// The metadata database, lock and empty folders.
    pub meta: u64,
    /// Blobs of named images, pins and history that no record owns.
    pub blobs: u64,
    /// Blobs being written.
    pub in_flight: u64,
}

/// One state folder, open.
pub struct Store {
    _todo: (),
}

impl Store {
    /// Opens the state folder: takes its lock, reads the metadata, removes what nobody names and
    /// drops records whose data is missing (see [`Store::recovery`]).
    pub fn open(config: Config) -> Result<Arc<Store>, StoreError> {
        _ = config;
        unreachable!("not built yet")
    }
    /// The state folder.
    pub fn root(&self) -> &Path {
        unreachable!("not built yet")
    }
    /// Random id of this store, the same over restarts.
    pub fn worker_id(&self) -> &str {
        unreachable!("not built yet")
    }
    /// What opening had to put right.
    pub fn recovery(&self) -> &Recovery {
        unreachable!("not built yet")
    }
    /// The snapshot driver.
    pub fn snapshotter(&self) -> &Arc<dyn Snapshotter> {
        unreachable!("not built yet")
    }
    /// Blobs by digest.
    pub fn content(&self) -> &Content {
        unreachable!("not built yet")
    }
    /// Named images.
    pub fn images(&self) -> Images<'_> {
        Images { store: self }
    }
    /// The table called `name`, made when first written.
    pub fn table(&self, name: &str) -> Table {
        _ = name;
        unreachable!("not built yet")
    }
    /// Keeps `blobs` (and what they speak of) until [`unpin`](Self::unpin), over restarts. For
    /// history and others that name blobs in tables. Replaces earlier pins of the same owner.
    pub fn pin(&self, owner: &str, blobs: &[base::Digest]) {
        _ = (owner, blobs);
        unreachable!("not built yet")
    }
    /// Takes back the pins of `owner`.
    pub fn unpin(&self, owner: &str) {
        _ = owner;
        unreachable!("not built yet")
    }
    /// Waits until everything done so far is on disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        unreachable!("not built yet")
    }
    /// Writes everything down and stops writing. Handles still held become useless for writing.
    pub async fn close(&self) -> Result<(), StoreError> {
        unreachable!("not built yet")
    }
    /// Makes a record to be written to.
    pub fn create(self: &Arc<Self>, record: NewRecord<'_>) -> Result<MutRef, StoreError> {
        _ = record;
        unreachable!("not built yet")
    }
    /// The committed record called `id`, if it exists and its data can be had. Views of mutable
    /// records that are being written do not count.
    pub fn get(self: &Arc<Self>, id: &RecordId) -> Option<Ref> {
        _ = id;
        unreachable!("not built yet")
    }
    /// Whether a committed record called `id` exists.
    pub fn contains(&self, id: &RecordId) -> bool {
        _ = id;
        unreachable!("not built yet")
    }
    /// Records (mutable and committed) that have this index key, last used first.
    pub fn find(&self, index_key: &str) -> Vec<RecordId> {
        _ = index_key;
        unreachable!("not built yet")
    }
    /// Takes a retained mutable record for writing; an error if it has a writer or its view is
    /// held.
    pub fn take_mutable(self: &Arc<Self>, id: &RecordId) -> Result<MutRef, StoreError> {
        _ = id;
        unreachable!("not built yet")
    }
    /// The view of the mutable record `id`, if it has one that is up to date; it can be shared
    /// while others hold it.
    pub fn view_of(self: &Arc<Self>, id: &RecordId) -> Option<Ref> {
        _ = id;
        unreachable!("not built yet")
    }
    /// Waits until some mutable record is let go (or a short while); for callers that found all
    /// matching records in use.
    pub async fn wait_released(&self) {
        unreachable!("not built yet")
    }
    pub(crate) fn meta(&self) -> &Meta {
        unreachable!("not built yet")
    }
    pub(crate) fn image_map(&self) -> &ImageMap {
        unreachable!("not built yet")
    }
}
