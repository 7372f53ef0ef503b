//! Results leave the daemon: as images in the store and in registries, as tars, as folders.
//!
//! [`Exporters::resolve`] checks a type and its attributes before a build starts and gives an
//! [`Exporter`]; after the build [`Exporter::export`] takes an [`ExportRequest`] and answers with
//! an [`Exported`]: what the client is told, what history keeps, and perhaps a push still to be
//! done. Exporters only read the refs they are given, and hold them until they are done.

mod annotations;
mod archive;
mod assemble;
mod attest;
mod attrs;
mod blobs;
mod config;
mod contents;
mod error;
mod files;
mod image;
mod options;
mod registry;
mod request;
mod rewrite;
mod tarball;

pub use annotations::{AnnotationKind, Annotations};
pub use assemble::{IMAGE_CONFIG, LABEL_REFERRERS, platforms};
pub use attest::{escape_qualifier, package_url};
pub use error::ExportError;
pub use options::ImageOptions;
pub use registry::{Exporter, Exporters};
pub use request::{
    Attestation, ExportRequest, ExportResult, Exported, Finish, InlineCache, PlatformResult,
    Predicate, Progress, Registries, Silent, Status, Step, Subject,
};
