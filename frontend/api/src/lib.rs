//! All a frontend may see of the daemon.
//!
//! A frontend turns options and sources into a [`FrontendResult`]. It asks its questions through a
//! [`Bridge`] (solve this graph, which config has this image, what is in this file) and knows
//! nothing of engines, stores or wires. The same frontend therefore runs inside the daemon, over a
//! gateway connection, or in a test with a stub bridge.
//!
//! Invariant: every [`RefHandle`] inside a result came from the bridge the frontend was given.

mod bridge;
mod error;
mod meta;
mod result;

pub use bridge::{
    Bridge, CacheImport, FileRange, FileStat, Frontend, SolveRequest, SolveWhat, Warning,
    WorkerInfo,
};
pub use error::{Code, ErrorDetail, ErrorSource, FrontendError, Remains, Subject};
pub use meta::{
    AttestationChain, ChainBlob, ChecksumRequest, GitMeta, HttpMeta, ImageMeta, SourceMeta,
    SourceMetaRequest,
};
pub use result::{
    Attestation, AttestationKind, FrontendResult, InTotoSubject, RefHandle, Refs, SubjectKind,
};
