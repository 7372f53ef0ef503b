//! The file engine: copy, make, link and remove inside trees, with every path scoped to its root.
//!
//! `ops` binds the file op to these functions. They take trees and plain values, follow the LLB
//! notes §5, and name paths in errors as the client wrote them.

pub(crate) mod transfer;

use std::io;

use crate::{LayerError, Tree};

/// Owner given to what is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A user or group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name, looked up in the tree given along.
    Name(String),
}

/// How to copy; the fields are those of the copy action.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// Owner of everything made; none keeps the source's.
    pub owner: Option<Owner>,
    /// Twelve mode bits for everything made.
    pub mode: Option<u32>,
    /// Change in chmod syntax, taken instead of `mode` when not empty.
    pub mode_text: String,
    /// Follow a symlink in the last component of the source.
    pub follow_symlink: bool,
    /// Copy what a source folder holds instead of the folder.
    pub copy_dir_contents: bool,
    /// Unpack a source that is a tar.
    pub unpack: bool,
    /// Make missing folders above the destination.
    pub create_dest_path: bool,
    /// Take wildcards in the source.
    pub allow_wildcard: bool,
    /// Wildcards that match nothing are fine.
    pub allow_empty_wildcard: bool,
    /// Times of everything made, in ns since the epoch; none keeps the source's.
    pub timestamp: Option<i64>,
    /// Copy only what matches.
    pub include: Vec<String>,
    /// Leave out what matches.
    pub exclude: Vec<String>,
    /// Remove an existing destination first, unless both are folders.
    pub always_replace: bool,
}

/// A file action failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused something.
    #[error("{doing} {path}: {cause}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what, as the client wrote it.
        path: String,
        /// Why not.
        cause: io::Error,
    },
    /// A source that does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// Anything else, in words.
    #[error("{0}")]
    Refused(String),
    /// A tar could not be unpacked.
    #[error("unpack {path}: {cause}")]
    Unpack {
        /// The tar.
        path: String,
        /// Why not.
        cause: LayerError,
    },
}

/// Copies `src` of `source` (none is an empty tree) to `dest` of `target`.
pub fn copy(
    source: Option<&Tree>,
    src: &str,
    target: &Tree,
    dest: &str,
    options: &CopyOptions,
) -> Result<(), FileError> {
    let _ = (source, src, target, dest, options);
    unreachable!("not built yet")
}

/// Makes a folder; an existing path is left as it is. With `parents` missing ancestors are made too.
pub fn mkdir(
    tree: &Tree,
    path: &str,
    mode: u32,
    parents: bool,
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let _ = (tree, path, mode, parents, owner, timestamp);
    unreachable!("not built yet")
}

/// Writes a file; an existing one is truncated and keeps its mode.
pub fn mkfile(
    tree: &Tree,
    path: &str,
    mode: u32,
    data: &[u8],
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let _ = (tree, path, mode, data, owner, timestamp);
    unreachable!("not built yet")
}

/// Makes the symlink `new` with the text `old`.
pub fn symlink(
    tree: &Tree,
    old: &str,
    new: &str,
    owner: Option<Owner>,
    timestamp: Option<i64>,
) -> Result<(), FileError> {
    let _ = (tree, old, new, owner, timestamp);
    unreachable!("not built yet")
}

/// Removes a file or a whole folder.
pub fn rm(
    tree: &Tree,
    path: &str,
    allow_not_found: bool,
    allow_wildcard: bool,
) -> Result<(), FileError> {
    let _ = (tree, path, allow_not_found, allow_wildcard);
    unreachable!("not built yet")
}

/// Turns a user and a group into numbers. Names are looked up in `/etc/passwd` and `/etc/group` of
/// the tree given with each; a missing tree, file or name gives 0 (user) or leaves the group as is.
pub fn resolve_owner(
    user: Option<(&Account, Option<&Tree>)>,
    group: Option<(&Account, Option<&Tree>)>,
) -> Result<Option<Owner>, FileError> {
    let _ = (user, group);
    unreachable!("not built yet")
}
