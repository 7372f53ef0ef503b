//! Reading a remote cache: its manifest, its config, or the configs of images with inline caches.
//!
//! Only documents are read here; layers stay where they are until a result is opened. What the
//! manifest is follows from its JSON: an index or manifest with a cache config, or an image.

use std::{collections::BTreeMap, sync::Arc};

use base::Digest;
use oci::{Descriptor, Index, Manifest, Provider, Registry, media, types};
use session::Group;

use crate::{
    CacheConfig, CacheError, Chains, ImportFrom, MEDIA_TYPE,
    fetch::{ClientFolder, Repository, document},
    inline,
};

/// Registries with the credentials of a build; the argument is "insecure".
pub type Registries = Arc<dyn Fn(bool) -> Arc<dyn Registry> + Send + Sync>;

/// How the outside is reached.
#[derive(Clone)]
pub struct Access {
    /// Registries.
    pub registries: Registries,
    /// Clients.
    pub sessions: Group,
}

/// A cache that was read.
pub struct Cache {
    /// Its keys and results.
    pub chains: Chains,
    /// Where its layers are.
    pub provider: Arc<dyn Provider>,
    /// Whether results are fetched when they are found, not when they are needed: the client may
    /// be gone by then.
    pub eager: bool,
    /// Parts that were left out, and why.
    pub warnings: Vec<String>,
}

/// Reads a cache.
pub async fn import(from: &ImportFrom, access: &Access) -> Result<Cache, CacheError> {
    match from {
        ImportFrom::Registry { reference, insecure, .. } => {
            let registry = (access.registries)(*insecure);
            let doing = "failed to configure registry cache importer";
            let root = registry.resolve(reference).await.map_err(CacheError::registry(doing))?;
            let provider = Arc::new(Repository { registry, reference: reference.clone() });
            let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, reference.domain());
            let label = Some((key, reference.path().to_owned()));
            read(provider, root, label, false).await
        }
        ImportFrom::Local { src, digest } => {
            let store = format!("local:{src}");
            let folder = ClientFolder { sessions: access.sessions.clone(), store };
            let root = folder.describe_blob(*digest).await?;
            read(Arc::new(folder), root, None, true).await
        }
    }
}

async fn read(
    provider: Arc<dyn Provider>,
    root: Descriptor,
    label: Option<(String, String)>,
    eager: bool,
) -> Result<Cache, CacheError> {
    let body = document(&*provider, &root).await?;
    let what = format!("manifest {}", root.digest);
    let kind = media::detect_manifest(&body).unwrap_or_default();
    let (config, layers) = if media::is_index(&kind) {
        let index = Index::parse(&what, &body).map_err(CacheError::registry("read the cache"))?;
        let is_config = |member: &Descriptor| member.media_type == MEDIA_TYPE;
        (index.manifests.iter().find(|member| is_config(member)).cloned(), index.manifests)
    } else if media::is_manifest(&kind) {
        let manifest =
            Manifest::parse(&what, &body).map_err(CacheError::registry("read the cache"))?;
        let config = Some(manifest.config).filter(|config| config.media_type == MEDIA_TYPE);
        (config, manifest.layers)
    } else {
        return Err(CacheError::Invalid(format!("{what} is of type {kind:?}")));
    };
    let mut chains = Chains::default();
    let mut warnings = Vec::new();
    match config {
        Some(config) => {
            let config = document(&*provider, &config).await?;
            let config = parse(&config)?;
            chains.read(&config, &by_digest(layers, label.as_ref()))?;
        }
        None => {
            for image in inline::images(&*provider, root, body, &mut warnings).await? {
                chains.read(&image.config, &by_digest(image.layers, label.as_ref()))?;
            }
        }
    }
    Ok(Cache { chains, provider, eager, warnings })
}

fn parse(body: &[u8]) -> Result<CacheConfig, CacheError> {
    serde_json::from_slice(body)
        .map_err(|error| CacheError::Invalid(format!("failed to unmarshal cache config: {error}")))
}

fn by_digest(
    layers: Vec<Descriptor>,
    label: Option<&(String, String)>,
) -> BTreeMap<Digest, Descriptor> {
    let layers = layers.into_iter().filter(|layer| media::is_layer(&layer.media_type));
    let labelled = layers.map(|layer| {
        let layer = match label {
            Some((key, value)) => layer.annotate(key, value),
            None => layer,
        };
        (layer.digest, layer)
    });
    labelled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> (Arc<dyn Provider>, Descriptor) {
        let folder =
            format!("{}/../../tests/golden/cache-export/{name}", env!("CARGO_MANIFEST_DIR"));
        let layout = oci::layout::Layout::open(std::path::Path::new(&folder)).expect("a layout");
        let root = layout.index().manifests[0].clone();
        (Arc::new(layout), root)
    }

    async fn check(name: &str) -> String {
        let (provider, root) = golden(name);
        let cache = read(provider, root, None, true).await.expect("a readable cache");
        assert!(cache.warnings.is_empty(), "{:?}", cache.warnings);
        let (store, records) = cache.chains.into_store("");
        let mut layers: Vec<usize> = records.values().map(Vec::len).collect();
        layers.sort_unstable();
        format!("{} keys, results of {layers:?} layers", store.len())
    }

    #[tokio::test]
    async fn recorded_caches() {
        let wanted = [
            ("local-chain-min", "9 keys, results of [1] layers"),
            ("local-chain-max", "9 keys, results of [1, 2, 3] layers"),
            ("image-chain-min", "10 keys, results of [1] layers"),
            ("image-chain-max", "10 keys, results of [1, 1, 2, 3] layers"),
            ("inline-image", "2 keys, results of [2] layers"),
        ];
        for (name, summary) in wanted {
            assert_eq!(check(name).await, summary, "{name}");
        }
    }
}
