//! Handles on records: [`Ref`] (immutable, shared) and [`MutRef`] (one writer).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use base::Digest;
use snapshot::{LayerId, Tree, contenthash::Index};

use crate::{LayerProgress, RecordId, RecordKind, Store, StoreError};

/// A record to be made.
#[derive(Debug, Clone, Default)]
pub struct NewRecord<'a> {
    /// What it is built on; `None` is an empty tree.
    pub parent: Option<&'a Ref>,
    /// For people, and for image histories.
    pub description: String,
    /// What it is for.
    pub kind: RecordKind,
    /// Keep it as a mutable record when its writer lets go without committing (cache mounts,
    /// received files, git repositories). Otherwise it is removed then.
    pub retain: bool,
    /// Keys by which [`Store::find`] finds it.
    pub index_keys: Vec<String>,
    /// Free metadata.
    pub metadata: BTreeMap<String, String>,
}

/// An immutable record; its data stays while a clone of this is held. Dropping the last one
/// counts as a use of the record.
#[derive(Clone)]
pub struct Ref {
    _todo: (),
}

impl Ref {
    /// Its id.
    pub fn id(&self) -> &RecordId {
        unreachable!("not built yet")
    }
    /// The store it lives in.
    pub fn store(&self) -> &Arc<Store> {
        unreachable!("not built yet")
    }
    /// The layers, bottom first (repetitions possible in merges).
    pub fn layers(&self) -> &[LayerId] {
        unreachable!("not built yet")
    }
    /// For people, and for image histories.
    pub fn description(&self) -> String {
        unreachable!("not built yet")
    }
    /// What it is for.
    pub fn kind(&self) -> RecordKind {
        unreachable!("not built yet")
    }
    /// When it was made.
    pub fn created_at(&self) -> SystemTime {
        unreachable!("not built yet")
    }
    /// Bytes on disk that belong to this record alone (not to its parents).
    pub fn size(&self) -> u64 {
        unreachable!("not built yet")
    }
    /// Records it is made of.
    pub fn parents(&self) -> Vec<RecordId> {
        unreachable!("not built yet")
    }
    /// `chain id` over the layers' diff ids, if all of them are known.
    pub fn chain_id(&self) -> Option<Digest> {
        unreachable!("not built yet")
    }
    /// Whether all layers are unpacked here.
    pub fn is_local(&self) -> bool {
        unreachable!("not built yet")
    }
    /// Whether a layer is neither here nor fetchable; see [`attach_provider`](Self::attach_provider).
    pub fn needs_provider(&self) -> bool {
        unreachable!("not built yet")
    }
    /// Says where missing blobs of this record (parents included) can be fetched.
    pub fn attach_provider(&self, provider: Arc<dyn oci::Provider>) {
        _ = provider;
        unreachable!("not built yet")
    }
    /// Downloads and unpacks whatever layers are missing, in parallel; a layer once at a time
    /// however many ask. Returns at once when nothing is missing.
    pub async fn ensure_local(&self, progress: LayerProgress) -> Result<(), StoreError> {
        _ = progress;
        unreachable!("not built yet")
    }
    /// The files, read-only. One mount is shared by all who hold the record. All layers must be
    /// here ([`ensure_local`](Self::ensure_local)). Hold the `Ref` while the tree is used.
    pub fn tree(&self) -> Result<Tree, StoreError> {
        unreachable!("not built yet")
    }
    /// The content digests known of this record, shared by all who hold it; what is learnt is
    /// stored when the last one lets go.
    pub fn index(&self) -> Arc<Mutex<Index>> {
        unreachable!("not built yet")
    }
    /// Free metadata under `key`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        _ = key;
        unreachable!("not built yet")
    }
    /// Sets free metadata; `None` removes it.
    pub fn set_metadata(&self, key: &str, value: Option<String>) {
        _ = (key, value);
        unreachable!("not built yet")
    }
    /// Adds a key by which [`Store::find`] finds the record.
    pub fn add_index_key(&self, key: &str) {
        _ = key;
        unreachable!("not built yet")
    }
    /// The record is not worth keeping: it goes as soon as nobody holds it or builds on it.
    /// Saving it as a cache result ([`keep`](Self::keep)) takes this back.
    pub fn discard_when_released(&self) {
        unreachable!("not built yet")
    }
    /// Keeps the record until garbage collection (the default).
    pub fn keep(&self) {
        unreachable!("not built yet")
    }
}

/// A record being written. Dropping it removes it, unless it was made with `retain`: then it goes
/// back to the store as it is, for [`Store::take_mutable`].
pub struct MutRef {
    _todo: (),
}

impl MutRef {
    /// Its id.
    pub fn id(&self) -> &RecordId {
        unreachable!("not built yet")
    }
    /// The files, writable; one mount, shared by all calls. All clones must be dropped before
    /// [`commit`](Self::commit).
    pub fn tree(&self) -> Result<Tree, StoreError> {
        unreachable!("not built yet")
    }
    /// The record this one was made on.
    pub fn parent(&self) -> Option<&Ref> {
        unreachable!("not built yet")
    }
    /// Freezes the files and makes the record immutable, under the same id.
    pub async fn commit(self) -> Result<Ref, StoreError> {
        unreachable!("not built yet")
    }
    /// [`commit`](Self::commit) for threads outside the runtime.
    pub fn commit_blocking(self) -> Result<Ref, StoreError> {
        unreachable!("not built yet")
    }
    /// Ends the writing and shows the files as an immutable record for this build, while the
    /// mutable record stays for the next one. Both share one folder: the mutable record can be
    /// taken again when nobody holds the view. With `changed: false` the view of last time (and
    /// its content digests) is used again. A view that something is built on, or that is kept,
    /// takes the folder over and the mutable record ends.
    pub async fn into_view(self, changed: bool) -> Result<Ref, StoreError> {
        _ = changed;
        unreachable!("not built yet")
    }
    /// Removes the record, `retain` or not.
    pub fn discard(self) {
        unreachable!("not built yet")
    }
    /// Content digests of the files, to be filled while they are written; passes to the
    /// committed record or view.
    pub fn index(&self) -> Arc<Mutex<Index>> {
        unreachable!("not built yet")
    }
    /// Free metadata under `key`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        _ = key;
        unreachable!("not built yet")
    }
    /// Sets free metadata; `None` removes it.
    pub fn set_metadata(&self, key: &str, value: Option<String>) {
        _ = (key, value);
        unreachable!("not built yet")
    }
    /// Adds a key by which [`Store::find`] finds the record.
    pub fn add_index_key(&self, key: &str) {
        _ = key;
        unreachable!("not built yet")
    }
    /// Changes the description.
    pub fn set_description(&self, description: &str) {
        _ = description;
        unreachable!("not built yet")
    }
}

impl std::fmt::Debug for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ref({})", self.id())
    }
}
