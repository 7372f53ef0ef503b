//! What can go wrong while a tree is transferred.

use std::io;

/// A failed transfer.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The other end, sending, gave up.
    #[error("error from sender: {0}")]
    FromSender(String),
    /// The other end, receiving, gave up.
    #[error("error from receiver: {0}")]
    FromReceiver(String),
    /// The receiver asked for an entry that is unknown, has no content or was asked for before.
    #[error("invalid file id {0}")]
    InvalidId(u32),
    /// The sender sent content nobody asked for.
    #[error("invalid file request {0}")]
    InvalidRequest(u32),
    /// An entry came out of order, twice, or before its folder.
    #[error("changes out of order: {path:?} {last:?}")]
    OutOfOrder {
        /// The offending path.
        path: String,
        /// The entry before it.
        last: String,
    },
    /// A path that a receiver must not follow.
    #[error("{why} {path:?}: invalid argument")]
    BadPath {
        /// Which rule it breaks.
        why: &'static str,
        /// The path as sent.
        path: String,
    },
    /// A hard link to something the listing has not shown as a file.
    #[error("invalid link {path} to unknown path: {target:?}")]
    BadLink {
        /// The link.
        path: String,
        /// Where it points.
        target: String,
    },
    /// The stream ended early.
    #[error("stream closed during transfer of files")]
    Closed,
    /// The stream broke.
    #[error("{}", .0.message())]
    Stream(tonic::Status),
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// Include, exclude or follow patterns that do not parse.
    #[error("invalid {which}: {patterns:?}: {source}")]
    Pattern {
        /// Which list.
        which: &'static str,
        /// The whole list.
        patterns: Vec<String>,
        /// What is wrong with it.
        source: base::pattern::PatternError,
    },
    /// The folder has a file whose name the wire cannot carry.
    #[error("file name {0:?} is not valid utf-8")]
    NotText(String),
    /// A worker of ours went away.
    #[error("transfer worker stopped: {0}")]
    Worker(String),
}

impl TransferError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn os(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, source: errno.into() }
    }
}

impl From<tonic::Status> for TransferError {
    fn from(status: tonic::Status) -> Self {
        Self::Stream(status)
    }
}
