//! The Dockerfile frontend: the language of Dockerfiles, and its lowering to LLB.
//!
//! [`Dockerfile`] is the frontend a daemon runs. The layers below can be used alone: [`parser`]
//! splits a file into instructions as written, [`instructions`] makes them typed, [`lower`] turns
//! them into a graph and an image config, [`lint`] collects remarks on the way. Questions (image
//! configs, files of contexts) go through a [`frontend_api::Bridge`]; everything else is pure. Tools
//! that have no daemon use [`offline`]; `examples/llb.rs` prints the graph of a Dockerfile with it.

pub mod context;
pub mod error;
mod frontend;
pub mod git;
pub mod image;
pub mod instructions;
pub mod lint;
pub mod lower;
pub mod offline;
pub mod options;
pub mod parser;
pub mod protojson;
pub mod reference;
pub mod report;
pub mod requests;
mod sbom;
pub mod shell;
mod suggest;
pub mod text;
pub mod undeclared;
mod url;

pub use frontend::Dockerfile;
