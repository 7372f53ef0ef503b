//! Makes files of a tar, inside one folder and nowhere else.
//!
//! Parents are resolved below the root with symlinks scoped to it, the last component is never
//! followed, and a name that climbs above the root is an error. A layer's whiteouts become overlay
//! marks or removals; a plain tar has none. Folder times are set last.

use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::fs::FileExt as _,
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

use super::{
    LayerError, LayerInfo, Limits, Marks, is_overlay_private,
    tar_read::{Entry, TarReader},
    write::WHITEOUT,
};
use crate::{
    Brake, SnapshotError, Tree,
    copy::Owner,
    folders::bytes,
    scoped,
    sys::{self, At, Meta, SysResult, Time},
};

/// Removes everything lower layers have in the folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Other names of this kind are bookkeeping of AUFS and mean nothing.
const AUFS: &[u8] = b".wh..wh.";

/// Pieces in which file content is written.
const COPY_BUFFER: usize = 128 << 10;

/// Mode of folders that entries imply.
const IMPLIED_MODE: u32 = 0o755;

/// What names beginning with `.wh.` mean.
#[derive(Clone, Copy)]
pub(crate) enum Whiteouts {
    /// Overlay's marks.
    Overlay(Marks),
    /// Removal of what was there before.
    Remove,
    /// Nothing: they are names.
    Keep,
}

pub(crate) struct Options {
    whiteouts: Whiteouts,
    owner: Option<Owner>,
    /// Xattrs that cannot be set are left out.
    lenient_xattrs: bool,
}

impl Options {
    pub fn layer(whiteouts: Whiteouts) -> Self {
        Self { whiteouts, owner: None, lenient_xattrs: false }
    }
}

/// What unpacking found out.
pub(crate) struct Unpacked {
    pub info: LayerInfo,
    /// Folders made only because something is in them.
    pub implied: Vec<Vec<u8>>,
    /// The tar has an entry for the root itself.
    pub root_described: bool,
    /// The tar removes everything below it.
    pub root_emptied: bool,
    /// The tar removes something.
    pub removes: bool,
}

/// Unpacks an uncompressed tar of any kind into the folder `path` of `tree`, as ADD does: names of
/// whiteouts are ordinary names, `owner` replaces every owner, xattrs are set where possible.
pub fn unpack(
    tree: &Tree,
    path: &[u8],
    tar: &mut dyn Read,
    limits: &Limits,
    owner: Option<Owner>,
) -> Result<LayerInfo, LayerError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root = scoped::open(tree.fd(), path, flags)
        .map_err(|error| SnapshotError::io("open", shown(), error))?;
    let options = Options { whiteouts: Whiteouts::Keep, owner, lenient_xattrs: true };
    Ok(unpack_into(root, tar, limits, &options)?.info)
}

/// Unpacks into the folder `target`.
pub(crate) fn run(
    target: &Path,
    tar: &mut dyn Read,
    limits: &Limits,
    options: &Options,
) -> Result<Unpacked, LayerError> {
    let root = sys::open_dir(CWD, &bytes(target))
        .map_err(|error| SnapshotError::io("open", target, error))?;
    unpack_into(root, tar, limits, options)
}

fn unpack_into(
    root: OwnedFd,
    tar: &mut dyn Read,
    limits: &Limits,
    options: &Options,
) -> Result<Unpacked, LayerError> {
    let mut reader = TarReader::new(tar, limits);
    let mut unpacker = Unpacker {
        root,
        options,
        brake: &limits.brake,
        at: None,
        times: Vec::new(),
        implied: Vec::new(),
        made: HashSet::new(),
        root_described: false,
        root_emptied: false,
        removes: false,
        buffer: vec![0; COPY_BUFFER],
    };
    while let Some(entry) = reader.next()? {
        unpacker.entry(&mut reader, &entry)?;
    }
    unpacker.set_times()?;
    let info = reader.finish()?;
    let Unpacker { mut implied, times, root_described, root_emptied, removes, .. } = unpacker;
    let described: HashSet<&[u8]> = times.iter().map(|(path, ..)| &path[..]).collect();
    implied.retain(|path| !described.contains(&path[..]));
    Ok(Unpacked { info, implied, root_described, root_emptied, removes })
}

struct Unpacker<'a> {
    root: OwnedFd,
    options: &'a Options,
    brake: &'a Brake,
    /// The folder used last, by the name it was asked for.
    at: Option<(Vec<u8>, OwnedFd)>,
    times: Vec<(Vec<u8>, Time, Time)>,
    implied: Vec<Vec<u8>>,
    /// What this tar made, where removals must spare it.
    made: HashSet<Vec<u8>>,
    root_described: bool,
    root_emptied: bool,
    removes: bool,
    buffer: Vec<u8>,
}

/// An entry cannot be unpacked for a reason.
fn refused(entry: &Entry, reason: impl Into<String>) -> LayerError {
    LayerError::Entry { entry: entry.shown(), reason: reason.into() }
}

/// A system call for an entry failed.
fn failed<'e>(entry: &'e Entry, doing: &'static str) -> impl Fn(Errno) -> LayerError + use<'e> {
    move |error| {
        let cause = std::io::Error::from(error);
        if matches!(error, Errno::NOSPC | Errno::DQUOT) {
            return SnapshotError::io(doing, entry.shown(), cause).into();
        }
        refused(entry, format!("{doing}: {cause}"))
    }
}

impl Unpacker<'_> {
    fn entry(&mut self, reader: &mut TarReader<'_>, entry: &Entry) -> Result<(), LayerError> {
        let path = clean(&entry.name).ok_or_else(|| refused(entry, "it leads outside the root"))?;
        if path.is_empty() {
            return self.root_entry(entry);
        }
        let (parent, name) = scoped::split(&path);
        let (parent, name) = (parent.to_vec(), name.to_vec());
        let folder = self.folder(&parent).map_err(failed(entry, "make the folder it is in"))?;
        if !matches!(self.options.whiteouts, Whiteouts::Keep) && name.starts_with(WHITEOUT) {
            let result = self.whiteout(folder.as_fd(), &parent, &name, entry);
            self.at = Some((parent, folder));
            return result;
        }
        let replaced = self.make(reader, entry, &path, folder.as_fd(), &name)?;
        // What was replaced may have been a symlink on the way to other folders, not to this one.
        if replaced == Replaced::No {
            self.at = Some((parent, folder));
        }
        Ok(())
    }

    /// Opens the folder `path` below the root; missing ones are made.
    fn folder(&mut self, path: &[u8]) -> SysResult<OwnedFd> {
        if let Some((known, fd)) = self.at.take()
            && known == path
        {
            return Ok(fd);
        }
        match scoped::open_folder(self.root.as_fd(), path) {
            Err(Errno::NOENT) => self.make_folders(path),
            other => other,
        }
    }

    fn make_folders(&mut self, path: &[u8]) -> SysResult<OwnedFd> {
        let real = scoped::resolve(self.root.as_fd(), path, true)?.path;
        let mut at = scoped::open_folder(self.root.as_fd(), b"")?;
        let mut done = Vec::new();
        for part in scoped::components(&real) {
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(part);
            let meta = sys::try_stat_at(&at, part)?;
            let whiteout = meta.as_ref().is_some_and(Meta::is_whiteout)
                && matches!(self.options.whiteouts, Whiteouts::Overlay(_));
            if meta.is_none() || whiteout {
                self.fresh_folder(at.as_fd(), part, whiteout)?;
                sys::chown(&at, part, 0, 0)?;
                sys::chmod(&at, part, IMPLIED_MODE)?;
                self.implied.push(done.clone());
                self.note(&done);
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
        }
        Ok(at)
    }

    /// Makes a folder. In place of a whiteout, what the whiteout hid stays hidden.
    fn fresh_folder(&self, at: BorrowedFd<'_>, name: &[u8], hides: bool) -> SysResult<()> {
        if hides {
            sys::remove_all(at, name)?;
        }
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700))?;
        if let (true, Whiteouts::Overlay(marks)) = (hides, self.options.whiteouts) {
            marks.set_opaque(At::Name(at, name))?;
        }
        Ok(())
    }

    fn note(&mut self, path: &[u8]) {
        if !matches!(self.options.whiteouts, Whiteouts::Remove) {
            return;
        }
        // Folders above count as well: removing them would remove this.
        let mut path = path;
        while !path.is_empty() && self.made.insert(path.to_vec()) {
            path = scoped::split(path).0;
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != b'5' {
            return Err(refused(entry, "the root can only be a folder"));
        }
        if matches!(self.options.whiteouts, Whiteouts::Keep) {
            // The folder a plain tar goes to belongs to somebody else.
            return Ok(());
        }
        self.root_described = true;
        let root = self.root.try_clone().map_err(|error| refused(entry, error.to_string()))?;
        self.describe_open(root.as_fd(), entry)?;
        self.times.push((Vec::new(), atime(entry), entry.mtime));
        Ok(())
    }

    fn whiteout(
        &mut self,
        folder: BorrowedFd<'_>,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        self.removes = true;
        if name == OPAQUE {
            self.root_emptied |= parent.is_empty();
            let result = match self.options.whiteouts {
                Whiteouts::Overlay(_) if parent.is_empty() => Ok(()),
                Whiteouts::Overlay(marks) => sys::open_dir(folder, b".")
                    .and_then(|folder| marks.set_opaque(At::Fd(folder.as_fd()))),
                _ => self.remove_older(folder, &mut parent.to_vec()),
            };
            return result.map_err(failed(entry, "empty its folder"));
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(entry, "it removes no proper name"));
        }
        let meta =
            sys::try_stat_at(folder, hidden).map_err(failed(entry, "look at what it hides"))?;
        let result = match (self.options.whiteouts, meta) {
            (Whiteouts::Overlay(_), None) => sys::make_whiteout(folder, hidden),
            // The layer's own entries stay; only what lies below them goes.
            (Whiteouts::Overlay(marks), Some(meta)) if meta.is_dir() => {
                marks.set_opaque(At::Name(folder, hidden))
            }
            (Whiteouts::Overlay(_), Some(_)) | (_, None) => Ok(()),
            (_, Some(meta)) => {
                let mut path = parent.to_vec();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(hidden);
                match (self.made.contains(&path), meta.is_dir()) {
                    (false, _) => sys::remove_all(folder, hidden),
                    (true, true) => sys::open_dir(folder, hidden)
                        .and_then(|below| self.remove_older(below.as_fd(), &mut path)),
                    (true, false) => Ok(()),
                }
            }
        };
        result.map_err(failed(entry, "remove what it hides"))
    }

    /// Removes what this tar has not made itself.
    fn remove_older(&self, folder: BorrowedFd<'_>, path: &mut Vec<u8>) -> SysResult<()> {
        if path.iter().filter(|byte| **byte == b'/').count() > sys::MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let folder = sys::open_dir(folder, b".")?;
        for child in sys::read_dir(&folder)? {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&child.name);
            if !self.made.contains(path) {
                sys::remove_all(folder.as_fd(), &child.name)?;
            } else if sys::stat_at(&folder, &child.name)?.is_dir() {
                let below = sys::open_dir(&folder, &child.name)?;
                self.remove_older(below.as_fd(), path)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn make(
        &mut self,
        reader: &mut TarReader<'_>,
        entry: &Entry,
        path: &[u8],
        folder: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Replaced, LayerError> {
        let attempt = |unpacker: &mut Self, reader: &mut TarReader<'_>| {
            unpacker.try_make(reader, entry, path, folder, name)
        };
        let replaced = match attempt(self, reader)? {
            Made::Yes => Replaced::No,
            Made::Occupied => {
                let look = failed(entry, "look at what is there");
                let old = sys::stat_at(folder, name).map_err(look)?;
                if entry.kind == b'5' && old.is_dir() {
                    self.describe_name(folder, name, entry)?;
                    self.times.push((path.to_vec(), atime(entry), entry.mtime));
                    self.note(path);
                    return Ok(Replaced::No);
                }
                sys::remove_all(folder, name).map_err(failed(entry, "replace what is there"))?;
                // An overlay folder in place of anything must not let lower layers shine in.
                let hides = entry.kind == b'5';
                if hides {
                    self.fresh_folder(folder, name, true).map_err(failed(entry, "make it"))?;
                    self.describe_name(folder, name, entry)?;
                    self.times.push((path.to_vec(), atime(entry), entry.mtime));
                } else if attempt(self, reader)? == Made::Occupied {
                    return Err(refused(entry, "its place is taken"));
                }
                Replaced::Yes
            }
        };
        self.note(path);
        Ok(replaced)
    }

    fn try_make(
        &mut self,
        reader: &mut TarReader<'_>,
        entry: &Entry,
        path: &[u8],
        folder: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Made, LayerError> {
        let made = match entry.kind {
            b'5' => self.fresh_folder(folder, name, false),
            b'0' => return self.file(reader, entry, folder, name),
            b'1' => return self.hard_link(entry, folder, name),
            b'2' if entry.link.is_empty() => return Err(refused(entry, "a symlink to nothing")),
            b'2' => rustix::fs::symlinkat(&entry.link[..], folder, name),
            b'3' => sys::make_node(folder, name, sys::CHAR, 0o600, entry.device),
            b'4' => sys::make_node(folder, name, sys::BLOCK, 0o600, entry.device),
            b'6' => sys::make_node(folder, name, sys::FIFO, 0o600, (0, 0)),
            other => {
                let kind = char::from(other).escape_default();
                return Err(refused(entry, format!("entries of type `{kind}` are not supported")));
            }
        };
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(Made::Occupied),
            Err(Errno::PERM) if matches!(entry.kind, b'3' | b'4') && in_user_namespace() => {
                tracing::warn!("device `{}` is left out: not allowed here", entry.shown());
                return Ok(Made::Yes);
            }
            Err(error) => return Err(failed(entry, "make it")(error)),
        }
        self.describe_name(folder, name, entry)?;
        match entry.kind {
            b'5' => self.times.push((path.to_vec(), atime(entry), entry.mtime)),
            _ => sys::set_times(folder, name, atime(entry), entry.mtime)
                .map_err(failed(entry, "set its times"))?,
        }
        Ok(Made::Yes)
    }

    fn file(
        &mut self,
        reader: &mut TarReader<'_>,
        entry: &Entry,
        folder: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Made, LayerError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(Made::Occupied),
            Err(error) => return Err(failed(entry, "make it")(error)),
        };
        let mut file = File::from(fd);
        match &entry.sparse {
            None => loop {
                let length = reader.read(&mut self.buffer)?;
                if length == 0 {
                    break;
                }
                self.brake
                    .check()
                    .and_then(|()| file.write_all(&self.buffer[..length]))
                    .map_err(|error| write_failed(entry, error))?;
            },
            Some(map) => self.sparse(reader, entry, &file, map)?,
        }
        self.describe_open(file.as_fd(), entry)?;
        sys::set_times_fd(&file, atime(entry), entry.mtime)
            .map_err(failed(entry, "set its times"))?;
        Ok(Made::Yes)
    }

    fn sparse(
        &mut self,
        reader: &mut TarReader<'_>,
        entry: &Entry,
        file: &File,
        map: &[(u64, u64)],
    ) -> Result<(), LayerError> {
        file.set_len(entry.size).map_err(|error| write_failed(entry, error))?;
        for (offset, length) in map {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = reader.read(&mut self.buffer[..most])?;
                if read == 0 {
                    return Err(refused(entry, "its sparse map does not fit its data"));
                }
                self.brake
                    .check()
                    .and_then(|()| file.write_all_at(&self.buffer[..read], at))
                    .map_err(|error| write_failed(entry, error))?;
                at += read as u64;
                left -= read as u64;
            }
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        folder: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Made, LayerError> {
        let target = clean(&entry.link)
            .filter(|target| !target.is_empty())
            .ok_or_else(|| refused(entry, "its link target leads outside the root"))?;
        let (parent, base) = scoped::split(&target);
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        let not_there = |error: Errno| {
            refused(entry, format!("link to `{shown}`: {}", std::io::Error::from(error)))
        };
        let source = scoped::open_folder(self.root.as_fd(), parent).map_err(not_there)?;
        match rustix::fs::linkat(&source, base, folder, name, AtFlags::empty()) {
            Ok(()) => Ok(Made::Yes),
            Err(Errno::EXIST) => {
                let same = |left: Meta, right: Meta| (left.dev, left.ino) == (right.dev, right.ino);
                let left = sys::stat_at(&source, base).map_err(not_there)?;
                let right = sys::stat_at(folder, name).map_err(not_there)?;
                // Replacing a file by a link to itself would remove it.
                Ok(if same(left, right) { Made::Yes } else { Made::Occupied })
            }
            Err(error) => Err(not_there(error)),
        }
    }

    /// Owner, xattrs and mode of a name just made.
    fn describe_name(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let Owner { uid, gid } = self.owner(entry);
        sys::chown(folder, name, uid, gid).map_err(failed(entry, "set its owner"))?;
        self.xattrs(At::Name(folder, name), entry)?;
        if entry.kind != b'2' {
            sys::chmod(folder, name, entry.mode).map_err(failed(entry, "set its mode"))?;
        }
        Ok(())
    }

    /// As [`Self::describe_name`] for what is open.
    fn describe_open(&self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), LayerError> {
        let Owner { uid, gid } = self.owner(entry);
        sys::chown_fd(file, uid, gid).map_err(failed(entry, "set its owner"))?;
        self.xattrs(At::Fd(file), entry)?;
        sys::chmod_fd(file, entry.mode).map_err(failed(entry, "set its mode"))
    }

    fn owner(&self, entry: &Entry) -> Owner {
        self.options.owner.unwrap_or(Owner { uid: entry.uid, gid: entry.gid })
    }

    fn xattrs(&self, at: At<'_>, entry: &Entry) -> Result<(), LayerError> {
        for (key, value) in &entry.xattrs {
            let shown = || String::from_utf8_lossy(key).into_owned();
            if is_overlay_private(key) || key.contains(&0) {
                tracing::warn!("xattr {} of `{}` is left out", shown(), entry.shown());
                continue;
            }
            match sys::set_xattr(at, key, value) {
                Ok(()) => {}
                Err(error) if self.options.lenient_xattrs || error == Errno::NOTSUP => {
                    let error = std::io::Error::from(error);
                    tracing::warn!("xattr {} of `{}` is left out: {error}", shown(), entry.shown());
                }
                Err(error) => {
                    let error = std::io::Error::from(error);
                    return Err(refused(entry, format!("set xattr {}: {error}", shown())));
                }
            }
        }
        Ok(())
    }

    /// Sets folder times, for those that are still folders.
    fn set_times(&mut self) -> Result<(), LayerError> {
        for (path, atime, mtime) in &self.times {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let set = scoped::open(self.root.as_fd(), path, flags)
                .and_then(|folder| sys::set_times_fd(folder, *atime, *mtime));
            match set {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => {
                    let shown = String::from_utf8_lossy(path).into_owned();
                    return Err(SnapshotError::io("set the times of", shown, error).into());
                }
            }
        }
        Ok(())
    }
}

#[derive(PartialEq)]
enum Made {
    Yes,
    /// Something of that name exists.
    Occupied,
}

#[derive(PartialEq)]
enum Replaced {
    Yes,
    No,
}

fn write_failed(entry: &Entry, error: std::io::Error) -> LayerError {
    SnapshotError::io("write", entry.shown(), error).into()
}

/// Access times older than the modification are of no use to anybody.
fn atime(entry: &Entry) -> Time {
    entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime))
}

/// The path relative to the root without dots and doubled slashes; `None` if it climbs above it.
fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in scoped::components(name) {
        if part == b".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.join(&b'/'))
}

/// Whether this process runs in a user namespace, where devices cannot be made.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}
