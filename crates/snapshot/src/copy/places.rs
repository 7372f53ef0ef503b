//! Finding and making the folders that files go into.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{FileError, Owner};
use crate::{
    scoped::{self, Resolved},
    sys::{self, SysResult, Time},
};

/// A path inside a tree as people write it.
pub(super) fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path).trim_start_matches('/'))
}

/// Resolves a path, the last component included.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &str) -> Result<Resolved, FileError> {
    resolve_with(root, path, true)
}

/// Resolves a path; symlinks in the last component are followed with `follow`.
pub(super) fn resolve_with(
    root: BorrowedFd<'_>,
    path: &str,
    follow: bool,
) -> Result<Resolved, FileError> {
    // As text first: `a/../b` is `b` even if `a` is a link or does not exist.
    let clean = base::path::absolute(path);
    scoped::resolve(root, clean.as_bytes(), follow).map_err(|error| match error {
        Errno::LOOP => FileError::Refused(format!("too many links in {path}")),
        error => FileError::io("resolve", path, error),
    })
}

/// Opens the existing folder at a resolved path as a place for names.
pub(super) fn open_folder(root: BorrowedFd<'_>, real: &[u8]) -> SysResult<OwnedFd> {
    scoped::open(root, real, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
}

/// How folders are made that nobody described.
#[derive(Clone, Copy)]
pub(super) struct NewFolder {
    pub mode: u32,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

impl NewFolder {
    fn make(self, at: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(self.mode & 0o777))?;
        // The mode above is cut by the umask.
        sys::chmod(at, name, self.mode & 0o777)?;
        if let Some(Owner { uid, gid }) = self.owner {
            sys::chown(at, name, uid, gid)?;
        }
        Ok(())
    }

    /// Makes one folder.
    pub fn make_one(self, at: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        self.make(at, name)?;
        set_time(at, name, self.timestamp)
    }
}

/// Sets both times of a name, if there is a time to set.
pub(super) fn set_time(at: BorrowedFd<'_>, name: &[u8], timestamp: Option<i64>) -> SysResult<()> {
    match timestamp.map(Time::from_nanos) {
        Some(time) => sys::set_times(at, name, time, time),
        None => Ok(()),
    }
}

/// Makes the folder at a resolved path and what is missing above it. Gives the paths made,
/// outermost first; their times are set again once they are filled (see [`restore_times`]).
pub(super) fn make_folders(
    root: BorrowedFd<'_>,
    real: &[u8],
    new: NewFolder,
) -> Result<Vec<Vec<u8>>, FileError> {
    match open_folder(root, real) {
        Ok(_) => return Ok(Vec::new()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(FileError::io("mkdir", shown(real), error)),
    }
    let mut made = Vec::new();
    let mut at = open_folder(root, b"").map_err(|error| FileError::io("open", "/", error))?;
    let mut path = Vec::new();
    for part in scoped::components(real) {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
        let failed = |error| FileError::io("mkdir", shown(&path), error);
        at = match open_folder(at.as_fd(), part) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => {
                new.make(at.as_fd(), part).map_err(failed)?;
                made.push(path.clone());
                open_folder(at.as_fd(), part).map_err(failed)?
            }
            Err(Errno::LOOP) => return Err(failed(Errno::NOTDIR)),
            Err(error) => return Err(failed(error)),
        };
    }
    restore_times(root, &made, new.timestamp)?;
    Ok(made)
}

/// Sets the times of folders that were made, innermost first, after they got members.
pub(super) fn restore_times(
    root: BorrowedFd<'_>,
    made: &[Vec<u8>],
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    if timestamp.is_none() {
        return Ok(());
    }
    for path in made.iter().rev() {
        let (parent, name) = scoped::split(path);
        open_folder(root, parent)
            .and_then(|at| set_time(at.as_fd(), name, timestamp))
            .map_err(|error| FileError::io("set the times of", shown(path), error))?;
    }
    Ok(())
}
