//! What changed between two trees, found in one of two ways.
//!
//! [`overlay`] walks an upper folder of overlay beside the tree below it; [`double`] walks any two
//! trees side by side. Both report in path order (a folder before its members) and agree, except
//! that only the double walk sees unchanged names of changed hard links.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use crate::{
    LayerError, SnapshotError,
    layer::Marks,
    sys::{self, At, Meta, SysResult},
};

/// Xattr that counts as a difference.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Added,
    Modified,
    /// Equal in both; only reported for files with several names.
    Unmodified,
    Deleted,
}

/// One change.
pub(crate) struct Change<'a> {
    pub kind: Kind,
    /// Relative to the root, without slashes at the ends.
    pub path: &'a [u8],
    /// Metadata in the upper tree; none for deletions.
    pub meta: Option<&'a Meta>,
    /// The folder in the upper tree that holds it; for deletions, the one that held it.
    pub folder: BorrowedFd<'a>,
}

impl Change<'_> {
    /// Last component.
    pub fn name(&self) -> &[u8] {
        crate::scoped::split(self.path).1
    }
}

/// Takes the changes, in order.
pub(crate) trait Sink {
    fn change(&mut self, change: &Change) -> Result<(), LayerError>;
}

/// Compares the upper folder `upper` of overlay with the tree `base` it was written over.
pub(crate) fn overlay(
    base: Option<BorrowedFd<'_>>,
    upper: BorrowedFd<'_>,
    marks: &Marks,
    sink: &mut dyn Sink,
) -> Result<(), LayerError> {
    Walk { sink, marks: Some(marks), path: Vec::new(), depth: 0 }.overlay(base, upper)
}

/// Compares two trees; without `lower` everything in `upper` is new.
pub(crate) fn double(
    lower: Option<BorrowedFd<'_>>,
    upper: BorrowedFd<'_>,
    sink: &mut dyn Sink,
) -> Result<(), LayerError> {
    Walk { sink, marks: None, path: Vec::new(), depth: 0 }.double(lower, upper)
}

struct Walk<'s> {
    sink: &'s mut dyn Sink,
    /// Given while the upper side is a raw overlay folder, whose whiteouts mean absence.
    marks: Option<&'s Marks>,
    path: Vec<u8>,
    depth: usize,
}

impl Walk<'_> {
    fn overlay(
        &mut self,
        base: Option<BorrowedFd<'_>>,
        upper: BorrowedFd<'_>,
    ) -> Result<(), LayerError> {
        for entry in self.try_at(sys::read_dir_sorted(upper))? {
            let length = self.enter(&entry.name);
            let meta = self.try_at(sys::stat_at(upper, &entry.name))?;
            let below = match base {
                Some(base) => self.try_at(sys::try_stat_at(base, &entry.name))?,
                None => None,
            };
            match (meta.is_whiteout(), &below) {
                (true, None) => {}
                (true, Some(_)) => self.report(Kind::Deleted, upper, None)?,
                (false, None) => self.report(Kind::Added, upper, Some(&meta))?,
                (false, Some(below)) => {
                    let base = base.expect("something below was found in the base");
                    if !self.equal((base, below), (upper, &meta), &entry.name)? {
                        self.report(Kind::Modified, upper, Some(&meta))?;
                    }
                }
            }
            if meta.is_dir() {
                let upper = self.try_at(sys::open_dir(upper, &entry.name))?;
                let base = match (base, &below) {
                    (Some(base), Some(below)) if below.is_dir() => {
                        Some(self.try_at(sys::open_dir(base, &entry.name))?)
                    }
                    _ => None,
                };
                let base = base.as_ref().map(|fd| fd.as_fd());
                let opaque = base.is_some() && self.is_opaque(upper.as_fd())?;
                self.deeper(|walk| match opaque {
                    true => walk.double(base, upper.as_fd()),
                    false => walk.overlay(base, upper.as_fd()),
                })?;
            }
            self.path.truncate(length);
        }
        Ok(())
    }

    fn double(
        &mut self,
        lower: Option<BorrowedFd<'_>>,
        upper: BorrowedFd<'_>,
    ) -> Result<(), LayerError> {
        let mut old = match lower {
            Some(lower) => self.try_at(sys::read_dir_sorted(lower))?,
            None => Vec::new(),
        }
        .into_iter()
        .map(|entry| entry.name)
        .peekable();
        let mut new = self
            .try_at(sys::read_dir_sorted(upper))?
            .into_iter()
            .map(|entry| entry.name)
            .peekable();
        loop {
            let (in_old, in_new) = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, true),
                (Some(old), Some(new)) => (old <= new, new <= old),
            };
            let old_name = if in_old { old.next() } else { None };
            let new_name = if in_new { new.next() } else { None };
            let Some(name) = new_name.as_ref().or(old_name.as_ref()) else { return Ok(()) };
            let length = self.enter(name);
            let meta = match &new_name {
                Some(name) => Some(self.try_at(sys::stat_at(upper, name))?),
                None => None,
            }
            .filter(|meta| !(self.marks.is_some() && meta.is_whiteout()));
            match (lower.filter(|_| in_old), meta) {
                (None, None) => {}
                (Some(_), None) => self.report(Kind::Deleted, upper, None)?,
                (None, Some(meta)) => {
                    self.report(Kind::Added, upper, Some(&meta))?;
                    self.descend(None, upper, name, &meta)?;
                }
                (Some(lower), Some(meta)) => {
                    let before = self.try_at(sys::stat_at(lower, name))?;
                    if !self.equal((lower, &before), (upper, &meta), name)? {
                        self.report(Kind::Modified, upper, Some(&meta))?;
                    } else if meta.links > 1 && !meta.is_dir() {
                        self.report(Kind::Unmodified, upper, Some(&meta))?;
                    }
                    self.descend(before.is_dir().then_some(lower), upper, name, &meta)?;
                }
            }
            self.path.truncate(length);
        }
    }

    fn descend(
        &mut self,
        lower: Option<BorrowedFd<'_>>,
        upper: BorrowedFd<'_>,
        name: &[u8],
        meta: &Meta,
    ) -> Result<(), LayerError> {
        if !meta.is_dir() {
            return Ok(());
        }
        let upper = self.try_at(sys::open_dir(upper, name))?;
        let lower = match lower {
            Some(lower) => Some(self.try_at(sys::open_dir(lower, name))?),
            None => None,
        };
        self.deeper(|walk| walk.double(lower.as_ref().map(|fd| fd.as_fd()), upper.as_fd()))
    }

    fn deeper(
        &mut self,
        walk: impl FnOnce(&mut Self) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        if self.depth >= sys::MAX_DEPTH {
            return Err(SnapshotError::TooDeep { path: self.shown() }.into());
        }
        self.depth += 1;
        let result = walk(self);
        self.depth -= 1;
        result
    }

    fn report(
        &mut self,
        kind: Kind,
        folder: BorrowedFd<'_>,
        meta: Option<&Meta>,
    ) -> Result<(), LayerError> {
        self.sink.change(&Change { kind, path: &self.path, meta, folder })
    }

    /// Adds a component and gives the length to go back to.
    fn enter(&mut self, name: &[u8]) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        length
    }

    fn is_opaque(&self, folder: BorrowedFd<'_>) -> Result<bool, LayerError> {
        let Some(marks) = self.marks else { return Ok(false) };
        self.try_at(marks.is_opaque(At::Fd(folder)))
    }

    fn equal(
        &self,
        (lower, before): (BorrowedFd<'_>, &Meta),
        (upper, after): (BorrowedFd<'_>, &Meta),
        name: &[u8],
    ) -> Result<bool, LayerError> {
        self.try_at(equal((lower, before), (upper, after), name))
    }

    fn shown(&self) -> PathBuf {
        PathBuf::from(String::from_utf8_lossy(&self.path).into_owned())
    }

    fn try_at<T>(&self, result: SysResult<T>) -> Result<T, LayerError> {
        result.map_err(|error| SnapshotError::io("compare", self.shown(), error).into())
    }
}

/// Whether two entries of the same name count as the same.
fn equal(
    (lower, before): (BorrowedFd<'_>, &Meta),
    (upper, after): (BorrowedFd<'_>, &Meta),
    name: &[u8],
) -> SysResult<bool> {
    if (before.dev, before.ino) == (after.dev, after.ino) {
        return Ok(true);
    }
    let facts = |meta: &Meta| (meta.mode, meta.uid, meta.gid, meta.rdev);
    if facts(before) != facts(after) {
        return Ok(false);
    }
    let capability = |folder| sys::get_xattr(At::Name(folder, name), CAPABILITY);
    if !before.is_symlink() && capability(lower)? != capability(upper)? {
        return Ok(false);
    }
    if before.is_dir() {
        return Ok(true);
    }
    if (before.size, before.mtime.sec) != (after.size, after.mtime.sec) {
        return Ok(false);
    }
    // Whole seconds on both sides look like times set by a tool, which say nothing about content.
    if (before.mtime.nsec, after.mtime.nsec) != (0, 0) {
        return Ok(before.mtime.nsec == after.mtime.nsec);
    }
    if before.is_symlink() {
        return Ok(sys::read_link(lower, name)? == sys::read_link(upper, name)?);
    }
    if !before.is_file() || before.size == 0 {
        return Ok(true);
    }
    same_content(lower, upper, name)
}

fn same_content(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
    let mut left = std::fs::File::from(sys::open_file(lower, name)?);
    let mut right = std::fs::File::from(sys::open_file(upper, name)?);
    let mut buffers = [vec![0u8; 64 << 10], vec![0u8; 64 << 10]];
    let raw = |error: std::io::Error| {
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
    };
    loop {
        let length = left.read(&mut buffers[0]).map_err(raw)?;
        if length == 0 {
            return Ok(right.read(&mut buffers[1]).map_err(raw)? == 0);
        }
        let (same_length, other) = buffers.split_at_mut(1);
        match right.read_exact(&mut other[0][..length]) {
            Ok(()) if same_length[0][..length] == other[0][..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(raw(error)),
        }
    }
}
