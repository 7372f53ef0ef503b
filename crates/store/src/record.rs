//! Handles on records: [`Ref`] (immutable, shared) and [`MutRef`] (one writer).
//!
//! A record begins with [`Store::create`], is written through the tree of its [`MutRef`], and is
//! committed into a [`Ref`] of the same id. A retained mutable record (a cache mount, received
//! files) instead goes back to the store when its writer lets go, and may be shown for reading in
//! between ([`MutRef::into_view`]).
//!
//! A view and its mutable record share one folder and therefore exclude each other: the record
//! cannot be taken while the view is held. So a view costs nothing, whatever its size.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::SystemTime,
};

use base::Digest;
use snapshot::{LayerId, Tree, contenthash::Index};

use crate::{
    RecordId, RecordKind, Store, StoreError,
    layers::{Chore, distinct},
    meta::{Meta, T},
    model::{LayerRow, RecordRow, Shape, now},
    space,
    state::{Layer, Record, State},
    turns,
};

/// A record to be made.
#[derive(Debug, Clone, Default)]
pub struct NewRecord<'a> {
    /// What it is built on; `None` is an empty tree. Must be local.
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
    pub(crate) handle: Arc<Handle>,
}

/// What all clones of a [`Ref`] share.
pub(crate) struct Handle {
    pub store: Arc<Store>,
    pub id: RecordId,
    layers: Vec<LayerId>,
    tree: Mutex<Option<Tree>>,
    index: OnceLock<Arc<Mutex<Index>>>,
    index_key: String,
    unused: std::sync::atomic::AtomicBool,
    pub providers: Mutex<Vec<Arc<dyn oci::Provider>>>,
    /// Kept for their providers: a merge of lazy images is as lazy as they are.
    pub inputs: Mutex<Vec<Ref>>,
}

impl std::fmt::Debug for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ref({})", self.id())
    }
}

impl PartialEq for Ref {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Ref {}

impl Ref {
    /// Its id.
    pub fn id(&self) -> &RecordId {
        &self.handle.id
    }

    /// The store it lives in.
    pub fn store(&self) -> &Arc<Store> {
        &self.handle.store
    }

    /// The layers, bottom first (repetitions possible in merges).
    pub fn layers(&self) -> &[LayerId] {
        &self.handle.layers
    }

    /// For people, and for image histories.
    pub fn description(&self) -> String {
        self.row(|row| row.description.clone())
    }

    /// What it is for.
    pub fn kind(&self) -> RecordKind {
        self.row(|row| row.kind)
    }

    /// When it was made.
    pub fn created_at(&self) -> SystemTime {
        base::time::from_unix_nanos(self.row(|row| row.created))
    }

    /// Changes the description.
    pub fn set_description(&self, description: &str) {
        self.edit(|row| description.clone_into(&mut row.description));
    }

    /// Bytes of files that belong to this record alone (not to its parents, without blobs).
    pub fn size(&self) -> u64 {
        let state = self.handle.store.state();
        let own = state.row(self.id()).and_then(|row| row.own.as_ref());
        own.and_then(|own| state.layers.get(own)).map_or(0, |layer| layer.row.size)
    }

    /// Records it is made of.
    pub fn parents(&self) -> Vec<RecordId> {
        self.row(|row| row.parents.clone())
    }

    /// The chain id over the layers' diff ids, if it is known.
    pub fn chain_id(&self) -> Option<Digest> {
        self.row(|row| row.chain)
    }

    /// Whether all layers are unpacked here.
    pub fn is_local(&self) -> bool {
        self.handle.store.state().all_here(self.layers())
    }

    /// The files, read-only. One mount is shared by all who hold the record. All layers must be
    /// here ([`ensure_local`](Self::ensure_local)). Hold the `Ref` while the tree is used.
    pub fn tree(&self) -> Result<Tree, StoreError> {
        let mut tree = self.handle.tree.lock().unwrap();
        if let Some(tree) = &*tree {
            return Ok(tree.clone());
        }
        if !self.is_local() {
            return Err(StoreError::NotLocal(self.id().clone()));
        }
        let mounted = self.store().snapshotter().mount(&distinct(self.layers()), None)?;
        Ok(tree.insert(mounted).clone())
    }

    /// The content digests known of this record, shared by all who hold it; what is learnt is
    /// stored when the last one lets go.
    pub fn index(&self) -> Arc<Mutex<Index>> {
        let load = || load_index(self.store(), &self.handle.index_key);
        self.handle.index.get_or_init(load).clone()
    }

    /// The content digests as they were last stored.
    pub(crate) fn stored_index(&self) -> Index {
        let stored = self.store().meta().get(T::Indexes, self.handle.index_key.as_bytes());
        let stored = stored.ok().flatten();
        stored.and_then(|bytes| Index::from_bytes(&bytes).ok()).unwrap_or_default()
    }

    /// Letting go of this handle does not count as a use of the record.
    pub(crate) fn forget_use(&self) {
        self.handle.unused.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Free metadata under `key`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.row(|row| row.metadata.get(key).cloned())
    }

    /// Sets free metadata; `None` removes it.
    pub fn set_metadata(&self, key: &str, value: Option<String>) {
        self.edit(|row| set(&mut row.metadata, key, value));
    }

    /// Adds a key by which [`Store::find`] finds the record.
    pub fn add_index_key(&self, key: &str) {
        self.edit(|row| add(&mut row.index_keys, key));
    }

    /// The record is not worth keeping: it goes as soon as nobody holds it or builds on it.
    /// Saving it as a cache result ([`keep`](Self::keep)) takes this back.
    pub fn discard_when_released(&self) {
        self.set_discard(true);
    }

    /// Keeps the record until garbage collection (the default).
    pub fn keep(&self) {
        self.set_discard(false);
    }

    fn set_discard(&self, discard: bool) {
        let mut state = self.handle.store.state();
        if let Some(record) = state.records.get_mut(self.id()) {
            record.discard = discard;
        }
    }

    /// Reads the row. It exists: holding the handle keeps the record.
    pub(crate) fn row<T>(&self, read: impl FnOnce(&RecordRow) -> T) -> T {
        let state = self.handle.store.state();
        read(state.row(self.id()).expect("a held record stays in the store"))
    }

    fn edit(&self, change: impl FnOnce(&mut RecordRow)) {
        let mut state = self.handle.store.state();
        if let Some(keeper) = state.keeper(self.id()) {
            state.edit(&keeper, self.handle.store.meta(), change);
        }
    }

    /// A handle on the record (or view) `id`, shared with others who hold it. The caller holds the
    /// lock; the handle may outlive it but must not be dropped under it.
    pub(crate) fn attach(store: &Arc<Store>, state: &mut State, id: &RecordId) -> Option<Self> {
        let keeper = state.keeper(id)?;
        let record = state.records.get_mut(&keeper)?;
        if let Some(handle) = record.handle.upgrade() {
            return Some(Self { handle });
        }
        let handle = Arc::new(Handle {
            store: store.clone(),
            id: id.clone(),
            layers: record.row.layers.clone(),
            tree: Mutex::default(),
            index: OnceLock::new(),
            index_key: index_key(&keeper, &record.row),
            unused: false.into(),
            providers: Mutex::default(),
            inputs: Mutex::default(),
        });
        record.holds += 1;
        record.handle = Arc::downgrade(&handle);
        Some(Self { handle })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.tree.get_mut().unwrap().take());
        let learnt = self.index.get().and_then(|index| {
            let mut index = index.lock().unwrap();
            index.is_dirty().then(|| index.to_bytes())
        });
        let mutable = {
            let mut state = self.store.state();
            let Some(keeper) = state.keeper(&self.id) else { return };
            if let Some(bytes) = learnt {
                self.store.meta().set(T::Indexes, &*self.index_key, Some(bytes.into()));
            }
            let record = state.records.get_mut(&keeper).expect("the keeper was just found");
            record.holds -= 1;
            // A dead weak pointer would keep its allocation.
            if record.handle.strong_count() == 0 {
                record.handle = Weak::new();
            }
            let (discard, mutable) = (record.discard && record.idle(), record.row.mutable);
            if discard {
                let layers = state.remove_idle(&keeper, self.store.meta());
                // Before others can find neither the record nor its removal.
                self.store.tidy().add(Chore::Remove(layers));
            } else if !*self.unused.get_mut() {
                state.used(&keeper, self.store.meta());
            }
            mutable
        };
        if mutable {
            self.store.released().notify_waiters();
        }
    }
}

/// A record being written. Dropping it removes it, unless it was made with `retain`: then it goes
/// back to the store as it is, for [`Store::take_mutable`].
pub struct MutRef {
    store: Arc<Store>,
    id: RecordId,
    layer: LayerId,
    lowers: Vec<LayerId>,
    tree: Mutex<Option<Tree>>,
    index: OnceLock<Arc<Mutex<Index>>>,
    index_key: String,
    ending: Ending,
}

/// What becomes of the record when the writer goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Release,
    Remove,
    /// It became something else already.
    Nothing,
}

impl std::fmt::Debug for MutRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MutRef({})", self.id)
    }
}

impl Store {
    /// Makes a record to be written to.
    pub fn create(self: &Arc<Self>, record: NewRecord<'_>) -> Result<MutRef, StoreError> {
        let below = match record.parent {
            None => Vec::new(),
            Some(parent) if parent.is_local() => parent.layers().to_vec(),
            Some(parent) => return Err(StoreError::NotLocal(parent.id().clone())),
        };
        let (id, layer, lowers) = (RecordId::random(), LayerId::random(), distinct(&below));
        self.snapshotter().create(&layer, &lowers)?;
        let row = RecordRow {
            description: record.description,
            kind: record.kind,
            created: now(),
            mutable: true,
            parents: record.parent.map(|parent| parent.id().clone()).into_iter().collect(),
            layers: below.into_iter().chain([layer.clone()]).collect(),
            own: Some(layer.clone()),
            index_keys: record.index_keys,
            metadata: record.metadata,
            ..RecordRow::default()
        };
        let index_key = index_key(&id, &row);
        let mut state = self.state();
        if let Some(parent) = record.parent {
            state.settle_parent(parent.id(), self.meta());
        }
        let layer_row = LayerRow { here: true, writing: true, ..LayerRow::default() };
        state.layers.insert(layer.clone(), Layer::new(layer_row));
        state.insert(
            id.clone(),
            Record {
                writer: true,
                room: space::current(),
                retain: record.retain,
                ..Record::new(row)
            },
        );
        state.save_both(&id, self.meta());
        drop(state);
        Ok(MutRef {
            store: self.clone(),
            id,
            layer,
            lowers,
            tree: Mutex::default(),
            index: OnceLock::new(),
            index_key,
            ending: if record.retain { Ending::Release } else { Ending::Remove },
        })
    }

    /// Takes a retained mutable record for writing; an error if it has a writer or its view is
    /// held.
    pub fn take_mutable(self: &Arc<Self>, id: &RecordId) -> Result<MutRef, StoreError> {
        let index_key;
        let (layer, lowers, turn) = {
            let mut state = self.state();
            let record = state.records.get_mut(id).filter(|record| record.row.mutable);
            let record = record.ok_or_else(|| StoreError::NoRecord(id.clone()))?;
            if record.in_use() {
                return Err(StoreError::InUse(id.clone()));
            }
            record.writer = true;
            record.room = space::current();
            index_key = self::index_key(id, &record.row);
            let layer = record.row.own.clone().expect("a mutable record has a layer of its own");
            let lowers = distinct(record.lowers());
            let mut turn = 1;
            if let Some(known) = state.layers.get_mut(&layer) {
                known.row.writing = true;
                known.row.turn += 1;
                turn = known.row.turn;
            }
            state.save_layer(&layer, self.meta());
            (layer, lowers, turn)
        };
        if let Err(error) = turns::advance(&**self.snapshotter(), &layer, turn) {
            if let Some(record) = self.state().records.get_mut(id) {
                record.writer = false;
            }
            return Err(StoreError::io(format!("begin to write to record {id}"), error));
        }
        Ok(MutRef {
            store: self.clone(),
            id: id.clone(),
            layer,
            lowers,
            tree: Mutex::default(),
            index: OnceLock::new(),
            index_key,
            ending: Ending::Release,
        })
    }
}

impl MutRef {
    /// Its id.
    pub fn id(&self) -> &RecordId {
        &self.id
    }

    /// The store it lives in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// It is written in the room that the caller works in from now on.
    pub fn enter_room(&self) {
        if let Some(record) = self.store.state().records.get_mut(&self.id) {
            record.room = space::current();
        }
    }

    /// The files, writable; one mount, shared by all calls. All clones must be dropped before
    /// [`commit`](Self::commit).
    pub fn tree(&self) -> Result<Tree, StoreError> {
        let mut tree = self.tree.lock().unwrap();
        if let Some(tree) = &*tree {
            return Ok(tree.clone());
        }
        let mounted = self.store.snapshotter().mount(&self.lowers, Some(&self.layer))?;
        Ok(tree.insert(mounted).clone())
    }

    /// The record this one was made on.
    pub fn parent(&self) -> Option<Ref> {
        let parent = self.row(|row| row.parents.first().cloned())?;
        self.store.get(&parent)
    }

    /// Content digests of the files, to be filled while they are written; passes to the
    /// committed record or view. Empty when nothing trustworthy is known.
    pub fn index(&self) -> Arc<Mutex<Index>> {
        self.index.get_or_init(|| load_index(&self.store, &self.index_key)).clone()
    }

    /// Free metadata under `key`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.row(|row| row.metadata.get(key).cloned())
    }

    /// Sets free metadata; `None` removes it.
    pub fn set_metadata(&self, key: &str, value: Option<String>) {
        self.edit(|row| set(&mut row.metadata, key, value));
    }

    /// Adds a key by which [`Store::find`] finds the record.
    pub fn add_index_key(&self, key: &str) {
        self.edit(|row| add(&mut row.index_keys, key));
    }

    /// Changes the description.
    pub fn set_description(&self, description: &str) {
        self.edit(|row| description.clone_into(&mut row.description));
    }

    /// Freezes the files and makes the record immutable, under the same id.
    pub async fn commit(self) -> Result<Ref, StoreError> {
        blocking("commit a record", move || self.commit_blocking()).await
    }

    /// [`commit`](Self::commit) for threads outside the runtime.
    pub fn commit_blocking(mut self) -> Result<Ref, StoreError> {
        let usage = self.freeze(true)?;
        let committed = {
            let mut state = self.store.state();
            let record = state.records.get_mut(&self.id).expect("its writer keeps the record");
            record.writer = false;
            record.retain = true;
            record.row.mutable = false;
            if let Some(view) = record.row.view.take() {
                state.views.remove(&view);
            }
            state.written(&self.layer, usage, true, self.store.meta());
            state.save_both(&self.id, self.store.meta());
            Ref::attach(&self.store, &mut state, &self.id)
        };
        self.hand_over(committed, true)
    }

    /// Ends the writing and shows the files as an immutable record for this build, while the
    /// mutable record stays for the next one. Both share one folder: the mutable record can be
    /// taken again when nobody holds the view. With `changed: false` the view of last time (and
    /// its content digests) is used again, and nothing is measured. A view that something is
    /// built on takes the folder over and the mutable record ends. Not retained: a commit.
    pub async fn into_view(self, changed: bool) -> Result<Ref, StoreError> {
        blocking("show a record", move || self.into_view_blocking(changed)).await
    }

    /// [`into_view`](Self::into_view) for threads outside the runtime.
    pub fn into_view_blocking(mut self, changed: bool) -> Result<Ref, StoreError> {
        if self.ending != Ending::Release {
            return self.commit_blocking();
        }
        let measured = {
            let state = self.store.state();
            state.layers.get(&self.layer).is_some_and(|layer| layer.row.size > 0)
        };
        let usage = self.freeze(changed || !measured)?;
        let view = {
            let mut state = self.store.state();
            let record = state.records.get_mut(&self.id).expect("its writer keeps the record");
            record.writer = false;
            let known = record.row.view.clone().filter(|_| !changed);
            let view = known.unwrap_or_else(RecordId::random);
            state.written(&self.layer, usage, changed, self.store.meta());
            let shown = view.clone();
            state.edit(&self.id, self.store.meta(), |row| {
                if changed {
                    (row.chain, row.blob_chain, row.blob) = (None, None, None);
                }
                row.view = Some(shown);
            });
            state.save_both(&self.id, self.store.meta());
            Ref::attach(&self.store, &mut state, &view)
        };
        self.hand_over(view, changed)
    }

    /// Removes the record, `retain` or not.
    pub fn discard(mut self) {
        self.ending = Ending::Remove;
    }

    /// Ends writing and measures.
    fn freeze(&self, measure: bool) -> Result<Option<u64>, StoreError> {
        drop(self.tree.lock().unwrap().take());
        self.store.snapshotter().freeze(&self.layer)?;
        if !measure {
            return Ok(None);
        }
        Ok(Some(self.store.snapshotter().usage(&self.layer)?.bytes))
    }

    fn hand_over(&mut self, made: Option<Ref>, changed: bool) -> Result<Ref, StoreError> {
        self.ending = Ending::Nothing;
        let made = made.expect("a record just committed can be held");
        if let Some(index) = self.index.take() {
            // Files were written and the index was not told: it describes what was there before.
            let stale = changed && !index.lock().unwrap().is_dirty();
            let index = if stale { Arc::default() } else { index };
            _ = made.handle.index.set(index);
        }
        Ok(made)
    }

    fn row<T>(&self, read: impl FnOnce(&RecordRow) -> T) -> T {
        let state = self.store.state();
        read(&state.records.get(&self.id).expect("its writer keeps the record").row)
    }

    fn edit(&self, change: impl FnOnce(&mut RecordRow)) {
        self.store.state().edit(&self.id, self.store.meta(), change);
    }
}

impl Drop for MutRef {
    fn drop(&mut self) {
        drop(self.tree.get_mut().unwrap().take());
        match self.ending {
            Ending::Nothing => return,
            Ending::Release => self.release(),
            Ending::Remove => {
                let mut state = self.store.state();
                if let Some(record) = state.records.get_mut(&self.id) {
                    record.writer = false;
                }
                let layers = state.remove_idle(&self.id, self.store.meta());
                self.store.tidy().add(Chore::Remove(layers));
            }
        }
        self.store.released().notify_waiters();
    }
}

impl MutRef {
    /// Gives a retained record back. Nobody said what changed, so its view of last time is void.
    fn release(&self) {
        // What mounting left beside the files must not be measured with them.
        if let Err(error) = self.store.snapshotter().freeze(&self.layer) {
            tracing::debug!("freeze layer {}: {error}", self.layer);
        }
        let mut state = self.store.state();
        if let Some(record) = state.records.get_mut(&self.id) {
            record.writer = false;
        }
        state.edit(&self.id, self.store.meta(), |row| {
            (row.chain, row.blob_chain, row.blob) = (None, None, None);
            row.view = None;
        });
        state.written(&self.layer, None, true, self.store.meta());
        state.used(&self.id, self.store.meta());
        state.save_layer(&self.layer, self.store.meta());
        drop(state);
        self.store.tidy().add(Chore::Measure(self.layer.clone()));
    }
}

impl State {
    /// Before something is built on `parent`: a view becomes a record of its own.
    pub(crate) fn settle_parent(&mut self, parent: &RecordId, meta: &Meta) {
        if let Some(mutable) = self.views.get(parent).cloned() {
            self.finalize_view(&mutable, meta);
        }
    }

    /// A writer ended. What was made or known of the former content is void if it changed.
    fn written(&mut self, id: &LayerId, usage: Option<u64>, changed: bool, meta: &Meta) {
        let Some(layer) = self.layers.get_mut(id) else { return };
        // A size that is not known yet has to be measured, after a crash too.
        layer.row.writing = changed && usage.is_none();
        if let Some(bytes) = usage {
            layer.row.size = bytes;
        }
        if changed {
            layer.row.diff_id = None;
            layer.row.opaque = None;
            layer.row.blobs.clear();
            meta.set(T::Indexes, id.as_str(), None);
        }
    }
}

/// Records that share a layer share what is known of its content; others have their own.
pub(crate) fn index_key(id: &RecordId, row: &RecordRow) -> String {
    match (&row.shape, &row.own) {
        (Shape::Layer, Some(own)) => own.to_string(),
        _ => id.to_string(),
    }
}

fn load_index(store: &Store, key: &str) -> Arc<Mutex<Index>> {
    let stored = store.meta().get(T::Indexes, key.as_bytes());
    let index = match stored {
        Ok(Some(bytes)) => Index::from_bytes(&bytes).unwrap_or_else(|error| {
            tracing::warn!("content index of {key}: {error}");
            Index::new()
        }),
        Ok(None) => Index::new(),
        Err(error) => {
            tracing::warn!("content index of {key}: {error}");
            Index::new()
        }
    };
    Arc::new(Mutex::new(index))
}

fn set(map: &mut BTreeMap<String, String>, key: &str, value: Option<String>) {
    match value {
        Some(value) => _ = map.insert(key.to_owned(), value),
        None => _ = map.remove(key),
    }
}

fn add(list: &mut Vec<String>, item: &str) {
    if !list.iter().any(|known| known == item) {
        list.push(item.to_owned());
    }
}

/// Runs blocking work on the runtime's threads for it.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Interrupted(what.into())),
    }
}
