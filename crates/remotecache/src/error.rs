//! What can go wrong with a remote cache.

/// A cache could not be imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No such kind of export.
    #[error(
        "unknown cache exporter: {0:?}; this daemon exports caches of the types registry, local and inline"
    )]
    UnknownExporter(String),
    /// No such kind of import.
    #[error(
        "unknown cache importer: {0}; this daemon imports caches of the types registry (also for inline caches) and local"
    )]
    UnknownImporter(String),
    /// An attribute is missing or wrong.
    #[error("{0}")]
    Attribute(String),
    /// What was read is no cache.
    #[error("invalid remote cache: {0}")]
    Invalid(String),
    /// A small document is not small.
    #[error("blob {digest} is too large ({size} > {limit})")]
    TooLarge {
        /// the blob
        digest: base::Digest,
        /// its size
        size: u64,
        /// what is allowed
        limit: u64,
    },
    /// The registry, or bytes from it.
    #[error("{doing}: {source}")]
    Registry {
        /// what was being done
        doing: String,
        /// why it failed
        source: oci::Error,
    },
    /// The client.
    #[error("{doing}: {source}")]
    Session {
        /// what was being done
        doing: String,
        /// why it failed
        source: session::SessionError,
    },
    /// The store.
    #[error("{doing}: {source}")]
    Store {
        /// what was being done
        doing: String,
        /// why it failed
        source: store::StoreError,
    },
}

impl CacheError {
    pub(crate) fn registry(doing: impl Into<String>) -> impl FnOnce(oci::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Registry { doing, source }
    }

    pub(crate) fn session(doing: impl Into<String>) -> impl FnOnce(session::SessionError) -> Self {
        let doing = doing.into();
        move |source| Self::Session { doing, source }
    }

    pub(crate) fn store(doing: impl Into<String>) -> impl FnOnce(store::StoreError) -> Self {
        let doing = doing.into();
        move |source| Self::Store { doing, source }
    }
}
