//! Binds graph ops to the machine.

mod exec;
mod file;
pub mod key;
mod keyjson;
