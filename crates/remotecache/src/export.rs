//! Writing a cache: layers first, then the config, then the manifest that names them.
//!
//! Invariant: what the manifest names is there before the manifest.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use base::gojson;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{Descriptor, Index, Manifest, Provider, Reference, Registry, content, media, types};

use crate::{
    Access, CacheError, Chains, ExportOptions, ExportTo, Layer, MEDIA_TYPE,
    fetch::{InMemory, OwnLayer},
};

/// Layers sent at once.
const PARALLEL: usize = 4;
/// The response key that tells clients what was written.
const RESPONSE: &str = "cache.manifest";

/// Told what is being done.
pub trait Progress: Send + Sync {
    /// A part began, or ended.
    fn status(&self, id: &str, started: SystemTime, completed: Option<SystemTime>);
}

/// A part under way: ended when dropped.
pub struct Step<'a> {
    progress: &'a dyn Progress,
    id: String,
    started: SystemTime,
}

impl<'a> Step<'a> {
    /// Begins a part.
    pub fn begin(progress: &'a dyn Progress, id: impl Into<String>) -> Self {
        let (id, started) = (id.into(), SystemTime::now());
        progress.status(&id, started, None);
        Self { progress, id, started }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.progress.status(&self.id, self.started, Some(SystemTime::now()));
    }
}

enum Target {
    Registry { registry: Arc<dyn Registry>, reference: Reference },
    Local(session::RemoteContent),
}

/// Writes the cache where the options say and returns what the client is told. A cache without
/// layers is not written. Inline caches are not written but carried, see [`crate::inline`].
pub async fn export(
    chains: &Chains,
    options: &ExportOptions,
    access: &Access,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, String>, CacheError> {
    let written = {
        let _step = Step::begin(progress, "preparing build cache for export");
        chains.write()
    };
    if written.layers.is_empty() {
        drop(Step::begin(progress, "skipping cache export for empty result"));
        return Ok(BTreeMap::new());
    }
    let Some(target) = Target::open(options, access).await? else { return Ok(BTreeMap::new()) };
    let mut distinct: BTreeMap<_, &Layer> = BTreeMap::new();
    for layer in &written.layers {
        distinct.entry(layer.descriptor.digest).or_insert(layer);
    }
    let sends: Vec<_> =
        distinct.into_values().map(|layer| send_layer(&target, layer, progress)).collect();
    stream::iter(sends).buffer_unordered(PARALLEL).try_collect::<()>().await?;

    let body = Bytes::from(gojson::to_vec(&written.config));
    let config = Descriptor::of(MEDIA_TYPE, &body);
    {
        let _step = Step::begin(progress, format!("writing config {}", config.digest));
        target.blob(&config, &InMemory(body), &[]).await?;
    }
    let layers = written.layers.iter().map(|layer| {
        let mut descriptor = layer.descriptor.clone();
        descriptor.media_type = media::convert_layer(&descriptor.media_type, options.oci, true);
        descriptor
    });
    let (kind, body) = document(options, config, layers.collect());
    let manifest = Descriptor::of(kind, &body);
    let what = if options.image_manifest { "cache image manifest" } else { "cache manifest" };
    {
        let _step = Step::begin(progress, format!("writing {what} {}", manifest.digest));
        target.manifest(&manifest, body.into()).await?;
    }
    Ok([(RESPONSE.to_owned(), gojson::to_string(&manifest))].into())
}

fn document(
    options: &ExportOptions,
    config: Descriptor,
    mut layers: Vec<Descriptor>,
) -> (String, Vec<u8>) {
    if options.image_manifest {
        let manifest = Manifest::new(options.oci, config, layers);
        return (manifest.media_type.clone(), gojson::to_vec(&manifest));
    }
    layers.push(config);
    let index = Index::new(options.oci, layers);
    (index.media_type.clone(), gojson::to_vec(&index))
}

async fn send_layer(
    target: &Target,
    layer: &Layer,
    progress: &dyn Progress,
) -> Result<(), CacheError> {
    let descriptor = &layer.descriptor;
    let _step = Step::begin(progress, format!("writing layer {}", descriptor.digest));
    let (tree, blob) = layer.origin.clone().ok_or_else(|| {
        CacheError::Invalid(format!("nobody has the bytes of layer {}", descriptor.digest))
    })?;
    let mut notes = blob.descriptor.annotations.clone();
    if let Some(info) = tree.store().content().info(&descriptor.digest) {
        notes.extend(info.annotations);
    }
    let elsewhere = repositories(&notes);
    target.blob(descriptor, &OwnLayer { tree, blob }, &elsewhere).await
}

/// Repositories that are known to have a blob.
fn repositories(notes: &BTreeMap<String, String>) -> Vec<Reference> {
    let hosts = notes.iter().filter_map(|(key, value)| {
        Some((key.strip_prefix(types::ANNOTATION_DISTRIBUTION_SOURCE)?, value))
    });
    let names =
        hosts.flat_map(|(host, paths)| paths.split(',').map(move |path| format!("{host}/{path}")));
    names.filter_map(|name| Reference::parse_complete(&name).ok()).collect()
}

impl Target {
    async fn open(options: &ExportOptions, access: &Access) -> Result<Option<Self>, CacheError> {
        Ok(match &options.to {
            ExportTo::Registry { reference, insecure } => {
                let registry = (access.registries)(*insecure);
                Some(Self::Registry { registry, reference: reference.clone() })
            }
            ExportTo::Local { dest } => {
                let doing = "reach the client that receives the cache";
                let ids = access.sessions.ids();
                let id = ids.iter().find(|id| !id.is_empty()).map_or("", String::as_str);
                let session = access.sessions.sessions().get(id).await;
                let session = session.map_err(CacheError::session(doing))?;
                Some(Self::Local(session.content(format!("local:{dest}"))))
            }
            ExportTo::Inline => None,
        })
    }

    async fn blob(
        &self,
        blob: &Descriptor,
        from: &dyn Provider,
        elsewhere: &[Reference],
    ) -> Result<(), CacheError> {
        let doing = format!("write blob {}", blob.digest);
        match self {
            Self::Registry { registry, reference } => {
                let pushed = registry.push_blob(reference, blob, from, elsewhere).await;
                pushed.map(drop).map_err(CacheError::registry(doing))
            }
            Self::Local(folder) => {
                let bytes = from.open(blob, 0).await.map_err(CacheError::registry(&doing))?;
                let bytes = content::verified(doing.clone(), blob, bytes);
                let sent = folder.write(&blob.digest, blob.size, BTreeMap::new(), bytes).await;
                sent.map(drop).map_err(CacheError::session(doing))
            }
        }
    }

    async fn manifest(&self, manifest: &Descriptor, body: Bytes) -> Result<(), CacheError> {
        match self {
            Self::Registry { registry, reference } => {
                let doing = format!("write cache manifest {reference}");
                let pushed = registry.push_manifest(reference, manifest, body).await;
                pushed.map_err(CacheError::registry(doing))
            }
            Self::Local(_) => self.blob(manifest, &InMemory(body), &[]).await,
        }
    }
}
