//! Vertices and jobs: joining the graph.
//!
//! A vertex has one state however many jobs loaded it. It is held by jobs, by vertices that loaded
//! it while executing, by vertices built on it and by vertices that follow it, and released when
//! the last of them lets go (see `release`).

use std::collections::BTreeSet;

use super::{work::Slots, *};
use crate::{
    keys::KeyDigest,
    store::Import,
    worker::{CacheMap, InputKey},
};

pub(super) struct VertexState {
    pub(super) digest: Digest,
    pub(super) name: Arc<str>,
    pub(super) ignore_cache: bool,
    pub(super) export_cache: Option<bool>,
    pub(super) weight: u32,
    pub(super) inputs: Vec<(VertexIx, u32)>,
    /// (output, edge), made when first used.
    pub(super) edges: Vec<(u32, EdgeIx)>,
    pub(super) imports: Vec<StoreIndex>,
    pub(super) jobs: Vec<JobIx>,
    /// Vertices that loaded this one while executing.
    pub(super) parents: Vec<VertexIx>,
    /// Vertices that this one loaded.
    pub(super) children: Vec<VertexIx>,
    /// Main keys of what it built while executing.
    pub(super) nested: Vec<CacheKey>,
    /// Jobs, parents, vertices built on this, followers.
    pub(super) holders: usize,
    /// Number of vertices that must run after this one, one after the other.
    pub(super) urgency: u32,
    pub(super) running: usize,

    pub(super) maps: Vec<CacheMap>,
    pub(super) last_map: bool,
    pub(super) map_task: Option<TaskId>,
    pub(super) contents: Vec<Content>,
    pub(super) execution: Execution,
    /// Remembered failure of a cache map, a content digest or the execution.
    pub(super) failure: Option<Arc<Failure>>,

    pub(super) decision: Option<Decision>,
    /// Whether `Started` was sent without `Completed`.
    pub(super) active: bool,
    /// Whether it ever completed, and how.
    pub(super) completed: Option<(bool, Option<Arc<str>>)>,
    /// Jobs that know of the vertex, and whether it is settled (completed or skipped) for them.
    pub(super) told: BTreeMap<JobIx, bool>,
}

/// The content digest of an input.
#[derive(Clone, Default)]
pub(super) enum Content {
    #[default]
    Unknown,
    Asked(TaskId),
    Known(Option<Digest>),
}

/// The execution of a vertex.
pub(super) enum Execution {
    None,
    Queued,
    Running(TaskId),
    Done { outputs: Vec<NewOutput>, at: SystemTime },
}

pub(super) struct JobState {
    pub(super) id: JobId,
    pub(super) vertices: Vec<VertexIx>,
    pub(super) requests: BTreeSet<RequestId>,
    /// Given digests that mean another vertex in this job.
    pub(super) aliases: HashMap<Digest, Digest>,
    /// What executes for it.
    pub(super) slots: Slots,
}

impl VertexState {
    fn new(vertex: &NewVertex, digest: Digest, inputs: Vec<(VertexIx, u32)>) -> Self {
        Self {
            digest,
            name: Arc::clone(&vertex.name),
            ignore_cache: vertex.ignore_cache,
            export_cache: vertex.export_cache,
            weight: vertex.weight,
            contents: vec![Content::Unknown; inputs.len()],
            inputs,
            edges: Vec::new(),
            imports: Vec::new(),
            jobs: Vec::new(),
            parents: Vec::new(),
            children: Vec::new(),
            nested: Vec::new(),
            holders: 0,
            urgency: 0,
            running: 0,
            maps: Vec::new(),
            last_map: false,
            map_task: None,
            execution: Execution::None,
            failure: None,
            decision: None,
            active: false,
            completed: None,
            told: BTreeMap::new(),
        }
    }

    /// How `input` enters the key, once a cache map is known.
    pub(super) fn input_key(&self, input: usize) -> InputKey {
        self.maps.last().map_or_else(InputKey::default, |map| map.inputs[input])
    }

    /// Digest of the operation, once a cache map is known.
    pub(super) fn operation(&self) -> KeyDigest {
        self.maps.last().expect("only asked once a cache map is known").digest
    }

    /// The stores where its results may be found.
    pub(super) fn stores(&self) -> impl Iterator<Item = StoreIndex> + '_ {
        std::iter::once(StoreIndex::MAIN).chain(self.imports.iter().copied())
    }
}

/// Digest of the state of a vertex that must run although a caching twin is active.
fn ignoring(digest: Digest) -> Digest {
    Digest::of(format!("{digest}-ignorecache"))
}

impl Graph {
    pub(super) fn open(&mut self, id: JobId, parallelism: u32) {
        if self.by_job.contains_key(&id) {
            return;
        }
        self.next_job += 1;
        let state = JobState {
            id: id.clone(),
            vertices: Vec::new(),
            requests: BTreeSet::new(),
            aliases: HashMap::new(),
            slots: Slots::new(parallelism),
        };
        self.execute_queue.limited += usize::from(parallelism > 0);
        self.jobs.insert(self.next_job, state);
        self.by_job.insert(id, self.next_job);
    }

    fn job(&mut self, job: JobIx) -> &mut JobState {
        self.jobs.get_mut(&job).expect("numbers of jobs are kept only while they are open")
    }

    pub(super) fn owner(&self, owner: &Owner) -> Option<RequestOwner> {
        match owner {
            Owner::Job(id) => self.by_job.get(id).map(|job| RequestOwner::Job(*job)),
            Owner::Task(task) => match self.tasks.get(task)? {
                Task::Execute { vertex, .. } => Some(RequestOwner::Vertex(*vertex)),
                _ => None,
            },
        }
    }

    pub(super) fn load(
        &mut self,
        owner: &Owner,
        vertices: Vec<NewVertex>,
        imports: &[Arc<Import>],
    ) {
        let found = self.owner(owner);
        let Some(holder) = found else {
            let name = match owner {
                Owner::Job(id) => id.clone(),
                Owner::Task(task) => JobId::from(format!("task {}", task.0)),
            };
            self.actions.push(Action::Refused { error: LoadError::Closed(name) });
            return;
        };
        if let Err(error) = self.check(holder, &vertices) {
            self.actions.push(Action::Refused { error });
            return;
        }
        self.unpark_all();
        let stores: Vec<StoreIndex> = imports.iter().map(|import| self.attach(import)).collect();
        let mut named: HashMap<Digest, Digest> = HashMap::with_capacity(vertices.len());
        let mut accepted = Vec::with_capacity(vertices.len());
        let mut loaded = Vec::with_capacity(vertices.len());
        for vertex in &vertices {
            let digest = self.choose_state(vertex);
            let number = match self.by_digest.get(&digest) {
                Some(number) => *number,
                None => self.add_vertex(vertex, digest, holder, &named),
            };
            named.insert(vertex.digest, digest);
            accepted.push((vertex.digest, digest));
            self.hold_vertex(holder, number, &stores);
            loaded.push(number);
        }
        if let RequestOwner::Job(job) = holder {
            for (given, own) in &accepted {
                self.job(job).aliases.insert(*given, *own);
            }
        }
        self.spread_urgency(&loaded);
        self.actions.push(Action::Accepted { vertices: accepted });
        for vertex in loaded {
            self.introduce(vertex, holder);
        }
        self.detach_unused(&stores);
    }

    /// Every input must be earlier in the list or in the graph already.
    fn check(&self, holder: RequestOwner, vertices: &[NewVertex]) -> Result<(), LoadError> {
        let mut seen = std::collections::HashSet::with_capacity(vertices.len());
        for vertex in vertices {
            for input in &vertex.inputs {
                let known = seen.contains(&input.vertex)
                    || self.by_digest.contains_key(&self.own_digest(holder, input.vertex));
                if !known {
                    let (vertex, input) = (vertex.digest, input.vertex);
                    return Err(LoadError::MissingInput { vertex, input });
                }
            }
            seen.insert(vertex.digest);
        }
        Ok(())
    }

    /// The digest of the state that `given` means to `holder`.
    pub(super) fn own_digest(&self, holder: RequestOwner, given: Digest) -> Digest {
        match holder {
            RequestOwner::Job(job) => self.jobs[&job].aliases.get(&given).copied().unwrap_or(given),
            RequestOwner::Vertex(_) => given,
        }
    }

    /// A vertex that ignores the cache must not share the state of a caching twin that was there
    /// first; the reverse is welcome.
    fn choose_state(&self, vertex: &NewVertex) -> Digest {
        let twin = ignoring(vertex.digest);
        if self.by_digest.contains_key(&twin) {
            return twin;
        }
        match self.by_digest.get(&vertex.digest) {
            Some(active) if vertex.ignore_cache && !self.vertices[*active].ignore_cache => twin,
            _ => vertex.digest,
        }
    }

    fn add_vertex(
        &mut self,
        vertex: &NewVertex,
        digest: Digest,
        holder: RequestOwner,
        named: &HashMap<Digest, Digest>,
    ) -> VertexIx {
        let mut inputs = Vec::with_capacity(vertex.inputs.len());
        for input in &vertex.inputs {
            let own = match named.get(&input.vertex) {
                Some(own) => *own,
                None => self.own_digest(holder, input.vertex),
            };
            let number = self.by_digest[&own];
            self.vertices[number].holders += 1;
            inputs.push((number, input.output));
        }
        let number = self.vertices.insert(VertexState::new(vertex, digest, inputs));
        self.by_digest.insert(digest, number);
        number
    }

    fn hold_vertex(&mut self, holder: RequestOwner, vertex: VertexIx, stores: &[StoreIndex]) {
        for store in stores {
            let state = &mut self.vertices[vertex];
            if !state.imports.contains(store) {
                state.imports.push(*store);
                self.imports.get_mut(store).expect("attached by this load").users += 1;
            }
        }
        match holder {
            RequestOwner::Job(job) => {
                let state = &mut self.vertices[vertex];
                if !state.jobs.contains(&job) {
                    state.jobs.push(job);
                    state.holders += 1;
                    self.job(job).vertices.push(vertex);
                }
            }
            RequestOwner::Vertex(parent) => {
                let inherited = self.vertices[parent].imports.clone();
                let state = &mut self.vertices[vertex];
                if parent != vertex && !state.parents.contains(&parent) {
                    state.parents.push(parent);
                    state.holders += 1;
                    self.vertices[parent].children.push(vertex);
                }
                for store in inherited {
                    let state = &mut self.vertices[vertex];
                    if !state.imports.contains(&store) {
                        state.imports.push(store);
                        self.imports.get_mut(&store).expect("held by the parent").users += 1;
                    }
                }
            }
        }
    }

    fn attach(&mut self, import: &Arc<Import>) -> StoreIndex {
        let known = self.imports.iter().find(|(_, state)| Arc::ptr_eq(&state.import, import));
        if let Some((store, _)) = known {
            return *store;
        }
        let store = StoreIndex(self.next_store);
        self.next_store += 1;
        self.imports.insert(store, ImportState { import: Arc::clone(import), users: 0 });
        store
    }

    pub(super) fn detach_unused(&mut self, stores: &[StoreIndex]) {
        for store in stores {
            if self.imports.get(store).is_some_and(|state| state.users == 0) {
                self.imports.remove(store);
            }
        }
    }

    /// Consumers come later in the list, so one pass from its end sees each before its inputs.
    fn spread_urgency(&mut self, loaded: &[VertexIx]) {
        for vertex in loaded.iter().rev() {
            let above = self.vertices[*vertex].urgency + 1;
            for input in 0..self.vertices[*vertex].inputs.len() {
                let (input, _) = self.vertices[*vertex].inputs[input];
                let state = &mut self.vertices[input];
                state.urgency = state.urgency.max(above);
            }
        }
    }

    pub(super) fn edge_of(&mut self, vertex: VertexIx, output: u32) -> EdgeIx {
        let known = self.vertices[vertex].edges.iter().find(|(number, _)| *number == output);
        if let Some((_, edge)) = known {
            return *edge;
        }
        let edge = self.edges.insert(EdgeState::new(vertex, output));
        self.vertices[vertex].edges.push((output, edge));
        edge
    }

    pub(super) fn request(&mut self, request: RequestId, owner: &Owner, edge: Edge) {
        let holder = self.owner(owner);
        let own = holder.map(|holder| self.own_digest(holder, edge.vertex));
        let vertex = own.and_then(|own| self.by_digest.get(&own)).copied();
        let (Some(holder), Some(vertex)) = (holder, vertex) else {
            let kind =
                if holder.is_some() { FailureKind::NotLoaded } else { FailureKind::Cancelled };
            let failure = Failure { vertex: edge.vertex, name: "".into(), kind };
            self.actions.push(Action::Answer { request, outcome: Err(Arc::new(failure)) });
            return;
        };
        let edge = self.edge_of(vertex, edge.output);
        match holder {
            RequestOwner::Job(job) => {
                self.job(job).requests.insert(request);
            }
            // Others must be able to run while this vertex waits for them.
            RequestOwner::Vertex(parent) => self.lend_slot(parent),
        }
        self.requests.insert(request, RequestState { edge, owner: holder });
        self.edges[edge].requests.push(request);
        self.edges[edge].asks.add(Level::Complete);
        match self.outcome(edge) {
            Some(outcome) => self.answer(request, outcome),
            None => self.enqueue(edge),
        }
    }

    pub(super) fn withdraw(&mut self, request: RequestId) {
        let Some(edge) = self.remove_request(request) else { return };
        self.enqueue(edge);
    }

    fn remove_request(&mut self, request: RequestId) -> Option<EdgeIx> {
        let RequestState { edge, owner } = self.requests.remove(&request)?;
        self.edges[edge].requests.retain(|known| *known != request);
        self.edges[edge].asks.remove(Level::Complete);
        if let RequestOwner::Job(job) = owner {
            self.job(job).requests.remove(&request);
        }
        Some(edge)
    }

    pub(super) fn answer(&mut self, request: RequestId, outcome: Result<Answer, Arc<Failure>>) {
        let owner = self.requests.get(&request).map(|state| state.owner);
        if let (Some(RequestOwner::Vertex(parent)), Ok(answer)) = (owner, &outcome) {
            self.vertices[parent].nested.extend(answer.keys.first().cloned());
        }
        if self.remove_request(request).is_some() {
            self.actions.push(Action::Answer { request, outcome });
        }
    }
}
