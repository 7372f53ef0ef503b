//! The blobs of an assembled image, wherever they are.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use base::Digest;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{BlobStream, Descriptor, Provider, content};
use store::{Blob, LayerBlob, Ref, Store};
use tokio::io::AsyncSeekExt as _;

use crate::{ExportError, assemble::Assembled};

/// Lazy layers fetched at once.
const FETCHES: usize = 4;

/// Local blobs from the content store, lazy ones from where they were pulled from.
pub(crate) struct Blobs {
    store: Arc<Store>,
    lazy: HashMap<Digest, (Ref, LayerBlob)>,
    /// What the layers' own descriptors say of them.
    notes: HashMap<Digest, BTreeMap<String, String>>,
}

impl Blobs {
    pub(crate) fn new(store: Arc<Store>, image: &Assembled) -> Self {
        let layers = image.members.iter().flat_map(|member| &member.layers);
        let (mut lazy, mut notes) = (HashMap::new(), HashMap::new());
        for layer in layers {
            let Some((tree, blob)) = &layer.origin else { continue };
            let digest = layer.descriptor.digest;
            notes.insert(digest, blob.descriptor.annotations.clone());
            if !blob.local {
                lazy.insert(digest, (tree.clone(), blob.clone()));
            }
        }
        Self { store, lazy, notes }
    }

    /// Brings all lazy layers here; they stay while the answer is held.
    pub(crate) async fn fetch_all(&self) -> Result<Vec<Blob>, ExportError> {
        let fetches: Vec<_> = self.lazy.values().map(|(tree, blob)| fetch(tree, blob)).collect();
        stream::iter(fetches).buffer_unordered(FETCHES).try_collect().await
    }

    /// Other repositories that are known to have the blob, from the layer's own notes.
    pub(crate) fn sources(&self, digest: &Digest) -> Vec<oci::Reference> {
        let mut notes = self.store.content().info(digest).unwrap_or_default().annotations;
        notes.extend(self.notes.get(digest).cloned().unwrap_or_default());
        let mut found = Vec::new();
        for (key, value) in notes {
            let Some(host) = key.strip_prefix(oci::types::ANNOTATION_DISTRIBUTION_SOURCE) else {
                continue;
            };
            let names = value.split(',').filter(|path| !path.is_empty());
            found.extend(
                names.filter_map(|path| {
                    oci::Reference::parse_complete(&format!("{host}/{path}")).ok()
                }),
            );
        }
        found
    }
}

async fn fetch(tree: &Ref, blob: &LayerBlob) -> Result<Blob, ExportError> {
    let doing = format!("fetch layer {}", blob.descriptor.digest);
    tree.fetch_blob(blob).await.map_err(ExportError::store(doing))
}

#[async_trait]
impl Provider for Blobs {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        if self.store.content().contains(&blob.digest) {
            let what = || format!("read blob {}", blob.digest);
            let io = |source| oci::Error::Io { what: what(), source };
            let reader = self.store.content().reader(&blob.digest);
            let mut reader = reader.map_err(|error| io(std::io::Error::other(error)))?;
            reader.seek(std::io::SeekFrom::Start(offset)).await.map_err(io)?;
            return Ok(content::from_reader(reader));
        }
        match self.lazy.get(&blob.digest).and_then(|(tree, _)| tree.provider()) {
            Some(provider) => provider.open(blob, offset).await,
            None => Err(oci::Error::NotFound { what: format!("blob {}", blob.digest) }),
        }
    }

    fn describe(&self) -> String {
        "the image store".into()
    }
}
