//! What builds are told while they wait.
//!
//! Every event goes to every job that has the vertex in its graph, under the digest by which that
//! job knows it: a vertex that shares another one's work shows the other's progress as its own.

use std::{fmt, sync::Arc};

use base::Digest;

use crate::decision::Decision;

/// Name of a build, chosen by the caller and unique while the job is open.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JobId(pub Arc<str>);

impl From<&str> for JobId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for JobId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that happened to a vertex. Times are the receiver's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VertexEvent {
    /// The vertex became part of the job's graph; sent once per job and vertex.
    Loaded {
        /// what people call it
        name: Arc<str>,
        /// digests of its inputs
        inputs: Vec<Digest>,
    },
    /// Work began: on its key, on loading a cached result, or on execution. May come repeatedly,
    /// each time followed by `Completed`.
    Started,
    /// Work ended.
    Completed {
        /// whether a cached result was used
        cached: bool,
        /// what went wrong, as text
        error: Option<Arc<str>>,
    },
    /// Started and completed at once: not needed, since something built on it was cached.
    Skipped,
    /// It is now known why the vertex runs or does not run.
    Decided(Decision),
}

/// Receiver of progress.
///
/// Called in order, with the solver locked: an implementation hands the event on (to a channel, to
/// a list) and returns; it neither blocks nor calls back.
pub trait Progress: Send + Sync + 'static {
    /// `vertex` of `job` went through `event`.
    fn event(&self, job: &JobId, vertex: Digest, event: VertexEvent);
}

/// Drops everything.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _job: &JobId, _vertex: Digest, _event: VertexEvent) {}
}
