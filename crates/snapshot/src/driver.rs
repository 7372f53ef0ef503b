//! The seam every snapshot driver fills.
//!
//! Life of a layer: [`create`](Snapshotter::create) makes it empty over its lowers,
//! [`mount`](Snapshotter::mount) shows it writable, [`freeze`](Snapshotter::freeze) ends the writing,
//! after which it may be a lower of others, [`remove`](Snapshotter::remove) takes it away. A layer
//! that [`list`](Snapshotter::list) names is whole: half-made ones live elsewhere until renamed.

use std::{
    any::Any,
    fmt,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Brake, LayerError, LayerId, LayerInfo, Limits, SnapshotError, Tree, native::Native,
    overlay::Overlay,
};

/// Makes, mounts and removes layers. Lists of layers are ordered bottom first. All calls block;
/// none holds a lock while it works on files.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// Name for people and settings: `overlayfs` or `native`.
    fn name(&self) -> &'static str;

    /// Makes the empty, writable layer `layer` over `lowers`. Its root gets the owner of the root
    /// of the topmost lower and (overlay) mode 0755.
    fn create(&self, layer: &LayerId, lowers: &[LayerId]) -> Result<(), SnapshotError>;

    /// Shows `lowers`, and on top of them `upper`, which is then writable. Without `upper` the tree
    /// is read-only; with neither it is empty. `upper` must have been made over the same lowers,
    /// and be mounted only once at a time. Whiteouts never show, even in a tree of one layer.
    fn mount(&self, lowers: &[LayerId], upper: Option<&LayerId>) -> Result<Tree, SnapshotError>;

    /// Ends the writing to `layer`. Its tree must have been dropped. (Mounting it writable again
    /// takes the freezing back.)
    fn freeze(&self, layer: &LayerId) -> Result<(), SnapshotError>;

    /// Removes `layer` if it exists. The name is free at once; the files go in the background.
    fn remove(&self, layer: &LayerId) -> Result<(), SnapshotError>;

    /// Disk space held by the layer's own files.
    fn usage(&self, layer: &LayerId) -> Result<Usage, SnapshotError>;

    /// All layers that exist, sorted.
    fn list(&self) -> Result<Vec<LayerId>, SnapshotError>;

    /// The folder that holds the layer's own files, in the driver's representation.
    fn layer_path(&self, layer: &LayerId) -> PathBuf;

    /// Writes the uncompressed layer tar of `layer`, made over `lowers`.
    fn write_layer(
        &self,
        lowers: &[LayerId],
        layer: &LayerId,
        out: &mut dyn Write,
    ) -> Result<LayerInfo, LayerError>;

    /// Reads an uncompressed layer tar to its end and unpacks it aside. `lowers` need not exist
    /// yet, so that the layers of an image can be extracted in parallel;
    /// [`adopt`](Snapshotter::adopt) them bottom first.
    fn extract(
        &self,
        layer: &LayerId,
        lowers: &[LayerId],
        tar: &mut dyn Read,
        limits: &Limits,
    ) -> Result<Extracted, LayerError>;

    /// Makes an extracted layer exist, frozen. Its lowers must exist by now.
    fn adopt(&self, extracted: Extracted) -> Result<(), LayerError>;

    /// Extracts and adopts.
    fn apply_layer(
        &self,
        layer: &LayerId,
        lowers: &[LayerId],
        tar: &mut dyn Read,
        limits: &Limits,
    ) -> Result<LayerInfo, LayerError> {
        let extracted = self.extract(layer, lowers, tar, limits)?;
        let info = extracted.info;
        self.adopt(extracted)?;
        Ok(info)
    }

    /// Makes the frozen layer `layer` hold what turns the tree `lower` into the tree `upper`, as a
    /// general diff needs it. Mounted alone it shows what upper added or changed; mounted over
    /// other layers it also hides what upper removed.
    fn diff_layer(
        &self,
        layer: &LayerId,
        lower: &[LayerId],
        upper: &[LayerId],
    ) -> Result<(), SnapshotError>;

    /// Writes the uncompressed layer tar that turns the tree `lower` into the tree `upper`, by
    /// comparing both.
    fn write_diff(
        &self,
        lower: &[LayerId],
        upper: &[LayerId],
        out: &mut dyn Write,
    ) -> Result<LayerInfo, LayerError>;

    /// Bytes of layers that do not exist yet.
    fn being_made(&self) -> u64;

    /// Bytes of removed layers that have not gone yet.
    fn being_removed(&self) -> u64;

    /// Stops what this process writes to layers.
    fn brake(&self) -> &Brake;

    /// Brings everything written so far to the disk (one `syncfs`).
    fn sync(&self) -> Result<(), SnapshotError>;

    /// Whether removed layers have not really gone yet. What is being deleted is in no folder any
    /// more, and not free before that has been done.
    fn is_removing(&self) -> bool;

    /// Waits until all removed layers have really gone; for tests, accounting and shutdown.
    fn wait_removed(&self);
}

/// Disk space held by a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated blocks in bytes; hard-linked files count once.
    pub bytes: u64,
    /// Files, folders and others.
    pub inodes: u64,
}

/// A layer tar unpacked aside, waiting for [`Snapshotter::adopt`]; dropping it removes it.
pub struct Extracted {
    /// Diff id and sizes of the tar that was read.
    pub info: LayerInfo,
    pub(crate) layer: LayerId,
    pub(crate) lowers: Vec<LayerId>,
    pub(crate) state: Box<dyn Any + Send>,
}

/// Which driver to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Overlay if it works there, else native.
    #[default]
    Auto,
    /// Overlay or an error.
    Overlay,
    /// Plain copies.
    Native,
}

/// Opens the snapshot folder `root` (made if missing) with a driver; half-made layers and trash of
/// an earlier process are removed.
pub fn open(root: &Path, choice: Choice) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    match choice {
        Choice::Overlay => Ok(Arc::new(Overlay::open(root)?)),
        Choice::Native => Ok(Arc::new(Native::open(root)?)),
        Choice::Auto => match Overlay::open(root) {
            Ok(overlay) => Ok(Arc::new(overlay)),
            Err(SnapshotError::Unusable { reason, .. }) => {
                tracing::warn!("overlay cannot be used at {}: {reason}; copying", root.display());
                Ok(Arc::new(Native::open(root)?))
            }
            Err(error) => Err(error),
        },
    }
}
