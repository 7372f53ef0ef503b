//! Keeps whiteouts from showing when a layer stands over other layers than it was written over.
//!
//! Overlay hides whiteouts only in folders that it merges. In `[base, left]` the folder `d` of
//! `left` is merged with that of `base`; in `[other, left]`, where `other` has no `d`, it is shown
//! as it is, whiteouts included, as names that cannot be opened. So each layer remembers what it
//! was written over (`snapshots/<layer>/over`), and anywhere else goes on top of its *skeleton*
//! (`snapshots/<layer>/skeleton`): empty folders for those of its folders that hold whiteouts, which
//! make overlay merge them.
//!
//! ```text
//! left/fs/d/          a file, and a whiteout of `d/x`     <- shown
//! left/skeleton/d/    empty                               <- makes `d` a merged folder
//! other/fs/
//! ```

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use base::{Digest, Hasher};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{
    LayerId, SnapshotError,
    folders::{Folders, Staged, bytes},
    layer::Marks,
    scoped,
    sys::{self, At, SysResult},
};

/// Link in the layer's folder whose text is an [`Over`].
const OVER: &str = "over";

/// Folder in the layer's folder.
const SKELETON: &str = "skeleton";

/// What a layer can stand over without its skeleton.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Anything, because it holds no whiteouts.
    Anything,
    /// The list of layers with this digest.
    These(Digest),
    /// Nothing that can be told; the skeleton exists.
    Nothing,
}

impl Over {
    /// Exactly these layers.
    pub fn of(lowers: &[LayerId]) -> Self {
        // Overlay makes no whiteouts where there is nothing to remove.
        if lowers.is_empty() {
            return Self::Anything;
        }
        let mut hasher = Hasher::new();
        for layer in lowers {
            hasher.update(layer.as_str());
            hasher.update([0]);
        }
        Self::These(hasher.finish())
    }

    /// Notes it in the folder of a layer that has no such note.
    pub fn write(self, folder: &Path) -> Result<(), SnapshotError> {
        let text = match self {
            Self::Anything => "anything".to_owned(),
            Self::These(digest) => digest.hex(),
            Self::Nothing => "nothing".to_owned(),
        };
        let path = folder.join(OVER);
        rustix::fs::symlink(text, &path).map_err(|error| SnapshotError::io("make", path, error))
    }

    fn read(folder: &Path) -> Result<Self, SnapshotError> {
        let path = folder.join(OVER);
        match sys::read_link(CWD, &bytes(&path)) {
            Ok(text) if text == b"anything" => Ok(Self::Anything),
            Ok(text) => {
                let digest =
                    str::from_utf8(&text).ok().and_then(|hex| format!("sha256:{hex}").parse().ok());
                Ok(digest.map_or(Self::Nothing, Self::These))
            }
            // Written by something older: nothing is known.
            Err(Errno::NOENT) => Ok(Self::Nothing),
            Err(error) => Err(SnapshotError::io("read", path, error)),
        }
    }
}

/// What is known of layers, and of skeletons made after their layers.
#[derive(Debug, Default)]
pub(crate) struct Skeletons {
    over: Mutex<HashMap<LayerId, Over>>,
    /// Held while a skeleton is made for an existing layer.
    making: Mutex<()>,
}

impl Skeletons {
    /// The skeleton that has to lie below `layer` when it stands over `lowers`.
    pub fn needed(
        &self,
        folders: &Folders,
        layer: &LayerId,
        lowers: &[LayerId],
    ) -> Result<Option<PathBuf>, SnapshotError> {
        let over = match self.known(layer) {
            Some(over) => over,
            None => {
                let over = Over::read(&folders.layer(layer))?;
                self.note(layer, over);
                over
            }
        };
        if over == Over::Anything || over == Over::of(lowers) {
            return Ok(None);
        }
        let path = folders.layer(layer).join(SKELETON);
        if !path.exists() {
            self.add(folders, layer, &path)?;
        }
        Ok(Some(path))
    }

    pub fn forget(&self, layer: &LayerId) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
    }

    /// Makes the skeleton of a layer that is being made, and removes whiteouts that mean nothing.
    pub fn make(&self, staged: &Staged, marks: &Marks) -> Result<Over, SnapshotError> {
        let found = whiteout_folders(&staged.files(), Some(marks))?;
        if found.is_empty() {
            return Ok(Over::Anything);
        }
        write(&staged.path().join(SKELETON), &found)?;
        Ok(Over::Nothing)
    }

    /// Makes the skeleton of an existing, frozen layer.
    fn add(&self, folders: &Folders, layer: &LayerId, path: &Path) -> Result<(), SnapshotError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            return Ok(());
        }
        let found = whiteout_folders(&folders.files(layer), None)?;
        let staged = folders.stage()?;
        write(&staged.path().join(SKELETON), &found)?;
        rustix::fs::rename(staged.path().join(SKELETON), path)
            .map_err(|error| SnapshotError::io("make", path, error))
    }

    fn known(&self, layer: &LayerId) -> Option<Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied()
    }

    fn note(&self, layer: &LayerId, over: Over) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.clone(), over);
    }
}

fn write(skeleton: &Path, folders: &[Vec<u8>]) -> Result<(), SnapshotError> {
    let failed = |error| SnapshotError::io("make", skeleton, error);
    let make = |at: BorrowedFd<'_>, path: &[u8]| -> SysResult<OwnedFd> {
        let mut at = scoped::open_folder(at, b"")?;
        for part in scoped::components(path) {
            match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
        }
        Ok(at)
    };
    rustix::fs::mkdir(skeleton, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let root = sys::open_dir(CWD, &bytes(skeleton)).map_err(failed)?;
    for path in folders {
        make(root.as_fd(), path).map_err(failed)?;
    }
    Ok(())
}

/// The folders below the root of `files` that hold whiteouts. With `tidy`, whiteouts below an
/// opaque folder are removed instead: nothing lies below them, and overlay would never merge them.
fn whiteout_folders(files: &Path, tidy: Option<&Marks>) -> Result<Vec<Vec<u8>>, SnapshotError> {
    let failed = |error| SnapshotError::io("look through", files, error);
    let mut found = Vec::new();
    let root = sys::open_dir(CWD, &bytes(files)).map_err(failed)?;
    let mut stack = vec![Visit { fd: root, path: Vec::new(), opaque: false, folders: Vec::new() }];
    stack[0].read(&mut found).map_err(failed)?;
    while let Some(top) = stack.last_mut() {
        let Some(name) = top.folders.pop() else {
            stack.pop();
            continue;
        };
        let mut next = || -> SysResult<Visit> {
            let fd = sys::open_dir(&top.fd, &name)?;
            let opaque = match tidy {
                Some(_) if top.opaque => true,
                Some(marks) => marks.is_opaque(At::Fd(fd.as_fd()))?,
                None => false,
            };
            let mut path = top.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let mut visit = Visit { fd, path, opaque, folders: Vec::new() };
            visit.read(&mut found)?;
            Ok(visit)
        };
        let visit = next().map_err(failed)?;
        if stack.len() >= sys::MAX_DEPTH {
            return Err(SnapshotError::TooDeep { path: files.to_owned() });
        }
        stack.push(visit);
    }
    Ok(found)
}

struct Visit {
    fd: OwnedFd,
    path: Vec<u8>,
    opaque: bool,
    folders: Vec<Box<[u8]>>,
}

impl Visit {
    fn read(&mut self, found: &mut Vec<Vec<u8>>) -> SysResult<()> {
        let mut holds = false;
        for entry in sys::read_dir(&self.fd)? {
            match entry.kind {
                FileType::Directory => self.folders.push(entry.name),
                FileType::CharacterDevice | FileType::Unknown => {
                    let meta = sys::stat_at(&self.fd, &entry.name)?;
                    if meta.is_dir() {
                        self.folders.push(entry.name);
                    } else if meta.is_whiteout() && self.opaque {
                        sys::remove_all(self.fd.as_fd(), &entry.name)?;
                    } else {
                        holds |= meta.is_whiteout();
                    }
                }
                _ => {}
            }
        }
        // Overlay always merges the root.
        if holds && !self.path.is_empty() {
            found.push(self.path.clone());
        }
        Ok(())
    }
}
