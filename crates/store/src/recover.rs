//! What is read and put right when a store is opened.
//!
//! Bounded work: the rows are read, two folders are listed, nothing is hashed or walked. Folders
//! and blobs that no row names are removed; rows whose data is missing are dropped, and with them
//! the records built on them. Whole data behind every row is what the order of writing promises,
//! so presence is all that has to be checked; `verify` checks more.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use base::Digest;
use snapshot::{LayerId, Snapshotter};

use crate::{
    Image, RecordId, Store, StoreError,
    content::{folder, ingest},
    error::Doing as _,
    layers::Chore,
    meta::{Meta, T},
    model::{ContentRow, LayerRow, RecordRow},
    state::{Layer, Record, State},
    store::PINS,
    table::values_key,
    turns,
};

/// What start-up found and did after a daemon that did not end properly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Layers no record names; removed.
    pub layers: Vec<String>,
    /// Blobs not known; removed.
    pub blobs: Vec<Digest>,
    /// Records whose data is missing; dropped.
    pub records: Vec<RecordId>,
    /// Images whose manifest is missing; dropped.
    pub images: Vec<String>,
}

impl Recovery {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The state folder's content.
pub(crate) struct Found {
    pub worker_id: String,
    pub state: State,
    pub content: HashMap<Digest, ContentRow>,
    pub images: BTreeMap<String, Image>,
    pub pins: BTreeMap<String, Vec<Digest>>,
    pub recovery: Recovery,
    /// Layers whose size has to be measured again.
    pub measure: Vec<Chore>,
}

/// The rows of the large tables.
pub(crate) struct Rows {
    records: HashMap<RecordId, RecordRow>,
    layers: HashMap<LayerId, LayerRow>,
    content: HashMap<Digest, ContentRow>,
}

/// Reads the large tables, side by side.
pub(crate) fn read(meta: &Meta) -> Result<Rows, StoreError> {
    std::thread::scope(|scope| {
        let records = scope.spawn(|| rows(meta, T::Records, |id| Some(RecordId::from(text(id)?))));
        let layers = rows(meta, T::Layers, |id| LayerId::new(text(id)?).ok())?;
        let content = rows(meta, T::Content, |raw| Some(Digest::from_raw(raw.try_into().ok()?)))?;
        let records = records.join().expect("reading rows does not panic")?;
        Ok(Rows { records, layers, content })
    })
}

fn text(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()
}

/// Compares what was read with what is there, and puts it right.
pub(crate) fn load(
    root: &Path,
    meta: &Meta,
    rows: Rows,
    snapshotter: &dyn Snapshotter,
) -> Result<Found, StoreError> {
    let mut recovery = Recovery::default();
    let worker_id = Store::worker_id_of(meta)?;
    let content = load_content(root, rows.content, meta, &mut recovery)?;
    let (state, measure) =
        load_records(rows.records, rows.layers, meta, snapshotter, &mut recovery)?;
    let images = load_images(meta, &content, &mut recovery)?;
    let pins = meta.scan(T::Values, &values_key(PINS, b""))?;
    let skip = values_key(PINS, b"").len();
    let pins = pins.into_iter().filter_map(|(key, value)| {
        let owner = String::from_utf8(key[skip..].to_vec()).ok()?;
        Some((owner, serde_json::from_slice(&value).ok()?))
    });
    let pins = pins.collect();
    if !recovery.is_empty() {
        tracing::warn!(
            "recovered: {} layers and {} blobs without owner removed, {} records and {} images \
             without data dropped",
            recovery.layers.len(),
            recovery.blobs.len(),
            recovery.records.len(),
            recovery.images.len(),
        );
    }
    Ok(Found { worker_id, state, content, images, pins, recovery, measure })
}

fn load_content(
    root: &Path,
    mut rows: HashMap<Digest, ContentRow>,
    meta: &Meta,
    recovery: &mut Recovery,
) -> Result<HashMap<Digest, ContentRow>, StoreError> {
    let mut present = HashSet::new();
    for name in names(&folder(root))? {
        match format!("sha256:{name}").parse::<Digest>() {
            Ok(digest) if rows.contains_key(&digest) => _ = present.insert(digest),
            parsed => {
                recovery.blobs.extend(parsed);
                remove(&folder(root).join(name));
            }
        }
    }
    for name in names(&ingest(root))? {
        remove(&ingest(root).join(name));
    }
    rows.retain(|digest, _| {
        let keep = present.contains(digest);
        if !keep {
            recovery.blobs.push(*digest);
            meta.set(T::Content, digest.raw().to_vec(), None);
        }
        keep
    });
    Ok(rows)
}

fn load_records(
    mut records: HashMap<RecordId, RecordRow>,
    mut layers: HashMap<LayerId, LayerRow>,
    meta: &Meta,
    snapshotter: &dyn Snapshotter,
    recovery: &mut Recovery,
) -> Result<(State, Vec<Chore>), StoreError> {
    let on_disk: HashSet<LayerId> = snapshotter.list()?.into_iter().collect();
    // An image layer whose folder is gone is lazy again; whether it can be had is found when asked.
    for (id, row) in &mut layers {
        if row.here && !on_disk.contains(id) {
            row.here = false;
            meta.set(T::Layers, id.as_str(), Some(crate::state::json(row)));
        }
    }
    drop_incomplete(&mut records, &layers, meta, recovery);

    let owned: HashSet<&LayerId> = records.values().filter_map(|row| row.own.as_ref()).collect();
    for id in &on_disk {
        let wanted = owned.contains(id) && layers.get(id).is_some_and(|row| row.here);
        if !wanted {
            recovery.layers.push(id.to_string());
            if let Err(error) = snapshotter.remove(id) {
                tracing::warn!("remove layer {id}: {error}");
            }
        }
    }
    let mutable = records.values().filter(|row| row.mutable).filter_map(|row| row.own.clone());
    let mutable: HashSet<LayerId> = mutable.collect();
    let mut changed = HashSet::new();
    let mut measure = Vec::new();
    let mut state = State::default();
    for (id, mut row) in layers {
        if !owned.contains(&id) {
            meta.set(T::Layers, id.as_str(), None);
            continue;
        }
        if mutable.contains(&id) {
            let turn = turns::read(snapshotter, &id);
            row.writing |= turn != row.turn;
            row.turn = turn;
        }
        if row.writing {
            changed.insert(id.clone());
            // The writer was killed: its work stays, but nothing that was known of it. Not its size
            // either, until it was measured.
            row.blobs.clear();
            row.diff_id = None;
            meta.set(T::Indexes, id.as_str(), None);
            meta.set(T::Layers, id.as_str(), Some(crate::state::json(&row)));
            measure.push(Chore::Measure(id.clone()));
        }
        state.layers.insert(id, Layer::new(row));
    }
    // Oldest first, so that the first owner of a shared layer stays the first.
    let mut order: Vec<_> = records.into_iter().collect();
    order.sort_by(|(a, left), (b, right)| (left.created, a).cmp(&(right.created, b)));
    for (id, mut row) in order {
        if row.mutable && row.own.as_ref().is_some_and(|own| changed.contains(own)) {
            // Nor what showed its files as they were.
            (row.view, row.chain, row.blob_chain, row.blob) = (None, None, None, None);
            meta.set(T::Records, id.as_str(), Some(crate::state::json(&row)));
        }
        state.insert(id, Record::new(row));
    }
    state.recount();
    Ok((state, measure))
}

/// Drops records that lack a folder they cannot get back, or a parent.
fn drop_incomplete(
    records: &mut HashMap<RecordId, RecordRow>,
    layers: &HashMap<LayerId, LayerRow>,
    meta: &Meta,
    recovery: &mut Recovery,
) {
    loop {
        let whole = |row: &RecordRow| {
            let own = row.own.as_ref().is_none_or(|own| {
                layers.get(own).is_some_and(|layer| layer.here || !layer.blobs.is_empty())
            });
            own && row.needs().all(|parent| records.contains_key(parent))
        };
        let broken: Vec<RecordId> =
            records.iter().filter(|(_, row)| !whole(row)).map(|(id, _)| id.clone()).collect();
        if broken.is_empty() {
            return;
        }
        for id in broken {
            meta.set(T::Records, id.as_str(), None);
            meta.set(T::Indexes, id.as_str(), None);
            records.remove(&id);
            recovery.records.push(id);
        }
    }
}

fn load_images(
    meta: &Meta,
    content: &HashMap<Digest, ContentRow>,
    recovery: &mut Recovery,
) -> Result<BTreeMap<String, Image>, StoreError> {
    let mut images = BTreeMap::new();
    for (key, value) in meta.scan(T::Images, b"")? {
        let name = String::from_utf8_lossy(&key).into_owned();
        match serde_json::from_slice::<Image>(&value) {
            Ok(image) if content.contains_key(&image.descriptor.digest) => {
                _ = images.insert(name.clone(), Image { name, ..image });
            }
            _ => {
                meta.set(T::Images, key, None);
                recovery.images.push(name);
            }
        }
    }
    Ok(images)
}

fn rows<K: std::hash::Hash + Eq, V: serde::de::DeserializeOwned>(
    meta: &Meta,
    table: T,
    parse: impl Fn(&[u8]) -> Option<K>,
) -> Result<HashMap<K, V>, StoreError> {
    let mut rows = HashMap::new();
    let mut unreadable = Vec::new();
    meta.each(table, |key, value| match (parse(key), serde_json::from_slice(value)) {
        (Some(id), Ok(row)) => _ = rows.insert(id, row),
        _ => unreadable.push(key.to_vec()),
    })?;
    for key in unreadable {
        tracing::warn!("unreadable row {:?} dropped", String::from_utf8_lossy(&key));
        meta.set(table, key, None);
    }
    Ok(rows)
}

fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    let entries = std::fs::read_dir(folder).doing(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.doing(|| format!("list {}", folder.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("remove {}: {error}", path.display());
    }
}
