//! Caches inside image configs: the keys alone, whose results are the image's own layers.

use base::Digest;
use base64::Engine as _;
use bytes::Bytes;
use oci::{Descriptor, Index, Manifest, Provider, media, types};
use serde::Deserialize;

use crate::{
    CacheConfig, CacheError, Chains,
    config::{LayerEntry, LayerList, Moment, Record, TopLayer},
    fetch::document,
};

/// Annotation of a layer that tells what made it.
pub(crate) const DESCRIPTION: &str = "buildkit/description";
/// Indexes inside indexes.
const MAX_DEPTH: usize = 4;
/// Manifests under one index.
const MAX_IMAGES: usize = 256;

/// An image that carries a cache.
pub(crate) struct Image {
    pub config: CacheConfig,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ImageConfig {
    #[serde(rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    rootfs: RootFs,
    history: Option<Vec<History>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct History {
    created: Option<String>,
    created_by: String,
    empty_layer: bool,
}

/// All images under `root` that carry a cache.
pub(crate) async fn images(
    from: &dyn Provider,
    root: Descriptor,
    body: Bytes,
    warnings: &mut Vec<String>,
) -> Result<Vec<Image>, CacheError> {
    let mut images = Vec::new();
    let mut seen = 0;
    let mut waiting = vec![(root, Some(body), 0)];
    while let Some((descriptor, body, depth)) = waiting.pop() {
        seen += 1;
        if depth > MAX_DEPTH || seen > MAX_IMAGES {
            return Err(CacheError::Invalid(format!(
                "the image has more than {MAX_IMAGES} manifests or {MAX_DEPTH} levels of indexes"
            )));
        }
        let body = match body {
            Some(body) => body,
            None => document(from, &descriptor).await?,
        };
        let what = format!("manifest {}", descriptor.digest);
        let kind = media::detect_manifest(&body).unwrap_or_default();
        if media::is_index(&kind) {
            let index =
                Index::parse(&what, &body).map_err(CacheError::registry("read an image"))?;
            waiting.extend(index.manifests.into_iter().rev().map(|next| (next, None, depth + 1)));
        } else if media::is_manifest(&kind) {
            let manifest =
                Manifest::parse(&what, &body).map_err(CacheError::registry("read an image"))?;
            images.extend(image(from, &what, manifest, warnings).await?);
        }
    }
    Ok(images)
}

async fn image(
    from: &dyn Provider,
    what: &str,
    manifest: Manifest,
    warnings: &mut Vec<String>,
) -> Result<Option<Image>, CacheError> {
    if manifest.layers.is_empty() || !media::is_config(&manifest.config.media_type) {
        return Ok(None);
    }
    let body = document(from, &manifest.config).await?;
    let config: ImageConfig = serde_json::from_slice(&body)
        .map_err(|error| CacheError::Invalid(format!("image config of {what}: {error}")))?;
    let Some(cache) = config.cache else { return Ok(None) };
    let diff_ids = config.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        warnings.push(format!(
            "the inline cache of {what} is ignored: {} layers but {} diff ids",
            manifest.layers.len(),
            diff_ids.len()
        ));
        return Ok(None);
    }
    let bad = |error: String| CacheError::Invalid(format!("inline cache of {what}: {error}"));
    let json = base64::engine::general_purpose::STANDARD
        .decode(cache)
        .map_err(|error| bad(error.to_string()))?;
    let records: Option<Vec<Record>> =
        serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
    let history = config.history.unwrap_or_default();
    let mut made = history.into_iter().filter(|entry| !entry.empty_layer);
    let layers = manifest.layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| {
        let mut layer = layer.annotate(types::ANNOTATION_UNCOMPRESSED, diff_id.to_string());
        if let Some(entry) = made.next() {
            if let Some(created) = entry.created {
                layer = layer.annotate(types::ANNOTATION_CREATED_AT, created);
            }
            if !entry.created_by.is_empty() {
                layer = layer.annotate(DESCRIPTION, entry.created_by);
            }
        }
        layer
    });
    let layers: Vec<Descriptor> = layers.collect();
    let entries = layers.iter().enumerate();
    let entries =
        entries.map(|(place, layer)| LayerEntry { blob: layer.digest, parent: place as i64 - 1 });
    let config = CacheConfig { layers: entries.collect(), records: records.unwrap_or_default() };
    Ok(Some(Image { config, layers }))
}

/// The keys of a cache as the JSON that an image of these layers carries; `None` if none of the
/// results consists of them.
pub fn inline(chains: &Chains, image: &[Descriptor]) -> Option<Bytes> {
    let written = chains.write();
    let place = |layer: &Descriptor| {
        let by_digest = image.iter().position(|own| own.digest == layer.digest);
        by_digest.or_else(|| {
            let diff_id = layer.diff_id()?;
            image.iter().position(|own| own.diff_id() == Some(diff_id))
        })
    };
    let places: Vec<Option<i64>> = written
        .layers
        .iter()
        .map(|layer| place(&layer.descriptor).map(|place| place as i64))
        .collect();
    let mut records = written.config.records;
    let mut any = false;
    for record in &mut records {
        for top in std::mem::take(&mut record.layers) {
            let Some(list) = chain(&written.config.layers, &places, top.layer) else { continue };
            any = true;
            let is_image = list.iter().copied().eq(0..list.len() as i64);
            if is_image {
                let layer = list.len() as i64 - 1;
                record.layers.push(TopLayer { layer, created_at: top.created_at });
            } else {
                record.chains.push(LayerList { layers: list, created_at: Moment::default() });
            }
        }
    }
    any.then(|| base::gojson::to_vec(&records).into())
}

/// The image's numbers of a result's layers, bottom first; `None` if one is not of the image.
fn chain(layers: &[LayerEntry], places: &[Option<i64>], top: i64) -> Option<Vec<i64>> {
    let mut list = Vec::new();
    let mut next = top;
    while let Ok(number) = usize::try_from(next) {
        list.push(places[number]?);
        next = layers[number].parent;
    }
    list.reverse();
    Some(list)
}
