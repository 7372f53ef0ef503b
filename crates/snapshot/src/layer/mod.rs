//! Layer tars: what they hold, byte for byte, and how they become folders again.

use base::Digest;

use crate::SnapshotError;

/// What a layer tar was, measured while it was written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Number of entries.
    pub entries: u64,
}

/// Bounds on a tar from outside.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Longest name or link target in bytes.
    pub name_length: usize,
    /// Most bytes of file content in total, holes of sparse files included.
    pub total_size: u64,
    /// Most bytes in one extended header.
    pub header_size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            name_length: 4095,
            total_size: 1 << 40,
            header_size: 1 << 20,
        }
    }
}

/// A layer tar could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A snapshot operation failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The reader or writer given failed.
    #[error("{doing} layer tar: {cause}")]
    Stream {
        /// `read` or `write`.
        doing: &'static str,
        /// Why.
        cause: std::io::Error,
    },
    /// The bytes are no proper tar.
    #[error("malformed tar at offset {offset}: {reason}")]
    Malformed {
        /// Where in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A bound of [`Limits`] is exceeded.
    #[error("tar entry `{entry}` exceeds the limit: {limit}")]
    Limit {
        /// Name of the entry.
        entry: String,
        /// Which bound.
        limit: String,
    },
    /// An entry cannot be unpacked.
    #[error("unpack tar entry `{entry}`: {reason}")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// Why not.
        reason: String,
    },
}
