//! What can go wrong with snapshots as such; tars and file actions have their own enums.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::LayerId;

/// A snapshot operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The name cannot be a layer id.
    #[error("invalid layer id `{0}`")]
    BadId(String),
    /// Nothing of that name exists.
    #[error("layer {0} does not exist")]
    Missing(LayerId),
    /// The name is taken.
    #[error("layer {0} exists already")]
    Exists(LayerId),
    /// The layer was made over other layers than the ones given now.
    #[error("layer {layer} was made over other layers than those given")]
    OtherLowers {
        /// The layer.
        layer: LayerId,
    },
    /// The driver does not work on this machine or file system.
    #[error("the {driver} snapshotter cannot be used at {}: {reason}", root.display())]
    Unusable {
        /// Name of the driver.
        driver: &'static str,
        /// Folder it was opened on.
        root: PathBuf,
        /// What failed.
        reason: String,
    },
    /// Folders nested deeper than any sane tree.
    #[error("{}: folders are nested too deeply", path.display())]
    TooDeep {
        /// Where, as far as it is printed.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("{doing} {}: {cause}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

impl SnapshotError {
    /// An IO error met while `doing` something to `path`.
    pub fn io(doing: &'static str, path: impl AsRef<Path>, cause: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.as_ref().to_owned(), cause: cause.into() }
    }

    /// Whether the disk is full or a quota is used up.
    pub fn is_out_of_space(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        matches!(self, Self::Io { cause, .. } if full(cause))
    }
}
