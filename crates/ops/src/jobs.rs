//! What ops need to know of the builds they work for.

use std::sync::Arc;

use base::Digest;
use bytes::Bytes;
use llb::pb;
use solver::{JobId, Watcher};

use crate::OpError;

/// The builds, seen from an op. Implemented by `engine`.
#[async_trait::async_trait]
pub trait Jobs: Send + Sync + 'static {
    /// Ids of the sessions of these builds, in order.
    fn sessions(&self, jobs: &[JobId]) -> Vec<String>;

    /// What sources remember within a build, so that it resolves a name once.
    fn memo(&self, job: &JobId) -> Arc<source::Memo>;

    /// Checks a graph that a step of a build made, as those that clients send are checked.
    async fn admit(
        &self,
        job: &JobId,
        definition: &pb::Definition,
    ) -> Result<llb::Definition, OpError>;

    /// The log of a vertex that is about to run.
    fn step_log(&self, vertex: Digest) -> Arc<dyn StepLog>;

    /// What the process of a vertex is told of its span (a `traceparent`), if one of these builds is
    /// traced.
    fn traceparent(&self, jobs: &[JobId], vertex: Digest) -> Option<String>;

    /// What decides about requests of a step that these builds share; nothing if all may pass.
    fn request_policy(&self, jobs: &[JobId]) -> Option<Arc<dyn netproxy::Policy>>;

    /// What a step asked for through its proxy. Whoever wants it looks while the vertex lives.
    fn requested(&self, vertex: Digest, record: &Arc<netproxy::Record>);

    /// Progress of a part of a step.
    fn status(&self, watchers: &[Watcher], status: source::Status);
}

/// The log of one vertex; kept as long as the vertex, for builds that come to want it.
pub trait StepLog: Send + Sync {
    /// Output of the step, for all who want it now. Those who came since the last call get what
    /// was written before as well.
    fn write(&self, watchers: &[Watcher], stream: LogStream, data: Bytes);

    /// The step has ended: whoever came since the last call gets its log.
    fn settle(&self, watchers: &[Watcher]);
}

/// Where a step wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}
