//! Why a source could not be resolved or fetched.

use std::sync::Arc;

/// A failed source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not `scheme://rest`.
    #[error("failed to parse source identifier `{0}`")]
    BadIdentifier(String),
    /// No source serves this scheme.
    #[error("unknown scheme {0}")]
    UnknownScheme(String),
    /// An attribute has no meaning.
    #[error("{0}")]
    Attribute(String),
    /// The remote side refused, or what it gave is not what was asked for.
    #[error("{0}")]
    Remote(String),
    /// There is no such thing there.
    #[error("{0}")]
    NotFound(String),
    /// An image could not be resolved or read.
    #[error("{0}")]
    Oci(#[from] oci::Error),
    /// The client did not answer as needed.
    #[error("{0}")]
    Session(#[from] session::SessionError),
    /// A result could not be stored.
    #[error("{0}")]
    Store(#[from] store::StoreError),
    /// A tree could not be mounted or written.
    #[error("{0}")]
    Snapshot(#[from] snapshot::SnapshotError),
    /// A file could not be read or written.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// Why not.
        cause: std::io::Error,
    },
    /// Somebody else's failure that this one waited for.
    #[error("{0}")]
    Shared(Arc<SourceError>),
}

impl SourceError {
    /// An IO error with what was being done.
    pub fn io(doing: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        Self::Io { doing: doing.into(), cause: cause.into() }
    }
}
