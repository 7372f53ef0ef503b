//! What a layer shows when it stands over other layers than it was made over, as merging asks.
//!
//! A layer remembers what it was made over (`snapshots/<layer>/over`). Anywhere else two things
//! would be wrong:
//!
//! * Overlay hides whiteouts only in folders that it merges. In `[base, left]` the folder `d` of
//!   `left` is merged with that of `base`; in `[other, left]`, where `other` has no `d`, it is shown
//!   as it is, whiteouts included, as names that cannot be opened. So such a layer goes on top of
//!   its *skeleton*: empty folders for those of its folders that hold whiteouts.
//! * An overlay folder says more than its layer tar would: opaque folders hide what never was below
//!   them, and files that were copied up but not changed hide changes of others. So such a layer is
//!   replaced by its *loose* form: just its changes, by hard links to its files.
//!
//! ```text
//! left/fs/d/          a file, and a whiteout of `d/x`     <- shown
//! left/skeleton/d/    empty                               <- makes `d` a merged folder
//! other/fs/
//! ```
//!
//! Both are made when first needed, for frozen layers only, and thrown away if the layer is written
//! again.

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{
    LayerId, SnapshotError, Tree,
    folders::{FILES, Folders, Staged, bytes},
    layer::{self, Marks},
    scoped,
    sys::{self, At, SysResult},
};

/// File in the layer's folder that holds an [`Over`].
const OVER: &str = "over";

/// Folders in the layer's folder.
const SKELETON: &str = "skeleton";
const LOOSE: &str = "loose";

/// So many notes are kept in memory: more than one mount asks for.
const MOST_KNOWN: usize = 1024;

/// What is known of how a layer was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// Without any mark that concerns other layers: it can stand anywhere.
    Plain,
    /// Written through a mount over these.
    Written(Arc<[LayerId]>),
    /// Unpacked from a tar that removes something from these. The skeleton exists if there are
    /// whiteouts.
    Unpacked(Arc<[LayerId]>),
    /// Made to stand anywhere, on its skeleton.
    Delta,
}

impl Over {
    /// For a layer that is about to be written over `lowers`.
    pub fn written(lowers: &[LayerId]) -> Self {
        // Overlay makes no marks where there is nothing to hide.
        if lowers.is_empty() { Self::Plain } else { Self::Written(lowers.into()) }
    }

    /// Notes it in the folder of a layer that has no such note.
    pub fn write(&self, folder: &Path) -> Result<(), SnapshotError> {
        let (kind, lowers) = match self {
            Self::Plain => ("plain", &[][..]),
            Self::Written(lowers) => ("written", &lowers[..]),
            Self::Unpacked(lowers) => ("unpacked", &lowers[..]),
            Self::Delta => ("delta", &[][..]),
        };
        let mut text = format!("{kind}\n");
        for layer in lowers {
            text.push_str(layer.as_str());
            text.push('\n');
        }
        let path = folder.join(OVER);
        fs::write(&path, text).map_err(|error| SnapshotError::io("write", path, error))
    }

    fn read(folders: &Folders, layer: &LayerId) -> Result<Self, SnapshotError> {
        let path = folders.layer(layer).join(OVER);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SnapshotError::Missing(layer.clone()));
            }
            other => other.map_err(|error| SnapshotError::io("read", &path, error))?,
        };
        let mut lines = text.lines();
        let kind = lines.next();
        let lowers = lines.map(LayerId::new).collect::<Result<_, _>>();
        match (kind, lowers) {
            (Some("plain"), _) => Ok(Self::Plain),
            (Some("delta"), _) => Ok(Self::Delta),
            (Some("written"), Ok(lowers)) => Ok(Self::Written(lowers)),
            (Some("unpacked"), Ok(lowers)) => Ok(Self::Unpacked(lowers)),
            _ => {
                let cause = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is damaged");
                Err(SnapshotError::io("read", path, cause))
            }
        }
    }
}

/// The folders that show a layer in one place: its files, and what has to lie below them.
pub(crate) struct Standing {
    pub files: PathBuf,
    pub skeleton: Option<PathBuf>,
}

/// What is known of layers.
#[derive(Debug, Default)]
pub(crate) struct Skeletons {
    over: Mutex<HashMap<LayerId, Over>>,
    /// Held while something is made for an existing layer.
    making: Mutex<()>,
}

impl Skeletons {
    /// How `layer` is shown over `lowers`. `mount` shows the layers it was made over.
    pub fn standing(
        &self,
        folders: &Folders,
        layer: &LayerId,
        lowers: &[LayerId],
        marks: &Marks,
        mount: &dyn Fn(&[LayerId]) -> Result<Tree, SnapshotError>,
    ) -> Result<Standing, SnapshotError> {
        let folder = folders.layer(layer);
        let own = |skeleton: bool| Standing {
            files: folder.join(FILES),
            skeleton: Some(folder.join(SKELETON)).filter(|path| skeleton && path.exists()),
        };
        let made_over = match self.over(folders, layer)? {
            Over::Plain => return Ok(own(false)),
            Over::Delta => return Ok(own(true)),
            Over::Written(made_over) if *made_over == *lowers => return Ok(own(false)),
            Over::Unpacked(made_over) if *made_over == *lowers => return Ok(own(true)),
            Over::Written(made_over) | Over::Unpacked(made_over) => made_over,
        };
        let loose = folder.join(LOOSE);
        if !loose.exists() {
            let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            if !loose.exists() {
                loosen(folders, layer, &mount(&made_over)?, marks)?;
            }
        }
        let skeleton = Some(loose.join(SKELETON)).filter(|path| path.exists());
        Ok(Standing { files: loose.join(FILES), skeleton })
    }

    /// Prepares for writing to `layer` over `lowers`: nothing made for the frozen layer will be right
    /// any more. It must have been made over these, if over any.
    pub fn thaw(
        &self,
        folders: &Folders,
        layer: &LayerId,
        lowers: &[LayerId],
    ) -> Result<(), SnapshotError> {
        match self.over(folders, layer)? {
            Over::Written(made_over) | Over::Unpacked(made_over) if *made_over == *lowers => {
                self.forget(folders, layer)
            }
            Over::Plain if lowers.is_empty() => Ok(()),
            Over::Plain => {
                Over::written(lowers).write(&folders.layer(layer))?;
                self.forget(folders, layer)
            }
            _ => Err(SnapshotError::OtherLowers { layer: layer.clone() }),
        }
    }

    /// Nothing made for the layer is of use any more.
    pub fn forget(&self, folders: &Folders, layer: &LayerId) -> Result<(), SnapshotError> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
        folders.throw(&folders.layer(layer).join(LOOSE)).map(drop)
    }

    fn over(&self, folders: &Folders, layer: &LayerId) -> Result<Over, SnapshotError> {
        let known = self.over.lock().unwrap_or_else(PoisonError::into_inner).get(layer).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let over = Over::read(folders, layer)?;
        let mut known = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(layer.clone(), over.clone());
        Ok(over)
    }
}

/// Makes the skeleton of a layer that is being made, and removes whiteouts that mean nothing. False
/// if there are no whiteouts.
pub(crate) fn make(staged: &Staged, marks: &Marks) -> Result<bool, SnapshotError> {
    let found = whiteout_folders(&staged.files(), Some(marks))?;
    if !found.is_empty() {
        write(&staged.path().join(SKELETON), &found)?;
    }
    Ok(!found.is_empty())
}

/// Makes the loose form of a frozen layer.
fn loosen(
    folders: &Folders,
    layer: &LayerId,
    base: &Tree,
    marks: &Marks,
) -> Result<(), SnapshotError> {
    let staged = folders.stage()?;
    layer::loosen(base, &folders.files(layer), &staged.files(), marks)?;
    make(&staged, marks)?;
    let target = folders.layer(layer).join(LOOSE);
    rustix::fs::rename(staged.path(), &target)
        .map_err(|error| SnapshotError::io("make", target, error))
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
