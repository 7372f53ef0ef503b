//! Lazy layers of images: known by descriptor, fetched and unpacked when needed.

use std::{sync::Arc, time::SystemTime};

use base::Digest;
use oci::Descriptor;

use crate::{Ref, RecordKind, Store, StoreError};

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
    /// Waits for another build that fetches the same layer, or for its turn.
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
        _ = image;
        unreachable!("not built yet")
    }
}
