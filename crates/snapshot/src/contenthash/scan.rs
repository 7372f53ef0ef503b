//! Fills an index from the tree, no further than asked for. Files are hashed in parallel.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd},
};

use base::Digest;
use rayon::prelude::*;
use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};

use super::{
    HashError, Index, Stat,
    entry::is_hashed,
    index::{Folder, Node, parts},
};
use crate::{
    SnapshotError, Tree, scoped,
    sys::{self, At, SysResult},
};

/// Pieces in which files are read.
const PIECE: usize = 256 << 10;

/// An entry whose digest is wanted.
#[derive(Debug)]
pub(super) struct Task {
    /// Real path, relative to the root.
    pub path: Vec<u8>,
    pub kind: TaskKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskKind {
    Folder,
    File,
    /// Symlinks, devices and so on, which are not opened.
    Other,
}

impl Index {
    /// Makes sure that `name` in the folder `path` is in the index if it exists.
    pub(super) fn learn(&mut self, tree: &Tree, path: &[u8], name: &[u8]) -> Result<(), HashError> {
        let Some(folder) = self.folder_mut(&parts(path)) else { return Ok(()) };
        if folder.complete || folder.children.contains_key(name) {
            return Ok(());
        }
        let look = || -> SysResult<Option<Node>> {
            let at = match scoped::open_folder(tree.fd(), path) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                other => other?,
            };
            let Some(meta) = sys::try_stat_at(&at, name)? else { return Ok(None) };
            node(at.as_fd(), name, meta.kind()).map(Some)
        };
        let found = look().map_err(|error| read_error(path, error))?;
        if let Some(node) = found {
            folder.children.insert(name.into(), node);
        }
        Ok(())
    }

    /// Makes sure that all names in the folder `path` are in the index.
    pub(super) fn learn_all(&mut self, tree: &Tree, path: &[u8]) -> Result<(), HashError> {
        let parts = parts(path);
        let Some(folder) = self.folder_mut(&parts) else { return Ok(()) };
        if folder.complete {
            return Ok(());
        }
        if parts.len() > sys::MAX_DEPTH {
            return Err(SnapshotError::TooDeep { path: shown(path).into() }.into());
        }
        let read = || -> SysResult<Vec<(Box<[u8]>, Node)>> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let at = scoped::open(tree.fd(), path, flags)?;
            let mut list = Vec::new();
            for entry in sys::read_dir(&at)? {
                let kind = match entry.kind {
                    FileType::Unknown => sys::stat_at(&at, &entry.name)?.kind(),
                    known => known.as_raw_mode(),
                };
                list.push((entry.name.clone(), node(at.as_fd(), &entry.name, kind)?));
            }
            Ok(list)
        };
        for (name, node) in read().map_err(|error| read_error(path, error))? {
            folder.children.entry(name).or_insert(node);
        }
        folder.complete = true;
        self.dirty = true;
        Ok(())
    }

    /// Computes the digest of the folder `path` and of everything in it.
    pub(super) fn fill(&mut self, tree: &Tree, path: &[u8]) -> Result<Digest, HashError> {
        let missing = || HashError::NotFound(format!("/{}", shown(path)));
        if let Some(known) = self.folder(&parts(path)).ok_or_else(missing)?.content {
            return Ok(known);
        }
        self.learn_below(tree, path)?;
        let folder = self.folder(&parts(path)).ok_or_else(missing)?;
        let mut tasks = Vec::new();
        collect(folder, &mut path.to_vec(), &mut tasks);
        let digests = hash(tree, &tasks)?;
        let folder = self.folder_mut(&parts(path)).ok_or_else(missing)?;
        let digest = settle(folder, &mut digests.into_iter());
        self.dirty = true;
        Ok(digest)
    }

    fn learn_below(&mut self, tree: &Tree, path: &[u8]) -> Result<(), HashError> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            self.learn_all(tree, &path)?;
            let Some(folder) = self.folder(&parts(&path)) else { continue };
            for (name, node) in &folder.children {
                if matches!(node, Node::Folder(folder) if folder.content.is_none()) {
                    let mut below = path.clone();
                    below.push(b'/');
                    below.extend_from_slice(name);
                    todo.push(below);
                }
            }
        }
        Ok(())
    }

    /// Computes the digests of single entries; of folders only their headers.
    pub(super) fn fill_each(&mut self, tree: &Tree, tasks: Vec<Task>) -> Result<(), HashError> {
        let digests = hash(tree, &tasks)?;
        for (task, found) in tasks.iter().zip(digests) {
            let parts = parts(&task.path);
            if task.kind == TaskKind::Folder {
                if let Some(folder) = self.folder_mut(&parts) {
                    folder.header = Some(found);
                }
                continue;
            }
            let Some((name, parents)) = parts.split_last() else { continue };
            let node = self.folder_mut(parents).and_then(|folder| folder.children.get_mut(*name));
            if let Some(Node::Symlink { digest, .. } | Node::File { digest, .. }) = node {
                *digest = Some(found);
            }
        }
        self.dirty |= !tasks.is_empty();
        Ok(())
    }
}

/// What is known of an entry that was only listed.
fn node(folder: BorrowedFd<'_>, name: &[u8], kind: u32) -> SysResult<Node> {
    Ok(match kind {
        sys::DIR => Node::Folder(Box::default()),
        sys::SYMLINK => {
            Node::Symlink { digest: None, target: sys::read_link(folder, name)?.into() }
        }
        kind => Node::File { digest: None, regular: kind == sys::FILE },
    })
}

/// Names everything in `folder` whose digest is missing, in the order in which `settle` takes them.
fn collect(folder: &Folder, path: &mut Vec<u8>, tasks: &mut Vec<Task>) {
    if folder.content.is_some() {
        return;
    }
    if folder.header.is_none() {
        tasks.push(Task { path: path.clone(), kind: TaskKind::Folder });
    }
    for (name, node) in &folder.children {
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(name);
        match node {
            Node::Folder(folder) => collect(folder, path, tasks),
            Node::Symlink { digest: None, .. } | Node::File { digest: None, regular: false } => {
                tasks.push(Task { path: path.clone(), kind: TaskKind::Other });
            }
            Node::File { digest: None, .. } => {
                tasks.push(Task { path: path.clone(), kind: TaskKind::File });
            }
            Node::Symlink { .. } | Node::File { .. } => {}
        }
        path.truncate(length);
    }
}

fn settle(folder: &mut Folder, digests: &mut std::vec::IntoIter<Digest>) -> Digest {
    if let Some(known) = folder.content {
        return known;
    }
    let mut next = || digests.next().expect("there is a digest for each task");
    if folder.header.is_none() {
        folder.header = Some(next());
    }
    for node in folder.children.values_mut() {
        match node {
            Node::Folder(folder) => drop(settle(folder, digests)),
            Node::Symlink { digest, .. } | Node::File { digest, .. } => {
                if digest.is_none() {
                    *digest = digests.next();
                }
            }
        }
    }
    let digest = folder.hash().expect("every digest in the folder is known now");
    folder.content = Some(digest);
    digest
}

fn hash(tree: &Tree, tasks: &[Task]) -> Result<Vec<Digest>, HashError> {
    let one = |task: &Task| hash_one(tree.fd(), task);
    if tasks.len() < 4 {
        return tasks.iter().map(one).collect();
    }
    tasks.par_iter().map(one).collect()
}

fn hash_one(root: BorrowedFd<'_>, task: &Task) -> Result<Digest, HashError> {
    let failed = |error: Errno| read_error(&task.path, error);
    if task.kind == TaskKind::Other {
        let (parent, name) = scoped::split(&task.path);
        let folder = scoped::open_folder(root, parent).map_err(failed)?;
        let meta = sys::stat_at(&folder, name).map_err(failed)?;
        let mut stat = stat_of(&meta, At::Name(folder.as_fd(), name)).map_err(failed)?;
        if meta.is_symlink() {
            stat.link = sys::read_link(&folder, name).map_err(failed)?;
        }
        return Ok(stat.hasher().finish());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = scoped::open(root, &task.path, flags).map_err(failed)?;
    let meta = sys::stat_fd(&fd).map_err(failed)?;
    let mut hasher = stat_of(&meta, At::Fd(fd.as_fd())).map_err(failed)?.hasher();
    if task.kind == TaskKind::File {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let mut file = std::fs::File::from(fd);
        let read = BUFFER.with_borrow_mut(|buffer| -> std::io::Result<u64> {
            buffer.resize(PIECE, 0);
            let mut total = 0;
            loop {
                match file.read(buffer) {
                    Ok(0) => return Ok(total),
                    Ok(length) => {
                        hasher.update(&buffer[..length]);
                        total += length as u64;
                        // The size is known, so the read that would only say "end" is saved.
                        if length < buffer.len() && total == meta.size {
                            return Ok(total);
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        });
        let io = |error| HashError::from(SnapshotError::io("hash", shown(&task.path), error));
        if read.map_err(io)? != meta.size {
            return Err(io(std::io::Error::other("the file changed while it was read")));
        }
    }
    Ok(hasher.finish())
}

fn stat_of(meta: &sys::Meta, at: At) -> SysResult<Stat> {
    let mut stat = Stat {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        size: meta.size,
        // Device numbers count only in transfers.
        ..Stat::default()
    };
    for key in sys::list_xattrs(at)? {
        if is_hashed(&key)
            && let Some(value) = sys::get_xattr(at, &key)?
        {
            stat.xattrs.insert(key, value);
        }
    }
    Ok(stat)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn read_error(path: &[u8], error: Errno) -> HashError {
    SnapshotError::io("hash", format!("/{}", shown(path).trim_start_matches('/')), error).into()
}
