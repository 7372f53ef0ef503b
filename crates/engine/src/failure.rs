//! One build's failures, as frontends and clients are told them.

use std::sync::Arc;

use frontend_api::{Code, FrontendError, RefHandle, Remains};
use ops::OpError;
use solver::BuildError;
use store::Ref;

use crate::Job;

/// The failure of an edge, with the vertex, its place in a source file, and the trees it left,
/// of which `show` makes handles.
pub(crate) fn from_build(
    job: &Job,
    error: &BuildError<OpError>,
    show: impl Fn(&Ref) -> RefHandle,
) -> FrontendError {
    match error {
        BuildError::Vertex { vertex, cause, .. } => {
            let mut failure = from_op(cause);
            if failure.vertex.is_empty() {
                let received = job.received(vertex);
                let digest = received.as_ref().map_or(*vertex, |received| received.digest);
                failure.vertex = digest.to_string();
                if let Some(received) = received {
                    failure.remains = Some(remains(&received.vertex, cause, show));
                    // Clients wrap one in the other, so that the last place comes out first.
                    for (info, ranges) in received.locations.into_iter().rev() {
                        failure = failure.at(info, ranges);
                    }
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

fn remains(
    vertex: &llb::Vertex,
    cause: &OpError,
    show: impl Fn(&Ref) -> RefHandle,
) -> Arc<Remains> {
    let left = cause.remains();
    let show = |refs: &[Option<Ref>]| refs.iter().map(|one| one.as_ref().map(&show)).collect();
    Arc::new(Remains {
        op: vertex.op.clone(),
        description: vertex.metadata.description.clone(),
        inputs: left.map(|left| show(&left.inputs)).unwrap_or_default(),
        mounts: left.map(|left| show(&left.mounts)).unwrap_or_default(),
        subject: left.and_then(|left| left.subject),
    })
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
    let failure = FrontendError::with_code(code, message);
    let exporter::ExportError::Compatibility { version, feature } = error else { return failure };
    failure.detail(
        "github.com/moby/buildkit/errdefs.CompatibilityFeature+json",
        base::gojson::to_vec(&serde_json::json!({"version": version, "feature": feature})),
    )
}
