//! What changed between two trees, found in one of two ways.
//!
//! [`overlay`] walks an upper folder of overlay beside the tree below it; [`double`] walks any two
//! trees side by side. Both report in path order (a folder before its members) and agree, except
//! that only the double walk sees unchanged names of changed hard links.

use std::{
    collections::HashSet,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use crate::{
    LayerError, SnapshotError,
    layer::Marks,
    sys::{self, At, Meta, SysResult},
};

/// Xattr that counts as a difference.
pub(crate) const CAPABILITY: &str = "security.capability";

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
    Walk { sink, marks: Some(marks), path: Vec::new(), stack: Vec::new() }.run(base, upper)
}

/// Compares two trees; without `lower` everything in `upper` is new.
pub(crate) fn double(
    lower: Option<BorrowedFd<'_>>,
    upper: BorrowedFd<'_>,
    sink: &mut dyn Sink,
) -> Result<(), LayerError> {
    Walk { sink, marks: None, path: Vec::new(), stack: Vec::new() }.run(lower, upper)
}

struct Walk<'s> {
    sink: &'s mut dyn Sink,
    /// Given while the upper side is a raw overlay folder, whose whiteouts mean absence.
    marks: Option<&'s Marks>,
    path: Vec<u8>,
    stack: Vec<Folder>,
}

/// A folder being compared.
struct Folder {
    lower: Option<OwnedFd>,
    upper: OwnedFd,
    /// Names to come, with the side or sides that have them.
    names: std::vec::IntoIter<(Box<[u8]>, Side)>,
    /// What the upper folder does not name is gone, rather than unchanged.
    complete: bool,
    /// Length of its own path.
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Lower,
    Upper,
}

impl Walk<'_> {
    fn run(
        mut self,
        lower: Option<BorrowedFd<'_>>,
        upper: BorrowedFd<'_>,
    ) -> Result<(), LayerError> {
        let lower = match lower {
            Some(lower) => Some(self.try_at(sys::open_dir(lower, b"."))?),
            None => None,
        };
        let upper = self.try_at(sys::open_dir(upper, b"."))?;
        self.open(lower, upper, self.marks.is_none())?;
        while let Some(folder) = self.stack.last_mut() {
            self.path.truncate(folder.length);
            let Some((name, side)) = folder.names.next() else {
                self.stack.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            if let Some((lower, upper, complete)) = self.entry(&name, side)? {
                self.open(lower, upper, complete)?;
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        lower: Option<OwnedFd>,
        upper: OwnedFd,
        complete: bool,
    ) -> Result<(), LayerError> {
        if self.stack.len() >= sys::MAX_DEPTH {
            return Err(SnapshotError::TooDeep { path: self.shown() }.into());
        }
        let list = |walk: &Self, fd: &OwnedFd, side| -> Result<Vec<_>, LayerError> {
            let entries = walk.try_at(sys::read_dir(fd))?;
            Ok(entries.into_iter().map(|entry| (entry.name, side)).collect())
        };
        let mut names = list(self, &upper, Side::Upper)?;
        if let (Some(lower), true) = (&lower, complete) {
            let known: HashSet<&[u8]> = names.iter().map(|(name, _)| &name[..]).collect();
            let mut gone = list(self, lower, Side::Lower)?;
            gone.retain(|(name, _)| !known.contains(&name[..]));
            names.extend(gone);
        }
        names.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        let length = self.path.len();
        self.stack.push(Folder { lower, upper, names: names.into_iter(), complete, length });
        Ok(())
    }

    /// Reports one name of the innermost folder. A folder below it that is to be compared next is
    /// returned.
    fn entry(
        &mut self,
        name: &[u8],
        side: Side,
    ) -> Result<Option<(Option<OwnedFd>, OwnedFd, bool)>, LayerError> {
        let Folder { lower, upper, complete, .. } =
            self.stack.last().expect("an entry is in a folder");
        let (lower, upper, complete) = (lower.as_ref(), upper.as_fd(), *complete);
        let change = |kind, meta| Change { kind, path: &self.path, meta, folder: upper };
        if side == Side::Lower {
            self.sink.change(&change(Kind::Deleted, None))?;
            return Ok(None);
        }
        let meta = self.try_at(sys::stat_at(upper, name))?;
        let before = match lower {
            Some(lower) => self.try_at(sys::try_stat_at(lower, name))?.map(|meta| (lower, meta)),
            None => None,
        };
        if self.marks.is_some() && meta.is_whiteout() {
            if before.is_some() {
                self.sink.change(&change(Kind::Deleted, None))?;
            }
            return Ok(None);
        }
        let kind = match &before {
            None => Some(Kind::Added),
            Some((lower, before)) => {
                let equal = self.try_at(equal((lower.as_fd(), before), (upper, &meta), name))?;
                // Only a complete comparison knows all names of a file.
                let linked = complete && meta.links > 1 && !meta.is_dir();
                match equal {
                    false => Some(Kind::Modified),
                    true => linked.then_some(Kind::Unmodified),
                }
            }
        };
        if let Some(kind) = kind {
            self.sink.change(&change(kind, Some(&meta)))?;
        }
        if !meta.is_dir() {
            return Ok(None);
        }
        let below = self.try_at(sys::open_dir(upper, name))?;
        let lower = match before {
            Some((lower, before)) if before.is_dir() => {
                Some(self.try_at(sys::open_dir(lower, name))?)
            }
            _ => None,
        };
        let opaque = match self.marks {
            Some(marks) if !complete && lower.is_some() => {
                self.try_at(marks.is_opaque(At::Fd(below.as_fd())))?
            }
            _ => false,
        };
        Ok(Some((lower, below, complete || opaque)))
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
    let capability = |folder| sys::get_xattr(At::Name(folder, name), CAPABILITY.as_bytes());
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
