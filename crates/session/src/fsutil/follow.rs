//! Resolves paths whose links lead elsewhere in the tree, so that both link and target are sent.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, BorrowedFd},
};

use base::{path, pattern::glob_match};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{TransferError, walk};

/// The paths to include for `paths`: each link met on the way and the final targets, sorted. `None`
/// if one of them is the root itself.
pub(crate) fn follow_links(
    root: BorrowedFd<'_>,
    paths: &[String],
) -> Result<Option<Vec<String>>, TransferError> {
    let mut found = BTreeSet::new();
    let mut queue: Vec<String> = paths.iter().rev().cloned().collect();
    while let Some(path) = queue.pop() {
        resolve(root, &path, &mut found, &mut queue)?;
    }
    Ok(without_nested(found))
}

/// Walks one path until its end or the first link, whose targets join the queue.
fn resolve(
    root: BorrowedFd<'_>,
    path: &str,
    found: &mut BTreeSet<String>,
    queue: &mut Vec<String>,
) -> Result<(), TransferError> {
    let absolute = path::absolute(path);
    let parts: Vec<&str> = absolute.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        found.insert(".".to_owned());
        return Ok(());
    }
    let mut current = String::new();
    for (index, part) in parts.iter().enumerate() {
        current = if current.is_empty() { (*part).to_owned() } else { format!("{current}/{part}") };
        let targets = link_targets(root, &current)?;
        if let Some(targets) = targets {
            if found.insert(current.clone()) {
                let rest = parts[index + 1..].join("/");
                queue.extend(targets.iter().rev().map(|target| format!("{target}/{rest}")));
            }
            return Ok(());
        }
    }
    found.insert(current);
    Ok(())
}

/// Where the link at `path` leads (several for a wildcard in the last element); `None` if it is no
/// link.
fn link_targets(root: BorrowedFd<'_>, path: &str) -> Result<Option<Vec<String>>, TransferError> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    if !has_wildcards(name) {
        return Ok(read_link(root, path)?.map(|target| vec![target]));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let folder_fd = match rustix::fs::openat2(root, folder, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        Err(errno) if missing(errno) => return Ok(None),
        Err(errno) => return Err(TransferError::os(format!("open folder {folder}"))(errno)),
    };
    let names = walk::read_names(folder_fd.as_fd())
        .map_err(TransferError::os(format!("list folder {folder}")))?;
    let mut targets = Vec::new();
    for found in names {
        let Ok(text) = found.name.to_str() else { continue };
        if glob_match(name, text).unwrap_or(false) {
            let path = if folder == "." { text.to_owned() } else { format!("{folder}/{text}") };
            targets.extend(read_link(root, &path)?);
        }
    }
    Ok((!targets.is_empty()).then_some(targets))
}

/// The target of a link as an absolute path inside the tree.
fn read_link(root: BorrowedFd<'_>, path: &str) -> Result<Option<String>, TransferError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let target = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
        .and_then(|fd| rustix::fs::readlinkat(&fd, "", Vec::new()));
    match target {
        Ok(target) => {
            let target = target.to_string_lossy().into_owned();
            let (folder, _) = path.rsplit_once('/').unwrap_or(("", path));
            Ok(Some(match path::is_absolute(&target) {
                true => path::clean(&target),
                false => path::absolute(&format!("{folder}/{target}")),
            }))
        }
        // Something that is no link: an empty name is not found there.
        Err(errno) if missing(errno) || errno == Errno::INVAL => Ok(None),
        Err(errno) => Err(TransferError::os(format!("read link {path}"))(errno)),
    }
}

fn missing(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
}

fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => _ = chars.next(),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Drops paths below the path before them; `None` if the root is among them.
pub(crate) fn without_nested(paths: impl IntoIterator<Item = String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if path == "." {
            return None;
        }
        let last = kept.last().map_or("", String::as_str);
        if !path.strip_prefix(last).is_some_and(|rest| rest.starts_with('/')) {
            kept.push(path);
        }
    }
    Some(kept)
}
