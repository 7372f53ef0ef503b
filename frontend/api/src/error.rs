//! What can go wrong in a frontend, with all a client needs to show it.
//!
//! An error travels: a layer that knows where it happened adds a source, a layer that knows the
//! vertex adds that. Nothing already said is dropped on the way.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use llb::pb;

use crate::RefHandle;

/// A failure of a frontend or of a question it asked.
#[derive(Debug, Clone, Default)]
pub struct FrontendError {
    /// What was being done to what, outermost words first.
    pub message: String,
    /// gRPC code it is reported with.
    pub code: Code,
    /// Places in source files, outermost layer last.
    pub sources: Vec<ErrorSource>,
    /// Digest of the vertex that failed, or empty.
    pub vertex: String,
    /// Further typed details, passed on to the client unchanged.
    pub details: Vec<ErrorDetail>,
    /// What the failed vertex left behind.
    pub remains: Option<Arc<Remains>>,
}

/// A vertex that failed and the trees it had, for whoever wants to look into them.
#[derive(Debug, Clone, Default)]
pub struct Remains {
    /// The operation.
    pub op: pb::Op,
    /// What its client said of it.
    pub description: BTreeMap<String, String>,
    /// By mount of an exec, or by input of a file operation.
    pub inputs: Vec<Option<RefHandle>>,
    /// As they were when it failed: by mount of an exec, or by action of a file operation.
    pub mounts: Vec<Option<RefHandle>>,
    /// Which part of it failed.
    pub subject: Option<Subject>,
}

/// The part of an operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An action of a file operation.
    Action(usize),
    /// Digesting the content of an input; the tree is the only one of [`Remains::inputs`].
    Input(usize),
}

/// A file and places in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ErrorSource {
    /// The file.
    pub info: pb::SourceInfo,
    /// Line ranges, first line 1.
    pub ranges: Vec<pb::Range>,
}

/// A typed detail of an error: the payload is JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorDetail {
    /// E.g. `github.com/moby/buildkit/errdefs.Subrequest+json`.
    pub type_url: String,
    /// JSON text.
    pub value: Bytes,
}

/// gRPC status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Canceled = 1,
    #[default]
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// From the number on the wire; what is not an error code is `Unknown`.
    pub fn from_i32(code: i32) -> Self {
        use Code::*;
        [
            Canceled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ]
        .into_iter()
        .find(|known| *known as i32 == code)
        .unwrap_or(Unknown)
    }
}

impl FrontendError {
    /// An error with code `Unknown` and no place.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// An error with a code.
    pub fn with_code(code: Code, message: impl Into<String>) -> Self {
        Self { message: message.into(), code, ..Self::default() }
    }

    /// Puts `context: ` before the message.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Adds a place.
    pub fn at(mut self, info: pb::SourceInfo, ranges: Vec<pb::Range>) -> Self {
        self.sources.push(ErrorSource { info, ranges });
        self
    }

    /// Adds a typed detail.
    pub fn detail(mut self, type_url: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.details.push(ErrorDetail { type_url: type_url.into(), value: value.into() });
        self
    }
}

impl fmt::Display for FrontendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FrontendError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_and_keep() {
        let error = FrontendError::with_code(Code::NotFound, "no such image")
            .context("resolving alpine")
            .at(pb::SourceInfo::default(), vec![])
            .detail("x", "{}");
        assert_eq!(error.to_string(), "resolving alpine: no such image");
        assert_eq!((error.code, error.sources.len(), error.details.len()), (Code::NotFound, 1, 1));
        assert_eq!(Code::from_i32(error.code as i32), Code::NotFound);
        assert_eq!(Code::from_i32(99), Code::Unknown);
    }
}
