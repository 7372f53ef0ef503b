//! The caches that builds under way import from, and the results taken out of them.
//!
//! A result found in an import has a name that leads back here ([`Imports::open`]): it becomes a
//! lazy chain of layers in the store, whose bytes come from the cache. An import lives as long as
//! the build that asked for it; a name that outlived it opens nothing, which the solver takes as a
//! miss.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use base::{Digest, time};
use oci::{Descriptor, Provider, types};
use solver::{Import, RecordId};
use store::{ImageLayer, ImageLayers, RecordKind, Ref, Store};

use crate::{Cache, CacheError, inline::DESCRIPTION};

const PREFIX: &str = "import-";

/// All open imports.
#[derive(Default)]
pub struct Imports {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Weak<Opened>>>,
}

/// An import of a build.
pub struct Opened {
    /// For the solver.
    pub import: Arc<Import>,
    results: HashMap<RecordId, Vec<Descriptor>>,
    provider: Arc<dyn Provider>,
    eager: bool,
}

impl Opened {
    /// Where its layers are.
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.provider
    }

    /// All its layers.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.results.values().flatten().map(|layer| layer.digest)
    }

    fn layers(&self, record: &RecordId) -> Result<&[Descriptor], CacheError> {
        let layers = self.results.get(record).map(Vec::as_slice);
        layers.ok_or_else(|| CacheError::Invalid(format!("{} has no {record}", self.import.id)))
    }

    /// The result as a chain of lazy layers.
    fn tree(&self, store: &Arc<Store>, layers: &[Descriptor]) -> Result<Ref, CacheError> {
        let image = ImageLayers {
            layers: layers.iter().map(image_layer).collect::<Result<_, _>>()?,
            provider: Some(self.provider.clone()),
            description: format!("imported from {}", self.import.id),
            kind: RecordKind::Regular,
            image_name: None,
            keeps: Vec::new(),
        };
        let tree = store.image(image).map_err(CacheError::store("note imported layers"))?;
        tree.ok_or_else(|| CacheError::Invalid("a result without layers".into()))
    }
}

impl Imports {
    /// Makes a cache that was read available under the name `id`.
    pub fn add(&self, id: &str, cache: Cache) -> Arc<Opened> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (store, results) = cache.chains.into_store(&format!("{PREFIX}{number}/"));
        let opened = Arc::new(Opened {
            import: Arc::new(Import { id: id.into(), store }),
            results,
            provider: cache.provider,
            eager: cache.eager,
        });
        let mut open = self.open.lock().expect("no panic while holding imports");
        open.retain(|_, import| import.strong_count() > 0);
        open.insert(number, Arc::downgrade(&opened));
        opened
    }

    /// The import that a result's name leads to.
    pub fn find(&self, record: &RecordId) -> Option<Arc<Opened>> {
        let (number, _) = record.0.strip_prefix(PREFIX)?.split_once('/')?;
        let number: u64 = number.parse().ok()?;
        let open = self.open.lock().expect("no panic while holding imports");
        open.get(&number).and_then(Weak::upgrade)
    }

    /// Brings a result into the store.
    pub async fn open(&self, store: &Arc<Store>, record: &RecordId) -> Result<Ref, CacheError> {
        let opened = self
            .find(record)
            .ok_or_else(|| CacheError::Invalid(format!("the import of {record} has ended")))?;
        let tree = opened.tree(store, opened.layers(record)?)?;
        if opened.eager {
            let progress = store::no_progress();
            tree.ensure_local(progress)
                .await
                .map_err(CacheError::store(format!("fetch layers from {}", opened.import.id)))?;
        }
        Ok(tree)
    }

    /// Results whose layers are the lower ones (or all) of `record`, which was opened before: their
    /// names there and here.
    pub fn came_along(&self, store: &Arc<Store>, record: &RecordId) -> Vec<(RecordId, RecordId)> {
        let Some(opened) = self.find(record) else { return Vec::new() };
        let Ok(layers) = opened.layers(record) else { return Vec::new() };
        let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
        let lower = opened.results.iter().filter(|(_, other)| {
            other.len() <= digests.len()
                && other.iter().zip(&digests).all(|(layer, digest)| layer.digest == *digest)
        });
        let opened_too = lower.filter_map(|(name, other)| {
            let tree = opened.tree(store, other).ok()?;
            tree.keep();
            Some((name.clone(), store.result_id(Some(tree.id()))))
        });
        opened_too.collect()
    }
}

fn image_layer(descriptor: &Descriptor) -> Result<ImageLayer, CacheError> {
    let diff_id = descriptor.diff_id().ok_or_else(|| {
        CacheError::Invalid(format!("layer {} does not tell its diff id", descriptor.digest))
    })?;
    let mut descriptor = descriptor.clone();
    let created = descriptor.annotations.remove(types::ANNOTATION_CREATED_AT);
    let description = descriptor.annotations.remove(DESCRIPTION);
    Ok(ImageLayer {
        created_at: created.and_then(|text| time::parse_rfc3339(&text)),
        description: Some(description.unwrap_or_else(|| format!("imported {}", descriptor.digest))),
        diff_id,
        descriptor,
    })
}
