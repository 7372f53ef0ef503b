//! Wire entries from files on disk.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CStr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use base::gomode;
use bytes::Bytes;
use rustix::{
    fs::{AtFlags, Statx, StatxFlags},
    io::Errno,
};

use super::{Stat, TransferError};

/// First path seen of each file with several names.
pub(crate) type SeenFiles = HashMap<(u32, u32, u64), String>;

pub(crate) fn statx(folder: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS)
}

/// Mtime in nanoseconds since the epoch.
pub(crate) fn mod_time(found: &Statx) -> i64 {
    found
        .stx_mtime
        .tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(found.stx_mtime.tv_nsec))
}

/// The entry for `name` in `folder`, without extended attributes. A further name of a file keeps
/// the size, in case it becomes the first one.
pub(crate) fn build(
    folder: BorrowedFd<'_>,
    name: &CStr,
    path: String,
    seen: &mut SeenFiles,
) -> Result<(Stat, Statx), TransferError> {
    let found = statx(folder, name).map_err(TransferError::os(format!("stat {path}")))?;
    let mode = gomode::from_unix(u32::from(found.stx_mode));
    let mut stat = Stat {
        // Sockets travel as empty files.
        mode: mode & !gomode::SOCKET,
        uid: found.stx_uid,
        gid: found.stx_gid,
        mod_time: mod_time(&found),
        ..Stat::default()
    };
    if mode & gomode::DIR == 0 {
        stat.size = i64::try_from(found.stx_size).unwrap_or(i64::MAX);
        if mode & gomode::DEVICE != 0 {
            stat.devmajor = found.stx_rdev_major.into();
            stat.devminor = found.stx_rdev_minor.into();
        }
        if mode & gomode::SYMLINK != 0 {
            stat.linkname = read_link(folder, name, &path)?;
        } else if found.stx_nlink > 1 {
            let inode = (found.stx_dev_major, found.stx_dev_minor, found.stx_ino);
            match seen.get(&inode) {
                Some(first) => stat.linkname.clone_from(first),
                None => _ = seen.insert(inode, path.clone()),
            }
        }
    }
    stat.path = path;
    Ok((stat, found))
}

pub(crate) fn read_link(
    folder: BorrowedFd<'_>,
    name: &CStr,
    path: &str,
) -> Result<String, TransferError> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new())
        .map_err(TransferError::os(format!("read link {path}")))?;
    target
        .into_string()
        .map_err(|error| TransferError::NotText(error.into_cstring().to_string_lossy().into()))
}

/// Extended attributes of `name` in `folder`; none where the file system has none.
pub(crate) fn xattrs(
    folder: BorrowedFd<'_>,
    name: &CStr,
) -> Result<BTreeMap<String, Bytes>, Errno> {
    let path = proc_path(folder, name);
    let mut names = vec![0u8; 1024];
    let length = loop {
        match rustix::fs::llistxattr(path.as_slice(), names.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 16 => names.resize(names.len() * 8, 0),
            Err(Errno::NOTSUP | Errno::NOENT) => return Ok(BTreeMap::new()),
            Err(errno) => return Err(errno),
        }
    };
    let mut all = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        if text.starts_with("com.apple.") {
            continue;
        }
        let mut value = vec![0u8; 1 << 16];
        // It may have gone meanwhile, or be unreadable for us: then it is not sent.
        if let Ok(length) = rustix::fs::lgetxattr(path.as_slice(), text, value.as_mut_slice()) {
            value.truncate(length);
            all.insert(text.to_owned(), value.into());
        }
    }
    Ok(all)
}

/// A path for the calls that take no folder descriptor.
pub(crate) fn proc_path(folder: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}
