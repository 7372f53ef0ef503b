//! The wire contract: messages, clients and servers generated from the files in `proto/`.
//!
//! One module a protobuf package, nested as the package names are. The graph messages (package
//! `pb`) live in [`llb::pb`] and source policies in [`llb::policy`], so that an SDK needs no transport. Nothing here is written by hand.

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}
pub use generated::*;

/// Control service: builds, status, sessions, workers, disk usage, history.
pub use generated::moby::buildkit::v1 as control;
/// Bridge service between frontends and the daemon.
pub use generated::moby::buildkit::v1::frontend;

/// Encoded `FileDescriptorSet` of every file, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
