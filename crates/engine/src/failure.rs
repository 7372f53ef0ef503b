//! One build's failures, as frontends and clients are told them.

use frontend_api::{Code, FrontendError};
use ops::OpError;
use solver::BuildError;

use crate::Job;

/// The failure of an edge, with the vertex and its place in a source file.
pub(crate) fn from_build(job: &Job, error: &BuildError<OpError>) -> FrontendError {
    match error {
        BuildError::Vertex { vertex, cause, .. } => {
            let mut failure = from_op(cause);
            if failure.vertex.is_empty() {
                let received = job.received(vertex);
                let digest = received.as_ref().map_or(*vertex, |received| received.digest);
                failure.vertex = digest.to_string();
                for (info, ranges) in received.into_iter().flat_map(|known| known.locations) {
                    failure = failure.at(info, ranges);
                }
            }
            failure
        }
        BuildError::Panicked { vertex, .. } => FrontendError {
            vertex: vertex.to_string(),
            ..FrontendError::with_code(Code::Internal, error.to_string())
        },
        BuildError::NoSuchOutput { vertex, .. } | BuildError::CacheMapMismatch { vertex, .. } => {
            FrontendError { vertex: vertex.to_string(), ..FrontendError::new(error.to_string()) }
        }
        BuildError::NotLoaded { .. } => FrontendError::with_code(Code::Internal, error.to_string()),
        BuildError::Cancelled => FrontendError::with_code(Code::Canceled, "context canceled"),
    }
}

/// The failure of an op.
pub(crate) fn from_op(error: &OpError) -> FrontendError {
    let mut failure = FrontendError::with_code(error.code(), error.summary());
    failure.details = error.details();
    failure
}

/// A failure of the daemon's own work outside any vertex.
pub(crate) fn internal(doing: &str, error: impl std::fmt::Display) -> FrontendError {
    FrontendError::with_code(Code::Internal, format!("{doing}: {error}"))
}

/// The failure of an export, with its causes.
pub(crate) fn from_export(error: &exporter::ExportError) -> FrontendError {
    use std::error::Error as _;
    let mut message = error.to_string();
    let mut cause = error.source();
    let mut code = Code::Unknown;
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        if inner.downcast_ref::<store::StoreError>().is_some_and(store::StoreError::is_no_space) {
            code = Code::ResourceExhausted;
        }
        cause = inner.source();
    }
    FrontendError::with_code(code, message)
}
