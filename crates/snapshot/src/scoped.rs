//! Paths that cannot leave a tree: symlinks and `..` are resolved as if the tree's root were `/`.
//!
//! [`open`] asks the kernel (`openat2`, `RESOLVE_IN_ROOT`); [`resolve`] walks itself, because it
//! also tells where a path leads that does not exist yet. Both agree on everything that exists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::sys::{self, SysResult};

/// Symlinks followed in one path before it counts as a loop.
const MOST_LINKS: usize = 255;

/// How often a resolution disturbed by concurrent renames is tried again.
const RETRIES: usize = 32;

/// Opens `path` below `root` for an existing entry. With `NOFOLLOW` in `flags` the last component
/// is not followed.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    let trimmed = match path.iter().position(|byte| *byte != b'/') {
        Some(start) => &path[start..],
        None => &b"."[..],
    };
    let scope = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RETRIES {
        match rustix::fs::openat2(root, trimmed, flags | OFlags::CLOEXEC, Mode::empty(), scope) {
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS) => return open_by_walking(root, trimmed, flags),
            other => return other,
        }
    }
    open_by_walking(root, trimmed, flags)
}

/// Opens a folder below `root` as a place for names (`O_PATH`).
pub(crate) fn open_folder(root: BorrowedFd<'_>, path: &[u8]) -> SysResult<OwnedFd> {
    open(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

fn open_by_walking(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    let follow = !flags.contains(OFlags::NOFOLLOW);
    let resolved = resolve(root, path, follow)?;
    let fd = resolved.fd.ok_or(Errno::NOENT)?;
    let flags = flags.difference(OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    if flags.contains(OFlags::PATH) {
        let is_dir = sys::stat_fd(&fd)?.is_dir();
        return if flags.contains(OFlags::DIRECTORY) && !is_dir {
            Err(Errno::NOTDIR)
        } else {
            Ok(fd)
        };
    }
    match sys::stat_fd(&fd)?.is_symlink() {
        true => Err(Errno::LOOP),
        // The descriptor is exactly what was resolved, so re-opening it follows nothing foreign.
        false => rustix::fs::open(sys::fd_path(&fd), flags, Mode::empty()),
    }
}

/// Where a path leads.
pub(crate) struct Resolved {
    /// The real path, relative to the root, without links and dots; empty for the root.
    pub path: Vec<u8>,
    /// What is there (`O_PATH`), if it exists.
    pub fd: Option<OwnedFd>,
}

impl Resolved {
    /// Real path of the containing folder, and the last component (empty for the root).
    pub fn split(&self) -> (&[u8], &[u8]) {
        split(&self.path)
    }
}

/// Splits a clean relative path at its last slash.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The components of a path that say something, `..` included.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Resolves `path` below `root`, following symlinks in all components but the last, and there too
/// with `follow`. Components that do not exist are kept as they are.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &[u8], follow: bool) -> SysResult<Resolved> {
    let mut pending: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let mut real: Vec<(Vec<u8>, Option<OwnedFd>)> = Vec::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == b".." {
            real.pop();
            continue;
        }
        let parent = match real.last() {
            None => Some(root),
            Some((_, fd)) => fd.as_ref().map(AsFd::as_fd),
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match parent {
            None => None,
            Some(parent) => match rustix::fs::openat(parent, &part[..], flags, Mode::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::NOENT | Errno::NOTDIR) => None,
                Err(error) => return Err(error),
            },
        };
        if let Some(fd) = &opened {
            let last = pending.is_empty();
            if (!last || follow) && sys::stat_fd(fd)?.is_symlink() {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = sys::read_link(fd, b"")?;
                if target.starts_with(b"/") {
                    real.clear();
                }
                pending.extend(components(&target).rev().map(<[u8]>::to_vec));
                continue;
            }
        }
        real.push((part, opened));
    }
    let names: Vec<&[u8]> = real.iter().map(|(name, _)| &name[..]).collect();
    let path = names.join(&b'/');
    let fd = match real.pop() {
        Some((_, fd)) => fd,
        None => Some(rustix::fs::openat(
            root,
            c".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?),
    };
    Ok(Resolved { path, fd })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::Tree;

    #[test]
    fn stays_in_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/file"), "x").unwrap();
        symlink("/a", at("abs")).unwrap();
        symlink("../../../../a/b", at("a/up")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("nowhere/x", at("dangling")).unwrap();
        let tree = Tree::of_folder(folder.path(), false).unwrap();
        let check = |path: &str, follow: bool, expected: &str, exists: bool| {
            let found = resolve(tree.fd(), path.as_bytes(), follow).unwrap();
            let shown = (String::from_utf8_lossy(&found.path).into_owned(), found.fd.is_some());
            assert_eq!(shown, (expected.to_owned(), exists), "{path}");
            let flags = OFlags::PATH | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
            assert_eq!(open(tree.fd(), path.as_bytes(), flags).is_ok(), exists, "{path}");
            assert_eq!(
                open_by_walking(tree.fd(), path.as_bytes(), flags).is_ok(),
                exists,
                "{path}"
            );
        };
        check("/", true, "", true);
        check("../../a/./b", true, "a/b", true);
        check("abs/up", true, "a/b", true);
        check("abs/up", false, "a/up", true);
        check("abs", false, "abs", true);
        check("dangling", true, "nowhere/x", false);
        check("a/file/x", true, "a/file/x", false);
        check("none/y", true, "none/y", false);
        assert_eq!(resolve(tree.fd(), b"loop", true).err(), Some(Errno::LOOP));
        assert!(open(tree.fd(), b"loop", OFlags::PATH).is_err());
        assert_eq!(resolve(tree.fd(), b"loop", false).unwrap().path, b"loop");
    }
}
