//! Carries changes from one tree over to a folder: as an overlay layer, or in place.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

use super::{
    LayerError, Marks,
    changes::{self, Change, Kind, Sink},
};
use crate::{
    SnapshotError, Tree,
    copy::transfer,
    folders::bytes,
    scoped,
    sys::{self, At, Meta, SysResult, Time},
};

/// What the target folder is.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// An overlay layer: deletions become whiteouts. Folders are never opaque, because merging
    /// such a layer over others merges folders too.
    Overlay,
    /// A plain tree: deletions remove.
    Plain,
}

struct Target {
    root: OwnedFd,
    form: Form,
    /// Files may be further names of the source's files, which nobody will write to.
    link: bool,
    /// Names in the target of hard-linked inodes of the source.
    links: HashMap<((u32, u32), u64), Vec<u8>>,
    /// Folder times, set at the end because filling a folder changes them.
    times: Vec<(Vec<u8>, Time, Time)>,
}

/// Walks both trees and carries what changed over to `target`.
pub(crate) fn write(
    lower: &Tree,
    upper: &Tree,
    target: &Path,
    form: Form,
) -> Result<(), SnapshotError> {
    let mut sink = Target::open(target, form)?;
    let (lower, upper) = (super::open_root(lower)?, super::open_root(upper)?);
    changes::double(Some(lower.as_fd()), upper.as_fd(), &mut sink).map_err(snapshot_error)?;
    sink.finish()
}

/// Fills the empty folder `target` with just the changes of the raw overlay layer `upper`, made over
/// `base`, by links to its files.
pub(crate) fn loosen(
    base: &Tree,
    upper: &Path,
    target: &Path,
    marks: &Marks,
) -> Result<(), SnapshotError> {
    let mut sink = Target { link: true, ..Target::open(target, Form::Overlay)? };
    let base = super::open_root(base)?;
    let upper = sys::open_dir(CWD, &bytes(upper))
        .map_err(|error| SnapshotError::io("open", upper, error))?;
    changes::overlay(Some(base.as_fd()), upper.as_fd(), marks, &mut sink)
        .map_err(snapshot_error)?;
    sink.finish()
}

/// Walks the overlay layer `delta` and carries it over to the plain tree `target`.
pub(crate) fn apply(delta: &Path, target: &Path, marks: &Marks) -> Result<(), SnapshotError> {
    let mut sink = Target::open(target, Form::Plain)?;
    let delta_fd = sys::open_dir(CWD, &bytes(delta))
        .map_err(|error| SnapshotError::io("open", delta, error))?;
    sink.overlay(delta_fd.as_fd(), &mut Vec::new(), marks)
        .map_err(|error| SnapshotError::io("apply", delta, error))?;
    sink.finish()
}

fn snapshot_error(error: LayerError) -> SnapshotError {
    match error {
        LayerError::Snapshot(error) => error,
        other => SnapshotError::io("compare", "trees", std::io::Error::other(other.to_string())),
    }
}

impl Target {
    fn open(target: &Path, form: Form) -> Result<Self, SnapshotError> {
        let root = sys::open_dir(CWD, &bytes(target))
            .map_err(|error| SnapshotError::io("open", target, error))?;
        Ok(Self { root, form, link: false, links: HashMap::new(), times: Vec::new() })
    }

    fn finish(self) -> Result<(), SnapshotError> {
        for (path, atime, mtime) in self.times.iter().rev() {
            let set = || -> SysResult<()> {
                let (parent, name) = scoped::split(path);
                sys::set_times(
                    scoped::open_folder(self.root.as_fd(), parent)?,
                    name,
                    *atime,
                    *mtime,
                )
            };
            set().map_err(|error| {
                let shown = String::from_utf8_lossy(path).into_owned();
                SnapshotError::io("set the times of", shown, error)
            })?;
        }
        Ok(())
    }

    /// The folder in the target that is to hold `path`. Unchanged folders above it are made with
    /// the metadata they have in the source.
    fn parent(&mut self, path: &[u8], source_root: Option<BorrowedFd<'_>>) -> SysResult<OwnedFd> {
        let (parent, _) = scoped::split(path);
        match scoped::open_folder(self.root.as_fd(), parent) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let above = self.parent(parent, source_root)?;
        let (_, name) = scoped::split(parent);
        rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
        if let Some(source) = source_root {
            let (holder, _) = scoped::split(parent);
            let source = scoped::open_folder(source, holder)?;
            let meta = sys::stat_at(&source, name)?;
            self.describe_folder(parent, (source.as_fd(), name, &meta), above.as_fd())?;
        }
        scoped::open_folder(self.root.as_fd(), parent)
    }

    fn describe_folder(
        &mut self,
        path: &[u8],
        (source, name, meta): (BorrowedFd<'_>, &[u8], &Meta),
        target: BorrowedFd<'_>,
    ) -> SysResult<()> {
        sys::chown(target, name, meta.uid, meta.gid)?;
        sys::chmod(target, name, meta.mode)?;
        transfer::xattrs(At::Name(source, name), At::Name(target, name));
        self.times.push((path.to_vec(), meta.atime, meta.mtime));
        Ok(())
    }

    fn remove(&mut self, path: &[u8], folder: OwnedFd) -> SysResult<()> {
        let (_, name) = scoped::split(path);
        sys::remove_all(folder.as_fd(), name)?;
        match self.form {
            Form::Overlay => sys::make_whiteout(&folder, name),
            Form::Plain => Ok(()),
        }
    }

    fn put(
        &mut self,
        path: &[u8],
        source: BorrowedFd<'_>,
        meta: &Meta,
        folder: OwnedFd,
    ) -> SysResult<()> {
        let (_, name) = scoped::split(path);
        let old = sys::try_stat_at(&folder, name)?;
        if meta.is_dir() {
            if old.as_ref().is_none_or(|old| !old.is_dir()) {
                sys::remove_all(folder.as_fd(), name)?;
                rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755))?;
            }
            return self.describe_folder(path, (source, name, meta), folder.as_fd());
        }
        if old.is_some() {
            sys::remove_all(folder.as_fd(), name)?;
        }
        if self.link {
            return rustix::fs::linkat(source, name, &folder, name, AtFlags::empty());
        }
        if meta.links > 1 {
            let inode = (meta.dev, meta.ino);
            if let Some(first) = self.links.get(&inode) {
                let (holder, first) = scoped::split(first);
                let holder = scoped::open_folder(self.root.as_fd(), holder)?;
                return rustix::fs::linkat(holder, first, &folder, name, AtFlags::empty());
            }
            self.links.insert(inode, path.to_vec());
        }
        transfer::entry_as_is((source, name, meta), (folder.as_fd(), name))
    }

    /// Applies a raw overlay folder.
    fn overlay(
        &mut self,
        source: BorrowedFd<'_>,
        path: &mut Vec<u8>,
        marks: &Marks,
    ) -> SysResult<()> {
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        if depth >= sys::MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        for entry in sys::read_dir_sorted(source)? {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            let meta = sys::stat_at(source, &entry.name)?;
            let folder = self.parent(path, None)?;
            if meta.is_whiteout() {
                self.remove(path, folder)?;
            } else {
                if meta.is_dir() && marks.is_opaque(At::Name(source, &entry.name))? {
                    sys::remove_all(folder.as_fd(), &entry.name)?;
                }
                self.put(path, source, &meta, folder)?;
            }
            if meta.is_dir() {
                let below = sys::open_dir(source, &entry.name)?;
                self.overlay(below.as_fd(), path, marks)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn carry(&mut self, change: &Change) -> SysResult<()> {
        if change.kind == Kind::Unmodified {
            return Ok(());
        }
        // Climb from the changed entry's folder to the root of its tree, for unchanged parents.
        let above = change.path.iter().filter(|byte| **byte == b'/').count();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let climb = if above == 0 { ".".to_owned() } else { "../".repeat(above) };
        let source_root = rustix::fs::openat(change.folder, climb, flags, Mode::empty())?;
        let folder = self.parent(change.path, Some(source_root.as_fd()))?;
        match change.meta {
            None => self.remove(change.path, folder),
            Some(meta) => self.put(change.path, change.folder, meta, folder),
        }
    }
}

impl Sink for Target {
    fn change(&mut self, change: &Change) -> Result<(), LayerError> {
        self.carry(change).map_err(|error| {
            let path = String::from_utf8_lossy(change.path).into_owned();
            SnapshotError::io("carry over", path, error).into()
        })
    }
}
