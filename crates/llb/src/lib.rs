//! The low-level build graph.

/// Graph messages, generated from `proto/llb/ops.proto`.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}
