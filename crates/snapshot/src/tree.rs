//! A mounted tree of files, held by descriptor.

use std::{
    any::Any,
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use crate::{Brake, SnapshotError, keeper, mounts};

/// A tree of files: the root of a detached mount, which nobody else's namespace shows. It unmounts
/// when the last clone is dropped; to attach it somewhere, take a [clone](Self::clone_mount).
#[derive(Clone)]
pub struct Tree {
    fd: Arc<OwnedFd>,
    writable: bool,
    brake: Brake,
    _keeps: Option<Arc<dyn Any + Send + Sync>>,
    /// Holds the mount for clones on kernels that need it.
    _kept: Option<Arc<keeper::Kept>>,
}

impl Tree {
    pub(crate) fn new(fd: OwnedFd, writable: bool) -> Self {
        let kept = keeper::keep(&fd).map(Arc::new);
        let brake = Brake::default();
        Self { fd: Arc::new(fd), writable, brake, _keeps: None, _kept: kept }
    }

    /// Writers through this tree ask `brake`.
    pub(crate) fn with_brake(mut self, brake: Brake) -> Self {
        self.brake = brake;
        self
    }

    pub(crate) fn brake(&self) -> &Brake {
        &self.brake
    }

    /// Keeps `guard` alive as long as any clone of the tree.
    pub(crate) fn with_guard(mut self, guard: Arc<dyn Any + Send + Sync>) -> Self {
        self._keeps = Some(guard);
        self
    }

    /// Descriptor of the root folder: for `openat2` and friends, and for `move_mount`. It may be
    /// good for paths only (`O_PATH`).
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

    /// A tree of an existing plain folder, for instance a folder of the user's. Where mounting is
    /// not allowed it is the folder itself, and read-only is only a promise.
    pub fn of_folder(path: &Path, writable: bool) -> Result<Self, SnapshotError> {
        let failed = |error| SnapshotError::io("open", path, error);
        let fd = match mounts::bind(path, !writable) {
            Ok(fd) => fd,
            Err(error) if may_do_without(&error) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty())
                    .map_err(|error| failed(error.into()))?
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self::new(fd, writable))
    }

    /// A second detached mount of the same tree, to be attached to another namespace while this
    /// one stays usable. With `read_only` writes through the new one are refused.
    pub fn clone_mount(&self, read_only: bool) -> Result<OwnedFd, SnapshotError> {
        mounts::clone_of(self.fd(), read_only || !self.writable)
            .map_err(|error| SnapshotError::io("clone the mount of", self.path(), error))
    }

    /// The root, opened for listing.
    pub(crate) fn open_root(&self) -> rustix::io::Result<OwnedFd> {
        crate::sys::open_dir(self.fd(), b".")
    }
}

/// Whether mounting is refused by rights or by an old kernel rather than because of the folder.
fn may_do_without(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.writable { "writable" } else { "read-only" };
        write!(f, "Tree({kind}, descriptor {})", self.fd.as_raw_fd())
    }
}
