//! Letting go: of jobs, of leaders, and of vertices that nobody holds.
//!
//! Vertices are released after the queue is empty, never in the middle of a round. One whose tasks
//! still run stays until they end, so that a build arriving meanwhile finds it instead of starting
//! the same work beside it.

use super::{
    edge::Phase,
    vertex::{Execution, VertexState},
    *,
};

impl Graph {
    pub(super) fn discard(&mut self, id: &JobId) {
        let Some(job) = self.by_job.remove(id) else { return };
        let requests = self.jobs[&job].requests.clone();
        for request in requests {
            let edge = self.requests[&request].edge;
            self.answer_cancelled(request);
            self.enqueue(edge);
        }
        let mut state = self.jobs.remove(&job).expect("named jobs exist");
        self.unpark(&mut state.slots);
        self.execute_queue.limited -= usize::from(state.slots.is_limited());
        for vertex in state.vertices {
            let held = &mut self.vertices[vertex];
            held.jobs.retain(|other| *other != job);
            held.told.remove(&job);
            self.drop_hold(vertex);
        }
    }

    fn answer_cancelled(&mut self, request: RequestId) {
        let Some(state) = self.requests.get(&request) else { return };
        let vertex = &self.vertices[self.edges[state.edge].vertex];
        let (name, kind) = (Arc::clone(&vertex.name), FailureKind::Cancelled);
        let failure = Failure { vertex: vertex.digest, name, kind };
        self.answer(request, Err(Arc::new(failure)));
    }

    fn drop_hold(&mut self, vertex: VertexIx) {
        self.vertices[vertex].holders -= 1;
        if self.vertices[vertex].holders == 0 {
            self.unused.push(vertex);
        }
    }

    // ---- followers ----

    /// The follower's tie to its leader is undone; it stands alone again.
    fn untie(&mut self, edge: EdgeIx) {
        let Phase::Follows { leader } = self.edges[edge].phase else { return };
        self.edges[edge].phase = Phase::Searching;
        self.edges[leader].followers.remove(&edge);
        self.edges[leader].asks.remove(Level::Complete);
        self.enqueue(leader);
        self.drop_hold(self.edges[leader].vertex);
        self.mark_all_dirty(edge);
    }

    /// The follower does not want the result any more.
    pub(super) fn unfollow(&mut self, edge: EdgeIx) {
        self.untie(edge);
        let vertex = self.edges[edge].vertex;
        self.show_completed(vertex, false, Some("context canceled".into()));
    }

    /// The leader has to search again: its followers search for themselves.
    pub(super) fn dismiss_followers(&mut self, leader: EdgeIx) {
        for follower in self.edges[leader].followers.clone() {
            self.untie(follower);
            self.enqueue(follower);
        }
    }

    pub(super) fn finish_follower(&mut self, follower: EdgeIx, leader: EdgeIx) {
        self.untie(follower);
        self.take_result(follower, leader);
    }

    /// The leader failed, and with it what follows: under the follower's own name.
    pub(super) fn fail_follower(
        &mut self,
        follower: EdgeIx,
        leader: EdgeIx,
        failure: &Arc<Failure>,
    ) {
        self.untie(follower);
        let own = &self.vertices[self.edges[follower].vertex];
        let led = self.vertices[self.edges[leader].vertex].digest;
        let mut failure = Failure::clone(failure);
        if failure.vertex == led {
            failure.vertex = own.digest;
            failure.name = Arc::clone(&own.name);
        }
        self.fail(follower, Arc::new(failure));
    }

    // ---- vertices ----

    pub(super) fn release_unused(&mut self) {
        while let Some(vertex) = self.unused.pop() {
            let idle = |state: &VertexState| state.holders == 0 && state.running == 0;
            if self.vertices.get(vertex).is_some_and(idle) {
                self.release(vertex);
            }
        }
    }

    fn release(&mut self, number: VertexIx) {
        for (_, edge) in self.vertices[number].edges.clone() {
            for request in self.edges[edge].requests.clone() {
                self.answer_cancelled(request);
            }
            self.untie(edge);
            self.unregister(edge);
            self.leave_inputs(edge);
            let state = self.edges.remove(edge).expect("listed by its vertex");
            if let Phase::Done { output, .. } = state.phase {
                self.let_go(output);
            }
        }
        let state = self.vertices.remove(number).expect("looked at by the caller");
        self.by_digest.remove(&state.digest);
        if let Execution::Done { outputs, .. } = state.execution {
            for output in outputs {
                self.let_go(output.output);
            }
        }
        for store in &state.imports {
            self.imports.get_mut(store).expect("held by this vertex").users -= 1;
        }
        self.detach_unused(&state.imports);
        for (input, _) in state.inputs {
            self.drop_hold(input);
        }
        for child in state.children {
            self.vertices[child].parents.retain(|parent| *parent != number);
            self.drop_hold(child);
        }
        self.actions.push(Action::Forget { vertex: state.digest });
    }
}
