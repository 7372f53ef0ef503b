//! All records and layers in memory: the one owner of that state.
//!
//! Every change happens here, under one short lock that is never held during IO, and is queued for
//! the database in the same breath. The rules of life and death are two: a record stays while it
//! is held, written to, or a parent; a layer stays while a record calls it its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Weak,
};

use base::Digest;
use snapshot::LayerId;

use crate::{
    RecordId,
    meta::{Meta, T},
    model::{LayerRow, RecordRow, Shape, now},
    record::Handle,
};

/// A record and who has to do with it right now.
pub(crate) struct Record {
    pub row: RecordRow,
    /// Live handles; for a mutable record those of its view.
    pub holds: usize,
    /// A handle to share.
    pub handle: Weak<Handle>,
    /// Records that name this one as parent.
    pub children: usize,
    /// A [`crate::MutRef`] exists.
    pub writer: bool,
    /// The room in which the writer works.
    pub room: Option<u64>,
    /// Mutable: goes back to the store when the writer lets go.
    pub retain: bool,
    /// Goes as soon as it is idle.
    pub discard: bool,
}

impl Record {
    pub(crate) fn new(row: RecordRow) -> Self {
        let handle = Weak::new();
        Self {
            row,
            holds: 0,
            handle,
            children: 0,
            writer: false,
            room: None,
            retain: true,
            discard: false,
        }
    }

    /// Nobody holds, writes or builds on it.
    pub(crate) fn idle(&self) -> bool {
        self.holds == 0 && !self.writer && self.children == 0
    }

    /// Whether somebody works with it.
    pub(crate) fn in_use(&self) -> bool {
        self.holds > 0 || self.writer
    }

    /// The layers below its own.
    pub(crate) fn lowers(&self) -> &[LayerId] {
        match (&self.row.own, self.row.layers.split_last()) {
            (Some(own), Some((last, below))) if last == own => below,
            _ => &[],
        }
    }

    /// Mutable records that will not outlive their writer are not written down.
    fn stored(&self) -> bool {
        !self.row.mutable || self.retain
    }
}

/// A layer and the records that call it their own, oldest first.
pub(crate) struct Layer {
    pub row: LayerRow,
    owners: Vec<RecordId>,
}

impl Layer {
    /// One that nobody owns yet.
    pub(crate) fn new(row: LayerRow) -> Self {
        Self { row, owners: Vec::new() }
    }
}

/// Records, layers, and the ways to find them.
#[derive(Default)]
pub(crate) struct State {
    // Boxed: the table has room for twice as many as there are.
    pub records: HashMap<RecordId, Box<Record>>,
    pub layers: HashMap<LayerId, Layer>,
    /// Committed views of mutable records.
    pub views: HashMap<RecordId, RecordId>,
    by_key: HashMap<String, Vec<RecordId>>,
    by_blob_chain: HashMap<Digest, RecordId>,
    by_chain: HashMap<Digest, Vec<RecordId>>,
}

impl State {
    /// Adds a record that is complete: its parents exist and its layer is known.
    pub(crate) fn insert(&mut self, id: RecordId, record: Record) {
        for parent in record.row.needs() {
            if let Some(parent) = self.records.get_mut(parent) {
                parent.children += 1;
            }
        }
        for key in &record.row.index_keys {
            push_one(self.by_key.entry(key.clone()).or_default(), &id);
        }
        if let Some(view) = &record.row.view {
            self.views.insert(view.clone(), id.clone());
        }
        if let Some(own) = &record.row.own {
            let layer = self.layers.entry(own.clone());
            let layer = layer.or_insert_with(|| Layer::new(LayerRow::default()));
            push_one(&mut layer.owners, &id);
        }
        self.index_chains(&id, &record.row);
        self.records.insert(id, Box::new(record));
    }

    /// Counts children anew, for records that were inserted in no particular order.
    pub(crate) fn recount(&mut self) {
        let parents: Vec<RecordId> =
            self.records.values().flat_map(|record| record.row.needs().cloned()).collect();
        self.records.values_mut().for_each(|record| record.children = 0);
        for parent in parents {
            if let Some(parent) = self.records.get_mut(&parent) {
                parent.children += 1;
            }
        }
    }

    fn index_chains(&mut self, id: &RecordId, row: &RecordRow) {
        if let Some(chain) = row.blob_chain {
            self.by_blob_chain.entry(chain).or_insert_with(|| id.clone());
        }
        if let Some(chain) = row.chain {
            let found = self.by_chain.entry(chain).or_default();
            if !found.contains(id) {
                push_one(found, id);
            }
        }
    }

    /// Takes a record out of everything. Returns it, and its layer if nobody else has it.
    pub(crate) fn take_out(&mut self, id: &RecordId) -> Option<(Record, Option<LayerId>)> {
        let record = *self.records.remove(id)?;
        for parent in record.row.needs() {
            if let Some(parent) = self.records.get_mut(parent) {
                parent.children -= 1;
            }
        }
        for key in &record.row.index_keys {
            remove_from(&mut self.by_key, key, id);
        }
        if let Some(view) = &record.row.view {
            self.views.remove(view);
        }
        if let Some(chain) = record.row.blob_chain
            && self.by_blob_chain.get(&chain) == Some(id)
        {
            self.by_blob_chain.remove(&chain);
        }
        if let Some(chain) = &record.row.chain {
            remove_from(&mut self.by_chain, chain, id);
        }
        let mut orphan = None;
        if let Some(own) = &record.row.own
            && let Some(layer) = self.layers.get_mut(own)
        {
            layer.owners.retain(|owner| owner != id);
            if layer.owners.is_empty() {
                self.layers.remove(own);
                orphan = Some(own.clone());
            }
        }
        Some((record, orphan))
    }

    /// Removes idle records starting with `id`, and parents that were only waiting for it.
    /// Returns the layers to be deleted.
    pub(crate) fn remove_idle(&mut self, id: &RecordId, meta: &Meta) -> Vec<LayerId> {
        let mut layers = Vec::new();
        let mut queue = VecDeque::from([id.clone()]);
        while let Some(id) = queue.pop_front() {
            if !self.records.get(&id).is_some_and(|record| record.idle()) {
                continue;
            }
            let (record, orphan) = self.take_out(&id).expect("it was there a moment ago");
            let mut changes = vec![
                (T::Records, id.as_str().into(), None),
                (T::Indexes, id.as_str().into(), None),
            ];
            if let Some(layer) = &orphan {
                changes.push((T::Layers, layer.as_str().into(), None));
                changes.push((T::Indexes, layer.as_str().into(), None));
            }
            meta.set_all(changes);
            layers.extend(orphan);
            let waiting =
                |parent: &&RecordId| self.records.get(*parent).is_some_and(|it| it.discard);
            queue.extend(record.row.needs().filter(waiting).cloned());
        }
        layers
    }

    /// Queues a record's row for the database.
    pub(crate) fn save(&self, id: &RecordId, meta: &Meta) {
        if let Some(record) = self.records.get(id)
            && record.stored()
        {
            meta.set(T::Records, id.as_str(), Some(json(&record.row)));
        }
    }

    /// Queues a layer's row for the database, if a stored record owns it.
    pub(crate) fn save_layer(&self, id: &LayerId, meta: &Meta) {
        let Some(layer) = self.layers.get(id) else { return };
        let mut owners = layer.owners.iter().filter_map(|owner| self.records.get(owner));
        if owners.any(|owner| owner.stored()) {
            meta.set(T::Layers, id.as_str(), Some(json(&layer.row)));
        }
    }

    /// Queues a record together with its own layer.
    pub(crate) fn save_both(&self, id: &RecordId, meta: &Meta) {
        self.save(id, meta);
        if let Some(own) = self.records.get(id).and_then(|record| record.row.own.clone()) {
            self.save_layer(&own, meta);
        }
    }

    /// Changes a record's row and queues it.
    pub(crate) fn edit(&mut self, id: &RecordId, meta: &Meta, change: impl FnOnce(&mut RecordRow)) {
        let Some(record) = self.records.get_mut(id) else { return };
        let before = record.row.clone();
        change(&mut record.row);
        if record.row == before {
            return;
        }
        let after = record.row.clone();
        for key in before.index_keys.iter().filter(|key| !after.index_keys.contains(key)) {
            remove_from(&mut self.by_key, key, id);
        }
        for key in after.index_keys.iter().filter(|key| !before.index_keys.contains(key)) {
            push_one(self.by_key.entry(key.clone()).or_default(), id);
        }
        if before.view != after.view {
            if let Some(view) = &before.view {
                self.views.remove(view);
            }
            if let Some(view) = &after.view {
                self.views.insert(view.clone(), id.clone());
            }
        }
        self.index_chains(id, &after);
        self.save(id, meta);
    }

    /// The record that keeps the data of `id`: itself, or the mutable record it is a view of.
    pub(crate) fn keeper(&self, id: &RecordId) -> Option<RecordId> {
        if self.records.contains_key(id) {
            return Some(id.clone());
        }
        self.views.get(id).cloned()
    }

    /// The row that describes `id`, which may be a view.
    pub(crate) fn row(&self, id: &RecordId) -> Option<&RecordRow> {
        self.records.get(&self.keeper(id)?).map(|record| &record.row)
    }

    /// The records whose layers make up this one, lowest first: itself and those it was built on,
    /// and for a merge those of its members.
    pub(crate) fn layer_chain(&self, id: &RecordId) -> Vec<RecordId> {
        let mut chain = Vec::new();
        let mut left = vec![id.clone()];
        while let Some(id) = left.pop() {
            let Some(row) = self.row(&id) else { continue };
            if row.shape != Shape::Merge {
                chain.push(id);
            }
            match row.shape {
                // Taken from the end: what is met first lies highest.
                Shape::Merge => left.extend(row.parents.iter().cloned()),
                Shape::Layer => left.extend(row.parents.first().cloned()),
                Shape::Diff => {}
            }
        }
        chain.reverse();
        chain
    }

    /// Counts a use.
    pub(crate) fn used(&mut self, id: &RecordId, meta: &Meta) {
        self.edit(id, meta, |row| {
            row.last_used = Some(now());
            row.usage_count += 1;
        });
    }

    /// Records with an index key, last used first.
    pub(crate) fn find(&self, key: &str) -> Vec<RecordId> {
        let mut found = self.by_key.get(key).cloned().unwrap_or_default();
        let used = |id: &RecordId| {
            self.records.get(id).map(|record| record.row.last_used.unwrap_or(record.row.created))
        };
        found.sort_by_key(|id| std::cmp::Reverse(used(id)));
        found
    }

    /// The image layer with this chain of blobs.
    pub(crate) fn by_blob_chain(&self, chain: &Digest) -> Option<&RecordId> {
        self.by_blob_chain.get(chain)
    }

    /// A layer with this chain of diff ids that lies on just these layers; unpacked ones first.
    pub(crate) fn by_chain(&self, chain: &Digest, lowers: &[LayerId]) -> Option<LayerId> {
        let found = self.by_chain.get(chain).into_iter().flatten();
        let records = found.filter_map(|id| self.records.get(id));
        let fitting = records.filter(|record| !record.row.mutable && record.lowers() == lowers);
        let owns = fitting.filter_map(|record| record.row.own.clone());
        owns.min_by_key(|own| !self.layers.get(own).is_some_and(|layer| layer.row.here))
    }

    /// A record whose own layer this is.
    pub(crate) fn owner(&self, layer: &LayerId) -> Option<&RecordId> {
        self.layers.get(layer)?.owners.first()
    }

    /// Whether all these layers are unpacked.
    pub(crate) fn all_here(&self, layers: &[LayerId]) -> bool {
        layers.iter().all(|id| self.layers.get(id).is_some_and(|layer| layer.row.here))
    }

    /// Makes the view of the mutable record `mutable` a record of its own, which takes over the
    /// folder; the mutable record ends.
    pub(crate) fn finalize_view(&mut self, mutable: &RecordId, meta: &Meta) {
        let Some(view) = self.records.get(mutable).and_then(|it| it.row.view.clone()) else {
            return;
        };
        let children = self.records[mutable].children;
        let (mut record, _) = {
            // The layer must not become an orphan in between.
            let own = self.records[mutable].row.own.clone();
            let row = own.as_ref().and_then(|own| self.layers.get(own)).map(|it| it.row.clone());
            let taken = self.take_out(mutable).expect("it was there a moment ago");
            if let (Some(own), Some(row)) = (own, row) {
                self.layers.entry(own).or_insert_with(|| Layer::new(row));
            }
            taken
        };
        record.row.mutable = false;
        record.row.view = None;
        record.row.index_keys.clear();
        record.children = children;
        self.insert(view.clone(), record);
        meta.set(T::Records, mutable.as_str(), None);
        self.save_both(&view, meta);
    }
}

/// The JSON of a row.
pub(crate) fn json(row: &impl serde::Serialize) -> bytes::Bytes {
    serde_json::to_vec(row).expect("rows have a JSON form").into()
}

/// Nearly always the first and only one.
fn push_one(ids: &mut Vec<RecordId>, id: &RecordId) {
    if ids.is_empty() {
        ids.reserve_exact(1);
    }
    ids.push(id.clone());
}

fn remove_from<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, Vec<RecordId>>,
    key: &K,
    id: &RecordId,
) {
    if let Some(found) = map.get_mut(key) {
        found.retain(|other| other != id);
        if found.is_empty() {
            map.remove(key);
        }
    }
}
