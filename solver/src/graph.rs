//! The state of all builds, and what follows from each event.
//!
//! # What is solved
//!
//! Builds hand in graphs of *vertices*; an *edge* is one output of a vertex and the unit of asking.
//! For every edge asked for, the graph finds a stored result if there is one, and otherwise has the
//! vertex executed, while doing as little as possible on the way. There are two ways to know a key:
//!
//! * by *definition*: digest of the operation plus a definition key per input. Costs nothing.
//! * by *content*: digest of the operation plus digests of what it reads from its inputs. Needs
//!   the inputs themselves, but holds where histories differ and files are equal.
//!
//! So an edge climbs through levels, and asks of its inputs only the level it needs next:
//!
//! ```text
//!   Initial ──► Fast ────────────► Slow ───────────► Complete
//!   nothing     keys by            keys by content    result
//!   known       definition known   known too
//! ```
//!
//! The rules of [`ask`](self) decide which input climbs when. Their purpose: evaluate first what has
//! no match by definition, and leave alone what has one, so that a build whose last step is known by
//! definition never evaluates (pulls, digests) anything else.
//!
//! # Life of an edge
//!
//! ```text
//!                ┌── record found ──► Loading ──┐
//!   Searching ───┼── equal key at work ► Follows ├──► Done
//!        ▲       └── inputs complete ► Executing ┘ └► Failed
//!        └─── load failed, or nobody wants it ──┘
//! ```
//!
//! Just before an edge starts work it looks into the index of all edges at work or done. If one of
//! them has an equal key it *follows* that leader; if not, it enters the index itself. Nothing that
//! runs is ever moved. Only edges that load or execute (so wait for no other edge) can be leaders,
//! hence following cannot close a circle of waiting; the one exception, a vertex that builds others
//! while it executes, is checked by walking who waits for whom. A leader that has to search again
//! lets its followers go, and they search for themselves.
//!
//! # Wanting
//!
//! Requests come from jobs, followers and consumers. Each edge counts them per level; the highest is
//! what it *wants*. When that falls, what it asked of others falls too, and tasks that nobody wants
//! are cancelled. A cancelled task is still awaited: if it succeeded after all its outcome is used,
//! if not it is as if it had never been started. Failures are remembered as long as the vertex
//! lives, cancellations never.
//!
//! # Cost
//!
//! Events mark edges as dirty and put them in a queue that [`Graph::step`] empties; nothing recurses,
//! so a chain may be any length. An edge with many inputs keeps totals over them instead of looking
//! at all of them, and looks at all only when one of a dozen facts changes, so a join of ten
//! thousand inputs costs the same per input as ten joins of a thousand.
//!
//! Invariant: between two steps the queue is empty, and every edge that is wanted beyond its level
//! has a task under way or has asked an input for something it will get.

mod ask;
mod edge;
mod index;
mod lookup;
mod progress;
mod release;
mod stuck;
mod vertex;
mod work;

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use base::Digest;

use self::{
    edge::EdgeState,
    index::ActiveIndex,
    vertex::{JobState, VertexState},
    work::{ExecuteQueue, Task},
};
use crate::{
    decision::Decision,
    driver::{LoadError, Options},
    keys::{CacheKey, RecordId, StoreIndex},
    progress::{JobId, VertexEvent},
    slab::Slab,
    store::{Change, Import, KeyStore},
    worker::{CacheMapStep, FoundRecord, LoadFailure},
};

/// One output of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Edge {
    /// Digest of the vertex.
    pub vertex: Digest,
    /// Number of the output.
    pub output: u32,
}

/// How far an edge has come, or how far somebody wants it to come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Nothing is known (or wanted).
    #[default]
    Initial,
    /// The keys by definition are known.
    Fast,
    /// The keys that need content are known as well.
    Slow,
    /// There is a result.
    Complete,
}

/// A piece of work that the graph asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TaskId(pub u64);

/// A request to build an edge, numbered by the caller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// A result, numbered by the caller. Each is given back exactly once, with [`Action::Release`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OutputId(pub u64);

/// On whose behalf something is loaded or requested.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A job.
    Job(JobId),
    /// A vertex that executes.
    Task(TaskId),
}

/// A vertex to load, without the worker's part.
#[derive(Clone, Debug)]
pub struct NewVertex {
    /// What identifies it.
    pub digest: Digest,
    /// What it is built from.
    pub inputs: Vec<Edge>,
    /// What people call it.
    pub name: Arc<str>,
    /// Run it even if a result is known.
    pub ignore_cache: bool,
    /// Whether exported caches may contain its result when it was only matched.
    pub export_cache: Option<bool>,
    /// Share of the parallelism limit; 0 is not limited.
    pub weight: u32,
}

/// A result that came of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewOutput {
    /// Its number.
    pub output: OutputId,
    /// How it can be loaded again.
    pub record: Option<RecordId>,
}

/// What went wrong, as the driver knows it; the graph looks at the text only.
#[derive(Clone)]
pub struct Cause {
    /// For progress.
    pub text: Arc<str>,
    /// For the driver.
    pub value: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// Why an edge failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The vertex that failed.
    pub vertex: Digest,
    /// Its name.
    pub name: Arc<str>,
    /// What happened there.
    pub kind: FailureKind,
}

/// What happened at the failed vertex.
#[derive(Clone, Debug)]
pub enum FailureKind {
    /// The worker failed.
    Worker(Cause),
    /// There are fewer outputs than are used.
    NoSuchOutput {
        /// the output used
        output: u32,
        /// how many there are
        given: usize,
    },
    /// The cache map has another number of inputs than the vertex.
    CacheMapMismatch {
        /// inputs of the cache map
        given: usize,
        /// inputs of the vertex
        expected: usize,
    },
    /// The vertex is not in the graph.
    NotLoaded,
    /// The job ended.
    Cancelled,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FailureKind::Worker(cause) => f.write_str(&cause.text),
            FailureKind::NoSuchOutput { output, given } => write!(
                f,
                "invalid response from exec need {output} index but {given} results received"
            ),
            FailureKind::CacheMapMismatch { given, expected } => {
                write!(f, "cache map names {given} inputs where the vertex has {expected}")
            }
            FailureKind::NotLoaded => write!(f, "vertex {} was not loaded", self.vertex),
            FailureKind::Cancelled => f.write_str("context canceled"),
        }
    }
}

/// What a request is answered with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The result. The graph keeps it; the driver takes its own share now.
    pub output: OutputId,
    /// The keys of the result, the main one first.
    pub keys: Vec<CacheKey>,
    /// The stored form of the result.
    pub record: Option<RecordId>,
    /// Why it ran or did not.
    pub decision: Decision,
}

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// A build begins.
    Open {
        /// its name
        job: JobId,
        /// how many of its vertices with weight may execute at a time; 0 is no limit
        parallelism: u32,
    },
    /// Vertices join the graph, inputs first.
    Load {
        /// for whom
        owner: Owner,
        /// the vertices
        vertices: Vec<NewVertex>,
        /// the imports they may use
        imports: Vec<Arc<Import>>,
    },
    /// Somebody wants an edge.
    Request {
        /// number of the request
        request: RequestId,
        /// who
        owner: Owner,
        /// what
        edge: Edge,
    },
    /// The request is no longer wanted; it will not be answered.
    Withdraw {
        /// number of the request
        request: RequestId,
    },
    /// A build ends.
    Discard {
        /// its name
        job: JobId,
    },
    /// An [`Action::AskCacheMap`] ended.
    CacheMap {
        /// the task
        task: TaskId,
        /// the map
        outcome: Result<CacheMapStep, Cause>,
    },
    /// An [`Action::AskContent`] ended.
    Content {
        /// the task
        task: TaskId,
        /// the digest
        outcome: Result<Option<Digest>, Cause>,
    },
    /// An [`Action::Execute`] ended.
    Executed {
        /// the task
        task: TaskId,
        /// the outputs
        outcome: Result<Vec<NewOutput>, Cause>,
        /// when
        at: SystemTime,
    },
    /// An [`Action::Load`] ended.
    Loaded {
        /// the task
        task: TaskId,
        /// the output
        outcome: Result<NewOutput, LoadFailure>,
        /// other records of the same import that are ours now, by their names there and here
        came_along: Vec<(RecordId, RecordId)>,
    },
    /// Records were removed outside.
    Evicted {
        /// which
        records: Vec<RecordId>,
    },
}

/// Something to be done outside.
#[derive(Clone, Debug)]
pub enum Action {
    /// The load succeeded; the vertices are known by these digests (given, own) from now on.
    Accepted {
        /// in the order given
        vertices: Vec<(Digest, Digest)>,
    },
    /// The load failed; nothing was changed.
    Refused {
        /// why
        error: LoadError,
    },
    /// Find out cache map number `step`.
    AskCacheMap {
        /// to be answered under this number
        task: TaskId,
        /// of this vertex
        vertex: Digest,
        /// which one
        step: usize,
    },
    /// Prepare and digest an input.
    AskContent {
        /// to be answered under this number
        task: TaskId,
        /// for this vertex
        vertex: Digest,
        /// number of the input
        input: usize,
        /// what the input is
        output: OutputId,
    },
    /// Run the vertex.
    Execute {
        /// to be answered under this number
        task: TaskId,
        /// the vertex
        vertex: Digest,
        /// on these
        inputs: Vec<OutputId>,
    },
    /// Bring back a stored result.
    Load {
        /// to be answered under this number
        task: TaskId,
        /// for this vertex
        vertex: Digest,
        /// the result
        record: FoundRecord,
    },
    /// The outcome of the task is not wanted any more. It is still to be reported.
    Cancel {
        /// the task
        task: TaskId,
    },
    /// A request ended.
    Answer {
        /// its number
        request: RequestId,
        /// how
        outcome: Result<Answer, Arc<Failure>>,
    },
    /// A job learns something.
    Progress {
        /// the job
        job: JobId,
        /// the vertex, as the job knows it
        vertex: Digest,
        /// what
        event: VertexEvent,
    },
    /// The graph has let go of a result.
    Release {
        /// which
        output: OutputId,
    },
    /// The graph has let go of a vertex.
    Forget {
        /// which, by its own digest
        vertex: Digest,
    },
}

type VertexIx = u32;
type EdgeIx = u32;
// Never used again, and smaller for older jobs.
type JobIx = u64;

/// All builds; see the module's page.
pub struct Graph {
    max_parallelism: u32,
    keys: KeyStore,
    imports: BTreeMap<StoreIndex, ImportState>,
    next_store: u32,
    vertices: Slab<VertexState>,
    by_digest: HashMap<Digest, VertexIx>,
    edges: Slab<EdgeState>,
    jobs: HashMap<JobIx, JobState>,
    by_job: HashMap<JobId, JobIx>,
    next_job: u64,
    requests: HashMap<RequestId, RequestState>,
    tasks: HashMap<TaskId, Task>,
    next_task: u64,
    outputs: HashMap<OutputId, u32>,
    index: ActiveIndex,
    execute_queue: ExecuteQueue,
    queue: VecDeque<EdgeIx>,
    /// Vertices that may have lost their last holder or their last task.
    unused: Vec<VertexIx>,
    actions: Vec<Action>,
}

struct ImportState {
    import: Arc<Import>,
    users: usize,
}

struct RequestState {
    edge: EdgeIx,
    owner: RequestOwner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RequestOwner {
    Job(JobIx),
    Vertex(VertexIx),
}

impl Graph {
    /// An empty graph with `keys` as its main store.
    pub fn new(options: &Options, keys: KeyStore) -> Self {
        Self {
            max_parallelism: options.max_parallelism,
            keys,
            imports: BTreeMap::new(),
            next_store: 1,
            vertices: Slab::default(),
            by_digest: HashMap::new(),
            edges: Slab::default(),
            jobs: HashMap::new(),
            by_job: HashMap::new(),
            next_job: 0,
            requests: HashMap::new(),
            tasks: HashMap::new(),
            next_task: 0,
            outputs: HashMap::new(),
            index: ActiveIndex::default(),
            execute_queue: ExecuteQueue::default(),
            queue: VecDeque::new(),
            unused: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// Takes in an event and returns what is to be done now, in order.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Open { job, parallelism } => self.open(job, parallelism),
            Event::Load { owner, vertices, imports } => self.load(&owner, vertices, &imports),
            Event::Request { request, owner, edge } => self.request(request, &owner, edge),
            Event::Withdraw { request } => self.withdraw(request),
            Event::Discard { job } => self.discard(&job),
            Event::CacheMap { task, outcome } => self.cache_map_known(task, outcome),
            Event::Content { task, outcome } => self.content_known(task, outcome),
            Event::Executed { task, outcome, at } => self.executed(task, outcome, at),
            Event::Loaded { task, outcome, came_along } => self.loaded(task, outcome, &came_along),
            Event::Evicted { records } => {
                for record in &records {
                    self.keys.remove_record(record);
                }
            }
        }
        loop {
            while let Some(edge) = self.queue.pop_front() {
                self.advance(edge);
            }
            self.start_executions();
            // Letting go of a vertex can wake the edges it asked.
            self.release_unused();
            if self.queue.is_empty() {
                break;
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// The main key store.
    pub fn keys(&self) -> &KeyStore {
        &self.keys
    }

    /// Changes of the main key store since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.keys.take_changes()
    }

    /// Whether nothing is held: no jobs, vertices, tasks or results.
    pub fn is_idle(&self) -> bool {
        self.by_job.is_empty()
            && self.by_digest.is_empty()
            && self.tasks.is_empty()
            && self.requests.is_empty()
            && self.outputs.is_empty()
            && self.imports.is_empty()
            && self.index.is_empty()
            && self.edges.iter().next().is_none()
    }

    fn enqueue(&mut self, edge: EdgeIx) {
        let state = &mut self.edges[edge];
        if !state.queued {
            state.queued = true;
            self.queue.push_back(edge);
        }
    }

    fn hold(&mut self, output: OutputId) {
        *self.outputs.entry(output).or_default() += 1;
    }

    fn let_go(&mut self, output: OutputId) {
        let Some(holders) = self.outputs.get_mut(&output) else { return };
        *holders -= 1;
        if *holders == 0 {
            self.outputs.remove(&output);
            self.actions.push(Action::Release { output });
        }
    }
}
