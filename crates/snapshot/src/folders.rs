//! The snapshot folder as both drivers use it: one folder per layer, everything else under dots.
//!
//! ```text
//! snapshots/<layer>/fs      the layer's files
//! snapshots/.new/<random>   being made; renamed into place when whole
//! snapshots/.trash/<random> removed, not gone yet
//! snapshots/.empty          an empty folder
//! ```
//!
//! A crash leaves only things under dots behind, and those go at the next start.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{CWD, IFlags, RenameFlags};

use crate::{Brake, LayerId, SnapshotError, Usage, sys, trash::Trash, usage};

/// Name of the folder of a layer's files inside the layer's folder.
pub(crate) const FILES: &str = "fs";

#[derive(Debug)]
pub(crate) struct Folders {
    root: PathBuf,
    trash: Arc<Trash>,
    brake: Brake,
}

/// A folder being made aside. Dropping it removes it, unless it was committed.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    root: PathBuf,
    trash: Arc<Trash>,
    committed: bool,
}

impl Folders {
    /// Opens or makes the folder, and throws away what a crash left half-made.
    pub fn open(root: &Path) -> Result<Self, SnapshotError> {
        let make = |path: &Path| {
            fs::create_dir_all(path).map_err(|error| SnapshotError::io("make", path, error))
        };
        make(root)?;
        let root = root.canonicalize().map_err(|error| SnapshotError::io("open", root, error))?;
        let folders = Self {
            trash: Arc::new(Trash::open(root.join(".trash"))?),
            root: root.clone(),
            brake: Brake::default(),
        };
        folders.trash.throw(&root.join(".new"))?;
        make(&root.join(".new"))?;
        spread(&root.join(".new"));
        let empty = root.join(".empty");
        make(&empty)?;
        sys::chmod(CWD, &bytes(&empty), 0o755)
            .map_err(|error| SnapshotError::io("change the mode of", &empty, error))?;
        Ok(folders)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn brake(&self) -> &Brake {
        &self.brake
    }

    pub fn being_made(&self) -> u64 {
        self.bytes_below(".new")
    }

    pub fn being_removed(&self) -> u64 {
        self.bytes_below(".trash")
    }

    fn bytes_below(&self, name: &str) -> u64 {
        usage::of(&self.root.join(name)).map_or(0, |usage| usage.bytes)
    }

    pub fn empty(&self) -> PathBuf {
        self.root.join(".empty")
    }

    /// Folder of a layer.
    pub fn layer(&self, layer: &LayerId) -> PathBuf {
        self.root.join(layer.as_str())
    }

    /// Folder of a layer's files.
    pub fn files(&self, layer: &LayerId) -> PathBuf {
        let mut path = self.layer(layer);
        path.push(FILES);
        path
    }

    pub fn exists(&self, layer: &LayerId) -> bool {
        fs::symlink_metadata(self.layer(layer)).is_ok()
    }

    /// The first of the layers that does not exist, as an error.
    pub fn check<'a>(
        &self,
        layers: impl IntoIterator<Item = &'a LayerId>,
    ) -> Result<(), SnapshotError> {
        match layers.into_iter().find(|layer| !self.exists(layer)) {
            Some(missing) => Err(SnapshotError::Missing(missing.clone())),
            None => Ok(()),
        }
    }

    /// A fresh folder aside, with an empty folder for files in it.
    pub fn stage(&self) -> Result<Staged, SnapshotError> {
        let path = self.root.join(".new").join(base::id::random_id());
        let staged = Staged {
            path,
            root: self.root.clone(),
            trash: Arc::clone(&self.trash),
            committed: false,
        };
        for folder in [staged.path().to_owned(), staged.files()] {
            rustix::fs::mkdir(&folder, sys::mode_bits(0o755))
                .map_err(|error| SnapshotError::io("make", &folder, error))?;
        }
        Ok(staged)
    }

    pub fn remove(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        self.trash.throw(&self.layer(layer)).map(|_| ())
    }

    /// Takes something inside the snapshot folder away.
    pub fn throw(&self, path: &Path) -> Result<bool, SnapshotError> {
        self.trash.throw(path)
    }

    pub fn list(&self) -> Result<Vec<LayerId>, SnapshotError> {
        let failed = |error| SnapshotError::io("list", &self.root, error);
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            layers.extend(name.to_str().and_then(|name| LayerId::new(name).ok()));
        }
        layers.sort_unstable();
        Ok(layers)
    }

    pub fn usage(&self, layer: &LayerId) -> Result<Usage, SnapshotError> {
        match usage::of(&self.layer(layer)) {
            Err(SnapshotError::Io { cause, .. })
                if cause.kind() == std::io::ErrorKind::NotFound && !self.exists(layer) =>
            {
                Err(SnapshotError::Missing(layer.clone()))
            }
            other => other,
        }
    }

    pub fn sync(&self) -> Result<(), SnapshotError> {
        let sync = || -> std::io::Result<()> {
            let root = fs::File::open(&self.root)?;
            Ok(rustix::fs::syncfs(&root)?)
        };
        sync().map_err(|error| SnapshotError::io("sync", &self.root, error))
    }

    pub fn is_removing(&self) -> bool {
        self.trash.is_pending()
    }

    pub fn wait_removed(&self) {
        self.trash.wait();
    }
}

/// Has ext4 put each folder made in `folder` into a part of the disk of its own.
///
/// By itself it makes folders and files near their parent, and does not use the number of a file that
/// was deleted in the last minutes: each time it looks for a free number it passes over all of
/// those. Where a tree of twenty thousand files was removed, making another one takes ten times as long,
/// all of it processor time of the kernel. Other file systems do not know the flag or mind it.
fn spread(folder: &Path) {
    let Ok(folder) = fs::File::open(folder) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&folder) {
        _ = rustix::fs::ioctl_setflags(&folder, flags | IFlags::TOPDIR);
    }
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn files(&self) -> PathBuf {
        self.path.join(FILES)
    }

    /// Makes it exist as `layer`.
    pub fn commit(mut self, layer: &LayerId) -> Result<(), SnapshotError> {
        let target = self.root.join(layer.as_str());
        let renamed =
            rustix::fs::renameat_with(CWD, &self.path, CWD, &target, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {
                self.committed = true;
                Ok(())
            }
            Err(rustix::io::Errno::EXIST) => Err(SnapshotError::Exists(layer.clone())),
            Err(error) => Err(SnapshotError::io("make", &target, error)),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = self.trash.throw(&self.path) {
            tracing::warn!("{error}");
        }
    }
}

/// A path's bytes.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().to_vec()
}
