//! Decides what of a build graph must run, what is cached, and in which order.
//!
//! [`graph::Graph`] is the heart: a synchronous state machine that takes an [`graph::Event`] and
//! returns the [`graph::Action`]s that follow from it. It knows digests, keys and opaque tokens,
//! nothing of containers, clocks or IO. [`Solver`] is the thin asynchronous driver around it: it
//! performs actions through a [`Worker`] and feeds what came of them back as events.
//!
//! Invariant: whatever number of builds ask for a vertex, it has at most one execution under way,
//! and a finished one is not repeated while anybody still holds the vertex.

pub mod decision;
pub mod driver;
pub mod graph;
pub mod keys;
pub mod progress;
pub mod store;
pub mod worker;

mod pairs;
mod slab;

pub use decision::{Decision, Miss, Origin};
pub use driver::{BuildError, Builder, Built, Job, LoadError, Loaded, Options, Solver, Stores};
pub use graph::Edge;
pub use keys::{CacheKey, KeyDigest, KeyId, RecordId, StoreIndex};
pub use progress::{JobId, Progress, VertexEvent};
pub use store::{Change, Import, KeyStore, Link};
pub use worker::{
    CacheMap, CacheMapStep, FoundRecord, InputKey, LoadFailure, Vertex, VertexContext, Watcher,
    Worker,
};
