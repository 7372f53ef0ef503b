//! Exporters by type name.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use store::Store;

use crate::{ExportError, ExportRequest, Exported, archive, files, image, tarball};

/// An exporter with its attributes checked.
///
/// Contract: `export` may be called once per build, several exporters at a time. It reads the refs,
/// never changes them, and leaves nothing behind on failure but blobs for the next collection.
#[async_trait]
pub trait Exporter: Send + Sync {
    /// Type name: `image`, `oci`, ….
    fn kind(&self) -> &'static str;

    /// What the vertex is called: `exporting to image`.
    fn name(&self) -> &'static str;

    /// The attributes as given, for history.
    fn attrs(&self) -> &BTreeMap<String, String>;

    /// Whether it needs layer blobs (and so can carry an inline cache).
    fn is_image(&self) -> bool {
        false
    }

    /// Takes the result out.
    async fn export(&self, request: ExportRequest) -> Result<Exported, ExportError>;
}

/// All exporters over one store.
#[derive(Clone)]
pub struct Exporters {
    store: Arc<Store>,
}

impl Exporters {
    /// Exporters for refs of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Finds the exporter and checks its attributes. `compatibility` is 10, 20 or 30.
    pub fn resolve(
        &self,
        kind: &str,
        attrs: BTreeMap<String, String>,
        compatibility: u32,
    ) -> Result<Arc<dyn Exporter>, ExportError> {
        let store = self.store.clone();
        Ok(match kind {
            "image" => Arc::new(image::Image::new(store, attrs, compatibility)?),
            "oci" | "docker" => {
                Arc::new(archive::Archive::new(store, kind == "docker", attrs, compatibility)?)
            }
            "local" => Arc::new(files::Local::new(attrs)?),
            "tar" => Arc::new(tarball::Tar::new(attrs)?),
            other => return Err(ExportError::UnknownType(other.to_owned())),
        })
    }
}
