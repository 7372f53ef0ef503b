//! The low-level build graph: its messages, their canonical encoding, checked parsing and building.
//!
//! A client sends a [`pb::Definition`]; [`Definition::parse`] checks it and names each vertex by the
//! digest of its canonical encoding. This crate does no IO and knows neither cache nor transport:
//! frontends in Rust need it alone.

pub mod build;
pub mod definition;
pub mod dump;
pub mod encode;
pub mod name;
mod rewrite;

pub use definition::{Definition, DefinitionError, Edge, ParseOptions, Vertex};
pub use rewrite::replace_ops;

/// Graph messages, generated from `proto/llb/ops.proto`.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}

/// Source policies, generated from `proto/control/policy.proto`.
#[allow(missing_docs, clippy::all)]
pub mod policy {
    include!(concat!(env!("OUT_DIR"), "/moby.buildkit.v1.sourcepolicy.rs"));
}
