//! What ops need to know of the builds they work for.

use std::sync::Arc;

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

    /// Output of a step.
    fn log(&self, watchers: &[Watcher], stream: LogStream, data: Bytes);

    /// Progress of a part of a step.
    fn status(&self, watchers: &[Watcher], status: source::Status);
}

/// Where a step wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}
