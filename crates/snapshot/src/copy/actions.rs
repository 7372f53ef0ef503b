//! The small actions: make a folder, a file, a symlink; remove.

use std::{fs::File, io::Write as _, os::fd::AsFd as _};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{
    FileError, Owner,
    places::{self, NewFolder, shown},
    wildcard,
};
use crate::{Tree, scoped, sys};

/// Makes a folder; an existing path is left as it is. With `parents` missing ancestors are made too.
pub fn mkdir(
    tree: &Tree,
    path: &str,
    mode: u32,
    parents: bool,
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let new = NewFolder { mode, owner, timestamp };
    let place = places::resolve(tree.fd(), path)?;
    if parents {
        return places::make_folders(tree.fd(), &place.path, new).map(drop);
    }
    let (parent, name) = place.split();
    if name.is_empty() {
        return Ok(());
    }
    let failed = |error| FileError::io("mkdir", shown(&place.path), error);
    let at = places::open_folder(tree.fd(), parent).map_err(failed)?;
    match new.make_one(at.as_fd(), name) {
        Err(Errno::EXIST) => Ok(()),
        other => other.map_err(failed),
    }
}

/// Writes a file; an existing one is truncated and keeps its mode.
pub fn mkfile(
    tree: &Tree,
    path: &str,
    mode: u32,
    data: &[u8],
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let place = places::resolve(tree.fd(), path)?;
    let (parent, name) = place.split();
    let failed = |error: Errno| FileError::io("open", shown(&place.path), error);
    if name.is_empty() {
        return Err(failed(Errno::ISDIR));
    }
    let at = places::open_folder(tree.fd(), parent).map_err(failed)?;
    let common = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fresh = common | OFlags::CREATE | OFlags::EXCL;
    let fd = match rustix::fs::openat(&at, name, fresh, Mode::from_raw_mode(0o600)) {
        Ok(fd) => {
            sys::chmod_fd(&fd, mode & 0o777).map_err(failed)?;
            fd
        }
        Err(Errno::EXIST) => {
            rustix::fs::openat(&at, name, common | OFlags::TRUNC, Mode::empty()).map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    let mut file = File::from(fd);
    file.write_all(data).map_err(|error| FileError::io("write", shown(&place.path), error))?;
    if let Some(Owner { uid, gid }) = owner {
        let failed = |error| FileError::io("chown", shown(&place.path), error);
        sys::chown_fd(&file, uid, gid).map_err(failed)?;
    }
    drop(file);
    places::set_time(at.as_fd(), name, timestamp)
        .map_err(|error| FileError::io("set the times of", shown(&place.path), error))
}

/// Makes the symlink `new` with the text `old`.
pub fn symlink(
    tree: &Tree,
    old: &str,
    new: &str,
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let place = places::resolve(tree.fd(), new)?;
    let (parent, name) = place.split();
    let make = || -> sys::SysResult<()> {
        if name.is_empty() {
            return Err(Errno::EXIST);
        }
        let at = places::open_folder(tree.fd(), parent)?;
        rustix::fs::symlinkat(old, &at, name)?;
        if let Some(Owner { uid, gid }) = owner {
            sys::chown(&at, name, uid, gid)?;
        }
        places::set_time(at.as_fd(), name, timestamp)
    };
    make().map_err(|error| FileError::io("symlink", format!("{old} {}", shown(&place.path)), error))
}

/// Removes a file or a whole folder.
pub fn rm(
    tree: &Tree,
    path: &str,
    allow_not_found: bool,
    allow_wildcard: bool,
) -> Result<(), FileError> {
    if !allow_wildcard {
        return remove(tree, path.as_bytes(), allow_not_found);
    }
    for found in wildcard::resolve(tree.fd(), path, false)? {
        remove(tree, &found, allow_not_found)?;
    }
    Ok(())
}

fn remove(tree: &Tree, path: &[u8], allow_not_found: bool) -> Result<(), FileError> {
    let failed = |doing| {
        let path = shown(path);
        move |error| FileError::io(doing, path.clone(), error)
    };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in scoped::components(path) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let Some((name, parents)) = parts.split_last() else {
        return Err(FileError::Refused("rmPath: invalid empty path".into()));
    };
    let parent = scoped::resolve(tree.fd(), &parents.join(&b'/'), true).map_err(failed("stat"))?;
    let at = match places::open_folder(tree.fd(), &parent.path) {
        Err(Errno::NOENT | Errno::NOTDIR) if allow_not_found => return Ok(()),
        other => other.map_err(failed("stat"))?,
    };
    if !allow_not_found {
        // A symlink to nothing counts as nothing.
        let target = [&parent.path[..], b"/", name].concat();
        scoped::open(tree.fd(), &target, OFlags::PATH).map_err(failed("stat"))?;
    }
    sys::remove_all(at.as_fd(), name).map_err(failed("remove"))
}
