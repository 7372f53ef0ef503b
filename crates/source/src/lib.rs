//! Where trees come from: the client's folders, images, http, git.
//!
//! A graph's source op is resolved to an [`Instance`], which first says what it depends on (its
//! cache key, possibly in several steps) and, if no cached result is found, makes the tree. One
//! file a scheme; [`Sources`] knows which schemes there are. Keys say nothing of where content
//! was fetched, only of what it is.

mod address;
mod api;
mod attrs;
mod blob;
mod credentials;
mod error;
mod git;
mod http;
mod http_text;
mod image;
mod local;
mod progress;
mod providers;

pub use address::normal_identifier;
pub use api::{
    AttestationChain, ChecksumRequest, GitMeta, HttpMeta, ImageMeta, Instance, KeyStep, Memo, Meta,
    MetaRequest, Source, SourceRequest, Sources,
};
pub use credentials::SessionCredentials;
pub use error::SourceError;
pub use git::GitSource;
pub use http::HttpSource;
pub use image::{Images, LayoutProvider, Layouts, Registries, session_registries};
pub use local::LocalSource;
pub use progress::{Progress, Status, layer_progress};
pub use providers::{Origins, Providers};
