//! The image behind a container: from a name's descriptor to a tree and a config.

use std::sync::Arc;

use base::{Digest, Platform};
use frontend_api::{Code, FrontendError};
use oci::{Descriptor, ImageConfig, Index, Manifest, media, select, types};
use store::{ImageLayer, ImageLayers, LayerProgress, RecordKind, Ref, Store};

use crate::{Engine, failure};

/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 4;

/// An image of the store for one platform.
pub struct LocalImage {
    /// Its manifest.
    pub manifest: Manifest,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

impl LocalImage {
    /// Reads manifest and config of what `root` leads to; `name` is for errors.
    pub fn read(
        store: &Store,
        name: &str,
        root: &Descriptor,
        platform: &Platform,
    ) -> Result<Self, FrontendError> {
        let bad = |error: oci::Error| FrontendError::with_code(Code::NotFound, error.to_string());
        let read = |digest: &Digest, limit| {
            store.content().read(digest, limit).map_err(|_| {
                FrontendError::with_code(
                    Code::NotFound,
                    format!(
                        "image {name} is not complete for {}: pull it again",
                        platform.format()
                    ),
                )
            })
        };
        let mut descriptor = root.clone();
        for _ in 0..MAX_DEPTH {
            let body = read(&descriptor.digest, types::MAX_MANIFEST)?;
            let kind = media::detect_manifest(&body).unwrap_or(descriptor.media_type.clone());
            if media::is_index(&kind) {
                let index = Index::parse(name, &body).map_err(bad)?;
                descriptor = select::best(name, &index, platform).map_err(bad)?.clone();
                continue;
            }
            let manifest = Manifest::parse(name, &body).map_err(bad)?;
            let config = read(&manifest.config.digest, types::MAX_CONFIG)?;
            let config = ImageConfig::parse(&format!("config of {name}"), &config).map_err(bad)?;
            return Ok(Self { manifest, manifest_digest: descriptor.digest, config });
        }
        Err(FrontendError::new(format!("indexes of {name} are nested too deeply")))
    }

    /// The tree, unpacked where that has not happened yet; `None` for an image without layers.
    pub async fn unpack(
        &self,
        engine: &Arc<Engine>,
        name: &str,
        progress: LayerProgress,
    ) -> Result<Option<Ref>, FrontendError> {
        let manifest = &self.manifest;
        let blobs: Vec<_> =
            manifest.layers.iter().filter(|layer| media::is_layer(&layer.media_type)).collect();
        let diff_ids = &self.config.rootfs.diff_ids;
        if blobs.len() != diff_ids.len() {
            return Err(FrontendError::new(format!(
                "{name} is inconsistent: the manifest has {} layers, the config {}",
                blobs.len(),
                diff_ids.len()
            )));
        }
        let layer = |(blob, diff_id): (&Descriptor, &Digest)| {
            let descriptor = Descriptor { annotations: Default::default(), ..blob.clone() };
            ImageLayer {
                descriptor: descriptor
                    .annotate(types::ANNOTATION_UNCOMPRESSED, diff_id.to_string()),
                diff_id: *diff_id,
                created_at: None,
                description: None,
            }
        };
        let layers = blobs.into_iter().zip(diff_ids).map(layer).collect();
        let tree = engine.store().image(ImageLayers {
            layers,
            provider: Some(engine.machine().sources.providers()),
            description: format!("pulled from {name}"),
            kind: RecordKind::Regular,
            image_name: Some(name.to_owned()),
            keeps: vec![self.manifest_digest, manifest.config.digest],
        });
        let tree = tree.map_err(|error| failure::internal("look up an image's layers", error))?;
        if let Some(tree) = &tree {
            let unpacked = tree.ensure_local(progress).await;
            unpacked.map_err(|error| failure::from_op(&error.into()))?;
        }
        Ok(tree)
    }
}
