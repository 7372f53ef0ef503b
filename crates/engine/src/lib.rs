//! Builds: from a request to an exported result, with everything that is told on the way.
//!
//! An [`Engine`] opens a [`Job`] for each request, runs the frontend (here, or on the client's side
//! over the bridge), has the solver build what the result needs and exporters take it out. A job's
//! progress is its [`Journal`]; when it has ended, [`History`] keeps the record. Nothing here knows
//! gRPC servers or settings files: `rbuildd` turns both into requests and [`Settings`].
//! Invariant: a job that ended, in whatever way, holds no containers, mounts or refs.

mod attest;
mod bridge;
mod cache;
mod capabilities;
mod containers;
mod engine;
mod failure;
mod frontend_image;
mod history;
mod history_filter;
mod job;
mod journal;
mod policy;
pub mod run;
mod spans;
mod steps;
mod turns;
mod verify;

pub use cache::CacheEntry;
pub use capabilities::LLB as LLB_CAPABILITIES;
pub(crate) use containers::Containers;
pub use engine::{Engine, FrontendImages, JOBS_ATTR, Settings, SolveRequest, Work, host_platforms};
pub use history::{History, HistoryLimits};
pub use job::{Job, Jobs};
pub use journal::{Counts, Journal, LogLimit, Reader, split};
pub use spans::{TraceContext, span_id};
