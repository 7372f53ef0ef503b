//! Content digests of files and folders as cache keys see them.
//!
//! An [`Index`] maps the paths of one tree to digests. It is filled by *transfer* ([`Index::put`],
//! entry by entry as a client sends them) or by *scan* (read from the tree on demand); both agree
//! except for device numbers and the root's header. It lives with its record and can be stored.
//!
//! ```text
//! folder  = sha256( 00 header-digest  (00 name digest)* )      names by byte order, digests as text
//! entry   = sha256( header content )                           content of regular files only
//! ```

mod entry;
mod index;
mod query;
mod scan;
mod stored;
#[cfg(test)]
mod tests;

pub use entry::Stat;
pub use index::Index;
pub use query::Query;
pub use stored::fuzz_index;

use crate::SnapshotError;

/// A digest could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Nothing there.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A loop of symlinks.
    #[error("too many links")]
    TooManyLinks,
    /// A malformed wildcard, or pattern with the name of the list it stands in.
    #[error("{0}")]
    Pattern(String),
    /// The tree could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Stored bytes that are no index.
    #[error("stored content index is damaged: {0}")]
    Damaged(&'static str),
}
