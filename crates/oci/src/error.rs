//! What can go wrong between a name and its bytes.

use base::Digest;

use crate::{ParseReferenceError, registry::CredentialsError};

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be named, found, read, or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not an image name.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// Nothing of that name or digest where it was asked for.
    #[error("{what}: not found")]
    NotFound {
        /// Reference, or blob and repository.
        what: String,
    },
    /// The registry wants (other) credentials, or refuses these.
    #[error("{what}: {message}{}", in_brackets(.hint))]
    Unauthorized {
        /// What was being done, e.g. `pull docker.io/library/x:latest`.
        what: String,
        /// The registry's words.
        message: String,
        /// What the user can do about it.
        hint: &'static str,
    },
    /// Asking for credentials or a token failed.
    #[error("authorize with {host}: {source}")]
    Credentials {
        /// Registry host.
        host: String,
        /// What the asker said.
        source: CredentialsError,
    },
    /// The registry could not be talked to.
    #[error("{what}: registry {host} did not answer: {message}{}", in_brackets(.hint))]
    Unreachable {
        /// What was being done.
        what: String,
        /// Registry host.
        host: String,
        /// Innermost cause as text.
        message: String,
        /// What the user can do about it.
        hint: &'static str,
    },
    /// The registry answered with something other than success.
    #[error("{what}: {host} answered {status}{}", detail(*.status, .message))]
    Status {
        /// What was being done.
        what: String,
        /// Registry host.
        host: String,
        /// HTTP status code.
        status: u16,
        /// The registry's words, if any.
        message: String,
    },
    /// Bytes are not what their digest or size promised.
    #[error("{what} arrived damaged: expected {expected}, got {actual}")]
    Corrupt {
        /// Blob or manifest, and where from.
        what: String,
        /// Digest or size promised.
        expected: String,
        /// Digest or size received.
        actual: String,
    },
    /// A manifest, index, config or layout that cannot be used.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image exists, but not for this platform.
    #[error("{what}: no match for platform {wanted} (there are: {})", .available.join(", "))]
    NoPlatform {
        /// Reference or digest of the index.
        what: String,
        /// Platform asked for.
        wanted: String,
        /// Platforms of the index.
        available: Vec<String>,
    },
    /// Reading or writing local files, or a connection that broke in the middle.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether this says "there is no such thing" rather than "I could not find out".
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// Reading `what` broke off. Our own streams name it themselves.
    pub(crate) fn read(what: &str, source: std::io::Error) -> Self {
        let own = |error: &std::io::Error| error.get_ref().is_some_and(|it| it.is::<Self>());
        if !own(&source) {
            return Self::io(format!("read {what}"), source);
        }
        let inner = source.into_inner().expect("it was just looked at");
        *inner.downcast::<Self>().expect("it was just looked at")
    }

    pub(crate) fn corrupt(what: impl Into<String>, expected: Digest, actual: Digest) -> Self {
        Self::Corrupt {
            what: what.into(),
            expected: expected.to_string(),
            actual: actual.to_string(),
        }
    }
}

fn in_brackets(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

/// The registry's words, or else what the number means.
fn detail(status: u16, message: &str) -> String {
    let meaning = http::StatusCode::from_u16(status).ok().and_then(|it| it.canonical_reason());
    match (message, meaning) {
        ("", None) => String::new(),
        ("", Some(meaning)) => format!(" {meaning}"),
        (message, _) => format!(": {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_without_words_are_explained() {
        let text = |status, message: &str| {
            let (what, host) = ("push x".to_owned(), "h.io".to_owned());
            Error::Status { what, host, status, message: message.to_owned() }.to_string()
        };
        assert_eq!(text(429, ""), "push x: h.io answered 429 Too Many Requests");
        assert_eq!(text(799, ""), "push x: h.io answered 799");
        assert_eq!(text(500, "unknown: no"), "push x: h.io answered 500: unknown: no");
    }

    #[test]
    fn what_is_read_is_named_once() {
        let damaged = Error::corrupt("blob b of r", Digest::of("a"), Digest::of("b"));
        let text = damaged.to_string();
        let other = std::io::Error::other("it broke");
        assert_eq!(Error::read("blob b of r", std::io::Error::other(damaged)).to_string(), text);
        assert_eq!(Error::read("blob b of r", other).to_string(), "read blob b of r: it broke");
    }
}
