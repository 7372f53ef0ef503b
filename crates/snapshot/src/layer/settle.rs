//! The last touches to a layer that was unpacked before the layers below it existed.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use rustix::fs::{CWD, OFlags};

use super::{Marks, Unpacked, is_overlay_private};
use crate::{
    LayerId, SnapshotError, Tree,
    folders::bytes,
    scoped,
    sys::{self, At, SysResult},
};

/// Gives the layer's root the owner of the root below it, unless the tar said something.
pub(crate) fn root_owner(
    files: &Path,
    below: &Path,
    unpacked: &Unpacked,
    top: &LayerId,
) -> Result<(), SnapshotError> {
    if unpacked.root_described {
        return Ok(());
    }
    let root = match sys::stat_at(CWD, &bytes(below)) {
        Ok(root) => root,
        Err(rustix::io::Errno::NOENT) => return Err(SnapshotError::Missing(top.clone())),
        Err(error) => return Err(SnapshotError::io("look at", below, error)),
    };
    sys::chown(CWD, &bytes(files), root.uid, root.gid)
        .map_err(|error| SnapshotError::io("change the owner of", files, error))
}

/// Folders the tar wrote into without describing them get the metadata they have below, where they
/// exist there.
pub(crate) fn implied_folders(
    files: &Path,
    base: &Tree,
    implied: &[Vec<u8>],
) -> Result<(), SnapshotError> {
    let root = sys::open_dir(CWD, &bytes(files))
        .map_err(|error| SnapshotError::io("open", files, error))?;
    for path in implied {
        let shown = || String::from_utf8_lossy(path).into_owned();
        copy_up(root.as_fd(), base.fd(), path)
            .map_err(|error| SnapshotError::io("copy up the folder", shown(), error))?;
    }
    Ok(())
}

fn copy_up(root: BorrowedFd<'_>, base: BorrowedFd<'_>, path: &[u8]) -> SysResult<()> {
    let folder = OFlags::RDONLY | OFlags::DIRECTORY;
    let source = match scoped::open(base, path, folder) {
        Ok(source) => source,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let target = scoped::open(root, path, folder | OFlags::NOFOLLOW)?;
    let meta = sys::stat_fd(&source)?;
    sys::chown_fd(&target, meta.uid, meta.gid)?;
    sys::chmod_fd(&target, meta.mode)?;
    for key in sys::list_xattrs(At::Fd(source.as_fd()))? {
        if is_overlay_private(&key) {
            continue;
        }
        if let Some(value) = sys::get_xattr(At::Fd(source.as_fd()), &key)? {
            match sys::set_xattr(At::Fd(target.as_fd()), &key, &value) {
                Ok(()) | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    sys::set_times_fd(&target, meta.atime, meta.mtime)
}

/// Overlay never takes its root for opaque, so a tar that empties the root is spelt out: whiteouts
/// for what is gone, opaque marks on folders that are new.
pub(crate) fn emptied_root(files: &Path, base: &Tree, marks: &Marks) -> Result<(), SnapshotError> {
    let spell = || -> SysResult<()> {
        let root = sys::open_dir(CWD, &bytes(files))?;
        for entry in sys::read_dir(base.open_root()?)? {
            match sys::try_stat_at(&root, &entry.name)? {
                None => sys::make_whiteout(&root, &entry.name)?,
                Some(meta) if meta.is_dir() => {
                    marks.set_opaque(At::Name(root.as_fd(), &entry.name))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    };
    spell().map_err(|error| SnapshotError::io("empty", files, error))
}
