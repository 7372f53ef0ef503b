//! The index itself: a tree of names that mirrors the tree of files, filled in as far as known.

use std::collections::BTreeMap;

use base::{Digest, Hasher};

use super::Stat;
use crate::{Tree, scoped, sys};

/// Longest path that is recorded; no system makes longer ones.
const LONGEST_PATH: usize = 4096;

/// Deepest folder that is recorded. What lies deeper is left to be scanned, and refused there.
pub(super) const DEEPEST: usize = 1000;

/// Paths of one tree and their digests.
#[derive(Debug, Default)]
pub struct Index {
    pub(super) root: Folder,
    pub(super) dirty: bool,
}

/// What is known of one entry.
#[derive(Debug)]
pub(super) enum Node {
    Folder(Box<Folder>),
    Symlink {
        digest: Option<Digest>,
        target: Box<[u8]>,
    },
    /// Regular files and everything else. The kind matters only for finding the digest.
    File {
        digest: Option<Digest>,
        regular: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Digest of the folder's own metadata.
    pub header: Option<Digest>,
    /// Digest of everything in it.
    pub content: Option<Digest>,
    /// All names in it are known.
    pub complete: bool,
    pub children: BTreeMap<Box<[u8]>, Node>,
}

impl Folder {
    /// Digest of the folder, once everything in it is known.
    pub fn hash(&self) -> Option<Digest> {
        let mut hasher = Hasher::new();
        hasher.update([0]);
        hasher.update(self.header?.to_string());
        for (name, node) in &self.children {
            hasher.update([0]);
            hasher.update(name);
            hasher.update(node.digest()?.to_string());
        }
        Some(hasher.finish())
    }
}

impl Node {
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Folder(folder) => folder.content,
            Self::Symlink { digest, .. } | Self::File { digest, .. } => *digest,
        }
    }
}

impl Index {
    /// An empty index, to be filled by transfer or by scanning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an entry received from elsewhere. `digest` comes from [`Stat::hasher`]; for anything
    /// but a regular file it is just the header's. Ancestors' digests are forgotten. Paths longer
    /// than any system allows are left out.
    pub fn put(&mut self, path: &[u8], stat: &Stat, digest: Digest) {
        let node = match stat.mode & sys::TYPE_MASK {
            sys::DIR => {
                let folder = Folder { header: Some(digest), complete: true, ..Folder::default() };
                Node::Folder(Box::new(folder))
            }
            sys::SYMLINK => {
                Node::Symlink { digest: Some(digest), target: stat.link.as_slice().into() }
            }
            kind => Node::File { digest: Some(digest), regular: kind == sys::FILE },
        };
        self.insert(path, node);
    }

    /// Records `path` as a hard link to the entry `target`, which was put before. Returns false if
    /// there is no such entry, or if it is a folder.
    pub fn put_link(&mut self, path: &[u8], target: &[u8]) -> bool {
        let node = match self.find(&parts(target)) {
            Some(Node::File { digest, regular }) => {
                Node::File { digest: *digest, regular: *regular }
            }
            Some(Node::Symlink { digest, target }) => {
                Node::Symlink { digest: *digest, target: target.clone() }
            }
            Some(Node::Folder(_)) | None => return false,
        };
        self.insert(path, node);
        true
    }

    /// Forgets `path` and everything below it. Ancestors' digests are forgotten.
    pub fn remove(&mut self, path: &[u8]) {
        let parts = parts(path);
        let Some((name, parents)) = parts.split_last() else {
            self.root = Folder::default();
            self.dirty = true;
            return;
        };
        let mut at = &mut self.root;
        for part in parents {
            at.content = None;
            at = match at.children.get_mut(*part) {
                Some(Node::Folder(folder)) => folder,
                _ => return,
            };
        }
        at.content = None;
        at.children.remove(*name);
        self.dirty = true;
    }

    /// Whether nothing was ever put or scanned.
    pub fn is_empty(&self) -> bool {
        self.root.header.is_none() && self.root.children.is_empty()
    }

    /// Whether something was learnt since it was made, restored or stored.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Digests the regular files whose digests are recorded anew: how many there are, and in words
    /// which are not (any more) what they were.
    pub fn wrong_files(&self, tree: &Tree) -> (u64, Vec<String>) {
        let mut recorded = Vec::new();
        let mut stack = vec![(Vec::new(), &self.root)];
        while let Some((path, folder)) = stack.pop() {
            for (name, node) in &folder.children {
                let path = [&path[..], &b"/"[..], &name[..]].concat();
                match node {
                    Node::Folder(folder) => stack.push((path, folder)),
                    Node::File { digest: Some(digest), regular: true } => {
                        recorded.push((path, *digest));
                    }
                    Node::File { .. } | Node::Symlink { .. } => {}
                }
            }
        }
        let mut fresh = Index::new();
        let mut wrong = Vec::new();
        for (path, digest) in &recorded {
            let shown = String::from_utf8_lossy(path);
            // Level by level, as far as is not known yet.
            let real = fresh.resolve(tree, path, false);
            match real.and_then(|real| fresh.entry_digest(tree, &real)) {
                Ok(Some(found)) if found == *digest => {}
                Ok(Some(_)) => wrong.push(format!("{shown} has another content than it had")),
                Ok(None) => wrong.push(format!("{shown} is gone")),
                Err(error) => wrong.push(format!("{shown} cannot be read: {error}")),
            }
        }
        (recorded.len() as u64, wrong)
    }

    fn insert(&mut self, path: &[u8], mut node: Node) {
        let parts = parts(path);
        if path.len() > LONGEST_PATH {
            return;
        }
        self.dirty = true;
        let transferred = || Folder {
            // What was never sent counts as empty; so does the root, whose metadata never is.
            header: Some(Digest::of("")),
            complete: true,
            ..Folder::default()
        };
        if self.is_empty() {
            self.root = transferred();
        }
        self.root.content = None;
        let Some((name, parents)) = parts.split_last() else { return };
        let mut at = &mut self.root;
        for (depth, part) in parents.iter().enumerate() {
            if depth >= DEEPEST {
                at.complete = false;
                return;
            }
            let next = at
                .children
                .entry((*part).into())
                .or_insert_with(|| Node::Folder(Box::new(transferred())));
            if !matches!(next, Node::Folder(_)) {
                *next = Node::Folder(Box::new(transferred()));
            }
            let Node::Folder(folder) = next else { unreachable!("it was just made a folder") };
            folder.content = None;
            at = folder;
        }
        // A folder that only changed its metadata keeps what is in it.
        if let (Node::Folder(new), Some(Node::Folder(old))) =
            (&mut node, at.children.get_mut(*name))
        {
            new.children = std::mem::take(&mut old.children);
            new.complete = old.complete;
        }
        at.children.insert((*name).into(), node);
    }

    pub(super) fn find(&self, parts: &[&[u8]]) -> Option<&Node> {
        let (name, parents) = parts.split_last()?;
        self.folder(parents)?.children.get(*name)
    }

    pub(super) fn folder(&self, parts: &[&[u8]]) -> Option<&Folder> {
        parts.iter().try_fold(&self.root, |folder, part| match folder.children.get(*part)? {
            Node::Folder(folder) => Some(&**folder),
            _ => None,
        })
    }

    pub(super) fn folder_mut(&mut self, parts: &[&[u8]]) -> Option<&mut Folder> {
        parts.iter().try_fold(&mut self.root, |folder, part| {
            match folder.children.get_mut(*part)? {
                Node::Folder(folder) => Some(&mut **folder),
                _ => None,
            }
        })
    }
}

/// The components of a path as it was sent: `..` has no place in there and is skipped.
pub(super) fn parts(path: &[u8]) -> Vec<&[u8]> {
    scoped::components(path).filter(|part| *part != b"..").collect()
}
