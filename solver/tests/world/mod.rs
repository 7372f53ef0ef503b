//! A small world around [`Graph`]: vertices with made-up contents, tasks that end when the test says
//! so, and a record of what was done.
//!
//! The content of an output is three "files". They follow from the command and from what the vertex
//! reads of its inputs, and two of them take few values, so that different histories often give
//! equal files. Everything a request is answered with is compared with the *naive evaluation*: the
//! same function applied input by input, without cache or concurrency.

#![allow(dead_code)]

pub mod script;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base::Digest;
use solver::{
    CacheMap, CacheMapStep, Decision, Edge, FoundRecord, Import, InputKey, JobId, KeyDigest,
    KeyStore, LoadFailure, Options, RecordId, VertexEvent,
    graph::{
        Action, Cause, Event, FailureKind, Graph, NewOutput, NewVertex, OutputId, Owner, RequestId,
        TaskId,
    },
};

pub type Content = [u64; 3];

/// A vertex of the world.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: String,
    pub digest: Digest,
    pub command: String,
    pub inputs: Vec<Input>,
    pub ignore: bool,
    pub fails: bool,
    /// Cache maps of a vertex without inputs; what it gives follows from the last.
    pub maps: Vec<KeyDigest>,
    pub outputs: u32,
    /// Built while executing; part of the result.
    pub nested: Option<Edge>,
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub edge: Edge,
    /// Which file is read; all if none.
    pub file: Option<usize>,
    pub content: bool,
    pub preprocess: bool,
}

pub fn number(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Recipe {
    fn run(&self, read: &[Vec<u64>], nested: Option<Content>) -> Option<Vec<Content>> {
        if self.fails {
            return None;
        }
        let source = self.maps.last().map(KeyDigest::to_string);
        let operation = source.as_ref().unwrap_or(&self.command);
        let make = |output: u32| {
            let seed = number((operation, read, nested, output));
            [seed % 2, seed / 7 % 3, seed]
        };
        Some((0..self.outputs).map(make).collect())
    }

    pub fn operation(&self) -> KeyDigest {
        Digest::of(format!("{} {} {:?}", self.command, self.inputs.len(), self.nested)).into()
    }
}

fn read(input: &Input, content: &Content) -> Vec<u64> {
    match input.file {
        Some(file) => vec![content[file]],
        None => content.to_vec(),
    }
}

pub struct Pending {
    pub task: TaskId,
    pub vertex: Digest,
    pub kind: Kind,
    pub cancelled: bool,
    /// Nested request that must be answered first.
    pub nested: Option<RequestId>,
    pub nested_content: Option<Content>,
    pub nested_failed: bool,
}

pub enum Kind {
    CacheMap { step: usize },
    Content { input: usize, output: OutputId },
    Execute { inputs: Vec<OutputId> },
    Load { record: FoundRecord },
}

impl Kind {
    pub fn name(&self) -> &'static str {
        match self {
            Self::CacheMap { .. } => "key",
            Self::Content { .. } => "digest",
            Self::Execute { .. } => "exec",
            Self::Load { .. } => "load",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// As it should.
    Well,
    /// As a cancelled task does.
    Cancelled,
    /// For a reason that may not come again.
    Badly,
}

struct Asked {
    owner: Owner,
    edge: Edge,
}

pub struct World {
    pub graph: Graph,
    pub recipes: HashMap<Digest, Recipe>,
    pub naive: HashMap<Edge, Option<Content>>,
    /// What a vertex is by definition alone; none if something in it ignores the cache or is
    /// private.
    pub strict: HashMap<Digest, Option<Digest>>,
    /// Results of executions by that.
    stored_by: HashMap<Digest, Vec<RecordId>>,
    load_trouble: bool,
    pub tasks: Vec<Pending>,
    /// The work done.
    pub log: Vec<String>,
    /// That and more, for a reader of a failure.
    pub trace: Vec<String>,
    pub progress: Vec<(JobId, Digest, VertexEvent)>,
    pub answers: BTreeMap<RequestId, Result<Content, String>>,
    pub decisions: HashMap<RequestId, Decision>,
    pub executed: usize,
    pub loads: usize,
    pub digests: usize,
    /// How often each kind of thing happened, to see that the random worlds meet them all.
    pub met: BTreeMap<&'static str, usize>,
    pub records: HashMap<RecordId, Content>,
    pub imported: HashMap<RecordId, Content>,
    outputs: HashMap<OutputId, Content>,
    states: HashMap<Digest, Digest>,
    renamed: HashMap<Digest, Digest>,
    requests: HashMap<RequestId, Asked>,
    withdrawn: HashSet<RequestId>,
    running: HashSet<Digest>,
    finished: HashSet<Digest>,
    executing: HashMap<String, u32>,
    closed: HashSet<JobId>,
    bad_luck: bool,
    /// Whether loading from an import brings all of it.
    pub generous: bool,
    next: u64,
    stored: u64,
    clock: u64,
    actions: VecDeque<Action>,
    last_request: Option<RequestId>,
}

impl World {
    pub fn new(max_parallelism: u32) -> Self {
        Self::with_keys(max_parallelism, KeyStore::new(), HashMap::new())
    }

    pub fn with_keys(
        max_parallelism: u32,
        keys: KeyStore,
        records: HashMap<RecordId, Content>,
    ) -> Self {
        Self {
            graph: Graph::new(&Options { max_parallelism }, keys),
            recipes: HashMap::new(),
            naive: HashMap::new(),
            strict: HashMap::new(),
            stored_by: HashMap::new(),
            load_trouble: false,
            tasks: Vec::new(),
            log: Vec::new(),
            trace: Vec::new(),
            progress: Vec::new(),
            answers: BTreeMap::new(),
            decisions: HashMap::new(),
            executed: 0,
            loads: 0,
            digests: 0,
            met: BTreeMap::new(),
            records,
            imported: HashMap::new(),
            outputs: HashMap::new(),
            states: HashMap::new(),
            renamed: HashMap::new(),
            requests: HashMap::new(),
            withdrawn: HashSet::new(),
            running: HashSet::new(),
            finished: HashSet::new(),
            executing: HashMap::new(),
            closed: HashSet::new(),
            bad_luck: false,
            generous: false,
            next: 0,
            stored: 0,
            clock: 0,
            actions: VecDeque::new(),
            last_request: None,
        }
    }

    /// Adds a vertex; its inputs are there already. Evaluates it the naive way.
    pub fn define(&mut self, recipe: Recipe) {
        let inputs: Option<Vec<Vec<u64>>> = recipe
            .inputs
            .iter()
            .map(|input| self.naive[&input.edge].map(|content| read(input, &content)))
            .collect();
        let nested = match recipe.nested {
            Some(edge) => self.naive[&edge].map(Some),
            None => Some(None),
        };
        let results = inputs.zip(nested).and_then(|(inputs, nested)| recipe.run(&inputs, nested));
        for output in 0..recipe.outputs {
            let edge = Edge { vertex: recipe.digest, output };
            self.naive.insert(edge, results.as_ref().map(|results| results[output as usize]));
        }
        self.strict.insert(recipe.digest, self.strictly(&recipe));
        self.recipes.insert(recipe.digest, recipe);
    }

    fn strictly(&self, recipe: &Recipe) -> Option<Digest> {
        // Private sources take what was built on them along when their record goes. Sources with
        // two cache maps are found by the first if that has a record, also if the one searched for
        // was built on another source with only the second in common.
        let private = recipe.maps.iter().any(KeyDigest::is_random);
        if recipe.ignore || private || recipe.maps.len() > 1 {
            return None;
        }
        let mut text = match recipe.maps.is_empty() {
            true => recipe.operation().to_string(),
            false => format!("{:?}", recipe.maps),
        };
        for input in &recipe.inputs {
            let vertex = self.strict[&input.edge.vertex]?;
            // Whether content counts is no part of the key, but decides when keys are compared.
            text += &format!(" {vertex}/{} {:?} {}", input.edge.output, input.file, input.content);
        }
        Some(Digest::of(text))
    }

    pub fn open(&mut self, job: &str) -> JobId {
        self.open_limited(job, 0)
    }

    pub fn open_limited(&mut self, job: &str, parallelism: u32) -> JobId {
        self.closed.remove(&JobId::from(job));
        let job = JobId::from(job);
        self.step(Event::Open { job: job.clone(), parallelism });
        job
    }

    /// The vertices that `edge` is built on and itself, inputs first.
    pub fn cone(&self, edge: Edge) -> Vec<Digest> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        let mut stack = vec![(edge.vertex, 0)];
        seen.insert(edge.vertex);
        while let Some((vertex, next)) = stack.pop() {
            match self.recipes[&vertex].inputs.get(next) {
                Some(input) => {
                    stack.push((vertex, next + 1));
                    if seen.insert(input.edge.vertex) {
                        stack.push((input.edge.vertex, 0));
                    }
                }
                None => order.push(vertex),
            }
        }
        order
    }

    pub fn load(&mut self, owner: Owner, edge: Edge, imports: Vec<Arc<Import>>) {
        let vertices = self.cone(edge).into_iter().map(|digest| {
            let recipe = &self.recipes[&digest];
            NewVertex {
                digest,
                inputs: recipe.inputs.iter().map(|input| input.edge).collect(),
                name: recipe.name.as_str().into(),
                ignore_cache: recipe.ignore,
                export_cache: None,
                weight: recipe.weight,
            }
        });
        let vertices = vertices.collect();
        self.renamed.clear();
        self.step(Event::Load { owner, vertices, imports });
    }

    /// Loads the cone of `edge` and asks for it.
    pub fn solve(&mut self, owner: Owner, edge: Edge, imports: Vec<Arc<Import>>) -> RequestId {
        self.load(owner.clone(), edge, imports);
        self.next += 1;
        let request = RequestId(self.next);
        self.requests.insert(request, Asked { owner: owner.clone(), edge });
        let vertex = self.renamed.get(&edge.vertex).copied().unwrap_or(edge.vertex);
        let own = Edge { vertex, output: edge.output };
        self.last_request = Some(request);
        self.step(Event::Request { request, owner, edge: own });
        request
    }

    pub fn withdraw(&mut self, request: RequestId) {
        if let Some(asked) = self.requests.remove(&request) {
            self.trace.push(format!("withdraw {}", self.name(asked.edge.vertex)));
            self.step(Event::Withdraw { request });
        }
    }

    pub fn discard(&mut self, job: &JobId) {
        self.closed.insert(job.clone());
        self.trace.push(format!("discard {job}"));
        self.step(Event::Discard { job: job.clone() });
        assert!(
            !self.requests.values().any(|asked| asked.owner == Owner::Job(job.clone())),
            "requests of a discarded job are answered at once"
        );
    }

    pub fn open_requests(&self) -> Vec<RequestId> {
        let mut open: Vec<RequestId> = self.requests.keys().copied().collect();
        open.sort();
        open
    }

    pub fn job_of(&self, request: RequestId) -> Option<JobId> {
        match &self.requests.get(&request)?.owner {
            Owner::Job(job) => Some(job.clone()),
            Owner::Task(_) => None,
        }
    }

    /// Removes a record; the solver is told or not.
    pub fn evict(&mut self, record: &RecordId, tell: bool) {
        self.records.remove(record);
        self.trace.push(format!("evict {record} {tell}"));
        if tell {
            self.step(Event::Evicted { records: vec![record.clone()] });
        }
    }

    fn name(&self, vertex: Digest) -> String {
        let given = self.states.get(&vertex).copied().unwrap_or(vertex);
        self.recipes.get(&given).map_or_else(|| vertex.short(), |recipe| recipe.name.clone())
    }

    pub fn describe(&self, edge: Edge) -> String {
        let cone = self.cone(edge).into_iter().map(|vertex| {
            let recipe = &self.recipes[&vertex];
            let inputs = recipe.inputs.iter().map(|input| {
                let (name, output) = (self.name(input.edge.vertex), input.edge.output);
                format!("{name}/{output} file {:?} content {}", input.file, input.content)
            });
            let inputs = inputs.collect::<Vec<_>>().join(", ");
            let (name, command) = (&recipe.name, &recipe.command);
            let maps: Vec<String> =
                recipe.maps.iter().map(|map| map.to_string()[..13].to_owned()).collect();
            format!("{name} = {command} ({inputs}) {maps:?} nested {:?}", recipe.nested)
        });
        cone.collect::<Vec<_>>().join("\n")
    }

    fn recipe(&self, vertex: Digest) -> Recipe {
        self.recipes[&self.states[&vertex]].clone()
    }

    pub fn step(&mut self, event: Event) {
        let actions = self.graph.step(event);
        self.actions.extend(actions);
        while let Some(action) = self.actions.pop_front() {
            self.act(action);
        }
    }

    fn work(&mut self, what: String) {
        self.trace.push(what.clone());
        self.log.push(what);
    }

    pub fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn pend(&mut self, task: TaskId, vertex: Digest, kind: Kind) {
        assert!(!self.tasks.iter().any(|other| other.task == task));
        let (nested, nested_content) = (None, None);
        self.tasks.push(Pending {
            task,
            vertex,
            kind,
            cancelled: false,
            nested,
            nested_content,
            nested_failed: false,
        });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Accepted { vertices } => {
                for (given, own) in vertices {
                    self.states.insert(own, given);
                    self.renamed.insert(given, own);
                }
            }
            Action::Refused { error } => {
                let open = matches!(error, solver::LoadError::Closed(_));
                assert!(open, "loads of whole cones are refused only when closed: {error}");
            }
            Action::AskCacheMap { task, vertex, step } => {
                self.pend(task, vertex, Kind::CacheMap { step });
            }
            Action::AskContent { task, vertex, input, output } => {
                self.digests += 1;
                self.work(format!("digest {} input {input}", self.name(vertex)));
                assert!(self.outputs.contains_key(&output), "digested outputs are held");
                self.pend(task, vertex, Kind::Content { input, output });
            }
            Action::Execute { task, vertex, inputs } => self.execute(task, vertex, inputs),
            Action::Load { task, vertex, record } => {
                self.loads += 1;
                self.work(format!("load {} from {}", self.name(vertex), record.record));
                self.pend(task, vertex, Kind::Load { record });
            }
            Action::Cancel { task } => {
                let pending = self.tasks.iter_mut().find(|pending| pending.task == task);
                let pending = pending.expect("only running tasks are cancelled");
                assert!(!pending.cancelled, "a task is cancelled once");
                pending.cancelled = true;
                let (vertex, nested) = (pending.vertex, pending.nested);
                let what = pending.kind.name();
                self.work(format!("cancel {what} {}", self.name(vertex)));
                self.meet(match what {
                    "key" => "cache map cancelled",
                    "digest" => "digest cancelled",
                    "exec" => "execution cancelled",
                    _ => "load cancelled",
                });
                if let Some(nested) = nested
                    && self.requests.remove(&nested).is_some()
                {
                    self.withdrawn.insert(nested);
                    let actions = self.graph.step(Event::Withdraw { request: nested });
                    self.actions.extend(actions);
                }
            }
            Action::Answer { request, outcome } => self.answered(request, outcome),
            Action::Progress { job, vertex, event } => {
                if let VertexEvent::Decided(decision) = &event {
                    self.trace.push(format!("{} of {job}: {decision}", self.name(vertex)));
                    self.meet(match decision {
                        Decision::Hit { origin: solver::Origin::Local, .. } => "local hit",
                        Decision::Hit { .. } => "imported hit",
                        Decision::Shared { .. } => "follower",
                        Decision::Miss(solver::Miss::ContentChanged { .. }) => "content changed",
                        Decision::Miss(solver::Miss::Evicted { .. }) => "evicted",
                        Decision::Miss(_) => "miss",
                    });
                }
                if event == VertexEvent::Skipped {
                    self.meet("skipped");
                }
                assert!(!self.closed.contains(&job), "closed jobs are told nothing");
                self.progress.push((job, vertex, event));
            }
            Action::Release { output } => {
                assert!(self.outputs.remove(&output).is_some(), "outputs are released once");
            }
            Action::Forget { vertex } => {
                self.finished.remove(&vertex);
                assert!(!self.running.contains(&vertex), "running vertices are not forgotten");
                assert!(
                    !self.tasks.iter().any(|pending| pending.vertex == vertex),
                    "vertices with tasks are not forgotten"
                );
            }
        }
    }

    fn execute(&mut self, task: TaskId, vertex: Digest, inputs: Vec<OutputId>) {
        let recipe = self.recipe(vertex);
        self.executed += 1;
        self.work(format!("exec {}", recipe.name));
        assert!(self.running.insert(vertex), "one execution at a time");
        assert!(!self.finished.contains(&vertex), "no execution after one that succeeded");
        assert_eq!(inputs.len(), recipe.inputs.len());
        // Each output has a key of its own, so runs for different outputs are different work. And
        // who shares a forced run offers no keys that lead to results of earlier ones.
        let forced = self.recipes.values().any(|recipe| recipe.ignore);
        if let Some(strict) = self.strict[&recipe.digest].filter(|_| recipe.outputs == 1 && !forced)
        {
            let same = self.tasks.iter().find(|pending| {
                let execute = matches!(pending.kind, Kind::Execute { .. }) && !pending.cancelled;
                let given = self.states[&pending.vertex];
                let single = self.recipes[&given].outputs == 1;
                execute && single && self.strict[&given] == Some(strict)
            });
            if let Some(same) = same {
                let cone = self.describe(Edge { vertex: recipe.digest, output: 0 });
                let log = self.trace.join("\n");
                let same = self.name(same.vertex);
                panic!("{} runs beside its equal {same}\n{cone}\n{log}", recipe.name);
            }
            let mut stored = self.stored_by.get(&strict).into_iter().flatten();
            let known = stored.find(|record| self.records.contains_key(*record));
            if let Some(record) = known.filter(|_| !self.load_trouble) {
                let cone = self.describe(Edge { vertex: recipe.digest, output: 0 });
                let log = self.trace.join("\n");
                panic!("{} runs although {record} is stored\n{cone}\n{log}", recipe.name);
            }
        }
        for input in &inputs {
            assert!(self.outputs.contains_key(input), "inputs are held");
        }
        self.pend(task, vertex, Kind::Execute { inputs });
        if let Some(edge) = recipe.nested {
            let last = self.last_request;
            let renamed = std::mem::take(&mut self.renamed);
            let nested = self.solve_later(Owner::Task(task), edge);
            self.renamed = renamed;
            self.last_request = last;
            let pending = self.tasks.iter_mut().find(|pending| pending.task == task);
            if let Some(pending) = pending
                && pending.nested.is_none()
            {
                pending.nested = Some(nested);
            }
        }
    }

    /// Like `solve`, from inside an action: what follows is put in the queue.
    fn solve_later(&mut self, owner: Owner, edge: Edge) -> RequestId {
        let outer = std::mem::take(&mut self.actions);
        self.next += 1;
        let request = RequestId(self.next);
        let Owner::Task(task) = owner else { unreachable!() };
        if let Some(pending) = self.tasks.iter_mut().find(|pending| pending.task == task) {
            pending.nested = Some(request);
        }
        self.load(owner.clone(), edge, Vec::new());
        self.requests.insert(request, Asked { owner: owner.clone(), edge });
        let vertex = self.renamed.get(&edge.vertex).copied().unwrap_or(edge.vertex);
        let own = Edge { vertex, output: edge.output };
        self.step(Event::Request { request, owner, edge: own });
        self.actions = outer;
        request
    }

    fn answered(
        &mut self,
        request: RequestId,
        outcome: Result<solver::graph::Answer, Arc<solver::graph::Failure>>,
    ) {
        let Some(asked) = self.requests.remove(&request) else {
            // The answer was on its way when the request was withdrawn.
            assert!(self.withdrawn.remove(&request), "requests are answered once");
            return;
        };
        let naive = self.naive[&asked.edge];
        let result = match outcome {
            Ok(answer) => {
                let content = *self.outputs.get(&answer.output).expect("answers are held");
                if Some(content) != naive {
                    panic!(
                        "{} is {content:?}, evaluated {naive:?}\n{}\n{}",
                        self.name(asked.edge.vertex),
                        self.describe(asked.edge),
                        self.trace.join("\n")
                    );
                }
                self.decisions.insert(request, answer.decision);
                assert!(!answer.keys.is_empty(), "results have keys");
                Ok(content)
            }
            Err(failure) => {
                match &failure.kind {
                    FailureKind::Worker(cause) if &*cause.text == "bad luck" => {
                        assert!(self.bad_luck);
                        self.meet("bad luck");
                    }
                    FailureKind::Worker(_) => assert_eq!(naive, None, "failed: {failure}"),
                    FailureKind::Cancelled => {
                        let closed = match &asked.owner {
                            Owner::Job(job) => self.closed.contains(job),
                            Owner::Task(_) => true,
                        };
                        assert!(closed, "only closed jobs are told of cancellation");
                    }
                    other => panic!("unexpected failure {other:?}"),
                }
                Err(format!("{} failed: {failure}", self.name(failure.vertex)))
            }
        };
        if let Owner::Task(task) = asked.owner {
            let pending = self.tasks.iter_mut().find(|pending| pending.task == task);
            if let Some(pending) = pending {
                match &result {
                    Ok(content) => pending.nested_content = Some(*content),
                    Err(_) => pending.nested_failed = true,
                }
            }
        } else {
            self.answers.insert(request, result);
        }
    }

    /// Whether a task could end now: all but those that wait for a nested build.
    pub fn can_end(&self, position: usize) -> bool {
        let pending = &self.tasks[position];
        match pending.nested {
            Some(nested) => pending.cancelled || !self.requests.contains_key(&nested),
            None => true,
        }
    }

    /// Ends a pending task.
    pub fn end(&mut self, position: usize, how: How) {
        let pending = self.tasks.remove(position);
        let (task, recipe) = (pending.task, self.recipe(pending.vertex));
        self.trace.push(format!("{} {} ends {how:?}", pending.kind.name(), recipe.name));
        let cause = |text: &str| Cause { text: text.into(), value: Arc::new(()) };
        let trouble = match how {
            How::Well => None,
            How::Cancelled => {
                assert!(pending.cancelled);
                Some(cause("cancelled"))
            }
            How::Badly => {
                self.bad_luck = true;
                Some(cause("bad luck"))
            }
        };
        if pending.cancelled && how == How::Well {
            self.meet("success after cancellation");
        }
        if matches!(pending.kind, Kind::CacheMap { step: 1 }) {
            self.meet("second cache map");
        }
        if pending.nested_content.is_some() {
            self.meet("nested build");
        }
        let event = match pending.kind {
            Kind::CacheMap { step } => {
                let outcome = trouble.map_or_else(|| Ok(Self::cache_map(&recipe, step)), Err);
                Event::CacheMap { task, outcome }
            }
            Kind::Content { input, output } => {
                let input = &recipe.inputs[input];
                let seen = read(input, &self.outputs[&output]);
                let digest = input.content.then(|| Digest::of(format!("{seen:?}")));
                Event::Content { task, outcome: trouble.map_or(Ok(digest), Err) }
            }
            Kind::Execute { inputs } => {
                self.running.remove(&pending.vertex);
                let inputs = inputs.iter().zip(&recipe.inputs);
                let seen: Vec<Vec<u64>> =
                    inputs.map(|(output, input)| read(input, &self.outputs[output])).collect();
                let lost = recipe.nested.is_some() && pending.nested_content.is_none();
                let results = if lost { None } else { recipe.run(&seen, pending.nested_content) };
                let outcome = match (trouble, results) {
                    (Some(trouble), _) => Err(trouble),
                    (None, None) if lost && self.bad_luck => Err(cause("bad luck")),
                    (None, None) => Err(cause(&format!("{} failed", recipe.command))),
                    (None, Some(results)) => {
                        self.finished.insert(pending.vertex);
                        let kept = results.into_iter().map(|content| self.keep(content));
                        let kept: Vec<NewOutput> = kept.collect();
                        // Of several outputs only those asked for are stored, and what a
                        // cancelled run gave only if nobody else does the same by now.
                        if let (Some(strict), [only], false) =
                            (self.strict[&recipe.digest], &kept[..], pending.cancelled)
                        {
                            let records = self.stored_by.entry(strict).or_default();
                            records.extend(only.record.clone());
                        }
                        Ok(kept)
                    }
                };
                self.clock += 1;
                let at = UNIX_EPOCH + Duration::from_secs(self.clock);
                Event::Executed { task, outcome, at }
            }
            Kind::Load { record } => {
                let local = record.origin == solver::Origin::Local;
                let known = if local { &self.records } else { &self.imported };
                let content = known.get(&record.record).copied();
                if content.is_none() {
                    self.meet("record gone before its load");
                }
                let outcome = match (trouble, content) {
                    (None, Some(content)) if local => {
                        let loaded = self.keep_loaded(content, record.record.clone());
                        Ok(loaded)
                    }
                    (None, Some(content)) => Ok(self.keep(content)),
                    (Some(_), _) => {
                        self.load_trouble |= how == How::Badly;
                        Err(LoadFailure { gone: false, reason: "trouble".into() })
                    }
                    (None, None) => Err(LoadFailure { gone: true, reason: "gone".into() }),
                };
                let came_along = if local { Vec::new() } else { self.bring_along(&record.record) };
                Event::Loaded { task, outcome, came_along }
            }
        };
        self.step(event);
    }

    /// What comes along with a record of an import.
    fn bring_along(&mut self, loaded: &RecordId) -> Vec<(RecordId, RecordId)> {
        let mut others: Vec<(RecordId, Content)> =
            self.imported.iter().map(|(record, content)| (record.clone(), *content)).collect();
        others.sort();
        others.retain(|(record, _)| self.generous && record != loaded);
        let mut ours = |content| {
            self.stored += 1;
            let record = RecordId::from(format!("r{}", self.stored));
            self.records.insert(record.clone(), content);
            record
        };
        others.into_iter().map(|(record, content)| (record, ours(content))).collect()
    }

    fn keep(&mut self, content: Content) -> NewOutput {
        self.stored += 1;
        let record = RecordId::from(format!("r{}", self.stored));
        self.records.insert(record.clone(), content);
        self.keep_loaded(content, record)
    }

    fn keep_loaded(&mut self, content: Content, record: RecordId) -> NewOutput {
        self.next += 1;
        let output = OutputId(self.next);
        self.outputs.insert(output, content);
        NewOutput { output, record: Some(record) }
    }

    fn cache_map(recipe: &Recipe, step: usize) -> CacheMapStep {
        if recipe.inputs.is_empty() && !recipe.maps.is_empty() {
            let map = CacheMap { digest: recipe.maps[step], inputs: Vec::new() };
            return CacheMapStep { map, last: step + 1 == recipe.maps.len() };
        }
        let inputs = recipe.inputs.iter().map(|input| InputKey {
            selector: input.file.map(|file| Digest::of(format!("file {file}"))),
            content: input.content,
            preprocess: input.preprocess,
        });
        let map = CacheMap { digest: recipe.operation(), inputs: inputs.collect() };
        CacheMapStep { map, last: true }
    }

    /// Lets all tasks end, oldest first; cancelled ones as cancelled.
    pub fn run(&mut self) {
        while let Some(position) = (0..self.tasks.len()).find(|position| self.can_end(*position)) {
            let cancelled = self.tasks[position].cancelled;
            self.end(position, if cancelled { How::Cancelled } else { How::Well });
        }
    }

    /// Everything that was wanted has been answered, or somebody waits for nothing.
    pub fn assert_not_stuck(&self) {
        let idle = self.tasks.is_empty() || !(0..self.tasks.len()).any(|at| self.can_end(at));
        if idle && !self.requests.is_empty() {
            panic!("stuck:\n{}", self.graph.stuck());
        }
    }

    /// Nothing is left over once all jobs are gone.
    pub fn assert_empty(&self) {
        assert!(self.tasks.is_empty());
        assert!(self.outputs.is_empty(), "{} outputs are never released", self.outputs.len());
        assert!(self.graph.is_idle(), "the graph holds nothing: {}", self.graph.stuck());
    }

    /// The main store as an import that finds its records under other names.
    pub fn as_import(&self, id: &str) -> (Arc<Import>, HashMap<RecordId, Content>) {
        let rename = |record: &RecordId| RecordId::from(format!("{id}/{record}"));
        let changes = self.graph.keys().snapshot().into_iter().map(|change| match change {
            solver::Change::PutResult { key, record, created_at } => {
                solver::Change::PutResult { key, record: rename(&record), created_at }
            }
            solver::Change::PutLink { from, link, to } => {
                solver::Change::PutLink { from, link: link.exported(), to }
            }
            other => other,
        });
        let store = KeyStore::restore(changes);
        let records = self.records.iter().map(|(record, content)| (rename(record), *content));
        (Arc::new(Import { id: id.into(), store }), records.collect())
    }

    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.clock)
    }

    pub fn all_names(&self) -> BTreeSet<String> {
        self.recipes.values().map(|recipe| recipe.name.clone()).collect()
    }
}
