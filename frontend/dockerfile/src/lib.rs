//! The Dockerfile frontend.

pub mod error;
pub mod parser;
pub mod shell;
mod suggest;
pub mod text;
