//! What can go wrong when the daemon calls its client.

use crate::fsutil::TransferError;

/// A failed call-back.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody to ask: the build came without a session, or all of them are gone.
    #[error("no active sessions")]
    NoSessions,
    /// The session did not appear within the wait.
    #[error("no active session for {id}: context deadline exceeded")]
    NotFound {
        /// The id looked for, without prefix.
        id: String,
    },
    /// The session ended while the call ran.
    #[error("session {id} ended during the call")]
    Ended {
        /// The session's id.
        id: String,
    },
    /// The client exposes no folders.
    #[error("no local sources enabled")]
    NoLocalSources,
    /// The client does not serve the method.
    #[error("method {method} not supported by the client")]
    Unsupported {
        /// `/<service>/<Method>`.
        method: String,
    },
    /// The client answered with an error.
    #[error("{}", .0.message())]
    Status(tonic::Status),
    /// A transfer of files failed.
    #[error(transparent)]
    Transfer(TransferError),
    /// The client answered something its contract rules out.
    #[error("client sent an invalid answer to {call}: {why}")]
    BadAnswer {
        /// What was asked.
        call: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// A request cannot be put into words the wire accepts.
    #[error("cannot send {what} to the client: {why}")]
    BadRequest {
        /// The offending value.
        what: String,
        /// Why not.
        why: String,
    },
    /// The health check failed, or the tunnel could not be set up.
    #[error("session {id}: {why}")]
    Broken {
        /// The session's id.
        id: String,
        /// What happened.
        why: String,
    },
    /// Local trouble: a socket or a file on the daemon's side.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl SessionError {
    /// The status code the client answered with, if it did.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Transfer(TransferError::Stream(status)) => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the client says that somebody refused its credentials.
    pub fn is_unauthenticated(&self) -> bool {
        self.code() == Some(tonic::Code::Unauthenticated)
    }

    /// Whether the client does not serve the method at all.
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(tonic::Code::Unimplemented)
    }

    /// Whether the trouble lies with the session itself, so that asking another one makes sense.
    pub fn is_session_lost(&self) -> bool {
        matches!(
            self,
            Self::NoSessions | Self::NotFound { .. } | Self::Ended { .. } | Self::Broken { .. }
        )
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(status)
    }
}

impl From<TransferError> for SessionError {
    fn from(error: TransferError) -> Self {
        Self::Transfer(error)
    }
}
