//! Sources with wildcards, resolved against a tree.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use base::pattern::glob_match;
use rustix::fs::{FileType, OFlags};

use super::{FileError, places};
use crate::{scoped, sys};

/// Whether the text has an unescaped `*`, `?` or `[`.
pub(crate) fn has_wildcard(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// The paths that `pattern` stands for, in name order, as bytes relative to the root; a pattern
/// without wildcards is itself. Matching folders are not looked into.
pub(super) fn resolve(
    root: BorrowedFd<'_>,
    pattern: &str,
    follow: bool,
) -> Result<Vec<Vec<u8>>, FileError> {
    let clean = base::path::absolute(pattern);
    let parts: Vec<&str> = clean.split('/').filter(|part| !part.is_empty()).collect();
    let Some(first) = parts.iter().position(|part| has_wildcard(part)) else {
        return Ok(vec![clean.into_bytes()]);
    };
    let (front, rest) = parts.split_at(first);
    let front = front.join("/");
    let missing =
        || FileError::io("lstat", places::shown(front.as_bytes()), rustix::io::Errno::NOENT);
    let start = places::resolve_with(root, &front, follow)?;
    if start.fd.is_none() {
        return Err(missing());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let failed = |error| FileError::io("open", places::shown(&start.path), error);
    let folder = match scoped::open(root, &start.path, flags) {
        // Nothing is below a file.
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let pattern = rest.join("/");
    let mut search = Search { pattern: &pattern, depth: rest.len(), found: Vec::new() };
    search.folder(folder, &start.path).map_err(failed)?;
    Ok(search.found)
}

struct Search<'a> {
    pattern: &'a str,
    /// Number of components of the pattern; nothing deeper can match.
    depth: usize,
    found: Vec<Vec<u8>>,
}

impl Search<'_> {
    fn folder(&mut self, start: OwnedFd, prefix: &[u8]) -> sys::SysResult<()> {
        let list = |fd: &OwnedFd| -> sys::SysResult<_> {
            let names: Vec<_> = sys::read_dir_sorted(fd)?;
            Ok(names.into_iter())
        };
        let names = list(&start)?;
        let mut stack = vec![(start, names, Vec::new())];
        while let Some((fd, names, below)) = stack.last_mut() {
            let Some(entry) = names.next() else {
                stack.pop();
                continue;
            };
            let mut path: Vec<u8> = below.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            if glob_match(self.pattern, &String::from_utf8_lossy(&path)).unwrap_or(false) {
                let separator = if prefix.is_empty() { &b""[..] } else { b"/" };
                self.found.push([prefix, separator, &path].concat());
                continue;
            }
            let is_dir = match entry.kind {
                FileType::Unknown => sys::stat_at(fd.as_fd(), &entry.name)?.is_dir(),
                kind => kind == FileType::Directory,
            };
            let depth = scoped::components(&path).count();
            if is_dir && depth < self.depth {
                let child = sys::open_dir(fd.as_fd(), &entry.name)?;
                let names = list(&child)?;
                stack.push((child, names, path));
            }
        }
        Ok(())
    }
}
