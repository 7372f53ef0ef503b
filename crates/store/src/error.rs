//! What can go wrong in the store, one variant per thing a caller acts on or a person reads.

use std::{io, path::PathBuf};

use base::Digest;

use crate::RecordId;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon works on this folder.
    #[error("could not lock {path}, another instance running?{}", held_by(.holder))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Process id the holder wrote into it, if it could be read.
        holder: Option<u32>,
    },
    /// The disk, or the share of it we may use, is full.
    #[error("no space left while trying to {doing}")]
    NoSpace {
        /// What was being done.
        doing: String,
    },
    /// The configured ceiling is reached and nothing more can be collected.
    #[error(
        "the cache is at its ceiling: {used} of {ceiling} bytes are in use and nothing more can be removed"
    )]
    Ceiling {
        /// Bytes in use, work in flight included.
        used: u64,
        /// The configured limit.
        ceiling: u64,
    },
    /// A mutable record has a writer, or its committed view is in use.
    #[error("record {0} is in use")]
    InUse(RecordId),
    /// There is no such record.
    #[error("record {0} not found")]
    NoRecord(RecordId),
    /// The record's layers are not all unpacked here; [`crate::Ref::ensure_local`] does that.
    #[error("record {0} is not local yet")]
    NotLocal(RecordId),
    /// There is no such blob.
    #[error("blob {0} not found")]
    NoBlob(Digest),
    /// The layer has no blob yet, and none was to be made.
    #[error("layer {0} has no blob")]
    NoLayerBlob(snapshot::LayerId),
    /// There is no such image.
    #[error("image `{0}` not found")]
    NoImage(String),
    /// A lazy layer's blob is not here and nobody who can fetch it is known.
    #[error("layer {0} is not present locally and has no provider")]
    NoProvider(Digest),
    /// A blob's bytes are not what its digest promised.
    #[error("blob {expected} arrived as {actual}")]
    WrongDigest {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A layer's uncompressed bytes are not what its diff id promised.
    #[error("layer blob {blob} unpacks to {actual} instead of {expected}")]
    WrongDiffId {
        /// The compressed blob.
        blob: Digest,
        /// The diff id the image config gives.
        expected: Digest,
        /// The digest of the uncompressed bytes.
        actual: Digest,
    },
    /// A blob's length is not what its descriptor promised.
    #[error("blob has {actual} bytes instead of {expected}")]
    WrongSize {
        /// The promised length.
        expected: u64,
        /// The length received.
        actual: u64,
    },
    /// A filter expression could not be read.
    #[error("invalid filter `{filter}`: {reason}")]
    Filter {
        /// The text.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Fetching a blob from its provider failed.
    #[error("fetch blob {digest}")]
    Fetch {
        /// The blob.
        digest: Digest,
        /// The provider's error.
        #[source]
        source: BoxError,
    },
    /// Two callers waited for one download and the one doing it failed.
    #[error("{0}")]
    Shared(std::sync::Arc<StoreError>),
    /// The snapshot driver failed.
    #[error(transparent)]
    Snapshot(snapshot::SnapshotError),
    /// A layer tar could not be written or unpacked.
    #[error(transparent)]
    Layer(snapshot::LayerError),
    /// The metadata database failed.
    #[error("metadata database: {0}")]
    Meta(String),
    /// A stored value cannot be read back.
    #[error("stored {what} is damaged: {reason}")]
    Damaged {
        /// What was read.
        what: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The layer's compression is one we cannot read or write.
    #[error("unsupported compression of layer {0}")]
    Compression(String),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// The work was cancelled because a task ended early.
    #[error("{0} was interrupted")]
    Interrupted(String),
    /// Plain input or output.
    #[error("{doing}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Any error of a plug-in below or beside the store.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn held_by(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl StoreError {
    /// Wraps an IO error, telling a full disk apart.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        if is_full(&source) { Self::NoSpace { doing } } else { Self::Io { doing, source } }
    }

    /// Whether the cause is a full disk or the ceiling.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Ceiling { .. } => true,
            Self::Shared(error) => error.is_no_space(),
            _ => false,
        }
    }
}

/// Whether an IO error means that the disk or a quota on it is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds what was being done to an IO result.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, StoreError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::io(doing(), source))
    }
}

impl<T> Doing<T> for Result<T, rustix::io::Errno> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, StoreError> {
        self.map_err(|errno| StoreError::io(doing(), errno.into()))
    }
}

impl From<snapshot::SnapshotError> for StoreError {
    fn from(error: snapshot::SnapshotError) -> Self {
        if error.is_out_of_space() {
            return Self::NoSpace { doing: error.to_string() };
        }
        Self::Snapshot(error)
    }
}

impl From<snapshot::LayerError> for StoreError {
    fn from(error: snapshot::LayerError) -> Self {
        match error {
            snapshot::LayerError::Snapshot(error) => error.into(),
            snapshot::LayerError::Stream { doing, cause } if is_full(&cause) => {
                Self::NoSpace { doing: format!("{doing} layer tar") }
            }
            error => Self::Layer(error),
        }
    }
}
