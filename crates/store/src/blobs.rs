//! Layer blobs of records: made when asked for, once per compression, and remembered.
//!
//! A layer that came from a blob keeps it; one that was built gets its blob from the snapshot
//! driver's tar writer, streamed through the compressor into the content store. Another
//! compression of a layer that has a blob is made from that blob, so that the diff id cannot
//! change. Layers are worked on in parallel; who asks for a blob being made waits for it.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, Weak},
    time::SystemTime,
};

use base::Digest;
use futures_util::future::try_join_all;
use oci::{Compression, Descriptor, compress, media, types::ANNOTATION_UNCOMPRESSED};
use snapshot::LayerId;
use tokio::sync::{Semaphore, watch};

use crate::{
    Blob, BlobInfo, LayerStage, RecordId, Ref, Store, StoreError,
    layers::distinct,
    model::Shape,
    pull::{download, next_chain},
    record::blocking,
    state::State,
};

/// Annotation that only estargz blobs have.
const ANNOTATION_TOC: &str = compress::estargz::ANNOTATION_TOC_DIGEST;

/// How layer blobs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobOptions {
    /// Compression of blobs that have to be made.
    pub compression: Compression,
    /// Compression level; the usual one if absent. A blob of the right compression serves whatever
    /// its level.
    pub level: Option<i32>,
    /// Convert layers that only have blobs of another compression too.
    pub force: bool,
    /// Make blobs that do not exist yet; otherwise such layers are an error.
    pub create: bool,
}

impl Default for BlobOptions {
    fn default() -> Self {
        Self { compression: Compression::Gzip, level: None, force: false, create: true }
    }
}

/// A layer as a blob.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// Media type (OCI for those made here), digest, size; annotations include
    /// `containerd.io/uncompressed`.
    pub descriptor: Descriptor,
    /// Digest of everything decompressed: the tar; of estargz made here also its table.
    pub diff_id: Digest,
    /// When the layer's record was made.
    pub created_at: SystemTime,
    /// Description of the layer's record.
    pub description: String,
    /// The layer's record.
    pub record: RecordId,
    /// Whether the bytes are in the content store. If not, they are where they were pulled from;
    /// [`Ref::fetch_blob`] brings them.
    pub local: bool,
}

/// A layer and everything needed to make its blob.
#[derive(Clone)]
struct Plan {
    layer: LayerId,
    record: RecordId,
    created: i64,
    description: String,
    tar: Tar,
    here: bool,
    diff_id: Option<Digest>,
    /// The record's own blob first.
    known: Vec<Descriptor>,
}

/// Which of the driver's ways gives the layer's tar.
#[derive(Clone)]
enum Tar {
    /// The layer over those it was made on.
    Layer(Vec<LayerId>),
    /// The comparison of two trees.
    Diff { lower: Vec<LayerId>, upper: Vec<LayerId> },
}

/// Locks of blobs being made, and how many at a time.
pub(crate) struct Makers {
    open: Mutex<HashMap<(LayerId, Compression), Weak<tokio::sync::Mutex<()>>>>,
    permits: Semaphore,
}

impl Default for Makers {
    fn default() -> Self {
        // The compressor is parallel itself; a second layer fills the gaps between its blocks.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { open: Mutex::default(), permits: Semaphore::new(cores.max(2)) }
    }
}

impl Makers {
    fn lock(&self, layer: &LayerId, compression: Compression) -> Arc<tokio::sync::Mutex<()>> {
        let mut open = self.open.lock().unwrap();
        open.retain(|_, lock| lock.strong_count() > 0);
        let key = (layer.clone(), compression);
        if let Some(lock) = open.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        open.insert(key, Arc::downgrade(&lock));
        lock
    }
}

impl Ref {
    /// Blobs of all layers, bottom first; missing ones are made in parallel.
    pub async fn blobs(&self, options: BlobOptions) -> Result<Vec<LayerBlob>, StoreError> {
        let mut plans: BTreeMap<&LayerId, Plan> = BTreeMap::new();
        for layer in self.layers() {
            if !plans.contains_key(layer) {
                plans.insert(layer, self.plan(layer)?);
            }
        }
        let made = try_join_all(plans.values().map(|plan| self.blob(plan, options))).await?;
        let made: BTreeMap<&LayerId, LayerBlob> = plans.keys().copied().zip(made).collect();
        let blobs: Vec<LayerBlob> = self.layers().iter().map(|layer| made[layer].clone()).collect();
        self.note_chains(&blobs);
        Ok(blobs)
    }

    /// Blobs of all layers if every layer has one already.
    pub fn blobs_known(&self) -> Option<Vec<LayerBlob>> {
        let each = self.layers().iter().map(|layer| {
            let plan = self.plan(layer).ok()?;
            let descriptor = plan.known.first()?.clone();
            Some(self.finished(&plan, descriptor, plan.diff_id?))
        });
        each.collect()
    }

    /// Brings a lazy layer's bytes into the content store, without unpacking.
    pub async fn fetch_blob(&self, blob: &LayerBlob) -> Result<Blob, StoreError> {
        let store = self.store();
        if let Some(held) = store.content().hold(&blob.descriptor.digest) {
            return Ok(held);
        }
        let (stage, _stages) = watch::channel(LayerStage::Waiting);
        download(store, &blob.descriptor, &self.providers(), None, &stage).await
    }

    fn plan(&self, layer: &LayerId) -> Result<Plan, StoreError> {
        let state = self.store().state();
        let missing = || StoreError::NoLayerBlob(layer.clone());
        let owner = state.owner_below(layer, self.id());
        let owner = owner.or_else(|| state.owner(layer).cloned()).ok_or_else(missing)?;
        let (owner, layer) = state.original(&owner).unwrap_or_else(|| (owner, layer.clone()));
        let record = state.records.get(&owner).ok_or_else(missing)?;
        let layer = &layer;
        let known = &state.layers.get(layer).ok_or_else(missing)?.row;
        let mut blobs: Vec<Descriptor> =
            record.row.blob.iter().map(|blob| blob.descriptor()).collect();
        for blob in &known.blobs {
            if !blobs.iter().any(|other| other.digest == blob.digest) {
                blobs.push(blob.descriptor());
            }
        }
        Ok(Plan {
            layer: layer.clone(),
            created: record.row.created,
            description: record.row.description.clone(),
            tar: state.tar_of(&owner),
            here: known.here,
            diff_id: known.diff_id,
            known: blobs,
            record: record.row.view.clone().unwrap_or(owner),
        })
    }

    /// The blob of one layer, made if need be.
    async fn blob(&self, plan: &Plan, options: BlobOptions) -> Result<LayerBlob, StoreError> {
        if let Some(found) = self.fitting(plan, options) {
            return Ok(found);
        }
        if !options.create {
            return Err(StoreError::NoLayerBlob(plan.layer.clone()));
        }
        let makers = self.store().makers();
        let lock = makers.lock(&plan.layer, options.compression);
        let _turn = lock.lock().await;
        let plan = self.plan(&plan.layer)?;
        if let Some(found) = self.fitting(&plan, options) {
            return Ok(found);
        }
        let _permit = makers.permits.acquire().await.expect("the semaphore is never closed");
        let same = |blob: &&Descriptor| own_diff_id(blob).is_none_or(|id| Some(id) == plan.diff_id);
        let (descriptor, diff_id) = match self.obtainable(&plan).find(same).cloned() {
            Some(from) => {
                let from = self.finished(&plan, from, plan.diff_id.unwrap_or(Digest::of("")));
                let held = self.fetch_blob(&from).await?;
                let (store, plan) = (self.store().clone(), plan.clone());
                blocking("convert a layer", move || store.convert(&held, plan.diff_id, options))
                    .await?
            }
            None if plan.here => {
                let (store, plan) = (self.store().clone(), plan.clone());
                blocking("write a layer", move || store.write_tar(&plan, options)).await?
            }
            None => return Err(StoreError::NotLocal(self.id().clone())),
        };
        let (blob, held) = descriptor;
        self.store().remember(&plan, &blob, diff_id);
        let finished = self.finished(&plan, blob, diff_id);
        drop(held);
        Ok(finished)
    }

    /// A blob that exists and serves.
    fn fitting(&self, plan: &Plan, options: BlobOptions) -> Option<LayerBlob> {
        let diff_id = plan.diff_id?;
        let right = |blob: &&Descriptor| compression_of(blob) == Some(options.compression);
        let found = self.obtainable(plan).find(right);
        let found = found.or_else(|| self.obtainable(plan).next().filter(|_| !options.force))?;
        Some(self.finished(plan, found.clone(), diff_id))
    }

    /// Known blobs whose bytes can be had. When the files are here and nobody is known who has the
    /// blob, it is better made anew.
    fn obtainable<'a>(&self, plan: &'a Plan) -> impl Iterator<Item = &'a Descriptor> + use<'a> {
        let content = self.store().content().clone();
        let anyway = !plan.here || !self.providers().is_empty();
        plan.known.iter().filter(move |blob| anyway || content.contains(&blob.digest))
    }

    fn finished(&self, plan: &Plan, mut descriptor: Descriptor, diff_id: Digest) -> LayerBlob {
        let diff_id = own_diff_id(&descriptor).unwrap_or(diff_id);
        descriptor.annotations.insert(ANNOTATION_UNCOMPRESSED.into(), diff_id.to_string());
        LayerBlob {
            local: self.store().content().contains(&descriptor.digest),
            descriptor,
            diff_id,
            created_at: base::time::from_unix_nanos(plan.created),
            description: plan.description.clone(),
            record: plan.record.clone(),
        }
    }

    /// Gives the records below their identity among image layers, now that it is known: a later
    /// pull of what was pushed finds them.
    fn note_chains(&self, blobs: &[LayerBlob]) {
        let mut state = self.store().state();
        let mut chain = None;
        for (number, blob) in blobs.iter().enumerate() {
            chain = Some(next_chain(chain, blob.diff_id));
            let Some(keeper) = state.keeper(&blob.record) else { continue };
            let Some(record) = state.records.get(&keeper) else { continue };
            let plain = record.row.shape == Shape::Layer
                && !record.row.mutable
                && record.row.layers[..] == self.layers()[..=number];
            if !plain {
                continue;
            }
            let below = record.row.parents.first().and_then(|id| state.row(id));
            let below = below.and_then(|row| row.blob_chain);
            let own = Digest::of(format!("{} {}", blob.descriptor.digest, blob.diff_id));
            let blob_chain = match below {
                Some(below) => Some(Digest::of(format!("{below} {own}"))),
                None if number == 0 => Some(own),
                None => None,
            };
            state.edit(&keeper, self.store().meta(), |row| {
                row.chain = chain;
                row.blob_chain = row.blob_chain.or(blob_chain);
                row.blob.get_or_insert_with(|| Box::new(bare(&blob.descriptor).into()));
            });
        }
    }
}

impl State {
    /// Of a layer made to stand in for another one in merges: the original and its record, whose
    /// blob is the same.
    fn original(&self, id: &RecordId) -> Option<(RecordId, LayerId)> {
        let row = &self.records.get(id)?.row;
        let [lower, upper] = &row.parents[..] else { return None };
        let upper_row = self.row(upper)?;
        let direct = row.shape == Shape::Diff
            && row.own.is_some()
            && upper_row.shape == Shape::Layer
            && upper_row.parents.first() == Some(lower);
        if direct { Some((self.keeper(upper)?, upper_row.own.clone()?)) } else { None }
    }

    fn tar_of(&self, owner: &RecordId) -> Tar {
        let layers =
            |id: &RecordId| self.row(id).map(|row| distinct(&row.layers)).unwrap_or_default();
        let record = &self.records[owner];
        match record.row.shape {
            Shape::Diff => Tar::Diff {
                lower: record.row.parents.first().map(layers).unwrap_or_default(),
                upper: record.row.parents.get(1).map(layers).unwrap_or_default(),
            },
            Shape::Layer | Shape::Merge => Tar::Layer(distinct(record.lowers())),
        }
    }
}

type Made = ((Descriptor, Blob), Digest);

impl Store {
    /// Streams a layer's tar through the compressor into the content store.
    fn write_tar(&self, plan: &Plan, options: BlobOptions) -> Result<Made, StoreError> {
        let compressing = |error| compress_error(&plan.layer.to_string(), error);
        let writer = self.content().writer()?;
        let mut encoder = compress::Encoder::new(options.compression, options.level, writer)
            .map_err(compressing)?;
        let snapshotter = self.snapshotter();
        let info = match &plan.tar {
            Tar::Layer(lowers) => snapshotter.write_layer(lowers, &plan.layer, &mut encoder)?,
            Tar::Diff { lower, upper } => snapshotter.write_diff(lower, upper, &mut encoder)?,
        };
        let (writer, table) = encoder.finish().map_err(compressing)?;
        self.finish_blob(writer, table.as_ref(), info.diff_id, options)
    }

    /// Turns a blob into one of another compression.
    fn convert(
        &self,
        from: &Blob,
        diff_id: Option<Digest>,
        options: BlobOptions,
    ) -> Result<Made, StoreError> {
        let compressing = |error| compress_error(&from.digest().to_string(), error);
        let file = self.content().open(&from.digest())?;
        let mut tar =
            compress::Decoder::new(file, compress::Limits::default()).map_err(compressing)?;
        let writer = self.content().writer()?;
        let mut layer = compress::LayerWriter::new(options.compression, options.level, writer)
            .map_err(compressing)?;
        io::copy(&mut tar, &mut layer).map_err(compressing)?;
        let written = layer.finish().map_err(compressing)?;
        if let Some(expected) = diff_id
            && expected != written.diff_id
        {
            let (blob, actual) = (from.digest(), written.diff_id);
            return Err(StoreError::WrongDiffId { blob, expected, actual });
        }
        self.finish_blob(written.out, written.estargz.as_ref(), written.diff_id, options)
    }

    fn finish_blob(
        &self,
        writer: crate::ContentWriter,
        table: Option<&compress::estargz::Table>,
        diff_id: Digest,
        options: BlobOptions,
    ) -> Result<Made, StoreError> {
        let media_type = media::layer(options.compression, true);
        let mut info = BlobInfo::of_type(media_type);
        info.annotations.insert(ANNOTATION_UNCOMPRESSED.into(), diff_id.to_string());
        let known_by = table.map(compress::estargz::Table::annotations);
        info.annotations.extend(known_by.iter().flatten().cloned());
        let held = writer.commit(None, None, info)?;
        let mut descriptor = Descriptor::new(media_type, held.digest(), held.size());
        descriptor.annotations.extend(known_by.into_iter().flatten());
        Ok(((descriptor, held), diff_id))
    }

    fn remember(&self, plan: &Plan, blob: &Descriptor, diff_id: Digest) {
        let mut state = self.state();
        let Some(layer) = state.layers.get_mut(&plan.layer) else { return };
        layer.row.diff_id = Some(diff_id);
        if !layer.row.blobs.iter().any(|known| known.digest == blob.digest) {
            // Nearly always the only one.
            layer.row.blobs.reserve_exact(1);
            layer.row.blobs.push(blob.clone().into());
        }
        state.save_layer(&plan.layer, self.meta());
    }
}

/// The compression of a layer blob; estargz is told from gzip by its annotation.
fn compression_of(blob: &Descriptor) -> Option<Compression> {
    match media::compression(&blob.media_type)? {
        Compression::Gzip if blob.annotations.contains_key(ANNOTATION_TOC) => {
            Some(Compression::Estargz)
        }
        compression => Some(compression),
    }
}

/// A descriptor as records keep it: the diff id is the layer's, unless the blob has its own.
fn bare(blob: &Descriptor) -> Descriptor {
    let mut blob = blob.clone();
    if own_diff_id(&blob).is_none() {
        blob.annotations.remove(ANNOTATION_UNCOMPRESSED);
        if blob.annotations.is_empty() {
            // An emptied map keeps its memory.
            blob.annotations = BTreeMap::new();
        }
    }
    blob
}

/// The diff id of an estargz blob, where it is not the layer's: its table counts as well.
fn own_diff_id(blob: &Descriptor) -> Option<Digest> {
    blob.annotations.get(ANNOTATION_TOC)?;
    blob.annotations.get(ANNOTATION_UNCOMPRESSED)?.parse().ok()
}

fn compress_error(what: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput => {
            StoreError::Compression(format!("{what}: {error}"))
        }
        _ => StoreError::io(format!("compress layer {what}"), error),
    }
}
