//! One image for one platform: manifests and config, read through the content store.

use std::sync::Arc;

use base::{Digest, Platform, gojson};
use bytes::Bytes;
use oci::{
    Descriptor, ImageConfig, Index, Manifest, Provider, Reference, content, media, select, types,
};
use serde::Serialize;
use store::{Blob, BlobInfo, ImageLayer, Store};

use crate::{Providers, SourceError};

/// Annotations of layers that mean something wherever the layer goes. Others are the business of
/// the manifest they came in.
const KEPT_ANNOTATIONS: [&str; 2] =
    ["containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size"];
/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 4;

/// An image for one platform: everything but its layers.
pub(super) struct Resolved {
    /// For people: the name or layout.
    pub(super) name: String,
    /// What the name leads to.
    pub(super) root: Descriptor,
    pub(super) platform: Platform,
    pub(super) config: Bytes,
    pub(super) layers: Vec<ImageLayer>,
    pub(super) provider: Arc<dyn Provider>,
    /// Manifests and config, kept while the build may need them.
    pub(super) holds: Vec<Blob>,
}

impl Resolved {
    pub(super) fn leave(&self, providers: &Providers) {
        providers.add(self.layers.iter().map(|layer| layer.descriptor.digest), &self.provider);
    }

    /// The key of step 0.
    pub(super) fn manifest_key(&self, limit: Option<usize>) -> Digest {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            digest: Digest,
            #[serde(rename = "OS")]
            os: &'a str,
            arch: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            variant: &'a str,
            #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
            os_version: &'a str,
            #[serde(rename = "OSFeatures", skip_serializing_if = "<[_]>::is_empty")]
            os_features: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<usize>,
        }
        Digest::of(gojson::to_vec(&Key {
            digest: self.root.digest,
            os: &self.platform.os,
            arch: &self.platform.architecture,
            variant: &self.platform.variant,
            os_version: &self.platform.os_version,
            os_features: &self.platform.os_features,
            limit,
        }))
    }

    /// The key of step 1: by content, whatever the compression.
    pub(super) fn config_key(&self, limit: Option<usize>) -> Digest {
        let Ok(config) = ImageConfig::parse("image config", &self.config) else {
            return Digest::of(&self.config);
        };
        let diff_ids = &config.rootfs.diff_ids;
        let diff_ids = &diff_ids[..limit.unwrap_or(diff_ids.len()).min(diff_ids.len())];
        let chain =
            diff_ids.iter().copied().reduce(|chain, id| Digest::of(format!("{chain} {id}")));
        match chain {
            Some(chain) if config.rootfs.kind == "layers" => chain,
            _ => self.manifest_key(limit),
        }
    }
}

/// Reads manifests and config through the content store.
pub(super) struct Reader<'a> {
    pub(super) store: &'a Store,
    pub(super) provider: Arc<dyn Provider>,
    /// Repository to remember the documents' origin by.
    pub(super) source: Option<&'a Reference>,
}

impl Reader<'_> {
    pub(super) async fn read(
        self,
        name: &str,
        root: Descriptor,
        platform: &Platform,
    ) -> Result<Resolved, SourceError> {
        let mut holds = Vec::new();
        let mut manifest_descriptor = root.clone();
        let mut path = Vec::new();
        let mut manifest = None;
        for _ in 0..MAX_DEPTH {
            let descriptor = &manifest_descriptor;
            let what = format!("manifest {} of {name}", descriptor.digest);
            if descriptor
                .media_type
                .starts_with(media::DOCKER_MANIFEST_V1.trim_end_matches("+json"))
            {
                return Err(SourceError::Remote(format!(
                    "{name} has a schema 1 manifest, which is no longer supported: push the image \
                     again with a newer docker"
                )));
            }
            let body = self.document(descriptor, types::MAX_MANIFEST).await?;
            let is_index = match media::detect_manifest(&body) {
                Some(kind) => media::is_index(&kind),
                None => media::is_index(&descriptor.media_type),
            };
            if !is_index {
                manifest = Some((Manifest::parse(&what, &body)?, body));
                break;
            }
            let index = Index::parse(&what, &body)?;
            let next = select::best(name, &index, platform)?.clone();
            path.push((manifest_descriptor, body));
            manifest_descriptor = next;
        }
        let Some((manifest, body)) = manifest else {
            return Err(SourceError::Remote(format!("indexes of {name} are nested too deeply")));
        };
        let config_descriptor = &manifest.config;
        let config = self.document(config_descriptor, types::MAX_CONFIG).await?;
        holds.push(self.keep(config_descriptor, &config, [])?);
        let layers = layers(name, &manifest, &config, self.source)?;
        let children = manifest.layers.iter().map(|layer| layer.digest);
        holds.push(self.keep(
            &manifest_descriptor,
            &body,
            children.chain([config_descriptor.digest]),
        )?);
        let mut child = manifest_descriptor.digest;
        for (descriptor, body) in path.into_iter().rev() {
            // Only the chosen image is named: the others are not here.
            holds.push(self.keep(&descriptor, &body, [child])?);
            child = descriptor.digest;
        }
        Ok(Resolved {
            name: name.to_owned(),
            root,
            platform: platform.clone(),
            config,
            layers,
            provider: self.provider,
            holds,
        })
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        if let Ok(body) = self.store.content().read(&descriptor.digest, limit) {
            return Ok(body);
        }
        Ok(content::read_all(&*self.provider, descriptor, limit).await?)
    }

    fn keep(
        &self,
        descriptor: &Descriptor,
        body: &[u8],
        children: impl IntoIterator<Item = Digest>,
    ) -> Result<Blob, SourceError> {
        let mut info = BlobInfo::of_type(&descriptor.media_type).referencing(children);
        if let Some(source) = self.source {
            let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, source.domain());
            let known = self.store.content().info(&descriptor.digest).unwrap_or_default().labels;
            let mut paths: Vec<_> = known
                .get(&key)
                .map(|all| all.split(',').map(str::to_owned).collect())
                .unwrap_or_default();
            if !paths.iter().any(|path| path == source.path()) {
                paths.push(source.path().to_owned());
            }
            info.labels.insert(key, paths.join(","));
        }
        Ok(self.store.content().put(body, info)?)
    }
}

/// The layers of a manifest with the diff ids of its config. `source` is remembered with them, so
/// that a push to the same registry can mount instead of sending.
fn layers(
    name: &str,
    manifest: &Manifest,
    config: &[u8],
    source: Option<&Reference>,
) -> Result<Vec<ImageLayer>, SourceError> {
    // Files are layers; an artifact's other blobs are not part of the tree.
    let blobs: Vec<_> = manifest.layers.iter().filter(|l| media::is_layer(&l.media_type)).collect();
    if blobs.is_empty() {
        return Ok(Vec::new());
    }
    let parsed = ImageConfig::parse(&format!("config of {name}"), config)?;
    let diff_ids = parsed.rootfs.diff_ids;
    if blobs.len() != diff_ids.len() {
        return Err(SourceError::Remote(format!(
            "{name} is inconsistent: the manifest has {} layers, the config {}",
            blobs.len(),
            diff_ids.len()
        )));
    }
    let layer = |(blob, diff_id): (&Descriptor, Digest)| {
        let mut descriptor = blob.clone();
        descriptor.annotations.retain(|key, _| KEPT_ANNOTATIONS.contains(&key.as_str()));
        descriptor = descriptor.annotate(types::ANNOTATION_UNCOMPRESSED, diff_id.to_string());
        if let Some(source) = source {
            let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, source.domain());
            descriptor = descriptor.annotate(&key, source.path());
        }
        ImageLayer { descriptor, diff_id, created_at: None, description: None }
    };
    Ok(blobs.into_iter().zip(diff_ids).map(layer).collect())
}
