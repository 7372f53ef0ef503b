//! The state of all builds, and what follows from each event.

use base::Digest;

/// One output of a vertex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Edge {
    /// Digest of the vertex.
    pub vertex: Digest,
    /// Number of the output.
    pub output: u32,
}

/// A piece of work that the graph asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TaskId(pub u64);
