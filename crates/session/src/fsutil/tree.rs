//! What can be sent: a folder on disk, a few files in memory, several of those as one.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use base::gomode;
use bytes::{Buf as _, Bytes};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Filter, Stat, TransferError, walk};

/// A tree of files that can be listed in wire order and read.
///
/// Contract: `walk` gives parents before children, names in byte order, regular files with the
/// `linkname` of an earlier path if they are further names of it (that path may be left out: the
/// sender lets the next name take over); `open` is asked only for paths that `walk` gave as regular
/// files. Both run on blocking threads, `open` on several at once.
pub trait FileTree: Send + Sync + 'static {
    /// Lists the tree; stops at the first error of `visit` and returns it.
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError>;

    /// Opens a regular file.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>>;
}

/// Changes an entry on its way, or drops it (and everything below it) by returning false.
pub type MapStat = Arc<dyn Fn(&mut Stat) -> bool + Send + Sync>;

/// A folder on disk.
pub struct DirTree {
    root: OwnedFd,
    filter: Filter,
    map: Option<MapStat>,
}

impl DirTree {
    /// The folder at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| base::fs::context(errno.into(), "open folder", path))?;
        Ok(Self::new(root))
    }

    /// An open folder.
    pub fn new(root: OwnedFd) -> Self {
        Self { root, filter: Filter::default(), map: None }
    }

    /// Only what the filter lets through.
    #[must_use]
    pub fn with_filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Entries as `map` changes them.
    #[must_use]
    pub fn with_map(mut self, map: MapStat) -> Self {
        self.map = Some(map);
        self
    }
}

impl FileTree for DirTree {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let Some(map) = &self.map else {
            return walk(self.root.as_fd(), &self.filter, visit);
        };
        // A dropped folder takes what is below it along.
        let mut dropped: Option<String> = None;
        walk(self.root.as_fd(), &self.filter, &mut |mut stat| {
            if dropped.as_ref().is_some_and(|folder| stat.path.starts_with(folder.as_str())) {
                return Ok(());
            }
            let folder = (stat.mode & gomode::DIR != 0).then(|| format!("{}/", stat.path));
            if map(&mut stat) {
                return visit(stat);
            }
            dropped = folder;
            Ok(())
        })
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        // Not blocking matters only if a pipe took the file's place since the listing.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?;
        Ok(Box::new(File::from(fd)))
    }
}

/// A tree inside one folder, e.g. one platform's files in a folder named after it.
pub struct SubTree {
    folder: Stat,
    inner: Arc<dyn FileTree>,
}

impl SubTree {
    /// `inner` below `folder`, whose path is a single name.
    pub fn new(folder: Stat, inner: Arc<dyn FileTree>) -> Self {
        Self { folder, inner }
    }

    /// `inner` below a folder with mode 0755 of root.
    pub fn named(name: impl Into<String>, mod_time: i64, inner: Arc<dyn FileTree>) -> Self {
        let mode = gomode::DIR | 0o755;
        Self::new(Stat { path: name.into(), mode, mod_time, ..Stat::default() }, inner)
    }
}

impl FileTree for SubTree {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        visit(self.folder.clone())?;
        let name = &self.folder.path;
        self.inner.walk(&mut |mut stat| {
            stat.path = format!("{name}/{}", stat.path);
            if stat.mode & gomode::SYMLINK == 0 && !stat.linkname.is_empty() {
                stat.linkname = format!("{name}/{}", stat.linkname);
            }
            visit(stat)
        })
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        let inner = path.strip_prefix(&self.folder.path).and_then(|rest| rest.strip_prefix('/'));
        self.inner.open(inner.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?)
    }
}

/// Several trees as one; where paths meet, the later tree wins.
pub struct MergedTree {
    parts: Vec<Arc<dyn FileTree>>,
    /// Which part the files come from, as of the latest listing.
    owners: Mutex<HashMap<String, usize>>,
}

impl MergedTree {
    /// All of `parts`.
    pub fn new(parts: Vec<Arc<dyn FileTree>>) -> Self {
        Self { parts, owners: Mutex::default() }
    }
}

impl FileTree for MergedTree {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        // Slashes sort below everything else on the wire.
        let mut all: BTreeMap<Vec<u8>, (usize, Stat)> = BTreeMap::new();
        for (index, part) in self.parts.iter().enumerate() {
            part.walk(&mut |stat| {
                let key = order_key(&stat.path);
                let is_dir = stat.mode & gomode::DIR != 0;
                let was_dir = all.get(&key).is_some_and(|(_, old)| old.mode & gomode::DIR != 0);
                if was_dir && !is_dir {
                    let mut from = key.clone();
                    from.push(0);
                    let below: Vec<_> = all
                        .range(from.clone()..)
                        .map(|(key, _)| key.clone())
                        .take_while(|key| key.starts_with(&from))
                        .collect();
                    below.iter().for_each(|key| drop(all.remove(key)));
                }
                all.insert(key, (index, stat));
                Ok(())
            })?;
        }
        let owners = all.values().map(|(index, stat)| (stat.path.clone(), *index)).collect();
        *self.owners.lock().expect("nobody panics here") = owners;
        all.into_values().try_for_each(|(_, stat)| visit(stat))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        let owner = self.owners.lock().expect("nobody panics here").get(path).copied();
        let owner = owner.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.parts[owner].open(path)
    }
}

/// The path with slashes as zeros: its byte order is the wire's order.
pub(crate) fn order_key(path: &str) -> Vec<u8> {
    path.bytes().map(|byte| if byte == b'/' { 0 } else { byte }).collect()
}

/// A few files made up on the spot, such as attestations beside an output.
#[derive(Default)]
pub struct MemoryTree {
    entries: BTreeMap<Vec<u8>, (Stat, Bytes)>,
}

impl MemoryTree {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry; parents must be added too. The size is set from `data`.
    pub fn add(&mut self, mut stat: Stat, data: impl Into<Bytes>) {
        let data = data.into();
        if gomode::is_regular(stat.mode) && stat.linkname.is_empty() {
            stat.size = data.len() as i64;
        }
        self.entries.insert(order_key(&stat.path), (stat, data));
    }

    /// Adds a regular file of root with mode 0644.
    pub fn file(&mut self, path: impl Into<String>, mod_time: i64, data: impl Into<Bytes>) {
        self.add(Stat { path: path.into(), mode: 0o644, mod_time, ..Stat::default() }, data);
    }
}

impl FileTree for MemoryTree {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        self.entries.values().try_for_each(|(stat, _)| visit(stat.clone()))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        match self.entries.get(&order_key(path)) {
            Some((_, data)) => Ok(Box::new(data.clone().reader())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
