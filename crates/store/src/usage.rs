//! What takes how much space.
//!
//! Every folder and every layer blob is counted once, for the oldest record that has it; so the
//! sizes of all records add up to what is on disk, apart from [`Overhead`].

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::SystemTime,
};

use base::Digest;
use oci::media;

use crate::{
    Fields, Filter, RecordId, RecordKind, Store,
    state::{Record, State},
};

/// Largest manifest that is read to see what it speaks of.
const MANIFEST_LIMIT: u64 = 4 << 20;

/// One record as `du` and `prune` show it.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Its id.
    pub id: RecordId,
    /// Whether it can be written to.
    pub mutable: bool,
    /// Whether somebody holds it (or its view) or builds on it.
    pub in_use: bool,
    /// Whether a named image keeps its layer's blob too.
    pub shared: bool,
    /// Bytes on disk; 0 for a mutable record in use.
    pub size: u64,
    /// Records it is made of.
    pub parents: Vec<RecordId>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last let go; `None` is never.
    pub last_used_at: Option<SystemTime>,
    /// How often it was used.
    pub usage_count: u64,
    /// For people.
    pub description: String,
    /// What it is for.
    pub kind: RecordKind,
}

impl Fields for Usage {
    fn field(&self, path: &[&str]) -> Option<String> {
        let flag = |set: bool| set.then(String::new);
        match path {
            ["id"] => Some(self.id.to_string()),
            ["parents"] => {
                let parents: Vec<&str> = self.parents.iter().map(RecordId::as_str).collect();
                Some(parents.join(";"))
            }
            ["description"] => Some(self.description.clone()),
            ["type"] => Some(self.kind.to_string()),
            ["inuse"] => flag(self.in_use),
            ["mutable"] => flag(self.mutable),
            ["immutable"] => flag(!self.mutable),
            ["shared"] => flag(self.shared),
            ["private"] => flag(!self.shared),
            _ => None,
        }
    }
}

/// Bytes on disk that belong to no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overhead {
    /// The metadata database.
    pub meta: u64,
    /// Blobs no record has: of named images, pinned, or not yet collected.
    pub blobs: u64,
    /// Blobs being written.
    pub in_flight: u64,
    /// Folders that people named and no collector takes.
    pub volumes: u64,
    /// Journals, logs, layers being made or removed, and the folders that hold all this.
    pub other: u64,
}

/// Sizes and sharing of all records at one moment.
pub(crate) struct Census {
    pub sizes: HashMap<RecordId, u64>,
    pub shared: HashSet<RecordId>,
    /// Records in use, or with something in use built on them.
    pub used: HashSet<RecordId>,
    /// Bytes of blobs that belong to no record.
    pub other_blobs: u64,
}

impl Store {
    /// All records that match one of `filters` (all, if there are none), oldest first.
    pub fn disk_usage(&self, filters: &[Filter]) -> Vec<Usage> {
        let imaged = self.image_blobs();
        let state = self.state();
        let census = self.census(&state, &imaged);
        let mut all: Vec<Usage> = state
            .records
            .iter()
            .map(|(id, record)| usage(id, record, &census))
            .filter(|usage| Filter::any_matches(filters, usage))
            .collect();
        all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        all
    }

    /// Bytes on disk that belong to no record. With the sizes of all records (mutable ones in use
    /// measured when they are let go) this is what the state folder takes.
    pub fn overhead(&self) -> Overhead {
        let census = self.census(&self.state(), &HashSet::new());
        let meta = self.meta().files().iter().map(|path| allocated(path)).sum();
        let ingest = allocated_below(&self.root().join("content").join("ingest"));
        let volumes = allocated_below(&self.root().join("volumes"));
        let folders = ["", "content", "content/sha256", "snapshots"];
        let folders: u64 = folders.iter().map(|name| allocated(&self.root().join(name))).sum();
        let removed = self.snapshotter().being_removed();
        let files = self.overhead_files().saturating_sub(meta + ingest + volumes);
        Overhead {
            meta,
            blobs: census.other_blobs,
            in_flight: ingest,
            volumes,
            other: folders + removed + files,
        }
    }

    /// Counts everything once. `imaged` are the blobs that named images keep.
    pub(crate) fn census(&self, state: &State, imaged: &HashSet<Digest>) -> Census {
        let mut blobs = self.content().allocated();
        let mut order: Vec<(&RecordId, &Record)> =
            state.records.iter().map(|(id, record)| (id, &**record)).collect();
        order.sort_by_key(|(id, record)| (record.row.created, *id));
        let mut counted = HashSet::new();
        let mut sizes = HashMap::with_capacity(order.len());
        let mut shared = HashSet::new();
        for (id, record) in order {
            let mut size = 0;
            if let Some(own) = &record.row.own
                && let Some(layer) = state.layers.get(own)
            {
                if counted.insert(own) && layer.row.here {
                    size += layer.row.size;
                }
                for blob in &layer.row.blobs {
                    size += blobs.remove(&blob.digest).unwrap_or(0);
                }
                if layer.row.blobs.iter().any(|blob| imaged.contains(&blob.digest)) {
                    shared.insert(id.clone());
                }
            }
            for kept in &record.row.keeps {
                size += blobs.remove(kept).unwrap_or(0);
            }
            sizes.insert(id.clone(), size);
        }
        let mut used = HashSet::new();
        let mut queue: Vec<&RecordId> =
            state.records.iter().filter(|(_, it)| it.in_use()).map(|(id, _)| id).collect();
        while let Some(id) = queue.pop() {
            if used.insert(id.clone())
                && let Some(record) = state.records.get(id)
            {
                queue.extend(record.row.needs());
            }
        }
        Census { sizes, shared, used, other_blobs: blobs.values().sum() }
    }

    /// Digests that named images speak of, whether the blobs are here or not.
    pub(crate) fn image_blobs(&self) -> HashSet<Digest> {
        let mut seen = HashSet::new();
        let images = self.image_map().lock().unwrap();
        let named: Vec<Digest> = images.values().map(|it| it.descriptor.digest).collect();
        drop(images);
        self.mark(named, &HashSet::new(), &mut seen);
        seen
    }

    /// What records, layers and holders speak of, not followed further.
    pub(crate) fn spoken_for(&self) -> Vec<Digest> {
        let mut blobs = self.pinned();
        blobs.extend(self.content().held());
        let state = self.state();
        for layer in state.layers.values() {
            blobs.extend(layer.row.blobs.iter().map(|blob| blob.digest));
        }
        for record in state.records.values() {
            blobs.extend(record.row.blob.iter().map(|blob| blob.digest));
            blobs.extend(&record.row.keeps);
        }
        blobs
    }

    /// Adds these blobs to `seen`, and all that they speak of, but those `without` says; what is in
    /// it was followed before.
    pub(crate) fn mark(
        &self,
        blobs: Vec<Digest>,
        without: &HashSet<Digest>,
        seen: &mut HashSet<Digest>,
    ) {
        let mut queue = blobs;
        while let Some(digest) = queue.pop() {
            if !without.contains(&digest) && seen.insert(digest) {
                queue.extend(self.spoken_of(&digest));
            }
        }
    }

    /// The blobs that builds and their history left: all but those that are here for the sake of
    /// named images alone.
    pub fn blobs_of_builds(&self) -> Vec<Digest> {
        let images = self.image_blobs();
        let mut builds = HashSet::new();
        self.mark(self.spoken_for(), &HashSet::new(), &mut builds);
        let all = self.content().list().into_iter().map(|(digest, _)| digest);
        all.filter(|digest| builds.contains(digest) || !images.contains(digest)).collect()
    }

    /// What a blob speaks of: noted with it, or found in a manifest.
    pub(crate) fn spoken_of(&self, digest: &Digest) -> Vec<Digest> {
        let Some(info) = self.content().info(digest) else { return Vec::new() };
        if !info.references.is_empty() {
            return info.references;
        }
        let manifest = media::is_manifest(&info.media_type);
        if !manifest && !media::is_index(&info.media_type) {
            return Vec::new();
        }
        let Ok(body) = self.content().read(digest, MANIFEST_LIMIT) else { return Vec::new() };
        let what = digest.to_string();
        let found: Vec<Digest> = if manifest {
            let parsed = oci::Manifest::parse(&what, &body).ok();
            let all = parsed
                .into_iter()
                .flat_map(|it| it.layers.into_iter().chain([it.config]).map(|blob| blob.digest));
            all.collect()
        } else {
            let parsed = oci::Index::parse(&what, &body).ok();
            parsed.into_iter().flat_map(|it| it.manifests).map(|it| it.digest).collect()
        };
        // Remembered, so that it is parsed once.
        self.content().describe(digest, |info| info.references.clone_from(&found));
        found
    }
}

pub(crate) fn usage(id: &RecordId, record: &Record, census: &Census) -> Usage {
    let row = &record.row;
    let size = census.sizes.get(id).copied().unwrap_or(0);
    Usage {
        id: id.clone(),
        mutable: row.mutable,
        in_use: census.used.contains(id),
        shared: census.shared.contains(id),
        size: if row.mutable && record.in_use() { 0 } else { size },
        parents: row.parents.clone(),
        created_at: base::time::from_unix_nanos(row.created),
        last_used_at: row.last_used.map(base::time::from_unix_nanos),
        usage_count: row.usage_count,
        description: row.description.clone(),
        kind: row.kind,
    }
}

/// Bytes on disk of a file, or of a folder and all that is in it.
pub(crate) fn allocated_below(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let own = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| allocated_below(&entry.path())).sum::<u64>()
}

/// Bytes a file takes on disk.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}
