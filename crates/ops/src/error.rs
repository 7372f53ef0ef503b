//! Why an op failed, with what clients need to show it.

use std::sync::Arc;

use base::goquote::Quoted;
use frontend_api::{Code, ErrorDetail, Subject};
use snapshot::{contenthash::HashError, copy::FileError};
use store::Ref;

use crate::key::KeyError;

/// A failed op. Cheap to clone: one failure reaches everybody who waits for the vertex.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpError {
    /// The process ended with an exit code that does not count as success.
    #[error(
        "process {} did not complete successfully: {}",
        Quoted(.args),
        exit_text(*.code, *.out_of_memory)
    )]
    Exit {
        /// Arguments joined by spaces.
        args: String,
        /// Exit code.
        code: i32,
        /// The kernel killed it for want of memory.
        out_of_memory: bool,
    },
    /// The process could not be run.
    #[error("process {} did not complete successfully: {cause}", Quoted(.args))]
    Run {
        /// Arguments joined by spaces.
        args: String,
        /// Why.
        cause: Arc<executor::ExecError>,
    },
    /// A file action failed.
    #[error("{cause}")]
    File {
        /// Which action of the op.
        action: usize,
        /// Why.
        cause: Arc<FileError>,
    },
    /// Storing or reading a result failed.
    #[error("{0}")]
    Store(Arc<store::StoreError>),
    /// Mounting or reading a tree failed.
    #[error("{0}")]
    Snapshot(Arc<snapshot::SnapshotError>),
    /// A source could not be resolved: it has no key.
    #[error("{0}")]
    SourceKey(Arc<source::SourceError>),
    /// A source could not be fetched.
    #[error("{0}")]
    Source(Arc<source::SourceError>),
    /// The client did not answer as needed.
    #[error("{0}")]
    Session(Arc<session::SessionError>),
    /// The content of an input could not be digested.
    #[error("failed to calculate checksum of ref {record}: {cause}")]
    Checksum {
        /// The input.
        record: String,
        /// Why.
        cause: Arc<HashError>,
    },
    /// The op's key makes no sense.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The op asks for something that has no meaning or is not built.
    #[error("{0}")]
    Invalid(String),
    /// Nobody wants the outcome any more.
    #[error("context canceled")]
    Cancelled,
    /// It failed and left trees behind.
    #[error("{cause}")]
    Left {
        /// Why.
        cause: Arc<OpError>,
        /// The trees; they live as long as the error.
        remains: Arc<Remains>,
    },
}

/// The trees that a failed op had.
#[derive(Debug)]
pub struct Remains {
    /// By mount of an exec, or by input of a file op.
    pub inputs: Vec<Option<Ref>>,
    /// As they were when it failed: by mount of an exec, or by action of a file op.
    pub mounts: Vec<Option<Ref>>,
    /// Which part failed.
    pub subject: Option<Subject>,
}

fn exit_text(code: i32, out_of_memory: bool) -> String {
    if out_of_memory {
        return format!("exit code: {code}: cannot allocate memory");
    }
    format!("exit code: {code}")
}

impl OpError {
    /// gRPC code it is reported with.
    pub fn code(&self) -> Code {
        match self {
            Self::Cancelled => Code::Canceled,
            Self::Store(error) if error.is_no_space() => Code::ResourceExhausted,
            Self::Exit { out_of_memory: true, .. } => Code::ResourceExhausted,
            Self::Left { cause, .. } => cause.code(),
            _ => Code::Unknown,
        }
    }

    /// The message for who asked for the build, who is told more than who watches the vertex.
    pub fn summary(&self) -> String {
        match self {
            Self::SourceKey(_) => format!("failed to load cache key: {self}"),
            Self::Checksum { .. } => format!("failed to compute cache key: {self}"),
            Self::Left { cause, .. } => cause.summary(),
            _ => self.to_string(),
        }
    }

    /// A failure while a key was made.
    pub(crate) fn in_key(self) -> Self {
        match self {
            Self::Source(cause) => Self::SourceKey(cause),
            other => other,
        }
    }

    /// Typed details beyond vertex and source.
    pub fn details(&self) -> Vec<ErrorDetail> {
        match self {
            Self::Exit { code, .. } => vec![ErrorDetail {
                type_url: "github.com/moby/buildkit/gatewayapi.ExitMessage+json".into(),
                value: format!("{{\"Code\":{code}}}").into(),
            }],
            Self::Left { cause, .. } => cause.details(),
            _ => Vec::new(),
        }
    }

    /// Adds the trees it left behind.
    pub(crate) fn leaving(self, remains: Remains) -> Self {
        Self::Left { cause: Arc::new(self), remains: Arc::new(remains) }
    }

    /// The trees it left behind.
    pub fn remains(&self) -> Option<&Remains> {
        match self {
            Self::Left { remains, .. } => Some(remains),
            _ => None,
        }
    }

    /// What went wrong, whatever was left behind.
    pub(crate) fn cause(&self) -> &Self {
        match self {
            Self::Left { cause, .. } => cause.cause(),
            other => other,
        }
    }

    /// A request that makes no sense, in words for who made it.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

impl From<store::StoreError> for OpError {
    fn from(error: store::StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<snapshot::SnapshotError> for OpError {
    fn from(error: snapshot::SnapshotError) -> Self {
        Self::Snapshot(Arc::new(error))
    }
}

impl From<source::SourceError> for OpError {
    fn from(error: source::SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<session::SessionError> for OpError {
    fn from(error: session::SessionError) -> Self {
        Self::Session(Arc::new(error))
    }
}
