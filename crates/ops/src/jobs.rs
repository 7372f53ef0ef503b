//! What ops need to know of the builds they work for.

use std::sync::Arc;

use bytes::Bytes;
use solver::{JobId, Watcher};

/// The builds, seen from an op. Implemented by `engine`.
pub trait Jobs: Send + Sync + 'static {
    /// Ids of the sessions of these builds, in order.
    fn sessions(&self, jobs: &[JobId]) -> Vec<String>;

    /// What sources remember within a build, so that it resolves a name once.
    fn memo(&self, job: &JobId) -> Arc<source::Memo>;

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
