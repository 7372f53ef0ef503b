//! Who is told what.
//!
//! A vertex is shown to the jobs that hold it, to the jobs of the vertices that loaded it, and under
//! their own digests to those of the vertices that follow it.

use std::collections::HashSet;

use super::*;
use crate::worker::Watcher;

impl Graph {
    /// The jobs interested in a vertex, oldest first.
    fn owners(&self, vertex: VertexIx) -> Vec<JobIx> {
        let state = &self.vertices[vertex];
        let mut jobs = state.jobs.clone();
        let mut seen = HashSet::from([vertex]);
        let mut stack = state.parents.clone();
        while let Some(parent) = stack.pop() {
            if seen.insert(parent) {
                jobs.extend(&self.vertices[parent].jobs);
                stack.extend(&self.vertices[parent].parents);
            }
        }
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }

    /// The vertex and those that follow it.
    fn faces(&self, vertex: VertexIx) -> Vec<VertexIx> {
        let mut faces = vec![vertex];
        for (_, edge) in &self.vertices[vertex].edges {
            for follower in &self.edges[*edge].followers {
                let follower = self.edges[*follower].vertex;
                if !faces.contains(&follower) {
                    faces.push(follower);
                }
            }
        }
        faces
    }

    /// Who watches the work of a task, oldest job first.
    pub fn watchers(&self, task: TaskId) -> Vec<Watcher> {
        let vertex = match self.tasks.get(&task) {
            Some(
                Task::CacheMap { vertex, .. }
                | Task::Content { vertex, .. }
                | Task::Execute { vertex, .. },
            ) => *vertex,
            Some(Task::Load { edge, .. }) => self.edges[*edge].vertex,
            None => return Vec::new(),
        };
        let mut watchers: Vec<(JobIx, Digest)> = Vec::new();
        for face in self.faces(vertex) {
            let digest = self.vertices[face].digest;
            watchers.extend(self.owners(face).into_iter().map(|job| (job, digest)));
        }
        watchers.sort_by_key(|(job, _)| *job);
        let named = watchers.into_iter().filter_map(|(job, vertex)| {
            Some(Watcher { job: self.jobs.get(&job)?.id.clone(), vertex })
        });
        named.collect()
    }

    /// Age of the oldest job that a vertex (or one following it) works for.
    pub(super) fn oldest_job(&self, vertex: VertexIx) -> u64 {
        let faces = self.faces(vertex).into_iter();
        let oldest = faces.filter_map(|face| self.owners(face).first().copied()).min();
        oldest.unwrap_or(u64::MAX)
    }

    /// The jobs that a vertex (or one following it) works for, oldest first.
    pub(super) fn interested(&self, vertex: VertexIx) -> Vec<JobIx> {
        let faces = self.faces(vertex).into_iter();
        let mut jobs: Vec<JobIx> = faces.flat_map(|face| self.owners(face)).collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }

    fn tell(&mut self, job: JobIx, vertex: VertexIx, event: VertexEvent) {
        let Some(state) = self.jobs.get(&job) else { return };
        let (job, vertex) = (state.id.clone(), self.vertices[vertex].digest);
        self.actions.push(Action::Progress { job, vertex, event });
    }

    fn tell_all(&mut self, vertex: VertexIx, event: &VertexEvent) {
        for job in self.owners(vertex) {
            self.introduce_to(vertex, job);
            self.tell(job, vertex, event.clone());
        }
    }

    /// Shows a vertex to those who just loaded it, as far as it has come.
    pub(super) fn introduce(&mut self, vertex: VertexIx, holder: RequestOwner) {
        match holder {
            RequestOwner::Job(job) => self.introduce_to(vertex, job),
            RequestOwner::Vertex(_) => {
                for job in self.owners(vertex) {
                    self.introduce_to(vertex, job);
                }
            }
        }
    }

    fn introduce_to(&mut self, vertex: VertexIx, job: JobIx) {
        let state = &self.vertices[vertex];
        if state.told.contains_key(&job) {
            return;
        }
        let inputs = state.inputs.iter().map(|(input, _)| self.vertices[*input].digest).collect();
        let name = Arc::clone(&state.name);
        let mut events = vec![VertexEvent::Loaded { name, inputs }];
        events.extend(state.decision.clone().map(VertexEvent::Decided));
        if state.active {
            events.push(VertexEvent::Started);
        } else if let Some((cached, error)) = state.completed.clone() {
            events.extend([VertexEvent::Started, VertexEvent::Completed { cached, error }]);
        }
        let settled = !state.active && state.completed.is_some();
        self.vertices[vertex].told.insert(job, settled);
        for event in events {
            self.tell(job, vertex, event);
        }
    }

    /// Work on a vertex began.
    pub(super) fn started(&mut self, vertex: VertexIx) {
        for face in self.faces(vertex) {
            self.show_started(face);
        }
    }

    pub(super) fn show_started(&mut self, vertex: VertexIx) {
        if std::mem::replace(&mut self.vertices[vertex].active, true) {
            return;
        }
        self.tell_all(vertex, &VertexEvent::Started);
        for job in self.owners(vertex) {
            self.vertices[vertex].told.insert(job, false);
            self.skip_inputs(vertex, job);
        }
    }

    /// Inputs that have not completed by now were not needed.
    fn skip_inputs(&mut self, vertex: VertexIx, job: JobIx) {
        let mut stack = vec![vertex];
        while let Some(above) = stack.pop() {
            for input in 0..self.vertices[above].inputs.len() {
                let (input, _) = self.vertices[above].inputs[input];
                let told = self.vertices[input].told.get_mut(&job);
                if told.is_some_and(|settled| !std::mem::replace(settled, true)) {
                    self.tell(job, input, VertexEvent::Skipped);
                    stack.push(input);
                }
            }
        }
    }

    /// Work on a vertex ended.
    pub(super) fn completed(&mut self, vertex: VertexIx, cached: bool, error: Option<Arc<str>>) {
        for face in self.faces(vertex) {
            self.show_completed(face, cached, error.clone());
        }
    }

    pub(super) fn show_completed(
        &mut self,
        vertex: VertexIx,
        cached: bool,
        error: Option<Arc<str>>,
    ) {
        if !std::mem::replace(&mut self.vertices[vertex].active, false) {
            return;
        }
        self.tell_all(vertex, &VertexEvent::Completed { cached, error: error.clone() });
        let state = &mut self.vertices[vertex];
        state.completed = Some((cached, error));
        for settled in state.told.values_mut() {
            *settled = true;
        }
    }

    /// Shows on a vertex what another one already went through.
    pub(super) fn copy_progress(&mut self, leading: VertexIx, vertex: VertexIx) {
        let (cached, error) = self.vertices[leading].completed.clone().unwrap_or((true, None));
        self.show_started(vertex);
        self.show_completed(vertex, cached, error);
    }

    pub(super) fn announce_decision(&mut self, vertex: VertexIx) {
        if let Some(decision) = self.vertices[vertex].decision.clone() {
            self.tell_all(vertex, &VertexEvent::Decided(decision));
        }
    }
}
