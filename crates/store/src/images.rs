//! Names of images and the manifests they point to.
//!
//! A name keeps its manifest and everything that speaks of (config, layers, members of an
//! index). A change outlives the daemon before the caller is told.

use std::{collections::BTreeMap, sync::Mutex};

use oci::Descriptor;

use crate::{Image, Store, StoreError, meta::T, model::now};

/// The named images of a store.
pub struct Images<'a> {
    pub(crate) store: &'a Store,
}

/// All names in memory.
pub(crate) type ImageMap = Mutex<BTreeMap<String, Image>>;

impl Images<'_> {
    /// All images by name.
    pub fn list(&self) -> Vec<Image> {
        self.map().lock().unwrap().values().cloned().collect()
    }

    /// The image called `name`.
    pub fn get(&self, name: &str) -> Option<Image> {
        self.map().lock().unwrap().get(name).cloned()
    }

    /// Points `name` at `descriptor`, durably. The manifest must be in the content store; layers
    /// may be missing (lazy).
    pub async fn tag(&self, name: &str, descriptor: Descriptor) -> Result<Image, StoreError> {
        self.tag_with_labels(name, descriptor, BTreeMap::new()).await
    }

    /// [`tag`](Self::tag) with free labels.
    pub async fn tag_with_labels(
        &self,
        name: &str,
        descriptor: Descriptor,
        labels: BTreeMap<String, String>,
    ) -> Result<Image, StoreError> {
        let hold = self.store.content().hold(&descriptor.digest);
        let hold = hold.ok_or(StoreError::NoBlob(descriptor.digest))?;
        let image = {
            let mut map = self.map().lock().unwrap();
            let updated_ns = now();
            let created_ns = map.get(name).map_or(updated_ns, |image| image.created_ns);
            let image = Image { name: name.to_owned(), descriptor, created_ns, updated_ns, labels };
            let bytes = serde_json::to_vec(&image).expect("an image has a JSON form");
            self.store.meta().set(T::Images, name, Some(bytes.into()));
            map.insert(name.to_owned(), image.clone());
            image
        };
        self.store.flush().await?;
        drop(hold);
        Ok(image)
    }

    /// Removes a name, durably. What only it kept goes with the next collection.
    pub async fn remove(&self, name: &str) -> Result<Image, StoreError> {
        let image = {
            let mut map = self.map().lock().unwrap();
            let image = map.remove(name).ok_or_else(|| StoreError::NoImage(name.to_owned()))?;
            self.store.meta().set(T::Images, name, None);
            image
        };
        self.store.flush().await?;
        Ok(image)
    }

    fn map(&self) -> &ImageMap {
        self.store.image_map()
    }
}
