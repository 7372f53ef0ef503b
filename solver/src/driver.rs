//! The asynchronous driver: performs the graph's actions and feeds back what came of them.
//!
//! All state is behind one lock, taken for the length of a step and never across an await. Work runs
//! in tokio tasks, each of which ends with an event. The graph speaks of outputs by number; the
//! table from numbers to real outputs is here.
//!
//! Invariant: every task that the graph was told of ends with exactly one event, also if the worker
//! panics.

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use base::Digest;
use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{
    decision::Decision,
    graph::{
        Action, Answer, Cause, Edge, Event, Failure, FailureKind, Graph, NewOutput, NewVertex,
        OutputId, Owner, RequestId, TaskId,
    },
    keys::{CacheKey, RecordId, StoreIndex},
    progress::{JobId, Progress},
    store::{Change, Import, KeyStore},
    worker::{LoadFailure, Vertex, VertexContext, Watcher, Worker},
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
    /// The stored form of the result, if it has one.
    pub record: Option<RecordId>,
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

/// The main key store and the imports of jobs under way, see [`Solver::with_stores`].
#[derive(Clone, Copy)]
pub struct Stores<'a>(&'a Graph);

impl<'a> Stores<'a> {
    /// One of them; `None` for an import that no job uses any more.
    pub fn get(&self, store: StoreIndex) -> Option<&'a KeyStore> {
        self.0.store(store)
    }
}

/// A loaded graph. Vertices with `ignore_cache` may have got another digest.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    renamed: HashMap<Digest, Digest>,
}

impl Loaded {
    /// The edge under which `edge` of the definition is known to the solver.
    pub fn edge(&self, edge: Edge) -> Edge {
        let vertex = self.renamed.get(&edge.vertex).copied().unwrap_or(edge.vertex);
        Edge { vertex, output: edge.output }
    }
}

/// The solver; cloning shares it.
pub struct Solver<W: Worker> {
    core: Arc<Core<W>>,
}

/// A build in the solver. Dropping it discards it.
pub struct Job<W: Worker> {
    builder: Builder<W>,
    id: JobId,
}

/// What can be done on behalf of a job, or of a vertex that builds while it runs. Cloning shares.
pub struct Builder<W: Worker> {
    core: Arc<Core<W>>,
    owner: Owner,
}

pub(crate) struct Core<W: Worker> {
    worker: W,
    runtime: Handle,
    state: Mutex<State<W>>,
    changed: Notify,
}

struct State<W: Worker> {
    graph: Graph,
    vertices: HashMap<Digest, (W::Vertex, Arc<str>)>,
    outputs: HashMap<OutputId, W::Output>,
    next_output: u64,
    waiting: HashMap<RequestId, oneshot::Sender<BuildResult<W>>>,
    next_request: u64,
    running: HashMap<TaskId, CancellationToken>,
    progress: HashMap<JobId, Arc<dyn Progress>>,
}

type BuildResult<W> = Result<Built<<W as Worker>::Output>, Arc<BuildError<<W as Worker>::Error>>>;

/// What a task ended with instead of a value.
enum Fault<E> {
    Worker(E),
    Panicked(Arc<str>),
    Cancelled,
}

/// Things to drop once the lock is free: letting go of an output may take long.
type Garbage = Vec<Box<dyn Any + Send>>;

impl<W: Worker> Solver<W> {
    /// A solver with `keys` as its main store. Records that the worker no longer has are dropped.
    ///
    /// Panics outside a tokio runtime: work is spawned on the one that is current here.
    pub fn new(worker: W, options: Options, mut keys: KeyStore) -> Self {
        keys.retain_records(|record| worker.record_exists(record));
        let state = State {
            graph: Graph::new(&options, keys),
            vertices: HashMap::new(),
            outputs: HashMap::new(),
            next_output: 0,
            waiting: HashMap::new(),
            next_request: 0,
            running: HashMap::new(),
            progress: HashMap::new(),
        };
        let (state, changed) = (Mutex::new(state), Notify::new());
        Self { core: Arc::new(Core { worker, runtime: Handle::current(), state, changed }) }
    }

    /// The worker.
    pub fn worker(&self) -> &W {
        &self.core.worker
    }

    /// Opens a job. Jobs are served oldest first. The id must not be in use.
    pub fn job(&self, id: JobId, progress: Arc<dyn Progress>) -> Job<W> {
        self.limited_job(id, 0, progress)
    }

    /// Opens a job of which at most `parallelism` vertices with weight execute at a time; 0 is no
    /// limit. What other jobs want too runs as they may.
    pub fn limited_job(&self, id: JobId, parallelism: u32, progress: Arc<dyn Progress>) -> Job<W> {
        self.core.lock().progress.insert(id.clone(), progress);
        self.core.dispatch(Event::Open { job: id.clone(), parallelism });
        let owner = Owner::Job(id.clone());
        Job { builder: Builder { core: Arc::clone(&self.core), owner }, id }
    }

    /// Tells that records were removed from the store behind the worker.
    pub fn evicted(&self, records: &[RecordId]) {
        self.core.dispatch(Event::Evicted { records: records.to_vec() });
    }

    /// Changes of the main key store since the last call, to be made durable in order.
    pub fn take_changes(&self) -> Vec<Change> {
        self.core.lock().graph.take_changes()
    }

    /// Waits until there may be changes to take.
    pub async fn changed(&self) {
        self.core.changed.notified().await;
    }

    /// Looks at the key store, for cache export. Nothing else happens meanwhile.
    pub fn with_keys<T>(&self, look: impl FnOnce(&KeyStore) -> T) -> T {
        look(self.core.lock().graph.keys())
    }

    /// Like [`Self::with_keys`], with the imports of jobs under way.
    pub fn with_stores<T>(&self, look: impl FnOnce(Stores<'_>) -> T) -> T {
        look(Stores(&self.core.lock().graph))
    }

    /// Who waits for whom, one line per unfinished edge; empty when nothing is going on.
    pub fn stuck(&self) -> String {
        self.core.lock().graph.stuck()
    }

    /// Whether nothing is held: no jobs, vertices, tasks or results.
    pub fn is_idle(&self) -> bool {
        self.core.lock().graph.is_idle()
    }
}

impl<W: Worker> Job<W> {
    /// Its name.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Ends the job: running requests end as cancelled, vertices nobody else holds are released.
    pub fn discard(self) {}
}

impl<W: Worker> Drop for Job<W> {
    fn drop(&mut self) {
        let core = &self.builder.core;
        core.dispatch(Event::Discard { job: self.id.clone() });
        core.lock().progress.remove(&self.id);
    }
}

impl<W: Worker> std::ops::Deref for Job<W> {
    type Target = Builder<W>;

    fn deref(&self) -> &Builder<W> {
        &self.builder
    }
}

impl<W: Worker> Builder<W> {
    pub(crate) fn nested(core: Arc<Core<W>>, task: TaskId) -> Self {
        Self { core, owner: Owner::Task(task) }
    }

    /// Adds vertices to the graph, inputs before their users, with the imports they may use.
    pub fn load(
        &self,
        vertices: Vec<Vertex<W::Vertex>>,
        imports: &[Arc<Import>],
    ) -> Result<Loaded, LoadError> {
        self.core.load(self.owner.clone(), vertices, imports)
    }

    /// Builds an edge of a loaded vertex. Dropping the future withdraws the request; work that
    /// nobody else wants is then cancelled.
    pub async fn build(&self, edge: Edge) -> BuildResult<W> {
        let (sender, receiver) = oneshot::channel();
        let request = self.core.request(self.owner.clone(), edge, sender);
        let _withdraw = Withdraw { core: &self.core, request };
        match receiver.await {
            Ok(result) => result,
            Err(_) => Err(Arc::new(BuildError::Cancelled)),
        }
    }
}

/// Takes a request back when its future is dropped; does nothing after the answer.
struct Withdraw<'a, W: Worker> {
    core: &'a Arc<Core<W>>,
    request: RequestId,
}

impl<W: Worker> Drop for Withdraw<'_, W> {
    fn drop(&mut self) {
        let pending = self.core.lock().waiting.remove(&self.request);
        if pending.is_some() {
            self.core.dispatch(Event::Withdraw { request: self.request });
        }
    }
}

impl<W: Worker> Core<W> {
    pub(crate) fn watchers(&self, task: TaskId) -> Vec<Watcher> {
        self.lock().graph.watchers(task)
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().expect("the graph does not panic")
    }

    fn load(
        self: &Arc<Self>,
        owner: Owner,
        vertices: Vec<Vertex<W::Vertex>>,
        imports: &[Arc<Import>],
    ) -> Result<Loaded, LoadError> {
        let described = vertices.iter().map(|vertex| NewVertex {
            digest: vertex.digest,
            inputs: vertex.inputs.clone(),
            name: Arc::clone(&vertex.name),
            ignore_cache: vertex.ignore_cache,
            export_cache: vertex.export_cache,
            weight: self.worker.weight(&vertex.payload),
        });
        let described = described.collect();
        let mut garbage = Garbage::new();
        let mut state = self.lock();
        let imports = imports.to_vec();
        let mut actions = state.graph.step(Event::Load { owner, vertices: described, imports });
        let mut loaded = Loaded::default();
        let mut refused = None;
        actions.retain_mut(|action| match action {
            Action::Accepted { vertices: accepted } => {
                for ((given, own), vertex) in accepted.iter().zip(&vertices) {
                    let described = || (vertex.payload.clone(), Arc::clone(&vertex.name));
                    state.vertices.entry(*own).or_insert_with(described);
                    if given != own {
                        loaded.renamed.insert(*given, *own);
                    }
                }
                false
            }
            Action::Refused { error } => {
                refused = Some(error.clone());
                false
            }
            _ => true,
        });
        self.perform(&mut state, actions, &mut garbage);
        drop(state);
        match refused {
            Some(error) => Err(error),
            None => Ok(loaded),
        }
    }

    fn request(
        self: &Arc<Self>,
        owner: Owner,
        edge: Edge,
        sender: oneshot::Sender<BuildResult<W>>,
    ) -> RequestId {
        let mut garbage = Garbage::new();
        let mut state = self.lock();
        state.next_request += 1;
        let request = RequestId(state.next_request);
        state.waiting.insert(request, sender);
        let actions = state.graph.step(Event::Request { request, owner, edge });
        self.perform(&mut state, actions, &mut garbage);
        drop(state);
        request
    }

    fn dispatch(self: &Arc<Self>, event: Event) {
        self.dispatch_with(|_| event);
    }

    fn dispatch_with(self: &Arc<Self>, event: impl FnOnce(&mut State<W>) -> Event) {
        // Declared first, so dropped after the lock.
        let mut garbage = Garbage::new();
        let mut state = self.lock();
        let event = event(&mut state);
        let actions = state.graph.step(event);
        self.perform(&mut state, actions, &mut garbage);
        if state.graph.keys().has_changes() {
            self.changed.notify_one();
        }
    }

    fn perform(
        self: &Arc<Self>,
        state: &mut State<W>,
        actions: Vec<Action>,
        garbage: &mut Garbage,
    ) {
        for action in actions {
            match action {
                Action::Accepted { .. } | Action::Refused { .. } => {
                    unreachable!("only loads are accepted or refused, and take that out themselves")
                }
                Action::AskCacheMap { task, vertex, step } => {
                    let context = self.context(state, task, vertex);
                    self.runtime.spawn(run_cache_map(context, step));
                }
                Action::AskContent { task, vertex, input, output } => {
                    let context = self.context(state, task, vertex);
                    let output = state.outputs[&output].clone();
                    self.runtime.spawn(run_content_digest(context, input, output));
                }
                Action::Execute { task, vertex, inputs } => {
                    let context = self.context(state, task, vertex);
                    let inputs = inputs.iter().map(|input| state.outputs[input].clone());
                    self.runtime.spawn(run_execute(context, inputs.collect()));
                }
                Action::Load { task, vertex, record } => {
                    let context = self.context(state, task, vertex);
                    self.runtime.spawn(run_load(context, record));
                }
                Action::Cancel { task } => {
                    if let Some(running) = state.running.get(&task) {
                        running.cancel();
                    }
                }
                Action::Answer { request, outcome } => {
                    if let Some(waiting) = state.waiting.remove(&request) {
                        // The other side may have given up just now.
                        if let Err(unread) = waiting.send(state.result(outcome)) {
                            garbage.push(Box::new(unread));
                        }
                    }
                }
                Action::Progress { job, vertex, event } => {
                    if let Some(progress) = state.progress.get(&job) {
                        progress.event(&job, vertex, event);
                    }
                }
                Action::Release { output } => {
                    garbage.push(Box::new(state.outputs.remove(&output)));
                }
                Action::Forget { vertex } => {
                    garbage.push(Box::new(state.vertices.remove(&vertex)));
                }
            }
        }
    }

    fn context(
        self: &Arc<Self>,
        state: &mut State<W>,
        task: TaskId,
        digest: Digest,
    ) -> VertexContext<W> {
        let (payload, name) = state.vertices[&digest].clone();
        let cancelled = CancellationToken::new();
        state.running.insert(task, cancelled.clone());
        VertexContext { core: Arc::clone(self), task, digest, name, payload, cancelled }
    }
}

impl<W: Worker> State<W> {
    fn add_output(&mut self, output: W::Output, record: Option<RecordId>) -> NewOutput {
        self.next_output += 1;
        let id = OutputId(self.next_output);
        self.outputs.insert(id, output);
        NewOutput { output: id, record }
    }

    fn result(&self, outcome: Result<Answer, Arc<Failure>>) -> BuildResult<W> {
        match outcome {
            Ok(Answer { output, keys, record, decision }) => {
                let output = self.outputs[&output].clone();
                Ok(Built { output, keys, record, decision })
            }
            Err(failure) => Err(Arc::new(error_from(&failure))),
        }
    }
}

fn error_from<E: Clone + Send + Sync + 'static>(failure: &Failure) -> BuildError<E> {
    let (vertex, name) = (failure.vertex, Arc::clone(&failure.name));
    match &failure.kind {
        FailureKind::Worker(cause) => match cause.value.downcast_ref::<Fault<E>>() {
            Some(Fault::Worker(cause)) => BuildError::Vertex { vertex, name, cause: cause.clone() },
            Some(Fault::Panicked(message)) => {
                BuildError::Panicked { vertex, name, message: Arc::clone(message) }
            }
            Some(Fault::Cancelled) | None => BuildError::Cancelled,
        },
        FailureKind::NoSuchOutput { output, given } => {
            BuildError::NoSuchOutput { vertex, output: *output, given: *given }
        }
        FailureKind::CacheMapMismatch { given, expected } => {
            BuildError::CacheMapMismatch { vertex, name, given: *given, expected: *expected }
        }
        FailureKind::NotLoaded => BuildError::NotLoaded { vertex },
        FailureKind::Cancelled => BuildError::Cancelled,
    }
}

// ---- tasks ----

/// Awaits the worker; a panic becomes a fault of the vertex.
async fn guarded<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, Fault<E>> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Worker(error)),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Fault::Panicked(text.unwrap_or_else(|| "panic".to_owned()).into()))
        }
    }
}

/// Like [`guarded`], for work that may simply be dropped when nobody wants it any more.
async fn droppable<T, E>(
    cancelled: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Fault<E>> {
    tokio::select! {
        biased;
        outcome = guarded(work) => outcome,
        () = cancelled.cancelled() => Err(Fault::Cancelled),
    }
}

fn cause<E: std::fmt::Display + Send + Sync + 'static>(fault: Fault<E>) -> Cause {
    let text = match &fault {
        Fault::Worker(error) => error.to_string().into(),
        Fault::Panicked(message) => Arc::clone(message),
        Fault::Cancelled => "context canceled".into(),
    };
    Cause { text, value: Arc::new(fault) }
}

async fn run_cache_map<W: Worker>(context: VertexContext<W>, step: usize) {
    let (core, task) = (Arc::clone(&context.core), context.task);
    let work = core.worker.cache_map(&context, step);
    let outcome = droppable(&context.cancelled, work).await.map_err(cause);
    core.dispatch_with(|state| {
        state.running.remove(&task);
        Event::CacheMap { task, outcome }
    });
}

async fn run_content_digest<W: Worker>(context: VertexContext<W>, input: usize, output: W::Output) {
    let (core, task) = (Arc::clone(&context.core), context.task);
    let work = core.worker.content_digest(&context, input, &output);
    let outcome = droppable(&context.cancelled, work).await.map_err(cause);
    core.dispatch_with(|state| {
        state.running.remove(&task);
        Event::Content { task, outcome }
    });
}

async fn run_execute<W: Worker>(context: VertexContext<W>, inputs: Vec<W::Output>) {
    let (core, task) = (Arc::clone(&context.core), context.task);
    let outcome = guarded(core.worker.execute(&context, inputs)).await;
    let saved = outcome.map(|outputs| {
        let saved = outputs.into_iter().map(|output| {
            let record = core.worker.save(&output);
            (output, record)
        });
        saved.collect::<Vec<_>>()
    });
    let at = SystemTime::now();
    core.dispatch_with(|state| {
        state.running.remove(&task);
        let outcome = match saved {
            Ok(saved) => {
                let added = saved.into_iter();
                Ok(added.map(|(output, record)| state.add_output(output, record)).collect())
            }
            Err(fault) => Err(cause(fault)),
        };
        Event::Executed { task, outcome, at }
    });
}

async fn run_load<W: Worker>(context: VertexContext<W>, record: crate::FoundRecord) {
    let (core, task) = (Arc::clone(&context.core), context.task);
    let local = record.origin == crate::Origin::Local;
    let outcome = if local && !core.worker.record_exists(&record.record) {
        Err(LoadFailure { gone: true, reason: "record does not exist".to_owned() })
    } else {
        let work = core.worker.load(&context, &record);
        droppable(&context.cancelled, work).await.map_err(|fault| match fault {
            Fault::Worker(failure) => failure,
            Fault::Panicked(message) => LoadFailure { gone: false, reason: message.to_string() },
            Fault::Cancelled => LoadFailure { gone: false, reason: "context canceled".to_owned() },
        })
    };
    let mut came_along = Vec::new();
    let saved = outcome.map(|output| {
        if local {
            return (output, Some(record.record));
        }
        came_along = core.worker.came_along(&record, &output);
        let record = core.worker.save(&output);
        (output, record)
    });
    core.dispatch_with(|state| {
        state.running.remove(&task);
        let outcome = saved.map(|(output, record)| state.add_output(output, record));
        Event::Loaded { task, outcome, came_along }
    });
}

impl<W: Worker> Clone for Solver<W> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<W: Worker> Clone for Builder<W> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), owner: self.owner.clone() }
    }
}
