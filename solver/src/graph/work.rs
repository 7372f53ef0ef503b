//! Tasks: work that was handed out, and what comes of it.
//!
//! A cache map, a content digest and an execution belong to the vertex and serve all its edges; a
//! load belongs to one edge. Executions with weight wait in a queue: oldest job first, within a
//! job the vertex with the longest way to go above it first.
//!
//! A job may have a limit of its own. An execution starts if one of the jobs it works for has a slot
//! left, and takes one of every job that has a limit. What may not start yet is parked with the oldest of
//! its jobs, and comes back to the queue when that job has a slot, ends, or anybody loads something:
//! unless the graph's own limit is reached, nothing is parked with a job that has a slot left.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    edge::{Candidate, Fact, Phase},
    vertex::{Content, Execution},
    *,
};
use crate::decision::Origin;

pub(super) enum Task {
    CacheMap { vertex: VertexIx, cancelled: bool },
    Content { vertex: VertexIx, input: usize, cancelled: bool },
    Execute { vertex: VertexIx, weight: u32, charged: Vec<JobIx>, cancelled: bool },
    Load { edge: EdgeIx, cancelled: bool },
}

#[derive(Default)]
pub(super) struct ExecuteQueue {
    waiting: BinaryHeap<Waiting>,
    /// Those that the limit does not concern.
    free: Vec<VertexIx>,
    next: u64,
    used: u32,
    /// Jobs with a limit of their own.
    pub(super) limited: usize,
    /// Those of them that were given slots back.
    freed: Vec<JobIx>,
}

/// A job's own share of what executes.
pub(super) struct Slots {
    /// 0 is no limit.
    most: u32,
    used: u32,
    parked: BinaryHeap<Waiting>,
}

impl Slots {
    pub(super) fn new(most: u32) -> Self {
        Self { most, used: 0, parked: BinaryHeap::new() }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.most > 0
    }

    fn has_room(&self) -> bool {
        self.most == 0 || self.used < self.most
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    // The greatest comes first.
    age: Reverse<u64>,
    urgency: u32,
    turn: Reverse<u64>,
    vertex: VertexIx,
}

impl ExecuteQueue {
    pub(super) fn used(&self) -> u32 {
        self.used
    }
}

impl Graph {
    pub(super) fn start_task(&mut self, vertex: VertexIx, task: Task) -> TaskId {
        self.next_task += 1;
        let id = TaskId(self.next_task);
        self.tasks.insert(id, task);
        self.vertices[vertex].running += 1;
        id
    }

    /// Ends a task; `None` if there is no such task.
    fn end_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        let vertex = match &task {
            Task::CacheMap { vertex, .. }
            | Task::Content { vertex, .. }
            | Task::Execute { vertex, .. } => *vertex,
            Task::Load { edge, .. } => self.edges[*edge].vertex,
        };
        self.vertices[vertex].running -= 1;
        self.unused.push(vertex);
        Some(task)
    }

    pub(super) fn cancel(&mut self, task: TaskId) {
        let Some(state) = self.tasks.get_mut(&task) else { return };
        let (Task::CacheMap { cancelled, .. }
        | Task::Content { cancelled, .. }
        | Task::Execute { cancelled, .. }
        | Task::Load { cancelled, .. }) = state;
        if !std::mem::replace(cancelled, true) {
            self.actions.push(Action::Cancel { task });
        }
    }

    /// Cancels the tasks of a vertex that none of its edges waits for.
    pub(super) fn cancel_unwanted(&mut self, number: VertexIx) {
        let vertex = &self.vertices[number];
        let edges = vertex.edges.iter().map(|(_, edge)| &self.edges[*edge]);
        let (mut searched, mut awaited) = (false, false);
        for edge in edges {
            let wanted = edge.asks.want() > Level::Initial;
            searched |= wanted && matches!(edge.phase, Phase::Searching);
            awaited |= matches!(edge.phase, Phase::Executing);
        }
        let mut unwanted = Vec::new();
        if !searched {
            unwanted.extend(vertex.map_task);
            for content in &vertex.contents {
                if let Content::Asked(task) = content {
                    unwanted.push(*task);
                }
            }
        }
        if !awaited {
            match self.vertices[number].execution {
                Execution::Queued => self.vertices[number].execution = Execution::None,
                Execution::Running(task) => unwanted.push(task),
                Execution::None | Execution::Done { .. } => {}
            }
        }
        for task in unwanted {
            self.cancel(task);
        }
    }

    pub(super) fn cache_map_known(&mut self, task: TaskId, outcome: Result<CacheMapStep, Cause>) {
        let Some(Task::CacheMap { vertex: number, cancelled }) = self.end_task(task) else {
            return;
        };
        let vertex = &mut self.vertices[number];
        vertex.map_task = None;
        let expected = vertex.inputs.len();
        let kind = match outcome {
            Ok(step) if step.map.inputs.len() == expected => {
                vertex.maps.push(step.map);
                vertex.last_map = step.last;
                if expected == 0 {
                    self.completed(number, false, None);
                }
                return self.enqueue_edges(number);
            }
            Ok(step) => FailureKind::CacheMapMismatch { given: step.map.inputs.len(), expected },
            Err(_) if cancelled => {
                if expected == 0 {
                    self.completed(number, false, Some("context canceled".into()));
                }
                return self.enqueue_edges(number);
            }
            Err(cause) => FailureKind::Worker(cause),
        };
        self.fail_vertex(number, kind);
    }

    pub(super) fn content_known(&mut self, task: TaskId, outcome: Result<Option<Digest>, Cause>) {
        let Some(Task::Content { vertex: number, input, cancelled }) = self.end_task(task) else {
            return;
        };
        let vertex = &mut self.vertices[number];
        vertex.contents[input] = match &outcome {
            Ok(digest) => Content::Known(*digest),
            Err(_) => Content::Unknown,
        };
        for (_, edge) in &vertex.edges {
            let edge = &mut self.edges[*edge];
            if !edge.deps.is_empty() {
                edge.dirty.push(input as u32);
            }
        }
        match outcome {
            Err(cause) if !cancelled => self.fail_vertex(number, FailureKind::Worker(cause)),
            _ => self.enqueue_edges(number),
        }
    }

    fn enqueue_edges(&mut self, vertex: VertexIx) {
        for position in 0..self.vertices[vertex].edges.len() {
            let (_, edge) = self.vertices[vertex].edges[position];
            self.enqueue(edge);
        }
    }

    /// Remembers a failure and hands it to all edges that wait for the vertex itself.
    fn fail_vertex(&mut self, number: VertexIx, kind: FailureKind) {
        let vertex = &mut self.vertices[number];
        let failure = Failure { vertex: vertex.digest, name: Arc::clone(&vertex.name), kind };
        let text: Arc<str> = failure.to_string().into();
        let failure = Arc::new(failure);
        vertex.failure = Some(Arc::clone(&failure));
        if !self.vertices[number].active {
            self.started(number);
        }
        self.completed(number, false, Some(text));
        for position in 0..self.vertices[number].edges.len() {
            let (_, edge) = self.vertices[number].edges[position];
            let state = &self.edges[edge];
            let waits = match state.phase {
                Phase::Searching => state.asks.want() > Level::Initial,
                Phase::Executing => true,
                _ => false,
            };
            if waits {
                self.fail(edge, Arc::clone(&failure));
            }
        }
    }

    // ---- loading ----

    pub(super) fn start_load(&mut self, edge: EdgeIx) {
        let candidate = self.best_record(edge);
        self.drop_asks(edge);
        self.register(edge);
        let number = self.edges[edge].vertex;
        let task = self.start_task(number, Task::Load { edge, cancelled: false });
        let record = candidate.found.clone();
        self.edges[edge].phase = Phase::Loading { task, candidate };
        self.cancel_unwanted(number);
        self.started(number);
        let vertex = self.vertices[number].digest;
        self.actions.push(Action::Load { task, vertex, record });
    }

    pub(super) fn loaded(
        &mut self,
        task: TaskId,
        outcome: Result<NewOutput, LoadFailure>,
        came_along: &[(RecordId, RecordId)],
    ) {
        let Some(Task::Load { edge, cancelled }) = self.end_task(task) else {
            let unknown = outcome.into_iter().map(|loaded| loaded.output);
            self.actions.extend(unknown.map(|output| Action::Release { output }));
            return;
        };
        let number = self.edges[edge].vertex;
        let phase = std::mem::replace(&mut self.edges[edge].phase, Phase::Searching);
        let Phase::Loading { candidate, .. } = phase else {
            unreachable!("an edge stays loading until its load task ends")
        };
        match outcome {
            Ok(loaded) => {
                self.store_inputs(&candidate, came_along);
                self.take_loaded(edge, candidate, loaded);
            }
            Err(failure) => {
                self.unregister(edge);
                if !cancelled {
                    self.strike_record(edge, &candidate, &failure);
                }
                let error = cancelled.then(|| "context canceled".into());
                self.completed(number, false, error);
                self.dismiss_followers(edge);
                self.mark_all_dirty(edge);
                self.enqueue(edge);
            }
        }
    }

    fn take_loaded(&mut self, edge: EdgeIx, candidate: Candidate, loaded: NewOutput) {
        let number = self.edges[edge].vertex;
        let FoundRecord { origin, record, created_at, .. } = candidate.found;
        let mut stored = Some(record.clone());
        if origin != Origin::Local {
            // What came from an import is ours from now on, as old as it was there.
            stored = loaded.record.clone();
            if let Some(own) = loaded.record {
                let id = self.store_key(&candidate.key);
                self.keys.add_result(id, own, created_at);
            }
        }
        self.vertices[number].decision = Some(Decision::Hit { origin, record });
        candidate.key.set_unexported(false);
        self.edges[edge].result_keys = vec![candidate.key];
        self.announce_decision(number);
        self.completed(number, true, None);
        self.finish(edge, loaded.output, stored);
    }

    /// A record that cannot be loaded is not tried again by this edge, nor offered if it is gone.
    fn strike_record(&mut self, edge: EdgeIx, candidate: &Candidate, failure: &LoadFailure) {
        let record = &candidate.found.record;
        tracing::debug!(%record, reason = failure.reason, "cached result could not be loaded");
        let state = &mut self.edges[edge];
        state.tried.push(record.clone());
        state.records.retain(|other| other.found.record != *record);
        if failure.gone && candidate.store == StoreIndex::MAIN {
            self.keys.remove_record(record);
        }
    }

    pub(super) fn mark_all_dirty(&mut self, edge: EdgeIx) {
        let state = &mut self.edges[edge];
        state.dirty = (0..state.deps.len() as u32).collect();
        state.view = None;
    }

    // ---- executing ----

    pub(super) fn start_execution(&mut self, edge: EdgeIx) {
        let number = self.edges[edge].vertex;
        self.register(edge);
        self.edges[edge].phase = Phase::Executing;
        let miss = self.explain_miss(edge);
        let vertex = &mut self.vertices[number];
        match vertex.execution {
            Execution::None => {
                vertex.execution = Execution::Queued;
                vertex.decision = Some(Decision::Miss(miss));
                self.queue_execution(number);
            }
            Execution::Queued | Execution::Running(_) => {}
            Execution::Done { .. } => self.take_executed(edge),
        }
    }

    /// The edge no longer waits for the execution.
    pub(super) fn leave_execution(&mut self, edge: EdgeIx) {
        self.unregister(edge);
        self.edges[edge].phase = Phase::Searching;
        self.edges[edge].left = true;
        self.dismiss_followers(edge);
        self.mark_all_dirty(edge);
        self.cancel_unwanted(self.edges[edge].vertex);
    }

    fn queue_execution(&mut self, number: VertexIx) {
        let vertex = &self.vertices[number];
        let limited = self.max_parallelism > 0 || self.execute_queue.limited > 0;
        if vertex.weight == 0 || !limited {
            self.execute_queue.free.push(number);
            return;
        }
        let urgency = vertex.urgency;
        let age = Reverse(self.oldest_job(number));
        self.execute_queue.next += 1;
        let turn = Reverse(self.execute_queue.next);
        self.execute_queue.waiting.push(Waiting { age, urgency, turn, vertex: number });
    }

    /// Starts queued executions as far as the limit allows. Entries of vertices that are no longer
    /// queued are left-overs.
    pub(super) fn start_executions(&mut self) {
        for number in std::mem::take(&mut self.execute_queue.free) {
            if self.is_queued(number) {
                self.execute(number, 0);
            }
        }
        loop {
            while let Some(first) = self.execute_queue.waiting.peek() {
                let number = first.vertex;
                if self.is_queued(number) {
                    let (used, weight) = (self.execute_queue.used, self.vertices[number].weight);
                    let full = used > 0 && used.saturating_add(weight) > self.max_parallelism;
                    if full && self.max_parallelism > 0 {
                        return;
                    }
                    if let Some(job) = self.held_back_by(number) {
                        let first = self.execute_queue.waiting.pop();
                        self.slots(job).expect("it was asked").parked.extend(first);
                        continue;
                    }
                    self.execute_queue.used += weight;
                    self.execute(number, weight);
                }
                self.execute_queue.waiting.pop();
            }
            if !self.unpark_next() {
                return;
            }
        }
    }

    /// The oldest of the jobs of a vertex if none of them has a slot left.
    pub(super) fn held_back_by(&self, number: VertexIx) -> Option<JobIx> {
        if self.execute_queue.limited == 0 {
            return None;
        }
        let jobs = self.interested(number);
        let has_room = |job: &JobIx| self.jobs.get(job).is_none_or(|job| job.slots.has_room());
        if jobs.iter().any(has_room) {
            return None;
        }
        jobs.first().copied()
    }

    /// Brings back one that was parked with a job that has a slot left; whether there was one. Where
    /// what comes back does not take that slot, the next one can.
    fn unpark_next(&mut self) -> bool {
        while let Some(job) = self.execute_queue.freed.last().copied() {
            let next = match self.slots(job) {
                Some(slots) if slots.has_room() => slots.parked.pop(),
                _ => None,
            };
            if let Some(next) = next {
                self.execute_queue.waiting.push(next);
                return true;
            }
            self.execute_queue.freed.pop();
        }
        false
    }

    fn slots(&mut self, job: JobIx) -> Option<&mut Slots> {
        self.jobs.get_mut(&job).map(|job| &mut job.slots)
    }

    /// Takes a slot of every job with a limit.
    fn charge(&mut self, number: VertexIx) -> Vec<JobIx> {
        if self.execute_queue.limited == 0 || self.vertices[number].weight == 0 {
            return Vec::new();
        }
        let mut charged = self.interested(number);
        charged.retain(|job| match self.slots(*job) {
            Some(slots) if slots.is_limited() => {
                slots.used += 1;
                true
            }
            _ => false,
        });
        charged
    }

    /// Gives slots back.
    fn discharge(&mut self, charged: Vec<JobIx>) {
        for job in charged {
            let Some(slots) = self.slots(job) else { continue };
            slots.used -= 1;
            self.execute_queue.freed.push(job);
        }
    }

    /// Everything parked with a job has another look.
    pub(super) fn unpark(&mut self, slots: &mut Slots) {
        self.execute_queue.waiting.append(&mut slots.parked);
    }

    /// Other jobs may have joined what is parked.
    pub(super) fn unpark_all(&mut self) {
        if self.execute_queue.limited > 0 {
            for job in self.jobs.values_mut() {
                self.execute_queue.waiting.append(&mut job.slots.parked);
            }
        }
    }

    fn is_queued(&self, number: VertexIx) -> bool {
        let vertex = self.vertices.get(number);
        vertex.is_some_and(|vertex| matches!(vertex.execution, Execution::Queued))
    }

    fn execute(&mut self, number: VertexIx, weight: u32) {
        let charged = self.charge(number);
        let task = Task::Execute { vertex: number, weight, charged, cancelled: false };
        let task = self.start_task(number, task);
        self.vertices[number].execution = Execution::Running(task);
        self.vertices[number].nested.clear();
        let edges = self.vertices[number].edges.iter();
        let executing = edges
            .map(|(_, edge)| &self.edges[*edge])
            .find(|edge| matches!(edge.phase, Phase::Executing))
            .expect("a queued execution has an edge that waits for it");
        let inputs = executing.deps.iter().map(|dep| match self.edges[dep.child].phase {
            Phase::Done { output, .. } => output,
            _ => unreachable!("a vertex executes once all its inputs are done"),
        });
        let inputs = inputs.collect();
        self.announce_decision(number);
        self.started(number);
        let vertex = self.vertices[number].digest;
        self.actions.push(Action::Execute { task, vertex, inputs });
    }

    /// A vertex that waits for others it started must not keep them from running.
    pub(super) fn lend_slot(&mut self, parent: VertexIx) {
        let Execution::Running(task) = self.vertices[parent].execution else { return };
        if let Some(Task::Execute { weight, charged, .. }) = self.tasks.get_mut(&task) {
            self.execute_queue.used -= std::mem::take(weight);
            let charged = std::mem::take(charged);
            self.discharge(charged);
        }
    }

    pub(super) fn executed(
        &mut self,
        task: TaskId,
        outcome: Result<Vec<NewOutput>, Cause>,
        at: SystemTime,
    ) {
        let Some(Task::Execute { vertex: number, weight, charged, cancelled }) =
            self.end_task(task)
        else {
            let unknown = outcome.into_iter().flatten().map(|output| output.output);
            self.actions.extend(unknown.map(|output| Action::Release { output }));
            return;
        };
        self.execute_queue.used -= weight;
        self.discharge(charged);
        match outcome {
            Ok(outputs) => {
                for output in &outputs {
                    self.hold(output.output);
                }
                self.vertices[number].execution = Execution::Done { outputs, at };
                self.completed(number, false, None);
                self.rejoin_execution(number);
                for edge in self.executing_edges(number) {
                    self.take_executed(edge);
                }
            }
            Err(_) if cancelled => {
                self.vertices[number].execution = Execution::None;
                self.completed(number, false, Some("context canceled".into()));
                // Those who want it again by now start over.
                for edge in self.executing_edges(number) {
                    self.leave_execution(edge);
                    self.enqueue(edge);
                }
            }
            Err(cause) => {
                self.vertices[number].execution = Execution::None;
                self.fail_vertex(number, FailureKind::Worker(cause));
            }
        }
    }

    /// Edges that had left a cancelled execution which then succeeded take their result after all,
    /// wanted or not: it is stored with them.
    fn rejoin_execution(&mut self, number: VertexIx) {
        for position in 0..self.vertices[number].edges.len() {
            let (_, edge) = self.vertices[number].edges[position];
            let state = &self.edges[edge];
            let ready = state.maps > 0 && state.total(Fact::Unready) == 0;
            if ready && state.left && matches!(state.phase, Phase::Searching) {
                self.drop_asks(edge);
                self.register(edge);
                self.edges[edge].phase = Phase::Executing;
            }
        }
    }

    fn executing_edges(&self, vertex: VertexIx) -> Vec<EdgeIx> {
        let edges = self.vertices[vertex].edges.iter().map(|(_, edge)| *edge);
        edges.filter(|edge| matches!(self.edges[*edge].phase, Phase::Executing)).collect()
    }

    fn take_executed(&mut self, edge: EdgeIx) {
        let EdgeState { vertex: number, output, .. } = self.edges[edge];
        let Execution::Done { outputs, at } = &self.vertices[number].execution else {
            unreachable!("called once the execution is done")
        };
        let at = *at;
        let Some(result) = outputs.get(output as usize).cloned() else {
            let given = outputs.len();
            let vertex = &self.vertices[number];
            let failure = Failure {
                vertex: vertex.digest,
                name: Arc::clone(&vertex.name),
                kind: FailureKind::NoSuchOutput { output, given },
            };
            self.fail(edge, Arc::new(failure));
            return;
        };
        let keys = self.save(edge, result.record.clone(), at);
        for key in &keys {
            key.add_companions(&self.vertices[number].nested);
        }
        let ignoring = self.vertices[number].ignore_cache;
        let state = &mut self.edges[edge];
        if !ignoring {
            state.offered.extend(keys.iter().cloned());
        }
        state.result_keys = keys;
        self.finish(edge, result.output, result.record);
    }
}
