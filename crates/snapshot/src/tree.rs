//! A mounted tree of files, held by descriptor.

use std::{
    any::Any,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::SnapshotError;

/// A tree of files: the root of a detached mount, which nobody else's namespace shows. It unmounts
/// when the last clone is dropped; attaching it somewhere (`move_mount`) hands it over instead.
#[derive(Clone)]
pub struct Tree {
    fd: Arc<OwnedFd>,
    writable: bool,
    _keeps: Option<Arc<dyn Any + Send + Sync>>,
}

impl Tree {
    /// Descriptor of the root folder (`O_PATH`): for `openat2` and friends, and for `move_mount`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The root as a path of this process: `/proc/self/fd/N`. Links inside must not be trusted.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Whether files may be changed through it.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// A tree of an existing plain folder, for instance a folder of the user's.
    pub fn of_folder(path: &Path, writable: bool) -> Result<Self, SnapshotError> {
        let _ = (path, writable);
        unreachable!("not built yet")
    }

    /// A second detached mount of the same tree, to be attached to another namespace while this
    /// one stays usable. With `read_only` writes through the new one are refused.
    pub fn clone_mount(&self, read_only: bool) -> Result<OwnedFd, SnapshotError> {
        let _ = read_only;
        unreachable!("not built yet")
    }
}
