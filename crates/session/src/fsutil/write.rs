//! Writes received entries below one folder.
//!
//! Every call works on a single name inside an open folder, and folders are opened from the root
//! with links refused, so no listing and no third party can lead it outside. A file that replaces
//! another is written under a temporary name first.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use base::gomode;
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    },
    io::Errno,
};

use super::{
    Stat, TransferError,
    stat::proc_path,
    walk::{open_folder, read_names},
};

/// Opens the folder at `path` (empty is the root itself).
pub(crate) fn open_below(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, TransferError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let relative = if path.is_empty() { "." } else { path };
    rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve)
        .map_err(TransferError::os(format!("open folder {path:?}")))
}

/// The last opened folder, since entries come folder by folder.
pub(crate) struct FolderCache {
    last: Option<(String, OwnedFd)>,
}

impl FolderCache {
    pub(crate) fn new() -> Self {
        Self { last: None }
    }

    pub(crate) fn open(
        &mut self,
        root: BorrowedFd<'_>,
        path: &str,
    ) -> Result<BorrowedFd<'_>, TransferError> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = Some((path.to_owned(), open_below(root, path)?));
        }
        Ok(self.last.as_ref().expect("it was just set").1.as_fd())
    }
}

/// Folder and name of a path.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

pub(crate) fn c_name(path: &str) -> Result<CString, TransferError> {
    CString::new(split(path).1)
        .map_err(|_| TransferError::BadPath { why: "unclean path", path: path.to_owned() })
}

/// A name no listing can know.
pub(crate) fn temporary() -> CString {
    CString::new(format!(".tmp.{}", base::id::random_id())).expect("base 36 has no zero byte")
}

/// Removes `name` with everything below it; absent is fine.
pub(crate) fn remove_all(folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // An explicit stack: the depth is the sender's choice.
    let mut stack: Vec<(CString, OwnedFd, std::vec::IntoIter<_>)> = Vec::new();
    let enter = |folder: BorrowedFd<'_>, name: CString| {
        let fd = match open_folder(folder, &name) {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(folder, &name, Mode::RWXU, AtFlags::empty())?;
                open_folder(folder, &name)?
            }
            other => other?,
        };
        let names = read_names(fd.as_fd())?.into_iter();
        Ok::<_, Errno>((name, fd, names))
    };
    stack.push(enter(folder, name.to_owned())?);
    while let Some((_, fd, names)) = stack.last_mut() {
        if let Some(next) = names.next() {
            let removed = match next.kind {
                FileType::Directory => Err(Errno::ISDIR),
                _ => rustix::fs::unlinkat(&*fd, &next.name, AtFlags::empty()),
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let entered = enter(fd.as_fd(), next.name)?;
                    stack.push(entered);
                }
                Err(errno) => return Err(errno),
            }
        } else {
            let (name, _, _) = stack.pop().expect("the loop saw it");
            let parent = stack.last().map_or(folder, |(_, fd, _)| fd.as_fd());
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(gomode::permissions(stat.mode))
}

fn times(mod_time: i64) -> Timestamps {
    let at = Timespec {
        tv_sec: mod_time.div_euclid(1_000_000_000),
        tv_nsec: mod_time.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: at, last_modification: at }
}

fn ignore_unsupported(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        // Attributes that this file system or this user cannot have are left out.
        Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => Ok(()),
        other => other,
    }
}

/// Owner, mode, attributes and time of an open regular file.
pub(crate) fn finish_file(file: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(file, Some(uid(stat)), Some(gid(stat)))?;
    rustix::fs::fchmod(file, mode_of(stat))?;
    for (name, value) in &stat.xattrs {
        ignore_unsupported(rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))?;
    }
    rustix::fs::futimens(file, &times(stat.mod_time))
}

/// Owner, mode and attributes of anything else; `time` too if wanted.
pub(crate) fn finish_other(
    folder: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    time: bool,
) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(folder, name, Some(uid(stat)), Some(gid(stat)), flags)?;
    if stat.mode & gomode::SYMLINK == 0 {
        rustix::fs::chmodat(folder, name, mode_of(stat), AtFlags::empty())?;
    }
    if !stat.xattrs.is_empty() {
        let path = proc_path(folder, name);
        for (name, value) in &stat.xattrs {
            let set = rustix::fs::lsetxattr(path.as_slice(), name, value, XattrFlags::empty());
            ignore_unsupported(set)?;
        }
    }
    if time { set_time(folder, name, stat.mod_time) } else { Ok(()) }
}

pub(crate) fn set_time(folder: BorrowedFd<'_>, name: &CStr, mod_time: i64) -> Result<(), Errno> {
    rustix::fs::utimensat(folder, name, &times(mod_time), AtFlags::SYMLINK_NOFOLLOW)
}

fn uid(stat: &Stat) -> Uid {
    Uid::from_raw(stat.uid)
}

fn gid(stat: &Stat) -> Gid {
    Gid::from_raw(stat.gid)
}

/// Creates a symlink, device or pipe, complete with metadata, under `name`.
pub(crate) fn create_special(
    folder: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
) -> Result<(), Errno> {
    if stat.mode & gomode::SYMLINK != 0 {
        rustix::fs::symlinkat(stat.linkname.as_str(), folder, name)?;
    } else {
        let kind = if stat.mode & gomode::CHAR_DEVICE != 0 {
            FileType::CharacterDevice
        } else if stat.mode & gomode::DEVICE != 0 {
            FileType::BlockDevice
        } else {
            FileType::Fifo
        };
        let number = |value: i64| u32::try_from(value).map_err(|_| Errno::INVAL);
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(stat.devmajor)?, number(stat.devminor)?),
        };
        rustix::fs::mknodat(folder, name, kind, Mode::from_raw_mode(0o600), device)?;
    }
    finish_other(folder, name, stat, true)
}

/// Creates the file that content goes to: under its own name, or, when it replaces something, under
/// a temporary one.
pub(crate) fn create_file(folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))
}

/// Puts the finished `temporary` in the place of `name`; a folder there goes first.
pub(crate) fn replace(folder: BorrowedFd<'_>, temporary: &CStr, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::renameat(folder, temporary, folder, name) {
        Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            remove_all(folder, name)?;
            rustix::fs::renameat(folder, temporary, folder, name)
        }
        other => other,
    }
}
