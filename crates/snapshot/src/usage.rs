//! How much disk a folder takes: allocated blocks, every hard-linked file once.

use std::{collections::HashSet, os::fd::OwnedFd, path::Path};

use rustix::fs::CWD;

use crate::{SnapshotError, Usage, folders::bytes, sys};

/// Adds up `path` and everything below it.
pub(crate) fn of(path: &Path) -> Result<Usage, SnapshotError> {
    let failed = |error| SnapshotError::io("measure", path, error);
    let top = sys::stat_at(CWD, &bytes(path)).map_err(failed)?;
    let mut sum = Sum { usage: Usage::default(), seen: HashSet::new() };
    sum.add(&top);
    if top.is_dir() {
        let fd = sys::open_dir(CWD, &bytes(path)).map_err(failed)?;
        // An explicit stack of open folders with the sub folders still to visit.
        let mut stack: Vec<(OwnedFd, Vec<Box<[u8]>>)> = Vec::new();
        let folders = sum.folder(&fd).map_err(failed)?;
        stack.push((fd, folders));
        while let Some((fd, folders)) = stack.last_mut() {
            let Some(name) = folders.pop() else {
                stack.pop();
                continue;
            };
            let child = match sys::open_dir(&*fd, &name) {
                Err(rustix::io::Errno::NOENT) => continue,
                other => other.map_err(failed)?,
            };
            if stack.len() >= sys::MAX_DEPTH {
                return Err(SnapshotError::TooDeep { path: path.to_owned() });
            }
            let below = sum.folder(&child).map_err(failed)?;
            stack.push((child, below));
        }
    }
    Ok(sum.usage)
}

struct Sum {
    usage: Usage,
    seen: HashSet<((u32, u32), u64)>,
}

impl Sum {
    fn add(&mut self, meta: &sys::Meta) {
        if meta.links > 1 && !meta.is_dir() && !self.seen.insert((meta.dev, meta.ino)) {
            return;
        }
        self.usage.bytes += meta.blocks * 512;
        self.usage.inodes += 1;
    }

    /// Adds a folder's entries and names its sub folders.
    fn folder(&mut self, fd: &OwnedFd) -> sys::SysResult<Vec<Box<[u8]>>> {
        let mut folders = Vec::new();
        for entry in sys::read_dir(fd)? {
            let Some(meta) = sys::try_stat_at(fd, &entry.name)? else { continue };
            self.add(&meta);
            if meta.is_dir() {
                folders.push(entry.name);
            }
        }
        Ok(folders)
    }
}
