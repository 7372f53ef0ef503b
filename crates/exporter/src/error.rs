//! What can go wrong while a result leaves the daemon.

use base::Digest;

/// Why an export was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No exporter of that type.
    #[error("exporter \"{0}\" could not be found")]
    UnknownType(String),
    /// An attribute whose value cannot be read or is not allowed.
    #[error("invalid value `{value}` for {exporter} exporter attribute `{key}`: {reason}")]
    Attribute {
        /// Type of the exporter.
        exporter: &'static str,
        /// Attribute.
        key: String,
        /// As given.
        value: String,
        /// What is expected.
        reason: String,
    },
    /// Attributes that do not go together, or with this result.
    #[error("{0}")]
    Conflict(String),
    /// A request for something that this compatibility version does not have.
    #[error("unsupported compatibility-version {version} feature {feature}")]
    Compatibility {
        /// Requested version.
        version: u32,
        /// What was asked for.
        feature: String,
    },
    /// The build's result lacks something, or has it in a form that cannot be used.
    #[error("{what}: {reason}")]
    Result {
        /// Metadata key, platform, or `build result`.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The output needs a client and there is none, or it does not answer.
    #[error("{doing}")]
    Session {
        /// What was being done.
        doing: String,
        /// The session's error.
        source: session::SessionError,
    },
    /// Reading refs or writing blobs failed.
    #[error("{doing}")]
    Store {
        /// What was being done.
        doing: String,
        /// The store's error.
        source: store::StoreError,
    },
    /// A registry refused or could not be reached.
    #[error("failed to push {name}")]
    Push {
        /// Image name.
        name: String,
        /// The client's error.
        source: oci::Error,
    },
    /// An image name or document that is not one.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// Files of the result could not be read.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A blob that a manifest names is nowhere.
    #[error("blob {digest} of the image is missing")]
    MissingBlob {
        /// Its digest.
        digest: Digest,
    },
}

impl ExportError {
    pub(crate) fn store(doing: impl Into<String>) -> impl FnOnce(store::StoreError) -> Self {
        let doing = doing.into();
        move |source| Self::Store { doing, source }
    }

    pub(crate) fn session(doing: impl Into<String>) -> impl FnOnce(session::SessionError) -> Self {
        let doing = doing.into();
        move |source| Self::Session { doing, source }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn result(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Result { what: what.into(), reason: reason.to_string() }
    }
}

impl From<oci::ParseReferenceError> for ExportError {
    fn from(error: oci::ParseReferenceError) -> Self {
        Self::Image(error.into())
    }
}
