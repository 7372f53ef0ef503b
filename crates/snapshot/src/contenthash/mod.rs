//! Content digests of files and folders as cache keys see them.
//!
//! An [`Index`] maps the paths of one tree to digests. It is filled by *transfer* ([`Index::put`],
//! entry by entry as a client sends them) or by *scan* (read from the tree on demand); both agree
//! except for device numbers and the root's header. It lives with its record and can be stored.

use std::collections::BTreeMap;

use base::{Digest, Hasher};

use crate::{SnapshotError, Tree};

/// Metadata of one entry as it is hashed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Unix `st_mode`: type and twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a regular file.
    pub size: u64,
    /// Target of a symlink.
    pub link: Vec<u8>,
    /// Device numbers (major, minor).
    pub device: (u32, u32),
    /// Extended attributes; those that are not hashed are skipped.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Stat {
    /// A hasher that has taken the header in. For a regular file its content follows; then
    /// `finish()` gives the digest for [`Index::put`].
    pub fn hasher(&self) -> Hasher {
        unreachable!("not built yet")
    }
}

/// A filtered query; see the cache key notes §5.4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// Path, possibly with wildcards.
    pub path: &'a str,
    /// Follow a symlink in the last component.
    pub follow: bool,
    /// Take `*`, `?` and `[` in the path as wildcards.
    pub wildcard: bool,
    /// Only what matches one of these.
    pub include: &'a [String],
    /// Not what matches these.
    pub exclude: &'a [String],
    /// Each must be a prefix of something listed.
    pub required: &'a [String],
}

/// A digest could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Nothing there.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A loop of symlinks.
    #[error("too many links")]
    TooManyLinks,
    /// A malformed pattern, with the name of the list it stands in.
    #[error("{0}")]
    Pattern(String),
    /// The tree could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Stored bytes that are no index.
    #[error("stored content index is damaged: {0}")]
    Damaged(&'static str),
}

/// Paths of one tree and their digests.
#[derive(Debug, Default)]
pub struct Index {}

impl Index {
    /// An empty index, to be filled by transfer or by scanning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records an entry received from elsewhere. `digest` comes from [`Stat::hasher`]; for anything
    /// but a regular file it is just the header's. Ancestors' digests are forgotten.
    pub fn put(&mut self, path: &[u8], stat: &Stat, digest: Digest) {
        let _ = (path, stat, digest);
        unreachable!("not built yet")
    }

    /// Records `path` as a hard link to the entry `target`, which was put before. Returns false if
    /// there is no such entry.
    pub fn put_link(&mut self, path: &[u8], target: &[u8]) -> bool {
        let _ = (path, target);
        unreachable!("not built yet")
    }

    /// Forgets `path` and everything below it. Ancestors' digests are forgotten.
    pub fn remove(&mut self, path: &[u8]) {
        let _ = path;
        unreachable!("not built yet")
    }

    /// Whether nothing was ever put or scanned.
    pub fn is_empty(&self) -> bool {
        unreachable!("not built yet")
    }

    /// Whether something was learnt since it was made, restored or stored.
    pub fn is_dirty(&self) -> bool {
        unreachable!("not built yet")
    }

    /// Digest of the file or folder at `path`.
    pub fn checksum(&mut self, tree: &Tree, path: &str, follow: bool) -> Result<Digest, HashError> {
        let _ = (tree, path, follow);
        unreachable!("not built yet")
    }

    /// Digest of what the query selects.
    pub fn checksum_filtered(&mut self, tree: &Tree, query: &Query) -> Result<Digest, HashError> {
        let _ = (tree, query);
        unreachable!("not built yet")
    }

    /// Compact binary form; marks the index as clean.
    pub fn to_bytes(&mut self) -> Vec<u8> {
        unreachable!("not built yet")
    }

    /// Reads the form written by [`Index::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HashError> {
        let _ = bytes;
        unreachable!("not built yet")
    }
}
