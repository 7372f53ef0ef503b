//! Lazy layers of images: known by descriptor, fetched and unpacked when needed.
//!
//! [`Store::image`] makes records without fetching anything. [`Ref::ensure_local`] starts one
//! *flight* per missing layer: the blob streams into the content store and, at the same time,
//! through the decompressor into a folder aside; when both digests are right and the layer below
//! exists, the folder is adopted. All who wait for a layer share its flight; when nobody waits any
//! more it is dropped and leaves nothing behind.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use base::Digest;
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared, WeakShared, try_join_all},
};
use oci::{Descriptor, compress};
use snapshot::{Extracted, LayerId};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    Blob, BlobInfo, RecordId, RecordKind, Ref, Store, StoreError,
    layers::distinct,
    model::{LayerRow, RecordRow, now},
    record::blocking,
    state::{Layer, Record, State},
};

/// Layers unpacked at the same time; downloads wait for their unpacking.
const UNPACKING: usize = 6;
/// Pieces of a blob that may wait for the decompressor.
const WAITING: usize = 32;
/// A stage of the download is told each time this many bytes more have arrived.
const TELL_EVERY: u64 = 256 << 10;

/// One layer of an image.
#[derive(Debug, Clone)]
pub struct ImageLayer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// When it was made (kept for histories), if known.
    pub created_at: Option<SystemTime>,
    /// Description of the layer's record, if it has one of its own.
    pub description: Option<String>,
}

/// The layers of an image, and what else belongs to its records.
#[derive(Clone)]
pub struct ImageLayers {
    /// Bottom first.
    pub layers: Vec<ImageLayer>,
    /// Where the blobs can be fetched.
    pub provider: Option<Arc<dyn oci::Provider>>,
    /// E.g. `pulled from docker.io/library/alpine:latest`.
    pub description: String,
    /// `Regular`, or `Frontend` for frontend images.
    pub kind: RecordKind,
    /// Name of the image, remembered with its layers.
    pub image_name: Option<String>,
    /// Blobs kept while the top record lives: manifest, config.
    pub keeps: Vec<Digest>,
}

/// What happens to one layer during [`Ref::ensure_local`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStage {
    /// Waits for its turn, or for the layer below.
    Waiting,
    /// `current` of `total` compressed bytes have arrived.
    Downloading {
        /// Bytes so far.
        current: u64,
        /// All bytes.
        total: u64,
    },
    /// All bytes arrived; unpacking continues.
    Extracting,
    /// The layer is usable.
    Done,
}

/// Told what happens to each layer; called often and from several threads.
pub type LayerProgress = Arc<dyn Fn(&Descriptor, LayerStage) + Send + Sync>;

/// Tells nobody.
pub fn no_progress() -> LayerProgress {
    Arc::new(|_, _| {})
}

impl Store {
    /// Records for the layers of an image, sharing what is known already; nothing is fetched.
    /// `None` for an image without layers.
    pub fn image(self: &Arc<Self>, image: ImageLayers) -> Result<Option<Ref>, StoreError> {
        let Some(last) = image.layers.len().checked_sub(1) else { return Ok(None) };
        let mut state = self.state();
        let mut below: Option<RecordId> = None;
        for (number, layer) in image.layers.iter().enumerate() {
            let id = self.image_layer(&mut state, &image, layer, below.as_ref());
            let keeps: &[Digest] = if number == last { &image.keeps } else { &[] };
            state.edit(&id, self.meta(), |row| {
                add_new(&mut row.images, image.image_name.as_slice());
                add_new(&mut row.keeps, keeps);
                if image.kind == RecordKind::Regular && row.kind == RecordKind::Frontend {
                    row.kind = RecordKind::Regular;
                }
            });
            below = Some(id);
        }
        let top = below.expect("there is at least one layer");
        let top = Ref::attach(self, &mut state, &top).expect("the record was just found or made");
        drop(state);
        if let Some(provider) = image.provider {
            top.attach_provider(provider);
        }
        Ok(Some(top))
    }

    fn image_layer(
        &self,
        state: &mut State,
        image: &ImageLayers,
        layer: &ImageLayer,
        below: Option<&RecordId>,
    ) -> RecordId {
        let (blob_chain, chain) = {
            let below = below.and_then(|id| state.row(id));
            let blob = Digest::of(format!("{} {}", layer.descriptor.digest, layer.diff_id));
            (
                match below.and_then(|row| row.blob_chain) {
                    None => blob,
                    Some(parent) => Digest::of(format!("{parent} {blob}")),
                },
                next_chain(below.and_then(|row| row.chain), layer.diff_id),
            )
        };
        if let Some(known) = state.by_blob_chain(&blob_chain) {
            return known.clone();
        }
        let lowers = below.and_then(|id| state.row(id)).map(|row| row.layers.clone());
        let lowers = lowers.unwrap_or_default();
        let own = state.by_chain(&chain, &lowers).unwrap_or_else(LayerId::random);
        let known = state.layers.entry(own.clone()).or_insert_with(|| {
            let row = LayerRow { diff_id: Some(layer.diff_id), ..LayerRow::default() };
            Layer::new(row)
        });
        if !known.row.blobs.iter().any(|it| it.digest == layer.descriptor.digest) {
            known.row.blobs.push(layer.descriptor.clone().into());
        }
        let id = RecordId::random();
        let row = RecordRow {
            description: layer.description.clone().unwrap_or_else(|| image.description.clone()),
            kind: image.kind,
            created: layer.created_at.map_or_else(now, base::time::unix_nanos),
            parents: below.cloned().into_iter().collect(),
            layers: lowers.into_iter().chain([own.clone()]).collect(),
            own: Some(own),
            blob: Some(Box::new(layer.descriptor.clone().into())),
            blob_chain: Some(blob_chain),
            chain: Some(chain),
            ..RecordRow::default()
        };
        state.insert(id.clone(), Record::new(row));
        state.save_both(&id, self.meta());
        id
    }
}

fn add_new<V: Clone + PartialEq>(list: &mut Vec<V>, items: &[V]) {
    for item in items {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The chain id of a layer over one with `parent`.
pub(crate) fn next_chain(parent: Option<Digest>, diff_id: Digest) -> Digest {
    parent.map_or(diff_id, |parent| Digest::of(format!("{parent} {diff_id}")))
}

/// A missing layer and how to get it.
#[derive(Clone)]
struct Missing {
    layer: LayerId,
    /// Layers below, bottom first.
    lowers: Vec<LayerId>,
    descriptor: Descriptor,
    diff_id: Option<Digest>,
}

impl Ref {
    /// Says where missing blobs of this record (parents included) can be fetched. Several are
    /// tried in turn, newest first.
    pub fn attach_provider(&self, provider: Arc<dyn oci::Provider>) {
        let mut providers = self.handle.providers.lock().unwrap();
        if !providers.iter().any(|known| Arc::ptr_eq(known, &provider)) {
            providers.insert(0, provider);
        }
    }

    /// As [`attach_provider`](Self::attach_provider), but asked after those that are known.
    pub fn attach_last(&self, provider: Arc<dyn oci::Provider>) {
        let mut providers = self.handle.providers.lock().unwrap();
        if !providers.iter().any(|known| Arc::ptr_eq(known, &provider)) {
            providers.push(provider);
        }
    }

    /// The provider of lazy blobs of this record that was attached last, if any.
    pub fn provider(&self) -> Option<Arc<dyn oci::Provider>> {
        self.providers().first().cloned()
    }

    pub(crate) fn adopt_providers(&self, other: &Ref) {
        for provider in other.providers().into_iter().rev() {
            self.attach_provider(provider);
        }
    }

    /// Own providers, then those of the records this one was made of.
    pub(crate) fn providers(&self) -> Vec<Arc<dyn oci::Provider>> {
        let mut providers = self.handle.providers.lock().unwrap().clone();
        let inputs = self.handle.inputs.lock().unwrap().clone();
        for input in inputs {
            for provider in input.providers() {
                if !providers.iter().any(|known| Arc::ptr_eq(known, &provider)) {
                    providers.push(provider);
                }
            }
        }
        providers
    }

    /// Whether a layer is neither here nor fetchable; see
    /// [`attach_provider`](Self::attach_provider).
    pub fn needs_provider(&self) -> bool {
        if self.is_local() || !self.providers().is_empty() {
            return false;
        }
        let content = self.store().content();
        self.missing().iter().any(|missing| !content.contains(&missing.descriptor.digest))
    }

    /// Downloads and unpacks whatever layers are missing, in parallel; a layer once at a time
    /// however many ask. Returns at once when nothing is missing.
    pub async fn ensure_local(&self, progress: LayerProgress) -> Result<(), StoreError> {
        if self.is_local() {
            return Ok(());
        }
        let missing = self.missing();
        let all: Arc<HashMap<LayerId, Missing>> =
            Arc::new(missing.iter().map(|it| (it.layer.clone(), it.clone())).collect());
        let providers = self.providers();
        let layers = missing.iter().map(|layer| {
            let (all, providers, progress) = (all.clone(), providers.clone(), progress.clone());
            self.bring(layer.clone(), all, providers, progress)
        });
        try_join_all(layers).await?;
        if self.is_local() { Ok(()) } else { Err(StoreError::NotLocal(self.id().clone())) }
    }

    async fn bring(
        &self,
        layer: Missing,
        all: Arc<HashMap<LayerId, Missing>>,
        providers: Vec<Arc<dyn oci::Provider>>,
        progress: LayerProgress,
    ) -> Result<(), StoreError> {
        let descriptor = layer.descriptor.clone();
        loop {
            let joined = self.store().fly(&layer, &all, &providers);
            let Some((flight, mut stages, started_here)) = joined else { break };
            let outcome = {
                let mut flight = flight;
                loop {
                    progress(&descriptor, *stages.borrow_and_update());
                    tokio::select! {
                        outcome = &mut flight => break outcome,
                        Ok(()) = stages.changed() => {}
                    }
                }
            };
            match outcome {
                Ok(()) => break,
                // Somebody else's way to the blob failed; ours may not.
                Err(_) if !started_here && !providers.is_empty() => {}
                Err(error) => return Err(StoreError::Shared(error)),
            }
        }
        progress(&descriptor, LayerStage::Done);
        Ok(())
    }

    /// Layers not unpacked, bottom first.
    fn missing(&self) -> Vec<Missing> {
        let state = self.handle.store.state();
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for layer in self.layers() {
            if !seen.insert(layer) || state.layers.get(layer).is_none_or(|it| it.row.here) {
                continue;
            }
            missing.extend(state.missing(layer, self.id()));
        }
        missing
    }
}

impl State {
    /// How to get `layer`, preferring the blob that belongs to a record below `top`.
    fn missing(&self, layer: &LayerId, top: &RecordId) -> Option<Missing> {
        let owner = self.owner_below(layer, top).or_else(|| self.owner(layer).cloned())?;
        let record = self.records.get(&owner)?;
        let known = self.layers.get(layer)?;
        let own = record.row.blob.as_deref();
        let descriptor = own.or_else(|| known.row.blobs.first())?.descriptor();
        Some(Missing {
            layer: layer.clone(),
            lowers: record.lowers().to_vec(),
            descriptor,
            diff_id: known.row.diff_id,
        })
    }

    /// The record at or below `top` whose own layer this is.
    pub(crate) fn owner_below(&self, layer: &LayerId, top: &RecordId) -> Option<RecordId> {
        let mut queue = vec![self.keeper(top)?];
        let mut seen = HashSet::new();
        while let Some(id) = queue.pop() {
            let Some(record) = self.records.get(&id) else { continue };
            if record.row.own.as_ref() == Some(layer) {
                return Some(id);
            }
            if seen.insert(id) {
                queue.extend(record.row.needs().cloned());
            }
        }
        None
    }
}

type Outcome = Result<(), Arc<StoreError>>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// Layers on their way.
pub(crate) struct Flights {
    open: Mutex<
        HashMap<LayerId, (WeakShared<BoxFuture<'static, Outcome>>, watch::Receiver<LayerStage>)>,
    >,
    permits: Arc<Semaphore>,
}

impl Default for Flights {
    fn default() -> Self {
        Self { open: Mutex::default(), permits: Arc::new(Semaphore::new(UNPACKING)) }
    }
}

impl Store {
    /// The flight of a layer, started if need be; `None` when the layer is here.
    fn fly(
        self: &Arc<Self>,
        layer: &Missing,
        all: &Arc<HashMap<LayerId, Missing>>,
        providers: &[Arc<dyn oci::Provider>],
    ) -> Option<(Flight, watch::Receiver<LayerStage>, bool)> {
        let mut open = self.flights().open.lock().unwrap();
        open.retain(|_, (flight, _)| flight.upgrade().is_some_and(|it| it.peek().is_none()));
        if let Some((flight, stages)) = open.get(&layer.layer)
            && let Some(flight) = flight.upgrade()
        {
            return Some((flight, stages.clone(), false));
        }
        if self.state().all_here(std::slice::from_ref(&layer.layer)) {
            return None;
        }
        let (stage, stages) = watch::channel(LayerStage::Waiting);
        let work = travel(self.clone(), layer.clone(), all.clone(), providers.to_vec(), stage);
        let flight = async move { work.await.map_err(Arc::new) }.boxed().shared();
        let weak = flight.downgrade().expect("a flight not yet polled can be shared");
        open.insert(layer.layer.clone(), (weak, stages.clone()));
        Some((flight, stages, true))
    }

    /// Room to unpack one more layer.
    async fn unpacking(&self) -> tokio::sync::OwnedSemaphorePermit {
        let permits = self.flights().permits.clone();
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }
}

/// One layer from its provider to its place.
async fn travel(
    store: Arc<Store>,
    layer: Missing,
    all: Arc<HashMap<LayerId, Missing>>,
    providers: Vec<Arc<dyn oci::Provider>>,
    stage: watch::Sender<LayerStage>,
) -> Result<(), StoreError> {
    let permit = store.unpacking().await;
    let (extracted, blob) = unpack(&store, &layer, &providers, &stage).await?;
    drop(permit);
    // The layer below may be on somebody else's flight, or on one of ours: wait for it.
    for lower in &layer.lowers {
        let here = || store.state().all_here(std::slice::from_ref(lower));
        if !here()
            && let Some(below) = all.get(lower)
        {
            let joined = store.fly(below, &all, &providers);
            if let Some((flight, _, _)) = joined {
                flight.await.map_err(StoreError::Shared)?;
            }
        }
    }
    let made = store.clone();
    blocking("adopt a layer", move || {
        made.snapshotter().adopt(extracted)?;
        let bytes = made.snapshotter().usage(&layer.layer)?.bytes;
        let mut state = made.state();
        if let Some(known) = state.layers.get_mut(&layer.layer) {
            known.row.here = true;
            known.row.size = bytes;
            state.save_layer(&layer.layer, made.meta());
        } else {
            // Nobody wants it any more; the last owner went while it was on its way.
            drop(state);
            crate::layers::remove_layers(&[layer.layer], &**made.snapshotter());
        }
        Ok(())
    })
    .await?;
    drop(blob);
    stage.send_replace(LayerStage::Done);
    Ok(())
}

/// Streams the blob into the content store and a folder aside, checking both digests.
async fn unpack(
    store: &Arc<Store>,
    layer: &Missing,
    providers: &[Arc<dyn oci::Provider>],
    stage: &watch::Sender<LayerStage>,
) -> Result<(Extracted, Blob), StoreError> {
    let digest = layer.descriptor.digest;
    let (pieces, receiver) = mpsc::channel(WAITING);
    let extraction = {
        let (store, layer) = (store.clone(), layer.clone());
        blocking("unpack a layer", move || extract(&store, &layer, Pieces::new(receiver)))
    };
    let download = async {
        let blob = match store.content().hold(&digest) {
            Some(blob) => {
                send_local(store, &blob, pieces).await?;
                blob
            }
            None => download(store, &layer.descriptor, providers, Some(pieces), stage).await?,
        };
        stage.send_replace(LayerStage::Extracting);
        Ok::<_, StoreError>(blob)
    };
    let (extracted, blob) = tokio::join!(extraction, download);
    // A failed download shows as a broken tar too; it is the cause. A failed unpacking shows as a
    // download that nobody listens to.
    match (extracted, blob) {
        (Ok(extracted), Ok(blob)) => Ok((extracted, blob)),
        (Err(error), Err(StoreError::Interrupted(_))) => Err(error),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(error),
    }
}

fn extract(store: &Store, layer: &Missing, mut pieces: Pieces) -> Result<Extracted, StoreError> {
    let damaged = |error: io::Error| {
        StoreError::io(format!("unpack blob {}", layer.descriptor.digest), error)
    };
    let mut tar =
        compress::Decoder::new(&mut pieces, compress::Limits::default()).map_err(damaged)?;
    let lowers = distinct(&layer.lowers);
    let brake = store.snapshotter().brake().clone();
    let limits = snapshot::Limits { brake, ..snapshot::Limits::default() };
    let extracted = store.snapshotter().extract(&layer.layer, &lowers, &mut tar, &limits)?;
    drop(tar);
    // Whatever follows the compressed data belongs to the blob's digest.
    io::copy(&mut pieces, &mut io::sink()).map_err(damaged)?;
    match layer.diff_id {
        Some(expected) if expected != extracted.info.diff_id => Err(StoreError::WrongDiffId {
            blob: layer.descriptor.digest,
            expected,
            actual: extracted.info.diff_id,
        }),
        _ => Ok(extracted),
    }
}

/// Sends a blob that is here already.
async fn send_local(
    store: &Store,
    blob: &Blob,
    pieces: mpsc::Sender<Option<Bytes>>,
) -> Result<(), StoreError> {
    let mut file = store.content().open(&blob.digest())?;
    blocking("read a blob", move || {
        loop {
            let mut buffer = vec![0; 256 << 10];
            let read = io::Read::read(&mut file, &mut buffer)
                .map_err(|error| StoreError::io("read a blob", error))?;
            buffer.truncate(read);
            let piece = (read > 0).then(|| Bytes::from(buffer));
            let last = piece.is_none();
            if pieces.blocking_send(piece).is_err() {
                return Err(StoreError::Interrupted("unpacking".into()));
            }
            if last {
                return Ok(());
            }
        }
    })
    .await
}

/// Fetches a blob into the content store, passing it on while it comes. Providers are tried in
/// turn; once bytes were passed on the next one continues where the last one stopped.
pub(crate) async fn download(
    store: &Store,
    descriptor: &Descriptor,
    providers: &[Arc<dyn oci::Provider>],
    pieces: Option<mpsc::Sender<Option<Bytes>>>,
    stage: &watch::Sender<LayerStage>,
) -> Result<Blob, StoreError> {
    let digest = descriptor.digest;
    let total = descriptor.size;
    let mut writer = store.content().writer()?;
    writer.reserve(total)?;
    let mut failure = StoreError::NoProvider(digest);
    let mut told = 0;
    for provider in providers {
        stage.send_replace(LayerStage::Downloading { current: writer.written(), total });
        let outcome = async {
            let mut stream = provider
                .open(descriptor, writer.written())
                .await
                .map_err(|error| StoreError::Fetch { digest, source: error.into() })?;
            while let Some(piece) = stream.next().await {
                let piece =
                    piece.map_err(|error| StoreError::Fetch { digest, source: error.into() })?;
                let actual = writer.written() + piece.len() as u64;
                if actual > total {
                    return Err(StoreError::WrongSize { expected: total, actual });
                }
                io::Write::write_all(&mut writer, &piece)
                    .map_err(|error| StoreError::io(format!("store blob {digest}"), error))?;
                if let Some(pieces) = &pieces
                    && pieces.send(Some(piece)).await.is_err()
                {
                    return Err(StoreError::Interrupted("unpacking".into()));
                }
                if actual - told >= TELL_EVERY || actual == total {
                    told = actual;
                    stage.send_replace(LayerStage::Downloading { current: actual, total });
                }
            }
            Ok(())
        };
        match outcome.await {
            Ok(()) if writer.written() == total => {
                let info = BlobInfo {
                    annotations: descriptor.annotations.clone(),
                    ..BlobInfo::of_type(descriptor.media_type.clone())
                };
                let blob = writer.commit(Some(digest), Some(total), info)?;
                if let Some(pieces) = &pieces {
                    // Only now may the unpacking believe in the end.
                    _ = pieces.send(None).await;
                }
                return Ok(blob);
            }
            Ok(()) => failure = StoreError::WrongSize { expected: total, actual: writer.written() },
            Err(error @ StoreError::Fetch { .. }) => failure = error,
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

/// Pieces from the download as a reader. The end must be announced by `None`: a channel that just
/// closes is a download that failed.
struct Pieces {
    receiver: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Option<Bytes>>) -> Self {
        Self { receiver, piece: Bytes::new(), ended: false }
    }
}

impl io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "download failed"));
                }
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
