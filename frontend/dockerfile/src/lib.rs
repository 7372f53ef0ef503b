//! The Dockerfile frontend.

pub mod error;
pub mod instructions;
pub mod lint;
pub mod parser;
pub mod shell;
mod suggest;
pub mod text;
