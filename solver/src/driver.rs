//! The asynchronous driver: performs the graph's actions and feeds back what came of them.

use std::{marker::PhantomData, sync::Arc};

use base::Digest;

use crate::{
    decision::Decision,
    graph::{Edge, TaskId},
    keys::{CacheKey, RecordId},
    progress::{JobId, Progress},
    store::{Change, Import, KeyStore},
    worker::{Vertex, Watcher, Worker},
};

/// Settings of a [`Solver`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How much weight may execute at a time; 0 is no limit.
    pub max_parallelism: u32,
}

/// A built edge.
#[derive(Clone, Debug)]
pub struct Built<O> {
    /// The result.
    pub output: O,
    /// The keys of the result, for cache export; the first is the main one.
    pub keys: Vec<CacheKey>,
    /// Why it ran or did not.
    pub decision: Decision,
}

/// A build failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BuildError<E> {
    /// An operation failed.
    #[error("{cause}")]
    Vertex {
        /// the vertex, by the digest under which this build knows it
        vertex: Digest,
        /// its name
        name: Arc<str>,
        /// what the worker said
        cause: E,
    },
    /// The worker panicked.
    #[error("`{name}` broke off: {message}")]
    Panicked {
        /// the vertex
        vertex: Digest,
        /// its name
        name: Arc<str>,
        /// the panic's text
        message: Arc<str>,
    },
    /// The operation gave fewer outputs than are used.
    #[error("invalid response from exec need {output} index but {given} results received")]
    NoSuchOutput {
        /// the vertex
        vertex: Digest,
        /// the output used
        output: u32,
        /// how many there are
        given: usize,
    },
    /// The cache map does not fit the vertex.
    #[error("cache map of `{name}` names {given} inputs where the vertex has {expected}")]
    CacheMapMismatch {
        /// the vertex
        vertex: Digest,
        /// its name
        name: Arc<str>,
        /// inputs of the cache map
        given: usize,
        /// inputs of the vertex
        expected: usize,
    },
    /// The edge belongs to no vertex that the job loaded.
    #[error("vertex {vertex} was not loaded")]
    NotLoaded {
        /// the digest asked for
        vertex: Digest,
    },
    /// The job was discarded.
    #[error("context canceled")]
    Cancelled,
}

/// A graph could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// An input is neither earlier in the list nor loaded already.
    #[error("invalid missing input digest {input} of vertex {vertex}")]
    MissingInput {
        /// the vertex
        vertex: Digest,
        /// the input
        input: Digest,
    },
    /// The job was discarded.
    #[error("job {0} is closed")]
    Closed(JobId),
}

/// A loaded graph. Vertices with `ignore_cache` may have got another digest.
#[derive(Clone, Debug)]
pub struct Loaded {}

impl Loaded {
    /// The edge under which `edge` of the definition is known to the solver.
    pub fn edge(&self, _edge: Edge) -> Edge {
        unreachable!("not built yet")
    }
}

/// The solver; cloning shares it.
pub struct Solver<W: Worker> {
    core: Arc<Core<W>>,
}

pub(crate) struct Core<W: Worker> {
    worker: PhantomData<W>,
}

/// A build in the solver. Dropping it discards it.
pub struct Job<W: Worker> {
    builder: Builder<W>,
}

/// What can be done on behalf of a job, or of a vertex that builds while it runs. Cloning shares.
pub struct Builder<W: Worker> {
    core: Arc<Core<W>>,
    task: TaskId,
}

impl<W: Worker> Solver<W> {
    /// A solver with `keys` as its main store. Records that the worker no longer has are dropped.
    pub fn new(_worker: W, _options: Options, _keys: KeyStore) -> Self {
        unreachable!("not built yet")
    }

    /// The worker.
    pub fn worker(&self) -> &W {
        unreachable!("not built yet")
    }

    /// Opens a job. Jobs are served oldest first.
    pub fn job(&self, _id: JobId, _progress: Arc<dyn Progress>) -> Job<W> {
        unreachable!("not built yet")
    }

    /// Tells that records were removed from the store behind the worker.
    pub fn evicted(&self, _records: &[RecordId]) {
        unreachable!("not built yet")
    }

    /// Changes of the main key store since the last call, to be made durable in order.
    pub fn take_changes(&self) -> Vec<Change> {
        unreachable!("not built yet")
    }

    /// Waits until there may be changes to take.
    pub async fn changed(&self) {
        unreachable!("not built yet")
    }

    /// Looks at the key store, for cache export.
    pub fn with_keys<T>(&self, _look: impl FnOnce(&KeyStore) -> T) -> T {
        unreachable!("not built yet")
    }

    /// Who waits for whom, one line per unfinished edge; empty when nothing is going on.
    pub fn stuck(&self) -> String {
        unreachable!("not built yet")
    }
}

impl<W: Worker> Job<W> {
    /// Ends the job: running requests end as cancelled, vertices nobody else holds are released.
    pub fn discard(self) {}
}

impl<W: Worker> std::ops::Deref for Job<W> {
    type Target = Builder<W>;

    fn deref(&self) -> &Builder<W> {
        &self.builder
    }
}

impl<W: Worker> Builder<W> {
    pub(crate) fn nested(core: Arc<Core<W>>, task: TaskId) -> Self {
        Self { core, task }
    }

    /// Adds vertices to the graph, inputs before their users, with the imports they may use.
    pub fn load(
        &self,
        _vertices: Vec<Vertex<W::Vertex>>,
        _imports: &[Arc<Import>],
    ) -> Result<Loaded, LoadError> {
        unreachable!("not built yet")
    }

    /// Builds an edge of a loaded vertex. Dropping the future withdraws the request; work that
    /// nobody else wants is then cancelled.
    pub async fn build(&self, _edge: Edge) -> Result<Built<W::Output>, Arc<BuildError<W::Error>>> {
        let _ = (&self.core, self.task);
        unreachable!("not built yet")
    }
}

impl<W: Worker> Core<W> {
    pub(crate) fn watchers(&self, _task: TaskId) -> Vec<Watcher> {
        let _ = &self.worker;
        unreachable!("not built yet")
    }
}

impl<W: Worker> Clone for Solver<W> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<W: Worker> Clone for Builder<W> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), task: self.task }
    }
}
