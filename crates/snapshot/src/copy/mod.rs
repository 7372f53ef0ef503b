//! The file engine: copy, make, link and remove inside trees, with every path scoped to its root.
//!
//! `ops` binds the file op to these functions. They take trees and plain values, follow the LLB
//! notes §5, and name paths in errors as they are inside the tree. Nothing here follows a link out
//! of a tree, whoever made it.

mod actions;
mod engine;
mod mode;
mod owner;
mod places;
#[cfg(test)]
mod tests;
pub(crate) mod transfer;
mod wildcard;

use std::io;

use crate::LayerError;

pub use actions::{mkdir, mkfile, rm, symlink};
pub use engine::copy;
pub use mode::{ModeChange, ParseModeError};
pub use owner::{Account, Owner, resolve_owner};
pub(crate) use wildcard::has_wildcard;

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
    #[error("{doing} {path}: {}", plain(cause))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what, inside the tree.
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

impl FileError {
    fn io(doing: &'static str, path: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.into(), cause: cause.into() }
    }
}

/// The system's text without its number, as other programs print it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
