//! A build under way: who asked, what it knows of its vertices, and where its progress goes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak},
    time::Duration,
};

use base::Digest;
use dashmap::DashMap;
use frontend_api::{Code, FrontendError};
use llb::{pb, policy::Policy};
use ops::OpError;
use proto::control::VertexStatus;
use solver::{JobId, VertexEvent, Watcher};
use source::Memo;
use tokio::sync::Notify;

use crate::{
    Engine, Journal, TraceContext, policy,
    steps::{Late, Steps},
    turns::{Turn, Turns},
};

/// How long a build may be asked for before it appears.
const WAIT: Duration = Duration::from_secs(6);

/// A build.
pub struct Job {
    /// Its name, chosen by the client.
    pub id: JobId,
    /// The session that serves it; may be empty.
    pub session: String,
    /// Its progress.
    pub journal: Arc<Journal>,
    /// What its sources resolved.
    pub(crate) memo: Arc<Memo>,
    /// Entitlements granted to it.
    pub(crate) entitlements: BTreeSet<String>,
    /// Rules its sources have to pass.
    pub(crate) policy: Option<Policy>,
    /// Session that is asked about each source; empty if none is.
    pub(crate) policy_session: String,
    /// Its steps reach the network through a recording proxy only.
    pub(crate) proxy_network: bool,
    /// The trace it is part of.
    pub(crate) trace: Option<TraceContext>,
    graphs: Mutex<Graphs>,
    /// The logs of shared steps; set when the job is listed.
    late: OnceLock<Arc<Late>>,
    /// Its turn to get ready; set when it came.
    turn: OnceLock<Turn>,
    /// The remote caches it imports from.
    pub(crate) imports: crate::cache::JobImports,
}

/// The graphs that a job solves, and in which of them each vertex was met first.
#[derive(Default)]
struct Graphs {
    definitions: Vec<llb::Definition>,
    vertices: HashMap<Digest, (usize, Arc<llb::Vertex>)>,
}

/// What a client said of a vertex: digest of the bytes it sent, and their places in source files.
pub(crate) struct Received {
    pub digest: Digest,
    pub vertex: Arc<llb::Vertex>,
    pub locations: Vec<(pb::SourceInfo, Vec<pb::Range>)>,
}

impl Job {
    pub(crate) fn new(
        id: JobId,
        session: String,
        journal: Arc<Journal>,
        entitlements: BTreeSet<String>,
        policy: Option<Policy>,
        policy_session: String,
        proxy_network: bool,
        trace: Option<TraceContext>,
    ) -> Arc<Self> {
        let (memo, graphs, late, turn, imports) = Default::default();
        Arc::new(Self {
            id,
            session,
            journal,
            memo,
            entitlements,
            policy,
            policy_session,
            proxy_network,
            trace,
            graphs,
            late,
            turn,
            imports,
        })
    }

    /// Remembers the vertices of a definition.
    pub(crate) fn learn(&self, definition: &llb::Definition) {
        let mut graphs = self.graphs();
        let number = graphs.definitions.len();
        graphs.definitions.push(definition.clone());
        for vertex in definition.vertices() {
            graphs.vertices.entry(vertex.digest).or_insert_with(|| (number, vertex.clone()));
        }
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().expect("no panic while holding a job's graphs")
    }

    /// What the client said of a vertex.
    pub(crate) fn received(&self, vertex: &Digest) -> Option<Received> {
        let graphs = self.graphs();
        let (number, vertex) = graphs.vertices.get(vertex)?;
        let locations = graphs.definitions[*number].locations(vertex);
        Some(Received { digest: vertex.received, vertex: vertex.clone(), locations })
    }

    /// It is ready, or over.
    fn end_turn(&self) {
        if let Some(turn) = self.turn.get() {
            turn.end();
        }
    }

    /// It is ready when its first step begins.
    fn begins(&self, vertex: &Digest) {
        let graphs = self.graphs();
        let known = graphs.vertices.get(vertex);
        if !known.is_some_and(|(_, vertex)| matches!(vertex.op.op, Some(pb::op::Op::Source(_)))) {
            self.end_turn();
        }
    }

    /// Gets the log of a step that others ran or are running. The solver waits for whoever tells it
    /// of vertices, so this happens beside it.
    fn join(&self, vertex: Digest) {
        if let Some(late) = self.late.get().filter(|late| late.wants(vertex))
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let late = late.clone();
            runtime.spawn_blocking(move || late.catch_up());
        }
    }

    /// Ends the progress, once all logs are in it, and forgets the graphs. What sources resolved is
    /// still asked for by history, which clears the memo.
    pub(crate) fn close(&self) {
        if let Some(late) = self.late.get() {
            late.catch_up();
        }
        self.journal.close();
        self.end_turn();
        // It stays listed for a while, for clients that ask late for its progress alone.
        *self.graphs() = Graphs::default();
    }

    fn progress_group(&self, vertex: &Digest) -> Option<pb::ProgressGroup> {
        let graphs = self.graphs();
        let (_, vertex) = graphs.vertices.get(vertex)?;
        vertex.metadata.progress_group.clone()
    }
}

/// The builds under way, and those that ended lately.
#[derive(Default)]
pub struct Jobs {
    by_id: Arc<DashMap<JobId, Arc<Job>>>,
    steps: Arc<Steps>,
    appeared: Notify,
    turns: Turns,
    /// What steps behind a proxy asked for, as long as their vertices live.
    requested: DashMap<Digest, Weak<netproxy::Record>>,
    /// Whose builds these are; set once.
    engine: OnceLock<Weak<Engine>>,
}

impl Jobs {
    /// Tells what the builds run on.
    pub(crate) fn belong_to(&self, engine: &Arc<Engine>) {
        _ = self.engine.set(Arc::downgrade(engine));
    }

    pub(crate) fn add(&self, job: &Arc<Job>) -> Result<(), FrontendError> {
        match self.by_id.entry(job.id.clone()) {
            dashmap::Entry::Occupied(_) => Err(FrontendError::with_code(
                Code::AlreadyExists,
                format!("job ID {} exists", job.id),
            )),
            dashmap::Entry::Vacant(place) => {
                _ = job.late.set(Late::new(job.id.clone(), self.steps.clone()));
                place.insert(job.clone());
                self.appeared.notify_waiters();
                Ok(())
            }
        }
    }

    /// Waits until `job` may get ready.
    pub(crate) async fn turn(&self, job: &Job) {
        _ = job.turn.set(self.turns.wait().await);
    }

    pub(crate) fn remove(&self, job: &Weak<Job>) {
        if let Some(job) = job.upgrade() {
            self.by_id.remove_if(&job.id, |_, known| Arc::ptr_eq(known, &job));
        }
    }

    pub(crate) fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.by_id.get(id).map(|job| job.clone())
    }

    /// What a step asked for when it ran behind a proxy, if it did.
    pub(crate) fn requested_by(&self, vertex: &Digest) -> Option<Arc<netproxy::Record>> {
        self.requested.get(vertex)?.upgrade()
    }

    /// Whether the build called `id` runs or ended lately.
    pub fn is_known(&self, id: &str) -> bool {
        self.by_id.contains_key(&JobId::from(id))
    }

    /// The build called `id`, waiting a little for one that is about to start.
    pub async fn find(&self, id: &str) -> Option<Arc<Job>> {
        let id = JobId::from(id);
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let appeared = self.appeared.notified();
            if let Some(job) = self.get(&id) {
                return Some(job);
            }
            tokio::time::timeout_at(deadline, appeared).await.ok()?;
        }
    }
}

#[async_trait::async_trait]
impl ops::Jobs for Jobs {
    async fn admit(
        &self,
        job: &JobId,
        definition: &pb::Definition,
    ) -> Result<llb::Definition, OpError> {
        let engine = self.engine.get().and_then(Weak::upgrade).ok_or(OpError::Cancelled)?;
        let job = self.get(job).ok_or(OpError::Cancelled)?;
        let admitted = policy::admit(&engine, &job, definition).await;
        admitted.map_err(|error| OpError::invalid(error.message))
    }

    fn sessions(&self, jobs: &[JobId]) -> Vec<String> {
        let sessions = jobs.iter().filter_map(|id| self.get(id)).map(|job| job.session.clone());
        sessions.filter(|session| !session.is_empty()).collect()
    }

    fn traceparent(&self, jobs: &[JobId], vertex: Digest) -> Option<String> {
        let job = jobs.iter().filter_map(|id| self.get(id)).find(|job| job.trace.is_some())?;
        let trace = &job.trace.as_ref()?.trace;
        Some(format!("00-{trace}-{}-01", crate::span_id(trace, &vertex.to_string())))
    }

    fn memo(&self, job: &JobId) -> Arc<Memo> {
        self.get(job).map(|job| job.memo.clone()).unwrap_or_default()
    }

    fn step_log(&self, vertex: Digest) -> Arc<dyn ops::StepLog> {
        self.steps.open(vertex, &self.by_id)
    }

    fn request_policy(&self, jobs: &[JobId]) -> Option<Arc<dyn netproxy::Policy>> {
        let engine = self.engine.get().and_then(Weak::upgrade)?;
        policy::of_requests(engine, jobs.iter().filter_map(|id| self.get(id)).collect())
    }

    fn requested(&self, vertex: Digest, record: &Arc<netproxy::Record>) {
        self.requested.retain(|_, record| record.strong_count() > 0);
        self.requested.insert(vertex, Arc::downgrade(record));
    }

    fn status(&self, watchers: &[Watcher], status: source::Status) {
        for watcher in watchers {
            if let Some(job) = self.get(&watcher.job) {
                job.journal.status(status_to_wire(&watcher.vertex.to_string(), &status));
            }
        }
    }
}

/// A part's progress on the wire.
pub(crate) fn status_to_wire(vertex: &str, status: &source::Status) -> VertexStatus {
    VertexStatus {
        id: status.id.clone(),
        vertex: vertex.to_owned(),
        name: status.name.clone(),
        current: i64::try_from(status.current).unwrap_or(i64::MAX),
        total: i64::try_from(status.total).unwrap_or(i64::MAX),
        timestamp: Some(std::time::SystemTime::now().into()),
        started: status.started.map(Into::into),
        completed: status.completed.map(Into::into),
    }
}

impl solver::Progress for Job {
    fn event(&self, _: &JobId, vertex: Digest, event: VertexEvent) {
        let digest = vertex.to_string();
        match event {
            VertexEvent::Loaded { name, inputs } => {
                let inputs = inputs.iter().map(Digest::to_string).collect();
                self.journal.loaded(&digest, &name, inputs, self.progress_group(&vertex));
                self.join(vertex);
            }
            VertexEvent::Started => {
                self.journal.started(&digest);
                self.begins(&vertex);
            }
            VertexEvent::Completed { cached, error } => {
                self.journal.completed(&digest, cached, error.as_deref());
            }
            VertexEvent::Skipped => self.journal.skipped(&digest),
            VertexEvent::Decided(decision) => {
                tracing::debug!(job = %self.id, vertex = %vertex.short(), %decision, "decided");
            }
        }
    }
}
