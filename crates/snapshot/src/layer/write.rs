//! Turns changes into a layer tar.
//!
//! Entries come in path order. A parent that is not in the tar yet goes before its first child;
//! the first name of a hard-linked file carries the content, later ones refer to it; deletions are
//! empty files named `.wh.NAME`.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _, Write},
    os::fd::{AsFd as _, BorrowedFd},
};

use base::{
    Hasher,
    gotar::{self, Header, write_end, write_padding},
};
use rustix::fs::OFlags;

use super::{
    LayerError, LayerInfo,
    changes::{CAPABILITY, Change, Kind, Sink},
};
use crate::{
    SnapshotError, scoped,
    sys::{self, At, Meta},
};

/// Pieces in which file content is read.
const COPY_BUFFER: usize = 256 << 10;

/// How names of deletions begin.
pub(crate) const WHITEOUT: &[u8] = b".wh.";

type Inode = ((u32, u32), u64);

pub(crate) struct LayerWriter<'a> {
    /// Root of the upper tree, from which parents are read.
    root: BorrowedFd<'a>,
    out: Counted<'a>,
    entries: u64,
    folders: HashSet<Vec<u8>>,
    /// First written name of each hard-linked inode.
    first_names: HashMap<Inode, Vec<u8>>,
    /// Unchanged names of inodes that were not written yet.
    unchanged: HashMap<Inode, Vec<Vec<u8>>>,
    buffer: Vec<u8>,
}

/// A writer that counts and hashes what passes.
struct Counted<'a> {
    inner: io::BufWriter<&'a mut dyn Write>,
    hasher: Hasher,
    size: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn stream(cause: io::Error) -> LayerError {
    LayerError::Stream { doing: "write", cause }
}

impl<'a> LayerWriter<'a> {
    pub fn new(root: BorrowedFd<'a>, out: &'a mut dyn Write) -> Self {
        Self {
            root,
            out: Counted {
                inner: io::BufWriter::with_capacity(64 << 10, out),
                hasher: Hasher::new(),
                size: 0,
            },
            entries: 0,
            folders: HashSet::new(),
            first_names: HashMap::new(),
            unchanged: HashMap::new(),
            buffer: Vec::new(),
        }
    }

    /// Ends the tar.
    pub fn finish(mut self) -> Result<LayerInfo, LayerError> {
        write_end(&mut self.out).and_then(|()| self.out.flush()).map_err(stream)?;
        let Counted { hasher, size, .. } = self.out;
        Ok(LayerInfo { diff_id: hasher.finish(), size, entries: self.entries })
    }

    fn header(&mut self, header: &Header) -> Result<(), LayerError> {
        self.entries += 1;
        header.write(&mut self.out).map_err(stream)
    }

    /// Writes the folders above `path` that were not written yet, outermost first.
    fn parents(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, _) = scoped::split(path);
        if parent.is_empty() || self.folders.contains(parent) {
            return Ok(());
        }
        self.parents(parent)?;
        let (above, name) = scoped::split(parent);
        let failed = |error| SnapshotError::io("read", lossy(parent), error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let folder = scoped::open(self.root, above, flags).map_err(failed)?;
        let meta = sys::stat_at(&folder, name).map_err(failed)?;
        let header = describe(folder.as_fd(), parent, &meta)?;
        self.folders.insert(parent.to_vec());
        self.header(&header)
    }

    fn content(&mut self, change: &Change, size: u64) -> Result<(), LayerError> {
        let failed = |error: io::Error| SnapshotError::io("read", lossy(change.path), error);
        let fd = sys::open_file(change.folder, change.name()).map_err(|e| failed(e.into()))?;
        let mut file = std::fs::File::from(fd);
        self.buffer.resize(COPY_BUFFER, 0);
        let mut left = size;
        while left > 0 {
            let piece = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let length = file.read(&mut self.buffer[..piece]).map_err(failed)?;
            if length == 0 {
                let text = "the file became shorter while it was read";
                return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, text)).into());
            }
            self.out.write_all(&self.buffer[..length]).map_err(stream)?;
            left -= length as u64;
        }
        write_padding(&mut self.out, size).map_err(stream)
    }

    fn deletion(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, name) = scoped::split(path);
        let mut marker = parent.to_vec();
        if !marker.is_empty() {
            marker.push(b'/');
        }
        marker.extend_from_slice(WHITEOUT);
        marker.extend_from_slice(name);
        self.parents(path)?;
        self.header(&Header { name: marker, ..Header::default() })
    }
}

impl Sink for LayerWriter<'_> {
    fn change(&mut self, change: &Change) -> Result<(), LayerError> {
        let Some(meta) = change.meta else { return self.deletion(change.path) };
        if meta.kind() == sys::SOCKET {
            return Ok(());
        }
        let mut also = Vec::new();
        let mut first_name = None;
        if meta.links > 1 && !meta.is_dir() {
            let inode = (meta.dev, meta.ino);
            first_name = self.first_names.get(&inode).cloned();
            if first_name.is_none() {
                if change.kind == Kind::Unmodified {
                    self.unchanged.entry(inode).or_default().push(change.path.to_vec());
                    return Ok(());
                }
                self.first_names.insert(inode, change.path.to_vec());
                also = self.unchanged.remove(&inode).unwrap_or_default();
            }
        } else if change.kind == Kind::Unmodified {
            return Ok(());
        }
        let mut header = describe(change.folder, change.path, meta)?;
        if let Some(first) = first_name {
            header = Header { kind: gotar::Kind::HardLink, link: first, size: 0, ..header };
        }
        self.parents(change.path)?;
        self.header(&header)?;
        if meta.is_dir() {
            self.folders.insert(change.path.to_vec());
        }
        if header.kind == gotar::Kind::File && header.size > 0 {
            self.content(change, header.size)?;
        }
        for name in also {
            self.parents(&name)?;
            let link = change.path.to_vec();
            self.header(&Header {
                name,
                kind: gotar::Kind::HardLink,
                link,
                size: 0,
                ..header.clone()
            })?;
        }
        Ok(())
    }
}

/// The header of an entry taken by itself.
fn describe(folder: BorrowedFd<'_>, path: &[u8], meta: &Meta) -> Result<Header, LayerError> {
    let (_, base) = scoped::split(path);
    let failed = |error| SnapshotError::io("read", lossy(path), error);
    let mut header = Header {
        name: path.to_vec(),
        mode: meta.permissions(),
        uid: meta.uid,
        gid: meta.gid,
        mtime: meta.mtime.sec,
        ..Header::default()
    };
    header.kind = match meta.kind() {
        sys::DIR => {
            header.name.push(b'/');
            gotar::Kind::Folder
        }
        sys::SYMLINK => {
            header.link = sys::read_link(folder, base).map_err(failed)?;
            gotar::Kind::Symlink
        }
        sys::CHAR => gotar::Kind::CharDevice,
        sys::BLOCK => gotar::Kind::BlockDevice,
        sys::FIFO => gotar::Kind::Fifo,
        _ => {
            header.size = meta.size;
            gotar::Kind::File
        }
    };
    if matches!(header.kind, gotar::Kind::CharDevice | gotar::Kind::BlockDevice) {
        header.device = meta.rdev;
    }
    if header.kind != gotar::Kind::Symlink {
        let value =
            sys::get_xattr(At::Name(folder, base), CAPABILITY.as_bytes()).map_err(failed)?;
        header.xattrs.extend(value.map(|value| (CAPABILITY.to_owned(), value)));
    }
    Ok(header)
}

fn lossy(path: &[u8]) -> std::path::PathBuf {
    String::from_utf8_lossy(path).into_owned().into()
}
