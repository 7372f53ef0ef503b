//! The outside as the solver sees it.
//!
//! A [`Worker`] turns vertices into keys and outputs. The solver calls it from tasks of the tokio
//! runtime, never with its own state locked, and promises: one `execute` of a vertex at a time,
//! and none after one that succeeded, as long as any job holds the vertex.

use std::{fmt, sync::Arc, time::SystemTime};

use base::Digest;
use tokio_util::sync::CancellationToken;

use crate::{
    decision::Origin,
    driver::{Builder, Core},
    graph::{Edge, TaskId},
    keys::{KeyDigest, KeyId, RecordId},
    progress::JobId,
};

/// A vertex as it is handed to [`Builder::load`].
#[derive(Clone, Debug)]
pub struct Vertex<V> {
    /// What identifies it: digest of its canonical encoding.
    pub digest: Digest,
    /// What it is built from, in order.
    pub inputs: Vec<Edge>,
    /// What people call it, for progress and stuck reports.
    pub name: Arc<str>,
    /// Run it even if a result is known.
    pub ignore_cache: bool,
    /// Whether exported caches may contain its result when it was only matched; `None` is yes.
    pub export_cache: Option<bool>,
    /// What the worker needs to know.
    pub payload: V,
}

/// What a vertex depends on besides its inputs' keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheMap {
    /// Digest of the operation.
    pub digest: KeyDigest,
    /// How each input enters the key; as many as the vertex has inputs.
    pub inputs: Vec<InputKey>,
}

/// How one input enters the key of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InputKey {
    /// Digest of the paths used.
    pub selector: Option<Digest>,
    /// Whether the input may also be matched by content, see [`Worker::content_digest`].
    pub content: bool,
    /// Whether the input's output must be prepared before the vertex runs.
    pub preprocess: bool,
}

/// One of the cache maps of a vertex.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheMapStep {
    /// The map.
    pub map: CacheMap,
    /// Whether it is the last one. The next is asked for only if this one found no result.
    pub last: bool,
}

/// A stored result that a look-up found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundRecord {
    /// The store that knows it.
    pub origin: Origin,
    /// The key it is stored under, as that store calls it.
    pub key: KeyId,
    /// The result.
    pub record: RecordId,
    /// When the result was made.
    pub created_at: SystemTime,
}

/// A stored result could not be used. The solver tries another one, then executes.
#[derive(Clone, Debug)]
pub struct LoadFailure {
    /// Whether the record no longer exists, so that its keys are forgotten.
    pub gone: bool,
    /// What happened, for the log.
    pub reason: String,
}

/// A job that wants a vertex, and the digest by which it knows that vertex.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watcher {
    /// The job.
    pub job: JobId,
    /// Its name for the vertex.
    pub vertex: Digest,
}

/// The part of the system that knows operations, stores and containers.
#[async_trait::async_trait]
pub trait Worker: Send + Sync + Sized + 'static {
    /// What the worker needs to know of a vertex; cheap to clone, usually an `Arc`.
    type Vertex: Clone + Send + Sync + 'static;
    /// A result; holding it keeps the data, dropping it lets go. May stand for "nothing".
    type Output: Clone + Send + Sync + 'static;
    /// What can go wrong in an operation.
    type Error: Clone + Send + Sync + fmt::Display + 'static;

    /// Cache map number `step` of the vertex. Asked in order, each at most once unless cancelled.
    async fn cache_map(
        &self,
        context: &VertexContext<Self>,
        step: usize,
    ) -> Result<CacheMapStep, Self::Error>;

    /// Prepares `output` of input number `input` if the cache map says `preprocess`, then digests
    /// the parts that the vertex uses if it says `content`. `None` is "no content key".
    async fn content_digest(
        &self,
        context: &VertexContext<Self>,
        input: usize,
        output: &Self::Output,
    ) -> Result<Option<Digest>, Self::Error>;

    /// Runs the vertex and returns all its outputs.
    async fn execute(
        &self,
        context: &VertexContext<Self>,
        inputs: Vec<Self::Output>,
    ) -> Result<Vec<Self::Output>, Self::Error>;

    /// Brings back a stored result.
    async fn load(
        &self,
        context: &VertexContext<Self>,
        record: &FoundRecord,
    ) -> Result<Self::Output, LoadFailure>;

    /// What else came along when `record` of an import was loaded as `output`: pairs of another
    /// record of that import and the name under which it can be loaded from now on. For images
    /// these are the records whose layers are the lower ones of the same chain. Those that belong
    /// to what the loaded vertex is built on are stored under their keys.
    fn came_along(&self, record: &FoundRecord, output: &Self::Output) -> Vec<(RecordId, RecordId)> {
        let _ = (record, output);
        Vec::new()
    }

    /// The name under which `output` can be loaded again; `None` if it cannot. Cheap: called for
    /// every output of an execution and for every load from an import. Which names are used is
    /// told through [`Change`](crate::Change)s.
    fn save(&self, output: &Self::Output) -> Option<RecordId>;

    /// Whether a record of the main store can still be loaded. Cheap.
    fn record_exists(&self, record: &RecordId) -> bool;

    /// Share of [`Options::max_parallelism`](crate::Options) that executing the vertex takes;
    /// 0 for operations that cost nothing.
    fn weight(&self, vertex: &Self::Vertex) -> u32;
}

/// What a [`Worker`] call is about.
pub struct VertexContext<W: Worker> {
    pub(crate) core: Arc<Core<W>>,
    pub(crate) task: TaskId,
    pub(crate) digest: Digest,
    pub(crate) name: Arc<str>,
    pub(crate) payload: W::Vertex,
    pub(crate) cancelled: CancellationToken,
}

impl<W: Worker> VertexContext<W> {
    /// What was handed in with the vertex.
    pub fn vertex(&self) -> &W::Vertex {
        &self.payload
    }

    /// Digest of the vertex.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Name of the vertex.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Fires when nobody wants the outcome any more. What is returned after that is dropped,
    /// unless it is a success.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Who is interested right now, oldest job first; log lines and sub-steps go to all of them.
    pub fn watchers(&self) -> Vec<Watcher> {
        self.core.watchers(self.task)
    }

    /// Like [`Self::watchers`], to be asked again and again while the work goes on.
    pub fn watching(&self) -> Arc<dyn Fn() -> Vec<Watcher> + Send + Sync> {
        let (core, task) = (Arc::clone(&self.core), self.task);
        Arc::new(move || core.watchers(task))
    }

    /// The interested jobs, oldest first, each once; their sessions serve the vertex.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for watcher in self.watchers() {
            if !jobs.contains(&watcher.job) {
                jobs.push(watcher.job);
            }
        }
        jobs
    }

    /// Loads and builds graphs on behalf of this vertex; they live as long as it does.
    pub fn nested(&self) -> Builder<W> {
        Builder::nested(Arc::clone(&self.core), self.task)
    }
}
