//! Binds graph ops to the machine.
//!
//! The solver asks a [`Worker`] for keys, content digests and outputs; here each op says which of
//! its fields count ([`key`]) and what running it means. Inputs and outputs are
//! `Option<store::Ref>`, `None` being the empty tree. Nothing here knows the wire or the frontends.
//! Invariant: what [`key::cache_map`] leaves out never changes a result's files.

pub mod cache_mount;
pub mod cdi;
mod error;
mod exec;
mod file;
mod jobs;
pub mod key;
mod keyjson;
mod worker;

pub use error::{OpError, Remains};
pub use exec::ceiling::below_ceiling;
pub use exec::mounts::{Mounter, Ready, secret, secret_env};
pub use exec::run::{extra_hosts, network, rlimits, security};
pub use jobs::{Jobs, LogStream, StepLog};
pub use worker::{Bound, Config, Machine, Payload, Worker, bind, edge, needed_entitlement};
