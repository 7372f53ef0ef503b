//! The logs of steps that builds share.
//!
//! What a step writes goes into the journal of every build that wants it at that moment. A build
//! that comes later, while the step runs or after it ended but is still held, gets what was written
//! so far first: it is copied from the journal of a build that has it all. A step's log lives as
//! long as its vertex in the solver.
//!
//! Invariant: a build's journal holds a beginning of the step's log at any time, without gaps.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use base::Digest;
use bytes::Bytes;
use dashmap::DashMap;
use ops::LogStream;
use solver::{JobId, Watcher};

use crate::Job;

type Builds = DashMap<JobId, Arc<Job>>;

/// The logs of all vertices that wrote something, by vertex.
#[derive(Default)]
pub(crate) struct Steps(DashMap<Digest, Weak<StepLog>>);

/// The log of one vertex.
pub(crate) struct StepLog {
    vertex: Digest,
    steps: Arc<Steps>,
    builds: Arc<Builds>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Builds that have all that was written, and what they call the vertex.
    told: HashSet<(JobId, Digest)>,
    /// One of them, kept for its journal.
    whole: Option<(Arc<Job>, Digest)>,
}

impl Steps {
    pub(crate) fn open(self: &Arc<Self>, vertex: Digest, builds: &Arc<Builds>) -> Arc<StepLog> {
        let log = Arc::new(StepLog {
            vertex,
            steps: self.clone(),
            builds: builds.clone(),
            state: Mutex::default(),
        });
        self.0.insert(vertex, Arc::downgrade(&log));
        log
    }

    /// The log of a vertex that has written something and is still held.
    pub(crate) fn get(&self, vertex: &Digest) -> Option<Arc<StepLog>> {
        self.0.get(vertex)?.upgrade()
    }
}

/// Logs that a build has still to get because it came late.
pub(crate) struct Late {
    job: JobId,
    steps: Arc<Steps>,
    vertices: Mutex<Vec<Digest>>,
    /// Held while one of them is copied.
    copying: Mutex<()>,
}

impl Late {
    pub(crate) fn new(job: JobId, steps: Arc<Steps>) -> Arc<Self> {
        let (vertices, copying) = Default::default();
        Arc::new(Self { job, steps, vertices, copying })
    }

    fn vertices(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.vertices.lock().expect("no panic while holding a list of vertices")
    }

    /// Notes a vertex; whether there is a log to copy.
    pub(crate) fn wants(&self, vertex: Digest) -> bool {
        let has_log = self.steps.get(&vertex).is_some();
        if has_log {
            self.vertices().push(vertex);
        }
        has_log
    }

    /// Copies what was noted. What somebody else copies already is there when this returns.
    pub(crate) fn catch_up(&self) {
        let _copying = self.copying.lock().expect("copying does not panic");
        loop {
            let Some(vertex) = self.vertices().pop() else { return };
            if let Some(step) = self.steps.get(&vertex) {
                step.join(Watcher { job: self.job.clone(), vertex });
            }
        }
    }
}

impl StepLog {
    /// Copies what was written so far to builds that came later.
    fn catch_up(&self, state: &mut State, watchers: &[Watcher]) {
        for watcher in watchers {
            let Some(job) = self.builds.get(&watcher.job).map(|job| job.clone()) else { continue };
            if !state.told.insert((watcher.job.clone(), watcher.vertex)) {
                continue;
            }
            if let Some((from, name)) = &state.whole {
                let name = name.to_string();
                let copied = from.journal.copy_log(&name, &job.journal, &watcher.vertex);
                if let Err(error) = copied {
                    tracing::error!(%error, "cannot copy the log of a shared step");
                }
            }
            state.whole.get_or_insert((job, watcher.vertex));
        }
    }

    /// A build that came later wants the vertex.
    pub(crate) fn join(&self, watcher: Watcher) {
        let mut state = self.state.lock().expect("no panic while holding a step's log");
        if state.whole.is_some() {
            self.catch_up(&mut state, &[watcher]);
        }
    }
}

impl ops::StepLog for StepLog {
    fn write(&self, watchers: &[Watcher], stream: LogStream, data: Bytes) {
        let mut state = self.state.lock().expect("no panic while holding a step's log");
        self.catch_up(&mut state, watchers);
        for watcher in watchers {
            if let Some(job) = self.builds.get(&watcher.job) {
                job.journal.log(&watcher.vertex.to_string(), stream, data.clone());
                // One that still goes on: what comes is in its journal as well.
                state.whole = Some((job.clone(), watcher.vertex));
            }
        }
    }

    fn settle(&self, watchers: &[Watcher]) {
        let mut state = self.state.lock().expect("no panic while holding a step's log");
        if state.whole.is_some() {
            self.catch_up(&mut state, watchers);
        }
    }
}

impl Drop for StepLog {
    fn drop(&mut self) {
        self.steps.0.remove_if(&self.vertex, |_, log| log.strong_count() == 0);
    }
}
